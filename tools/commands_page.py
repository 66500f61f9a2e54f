"""Write docs/reference/commands.md from the commands themselves; `make docs` does, and a test holds the page to it."""

import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import NoneType

import docstring_parser
from cyclopts import App

from fewsight.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"
START = """# Commands

<!-- Written by tools/commands_page.py (`make docs`); change the docstrings in src/fewsight/cli/ instead. -->

Every command, its arguments and its options, as `--help` shows them. A value in parentheses is the default.

Exit codes: 0 done; 1 done with findings; 2 not done; 130 and 143 interrupted, with the state saved.
"""


def commands(one: App = app, names: tuple[str, ...] = ("fewsight",)) -> Iterator[tuple[str, App]]:
    """Every command that does something, `fewsight scores rows` too, in the order of `--help`."""
    if one.default_command is not None:
        yield " ".join(names), one
    for name in sorted(name for name in one if not name.startswith("-")):
        yield from commands(one[name], (*names, name))


def takes(hint: object) -> str:
    """What an option takes, in the words of `--help`: `PATH`, `drop|stop|allow`, nothing for a flag."""
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(str(one) for one in typing.get_args(hint))
    kinds = [one for one in typing.get_args(hint) if one not in (NoneType, Ellipsis)]
    if kinds:
        return takes(kinds[0])
    return "" if hint is bool else {str: "TEXT", int: "INT", float: "FLOAT", Path: "PATH"}[hint]


def code(text: str) -> str:
    """A code span within a table, where a plain bar would end the cell and an escaped one shows its backslash."""
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def section(name: str, one: App) -> list[str]:
    """The lines on one command."""
    told = docstring_parser.parse(inspect.getdoc(one.default_command) or "")
    says = {param.arg_name: " ".join((param.description or "").split()) for param in told.params}
    usage, rows = [name], []
    for argument in one.assemble_argument_collection():
        what, several = takes(argument.hint), typing.get_origin(argument.hint) is tuple
        shown = argument.names[0] + f" {what}" * bool(argument.names[0].startswith("-") and what)
        if argument.required or not argument.names[0].startswith("-"):
            usage.append((shown if argument.required else f"[{shown}]") + "..." * several)
        rows.append((code(f"{shown}{'...' * several}"), re.sub(r"([|\[\]])", r"\\\1", says[argument.field_info.name])))
    if any(
        argument.names[0].startswith("-") and not argument.required for argument in one.assemble_argument_collection()
    ):
        usage.append("[OPTIONS]")
    whole = " ".join(part for part in (told.short_description, told.long_description) if part)
    lines = [f"## {name}", "", " ".join(whole.split()), "", "```text", " ".join(usage), "```", ""]
    if rows:
        lines += [
            "| argument or option | meaning |",
            "|---|---|",
            *(f"| {left} | {right} |" for left, right in rows),
            "",
        ]
    return lines


def page() -> str:
    """The whole page."""
    return "\n".join([START, *(line for name, one in commands() for line in section(name, one))]).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
