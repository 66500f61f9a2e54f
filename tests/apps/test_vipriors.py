"""The challenge's subset, built from lists that are read without running anything, and its complete submission."""

import csv
import errno
import io
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import TINY, Command
from fewsight.apps.vipriors.lists import read_lists
from fewsight.apps.vipriors.submission import submit
from fewsight.apps.vipriors.subset import Built, build
from fewsight.errors import DataError, RunError
from fewsight.inference.ensemble import combine
from fewsight.inference.member_text import parse_member
from fewsight.terminal import make_console
from fewsight.training.session import train

CLASSES = ("n01440764", "n02104029", "n15075141")
TRAIN = [(name, f"{name}_{number}.JPEG") for name in CLASSES for number in (3, 10)]
VAL = [(name, f"{name}_{number}.JPEG") for name in CLASSES for number in (4, 11)]
TEST = [  # sorted neither by class nor by name
    f"{CLASSES[index]}/ILSVRC2012_val_{number:08d}.JPEG" for index, number in [(1, 9), (0, 30), (2, 1), (1, 2), (0, 7)]
]
HOW_MANY = len(TRAIN) + len(VAL) + len(TEST)


def write_lists(folder: Path, **lists: object) -> Path:
    """Write train.pickle, val.pickle and test.pickle; bytes are written unchanged."""
    folder.mkdir(exist_ok=True)
    for split, value in {"train": TRAIN, "val": VAL, "test": TEST, **lists}.items():
        (folder / f"{split}.pickle").write_bytes(value if isinstance(value, bytes) else pickle.dumps(value))
    return folder


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    return write_lists(tmp_path / "lists")


# Lists


def test_lists_name_sources_and_targets(lists: Path) -> None:
    sources = {image.target: image.source for image in read_lists(lists)}
    assert len(sources) == HOW_MANY
    assert sources["train/n02104029/n02104029_10.JPEG"] == "train/n02104029/n02104029_10.JPEG"
    assert sources["val/n15075141/n15075141_4.JPEG"] == "train/n15075141/n15075141_4.JPEG", "val is cut from train"
    assert [sources[f"test/imgs/img_{number}.JPEG"] for number in range(5)] == [f"val/{name}" for name in TEST]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_lists_of_every_protocol_are_read(protocol: int, lists: Path) -> None:
    before = read_lists(lists)
    write_lists(
        lists, train=pickle.dumps([list(entry) for entry in TRAIN], protocol), test=pickle.dumps(TEST, protocol)
    )
    assert read_lists(lists) == before


