"""The algebra of scores: results -> runs at a test size -> members -> fusion.

A result is one view's scores of one run. A run at a test size averages its crops; the paper's tables call it a row. A
member is some runs at a test size, by default all test sizes of one run. A fusion is a weighted mean of members; the
paper's weights 28 runs at a test size equally. Each of them is a mapping from results to weights, so that one pass over
the files answers many questions, in memory that does not grow with the number of images.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fewsight.errors import RunError
from fewsight.machine import files
from fewsight.scores.store import Store, read_store
from fewsight.wording import counted, named

ENSEMBLE = "ensemble.json"  # marks a run folder, or a folder of scores, as an ensemble's
NO_FLIP = "noflip"  # ends the name of a view whose mirrored view is not averaged in
MAX_SUM_ERROR = 0.02  # between 1 and the sum of an image's probabilities
CHUNK_BYTES = 48 * 2**20  # of probabilities that a pass holds at a time
GREEDY_STEPS = 25


@dataclass(frozen=True)
class Result:
    """The scores of one view in one run's store."""

    store: Store
    view: str

    @property
    def crop(self) -> str:
        """`center` or `random`."""
        return self.view.split("-")[0]

    @property
    def px(self) -> int:
        """Side of the view in pixels."""
        return int(self.view.split("-")[1])

    @property
    def flips(self) -> bool:
        """Whether the mirrored view is averaged in."""
        return not self.view.endswith(f"-{NO_FLIP}")

    @property
    def unmirrored(self) -> "Result":
        """The same view without its mirrored view; the store may lack it."""
        return Result(self.store, f"{self.view}-{NO_FLIP}")


Weights = Mapping[Result, float]  # of a fusion; they sum to 1


@dataclass(frozen=True)
class SizedRun:
    """A run at one test size: the mean over its crops. The paper's tables call it a row."""

    run: str
    px: int
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Member:
    """Some runs at a test size under one name; the paper's ResNeSt101 + CE combines test sizes of two runs."""

    name: str
    sized_runs: tuple[SizedRun, ...]
    weights: Weights  # of the member alone


@dataclass(frozen=True)
class Scored:
    """The stored scores of a run or an ensemble on a set of images."""

    path: Path
    members: tuple[Member, ...]
    weights: Weights

    @property
    def sized_runs(self) -> tuple[SizedRun, ...]:
        """The runs at a test size of all members."""
        return tuple(sized_run for member in self.members for sized_run in member.sized_runs)

    @property
    def first_store(self) -> Store:
        """One of the stores; all are of the same images."""
        return self.sized_runs[0].results[0].store

    @property
    def trained_on(self) -> np.ndarray:
        """bool [images]: which images at least one member was trained on."""
        stores = {result.store for sized_run in self.sized_runs for result in sized_run.results}
        return np.any([[image.trained_on for image in store.images] for store in stores], axis=0)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class EnsembleEntry:
    """An entry of ensemble.json: a run at a test size, its member and its weight."""

    member: str
    run: str  # a folder in the ensemble's runs/
    px: int
    weight: float


@dataclass(frozen=True)
class EnsembleFile:
    """ensemble.json."""

    rows: tuple[EnsembleEntry, ...]


@dataclass(frozen=True)
class RunStatus:
    """The part of a run's run.json that is read here, without the package runs and its torch."""

    status: str = ""


def default_split(paths: Sequence[Path]) -> str:
    """The split to use if the user names none: test, else val, else the only split that all have scores of.

    Raises:
        RunError: they have scores of several other splits, so that the user must choose.
    """
    per_path = [splits for path in paths if (splits := _splits(path))]
    if not per_path:
        return "test"  # for folders of scores, and for the message that says how to make scores
    shared = set.intersection(*per_path)
    for name in ("test", "val"):
        if name in shared:
            return name
    if len(shared) > 1:
        raise RunError(f"{paths[0]} has scores of {', '.join(sorted(shared))}; choose with --split")
    return shared.pop() if shared else min(per_path[0], key=lambda name: (name != "test", name != "val", name))


def _splits(path: Path) -> set[str]:
    """The splits that a run or an ensemble's runs have scores of; a folder of scores has no split."""
    if (path / "store.json").is_file():
        return set()
    return {store.parent.name for pattern in ("", "runs/*/") for store in path.glob(f"{pattern}scores/*/store.json")}


