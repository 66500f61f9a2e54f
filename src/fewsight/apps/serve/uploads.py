"""A request's files, read as far as the limits allow."""

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
DRAIN_S = 1.0  # for which a body that is too large is read on and thrown away, so that its sender hears the reason
MAX_FIELDS = 16  # beside the files
MAX_FIELD_BYTES = 2**16


@dataclass(frozen=True)
class Upload:
    """One file of a request."""

    name: str  # as the client calls it
    data: bytes


class Room:
    """The bytes of all bodies that are being read or answered."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.taken = limits, 0

    def take(self, num_bytes: int) -> None:
        """Take room for more bytes.

        Raises:
            RefusedError: 429, there is none.
        """
        if self.taken + num_bytes > self.limits.max_body_bytes:
            raise RefusedError(429, "too many uploads at once; try again soon", retry_after_s=1, close=True)
        self.taken += num_bytes

    @contextlib.contextmanager
    def held(self) -> Iterator["Share"]:
        """What one request takes; it is given back when the block ends."""
        share = Share(self)
        try:
            yield share
        finally:
            self.taken -= share.taken


class Share:
    """One request's part of the room."""

    def __init__(self, room: Room) -> None:
        self.room, self.taken = room, 0

    def take(self, num_bytes: int) -> None:
        """Take room up to so many bytes in all; see `Room.take`."""
        if num_bytes > self.taken:
            self.room.take(num_bytes - self.taken)
            self.taken = num_bytes


async def read_uploads(request: Request, limits: Limits, share: Share) -> list[Upload]:
    """The files of a multipart request, in its order.

    Raises:
        RefusedError: 408 too slow, 413 too large, 415 not multipart, 422 malformed, no file or too many, 429 no room.
        ClientDisconnect: the client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RefusedError(415, f"expected multipart/form-data with the images in the field {FIELD!r}, got {kind!r}",
                           close=True)  # fmt: skip
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise RefusedError(415, "expected a body without Content-Encoding", close=True)
    claimed = request.headers.get("content-length", "")
    if claimed.isdecimal() and claimed.isascii() and len(claimed) < 19:
        if int(claimed) > limits.max_bytes:
            raise _too_large(limits)
        share.take(int(claimed))
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > limits.max_bytes:
            raise _too_large(limits)
        share.take(seen)
        return message

    try:
        async with (
            asyncio.timeout(limits.timeout_s),
            Request(request.scope, receive).form(
                max_files=limits.max_files, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
            ) as form,
        ):
            found = form.getlist(FIELD)
            uploads = [Upload(one.filename or "", await one.read()) for one in found if isinstance(one, UploadFile)]
    except TimeoutError:
        raise RefusedError(408, f"the upload did not end within {limits.timeout_s:g} s", close=True) from None
    except (HTTPException, MultiPartException) as error:
        reason = str(getattr(error, "detail", None) or getattr(error, "message", ""))
        if reason.startswith("Too many files"):
            told = f"more than {limits.max_files:,} files, the limit of a request; send several requests"
            raise RefusedError(422, told, close=True) from None
        raise RefusedError(422, f"not a multipart body that can be read: {reason}", close=True) from None
    except OSError as error:
        raise RefusedError(503, f"no room to hold the upload ({error.strerror})", retry_after_s=5, close=True) from None
    if len(uploads) < len(found):
        raise RefusedError(422, f"{FIELD!r} has to hold files, each with a filename")
    if not uploads:
        raise RefusedError(422, f"no file in the field {FIELD!r}")
    return uploads


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(413, f"the body is larger than {limits.max_bytes:,} bytes, the limit of a request", close=True)


async def drain(headers: Headers, receive: Receive) -> None:
    """Read on for a moment and keep nothing, so that who still sends hears why it is refused.

    A client that asked first (Expect: 100-continue) is answered at once.
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
