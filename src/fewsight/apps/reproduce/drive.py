"""`fewsight reproduce`: plan, train and test what is missing, then write the tables."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from fewsight import runs
from fewsight.apps.reproduce.jobs import Outcome, Task, last_line, run_tasks
from fewsight.apps.reproduce.plan import Job, makespan, mapped_px, plan_full, plan_small, small_px
from fewsight.apps.reproduce.published import MODELS, TRAININGS
from fewsight.apps.reproduce.show import show_reproduction, write_reproduction
from fewsight.apps.reproduce.tables import TestedRun, build_tables
from fewsight.data import evaluation_samples, read_dataset
from fewsight.data.prepare import Prepared, prepare
from fewsight.errors import DataError, RecipeError, RunError
from fewsight.inference.ensemble import combine
from fewsight.inference.opening import is_ensemble
from fewsight.machine import files
from fewsight.machine.cores import num_cores
from fewsight.machine.device import resolve_device
from fewsight.recipes import Data, load_recipe, recipe_toml
from fewsight.scores.fusion import NO_FLIP
from fewsight.scores.store import Store, read_store
from fewsight.terminal import duration, printable, progress_counter
from fewsight.wording import counted

PLAN = "plan.json"
STORE = "test"  # name of the store of each run's test scores
HEARTBEAT_SECONDS = 60.0


@dataclass(frozen=True)
class Target:
    """What to reproduce on, as plan.json keeps it."""

    data: str
    test: str  # a split of the data, or a folder
    scale: str


@dataclass(frozen=True)
class PlannedJob:
    """A job in plan.json; its recipe is a file in recipes/."""

    training: str
    name: str
    start: str | None
    seconds: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class PlanFile(Target):
    """plan.json."""

    jobs: list[PlannedJob]


def reproduce(
    data: Path,
    out: Path,
    *,
    test: str = "test",
    scale: str = "full",
    hours: float = 1.0,
    jobs: int | None = None,
    devices: Sequence[str] = (),
    dry_run: bool = False,
    console: Console,
) -> int:
    """Train the paper's eight runs, test them in eight views, and show its tables with our figures next to its own.

    Finished trainings are skipped and interrupted ones are resumed. If a training fails, the others go on.

    Args:
        data: the dataset.
        out: the folder to write.
        test: a labelled split of the data, which is not trained on, or a folder.
        scale: "full", as in the paper; "small", small models of the same families at half the images' size.
        hours: at small scale, the time to fit the number of epochs to, if it is short.
        jobs: number of trainings in parallel; None: one per device, or per core at small scale on a CPU.
        devices: such as cuda:0, cuda:1; empty for what the machine has.
        dry_run: show the plan with its time, memory and disk space, and stop.
        console: where to print.

    Returns:
        0, or 1 if a training failed.

    Raises:
        DataError, RecipeError, RunError: before anything is trained, or if no training succeeded.
    """
    if not 0 < hours < math.inf:
        raise RecipeError(f"--hours {hours:g}: expected a number above 0, for example 1")
    merge_val, test_name, num_test = _read(data, test)
    target = Target(str(data.resolve()), test_name, scale)
    _check_out(out, target)
    slots = _slots(scale, jobs, devices)
    device = "auto" if not devices else devices[0].split(":")[0]
    on_cpu = resolve_device(device).type == "cpu"
    threads = max(1, num_cores() // len(slots)) if on_cpu else None  # parallel trainings share the cores
    with progress_counter(console, "checking images") as progress:
        prepared = prepare(data, Data(merge_val=merge_val), progress=progress)
    planned = _plan(out, target, prepared, hours, len(slots), num_test, merge_val, threads, device, console)
    _show_plan(console, target, planned, prepared, len(slots), num_test, merge_val)
    if dry_run:
        return 0
    _write_plan(out, target, planned)
    tasks = [_task(job, data, out, target) for job in planned]
    start = time.monotonic()
    with files.locked(out, "reproducing"):
        outcome = run_tasks(
            tasks, slots, threads=threads, say=lambda text: console.print(printable(text)), watch=_watch(console)
        )
    console.print(f"trained and tested in {duration(time.monotonic() - start)}")
    _show_failures(console, outcome)
    tested = _tested(out, planned)
    if not tested:
        raise RunError(f"{out}: no training succeeded, so there are no tables; see {out / 'logs'}")
    reproduction = build_tables(tested, scale)
    show_reproduction(console, reproduction)
    for path in write_reproduction(out, reproduction):
        console.print(f"wrote {path}")
    if len(tested) == len(planned):
        _write_ensemble(out, planned)
        console.print(
            f"the fusion is saved as an ensemble: fewsight predict {out / 'ensemble'} IMAGES --out predictions.csv"
        )
    return 1 if outcome.failed or outcome.blocked else 0


def _read(data: Path, test: str) -> tuple[bool, str, int]:
    """Find the test images.

    Returns:
        Whether val is trained on too; the name of the test split, or the path of the folder; how many images it has.

    Raises:
        DataError: there is no such labelled split or folder.
    """
    settings = Data()
    dataset = read_dataset(data, holdout=settings.holdout, seed=settings.split_seed)
    classes = dataset.classes_of("train")
    is_split = test in dataset.splits or test in dataset.unlabelled
    if not is_split and Path(test).is_dir():
        evaluation = evaluation_samples(Path(test), classes)
        return "val" in dataset.splits, str(Path(test).resolve()), len(evaluation.samples)
    if not is_split and Path(data, "..", test).is_dir():
        raise DataError(f"{data}: no split {test!r}; for the folder next to it use --test {Path(data).parent / test}")
    if test == "train":
        raise DataError("--test train: the paper's models are trained on it; use another split or a folder")
    if test in dataset.unlabelled:
        raise DataError(
            f"{data}: {test} has no labels, which the tables need; use --test SPLIT or --test FOLDER with labelled "
            "images (with --test val the models are trained on train alone)"
        )
    evaluation = evaluation_samples(data, classes, test, holdout=settings.holdout, seed=settings.split_seed)
    return "val" in dataset.splits and evaluation.split != "val", evaluation.split, len(evaluation.samples)


def _check_out(out: Path, target: Target) -> None:
    """Refuse a folder with other content, or with a reproduction that has another target."""
    if (out / PLAN).is_file():
        before = asdict(_read_plan_file(out))
        options = asdict(target).items()
        different = [f"{name} {before[name]}, not {value}" for name, value in options if before[name] != value]
        if different:
            raise RunError(f"{out} was started with different options ({'; '.join(different)}); choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} already exists and holds no reproduction; choose another --out. Nothing was changed.")


def _slots(scale: str, jobs: int | None, devices: Sequence[str]) -> list[str | None]:
    """The devices of the trainings that run in parallel."""
    if jobs is not None and jobs < 1:
        raise RecipeError(f"--jobs {jobs}: expected at least 1")
    kind = resolve_device(devices[0] if devices else "auto").type
    for name in devices:
        resolve_device(name)
    default = len(devices) or (num_cores() if scale == "small" and kind == "cpu" else 1)
    count = jobs or default
    return [devices[number % len(devices)] if devices else None for number in range(count)]


def _plan(
    out: Path,
    target: Target,
    prepared: Prepared,
    hours: float,
    num_slots: int,
    num_test: int,
    merge_val: bool,
    threads: int | None,
    device: str,
    console: Console,
) -> list[Job]:
    """The plan that `out` was started with, its recipes as they are there now; else a new plan."""
    if (out / PLAN).is_file():
        return _read_plan(out)
    with progress_counter(console, "timing the trainings"):
        if target.scale == "full":
            console.print("timing a step of each training at full size, which takes minutes without a GPU")
            return plan_full(prepared, num_test, merge_val=merge_val, threads=threads or "auto", device=device)
        return plan_small(
            prepared, hours, num_slots, num_test, merge_val=merge_val, threads=threads or "auto", device=device
        )


def _write_plan(out: Path, target: Target, planned: Sequence[Job]) -> None:
    """Write the plan, by which the same command will go on, unless it is written already."""
    if (out / PLAN).is_file():
        return
    for name in ("recipes", "logs", "runs"):
        files.make_folder(out / name)
    jobs = []
    for job in planned:
        files.write_text(out / "recipes" / f"{job.name}.toml", recipe_toml(job.recipe))
        costs = (job.seconds, job.memory_bytes, job.disk_bytes)
        jobs.append(PlannedJob(job.training.recipe, job.name, job.start, *costs))
    files.write_json(out / PLAN, asdict(PlanFile(**asdict(target), jobs=jobs)))


def _read_plan_file(out: Path) -> PlanFile:
    return files.read_json(out / PLAN, PlanFile, "`fewsight reproduce`")


def _read_plan(out: Path) -> list[Job]:
    trainings = {training.recipe: training for training in TRAININGS}
    planned = _read_plan_file(out).jobs
    unknown = next((job.training for job in planned if job.training not in trainings), None)
    if unknown is not None:
        raise RunError(f"{out / PLAN} is not what `fewsight reproduce` wrote: there is no training {unknown!r}")
    return [
        Job(
            trainings[job.training],
            job.name,
            job.start,
            load_recipe(out / "recipes" / f"{job.name}.toml"),
            job.seconds,
            job.memory_bytes,
            job.disk_bytes,
        )
        for job in planned
    ]


def _show_plan(
    console: Console,
    target: Target,
    planned: Sequence[Job],
    prepared: Prepared,
    num_slots: int,
    num_test: int,
    merge_val: bool,
) -> None:
    train_splits = "train + val" if merge_val else "train"
    console.print(
        f"{len(prepared.images.paths):,} images of {train_splits} in {len(prepared.classes):,} classes, tested on "
        f"{num_test:,} images of {printable(target.test)}; {target.scale} scale, {num_slots} at a time"
    )
    if target.scale == "small":
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
    in_parallel = sorted((job.memory_bytes for job in planned), reverse=True)[:num_slots]
    console.print(
        f"in total about {duration(makespan(planned, num_slots))}, {sum(in_parallel) / 2**30:.1f} GiB of memory, "
        f"{sum(job.disk_bytes for job in planned) / 2**20:,.0f} MiB of disk"
    )


def _task(job: Job, data: Path, out: Path, target: Target) -> Task:
    """The commands that are still to run for a training."""
    run, fewsight = out / "runs" / job.name, [sys.executable, "-m", "fewsight"]
    commands = {}
    if not (run / "run.json").is_file():
        recipe, start = out / "recipes" / f"{job.name}.toml", ["--init-from", str(out / "runs" / str(job.start))]
        commands["training"] = [*fewsight, "train", str(data), "--out", str(run), "--recipe", str(recipe)]
        commands["training"] += start if job.start else []
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
    return [*names, *(f"{name}-{NO_FLIP}" for name in names)]


def _scores(run: Path, job: Job) -> Store | None:
    """The scores of the test images; None unless they have all views, computed with the run's weights."""
    try:
        store, info = read_store(run / "scores" / STORE), runs.read_info(run)
    except RunError:
        return None
    whole = set(_views(job)) <= set(store.views) and store.about.weights_digest == info.weights_digest
    return store if whole else None


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
    combine(members, ensemble)


def _weight_digests(folder: Path) -> list[str]:
    """The digests of the weights of the runs in a folder."""
    return sorted(str(runs.read_run(file.parent).info.weights_digest) for file in folder.glob("*/run.json"))
