"""The algebra of scores: results -> rows -> members -> fusion. Every question is a weighing of results.

A result is one view of one store. A row of the report's tables is a run at one test size: the mean over its crops. A
member is some rows, by default all of a run's. A fusion weighs rows: the report's is uniform over 28. Each is a set of
weights over results, so that one pass over the files answers many questions, in memory that does not grow with the
images.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fewsight.errors import RunError
from fewsight.machine import files
from fewsight.scores.store import Store, read_store
from fewsight.wording import counted

ENSEMBLE = "ensemble.json"  # what makes a run folder, or a folder of scores, one of an ensemble
NO_FLIP = "noflip"  # the ending of a view without its flipped twin
LARGEST_GAP = 0.02  # between 1 and a sum of probabilities; float16 comes within 0.005
CHUNK_BYTES = 48 * 2**20  # of probabilities that a pass holds at a time
STEPS = 25  # of the greedy choice


@dataclass(frozen=True)
class Result:
    """One view of one store."""

    store: Store
    view: str

    @property
    def crop(self) -> str:
        """`center` or `random`."""
        return self.view.split("-")[0]

    @property
    def px(self) -> int:
        """The side of the view."""
        return int(self.view.split("-")[1])

    @property
    def flips(self) -> bool:
        """Whether the flipped twin is averaged in."""
        return not self.view.endswith(f"-{NO_FLIP}")

    @property
    def unmirrored(self) -> "Result":
        """The same view without its flipped twin, which the store may lack."""
        return Result(self.store, f"{self.view}-{NO_FLIP}")


Weights = Mapping[Result, float]  # of a fusion; they sum to 1


@dataclass(frozen=True)
class SizedRun:
    """One row of the report's tables: a run at one test size, the mean over its crops."""

    run: str
    px: int
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Member:
    """Some rows under one name; the report's ResNeSt101 + CE has rows of two runs."""

    name: str
    sized_runs: tuple[SizedRun, ...]
    weights: Weights  # of its results among themselves


@dataclass(frozen=True)
class Scored:
    """The scores of a run or an ensemble on some images."""

    path: Path
    members: tuple[Member, ...]
    weights: Weights

    @property
    def sized_runs(self) -> tuple[SizedRun, ...]:
        """The rows of all members."""
        return tuple(row for member in self.members for row in member.sized_runs)

    @property
    def first_store(self) -> Store:
        """A store of these images."""
        return self.sized_runs[0].results[0].store

    @property
    def trained_on(self) -> np.ndarray:
        """bool [images]: which of them a member was trained on."""
        stores = {result.store for row in self.sized_runs for result in row.results}
        return np.any([[image.trained_on for image in store.images] for store in stores], axis=0)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class EnsembleEntry:
    """A row of an ensemble as ensemble.json has it."""

    member: str
    run: str  # a folder in the ensemble's runs/
    px: int
    weight: float


def default_split(paths: Sequence[Path]) -> str:
    """The split that is asked about where none is named: test, else val, else the only one that all have scores of.

    Raises:
        RunError: they have scores of several others, so that one has to be named.
    """
    there = [found for path in paths if (found := _splits(path))]
    if not there:
        return "test"  # folders of scores, or the message that says how to make them
    shared = set.intersection(*there)
    for name in ("test", "val"):
        if name in shared:
            return name
    if len(shared) > 1:
        raise RunError(f"{paths[0]} has scores of {', '.join(sorted(shared))}; choose with --split")
    return shared.pop() if shared else min(there[0], key=lambda name: (name != "test", name != "val", name))


def _splits(path: Path) -> set[str]:
    """The splits that a run, or an ensemble's runs, have scores of; none for a folder of scores, which has no split."""
    if (path / "store.json").is_file():
        return set()
    return {store.parent.name for pattern in ("", "runs/*/") for store in path.glob(f"{pattern}scores/*/store.json")}


