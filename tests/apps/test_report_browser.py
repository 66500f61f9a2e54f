"""Pages in headless Chromium: no requests, axe-core's accessibility rules, two widths.

Screenshots are written to the folder FEWSIGHT_SCREENSHOTS, if it is set.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import TINY, Command
from fewsight.apps.report import write_report
from fewsight.apps.report.page import MAX_TABLE_CLASSES
from fewsight.inference.evaluate import evaluate
from fewsight.training.session import train
from stores import log_softmax, write_run

sync_api = pytest.importorskip("playwright.sync_api")
axe_package = pytest.importorskip("axe_core_python.base")
pytestmark = pytest.mark.slow
WIDTHS = (1280, 390)
SERIOUS = ("serious", "critical")
HINTED = """[...document.querySelectorAll(".scroll")].every(box => {
  const hint = box.previousElementSibling, scrolls = box.scrollWidth > box.clientWidth;
  return hint?.matches(".hint") ? hint.hidden !== scrolls : !scrolls;
})"""


@dataclass(frozen=True)
class PageResult:
    """What a browser reports about a page."""

    problems: list[str]  # errors and warnings on the console
    requests: list[str]  # addresses other than the page's own
    violations: list[str]  # of axe-core's serious rules
    overflow_px: int  # by which the page is wider than its window


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def look(browser: Any, file: Path, width: int, *, dark: bool = False, axe: bool = True) -> tuple[PageResult, Any]:
    """Open a page; it stays open."""
    page = browser.new_page(
        viewport={"width": width, "height": 1000}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    problems, requests = list[str](), list[str]()
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    violations = []
    if axe:
        page.add_script_tag(content=axe_source())
        violations = page.evaluate("axe.run()")["violations"]
    serious = [
        f"{entry['id']} ({entry['impact']}): {entry['nodes'][0]['html'][:200]}"
        for entry in violations
        if entry["impact"] in SERIOUS
    ]
    overflow_px = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    outside = [url for url in requests if not url.startswith("data:") and url != file.as_uri()]
    if folder := os.environ.get("FEWSIGHT_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        target = Path(folder) / f"{file.stem}-{width}{'-dark' if dark else ''}.png"
        page.screenshot(path=str(target), full_page=True)
    return PageResult(problems, outside, serious, overflow_px), page


def axe_source() -> str:
    """axe-core's script from its package."""
    return (Path(axe_package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


def generated_run(parent: Path, num_classes: int, num_images: int, pictures: Path) -> Path:
    """A run of generated scores whose images are those of `pictures`, repeated."""
    classes = tuple(f"class {number:04d} <i>&amp;" for number in range(num_classes))
    rng = np.random.default_rng(num_classes)
    labels = rng.integers(0, num_classes, num_images)
    logits = rng.standard_normal((num_images, num_classes), np.float32)
    logits[np.arange(num_images), labels] += 4
    sources = sorted(pictures.rglob("*.png"))
    digest_of = [hashlib.blake2b(source.read_bytes(), digest_size=8).hexdigest() for source in sources]
    folder = parent / "data" / "test"
    folder.mkdir(parents=True)
    for number in range(num_images):
        os.link(sources[number % len(sources)], folder / f"{number}.png")
    digests = [digest_of[number % len(sources)] for number in range(num_images)]
    write_run(parent / "run", {"center-8": log_softmax(logits)}, labels, classes=classes, digests=digests)
    return parent / "run"


def check_page(browser: Any, file: Path) -> None:
    for width, dark in ((WIDTHS[0], False), (WIDTHS[1], False), (WIDTHS[0], True)):
        result, page = look(browser, file, width, dark=dark)
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert page.evaluate(HINTED), "exactly what scrolls sideways has a hint"
        page.close()
        assert result == PageResult([], [], [], 0), (file.name, width, dark)


@pytest.mark.timeout(900)  # axe-core checks the contrast of every cell of 1,000 classes
@pytest.mark.parametrize(("num_classes", "num_images"), [(20, 1000), (200, 10_000), (1000, 50_000)])
def test_report_of_many_classes(
    browser: Any, num_classes: int, num_images: int, digit_images: Path, tmp_path: Path
) -> None:
    run = generated_run(tmp_path, num_classes, num_images, digit_images)
    page = tmp_path / f"report-{num_classes}.html"
    write_report([run], page, data=tmp_path / "data")
    assert page.stat().st_size < 10 * 2**20
    check_page(browser, page)
    if num_classes > MAX_TABLE_CLASSES:
        check_pointer(browser, page)


def check_pointer(browser: Any, file: Path) -> None:
    """The confusion matrix names the cell under the pointer."""
    _, page = look(browser, file, WIDTHS[0], axe=False)
    picture, output = page.locator("#matrix"), page.locator("#cell")
    names = page.evaluate("JSON.parse(document.getElementById('matrix-data').textContent).names")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    step = box["width"] / len(names)
    picture.hover(position={"x": 2.5 * step, "y": 7.5 * step})
    assert re.fullmatch(rf"{re.escape(names[7])} predicted as {re.escape(names[2])}: \d+ images", output.inner_text())
    picture.hover(position={"x": 4.5 * step, "y": 4.5 * step})
    assert int(output.inner_text().split(": ")[1].split()[0]) > 5, "most images of a class are on the diagonal"
    page.close()


def test_report_of_a_run_against_another(browser: Any, enough_val: Path, tmp_path: Path, command: Command) -> None:
    """With every part: curves, temperature, views, findings of `check`, another run, galleries."""
    data = tmp_path / "data"
    shutil.copytree(enough_val, data)
    shutil.copy(data / "train/one/01.png", data / "test/two/99.png")  # a leak, with another label
    (data / "train/two/broken.png").write_bytes(b"no image")
    for seed in (0, 1):
        overrides = [*TINY, f"run.seed={seed}", "stages.0.epochs=6", "eval.every_epochs=1", "data.max_bad=0.5"]
        train(data, tmp_path / f"r{seed}", recipe="digits", overrides=overrides)
        for split in ("test", "val"):
            evaluate(tmp_path / f"r{seed}", data, split=split, views="report")
    assert command("scores", "calibrate", tmp_path / "r0").code == 0
    page = tmp_path / "report-3.html"
    assert command("report", tmp_path / "r0", tmp_path / "r1", "--out", page).code == 0
    text = page.read_text()
    assert "leak: equal images across splits" in text
    assert "fault: unreadable" in text
    check_page(browser, page)


def test_classes_are_sorted_by_keyboard(browser: Any, digit_images: Path, tmp_path: Path) -> None:
    run = generated_run(tmp_path, 20, 400, digit_images)
    write_report([run], tmp_path / "page.html", check=False)
    _, page = look(browser, tmp_path / "page.html", WIDTHS[0])
    head = page.locator("table.sortable thead button").nth(2)
    cells = page.locator("table.sortable tbody td:nth-child(3)")
    for sort in ("ascending", "descending"):
        head.focus()
        page.keyboard.press("Enter")
        values = [float(text) for text in cells.all_inner_texts()]
        assert values == sorted(values, reverse=sort == "descending")
        assert page.locator("table.sortable thead th").nth(2).get_attribute("aria-sort") == sort
    page.close()


def test_check_page(browser: Any, digit_images: Path, tmp_path: Path, command: Command) -> None:
    data = tmp_path / "data"
    shutil.copytree(digit_images, data)
    shutil.copy(data / "train/one/01.png", data / "test/two/99.png")
    (data / "train/two/broken.png").write_bytes(b"no image")
    assert command("check", data, "--html", tmp_path / "check.html").code == 1
    check_page(browser, tmp_path / "check.html")
