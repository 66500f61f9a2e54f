"""The application: a page, and the API behind it."""

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
from fewsight.apps.serve import answers
from fewsight.apps.serve.batching import Answer, Batcher
from fewsight.apps.serve.counters import Counters
from fewsight.apps.serve.guard import GONE, Guard, refused
from fewsight.apps.serve.limits import MOST_TOP, Limits, RefusedError
from fewsight.apps.serve.uploads import FIELD, Room, Share, Upload, drain, read_uploads
from fewsight.data import ImageError
from fewsight.inference.model import Model
from fewsight.inference.prediction_files import valid_text
from fewsight.machine.cores import num_cores

PAGES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
}
DECODERS = max(2, num_cores())  # threads
AHEAD = 2  # batches that are decoded before the model asks for them
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.Problem, "description": told}
    for status, told in {
        401: "no token, or another",
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
    """A model, its thread, the threads that decode, and what waits."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.waiting = 0  # images that were taken and not yet answered
        self.arriving = 0  # requests that are being read
        self.counters = Counters(lambda: self.waiting)
        self.room = Room(limits)
        self.batcher = Batcher(
            model, limits.batch_size, lambda: self.waiting + self.arriving, time.monotonic, self.counters.batch
        )
        self.decoders = ThreadPoolExecutor(DECODERS, "fewsight-decode")
        self.ahead = asyncio.Semaphore(AHEAD * limits.batch_size)

    @contextlib.contextmanager
    def admitted(self, num_images: int) -> Iterator[None]:
        """Inside the block so many images wait.

        Raises:
            RefusedError: 429, the queue is full, or would take longer than an answer may.
        """
        self.check_room(num_images)
        self.waiting += num_images
        try:
            yield
        finally:
            self.waiting -= num_images

    async def read(self, request: Request, share: Share) -> list[Upload]:
        """A request's files; see `read_uploads`."""
        self.arriving += 1
        try:
            return await read_uploads(request, self.limits, share)
        finally:
            self.arriving -= 1

    def check_room(self, num_images: int) -> None:
        """Refuse images that would not be answered in time."""
        seconds = self.batcher.seconds_for(self.waiting + num_images)
        late = self.waiting > 0 and seconds > self.limits.timeout_s
        if self.waiting + num_images > self.limits.max_queue or late:
            wait = min(self.batcher.seconds_for(self.waiting), round(self.limits.timeout_s) + 1)
            raise RefusedError(
                429,
                f"{self.waiting:,} images are waiting already; try again in {wait} s",
                retry_after_s=wait,
                close=True,
            )

    async def look(self, upload: Upload, turns: asyncio.Semaphore, *, explain: bool) -> Answer | ImageError:
        """One image: decoded, then scored with those that wait with it.

        Args:
            turns: of its request, so that one with many large images leaves threads that decode to others.
        """
        async with turns:
            await self.ahead.acquire()
            try:
                loop = asyncio.get_running_loop()
                answer = self.batcher.submit(
                    await loop.run_in_executor(self.decoders, self._cut, upload), explain=explain
                )
            except ImageError as error:
                self.ahead.release()
                return error
            except BaseException:
                self.ahead.release()
                raise
        try:
            return await asyncio.wrap_future(answer)
        finally:
            self.ahead.release()

    def _cut(self, upload: Upload) -> Any:
        return self.model.cut(upload.data, valid_text(upload.name) or "image", max_pixels=self.limits.max_pixels)

    def close(self) -> None:
        """Answer what waits, then end the threads."""
        self.batcher.close()
        self.decoders.shutdown()


async def answered(request: Request, service: Service, uploads: Sequence[Upload], *, explain: bool
                   ) -> list[Answer | ImageError]:  # fmt: skip
    """All images of a request, in their order; they are given up when the time is over or the client has gone.

    Raises:
        RefusedError: 503, no answer in time.
        ClientDisconnect: the client has gone.
    """

    async def every() -> list[Answer | ImageError]:
        turns = asyncio.Semaphore(max(1, DECODERS // 2))
        return list(await asyncio.gather(*(service.look(upload, turns, explain=explain) for upload in uploads)))

    work = asyncio.create_task(every())
    gone = asyncio.create_task(_disconnected(request))
    first: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(first, timeout=service.limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if gone.done():
            raise ClientDisconnect
        raise RefusedError(
            503,
            f"no answer within {service.limits.timeout_s:g} s; send fewer images, or try again later",
            retry_after_s=service.batcher.seconds_for(service.waiting),
        )
    finally:
        work.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def build_app(model: Model, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """The service as an ASGI application; it takes the model's weights into memory.

    Args:
        token: what a request has to bring; None: only this machine's own may ask, see `Guard`.
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
        description=f"The run {valid_text(model.path.resolve().name)}: images in, its classes with probabilities out.",
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
        return refused(error)

    @app.exception_handler(HTTPException)
    async def refuse_http(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_values(request: Request, error: RequestValidationError) -> JSONResponse:
        await drain(request.headers, request.receive)
        found = error.errors()[0]
        return refused(RefusedError(422, f"{found['loc'][-1]}: {found['msg']}", close=True))

    @app.exception_handler(ClientDisconnect)
    async def forget(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=GONE)  # nobody reads it

    @app.post("/api/predict", responses={200: {"model": answers.Results}, **PROBLEMS}, openapi_extra=BODY)
    async def predict(
        request: Request,
        details: Annotated[bool, Query(description="also what each view and member says, and where it looked")] = False,
        top_k: Annotated[int, Query(ge=1, le=MOST_TOP, description="classes that each result lists")] = 5,
    ) -> Response:
        """Predict the classes of images: a result for each file, in order.

        A file that cannot be read has its reason in `error`, and the others are answered; where none can be read the
        status says so too.
        """
        try:
            service.check_room(1)
            with service.room.held() as share:
                uploads = await service.read(request, share)
                with service.admitted(len(uploads)):
                    found = await answered(request, service, uploads, explain=details)
        except RefusedError as error:
            if error.close:
                await drain(request.headers, request.receive)
            raise
        results = [
            answers.failed(upload.name, one)
            if isinstance(one, ImageError)
            else answers.result_of(upload.name, one, model, top_k, details=details)
            for upload, one in zip(uploads, found, strict=True)
        ]
        for result in results:
            service.counters.image(
                "error" if result.error else "none_of_these" if result.none_of_these else "predicted"
            )
        status = answers.status_of([one if isinstance(one, ImageError) else None for one in found])
        body: answers.Results | answers.Problem = answers.Results(results=results)
        if status != 200:
            body = answers.Problem(error=_why(results), results=results)
        text = body.model_dump_json(exclude=None if details else {"results": {"__all__": {"details"}}})
        return Response(text, status, media_type="application/json")

    @app.get("/api/model", responses={401: PROBLEMS[401], 403: PROBLEMS[403]})
    async def about() -> answers.ModelInfo:
        """The classes, the views, and what the service takes."""
        calibration = model.calibration
        threshold = None if calibration is None else calibration.threshold
        return answers.ModelInfo(
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

    @app.get("/healthz", responses={503: {"model": answers.Health}})
    async def health() -> JSONResponse:
        """200 while the service can answer, 503 when it has to be started anew."""
        alive = service.batcher.alive
        return JSONResponse({"status": "ok" if alive else "the model's thread has ended"}, 200 if alive else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses={401: PROBLEMS[401], 403: PROBLEMS[403]})
    async def metrics() -> Response:
        """Requests, images, what waits, batches and times, in Prometheus' text format."""
        return Response(service.counters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, (name, kind) in PAGES.items():
        _add_page(app, path, (resources.files("fewsight.apps.serve") / "page" / name).read_bytes(), kind)
    return app


def _why(results: Sequence[answers.Result]) -> str:
    if len(results) == 1:
        return str(results[0].error)
    return f"none of the {len(results):,} files could be read; the first: {results[0].error}"


def _add_page(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return Response(content, media_type=kind)


def _describe_token(app: FastAPI) -> None:
    """The token in the OpenAPI description, so that clients made from it ask for one."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        found = plain()
        found.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in found["paths"].items():
            if path != "/healthz":
                for operation in operations.values():
                    operation["security"] = [{"token": []}]
        return found

    app.openapi = described  # type: ignore[method-assign]
