"""Training images that a test would meet again: equal ones are dropped, nearly equal ones named."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewsight.data import Sample, Scanned, candidates, confirmed, load_compared
from fewsight.errors import DataError
from fewsight.wording import counted

NAMED = 20


@dataclass(frozen=True)
class Leaks:
    """Pairs of an image to train on and one of another split."""

    policy: str  # drop, stop or allow
    equal: tuple[tuple[str, str], ...]  # pixel by pixel
    near: tuple[tuple[str, str], ...]  # as `fewsight check` finds them

    def as_json(self) -> dict[str, Any]:
        """Plain values for data.json."""
        return asdict(self)


def find_leaks(
    root: Path,
    policy: str,
    train: Sequence[tuple[Sample, Scanned]],
    others: Sequence[tuple[Sample, Scanned]],
) -> Leaks:
    """The training images that have an equal, or nearly equal, image among those that are not trained on.

    Raises:
        DataError: there is an equal one, and the policy is "stop".
    """
    elsewhere = {one.pixels: sample.path for sample, one in others if one.error is None}
    equal = tuple(
        (sample.path, elsewhere[one.pixels]) for sample, one in train if one.error is None and one.pixels in elsewhere
    )
    if equal and policy == "stop":
        named = "".join(f"\n  {one} = {other}" for one, other in equal[:NAMED])
        those = counted(len(equal), "image") + " to train on " + ("is" if len(equal) == 1 else "are")
        raise DataError(
            f"{root}: {those} equal to images of another split; remove them, or say --leak drop:{named}"
            + (f"\n  and {len(equal) - NAMED:,} more" if len(equal) > NAMED else "")
        )
    both = [(sample, one) for sample, one in [*train, *others] if one.error is None]
    num_train = sum(one.error is None for _, one in train)
    pairs = [
        pair
        for pair in candidates([one.thumbnail for _, one in both])
        if pair[0] < num_train <= pair[1] and both[pair[0]][1].pixels != both[pair[1]][1].pixels
    ]
    found = confirmed(pairs, lambda place: load_compared(root / both[place][0].path))
    return Leaks(policy, equal, tuple((both[one][0].path, both[other][0].path) for one, other, _ in found))