def open_scored(path: Path, split: str, views: Sequence[str] = ()) -> Scored:
    """The stored scores of a run or an ensemble on a split; `path` may also be a folder of scores.

    Args:
        path: a run, an ensemble, or a folder of scores of either.
        split: ignored for a folder of scores.
        views: of each run, only these.

    Raises:
        RunError: there are none, they are incomplete, or the members' are of different images or classes.
    """
    if (path / ENSEMBLE).is_file():
        entries = read_entries(path)
        folders = {entry.run: _member_scores(path, entry.run, split) for entry in entries}
        stores = {run: read_store(folder) for run, folder in folders.items()}
        return scored_ensemble(path, entries, stores, views)
    return scored_run(path, path.name, read_store(_scores_folder(path, split)), views)


def open_each(paths: Sequence[Path], split: str, views: Sequence[str] = ()) -> list[Scored]:
    """`open_scored` of several paths.

    Raises:
        RunError: a path is given twice, so that it would count twice; or as `open_scored`.
    """
    resolved = [path.resolve() for path in paths]
    repeated = next((path for index, path in enumerate(paths) if resolved[index] in resolved[:index]), None)
    if repeated is not None:
        raise RunError(f"{repeated} is given twice; give each run once")
    return [open_scored(path, split, views) for path in paths]


def scored_run(path: Path, name: str, store: Store, views: Sequence[str] = ()) -> Scored:
    """A run's scores as its only member, all views weighted equally."""
    runs = sized_runs(name, store, views)
    if not runs:
        raise RunError(f"{store.path} has no view {', '.join(views)}; it has {', '.join(store.views)}")
    weights = _equal_weights([result for sized_run in runs for result in sized_run.results])
    return Scored(path, (Member(name, runs, weights),), weights)


def sized_runs(name: str, store: Store, views: Sequence[str] = ()) -> tuple[SizedRun, ...]:
    """A run at each of its test sizes, smallest first.

    Args:
        name: of the run.
        store: its scores.
        views: only these. None: all but the `-noflip` ones.
    """
    results = [Result(store, view) for view in store.views if (view in views if views else not view.endswith(NO_FLIP))]
    sizes = sorted({result.px for result in results})
    return tuple(SizedRun(name, px, tuple(result for result in results if result.px == px)) for px in sizes)


def scored_ensemble(
    path: Path, entries: Sequence[EnsembleEntry], stores: Mapping[str, Store], views: Sequence[str] = ()
) -> Scored:
    """An ensemble's scores, from the stores of its runs.

    Args:
        path: the ensemble's, for messages.
        entries: of its ensemble.json.
        stores: by the runs' names.
        views: of each run, only these.

    Raises:
        RunError: the stores are of different images or classes, or one lacks a test size.
    """
    members: dict[str, list[SizedRun]] = {}
    weighted = []
    for entry in entries:
        store = stores[entry.run]
        sized_run = next((run for run in sized_runs(entry.run, store, views) if run.px == entry.px), None)
        if sized_run is None and not views:
            raise RunError(
                f"{store.path} has no scores at {entry.px} px; it has {', '.join(store.views)}: evaluate {path} again"
            )
        if sized_run is not None:
            members.setdefault(entry.member, []).append(sized_run)
            weighted.append((sized_run, entry.weight))
    if not weighted:
        raise RunError(f"{path}: no member has a view {', '.join(views)}")
    check_same_images(list(stores.values()))
    weights = _weights_of(weighted)
    parts = [
        Member(name, tuple(runs), restrict(weights, [result for sized_run in runs for result in sized_run.results]))
        for name, runs in members.items()
    ]
    return Scored(path, tuple(parts), weights)


def make_member(name: str, weighted: Sequence[tuple[SizedRun, float]]) -> Member:
    """A member of some runs at a test size, each with its weight."""
    return Member(name, tuple(sized_run for sized_run, _ in weighted), _weights_of(weighted))


def _weights_of(weighted: Sequence[tuple[SizedRun, float]]) -> Weights:
    """Runs at a test size by their weights; within each, all results equally."""
    total, weights = sum(weight for _, weight in weighted), dict[Result, float]()
    for sized_run, weight in weighted:
        for result in sized_run.results:
            weights[result] = weights.get(result, 0.0) + weight / total / len(sized_run.results)
    return weights


