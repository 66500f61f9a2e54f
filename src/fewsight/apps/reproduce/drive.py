"""`fewsight reproduce`: plan, train and test what is missing, then write the tables."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from fewsight import runs
from fewsight.apps.reproduce.plan import Job, divide_cores, makespan, mapped_px, plan_full, plan_small, small_px
from fewsight.apps.reproduce.plan_file import PLAN, Target, check_out, read_plan, write_plan
from fewsight.apps.reproduce.published import MODELS
from fewsight.apps.reproduce.show import show_reproduction, write_reproduction
from fewsight.apps.reproduce.tables import TestedRun, build_tables
from fewsight.augment.views import NO_FLIP
from fewsight.data import changed_files, evaluation_samples, read_dataset
from fewsight.data.prepare import Prepared, prepare
from fewsight.errors import DataError, RecipeError, RunError
from fewsight.inference.ensemble import combine
from fewsight.machine import locks
from fewsight.machine.cores import num_cores
from fewsight.machine.device import gpus, resolve_device
from fewsight.machine.jobs import Outcome, Task, last_line, run_tasks
from fewsight.recipes import Data
from fewsight.recipes.options import check_hours
from fewsight.scores.entries import is_ensemble
from fewsight.scores.store import Store, read_store
from fewsight.terminal import duration, printable, progress_counter
from fewsight.wording import counted, shell_command

STORE = "test"  # name of the store of each run's test scores
HEARTBEAT_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    """How to reproduce."""

    test: str = "test"  # a labelled split of the data, which is not trained on, or a folder
    scale: str = "full"  # as in the paper; "small": small models of the same families at half the images' size
    hours: float = 1.0  # at small scale, the time to fit the number of epochs to, if it is short
    jobs: int | None = None  # trainings in parallel; None: one per device, or per core at small scale on a CPU
    devices: Sequence[str] = ()  # such as cuda:0, cuda:1; empty for what the machine has
    splits: str = ""  # as for `read_dataset`


@dataclass(frozen=True)
class TestImages:
    """What the trainings are tested on."""

    name: str  # of the split, or the path of the folder
    root: Path  # that the images' paths are relative to
    count: int
    merge_val: bool  # whether val is trained on too


@dataclass(frozen=True)
class Slots:
    """The trainings that run in parallel."""

    devices: list[str | None]  # of each; None lets the commands choose
    kind: str  # of device, for the recipes
    cores: int  # of each

    def __len__(self) -> int:
        return len(self.devices)


def reproduce(
    data: Path, out: Path, settings: Settings | None = None, *, dry_run: bool = False, console: Console
) -> int:
    """Train the paper's eight runs, test them in eight views, and show its tables with our figures next to its own.

    Finished trainings are skipped and interrupted ones are resumed. If a training fails, the others go on.

    Args:
        data: the dataset.
        out: the folder to write.
        settings: None: the defaults.
        dry_run: show the plan with its time, memory and disk space, and stop.
        console: where to print.

    Returns:
        0, or 1 if a training failed.

    Raises:
        DataError, RecipeError, RunError: before anything is trained, or if no training succeeded.
    """
    settings = settings or Settings()
    check_hours(settings.hours)
    test = _read(data, settings.test, settings.splits)
    target = Target(str(data.resolve()), test.name, settings.scale)
    check_out(out, target)
    slots = _slots(settings)
    with progress_counter(console, "checking images") as progress:
        prepared = prepare(data, Data(merge_val=test.merge_val, splits=settings.splits), progress=progress)
    for note in prepared.notes:
        console.print(f"note: {printable(note)}")
    planned = _plan(out, settings, prepared, slots, test, console)
    _show_plan(console, settings.scale, planned, prepared, slots, test)
    if dry_run:
        return 0
    write_plan(out, target, planned)
    start = time.monotonic()
    with locks.locked(out, "reproducing"):
        _drop_scores_of_other_images(out, planned, test.root, console)
        outcome = run_tasks(
            [_task(job, data, out, target, slots) for job in planned],
            slots.devices,
            threads=divide_cores(slots.cores, slots.kind)["threads"],
            say=lambda text: console.print(printable(text)),
            watch=_watch(console),
        )
    console.print(f"trained and tested in {duration(time.monotonic() - start)}")
    _show_failures(console, outcome)
    _write_results(out, settings.scale, planned, console)
    return 1 if outcome.failed or outcome.blocked else 0


def _write_results(out: Path, scale: str, planned: Sequence[Job], console: Console) -> None:
    """Show and write the tables, and the ensemble if every training is tested.

    Raises:
        RunError: none is.
    """
    tested = _tested(out, planned)
    if not tested:
        raise RunError(f"{out}: no training succeeded, so there are no tables; see {out / 'logs'}")
    reproduction = build_tables(tested, scale)
    show_reproduction(console, reproduction)
    for path in write_reproduction(out, reproduction):
        console.print(f"wrote {path}")
    if len(tested) == len(planned):
        _write_ensemble(out, planned)
        words = ["fewsight", "predict", str(out / "ensemble"), "IMAGES", "--out", "predictions.csv"]
        console.print(f"the fusion is saved as an ensemble: {shell_command(words)}")


def _read(data: Path, test: str, splits: str) -> TestImages:
    """Find the test images.

    Raises:
        DataError: there is no such labelled split or folder.
    """
    settings = Data()
    dataset = read_dataset(data, holdout=settings.holdout, seed=settings.split_seed, splits=splits)
    classes = dataset.classes_of("train")
    is_split = test in dataset.splits or test in dataset.unlabelled
    if not is_split and Path(test).is_dir():
        evaluation = evaluation_samples(Path(test), classes)
        name = str(Path(test).resolve())
        return TestImages(name, evaluation.root, len(evaluation.samples), "val" in dataset.splits)
    if not is_split and Path(data, "..", test).is_dir():
        raise DataError(f"{data}: no split {test!r}; for the folder next to it use --test {Path(data).parent / test}")
    if test == "train":
        raise DataError("--test train: the paper's models are trained on it; use another split or a folder")
    if test in dataset.unlabelled:
        raise DataError(
            f"{data}: {test} has no labels, which the tables need; use --test SPLIT or --test FOLDER with labelled "
            "images (with --test val the models are trained on train alone)"
        )
    holdout, seed = settings.holdout, settings.split_seed
    evaluation = evaluation_samples(data, classes, test, holdout=holdout, seed=seed, splits=splits)
    merge_val = "val" in dataset.splits and evaluation.split != "val"
    return TestImages(evaluation.split, evaluation.root, len(evaluation.samples), merge_val)


def _slots(settings: Settings) -> Slots:
    """The trainings that run in parallel; they share the cores."""
    jobs, devices = settings.jobs, settings.devices or gpus()
    if jobs is not None and jobs < 1:
        raise RecipeError(f"--jobs {jobs}: expected at least 1")
    on_cpu = resolve_device(devices[0] if devices else "auto").type == "cpu"
    for name in devices:
        resolve_device(name)
    count = jobs or len(devices) or (num_cores() if settings.scale == "small" and on_cpu else 1)
    return Slots(
        [devices[number % len(devices)] if devices else None for number in range(count)],
        devices[0].split(":")[0] if devices else "auto",
        max(1, num_cores() // count),
    )


def _plan(
    out: Path, settings: Settings, prepared: Prepared, slots: Slots, test: TestImages, console: Console
) -> list[Job]:
    """The plan that `out` was started with, its recipes as they are there now; else a new plan."""
    if (out / PLAN).is_file():
        return read_plan(out)
    with progress_counter(console, "timing the trainings"):
        if settings.scale == "full":
            console.print("timing a step of each training at full size, which takes minutes without a GPU")
            return plan_full(prepared, test.count, merge_val=test.merge_val, cores=slots.cores, device=slots.kind)
        return plan_small(
            prepared,
            settings.hours,
            len(slots),
            test.count,
            merge_val=test.merge_val,
            cores=slots.cores,
            device=slots.kind,
        )


def _show_plan(
    console: Console, scale: str, planned: Sequence[Job], prepared: Prepared, slots: Slots, test: TestImages
) -> None:
    train_splits = "train + val" if test.merge_val else "train"
    console.print(
        f"{len(prepared.images.paths):,} images of {train_splits} in {len(prepared.classes):,} classes, tested on "
        f"{test.count:,} images of {printable(test.name)}; {scale} scale, {len(slots)} at a time"
    )
    if scale == "small":
        native, px = int(np.median([min(size) for size in prepared.sizes])), small_px(prepared)
        detail = "half their size" if abs(2 * px - native) <= 4 else f"{100 * px / native:.0f} % of their size"
        if px >= native:
            detail = "not below their own size, so larger test sizes show no more detail"
        console.print(f"images of {native} px are trained on at {px} px: {detail}")
    for job in planned:
        model, stage = job.recipe.model, job.recipe.stages[-1]
        width = "" if model.width == 1 else f" at {model.width:g} width"
        start = f" from {job.start}" if job.start else ""
        assert job.recipe.eval.test_px != "auto", "the recipe is resolved"
        sizes = "/".join(map(str, job.recipe.eval.test_px))
        console.print(
            f"  {job.name}: {model.backbone}{width}, {job.training.loss}{start}, {counted(stage.epochs, 'epoch')} at "
            f"{job.recipe.augment.train_px} px, tested at {sizes}; about {duration(job.seconds)}, "
            f"{job.memory_bytes / 2**30:.1f} GiB of memory, {job.disk_bytes / 2**20:,.0f} MiB of disk"
        )
    in_parallel = sorted((job.memory_bytes for job in planned), reverse=True)[: len(slots)]
    console.print(
        f"in total about {duration(makespan(planned, len(slots)))}, {sum(in_parallel) / 2**30:.1f} GiB of memory, "
        f"{sum(job.disk_bytes for job in planned) / 2**20:,.0f} MiB of disk"
    )


def _task(job: Job, data: Path, out: Path, target: Target, slots: Slots) -> Task:
    """The commands that are still to run for a training; it computes with the cores of a slot of this call."""
    run, fewsight = out / "runs" / job.name, [sys.executable, "-m", "fewsight"]
    commands = {}
    if not (run / "run.json").is_file():
        recipe, start = out / "recipes" / f"{job.name}.toml", ["--init-from", str(out / "runs" / str(job.start))]
        commands["training"] = [*fewsight, "train", str(data), "--out", str(run), "--recipe", str(recipe)]
        commands["training"] += start if job.start else []
        for key, value in divide_cores(slots.cores, slots.kind).items():
            if getattr(job.recipe.run, key) != value:  # planned by a call with other --jobs or --devices
                commands["training"] += ["--set", f"run.{key}={value}"]
    elif not runs.read_run(run).finished:
        commands["training"] = [*fewsight, "train", "--resume", str(run)]
    if _scores(run, job) is None:
        folder = Path(target.test).is_absolute()
        images = [target.test] if folder else [str(data), "--split", target.test]
        views = ["--views", ",".join(_views(job)), "--scores", str(run / "scores" / STORE)]
        commands["testing"] = [*fewsight, "evaluate", str(run), *images, *views]
    return Task(job.name, commands, out / "logs" / f"{job.name}.log", job.start, lambda: _scores(run, job) is not None)


def _views(job: Job) -> list[str]:
    """The paper's eight views, and each without its mirrored view, which the ablation of flips needs."""
    assert job.recipe.eval.test_px != "auto", "the recipe is resolved"
    names = [f"{crop}-{px}" for px in job.recipe.eval.test_px for crop in ("center", "random")]
    return [*names, *(f"{name}{NO_FLIP}" for name in names)]


