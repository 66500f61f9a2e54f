"""Evaluate a run or an ensemble on labelled images: every score is stored, and the metrics are computed from them."""

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from fewsight.data import WHOLE, EvaluationSet, evaluation_samples, scan
from fewsight.data.memory import Scanned
from fewsight.errors import DataError, RunError, WeightsError
from fewsight.inference.opening import RunsAndViews, describe_probabilities, open_runs, score_folders, score_runs
from fewsight.inference.score_run import LabelledFile, ScoringResult
from fewsight.machine.cores import num_cores
from fewsight.runs import Run, held_out, trained_on
from fewsight.scores.fusion import fused_log_probs
from fewsight.scores.members import Scored
from fewsight.scores.metrics import Figures, evaluate_scores
from fewsight.scores.queries import better_part
from fewsight.terminal import make_console, printable, progress_counter
from fewsight.wording import counted, named, shell_command

UNSEEN = "unseen"  # the name of the split that is left of data without splits


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a run or an ensemble on a split, and how many of its images were trained on."""

    data: str
    split: str
    views: tuple[str, ...]
    figures: Figures
    num_trained_on: int
    unreadable: tuple[str, ...]
    kept: tuple[str, ...]  # where the scores are stored, or why they are not
    probabilities: str  # at which temperature predict and the service give them, or that they are not calibrated
    num_chose_weights: int = 0  # images on which the run chose the epoch of its weights (run.select = best)
    better_part: str | None = None  # says which member, or which size, has a higher accuracy alone
    num_left_out: int = 0  # images of data without splits that were trained on and therefore not tested


def evaluate(
    path: str | Path,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    views: str | None = None,
    scores: str | Path | None = None,
    splits: str = "",
    reread: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Test a run or an ensemble on a split of a dataset; labels are matched by name.

    Every score is stored, and the metrics are computed from the stored scores.

    Args:
        path: the run folder, or an ensemble's.
        data: the dataset; default that of the run.
        split: default `test`, else `val`. Of data without splits, images that were trained on (recognised by their
            pixels) are left out if others remain; `all` tests every image.
        views: center (a run's default), paper or names, which are averaged; an ensemble has its own default.
        scores: the folder for the scores; default `RUN/scores/<split>`.
        splits: names splits that are not called train, val or test, `test=NAME`; default: as the run was trained.
        reread: read every file to compare its contents with those that there are scores of, also where nothing in
            its folder says that it was changed.
        console: for progress; default the terminal.

    Raises:
        DataError: no such split, labels that are not classes of the run, or no image can be read.
        RecipeError: there is no such view.
        RunError: the run is not finished; or `scores` was given and holds other scores.
    """
    path, scores = Path(path), None if scores is None else Path(scores)
    console = console or make_console()
    opened = open_runs(path, views)
    data = _own_data(opened) if data is None else Path(data)
    tested, num_left_out = _samples_to_test(opened, data, split, splits, console)
    for note in _notes(path, data, tested, splits):
        console.print(f"note: {printable(note)}")
    images = [LabelledFile(tested.root / sample.path, sample.path, sample.label) for sample in tested.samples]
    with progress_counter(console, "evaluating") as progress, contextlib.ExitStack() as stack:

        def score(folder: Path | None) -> dict[str, ScoringResult]:
            folders = score_folders(opened, folder, tested.split)
            return score_runs(opened, images, folders, progress, reread=reread)

        folder = path / ("runs/*/" * bool(opened.entries) + f"scores/{tested.split}") if scores is None else scores
        try:
            stored, remark = score(scores), f"scores in {folder}"
        except RunError as error:
            if scores is not None or isinstance(error, WeightsError):
                raise
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            console.print(f"scores are not kept; meanwhile they take {_size_text(opened, len(images))} in {temporary}")
            stored = score(Path(temporary))
            remark = f"scores not kept: {error}"
        evaluation = _evaluation(opened, data, tested, opened.scored(stored), (remark,))
        return replace(evaluation, num_left_out=num_left_out)


