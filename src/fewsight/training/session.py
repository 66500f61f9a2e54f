"""Training and resuming as functions: `train` and `resume`, which `fewsight train` calls."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch import Tensor

from fewsight import runs
from fewsight.data.prepare import Prepared, prepare
from fewsight.data.training_set import TrainingSet, list_differences
from fewsight.errors import Interrupted, RunError, WriteError
from fewsight.machine import locks
from fewsight.machine.device import is_out_of_memory, random_state_kept, resolve_device, resolve_run
from fewsight.machine.loading import may_start_processes
from fewsight.machine.processes import ProcessGroup, joined
from fewsight.recipes import Recipe, load_recipe, parse_recipe, recipe_differences
from fewsight.recipes.options import check_hours
from fewsight.runs import Origin, Run
from fewsight.scores.entries import is_ensemble
from fewsight.terminal import make_console, print_first, printable, progress_counter
from fewsight.training.loop import fit
from fewsight.training.members.side_by_side import check_members, may_have_members, train_members
from fewsight.training.planning.candidates import candidates, starting_values
from fewsight.training.planning.plan import plan_recipe
from fewsight.training.preview import write_preview
from fewsight.training.reporters import ReporterFactory, Reporters, TrainingReporter
from fewsight.training.resolve import check_parts, resolve
from fewsight.training.start import check_fits, model_values, read_start, weights_from
from fewsight.training.state import check_conditions, with_conditions
from fewsight.wording import counted, shell_command

MAX_NEAR_PAIRS = 5  # of nearly equal images, in a message


@dataclass(frozen=True)
class Request:
    """The arguments of `train`, as described there."""

    data: Path
    out: Path
    recipe: str | Path
    hours: float
    overrides: Sequence[str]
    seeds: Sequence[int]
    init_from: Path | None
    preview: int
    console: Console
    reporters: Sequence[ReporterFactory]

    @property
    def planned(self) -> bool:
        """Whether the recipe is planned from the data, the device and the time."""
        return str(self.recipe) == "auto"

    @property
    def folders(self) -> dict[int | None, Path]:
        """Seed -> its run folder; None: the seed of the recipe."""
        return {seed: self.out / f"seed{seed}" for seed in self.seeds} if self.seeds else {None: self.out}


@random_state_kept()
def train(
    data: str | Path,
    out: str | Path,
    *,
    recipe: str | Path = "auto",
    hours: float = 1.0,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (),
    init_from: str | Path | None = None,
    preview: int = 0,
    console: Console | None = None,
    reporters: Sequence[ReporterFactory] = (),
) -> list[Run]:
    """Train on a folder or manifest; the run folder `out` then holds the model.

    Under torchrun the processes share each batch; the first one plans, writes the files and prints. With
    `run.members` above 1 the members train in processes of their own, and `out` is then their ensemble.

    Args:
        data: a folder of images or a manifest.
        out: the run folder to create.
        recipe: "auto" (planned from the data, the device and `hours`), the name of a shipped recipe or a TOML file.
        hours: for the whole command and one seed, with recipe "auto".
        overrides: `key.path=value` on top of the recipe. They include what the command has options for:
            `data.holdout=0.3` is --holdout 0.3, `data.splits=val=dev` --splits, `data.max_bad=0.05` --max-bad,
            `data.leak=stop` --leak,
            `data.merge_val=true` --merge-val, `run.deterministic=true` --deterministic, `run.members=3` --members 3.
        seeds: train a run for each of these in `out/seed<N>`, all with one plan; empty: one run, in `out`.
        init_from: start from this run's weights instead of random ones; if it holds a run per seed, from the run of
            the same seed. The weights replace all stages of the recipe but the last, and only the last is trained.
        preview: write a contact sheet of this many augmented batches and return without training.
        console: prints progress; None: standard output.
        reporters: callbacks for every step and epoch beside the terminal's, such as
            `fewsight.training.tensorboard.TensorBoard`; each is called with the run and its images, and returns a
            `fewsight.training.reporters.Reporter`. Members take TensorBoard alone.

    Returns:
        The finished runs or ensembles, one per seed; empty after a preview.

    Raises:
        DataError, RecipeError, RunError: before anything is overwritten.
        Interrupted: Ctrl-C or SIGTERM during training; the state is saved.
    """
    source = None if init_from is None else Path(init_from)
    with joined() as group:
        if not group.first:
            return _follow(group)
        console = console or make_console()
        request = Request(Path(data), Path(out), recipe, hours, overrides, seeds, source, preview, console, reporters)
        finished = _train(request, group)
        group.broadcast_text("")  # ends the other processes' loops
        return finished


def _follow(group: ProcessGroup) -> list[Run]:
    """Train each run folder that the first process broadcasts, until it broadcasts an empty name."""
    finished = []
    while folder := group.broadcast_text():
        finished.append(_continue(runs.read_run(Path(folder)), Console(quiet=True), group))
    return finished


def _train(request: Request, group: ProcessGroup) -> list[Run]:
    """`train` in the first process."""
    began, console, hours = time.monotonic(), request.console, request.hours
    if request.planned:
        check_hours(hours)
    runs.check_out(request.out, [] if request.preview else list(request.folders.values()))
    init_from = request.init_from
    sources = {seed: read_start(init_from, seed) for seed in request.folders} if init_from else {}
    overrides = list(request.overrides)
    if request.planned and not may_have_members(group.count, request.reporters):
        overrides = ["run.members=1", *overrides]
    if sources and request.planned:
        overrides = [*model_values(next(iter(sources.values()))), *overrides]  # the plan must fit the weights
    first = _first_recipe(request, overrides, sources)
    check_members(first, group.count, request.reporters)
    resolve_run(first.run)  # what this machine lacks is said before the images are read
    check_parts(first)
    with progress_counter(console, "checking images") as progress:
        prepared = prepare(request.data, first.data, progress=progress)
    _print_data(console, prepared)
    notes = ""
    if request.planned and request.preview:
        first = candidates(prepared, first.run, overrides)[0].recipes[0]
        console.print(
            "a preview times nothing: it shows the images of the cheapest net of the plan, "
            f"{first.augment.train_px} px; the plan may take larger ones"
        )
    elif request.planned:
        first, reasons = plan_recipe(prepared, first.run, hours, overrides, console, began=began)
        notes = "\n".join(reasons)
        console.print(f"the plan:\n{notes}", markup=False)
    resolved = resolve(first, prepared)
    check_parts(resolved)  # a plan may have cut the batch into parts
    check_members(resolved, group.count, request.reporters)  # a plan may have members
    if request.preview:
        write_preview(resolved, prepared, request.preview, request.out, console)
        return []
    finished = []
    for seed, folder in request.folders.items():
        seeded = resolved if seed is None else _with_seed(resolved, seed)
        origin = _origin(sources[seed]) if sources else None
        weights = _starting_weights(origin, seeded, prepared.classes, console)
        data = prepared.facts, prepared.listed
        run = runs.create_run(folder, seeded, prepared.classes, *data, notes, origin, group.count)
        console.print(f"training {folder}" + ("" if seed is None else f" (seed {seed})"))
        try:
            group.broadcast_text(str(folder.resolve()))
            finished.append(_fit(run, prepared.images, console, weights, group, request.reporters))
        except Interrupted as error:
            commands = _remaining_commands(request, seed, sources)
            if not commands:
                raise
            raise Interrupted("; ".join([str(error), *commands]), error.signal_number) from error
    return finished


def _first_recipe(request: Request, overrides: Sequence[str], sources: Mapping[int | None, Run]) -> Recipe:
    """The recipe before the plan and before "auto" values are resolved; it fits the runs that it starts from.

    Raises:
        RecipeError: no such recipe, or a value is wrong.
        RunError: its backbone is not that of the runs that it starts from.
    """
    if request.planned:
        recipe = parse_recipe(starting_values(), overrides, "auto")
    else:
        recipe = load_recipe(request.recipe, overrides)
    if sources:
        recipe = _last_stage(recipe, request.console)
    for source in sources.values():
        check_fits(source, recipe)
    return recipe


def _remaining_commands(request: Request, interrupted: int | None, sources: Mapping[int | None, Run]) -> list[str]:
    """The commands that train the seeds which have no run folder yet."""
    folders, commands = request.folders, []
    for seed, folder in folders.items():
        if seed == interrupted or folder.exists():
            continue
        words = ["fewsight", "train", str(request.data), "--recipe", str(folders[interrupted] / "recipe.toml")]
        words += ["--set", f"run.seed={seed}", "--out", str(folder)]
        commands.append(shell_command([*words, "--init-from", str(sources[seed].path)] if sources else words))
    return commands


@random_state_kept()
def resume(
    path: str | Path,
    *,
    data: str | Path | None = None,
    other_machine: bool = False,
    console: Console | None = None,
    reporters: Sequence[ReporterFactory] = (),
) -> Run:
    """Continue a run from its last saved state; the finished run equals an uninterrupted one bit for bit.

    Args:
        path: the run folder.
        data: where the run's data are now, if they were moved; data.json then names that place.
        other_machine: go on although the processes, threads, processor, device or versions differ, which changes the
            last bits; run.json then says so.
        console: prints progress; None: standard output.
        reporters: as for `train`.

    Raises:
        RunError: not a run, or its recipe, its data or what else its bits depend on is no longer as it began; the
            message names the differences.
    """
    if is_ensemble(Path(path)) and not (Path(path) / "recipe.toml").is_file():
        raise RunError(f"{path} is an ensemble of finished runs; there is nothing to continue")
    with joined() as group:
        run, moved_to = runs.read_run(Path(path)), None if data is None else Path(data)
        if not group.first:
            return _continue(run, Console(quiet=True), group, moved_to=moved_to, other_machine=other_machine)
        console = console or make_console()
        return _continue(run, console, group, reporters, moved_to=moved_to, other_machine=other_machine)


def _continue(
    run: Run,
    console: Console,
    group: ProcessGroup,
    reporters: Sequence[ReporterFactory] = (),
    *,
    moved_to: Path | None = None,
    other_machine: bool = False,
) -> Run:
    """Train an existing run to its end, from its last state or from its start; its data may have been moved."""
    path = run.path
    if run.finished:
        console.print(f"{path} is finished; there is nothing to continue")
        return run
    if run.info.format < runs.FORMAT:
        raise RunError(
            f"{path} has run format {run.info.format}, written by fewsight {run.info.fewsight} (commit "
            f"{run.info.commit}); this fewsight resumes format {runs.FORMAT} only. Finish it with that version, "
            "or start a new run with --recipe RUN/recipe.toml"
        )
    if run.info.recipe is not None:
        differences = recipe_differences(parse_recipe(run.info.recipe), run.recipe)
        if differences:
            raise RunError(
                f"{path / 'recipe.toml'} was changed since the run began ({'; '.join(differences)}); "
                "restore the values to resume, or start a new run with --recipe"
            )
    resolve_device(run.recipe.run.device)
    check_members(run.recipe, group.count, reporters)
    check_conditions(run, group, other_machine=other_machine)
    source = moved_to or Path(run.data.source)
    if moved_to is None and not source.exists():
        command = shell_command(["fewsight", "train", "DATA", "--resume", str(path)])
        raise RunError(f"{path}: its data {source} does not exist; restore it there, or name its new place: {command}")
    with progress_counter(console, "checking images") as progress:
        prepared = prepare(source, run.recipe.data, progress=progress)
    if changes := list_differences(runs.read_images(run), prepared.listed):
        raise RunError(f"{path}: {source} is not the data that the run began with: {changes}")
    if moved_to is not None and group.first:
        run = runs.record_source(run, moved_to)
    origin = None if runs.has_state(path) else run.info.start
    weights = _starting_weights(origin, run.recipe, run.classes, console)
    return _fit(run, prepared.images, console, weights, group, reporters, other_machine=other_machine)


def _fit(
    run: Run,
    images: TrainingSet,
    console: Console,
    weights: Mapping[str, Tensor] | None,
    group: ProcessGroup,
    reporters: Sequence[ReporterFactory],
    *,
    other_machine: bool = False,
) -> Run:
    if run.recipe.run.members > 1:
        options = ["--other-machine"] * other_machine + ["--tensorboard"] * bool(reporters)
        with locks.locked(run.path, "training"):
            return train_members(run, images, console, options)
    reporter = Reporters([TrainingReporter(console), *(make(run, images) for make in reporters)])
    if group.count > 1:
        images_used = "all images (sync_norm)" if run.recipe.run.sync_norm else "each process's own images"
        console.print(
            f"{group.count} processes share each batch; batch norms compute their statistics on {images_used}"
        )
    if run.recipe.run.workers and not may_start_processes():
        console.print(
            "note: this process is daemonic, as the workers of pools and task queues are, and may start no others: it "
            "loads the images itself, with the same result"
        )
    try:
        with locks.locked(run.path, "training") if group.first else contextlib.nullcontext():
            return fit(with_conditions(run, console, group), images, reporter, weights, group)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        double = 2 * run.recipe.stages[0].accumulate
        accumulated = f"with gradient accumulation, for example --set stages.0.accumulate={double}"
        class_batches = any(stage.batches == "pk" for stage in run.recipe.stages)  # which cannot be accumulated
        raise RunError(
            f"{run.path}: the memory is too small for a batch. Start a new run "
            f"{'with a smaller batch_size' if class_batches else accumulated}, or with a smaller train_px"
        ) from error
    except WriteError as error:
        again = shell_command(["fewsight", "train", "--resume", str(run.path)])
        raise RunError(f"{error} The training goes on with: {again}") from error
    finally:
        reporter.close()


def _last_stage(recipe: Recipe, console: Console) -> Recipe:
    """The recipe with its last stage only: the weights to start from replace the others."""
    for number, stage in enumerate(recipe.stages[:-1]):
        described = f"{stage.loss}, {counted(stage.epochs, 'epoch')}"
        console.print(f"stage {number + 1} ({described}) is skipped: the weights of --init-from replace it")
    return recipe.model_copy(update={"stages": recipe.stages[-1:]})


def _origin(source: Run) -> Origin:
    """What run.json records about the weights that a run starts from."""
    return Origin(str(source.path.resolve()), str(source.info.weights_digest))


def _starting_weights(
    origin: Origin | None, recipe: Recipe, classes: tuple[str, ...], console: Console
) -> dict[str, Tensor] | None:
    """The initial weights that `origin` (from run.json) names; None for a random initialisation.

    Raises:
        RunError: the source run no longer exists, or its weights have changed.
    """
    if origin is None:
        return None
    source = read_start(Path(origin.run))
    if source.info.weights_digest != origin.weights_digest:
        raise RunError(
            f"{source.path} no longer has the weights that the run started from; restore them, or start a new run with "
            "--init-from"
        )
    weights, summary = weights_from(source, recipe, classes)
    console.print(summary)
    return weights


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"seed": seed})})


def _print_data(console: Console, prepared: Prepared) -> None:
    counts = {split: sum(classes.values()) for split, classes in prepared.facts.counts.items()}
    parts = ", ".join(f"{number:,} {split}" for split, number in counts.items())
    console.print(f"{counted(len(prepared.classes), 'class')}; images: {parts}")
    for note in (*prepared.notes, *filter(None, [prepared.note_on_val])):
        console.print(f"note: {printable(note)}")
    if prepared.facts.ignored:
        ignored = ", ".join(counted(number, reason) for reason, number in prepared.facts.ignored.items())
        console.print(f"ignored: {ignored}")
    left_out = [image["error"] for image in prepared.facts.left_out]
    print_first(console, "left out", left_out, rest=", named in the run's data.json")
    leaks = prepared.facts.leaks
    if leaks["equal"] and leaks["policy"] == "allow":
        console.print(
            f"note: training images that are equal to images of other splits: {len(leaks['equal']):,} (--leak allow)"
        )
    near = [f"{first} and {second}" for first, second in leaks["near"]]
    rest = ", in data.json (fewsight check shows what they may mean)"
    print_first(console, "nearly equal, in two splits", near, limit=MAX_NEAR_PAIRS, rest=rest)
