"""`fewsight reproduce`: plan, train and test what is missing, then the tables."""

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
from fewsight.apps.reproduce.answers import TestedRun, answer
from fewsight.apps.reproduce.jobs import Outcome, Task, last_line, run_tasks
from fewsight.apps.reproduce.plan import Job, makespan, plan_full, plan_small, row_px, small_px
from fewsight.apps.reproduce.published import MODELS, TRAININGS
from fewsight.apps.reproduce.show import show_reproduction, write_reproduction
from fewsight.data import evaluation_samples, read_dataset
from fewsight.data.prepare import Prepared, prepare
from fewsight.errors import DataError, RecipeError, RunError
from fewsight.inference.ensemble import combine, is_ensemble
from fewsight.machine import files
from fewsight.machine.cores import num_cores
from fewsight.machine.device import resolve_device
from fewsight.recipes import Data, load_recipe, recipe_toml
from fewsight.scores.fusion import NO_FLIP
from fewsight.scores.store import Store, read_store
from fewsight.terminal import duration, printable, progress_counter
from fewsight.wording import counted

PLAN = "plan.json"
TEST = "test"  # the folder of each run's scores
HEARTBEAT_SECONDS = 60.0


@dataclass(frozen=True)
class Wanted:
    """What is to be reproduced, as plan.json keeps it."""

    data: str
    test: str  # a split of the data, or a folder
    scale: str


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
    """Train the report's eight runs, test them in eight views, and show its tables beside ours.

    What is finished is skipped, what was interrupted goes on, a failed training is named and the others go on.

    Args:
        test: a labelled split of the data, which is not trained on, or a folder.
        scale: "full", the report as written; "small", small members of its families at half the images' size.
        hours: at small scale, the time that the epochs are fitted to where it is short.
        jobs: trainings beside each other; None: one for each device, at small scale on a CPU one for each core.
        devices: such as cuda:0, cuda:1; none: what the machine has.
        dry_run: show the plan and what it will take, and stop.

    Returns:
        0, or 1 where a training failed.

    Raises:
        DataError, RecipeError, RunError: before anything is trained.
    """
    if not 0 < hours < math.inf:
        raise RecipeError(f"--hours {hours:g}: expected a number above 0, for example 1")
    merge_val, place, num_test = _read(data, test)
    wanted = Wanted(str(data.resolve()), place, scale)
    _check_place(out, wanted)
    slots = _slots(scale, jobs, devices)
    device = "auto" if not devices else devices[0].split(":")[0]
    on_cpu = resolve_device(device).type == "cpu"
    threads = max(1, num_cores() // len(slots)) if on_cpu else None  # beside each other they share the cores
    with progress_counter(console, "checking images") as progress:
        prepared = prepare(data, Data(merge_val=merge_val), progress=progress)
    planned = _plan(out, wanted, prepared, hours, len(slots), num_test, merge_val, threads, device, console)
    _show_plan(console, wanted, planned, prepared, len(slots), num_test, merge_val)
    if dry_run:
        return 0
    _write_plan(out, wanted, planned)
    tasks = [_task(job, data, out, wanted) for job in planned]
    begun = time.monotonic()
    with files.locked(out, "reproducing"):
        outcome = run_tasks(
            tasks, slots, threads=threads, say=lambda text: console.print(printable(text)), watch=_watch(console)
        )
    console.print(f"trained and tested in {duration(time.monotonic() - begun)}")
    _say_failures(console, outcome)
    tested = _tested(out, planned)
    if not tested:
        raise RunError(f"{out}: no training ended well, so there are no tables; see {out / 'logs'}")
    found = answer(tested, scale)
    show_reproduction(console, found)
    for path in write_reproduction(out, found):
        console.print(f"wrote {path}")
    if len(tested) == len(planned):
        _keep_ensemble(out, planned)
        console.print(f"the fusion is a run: fewsight predict {out / 'ensemble'} IMAGES --out predictions.csv")
    return 1 if outcome.failed or outcome.blocked else 0


def _read(data: Path, test: str) -> tuple[bool, str, int]:
    """Whether val is merged, the test's place in words, and how many images it has.

    Raises:
        DataError: there is no such labelled split or folder.
    """
    settings = Data()
    dataset = read_dataset(data, holdout=settings.holdout, seed=settings.split_seed)
    classes = dataset.classes_of("train")
    named = test in dataset.splits or test in dataset.unlabelled
    if not named and Path(test).is_dir():
        found = evaluation_samples(Path(test), classes)
        return "val" in dataset.splits, str(Path(test).resolve()), len(found.samples)
    if not named and Path(data, "..", test).is_dir():
        raise DataError(f"{data}: no split {test!r}; for the folder beside it say --test {Path(data).parent / test}")
    if test == "train":
        raise DataError("--test train: the report's models are trained on it; name another split or a folder")
    if test in dataset.unlabelled:
        raise DataError(
            f"{data}: {test} has no labels, so there are no tables to make; say --test SPLIT or --test FOLDER of "
            "labelled images (with --test val the models are trained on train alone)"
        )
    found = evaluation_samples(data, classes, test, holdout=settings.holdout, seed=settings.split_seed)
    return "val" in dataset.splits and found.split != "val", found.split, len(found.samples)


def _check_place(out: Path, wanted: Wanted) -> None:
    if (out / PLAN).is_file():
        values = files.read_json(out / PLAN)
        there = {name: values.get(name) for name in ("data", "test", "scale")} if isinstance(values, dict) else {}
        ours = {"data": wanted.data, "test": wanted.test, "scale": wanted.scale}
        told = [f"{name} {there.get(name)}, not {ours[name]}" for name in ours if there.get(name) != ours[name]]
        if told:
            raise RunError(f"{out} was begun with other wishes ({'; '.join(told)}); choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is already there and holds no reproduction; choose another --out. Nothing was changed.")


def _slots(scale: str, jobs: int | None, devices: Sequence[str]) -> list[str | None]:
    """A device for each training beside the others."""
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
    wanted: Wanted,
    prepared: Prepared,
    hours: float,
    at_once: int,
    num_test: int,
    merge_val: bool,
    threads: int | None,
    device: str,
    console: Console,
) -> list[Job]:
    """The plan that `out` was begun with, or a new one; the recipes of a begun one are taken as they stand there."""
    if (out / PLAN).is_file():
        return _read_plan(out)
    with progress_counter(console, "timing the trainings"):
        if wanted.scale == "full":
            console.print("timing a step of each training at full size, which takes minutes without a GPU")
            return plan_full(prepared, num_test, merge_val=merge_val, threads=threads or "auto", device=device)
        return plan_small(
            prepared, hours, at_once, num_test, merge_val=merge_val, threads=threads or "auto", device=device
        )


