"""The service: the same answers as `predict`, also under load; every limit and its status; access control."""

import asyncio
import contextlib
import csv
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import fewsight
from conftest import TINY, Command, calibrated_copy
from fewsight.apps.serve.batching import GATHER_S, Batcher
from fewsight.apps.serve.counters import Counters
from fewsight.apps.serve.guard import Guard
from fewsight.apps.serve.limits import Limits, RefusedError
from fewsight.errors import RunError
from fewsight.inference.ensemble import combine
from fewsight.inference.member_text import parse_member
from fewsight.models import BACKBONES
from fewsight.models.classifier import build_model
from fewsight.scores.log_probs import NOT_FINITE
from services import TOKEN, Running, picture, running, upload


@pytest.fixture(scope="module")
def served(tiny_run: Path) -> Iterator[Running]:
    with running(tiny_run) as server:
        yield server


@pytest.fixture(scope="module")
def both(tiny_run: Path, digit_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of two runs of unequal weights."""
    folder = tmp_path_factory.mktemp("both")
    fewsight.train(digit_images, folder / "o", recipe="digits", overrides=[*TINY, "run.seed=3", "eval.test_px=[16,24]"])
    members = [parse_member(str(path)) for path in (tiny_run, folder / "o")]
    combine(members, folder / "both", weights="1,3", views="paper")
    return folder / "both"


def predicted(command: Command, run: Path, target: Path, *arguments: object) -> list[dict[str, str]]:
    command("predict", run, *arguments, "--out", target, "--top-k", 3)
    with target.open(newline="") as handle:
        return list(csv.DictReader(handle))


def assert_same(result: dict[str, Any], row: dict[str, str]) -> None:
    """A result of the API equals a row of `predict`."""
    assert (result["label"] or "") == row["label"]
    for rank, entry in enumerate(result["top"], start=1):
        column = "" if rank == 1 else str(rank)
        assert entry["label"] == row[f"label{column}"]
        assert entry["prob"] == pytest.approx(float(row[f"prob{column}"]), abs=1e-5)
    if result["none_of_these"] is not None:
        assert str(result["none_of_these"]).lower() == row["none_of_these"]


# The answers


@pytest.mark.parametrize("views", [None, "report"])
@pytest.mark.parametrize("name", ["run", "calibrated", "ensemble"])
def test_answers_are_those_of_predict(
    name: str,
    views: str | None,
    both: Path,
    tiny_run: Path,
    digit_images: Path,
    enough_val: Path,
    tmp_path: Path,
    command: Command,
) -> None:
    run = both if name == "ensemble" else tiny_run
    if name == "calibrated":
        run = calibrated_copy(tiny_run, tmp_path / "run", enough_val, command, "--coverage", 0.6)
    files = sorted(digit_images.glob("test/*/*.png"))
    options = ["--views", views] if views else []
    rows = predicted(command, run, tmp_path / "rows.csv", *files, *options)
    with running(run, views=views) as server:
        results = server.predict(upload(*files), top_k=3).json()["results"]
        alone = server.predict(upload(files[3]), top_k=3).json()["results"]
    assert [result["path"] for result in results] == [file.name for file in files]
    for result, row in zip(results, rows, strict=True):
        assert_same(result, row)
        assert result["error"] is None
        assert len(result["top"]) == 3
    assert_same(alone[0], rows[3])
    assert {type(result["none_of_these"]) for result in results} == {bool if name == "calibrated" else type(None)}


def test_many_clients_get_their_own_answers(served: Running, digit_images: Path, command: Command, tmp_path: Path
                                            ) -> None:  # fmt: skip
    files = sorted(digit_images.glob("t*/*/*.png"))
    rows = predicted(command, served.service.model.path, tmp_path / "rows.csv", *files)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda file: served.predict(upload(file), top_k=3).json(), files * 4))
    for answer, row in zip(answers, rows * 4, strict=True):
        assert_same(answer["results"][0], row)
    sample = served.service.counters.registry.get_sample_value
    alone, all_batches = sample("fewsight_batch_images_bucket", {"le": "1.0"}), sample("fewsight_batch_images_count")
    assert alone is not None
    assert all_batches is not None
    assert alone < all_batches, "images of several clients were scored together"


def test_file_that_is_no_image_has_an_error_and_the_others_their_result(served: Running, digit_images: Path) -> None:
    good = upload(next(digit_images.glob("test/two/*.png")))
    answer = served.predict([("files", ("no.png", b"no image")), *good, ("files", ("empty.png", b""))])
    assert answer.status_code == 200
    first, second, third = answer.json()["results"]
    assert first | {"error": None} == {
        "path": "no.png", "label": None, "prob": None, "top": [], "none_of_these": None, "error": None}  # fmt: skip
    assert re.match("not an image of a supported format", first["error"])
    assert third["error"] == "empty file (0 bytes)"
    assert (second["error"], len(second["top"])) == (None, 3)
    assert second == served.predict(good).json()["results"][0] | {"prob": second["prob"], "top": second["top"]}


def not_finite(server: Running, value: float, width: int) -> None:
    """Let the run's model give a logit for pictures of this width that is not finite."""
    model = server.service.model
    ((name, scorer),) = model._loaded.items()
    (cut,) = model.cut(picture(width, width), "bad", max_pixels=1000)[name]
    bad = scorer.normalise.of_bytes(torch.from_numpy(cut).permute(2, 0, 1)[None])[0]

    def spoil(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        for image, logits in zip(inputs[0], output[0], strict=True):
            if any(torch.allclose(image, shown, atol=1e-4) for shown in (bad, bad.flip(2))):
                logits[1] = value

    scorer.model.register_forward_hook(spoil)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_give_no_probability(value: float, tiny_run: Path) -> None:
    good, bad, no_image = [("files", (f"{name}.png", data)) for name, data in
                           [("good", picture(8)), ("bad", picture(9, 9)), ("no", b"no image")]]  # fmt: skip
    with running(tiny_run) as server:
        not_finite(server, value, 9)
        answer = server.predict([good, bad], details=True)
        assert answer.status_code == 200
        right, wrong = answer.json()["results"]
        assert (right["error"], right["prob"] > 0) == (None, True)
        assert wrong == {"path": "bad.png", "label": None, "prob": None, "top": [], "none_of_these": None,
                         "error": NOT_FINITE, "details": None}  # fmt: skip
        for files, status, expected in [
            ([bad], 500, NOT_FINITE),
            ([bad, bad], 500, f"none of the 2 files has probabilities; the first: {NOT_FINITE}"),
            ([bad, no_image], 500, f"none of the 2 files has probabilities; the first: {NOT_FINITE}"),
            ([good, bad, no_image], 200, None),
        ]:
            answer = server.predict(files)
            assert (answer.status_code, answer.json().get("error")) == (status, expected)
            assert len(answer.json()["results"]) == len(files)
        metrics = server.client.get("/metrics").text
    assert 'fewsight_images_total{outcome="predicted"} 2.0' in metrics
    assert 'fewsight_images_total{outcome="error"} 8.0' in metrics


def test_model_whose_weights_are_not_finite_gives_no_probability(tiny_run: Path) -> None:
    with running(tiny_run) as server:
        (scorer,) = server.service.model._loaded.values()
        scorer.model.head.bias.data[0] = float("nan")
        answer = server.predict([("files", ("a.png", picture()))], details=True)
    assert answer.status_code == 500
    (result,) = answer.json()["results"]
    assert (result["label"], result["prob"], result["top"], result["details"]) == (None, None, [], None)
    assert result["error"] == NOT_FINITE


@pytest.mark.parametrize(
    ("files", "status", "expected"),
    [
        ([b"no image"], 415, "not an image of a supported format"),
        ([b"no image", b"<svg/>"], 415, "none of the 2 files could be read; the first: not an image"),
        ([b""], 422, "empty file"),
        ([picture(64, 64)[:2000]], 422, "cannot be decoded"),
        ([picture(3000, 400)], 413, "too large: 3000 x 400 is more than 1,000,000 pixels"),
        ([picture(3000, 400, "JPEG")], 413, "too large: 3000 x 400 is more than 1,000,000 pixels"),
        ([b"no image", picture(3000, 400)], 422, "none of the 2 files"),
    ],
)
def test_status_says_why_no_file_could_be_read(files: list[bytes], status: int, expected: str, tiny_run: Path) -> None:
    with running(tiny_run, Limits(max_pixels=10**6)) as server:
        answer = server.predict([("files", (f"{number}.png", data)) for number, data in enumerate(files)])
    assert answer.status_code == status
    assert expected in answer.json()["error"]
    assert len(answer.json()["results"]) == len(files)


def test_details_have_each_views_and_members_prediction_and_activation_maps(
    both: Path, digit_images: Path, tmp_path: Path
) -> None:
    file = next(digit_images.glob("test/two/*.png"))
    with running(both) as server:
        (result,) = server.predict(upload(file), details=True).json()["results"]
        assert "details" not in server.predict(upload(file)).json()["results"][0]
        about = server.client.get("/api/model").json()
    details = result["details"]
    assert about["members"] == [member["member"] for member in details["members"]] == ["tiny", "o"]
    alone = [fewsight.load(run).predict([file]) for run in sorted(both.glob("runs/*"))]
    assert {view["view"] for view in details["views"]} == set(about["views"])
    assert all(0 < view["prob"] <= 1 and view["label"] in about["classes"] for view in details["views"])
    first = next(view for view in details["views"] if view["view"] == "center-16")
    assert first["member"] == "o"
    assert first["prob"] == pytest.approx(alone[0].top(1)[0][0][1], abs=1e-5)
    tiny = next(member for member in details["members"] if member["member"] == "tiny")
    whole = fewsight.load(both / "runs" / "tiny", "report").predict([file])
    assert tiny["prob"] == pytest.approx(whole.top(1)[0][0][1], abs=1e-5)
    for activation in details["activations"]:
        assert activation["picture"].startswith("data:image/jpeg;base64,")
        assert activation["view"].startswith("center-")
        assert np.array(activation["map"]).ndim == 2
    assert [activation["member"] for activation in details["activations"]] == ["tiny", "o"]


@pytest.mark.parametrize("name", [*(name for name in BACKBONES if "101" not in name), "timm:resnet18"])
def test_activation_map_averages_to_the_logit_above_the_mean(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 5, **({} if ":" in name else {"stem": "small", "width": 0.125})).eval()
    images, classes = torch.rand(2, 3, 32, 32), torch.tensor([3, 1])
    with torch.inference_mode():
        logits, _ = model(images)
        maps = model.activation_maps(images, classes)
    above = logits - model.head.bias
    expected = above[torch.arange(2), classes] - above.mean(1)
    assert maps.shape[0] == 2
    torch.testing.assert_close(maps.mean((1, 2)), expected, rtol=1e-4, atol=1e-5)


def test_model_without_an_activation_map_is_refused() -> None:
    model = build_model("timm:mobilenetv3_small_050", 5).eval()
    with torch.inference_mode(), pytest.raises(RunError, match="between its feature map and the head"):
        model.activation_maps(torch.rand(1, 3, 32, 32), torch.tensor([3]))


def test_library_takes_the_bytes_of_a_file(tiny_run: Path, digit_images: Path) -> None:
    file = next(digit_images.glob("test/two/*.png"))
    predictions = fewsight.load(tiny_run, "report").predict([file, file.read_bytes(), b"nothing"])
    assert np.array_equal(predictions.probs[0], predictions.probs[1]), "random crops too"
    assert predictions.errors[2] is not None


def test_model_info_describes_the_run(served: Running) -> None:
    about = served.client.get("/api/model").json()
    assert about["classes"] == ["nought", "one", "two"]
    assert (about["name"], about["views"], about["members"]) == ("tiny", ["center-32"], [])
    assert about["temperature"] is about["threshold"] is about["coverage"] is None


def test_file_names_come_back_as_they_were_sent(served: Running, digit_images: Path) -> None:
    data = next(digit_images.glob("test/two/*.png")).read_bytes()
    names = ["=cmd().png", "<img src=x>.png", "مثال ‮gnp.png", "a" * 300, "../../etc/passwd", "two words;.png"]
    results = served.predict([("files", (name, data)) for name in names]).json()["results"]
    assert [result["path"] for result in results] == names


# The limits


def test_request_with_too_many_bytes_is_refused(tiny_run: Path) -> None:
    data = picture(200, 200)
    with running(tiny_run, Limits(max_bytes=100_000)) as server:
        answer = server.predict([("files", ("a.png", data))])
        assert (answer.status_code, answer.json()["error"]) == (
            413, "the body is larger than 100,000 bytes, the limit of a request")  # fmt: skip
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
            for _ in range(10_000):
                sent += 10_000
                yield b"x" * 10_000

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = server.client.post("/api/predict", content=endless(), headers=headers)
        assert answer.status_code == 413
        assert server.predict([("files", ("a.png", picture()))]).status_code == 200, "the service goes on"


def test_claimed_length_is_refused_before_the_body_comes(tiny_run: Path) -> None:
    with running(tiny_run, Limits(max_bytes=100_000)) as server, connected(server) as sock:
        head = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 99999999999\r\nExpect: 100-continue"
        sock.sendall(f"POST /api/predict HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
        assert b"HTTP/1.1 413" in sock.recv(1000)


def connected(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), timeout=20)


def test_too_many_files_are_refused(tiny_run: Path) -> None:
    with running(tiny_run, Limits(max_files=3)) as server:
        files = [("files", (f"{number}.png", picture())) for number in range(4)]
        assert server.predict(files[:3]).status_code == 200
        answer = server.predict(files)
    assert answer.status_code == 422
    assert answer.json()["error"] == "more than 3 files, the limit of a request; send several requests"


@pytest.mark.parametrize(
    ("request_", "status", "expected"),
    [
        ({"content": b"{}", "headers": {"Content-Type": "application/json"}}, 415, "got 'application/json'"),
        ({}, 415, "expected multipart/form-data with the images in the field 'files', got ''"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 422, "Missing boundary"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}}, 422, "Invalid multipart"),
        ({"files": {"other": ("a.png", b"x")}}, 422, "no file in the field 'files'"),
        ({"data": {"files": "text"}, "files": {"other": ("a.png", b"x")}}, 422, "'files' has to hold files, each with"),
        ({"files": {"files": ("a.png", b"x")}, "headers": {"Content-Encoding": "gzip"}}, 415, "without Content-Encod"),
        ({"files": {"files": ("a.png", b"x")}, "params": {"top_k": "0"}}, 422, "top_k: Input should be greater"),
        ({"files": {"files": ("a.png", b"x")}, "params": {"details": "perhaps"}}, 422, "details: Input should be a"),
    ],
)
def test_malformed_request_is_refused(request_: dict[str, Any], status: int, expected: str, served: Running) -> None:
    answer = served.client.post("/api/predict", **request_)
    assert answer.status_code == status
    assert expected in answer.json()["error"]