def open_scored(path: Path, split: str, views: Sequence[str] = ()) -> Scored:
    """The kept scores of a run or an ensemble on a split; `path` may also be a folder of scores.

    Args:
        views: of each run, only these.

    Raises:
        RunError: there are none, they are not whole, or the members' are of other images or classes.
    """
    if (path / ENSEMBLE).is_file():
        entries = read_entries(path)
        folders = {entry.run: _member_scores(path, entry.run, split) for entry in entries}
        stores = {run: read_store(folder) for run, folder in folders.items()}
        return scored_ensemble(path, entries, stores, views)
    return scored_run(path, path.name, read_store(_scores_folder(path, split)), views)


def open_each(paths: Sequence[Path], split: str, views: Sequence[str] = ()) -> list[Scored]:
    """`open_scored` of several; each stands there once, so that none counts twice.

    Raises:
        RunError: one is named twice, or one whose scores cannot be read.
    """
    places = [path.resolve() for path in paths]
    again = next((path for number, path in enumerate(paths) if places[number] in places[:number]), None)
    if again is not None:
        raise RunError(f"{again} is named twice; name each run once")
    return [open_scored(path, split, views) for path in paths]


def scored_run(path: Path, name: str, store: Store, views: Sequence[str] = ()) -> Scored:
    """One run's scores: a row for each test size, all views weighed alike."""
    rows = sized_runs(name, store, views)
    if not rows:
        raise RunError(f"{store.path} has no view {', '.join(views)}; it has {', '.join(store.views)}")
    weights = _each_alike([result for row in rows for result in row.results])
    return Scored(path, (Member(name, rows, weights),), weights)


def sized_runs(name: str, store: Store, views: Sequence[str] = ()) -> tuple[SizedRun, ...]:
    """A row for each test size, smallest first; views without their flipped twin only where they are named."""
    results = [Result(store, view) for view in store.views if (view in views if views else not view.endswith(NO_FLIP))]
    sizes = sorted({result.px for result in results})
    return tuple(SizedRun(name, px, tuple(one for one in results if one.px == px)) for px in sizes)


def scored_ensemble(
    path: Path, entries: Sequence[EnsembleEntry], stores: Mapping[str, Store], views: Sequence[str] = ()
) -> Scored:
    """An ensemble's scores from the stores of its runs.

    Raises:
        RunError: the stores are of other images or classes, or lack a row.
    """
    members: dict[str, list[SizedRun]] = {}
    weighed = []
    for entry in entries:
        row = next((row for row in sized_runs(entry.run, stores[entry.run], views) if row.px == entry.px), None)
        if row is None and not views:
            has = ", ".join(stores[entry.run].views)
            raise RunError(
                f"{stores[entry.run].path} has no scores at {entry.px} px; it has {has}: evaluate {path} again"
            )
        if row is not None:
            members.setdefault(entry.member, []).append(row)
            weighed.append((row, entry.weight))
    if not weighed:
        raise RunError(f"{path}: no member has a view {', '.join(views)}")
    check_same_images(list(stores.values()))
    fused = _weighed(weighed)
    parts = [
        Member(name, tuple(rows), restrict(fused, [result for row in rows for result in row.results]))
        for name, rows in members.items()
    ]
    return Scored(path, tuple(parts), fused)


def make_member(name: str, rows: Sequence[tuple[SizedRun, float]]) -> Member:
    """Some rows, each with its share, as a member."""
    return Member(name, tuple(row for row, _ in rows), _weighed(rows))


def _weighed(rows: Sequence[tuple[SizedRun, float]]) -> Weights:
    """Rows by their weights, in each row each result alike."""
    total, weights = sum(weight for _, weight in rows), dict[Result, float]()
    for row, weight in rows:
        for result in row.results:
            weights[result] = weights.get(result, 0.0) + weight / total / len(row.results)
    return weights


