"""Words for messages: a number with the noun that it counts, the first few of many names."""

from collections.abc import Iterable


def counted(number: int, noun: str) -> str:
    """A number with its noun, which is given in the singular: `counted(2, "class")` is `2 classes`."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x", "tch", "sh")) else "s"
    return f"{number:,} {noun}{ending}"


def first_few(items: Iterable[str], limit: int = 5, rest: str = "") -> list[str]:
    """The first items, then `and 3 more` if there are others, with `rest` that says where those are listed."""
    listed = list(items)
    more = [f"and {len(listed) - limit:,} more{rest}"] if len(listed) > limit else []
    return [*listed[:limit], *more]


def named(names: Iterable[str], limit: int = 5) -> str:
    """The first names of a list in one line: `a, b and 3 more`."""
    listed = list(names)
    few = first_few(listed, limit)
    return ", ".join(few) if len(listed) <= limit else f"{', '.join(few[:-1])} {few[-1]}"
