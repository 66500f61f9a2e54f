"""No policy: crop and flip only."""

import numpy as np

from fewsight.augment.operations import Step
from fewsight.augment.policies.magnitudes import PolicySettings


def none(rng: np.random.Generator, settings: PolicySettings) -> list[Step]:
    """`none`, which draws nothing."""
    return []
