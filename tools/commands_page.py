"""Write docs/reference/commands.md from the docstrings of the commands (`make docs`); a test compares the two."""

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

Every command with its arguments and options, as `--help` shows them. A value in parentheses is the default.

Exit codes: 0 success; 1 success with findings; 2 failure; 130 and 143 interrupted, with the state saved.
"""


def commands(current: App = app, names: tuple[str, ...] = ("fewsight",)) -> Iterator[tuple[str, App]]:
    """Yield (name, command) for every command and subcommand, such as `fewsight scores rows`, in the help's order."""
    if current.default_command is not None:
        yield " ".join(names), current
    for name in sorted(name for name in current if not name.startswith("-")):
        yield from commands(current[name], (*names, name))


def takes(hint: object) -> str:
    """The metavariable of an option as in `--help`: `PATH`, `drop|stop|allow`, nothing for a flag."""
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    kinds = [kind for kind in typing.get_args(hint) if kind not in (NoneType, Ellipsis)]
    if kinds:
        return takes(kinds[0])
    return "" if hint is bool else {str: "TEXT", int: "INT", float: "FLOAT", Path: "PATH"}[hint]


def code(text: str) -> str:
    """A code span in a table: a bare bar would end the cell, and an escaped one would show its backslash."""
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def section(name: str, command: App) -> list[str]:
    """The lines of the page on one command."""
    docstring = docstring_parser.parse(inspect.getdoc(command.default_command) or "")
    meanings = {param.arg_name: " ".join((param.description or "").split()) for param in docstring.params}
    usage, rows = [name], []
    for argument in command.assemble_argument_collection():
        what, several = takes(argument.hint), typing.get_origin(argument.hint) is tuple
        shown = argument.names[0] + f" {what}" * bool(argument.names[0].startswith("-") and what)
        if argument.required or not argument.names[0].startswith("-"):
            usage.append((shown if argument.required else f"[{shown}]") + "..." * several)
        rows.append(
            (code(f"{shown}{'...' * several}"), re.sub(r"([|\[\]])", r"\\\1", meanings[argument.field_info.name]))
        )
    if any(
        argument.names[0].startswith("-") and not argument.required
        for argument in command.assemble_argument_collection()
    ):
        usage.append("[OPTIONS]")
    description = " ".join(part for part in (docstring.short_description, docstring.long_description) if part)
    lines = [f"## {name}", "", " ".join(description.split()), "", "```text", " ".join(usage), "```", ""]
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
    return (
        "\n".join([START, *(line for name, command in commands() for line in section(name, command))]).rstrip() + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
