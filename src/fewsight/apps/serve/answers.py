"""What the API answers, as JSON."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from fewsight.apps.pictures import address
from fewsight.apps.serve.batching import Answer
from fewsight.data import ImageError, LargeImageError, UnknownKindError
from fewsight.inference.model import Activation, Model, ViewPredictions
from fewsight.inference.prediction_files import valid_text

PICTURE_QUALITY = 85


class Top(BaseModel):
    """A class and its probability."""

    label: str
    prob: float = Field(ge=0, le=1)


class Says(Top):
    """The most probable class of one view, or of one member of an ensemble, before the temperature."""

    member: str | None = Field(description="the run of an ensemble, or its member; null for a run")
    view: str | None = Field(description="such as center-224; null for a member as a whole")


class Looks(BaseModel):
    """Where a run looked for the label: a class activation map over the view that it saw."""

    member: str | None
    view: str
    picture: str = Field(description="the view, a JPEG in a data address")
    map: list[list[float]] = Field(
        description="rows of the map: how far the label's logit lies there above the mean of all classes'"
    )


class Details(BaseModel):
    """What stands behind a prediction."""

    views: list[Says]
    members: list[Says] = Field(description="of an ensemble; empty for a run")
    activations: list[Looks] = Field(description="empty where the model has no such map")


class Result(BaseModel):
    """One image: its classes, or why it could not be read."""

    path: str = Field(description="the file's name as it was sent")
    label: str | None = Field(description="the most probable class; null where the image could not be read")
    prob: float | None = Field(description="its probability, at the temperature that the run keeps")
    top: list[Top] = Field(description="the most probable classes, first the label")
    none_of_these: bool | None = Field(
        description="whether prob lies below the threshold that the run keeps; null where it keeps none"
    )
    error: str | None = Field(description="why the image could not be read")
    details: Details | None = Field(default=None, description="with details=true")


class Results(BaseModel):
    """A result for each file, in the order in which they were sent."""

    results: list[Result]


class Problem(BaseModel):
    """Why a request was not answered. With results where they say why for each file."""

    error: str
    results: list[Result] | None = None


class Health(BaseModel):
    """Whether the service can answer."""

    status: str


class ModelInfo(BaseModel):
    """What the service serves."""

    name: str = Field(description="of the run's folder")
    fewsight: str = Field(description="the version")
    classes: list[str]
    views: list[str]
    members: list[str] = Field(description="of an ensemble; empty for a run")
    temperature: float | None = Field(description="that the probabilities are taken at, where the run keeps one")
    threshold: float | None = Field(description="below which an image is none of the classes, where the run keeps one")
    coverage: float | None = Field(description="share of images of the classes that the threshold was chosen to keep")
    max_bytes: int
    max_pixels: int
    max_files: int


def result_of(name: str, answer: Answer, model: Model, top_k: int, *, details: bool) -> Result:
    """One image's result."""
    found = answer.looked.predictions
    probs = found.probs[answer.row]
    top = [Top(label=valid_text(label), prob=_exact(prob)) for label, prob in found.top_of(answer.row, top_k)]
    return Result(
        path=valid_text(name),
        label=top[0].label,
        prob=top[0].prob,
        top=top,
        none_of_these=None if found.threshold is None else bool(probs.max() < found.threshold),
        error=None,
        details=_details(answer, model) if details else None,
    )


def failed(name: str, error: ImageError) -> Result:
    """The result of a file that is no image."""
    return Result(
        path=valid_text(name), label=None, prob=None, top=[], none_of_these=None, error=valid_text(error.reason)
    )


def status_of(errors: Sequence[ImageError | None]) -> int:
    """200 where one image or more could be read; else 413, 415 or 422 as the files are all alike, 422 if not."""
    if not all(errors):
        return 200
    kinds = {
        413 if isinstance(error, LargeImageError) else 415 if isinstance(error, UnknownKindError) else 422
        for error in errors
    }
    return kinds.pop() if len(kinds) == 1 else 422


def _details(answer: Answer, model: Model) -> Details:
    looked, alone = answer.looked, not model.members
    views = [
        _says(looked, rows[answer.row], None if alone else run, view) for (run, view), rows in looked.views.items()
    ]
    members = [_says(looked, rows[answer.row], name, None) for name, rows in looked.members.items()]
    return Details(views=views, members=members, activations=[_looks(one, alone) for one in answer.activations])


def _says(looked: ViewPredictions, probs: np.ndarray, member: str | None, view: str | None) -> Says:
    place = int(probs.argmax())
    label = valid_text(looked.predictions.classes[place])
    return Says(
        label=label, prob=_exact(probs[place]), member=None if member is None else valid_text(member), view=view
    )


def _looks(one: Activation, alone: bool) -> Looks:
    picture = address(Image.fromarray(one.cut), "JPEG", quality=PICTURE_QUALITY)
    rows = [[float(f"{value:.4g}") for value in row] for row in one.values]
    return Looks(member=None if alone else valid_text(one.run), view=one.view, picture=picture, map=rows)


def _exact(prob: float) -> float:
    """The shortest decimal that is this float32, as in the rows of `predict`; rounding may not leave [0, 1]."""
    return min(1.0, float(str(np.float32(prob))))
