"""What `auto` chooses from: nets, image sizes and numbers of members in order of cost, and when each is worth it.

The order and the limits are measured (docs/notes/accuracy.md): steps first, then a second member, then larger images
and wider nets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SMALL_PX, MEDIUM_PX = 48, 112  # images below these sides have levels of their own
MANY_IMAGES = 5_000  # from which on deep residual nets are chosen from


@dataclass(frozen=True)
class Level:
    """A net, the size of its training images, and the number of nets that are averaged."""

    backbone: str
    stem: str
    width: float
    train_px: int
    members: int = 1
    share: float = 1.0  # of `enough_images` that a member must see for this level to be taken


def enough_images(num_images: int) -> float:
    """How many training images a member should have seen, counting each as often as it comes.

    Few images come many times (95 times for 300, 52 times for 1,000, 10 times for 50,000): less than that and a larger
    net or a further member costs more accuracy than it brings.
    """
    return 1_000.0 * math.pow(max(num_images, 100), 0.575)


def levels(native_px: int, num_images: int) -> list[Level]:
    """The levels in order of cost, for images whose shorter side is about `native_px` pixels.

    The first is for a time that is too short for anything else.
    """
    if native_px < SMALL_PX:
        px = max(16, 4 * round(native_px / 4))
        nets = [("large", 0.5, px), ("medium", 0.5, px), ("small", 0.5, px), ("small", 1.0, px)]
    elif native_px < MEDIUM_PX:
        px = min(96, 8 * round(native_px / 8))
        nets = [("large", 0.25, px), ("large", 0.5, px), ("large", 1.0, px), ("medium", 1.0, px)]
    else:
        px = min(160, 16 * (native_px // 16))
        nets = [("large", 0.25, 64), ("large", 0.5, 64), ("large", 0.5, 96), ("large", 1.0, 96), ("large", 1.0, px)]
    plain = [("plain8", *net) for net in nets]
    listed = [Level(*plain[0]), Level(*plain[1], share=0.1), Level(*plain[1], members=2, share=0.3)]
    for number, net in enumerate(plain[2:]):
        listed += [Level(*net, members=members) for members in ((2,) if number == 0 else (2, 4))]
    if num_images >= MANY_IMAGES and native_px >= SMALL_PX:
        stem = "large" if native_px >= MEDIUM_PX else "medium"
        sides = sorted({px, min(224, 32 * (native_px // 32))}) if native_px >= MEDIUM_PX else [px]
        listed += [Level("resnest50", stem, 1.0, side, members=2) for side in sides]
    return [*listed, Level(*plain[-1], members=8)]


def chosen(listed: Sequence[Level], images_seen: Sequence[float | None], num_images: int) -> int:
    """The index of the last level at which each member sees enough images; the first one if there is none.

    Args:
        listed: as `levels` gives them.
        images_seen: for each level how many images a member sees in the time; None for one that does not fit into the
            memory. It may be shorter: the rest was too slow to be timed.
    """
    enough = enough_images(num_images)
    worth = [
        index
        for index, (level, seen) in enumerate(zip(listed, images_seen, strict=False))
        if seen is not None and seen >= level.share * enough
    ]
    possible = [index for index, seen in enumerate(images_seen) if seen is not None]
    return worth[-1] if worth else possible[0]