def check_same_images(stores: Sequence[Store]) -> None:
    """Check that scores can be compared or fused: the same images in the same order, and the same classes.

    Raises:
        RunError: names two stores that differ.
    """
    first, *others = stores
    first_images = [(image.digest, image.label, image.error is None) for image in first.images]
    for store in others:
        if store.about.classes != first.about.classes:
            unshared = sorted(set(first.about.classes) ^ set(store.about.classes))
            raise RunError(
                f"{store.path} and {first.path} have different classes, so they cannot be compared or fused; "
                f"only one of them has {named(map(repr, unshared))}"
            )
        if first_images != [(image.digest, image.label, image.error is None) for image in store.images]:
            raise RunError(
                f"{store.path} and {first.path} hold scores of different images, so they cannot be compared or fused; "
                "evaluate both on the same split of the same data"
            )


def uniform(runs: Sequence[SizedRun]) -> Weights:
    """Equal weight for each run at a test size, and within it for each result: the paper's fusion."""
    return _weights_of([(sized_run, 1.0) for sized_run in runs])


def fuse_members(members: Sequence[Member], weights: Sequence[float]) -> Weights:
    """The members by their weights; a member of weight 0 is left out."""
    total, fused = sum(weights), dict[Result, float]()
    for member, weight in zip(members, weights, strict=True):
        for result, proportion in member.weights.items() if weight else ():
            fused[result] = fused.get(result, 0.0) + proportion * weight / total
    return fused


def restrict(weights: Weights, results: Sequence[Result]) -> Weights:
    """A fusion restricted to some results, renormalised; empty if it has none of them."""
    kept = {result: weights[result] for result in results if weights.get(result)}
    total = sum(kept.values())
    return {result: weight / total for result, weight in kept.items()}


