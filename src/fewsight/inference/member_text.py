"""A member of an ensemble as the command line writes it."""

from pathlib import Path


def parse_member(text: str) -> tuple[str, list[tuple[Path, tuple[int, ...]]]]:
    """Parse a member: `[NAME=]RUN[:SIZES][+RUN[:SIZES]...]`.

    `runs/a` is a run at all its test sizes; `runs/ce:224,320,380+runs/ce448:448` combines two runs at the given sizes.

    Returns:
        Its name, and (run folder, test sizes; empty: all) of each part.
    """
    if Path(text).exists():
        return Path(text).resolve().name, [(Path(text), ())]
    name, sign, rest = text.partition("=")
    parts = []
    for part in (rest if sign else text).split("+"):
        path, colon, sizes = part.rpartition(":")
        if not colon or not sizes.replace(",", "").isdecimal() or not sizes.isascii():
            path, sizes = part, ""
        parts.append((Path(path), tuple(int(px) for px in sizes.split(",") if px)))
    return (name if sign else parts[0][0].resolve().name), parts