def _scores(run: Path, job: Job) -> Store | None:
    """The scores of the test images; None unless they have all views, computed with the run's weights."""
    try:
        store, info = read_store(run / "scores" / STORE), runs.read_info(run)
    except RunError:
        return None
    whole = set(_views(job)) <= set(store.views) and store.about.weights_digest == info.weights_digest
    return store if whole else None


def _drop_scores_of_other_images(out: Path, planned: Sequence[Job], root: Path, console: Console) -> None:
    """Remove the scores of test images whose files have other contents now, and the ensemble made with them."""
    for job in planned:
        if (store := _scores(out / "runs" / job.name, job)) is None:
            continue
        there = [image for image in store.images if (root / image.path).is_file()]
        if changed_files([root / image.path for image in there], [image.digest for image in there]):
            console.print(f"{job.name}: test images have changed since it was tested, so it is tested again")
            shutil.rmtree(store.path)
            shutil.rmtree(out / "ensemble", ignore_errors=True)


def _watch(console: Console) -> Callable[[Sequence[tuple[Task, str]]], None]:
    """A function that prints once a minute how far the running tasks are."""
    printed = time.monotonic()

    def watch(running: Sequence[tuple[Task, str]]) -> None:
        nonlocal printed
        if time.monotonic() - printed < HEARTBEAT_SECONDS:
            return
        printed = time.monotonic()
        for task, activity in running:
            progress = f" · {last_line(task.log)}" if activity == "training" else ""
            console.print(f"  {task.name}: {printable(activity + progress)}")

    return watch


