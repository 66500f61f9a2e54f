"""What policies share: the settings that they read, and the magnitudes of operations."""

from typing import Protocol

import numpy as np

SIGNED = frozenset(
    (
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
        "rotate",
        "color",
        "contrast",
        "sharpness",
        "brightness",
    )
)  # operations with a direction: a policy draws the sign of their magnitude


class PolicySettings(Protocol):
    """The settings in a recipe's `[augment]` that policies read."""

    @property
    def train_px(self) -> int: ...
    @property
    def num_policies(self) -> int: ...
    @property
    def fill(self) -> int: ...
    @property
    def rotate_signed(self) -> bool: ...


def magnitudes(ranges: dict[str, tuple[float, float]], num_levels: int) -> dict[str, tuple[float, ...]]:
    """Evenly spaced magnitudes for every operation; whole bits for posterize, whole pixels for translation.

    Args:
        ranges: operation -> its weakest and strongest magnitude, in the units of
            `fewsight.augment.operations.apply_steps`.
    """
    table = {name: np.linspace(low, high, num_levels) for name, (low, high) in ranges.items()}
    table["posterize"] = np.round(table["posterize"])
    for name in table.keys() & {"translate_x", "translate_y"}:
        table[name] = np.trunc(table[name])
    return {name: tuple(values.tolist()) for name, values in table.items()}
