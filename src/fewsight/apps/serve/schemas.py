"""The JSON of the API: its schemas, and how predictions become them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from fewsight.apps.pictures import data_url
from fewsight.apps.serve.batching import Prediction
from fewsight.apps.serve.service import Failure
from fewsight.inference.model import Activation, Model
from fewsight.inference.prediction_files import valid_text

JPEG_QUALITY = 85


class ClassProb(BaseModel):
    """A class and its probability."""

    label: str
    prob: float = Field(ge=0, le=1)


class PartPrediction(ClassProb):
    """The most probable class of one view, or of one member of an ensemble, before the temperature."""

    member: str | None = Field(description="the run of an ensemble, or its member; null for a run")
    view: str | None = Field(description="such as center-224; null for a member as a whole")


class ActivationMap(BaseModel):
    """Where a run found evidence for the label: the class activation map over one view."""

    member: str | None
    view: str
    picture: str = Field(description="the view: a JPEG as a data URL")
    map: list[list[float]] = Field(
        description="rows of the map: the label's logit at each position minus the mean over all classes"
    )


class Details(BaseModel):
    """The predictions of the parts that a result is averaged from."""

    views: list[PartPrediction]
    members: list[PartPrediction] = Field(description="of an ensemble; empty for a run")
    activations: list[ActivationMap] = Field(description="empty where the model has no such map")


class Result(BaseModel):
    """One image: its classes, or why it has none."""

    path: str = Field(description="the file's name as it was sent")
    label: str | None = Field(description="the most probable class; null where there is an error")
    prob: float | None = Field(ge=0, le=1, description="its probability, at the run's temperature")
    top: list[ClassProb] = Field(description="the most probable classes, the label first")
    none_of_these: bool | None = Field(
        description="whether prob is below the run's threshold; null where the run has none"
    )
    error: str | None = Field(description="why the image could not be read, or has no probabilities")
    details: Details | None = Field(default=None, description="with details=true")


class Results(BaseModel):
    """A result for each file, in the order in which the files were sent."""

    results: list[Result]


class Problem(BaseModel):
    """Why a request was not answered; with results where each file has its own reason."""

    error: str
    results: list[Result] | None = None


class Health(BaseModel):
    """Whether the service can answer."""

    status: str


class ModelInfo(BaseModel):
    """The served model and the limits of the service."""

    name: str = Field(description="of the run's folder")
    fewsight: str = Field(description="the version")
    classes: list[str]
    views: list[str]
    members: list[str] = Field(description="of an ensemble; empty for a run")
    temperature: float | None = Field(description="of the probabilities; null where the run is not calibrated")
    threshold: float | None = Field(
        description="the probability below which an image is none of the classes; null where the run has none"
    )
    coverage: float | None = Field(
        description="the proportion of images of the classes that the threshold was chosen to keep"
    )
    max_bytes: int
    max_pixels: int
    max_files: int


def result_of(name: str, prediction: Prediction, model: Model, top_k: int, *, details: bool) -> Result:
    """The result of an image that was scored."""
    predictions = prediction.batch.predictions
    probs = predictions.probs[prediction.index]
    top = [
        ClassProb(label=valid_text(label), prob=_shortest_float32(prob))
        for label, prob in predictions.top_of(prediction.index, top_k)
    ]
    return Result(
        path=valid_text(name),
        label=top[0].label,
        prob=top[0].prob,
        top=top,
        none_of_these=None if predictions.threshold is None else bool(probs.max() < predictions.threshold),
        error=None,
        details=_details(prediction, model) if details else None,
    )


def failed_result(name: str, failure: Failure) -> Result:
    """The result of an image without probabilities."""
    return Result(
        path=valid_text(name), label=None, prob=None, top=[], none_of_these=None, error=valid_text(failure.reason)
    )


def status_of(failures: Sequence[Failure | None]) -> int:
    """200 where an image has probabilities; else the status of all failures if they are alike.

    Else 500 where the model failed on one of them, and 422 where only files did.
    """
    statuses = {200 if failure is None else failure.status for failure in failures}
    if 200 in statuses or len(statuses) == 1:
        return 200 if 200 in statuses else statuses.pop()
    return 500 if 500 in statuses else 422


def _details(prediction: Prediction, model: Model) -> Details:
    batch, index, classes = prediction.batch, prediction.index, model.classes
    is_run = not model.members
    views = [_part(classes, probs[index], None if is_run else run, view) for (run, view), probs in batch.views.items()]
    members = [_part(classes, probs[index], member, None) for member, probs in batch.members.items()]
    activations = [
        _activation_map(activation, is_run)
        for activation in prediction.activations
        if np.isfinite(activation.values).all()
    ]
    return Details(views=views, members=members, activations=activations)


def _part(classes: Sequence[str], probs: np.ndarray, member: str | None, view: str | None) -> PartPrediction:
    index = int(probs.argmax())
    return PartPrediction(
        label=valid_text(classes[index]),
        prob=_shortest_float32(probs[index]),
        member=None if member is None else valid_text(member),
        view=view,
    )


def _activation_map(activation: Activation, is_run: bool) -> ActivationMap:
    return ActivationMap(
        member=None if is_run else valid_text(activation.run),
        view=activation.view,
        picture=data_url(Image.fromarray(activation.cut), "JPEG", quality=JPEG_QUALITY),
        map=[[float(f"{value:.4g}") for value in row] for row in activation.values],
    )


def _shortest_float32(prob: float) -> float:
    """The shortest decimal that is this float32, as `predict` writes it; rounding may not leave [0, 1].

    NaN stays NaN, which the schemas refuse.
    """
    return min(float(str(np.float32(prob))), 1.0)
