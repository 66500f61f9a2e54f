"""The service's metrics, in Prometheus' text format."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """Counts of values at most as large as each bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> list[str]:
        """Its lines, the counts cumulative as Prometheus has them."""
        total, lines = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self.sum:.6f}", f"{name}_count {total}"]


class Counters:
    """The metrics of one service; the event loop and the model's thread both update them.

    Args:
        num_waiting: how many images are admitted and not yet answered.
    """

    def __init__(self, num_waiting: Callable[[], int]) -> None:
        self.lock = threading.Lock()
        self.num_waiting = num_waiting
        self.requests = Counter[tuple[str, int]]()
        self.images = Counter[str]()
        self.seconds, self.batches = Histogram(SECONDS), Histogram(IMAGES)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answer, and the time of a prediction."""
        with self.lock:
            self.requests[path, status] += 1
            if path == "/api/predict":
                self.seconds.add(seconds)

    def image(self, outcome: str) -> None:
        """Count an image: predicted, none_of_these or error."""
        with self.lock:
            self.images[outcome] += 1

    def batch(self, num_images: int) -> None:
        """Count the images of a batch."""
        with self.lock:
            self.batches.add(num_images)

    def text(self) -> str:
        """All metrics, in Prometheus' text format 0.0.4."""
        with self.lock:
            lines = [
                *_head("fewsight_requests_total", "counter", "Answers by path and status."),
                *(
                    f'fewsight_requests_total{{path="{path}",status="{status}"}} {count}'
                    for (path, status), count in sorted(self.requests.items())
                ),
                *_head("fewsight_images_total", "counter", "Images answered, by outcome."),
                *(f'fewsight_images_total{{outcome="{name}"}} {count}' for name, count in sorted(self.images.items())),
                *_head("fewsight_waiting_images", "gauge", "Images that were taken and not yet answered."),
                f"fewsight_waiting_images {self.num_waiting()}",
                *_head("fewsight_predict_seconds", "histogram", "From a request for a prediction to its answer."),
                *self.seconds.lines("fewsight_predict_seconds"),
                *_head("fewsight_batch_images", "histogram", "Images that went through the model together."),
                *self.batches.lines("fewsight_batch_images"),
            ]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
