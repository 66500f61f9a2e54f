"""The server process: a socket, uvicorn on it, and a graceful shutdown."""

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
MIN_TOKEN = 16  # characters; a shorter token could be guessed
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
        port: 0 takes a free one.
        token: what requests must carry; default: the environment variable FEWSIGHT_TOKEN.
        say: called with the service's URL once it answers.

    Raises:
        Interrupted: a signal ended the service, which is how it always ends.
        FewsightError: the host is not this machine and there is no token, or the port is taken.
        RunError, RecipeError: as `fewsight.load`.
    """
    limits, token = limits or Limits(), token or os.environ.get(TOKEN) or None
    if token is None and host not in LOOPBACK:
        raise FewsightError(
            f"--host {host} opens the service to other machines, which needs a token: set {TOKEN}, or --token, to a "
            f"secret of at least {MIN_TOKEN} characters; python -c 'import secrets; print(secrets.token_urlsafe())' "
            "makes one"
        )
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise FewsightError(f"the token has to be at least {MIN_TOKEN} ASCII characters, without spaces")
    listening = listen(host, port)
    try:
        app = build_app(Model(path, views), limits, token)
        url_host = f"[{host}]" if ":" in host else host
        _run(Server(app, limits, lambda: say(f"http://{url_host}:{listening.getsockname()[1]}")), listening)
    finally:
        listening.close()


class Server(uvicorn.Server):
    """uvicorn's server, within the limits.

    Args:
        on_started: called once the server answers.
    """

    def __init__(self, app: FastAPI, limits: Limits, on_started: Callable[[], None]) -> None:
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
        for name in ("python_multipart", "PIL"):  # they log every damaged body and image
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer, then call `on_started`."""
        await super().startup(sockets)
        if self.started:
            self._on_started()


def protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol with a timeout for idle connections, and a limit to their number."""

    class LimitedProtocol(H11Protocol):
        refused = False
        idle_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            if len(self.connections) >= limits.max_connections:
                self.refused = True
                transport.write(FULL)
                transport.close()
                return
            super().connection_made(transport)
            self.restart_idle_timer()

        def restart_idle_timer(self) -> None:
            """The complete head of the next request has to arrive within the timeout."""
            if self.idle_timer is not None:
                self.idle_timer.cancel()
            self.idle_timer = self.loop.call_later(limits.timeout_s, self.close_if_idle)

        def close_if_idle(self) -> None:
            cycle: Any = self.cycle  # None before the first request
            if (cycle is None or cycle.response_complete) and not self.transport.is_closing():
                self.transport.abort()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.restart_idle_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.idle_timer is not None:
                self.idle_timer.cancel()
            if not self.refused:
                super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self.refused:
                super().data_received(data)

    return LimitedProtocol


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens on an address.

    Raises:
        FewsightError: the address is taken, is not of this machine, or needs more rights.
    """
    if not 0 <= port < 2**16:
        raise FewsightError(f"--port {port}: expected 0 (a free port) to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise FewsightError(f"--host {host}: not an address of this machine ({error})") from error
    try:
        if os.name == "posix":  # on other systems it would let two services share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise FewsightError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another --port (0 takes a free "
            "one) or stop the program that uses this one"
        ) from error
    return listening


def _run(server: Server, listening: socket.socket) -> None:
    """Run until a signal, which uvicorn raises again once all requests are answered.

    Raises:
        Interrupted: always, with the signal.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background command of a script
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        server.run([listening])
    except KeyboardInterrupt as error:
        number: Any = error.args[0] if error.args else signal.SIGINT
        raise Interrupted("stopped; every request received before was answered", int(number)) from None
