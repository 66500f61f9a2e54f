"""A run or an ensemble on labelled images: every score kept, and the figures from those."""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from fewsight.data import WHOLE, EvaluationSet, evaluation_samples, scan
from fewsight.errors import DataError, RunError
from fewsight.inference.ensemble import RunsAndViews, open_runs, score_folders, score_runs
from fewsight.inference.score_run import LabelledFile, ScoringResult
from fewsight.machine.cores import num_cores
from fewsight.runs import Run, held_out, trained_on
from fewsight.scores.fusion import Scored, fused_log_probs
from fewsight.scores.metrics import Figures, evaluate_scores
from fewsight.terminal import make_console, progress_counter
from fewsight.wording import counted

UNSEEN = "unseen"  # the split of what is left of data without splits


@dataclass(frozen=True)
class Evaluation:
    """Figures of a run or an ensemble on a split, and how many of its images were trained on."""

    split: str
    views: tuple[str, ...]
    figures: Figures
    num_trained_on: int
    unreadable: tuple[str, ...]
    kept: tuple[str, ...]  # where the scores lie, or why they were not kept; what rounding changed
    num_left_out: int = 0  # images of a folder without splits that were trained on, so that they are not tested


def evaluate(
    path: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    views: str | None = None,
    scores: str | Path | None = None,
    dtype: str = "float32",
    console: Console | None = None,
) -> Evaluation:
    """Test a run or an ensemble on a split of a dataset; labels match by name.

    Every score is kept, and the figures come from those.

    Args:
        split: default `test`, then `val`. Of data without splits the images that were trained on, known by what they
            show, are left out, if others remain; `all` tests every image.
        views: center (the default of a run), report (of an ensemble) or names; their probabilities are averaged.
        scores: the folder that keeps the scores; default `RUN/scores/<split>`.
        dtype: of the scores that are kept, float32 or float16.

    Raises:
        DataError: no such split, labels that the run does not know, or no image that can be read.
        RecipeError: no such view.
        RunError: not a finished run; or `scores` was given and holds other scores.
    """
    path, data, scores = Path(path), Path(data), None if scores is None else Path(scores)
    console = console or make_console()
    asked = open_runs(path, views)
    found, num_left_out = _chosen(asked, data, split, console)
    images = [LabelledFile(found.root / sample.path, sample.path, sample.label) for sample in found.samples]
    with progress_counter(console, "evaluating") as progress, contextlib.ExitStack() as stack:

        def keep_in(place: Path | None) -> dict[str, ScoringResult]:
            return score_runs(asked, images, score_folders(asked, place, found.split), progress, dtype=dtype)

        folder = path / ("runs/*/" * bool(asked.entries) + f"scores/{found.split}") if scores is None else scores
        try:
            stored, kept = keep_in(scores), f"scores in {folder}"
        except RunError as error:
            if scores is not None:
                raise
            stored = keep_in(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            kept = f"scores not kept: {error}"
        told = (kept, *_rounding(stored, dtype))
        return replace(_evaluation(asked, data, found, asked.scored(stored), told), num_left_out=num_left_out)


def _chosen(asked: RunsAndViews, data: Path, split: str | None, console: Console) -> tuple[EvaluationSet, int]:
    """The samples to test, and how many were left out because they were trained on."""
    settings, source = asked.first_run.recipe.data, asked.first_run.data.source
    found = evaluation_samples(
        data, asked.classes, split, holdout=settings.holdout, seed=settings.split_seed, trained_on=Path(source)
    )
    if split is not None or found.split != WHOLE:
        return found, 0
    with progress_counter(console, "looking for images it was trained on") as progress:
        scanned = scan(found.root, found.samples, workers=num_cores(), progress=progress)
    return unseen(found, [one.pixels for one in scanned], tuple(asked.runs.values()))


def unseen(found: EvaluationSet, pixels: Sequence[str], known: Sequence[Run]) -> tuple[EvaluationSet, int]:
    """Data without splits less the images that one of some runs was trained on, and how many those are.

    What is left is called val where it is nothing but the first run's val, so that a copy of the data elsewhere is
    tested as the data itself is. Where nothing would be left, nothing is left out.

    Args:
        pixels: of each sample, the digest that a scan gives.
    """
    seen = [trained_on(run) for run in known]
    kept = [
        place
        for place, sample in enumerate(found.samples)
        if not any((found.root / sample.path, pixels[place]) in one for one in seen)
    ]
    num_left_out = len(found.samples) - len(kept)
    if not kept or not num_left_out:
        return found, 0
    readable = {pixels[place] for place in kept if pixels[place]}
    name = "val" if readable and held_out(known[0]).issuperset(readable) else UNSEEN
    samples, labels = tuple(found.samples[place] for place in kept), tuple(found.labels[place] for place in kept)
    return EvaluationSet(found.root, name, samples, labels), num_left_out


def _rounding(stored: Mapping[str, ScoringResult], dtype: str) -> tuple[str, ...]:
    written, changed = (sum(getattr(one, name) for one in stored.values()) for name in ("written", "changed"))
    if dtype == "float32" or not written:
        return ()
    return (
        f"kept as {dtype}: the most probable class is another in {changed:,} of {counted(written, 'result')} written "
        "now",
    )


def _evaluation(
    asked: RunsAndViews, data: Path, found: EvaluationSet, scored: Scored, kept: tuple[str, ...]
) -> Evaluation:
    """The figures of stored scores."""
    images, readable = scored.first_store.images, scored.first_store.readable
    unreadable = tuple(image.error for image in images if image.error is not None)
    if len(unreadable) == len(images):
        raise DataError(
            f"{data}: none of the {counted(len(unreadable), 'image')} can be read; the first: {unreadable[0]}"
        )
    log_probs, labels = fused_log_probs(scored.weights)[readable], np.array(found.labels)[readable]
    figures = evaluate_scores(log_probs, labels, asked.classes, num_images=len(images))
    return Evaluation(found.split, asked.view_names, figures, int(scored.trained_on.sum()), unreadable, kept)
