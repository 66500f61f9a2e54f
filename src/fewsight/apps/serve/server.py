"""The process: a socket, uvicorn on it, a clean end."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from fewsight.apps.serve.app import build_app
from fewsight.apps.serve.guard import LOOPBACK
from fewsight.apps.serve.limits import Limits
from fewsight.errors import FewsightError, Interrupted
from fewsight.inference.model import Model

TOKEN = "FEWSIGHT_TOKEN"  # the environment variable
MIN_TOKEN = 16  # characters: one that cannot be guessed
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b'content-length: 48\r\n\r\n{"error":"too many connections; try again soon"}'
)


def serve(
    path: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    views: str | None = None,
    limits: Limits | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a run or an ensemble until SIGINT or SIGTERM; requests in flight are answered first.

    Args:
        port: 0 takes one that is free.
        token: what requests have to bring; default: the environment's FEWSIGHT_TOKEN.
        say: told the address once it answers.

    Raises:
        Interrupted: a signal ended it, as it has to.
        FewsightError: another host than this machine without a token, or the port is taken.
        RunError, RecipeError: as `fewsight.load`.
    """
    limits, token = limits or Limits(), token or os.environ.get(TOKEN) or None
    if token is None and host not in LOOPBACK:
        raise FewsightError(
            f"--host {host} lets other machines ask, which needs a token: set {TOKEN}, or --token, to a secret of "
            f"{MIN_TOKEN} signs or more; python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
        )
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise FewsightError(f"the token has to be {MIN_TOKEN} signs or more of ASCII, without spaces")
    listening = listen(host, port)
    try:
        app = build_app(Model(path, views), limits, token)
        shown = f"[{host}]" if ":" in host else host
        _run(Server(app, limits, lambda: say(f"http://{shown}:{listening.getsockname()[1]}")), listening)
    finally:
        listening.close()


class Server(uvicorn.Server):
    """uvicorn's, within the limits; it says when it answers."""

    def __init__(self, app: FastAPI, limits: Limits, started: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            http=protocol(limits),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=round(limits.timeout_s) + 5,
        )
        super().__init__(config)
        for name in ("python_multipart", "PIL"):  # they tell of every body and image that is damaged
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._say_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, then say so."""
        await super().startup(sockets)
        if self.started:
            self._say_started()


def protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol with an end to waiting for a request, and to the number of connections."""

    class Limited(H11Protocol):
        refused = False
        silence: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            if len(self.connections) >= limits.max_connections:
                self.refused = True
                transport.write(FULL)
                transport.close()
                return
            super().connection_made(transport)
            self.expect_request()

        def expect_request(self) -> None:
            """From now a whole head of a request has to come within the time of an upload."""
            if self.silence is not None:
                self.silence.cancel()
            self.silence = self.loop.call_later(limits.timeout_s, self.close_if_silent)

        def close_if_silent(self) -> None:
            cycle: Any = self.cycle  # none before the first request
            if (cycle is None or cycle.response_complete) and not self.transport.is_closing():
                self.transport.abort()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.expect_request()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.silence is not None:
                self.silence.cancel()
            if not self.refused:
                super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self.refused:
                super().data_received(data)

    return Limited


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address.

    Raises:
        FewsightError: it is taken, not this machine's, or may not be listened on.
    """
    if not 0 <= port < 2**16:
        raise FewsightError(f"--port {port}: expected 0 (one that is free) to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise FewsightError(f"--host {host}: no address of this machine ({error})") from error
    try:
        if os.name == "posix":  # elsewhere it would let two services share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise FewsightError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another --port (0 takes a free "
            "one) or end what listens there"
        ) from error
    return listening


def _run(server: Server, listening: socket.socket) -> None:
    """Until a signal; uvicorn raises it again when all is answered.

    Raises:
        Interrupted: with the signal.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a script's background command has it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        server.run([listening])
    except KeyboardInterrupt as error:
        number: Any = error.args[0] if error.args else signal.SIGINT
        raise Interrupted("stopped; what was asked before was answered", int(number)) from None
