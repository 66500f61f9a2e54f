"""Commands on trained runs: evaluate, predict, ensemble, report, runs, reproduce."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from fewsight.cli import early
from fewsight.errors import FewsightError
from fewsight.wording import counted


def evaluate(
    run: Path,
    data: Path | None = None,
    /,
    *,
    split: str | None = None,
    views: str | None = None,
    scores: Path | None = None,
    splits: str = "",
    reread: bool = False,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """Test a run or an ensemble on labelled images: top-1 and top-5 with intervals, each class, the worst confusions.

    Args:
        run: the run folder, or an ensemble.
        data: a dataset, as for train; classes are matched by name (that of the run).
        split: the split to test (test, else val), or all for every image. Of data without splits, images that the run
            was trained on (recognised by their pixels) are left out unless this is all.
        views: center (one view; a run's default), paper (every test size, two crops), or names such as
            center-224,random-320; center-224-noflip leaves out the mirrored view. An ensemble has its own default.
        scores: the folder in which every view's scores are stored (RUN/scores/SPLIT).
        splits: train=NAME,val=NAME,test=NAME for splits with other names (as the run was trained).
        reread: compare the contents of every file with those that there are scores of, also where sizes and times say
            that nothing was changed.
        json_: also write every figure to this file.
    """
    early.check_run(run, data)
    from fewsight.cli.show import show_evaluation
    from fewsight.inference.evaluate import evaluate as evaluate_run
    from fewsight.machine import files
    from fewsight.machine.outputs import Kind, check_output
    from fewsight.terminal import make_console

    if json_ is not None:
        check_output(json_, "--json", Kind("a result of fewsight evaluate", (b'"run":', b'"views":')))
    console = make_console()
    evaluation = evaluate_run(
        run, data, split=split, views=views, scores=scores, splits=splits, reread=reread, console=console
    )
    show_evaluation(console, run, evaluation)
    if json_ is not None:
        about: dict[str, Any] = {"run": str(run), "data": evaluation.data, "split": evaluation.split}
        about |= {"views": evaluation.views, "num_trained_on": evaluation.num_trained_on}
        about |= {"num_chose_weights": evaluation.num_chose_weights, "num_left_out": evaluation.num_left_out}
        files.write_json(
            files.link_target(json_), about | evaluation.figures.as_json() | {"unreadable": evaluation.unreadable}
        )
        console.print(f"wrote {json_}")
    return 1 if evaluation.unreadable else 0


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
) -> int:
    """Predict the classes of images, given as files, folders and glob patterns; one row per image, in order.

    Args:
        run: the run folder, or an ensemble.
        images: files, folders (their images sorted by code point) or quoted glob patterns.
        out: the .csv, .jsonl or .parquet file to write; without it, CSV is printed.
        top_k: the number of classes in each row (5).
        views: center (one view; a run's default), paper (every test size, two crops), or names such as
            center-224,random-320. An ensemble has its own default.
        features: also write the pooled features beside OUT, one row per image: new.csv, new.features.npy.
        scores: also store every view's scores in this folder; the same command then resumes where it was stopped.
    """
    early.check_exists(run)

    from fewsight.inference.predict import predict_files
    from fewsight.inference.prediction_files import features_file
    from fewsight.terminal import make_console

    replaces = out is not None and out.exists()
    failed, total = predict_files(
        run,
        images,
        out,
        top_k=top_k,
        console=make_console(sys.stderr),
        views=views,
        features=features,
        scores=scores,
    )
    if out is not None and features:
        print(f"wrote {features_file(out)}: float32, one row per row of {out}")
    if out is not None:
        failures = f", {failed:,} with an error" if failed else ""
        print(f"{'replaced' if replaces else 'wrote'} {out}: {counted(total, 'row')}{failures}")
    return 1 if failed else 0


def ensemble(
    members: tuple[str, ...],
    /,
    *,
    out: Path,
    weights: str = "uniform",
    split: str = "val",
    views: Literal["auto", "center", "paper"] = "auto",
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
) -> int:
    """Combine runs into an ensemble, which averages their probabilities; classes are matched by name.

    Args:
        members: [NAME=]RUN[:SIZES][+RUN[:SIZES]...] each: a run, at SIZES or as --views says, or several such runs
            under one name, for example resnest101_ce=runs/ce:224,320,380+runs/ce448:448.
        out: the ensemble's folder to write; it must not exist yet.
        weights: uniform (the same for every run at each test size); one number per member, separated by commas; or
            greedy: members are added one at a time, with replacement, by their stored scores (uniform).
        split: the split whose stored scores choose views and weights, and fit the temperature; images that a member was
            trained on are refused (val).
        views: what a run without SIZES is tested in. auto: the test sizes and crops that do no harm on the scores of
            the split, and without such scores the centre crop at the first test size; center: the latter; paper: every
            test size, two crops (auto).
        from_: take the weights and views of this ensemble of the same recipes, for example of runs trained on train
            alone.
    """
    if from_ is not None and weights != "uniform":
        raise FewsightError("--from takes the weights of that ensemble; leave out --weights")
    early.check_members(members)

    from fewsight.cli.show import show_calibrations, show_members
    from fewsight.inference.ensemble import combine
    from fewsight.inference.member_text import parse_member
    from fewsight.inference.opening import describe_probabilities, open_runs
    from fewsight.terminal import make_console, printable

    parsed = [parse_member(text) for text in members]
    made = combine(parsed, out, weights=weights, split=split, carried_from=from_, views=views)
    console = make_console()
    show_members(console, made.entries)
    if made.reason is not None:
        console.print(f"views: {printable(made.reason)} (--views paper uses every size, both crops)")
    if made.calibrations:
        show_calibrations(console, out, made.calibrations)
    console.print(printable(describe_probabilities(open_runs(out, None))))
    console.print(f"the ensemble is in {out}")
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
    """Write an HTML page on a run: figures, classes, confusions, calibration, thumbnails of mistakes; it works offline.

    Args:
        runs: an evaluated run or ensemble, or a folder of reproduce; further ones are compared with the first.
        out: the HTML file to write, NAME.html; an older page of this command is replaced.
        split: the split whose stored scores are used (test, else val, else the only one).
        views: use only these views, for example center-64 (all that are stored).
        data: the folder with the images (where they were when the run started).
        no_check: leave out the findings of `fewsight check` in the data.
    """
    for path in runs:
        early.check_scored(path)

    from fewsight.apps.report import write_report
    from fewsight.scores.opening import parse_views
    from fewsight.terminal import make_console, progress_counter

    replaces = out.exists()
    with progress_counter(make_console(), "checking the data") as progress:
        pictures = write_report(
            runs, out, split=split, views=parse_views(views), data=data, check=not no_check, progress=progress
        )
    size = out.stat().st_size / 2**10
    size_text = f"{size / 2**10:.1f} MiB" if size >= 2**10 else f"{size:.0f} KiB"
    print(f"{'replaced' if replaces else 'wrote'} {out}: {size_text}")
    if pictures.num_missing:
        print(f"pictures: {pictures}")
    return 0


def runs(folder: Path = Path("runs"), /, *, json_: Annotated[Path | None, Parameter(name="--json")] = None) -> int:
    """List the runs below a folder with model, training and accuracy on val; seeds as mean ± standard deviation.

    An unfinished run that no process is training is shown as interrupted; an ensemble's accuracy comes from its stored
    scores of val.

    Args:
        folder: the folder to search (runs).
        json_: also write the list to this file.
    """
    from dataclasses import asdict

    from fewsight.apps.listing import list_runs, seed_groups
    from fewsight.cli.show import show_runs
    from fewsight.machine import files
    from fewsight.machine.outputs import Kind, check_output
    from fewsight.terminal import make_console

    if json_ is not None:
        check_output(json_, "--json", Kind("a list of fewsight runs", (b'"path":', b'"status":')))
    listed = list_runs(folder)
    show_runs(make_console(), folder, listed, seed_groups(listed))
    if json_ is not None:
        files.write_json(files.link_target(json_), [asdict(run) | {"path": str(run.path)} for run in listed])
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
    splits: str = "",
    dry_run: bool = False,
) -> int:
    """Reproduce the paper: eight trainings, tests in eight views, Tables 1 and 2 beside its figures, the fusion.

    The same command resumes where it was stopped: it skips what is finished and retries what failed.

    Args:
        data: a dataset, as for train; the models are trained on train + val, as in the paper.
        out: the folder to write: recipes, runs, logs, tables.md, tables.csv, effects.csv, ensemble.
        test: a labelled split, or a folder of labelled images (test). With val, the models are trained on train alone.
        scale: full follows the paper; small uses small images and the small models of its families (full).
        hours: time budget at small scale; the number of epochs is reduced to fit it (1).
        jobs: trainings to run at once (one per device; at small scale on a CPU, one per core).
        devices: separated by commas, for example cuda:0,cuda:1 (all that the machine has).
        splits: train=NAME,val=NAME,test=NAME for splits that are not called so.
        dry_run: print the plan with its projected time, memory and disk, and stop.
    """
    early.check_data(data)

    from fewsight.apps.reproduce import Settings
    from fewsight.apps.reproduce import reproduce as run_reproduction
    from fewsight.terminal import make_console

    names = [name.strip() for name in devices.split(",")] if devices else []
    settings = Settings(test, scale, hours, jobs, names, splits)
    return run_reproduction(data, out, settings, dry_run=dry_run, console=make_console())