def fused_probs(fusions: Sequence[Weights]) -> Iterator[tuple[slice, np.ndarray]]:
    """Weighted means of probabilities, a chunk of the images at a time.

    Args:
        fusions: Q weightings of results.

    Yields:
        The images' positions, and float32 [Q, images, K]; NaN where an image could not be read.

    Raises:
        RunError: scores are damaged: an image's probabilities do not sum to 1.
    """
    results = list(dict.fromkeys(result for weights in fusions for result in weights))
    store = results[0].store
    check_same_images(list(dict.fromkeys(result.store for result in results)))
    matrix = np.array([[weights.get(result, 0.0) for result in results] for weights in fusions], np.float32)
    num_images, num_classes, readable = store.about.count, len(store.about.classes), store.readable
    size = max(1, CHUNK_BYTES // (4 * num_classes * (len(results) + len(fusions))))
    for start in range(0, num_images, size):
        stop = min(start + size, num_images)
        probs = np.empty((len(results), (stop - start) * num_classes), np.float32)
        for index, result in enumerate(results):
            with np.errstate(invalid="ignore", over="ignore"):  # of damaged scores, which are refused below
                np.exp(result.store.results(result.view, start, stop).reshape(-1), out=probs[index])
            by_image = probs[index].reshape(stop - start, num_classes)
            _check_sums(result, start, by_image, readable[start:stop])
            by_image[~readable[start:stop]] = np.nan
        yield slice(start, stop), (matrix @ probs).reshape(len(fusions), stop - start, num_classes)


def _check_sums(result: Result, start: int, probs: np.ndarray, readable: np.ndarray) -> None:
    """Raise unless the probabilities [n, K] of every readable image sum to 1."""
    damaged = np.flatnonzero(readable & ~(np.abs(probs.sum(1) - 1) < MAX_SUM_ERROR))
    if len(damaged):
        path = result.store.images[start + damaged[0]].path
        raise RunError(
            f"{result.store.path}: the scores of {path} in {result.view} are damaged (they sum to "
            f"{probs[damaged[0]].sum():g}); remove {result.store.path} and score again"
        )


def fused_log_probs(weights: Weights) -> np.ndarray:
    """float32 [images, K]: the natural logarithm of one fusion, held in memory as a whole."""
    with np.errstate(divide="ignore"):
        return np.concatenate([np.log(probs[0]) for _, probs in fused_probs([weights])])


def label_indices(store: Store) -> np.ndarray:
    """int [images]: the index of each image's label in the classes.

    Raises:
        RunError: the store's images have no labels, or none could be read.
    """
    if any(image.label is None for image in store.images):
        raise RunError(f"{store.path}: its images have no labels, so there is no accuracy; evaluate on labelled ones")
    if not store.readable.any():
        raise RunError(f"{store.path}: none of its {counted(len(store.images), 'image')} could be read")
    index_of = {name: index for index, name in enumerate(store.about.classes)}
    try:
        return np.array([index_of[str(image.label)] for image in store.images])
    except KeyError as error:
        raise RunError(f"{store.path}: an image has the label {error}, which is not one of its classes") from error


def correct_top1(fusions: Sequence[Weights]) -> np.ndarray:
    """bool [Q, readable images]: which images each fusion classifies correctly, in one pass over the files.

    Raises:
        RunError: no labels, or no image could be read.
    """
    store = next(iter(fusions[0])).store
    labels = label_indices(store)
    chunks = [probs.argmax(2) == labels[images] for images, probs in fused_probs(fusions)]
    return np.concatenate(chunks, axis=1)[:, store.readable]


def true_class_probs(fusions: Sequence[Weights]) -> np.ndarray:
    """float64 [Q, readable images]: the probability of each image's label in each fusion.

    Raises:
        RunError: as `correct_top1`.
    """
    store = next(iter(fusions[0])).store
    labels = label_indices(store)
    chunks = [probs[:, np.arange(probs.shape[1]), labels[images]] for images, probs in fused_probs(fusions)]
    return np.concatenate(chunks, axis=1)[:, store.readable].astype(np.float64)


def check_not_trained_on(scored: Scored, what: str) -> None:
    """Check that no image was trained on, before something is chosen on the images.

    Args:
        scored: on those images.
        what: is to be chosen, for the message.

    Raises:
        RunError: some images were trained on.
    """
    num_trained_on = int(scored.trained_on.sum())
    if num_trained_on:
        raise RunError(
            f"{scored.path}: {num_trained_on:,} of these {counted(len(scored.trained_on), 'image')} were trained on, "
            f"so {what} cannot be chosen on them; choose on a split that was not trained on, or, for runs on train + "
            "val, choose with the same recipes trained on train alone and carry it over (--from)"
        )


def greedy_weights(members: Sequence[Member], steps: int = GREEDY_STEPS) -> tuple[float, ...]:
    """Weights of members chosen for top-1 on labelled images: members are added one at a time, with replacement.

    Starts from an empty ensemble. Each step adds the member that gives the highest top-1, and among equal ones the
    lowest NLL; the best ensemble of all steps is returned. A member that is never added gets 0. Images whose most
    probable class is the same for every member cannot change top-1, and are read only once.

    Source: Caruana et al., Ensemble selection from libraries of models, ICML 2004.
    """
    fusions = [member.weights for member in members]
    true_probs = true_class_probs(fusions)  # [M, n]
    prob_sum, counts = np.zeros(true_probs.shape[1]), np.zeros(len(members), int)
    best, best_counts = (-1, -np.inf), counts
    with tempfile.TemporaryFile() as file:
        contested = _write_contested(fusions, file)
        for step in range(1, steps + 1):
            candidates = counts + np.eye(len(members), dtype=int)
            num_correct = sum((_num_correct(file, part, candidates) for part in contested), np.zeros(len(members), int))
            log_likelihood = np.log(np.maximum((prob_sum + true_probs) / step, 1e-30)).mean(1)
            member = int(np.lexsort((-log_likelihood, -num_correct))[0])
            prob_sum, counts = prob_sum + true_probs[member], candidates[member]
            if (reached := (int(num_correct[member]), float(log_likelihood[member]))) > best:
                best, best_counts = reached, counts
    return tuple(float(weight) for weight in best_counts / best_counts.sum())


@dataclass(frozen=True)
class _ContestedImages:
    """Images on which members differ, in a file of float32 [M, images, K]."""

    offset: int  # bytes
    labels: np.ndarray  # [images]
    num_classes: int


def _write_contested(fusions: Sequence[Weights], file: BinaryIO) -> list[_ContestedImages]:
    """Write the members' probabilities of the images on which their most probable classes differ."""
    store = next(iter(fusions[0])).store
    labels, readable, parts = label_indices(store), store.readable, []
    for images, probs in fused_probs(fusions):
        predicted = probs.argmax(2)
        differ = (predicted != predicted[0]).any(0) & readable[images]
        parts.append(_ContestedImages(file.tell(), labels[images][differ], probs.shape[2]))
        file.write(probs[:, differ].tobytes())
    return parts


def _num_correct(file: BinaryIO, part: _ContestedImages, mixtures: np.ndarray) -> np.ndarray:
    """int [Q]: how many of the images each mixture [Q, M] of members classifies correctly."""
    file.seek(part.offset)
    shape = mixtures.shape[1], len(part.labels) * part.num_classes
    probs = np.frombuffer(file.read(4 * shape[0] * shape[1]), np.float32).reshape(shape)
    mixed = (mixtures.astype(np.float32) @ probs).reshape(len(mixtures), len(part.labels), part.num_classes)
    num_correct: np.ndarray = (mixed.argmax(2) == part.labels).sum(1)
    return num_correct


def parse_views(text: str | None) -> tuple[str, ...]:
    """The names of views separated by commas; empty for None, which stands for all views."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def parse_weights(text: str, count: int) -> tuple[float, ...]:
    """Numbers separated by commas, one for each of `count` members, as weights that sum to 1.

    Raises:
        RunError: not `count` numbers, one is negative or not finite, or all are 0.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    total = sum(numbers)
    if len(numbers) != count or not all(number >= 0 for number in numbers) or not 0 < total < float("inf"):
        example = ",".join(["2", *["1"] * (count - 1)])
        raise RunError(
            f"--weights {text}: expected a finite number of at least 0 for each of the {count} members, not all 0, for "
            f"example {example}"
        )
    return tuple(number / total for number in numbers)


def read_entries(path: Path) -> tuple[EnsembleEntry, ...]:
    """The entries of an ensemble's ensemble.json.

    Raises:
        RunError: ensemble.json is not what fewsight wrote.
    """
    entries = files.read_json(path / ENSEMBLE, EnsembleFile, "`fewsight ensemble`").rows
    bad_name = any(entry.run in ("", "..") or Path(entry.run).name != entry.run for entry in entries)
    if not entries or bad_name or not all(0 < entry.weight <= 1 for entry in entries):
        raise RunError(
            f"{path / ENSEMBLE} is not what `fewsight ensemble` wrote: no rows, or invalid weights or names of runs"
        )
    return entries


def write_entries(path: Path, entries: Sequence[EnsembleEntry]) -> None:
    """Write ensemble.json."""
    files.write_json(path / ENSEMBLE, asdict(EnsembleFile(tuple(entries))))


def _equal_weights(results: Sequence[Result]) -> Weights:
    return {result: 1 / len(results) for result in results}


def _member_scores(path: Path, run: str, split: str) -> Path:
    """The folder of an ensemble's scores of one of its runs: beside ensemble.json, or in the run."""
    beside = path / run
    return beside if (beside / "store.json").exists() else _scores_folder(path / "runs" / run, split, path)


def _scores_folder(path: Path, split: str, ensemble: Path | None = None) -> Path:
    """The folder of a store: `path` itself, or `path/scores/<split>`.

    Args:
        path: a run, or a folder of scores.
        split: of a run.
        ensemble: that the run belongs to, for the message.

    Raises:
        RunError: there are no such scores.
    """
    if (path / "store.json").exists():
        return path
    folder = path / "scores" / split
    if (folder / "store.json").exists():
        return folder
    if available := ", ".join(sorted(_splits(path))):
        raise RunError(f"{path} has no scores of {split!r}; it has scores of {available} (--split)")
    if ensemble is None:
        _check_finished(path)
    raise RunError(f"{path} has no scores of {split!r}; make them with: fewsight evaluate {ensemble or path} DATA")


def _check_finished(path: Path) -> None:
    """Raise unless `path` is a finished run.

    Raises:
        RunError: says what it is instead.
    """
    if not path.is_dir():
        raise RunError(f"{path} does not exist; expected a run that was evaluated, an ensemble, or a folder of scores")
    if not (path / "run.json").is_file():
        raise RunError(
            f"{path} holds no run.json and no scores, so it is neither a run nor a folder of scores; expected a folder "
            "that `fewsight train` or `fewsight ensemble` wrote, or one that --scores named"
        )
    if files.read_json(path / "run.json", RunStatus, "`fewsight train`").status == "training":
        raise RunError(f"{path} has no scores yet: {files.why_unfinished(path)}, then evaluate it")