class Runs:
    """Its pickle runs a command when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_that_runs_a_command_is_refused_unrun(split: str, protocol: int, lists: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    good: list[Any] = {"train": TRAIN, "val": VAL, "test": TEST}[split]
    for evil in (Runs(marker), [*good, Runs(marker)], [(Runs(marker), "x")]):
        write_lists(lists, **{split: pickle.dumps(evil, protocol)})
        with pytest.raises(
            DataError, match=r"not a pickle of a plain list .*system.*; nothing in it was run"
        ) as caught:
            read_lists(lists)
        assert str(lists / f"{split}.pickle") in str(caught.value)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Runs(marker), protocol))
    assert marker.exists(), "the command would have run"


@pytest.mark.parametrize(
    "data",
    [
        b"cbuiltins\nlist\n.",  # a class, even a harmless one
        b"(S'x'\nios\nsystem\n.",  # the old opcode that makes an instance
        pickle.dumps(Counter("ab")),
        pickle.dumps([("n01440764", np.str_("n01440764_3.JPEG"))]),
        pickle.dumps({"n01440764"}, 2),  # before protocol 4, a set refers to its class
    ],
)
def test_pickle_that_names_anything_is_refused(data: bytes, lists: Path) -> None:
    write_lists(lists, train=data)
    with pytest.raises(DataError, match=r"train\.pickle: not a pickle of a plain list \(it refers to \w+(\.\w+)+\)"):
        read_lists(lists)


@pytest.mark.parametrize("data", [b"Psomewhere\n.", b"\x80\x02X\x01\x00\x00\x00xQ."])
def test_pickle_that_points_outside_itself_is_refused(data: bytes, lists: Path) -> None:
    write_lists(lists, val=data)
    with pytest.raises(DataError, match=r"val\.pickle: not a pickle .*it refers to an object outside itself"):
        read_lists(lists)


WHOLE = pickle.dumps(TRAIN)


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"path,label\na.JPEG,n01440764\n", WHOLE[:-1], WHOLE[: len(WHOLE) // 2], b"\xff" * 100, b"."]
)
def test_damaged_pickle_is_refused(data: bytes, lists: Path) -> None:
    write_lists(lists, train=data)
    with pytest.raises(DataError, match=r"train\.pickle: not a pickle of a plain list"):
        read_lists(lists)


@pytest.mark.parametrize("value", [{"n01440764": ["n01440764_3.JPEG"]}, tuple(TRAIN), "n01440764", 7, None, []])
def test_other_than_a_list_is_refused(value: object, lists: Path) -> None:
    write_lists(lists, train=pickle.dumps(value))
    with pytest.raises(DataError, match=rf"expected a list of image names, got {type(value).__name__}"):
        read_lists(lists)


def test_missing_list_says_which_folder_is_expected(lists: Path) -> None:
    (lists / "test.pickle").unlink()
    with pytest.raises(DataError, match=r"test\.pickle: No such file .*--lists is the toolkit's folder"):
        read_lists(lists)


def test_far_too_large_list_is_not_read(lists: Path) -> None:
    os.truncate(lists / "val.pickle", 64 * 2**20 + 1)
    with pytest.raises(DataError, match=r"val\.pickle: 64 MiB is too much"):
        read_lists(lists)


@pytest.mark.parametrize(
    "entry",
    [
        "n01440764/n01440764_3.JPEG",
        ("n01440764",),
        ("n01440764", "n01440764_3.JPEG", "x"),
        ("n01440764", 3),
        (3, "n01440764_3.JPEG"),
        ("n0144076", "n0144076_3.JPEG"),
        ("n014407641", "n01440764_3.JPEG"),
        ("n01440764\n", "n01440764_3.JPEG"),
        ("..", "n01440764_3.JPEG"),
        ("n01440764/../..", "n01440764_3.JPEG"),
        ("n01440764", "../x"),
        ("n01440764", "../../x.JPEG"),
        ("n01440764", "/etc/x.JPEG"),
        ("n01440764", "..JPEG"),
        ("n01440764", "a/b.JPEG"),
        ("n01440764", "a\\b.JPEG"),
        ("n01440764", "n01440764_3.JPEG\n"),
        ("n01440764", "n01440764_3.jpg"),
        ("n01440764", ".JPEG"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_strange_entry_is_refused(split: str, entry: object, lists: Path) -> None:
    write_lists(lists, **{split: [*{"train": TRAIN, "val": VAL}[split], entry]})
    with pytest.raises(DataError, match=rf"{split}\.pickle: entry 6 is .*; expected an entry like \(\"n01440764\""):
        read_lists(lists)


@pytest.mark.parametrize(
    "entry",
    [
        ("n01440764", "x.JPEG"),
        3,
        "ILSVRC2012_val_00002402.JPEG",
        "n01440764/",
        "n01440764/../x.JPEG",
        "../n01440764/x.JPEG",
        "/n01440764/x.JPEG",
        "n01440764/a/x.JPEG",
        "n01440764/x.png",
    ],
)
def test_strange_entry_of_the_test_list_is_refused(entry: object, lists: Path) -> None:
    write_lists(lists, test=[*TEST, entry])
    with pytest.raises(DataError, match=r"test\.pickle: entry 5 is .*; expected an entry like \"n02104029/"):
        read_lists(lists)


def test_long_entry_is_named_in_short(lists: Path) -> None:
    write_lists(lists, test=["x" * 10_000])
    with pytest.raises(DataError) as caught:
        read_lists(lists)
    assert len(str(caught.value)) < 400


def test_image_that_is_listed_twice_is_refused(lists: Path) -> None:
    write_lists(lists, val=[*VAL, VAL[1]])
    with pytest.raises(DataError, match=r"the lists name val/n01440764/n01440764_11\.JPEG twice"):
        read_lists(lists)


def test_image_in_train_and_in_val_is_refused(lists: Path) -> None:
    write_lists(lists, val=[*VAL, TRAIN[3]])
    with pytest.raises(DataError, match=r"train/n02104029/n02104029_10\.JPEG is in train\.pickle and in val"):
        read_lists(lists)


def test_the_toolkits_lists_have_50_a_class(fewsight_data: Path) -> None:
    images = read_lists(fewsight_data / "vipriors-lists")
    assert len(images) == 150_000
    for split in ("train", "val"):
        counts = Counter(image.target.split("/")[1] for image in images if image.target.startswith(f"{split}/"))
        assert len(counts) == 1000
        assert set(counts.values()) == {50}
    tested = Counter(image.source.split("/")[1] for image in images if image.target.startswith("test/"))
    assert tested.keys() == counts.keys()
    assert set(tested.values()) == {50}
    assert len({image.source for image in images}) == 150_000


# Build


def image_bytes(name: str) -> bytes:
    """A stand-in for the image of that name, with a content and length of its own."""
    return b"\xff\xd8" + name.encode() * (1 + len(name) % 3)


def make_tree(root: Path, *, flat: bool = False) -> Path:
    """An ImageNet tree with more in it than the lists name."""
    names = [f"train/{name}/{name}_{number}.JPEG" for name in CLASSES for number in range(12)]
    names += [f"val/{name}" for name in TEST] + [f"val/{CLASSES[0]}/ILSVRC2012_val_00009999.JPEG"]
    for name in names:
        target = root / ("val/" + Path(name).name if flat and name.startswith("val/") else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image_bytes(name))
    return root


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "imagenet")


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


EXPECTED = {
    **{f"{split}/{name}/{file}": f"train/{name}/{file}" for split, entries in (("train", TRAIN), ("val", VAL))
       for name, file in entries},
    **{f"test/imgs/img_{number}.JPEG": f"val/{name}" for number, name in enumerate(TEST)},
}  # fmt: skip


def assert_whole(subset: Path) -> None:
    assert files_under(subset) == sorted(EXPECTED)
    for target, source in EXPECTED.items():
        assert (subset / target).read_bytes() == image_bytes(source)


@pytest.mark.parametrize("nested", ["", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC"])
@pytest.mark.parametrize("flat", [True, False])
def test_subset_is_laid_out_as_in_the_challenge(nested: str, flat: bool, lists: Path, tmp_path: Path) -> None:
    make_tree(tmp_path / "imagenet" / nested, flat=flat)
    built = build(tmp_path / "imagenet", lists, tmp_path / "out")
    assert built == Built(tmp_path / "out/imagenet_50", HOW_MANY, 0, {"train": 6, "val": 6, "test": 5}, (), ())
    assert_whole(tmp_path / "out/imagenet_50")


@pytest.mark.parametrize("link", ["hard", "symlink", "copy"])
def test_images_are_linked_or_copied(
    link: str, lists: Path, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the tree is a relative path."""
    monkeypatch.chdir(tmp_path)
    build(Path("imagenet"), Path("lists"), Path("out"), link=link)
    assert_whole(tmp_path / "out/imagenet_50")
    for target, source in EXPECTED.items():
        made, original = Path("out/imagenet_50", target), imagenet / source
        assert made.is_symlink() == (link == "symlink")
        assert made.samefile(original) == (link != "copy")
        assert original.stat().st_nlink == (2 if link == "hard" else 1)


