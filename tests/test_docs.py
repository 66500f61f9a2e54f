"""The documentation runs: its blocks on small digits, its command lines, links and paths; its examples on a copy."""

import functools
import glob
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cyclopts.exceptions import MissingArgumentError
from pydantic import BaseModel

import fewsight
from conftest import TINY, Command
from fewsight.augment import POLICIES, views
from fewsight.cli import app
from fewsight.losses import LOSSES
from fewsight.models import BACKBONES
from fewsight.optim import SCHEDULES
from fewsight.recipes import Recipe, Stage
from fewsight.training.reporters import Reporter

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ROOT_PAGES = [ROOT / f"{name}.md" for name in ("README", "NOTES", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<head>[^\n`]+)\n(?P<text>.*?)^```$", re.M | re.S)
MARK = re.compile(r"(not run|slow): \S.*")
FINDINGS = ("fewsight check",)  # commands that may end with 1: they found something


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the mark in the comment on the line before it."""

    page: Path
    kind: str  # sh, python, diff, text
    title: str  # the file whose content or change it is, else ""
    mark: str  # "", "not run: REASON" or "slow: REASON"
    text: str

    @property
    def when(self) -> str:
        """`now`, `slow` or `not run`."""
        return self.mark.partition(":")[0] or "now"


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    blocks = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        kind, _, rest = match["head"].partition(" ")
        title = re.fullmatch(r'title="([^"]+)"', rest)
        blocks.append(Block(page, kind, title[1] if title else "", match["mark"] or "", match["text"]))
    return blocks


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
EXAMPLES = [block for block in BLOCKS if block.title]


def commands(text: str) -> list[str]:
    """The command lines of a shell block without comments."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def named(page: Path) -> str:
    """The name of a page in test ids and messages: `guides/training`."""
    return page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT).with_suffix("").as_posix()


# --- rules for every page -----------------------------------------------------------------------------------


def test_every_fence_is_a_block_of_a_known_kind() -> None:
    for page in PAGES:
        assert len(re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.M)) == 2 * len(blocks_of(page)), page
    assert {block.kind for block in BLOCKS} == {"sh", "python", "diff", "text"}
    assert all(block.title for block in BLOCKS if block.kind == "diff")


def test_a_block_that_is_not_run_says_why() -> None:
    for block in BLOCKS:
        assert not block.mark or MARK.fullmatch(block.mark), f"{named(block.page)}: {block.mark}"


def test_every_shell_line_is_a_command_that_exists() -> None:
    lines = [(block.page, line) for block in BLOCKS if block.kind == "sh" for line in commands(block.text)]
    assert lines
    for page, line in lines:
        tokens = shlex.split(line.replace("torchrun --nproc-per-node=4 -m fewsight", "fewsight"))
        if tokens[0] == "pip":
            continue
        assert tokens[0] == "fewsight", f"{page}: {line}"
        if tokens[1:] != ["--version"]:
            command, bound, _ = app.parse_args(tokens[1:], exit_on_error=False, print_error=False)
            assert callable(command), line
            recipe = bound.arguments.get("recipe")
            assert recipe in (None, *SHIPPED) or str(recipe).endswith("recipe.toml"), line


SHIPPED = [path.stem for path in (ROOT / "src" / "fewsight" / "recipes").glob("*.toml")]


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=named)
def test_every_command_within_a_sentence_exists(page: Path) -> None:
    """test_tree.py checks the README's blocks."""
    for span in set(re.findall(r"`(fewsight [^`]+)`", page.read_text(encoding="utf-8"))):
        if "..." in span or span.startswith("fewsight --"):
            continue
        assert not unknown_words(shlex.split(span)[1:]), span


def unknown_words(words: list[str]) -> list[str]:
    """The words that a command does not know, where a sentence leaves out arguments: `fewsight report --views`."""
    try:
        app.parse_args(words, exit_on_error=False, print_error=False)
    except MissingArgumentError as error:
        return [word for word in error.unused_tokens or () if word != error.keyword]
    return []


def test_invented_option_of_a_command_without_its_arguments_is_found() -> None:
    assert unknown_words(["vipriors", "build", "--nope"]) == ["--nope"]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown's toc makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    heads = (re.sub(r"[^\w\s-]", "", head).strip().lower() for head in re.findall(r"^#+ (.+)$", text, re.M))
    return {re.sub(r"[-\s]+", "-", head) for head in heads}