def _notes(path: Path, data: Path, tested: EvaluationSet, splits: str) -> tuple[str, ...]:
    """Lines on how the data were understood, and on a split that was not tested."""
    if not tested.untested:
        return tested.notes
    options = [*(["--splits", splits] if splits else []), "--split", tested.untested[0]]
    command = shell_command(["fewsight", "evaluate", str(path), str(data), *options])
    return (*tested.notes, f"val is tested, since there is no test; {named(tested.untested)} has labels too: {command}")


def _own_data(opened: RunsAndViews) -> Path:
    """The data that the run, or an ensemble's first run, was trained on.

    Raises:
        DataError: they are no longer there.
    """
    data = Path(opened.first_run.data.source)
    if not data.exists():
        command = shell_command(["fewsight", "evaluate", str(opened.path), "DATA"])
        raise DataError(f"{data}, which {opened.path} was trained on, does not exist; name the data: {command}")
    return data


def _size_text(opened: RunsAndViews, num_images: int) -> str:
    """The space that scores of all views take on the disk."""
    num_bytes = 4 * num_images * len(opened.classes) * sum(map(len, opened.views.values()))
    return f"{max(1, round(num_bytes / 2**20)):,} MiB"


def _samples_to_test(
    opened: RunsAndViews, data: Path, split: str | None, splits: str, console: Console
) -> tuple[EvaluationSet, int]:
    """The samples to test, and how many were left out because they were trained on."""
    settings, source = opened.first_run.recipe.data, Path(opened.first_run.data.source)
    if not splits and data.resolve() == source.resolve():
        splits = settings.splits
    holdout, seed = settings.holdout, settings.split_seed
    samples = evaluation_samples(
        data, opened.classes, split, holdout=holdout, seed=seed, trained_on=source, splits=splits
    )
    if split is not None or samples.split != WHOLE:
        return samples, 0
    with progress_counter(console, "looking for images it was trained on") as progress:
        scanned = scan(samples.root, samples.samples, workers=num_cores(), progress=progress)
    return leave_out_trained_on(samples, scanned, tuple(opened.runs.values()))


def leave_out_trained_on(
    whole: EvaluationSet, scanned: Sequence[Scanned], tested_runs: Sequence[Run]
) -> tuple[EvaluationSet, int]:
    """Data without splits less the images that one of some runs was trained on.

    The remaining images are called val if all of them are in the first run's val, so that a copy of the data in another
    folder is tested as the data itself is. If nothing would remain, nothing is left out.

    Args:
        whole: all samples.
        scanned: what a scan found, of each sample.
        tested_runs: the runs.

    Returns:
        The remaining samples, and how many were left out.
    """
    training_images = [trained_on(run) for run in tested_runs]
    kept = [
        index
        for index, sample in enumerate(whole.samples)
        if not any(
            (whole.root / sample.path, scanned[index].pixels, scanned[index].digest) in images
            for images in training_images
        )
    ]
    num_left_out = len(whole.samples) - len(kept)
    if not kept or not num_left_out:
        return whole, 0
    readable = {scanned[index].pixels for index in kept if scanned[index].pixels}
    name = "val" if readable and held_out(tested_runs[0]).issuperset(readable) else UNSEEN
    samples, labels = tuple(whole.samples[index] for index in kept), tuple(whole.labels[index] for index in kept)
    return replace(whole, split=name, samples=samples, labels=labels), num_left_out


def _evaluation(
    opened: RunsAndViews, data: Path, tested: EvaluationSet, scored: Scored, remarks: tuple[str, ...]
) -> Evaluation:
    """The metrics of stored scores."""
    images, readable = scored.first_store.images, scored.first_store.readable
    errors = tuple(image.error for image in images if image.error is not None)
    if len(errors) == len(images):
        raise DataError(f"{data}: none of the {counted(len(errors), 'image')} can be read; the first: {errors[0]}")
    log_probs, labels = fused_log_probs(scored.weights)[readable], np.array(tested.labels)[readable]
    figures = evaluate_scores(log_probs, labels, opened.classes, num_images=len(images))
    return Evaluation(
        data=str(data),
        split=tested.split,
        views=opened.view_names,
        figures=figures,
        num_trained_on=int(scored.trained_on.sum()),
        unreadable=errors,
        kept=remarks,
        probabilities=describe_probabilities(opened),
        num_chose_weights=int(scored.chose_weights.sum()),
        better_part=better_part(scored),
    )
