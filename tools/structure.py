"""The structure of src/fewsight in figures: `python tools/structure.py`; tests/test_tree.py holds the limits.

It reads the source as text and imports nothing of it.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "fewsight"
# A package or module imports only from itself and from those on earlier lines.
ORDER = [
    "errors",  # the error classes that users meet
    "wording",  # counts and plurals in messages
    "recipes",  # the schema, the loader, the shipped TOML files
    "machine",  # cores, devices, processes, signals, files, random streams
    "data",  # from a folder or manifest to checked, decoded images
    "augment",  # crop, flip, policy, CutMix, normalisation, test views
    "models",  # backbones and the classifier
    "losses",  # cross-entropy, triplet, ArcFace and their sums
    "optim",  # optimisers, learning-rate schedules, moving average, norms
    "runs",  # the run folder
    "scores",  # log-probabilities: made, stored, fused, calibrated, queried
    "terminal",  # what a terminal shows
    "training",  # the plan, the loop, the session
    "inference",  # trained runs on images
    "apps",  # check, export, report, reproduce, serve, vipriors, runs
    "cli",  # the commands
    "__main__",
]
MAX_ROOT_ENTRIES = 20
MAX_PACKAGE_MODULES = 14  # without __init__.py
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
DRAWERS = {"utils", "util", "common", "helpers", "misc", "base", "manager"}  # names that say nothing of their content
# Command functions and `fewsight.train`, whose parameters are what a user may set.
BUILDERS = {"losses", "optim"}  # packages whose functions' keyword-only parameters are options of a recipe, not counted
EXCEPTIONS = {"cli/serving.py:serve", "cli/training.py:train", "training/session.py:train", "cli/testing.py:reproduce"}


@dataclass(frozen=True)
class Function:
    """A function or method, nested ones too."""

    name: str  # file:function
    lines: int
    parameters: int


def modules() -> list[Path]:
    """Every Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    """The entry of the root that a file belongs to, as `ORDER` names it."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Entries of the root that a file imports from."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "fewsight":
            names |= {alias.name for alias in node.names if alias.name in ORDER}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fewsight."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fewsight.")}
    return names


def against_order() -> list[str]:
    """Imports from a later entry, as `file imports entry`."""
    found = []
    for path in modules():
        if path.parent == PACKAGE and path.name == "__init__.py":
            continue  # the public names of the whole package
        allowed = ORDER[: ORDER.index(place(path)) + 1]
        found += [f"{path.relative_to(PACKAGE)} imports {name}" for name in sorted(imported(path) - set(allowed))]
    return found


def root_entries() -> list[str]:
    """Files and folders directly in the package."""
    return sorted(path.name for path in PACKAGE.iterdir() if path.name != "__pycache__")


def package_sizes() -> dict[str, int]:
    """Modules of each package, without its __init__.py and its sub-packages."""
    folders = sorted({path.parent for path in modules()} - {PACKAGE})
    return {str(folder.relative_to(PACKAGE)): len([*folder.glob("*.py")]) - 1 for folder in folders}


def module_lines() -> dict[str, int]:
    """Lines of each module."""
    return {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8").count("\n") for path in modules()}


def functions() -> Iterator[Function]:
    """Every function and method."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                names = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
                if path.parent.name not in BUILDERS or node.name.startswith("_"):
                    names += [one.arg for one in arguments.kwonlyargs]
                count = len([name for name in names if name not in ("self", "cls")])
                name = f"{path.relative_to(PACKAGE)}:{node.name}"
                yield Function(name, (node.end_lineno or node.lineno) - node.lineno + 1, count)


def limited_functions() -> list[Function]:
    """The functions that the limits hold for."""
    return [one for one in functions() if one.name not in EXCEPTIONS]


def main() -> None:
    """Print the figures."""
    every = limited_functions()
    lines, sizes = module_lines(), package_sizes()
    print(f"root entries: {len(root_entries())} (at most {MAX_ROOT_ENTRIES})")
    print(f"imports against the order: {len(against_order())}")
    for found in against_order():
        print(f"  {found}")
    for title, values, most in (
        ("package, modules", sizes, MAX_PACKAGE_MODULES),
        ("module, lines", lines, MAX_MODULE_LINES),
        ("function, lines", {one.name: one.lines for one in every}, MAX_FUNCTION_LINES),
        ("function, parameters", {one.name: one.parameters for one in every}, MAX_PARAMETERS),
    ):
        ranked = sorted(values.items(), key=lambda item: -item[1])
        over = sum(value > most for value in values.values())
        print(f"{title} (at most {most}; {over} above):")
        for name, value in ranked[: max(3, over)]:
            print(f"  {value:>4}  {name}")
    print(f"{sum(lines.values()):,} lines in {len(lines)} modules, {len(every):,} functions")


if __name__ == "__main__":
    main()
