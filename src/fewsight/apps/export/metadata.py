"""The metadata of an exported model: what it is, where it comes from, and how it was tried."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import fewsight
from fewsight.apps.export.graph import Cut
from fewsight.apps.export.images import ImageSet
from fewsight.apps.export.int8 import Int8Loss
from fewsight.apps.export.parity import Parity
from fewsight.inference.opening import RunsAndViews
from fewsight.machine import files
from fewsight.recipes import recipe_toml
from fewsight.runs import now
from fewsight.scores.calibration import Calibration

FORMAT = 1  # version of the metadata


def metadata_of(
    selection: RunsAndViews,
    cuts: Mapping[str, Cut],
    calibration: Calibration | None,
    parity: Parity,
    int8: tuple[Int8Loss, ImageSet] | None,
    *,
    crop: bool,
) -> dict[str, str]:
    """The model's metadata; every value is JSON.

    Args:
        calibration: of the views' mean, which the graph applies.
        int8: what 8 bits changed, and the images that the ranges were taken from; None: float32.
    """
    threshold = None if calibration is None else calibration.threshold
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
        "temperature": None if calibration is None else calibration.temperature,
        "threshold": None if threshold is None else asdict(threshold),
        "runs": [_run_facts(selection, name) for name in selection.runs],
        "parity": asdict(parity),
    }
    if int8 is not None:
        loss, images = int8
        values["int8"] = asdict(loss) | {"calibrated_on": images.source, "num_images": len(images.files)}
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
