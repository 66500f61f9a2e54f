"""Device, precision, threads and workers: resolved within the number of cores, or refused with the reason."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewsight.augment.normalise import Normalise
from fewsight.errors import RecipeError
from fewsight.machine import cores, device
from fewsight.machine.cores import num_cores
from fewsight.machine.device import (
    compute_threads,
    member_devices,
    random_state_kept,
    resolve_device,
    resolve_run,
    same_bits,
)
from fewsight.recipes import RunSettings

AUTO = st.just("auto")


def run_settings(**values: Any) -> RunSettings:
    return RunSettings.model_validate({"device": "cpu", "precision": "float32", **values})


@given(st.integers(1, 96), AUTO | st.integers(1, 100), AUTO | st.integers(0, 100), st.sampled_from(["cpu", "cuda"]))
def test_threads_and_workers_never_exceed_the_cores(cores: int, threads: Any, workers: Any, kind: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "num_cores", lambda: cores)
        patch.setattr(device, "resolve_device", torch.device)
        check_division(cores, threads, workers, run_settings(device=kind, threads=threads, workers=workers))


def check_division(cores: int, threads: Any, workers: Any, run: RunSettings) -> None:
    given_threads, given_workers = 1 if threads == "auto" else threads, 0 if workers == "auto" else workers
    if given_threads + given_workers > cores:
        with pytest.raises(RecipeError, match=rf"but this process has {cores}; lower one of them"):
            resolve_run(run)
        return
    resolved = resolve_run(run)
    assert isinstance(resolved.threads, int)
    assert isinstance(resolved.workers, int)
    assert resolved.threads + resolved.workers <= cores
    assert threads in ("auto", resolved.threads)
    assert workers in ("auto", resolved.workers)


@pytest.mark.parametrize(("cores", "expected"), [(1, (1, 0)), (2, (2, 0)), (3, (3, 0)), (4, (3, 1)), (16, (12, 4))])
def test_cpu_divides_its_cores_between_compute_and_loading(
    monkeypatch: pytest.MonkeyPatch, cores: int, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(device, "num_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    resolved = resolve_run(run_settings())
    assert (resolved.threads, resolved.workers) == expected


@pytest.mark.parametrize(
    ("kind", "processes", "expected"),
    [("cuda", "4", (1, 3)), ("cpu", "4", (3, 1)), ("cpu", "16", (1, 0)), ("cpu", "99", (1, 0)), ("cpu", "", (12, 4))],
)
def test_processes_of_a_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, kind: str, processes: str, expected: tuple[int, int]
) -> None:
    """As torchrun starts them: four GPU processes on 16 cores load with 12 processes, not with 60."""
    monkeypatch.setattr(device, "num_cores", lambda: 16)
    monkeypatch.setattr(device, "resolve_device", torch.device)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    resolved = resolve_run(run_settings(device=kind))
    assert (resolved.threads, resolved.workers) == expected
    if processes == "4":
        with pytest.raises(RecipeError, match=r"this process has 4; lower one of them \(4 processes share 16\)"):
            resolve_run(run_settings(device=kind, workers=4, threads=1))


@pytest.mark.parametrize(
    ("cores", "members", "given", "expected"),
    [
        (2, 4, {}, (2, 1, 0)),
        (2, 4, {"threads": 2}, (1, 2, 0)),
        (7, 4, {}, (4, 1, 0)),
        (8, 3, {}, (3, 2, 0)),
        (16, 4, {}, (4, 3, 1)),
        (16, 4, {"threads": 1}, (4, 1, 1)),
        (16, 4, {"threads": 1, "workers": 7}, (2, 1, 7)),
        (16, 32, {}, (16, 1, 0)),
        (1, 2, {}, (1, 1, 0)),
    ],
)
def test_members_on_a_cpu_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, members: int, given: dict[str, int], expected: tuple[int, int, int]
) -> None:
    """As many at a time as there are cores for; the resolved recipe gives the same number again."""
    monkeypatch.setattr(device, "num_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    resolved = resolve_run(run_settings(members=members, **given))
    assert (len(member_devices(resolved)), resolved.threads, resolved.workers) == expected
    assert resolve_run(resolved) == resolved


def test_members_on_gpus_have_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "num_cores", lambda: 16)
    monkeypatch.setattr(device, "resolve_device", torch.device)
    monkeypatch.setattr(device, "gpus", lambda: ["cuda:0", "cuda:1", "cuda:2"])
    assert member_devices(run_settings(device="cuda", members=2)) == ["cuda:0", "cuda:1"]
    assert member_devices(run_settings(device="cuda", members=5)) == ["cuda:0", "cuda:1", "cuda:2"]
    assert member_devices(run_settings(device="cuda:1", members=5)) == [None]
    assert member_devices(run_settings(device="mps", members=5)) == [None]
    assert resolve_run(run_settings(device="cuda", members=4)).workers == 4


@pytest.mark.parametrize(("said", "threads"), [("3", 3), ("3,2", 3), ("99", 12), ("0", 12), ("none", 12), ("", 12)])
def test_threads_follow_omp_num_threads(monkeypatch: pytest.MonkeyPatch, said: str, threads: int) -> None:
    monkeypatch.setattr(device, "num_cores", lambda: 16)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert resolve_run(run_settings()).threads == threads
    assert resolve_run(run_settings(threads=8, workers=2)).threads == 8


def test_resolved_run_stays_as_it_is() -> None:
    resolved = resolve_run(run_settings(seed=3, state_minutes=2.0))
    assert resolve_run(resolved) == resolved
    assert (resolved.device, resolved.seed, resolved.state_minutes) == ("cpu", 3, 2.0)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "cpu:0"])
def test_unavailable_device_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"run\.device: '{name}' is not available; this machine has cpu"):
        resolve_run(run_settings(device=name))


def test_auto_device_is_available() -> None:
    chosen = resolve_device("auto")
    assert chosen.type == "cuda" if torch.cuda.is_available() else chosen.type in ("mps", "cpu")


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(RecipeError, match=r'"fp16" needs a CUDA device, got cpu; use "bf16" or "float32"'):
        resolve_run(run_settings(precision="fp16"))


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, "bf16"), (0.9, "float32"), (3.0, "float32")])
def test_cpu_uses_bf16_only_if_it_is_faster(monkeypatch: pytest.MonkeyPatch, seconds: float, expected: str) -> None:
    measured = {torch.float32: 1.0, torch.bfloat16: seconds}
    monkeypatch.setattr(device, "_convolution_seconds", measured.__getitem__)
    device.best_precision.cache_clear()
    assert resolve_run(run_settings(precision="auto")).precision == expected
    device.best_precision.cache_clear()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_num_cores_honours_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= num_cores() <= len(before)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["150000 100000\n"], 2),
        (["20000 100000"], 1),
        (["max 100000"], 8),
        (["odd"], 8),
        (["150000\n", "100000\n"], 2),  # version 1 has a file for each
        (["-1\n", "100000\n"], 8),
    ],
)
def test_num_cores_honours_the_control_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, texts: list[str], expected: int
) -> None:
    for number, text in enumerate(texts):
        (tmp_path / str(number)).write_text(text)
    files = tuple(str(tmp_path / str(number)) for number in range(len(texts)))
    monkeypatch.setattr(cores, "QUOTAS", (("/nowhere",), files))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert num_cores() == expected


def test_compute_threads_are_set_and_restored() -> None:
    before = torch.get_num_threads()
    with compute_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_images_reach_the_device_and_the_model_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.arange(7 * 3 * 4 * 5).to(torch.uint8).view(7, 3, 4, 5)
    monkeypatch.setattr(
        "fewsight.augment.normalise.PART_BYTES", 3 * 4 * 3 * 4 * 5
    )  # two parts of three images and one of one
    normalise = Normalise((0.1, 0.2, 0.3), (0.5, 0.25, 0.2))
    normalised = normalise.of_bytes(pixels)
    assert (normalised.dtype, normalised.shape) == (torch.float32, (7, 3, 4, 5))
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    assert normalised[1, 2, 3, 4].item() == pytest.approx((119 / 255 - 0.3) / 0.2)
    assert torch.equal(normalised, normalise(pixels.float().div_(255))), "bit for bit"
    assert normalise.of_bytes(pixels[:0]).shape == (0, 3, 4, 5)


def test_deterministic_operations_are_required_inside_the_block_only() -> None:
    cpu = torch.device("cpu")
    with same_bits(cpu, always=True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with same_bits(cpu, always=False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_nondeterministic_operation_is_refused_by_name() -> None:
    message = r"run\.deterministic: put_ does not have a deterministic"
    with pytest.raises(RecipeError, match=message), same_bits(torch.device("cpu"), always=True):
        raise RuntimeError("put_ does not have a deterministic implementation, but you set ...")
    with pytest.raises(RuntimeError, match="another reason"), same_bits(torch.device("cpu"), always=True):
        raise RuntimeError("another reason")


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_settings_of_cuda_are_put_back(monkeypatch: pytest.MonkeyPatch, workspace: str | None) -> None:
    name, cudnn = "CUBLAS_WORKSPACE_CONFIG", torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    monkeypatch.delenv(name, raising=False)
    if workspace:
        monkeypatch.setenv(name, workspace)
    with same_bits(torch.device("cuda"), always=False):
        assert (cudnn.deterministic, cudnn.benchmark, os.environ[name]) == (True, False, workspace or ":4096:8")
    assert (cudnn.deterministic, cudnn.benchmark, os.environ.get(name)) == (False, True, workspace)


def test_random_streams_of_torch_are_put_back() -> None:
    state = torch.get_rng_state()
    with random_state_kept():
        torch.manual_seed(7)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    device.best_precision.cache_clear()
    device.best_precision(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
