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
