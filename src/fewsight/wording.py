"""Counts as they are read: 1 epoch, 1,200 epochs."""


def counted(number: int, what: str) -> str:
    """A number with the thing that it counts, which is given in the singular: `counted(2, "class")` is `2 classes`."""
    ending = "" if number == 1 else "es" if what.endswith(("s", "x", "tch", "sh")) else "s"
    return f"{number:,} {what}{ending}"