class Slow:
    """Blocks the model until `go` is set."""

    def __init__(self, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun, predict_views = threading.Event(), threading.Event(), server.service.model.predict_views

        def held(images: Any) -> Any:
            self.begun.set()
            assert self.go.wait(30)
            return predict_views(images)

        monkeypatch.setattr(server.service.model, "predict_views", held)


def test_full_queue_is_refused_and_recovers(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_file = [("files", ("a.png", picture()))]
    with running(tiny_run, Limits(max_queue=3)) as server, ThreadPoolExecutor(4) as pool:
        slow = Slow(server, monkeypatch)
        waiting = [pool.submit(server.predict, image_file) for _ in range(3)]
        wait_until(lambda: server.service.num_waiting == 3)
        answer = server.predict(image_file)
        assert answer.status_code == 429
        assert answer.json()["error"].startswith("3 images are waiting already; try again in")
        assert int(answer.headers["Retry-After"]) >= 1
        assert "fewsight_waiting_images 3.0\n" in server.client.get("/metrics").text
        assert server.client.get("/healthz").json() == {"status": "ok"}, "others are answered"
        slow.go.set()
        assert [future.result().status_code for future in waiting] == [200] * 3
        assert server.predict(image_file).status_code == 200


def test_request_that_could_never_be_taken_is_refused_for_good(tiny_run: Path) -> None:
    """429 with Retry-After would make its client send it again for ever."""
    with running(tiny_run, Limits(max_queue=3, max_body_bytes=1500)) as server:
        about = server.client.get("/api/model").json()
        assert (about["max_files"], about["max_bytes"]) == (3, 1500), "what a client is told is what it may send"
        for files, expected in [
            ([b"x"] * 4, "4 files are more than the 3 images that can wait at one time; send several requests"),
            ([b"x" * 2000], "the body is larger than 1,500 bytes, the limit of a request"),
        ]:
            answer = server.predict([("files", ("a.png", data)) for data in files])
            assert (answer.status_code, answer.json()["error"]) == (413, expected)
            assert "Retry-After" not in answer.headers
        assert server.predict([("files", ("a.png", picture()))]).status_code == 200


def test_stopping_service_says_so(tiny_run: Path) -> None:
    with running(tiny_run) as server:
        server.service.close()
        answer = server.predict([("files", ("a.png", picture()))])
        health = server.client.get("/healthz")
    assert (answer.status_code, answer.json()) == (503, {"error": "the service is stopping"})
    assert (health.status_code, health.json()) == (503, {"status": "the service is stopping"})
    assert int(answer.headers["Retry-After"]) >= 1


def test_image_that_is_being_decoded_as_the_service_stops_is_refused(tiny_run: Path, monkeypatch: pytest.MonkeyPatch
                                                                     ) -> None:  # fmt: skip
    with running(tiny_run) as server, ThreadPoolExecutor(1) as pool:
        cut, go, begun = server.service._cut, threading.Event(), threading.Event()

        def slow(upload: Any) -> Any:
            begun.set()
            assert go.wait(20)
            return cut(upload)

        monkeypatch.setattr(server.service, "_cut", slow)
        waiting = pool.submit(server.predict, [("files", (f"{number}.png", picture())) for number in range(20)])
        assert begun.wait(20)
        server.service.batcher.close()
        server.service.is_stopping = True
        go.set()
        assert waiting.result().status_code == 503


def test_request_that_is_cancelled_as_the_service_stops_is_answered() -> None:
    sent: list[Any] = []

    async def never_answers(_scope: Any, _receive: Any, _send: Any) -> None:
        await asyncio.sleep(60)

    async def cancel() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            await asyncio.sleep(60)

        counters = Counters(lambda: 0)
        guard = Guard(never_answers, TOKEN, counters)
        headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/api/predict", "headers": headers}
        task = asyncio.create_task(guard(scope, receive, send))
        await asyncio.sleep(0.01)
        task.cancel()
        await task
        labels = {"path": "/api/predict", "status": "503"}
        assert counters.registry.get_sample_value("fewsight_requests_total", labels) == 1

    asyncio.run(cancel())
    assert (sent[0]["status"], json.loads(sent[1]["body"])) == (503, {"error": "the service is stopping"})


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_queue_that_would_take_too_long_is_refused(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tiny_run, Limits(timeout_s=5)) as server, ThreadPoolExecutor(1) as pool:
        slow = Slow(server, monkeypatch)
        waiting = pool.submit(server.predict, [("files", ("a.png", picture()))])
        wait_until(lambda: server.service.num_waiting == 1)
        server.service.batcher.seconds_per_image = 4.0
        answer = server.predict([("files", ("a.png", picture()))])
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "4")
        slow.go.set()
        assert waiting.result().status_code == 200


def test_answer_that_takes_too_long_is_refused(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [("files", ("a.png", picture()))]
    with running(tiny_run, Limits(timeout_s=0.4)) as server:
        slow = Slow(server, monkeypatch)
        answers = [server.predict(files) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [503, 503]
        assert answers[0].json()["error"] == "no answer within 0.4 s; send fewer images, or try again later"
        assert "Retry-After" in answers[0].headers
        slow.go.set()
        wait_until(lambda: server.predict(files).status_code == 200)


def test_images_of_a_disconnected_client_are_skipped(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tiny_run) as server:
        slow, predict_views, batches = Slow(server, monkeypatch), server.service.model.predict_views, list[int]()

        def counted(images: Any) -> Any:
            batches.append(len(images))
            return predict_views(images)

        monkeypatch.setattr(server.service.model, "predict_views", counted)
        body = (b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + picture()
                + b"\r\n--x--\r\n")  # fmt: skip
        head = f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}"
        ask = f"POST /api/predict HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode() + body
        socks = [connected(server) for _ in range(3)]
        for number, sock in enumerate(socks, start=1):
            sock.sendall(ask)
            wait_until(lambda number=number: server.service.num_waiting == number)
            assert slow.begun.wait(20)
        for sock in socks:
            sock.close()
        wait_until(lambda: server.service.num_waiting == 0)
        slow.go.set()
        assert server.predict([("files", ("a.png", picture()))]).status_code == 200
    assert sum(batches) == 2, "the image that the model was scoring, and the last one"


def test_upload_that_stalls_is_refused(tiny_run: Path) -> None:
    with running(tiny_run, Limits(timeout_s=0.5)) as server, connected(server) as sock:
        head = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000"
        sock.sendall(f"POST /api/predict HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n--x\r\n".encode())
        answer = b""
        while more := sock.recv(1000):
            answer += more
        assert b"408 Request Timeout" in answer
        assert b"the upload did not end within 0.5 s" in answer


def test_idle_connection_is_closed(tiny_run: Path) -> None:
    with running(tiny_run, Limits(timeout_s=0.5)) as server, connected(server) as silent, connected(server) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
        for sock in (silent, slow):
            with pytest.raises((ConnectionResetError, AssertionError)):
                assert sock.recv(100)
        with connected(server) as again:
            again.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while b'{"status":"ok"}' not in answer:
                answer += again.recv(2000)
            again.sendall(b"GET /healthz HTTP/1.1\r\n")
            with pytest.raises((ConnectionResetError, AssertionError)):
                assert again.recv(100)


def test_too_many_connections_are_refused(tiny_run: Path) -> None:
    with running(tiny_run, Limits(max_connections=3)) as server:
        socks = [connected(server) for _ in range(3)]
        with connected(server) as more:
            answer = more.recv(1000)
            assert answer.startswith(b"HTTP/1.1 503")
            assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"error": "too many connections; try again soon"}
        for sock in socks:
            sock.close()
        wait_until(lambda: server.client.get("/healthz").status_code == 200)


def test_uploads_beyond_the_body_budget_are_refused(tiny_run: Path) -> None:
    with running(tiny_run, Limits(max_body_bytes=1500)) as server, connected(server) as sock:
        head = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000"
        sock.sendall(f"POST /api/predict HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n--x\r\n".encode())
        wait_until(lambda: server.service.budget.used_bytes == 1000)
        answer = server.predict([("files", ("a.png", b"x" * 600))])
        assert (answer.status_code, answer.json()["error"]) == (429, "too many uploads at once; try again soon")
        sock.close()
        wait_until(lambda: server.service.budget.used_bytes == 0)
        assert server.predict([("files", ("a.png", picture()))]).status_code == 200


def test_request_with_many_slow_images_delays_no_other(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tiny_run) as server, ThreadPoolExecutor(1) as pool:
        cut, go, begun = server.service._cut, threading.Event(), threading.Event()

        def slow(upload: Any) -> Any:
            if upload.name == "slow":
                begun.set()
                assert go.wait(20)
            return cut(upload)

        monkeypatch.setattr(server.service, "_cut", slow)
        many = pool.submit(httpx.post, f"{server.address}/api/predict", files=[("files", ("slow", picture()))] * 12,
                           timeout=60, trust_env=False)  # fmt: skip
        assert begun.wait(20)
        for _ in range(3):
            assert server.predict([("files", ("quick", picture()))]).status_code == 200
        go.set()
        assert [result["error"] for result in many.result().json()["results"]] == [None] * 12


def test_failing_image_fails_only_its_request(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch that fails is scored image by image."""
    with running(tiny_run) as server, ThreadPoolExecutor(4) as pool:
        predict_views = server.service.model.predict_views
        bad = server.service.model.cut(picture(9, 9), "bad", max_pixels=1000)["tiny"][0]

        def failing(images: Any) -> Any:
            if any(np.array_equal(image["tiny"][0], bad) for image in images):
                raise RuntimeError("out of memory")
            return predict_views(images)

        monkeypatch.setattr(server.service.model, "predict_views", failing)
        sizes = [8, 9, 8, 10, 9, 8]
        answers = list(pool.map(lambda size: server.predict([("files", ("a.png", picture(size, size)))]), sizes))
        assert [answer.status_code for answer in answers] == [500 if size == 9 else 200 for size in sizes]
        assert answers[1].json() == {"error": "the service failed on this request; its log says why"}
        assert "out of memory" in caplog.text
        assert "Content-Security-Policy" in answers[1].headers
        assert server.client.get("/healthz").status_code == 200


def test_batch_takes_the_waiting_images(tiny_run: Path) -> None:
    """The first image alone, then those that waited, at most a full batch; a cancelled image is not scored."""
    model, batches = fewsight.load(tiny_run), list[int]()
    model.load()
    image, go, begun = model.cut(picture(), "a", max_pixels=1000), threading.Event(), threading.Event()
    predict_views = model.predict_views

    def held(images: Any) -> Any:
        begun.set()
        assert go.wait(20)
        return predict_views(images)

    model.predict_views = held  # type: ignore[method-assign]
    batcher = Batcher(model, 4, lambda: 0, time.monotonic, batches.append)
    futures = [batcher.submit(image, explain=False)]
    assert begun.wait(20)
    futures += [batcher.submit(image, explain=False) for _ in range(7)]
    assert futures[3].cancel()
    go.set()
    batcher.close()
    assert batches == [1, 3, 3]
    assert all(future.result().batch.predictions.errors[future.result().index] is None
               for future in futures if not future.cancelled())  # fmt: skip
    with pytest.raises(RefusedError, match="stopping"):
        batcher.submit(image, explain=False)


def test_batch_waits_a_moment_for_pending_images(tiny_run: Path) -> None:
    model, batches, num_pending = fewsight.load(tiny_run), list[int](), [3]
    model.load()
    image = model.cut(picture(), "a", max_pixels=1000)
    batcher = Batcher(model, 4, lambda: num_pending[0], time.monotonic, batches.append)
    futures = [batcher.submit(image, explain=False)]
    time.sleep(GATHER_S / 10)
    futures += [batcher.submit(image, explain=False) for _ in range(2)]
    for future in futures:
        future.result(20)
    num_pending[0] = 2  # an image that never arrives delays the others only for a moment
    began = time.monotonic()
    batcher.submit(image, explain=False).result(20)
    assert time.monotonic() - began < 5
    batcher.close()
    assert batches == [3, 1]


# Access control


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8000"}, 403),
        ({"Host": "evil.example@localhost:1", "Origin": "http://evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8001"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
    ],
    ids=str,
)
def test_without_a_token_only_this_machine_is_allowed(headers: dict[str, str], status: int, served: Running) -> None:
    answer = served.client.get("/api/model", headers=headers)
    assert answer.status_code == status
    posted = served.client.post("/api/predict", headers=headers, files={"files": ("a.png", picture())})
    assert posted.status_code == status
    if status == 403:
        assert "without a token" in posted.json()["error"]


def test_token_is_required_and_sufficient(tiny_run: Path) -> None:
    with running(tiny_run, token=TOKEN) as server:
        elsewhere = {"Host": "models.example", "Origin": "https://models.example"}
        assert server.client.get("/api/model", headers=elsewhere).status_code == 200, "behind a proxy"
        for path in ("/api/model", "/metrics", "/nothing"):
            for wrong in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer é"):
                answer = server.client.get(path, headers={"Authorization": wrong.encode()})
                assert answer.status_code == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert answer.json() == {"error": "this needs the service's token: Authorization: Bearer TOKEN"}
        posted = server.client.post("/api/predict", headers={"Authorization": ""}, files={"files": ("a", b"x" * 10**6)})
        assert posted.status_code == 401
        for path in ("/", "/page.js", "/page.css", "/docs", "/docs.js", "/openapi.json", "/healthz"):
            assert server.client.get(path, headers={"Authorization": ""}).status_code == 200
        described = server.client.get("/openapi.json").json()
        assert described["paths"]["/api/predict"]["post"]["security"] == [{"token": []}]


def test_every_answer_has_the_security_headers(served: Running) -> None:
    for path in ("/", "/docs", "/page.js", "/api/model", "/nothing", "/metrics"):
        headers = served.client.get(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
        assert "server" not in headers
    assert served.client.get("/", headers={"Host": "evil.example"}).headers["Cache-Control"] == "no-store"


def test_pages_load_nothing_from_other_hosts(served: Running) -> None:
    for path in ("/", "/docs", "/page.js", "/docs.js", "/page.css"):
        text = served.client.get(path).text
        assert not re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text), path
        assert "innerHTML" not in text


# Metrics and the description


def test_metrics_are_prometheus_text(tiny_run: Path, digit_images: Path) -> None:
    with running(tiny_run) as server:
        server.predict(upload(*sorted(digit_images.glob("test/two/*.png"))))
        server.predict([("files", ("a.png", b"no"))])
        server.client.get("/nothing/<script>")
        text = server.client.get("/metrics").text
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(
                r'([a-z_]+(?:\{[a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*\})?) (\d+(?:\.\d+)?(?:e[+-]\d+)?)', line
            )
            assert match, line
            values[match[1]] = float(match[2])
    assert values['fewsight_requests_total{path="/api/predict",status="200"}'] == 1
    assert values['fewsight_requests_total{path="/api/predict",status="415"}'] == 1
    assert values['fewsight_requests_total{path="other",status="404"}'] == 1
    assert values['fewsight_images_total{outcome="predicted"}'] == 5
    assert values['fewsight_images_total{outcome="error"}'] == 1
    assert values["fewsight_waiting_images"] == 0
    assert values["fewsight_predict_seconds_count"] == values['fewsight_predict_seconds_bucket{le="+Inf"}'] == 2
    assert values["fewsight_batch_images_sum"] == 5


def test_description_names_the_field_and_every_refusal(served: Running) -> None:
    described = served.client.get("/openapi.json").json()
    operation = described["paths"]["/api/predict"]["post"]
    schema = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema["required"] == ["files"]
    assert set(operation["responses"]) == {"200", "401", "403", "408", "413", "415", "422", "429", "500", "503"}
    result = described["components"]["schemas"]["Result"]["properties"]
    assert {"path", "label", "prob", "top", "error", "none_of_these"} <= set(result)


# The command


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "fewsight", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            match = re.match(r"(http://\S+) serves ", process.stdout.readline())
            assert match, process.communicate()
            yield process, match[1]
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_signal_ends_the_service_once_requests_are_answered(number: int, code: int, tiny_run: Path) -> None:
    files = [("files", ("a.png", picture(500, 500)))] * 30
    with started(tiny_run, "--port", 0, "--batch", 1) as (process, address), ThreadPoolExecutor(1) as pool:
        future = pool.submit(httpx.post, f"{address}/api/predict", files=files, timeout=60, trust_env=False)
        wait_until(lambda: "fewsight_waiting_images 30" in httpx.get(f"{address}/metrics", trust_env=False).text)
        process.send_signal(number)
        assert future.result().status_code == 200
        assert len(future.result().json()["results"]) == 30
        out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert (out, err) == ("", "fewsight: stopped; every request received before was answered\n")


def test_port_that_is_taken_is_refused(tiny_run: Path, refused: Callable[..., str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = refused("serve", tiny_run, "--port", port)
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another --port" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 opens the service to other machines, which needs a token: set FEWSIG"),
        (["--host", "0.0.0.0", "--token", "short"], "the token has to be at least 16 ASCII characters"),
        (["--port", "70000"], "--port 70000: expected 0"),
        (["--port", "0", "--host", "192.0.2.1", "--token", TOKEN], "cannot listen on 192.0.2.1 port 0"),
        (["--port", "0", "--batch", "0"], "--batch 0: a limit of the service has to be above 0"),
        (["--port", "0", "--views", "center-9999"], "--views center-9999"),
    ],
)
def test_command_refuses_invalid_options(
    arguments: list[str], expected: str, tiny_run: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEWSIGHT_TOKEN", raising=False)
    assert expected in refused("serve", tiny_run, *arguments)


def test_missing_run_is_refused(refused: Callable[..., str]) -> None:
    assert "nothing does not exist" in refused("serve", "nothing", "--port", "0")


def test_absent_extra_says_what_to_install(
    tiny_run: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewsight.apps.serve.PACKAGES", ("fastapi", "not_there_at_all"))
    assert "serve needs an extra: pip install 'fewsight[serve]'" in refused("serve", tiny_run)


# The guide


GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "serve.md"


def test_examples_of_the_guide_work(
    served: Running,
    digit_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its curl line and its Python client, with the address of a service."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    files = sorted(digit_images.glob("test/two/*.png"))[:2]
    for number, file in enumerate(files, start=1):
        shutil.copy(file, tmp_path / "new" / f"{number}.png")
    text = GUIDE.read_text(encoding="utf-8").replace("http://localhost:8000", served.address)
    expected = fewsight.load(served.service.model.path).predict(files).labels
    (client,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "httpx" in block]
    capsys.readouterr()
    exec(compile(client, "serve.md", "exec"), {})
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["1.png", expected[0]], ["2.png", expected[1]]]  # fmt: skip
    (line,) = re.findall(r"^curl .*$", text, re.M)
    if shutil.which("curl"):
        answer = subprocess.run([*shlex.split(line), "--silent", "--noproxy", "*"], capture_output=True, check=True)
        assert [result["label"] for result in json.loads(answer.stdout)["results"]] == list(expected)


def test_guide_has_every_status_and_option(served: Running) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    described = served.client.get("/openapi.json").json()
    for status in described["paths"]["/api/predict"]["post"]["responses"]:
        assert status == "200" or re.search(rf"^\| (?:\d+, )?{status}\b", text, re.M), status
    for field in described["components"]["schemas"]["Result"]["properties"]:
        assert f"`{field}`" in text
    for path in described["paths"]:
        assert path in text
    metrics = re.findall(r"^# TYPE (\w+)(?<!_created) (\w+)$", served.client.get("/metrics").text, re.M)
    assert len(metrics) == 5
    assert all(f"| `{name}` | {kind} |" in text for name, kind in metrics)
