"""Reading the files of a request, within the limits."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import Message, Receive

from fewsight.apps.serve.limits import Limits, RefusedError

FIELD = "files"
DRAIN_S = 1.0  # for which a refused body is read and discarded, so that its sender receives the reason
MAX_FIELDS = 16  # form fields beside the files
MAX_FIELD_BYTES = 2**16


@dataclass(frozen=True)
class Upload:
    """One file of a request."""

    name: str  # as the client sent it
    data: bytes


class BodyBudget:
    """The bytes of all request bodies that are being read or answered, and their limit."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.used_bytes = limits, 0

    def take(self, num_bytes: int) -> None:
        """Reserve more bytes.

        Raises:
            RefusedError: 429, the limit is reached.
        """
        if self.used_bytes + num_bytes > self.limits.max_body_bytes:
            raise RefusedError(429, "too many uploads at once; try again soon", retry_after_s=1, close=True)
        self.used_bytes += num_bytes

    @contextlib.contextmanager
    def reserved(self) -> Iterator["Reservation"]:
        """One request's reservation, empty at first; its bytes are given back when the block ends."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.used_bytes -= reservation.num_bytes


class Reservation:
    """The bytes of the budget that one request holds."""

    def __init__(self, budget: BodyBudget) -> None:
        self.budget, self.num_bytes = budget, 0

    def grow_to(self, num_bytes: int) -> None:
        """Hold at least this many bytes in total.

        Raises:
            RefusedError: 429, the budget is used up.
        """
        if num_bytes > self.num_bytes:
            self.budget.take(num_bytes - self.num_bytes)
            self.num_bytes = num_bytes


async def read_uploads(request: Request, limits: Limits, reservation: Reservation) -> list[Upload]:
    """Read the files of a multipart request, in its order.

    Raises:
        RefusedError: 408 the upload is too slow, 413 the body is too large, 415 it is not multipart, 422 it is
            malformed or has no file or too many, 429 the body budget is used up, 503 the disk is full.
        ClientDisconnect: the client closed the connection.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RefusedError(415, f"expected multipart/form-data with the images in the field {FIELD!r}, got {kind!r}",
                           close=True)  # fmt: skip
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise RefusedError(415, "expected a body without Content-Encoding", close=True)
    claimed = request.headers.get("content-length", "")
    if claimed.isdecimal() and claimed.isascii() and len(claimed) < 19:
        if int(claimed) > limits.max_request_bytes:
            raise _too_large(limits)
        reservation.grow_to(int(claimed))
    num_received = 0

    async def receive() -> Message:
        nonlocal num_received
        message = await request.receive()
        num_received += len(message.get("body", b""))
        if num_received > limits.max_request_bytes:
            raise _too_large(limits)
        reservation.grow_to(num_received)
        return message

    try:
        async with (
            asyncio.timeout(limits.timeout_s),
            Request(request.scope, receive).form(
                max_files=limits.max_files, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
            ) as form,
        ):
            parts = form.getlist(FIELD)
            uploads = [Upload(part.filename or "", await part.read()) for part in parts if isinstance(part, UploadFile)]
    except TimeoutError:
        raise RefusedError(408, f"the upload did not end within {limits.timeout_s:g} s", close=True) from None
    except (HTTPException, MultiPartException) as error:
        raise _malformed(error, limits) from None
    except OSError as error:
        reason = f"no space to hold the upload ({error.strerror})"
        raise RefusedError(503, reason, retry_after_s=5, close=True) from None
    if len(uploads) < len(parts):
        raise RefusedError(422, f"{FIELD!r} has to hold files, each with a filename")
    if not uploads:
        raise RefusedError(422, f"no file in the field {FIELD!r}")
    return uploads


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(
        413, f"the body is larger than {limits.max_request_bytes:,} bytes, the limit of a request", close=True
    )


def _malformed(error: HTTPException | MultiPartException, limits: Limits) -> RefusedError:
    reason = str(getattr(error, "detail", None) or getattr(error, "message", ""))
    if reason.startswith("Too many files"):
        reason = f"more than {limits.max_files:,} files, the limit of a request; send several requests"
    else:
        reason = f"the multipart body cannot be read: {reason}"
    return RefusedError(422, reason, close=True)


async def drain(headers: Headers, receive: Receive) -> None:
    """Read the rest of a refused body for a moment and discard it: a client that is still sending then sees the reason.

    A client that asked before sending (Expect: 100-continue) is answered at once.
    """
    if headers.get("expect", "").lower() == "100-continue":
        return
    until = time.monotonic() + DRAIN_S
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while time.monotonic() < until:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
