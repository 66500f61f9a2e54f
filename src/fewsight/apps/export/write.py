"""A run or an ensemble as one ONNX file: made, tried against predict, and only then written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fewsight
from fewsight.apps.export.graph import CroppingGraph, Cut, build_graph, cuts_and_sides
from fewsight.apps.export.images import Images, given_images, own_images, readable
from fewsight.apps.export.int8 import NUM_CALIBRATION, Loss, loss_of, quantise
from fewsight.apps.export.onnx_model import describe, open_session, to_onnx
from fewsight.apps.export.parity import Parity, check_parity, exported_probs, predicted
from fewsight.errors import RunError
from fewsight.inference.ensemble import RunsAndViews, open_runs
from fewsight.inference.score_run import exact_recipe, testing_recipe
from fewsight.machine import files
from fewsight.recipes import recipe_toml
from fewsight.runs import now
from fewsight.scores.calibration import Threshold, calibration_for
from fewsight.wording import counted

FORMAT = 1  # of the metadata


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was tried."""

    path: Path
    num_bytes: int
    inputs: Mapping[str, Cut]
    views: tuple[str, ...]
    temperature: float | None
    parity: Parity
    loss: Loss | None  # of int8


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
        views: center (a run's default), report (an ensemble's) or names with commas.
        crop: the graph takes upright images of any size and cuts the views itself.
        int8: convolutions in 8 bits, calibrated on training images.
        data: where the run's data lies, if no longer where it lay.
        images: files, folders and patterns to try the file on, instead of the run's val images.
        num_images: at most so many, drawn by a fixed seed.
        say: is told what is being done.

    Raises:
        RunError: not a finished run; its data is not there; the file would differ from `predict`, and is not written.
        RecipeError: no such view, or one that the graph cannot cut.
        DataError: no image to try it on.
    """
    path, out = Path(path), Path(out)
    if num_images < 1:
        raise RunError(f"--num-images {num_images}: expected at least 1")
    _check_out(out)
    asked = open_runs(path, views)
    tried = given_images(images, num_images) if images else own_images(asked, "val", _path(data), num_images)
    tried = readable(tried)
    calibration = readable(own_images(asked, "train", _path(data), NUM_CALIBRATION)) if int8 else None
    kept = calibration_for(path, asked.view_names)
    temperature, threshold = (None, None) if kept is None else (kept.temperature, kept.threshold)
    cuts, sides = cuts_and_sides(asked)
    graph = build_graph(asked, cuts, sides, temperature or 1.0)
    module = CroppingGraph(graph, list(cuts.values())).eval() if crop else graph
    other = {testing_recipe(run).run.precision for run in asked.runs.values()} - {"float32"}
    if other:
        say(f"note: predict computes in {', '.join(sorted(other))} here, the file in float32, as it is compared")
    say("tracing the model")
    model = to_onnx(module, cuts, crop=crop)
    del graph, module
    threads = exact_recipe(asked.first_run).run.threads
    assert threads != "auto", "a resolved recipe has its threads"
    say(f"comparing with predict on {counted(len(tried.files), 'image')} of {tried.source}")
    expected, predict_ms = predicted(path, views, tried)
    session = open_session(model, threads)
    parity = check_parity(session, cuts, tried, expected, predict_ms, crop=crop)
    loss = None
    if calibration is not None:
        say(f"calibrating int8 on {counted(len(calibration.files), 'image')} of {calibration.source}")
        model = quantise(model, cuts, calibration, crop=crop)
        found, milliseconds = exported_probs(open_session(model, threads), cuts, tried, crop=crop)
        loss = loss_of(expected, found, tried, milliseconds)
    describe(model, _about(asked, cuts, temperature, threshold, parity, loss, calibration, crop=crop))
    content = model.SerializeToString()
    files.write_bytes(out, content)
    return Exported(out, len(content), cuts, asked.view_names, temperature, parity, loss)


def _check_out(out: Path) -> None:
    """Refuse a place where the file would be mistaken for another, or take another's.

    Raises:
        RunError: so it is.
    """
    files.check_target(out, "--out")
    if out.suffix.lower() != ".onnx":
        raise RunError(f"--out {out}: expected a name that ends with .onnx")
    if (out.parent / "run.json").exists() or (out.parent / "ensemble.json").exists():
        raise RunError(f"--out {out}: {out.parent} is a run folder, which holds nothing else; choose a place beside it")


def _about(
    asked: RunsAndViews,
    cuts: Mapping[str, Cut],
    temperature: float | None,
    threshold: Threshold | None,
    parity: Parity,
    loss: Loss | None,
    calibration: Images | None,
    *,
    crop: bool,
) -> dict[str, str]:
    """The metadata: every value is JSON."""
    inputs = {name: {key: one for key, one in asdict(cut).items() if one is not None} for name, cut in cuts.items()}
    drawn = [inputs[name] for name, cut in cuts.items() if cut.ratio is None]
    values: dict[str, Any] = {
        "format": FORMAT,
        "fewsight": fewsight.__version__,
        "exported": now(),
        "classes": list(asked.classes),
        "inputs": {} if crop else inputs,
        "boxes": drawn if crop else [],
        "views": list(asked.view_names),
        "temperature": temperature,
        "threshold": None if threshold is None else asdict(threshold),
        "runs": [_run_facts(asked, name) for name in asked.runs],
        "parity": asdict(parity),
    }
    if loss is not None and calibration is not None:
        values["int8"] = asdict(loss) | {"calibrated_on": calibration.source, "num_images": len(calibration.files)}
    return {name: files.json_text(value) for name, value in values.items()}


def _run_facts(asked: RunsAndViews, name: str) -> dict[str, Any]:
    """Where a model comes from, and what the graph does to its images."""
    run = asked.runs[name]
    info = {key: run.info.get(key) for key in ("weights_digest", "seed", "started", "fewsight", "torch", "commit")}
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
