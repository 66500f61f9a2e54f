"""What `auto` chooses from: groups of nets that are averaged, in order of cost, and when each is worth its time.

Measured (docs/notes/accuracy.md): with few images a net learns no more after it has seen them some hundred times, and
the mean of nets on images of different sizes is better than the best of them. The time therefore goes into further
members and larger images before it goes into longer trainings and wider nets. An augmentation policy helps in one field
and harms in another; where there are several nets, some have it and the others do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

SMALL_PX, MEDIUM_PX = 48, 112  # images below these sides have levels of their own
POLICY = "trivialaugment"  # unlike AutoAugment, it was not searched on other labels
MANY_IMAGES = 5_000  # from which on deep residual nets are chosen from


@dataclass(frozen=True)
class Net:
    """A net and the size of its training images."""

    backbone: str
    stem: str
    width: float
    train_px: int
    policy: str = "none"

    def with_policy(self) -> "Net":
        """The net with an augmentation policy."""
        return replace(self, policy=POLICY)


@dataclass(frozen=True)
class Level:
    """Nets that are trained and averaged."""

    nets: tuple[Net, ...]
    share: float  # of `enough_images` that each net must see for this level to be taken


def enough_images(num_images: int) -> float:
    """How many training images a net should see, counting each as often as it comes.

    Few images come many times: 89 times for 300, 53 times for 1,000, 10 times for 50,000.
    """
    return 1_000.0 * math.pow(max(num_images, 100), 0.575)


def levels(native_px: int, num_images: int) -> list[Level]:
    """The levels in order of cost, for images whose shorter side is about `native_px` pixels.

    The first is for a time that is too short for anything else.
    """
    if native_px < SMALL_PX:
        px = max(16, 4 * round(native_px / 4))
        nets = [("large", 0.5, px), ("medium", 0.5, px), ("medium", 0.5, 8 * round(1.5 * px / 8)), ("small", 0.5, px)]
        nets += [("small", 1.0, px)]
    elif native_px < MEDIUM_PX:
        px = min(96, 8 * round(native_px / 8))
        nets = [("large", 0.25, px), ("large", 0.5, px), ("large", 0.5, 8 * round(1.5 * px / 8)), ("medium", 0.5, px)]
        nets += [("medium", 1.0, px)]
    else:
        px = min(160, 16 * (native_px // 16))
        nets = [("large", 0.25, 64), ("large", 0.5, 64), ("large", 0.5, 96), ("large", 0.5, min(128, px))]
        nets += [("large", 1.0, px)]
    tiny, small, middle, large, wide = (Net("plain8", *net) for net in nets)
    if num_images >= MANY_IMAGES and native_px >= SMALL_PX:
        wide = Net("resnest50", "large" if native_px >= MEDIUM_PX else "medium", 1.0, px)
    middle_too, large_too, wide_too = middle.with_policy(), large.with_policy(), wide.with_policy()
    return [
        Level((tiny,), 0.0),
        Level((small,), 0.1),
        Level((small, middle_too), 0.25),
        Level((middle_too, large), 0.4),
        Level((middle, middle_too, large, large_too), 0.45),
        Level((middle_too, large, large_too, wide), 0.6),
        Level((small, middle, middle_too, large, large_too, large, wide_too, wide), 0.8),
    ]


def chosen(listed: Sequence[Level], images_seen: Sequence[float | None], num_images: int) -> int:
    """The index of the last level at which each net sees enough images; of the first one if there is none.

    Args:
        listed: as `levels` gives them.
        images_seen: for each level how many images the slowest net sees in the time; None for one that does not fit
            into the memory. It may be shorter: the rest was too slow to be timed.
    """
    enough = enough_images(num_images)
    worth = [
        index
        for index, (level, seen) in enumerate(zip(listed, images_seen, strict=False))
        if seen is not None and seen >= level.share * enough
    ]
    possible = [index for index, seen in enumerate(images_seen) if seen is not None]
    return worth[-1] if worth else possible[0]