def _write_plan(out: Path, wanted: Wanted, planned: Sequence[Job]) -> None:
    """Keep the plan, so that the same command goes on by it; once written it stays."""
    if (out / PLAN).is_file():
        return
    for name in ("recipes", "logs", "runs"):
        files.make_folder(out / name)
    jobs = []
    for job in planned:
        files.write_text(out / "recipes" / f"{job.name}.toml", recipe_toml(job.recipe))
        kept = {"seconds": job.seconds, "memory_bytes": job.memory_bytes, "disk_bytes": job.disk_bytes}
        jobs.append({"training": job.training.recipe, "name": job.name, "start": job.start, **kept})
    files.write_json(out / PLAN, {**asdict(wanted), "jobs": jobs})


def _read_plan(out: Path) -> list[Job]:
    trainings = {training.recipe: training for training in TRAININGS}
    try:
        return [
            Job(
                trainings[one["training"]],
                one["name"],
                one["start"],
                load_recipe(out / "recipes" / f"{one['name']}.toml"),
                one["seconds"],
                one["memory_bytes"],
                one["disk_bytes"],
            )
            for one in files.read_json(out / PLAN)["jobs"]
        ]
    except (KeyError, TypeError) as error:
        raise RunError(f"{out / PLAN} is not what `fewsight reproduce` wrote: {error!r}") from error


def _show_plan(
    console: Console,
    wanted: Wanted,
    planned: Sequence[Job],
    prepared: Prepared,
    at_once: int,
    num_test: int,
    merge_val: bool,
) -> None:
    trained = "train + val" if merge_val else "train"
    console.print(
        f"{len(prepared.images.paths):,} images of {trained} in {len(prepared.classes):,} classes, tested on "
        f"{num_test:,} of {printable(wanted.test)}; {wanted.scale} scale, {at_once} at once"
    )
    if wanted.scale == "small":
        native, px = int(np.median([min(size) for size in prepared.sizes])), small_px(prepared)
        detail = "half their size" if abs(2 * px - native) <= 4 else f"{100 * px / native:.0f} % of their size"
        if px >= native:
            detail = "no smaller than they are: larger test sizes show no more detail"
        console.print(f"images of {native} px are trained on at {px} px, {detail}")
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
    beside = sorted((job.memory_bytes for job in planned), reverse=True)[:at_once]
    console.print(
        f"in all about {duration(makespan(planned, at_once))}, {sum(beside) / 2**30:.1f} GiB of memory, "
        f"{sum(job.disk_bytes for job in planned) / 2**20:,.0f} MiB of disk"
    )


