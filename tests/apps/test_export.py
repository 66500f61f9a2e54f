"""The exported model gives the probabilities of `predict` without fewsight; a model that does not is not written."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from benchmarks.export import untrained_run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

import fewsight
from conftest import TINY, Command
from fewsight.apps import export
from fewsight.apps.export import images as export_images
from fewsight.apps.export import parity
from fewsight.apps.export.crops import CenterBox, resample
from fewsight.apps.export.graph import CroppingGraph, Graph, build_graph, cuts_and_sides
from fewsight.apps.export.images import CompareOn, ImageSet, given_images, images_of_run, inputs_of
from fewsight.apps.export.int8 import measure_loss, paired_interval
from fewsight.apps.export.onnx_model import describe, open_session, run
from fewsight.apps.export.write import export_run
from fewsight.augment import center_view, random_box
from fewsight.data import digest_of_list
from fewsight.errors import DataError, FewsightError, RunError
from fewsight.inference.ensemble import combine
from fewsight.inference.opening import open_runs
from fewsight.inference.prediction_files import expand_inputs
from fewsight.machine import files
from fewsight.runs import read_run, read_weights, save_weights
from fewsight.scores.calibration import Calibration, Threshold, write_calibrations
from fewsight.scores.log_probs import NOT_FINITE

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "export.md"
NAMES = ["a\nb", 'quo"te', "<b>x</b>", "=cmd", "\u202egnp", "n" * 300, "ämne", "\udcff", "日本"]


def guide_block(start: str) -> str:
    """The first Python block of the guide that contains `start`."""
    blocks = GUIDE.read_text(encoding="utf-8").split("```python\n")[1:]
    return next(text for block in blocks if start in (text := block.partition("```")[0]))


def metadata(path: Path) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}


# --- the crops ----------------------------------------------------------------------------------------------


def resampled(pixels: np.ndarray, box: tuple[float, ...], px: int) -> list[np.ndarray]:
    """uint8 [px, px, 3] by the graph, resized columns first and rows first, rounded in between."""
    tensor = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2).double()
    columns_first = resample(tensor, torch.tensor([box]), px)
    rows_first = resample(tensor.mT, torch.tensor([[box[1], box[0], box[3], box[2]]]), px).mT
    return [result[0].permute(1, 2, 0).numpy().astype(np.uint8) for result in (columns_first, rows_first)]


def center_box(pixels: np.ndarray, px: int, ratio: float) -> tuple[float, ...]:
    tensor = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    return tuple(CenterBox(px, ratio)(tensor)[0].tolist())


@given(st.integers(1, 70), st.integers(1, 70), st.integers(8, 40), st.floats(0.5, 1.0), st.integers(0, 2**32 - 1))
def test_crops_are_pillows_pixels(width: int, height: int, px: int, ratio: float, seed: int) -> None:
    """Pillow 13 resizes some tall images rows first."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    box = random_box(width, height, f"{seed:x}", 0, 0)
    random = np.array(Image.fromarray(pixels).resize((px, px), Image.Resampling.BILINEAR, box=box))
    center = center_view(Image.fromarray(pixels), px, ratio=ratio)
    for expected, expected_box in ((random, box), (center, center_box(pixels, px, ratio))):
        columns_first, rows_first = resampled(pixels, expected_box, px)
        if not np.array_equal(columns_first, expected):
            assert height > width
            assert np.array_equal(rows_first, expected)
            assert np.abs(columns_first.astype(int) - expected).max() <= 1


def test_crops_of_photographs_are_pillows_pixels(fewsight_data: Path) -> None:
    for path in sorted((fewsight_data / "imagenet-256").glob("*.JPEG"))[::40]:
        pixels = np.array(Image.open(path).convert("RGB"))
        columns_first, rows_first = resampled(pixels, center_box(pixels, 224, 0.875), 224)
        expected = center_view(Image.fromarray(pixels), 224)
        assert np.array_equal(columns_first, expected) or np.array_equal(rows_first, expected), path


# --- the graph, before it is ONNX ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_run(digit_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `digit_images` with another seed, test sizes, ratio of the crop and view seed."""
    values = [*TINY, "run.seed=1", "stages.0.epochs=1", "eval.test_px=[24,32]", "eval.crop_ratio=0.8"]
    fewsight.train(digit_images, out := tmp_path_factory.mktemp("runs") / "other", recipe="digits",
                   overrides=[*values, "eval.view_seed=3"])  # fmt: skip
    return out


