"""Write the HTML page: its images, plots and script are embedded, so it makes no request."""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

import fewsight
from fewsight.apps.check import CheckResult
from fewsight.apps.check import check as check_data
from fewsight.apps.report.galleries import Pictures, count_pictures, make_galleries
from fewsight.apps.report.gather import RunFacts, against, gather, paper_tables
from fewsight.apps.report.plots import confidence_bars, confusion_image, confusion_table, curve_plots, reliability_dots
from fewsight.errors import DataError, RunError
from fewsight.machine import files
from fewsight.machine.outputs import Kind, check_output
from fewsight.recipes import Recipe, recipe_toml
from fewsight.runs import Run
from fewsight.scores.calibration import WHAT_IS_NEEDED, calibration_error, view_names
from fewsight.scores.queries import better_part
from fewsight.terminal import optimistic_notes, printable
from fewsight.wording import counted, shell_command

MAX_TABLE_CLASSES = 30  # the confusion matrix of more classes is an image instead of a table
MAX_GROUPS = 5  # shown of a finding in the data
SUFFIXES = (".html", ".htm")
PAGE = Kind("a page of fewsight report", (b'<meta name="generator" content="fewsight',))


def write_report(
    paths: Sequence[Path],
    target: Path,
    *,
    split: str | None = None,
    views: Sequence[str] = (),
    data: Path | None = None,
    check: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pictures:
    """Write a page on the first run, compared with the others.

    Args:
        paths: runs, ensembles, or folders of `fewsight reproduce`, whose ensemble is shown with the paper's tables.
        target: the page to write; an older page is replaced.
        split: the split whose stored scores are used.
        views: use only these views; none: all that are stored.
        data: the folder with the images; None: where they were when the run started.
        check: also show the findings of `fewsight check`, if the data is present; decoded images come from its cache.
        progress: called with (done, total) images that are checked.

    Returns:
        Where it looked for the images that it shows, and how many it found.

    Raises:
        RunError: a run has no such scores, or `target` cannot be written, has no HTML suffix, or is another file.
    """
    check_output(target, "--out", PAGE)
    if target.suffix.lower() not in SUFFIXES:
        raise RunError(f"--out {target}: the page is an HTML file; call it {target.stem}.html")
    tables = next((tables for tables in map(paper_tables, paths) if tables), None)
    first, *others = (gather(path / "ensemble" if paper_tables(path) else path, split, views) for path in paths)
    source = _data_source(first, data)
    galleries = make_galleries(first, source.parent if source is not None and source.is_file() else source)
    pictures = count_pictures(galleries, source)
    checked, why_not_checked = _checked(first, source, progress) if check else (None, "")
    html = _template().render(
        **_run_values(first),
        version=fewsight.__version__,
        facts=first,
        others=[(other, against(first, other), ". ".join(_optimistic(other))) for other in others],
        views_differ=any(view_names(other.scored) != view_names(first.scored) for other in others),
        shared_views=sorted(set.intersection(*(set(view_names(facts.scored)) for facts in (first, *others)))),
        calibrating=_calibrating(first, source),
        what_is_needed=WHAT_IS_NEEDED,
        galleries=galleries,
        pictures=pictures,
        tables=tables,
        checked=checked,
        why_not_checked=why_not_checked,
        again="" if first.run is None else _command_again(first.run, source),
        max_groups=MAX_GROUPS,
    )
    files.write_text(files.link_target(target), html)
    return pictures


def _template() -> Template:
    """The page's template, with filters for names and percentages."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"name": printable, "percent": _percent, "counted": counted}
    text = resources.files("fewsight.apps.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(text)


def _percent(value: float | None) -> str:
    """A proportion in percent, without the sign."""
    return "-" if value is None else f"{100 * value:.1f}"


def _run_values(facts: RunFacts) -> dict[str, Any]:
    """The template's values that depend on the first run alone: plots and derived texts."""
    few_classes, calibration = len(facts.classes) <= MAX_TABLE_CLASSES, facts.calibration
    return {
        "cautions": ". ".join(
            [
                *_optimistic(facts),
                *filter(None, [better_part(facts.scored)]),
            ]
        ),
        "curves": curve_plots(facts.curves),
        "soft_targets": "" if facts.recipe is None else _soft_targets(facts.recipe),
        "reliability": reliability_dots(calibration.bins),
        "tempered": reliability_dots(calibration.tempered_bins),
        "bars": confidence_bars(calibration.tempered_bins or calibration.bins),
        "most": max(entry.count for entry in calibration.tempered_bins or calibration.bins),
        "error": calibration_error(calibration.bins),
        "tempered_error": calibration_error(calibration.tempered_bins) if calibration.tempered_bins else None,
        "cells": confusion_table(facts) if few_classes else None,
        "matrix": None if few_classes else confusion_image(facts),
        "recipe": "" if facts.run is None else recipe_toml(facts.run.recipe),
    }


def _optimistic(facts: RunFacts) -> list[str]:
    """Why the run's figures are optimistic, if they are."""
    return optimistic_notes(facts.num_trained_on, facts.num_chose_weights, facts.figures.num_images)


def _data_source(facts: RunFacts, data: Path | None) -> Path | None:
    """Where the data is now: a folder, or the manifest in it that the run was trained on."""
    source = None if facts.source is None else Path(facts.source)
    if data is None:
        return source
    if not data.exists():
        raise RunError(f"--data {data} does not exist; give the folder with the images")
    manifest = None if source is None else data / source.name
    return manifest if manifest is not None and manifest.is_file() else data


def _checked(
    facts: RunFacts, source: Path | None, progress: Callable[[int, int], None]
) -> tuple[CheckResult | None, str]:
    """The result of checking the data as it is now, or why it was not checked."""
    if facts.recipe is None or source is None:
        return None, ""
    if not source.exists():
        return None, f"it was in {source}, where there is nothing now; give its folder with --data"
    settings = facts.recipe.data
    try:
        holdout, seed, splits = settings.holdout, settings.split_seed, settings.splits
        return check_data(source, holdout=holdout, seed=seed, splits=splits, progress=progress), ""
    except DataError as error:
        return None, str(error)


def _calibrating(facts: RunFacts, source: Path | None) -> list[str]:
    """The commands that fit a temperature for the views of the page; none where they would be refused."""
    calibrate = ["fewsight", "scores", "calibrate", str(facts.path)]
    evaluate = ["fewsight", "evaluate", str(facts.path), str(source), "--split", "val"]
    evaluate += ["--views", ",".join(view_names(facts.scored))]
    lines = {"scored": [calibrate], "not scored": [evaluate, calibrate] if source else []}
    return [] if facts.calibration.stored else [shell_command(line) for line in lines.get(facts.calibration.val, [])]


def _command_again(run: Run, source: Path | None) -> str:
    """The command that trains the run again, on the data where it is now."""
    words = ["fewsight", "train", str(source or run.data.source), "--out", "AGAIN"]
    words += ["--recipe", str(run.path / "recipe.toml")]
    start = run.info.start
    return shell_command([*words, "--init-from", start.run] if start else words)


def _soft_targets(recipe: Recipe) -> str:
    """The parts of a recipe whose soft targets keep the training loss above 0."""
    smoothing = any(stage.losses.smoothing > 0 for stage in recipe.stages)
    used = {"CutMix": recipe.augment.cutmix_prob > 0, "label smoothing": smoothing}
    return " and ".join(name for name, is_used in used.items() if is_used)
