"""Load on a service: throughput and times at 1, 8 and 64 clients, against the same model one request at a time.

    python -m benchmarks.serve_load RUN IMAGES

The other side is the plain way to serve a model: the same framework, the same `Model.predict`, a lock around it. Each
client is a connection that sends one image, waits for the answer and sends the next. All run on this machine, so the
clients take their share of its cores. The sides take turns. Then overload: 64 clients on a queue of 16, and a single
client before and after.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks import machine
from fewsight.inference.model import load

CLIENTS = (1, 8, 64)
WARM_S = 2.0


@dataclass(frozen=True)
class Load:
    """What some clients got in a while."""

    clients: int
    seconds: float
    statuses: dict[int, int]
    images_a_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def main() -> None:
    """Measure and keep the results, or be the other side."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("images", type=Path, help="a folder of images")
    options.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--alone", action="store_true", help="serve RUN one request at a time")
    options.add_argument("--busy", action="store_true", help="measure beside other processes, and say so")
    asked = options.parse_args()
    if asked.alone:
        serve_alone(asked.run)
        return
    busy = machine.busy_processes()
    if busy and not asked.busy:
        raise SystemExit("other processes use this machine: " + ", ".join(busy))
    images = [path.read_bytes() for path in sorted(asked.images.rglob("*.JPEG"))[:256]]
    measure(asked.run, images, asked.seconds, asked.rounds, busy)


