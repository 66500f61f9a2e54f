"""The images that the page shows: mistakes, unsure predictions, possibly wrong labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewsight.apps.pictures import thumbnail
from fewsight.apps.report.gather import Prediction, RunFacts
from fewsight.apps.report.suspects import AGREEMENT, OUTLIER
from fewsight.data import ImageError, decode_bytes, file_digest, read_bytes
from fewsight.terminal import printable

THUMBNAIL_PX = 128
SUSPECTED = "Possibly wrong labels"
RELIABLE_TOP1 = 0.8  # below it, a mistake of the run is far more likely than a wrong label; our choice


@dataclass(frozen=True)
class Gallery:
    """Images under a heading."""

    title: str
    description: str  # how they were selected
    warning: str
    images: list[dict[str, Any]]  # from `_image`


def make_galleries(facts: RunFacts, root: Path | None) -> list[Gallery]:
    """Images worth a look; the gallery of suspected labels is there even if it is empty."""
    galleries = [
        (
            "Most confident mistakes",
            "The predicted class is not the label; highest probability first. Possibly wrong labels are shown apart.",
            "",
            facts.examples.mistakes,
        ),
        (
            "Least confident predictions",
            "The predicted class has a low probability; lowest first.",
            "",
            facts.examples.unsure,
        ),
        (SUSPECTED, _suspicion(facts), _unreliable(facts), facts.examples.suspects),
    ]
    return [
        Gallery(title, description, warning, [_image(prediction, root) for prediction in predictions])
        for title, description, warning, predictions in galleries
        if predictions or title == SUSPECTED
    ]


def _suspicion(facts: RunFacts) -> str:
    """How labels are suspected, and how many are."""
    examples, agreement = facts.examples, f"{100 * AGREEMENT:g} %"
    if examples.confident_from is None:
        return f"None: at no level of confidence does the run agree with {agreement} of the labels."
    rule = (
        "The predicted class is not the label. Its probability is at least its mean over the images labelled with it "
        f"(confident learning, arXiv:1911.00068), and at least {100 * examples.confident_from:.1f} %, above which the "
        f"run agrees with at least {agreement} of the labels. It leads the label by {OUTLIER:g} deviations more than "
        "is usual in images with this label, which leaves out classes that the run often confuses."
    )
    total, num_shown = f"of these {len(facts.correct):,} images", len(examples.suspects)
    if not examples.num_suspects:
        return f"{rule} This applies to none {total}."
    first = f", of which the first {num_shown} are shown" if examples.num_suspects > num_shown else ""
    return f"{rule} This applies to {examples.num_suspects:,} {total}{first}. Look at each before you change its label."


def _unreliable(facts: RunFacts) -> str:
    """The warning that a weak run says little about labels; empty for a strong run."""
    top1 = facts.figures.top1.value
    if top1 >= RELIABLE_TOP1 or not facts.examples.suspects:
        return ""
    return (
        f"This list is unreliable: the run predicts only {100 * top1:.1f} % of the images correctly, so most of these "
        "are more likely its own mistakes than wrong labels."
    )


@dataclass(frozen=True)
class Pictures:
    """Where a page looked for the images that it shows, and how many it found."""

    data: Path | None  # a folder or manifest; None if the run does not say
    num_images: int  # that the page should show
    num_missing: int  # of these: missing, or changed since they were scored

    def __str__(self) -> str:
        if not self.num_missing:
            return f"all {self.num_images:,} images were found"
        if self.data is None:
            return "no images are shown: the run does not say where they are; give their folder with --data"
        number = "none" if self.num_missing == self.num_images else f"{self.num_images - self.num_missing:,}"
        return (
            f"{number} of the {self.num_images:,} images to show were found in {printable(str(self.data))}: the others "
            "are missing or have changed; give their folder with --data"
        )


def count_pictures(galleries: Sequence[Gallery], source: Path | None) -> Pictures:
    """How many of the galleries' images were found; an image in two galleries counts once."""
    is_found = {image["prediction"].path: bool(image["src"]) for gallery in galleries for image in gallery.images}
    return Pictures(source, len(is_found), list(is_found.values()).count(False))


def _image(prediction: Prediction, root: Path | None) -> dict[str, Any]:
    """An image as the template needs it."""
    src = "" if root is None else _thumbnail(root / prediction.path, prediction.digest)
    return {"prediction": prediction, "src": src}


def _thumbnail(path: Path, digest: str) -> str:
    """A small JPEG as a data URL; empty if the file is missing or has changed."""
    try:
        data = read_bytes(path)
        if file_digest(data) != digest:
            return ""
        image = decode_bytes(data, str(path))
    except ImageError:
        return ""
    return thumbnail(image, THUMBNAIL_PX)
