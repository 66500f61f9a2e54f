"""The service's page as a person uses it: headless Chromium drops, picks and pastes real images and reads the answers.

With FEWSIGHT_SCREENSHOTS=FOLDER, screenshots are saved in that folder.
"""

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report_browser import SERIOUS, WIDTHS, axe_source, browser  # noqa: F401
from test_serve import not_finite

import fewsight
from conftest import Command
from services import TOKEN, Running, picture, running

pytestmark = pytest.mark.slow

DROP = """([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  const options = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(new DragEvent("dragover", { ...options, dataTransfer: transfer }));
  document.body.dispatchEvent(new DragEvent("drop", { ...options, dataTransfer: transfer }));
}"""
PASTE = """([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
}"""


@pytest.fixture(scope="module")
def run(tiny_run: Path, enough_val: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a temperature and a threshold that some of the images are below."""
    copy = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("page") / "digits"))
    fewsight.evaluate(copy, enough_val, split="val")
    from fewsight.scores.calibration import calibrate

    calibrate(copy, "val", None, 0.6)
    return copy


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Running]:
    with running(run) as server:
        yield server


class Page:
    """A page of the service, with its console messages and its requests to other hosts."""

    def __init__(self, browser: Any, server: Running, width: int, path: str = "/", *, dark: bool = False) -> None:  # noqa: F811
        self.page = browser.new_page(
            viewport={"width": width, "height": 1000}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
        )
        self.problems, self.outside, self.width, self.dark = list[str](), list[str](), width, dark
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type != "info" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url, server.address))
        self.page.goto(server.address + path)

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((f"{address}/", "data:", f"blob:{address}/")):
            self.outside.append(url)

    def put(self, script: str, name: str, data: bytes) -> None:
        self.page.evaluate(script, [name, base64.b64encode(data).decode()])

    def done(self, text: str) -> None:
        self.page.locator("#count", has_text=text).wait_for(timeout=30_000)

    def check(self, name: str) -> None:
        """No console message, no request to other hosts, no serious violation by axe-core, no horizontal scrolling."""
        if folder := os.environ.get("FEWSIGHT_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            target = Path(folder) / f"serve-{name}-{self.width}{'-dark' if self.dark else ''}.png"
            self.page.screenshot(path=str(target), full_page=True)
        self.page.evaluate(axe_source() + ";0")
        violations = [
            f"{violation['id']}: {violation['nodes'][0]['html'][:200]}"
            for violation in self.page.evaluate("axe.run()")["violations"]
            if violation["impact"] in SERIOUS
        ]
        wider = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert (self.problems, self.outside, violations, wider) == ([], [], [], 0)
        self.page.close()


@pytest.mark.parametrize(("width", "dark"), [(WIDTHS[0], False), (WIDTHS[1], False), (WIDTHS[0], True)])
def test_dropped_image_is_answered(
    browser: Any,  # noqa: F811
    width: int,
    dark: bool,
    served: Running,
    run: Path,
    digit_images: Path,
    command: Command,
) -> None:
    """End to end: the page shows the predictions of `predict`."""
    files = sorted(digit_images.glob("test/*/*.png"))
    predictions = fewsight.load(run).predict(files)
    opened = Page(browser, served, width, dark=dark)
    page = opened.page
    page.locator("#drop").wait_for()
    assert page.locator("h1").inner_text() == "digits"
    assert page.locator("#about").inner_text().startswith("3 classes · view center-32 · calibrated (temperature ")
    assert not page.locator("#not-calibrated").is_visible()
    unsure = predictions.none_of_these.index(True)
    opened.put(DROP, "<b>=first</b>.png", files[unsure].read_bytes())
    opened.done("1 of 1 done")
    opened.put(PASTE, "image.png", files[predictions.none_of_these.index(False)].read_bytes())
    opened.done("2 of 2 done")
    page.set_input_files("#files", [str(file) for file in files])
    opened.done(f"{2 + len(files)} of {2 + len(files)} done")
    results = page.locator("li.result")
    assert results.count() == 2 + len(files)
    first = results.first
    assert first.locator(".file").inner_text() == "<b>=first</b>.png", "a name is text"
    assert first.locator(".label").inner_text() == predictions.labels[unsure]
    assert first.locator(".prob").inner_text() == f"{100 * predictions.probs[unsure].max():.1f} %"
    assert first.locator(".none").is_visible()
    assert not results.nth(1).locator(".none").is_visible()
    assert first.locator(".top tbody tr").count() == 3
    for index, file in enumerate(files):
        shown = results.nth(2 + index)
        assert shown.locator(".file").inner_text() == file.name
        assert shown.locator(".label").inner_text() == predictions.labels[index]
        assert shown.locator(".none").is_visible() == predictions.none_of_these[index]
    canvas = first.locator("canvas")
    assert canvas.count() == 1
    data = canvas.evaluate("canvas => [...canvas.getContext('2d').getImageData(0, 0, 352, 352).data]")
    pixels = np.array(data).reshape(352, 352, 4)[:, :, :3]
    assert (pixels > 0).sum() > 1000, "the view is drawn"
    answer = served.predict([("files", ("a.png", files[unsure].read_bytes()))], details="true").json()
    evidence = np.array(answer["results"][0]["details"]["activations"][0]["map"])
    for index, is_orange in ((evidence.argmax(), True), (evidence.argmin(), False)):
        row, column = np.unravel_index(index, evidence.shape)
        red, _, blue = pixels[int((row + 0.5) * 352 / len(evidence)), int((column + 0.5) * 352 / len(evidence[0]))]
        assert evidence.min() < 0 < evidence.max()
        assert (red > blue) == is_orange
    strongest = float(f"{np.abs(evidence).max():.2g}")
    assert float(first.locator(".scale").inner_text().split("+")[1]) == strongest
    first.locator("summary").click()
    assert "center-32" in first.locator(".more").inner_text()
    opened.check("results")


def test_map_of_one_field_is_not_drawn(browser: Any, served: Running) -> None:  # noqa: F811
    opened = Page(browser, served, WIDTHS[0])

    def answer_with_one_field(route: Any) -> None:
        answer = route.fetch()
        content = answer.json()
        content["results"][0]["details"]["activations"][0]["map"] = [[1.5]]
        route.fulfill(response=answer, json=content)

    opened.page.route("**/api/predict*", answer_with_one_field)
    opened.put(DROP, "a.png", picture())
    opened.done("1 of 1 done")
    shown = opened.page.locator(".activations")
    assert shown.inner_text().startswith("center-32: the model's map has one field, the whole image")
    assert shown.locator("canvas").count() == 0
    opened.check("one-field")


def test_file_that_is_no_image_says_so(browser: Any, served: Running, digit_images: Path) -> None:  # noqa: F811
    opened = Page(browser, served, WIDTHS[0])
    opened.page.locator("#drop").wait_for()
    opened.put(DROP, "no.png", b"no image")
    opened.put(DROP, "yes.png", next(digit_images.glob("test/two/*.png")).read_bytes())
    opened.done("2 of 2 done")
    bad = opened.page.locator("li.result").first
    assert "not an image of a supported format" in bad.locator(".error").inner_text()
    assert bad.locator(".no-picture").is_visible()
    assert opened.page.locator("li.result").nth(1).locator(".label").is_visible()
    assert all("415" in problem for problem in opened.problems), "the browser itself notes the status"
    opened.problems.clear()
    opened.check("error")


@pytest.mark.parametrize("width", WIDTHS)
def test_page_says_that_probabilities_are_not_calibrated(
    width: int,
    browser: Any,  # noqa: F811
    tiny_run: Path,
    digit_images: Path,
) -> None:
    with running(tiny_run) as server:
        opened = Page(browser, server, width)
        opened.page.locator("#not-calibrated", has_text="The probabilities are not calibrated.").wait_for()
        assert opened.page.locator("#about").inner_text() == "3 classes · view center-32"
        opened.put(DROP, "yes.png", next(digit_images.glob("test/two/*.png")).read_bytes())
        opened.done("1 of 1 done")
        opened.check("not-calibrated")


def test_image_whose_scores_are_not_finite_has_no_probability(
    browser: Any,  # noqa: F811
    run: Path,
) -> None:
    with running(run) as server:
        not_finite(server, float("nan"), 9)
        opened = Page(browser, server, WIDTHS[0])
        opened.page.locator("#drop").wait_for()
        opened.put(DROP, "bad.png", picture(9, 9))
        opened.done("1 of 1 done")
        bad = opened.page.locator("li.result").first
        assert "not finite" in bad.locator(".error").inner_text()
        assert "%" not in bad.inner_text()
        assert all("500" in problem for problem in opened.problems), "the browser itself notes the status"
        opened.problems.clear()
        opened.check("not-finite")


def test_page_works_by_keyboard(browser: Any, served: Running, digit_images: Path) -> None:  # noqa: F811
    opened = Page(browser, served, WIDTHS[0])
    page = opened.page
    page.on("filechooser", lambda _chooser: None)  # caught from here on, so that the one below is not missed
    page.locator("#drop").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pick"
    with page.expect_file_chooser() as chosen:
        page.keyboard.press("Enter")
    chosen.value.set_files(str(next(digit_images.glob("test/two/*.png"))))
    opened.done("1 of 1 done")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "clear"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("details").get_attribute("open") is not None
    page.locator("#clear").focus()
    page.keyboard.press("Enter")
    assert page.locator("li.result").count() == 0
    assert page.evaluate("document.activeElement.id") == "pick"
    opened.check("empty")


def test_page_requests_the_token(browser: Any, run: Path, digit_images: Path) -> None:  # noqa: F811
    with running(run, token=TOKEN) as server:
        opened = Page(browser, server, WIDTHS[1])
        page = opened.page
        page.locator("#token-form").wait_for()
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.locator("#token-wrong", has_text="That is not the token.").wait_for()
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.locator("#drop").wait_for()
        opened.put(DROP, "a.png", next(digit_images.glob("test/two/*.png")).read_bytes())
        opened.done("1 of 1 done")
        assert page.locator(".label").inner_text() in ("nought", "one", "two")
        assert all("401" in problem for problem in opened.problems)
        opened.problems.clear()
        opened.check("token")


def test_page_waits_for_a_busy_service(browser: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    with running(run) as server:
        refusals = iter([True, True])
        check = server.service.check_queue

        def busy(num_images: int) -> None:
            from fewsight.apps.serve.limits import RefusedError

            if next(refusals, False):
                raise RefusedError(429, "busy", retry_after_s=1)
            check(num_images)

        monkeypatch.setattr(server.service, "check_queue", busy)
        opened = Page(browser, server, WIDTHS[0])
        opened.page.locator("#drop").wait_for()
        opened.put(DROP, "a.png", picture())
        opened.page.locator(".state", has_text="the service is busy; trying again in 1 s").wait_for()
        opened.done("1 of 1 done")
        assert opened.page.locator(".label").is_visible()
        opened.page.close()


def test_page_of_the_api(browser: Any, served: Running) -> None:  # noqa: F811
    for width in WIDTHS:
        opened = Page(browser, served, width, "/docs")
        opened.page.locator("h2", has_text="POST /api/predict").wait_for()
        assert f"{served.address}/api/predict" in opened.page.locator("pre").inner_text()
        opened.check("docs")