@pytest.fixture
def both(tiny_run: Path, other_run: Path, tmp_path: Path) -> Path:
    """An ensemble of two unlike runs, with unlike weights and a temperature."""
    combine([("a", [(tiny_run, ())]), ("b", [(other_run, ())])], tmp_path / "both", weights="1,3", views="paper")
    views = open_runs(tmp_path / "both", None).view_names
    threshold = Threshold(0.4, 0.9, 9, 8)
    write_calibrations(
        tmp_path / "both", [Calibration(0.6, tuple(sorted(views)), "val", 10, (1.0, 1.0), (0.0, 0.0), threshold)]
    )
    return tmp_path / "both"


def eager(path: Path, views: str | None, image_files: list[Path], *, crop: bool) -> np.ndarray:
    """The probabilities of the module, before it is traced."""
    selection = open_runs(path, views)
    cuts, sides = cuts_and_sides(selection)
    graph = build_graph(selection, cuts, sides, 0.6 if selection.entries else 1.0)
    module = CroppingGraph(graph, list(cuts.values())) if crop else graph
    batches = inputs_of(image_files, cuts, crop=crop, batch_size=4)
    with torch.inference_mode():
        return np.concatenate([module(*map(torch.from_numpy, batch.values())).numpy() for batch in batches])


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("views", ["center", "report", "center-32,center-32-noflip,random-32"])
def test_graph_of_a_run_is_predict(tiny_run: Path, digit_images: Path, views: str, crop: bool) -> None:
    image_files = sorted((digit_images / "test").glob("*/*.png"))[:6]
    expected = fewsight.load(tiny_run, views).predict(image_files).probs
    assert np.abs(eager(tiny_run, views, image_files, crop=crop) - expected).max() < 1e-6


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("views", [None, "center"])
def test_graph_of_an_ensemble_is_predict(both: Path, digit_images: Path, views: str | None, crop: bool) -> None:
    image_files = sorted((digit_images / "test").glob("*/*.png"))[:6]
    if views == "center":
        shutil.copy(both / "calibration.json", both / "stored.json")
        names = tuple(sorted(open_runs(both, views).view_names))
        write_calibrations(both, [Calibration(0.6, names, "val", 10, (1.0, 1.0), (0.0, 0.0))])
    expected = fewsight.load(both, views).predict(image_files).probs
    assert np.abs(eager(both, views, image_files, crop=crop) - expected).max() < 1e-6


def test_inputs_of_unlike_cuts_have_names_of_their_own(both: Path) -> None:
    cuts, sides = cuts_and_sides(open_runs(both, None))
    assert list(cuts) == [
        "center_32", "random_32", "center_24", "random_24", "center_32_2", "random_32_2",
    ]  # fmt: skip
    assert (cuts["center_32"].ratio, cuts["center_32_2"].ratio) == (1.0, 0.8)
    assert (cuts["random_32"].view_seed, cuts["random_32_2"].view_seed) == (0, 3)
    assert (cuts["random_32"].scale, cuts["random_32_2"].scale) == (0, 1)
    total = sum(side.weight for run_sides in sides.values() for side in run_sides)
    assert total == pytest.approx(1)


# --- the file -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cropping(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_run` exported with its crops."""
    out = tmp_path_factory.mktemp("exported") / "photos.onnx"
    exported = export_run(tiny_run, out, crop=True, int8=False)
    assert exported.parity.num_images == exported.parity.num_same_top1 == 12
    assert exported.parity.largest < 1e-5
    return out


def test_file_takes_any_batch_of_any_shape(cropping: Path, tiny_run: Path) -> None:
    session = onnxruntime.InferenceSession(cropping, providers=["CPUExecutionProvider"])
    model = fewsight.load(tiny_run)
    for shape in [(1, 8, 8, 3), (3, 31, 7, 3), (2, 1, 1, 3), (5, 40, 64, 3)]:
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        (probs,) = session.run(None, {"images": images})
        assert np.abs(probs - model.predict(list(images)).probs).max() < 1e-5
        assert probs.dtype == np.float32


def test_metadata_says_what_the_model_is(cropping: Path, tiny_run: Path) -> None:
    about, stored = metadata(cropping), read_run(tiny_run)
    assert tuple(about["classes"]) == stored.classes
    assert about["temperature"] is None
    assert (about["views"], about["inputs"], about["boxes"]) == (["center-32"], {}, [])
    (facts,) = about["runs"]
    assert facts["weights_digest"] == stored.info.weights_digest
    assert (tuple(facts["mean"]), tuple(facts["std"])) == (stored.data.mean, stored.data.std)
    assert (facts["seed"], facts["data_digest"]) == (0, stored.data.digest)
    assert about["parity"]["num_images"] == 12
    assert about["fewsight"] == fewsight.__version__
    onnx.checker.check_model(onnx.load(cropping), full_check=True)


