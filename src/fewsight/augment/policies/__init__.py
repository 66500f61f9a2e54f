"""Augmentation policies: which operations are drawn for an image.

A policy is a function `(rng, settings) -> list of (operation, signed magnitude)`. Its random numbers come from `rng`,
the image's own stream, alone; the operations are those of `fewsight.augment.operations`. To add one, write it in a file
here and add it to POLICIES; `augment.policy` and `stages.N.augment.policy` in a recipe then name it.
"""

from collections.abc import Callable

import numpy as np

from fewsight.augment.operations import Step
from fewsight.augment.policies.autoaugment import autoaugment
from fewsight.augment.policies.magnitudes import PolicySettings
from fewsight.augment.policies.none import none
from fewsight.augment.policies.trivialaugment import trivialaugment

__all__ = ["POLICIES", "Policy", "PolicySettings"]

Policy = Callable[[np.random.Generator, PolicySettings], list[Step]]
POLICIES: dict[str, Policy] = {
    "autoaugment": autoaugment,
    "trivialaugment": trivialaugment,
    "none": none,
}
