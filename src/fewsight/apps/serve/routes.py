"""The API's routes: predictions, the description of the model, health, metrics."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

import fewsight
from fewsight.apps.serve import schemas
from fewsight.apps.serve.limits import MAX_TOP_K, RefusedError
from fewsight.apps.serve.service import Failure, Service, predict_uploads
from fewsight.apps.serve.uploads import FIELD, drain
from fewsight.inference.prediction_files import valid_text

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": description}
    for status, description in {
        401: "the token is missing or wrong",
        403: "without a token, not from this machine",
        408: "the upload took too long",
        413: "the body is too large, more files than can wait, or every image has too many pixels",
        415: "not multipart/form-data, or no file is an image",
        422: "malformed, no file, too many, or none could be read",
        500: "the service failed, or the model's scores of every image are not finite",
        429: "too much is waiting; see Retry-After",
        503: "no answer in time, or stopping; see Retry-After",
    }.items()
}
FORBIDDEN: dict[int | str, dict[str, Any]] = {status: PROBLEMS[status] for status in (401, 403)}
FILES = {"type": "array", "minItems": 1, "items": {"type": "string", "contentMediaType": "application/octet-stream"}}
SCHEMA = {"type": "object", "required": [FIELD], "properties": {FIELD: FILES}}
BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": SCHEMA}}}}


def add_routes(app: FastAPI) -> None:
    """Add the API to an application whose `app.state.service` is its `Service`."""
    app.post("/api/predict", responses={200: {"model": schemas.Results}, **PROBLEMS}, openapi_extra=BODY)(predict)
    app.get("/api/model", responses=FORBIDDEN)(about)
    app.get("/healthz", responses={503: {"model": schemas.Health}})(health)
    app.get("/metrics", response_class=PlainTextResponse, responses=FORBIDDEN)(metrics)


async def service_of(request: Request) -> Service:
    """The service of the application that received the request."""
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(service_of)]


async def predict(
    request: Request,
    service: Served,
    details: Annotated[
        bool, Query(description="also the prediction of each view and member, and activation maps")
    ] = False,
    top_k: Annotated[int, Query(ge=1, le=MAX_TOP_K, description="classes that each result lists")] = 5,
) -> Response:
    """Predict the classes of images: a result for each file, in order.

    An image that cannot be read, or has no probabilities, has the reason in `error`, and the others are answered;
    where no image has an answer, the status is an error too.
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
        if isinstance(prediction, Failure)
        else schemas.result_of(upload.name, prediction, service.model, top_k, details=details)
        for upload, prediction in zip(uploads, predictions, strict=True)
    ]
    for result in results:
        service.counters.image("error" if result.error else "none_of_these" if result.none_of_these else "predicted")
    status = schemas.status_of([prediction if isinstance(prediction, Failure) else None for prediction in predictions])
    body: schemas.Results | schemas.Problem = schemas.Results(results=results)
    if status != 200:
        body = schemas.Problem(error=_why(results, status), results=results)
    text = body.model_dump_json(exclude=None if details else {"results": {"__all__": {"details"}}})
    return Response(text, status, media_type="application/json")


def _why(results: Sequence[schemas.Result], status: int) -> str:
    if len(results) == 1:
        return str(results[0].error)
    what = "has probabilities" if status == 500 else "could be read"
    return f"none of the {len(results):,} files {what}; the first: {results[0].error}"


async def about(service: Served) -> schemas.ModelInfo:
    """The classes, the views, and the limits of the service."""
    model, limits = service.model, service.limits
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
        max_bytes=limits.max_request_bytes,
        max_pixels=limits.max_pixels,
        max_files=min(limits.max_files, limits.max_queue),
    )


async def health(service: Served) -> JSONResponse:
    """200 while the service can answer, 503 when it is stopping or must be restarted."""
    if service.is_stopping:
        return JSONResponse({"status": "the service is stopping"}, 503)
    alive = service.batcher.alive
    return JSONResponse({"status": "ok" if alive else "the model's thread has ended"}, 200 if alive else 503)


async def metrics(service: Served) -> Response:
    """Requests, images, the queue, batches and times, in Prometheus' text format."""
    return Response(service.counters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