def test_script_of_the_guide_runs_without_fewsight(
    cropping: Path, tiny_run: Path, digit_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(digit_images / "test" / "one" / "10.png", tmp_path / "new" / "one-10.png")
    shutil.copy(cropping, tmp_path / "photos.onnx")
    alone = 'import sys\nsys.modules["fewsight"] = sys.modules["torch"] = None\n' + guide_block(
        "ImageOps.exif_transpose"
    )
    done = subprocess.run([sys.executable, "-c", alone], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    label, prob = done.stdout.split()
    predictions = fewsight.load(tiny_run).predict([tmp_path / "new" / "one-10.png"])
    assert label == predictions.labels[0]
    assert float(prob) == pytest.approx(predictions.probs[0].max(), abs=1e-5)


def test_functions_of_the_guide_are_those_of_predict() -> None:
    names: dict[str, Any] = {"np": np, "Image": Image}
    exec(guide_block("def center_crop"), names)
    exec(guide_block("def random_box"), names)
    rng = np.random.default_rng(0)
    for number in range(200):
        width, height = (int(side) for side in rng.integers(1, 400, 2))
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        px, data = int(rng.integers(8, 64)), rng.bytes(10)
        assert np.array_equal(names["center_crop"](image, px, 0.875), center_view(image, px))
        digest = export_images.file_digest(data)
        drawn = names["random_box"](width, height, data, number % 4, number)
        assert drawn == pytest.approx(random_box(width, height, digest, number % 4, number), abs=1e-9)


def identity_model(factor: float = 1.0) -> onnx.ModelProto:
    """A model that multiplies its input by a factor, for tests that need no real one."""
    probs = onnx.helper.make_tensor_value_info("probs", onnx.TensorProto.FLOAT, ["batch", 3])
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 3])
    by = onnx.helper.make_tensor("by", onnx.TensorProto.FLOAT, [], [factor])
    node = onnx.helper.make_node("Mul", ["images", "by"], ["probs"])
    graph = onnx.helper.make_graph([node], "g", [images], [probs], [by])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def test_every_class_name_survives_the_metadata(tmp_path: Path) -> None:
    model = identity_model()
    describe(model, {"classes": files.json_text(NAMES)})
    files.write_bytes(tmp_path / "m.onnx", model.SerializeToString())
    assert metadata(tmp_path / "m.onnx")["classes"] == NAMES


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_graph_gives_no_probability_for_scores_that_are_not_finite(bad: float) -> None:
    """Of one view, in one image: every probability of this image is NaN, and the other image keeps its own."""
    scores = torch.log_softmax(torch.randn(3, 2, 4), dim=2)
    scores[1, 0, 2] = bad

    class Scores(torch.nn.Module):
        def forward(self, _cuts: Any) -> torch.Tensor:
            return scores

    graph = Graph([], 0.7)
    graph.scorers.append(Scores())
    probs = graph.score([])
    assert probs[0].isnan().all()
    torch.testing.assert_close(probs[1], torch.softmax(scores[:, 1].logsumexp(0) / 0.7, 0))


