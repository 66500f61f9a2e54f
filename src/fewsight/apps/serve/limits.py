"""Request limits, and the error for exceeding them."""

from dataclasses import dataclass

from fewsight.errors import RecipeError

MAX_TOP_K = 1000  # classes that a result lists
STOP_RETRY_S = 5  # until another process may have taken over
OPTIONS = {"batch_size": "--batch", "timeout_s": "--timeout", "max_files": "--max-files", "max_queue": "--max-queue"}


@dataclass(frozen=True)
class Limits:
    """Limits of the service. A request beyond one is answered with the status named here and a reason."""

    max_bytes: int = 64 * 2**20  # of a request's body: 413
    max_pixels: int = 50_000_000  # of an image: 413
    max_files: int = 64  # of a request: 422
    max_queue: int = 256  # images admitted and not yet answered: 429; of one request: 413
    max_body_bytes: int = 512 * 2**20  # of all requests that are being read or answered: 429; of one request: 413
    timeout_s: float = 30.0  # for the upload: 408; then for the answer: 503
    max_connections: int = 512  # open at one time: 503
    batch_size: int = 32  # images that go through the model together

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            RecipeError: a limit is not above 0, so that no request could be answered.
        """
        for name, value in vars(self).items():
            if not value > 0:
                shown = OPTIONS.get(name, f"{name} =")
                raise RecipeError(f"{shown} {value}: a limit of the service has to be above 0")

    @property
    def max_request_bytes(self) -> int:
        """Of a request's body: a larger one would never fit beside the others."""
        return min(self.max_bytes, self.max_body_bytes)


class RefusedError(Exception):
    """A request is refused.

    Args:
        status: the HTTP status of the answer.
        reason: what the client is told.
        retry_after_s: seconds after which the client may try again; None: no such header.
        close: close the connection, since the rest of the body is not read.
    """

    def __init__(self, status: int, reason: str, *, retry_after_s: int | None = None, close: bool = False) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after_s, self.close = status, reason, retry_after_s, close

    @property
    def headers(self) -> dict[str, str]:
        """The headers that the answer needs."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return {**headers, "Connection": "close"} if self.close else headers


def stopping() -> RefusedError:
    """The refusal of a request that the service cannot answer because it is stopping."""
    return RefusedError(503, "the service is stopping", retry_after_s=STOP_RETRY_S, close=True)
