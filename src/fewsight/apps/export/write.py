"""Exporting a run or an ensemble: the ONNX model is built, compared with `predict`, and only then written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fewsight
from fewsight.apps.export.graph import CroppingGraph, Cut, build_graph, cuts_and_sides
from fewsight.apps.export.images import ImageSet, given_images, images_of_run, readable_images
from fewsight.apps.export.int8 import NUM_CALIBRATION, Int8Loss, measure_loss, quantise
from fewsight.apps.export.onnx_model import describe, open_session, to_onnx
from fewsight.apps.export.parity import Parity, check_parity, exported_probs, predicted_probs
from fewsight.errors import RunError
from fewsight.inference.opening import RunsAndViews, open_runs
from fewsight.inference.score_run import exact_recipe, testing_recipe
from fewsight.machine import files
from fewsight.recipes import recipe_toml
from fewsight.runs import now
from fewsight.scores.calibration import Threshold, calibration_for
from fewsight.wording import counted

FORMAT = 1  # version of the metadata


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
    data: str | Path | None = None,
    images: Sequence[str] = (),
    num_images: int = 256,
    say: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write a run or an ensemble as an ONNX file that gives the probabilities of `predict`.

    Args:
        views: center (a run's default), paper (an ensemble's) or names with commas.
        crop: the graph takes upright images of any size and cuts the views itself.
        int8: quantise convolutions to 8 bits, calibrated on training images.
        data: where the run's dataset is now; None: where it was at training.
        images: files, folders and patterns to compare on, instead of the run's val images.
        num_images: the maximum number of images to compare on, drawn by a fixed seed.
        say: called with a line of text as each step begins.

    Raises:
        RunError: not a finished run; its dataset is not found; the file would differ from `predict`, and is not
            written.
        RecipeError: no such view, or one that the graph cannot cut.
        DataError: no image to compare on.
    """
    path, out = Path(path), Path(out)
    if num_images < 1:
        raise RunError(f"--num-images {num_images}: expected at least 1")
    _check_out(out)
    selection = open_runs(path, views)
    sample = given_images(images, num_images) if images else images_of_run(selection, "val", _path(data), num_images)
    sample = readable_images(sample)
    calibration = readable_images(images_of_run(selection, "train", _path(data), NUM_CALIBRATION)) if int8 else None
    kept = calibration_for(path, selection.view_names)
    temperature, threshold = (None, None) if kept is None else (kept.temperature, kept.threshold)
    cuts, sides = cuts_and_sides(selection)
    graph = build_graph(selection, cuts, sides, temperature or 1.0)
    module = CroppingGraph(graph, list(cuts.values())).eval() if crop else graph
    precisions = {testing_recipe(run).run.precision for run in selection.runs.values()} - {"float32"}
    if precisions:
        say(
            f"note: predict computes in {', '.join(sorted(precisions))} on this machine; the file computes in float32 "
            "and is compared with predict in float32"
        )
    say("tracing the model")
    model = to_onnx(module, cuts, crop=crop)
    del graph, module
    threads = exact_recipe(selection.first_run).run.threads
    assert threads != "auto", "a resolved recipe has its threads"
    say(f"comparing with predict on {counted(len(sample.files), 'image')} of {sample.source}")
    expected, predict_ms = predicted_probs(path, views, sample)
    session = open_session(model, threads)
    parity = check_parity(session, cuts, sample, expected, predict_ms, crop=crop)
    loss = None
    if calibration is not None:
        say(f"calibrating int8 on {counted(len(calibration.files), 'image')} of {calibration.source}")
        model = quantise(model, cuts, calibration, crop=crop)
        probs, int8_ms = exported_probs(open_session(model, threads), cuts, sample, crop=crop)
        loss = measure_loss(expected, probs, sample, int8_ms)
    describe(model, _about(selection, cuts, temperature, threshold, parity, loss, calibration, crop=crop))
    content = model.SerializeToString()
    files.write_bytes(out, content)
    return Exported(out, len(content), cuts, selection.view_names, temperature, parity, loss)


def _check_out(out: Path) -> None:
    """Check that the file may be written there.

    Raises:
        RunError: not the name of an .onnx file, in a run folder, or not writable.
    """
    files.check_target(out, "--out")
    if out.suffix.lower() != ".onnx":
        raise RunError(f"--out {out}: expected a name that ends with .onnx")
    if (out.parent / "run.json").exists() or (out.parent / "ensemble.json").exists():
        raise RunError(
            f"--out {out}: {out.parent} is a run folder, which must not have other files; choose another folder"
        )


def _about(
    selection: RunsAndViews,
    cuts: Mapping[str, Cut],
    temperature: float | None,
    threshold: Threshold | None,
    parity: Parity,
    loss: Int8Loss | None,
    calibration: ImageSet | None,
    *,
    crop: bool,
) -> dict[str, str]:
    """The model's metadata; every value is JSON."""
    inputs = {
        name: {key: value for key, value in asdict(cut).items() if value is not None} for name, cut in cuts.items()
    }
    random_crops = [inputs[name] for name, cut in cuts.items() if cut.ratio is None]
    values: dict[str, Any] = {
        "format": FORMAT,
        "fewsight": fewsight.__version__,
        "exported": now(),
        "classes": list(selection.classes),
        "inputs": {} if crop else inputs,
        "boxes": random_crops if crop else [],
        "views": list(selection.view_names),
        "temperature": temperature,
        "threshold": None if threshold is None else asdict(threshold),
        "runs": [_run_facts(selection, name) for name in selection.runs],
        "parity": asdict(parity),
    }
    if loss is not None and calibration is not None:
        values["int8"] = asdict(loss) | {"calibrated_on": calibration.source, "num_images": len(calibration.files)}
    return {name: files.json_text(value) for name, value in values.items()}


def _run_facts(selection: RunsAndViews, name: str) -> dict[str, Any]:
    """The origin of a run's model, and the normalisation that the graph applies."""
    run = selection.runs[name]
    info = {key: getattr(run.info, key) for key in ("weights_digest", "seed", "started", "fewsight", "torch", "commit")}
    return {
        "name": name,
        "backbone": run.recipe.model.backbone,
        "width": run.recipe.model.width,
        "mean": list(run.data.mean),
        "std": list(run.data.std),
        "recipe_digest": files.digest_of(recipe_toml(run.recipe).encode()),
        "data_digest": run.data.digest,
        **info,
    }


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
