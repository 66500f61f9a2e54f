"""Images of all clients go through the model together: one thread takes what waits, scores it and answers."""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from fewsight.inference.model import Activation, Cuts, Model, ViewPredictions

GATHER_S = 0.005  # that a batch waits for each of the images that are on their way
GATHER_MOST_S = 0.03  # for all of them
PACE = 0.2  # weight of the newest batch in the seconds that an image takes


@dataclass(frozen=True)
class Answer:
    """What the model made of one image: row `row` of a batch."""

    looked: ViewPredictions
    row: int
    activations: Sequence[Activation]  # where they were asked for


@dataclass(frozen=True)
class _Job:
    image: Cuts
    explain: bool
    future: "Future[Answer]" = field(default_factory=Future)


class Batcher:
    """The model's thread, and the images that wait for it.

    A batch is what waits when the model is free, at most `batch_size` images, and what reaches it within a moment while
    more are on their way: a single client waits for nobody, many share. An image whose client has gone is passed over.
    A batch that fails is scored again image by image.

    Args:
        coming: how many images have been asked about and not answered, those that wait here among them.
        clock: seconds, growing.
        counted: told of each batch's number of images.
    """

    def __init__(
        self,
        model: Model,
        batch_size: int,
        coming: Callable[[], int],
        clock: Callable[[], float],
        counted: Callable[[int], None],
    ) -> None:
        self.model, self.batch_size, self.coming = model, batch_size, coming
        self.clock, self.counted = clock, counted
        self.seconds_an_image = 0.0
        self._jobs = deque[_Job]()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="fewsight-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the model's thread works."""
        return self._thread.is_alive()

    def submit(self, image: Cuts, *, explain: bool) -> "Future[Answer]":
        """Queue an image; cancel what comes back to give it up.

        Args:
            explain: also say where each run looked for the most probable class.

        Raises:
            RuntimeError: the batcher is closed.
        """
        job = _Job(image, explain)
        with self._changed:
            if self._closed:
                raise RuntimeError("the service is stopping")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def seconds_for(self, num_images: int) -> int:
        """How long so many images will take at the pace of the last ones, in whole seconds, at least 1."""
        return max(1, math.ceil(num_images * self.seconds_an_image))

    def close(self) -> None:
        """Score what waits, then end the thread."""
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
                taken = [self._jobs.popleft() for _ in range(min(self.batch_size, len(self._jobs)))]
            batch = [job for job in taken if job.future.set_running_or_notify_cancel()]
            if batch:
                began = self.clock()
                self._score(batch)
                pace = (self.clock() - began) / len(batch)
                self.seconds_an_image += (PACE if self.seconds_an_image else 1.0) * (pace - self.seconds_an_image)
                self.counted(len(batch))

    def _gather(self) -> None:
        """Wait a moment, where more images are on their way and there is room for them."""
        began = self.clock()
        while not self._closed and len(self._jobs) < min(self.batch_size, self.coming()):
            there = len(self._jobs)
            self._changed.wait(GATHER_S)
            if len(self._jobs) == there or self.clock() - began > GATHER_MOST_S:
                return

    def _score(self, batch: list[_Job]) -> None:
        try:
            looked = self.model.predict_views([job.image for job in batch])
            answers = [Answer(looked, row, self._explained(job, looked, row)) for row, job in enumerate(batch)]
        except Exception as error:  # one image must not take the others with it
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for job in batch:
                self._score([job])
            return
        for job, answer in zip(batch, answers, strict=True):
            job.future.set_result(answer)

    def _explained(self, job: _Job, looked: ViewPredictions, row: int) -> Sequence[Activation]:
        if not job.explain:
            return ()
        return self.model.activations(job.image, int(looked.predictions.probs[row].argmax()))
