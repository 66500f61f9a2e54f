"""Exporting a run or an ensemble: the ONNX model is built, compared with `predict`, and only then written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from fewsight.apps.export.graph import CroppingGraph, Cut, Side, build_graph, cuts_and_sides
from fewsight.apps.export.images import CompareOn, images_of_run, readable_images
from fewsight.apps.export.int8 import NUM_CALIBRATION, Int8Loss, measure_loss, quantise
from fewsight.apps.export.metadata import metadata_of
from fewsight.apps.export.onnx_model import describe, open_session, to_onnx
from fewsight.apps.export.parity import Parity, check_parity, exported_probs, predicted_probs
from fewsight.errors import RunError
from fewsight.inference.opening import RunsAndViews, open_runs
from fewsight.inference.score_run import exact_recipe, num_threads, testing_recipe
from fewsight.machine import files
from fewsight.machine.outputs import Kind, check_output
from fewsight.scores.calibration import calibration_for
from fewsight.scores.entries import is_ensemble
from fewsight.wording import counted

MODEL = Kind("a model of fewsight export", (b"\x12\x08fewsight",))  # the name of its producer


@dataclass(frozen=True)
class Exported:
    """An exported file and its comparison with `predict`."""

    path: Path
    num_bytes: int
    inputs: Mapping[str, Cut]
    views: tuple[str, ...]
    temperature: float | None
    parity: Parity
    int8_loss: Int8Loss | None  # None: float32


def export_run(
    path: str | Path,
    out: str | Path,
    *,
    views: str | None = None,
    crop: bool = False,
    int8: bool = False,
    compare_on: CompareOn | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write a run or an ensemble as an ONNX file that gives the probabilities of `predict`.

    Args:
        views: center (a run's default), paper or names with commas; an ensemble has its own default.
        crop: the graph takes upright images of any size and cuts the views itself.
        int8: quantise convolutions to 8 bits, calibrated on training images.
        compare_on: the images that the file is compared with `predict` on; None: the run's val images.
        say: called with a line of text as each step begins.

    Raises:
        RunError: not a finished run; its dataset is not found; the file would differ from `predict`, and is not
            written.
        RecipeError: no such view, or one that the graph cannot cut.
        DataError: no image to compare on.
    """
    path, out, compare_on = Path(path), Path(out), compare_on or CompareOn()
    _check_out(out)
    selection = open_runs(path, views)
    sample = compare_on.images_for(selection)
    training = readable_images(images_of_run(selection, "train", compare_on.data, NUM_CALIBRATION)) if int8 else None
    calibration, (cuts, sides) = calibration_for(path, selection.view_names), cuts_and_sides(selection)
    temperature = None if calibration is None else calibration.temperature
    model = _trace(selection, cuts, sides, temperature, crop, say)
    threads = num_threads(exact_recipe(selection.first_run))
    say(f"comparing with predict on {counted(len(sample.files), 'image')} of {sample.source}")
    expected, predict_ms = predicted_probs(path, views, sample)
    parity = check_parity(open_session(model, threads), cuts, sample, expected, predict_ms, crop=crop)
    loss = None
    if training is not None:
        say(f"calibrating int8 on {counted(len(training.files), 'image')} of {training.source}")
        model = quantise(model, cuts, training, crop=crop)
        probs, int8_ms = exported_probs(open_session(model, threads), cuts, sample, crop=crop)
        loss = measure_loss(expected, probs, sample, int8_ms)
    int8_facts = None if loss is None or training is None else (loss, training)
    describe(model, metadata_of(selection, cuts, calibration, parity, int8_facts, crop=crop))
    content = model.SerializeToString()
    files.write_bytes(files.link_target(out), content)
    return Exported(out, len(content), cuts, selection.view_names, temperature, parity, loss)


def _trace(
    selection: RunsAndViews,
    cuts: Mapping[str, Cut],
    sides: Mapping[str, Sequence[Side]],
    temperature: float | None,
    crop: bool,
    say: Callable[[str], None],
) -> onnx.ModelProto:
    graph = build_graph(selection, cuts, sides, temperature or 1.0)
    module = CroppingGraph(graph, list(cuts.values())).eval() if crop else graph
    precisions = {testing_recipe(run).run.precision for run in selection.runs.values()} - {"float32"}
    if precisions:
        say(
            f"note: predict computes in {', '.join(sorted(precisions))} on this machine; the file computes in float32 "
            "and is compared with predict in float32"
        )
    say("tracing the model")
    return to_onnx(module, cuts, crop=crop)


def _check_out(out: Path) -> None:
    """Check that the file may be written there.

    Raises:
        RunError: not the name of an .onnx file, in a run folder, or not writable.
    """
    check_output(out, "--out", MODEL)
    if out.suffix.lower() != ".onnx":
        raise RunError(f"--out {out}: expected a name that ends with .onnx")
    folder = files.link_target(out).parent
    if (folder / "run.json").exists() or is_ensemble(folder):
        raise RunError(f"--out {out}: {folder} is a run folder, which must not have other files; choose another folder")