@pytest.mark.parametrize("link", ["hard", "symlink"])
def test_links_lead_to_the_images_themselves(link: str, lists: Path, imagenet: Path, tmp_path: Path) -> None:
    """A tree of symbolic links may go away afterwards."""
    shutil.copytree(imagenet, tmp_path / "linked", copy_function=lambda source, target: Path(target).symlink_to(source))
    build(tmp_path / "linked", lists, tmp_path / "out", link=link)
    shutil.rmtree(tmp_path / "linked")
    assert_whole(tmp_path / "out/imagenet_50")


@pytest.mark.parametrize("link", ["hard", "symlink", "copy"])
def test_second_run_makes_nothing(link: str, lists: Path, imagenet: Path, tmp_path: Path) -> None:
    first = build(imagenet, lists, tmp_path / "out", link=link)
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = build(imagenet, lists, tmp_path / "out", link=link)
    assert (again.created, again.present, again.counts) == (0, HOW_MANY, first.counts)
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize("link", ["hard", "symlink", "copy"])
def test_half_copied_image_is_replaced(link: str, lists: Path, imagenet: Path, tmp_path: Path) -> None:
    """As another program may leave it; the image in the tree is not touched."""
    build(imagenet, lists, tmp_path / "out", link=link)
    half = tmp_path / "out/imagenet_50/test/imgs/img_3.JPEG"
    half.unlink()
    half.write_bytes(image_bytes(f"val/{TEST[3]}")[:4])
    again = build(imagenet, lists, tmp_path / "out", link=link)
    assert (again.created, again.present) == (1, HOW_MANY - 1)
    assert_whole(tmp_path / "out/imagenet_50")
    assert (imagenet / "val" / TEST[3]).read_bytes() == image_bytes(f"val/{TEST[3]}")


