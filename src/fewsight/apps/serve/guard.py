"""Middleware around every request: access control, security headers, request counts."""

import asyncio
import hmac
import logging
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewsight.apps.serve.counters import Counters
from fewsight.apps.serve.limits import RefusedError, stopping
from fewsight.apps.serve.uploads import drain

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
PUBLIC_PATHS = frozenset({"/", "/page.css", "/page.js", "/docs", "/docs.js", "/openapi.json", "/healthz"})  # no token
API_PATHS = frozenset({"/api/predict", "/api/model", "/metrics"})
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LOG = logging.getLogger(__name__)
CLIENT_CLOSED = 499  # nginx's status for a client that disconnected before its answer; counted, never sent


class Guard:
    """Checks the token, or without one that the request comes from this machine; adds headers; counts answers.

    Without a token, a page of another site could reach the service through the browser of its visitor: by DNS
    rebinding (the Host header is then the site's name) or by a cross-site form (the Origin header is then the site's).
    Both are refused.

    Args:
        token: what a request must carry, except for `PUBLIC_PATHS`; None: only requests from this machine are allowed.
        counters: receives the path, status and duration of every request.
    """

    def __init__(self, app: ASGIApp, token: str | None, counters: Counters) -> None:
        self.app, self.token, self.counters = app, token, counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), CLIENT_CLOSED

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self.app(scope, receive, send_guarded)
            else:
                await drain(Headers(scope=scope), receive)
                await refusal_response(refusal)(scope, receive, send_guarded)
        except asyncio.CancelledError:
            if status != CLIENT_CLOSED:
                raise
            # only a service that is stopping cancels a request, once its grace period is over
            await refusal_response(stopping())(scope, receive, send_guarded)
        except Exception:
            if status != CLIENT_CLOSED:
                raise  # the answer has begun, so it can only be cut off
            LOG.exception("a request failed: %s %s", scope["method"], scope["path"])
            refusal = RefusedError(500, "the service failed on this request; its log says why")
            await refusal_response(refusal)(scope, receive, send_guarded)
        finally:
            self.counters.request(_path_label(scope), status, time.monotonic() - began)

    def _refusal(self, scope: Scope) -> RefusedError | None:
        """Why the request is refused, or None."""
        headers = Headers(scope=scope)
        if self.token is not None:
            if scope["path"] in PUBLIC_PATHS or _has_token(headers, self.token):
                return None
            return RefusedError(401, "this needs the service's token: Authorization: Bearer TOKEN", close=True)
        host, origin = headers.get("host", ""), headers.get("origin")
        if _hostname(f"//{host}") not in LOOPBACK:
            reason = "without a token only this machine is allowed; call it localhost"
            return RefusedError(403, reason, close=True)
        if origin is not None and _origin_parts(origin) != ("http", host.lower()):
            return RefusedError(403, "without a token no page of another site is allowed", close=True)
        return None


def refusal_response(refusal: RefusedError) -> JSONResponse:
    """The response to a refused request."""
    headers = dict(refusal.headers)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": refusal.reason}, refusal.status, headers)


def _has_token(headers: Headers, token: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    return scheme.lower() == "bearer" and same


def _hostname(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _origin_parts(origin: str) -> tuple[str, str] | None:
    """The scheme of an origin, and its host with port; None where it is malformed."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.scheme, parts.netloc.lower()


def _path_label(scope: Scope) -> str:
    """The path if it is one of the service's, else `other`: the number of counters stays bounded."""
    path = str(scope["path"])
    return path if path in PUBLIC_PATHS or path in API_PATHS else "other"
