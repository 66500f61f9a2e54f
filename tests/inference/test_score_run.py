"""The model's inputs: all sixteen views of real photographs, for any batch size, number of workers and model."""

import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional

from fewsight.augment import View, random_box
from fewsight.augment.normalise import Normalise
from fewsight.data import ImageError, decode, load_image
from fewsight.errors import RunError
from fewsight.inference import score_run
from fewsight.inference.evaluate import evaluate
from fewsight.inference.score_run import LabelledFile, ScoringResult, load_model, score_into
from fewsight.recipes import Recipe, load_recipe
from fewsight.runs import Run, read_run
from fewsight.scores.scoring import Scorer, score_images, views_of
from fewsight.scores.store import read_store
from fewsight.terminal import make_console

SIZES = (224, 320, 380, 448)


class RecordingModel(nn.Module):
    """A model that records its inputs, as pixels; the scores of an image do not depend on the other images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.inputs = classes, list[np.ndarray]()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.inputs += list((images * 255).round().byte().permute(0, 2, 3, 1).numpy())
        means = images.mean((2, 3))
        return means.repeat(1, self.classes)[:, : self.classes], means


def recipe(workers: int) -> Recipe:
    names = ["run.device=cpu", "run.precision=float32", "run.threads=1", f"run.workers={workers}"]
    return load_recipe("resnest101_ce", names)


def model_inputs(
    paths: list[Path], *, batch_size: int = 64, workers: int = 1, classes: int = 3
) -> dict[tuple[int, str], list]:
    """(image, view) -> [the view, its mirrored view], as uint8 [px, px, 3]."""
    model, views = RecordingModel(classes), views_of(recipe(workers), "report")
    inputs = {}
    for scores in score_images(
        Scorer(model, Normalise((0, 0, 0), (1, 1, 1)), recipe(workers)), paths, views=views, batch_size=batch_size
    ):
        pixels, count = iter(model.inputs), len(scores.errors)
        model.inputs = []
        for view in views:  # chunks of 64 images at 224 px, fewer at larger sizes
            size = max(1, 64 * 224**2 // view.px**2)
            for first in range(0, count, size):
                group = range(first, min(first + size, count))
                for mirrored in (0, 1):
                    for number in group:
                        inputs.setdefault((scores.start + number, view.name), [None, None])[mirrored] = next(pixels)
    return inputs


def plain(path: Path, view: str, digest: str) -> np.ndarray:
    """The same view by torchvision's functions on a PIL image, step by step as the paper describes it."""
    image, (crop, px) = load_image(path), (view.split("-")[0], int(view.split("-")[1]))
    if crop == "center":
        return np.asarray(
            functional.center_crop(functional.resize(image, {224: 256, 320: 366, 380: 434, 448: 512}[px]), [px, px])
        )
    box = random_box(image.width, image.height, digest, SIZES.index(px), 0)
    return np.asarray(image.resize((px, px), Image.Resampling.BILINEAR, box=box))


@pytest.fixture
def photographs(fewsight_data: Path) -> list[Path]:
    return sorted((fewsight_data / "imagenet-256").glob("*.JPEG"))[::40]


def test_sixteen_views_are_those_of_pil_and_torchvision(photographs: list[Path]) -> None:
    inputs = model_inputs(photographs)
    (first,) = score_images(Scorer(RecordingModel(3), Normalise((0, 0, 0), (1, 1, 1)), recipe(1)), photographs)
    digests = first.digests
    assert len(inputs) == 8 * len(photographs)
    for (number, view), (image, mirrored) in inputs.items():
        expected = plain(photographs[number], view, digests[number])
        difference = abs(image.astype(int) - expected)
        # our centre view is resampled once, the plain one is rounded twice
        assert difference.max() <= (2 if view.startswith("center") else 0)
        assert (difference > 1).mean() < 1e-4
        assert difference.mean() < 0.25, "a view that is shifted by one pixel differs by several levels"
        assert np.array_equal(mirrored, image[:, ::-1])


