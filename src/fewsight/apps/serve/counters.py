"""The service's metrics, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Counters:
    """The metrics of one service, in a registry of its own; any thread may update them.

    Args:
        num_waiting: how many images are admitted and not yet answered.
    """

    def __init__(self, num_waiting: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        labels = ("path", "status")
        self.requests = Counter("fewsight_requests", "Answers by path and status.", labels, registry=registry)
        self.images = Counter("fewsight_images", "Images answered, by outcome.", ("outcome",), registry=registry)
        waiting = Gauge("fewsight_waiting_images", "Images that were taken and not yet answered.", registry=registry)
        waiting.set_function(num_waiting)
        self.seconds = Histogram(
            "fewsight_predict_seconds", "From a request for a prediction to its answer.",
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self.batches = Histogram(
            "fewsight_batch_images", "Images that went through the model together.", registry=registry, buckets=IMAGES
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answer, and the time of a prediction."""
        self.requests.labels(path, status).inc()
        if path == "/api/predict":
            self.seconds.observe(seconds)

    def image(self, outcome: str) -> None:
        """Count an image: predicted, none_of_these or error."""
        self.images.labels(outcome).inc()

    def batch(self, num_images: int) -> None:
        """Count the images of a batch."""
        self.batches.observe(num_images)

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)
