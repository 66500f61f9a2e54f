"""The data of the demo, and the whole demo."""

import io
from pathlib import Path

import pytest
from PIL import Image

from fewsight.cli.demo import run_demo, write_digits
from fewsight.errors import RunError
from fewsight.terminal import make_console


def test_digits_folder_has_50_a_class_to_train_on(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "digits")
    train = {digit.name: sorted(digit.iterdir()) for digit in (folder / "train").iterdir()}
    test = {digit.name: sorted(digit.iterdir()) for digit in (folder / "test").iterdir()}
    assert sorted(train) == sorted(test) == [str(digit) for digit in range(10)]
    assert {len(images) for images in train.values()} == {50}
    assert sum(map(len, test.values())) == 1797 - 500
    names = [path.name for paths in [*train.values(), *test.values()] for path in paths]
    assert len(set(names)) == 1797, "no image is written twice"
    with Image.open(train["3"][0]) as image:
        assert (image.mode, image.size) == ("L", (8, 8))
        assert image.getextrema()[1] > 200, "the 16 grey levels are spread over 256"


def test_digits_folder_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = write_digits(tmp_path / "a"), write_digits(tmp_path / "b")
    paths = sorted(path.relative_to(first) for path in first.rglob("*.png"))
    assert paths == sorted(path.relative_to(second) for path in second.rglob("*.png"))
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in paths[::50])


def test_demo_leaves_an_existing_run_alone(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(RunError, match="already exists"):
        run_demo(tmp_path / "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.slow
def test_demo_trains_a_good_classifier(tmp_path: Path) -> None:
    file = io.StringIO()
    run_demo(tmp_path / "demo", console=make_console(file))
    last = next(line for line in file.getvalue().splitlines() if line.startswith("top-1 "))
    assert float(last.split()[1]) > 95
    assert str(tmp_path / "demo") in last
