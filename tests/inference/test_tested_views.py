"""The sizes and views of an ensemble: those that scores of val show not to harm."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewsight.inference.tested_views import harmless_views
from fewsight.runs import Run, read_run
from fewsight.scores.queries import better_part, fuse
from stores import CLASSES, log_softmax, write_run, write_store

LABELS = np.arange(200) % len(CLASSES)
VIEWS = ("center-32", "random-32", "center-48", "random-48")


def scores(seed: int, accuracy: float) -> np.ndarray:
    """float32 [200, 4]: log-probabilities that are right with a probability of `accuracy`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(200, 4))
    right = rng.random(200) < accuracy
    logits[np.arange(200), np.where(right, LABELS, (LABELS + 1) % 4)] += 6
    return log_softmax(logits)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Run:
    """A run that is tested at 32 and 48 px, without scores."""
    path = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    recipe = re.sub(r"test_px = \[[^]]*\]", "test_px = [32, 48]", (path / "recipe.toml").read_text())
    (path / "recipe.toml").write_text(recipe)
    return read_run(path)


@pytest.mark.parametrize(
    ("accuracies", "sizes", "views"),
    [
        ((0.9, 0.9, 0.92, 0.92), (32, 48), "paper"),
        ((0.9, 0.97, 0.4, 0.4), (32,), "paper"),  # a size that collapses
        ((0.9, 0.3, 0.3, 0.3), (32,), "center"),  # every other view does
    ],
)
def test_sizes_and_crops_that_harm_on_val_are_left_out(
    accuracies: tuple[float, ...], sizes: tuple[int, ...], views: str, run: Run
) -> None:
    by_view = {view: scores(number, accuracies[number]) for number, view in enumerate(VIEWS)}
    write_store(run.path / "scores" / "val", by_view, LABELS, weights_digest=str(run.info.weights_digest))
    found = harmless_views({run.path: run}, "val")
    assert (dict(found.sizes), found.views) == ({run.path: sizes}, views)
    assert found.reason is not None
    assert found.reason.count(" %") == 2, "both figures"


@pytest.mark.parametrize("kind", ["none", "one view", "trained on", "no labels"])
def test_without_scores_that_can_tell_the_first_size_is_used(kind: str, run: Run) -> None:
    by_view = {view: scores(number, 0.9) for number, view in enumerate(VIEWS[: 1 if kind == "one view" else 4])}
    if kind != "none":
        options: dict[str, Any] = {"trained_on": [0]} if kind == "trained on" else {}
        options["weights_digest"] = str(run.info.weights_digest)
        write_store(run.path / "scores" / "val", by_view, None if kind == "no labels" else LABELS, **options)
    found = harmless_views({run.path: run}, "val")
    assert (dict(found.sizes), found.views) == ({run.path: (32,)}, "center")
    assert found.reason is not None
    assert found.reason.startswith("the centre view at the first test size: ")


def test_part_that_is_better_alone_is_named_with_both_figures(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", {"center-32": scores(0, 0.9), "center-48": scores(1, 0.3)}, LABELS)
    bad = write_run(tmp_path / "bad", {"center-32": scores(2, 0.35)}, LABELS)
    sentence = better_part(fuse([good, bad]))
    assert sentence is not None
    assert sentence.startswith("good at 32 px alone has a higher accuracy (9")
    assert sentence.count(" %") == 2
    assert better_part(good) is not None
    assert better_part(good).startswith("32 px alone has")  # type: ignore[union-attr]
    assert better_part(bad) is None
    equal = write_run(tmp_path / "equal", {"center-32": scores(0, 0.9)}, LABELS)
    assert better_part(fuse([equal, write_run(tmp_path / "b", {"center-32": scores(0, 0.9)}, LABELS)])) is None
