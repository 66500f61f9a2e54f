"""Words for messages: a number with the noun that it counts, the first few of many names, a command to type."""

import os
import re
import shlex
from collections.abc import Iterable


def counted(number: int, noun: str) -> str:
    """A number with its noun, which is given in the singular: `counted(2, "class")` is `2 classes`.

    Words after the noun stay: `counted(2, "image outside a class folder")` is `2 images outside a class folder`.
    """
    words = re.split(r"(?= (?:outside|to|without) )", noun, maxsplit=1)
    ending = "" if number == 1 else "es" if words[0].endswith(("s", "x", "tch", "sh")) else "s"
    return f"{number:,} {words[0]}{ending}{''.join(words[1:])}"


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


def escaped(char: str) -> str:
    """A character that cannot be shown, as an escape; of a file name that is not UTF-8, the byte: `\\xe9`."""
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char, f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def shell_command(words: Iterable[str]) -> str:
    """Words as a command that can be typed in a shell; a name that cannot be shown is written as `$'caf\\xe9'`."""
    return " ".join(shlex.quote(word) if word.isprintable() else _ansi_quoted(word) for word in words)


def _ansi_quoted(word: str) -> str:
    plain = "".join(chr(b) if 0x20 <= b < 0x7F and b not in b"\\'" else f"\\x{b:02x}" for b in os.fsencode(word))
    return f"$'{plain}'"
