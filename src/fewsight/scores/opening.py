"""Open the stored scores of runs and ensembles on a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewsight.augment.views import NO_FLIP
from fewsight.errors import RunError
from fewsight.machine import files, locks
from fewsight.scores.entries import is_ensemble, read_entries, read_views
from fewsight.scores.members import Scored, scored_ensemble, scored_run
from fewsight.scores.store import Store, read_store
from fewsight.wording import shell_command


@dataclass(frozen=True)
class RunStatus:
    """The part of a run's run.json that is read here, without the package runs and its torch."""

    status: str = ""
    weights_digest: str | None = None


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


def open_scored(path: Path, split: str, views: Sequence[str] = ()) -> Scored:
    """The stored scores of a run or an ensemble on a split; `path` may also be a folder of scores.

    Args:
        path: a run, an ensemble, or a folder of scores of either.
        split: ignored for a folder of scores.
        views: of each run, only these.

    Raises:
        RunError: there are none, they are incomplete, or the members' are of different images or classes.
    """
    if is_ensemble(path):
        cuts = [view.removesuffix(NO_FLIP) for view in views]  # a run that has none of them need not have scores
        entries = [
            entry for entry in read_entries(path) if not cuts or any(cut.endswith(f"-{entry.px}") for cut in cuts)
        ]
        folders = {entry.run: _member_scores(path, entry.run, split) for entry in entries}
        stores = {run: _store(folder, path / "runs" / run) for run, folder in folders.items()}
        return scored_ensemble(path, entries, stores, views, center_only=read_views(path) == "center" and not views)
    return scored_run(path, path.name, _store(_scores_folder(path, split), path), views)


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


def parse_views(text: str | None) -> tuple[str, ...]:
    """The names of views separated by commas; empty for None, which stands for all views."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _splits(path: Path) -> set[str]:
    """The splits that a run or an ensemble's runs have scores of; a folder of scores has no split."""
    if (path / "store.json").is_file():
        return set()
    return {store.parent.name for pattern in ("", "runs/*/") for store in path.glob(f"{pattern}scores/*/store.json")}


def _member_scores(path: Path, run: str, split: str) -> Path:
    """The folder of an ensemble's scores of one of its runs: beside ensemble.json, or in the run."""
    beside = path / run
    return beside if (beside / "store.json").exists() else _scores_folder(path / "runs" / run, split, path)


def _store(folder: Path, run: Path) -> Store:
    """The scores in a folder, which must be of the final weights of the run; of a run that is not there, as they are.

    Raises:
        RunError: the run is unfinished, or has other weights; or as `read_store`.
    """
    store = read_store(folder)
    if (run / "run.json").is_file():
        status = _check_finished(run)
        if status.weights_digest != store.about.weights_digest:
            raise RunError(f"{folder} holds scores of other weights than {run} has; remove it and evaluate again")
    return store


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
    command = shell_command(["fewsight", "evaluate", str(ensemble or path), "DATA"])
    raise RunError(f"{path} has no scores of {split!r}; make them with: {command}")


def _check_finished(path: Path) -> RunStatus:
    """The status of a run, which must be finished.

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
    status = files.read_json(path / "run.json", RunStatus, "`fewsight train`")
    if status.status == "training":
        raise RunError(f"{path} has no scores yet: {locks.why_unfinished(path)}, then evaluate it")
    return status
