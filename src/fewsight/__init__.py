"""fewsight: train strong image classifiers from scratch on few labelled images.

`fewsight.train(data, out)` trains, `fewsight.load(run).predict(images)` predicts, `fewsight.evaluate(run, data)` tests:
the functions that the commands call. Importing the package imports no torch; the first use does.
"""

import importlib
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewsight.errors import DataError, FewsightError, Interrupted, RecipeError, RunError
    from fewsight.inference.evaluate import Evaluation, evaluate
    from fewsight.inference.model import Model, Predictions, load
    from fewsight.training.session import resume, train

__version__ = "0.1.0"
__all__ = [
    "DataError",
    "Evaluation",
    "FewsightError",
    "Interrupted",
    "Model",
    "Predictions",
    "RecipeError",
    "RunError",
    "evaluate",
    "load",
    "resume",
    "train",
]
_HOMES = {
    "errors": ("DataError", "FewsightError", "Interrupted", "RecipeError", "RunError"),
    "inference.evaluate": ("Evaluation", "evaluate"),
    "inference.model": ("Model", "Predictions", "load"),
    "training.session": ("resume", "train"),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'fewsight' has no attribute {name!r}")
    state = random.getstate()
    try:
        return getattr(importlib.import_module(f"fewsight.{home}"), name)
    finally:
        random.setstate(state)  # rich draws from it while it is imported


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