def _show_failures(console: Console, outcome: Outcome) -> None:
    for name, code in outcome.failed.items():
        console.print(f"failed: {name} (exit {code}); run the same command to try again")
    for name, start in outcome.blocked.items():
        console.print(f"not started: {name}, which starts from {start}")


def _tested(out: Path, planned: Sequence[Job]) -> dict[str, TestedRun]:
    """The trainings that are tested, by the paper's recipe."""
    tested = {}
    for job in planned:
        run = out / "runs" / job.name
        if (store := _scores(run, job)) is not None:
            tested[job.training.recipe] = TestedRun(job.name, job.recipe, store, runs.read_info(run).collapsed)
    return tested


def _write_ensemble(out: Path, planned: Sequence[Job]) -> None:
    """Write the fusion of seven members with 28 rows as an ensemble, again if a run was trained again."""
    ensemble = out / "ensemble"
    if is_ensemble(ensemble):
        if _weight_digests(ensemble / "runs") == _weight_digests(out / "runs"):
            return
        shutil.rmtree(ensemble)
    jobs = {job.training.recipe: job for job in planned}
    members = []
    for model in MODELS:
        sizes: dict[str, list[int]] = {}
        for index, recipe in enumerate(model.recipes):
            sizes.setdefault(recipe, []).append(mapped_px(jobs[recipe].recipe, index))
        parts = [(out / "runs" / jobs[recipe].name, tuple(px)) for recipe, px in sizes.items()]
        members.append((jobs[model.recipes[0]].name, parts))
    combine(members, ensemble, views="paper")


def _weight_digests(folder: Path) -> list[str]:
    """The digests of the weights of the runs in a folder."""
    return sorted(str(runs.read_run(file.parent).info.weights_digest) for file in folder.glob("*/run.json"))