def measure(run: Path, images: Sequence[bytes], seconds: float, rounds: int, busy: Sequence[str]) -> None:
    """All measurements, printed and kept."""
    commands = {
        "batched": ["-m", "fewsight", "serve", str(run), "--port", "0"],
        "one at a time": ["-m", "benchmarks.serve_load", str(run), ".", "--alone"],
    }
    found: dict[str, dict[int, list[Load]]] = {name: {clients: [] for clients in CLIENTS} for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            with served(command) as (port, _):
                loaded(port, images, 8, WARM_S)
                for clients in CLIENTS:
                    found[name][clients].append(loaded(port, images, clients, seconds))
                    print(name, found[name][clients][-1], flush=True)
    before, flood, after, memory = overload(run, images, seconds)
    setting = machine.about("serve_load", busy, run=run.name, seconds=f"{seconds:g}", rounds=str(rounds))
    lines = [
        *machine.listed(setting),
        f"One image a request, {len(images)} images, median of {rounds} rounds; all answers 200.",
        "",
        "| clients | served | images/s | p50 ms | p95 ms | p99 ms |",
        "|---|---|---|---|---|---|",
        *(_line(clients, name, found[name][clients]) for clients in CLIENTS for name in commands),
        "",
        *(_ratio(clients, found) for clients in CLIENTS),
        "",
        f"Overload: 64 clients on a queue of 16 images for {seconds:g} s: {_told(flood.statuses)}; "
        f"{flood.images_a_second:.0f} images/s answered, p99 of those {flood.p99_ms:.0f} ms. A single client before: "
        f"p50 {before.p50_ms:.1f} ms; after: {after.p50_ms:.1f} ms. Memory of the service before {memory[0]:.0f} MB, "
        f"after {memory[1]:.0f} MB.",
    ]
    loads = {name: {clients: [asdict(one) for one in some] for clients, some in by.items()}
             for name, by in found.items()}  # fmt: skip
    parts = {"before": asdict(before), "flood": asdict(flood), "after": asdict(after), "memory_mb": memory}
    values = {"loads": loads, "overload": parts, "busy": list(busy)}
    print("\n".join(lines))
    machine.keep("serve-load", "Load on `fewsight serve`", lines, values)


def overload(run: Path, images: Sequence[bytes], seconds: float) -> tuple[Load, Load, Load, tuple[float, float]]:
    """A single client, 64 on a queue of 16, a single client again; the service's memory before and after the flood."""
    with served(["-m", "fewsight", "serve", str(run), "--port", "0", "--max-queue", "16"]) as (port, process):
        loaded(port, images, 8, WARM_S)
        before = loaded(port, images, 1, seconds / 2)
        memory = resident_mb(process)
        flood = loaded(port, images, 64, seconds)
        return before, flood, loaded(port, images, 1, seconds / 2), (memory, resident_mb(process))


def resident_mb(process: int) -> float:
    """Memory of a process in MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1e3 if found else float("nan")


@contextlib.contextmanager
def served(command: Sequence[str]) -> Iterator[tuple[int, int]]:
    """A service in a process of its own: its port and process."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        try:
            assert process.stdout is not None
            port = re.match(r"http://127.0.0.1:(\d+)", process.stdout.readline())
            if port is None:
                raise SystemExit(f"{' '.join(command)} does not answer")
            yield int(port[1]), process.pid
        finally:
            process.terminate()


def loaded(port: int, images: Sequence[bytes], clients: int, seconds: float) -> Load:
    """So many clients for a while."""
    return asyncio.run(_loaded(port, images, clients, seconds))


async def _loaded(port: int, images: Sequence[bytes], clients: int, seconds: float) -> Load:
    requests = [request(image) for image in images]
    taken, statuses = list[float](), Counter[int]()
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for place in range(number, 10**9, clients):
            began = time.perf_counter()
            if began > until:
                break
            writer.write(requests[place % len(requests)])
            try:
                status, close = await answer(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                status, close = 0, True
            statuses[status] += 1
            if status == 200:
                taken.append(time.perf_counter() - began)
            else:
                await asyncio.sleep(0.05)  # a client that is refused waits a little
            if close:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    passed = time.perf_counter() - began
    p50, p95, p99 = 1e3 * np.percentile(taken, (50, 95, 99))
    return Load(clients, passed, dict(statuses), len(taken) / passed, float(p50), float(p95), float(p99))


def request(image: bytes) -> bytes:
    """The bytes of a request with one image."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + image + b"\r\n--x--\r\n"
    head = f"Host: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}"
    return f"POST /api/predict HTTP/1.1\r\n{head}\r\n\r\n".encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status of the next answer, and whether the connection ends with it."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = re.search(rb"content-length: (\d+)", head)
    assert length
    body = await reader.readexactly(int(length[1]))
    status = int(head[9:12])
    assert status != 200 or b'"label":"' in body, body
    return status, b"connection: close" in head


def serve_alone(run: Path) -> None:
    """The same model behind the same framework, one request at a time."""
    import uvicorn
    from fastapi import FastAPI, UploadFile
    from fastapi.responses import Response

    from fewsight.apps.serve.server import listen

    model, lock, app = load(run), threading.Lock(), FastAPI()
    model.load()

    @app.post("/api/predict")
    def predict(files: list[UploadFile]) -> Response:
        data = [file.file.read() for file in files]
        with lock:
            found = model.predict(data)
        results = [{"label": top[0][0], "prob": top[0][1], "top": top} for top in found.top()]
        return Response(json.dumps({"results": results}, separators=(",", ":")), media_type="application/json")

    listening = listen("127.0.0.1", 0)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    server.run([listening])


def _line(clients: int, name: str, loads: Sequence[Load]) -> str:
    values = [
        statistics.median(getattr(one, field) for one in loads)
        for field in ("images_a_second", "p50_ms", "p95_ms", "p99_ms")
    ]
    return f"| {clients} | {name} | {values[0]:.0f} | " + " | ".join(f"{value:.1f}" for value in values[1:]) + " |"


def _ratio(clients: int, found: dict[str, dict[int, list[Load]]]) -> str:
    pairs = list(zip(found["batched"][clients], found["one at a time"][clients], strict=True))
    more = [ours.images_a_second / theirs.images_a_second for ours, theirs in pairs]
    late = [ours.p99_ms / theirs.p99_ms for ours, theirs in pairs]
    word = "client" if clients == 1 else "clients"
    return (
        f"- {clients} {word}: batched {statistics.median(more):.2f} times the throughput ({min(more):.2f} to "
        f"{max(more):.2f}), {statistics.median(late):.2f} times the p99 ({min(late):.2f} to {max(late):.2f})."
    )


def _told(statuses: dict[int, int]) -> str:
    return ", ".join(f"{count:,} answers {status}" for status, count in sorted(statuses.items()))


if __name__ == "__main__":
    main()
