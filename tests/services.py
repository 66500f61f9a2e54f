"""A service on a free port, in a thread of this process."""

import contextlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

import fewsight
from fewsight.apps.serve.app import build_app
from fewsight.apps.serve.limits import Limits
from fewsight.apps.serve.server import Server, listen
from fewsight.apps.serve.service import Service

TOKEN = "a-secret-of-our-own"
Files = list[tuple[str, tuple[str, bytes]]]


@dataclass(frozen=True)
class Running:
    """A running service: its URL, its internals, and a client."""

    address: str
    service: Service
    client: httpx.Client

    def predict(self, files: Files, **params: Any) -> httpx.Response:
        return self.client.post("/api/predict", files=files, params=params)


@contextlib.contextmanager
def running(
    run: Path, limits: Limits | None = None, token: str | None = None, views: str | None = None
) -> Iterator[Running]:
    """Serve a run until the block ends."""
    app, started = build_app(fewsight.load(run, views), limits, token), threading.Event()
    listening = listen("127.0.0.1", 0)
    server = Server(app, limits or Limits(), started.set)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    assert started.wait(30)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False) as client:
            yield Running(address, app.state.service, client)
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
        assert not thread.is_alive(), "the service does not end"
        assert app.state.service.num_waiting == app.state.service.budget.used_bytes == 0, (
            "every reservation is given back"
        )
        assert not app.state.service.batcher.alive


def upload(*paths: Path) -> Files:
    return [("files", (path.name, path.read_bytes())) for path in paths]


def picture(width: int = 8, height: int = 8, kind: str = "PNG") -> bytes:
    """A file of noise."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    handle = io.BytesIO()
    Image.fromarray(pixels).save(handle, kind)
    return handle.getvalue()