def check_same_images(stores: Sequence[Store]) -> None:
    """Refuse to set scores of other images or classes side by side.

    Raises:
        RunError: names the two.
    """
    first, *others = stores
    known = [(image.digest, image.label, image.error is None) for image in first.images]
    for store in others:
        if store.about.classes != first.about.classes:
            lacking = sorted(set(first.about.classes) ^ set(store.about.classes))
            raise RunError(
                f"{store.path} and {first.path} have other classes, so they cannot be paired or fused; "
                f"only one of them has {', '.join(map(repr, lacking[:5]))}"
            )
        if known != [(image.digest, image.label, image.error is None) for image in store.images]:
            raise RunError(
                f"{store.path} and {first.path} hold scores of other images, so they cannot be paired or fused; "
                "evaluate both on the same split of the same data"
            )


def uniform(rows: Sequence[SizedRun]) -> Weights:
    """Each row alike, in it each result alike: what the report fuses."""
    return _weighed([(row, 1.0) for row in rows])


def fuse_members(members: Sequence[Member], weights: Sequence[float]) -> Weights:
    """The members by their weights; one of weight 0 is left out."""
    total, fused = sum(weights), dict[Result, float]()
    for member, weight in zip(members, weights, strict=True):
        for result, share in member.weights.items() if weight else ():
            fused[result] = fused.get(result, 0.0) + share * weight / total
    return fused


def restrict(weights: Weights, results: Sequence[Result]) -> Weights:
    """Of a fusion only these results, weighed among themselves as they were; empty where none is in it."""
    kept = {result: weights[result] for result in results if weights.get(result)}
    total = sum(kept.values())
    return {result: weight / total for result, weight in kept.items()}