def test_every_internal_link_has_a_target() -> None:
    for page in (*PAGES, *ROOT_PAGES):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith(("https://", "http://")):
                continue
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{named(page)}: {target}"
            assert linked.is_file() or page in ROOT_PAGES, f"{named(page)}: {target}"  # the site has no folders
            assert not anchor or anchor in anchors(linked), f"{named(page)}: {target}"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    assert sorted(re.findall(r'"([\w/-]+\.md)"', text)) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_notes_and_readme_can_be_skimmed() -> None:
    """Short lines in the notes, an index at their head, and a README of a few screens."""
    notes = [ROOT / "NOTES.md", *(DOCS / "notes").glob("*.md")]
    for page in notes:
        assert max(len(line) for line in page.read_text(encoding="utf-8").splitlines()) <= 120, named(page)
    linked = set(re.findall(r"\]\((docs/notes/[\w-]+\.md)\)", notes[0].read_text(encoding="utf-8")))
    assert linked == {page.relative_to(ROOT).as_posix() for page in notes[1:]}
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=named)
def test_every_path_of_the_repository_exists(page: Path) -> None:
    new = {block.title for block in EXAMPLES if block.kind == "python"}
    for path in re.findall(r"`((?:src|tests|benchmarks|docs|tools)/[\w./-]+)`", page.read_text(encoding="utf-8")):
        assert path in new or (ROOT / path).exists(), path


def test_keys_of_the_recipe_exist() -> None:
    """`augment.fill`, `stages.N.lr_scale`, `losses.triplet.margin` in the tables and sentences."""
    for page in PAGES:
        for key in re.findall(r"`((?:data|model|augment|eval|run|losses|optim|stages\.N)\.[\w.]+)", page.read_text()):
            names = [name for name in key.split(".") if name]
            if names[0] in ("stages", "losses", "optim"):
                names = names[2:] if names[0] == "stages" else names
                assert is_recipe_key(Stage, names), f"{named(page)}: {key}"
            elif names[-1] not in ("json", "jsonl"):
                assert is_recipe_key(Recipe, names), f"{named(page)}: {key}"


def is_recipe_key(section: type[BaseModel], names: list[str]) -> bool:
    """Whether a section of the recipe has this key; the keys of `weights` are losses, those of `options` anything."""
    for index, name in enumerate(names):
        if name not in section.model_fields:
            return False
        value_type = section.model_fields[name].annotation
        if name == "weights":
            return all(loss in LOSSES for loss in names[index + 1 :])
        if name == "options":
            return True  # a builder's own parameters, which the page adds
        if not isinstance(value_type, type) or not issubclass(value_type, BaseModel):
            return index + 1 == len(names)
        section = value_type
    return True


# --- the reference ------------------------------------------------------------------------------------------


def test_command_reference_is_what_the_commands_say() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "commands_page.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run `make docs`"


