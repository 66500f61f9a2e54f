"""The command line: one command, one library function. Torch is imported only by a command that needs it."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

import fewsight
from fewsight.errors import FewsightError, Interrupted
from fewsight.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

app = App(
    name="fewsight",
    help="Train strong image classifiers from scratch on few labelled images.",
    version=fewsight.__version__,
    version_flags=["--version"],
    default_parameter=Parameter(negative=(), show_default=False),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


@app.command
def demo(*, out: Path = Path("runs/demo")) -> int:
    """Train on scikit-learn's digits (50 images a class), test on the rest, and show the result.

    Args:
        out: the run folder to write (runs/demo).
    """
    from fewsight.demo import run_demo

    run_demo(out)
    return 0


@app.command
def check(
    data: Path,
    /,
    *,
    holdout: float = 0.2,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
    html: Path | None = None,
) -> int:
    """Say what is wrong with a dataset: files, duplicates, leaks between splits, labels, classes. Exit code 1 if any.

    Args:
        data: a dataset as for train.
        holdout: share of each class that train would keep for val where the data has no splits (0.2).
        json_: also write everything that was found to this file.
        html: also write a page with thumbnails.
    """
    from fewsight import files
    from fewsight.check import check as check_data
    from fewsight.check import checked_json, show_checked, write_page
    from fewsight.console import counting, make_console

    for option, target in (("--json", json_), ("--html", html)):
        if target is not None:
            files.check_target(target, option)
    console = make_console()
    with counting(console, "checking") as progress:
        checked = check_data(data, holdout=holdout, progress=progress)
    show_checked(console, checked)
    if json_ is not None:
        files.write_json(json_, checked_json(checked))
        console.print(f"wrote {json_}")
    if html is not None:
        write_page(checked, html)
        console.print(f"wrote {html}")
    return 0 if checked.ok else 1


@app.command
def train(
    data: Path | None = None,
    /,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    recipe: str | None = None,
    hours: float | None = None,
    set_: Annotated[tuple[str, ...], Parameter(name="--set")] = (),
    seeds: str | None = None,
    init_from: Path | None = None,
    merge_val: bool = False,
    holdout: float | None = None,
    max_bad: float | None = None,
    leak: Literal["drop", "stop", "allow"] | None = None,
    deterministic: bool = False,
    preview: int | None = None,
    tensorboard: bool = False,
) -> int:
    """Train a classifier on a folder of class folders, a folder with train/ val/ test/, or a CSV or Parquet manifest.

    Args:
        data: the folder or manifest.
        out: the run folder to write; it must not exist yet.
        resume: continue this run instead; its recipe and data path come from the run.
        recipe: auto (the default), a shipped recipe (see `fewsight recipes`) or a TOML file.
        hours: the time that `auto` plans for, the whole command (1).
        set_: KEY=VALUE on top of the recipe, for example stages.0.optim.base_lr=0.05; may be repeated.
        seeds: train once for each seed by one plan, for example 0,1,2; the runs lie in OUT/seed0 and so on.
        init_from: start from this run's weights (for --seeds, from its seed0 and so on); they stand for every stage of
            the recipe but the last. With the recipe auto the run's backbone and size are kept.
        merge_val: train on train + val, as the report does.
        holdout: share of each class kept for val where the data has no splits (0.2).
        max_bad: refuse when more than this share of the images cannot be read (0.01).
        leak: drop a training image that is equal to one of another split, stop there, or allow it (drop). Nearly equal
            ones are named.
        deterministic: on a GPU, take only operations that give the same bits each time, and refuse the others; slower.
            A CPU gives the same bits anyway.
        preview: write OUT/preview.png, that many augmented batches, and train nothing.
        tensorboard: also write curves, a batch and the recipe to OUT/tensorboard.
    """
    if resume is not None:
        given = {"DATA": data, "--out": out, "--recipe": recipe, "--hours": hours, "--set": set_ or None,
                 "--seeds": seeds, "--init-from": init_from, "--merge-val": merge_val or None, "--holdout": holdout,
                 "--max-bad": max_bad, "--leak": leak, "--deterministic": deterministic or None,
                 "--preview": preview}  # fmt: skip
        _refuse_with_resume([name for name, value in given.items() if value is not None])
    elif data is None or out is None:
        raise FewsightError("train needs DATA and --out RUN, for example: fewsight train photos/ --out runs/photos")
    if hours is not None and recipe not in (None, "auto"):
        raise FewsightError(f"--hours is what `--recipe auto` plans for; leave it out, or --recipe {recipe}")
    if preview is not None and preview < 1:
        raise FewsightError(f"--preview {preview}: expected at least 1 batch")
    seed_list = _seed_list(seeds) if seeds is not None else []

    from fewsight.console import make_console
    from fewsight.session import resume as resume_run
    from fewsight.session import train as train_run
    from fewsight.summary import show_run, show_seeds

    console, reporters = make_console(), []
    if tensorboard:
        from fewsight.board import TensorBoard, require_tensorboard

        require_tensorboard()
        reporters.append(TensorBoard)
    if data is None or out is None:
        assert resume is not None
        show_run(resume_run(resume, console=console, reporters=reporters), console)
        return 0
    settings = {"data.merge_val": "true" if merge_val else None, "data.holdout": holdout, "data.max_bad": max_bad,
                "data.leak": leak, "run.deterministic": "true" if deterministic else None}  # fmt: skip
    runs = train_run(
        data,
        out,
        recipe=recipe or "auto",
        hours=1.0 if hours is None else hours,
        overrides=[*set_, *(f"{key}={value}" for key, value in settings.items() if value is not None)],
        seeds=seed_list,
        init_from=init_from,
        preview=preview or 0,
        console=console,
        reporters=reporters,
    )
    for run in runs:
        show_run(run, console)
    show_seeds(runs, console)
    return 0


@app.command
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
    from fewsight import files
    from fewsight.console import make_console, printable, show_figures, show_unreadable, trained_on
    from fewsight.evaluation import evaluate as evaluate_run

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
        console.print(trained_on(found.num_trained_on, found.figures.num_images))
    show_figures(console, found.figures, f"{run} on {data} ({found.split}, {seen})")
    show_unreadable(console, found.unreadable)
    for line in found.kept:
        console.print(printable(line))
    if json_ is not None:
        about: dict[str, Any] = {"run": str(run), "data": str(data), "split": found.split}
        about |= {"views": found.views, "num_trained_on": found.num_trained_on}
        about |= {"num_left_out": found.num_left_out}
        files.write_json(json_, about | found.figures.as_json() | {"unreadable": found.unreadable})
        console.print(f"wrote {json_}")
    return 1 if found.unreadable else 0


@app.command
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
    from fewsight.console import make_console
    from fewsight.inference import predict_files
    from fewsight.rows import features_file

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
        print(f"wrote {out}: {counted(total, 'row')}" + (f", {failed:,} with an error" if failed else ""))
    return 1 if failed else 0


@app.command
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
    from fewsight.console import make_console, show_members
    from fewsight.ensemble import make_ensemble

    if from_ is not None and weights != "uniform":
        raise FewsightError("--from brings its own weights; leave out --weights")
    specs = make_ensemble(members, out, weights=weights, split=split, carried_from=from_)
    console = make_console()
    show_members(console, specs)
    console.print(f"the ensemble lies in {out}")
    return 0


@app.command
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
    from fewsight import files
    from fewsight.console import counting, make_console
    from fewsight.fusion import read_views
    from fewsight.report import write_report

    files.check_target(out, "--out")
    there = out.exists()
    with counting(make_console(), "checking the data") as progress:
        pictures = write_report(
            runs, out, split=split, views=read_views(views), data=data, check=not no_check, progress=progress
        )
    size = out.stat().st_size / 2**10
    print(
        f"{'replaced' if there else 'wrote'} {out}: "
        + (f"{size / 2**10:.1f} MiB" if size >= 2**10 else f"{size:.0f} KiB")
    )
    if pictures.num_missing:
        print(f"pictures: {pictures}")
    return 0


@app.command
def runs(folder: Path = Path("runs"), /, *, json_: Annotated[Path | None, Parameter(name="--json")] = None) -> int:
    """List the runs below a folder with their models, trainings and accuracies on val; seeds as mean ± sd.

    A training that no process is at is shown as interrupted; an ensemble's accuracy comes from the kept scores of val.

    Args:
        folder: where to look (runs).
        json_: also write what was found to this file.
    """
    from dataclasses import asdict

    from fewsight import files
    from fewsight.console import make_console, show_runs
    from fewsight.listing import list_runs, seed_groups

    if json_ is not None:
        files.check_target(json_, "--json")
    found = list_runs(folder)
    show_runs(make_console(), folder, found, seed_groups(found))
    if json_ is not None:
        files.write_json(json_, [asdict(one) | {"path": str(one.path)} for one in found])
        print(f"wrote {json_}")
    return 0


@app.command
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
    from fewsight.console import make_console
    from fewsight.reproduce import reproduce as run_reproduction

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


@app.command
def export(
    run: Path,
    /,
    *,
    out: Path,
    views: str | None = None,
    crop: bool = False,
    int8: bool = False,
    data: Path | None = None,
    images: tuple[str, ...] = (),
    num_images: int = 256,
) -> int:
    """Write a run or an ensemble as an ONNX file that gives the probabilities of predict without fewsight.

    Nothing is written unless it does so on real images.

    Args:
        run: the run folder, or an ensemble.
        out: the .onnx file to write.
        views: center (one view, a run's default), report (every test size, two crops; an ensemble's default), or names
            such as center-224; center-224-noflip is the view without its flipped twin.
        crop: take upright images of any size and cut the views in the graph, one shape at a time.
        int8: convolutions in 8 bits, calibrated on training images; what that changes is measured and said.
        data: where the run's data lies now (where it lay when the run began).
        images: files, folders or quoted patterns to try the file on, instead of the run's val images; may be repeated.
        num_images: at most so many (256).
    """
    from fewsight.console import make_console
    from fewsight.export import require_export

    require_export()
    from fewsight.export.show import show_exported
    from fewsight.export.write import export_run

    console = make_console()
    show_exported(
        console,
        export_run(
            run,
            out,
            views=views,
            crop=crop,
            int8=int8,
            data=data,
            images=images,
            num_images=num_images,
            say=console.print,
        ),
    )
    return 0


@app.command
def serve(
    run: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    views: str | None = None,
    max_mb: int = 64,
    max_megapixels: int = 50,
    max_files: int = 64,
    max_queue: int = 256,
    timeout: float = 30.0,
    batch: int = 32,
) -> int:
    """Serve a run: a page to drop images on, and the API behind it; the answers are those of predict.

    Ctrl-C or SIGTERM ends it when what was asked is answered.

    Args:
        run: the run folder, or an ensemble.
        host: the address to listen on; any but this machine's own needs a token (127.0.0.1).
        port: the port to listen on; 0 takes one that is free and says which (8000).
        token: what requests have to bring; the environment's FEWSIGHT_TOKEN keeps it from the list of processes.
        views: center (one view, a run's default), report (every test size, two crops; an ensemble's default), or names
            such as center-224,random-320.
        max_mb: MiB that a request may hold (64).
        max_megapixels: of an image, millions (50).
        max_files: that a request may hold (64).
        max_queue: images that may wait (256).
        timeout: seconds for an upload, and then for its answer (30).
        batch: images that go through the model together, at most (32).
    """
    from fewsight.serve import require_serve

    require_serve()
    from fewsight.serve.limits import Limits
    from fewsight.serve.server import serve as serve_run

    limits = Limits(
        max_bytes=max_mb * 2**20,
        max_pixels=max_megapixels * 10**6,
        max_files=max_files,
        max_queue=max_queue,
        max_body_bytes=max(8 * max_mb, 64) * 2**20,
        timeout_s=timeout,
        batch_size=batch,
    )

    def say(address: str) -> None:
        print(f"{address} serves {run}; Ctrl-C ends it", flush=True)

    serve_run(run, host=host, port=port, token=token, views=views, limits=limits, say=say)
    return 0


scores_app = App(name="scores", help="Ask the kept scores of runs and ensembles; no model is needed.")
app.command(scores_app)


@scores_app.command(name="rows")
def scores_rows(
    runs: tuple[Path, ...],
    /,
    *,
    split: str | None = None,
    views: str | None = None,
    fuse: bool = False,
    weights: str | None = None,
    choose_on: str | None = None,
) -> int:
    """Top-1 by test size (the mean over its crops, as in the report's tables) and of all views together.

    Args:
        runs: run folders that were evaluated, ensembles, or score folders.
        split: whose scores (test, else val, else the only ones that all have).
        views: only these, for example center-64,random-64.
        fuse: also the runs as one ensemble, uniform over their rows.
        weights: also the runs as one ensemble, by a number for each run, with commas.
        choose_on: also the runs as one ensemble, by weights chosen greedily on the scores of this split, such as val.
    """
    from fewsight.console import make_console, show_lines
    from fewsight.fusion import open_each, read_views
    from fewsight.tables import fusions, lines, row_lines

    console = make_console()
    opened = open_each(runs, _asked_split(runs, split, console), read_views(views))
    for one in opened:
        show_lines(console, str(one.path), row_lines(one), int(one.trained_on.sum()))
    for text, fused in fusions(opened, views, rows_alike=fuse, weights=weights, choose_on=choose_on):
        show_lines(console, text, lines([("fusion", fused.weights)]), int(fused.trained_on.sum()))
    return 0


@scores_app.command(name="compare")
def scores_compare(runs: tuple[Path, ...], /, *, split: str | None = None, views: str | None = None) -> int:
    """Compare each run with the first on the same images: gain, bootstrap interval, exact McNemar test.

    Args:
        runs: two or more run folders or ensembles that were evaluated on the same images, or score folders.
        split: whose scores (test, else val, else the only ones that all have).
        views: only these, for example center-64,random-64 (all that there are).
    """
    from fewsight.calibration import view_names
    from fewsight.console import make_console, printable, trained_on
    from fewsight.fusion import open_each, read_views
    from fewsight.tables import averaged, compare

    if len(runs) < 2:
        raise FewsightError(
            "scores compare needs at least two runs, for example: fewsight scores compare runs/a runs/b"
        )
    console = make_console()
    first, *others = open_each(runs, _asked_split(runs, split, console), read_views(views))
    for other in others:
        if number := int((first.trained_on | other.trained_on).sum()):
            console.print(trained_on(number, len(other.trained_on), "one of the two"))
        if view_names(first) != view_names(other):
            counts = [len(one.weights) for one in (first, other)]
            console.print(f"note: they have other views ({counts[0]} and {counts[1]}); --views compares the same ones")
        by = " against ".join(dict.fromkeys((averaged(other), averaged(first))))
        console.print(printable(f"{other.path} against {first.path}: {compare(first, other)}; by {by}"))
    return 0


@scores_app.command(name="ablate")
def scores_ablate(runs: tuple[Path, ...], /, *, split: str | None = None) -> int:
    """What each scale, each crop, the flips and each member give, every part compared with the whole image by image.

    Args:
        runs: one run, one ensemble, or several runs that are taken as one ensemble.
        split: whose scores (test, else val, else the only ones that all have).
    """
    from fewsight.console import make_console, show_lines, trained_on
    from fewsight.fusion import open_each
    from fewsight.tables import ablate
    from fewsight.tables import fuse as fuse_runs

    console = make_console()
    opened = open_each(runs, _asked_split(runs, split, console))
    scored = opened[0] if len(opened) == 1 else fuse_runs(opened)
    found = ablate(scored)
    title = f"{len(runs)} runs, uniform over {counted(len(scored.rows), 'row')}"
    title = str(runs[0]) if len(runs) == 1 else title
    if number := int(scored.trained_on.sum()):
        console.print(trained_on(number, len(scored.trained_on)))
    show_lines(console, title, [found.whole])
    for group, parts in found.groups:
        show_lines(console, group, parts)
    return 0


@scores_app.command(name="calibrate")
def scores_calibrate(
    run: Path,
    /,
    *,
    split: str = "val",
    views: str | None = None,
    coverage: float | None = None,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
) -> int:
    """Fit the temperature that makes a run as sure as it is right, and keep it in the run, where predict takes it.

    It is the one that makes the labels most likely (least NLL). The calibration error that is shown beside it, over 15
    bins of probability, is mostly noise on fewer than 300 images.

    With --coverage also choose the probability below which an image is none of the run's classes; predict and serve
    then mark such images.

    Args:
        run: a run or an ensemble that was evaluated on the split.
        split: whose scores; never images that it was trained on (val).
        views: whose mean is calibrated, for example center-64 (all that were scored, and the default view alone).
        coverage: share of images of its classes that the threshold is to keep, for example 0.95; without it no
            threshold is kept.
        from_: take the temperatures and thresholds of this run of the same recipe, for example trained on train alone.
    """
    from fewsight.console import make_console, show_calibrations

    if from_ is not None:
        if views is not None:
            raise FewsightError("--from brings the temperatures of its own views; leave out --views")
        if coverage is not None:
            raise FewsightError("--from brings the thresholds that it has; leave out --coverage")
        from fewsight.ensemble import carry_calibration

        found = carry_calibration(from_, run)
    else:
        from fewsight.calibration import calibrate

        found = calibrate(run, split, views, coverage)
    console = make_console()
    if from_ is not None:
        console.print(f"carried over from {from_}, where it was fitted:")
    show_calibrations(console, run, found)
    return 0


vipriors_app = App(name="vipriors", help="The VIPriors challenge: build its subset of ImageNet, write its submission.")
app.command(vipriors_app)


@vipriors_app.command(name="build")
def vipriors_build(*, imagenet: Path, lists: Path, out: Path, link: Literal["hard", "symlink", "copy"] = "hard") -> int:
    """Lay out OUT/imagenet_50 (train/, val/, test/imgs/img_N.JPEG) from an ImageNet tree and the toolkit's lists.

    The same command goes on where it stopped.

    Args:
        imagenet: the folder with train/ by class and val/, by class or flat.
        lists: the toolkit's folder with train.pickle, val.pickle and test.pickle.
        out: the folder to write imagenet_50 in.
        link: hard (no space, the same disk), symlink or copy (hard).
    """
    from fewsight.console import counting, make_console, printable
    from fewsight.vipriors.subset import build

    console = make_console()
    with counting(console, "building") as progress:
        built = build(imagenet, lists, out, link=link, progress=progress)
    counts = ", ".join(f"{number:,} {split}" for split, number in built.counts.items())
    console.print(f"{printable(str(built.folder))}: {counts}; {built.made:,} made now, {built.there:,} were there")
    for name, told in (("missing in the tree", built.missing), ("in no list", built.strange)):
        for one in told[:20]:
            console.print(f"{name}: {printable(one)}")
        if len(told) > 20:
            console.print(f"{name}: {len(told) - 20:,} more")
    if built.missing:
        console.print(
            f"all that is missing: {printable(str(built.folder / 'missing.txt'))}; run this again when it is there"
        )
    return 1 if built.missing or built.strange else 0


@vipriors_app.command(name="submit")
def vipriors_submit(
    run: Path,
    data: Path,
    /,
    *,
    out: Path,
    views: str | None = None,
    scores: Path | None = None,
    images: int | None = None,
) -> int:
    """Write the challenge's submission: Image IDs,Predictions, with class indices in the order of the sorted names.

    Nothing is written unless every test image is there and can be read.

    Args:
        run: a run or an ensemble.
        data: the subset with test/imgs/img_N.JPEG, or a folder of such images.
        out: the CSV file to write.
        views: center, report or names (report).
        scores: the folder that keeps the scores (RUN/scores/submission); the same command goes on there.
        images: that the test set has (50 a class).
    """
    from fewsight.console import make_console, printable
    from fewsight.vipriors.submission import submit

    console = make_console()
    number = submit(run, data, out, views=views, scores=scores, num_images=images, console=console)
    console.print(f"wrote {printable(str(out))}: {counted(number, 'prediction')}")
    return 0


@app.command
def recipes(name: str | None = None, /) -> int:
    """List the shipped recipes, or print one.

    Args:
        name: the recipe to print.
    """
    from fewsight.recipes import load_recipe, shipped_recipes

    shipped = shipped_recipes()
    if name == "auto":
        print("# auto is planned from the data, the device and --hours; `fewsight train` prints the plan and why,\n"
              "# and RUN/recipe.toml holds it.")  # fmt: skip
    elif name is not None:
        load_recipe(name)
        print(shipped.get(name, Path(name)).read_text(encoding="utf-8"), end="")
    else:
        print("auto                     the default: planned from the data, the device and --hours")
        for one, path in shipped.items():
            print(f"{one:<24} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
    return 0


def _asked_split(runs: Sequence[Path], split: str | None, console: "Console") -> str:
    """The split that was named, else the one that the runs have scores of; it is said where that is not test."""
    from fewsight.fusion import split_of

    if split is not None:
        return split
    found = split_of(runs)
    if found != "test":
        lacking = "there are no scores of test" if len(runs) == 1 else "not all of these have scores of test"
        console.print(f"on {found}: {lacking} (--split names another)")
    return found


def _seed_list(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() for part in parts):
        raise FewsightError(f"--seeds {text}: expected numbers with commas between, for example 0,1,2")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise FewsightError(f"--seeds {text}: a seed stands there twice")
    if max(seeds) >= 2**63:
        raise FewsightError(f"--seeds {text}: expected seeds below 2^63")
    return seeds


def _refuse_with_resume(names: list[str]) -> None:
    if names:
        raise FewsightError(f"--resume goes on with the run's own recipe and data; leave out {', '.join(names)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of `arguments` (`sys.argv`); known errors are one line on stderr.

    Exit codes: 0 done, 1 done with findings, 2 not done, 130 and 143 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # a stream that is not UTF-8 shows a sign that it lacks as an escape
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    received: list[int] = []
    try:
        with _sigterm_raises(received):
            result = app(sys.argv[1:] if arguments is None else arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
    except Interrupted as error:
        code = _say(f"fewsight: {error}", 128 + error.signal_number)
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        said = "terminated" if number == signal.SIGTERM else "interrupted"
        code = _say(f"fewsight: {said}; nothing that was saved before is lost", 128 + number)
    except BrokenPipeError:
        code = 128 + 13  # the reader of our output has gone, as with any tool in a pipe
        _silence(sys.stdout)
    except FewsightError as error:
        code = _say(f"fewsight: {error}", 2)
    except CycloptsError as error:
        code = _say(f"fewsight: {_explain(error)}", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _say(f"fewsight: {where}{error.strerror or error}", 2)
        if sys.stdout is not None:
            _silence(sys.stdout)
    except RecursionError:  # numpy's own import, where the signal met it
        if not received:
            raise
        said = "terminated" if received[0] == signal.SIGTERM else "interrupted"
        code = _say(f"fewsight: {said}; nothing that was saved before is lost", 128 + received[0])
    sys.exit(code)


def _say(text: str, code: int) -> int:
    """Print an error as one line (and a line for each item of a list) on stderr."""
    from fewsight.console import printable

    print("\n  ".join(printable(line) for line in text.split("\n  ")), file=sys.stderr)
    return code


def _explain(error: CycloptsError) -> str:
    command = " ".join(("fewsight", *(error.command_chain or ())))
    text = " ".join(str(error).split())
    if isinstance(error, UnusedCliTokensError):
        text = f"too many arguments: {' '.join(error.unused_tokens or ())}"
    return f"{text.rstrip('.')} (see {command} --help)"


@contextlib.contextmanager
def _sigterm_raises(received: list[int]) -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, so that no half-written file stays; training saves its state.

    Ctrl-C is taken too, unless the caller has it ignored, so that it is known to have come.

    Args:
        received: gets the signal's number when it comes.
    """

    def stop(number: int, _frame: Any) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt(number)  # no library takes it for an error of its own

    taken = [
        signal.SIGTERM,
        *([signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []),
    ]
    before = {number: signal.signal(number, stop) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _silence(stream: Any) -> None:
    """Send what is left in a stream that cannot be written to nowhere, so that Python's exit does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    main()
