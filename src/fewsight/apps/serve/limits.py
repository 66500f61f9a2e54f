"""What the service takes on, and the refusal of what is more."""

from dataclasses import dataclass

from fewsight.errors import RecipeError

MOST_TOP = 1000  # classes that an answer lists


OPTIONS = {"batch_size": "--batch", "timeout_s": "--timeout", "max_files": "--max-files", "max_queue": "--max-queue"}


@dataclass(frozen=True)
class Limits:
    """Beyond each the service answers with a status and a reason, and goes on."""

    max_bytes: int = 64 * 2**20  # of a request's body: 413
    max_pixels: int = 50_000_000  # of an image: 413
    max_files: int = 64  # of a request: 422
    max_queue: int = 256  # images that were taken and not yet answered: 429
    max_body_bytes: int = 512 * 2**20  # of all requests that are being read or answered: 429
    timeout_s: float = 30.0  # for the upload: 408; then for the answer: 503
    max_connections: int = 512  # that are open: 503
    batch_size: int = 32  # images that go through the model together

    def __post_init__(self) -> None:
        """Refuse what could answer nothing.

        Raises:
            RecipeError: a limit is not above 0.
        """
        for name, value in vars(self).items():
            if not value > 0:
                said = OPTIONS.get(name, f"{name} =")
                raise RecipeError(f"{said} {value}: a limit of the service has to be above 0")


class RefusedError(Exception):
    """A request is not answered: its status and the reason."""

    def __init__(self, status: int, reason: str, *, retry_after_s: int | None = None, close: bool = False) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s
        self.close = close  # the connection: the rest of the body is not read

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says beside its reason."""
        found = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return {**found, "Connection": "close"} if self.close else found