def test_command_reference_has_every_option_of_help(command: Command) -> None:
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (fewsight [a-z ]+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    for name, part in parts.items():
        answer = command(*name.split()[1:], "--help")
        shown = set(re.findall(r"--[a-z][a-z-]*", answer.out)) - {"--help", "--version"}
        assert shown <= set(re.findall(r"--[a-z][a-z-]*", part)), name


def test_python_reference_has_every_public_name() -> None:
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: (\S+)", text, re.M)
    assert {f"fewsight.{name}" for name in fewsight.__all__} <= set(shown)
    for name in shown:
        module, _, last = name.rpartition(".")
        documented = sys.modules.get(name) or getattr(importlib.import_module(module), last)
        assert documented.__doc__, name


# --- the blocks run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(digit_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages start from: photos/ with class folders, a manifest, new/, and two runs trained on photos/.

    The runs are trained in the folder in which the pages run, since a run stores the path of its data.
    """
    desk = tmp_path_factory.mktemp("docs") / "desk"
    desk.mkdir()
    for split in ("train", "val", "test"):
        shutil.copytree(digit_images / split, desk / ("new" if split == "test" else "photos"), dirs_exist_ok=True)
    for image in list((desk / "new").glob("*/*.png")):
        shutil.copy(image, desk / "new" / f"{image.parent.name}-{image.name}")
    lines = [f"{path.relative_to(desk)},{path.parent.name}" for path in sorted((desk / "photos").glob("*/*.png"))]
    (desk / "images.csv").write_text("\n".join(["path,label", *lines]) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(desk)
        for seed, name in enumerate(("photos", "more")):
            values = [*TINY, f"run.seed={seed}", "stages.0.epochs=1", "eval.test_px=[32,48]"]
            fewsight.train("photos", f"runs/{name}", recipe="digits", overrides=values)
    return desk.rename(desk.with_name("as_it_was"))


@pytest.fixture
def desk(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh copy of `trained`, the working directory of a page's blocks."""
    folder = trained.with_name("desk")
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    yield folder
    monkeypatch.undo()
    shutil.rmtree(folder)


def run_shell(text: str, command: Command) -> None:
    """Run the lines of a block in their order, expanding glob patterns as a shell does."""
    for line in commands(text):
        tokens = shlex.split(line)
        assert tokens[0] == "fewsight", line
        arguments = [path for token in tokens[1:] for path in (sorted(glob.glob(token)) or [token])]  # noqa: PTH207
        answer = command(*arguments)
        allowed = (0, 1) if line.startswith(FINDINGS) else (0,)
        assert answer.code in allowed, f"{line}\n{answer.out}\n{answer.err}"


def run_page(blocks: list[Block], command: Command) -> None:
    """Run blocks in their order; the Python blocks share one namespace."""
    names: dict[str, object] = {}
    for block in blocks:
        if block.kind == "sh":
            run_shell(block.text, command)
        elif block.kind == "python":
            exec(compile(block.text, named(block.page), "exec"), names)


def pages_with(*when: str) -> list[Path]:
    """Pages with a shell or Python block that runs at that time, worked examples excluded."""
    return sorted({b.page for b in BLOCKS if b.kind in ("sh", "python") and b.when in when and not b.title})


def quick_or_slow(page: Path) -> Any:
    """The page, marked slow if `make test` shows the same elsewhere."""
    return pytest.param(page, marks=pytest.mark.slow if named(page) == "guides/export" else ())


@pytest.mark.parametrize("page", [quick_or_slow(page) for page in pages_with("now")], ids=named)
def test_page_runs(page: Path, desk: Path, command: Command) -> None:
    run_page([block for block in blocks_of(page) if block.when == "now" and not block.title], command)


def test_reporter_of_the_guide_repeats_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in BLOCKS if "class KeepLosses" in block.text]
    names: dict[str, Any] = {}
    exec(compile(block.text, named(block.page), "exec"), names)
    reporter = names["KeepLosses"](types.SimpleNamespace(path="runs/one"), types.SimpleNamespace(paths=["1.png"]))
    capsys.readouterr()
    reporter.say("a text that the terminal has shown")
    reporter.epoch({"train_loss": 0.5})
    assert capsys.readouterr().out == ""
    assert names["losses"] == [0.5]


def test_guide_names_every_key_that_a_reporter_receives() -> None:
    text = (DOCS / "guides" / "notebook.md").read_text(encoding="utf-8")
    keys = {key for name in ("step", "epoch") for key in re.findall(r"`(\w+)`", str(getattr(Reporter, name).__doc__))}
    assert keys - {"done_steps"} <= set(re.findall(r"`(\w+)`", text))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", pages_with("slow"), ids=named)
def test_whole_page_runs(page: Path, desk: Path, command: Command) -> None:
    """The slow blocks too; a run that a block trains again is removed first."""
    blocks = [block for block in blocks_of(page) if block.when != "not run" and not block.title]
    for block in blocks:
        if block.when == "slow" and re.search(r'--out runs/photos\b|"runs/photos", hours', block.text):
            shutil.rmtree(desk / "runs" / "photos")
    run_page(blocks, command)


# --- the worked examples ------------------------------------------------------------------------------------


