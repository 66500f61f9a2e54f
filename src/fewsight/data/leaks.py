"""Find training images that are repeated in another split: equal ones are dropped, near duplicates reported."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewsight.data import Sample, Scanned, candidates, confirmed, load_compared
from fewsight.errors import DataError
from fewsight.wording import counted, first_few

MAX_NAMED = 20  # in the error message


@dataclass(frozen=True)
class Leaks:
    """Pairs (training image, image of another split) that show the same."""

    policy: str  # drop, stop or allow
    equal: tuple[tuple[str, str], ...]  # the same pixels
    near: tuple[tuple[str, str], ...]  # near duplicates, as `fewsight check` finds them

    def as_json(self) -> dict[str, Any]:
        """The value of `leaks` in data.json."""
        return asdict(self)


def find_leaks(
    root: Path,
    policy: str,
    train: Sequence[tuple[Sample, Scanned]],
    others: Sequence[tuple[Sample, Scanned]],
) -> Leaks:
    """Find the training images that equal, or nearly equal, an image of another split.

    Args:
        root: the dataset's root.
        policy: what happens to equal ones: drop, stop or allow.
        train: the training images, each with what its scan measured.
        others: the images of all splits that are not trained on.

    Raises:
        DataError: there are equal images and the policy is "stop".
    """
    path_of_pixels = {scanned.pixels: sample.path for sample, scanned in others if scanned.error is None}
    equal = tuple(
        (sample.path, path_of_pixels[scanned.pixels])
        for sample, scanned in train
        if scanned.error is None and scanned.pixels in path_of_pixels
    )
    if equal and policy == "stop":
        pairs_in_lines = first_few((f"{path} = {other_path}" for path, other_path in equal), MAX_NAMED)
        subject = counted(len(equal), "training image") + (" is" if len(equal) == 1 else " are")
        raise DataError(
            f"{root}: {subject} equal to images of another split; remove them, or pass --leak drop:\n  "
            + "\n  ".join(pairs_in_lines)
        )
    readable = [(sample, scanned) for sample, scanned in [*train, *others] if scanned.error is None]
    num_train = sum(scanned.error is None for _, scanned in train)
    pairs = [
        pair
        for pair in candidates([scanned.thumbnail for _, scanned in readable])
        if pair[0] < num_train <= pair[1] and readable[pair[0]][1].pixels != readable[pair[1]][1].pixels
    ]
    near = confirmed(pairs, lambda index: load_compared(root / readable[index][0].path))
    return Leaks(policy, equal, tuple((readable[first][0].path, readable[second][0].path) for first, second, _ in near))
