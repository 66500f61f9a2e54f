"""The ASGI application: the page, and the API behind it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import fewsight
from fewsight.apps.serve import schemas
from fewsight.apps.serve.batching import Batcher, Prediction
from fewsight.apps.serve.counters import Counters
from fewsight.apps.serve.guard import CLIENT_CLOSED, Guard, refusal_response
from fewsight.apps.serve.limits import MAX_TOP_K, Limits, RefusedError
from fewsight.apps.serve.uploads import FIELD, BodyBudget, Reservation, Upload, drain, read_uploads
from fewsight.data import ImageError
from fewsight.inference.model import Cuts, Model
from fewsight.inference.prediction_files import valid_text
from fewsight.machine.cores import num_cores

PAGES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
}
NUM_DECODERS = max(2, num_cores())  # threads
BATCHES_AHEAD = 2  # batches of images that may be decoded and not yet scored
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": description}
    for status, description in {
        401: "the token is missing or wrong",
        403: "without a token, not from this machine",
        408: "the upload took too long",
        413: "the body is too large, or every image has too many pixels",
        415: "not multipart/form-data, or no file is an image",
        422: "malformed, no file, too many, or none could be read",
        429: "too much is waiting; see Retry-After",
        503: "no answer in time, or stopping; see Retry-After",
    }.items()
}
FILES = {"type": "array", "minItems": 1, "items": {"type": "string", "contentMediaType": "application/octet-stream"}}
SCHEMA = {"type": "object", "required": [FIELD], "properties": {FIELD: FILES}}
BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": SCHEMA}}}}


class Service:
    """A model with its thread, the threads that decode images, and the queue.

    Args:
        model: with its weights in memory.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.num_waiting = 0  # images admitted and not yet answered
        self.num_reading = 0  # requests that are being read
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
            RefusedError: 429, as `check_queue`.
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
            RefusedError: 429, the queue is full, or scoring it would take longer than the timeout.
        """
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

    async def predict(self, upload: Upload, turns: asyncio.Semaphore, *, explain: bool) -> Prediction | ImageError:
        """Decode one image, then score it in a batch with others.

        Args:
            turns: of the image's request, so that a request of many large images leaves decoder threads to others.
        """
        async with turns:
            await self.decoded.acquire()
            try:
                loop = asyncio.get_running_loop()
                prediction = self.batcher.submit(
                    await loop.run_in_executor(self.decoders, self._cut, upload), explain=explain
                )
            except ImageError as error:
                self.decoded.release()
                return error
            except BaseException:
                self.decoded.release()
                raise
        try:
            return await asyncio.wrap_future(prediction)
        finally:
            self.decoded.release()

    def _cut(self, upload: Upload) -> Cuts:
        return self.model.cut(upload.data, valid_text(upload.name) or "image", max_pixels=self.limits.max_pixels)

    def close(self) -> None:
        """Score the waiting images, then end the threads."""
        self.batcher.close()
        self.decoders.shutdown()


async def predict_uploads(request: Request, service: Service, uploads: Sequence[Upload], *, explain: bool
                          ) -> list[Prediction | ImageError]:  # fmt: skip
    """Predict all images of a request, in its order; they are dropped on a timeout or when the client disconnects.

    Raises:
        RefusedError: 503, no answer in time.
        ClientDisconnect: the client closed the connection.
    """

    async def predict_all() -> list[Prediction | ImageError]:
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


def build_app(model: Model, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """Build the service as an ASGI application; loads the model's weights into memory.

    Args:
        token: what requests must carry; None: only requests from this machine are allowed, see `Guard`.

    Returns:
        The application; `app.state.service` is its `Service`, which the end of the lifespan closes.
    """
    limits = limits or Limits()
    model.load()
    service = Service(model, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="fewsight",
        version=fewsight.__version__,
        description=f"The run {valid_text(model.path.resolve().name)}: takes images, returns class probabilities.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Guard, token=token, counters=service.counters)
    if token is not None:
        _describe_token(app)

    @app.exception_handler(RefusedError)
    async def refuse(_request: Request, error: RefusedError) -> JSONResponse:
        return refusal_response(error)

    @app.exception_handler(HTTPException)
    async def refuse_http(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_values(request: Request, error: RequestValidationError) -> JSONResponse:
        await drain(request.headers, request.receive)
        problem = error.errors()[0]
        return refusal_response(RefusedError(422, f"{problem['loc'][-1]}: {problem['msg']}", close=True))

    @app.exception_handler(ClientDisconnect)
    async def forget(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED)  # never received

    @app.post("/api/predict", responses={200: {"model": schemas.Results}, **PROBLEMS}, openapi_extra=BODY)
    async def predict(
        request: Request,
        details: Annotated[
            bool, Query(description="also the prediction of each view and member, and activation maps")
        ] = False,
        top_k: Annotated[int, Query(ge=1, le=MAX_TOP_K, description="classes that each result lists")] = 5,
    ) -> Response:
        """Predict the classes of images: a result for each file, in order.

        A file that cannot be read has the reason in `error`, and the others are answered; where none can be read, the
        status is an error too.
        """
        try:
            service.check_queue(1)
            with service.budget.reserved() as reservation:
                uploads = await service.read(request, reservation)
                with service.admit(len(uploads)):
                    predictions = await predict_uploads(request, service, uploads, explain=details)
        except RefusedError as error:
            if error.close:
                await drain(request.headers, request.receive)
            raise
        results = [
            schemas.failed_result(upload.name, prediction)
            if isinstance(prediction, ImageError)
            else schemas.result_of(upload.name, prediction, model, top_k, details=details)
            for upload, prediction in zip(uploads, predictions, strict=True)
        ]
        for result in results:
            service.counters.image(
                "error" if result.error else "none_of_these" if result.none_of_these else "predicted"
            )
        status = schemas.status_of(
            [prediction if isinstance(prediction, ImageError) else None for prediction in predictions]
        )
        body: schemas.Results | schemas.Problem = schemas.Results(results=results)
        if status != 200:
            body = schemas.Problem(error=_why(results), results=results)
        text = body.model_dump_json(exclude=None if details else {"results": {"__all__": {"details"}}})
        return Response(text, status, media_type="application/json")

    @app.get("/api/model", responses={401: PROBLEMS[401], 403: PROBLEMS[403]})
    async def about() -> schemas.ModelInfo:
        """The classes, the views, and the limits of the service."""
        calibration = model.calibration
        threshold = None if calibration is None else calibration.threshold
        return schemas.ModelInfo(
            name=valid_text(model.path.resolve().name),
            fewsight=fewsight.__version__,
            classes=[valid_text(name) for name in model.classes],
            views=list(model.views),
            members=[valid_text(name) for name in model.members],
            temperature=None if calibration is None else calibration.temperature,
            threshold=None if threshold is None else threshold.prob,
            coverage=None if threshold is None else threshold.coverage,
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
            max_files=limits.max_files,
        )

    @app.get("/healthz", responses={503: {"model": schemas.Health}})
    async def health() -> JSONResponse:
        """200 while the service can answer, 503 when it must be restarted."""
        alive = service.batcher.alive
        return JSONResponse({"status": "ok" if alive else "the model's thread has ended"}, 200 if alive else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses={401: PROBLEMS[401], 403: PROBLEMS[403]})
    async def metrics() -> Response:
        """Requests, images, the queue, batches and times, in Prometheus' text format."""
        return Response(service.counters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, (name, kind) in PAGES.items():
        _add_page(app, path, (resources.files("fewsight.apps.serve") / "page" / name).read_bytes(), kind)
    return app


def _why(results: Sequence[schemas.Result]) -> str:
    if len(results) == 1:
        return str(results[0].error)
    return f"none of the {len(results):,} files could be read; the first: {results[0].error}"


def _add_page(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return Response(content, media_type=kind)


def _describe_token(app: FastAPI) -> None:
    """Declare the token in the OpenAPI description, so that generated clients send one."""
    describe_without_token = app.openapi

    def describe() -> dict[str, Any]:
        description = describe_without_token()
        description.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in description["paths"].items():
            if path != "/healthz":
                for operation in operations.values():
                    operation["security"] = [{"token": []}]
        return description

    app.openapi = describe  # type: ignore[method-assign]