def test_model_without_probabilities_is_not_exported(
    tiny_run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """predict has none for an image, so there is nothing to compare with."""
    overflowing = read_run(Path(shutil.copytree(tiny_run, tmp_path / "run")))
    tensors = read_weights(overflowing)
    tensors["head.weight"].fill_(3e38)
    save_weights(overflowing, tensors)
    monkeypatch.setattr("fewsight.apps.export.write.to_onnx", lambda module, cuts, crop: identity_model())
    answer = command("export", overflowing.path, "--out", tmp_path / "m.onnx")
    assert answer.code == 2
    assert f"{NOT_FINITE}; nothing was written" in answer.err
    assert not list(tmp_path.glob("*m.onnx*"))


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_model_that_differs_is_refused(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    probs = np.array([[0.2, 0.3, 0.5], [0.9, 0.1, 0.0]], np.float32)
    monkeypatch.setattr(
        parity, "inputs_of", lambda image_files, *_, **__: iter([{"images": probs[: len(image_files)]}])
    )
    images = ImageSet("val of here", (Path("a.png"), Path("b.png")), ())
    session = open_session(identity_model(factor), 1)
    with pytest.raises(RunError, match=r"differs from predict by .* nothing was written"):
        parity.check_parity(session, {}, images, probs, 1.0, crop=False)
    alike = parity.check_parity(open_session(identity_model(), 1), {}, images, probs, 1.0, crop=False)
    assert (alike.largest, alike.num_same_top1, alike.num_images) == (0.0, 2, 2)
    assert run(session, {"images": probs}).shape == (2, 3)


def test_a_model_that_differs_leaves_no_file(
    tiny_run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewsight.apps.export.write.to_onnx", lambda module, cuts, crop: identity_model())
    monkeypatch.setattr(
        "fewsight.apps.export.parity.run", lambda session, inputs: np.full((len(inputs["images"]), 3), 0.9)
    )
    answer = command("export", tiny_run, "--out", tmp_path / "m.onnx")
    assert answer.code == 2
    assert "differs from predict" in answer.err
    assert not list(tmp_path.glob("*m.onnx*"))


# --- int8 ---------------------------------------------------------------------------------------------------


def predicted_in_int8(num_images: int, lost: int, gained: int = 0) -> tuple[np.ndarray, np.ndarray, ImageSet]:
    """Probabilities in float32 and int8 of images of the class 0, of which `gained` have only int8 right."""
    before = np.eye(4, dtype=np.float32)[np.zeros(num_images, int)]
    before[-gained or num_images :] = [0, 0, 1, 0]
    after = before.copy()
    after[:lost], after[-gained or num_images :] = [0, 1, 0, 0], [1, 0, 0, 0]
    return before, after, ImageSet("val of here", (Path("a"),) * num_images, (0,) * num_images)


def test_loss_of_int8_is_measured_on_paired_images() -> None:
    before, after, images = predicted_in_int8(1000, 2, 1)
    loss = measure_loss(before, after, images, 1.0)
    assert (loss.agreement.count, loss.agreement.total, loss.largest) == (997, 1000, 1.0)
    assert loss.float32 is not None
    assert loss.int8 is not None
    assert (loss.float32.count, loss.int8.count) == (999, 998)
    assert loss.gain is not None
    assert (loss.gain.first_only, loss.gain.second_only) == (2, 1)
    assert (loss.gain.low, loss.gain.high) == paired_interval(1, 2, 1000)
    unlabelled = measure_loss(before, after, ImageSet("new", images.files, ()), 1.0)
    assert (unlabelled.float32, unlabelled.gain, unlabelled.agreement.count) == (None, None, 997)


@pytest.mark.parametrize(
    ("counts", "labelled", "expected"),
    [
        ((20, 2), True, "20 images cannot tell whether int8 loses more than 2 points: .* -10.0 points .* about"),
        ((20, 0), True, "20 images cannot tell .* about 190 would tell .* export without --int8"),
        ((20, 0), False, "20 images cannot tell .* keeps 100.0 % .* about 190 would tell"),
        ((188, 0), True, "about 200 would tell"),
        ((189, 0), True, None),
        ((189, 0), False, None),
        ((256, 1, 1), True, None),
        ((256, 1, 1), False, "256 images cannot tell"),
        ((40, 30), True, "int8 loses too much accuracy: top-1 changes by -75.0 points"),
        ((1000, 40), True, "int8 loses too much accuracy: top-1 changes by -4.0 points"),
        ((1000, 40), False, "int8 loses too much accuracy: without labels .* keeps 96.0 %"),
        ((1000, 40, 40), True, None),
        ((1000, 40, 40), False, "without labels .* keeps 92.0 %"),
    ],
)
def test_int8_is_refused_unless_the_images_show_that_it_loses_little(
    counts: tuple[int, ...], labelled: bool, expected: str | None
) -> None:
    before, after, images = predicted_in_int8(*counts)
    images = images if labelled else ImageSet("new", images.files, ())
    with pytest.raises(RunError, match=expected) if expected else contextlib.nullcontext():
        measure_loss(before, after, images, 1.0)


def test_number_of_images_that_a_refusal_names_would_tell() -> None:
    for counts in [(20, 2), (100, 2, 1), (60, 1), (256, 1)]:
        before, after, images = predicted_in_int8(*counts)
        with pytest.raises(RunError, match="would tell") as refused:
            measure_loss(before, after, images, 1.0)
        needed = int(str(refused.value).partition(" would tell")[0].rpartition("about ")[2].replace(",", ""))
        lost, gained = (count * needed / counts[0] for count in (*counts[1:], 0)[:2])
        low, high = paired_interval(gained, lost, needed)
        assert low >= -0.02 or high < -0.02, counts


def test_interval_of_paired_images() -> None:
    """Against the definition: at its ends the score, with the likeliest proportions that have this change, is 1.96."""
    gained, lost, total = 3, 8, 100
    low, high = paired_interval(gained, lost, total)
    for change, expected in ((low, 1.96), (high, -1.96)):
        losing = np.linspace(max(0, -change) + 1e-9, (1 - change) / 2 - 1e-9, 100_001)
        gaining = losing + change
        rest = (total - gained - lost) * np.log(1 - gaining - losing)
        likeliest = losing[(gained * np.log(gaining) + lost * np.log(losing) + rest).argmax()]
        variance = total * (2 * likeliest + change - change**2)
        assert (gained - lost - total * change) / np.sqrt(variance) == pytest.approx(expected, abs=1e-3)
    assert paired_interval(lost, gained, total) == pytest.approx((-high, -low))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_int8_scores_that_are_not_finite_are_refused(value: float) -> None:
    before, after, images = predicted_in_int8(500, 0)
    after[3, 1] = value
    with pytest.raises(RunError, match="a: the scores in int8 are not finite; nothing was written"):
        measure_loss(before, after, images, 1.0)


# --- what is refused ----------------------------------------------------------------------------------------


def test_images_are_those_of_the_run(tiny_run: Path, digit_images: Path, tmp_path: Path) -> None:
    selection = open_runs(tiny_run, None)
    val, train = images_of_run(selection, "val", None, 100), images_of_run(selection, "train", None, 5)
    assert (len(val.files), val.num_trained_on, len(train.files), train.num_trained_on) == (12, 0, 5, 5)
    assert [selection.classes[label] for label in val.labels] == [file.parent.name for file in val.files]
    moved = shutil.copytree(digit_images, tmp_path / "moved")
    assert images_of_run(selection, "val", moved, 100).files[0].is_relative_to(moved)
    with pytest.raises(RunError, match="does not have the images of the run"):
        images_of_run(selection, "val", tmp_path, 100)
    with pytest.raises(RunError, match="does not exist; say where the dataset is now with --data"):
        images_of_run(selection, "val", tmp_path / "gone", 100)


def test_replaced_images_of_the_run_are_refused(tiny_run: Path, digit_images: Path, tmp_path: Path) -> None:
    """Whose label would be that of the image before."""
    data = Path(shutil.copytree(digit_images, tmp_path / "data"))
    shutil.copy(data / "val/two/06.png", data / "val/one/06.png")
    with pytest.raises(RunError, match=r"data: 1 image of the run changed since it was trained \(val/one/06\.png\)"):
        images_of_run(open_runs(tiny_run, None), "val", data, 100)


def test_a_run_without_val_is_compared_on_training_images(tiny_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    lines = [json.loads(line) for line in (copy / "images.jsonl").read_text().splitlines()]
    for line in lines:
        line["split"] = "train"
    (copy / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    images = images_of_run(open_runs(copy, None), "val", None, 100)
    assert images.source.startswith("train of ")
    assert images.num_trained_on == len(images.files) == 30


def test_a_label_that_is_no_class_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    lines = [json.loads(line) | {"label": "other"} for line in (copy / "images.jsonl").read_text().splitlines()]
    (copy / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = json.loads((copy / "data.json").read_text())
    data["digest"] = digest_of_list((line["path"], line["size"], line["label"]) for line in lines)
    (copy / "data.json").write_text(json.dumps(data))
    with pytest.raises(RunError, match="labels that are none of the run's classes"):
        images_of_run(open_runs(copy, None), "val", None, 100)


def test_images_that_cannot_be_read_are_left_out(digit_images: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = given_images([str(tmp_path / "bad.png"), str(digit_images / "val")], 100)
    assert len(images.files) == 1 + len(expand_inputs([str(digit_images / "val")]))
    assert len(export_images.readable_images(images).files) == 12
    with pytest.raises(DataError, match="none of 1 image can be read"):
        export_images.readable_images(given_images([str(tmp_path / "bad.png")], 100))


def test_mistakes_are_refused_before_the_work(
    tiny_run: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "does not exist" in refused("export", tmp_path / "none", "--out", "m.onnx")
    assert "this is a folder" in refused("export", tiny_run, "--out", ".")
    assert "does not exist; create it first" in refused("export", tiny_run, "--out", "none/m.onnx")
    assert "expected a name that ends with .onnx" in refused("export", tiny_run, "--out", "weights.safetensors")
    assert "is a run folder, which must not have other files" in refused(
        "export", tiny_run, "--out", tiny_run / "m.onnx"
    )
    assert "expected at least 1" in refused("export", tiny_run, "--out", "m.onnx", "--num-images", 0)
    assert "expected center, paper, or names" in refused("export", tiny_run, "--out", "m.onnx", "--views", "top")
    assert "can be read" in refused("export", tiny_run, "--out", "m.onnx", "--images", "nothing-here")
    assert "does not exist; say where" in refused("export", tiny_run, "--out", "m.onnx", "--data", "gone")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'fewsight[export]'" in refused("export", tiny_run, "--out", "m.onnx")
    with pytest.raises(FewsightError, match="onnxscript, onnxruntime"):
        export.require_export()


# --- whole exports, each of which traces a model -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("crop", [False, True])
def test_ensemble_with_random_crops_is_predict(both: Path, digit_images: Path, crop: bool, tmp_path: Path) -> None:
    exported = export_run(both, tmp_path / "both.onnx", crop=crop, compare_on=CompareOn([str(digit_images / "test")]))
    assert exported.temperature == 0.6
    assert exported.parity.largest < 1e-5
    about = metadata(tmp_path / "both.onnx")
    assert [run_["name"] for run_ in about["runs"]] == ["a", "b"]
    assert about["threshold"] == {"prob": 0.4, "coverage": 0.9, "kept": 9, "right": 8}
    assert len(about["boxes"] if crop else about["inputs"]) == (3 if crop else 6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_missing_temperature_is_detected(
    both: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewsight.apps.export.write.calibration_for", lambda path, views: None)
    answer = command("export", both, "--out", tmp_path / "m.onnx", "--views", "center")
    assert answer.code == 0, answer.err  # the temperature belongs to other views
    answer = command("export", both, "--out", tmp_path / "n.onnx")
    assert answer.code == 2
    assert "differs from predict" in answer.err
    assert not list(tmp_path.glob("*n.onnx*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_int8_reports_its_loss(
    tiny_run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = command("export", tiny_run, "--out", tmp_path / "m.onnx", "--int8")
    assert answer.code == 2
    assert "12 images cannot tell whether int8 loses more than 2 points" in answer.err
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("fewsight.apps.export.int8.MAX_LOSS", 1.0)
    answer = command("export", tiny_run, "--out", tmp_path / "m.onnx", "--int8")
    assert answer.code == 0, answer.err
    assert "int8 keeps the most probable class of" in answer.out
    assert "the probabilities are not calibrated" in answer.out
    about, model = metadata(tmp_path / "m.onnx"), onnx.load(tmp_path / "m.onnx")
    assert (about["int8"]["num_images"], about["int8"]["agreement"]["total"]) == (18, 12)
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (probs,) = session.run(None, {"images": np.zeros((3, 32, 32, 3), np.uint8)})
    assert probs.sum(1) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["resnest101", "tresnet_xl", "seresnext101", "timm:resnet18"])
def test_full_size_backbone_is_predict_on_photographs(fewsight_data: Path, tmp_path: Path, name: str) -> None:
    untrained_run(tmp_path / "run", fewsight_data / "imagenet-256", name, 224)
    exported = export_run(tmp_path / "run", tmp_path / "m.onnx", compare_on=CompareOn(num_images=16))
    assert (exported.parity.num_images, exported.parity.num_same_top1) == (16, 16)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_script_of_the_guide_agrees_on_photographs(fewsight_data: Path, tmp_path: Path) -> None:
    """JPEG files by Pillow alone, cut in the graph, against fewsight's own decoder and crop."""
    untrained_run(tmp_path / "run", fewsight_data / "imagenet-256", "resnest14", 64)
    export_run(tmp_path / "run", tmp_path / "m.onnx", compare_on=CompareOn(num_images=32), crop=True)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    paths = sorted((fewsight_data / "imagenet-256").glob("*.JPEG"))[::8]
    outputs = []
    for path in paths:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        outputs += list(session.run(None, {"images": np.asarray(image)[None]})[0])
    expected = fewsight.load(tmp_path / "run").predict(paths).probs
    assert np.abs(np.stack(outputs) - expected).max() < 1e-3
