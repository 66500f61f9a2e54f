"""Around every request: who may ask, what every answer says, what is counted."""

import hmac
import logging
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewsight.apps.serve.counters import Counters
from fewsight.apps.serve.limits import RefusedError
from fewsight.apps.serve.uploads import drain

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN = frozenset({"/", "/page.css", "/page.js", "/docs", "/docs.js", "/openapi.json", "/healthz"})  # without a token
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LOG = logging.getLogger(__name__)
GONE = 499  # as some servers log a client that left before its answer


class Guard:
    """Middleware: a token, or without one a request from this machine's own pages; headers; counters.

    Without a token a page of another site could reach the service through its visitor's browser: by a name that it
    turns to this machine (Host is then that name), or by a form that it sends (Origin is then its own). Both are
    refused.
    """

    def __init__(self, app: ASGIApp, token: str | None, counters: Counters) -> None:
        self.app, self.token, self.counters = app, token, counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), GONE

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers[name] = value
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self.app(scope, receive, send_guarded)
            else:
                await drain(Headers(scope=scope), receive)
                await refused(refusal)(scope, receive, send_guarded)
        except Exception:
            if status != GONE:
                raise  # the answer has begun; its connection ends
            LOG.exception("a request failed: %s %s", scope["method"], scope["path"])
            await refused(RefusedError(500, "the service failed on this request; its log says why"))(
                scope, receive, send_guarded
            )
        finally:
            self.counters.request(_known(scope), status, time.monotonic() - began)

    def _refusal(self, scope: Scope) -> RefusedError | None:
        headers = Headers(scope=scope)
        if self.token is not None:
            if scope["path"] in OPEN or _has_token(headers, self.token):
                return None
            return RefusedError(401, "this needs the service's token: Authorization: Bearer TOKEN", close=True)
        host, origin = headers.get("host", ""), headers.get("origin")
        if _host_of(f"//{host}") not in LOOPBACK:
            return RefusedError(403, "without a token only this machine may ask: call it localhost", close=True)
        if origin is not None and _origin_of(origin) != ("http", host.lower()):
            return RefusedError(403, "without a token no page of another site may ask", close=True)
        return None


def refused(refusal: RefusedError) -> JSONResponse:
    """The answer that says why there is none."""
    headers = dict(refusal.headers)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": refusal.reason}, refusal.status, headers)


def _has_token(headers: Headers, token: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    return scheme.lower() == "bearer" and same


def _host_of(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def _origin_of(origin: str) -> tuple[str, str] | None:
    """(scheme, host and port) of an origin."""
    try:
        found = urlsplit(origin)
    except ValueError:
        return None
    return found.scheme, found.netloc.lower()


def _known(scope: Scope) -> str:
    """The path, if it is one of ours: others would fill the counters."""
    path = str(scope["path"])
    return path if path in OPEN or path in ("/api/predict", "/api/model", "/metrics") else "other"
