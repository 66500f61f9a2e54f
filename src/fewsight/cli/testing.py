"""Commands that ask a trained run: evaluate, predict, ensemble, report, runs, reproduce."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from fewsight.errors import FewsightError
from fewsight.wording import counted


def evaluate(
    run: Path,
    data: Path,
    /,
    *,
    split: str | None = None,
    views: str | None = None,
    scores: Path | None = None,
    scores_dtype: Literal["float32", "float16"] = "float32",
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """Test a run or an ensemble on labelled images: top-1 and top-5 with intervals, per class, the worst confusions.

    Args:
        run: the run folder, or an ensemble.
        data: a dataset as for train; labels match by name.
        split: which one (test, else val); all: every image. Of data without splits those that were trained on, known
            by what they show, are left out unless this says all.
        views: center (one view, a run's default), report (every test size, two crops; an ensemble's default), or names
            such as center-224,random-320; center-224-noflip is the view without its flipped twin.
        scores: the folder that keeps every view's scores (RUN/scores/SPLIT).
        scores_dtype: of the scores that are kept; float16 takes half the disk, and what it changes is said (float32).
        json_: also write every figure to this file.
    """
    from fewsight.cli.show import show_figures
    from fewsight.inference.evaluate import evaluate as evaluate_run
    from fewsight.machine import files
    from fewsight.terminal import make_console, print_first, printable, trained_on_note

    if json_ is not None:
        files.check_target(json_, "--json")
    console = make_console()
    found = evaluate_run(run, data, split=split, views=views, scores=scores, dtype=scores_dtype, console=console)
    seen = ", ".join(found.views) if len(found.views) <= 2 else counted(len(found.views), "view")
    if found.num_left_out:
        total = found.num_left_out + found.figures.num_images
        console.print(
            f"left out: {found.num_left_out:,} of {counted(total, 'image')}, because it was trained on them; "
            "--split all tests them too"
        )
    if found.num_trained_on:
        console.print(trained_on_note(found.num_trained_on, found.figures.num_images))
    show_figures(console, found.figures, f"{run} on {data} ({found.split}, {seen})")
    print_first(console, "unreadable", found.unreadable)
    for line in found.kept:
        console.print(printable(line))
    if json_ is not None:
        about: dict[str, Any] = {"run": str(run), "data": str(data), "split": found.split}
        about |= {"views": found.views, "num_trained_on": found.num_trained_on}
        about |= {"num_left_out": found.num_left_out}
        files.write_json(json_, about | found.figures.as_json() | {"unreadable": found.unreadable})
        console.print(f"wrote {json_}")
    return 1 if found.unreadable else 0


def predict(
    run: Path,
    images: tuple[str, ...],
    /,
    *,
    out: Path | None = None,
    top_k: int = 5,
    views: str | None = None,
    features: bool = False,
    scores: Path | None = None,
    scores_dtype: Literal["float32", "float16"] = "float32",
) -> int:
    """Predict the classes of images: files, folders and glob patterns; a row for each, in order.

    Args:
        run: the run folder, or an ensemble.
        images: files, folders (their images in code-point order) or quoted patterns.
        out: a .csv, .jsonl or .parquet file; without it CSV goes to the screen.
        top_k: classes a row (5).
        views: center (one view, a run's default), report (every test size, two crops; an ensemble's default), or names
            such as center-224,random-320.
        features: also write the pooled features beside OUT, a row for each: new.csv, new.features.npy.
        scores: also keep every view's scores in this folder; the same command goes on there where it stopped.
        scores_dtype: of the scores that are kept (float32).
    """
    from fewsight.inference.predict import predict_files
    from fewsight.inference.prediction_files import features_file
    from fewsight.terminal import make_console

    there = out is not None and out.exists()
    failed, total = predict_files(
        run,
        images,
        out,
        top_k=top_k,
        console=make_console(sys.stderr),
        views=views,
        features=features,
        scores=scores,
        dtype=scores_dtype,
    )
    if out is not None and features:
        print(f"wrote {features_file(out)}: float32, a row for each of {out}")
    if out is not None:
        failures = f", {failed:,} with an error" if failed else ""
        print(f"{'replaced' if there else 'wrote'} {out}: {counted(total, 'row')}{failures}")
    return 1 if failed else 0


def ensemble(
    members: tuple[str, ...],
    /,
    *,
    out: Path,
    weights: str = "uniform",
    split: str = "val",
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
) -> int:
    """Make one run of several: an ensemble whose members' probabilities are averaged; the same classes by name.

    Args:
        members: [NAME=]RUN[:SIZES][+RUN[:SIZES]...] each: a run with all its test sizes (the rows of the report's
            tables), or the rows of some sizes, or of several runs under one name, such as
            resnest101_ce=runs/ce:224,320,380+runs/ce448:448.
        out: the ensemble's folder to write; it must not exist yet.
        weights: uniform over the rows; a number for each member, with commas; or greedy: members added one at a time
            with replacement, on kept scores (uniform).
        split: whose scores greedy chooses on; never images that a member was trained on (val).
        from_: take the weights of this ensemble of the same recipes, for example of runs on train alone.
    """
    from fewsight.cli.show import show_members
    from fewsight.inference.ensemble import make_ensemble
    from fewsight.terminal import make_console

    if from_ is not None and weights != "uniform":
        raise FewsightError("--from brings its own weights; leave out --weights")
    specs = make_ensemble(members, out, weights=weights, split=split, carried_from=from_)
    console = make_console()
    show_members(console, specs)
    console.print(f"the ensemble lies in {out}")
    return 0


def report(
    runs: tuple[Path, ...],
    /,
    *,
    out: Path,
    split: str | None = None,
    views: str | None = None,
    data: Path | None = None,
    no_check: bool = False,
) -> int:
    """Write one page on a run: figures, classes, confusions, calibration, mistakes as pictures; it opens offline.

    Args:
        runs: a run or an ensemble that was evaluated, or a folder of reproduce; others are compared with the first.
        out: the HTML file to write, NAME.html; an older page of this command is replaced.
        split: whose kept scores (test, else val, else the only ones).
        views: only these, for example center-64 (all that there are).
        data: the folder that the scores' images lie in (where the run's data lay when it began).
        no_check: leave out what `fewsight check` finds in the data as it lies there now.
    """
    from fewsight.apps.report import write_report
    from fewsight.machine import files
    from fewsight.scores.fusion import read_views
    from fewsight.terminal import make_console, progress_counter

    files.check_target(out, "--out")
    there = out.exists()
    with progress_counter(make_console(), "checking the data") as progress:
        pictures = write_report(
            runs, out, split=split, views=read_views(views), data=data, check=not no_check, progress=progress
        )
    size = out.stat().st_size / 2**10
    said = f"{size / 2**10:.1f} MiB" if size >= 2**10 else f"{size:.0f} KiB"
    print(f"{'replaced' if there else 'wrote'} {out}: {said}")
    if pictures.num_missing:
        print(f"pictures: {pictures}")
    return 0


def runs(folder: Path = Path("runs"), /, *, json_: Annotated[Path | None, Parameter(name="--json")] = None) -> int:
    """List the runs below a folder with their models, trainings and accuracies on val; seeds as mean ± sd.

    A training that no process is at is shown as interrupted; an ensemble's accuracy comes from the kept scores of val.

    Args:
        folder: where to look (runs).
        json_: also write what was found to this file.
    """
    from dataclasses import asdict

    from fewsight.apps.listing import list_runs, seed_groups
    from fewsight.cli.show import show_runs
    from fewsight.machine import files
    from fewsight.terminal import make_console

    if json_ is not None:
        files.check_target(json_, "--json")
    found = list_runs(folder)
    show_runs(make_console(), folder, found, seed_groups(found))
    if json_ is not None:
        files.write_json(json_, [asdict(one) | {"path": str(one.path)} for one in found])
        print(f"wrote {json_}")
    return 0


def reproduce(
    data: Path,
    /,
    *,
    out: Path,
    test: str = "test",
    scale: Literal["full", "small"] = "full",
    hours: float = 1.0,
    jobs: int | None = None,
    devices: str | None = None,
    dry_run: bool = False,
) -> int:
    """Run the report: eight trainings, tests in eight views, Tables 1 and 2 beside the report's figures, the fusion.

    The same command goes on where it was stopped, skips what is finished and tries again what failed.

    Args:
        data: a dataset as for train; train + val are trained on, as in the report.
        out: the folder to write: recipes, runs, logs, tables.md, tables.csv, effects.csv, ensemble.
        test: a labelled split, or a folder of labelled images (test). With val the models are trained on train alone.
        scale: full is the report as written; small maps it to small images and small members of its families (full).
        hours: at small scale, fewer epochs where they would not fit into this time (1).
        jobs: trainings beside each other; else one for each device, at small scale on a CPU one for each core.
        devices: with commas, for example cuda:0,cuda:1 (what the machine has).
        dry_run: show the plan with its projected time, memory and disk, and stop.
    """
    from fewsight.apps.reproduce import reproduce as run_reproduction
    from fewsight.terminal import make_console

    names = [name.strip() for name in devices.split(",")] if devices else []
    return run_reproduction(
        data,
        out,
        test=test,
        scale=scale,
        hours=hours,
        jobs=jobs,
        devices=names,
        dry_run=dry_run,
        console=make_console(),
    )