def test_views_do_not_depend_on_batch_workers_or_model(photographs: list[Path]) -> None:
    expected = model_inputs(photographs)
    for other in (model_inputs(photographs, batch_size=2, workers=3), model_inputs(photographs, classes=7)):
        assert other.keys() == expected.keys()
        for key, pair in expected.items():
            assert all(np.array_equal(ours, theirs) for ours, theirs in zip(pair, other[key], strict=True))


def test_view_without_flip_is_the_unmirrored_output(photographs: list[Path]) -> None:
    model, normalise, views = (
        RecordingModel(3),
        Normalise((0, 0, 0), (1, 1, 1)),
        views_of(recipe(1), "center-224,center-224-noflip"),
    )
    half = nn.Module()
    half.forward = lambda images: (images[..., :112].mean((2, 3)) * 9, images.mean((2, 3)))  # type: ignore[method-assign]
    (both,) = score_images(Scorer(half, normalise, recipe(1)), photographs, views=views)
    (alone,) = score_images(Scorer(half, normalise, recipe(1)), photographs, views=views[1:])
    assert np.array_equal(both.results[1], alone.results[0])
    assert not np.allclose(both.results[0], both.results[1], atol=1e-3)
    list(score_images(Scorer(model, normalise, recipe(1)), photographs[:1], views=views))
    assert len(model.inputs) == 2, "one forward pass for the cut, and one for its mirror image"


def test_recipe_that_claims_a_larger_model_is_refused_before_memory_is_spent(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(recipe.replace("width = 0.125", "width = 16.0"))
    monkeypatch.setattr(score_run, "build_model", lambda *_args, **_values: pytest.fail("memory was allocated"))
    with pytest.raises(RunError, match="do not fit the model"):
        load_model(read_run(run), torch.device("cpu"))


@pytest.mark.parametrize("name", ["images.jsonl", "center-32.f32"])
def test_store_that_links_to_a_device_is_refused(name: str, tiny_run: Path, digit_images: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    evaluate(run, digit_images, console=make_console(io.StringIO()))
    file = run / "scores" / "test" / name
    store = read_store(file.parent)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(RunError, match=r"is not a file|is incomplete"):
        read_store(file.parent)
    if name.endswith(".f32"):
        with pytest.raises(RunError, match="is not a file"):
            store.results("center-32")


@pytest.mark.parametrize("kind", ["pipe", "device", "huge"])
def test_input_that_never_ends_is_an_error(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.jpg"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        monkeypatch.setattr(decode, "MAX_BYTES", 5)
        file.write_bytes(b"123456")
    with pytest.raises(ImageError, match=r"a device or a pipe|too large: 6 bytes"):
        load_image(file)


def scored_into(folder: Path, run: Run, images: Sequence[LabelledFile], views: Sequence[View]) -> ScoringResult:
    scoring = score_into(folder, run, images, views)
    while True:
        try:
            next(scoring)
        except StopIteration as end:
            stored: ScoringResult = end.value
            return stored


def test_image_that_could_not_be_read_is_scored_when_it_can(
    tiny_run: Path, digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network drive that was unavailable for a moment."""
    run, files = read_run(tiny_run), sorted(digit_images.glob("test/*/*.png"))
    images = [LabelledFile(file, file.name) for file in files]
    views = views_of(run.recipe)
    whole = scored_into(tmp_path / "whole", run, images, views).store
    unavailable = files[4]

    def read(path: Path) -> bytes:
        if path == unavailable:
            raise ImageError(str(path), "cannot be read (Input/output error)")
        return path.read_bytes()

    with monkeypatch.context() as patch:
        for module in ("fewsight.scores.scoring", "fewsight.scores.store"):
            patch.setattr(f"{module}.read_bytes", read)
        store = scored_into(tmp_path / "scores", run, images, views).store
        assert [image.error is not None for image in store.images] == [file == unavailable for file in files]
        written = (tmp_path / "scores" / "images.jsonl").stat().st_mtime_ns
        assert scored_into(tmp_path / "scores", run, images, views).written == 0, "it still cannot be read"
        assert (tmp_path / "scores" / "images.jsonl").stat().st_mtime_ns == written
    store = scored_into(tmp_path / "scores", run, images, views).store
    assert store.images == whole.images
    assert np.array_equal(store.results(views[0].name), whole.results(views[0].name))