def _task(job: Job, data: Path, out: Path, wanted: Wanted) -> Task:
    """What is still to do for one training."""
    run, fewsight = out / "runs" / job.name, [sys.executable, "-m", "fewsight"]
    commands = {}
    if not (run / "run.json").is_file():
        recipe, start = out / "recipes" / f"{job.name}.toml", ["--init-from", str(out / "runs" / str(job.start))]
        commands["training"] = [*fewsight, "train", str(data), "--out", str(run), "--recipe", str(recipe)]
        commands["training"] += start if job.start else []
    elif not runs.read_run(run).finished:
        commands["training"] = [*fewsight, "train", "--resume", str(run)]
    if _scores(run, job) is None:
        folder = Path(wanted.test).is_absolute()
        tested = [wanted.test] if folder else [str(data), "--split", wanted.test]
        views = ["--views", ",".join(_views(job)), "--scores", str(run / "scores" / TEST)]
        commands["testing"] = [*fewsight, "evaluate", str(run), *tested, *views]
    return Task(job.name, commands, out / "logs" / f"{job.name}.log", job.start, lambda: _scores(run, job) is not None)


def _views(job: Job) -> list[str]:
    """The report's eight, and each without its flipped twin, so that the flips can be asked for."""
    assert job.recipe.eval.test_px != "auto", "the recipe is resolved"
    names = [f"{crop}-{px}" for px in job.recipe.eval.test_px for crop in ("center", "random")]
    return [*names, *(f"{name}-{NO_FLIP}" for name in names)]


def _scores(run: Path, job: Job) -> Store | None:
    """The scores of the test images in all views with the run's weights, where they are whole."""
    try:
        store, info = read_store(run / "scores" / TEST), files.read_json(run / "run.json")
    except RunError:
        return None
    whole = set(_views(job)) <= set(store.views) and store.about.weights_digest == info.get("weights_digest")
    return store if whole else None


def _watch(console: Console) -> Callable[[Sequence[tuple[Task, str]]], None]:
    """Say once a minute where everything is that runs."""
    spoke = time.monotonic()

    def watch(running: Sequence[tuple[Task, str]]) -> None:
        nonlocal spoke
        if time.monotonic() - spoke < HEARTBEAT_SECONDS:
            return
        spoke = time.monotonic()
        for task, doing in running:
            reached = f" · {last_line(task.log)}" if doing == "training" else ""
            console.print(f"  {task.name}: {printable(doing + reached)}")

    return watch


def _say_failures(console: Console, outcome: Outcome) -> None:
    for name, code in outcome.failed.items():
        console.print(f"failed: {name} (exit {code}); the same command tries it again")
    for name, start in outcome.blocked.items():
        console.print(f"not begun: {name}, which starts from {start}")


def _tested(out: Path, planned: Sequence[Job]) -> dict[str, TestedRun]:
    """What is trained and tested, by the report's recipe."""
    found = {}
    for job in planned:
        run = out / "runs" / job.name
        if (store := _scores(run, job)) is not None:
            collapsed = bool(files.read_json(run / "run.json").get("collapsed"))
            found[job.training.recipe] = TestedRun(job.name, job.recipe, store, collapsed)
    return found


def _keep_ensemble(out: Path, planned: Sequence[Job]) -> None:
    """The fusion as a run folder: seven members, 28 rows; made anew where a run was trained again."""
    ensemble = out / "ensemble"
    if is_ensemble(ensemble):
        if _weights(ensemble / "runs") == _weights(out / "runs"):
            return
        shutil.rmtree(ensemble)
    jobs = {job.training.recipe: job for job in planned}
    members = []
    for model in MODELS:
        sizes: dict[str, list[int]] = {}
        for place, recipe in enumerate(model.recipes):
            sizes.setdefault(recipe, []).append(row_px(jobs[recipe].recipe, place))
        parts = [(out / "runs" / jobs[recipe].name, tuple(px)) for recipe, px in sizes.items()]
        members.append((jobs[model.recipes[0]].name, parts))
    combine(members, ensemble)


def _weights(folder: Path) -> list[str]:
    """The digests of the weights of the runs in a folder."""
    return sorted(str(runs.read_run(file.parent).info.get("weights_digest")) for file in folder.glob("*/run.json"))