def fused_probs(weighings: Sequence[Weights]) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, float32 [Q, rows, K]): the weighed means of probabilities, a part of the images at a time.

    NaN where an image could not be read.

    Raises:
        RunError: a row of scores is damaged: its probabilities do not sum to 1.
    """
    results = list(dict.fromkeys(result for weights in weighings for result in weights))
    store = results[0].store
    check_same_images(list(dict.fromkeys(result.store for result in results)))
    matrix = np.array([[weights.get(result, 0.0) for result in results] for weights in weighings], np.float32)
    count, width, readable = store.about.count, len(store.about.classes), store.readable
    size = max(1, CHUNK_BYTES // (4 * width * (len(results) + len(weighings))))
    for start in range(0, count, size):
        stop = min(start + size, count)
        probs = np.empty((len(results), (stop - start) * width), np.float32)
        for number, result in enumerate(results):
            with np.errstate(invalid="ignore", over="ignore"):  # of damaged rows, which are refused
                np.exp(result.store.results(result.view, start, stop).reshape(-1), out=probs[number])
            rows = probs[number].reshape(stop - start, width)
            _check_sums(result, start, rows, readable[start:stop])
            rows[~readable[start:stop]] = np.nan
        yield slice(start, stop), (matrix @ probs).reshape(len(weighings), stop - start, width)


def _check_sums(result: Result, start: int, probs: np.ndarray, readable: np.ndarray) -> None:
    """Refuse rows [n, K] whose probabilities do not sum to 1."""
    damaged = np.flatnonzero(readable & ~(np.abs(probs.sum(1) - 1) < LARGEST_GAP))
    if len(damaged):
        path = result.store.images[start + damaged[0]].path
        raise RunError(
            f"{result.store.path}: the scores of {path} in {result.view} are damaged (they sum to "
            f"{probs[damaged[0]].sum():g}); remove {result.store.path} and score again"
        )


def fused_log_probs(weights: Weights) -> np.ndarray:
    """float32 [images, K]: natural logarithm of one fusion, whole in memory."""
    with np.errstate(divide="ignore"):
        return np.concatenate([np.log(probs[0]) for _, probs in fused_probs([weights])])


def label_indices(store: Store) -> np.ndarray:
    """Each image's position in the classes: int [images].

    Raises:
        RunError: the store's images have no labels, or none could be read.
    """
    if any(image.label is None for image in store.images):
        raise RunError(f"{store.path}: its images have no labels, so there is no accuracy; evaluate on labelled ones")
    if not store.readable.any():
        raise RunError(f"{store.path}: none of its {counted(len(store.images), 'image')} could be read")
    index = {name: number for number, name in enumerate(store.about.classes)}
    try:
        return np.array([index[str(image.label)] for image in store.images])
    except KeyError as error:
        raise RunError(f"{store.path}: an image has the label {error}, which is none of its classes") from error


def correct_top1(weighings: Sequence[Weights]) -> np.ndarray:
    """Which images each fusion has right: bool [Q, readable images], in one pass over the files.

    Raises:
        RunError: no labels, or none could be read.
    """
    store = next(iter(weighings[0])).store
    labels = label_indices(store)
    found = [probs.argmax(2) == labels[rows] for rows, probs in fused_probs(weighings)]
    return np.concatenate(found, axis=1)[:, store.readable]


def true_class_probs(weighings: Sequence[Weights]) -> np.ndarray:
    """What each fusion gives the true class: float64 [Q, readable images].

    Raises:
        RunError: as `right`.
    """
    store = next(iter(weighings[0])).store
    labels = label_indices(store)
    found = [probs[:, np.arange(probs.shape[1]), labels[rows]] for rows, probs in fused_probs(weighings)]
    return np.concatenate(found, axis=1)[:, store.readable].astype(np.float64)


def check_not_trained_on(scored: Scored, what: str) -> None:
    """Refuse to choose anything on images that were trained on.

    Args:
        what: is chosen, for the message.

    Raises:
        RunError: some were.
    """
    number = int(scored.trained_on.sum())
    if number:
        raise RunError(
            f"{scored.path}: {number:,} of these {counted(len(scored.trained_on), 'image')} were trained on, so {what} "
            "cannot be chosen on them; choose on a split that was not trained on, or, for runs on train + val, choose "
            "with the same recipes trained on train alone and carry it over (--from)"
        )


def greedy_weights(members: Sequence[Member], steps: int = STEPS) -> tuple[float, ...]:
    """Weights of members chosen for top-1 on labelled images: added one at a time, with replacement.

    Starts from nothing; each step adds the member whose addition has most images right, of equal ones that which makes
    the labels most likely; the best of all steps is kept. A member that is never added gets 0. Images whose most
    probable class is the same for every member decide nothing, and are read once.

    Source: Caruana et al., Ensemble selection from libraries of models, ICML 2004.
    """
    weighings = [member.weights for member in members]
    true = true_class_probs(weighings)  # [M, n]
    total, counts = np.zeros(true.shape[1]), np.zeros(len(members), int)
    best, chosen = (-1, -np.inf), counts
    with tempfile.TemporaryFile() as file:
        contested = _contested(weighings, file)
        for step in range(1, steps + 1):
            tried = counts + np.eye(len(members), dtype=int)
            hits = sum((_hits(file, part, tried) for part in contested), np.zeros(len(members), int))
            likely = np.log(np.maximum((total + true) / step, 1e-30)).mean(1)
            member = int(np.lexsort((-likely, -hits))[0])
            total, counts = total + true[member], tried[member]
            if (reached := (int(hits[member]), float(likely[member]))) > best:
                best, chosen = reached, counts
    return tuple(float(one) for one in chosen / chosen.sum())


@dataclass(frozen=True)
class _Part:
    """Some images on which members differ, in a file of float32 [M, images, K]."""

    offset: int  # bytes
    labels: np.ndarray  # [images]
    width: int  # K


def _contested(weighings: Sequence[Weights], file: BinaryIO) -> list[_Part]:
    """Write the members' probabilities of the images on which their most probable classes differ."""
    store = next(iter(weighings[0])).store
    labels, readable, parts = label_indices(store), store.readable, []
    for rows, probs in fused_probs(weighings):
        taken = probs.argmax(2)
        differ = (taken != taken[0]).any(0) & readable[rows]
        parts.append(_Part(file.tell(), labels[rows][differ], probs.shape[2]))
        file.write(probs[:, differ].tobytes())
    return parts