def test_stopped_build_resumes(lists: Path, imagenet: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == HOW_MANY
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(imagenet, lists, tmp_path / "out", link="copy", progress=stop)
    assert len(files_under(tmp_path / "out")) == 7
    again = build(imagenet, lists, tmp_path / "out", link="copy")
    assert (again.created, again.present) == (HOW_MANY - 7, 7)
    assert_whole(tmp_path / "out/imagenet_50")


def options(tmp_path: Path) -> list[object]:
    return ["--imagenet", tmp_path / "imagenet", "--lists", tmp_path / "lists", "--out", tmp_path / "out"]


@pytest.mark.usefixtures("lists")
def test_missing_images_are_listed_until_they_are_there(command: Command, imagenet: Path, tmp_path: Path) -> None:
    gone = [imagenet / "train/n02104029/n02104029_10.JPEG", imagenet / "val" / TEST[2]]
    for path in gone:
        path.unlink()
    answer = command("vipriors", "build", *options(tmp_path))
    subset = tmp_path / "out/imagenet_50"
    assert answer.code == 1
    assert "5 train, 6 val, 4 test; 15 created, 0 already present" in answer.out
    names = [str(path.relative_to(imagenet)) for path in gone]
    assert (subset / "missing.txt").read_text().splitlines() == names
    assert all(f"missing in the tree: {name}\n" in answer.out for name in names)
    assert str(subset / "missing.txt") in answer.out
    for path, name in zip(gone, names, strict=True):
        path.write_bytes(image_bytes(name))
    again = command("vipriors", "build", *options(tmp_path))
    assert again.code == 0
    assert "6 train, 6 val, 5 test; 2 created, 15 already present" in again.out
    assert "missing in" not in again.out
    assert_whole(subset)


def test_image_that_the_subset_holds_is_not_missing(lists: Path, imagenet: Path, tmp_path: Path) -> None:
    build(imagenet, lists, tmp_path / "out")
    (imagenet / "val" / TEST[0]).unlink()
    built = build(imagenet, lists, tmp_path / "out")
    assert (built.missing, built.present) == ((), HOW_MANY)


def test_link_that_leads_nowhere_is_missing(lists: Path, imagenet: Path, tmp_path: Path) -> None:
    build(imagenet, lists, tmp_path / "out", link="symlink")
    (imagenet / "val" / TEST[0]).unlink()
    built = build(imagenet, lists, tmp_path / "out", link="symlink")
    assert built.missing == (f"val/{TEST[0]}",)
    assert built.counts == {"train": 6, "val": 6, "test": 4}


def test_many_missing_images_are_counted(command: Command, imagenet: Path, tmp_path: Path) -> None:
    write_lists(tmp_path / "lists", train=[*TRAIN, *((CLASSES[0], f"x_{number}.JPEG") for number in range(30))])
    answer = command("vipriors", "build", *options(tmp_path))
    assert answer.code == 1
    assert answer.out.count("missing in the tree: train/n01440764/x_") == 20
    assert "missing in the tree: and 10 more\n" in answer.out
    assert len((tmp_path / "out/imagenet_50/missing.txt").read_text().splitlines()) == 30


@pytest.mark.usefixtures("lists", "imagenet")
def test_unlisted_images_are_reported_and_kept(command: Command, tmp_path: Path) -> None:
    command("vipriors", "build", *options(tmp_path))
    unlisted = ["test/imgs/img_5.JPEG", "train/n01440764/n01440764_0.JPEG", "val/n99999999/x.JPEG"]
    for name in unlisted:
        image = tmp_path / "out/imagenet_50" / name
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(b"mine")
    answer = command("vipriors", "build", *options(tmp_path))
    assert answer.code == 1
    assert "6 train, 6 val, 5 test; 0 created, 17 already present" in answer.out
    assert [line for line in answer.out.splitlines() if line.startswith("in no list: ")] == [
        f"in no list: {name}" for name in unlisted
    ]
    assert all((tmp_path / "out/imagenet_50" / name).read_bytes() == b"mine" for name in unlisted)


@pytest.mark.usefixtures("lists")
def test_what_is_no_imagenet_tree_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    for name in ("imagenet", "imagenet/train"):
        (tmp_path / name).mkdir()
        assert "expected an ImageNet tree, a folder with train/ by class and val/" in refused(
            "vipriors", "build", *options(tmp_path)
        )
    line = refused("vipriors", "build", *options(tmp_path), "--link", "soft")
    assert "--link" in line
    assert "symlink" in line


def test_hard_links_need_one_disk(lists: Path, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_disk(source: object, target: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    with pytest.raises(DataError, match=r"cross-device link; hard links need .* --link symlink or --link copy"):
        build(imagenet, lists, tmp_path / "out")
    monkeypatch.undo()
    assert build(imagenet, lists, tmp_path / "out", link="copy").created == HOW_MANY


def test_full_disk_leaves_no_half_image(
    lists: Path, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copyfile, copied = shutil.copyfile, []

    def full(source: Path, target: Path) -> object:
        copied.append(source)
        if len(copied) > 5:
            Path(target).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(RunError, match="No space left on device"):
        build(imagenet, lists, tmp_path / "out", link="copy")
    assert len(files_under(tmp_path / "out")) == 5
    monkeypatch.undo()
    build(imagenet, lists, tmp_path / "out", link="copy")
    assert_whole(tmp_path / "out/imagenet_50")


# Submit

COUNT = 150  # 50 for each of the three classes


@pytest.fixture(scope="module")
def other_run(digit_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_run`, with another seed and more epochs. Do not change it."""
    out = tmp_path_factory.mktemp("runs") / "other"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        overrides = [*TINY, "stages.0.epochs=6", "run.seed=2"]
        train(digit_images, out, recipe="digits", overrides=overrides, console=make_console(io.StringIO()))
    return out


@pytest.fixture(scope="module")
def digits_subset(digit_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """test/imgs/img_0.JPEG to img_149.JPEG: digits, some inverted or dim, as JPEG in no order. Do not change it."""
    folder = tmp_path_factory.mktemp("subset") / "imagenet_50"
    (folder / "test/imgs").mkdir(parents=True)
    paths = sorted(digit_images.rglob("*.png"))
    looks = (lambda pixels: pixels, lambda pixels: pixels, lambda pixels: 255 - pixels, lambda pixels: pixels // 4)
    for number, position in enumerate(np.random.default_rng(3).permutation(COUNT)):
        with Image.open(paths[position % len(paths)]) as image:
            pixels = looks[position % 4](np.asarray(image))
        Image.fromarray(pixels).save(folder / f"test/imgs/img_{number}.JPEG", quality=95)
    return folder


@pytest.fixture
def run(other_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(other_run, tmp_path / "run"))


@pytest.fixture
def subset(digits_subset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_subset, tmp_path / "imagenet_50"))


@pytest.fixture
def probs_of(command: Command, digits_subset: Path, tmp_path: Path) -> Callable[[Path], dict[int, dict[str, float]]]:
    """A function for the probabilities of `predict` in the paper's views: image number -> class -> probability."""

    def ask(path: Path) -> dict[int, dict[str, float]]:
        command("predict", path, digits_subset / "test/imgs", "--views", "paper", "--top-k", 3,
                "--out", tmp_path / "p.csv")  # fmt: skip
        with (tmp_path / "p.csv").open(newline="") as handle:
            return {
                int(Path(row["path"]).stem[4:]): {
                    row[f"label{suffix}"]: float(row[f"prob{suffix}"]) for suffix in ("", "2", "3")
                }
                for row in csv.DictReader(handle)
            }

    return ask


Probs = Callable[[Path], dict[int, dict[str, float]]]
ORDER = ("nought", "one", "two")  # sorted, so that an index here is the class index of the challenge


def read_submission(path: Path) -> list[int]:
    """The predictions, after checking the ids."""
    header, *lines = path.read_text().splitlines()
    assert header == "Image IDs,Predictions"
    ids, predictions = zip(*(line.split(",") for line in lines), strict=True)
    assert list(ids) == [f"img_{number}.JPEG" for number in range(len(lines))]
    return [int(prediction) for prediction in predictions]


def quietly(path: Path, data: Path, out: Path, **more: Any) -> int:
    return submit(path, data, out, console=make_console(io.StringIO()), **more)


def test_submission_has_the_class_index_of_each_prediction(
    command: Command, run: Path, digits_subset: Path, probs_of: Probs, tmp_path: Path
) -> None:
    out = tmp_path / "submission.csv"
    answer = command("vipriors", "submit", run, digits_subset, "--out", out)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"wrote {out}: 150 predictions\n"
    submitted, probs = read_submission(out), probs_of(run)
    assert submitted == [ORDER.index(max(probs[number], key=probs[number].__getitem__)) for number in range(COUNT)]
    assert len(set(submitted)) > 1
    assert sorted(file.name for file in (run / "scores/submission").glob("*.f32")) == ["center-32.f32", "random-32.f32"]


def test_ensemble_submits_its_mean(
    tiny_run: Path, other_run: Path, digits_subset: Path, probs_of: Probs, tmp_path: Path
) -> None:
    combine([parse_member(str(run)) for run in (tiny_run, other_run)], tmp_path / "e")
    assert quietly(tmp_path / "e", digits_subset, tmp_path / "new.csv") == COUNT
    first, second = probs_of(tiny_run), probs_of(other_run)
    means = [[first[number][name] + second[number][name] for name in ORDER] for number in range(COUNT)]
    submitted = read_submission(tmp_path / "new.csv")
    assert submitted == np.argmax(means, axis=1).tolist()
    for probs in (first, second):
        assert submitted != [ORDER.index(max(probs[number], key=probs[number].__getitem__)) for number in range(COUNT)]


def test_data_of_other_classes_are_refused(run: Path, digits_subset: Path, tmp_path: Path) -> None:
    """The evaluator numbers the data's classes, so the indices of other classes would be wrong."""
    shutil.copytree(digits_subset, tmp_path / "subset")
    for name in ORDER[1:]:
        (tmp_path / "subset" / "train" / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "subset" / "train" / "zebra").mkdir()
    with pytest.raises(DataError, match=r"other classes than the run \(only one of them has .*zebra"):
        quietly(run, tmp_path / "subset", tmp_path / "new.csv")
    assert not (tmp_path / "new.csv").exists()


@pytest.mark.parametrize("number", [0, -3])
def test_number_of_images_must_be_positive(number: int, run: Path, digits_subset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected at least 1"):
        quietly(run, digits_subset, tmp_path / "new.csv", num_images=number)


def test_test_image_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    write_lists(tmp_path / "lists", test=[*TEST, TEST[0]])
    with pytest.raises(DataError, match=rf"the lists name val/{TEST[0]} twice"):
        read_lists(tmp_path / "lists")


def test_subset_may_be_given_at_any_depth(run: Path, digits_subset: Path, tmp_path: Path) -> None:
    """All of them have the same images, so the stored scores are reused."""
    written = []
    for below in ("", "test", "test/imgs"):
        quietly(run, digits_subset / below, tmp_path / "new.csv", views="center")
        written.append((tmp_path / "new.csv").read_bytes())
        (tmp_path / "new.csv").unlink()
    assert written == [written[0]] * 3


def test_other_files_beside_the_images_do_not_matter(run: Path, subset: Path, tmp_path: Path) -> None:
    (subset / "test/imgs/.DS_Store").write_text("x")
    (subset / "test/imgs/readme.txt").write_text("x")
    assert quietly(run, subset, tmp_path / "new.csv", views="center") == COUNT


def one_gone(folder: Path) -> str:
    (folder / "img_7.JPEG").unlink()
    return "1 of 150 test images are missing (img_7.JPEG); the evaluator would skip them silently"


def a_gap_and_one_more(folder: Path) -> str:
    (folder / "img_100.JPEG").rename(folder / "img_150.JPEG")
    return "1 of 150 test images are missing (img_100.JPEG)"


def many_gone(folder: Path) -> str:
    for number in (149, 2, 10, 33, 1, 99, 120):
        (folder / f"img_{number}.JPEG").unlink()
    return "7 of 150 test images are missing (img_1.JPEG, img_2.JPEG, img_10.JPEG, img_33.JPEG, img_99.JPEG and 2 more)"


def other_name(folder: Path) -> str:
    (folder / "img_4.JPEG").rename(folder / "img_04.JPEG")
    return "1 of 150 test images are missing (img_4.JPEG)"


def two_more(folder: Path) -> str:
    for number in (150, 151):
        shutil.copy(folder / "img_0.JPEG", folder / f"img_{number}.JPEG")
    return "2 more test images than 150 (img_150.JPEG, img_151.JPEG); give --images N"


def none_there(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.mkdir()
    return "150 of 150 test images are missing"


@pytest.mark.parametrize("spoil", [one_gone, a_gap_and_one_more, many_gone, other_name, two_more, none_there])
def test_other_than_every_image_is_refused(
    spoil: Callable[[Path], str], refused: Callable[..., str], run: Path, subset: Path
) -> None:
    """Nothing is scored before."""
    message = spoil(subset / "test/imgs")
    assert message in refused("vipriors", "submit", run, subset, "--out", "new.csv")


def test_unreadable_image_is_refused_and_nothing_written(
    command: Command, run: Path, subset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new.csv"
    out.write_text("Image IDs,Predictions\nimg_0.JPEG,1\n")
    (subset / "test/imgs/img_3.JPEG").write_bytes(b"\xff\xd8 no image")
    answer = command("vipriors", "submit", run, subset, "--out", out, "--views", "center")
    assert answer.code == 2
    assert "1 image cannot be read, so nothing was written; the first: " in answer.err
    assert "img_3.JPEG" in answer.err
    assert answer.err.count("\n") == 1
    assert out.read_text() == "Image IDs,Predictions\nimg_0.JPEG,1\n"


@pytest.mark.parametrize("count", [1, 40])
def test_test_set_of_another_size_needs_images_option(count: int, run: Path, subset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{150 - count} more test images than {count} "):
        quietly(run, subset, tmp_path / "new.csv", num_images=count)
    for number in range(count, COUNT):
        (subset / f"test/imgs/img_{number}.JPEG").unlink()
    assert quietly(run, subset, tmp_path / "new.csv", num_images=count, views="center") == count
    assert len(read_submission(tmp_path / "new.csv")) == count


def test_paths_that_cannot_be_used_are_refused(refused: Callable[..., str], run: Path, subset: Path) -> None:
    assert "--out nowhere/new.csv: the folder nowhere does not exist" in refused(
        "vipriors", "submit", run, subset, "--out", "nowhere/new.csv"
    )
    assert "this is a folder" in refused("vipriors", "submit", run, subset, "--out", "run")
    assert "nowhere: no such folder; expected the subset" in refused(
        "vipriors", "submit", run, "nowhere", "--out", "new.csv"
    )
    assert "holds no run.json" in refused("vipriors", "submit", subset, subset, "--out", "new.csv")
    assert "--views middle" in refused("vipriors", "submit", run, subset, "--out", "new.csv", "--views", "middle")
    assert "--images" in refused("vipriors", "submit", run, subset, "--out", "new.csv", "--images", "0")


def test_interrupted_submission_resumes_from_the_stored_scores(run: Path, digits_subset: Path, tmp_path: Path) -> None:
    store = run / "scores/submission"
    quietly(run, digits_subset, tmp_path / "whole.csv")
    whole = read_submission(tmp_path / "whole.csv")
    others = [(class_index + 1) % 3 for class_index in whole[:20]]
    for view in ("center-32", "random-32"):  # as if the first 20 had other predictions, killed after about 110
        rows = np.fromfile(store / f"{view}.f32", "<f4").reshape(COUNT, 3)
        rows[:20] = np.log(0.005 + 0.985 * np.eye(3)[others])
        rows[:110].tofile(store / f"{view}.f32")
    with (store / "random-32.f32").open("ab") as handle:
        handle.write(b"half")
    lines = (store / "images.jsonl").read_bytes().splitlines(keepends=True)
    (store / "images.jsonl").write_bytes(b"".join(lines[:100]))
    quietly(run, digits_subset, tmp_path / "again.csv")
    assert read_submission(tmp_path / "again.csv") == [*others, *whole[20:]], "stored rows are not scored again"
    assert (store / "images.jsonl").read_bytes().splitlines(keepends=True) == lines


def test_scores_of_other_images_are_not_reused(
    run: Path, digits_subset: Path, digit_images: Path, command: Command, tmp_path: Path
) -> None:
    command("evaluate", run, digit_images, "--scores", run / "scores/submission")
    before = (run / "scores/submission/center-32.f32").read_bytes()
    with pytest.raises(RunError, match=r"holds scores of other .*; give --scores another folder"):
        quietly(run, digits_subset, tmp_path / "new.csv")
    assert not (tmp_path / "new.csv").exists()
    assert (run / "scores/submission/center-32.f32").read_bytes() == before
    quietly(run, digits_subset, tmp_path / "new.csv", scores=tmp_path / "kept", views="center")
    assert len(read_submission(tmp_path / "new.csv")) == COUNT
