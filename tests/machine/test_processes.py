"""Several processes: the same step as a single process, one log, every image once, and a clear error after a kill."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from processes_step import CASES
from processes_step import main as compare_steps
from torch import nn

from fewsight import runs
from fewsight.cli import main
from fewsight.errors import RunError
from fewsight.machine.processes import ProcessGroup, SyncNorm, synchronise_norms
from trainings import output, shared, torchrun

TINY = ["--set", "model.width=0.125", "--set", "run.precision=float32", "--set", "run.workers=0"]


@pytest.mark.parametrize(("total", "count"), [(10, 1), (10, 2), (11, 2), (11, 3), (1, 3)])
def test_rows_of_all_processes_cover_the_batch_and_differ_by_one(total: int, count: int) -> None:
    parts = [ProcessGroup(rank, count).rows(total) for rank in range(count)]
    assert [row for part in parts for row in range(total)[part]] == list(range(total))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_shared_step_equals_that_of_one_process(count: int, tmp_path: Path) -> None:
    text = shared(tmp_path / "printed.txt", count, compare_steps, count)
    assert all(str(case) in text for case in CASES), text


@pytest.mark.slow  # test_integrity.py trains and evaluates with two processes, too
@pytest.mark.parametrize("started_by", ["this test", "torchrun"])
def test_training_shared_by_two_gives_one_run(started_by: str, digit_images: Path, tmp_path: Path) -> None:
    sets = [*TINY, "--set", "stages.0.epochs=3", "--set", "eval.every_epochs=1", "--set", "run.sync_norm=true"]
    line = ["train", digit_images, "--recipe", "digits", "--out", tmp_path / "run", *sets]
    if started_by == "torchrun":
        process = torchrun(2, "-m", "fewsight", *line)
        text = output(process)
        assert process.returncode == 0, text
    else:
        text = shared(tmp_path / "printed.txt", 2, main, [str(word) for word in line])
    assert text.count("2 processes share each batch; batch norms compute their statistics on all images") == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    epochs = [line["epoch"] for line in lines if line["kind"] == "epoch"]
    assert epochs == [1, 2, 3]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["val"]["num_images"] == 12
    assert runs.read_run(tmp_path / "run").finished


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_death_of_a_process_ends_the_others_and_the_run_resumes(
    victim: int, digit_images: Path, tmp_path: Path
) -> None:
    sets = [*TINY, "--set", "stages.0.epochs=400", "--set", "run.state_minutes=0.02"]
    out = tmp_path / "run"
    process = torchrun(2, "-m", "fewsight", "train", digit_images, "--recipe", "digits", "--out", out, *sets)
    while not (out / "state" / "state.json").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    by_rank = {}
    for child in children:
        values = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        by_rank |= {int(value.removeprefix(b"RANK=")): int(child) for value in values if value.startswith(b"RANK=")}
    began = time.monotonic()
    os.kill(by_rank[victim], signal.SIGKILL)
    output(process)
    assert time.monotonic() - began < 60
    assert process.returncode != 0
    assert not runs.read_run(out).finished
    before = (out / "state" / "state.json").stat().st_mtime_ns
    again = torchrun(2, "-m", "fewsight", "train", "--resume", out)
    while again.poll() is None and (out / "state" / "state.json").stat().st_mtime_ns == before:
        time.sleep(0.1)
    os.killpg(again.pid, signal.SIGTERM)
    assert "continuing after step" in output(again)


def test_subclass_of_a_batch_norm_is_refused() -> None:
    class NormAndActivation(nn.BatchNorm2d):
        pass

    with pytest.raises(RunError, match=r"this model has NormAndActivation; train with run\.sync_norm=false"):
        synchronise_norms(nn.Sequential(nn.BatchNorm2d(2), NormAndActivation(2)))


def test_synchronised_model_keeps_names_and_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), nn.Flatten(), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    synchronise_norms(model)
    assert sum(isinstance(module, SyncNorm) for module in model.modules()) == 2
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    images = torch.randn(5, 3, 1, 1)
    assert model(images).shape == (5, 4), "in a single process it computes as torch does"
