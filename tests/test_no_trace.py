"""Importing and calling fewsight changes nothing in the process that outlives the call."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TINY

HOST = '''
"""A program that has its own settings, and calls fewsight."""
import locale, logging, multiprocessing, os, random, signal, sys, threading, warnings
import numpy as np, safetensors.torch, scipy.sparse, scipy.special, torch, torch.utils.data
from PIL import Image, ImageFile

data, run, tiny = sys.argv[1], sys.argv[2], sys.argv[3].split(" ")
random.seed(1), np.random.seed(2), torch.manual_seed(3)
torch.set_num_threads(2)
torch.use_deterministic_algorithms(True, warn_only=True)
signal.signal(signal.SIGTERM, lambda *_: None)
warnings.simplefilter("always")


def settings():
    cudnn = torch.backends.cudnn
    return {
        "random": hash(random.getstate()), "numpy": hash(np.random.get_state()[1].tobytes()),
        "torch": hash(tuple(torch.get_rng_state().tolist())),
        "seed": torch.initial_seed(), "threads": torch.get_num_threads(), "dtype": torch.get_default_dtype(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "deterministic": (torch.are_deterministic_algorithms_enabled(),
                          torch.is_deterministic_algorithms_warn_only_enabled()),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "kernels": (torch.backends.mkldnn.enabled, torch.get_float32_matmul_precision()),
        "distributed": torch.distributed.is_initialized(), "errors": np.geterr(), "environment": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "warnings": (list(warnings.filters), warnings.showwarning),
        "logging": (logging.root.level, logging.root.handlers[:], logging.root.manager.disable),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "children": multiprocessing.active_children(),
        "python threads": threading.enumerate(), "recursion": sys.getrecursionlimit(), "hook": sys.excepthook,
        "streams": (sys.stdout, sys.stderr), "folder": os.getcwd(), "path": sys.path[:], "locale": locale.setlocale(0),
        "pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES), "umask": os.umask(0o22),
        "files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
    }


def check(what):
    after = settings()
    for name, value in before.items():
        assert after[name] == value, f"{what}: {name} was {value}, is {after[name]}"


before = settings()
import fewsight
fewsight.train
check("import")
fewsight.train(data, run, recipe="digits", overrides=[*tiny, "run.workers=1", "run.threads=1"])
check("train")
fewsight.resume(run)
check("resume")
fewsight.evaluate(run, data)
check("evaluate")
model = fewsight.load(run, "report")
check("load")
model.predict([np.zeros((8, 8, 3), np.uint8)])
check("predict")
fewsight.train(data, run + "2", recipe="auto", hours=0.001, preview=1)
check("plan and preview")
for wrong in (lambda: fewsight.train(data, run), lambda: fewsight.load("nowhere"), lambda: fewsight.resume("nowhere")):
    try:
        wrong()
    except fewsight.RunError:
        check("an error")
assert "fewsight.machine.allocator" not in sys.modules, "the allocator's settings cannot be put back"
print("nothing changed")
'''


FORKED = '''
"""A program that predicts, forks, and predicts and trains in the child, as some task queues do."""
import io, multiprocessing, sys, warnings
import numpy as np
from rich.console import Console
import fewsight

data, run = sys.argv[1:]
images = list(np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), np.uint8))
model = fewsight.load(run)
probs = model.predict(images).probs


def child():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for loaded in (model, fewsight.load(run)):
            assert abs(loaded.predict(images).probs - probs).max() < 1e-5
    assert len(warned) == 1 and "it computes with one thread" in str(warned[0].message), warned
    values = ["stages.0.epochs=1", "model.width=0.125", "run.workers=1"]
    said = Console(file=io.StringIO(), width=500)
    (trained,) = fewsight.train(data, run + "2", recipe="digits", overrides=values, console=said)
    assert trained.recipe.run.threads == 1
    assert "and may start no others: it loads the images itself" in said.file.getvalue()
    print("done", flush=True)


process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
process.start()
process.join(120)
process.kill()
sys.exit(process.exitcode)
'''


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems start processes with spawn")
def test_forked_daemonic_process_computes_with_one_thread(digit_images: Path, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "forked.py").write_text(FORKED)
    run = shutil.copytree(tiny_run, tmp_path / "run")
    line = [sys.executable, tmp_path / "forked.py", digit_images, run]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    host = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert host.returncode == 0, host.stderr[-3000:]
    assert host.stdout.endswith("done\n")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_calls_leave_no_trace_in_the_process(digit_images: Path, tmp_path: Path) -> None:
    (tmp_path / "host.py").write_text(HOST)
    line = [sys.executable, tmp_path / "host.py", digit_images, tmp_path / "run", " ".join(TINY)]
    host = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert host.returncode == 0, host.stderr[-3000:]
    assert host.stdout.endswith("nothing changed\n")