def _hits(file: BinaryIO, part: _Part, mixes: np.ndarray) -> np.ndarray:
    """How many of a part's images each mixture [Q, M] of members has right: int [Q]."""
    file.seek(part.offset)
    shape = mixes.shape[1], len(part.labels) * part.width
    probs = np.frombuffer(file.read(4 * shape[0] * shape[1]), np.float32).reshape(shape)
    mixed = (mixes.astype(np.float32) @ probs).reshape(len(mixes), len(part.labels), part.width)
    hits: np.ndarray = (mixed.argmax(2) == part.labels).sum(1)
    return hits


def parse_views(text: str | None) -> tuple[str, ...]:
    """Names of views with commas between; none: all."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def read_weights(text: str, count: int) -> tuple[float, ...]:
    """A number for each of `count` members, with commas between, as weights that sum to 1.

    Raises:
        RunError: other than that.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count or not all(one >= 0 for one in found) or not 0 < sum(found) < float("inf"):
        example = ",".join(["2", *["1"] * (count - 1)])
        raise RunError(
            f"--weights {text}: expected a finite number of at least 0 for each of the {count} members, not all 0, for "
            f"example {example}"
        )
    return tuple(one / sum(found) for one in found)


def read_entries(path: Path) -> tuple[EnsembleEntry, ...]:
    """The rows of an ensemble.

    Raises:
        RunError: ensemble.json is not what fewsight wrote.
    """
    values = files.read_json(path / ENSEMBLE)
    try:
        entries = tuple(
            EnsembleEntry(str(one["member"]), str(one["run"]), int(one["px"]), float(one["weight"]))
            for one in values["rows"]
        )
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise RunError(f"{path / ENSEMBLE} is not what `fewsight ensemble` wrote: {error!r}") from error
    strange = any(entry.run in ("", "..") or Path(entry.run).name != entry.run for entry in entries)
    if not entries or strange or not all(0 < entry.weight <= 1 for entry in entries):
        raise RunError(f"{path / ENSEMBLE} is not what `fewsight ensemble` wrote: no rows, or strange weights or names")
    return entries


def write_entries(path: Path, entries: Sequence[EnsembleEntry]) -> None:
    """Write ensemble.json."""
    rows = [{"member": one.member, "run": one.run, "px": one.px, "weight": one.weight} for one in entries]
    files.write_json(path / ENSEMBLE, {"rows": rows})


def _each_alike(results: Sequence[Result]) -> Weights:
    return {result: 1 / len(results) for result in results}


def _member_scores(path: Path, run: str, split: str) -> Path:
    """Where an ensemble's scores of one of its runs lie: beside ensemble.json, or in the run."""
    beside = path / run
    return beside if (beside / "store.json").exists() else _scores_folder(path / "runs" / run, split, path)


def _scores_folder(path: Path, split: str, asked: Path | None = None) -> Path:
    """The folder of a store: `path` itself, or `path/scores/<split>`.

    Raises:
        RunError: there is none.
    """
    if (path / "store.json").exists():
        return path
    folder = path / "scores" / split
    if (folder / "store.json").exists():
        return folder
    if there := ", ".join(sorted(_splits(path))):
        raise RunError(f"{path} has no scores of {split!r}; it has scores of {there} (--split)")
    if asked is None:
        _check_could_have_scores(path)
    raise RunError(f"{path} has no scores of {split!r}; make them with: fewsight evaluate {asked or path} DATA")


def _check_could_have_scores(path: Path) -> None:
    """Refuse what is no run, and a run that is not finished.

    Raises:
        RunError: says which.
    """
    if not path.is_dir():
        raise RunError(f"{path} is not there; expected a run that was evaluated, an ensemble, or a folder of scores")
    if not (path / "run.json").is_file():
        raise RunError(
            f"{path} holds no run.json and no scores, so it is neither a run nor a folder of scores; expected a folder "
            "that `fewsight train` or `fewsight ensemble` wrote, or one that --scores named"
        )
    info = files.read_json(path / "run.json")
    if isinstance(info, dict) and info.get("status") == "training":
        raise RunError(f"{path} has no scores yet: {files.why_unfinished(path)}, then evaluate it")
