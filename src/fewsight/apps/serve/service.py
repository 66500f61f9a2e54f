"""A model behind a queue: images of all clients are decoded by a few threads and scored in shared batches."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from fewsight.apps.serve.batching import Batcher, Prediction
from fewsight.apps.serve.counters import Counters
from fewsight.apps.serve.limits import Limits, RefusedError, stopping
from fewsight.apps.serve.uploads import BodyBudget, Reservation, Upload, read_uploads
from fewsight.data import ImageError, LargeImageError, UnknownKindError
from fewsight.inference.model import Cuts, Model
from fewsight.inference.prediction_files import valid_text
from fewsight.machine.cores import num_cores

NUM_DECODERS = max(2, num_cores())  # threads
BATCHES_AHEAD = 2  # batches of images that may be decoded and not yet scored


@dataclass(frozen=True)
class Failure:
    """Why an image has no probabilities."""

    reason: str
    status: int  # of the answer where no image of the request has any: 413, 415, 422 the file; 500 the model


class Service:
    """A model with its thread, the threads that decode images, and the queue.

    Args:
        model: with its weights in memory.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.num_waiting = 0  # images admitted and not yet answered
        self.num_reading = 0  # requests that are being read
        self.is_stopping = False
        self.counters = Counters(lambda: self.num_waiting)
        self.budget = BodyBudget(limits)
        self.batcher = Batcher(
            model, limits.batch_size, lambda: self.num_waiting + self.num_reading, time.monotonic, self.counters.batch
        )
        self.decoders = ThreadPoolExecutor(NUM_DECODERS, "fewsight-decode")
        self.decoded = asyncio.Semaphore(BATCHES_AHEAD * limits.batch_size)  # bounds the memory of decoded images

    @contextlib.contextmanager
    def admit(self, num_images: int) -> Iterator[None]:
        """Count this many images as waiting until the block ends.

        Raises:
            RefusedError: as `check_queue`.
        """
        self.check_queue(num_images)
        self.num_waiting += num_images
        try:
            yield
        finally:
            self.num_waiting -= num_images

    async def read(self, request: Request, reservation: Reservation) -> list[Upload]:
        """The files of a request; see `read_uploads`."""
        self.num_reading += 1
        try:
            return await read_uploads(request, self.limits, reservation)
        finally:
            self.num_reading -= 1

    def check_queue(self, num_images: int) -> None:
        """Check that this many more images can be answered in time.

        Raises:
            RefusedError: 413, they are more than the queue can ever hold; 429, the queue is full, or scoring it would
                take longer than the timeout; 503, the service is stopping.
        """
        if self.is_stopping:
            raise stopping()
        if num_images > self.limits.max_queue:
            raise RefusedError(
                413,
                f"{num_images:,} files are more than the {self.limits.max_queue:,} images that can wait at one time; "
                "send several requests",
            )
        seconds = self.batcher.seconds_for(self.num_waiting + num_images)
        late = self.num_waiting > 0 and seconds > self.limits.timeout_s
        if self.num_waiting + num_images > self.limits.max_queue or late:
            wait = min(self.batcher.seconds_for(self.num_waiting), round(self.limits.timeout_s) + 1)
            raise RefusedError(
                429,
                f"{self.num_waiting:,} images are waiting already; try again in {wait} s",
                retry_after_s=wait,
                close=True,
            )

    async def predict(self, upload: Upload, turns: asyncio.Semaphore, *, explain: bool) -> Prediction | Failure:
        """Decode one image, then score it in a batch with others.

        Args:
            turns: of the image's request, so that a request of many large images leaves decoder threads to others.

        Raises:
            RefusedError: 503, the service is stopping.
        """
        async with turns:
            await self.decoded.acquire()
            try:
                if self.is_stopping:
                    raise stopping()
                loop = asyncio.get_running_loop()
                prediction = self.batcher.submit(
                    await loop.run_in_executor(self.decoders, self._cut, upload), explain=explain
                )
            except ImageError as error:
                self.decoded.release()
                return _failure(error)
            except BaseException:
                self.decoded.release()
                raise
        try:
            scored = await asyncio.wrap_future(prediction)
            return scored if scored.error is None else Failure(scored.error, 500)
        finally:
            self.decoded.release()

    def _cut(self, upload: Upload) -> Cuts:
        return self.model.cut(upload.data, valid_text(upload.name) or "image", max_pixels=self.limits.max_pixels)

    def close(self) -> None:
        """Score the waiting images, then end the threads.

        The event loop must set `is_stopping` itself before it leaves this to another thread, or a request in between
        would find the threads ended.
        """
        self.is_stopping = True
        self.batcher.close()
        self.decoders.shutdown()


def _failure(error: ImageError) -> Failure:
    status = 413 if isinstance(error, LargeImageError) else 415 if isinstance(error, UnknownKindError) else 422
    return Failure(error.reason, status)


async def predict_uploads(request: Request, service: Service, uploads: Sequence[Upload], *, explain: bool
                          ) -> list[Prediction | Failure]:  # fmt: skip
    """Predict all images of a request, in its order; they are dropped on a timeout or when the client disconnects.

    Raises:
        RefusedError: 503, no answer in time.
        ClientDisconnect: the client closed the connection.
    """

    async def predict_all() -> list[Prediction | Failure]:
        turns = asyncio.Semaphore(max(1, NUM_DECODERS // 2))
        return list(await asyncio.gather(*(service.predict(upload, turns, explain=explain) for upload in uploads)))

    work = asyncio.create_task(predict_all())
    disconnected = asyncio.create_task(_disconnected(request))
    tasks: set[asyncio.Future[Any]] = {work, disconnected}
    try:
        await asyncio.wait(tasks, timeout=service.limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if disconnected.done():
            raise ClientDisconnect
        raise RefusedError(
            503,
            f"no answer within {service.limits.timeout_s:g} s; send fewer images, or try again later",
            retry_after_s=service.batcher.seconds_for(service.num_waiting),
        )
    finally:
        work.cancel()
        disconnected.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
