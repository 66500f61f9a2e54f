"""The tree reads as the data flow: a module imports only from those before it."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from fewsight.cli import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "fewsight"
ORDER = [
    "errors",
    "wording",
    "files",
    "rng",
    "cores",
    "recipes",
    "device",
    "ranks",
    "data",
    "augment",
    "backbones",
    "model",
    "losses",
    "schedule",
    "metrics",
    "runs",
    "scores",
    "fusion",
    "tables",
    "calibration",
    "plans",
    "feed",
    "mixing",
    "predict",
    "ensemble",
    "predictor",
    "listing",
    "learner",
    "reporters",
    "fitting",
    "initial",
    "leaks",
    "prepare",
    "console",
    "preview",
    "pictures",
    "check",
    "auto",
    "rows",
    "summary",
    "evaluation",
    "session",
    "board",
    "inference",
    "export",
    "report",
    "reproduce",
    "vipriors",
    "serve",
    "demo",
    "cli",
    "__main__",
]


def imported(path: Path) -> set[str]:
    """First-level names of fewsight that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "fewsight":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fewsight."):
            names.add(node.module.split(".")[1])
    return names


def test_order_names_every_module() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_module_imports_only_from_those_before_it(name: str) -> None:
    files = [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else list((PACKAGE / name).glob("*.py"))
    for path in files:
        later = imported(path) - set(ORDER[: ORDER.index(name)]) - {name, "__version__"}
        assert not later, f"{path.name} imports {later}"


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
