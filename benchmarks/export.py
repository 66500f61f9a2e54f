"""Exported models against eager ones: agreement, largest difference, speed under onnxruntime and openvino, int8.

`python -m benchmarks.export RUN [--imagenet DIR] [--threads N]` exports a trained run (on tiny20), then full-size
backbones with random weights on ImageNet photographs (DIR, which holds them in one folder). Norms of a random model
have the statistics of the images, so that every branch takes part, and its logits spread as trained ones do. Times are
milliseconds of processors, medians over rounds in which the ways take turns, of batches in memory; one image, and 16.
Needs fewsight[export] and openvino.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks.machine import about, busy_processes, keep, listed
from fewsight import runs
from fewsight.apps.export import int8
from fewsight.apps.export.graph import Cut, Graph, build_graph, cuts_and_sides
from fewsight.apps.export.images import CompareOn, inputs_of
from fewsight.apps.export.onnx_model import open_session, run
from fewsight.apps.export.write import Exported, export_run
from fewsight.augment import center_view
from fewsight.augment.normalise import Normalise
from fewsight.data import digest_of_list, load_image
from fewsight.data.training_set import ListedImage, RunData
from fewsight.inference.opening import open_runs
from fewsight.machine.device import resolve_run
from fewsight.models.classifier import Classifier, build_model, resolve_stem, weights_out
from fewsight.recipes import load_recipe
from fewsight.runs import Run

FULL_SIZE = {"resnest50": 224, "resnest101": 224, "tresnet_xl": 224, "seresnext101": 224}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROUNDS = 5
NUM_STATISTICS = 16  # images that norms take their statistics from


def untrained_run(out: Path, images: Path, backbone: str, px: int) -> Run:
    """A run with random weights that says of every second photograph of a folder that it was trained on it."""
    paths = sorted(path.name for path in images.iterdir())
    lines = [ListedImage(("train", "val")[number % 2], name, Path(name).stem, 0) for number, name in enumerate(paths)]
    classes = tuple(line.label for line in lines)
    values = [f"model.stem={resolve_stem(px)}", f"augment.train_px={px}", f"eval.test_px=[{px}]"]
    recipe = load_recipe("resnest101_ce", [f"model.backbone={backbone}", "run.device=cpu", *values])
    recipe = recipe.model_copy(update={"run": resolve_run(recipe.run)})
    digest = digest_of_list((line.path, 0, line.label) for line in lines)
    data = RunData(str(images), "classes", digest, {}, MEAN, STD, [], {})
    run = runs.create_run(out, recipe, classes, data, lines)
    torch.manual_seed(0)
    model = build_model(backbone, len(classes), stem=recipe.model.stem)
    shown = np.stack([center_view(load_image(images / name), px) for name in paths[:NUM_STATISTICS]])
    planes = torch.from_numpy(shown).permute(0, 3, 1, 2)
    settle(model, Normalise(MEAN, STD).of_bytes(planes))
    return runs.save_weights(run, weights_out(model), status="finished")


@torch.no_grad()
def settle(model: Classifier, images: torch.Tensor) -> None:
    """Random weights into the range of trained ones: branches that add a little, norms with the statistics of these
    images (no channel is blown up because it hardly varies in them), logits with a standard deviation of 3.
    """
    norms = [one for one in model.modules() if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.constant_(norm.weight, 1.0 if norm.weight.any() else 0.2)  # the last of a block is 0 at first
    model.train()(images)
    for norm in norms:
        assert norm.running_var is not None, "norms keep statistics"
        norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()))
    logits, _ = model.eval()(images)
    model.head.weight *= 3 / logits.std()


def ways(
    model: Path, quantised: Path, graph: Graph, threads: int
) -> dict[str, Callable[[Mapping[str, np.ndarray]], Any]]:
    """Each way to compute a batch."""
    import openvino

    sessions = {name: open_session(onnx.load(path), threads) for name, path in (("float", model), ("int8", quantised))}
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = {
        name: core.compile_model(path, "CPU", settings) for name, path in (("float", model), ("int8", quantised))
    }

    def eager(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            probs: np.ndarray = graph(*(torch.from_numpy(one) for one in inputs.values())).numpy()
        return probs

    def vino(name: str) -> Callable[[Mapping[str, np.ndarray]], Any]:
        return lambda inputs: compiled[name](dict(inputs))[0]

    return {
        "eager": eager,
        "onnxruntime": lambda inputs: run(sessions["float"], inputs),
        "onnxruntime int8": lambda inputs: run(sessions["int8"], inputs),
        "openvino": vino("float"),
        "openvino int8": vino("int8"),
    }


def times(
    computed: Mapping[str, Callable[[Mapping[str, np.ndarray]], Any]], batches: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, list[float]]:
    """Milliseconds of processors an image of each way, a value a round."""
    found: dict[str, list[float]] = {name: [] for name in computed}
    for number in range(ROUNDS + 1):
        for name, compute in computed.items():
            began = time.process_time()
            for batch in batches:
                compute(batch)
            images = sum(len(next(iter(batch.values()))) for batch in batches)
            if number:  # the first warms up
                found[name].append((time.process_time() - began) / images * 1e3)
    return found


def measure(path: Path, folder: Path, threads: int, num_images: int) -> dict[str, Any]:
    """Export in float32 and int8; agreement of every way with eager, and its times."""
    int8.MAX_LOSS = 1.0  # the loss is measured here, also where an export would be refused
    exported: dict[str, Exported] = {
        name: export_run(
            path, folder / f"{name}.onnx", int8=name == "int8", compare_on=CompareOn(num_images=num_images)
        )
        for name in ("float", "int8")
    }
    asked = open_runs(path, None)
    cuts, sides = cuts_and_sides(asked)
    graph = build_graph(asked, cuts, sides, exported["float"].temperature or 1.0)
    computed = ways(folder / "float.onnx", folder / "int8.onnx", graph, threads)
    files = _val_files(asked.first_run)[:num_images]
    probs = {name: _all(compute, files, cuts) for name, compute in computed.items()}
    batches = {size: list(inputs_of(files[: max(4, size)], cuts, crop=False, batch_size=size)) for size in (1, 16)}
    loss = exported["int8"].int8_loss
    assert loss is not None, "int8 has its loss"
    return {
        "backbone": asked.first_run.recipe.model.backbone,
        "num_images": len(files),
        "megabytes": {name: one.num_bytes / 1e6 for name, one in exported.items()},
        "parity": vars(exported["float"].parity),
        "int8_loss": {
            "float32": str(loss.float32),
            "int8": str(loss.int8),
            "gain": str(loss.gain),
            "agreement": str(loss.agreement),
        },
        "same_top1": {name: int((one.argmax(1) == probs["eager"].argmax(1)).sum()) for name, one in probs.items()},
        "largest": {name: float(np.abs(one - probs["eager"]).max()) for name, one in probs.items()},
        "ms": {size: times(computed, one) for size, one in batches.items()},
    }  # fmt: skip


def _val_files(found: Run) -> list[Path]:
    return [Path(found.data.source) / line.path for line in runs.read_images(found) if line.split == "val"]


def _all(compute: Callable[[Mapping[str, np.ndarray]], Any], files: Sequence[Path], cuts: Mapping[str, Cut]) -> Any:
    return np.concatenate([compute(batch) for batch in inputs_of(files, cuts, crop=False, batch_size=16)])


def lines_of(name: str, found: Mapping[str, Any]) -> list[str]:
    """A table of one model."""
    size, total = found["megabytes"], found["num_images"]
    lines = ["", f"## {name}", "", f"{size['float']:.1f} MB, in int8 {size['int8']:.1f} MB; {total:,} images."]
    lines += ["", "| way | same most probable class as eager | largest difference | ms an image, one at a time |"]
    lines[-1] += " ms an image, 16 at a time |"
    lines += ["|---|---|---|---|---|"]
    for way, same in found["same_top1"].items():
        spans = [found["ms"][size][way] for size in (1, 16)]
        told = [f"{statistics.median(one):.1f} ({min(one):.1f} to {max(one):.1f})" for one in spans]
        lines.append(f"| {way} | {same:,} of {total:,} | {found['largest'][way]:.1e} | {told[0]} | {told[1]} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a trained run")
    parser.add_argument("--imagenet", type=Path, help="a folder of photographs, one a class")
    parser.add_argument("--backbones", default=",".join(FULL_SIZE))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--photographs", type=int, default=128, help="of DIR's val half, for each backbone")
    parser.add_argument("--anyway", action="store_true", help="beside other processes; the results say so")
    options = parser.parse_args()
    busy = busy_processes()
    if busy and not options.anyway:
        raise SystemExit(f"other processes would disturb the timing: {busy}")
    torch.set_num_threads(options.threads)
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found[f"{options.run.name}, trained"] = measure(options.run, folder, options.threads, options.images)
        for backbone in options.backbones.split(",") if options.imagenet else []:
            one = untrained_run(folder / backbone, options.imagenet, backbone, FULL_SIZE[backbone])
            name = f"{backbone} at {FULL_SIZE[backbone]} px, random weights, {options.imagenet.name}"
            found[name] = measure(one.path, folder, options.threads, options.photographs)
    rounds = f"{ROUNDS}, median (least to most)"
    setting = about("export", busy, ("torch", "onnxruntime", "openvino"), threads=str(options.threads), rounds=rounds)
    text = [*listed(setting), *(line for name, one in found.items() for line in lines_of(name, one))]
    print("\n".join(text))
    keep("export", "Exported against eager", text, {"about": setting, **found})


if __name__ == "__main__":
    main()
