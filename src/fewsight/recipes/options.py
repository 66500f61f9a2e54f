"""Names and options that a recipe gives to a table of builders, such as OPTIMIZERS or LOSSES."""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fewsight.errors import RecipeError


def check_name(name: str, table: Iterable[str], where: str, also: str = "") -> None:
    """Refuse a name that a table lacks.

    Args:
        where: the key of the recipe, such as "stages.0.optim.optimizer", for the message.
        also: what is allowed beside the table's names, such as "timm:NAME".

    Raises:
        RecipeError: names the nearest name of the table, or all of them.
    """
    if name in (names := sorted(table)):
        return
    near = difflib.get_close_matches(name, names, 1, 0.5)
    allowed = ", ".join(names) + (f", or {also}" if also else "")
    hint = f"did you mean {near[0]!r}?" if near else f"it is one of {allowed}" if names else "there are no options here"
    raise RecipeError(f"{where}: there is no {name!r}; {hint}")


def check_hours(hours: float) -> None:
    """Refuse a time budget that is not a positive number of hours.

    Raises:
        RecipeError: it is not.
    """
    if not 0 < hours < math.inf:
        raise RecipeError(f"--hours {hours:g}: expected a number above 0, for example 0.5")


def option_defaults(builder: Callable[..., Any]) -> dict[str, Any]:
    """The options of a builder, its keyword-only parameters, with their defaults."""
    parameters = inspect.signature(builder).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


def check_options(builder: Callable[..., Any], options: Mapping[str, float], where: str) -> None:
    """Refuse an option that a builder does not take.

    Args:
        where: the section of the recipe, such as "stages.0.optim.options", for the message.

    Raises:
        RecipeError: names the nearest option, or all of them.
    """
    for name in options:
        check_name(name, option_defaults(builder), where)
