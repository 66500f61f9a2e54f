"""`fewsight check` finds each planted fault and nothing else, and shows names safely."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from conftest import Command
from fewsight.apps.check import CheckResult, check


def picture(number: int, px: int = 40) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
    return Image.fromarray(pixels).resize((px, px), Image.Resampling.BICUBIC)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """train/ and test/ of two classes, 6 and 3 images each, without problems."""
    number = 0
    for split, count in (("train", 6), ("test", 3)):
        for label in ("oak", "ash"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for index in range(count):
                picture(number).save(tmp_path / "data" / split / label / f"{index}.png")
                number += 1
    return tmp_path / "data"


def groups_of(data: Path) -> dict[str, set[frozenset[str]]]:
    """The groups of each kind of finding."""
    return {finding.kind: {frozenset(group) for group in finding.groups} for finding in check(data).findings}


def copied(source: Path, target: Path) -> None:
    shutil.copy(source, target)


def animate(data: Path) -> None:
    frames = [picture(900 + number) for number in range(3)]
    frames[0].save(data / "train/oak/new.gif", save_all=True, append_images=frames[1:])


def turn(data: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    picture(901).save(data / "train/oak/new.jpg", exif=exif, quality=95)


def group(*names: str) -> set[frozenset[str]]:
    return {frozenset(names)}


PLANTED: dict[str, tuple[Callable[[Path], object], dict[str, set[frozenset[str]]]]] = {
    "empty file": (
        lambda data: (data / "train/oak/0.png").write_bytes(b""),
        {"empty file": group("train/oak/0.png")},
    ),
    "no image": (
        lambda data: (data / "test/oak/0.png").write_text("text"),
        {"unreadable": group("test/oak/0.png")},
    ),
    "truncated": (
        lambda data: (
            picture(9, 200).save(data / "train/oak/new.jpg"),
            (data / "train/oak/new.jpg").write_bytes((data / "train/oak/new.jpg").read_bytes()[:2000]),
        ),
        {"truncated": group("train/oak/new.jpg")},
    ),
    "wrong extension": (
        lambda data: (data / "train/oak/0.png").rename(data / "train/oak/0.jpg"),
        {"wrong extension": group("train/oak/0.jpg")},
    ),
    "animated": (animate, {"animated": group("train/oak/new.gif")}),
    "turned": (turn, {"EXIF-rotated": group("train/oak/new.jpg")}),
    "small": (
        lambda data: Image.new("RGB", (3, 3)).save(data / "train/oak/new.png"),
        {"extremely small": group("train/oak/new.png")},
    ),
    "long": (
        lambda data: picture(902).resize((900, 40)).save(data / "train/oak/new.png"),
        {"extremely long": group("train/oak/new.png")},
    ),
    "leak": (
        lambda data: copied(data / "train/oak/1.png", data / "test/oak/new.png"),
        {"leak: equal images across splits": group("train/oak/1.png", "test/oak/new.png")},
    ),
    "leak with another label": (
        lambda data: copied(data / "train/oak/1.png", data / "test/ash/new.png"),
        {
            "leak: equal images across splits": group("train/oak/1.png", "test/ash/new.png"),
            "conflicting labels: equal images in several classes": group("train/oak/1.png", "test/ash/new.png"),
        },
    ),
    "conflict": (
        lambda data: copied(data / "train/oak/1.png", data / "train/ash/new.png"),
        {"conflicting labels: equal images in several classes": group("train/oak/1.png", "train/ash/new.png")},
    ),
    "duplicate": (
        lambda data: picture(1).save(data / "train/oak/new.bmp"),
        {"duplicates: equal images in one class": group("train/oak/1.png", "train/oak/new.bmp")},
    ),
    "near leak": (
        lambda data: picture(1).save(data / "test/oak/new.jpg", quality=60),
        {"leak: nearly equal images across splits": group("train/oak/1.png", "test/oak/new.jpg")},
    ),
    "mirrored duplicate": (
        lambda data: ImageOps.mirror(picture(1)).save(data / "train/oak/new.png"),
        {"duplicates: nearly equal images in one class": group("train/oak/1.png", "train/oak/new.png")},
    ),
    "empty class": (lambda data: (data / "train/elm").mkdir(), {"empty class": group("train/elm")}),
    "hidden class": (lambda data: (data / "train/.elm").mkdir(), {"hidden": group("train/.elm")}),
    "class that train lacks": (
        lambda data: ((data / "test/elm").mkdir(), picture(903).save(data / "test/elm/0.png")),
        {"classes that train lacks": group("elm")},
    ),
    "class that test lacks": (
        lambda data: shutil.rmtree(data / "test/ash"),
        {"classes that a split lacks": group("ash")},
    ),
    "tiny class": (
        lambda data: [(data / f"train/oak/{number}.png").unlink() for number in range(3)],
        {"tiny class": group("oak")},
    ),
    "class of one image": (
        lambda data: [(data / f"train/oak/{number}.png").unlink() for number in range(1, 6)],
        {"class of one image": group("oak")},
    ),
    "named alike": (
        lambda data: [(data / split / "ash").rename(data / split / "oaks") for split in ("train", "test")],
        {"classes named alike": group("oaks", "oak")},
    ),
    "looks alike": (
        lambda data: [(data / split / "ash").rename(data / split / "Oak ") for split in ("train", "test")],
        {"classes that look alike": group("Oak ", "oak")},
    ),
    "looks alike in Unicode": (
        lambda data: [
            (data / split / old).rename(data / split / new)
            for split in ("train", "test")
            for old, new in (("ash", "caf\u00e9"), ("oak", "cafe\u0301"))
        ],
        {"classes that look alike": group("caf\u00e9", "cafe\u0301")},
    ),
    "image beside the classes": (
        lambda data: copied(data / "train/oak/1.png", data / "train/loose.png"),
        {"passed over: image outside a class folder": group("1 file")},
    ),
    "link to itself": (
        lambda data: (data / "train/oak/loop.png").symlink_to("loop.png"),
        {"passed over: broken link": group("1 file")},
    ),
    "image without an ending": (
        lambda data: copied(data / "train/oak/1.png", data / "train/oak/new"),
        {"passed over: other file": group("1 file")},
    ),
    "one class": (
        lambda data: [shutil.rmtree(data / split / "ash") for split in ("train", "test")],
        {"only one class": group("oak")},
    ),
    "imbalance": (
        lambda data: [picture(1000 + number).save(data / f"train/oak/n{number}.png") for number in range(60)],
        {"imbalance": group("oak", "ash")},
    ),
}


def test_clean_data_has_no_finding(clean: Path, command: Command) -> None:
    assert groups_of(clean) == {}
    answer = command("check", clean)
    assert answer.code == 0
    assert answer.out.endswith("no problems found\n")


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_found_and_nothing_else(fault: str, clean: Path) -> None:
    plant, expected = PLANTED[fault]
    plant(clean)
    assert groups_of(clean) == expected


def test_passed_over_files_are_named(clean: Path, command: Command) -> None:
    for number in range(5):
        (clean / f"train/oak/{number}.txt").write_text("text")
    copied(clean / "train/oak/1.png", clean / "train/loose.png")
    out = command("check", clean).out
    assert "\n  5 files  (train/oak/0.txt, train/oak/1.txt, train/oak/2.txt, and 2 more)\n" in out
    assert "\n  1 file  (train/loose.png)\n" in out


@pytest.mark.parametrize("drawn", [False, True])
def test_class_sizes_are_faults_where_training_refuses(clean: Path, drawn: bool, command: Command) -> None:
    data = clean / "train" if drawn else clean
    for kept in (2, 1):
        for number in range(kept, 6):
            (clean / f"train/oak/{number}.png").unlink(missing_ok=True)
        found = {finding.kind for finding in check(data).findings if finding.level == "fault"}
        answer = command("train", data, "--recipe", "digits", "--preview", 1, "--out", clean / f"out{kept}")
        assert ("class of one image" in found) == (kept == 1) == ("at least 2 are needed" in answer.err), answer


def test_second_check_decodes_nothing(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewsight.data import scanning

    first = check(clean)
    monkeypatch.setattr(scanning, "decode_bytes", lambda data, name: pytest.fail(f"{name} was decoded again"))
    assert check(clean) == first


def test_json_and_page_have_every_finding_and_escaped_names(clean: Path, tmp_path: Path, command: Command) -> None:
    name = '=cmd|"<script>alert(1)<\u202e&\n.png'
    copied(clean / "train/oak/1.png", clean / "test/oak" / name)
    answer = command("check", clean, "--json", tmp_path / "c.json", "--html", tmp_path / "c.html")
    assert answer.code == 1
    assert "fault: leak: equal images across splits: 1" in answer.out
    assert "\u202e" not in answer.out, "a name cannot change the terminal's reading direction"
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["findings"][0]["groups"] == [["test/oak/" + name, "train/oak/1.png"]]
    assert not written["ok"]
    page = (tmp_path / "c.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;\\u202e&amp;\\n.png" in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")


def test_page_shows_the_first_of_many(clean: Path, tmp_path: Path, command: Command) -> None:
    for number in range(70):
        (clean / f"train/oak/bad{number:02}.png").write_bytes(b"")
    command("check", clean, "--html", tmp_path / "c.html")
    assert "and 10 more" in (tmp_path / "c.html").read_text()


def test_manifest_and_plain_folders_are_checked(clean: Path) -> None:
    plain: CheckResult = check(clean / "train")
    assert set(plain.counts) == {"train", "val"}
    (clean / "m.csv").write_text(
        "path,label,split\ntrain/oak/0.png,a,train\ntrain/oak/1.png,a,train\ntest/oak/0.png,b,test\n"
    )
    assert "classes that train lacks" in {finding.kind for finding in check(clean / "m.csv").findings}


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_page_that_cannot_be_written_is_refused_first(
    option: str, clean: Path, tmp_path: Path, command: Command
) -> None:
    answer = command("check", clean, option, tmp_path / "no" / "file")
    assert answer.code == 2
    assert f"{option} {tmp_path / 'no' / 'file'}: the folder {tmp_path / 'no'} does not exist" in answer.err


def test_sound_real_images_have_no_finding(fewsight_data: Path) -> None:
    assert groups_of(fewsight_data / "tiny20") == {}


@pytest.mark.parametrize("name", ["valid", "validation", "dev"])
def test_split_of_another_name_is_checked_and_said(name: str, clean: Path, command: Command) -> None:
    (clean / "test").rename(clean / name)
    (clean / name / "ash/empty").mkdir()
    (clean / name / "elm").mkdir()
    answer = command("check", clean)
    assert (answer.code, answer.err) == (1, "")
    assert f"\nnote: {name} is read as val\n" in answer.out
    assert "val: 6 images that can be read, 2 classes" in answer.out
    assert f"fault: empty class: 1\n  a class folder without images\n  {name}/elm\n" in answer.out


def test_splits_can_be_named(clean: Path, command: Command) -> None:
    (clean / "test").rename(clean / "b")
    (clean / "train").rename(clean / "a")
    answer = command("check", clean, "--splits", "train=a,val=b")
    assert (answer.code, answer.err) == (0, "")
    assert "note: a is read as train\nnote: b is read as val\n" in answer.out


def test_manifest_without_train_is_found(clean: Path, command: Command) -> None:
    rows = [f"{path.relative_to(clean)},{path.parent.name},first" for path in sorted(clean.rglob("*.png"))]
    (clean / "list.csv").write_text("path,label,split\n" + "\n".join(rows))
    answer = command("check", clean / "list.csv")
    assert answer.code == 1
    assert "fault: no train split: 1\n  training refuses; say which split is train: --splits train=NAME\n" in answer.out
    assert command("check", clean / "list.csv", "--splits", "train=first").code == 0


def test_reread_sees_what_no_time_shows(clean: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewsight.data import scanning

    monkeypatch.setattr(scanning, "stamp_of", lambda path: (path.encode(), 0, 0, 0))
    assert command("check", clean).code == 0
    copied(clean / "train/oak/0.png", clean / "test/oak/0.png")
    assert command("check", clean).code == 0
    assert "leak: equal images" in command("check", clean, "--reread").out
    assert "leak: equal images" in command("check", clean).out
