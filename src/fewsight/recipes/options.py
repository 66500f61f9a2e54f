"""Names and options that a recipe gives to a table of builders, such as OPTIMIZERS or LOSSES."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fewsight.errors import RecipeError


def unknown_name(name: str, table: Iterable[str]) -> str:
    """What to say of a name that a table lacks, with the nearest that it has."""
    names = sorted(table)
    near = difflib.get_close_matches(name, names, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(names)}"
    return f"there is no {name!r}; {hint}"


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
    known = option_defaults(builder)
    for name in options:
        if name not in known:
            hint = unknown_name(name, known) if known else f"there is no {name!r}; there are no options here"
            raise RecipeError(f"{where}: {hint}")
