"""The tree reads as the data flow: a package imports only from those before it, and nothing grows too large."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fewsight.cli import app

ROOT = Path(__file__).parents[1]


def load_tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


structure = load_tool("structure")


def test_order_names_every_entry_of_the_root() -> None:
    there = {name.removesuffix(".py") for name in structure.root_entries()} - {"__init__", "py.typed"}
    assert there == set(structure.ORDER)
    assert len(structure.root_entries()) <= structure.MAX_ROOT_ENTRIES


def test_no_import_goes_against_the_order() -> None:
    assert structure.against_order() == []


def test_nothing_is_too_large() -> None:
    """A module fits into a reader's head, a function on a screen."""
    limits = [
        (structure.package_sizes(), structure.MAX_PACKAGE_MODULES),
        (structure.module_lines(), structure.MAX_MODULE_LINES),
        ({one.name: one.lines for one in structure.limited_functions()}, structure.MAX_FUNCTION_LINES),
        ({one.name: one.parameters for one in structure.limited_functions()}, structure.MAX_PARAMETERS),
    ]
    assert [
        f"{name}: {size}, at most {most}" for sizes, most in limits for name, size in sizes.items() if size > most
    ] == []


def test_no_module_is_a_drawer() -> None:
    names = {part for path in structure.modules() for part in path.with_suffix("").parts}
    assert names.isdisjoint(structure.DRAWERS)


def test_exceptions_from_the_limits_are_functions_that_need_them() -> None:
    there = {one.name: one for one in structure.functions()}
    for name in structure.EXCEPTIONS:
        one = there[name]
        assert one.lines > structure.MAX_FUNCTION_LINES or one.parameters > structure.MAX_PARAMETERS, name


def readme_commands() -> list[str]:
    """Each `fewsight ...` line of the README's shell blocks, comments cut."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("fewsight ")]


@pytest.mark.parametrize("line", readme_commands())
def test_readme_command_is_one_that_exists(line: str) -> None:
    tokens = shlex.split(line)[1:]
    command, _, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    assert callable(command)


def test_readme_names_the_make_targets() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for target in re.findall(r"make ([a-z-]+)", text):
        assert target in targets


def test_no_file_records_a_download_address() -> None:
    for path in [*ROOT.glob("*.toml"), *ROOT.glob("*.lock"), *ROOT.glob("*.txt")]:
        assert "files.pythonhosted" not in path.read_text(encoding="utf-8")
