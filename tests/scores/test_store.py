"""The score store: written in batches, continued after an interruption, never mixed, read back bit for bit."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from fewsight.data import digest_of_list
from fewsight.errors import RunError
from fewsight.scores import store as score_store
from fewsight.scores.store import ScoredImage, StoreInfo

VIEWS = ("center-8", "random-8")
IMAGES = [(f"{number}.png", 100 + number, "ant") for number in range(7)]
ABOUT = StoreInfo(("ant", "bee", "cat"), 7, digest_of_list(IMAGES), "w1", 0, 0.875, True, "float32")


def image(number: int, digest: str | None = None) -> ScoredImage:
    return ScoredImage(*IMAGES[number], "broken" if number == 2 else None, digest or f"{number:016x}", number == 0)


def log_probs(num_views: int, first: int, count: int) -> np.ndarray:
    """float32 [V, count, 3], a function of the index."""
    generators = [
        np.random.default_rng([view, number]) for view in range(num_views) for number in range(first, first + count)
    ]
    logits = np.array([rng.normal(size=3) for rng in generators]).reshape(num_views, count, 3)
    scores = (logits - np.log(np.exp(logits).sum(2, keepdims=True))).astype(np.float32)
    scores[:, [number == 2 for number in range(first, first + count)]] = np.nan
    return scores


def write(path: Path, views: tuple[str, ...] = VIEWS, upto: int = 7, step: int = 3) -> score_store.StoreWriter:
    store = score_store.begin(path, ABOUT, views)
    for first in range(store.done, upto, step):
        count = min(step, upto - first)
        rows = [VIEWS.index(view) for view in store.views]
        score_store.append(
            store, first, log_probs(2, first, count)[rows], [image(first + offset) for offset in range(count)]
        )
    return store


def test_store_is_read_back_as_written(tmp_path: Path) -> None:
    store = score_store.finish(write(tmp_path / "s"))
    again = score_store.read_store(tmp_path / "s")
    assert (store.path, store.about, store.views, store.images) == (again.path, again.about, again.views, again.images)
    assert (store.about, store.views, store.images) == (ABOUT, VIEWS, tuple(image(number) for number in range(7)))
    for number, view in enumerate(VIEWS):
        assert np.array_equal(store.results(view), log_probs(2, 0, 7)[number], equal_nan=True)
        assert np.array_equal(store.results(view, 3, 5), log_probs(2, 3, 2)[number])


@pytest.mark.parametrize("upto", [0, 1, 3, 6])
@pytest.mark.parametrize("harm", ["none", "half a row", "a row ahead", "half a line"])
def test_interrupted_store_is_continued(tmp_path: Path, upto: int, harm: str) -> None:
    write(tmp_path / "s", upto=upto, step=2)
    with pytest.raises(RunError, match=rf"{upto} of 7 images are scored; repeat the command that wrote it"):
        score_store.read_store(tmp_path / "s")
    if harm == "half a row":
        with (tmp_path / "s" / "center-8.f32").open("ab") as handle:
            handle.write(b"12345")
    elif harm == "a row ahead":
        with (tmp_path / "s" / "random-8.f32").open("ab") as handle:
            handle.write(b"123456789012")
    elif harm == "half a line":
        with (tmp_path / "s" / "images.jsonl").open("ab") as handle:
            handle.write(b'{"path": "3')
    store = write(tmp_path / "s")
    assert store.done == upto
    expected = score_store.finish(write(tmp_path / "whole"))
    assert score_store.finish(store).images == expected.images
    for name in ("images.jsonl", *(f"{view}.f32" for view in VIEWS)):
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_view_is_added(tmp_path: Path) -> None:
    score_store.finish(write(tmp_path / "s", VIEWS[:1]))
    before = (tmp_path / "s" / "images.jsonl").read_bytes()
    store = write(tmp_path / "s")
    assert (store.views, store.done) == (VIEWS[1:], 0)
    assert score_store.finish(store).views == VIEWS
    assert (tmp_path / "s" / "images.jsonl").read_bytes() == before
    again = score_store.begin(tmp_path / "s", ABOUT, VIEWS)
    assert (again.views, again.done) == ((), 7), "there is nothing left to do"


def test_file_that_changed_between_views_is_refused(tmp_path: Path) -> None:
    score_store.finish(write(tmp_path / "s", VIEWS[:1]))
    store = score_store.begin(tmp_path / "s", ABOUT, VIEWS)
    with pytest.raises(RunError, match=r"1\.png has changed since .* was written; score into a new folder"):
        score_store.append(store, 0, log_probs(2, 0, 2)[1:], [image(0), image(1, "ff")])


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0].replace('"ant"', '"bee"'), *lines[1:]],
        lambda lines: [lines[0].replace('"ant"', "null"), *lines[1:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [lines[0].replace("0.png", "9.png"), *lines[1:]],
        lambda lines: [lines[0].replace("100", "101"), *lines[1:]],
    ],
    ids=["label", "no label", "order", "path", "size"],
)
def test_changed_images_are_refused(tmp_path: Path, change: Callable[[list[str]], list[str]]) -> None:
    """A store whose labels are not those that it was scored with is refused."""
    score_store.finish(write(tmp_path / "s"))
    file = tmp_path / "s" / "images.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    changed = change(lines)
    assert changed != lines
    file.write_text("".join(changed))
    with pytest.raises(RunError, match=r"images\.jsonl is not what was written: its paths, labels, sizes or their"):
        score_store.read_store(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"images_digest": "d2"}, "other images"),
        ({"weights_digest": "w2"}, "other weights"),
        ({"classes": ("ant", "bee", "dog")}, "other classes"),
        ({"view_seed": 1}, "other view_seed"),
    ],
)
def test_other_scores_are_refused_and_unchanged(tmp_path: Path, change: dict[str, object], what: str) -> None:
    score_store.finish(write(tmp_path / "s"))
    before = {file.name: file.read_bytes() for file in (tmp_path / "s").iterdir()}
    with pytest.raises(RunError, match=rf"holds scores of {what}; give --scores another folder"):
        score_store.begin(tmp_path / "s", replace(ABOUT, **change), VIEWS)  # type: ignore[arg-type]
    assert {file.name: file.read_bytes() for file in (tmp_path / "s").iterdir()} == before


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"format": 9}, "reads up to 1; upgrade fewsight"),
        ({"format": 1, "classes": []}, "is not what fewsight wrote"),
        ({"format": 1, **asdict(ABOUT), "dtype": "float16"}, "has scores in float16, which fewsight no longer reads"),
        ({"format": 1, **asdict(ABOUT), "dtype": "float64"}, "is not what fewsight wrote"),
    ],
)
def test_invalid_store_is_refused(tmp_path: Path, values: dict[str, object], expected: str) -> None:
    (tmp_path / "store.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match=expected):
        score_store.read_store(tmp_path)


def test_damaged_line_is_refused(tmp_path: Path) -> None:
    score_store.finish(write(tmp_path / "s"))
    lines = (tmp_path / "s" / "images.jsonl").read_text().splitlines()
    (tmp_path / "s" / "images.jsonl").write_text("\n".join([*lines[:3], "{", *lines[4:]]) + "\n")
    for access in (
        lambda: score_store.read_store(tmp_path / "s"),
        lambda: score_store.begin(tmp_path / "s", ABOUT, VIEWS),
    ):
        with pytest.raises(RunError, match=r"images\.jsonl is damaged.*score again"):
            access()


@pytest.mark.parametrize("size", [0, 20, 50, 100])
def test_view_of_the_wrong_size_is_refused_by_name(size: int, tmp_path: Path) -> None:
    score_store.finish(write(tmp_path))
    (tmp_path / "random-8.f32").write_bytes(bytes(size))
    with pytest.raises(
        RunError, match=rf"random-8\.f32 is incomplete: {size} of 84 bytes; to continue it, repeat the command"
    ):
        score_store.read_store(tmp_path)
    assert score_store.finish(write(tmp_path, ("center-8",))).views == ("center-8",), "other views can be written"
    score_store.finish(write(tmp_path))
    assert score_store.read_store(tmp_path).views == VIEWS, "the same command repairs it"


@pytest.mark.parametrize("name", ["evil", "foo-8", "center-8-copy"])
def test_file_not_named_after_a_view_is_refused(name: str, tmp_path: Path) -> None:
    score_store.finish(write(tmp_path))
    (tmp_path / f"{name}.f32").write_bytes((tmp_path / "center-8.f32").read_bytes())
    with pytest.raises(RunError, match=rf"{name}\.f32 is not named after a view, such as"):
        score_store.read_store(tmp_path)
