"""No request ends, hangs or fills the service: hostile bytes, and requests generated from its own description.

`pytest tests/apps/test_serve_hostile.py -m slow -s` prints its figures.
"""

import contextlib
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_serve import started, wait_until

from services import Running, picture, running

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
pytestmark = pytest.mark.slow
NUM_REQUESTS = 10_000
NUM_WARM_UP = 2_000  # of them, before memory is compared
NUM_CONNECTIONS = 48  # at one time
PREDICT = "/api/predict"
NUM_EXAMPLES = 300  # of each operation and mode
MAX_GROWTH_MB = 64  # of the memory after the warm-up requests
IMAGES = [picture(24, 16, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")]


def multipart(parts: list[tuple[bytes, bytes]], boundary: bytes = b"b") -> bytes:
    """A body of (head, data) parts."""
    body = b"".join(b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
    return body + b"--" + boundary + b"--\r\n"


def http_request(
    body: bytes, *heads: bytes, target: bytes = b"/api/predict", method: bytes = b"POST", length: bytes = b""
) -> bytes:
    """A request."""
    length = length or str(len(body)).encode()
    all_heads = [b"Host: localhost", b"Content-Length: " + length, *heads]
    return method + b" " + target + b" HTTP/1.1\r\n" + b"\r\n".join(all_heads) + b"\r\n\r\n" + body


FORM = b"Content-Type: multipart/form-data; boundary=b"
FILE = b'Content-Disposition: form-data; name="files"; filename="a.png"'


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The data with some bytes changed, dropped or repeated."""
    values = bytearray(data)
    for _ in range(int(rng.integers(1, 12))):
        index = int(rng.integers(0, max(1, len(values))))
        kind = rng.integers(3)
        if kind == 0 and values:
            values[index] = int(rng.integers(256))
        elif kind == 1:
            del values[index : index + int(rng.integers(1, 40))]
        else:
            values[index:index] = values[index : index + int(rng.integers(1, 40))]
    return bytes(values)


def hostile(number: int) -> bytes:
    """The bytes of request `number`."""
    rng = np.random.default_rng([8, number])
    image = IMAGES[int(rng.integers(len(IMAGES)))]
    noise = rng.bytes(int(rng.integers(0, 2000)))
    good = multipart([(FILE, image)])
    lies = [
        b"-1",
        b"1e9",
        b"99999999999999999999",
        b"0",
        str(len(good) + 50).encode(),
        str(len(good) // 2).encode(),
        b"x",
    ]
    charsets = [b"rot13", b"utf-16", b"\xff"]
    names = [b"../../etc/passwd", b"\xff\xfe", b"a" * 5000, b"%00", b'"', b"\x00", "‮gnp".encode(), b"=cmd()"]
    methods = [b"GET", b"PUT", b"OPTIONS", b"TRACE", b"CONNECT", b"FOO", b"\x00"]
    paths = [
        b"/..%2f..%2fetc/passwd",
        b"/api/predict/../model",
        b"//",
        b"/%00",
        b"/" + b"a" * 20_000,
        b"*",
        b"http://x/",
        b"/api/predict?top_k=" + noise.hex()[:40].encode(),
        b"/api/predict?details=true&top_k=9999999999999999999",
    ]
    chunk = f"{len(good):x}".encode() + b"\r\n" + good + b"\r\n0\r\n\r\n"
    chunks = [
        chunk,
        b"zz\r\n" + good,
        b"-5\r\n",
        b"ffffffffffffffff\r\nxx",
        chunk[:-3],
        b"1;" + b"e" * 5000 + b"\r\nx\r\n0\r\n\r\n",
    ]
    kinds = [
        noise,
        damaged(http_request(good, FORM), rng),
        http_request(multipart([(FILE, damaged(image, rng))]), FORM),
        http_request(damaged(good, rng), FORM),
        http_request(good, FORM, length=lies[number % len(lies)]),
        http_request(good, FORM)[: int(rng.integers(1, 400))],
        http_request(good, FORM, target=paths[number % len(paths)]),
        http_request(good, FORM, method=methods[number % len(methods)]),
        http_request(multipart([(FILE.replace(b"a.png", names[number % len(names)]), image)]), FORM),
        http_request(multipart([(FILE, b"")] * int(rng.integers(60, 200))), FORM),
        http_request(multipart([(b'Content-Disposition: form-data; name="x"', b"y")] * 40), FORM),
        http_request(multipart([(b"X: " + b"y" * 9000, b"")]), FORM),
        http_request(multipart([(b"", noise)]), FORM),
        http_request(good, b"Content-Type: multipart/form-data; boundary=" + noise[:80].hex().encode()),
        http_request(good, b"Content-Type: multipart/form-data; charset=" + charsets[number % 3] + b"; boundary=b"),
        http_request(good, FORM, b"Transfer-Encoding: chunked"),
        http_request(b"", FORM, b"Host: other"),
        b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\n" + FORM + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunks[number % len(chunks)],
        b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % header for header in range(3000)) + b"\r\n",
        http_request(b"", b"Connection: Upgrade", b"Upgrade: websocket", method=b"GET", target=b"/"),
        http_request(b"", b"Expect: 100-continue", FORM, length=b"99999999999"),
        http_request(b"", method=b"GET", target=b"/metrics", length=b"0") * 5 + http_request(good, FORM),
    ]  # fmt: skip
    return kinds[number % len(kinds)]


def sent(port: int, number: int) -> str:
    """Send a request and read the answer; returns its status, or how the connection ended."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(hostile(number))
            if number % 5 != 0:  # the others disconnect at once
                answer = sock.recv(4096)
                match = re.match(rb"HTTP/1\.1 (\d+)", answer)
                return match[1].decode() if match else "closed"
        return "disconnected"
    return "refused or late"


def resources_of(process: int) -> tuple[float, int, int]:
    """A process's memory in MB, open files and threads."""
    status = Path(f"/proc/{process}/status").read_text()
    memory = re.search(r"VmRSS:\s+(\d+) kB", status)
    threads = re.search(r"Threads:\s+(\d+)", status)
    assert memory
    assert threads
    return int(memory[1]) / 1e3, len(os.listdir(f"/proc/{process}/fd")), int(threads[1])  # noqa: PTH208


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory and files are read from /proc")
def test_hostile_requests_neither_end_nor_fill_the_service(tiny_run: Path, digit_images: Path) -> None:
    file = next(digit_images.glob("test/two/*.png"))
    with started(tiny_run, "--port", 0, "--timeout", 1) as (process, address):
        port = int(address.rpartition(":")[2])

        def ask() -> dict[str, Any]:
            answer = httpx.post(
                f"{address}/api/predict", files={"files": (file.name, file.read_bytes())}, trust_env=False
            )
            assert answer.status_code == 200
            return dict(answer.json()["results"][0])

        def quiet() -> bool:
            text = httpx.get(f"{address}/metrics", trust_env=False).text
            return "fewsight_waiting_images 0.0\n" in text and resources_of(process.pid)[1] <= open_files + 2

        before, ends = ask(), Counter[str]()
        open_files = resources_of(process.pid)[1]
        memories = []
        began = time.monotonic()
        with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
            for first, last in ((0, NUM_WARM_UP), (NUM_WARM_UP, NUM_REQUESTS)):
                ends += Counter(pool.map(lambda number: sent(port, number), range(first, last)))
                wait_until(quiet, 30)
                memories.append(resources_of(process.pid))
        passed = time.monotonic() - began
        text = httpx.get(f"{address}/metrics", trust_env=False).text
        after = ask()
        assert process.poll() is None
        process.terminate()
        _, err = process.communicate(timeout=30)
    print(f"\n{NUM_REQUESTS:,} hostile requests in {passed:.0f} s: {dict(ends.most_common())}; "
          f"(MB, files, threads) after {NUM_WARM_UP:,}: {memories[0]}, after all: {memories[1]}")  # fmt: skip
    assert err == "fewsight: stopped; every request received before was answered\n", "no traceback, no warning"
    assert process.returncode == 143
    assert 'status="500"' not in text
    assert ends["500"] == ends["refused or late"] == 0
    assert ends["200"] > 0
    assert {"400", "415", "422", "413", "404", "405"} <= set(ends)
    assert memories[1][0] - memories[0][0] < MAX_GROWTH_MB
    assert memories[1][2] <= memories[0][2] + 1
    assert after["label"] == before["label"]
    assert after["prob"] == pytest.approx(before["prob"], abs=1e-5)


# Requests generated from the description


@pytest.fixture(scope="module")
def served(tiny_run: Path) -> Iterator[Running]:
    with running(tiny_run) as server:
        yield server


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_answer_is_as_described(mode: str, served: Running) -> None:
    """Valid and invalid requests of every operation; by the description, bytes that are not an image are valid."""
    schema = schemathesis.openapi.from_url(f"{served.address}/openapi.json")
    statuses = Counter[int]()
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode == "negative" and operation.path != PREDICT:
            continue  # the others have no input that could be invalid

        @settings(max_examples=NUM_EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
        @given(
            case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)),
            images=st.none() | st.lists(st.sampled_from(IMAGES), min_size=1, max_size=4),
        )
        def check(case: Any, images: list[bytes] | None) -> None:
            excluded = [checks.positive_data_acceptance]
            if images and case.path == PREDICT and mode == "positive":
                case.body = {"files": images}
                excluded.append(checks.negative_data_rejection)  # schemathesis takes a body of our own for invalid
            answer = case.call()
            statuses[answer.status_code] += 1
            case.validate_response(answer, excluded_checks=excluded)

        check()
    print(f"\n{sum(statuses.values()):,} {mode} requests from the description: {dict(statuses.most_common())}")
    assert 500 not in statuses
    assert 422 in statuses
    assert mode == "negative" or statuses[200] > NUM_EXAMPLES / 10
