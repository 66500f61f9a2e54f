"""Batching: one thread scores the waiting images of all clients together."""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from fewsight.apps.serve.limits import stopping
from fewsight.inference.model import Activation, Cuts, Model, ViewPredictions

GATHER_S = 0.005  # that a batch waits for each of the images that are still being uploaded or decoded
MAX_GATHER_S = 0.03  # that it waits for all of them
PACE_WEIGHT = 0.2  # of the newest batch in the moving average of seconds per image


@dataclass(frozen=True)
class Prediction:
    """The predictions for one image: position `index` of a batch."""

    batch: ViewPredictions
    index: int
    activations: Sequence[Activation]  # empty unless requested

    @property
    def error(self) -> str | None:
        """Why the image has no probabilities; None if it has."""
        return self.batch.predictions.errors[self.index]


@dataclass(frozen=True)
class _Job:
    image: Cuts
    explain: bool
    future: "Future[Prediction]" = field(default_factory=Future)


class Batcher:
    """The model's thread, and the images that wait for it.

    When the model is free, the next batch takes the waiting images, at most `batch_size`, and waits a moment for more
    only while some are still being uploaded or decoded: a single client has no delay, many clients share a batch. An
    image whose client has disconnected is skipped. A batch that fails is scored again image by image.

    Args:
        num_pending: how many images are admitted and not answered, including those that wait here.
        clock: seconds, monotonic.
        on_batch: called with the number of images of each batch.
    """

    def __init__(
        self,
        model: Model,
        batch_size: int,
        num_pending: Callable[[], int],
        clock: Callable[[], float],
        on_batch: Callable[[int], None],
    ) -> None:
        self.model, self.batch_size, self.num_pending = model, batch_size, num_pending
        self.clock, self.on_batch = clock, on_batch
        self.seconds_per_image = 0.0
        self._jobs = deque[_Job]()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="fewsight-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the model's thread is running."""
        return self._thread.is_alive()

    def submit(self, image: Cuts, *, explain: bool) -> "Future[Prediction]":
        """Queue an image; cancelling the future drops it.

        Args:
            explain: also compute each run's activation map for the most probable class.

        Raises:
            RefusedError: 503, the batcher is closed.
        """
        job = _Job(image, explain)
        with self._changed:
            if self._closed:
                raise stopping()
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def seconds_for(self, num_images: int) -> int:
        """The expected time for this many images at the current pace, in whole seconds, at least 1."""
        return max(1, math.ceil(num_images * self.seconds_per_image))

    def close(self) -> None:
        """Score the waiting images, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                self._gather()
                jobs = [self._jobs.popleft() for _ in range(min(self.batch_size, len(self._jobs)))]
            batch = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if batch:
                began = self.clock()
                self._score(batch)
                pace = (self.clock() - began) / len(batch)
                self.seconds_per_image += (PACE_WEIGHT if self.seconds_per_image else 1.0) * (
                    pace - self.seconds_per_image
                )
                self.on_batch(len(batch))

    def _gather(self) -> None:
        """Wait a moment while more images are on their way and the batch is not full."""
        began = self.clock()
        while not self._closed and len(self._jobs) < min(self.batch_size, self.num_pending()):
            num_jobs = len(self._jobs)
            self._changed.wait(GATHER_S)
            if len(self._jobs) == num_jobs or self.clock() - began > MAX_GATHER_S:
                return

    def _score(self, batch: list[_Job]) -> None:
        try:
            scored = self.model.predict_views([job.image for job in batch])
            predictions = [
                Prediction(scored, index, self._activations(job, scored, index)) for index, job in enumerate(batch)
            ]
        except Exception as error:  # an image that fails must not fail the others of its batch
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for job in batch:
                self._score([job])
            return
        for job, prediction in zip(batch, predictions, strict=True):
            job.future.set_result(prediction)

    def _activations(self, job: _Job, scored: ViewPredictions, index: int) -> Sequence[Activation]:
        if not job.explain or scored.predictions.errors[index] is not None:
            return ()
        return self.model.activations(job.image, int(scored.predictions.probs[index].argmax()))
