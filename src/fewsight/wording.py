"""Words for messages: a number with the noun that it counts."""


def counted(number: int, noun: str) -> str:
    """A number with its noun, which is given in the singular: `counted(2, "class")` is `2 classes`."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x", "tch", "sh")) else "s"
    return f"{number:,} {noun}{ending}"