@functools.cache
def edited(path: str) -> str:
    """The text of a file of the repository after every change that the pages make to it."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for block in EXAMPLES:
        if block.kind == "diff" and block.title == path:
            for hunk in re.split(r"^@@\n", block.text, flags=re.M):
                lines = hunk.splitlines(keepends=True)
                before = "".join(line[1:] if line.strip() else line for line in lines if not line.startswith("+"))
                after = "".join(line[1:] if line.strip() else line for line in lines if not line.startswith("-"))
                assert text.count(before) == 1, f"{path} has {text.count(before)} times:\n{before}"
                text = text.replace(before, after)
    return text


def test_edits_of_the_examples_fit_the_files() -> None:
    edits = {block.title for block in EXAMPLES if block.kind == "diff"}
    assert len(edits) == 7
    for path in edits:
        compile(edited(path), path, "exec")


def example(title: str, name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A new file of the examples, executed as the module `name`."""
    (block,) = [block for block in EXAMPLES if block.title == title]
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(block.text, title, "exec"), module.__dict__)
    return module


def test_example_backbone_meets_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("src/fewsight/models/resnet.py", "fewsight.models.resnet", monkeypatch)
    monkeypatch.setitem(BACKBONES, "resnet18", module.build_resnet18)
    test = example("tests/models/test_backbones_resnet.py", "test_backbones_resnet", monkeypatch)
    test.test_resnet18_has_the_parameter_count_of_timm()


def test_example_policy_meets_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "fewsight.augment.policies.randaugment"
    module = example("src/fewsight/augment/policies/randaugment.py", name, monkeypatch)
    monkeypatch.setitem(POLICIES, "randaugment", module.randaugment)
    test = example("tests/augment/test_augment_randaugment.py", "test_augment_randaugment", monkeypatch)
    test.test_randaugment_draws_each_operation_and_sign_equally_often()


def test_example_schedule_meets_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("src/fewsight/optim/linear.py", "fewsight.optim.linear", monkeypatch)
    monkeypatch.setitem(SCHEDULES, "linear", module.linear)
    test = example("tests/optim/test_schedules_linear.py", "test_schedules_linear", monkeypatch)
    test.test_linear_schedule_is_a_straight_line()


def test_example_view_meets_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    names = dict(vars(views))
    exec(compile(edited("src/fewsight/augment/views.py"), "views.py", "exec"), names)
    monkeypatch.setitem(views.CROPS, "whole", names["_whole"])
    test = example("tests/augment/test_augment_whole.py", "test_augment_whole", monkeypatch)
    test.test_whole_view_shows_both_ends_of_a_wide_image()


def run_in(copy: Path, *arguments: str) -> None:
    """Run Python on the copy of the tree."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_examples_hold_on_a_copy_of_the_tree(desk: Path, tmp_path: Path) -> None:
    """Apply every file and change of docs/extend.md, then run the tests and commands that the page names."""
    copy = tmp_path / "copy"
    for name in ("src", "tests", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "Makefile"):
        shutil.copy(ROOT / name, copy / name)
    for block in EXAMPLES:
        (copy / block.title).write_text(edited(block.title) if block.kind == "diff" else block.text, encoding="utf-8")
    run_in(copy, "-c", f"import fewsight; assert fewsight.__file__.startswith({str(copy)!r})")
    run_in(copy, "-m", "ruff", "check", *sorted({block.title for block in EXAMPLES}))
    run_in(copy, "-m", "ruff", "format", "--check", *sorted({block.title for block in EXAMPLES}))
    added = [block.title for block in EXAMPLES if block.title.startswith("src/") and block.kind == "python"]
    run_in(copy, "-m", "mypy", "--no-incremental", *added)
    own = [block.title for block in EXAMPLES if block.title.startswith("tests/") and block.kind == "python"]
    others = ["models/test_backbones", "losses/test_losses", "recipes/test_recipes", "augment/test_augment_views"]
    others += ["augment/test_augment_image"]
    others += ["augment/test_augment_policy", "optim/test_schedules"]
    others = [f"tests/{name}.py" for name in (*others, "optim/test_optimizers", "test_tree")]
    run_in(copy, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *own, *others)
    for block in blocks_of(DOCS / "extend.md"):
        for line in commands(block.text) if block.kind == "sh" else []:
            short = ["--set", "stages.0.epochs=1", "--set", "model.width=0.25"] if " train " in line else []
            words = [
                "-m",
                "fewsight",
                *(str(desk / word) if word in DESK_PATHS else word for word in shlex.split(line)[1:]),
            ]
            run_in(copy, *words, *short)


DESK_PATHS = ("photos/", "runs/photos", "runs/resnet18", "runs/focal", "runs/lion", "runs/linear", "runs/randaugment")
