"""Datasets from folders and manifests; every mistake gives one line that says what to do."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fewsight.data import Ignored, images_under, read_dataset
from fewsight.errors import DataError


def fill(root: Path, *names: str) -> Path:
    """Write a tiny image (or a text, by its suffix) under each name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg"):
            Image.new("RGB", (2, 2)).save(path, "PNG")
        elif not name.endswith("/"):
            path.write_text("text")
        else:
            path.mkdir(exist_ok=True)
    return root


def manifest(root: Path, text: str, name: str = "list.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text.encode())
    return root / name


def listed(root: Path, split: str) -> list[tuple[str, str]]:
    return [(sample.path, sample.label) for sample in read_dataset(root).splits[split]]


def test_splits_are_read_by_name_in_code_point_order(tmp_path: Path) -> None:
    fill(tmp_path, "train/b/1.png", "train/a/Z.png", "train/a/deep/er/0.PNG", "train/a/a.png", "val/b/2.png",
         "extra/a/3.jpg")  # fmt: skip
    dataset = read_dataset(tmp_path)
    assert (dataset.layout, sorted(dataset.splits)) == ("splits", ["extra", "train", "val"])
    paths = [sample.path for sample in dataset.splits["train"]]
    assert paths == ["train/a/Z.png", "train/a/a.png", "train/a/deep/er/0.PNG", "train/b/1.png"]
    assert listed(tmp_path, "val") == [("val/b/2.png", "b")]
    assert dataset.classes_of("train") == ("a", "b")
    assert dataset.classes_of("extra", "val") == ("a", "b")


@pytest.mark.parametrize("name", ["valid", "validation", "dev", "Val"])
def test_valid_is_val_where_there_is_no_val(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "train/a/1.png", f"{name}/a/2.png")
    assert listed(tmp_path, "val") == [(f"{name}/a/2.png", "a")]
    assert read_dataset(tmp_path).notes == (f"{name} is read as val",)
    fill(tmp_path, "val/a/3.png")
    assert listed(tmp_path, "val") == [("val/a/3.png", "a")]
    assert listed(tmp_path, name) == [(f"{name}/a/2.png", "a")]
    assert read_dataset(tmp_path).notes == ()


def test_empty_val_leaves_its_name_to_valid(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "valid/a/2.png", "val/")
    assert listed(tmp_path, "val") == [("valid/a/2.png", "a")]
    assert read_dataset(tmp_path).ignored == {"folder without images": 1}


def test_training_and_testing_are_train_and_test(tmp_path: Path) -> None:
    fill(tmp_path, "training/a/1.png", "validation/a/2.png", "Testing/a/3.png", "extra/a/4.png")
    dataset = read_dataset(tmp_path)
    assert {split: samples[0].path for split, samples in dataset.splits.items()} == {
        "train": "training/a/1.png",
        "val": "validation/a/2.png",
        "test": "Testing/a/3.png",
        "extra": "extra/a/4.png",
    }


def test_class_called_training_is_no_split(tmp_path: Path) -> None:
    fill(tmp_path, "training/1.png", "resting/1.png", "training/2.png")
    assert read_dataset(tmp_path).classes_of() == ("resting", "training")


def test_two_names_of_one_split_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "valid/a/2.png", "dev/a/3.png")
    with pytest.raises(DataError, match="dev and valid both mean val; say which one does: --splits val=dev"):
        read_dataset(tmp_path)
    assert sorted(read_dataset(tmp_path, splits="val=dev").splits) == ["train", "val", "valid"]


def test_splits_of_any_name_are_given(tmp_path: Path) -> None:
    fill(tmp_path / "set", "one/one/a/1.png", "two/a/2.png", "three/a/3.png")
    dataset = read_dataset(tmp_path / "set", splits="train=one/one/, val=two")
    assert {split: samples[0].path for split, samples in dataset.splits.items()} == {
        "train": "one/one/a/1.png",
        "val": "two/a/2.png",
        "three": "three/a/3.png",
    }
    assert dataset.names == {"train": "one/one", "val": "two", "three": "three"}
    assert dataset.notes == ("one/one is read as train", "two is read as val")
    fill(tmp_path, "1.png", "2.png")
    file = manifest(tmp_path, "path,label,split\n1.png,a,A\n2.png,b,B\n")
    assert sorted(read_dataset(file, splits="train=B,test=A").splits) == ["test", "train"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("one", "--splits one: expected a different name for each of train, val and test"),
        ("train=one,train=two", "expected a different name"),
        ("train=one,val=one", "expected a different name"),
        ("learn=one", "expected a different name"),
        ("train=", "expected a different name"),
        ("train=four", "--splits train=four: there is no such folder; found one, two, val"),
        ("train=../data", "there is no such folder"),
        ("train=one,val=two", "--splits val=two: there is a val too; rename it, or leave this out"),
    ],
)
def test_splits_that_do_not_fit_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    fill(tmp_path / "data", "one/a/1.png", "two/a/2.png", "val/a/3.png")
    with pytest.raises(DataError, match=reason):
        read_dataset(tmp_path / "data", splits=text)


def test_splits_of_a_manifest_are_its_values(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png", "3.png")
    file = manifest(tmp_path, "path,label,split\n1.png,a,training\n2.png,b,Validation\n3.png,a,testing\n")
    dataset = read_dataset(file)
    assert list(dataset.splits) == ["train", "val", "test"]
    assert dataset.notes == ("training is read as train", "Validation is read as val", "testing is read as test")
    with pytest.raises(DataError, match=r"list\.csv: --splits train=one: there is no one; found Validation, testing"):
        read_dataset(file, splits="train=one")
    with pytest.raises(DataError, match=r"list\.csv: --splits needs a column split"):
        read_dataset(manifest(tmp_path, "path,label\n1.png,a\n"), splits="train=one")


def test_splits_that_would_become_classes_are_refused(tmp_path: Path) -> None:
    """As in a well-known set of scenes, whose archive repeats each folder's name."""
    fill(tmp_path, *[f"seg_{split}/seg_{split}/{label}/1.png" for split in ("train", "test") for label in "abc"])
    fill(tmp_path, "seg_pred/seg_pred/1.png")
    typed = "train=seg_train/seg_train,test=seg_test/seg_test"
    with pytest.raises(
        DataError, match=r"folders of the same names \(a, b, c\), so they are splits .* --splits"
    ) as caught:
        read_dataset(tmp_path)
    assert str(caught.value).endswith(f"give --splits {typed}")
    assert read_dataset(tmp_path, splits=typed).classes_of("train", "test") == ("a", "b", "c")


def test_splits_below_the_classes_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, *[f"{label}/{split}/1.png" for split in ("train", "test") for label in "abc"])
    with pytest.raises(DataError, match=r"put the splits above the classes \(test/a/ and so on\)"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("tea", ["train/e", "testing/c"])
def test_folder_of_two_datasets_is_refused(tmp_path: Path, tea: str) -> None:
    fill(tmp_path, *[f"two/coffee/{split}/{label}/1.png" for split in ("train", "devtest") for label in "ab"])
    fill(tmp_path, "two/tea/1.0/train/c/1.png", "two/tea/1.0/train/d/1.png", f"two/tea/1.0/{tea}/1.png")
    with pytest.raises(DataError, match=r"in coffee/, tea/1\.0/, so those are datasets and no classes") as caught:
        read_dataset(tmp_path / "two")
    assert str(caught.value).endswith(f"give one of {tmp_path}/two/coffee, {tmp_path}/two/tea/1.0 as DATA")
    fill(tmp_path, "one/coffee/train/a/1.png", "one/coffee/train/b/1.png", "one/milk/1.png")
    with pytest.raises(DataError, match=r"train/ with class folders is in coffee/, .* give [^ ]*one/coffee as DATA"):
        read_dataset(tmp_path / "one")


def test_class_with_a_folder_called_train_is_no_dataset(tmp_path: Path) -> None:
    fill(tmp_path, "vehicle/car/1.png", "vehicle/train/steam/1.png", "vehicle/train/diesel/1.png", "animal/cat/1.png")
    assert read_dataset(tmp_path).classes_of() == ("animal", "vehicle")


@pytest.mark.parametrize("above", ["", "train/"])
def test_class_folders_with_equal_folders_inside_are_noted(tmp_path: Path, above: str) -> None:
    """Cats and dogs by year are classes, so this is no reason to refuse."""
    fill(tmp_path, *[f"{above}{label}/{year}/1.png" for label in ("cat", "dog") for year in (2019, 2020)])
    dataset = read_dataset(tmp_path)
    assert dataset.classes_of() == ("cat", "dog")
    assert "cat/, dog/ hold no images, but folders of the same names (2019, 2020)" in dataset.notes[0]
    fill(tmp_path, f"{above}cat/1.png")
    assert read_dataset(tmp_path).notes == ()


def test_hidden_and_other_files_are_counted_not_classes(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "train/empty/", "train/loose.png", "train/only_text/a.txt")
    fill(tmp_path, "train/a/._1.png", "train/a/Thumbs.db", "train/a/desktop.ini", "train/a/notes.txt")
    fill(
        tmp_path,
        "train/.ipynb_checkpoints/x.png",
        "train/__MACOSX/x.png",
        "train/a/@eaDir/x.png",
        ".git/x.png",
    )
    fill(tmp_path, "words.txt", "masks/")
    dataset = read_dataset(tmp_path)
    assert dataset.classes_of() == ("a", "b")
    assert dataset.ignored == {
        "empty class folder": 2,
        "folder without images": 1,
        "hidden file": 3,
        "hidden folder": 4,
        "image outside a class folder": 1,
        "other file": 3,
    }


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    fill(tmp_path, "data/a/1.png", "data/b/2.png", "elsewhere/3.png")
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "data/b/file.png").symlink_to(tmp_path / "elsewhere/3.png")
    (tmp_path / "data/b/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "data/c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    dataset = read_dataset(tmp_path / "data", holdout=0)
    paths = [sample.path for sample in dataset.splits["train"]]
    assert paths[-3:] == ["b/2.png", "b/file.png", "c/3.png"]
    assert dataset.ignored["broken link"] >= 1
    assert dataset.ignored["link to a folder already read"] >= 1


def test_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.jpg/1.png", "b/1.png")
    assert read_dataset(tmp_path, holdout=0).splits["train"][0].path == "a/x.jpg/1.png"


def test_unlabelled_test_is_kept_apart(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/imgs/img_1.png", "val/a/1.png", "more/1.png")
    dataset = read_dataset(tmp_path)
    assert sorted(dataset.splits) == ["train", "val"]
    assert dataset.unlabelled == {"test": ("test/imgs/img_1.png",), "more": ("more/1.png",)}
    assert dataset.layout == "splits"


def test_vipriors_layout_is_recognised(fewsight_data: Path) -> None:
    dataset = read_dataset(fewsight_data / "tiny-imagenet-50")
    assert dataset.layout == "vipriors"
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {
        "train": 10_000,
        "val": 10_000,
    }
    assert len(dataset.unlabelled["test"]) == 10_000
    assert dataset.classes_of("train") == dataset.classes_of("val")
    assert dataset.ignored == {"other file": 1}


def test_class_folders_are_split_by_seed(tmp_path: Path) -> None:
    fill(tmp_path, *[f"{label}/{i}.png" for label in "ab" for i in range(10)])
    dataset = read_dataset(tmp_path, holdout=0.3, seed=1)
    assert (dataset.layout, dataset.split_by_seed) == ("classes", True)
    assert [len(dataset.splits[name]) for name in ("train", "val")] == [14, 6]
    assert dataset == read_dataset(tmp_path, holdout=0.3, seed=1)
    assert dataset != read_dataset(tmp_path, holdout=0.3, seed=2)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "this folder is empty"),
        (("notes.txt",), "no class folders"),
        (("1.png", "2.png"), r"images are directly in this folder \(2\)"),
        (("train/1.png", "cars/1.png"), r"images are directly .* \(if 'train' is one of your classes"),
        (("train/",), "no class folders"),
        (("train/a/x.txt",), r"no images in its folders \(a\); expected .* \.png"),
        (("a/", "b/"), r"no images in its folders \(a, b\)"),
        (("val/a/1.png", "test/a/1.png"), "holds test/, val/ but no train/"),
        (("Val/a/1.png", "Testing/a/1.png"), "holds Testing/, Val/ but no train/"),
        ((".hidden/1.png",), "this folder is empty"),
    ],
)
def test_folders_that_are_not_a_dataset(tmp_path: Path, names: tuple[str, ...], reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_dataset(fill(tmp_path, *names))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing: no such file or folder \(looked in"):
        read_dataset(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"a\.zip: a dataset is a folder .*\(unpack"):
        read_dataset(fill(tmp_path, "a.zip") / "a.zip")


def test_what_is_no_dataset_is_named_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"link: a link to .*gone, which does not exist"):
        read_dataset(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match=r"pipe\.csv: a device or a pipe; write the manifest to a file first"):
        read_dataset(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match=r"cannot be read \(File name too long\)"):
        read_dataset(tmp_path / ("a" * 300))
    fill(tmp_path, "1.png", "locked/2.png")
    file = manifest(tmp_path, "path,label\n1.png,a\nlocked/2.png,b\n")
    with_stat(monkeypatch, tmp_path / "locked/2.png", PermissionError(13, "Permission denied"))
    with pytest.raises(DataError, match=r"1 of 2 files cannot be read \(locked/2\.png: Permission denied\)"):
        read_dataset(file)


def with_stat(monkeypatch: pytest.MonkeyPatch, path: Path, error: OSError) -> None:
    """Let `os.stat` fail for a path."""
    real = os.stat

    def stat(name: str | Path, *arguments: Any, **options: Any) -> os.stat_result:
        if os.fspath(name) == str(path):
            raise error
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)


def test_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/1.png", "b/1.png")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"b: this folder cannot be read \(Permission denied\)"):
        read_dataset(tmp_path)


def test_images_under_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        images_under(tmp_path / "gone", Ignored())


def test_manifest_keeps_its_order_and_its_text(tmp_path: Path) -> None:
    fill(tmp_path, "z.png", "in, comma.png", "a b.png", "dir/x.png")
    text = '\ufeffPath, label ,split,note\r\nz.png,01,train,x\r\n"in, comma.png","two\nlines",train,\r\n\r\n'
    text += f"./dir/../a b.png,1.0,val,\r\n{tmp_path / 'dir/x.png'},ü,test,\r\n"
    dataset = read_dataset(manifest(tmp_path, text))
    assert (dataset.layout, dataset.root, dataset.split_by_seed) == ("manifest", tmp_path, False)
    train = [(sample.path, sample.label) for sample in dataset.splits["train"]]
    assert train == [("z.png", "01"), ("in, comma.png", "two\nlines")]
    assert dataset.splits["val"][0].path == "a b.png"
    assert dataset.splits["test"][0].path == (tmp_path / "dir/x.png").as_posix()


def test_manifest_without_splits_is_split_by_seed(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(20)]
    fill(tmp_path, *names)
    rows = [f"{name},{i % 2}" for i, name in enumerate(names)]
    dataset = read_dataset(manifest(tmp_path, "path,label\n" + "\n".join(rows)))
    assert [len(dataset.splits[name]) for name in ("train", "val")] == [16, 4]
    assert dataset.split_by_seed
    backwards = read_dataset(manifest(tmp_path, "path,label\n" + "\n".join(rows[::-1])))
    assert set(backwards.splits["val"]) == set(dataset.splits["val"])


def test_columns_that_are_not_used_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png", "3.png")
    rows = [f"{number}.png,{label},{group}" for number, label, group in ((1, "a", 7), (2, "b", 7), (3, "b", 8))]
    note = "not used: the manifest's {} (used: path, label and split)"
    for column in ("Patient_ID", "leaf", "groups"):
        named, on_groups = read_dataset(manifest(tmp_path, "\n".join([f"path,label,{column}", *rows]))).notes
        assert named == note.format(repr(column))
        assert on_groups.startswith(f"the draw of val does not know {column!r}: images of one object may be in train")
        assert "write a column split" in on_groups
    for header in ("path,label,camera", "path,label,split,group"):
        text = "\n".join([header, *(row if "split" not in header else f"{row[:7]},train,7" for row in rows)])
        assert read_dataset(manifest(tmp_path, text)).notes == (note.format(repr(header.split(",")[-1])),)


def test_manifest_counts_a_repeated_row(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png")
    dataset = read_dataset(manifest(tmp_path, "path,label,split\n1.png,a,train\n./1.png,a,train\n2.png,b,valid\n"))
    assert dataset.ignored == {"repeated row": 1}
    assert sorted(dataset.splits) == ["train", "val"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty; expected the columns"),
        ("path,label\n", "no rows"),
        ("file,class\n1.png,a\n", "no column 'path' and no 'label'; found file, class; expected"),
        ("path,labels\n1.png,a|b\n", "several labels per image"),
        ("path,label,label\n1.png,a,b\n", "'label' is given twice"),
        ("path;label\n1.png;a\n", "separated by ';'; save it with commas"),
        ("path\tlabel\n1.png\ta\n", "separated by tabs"),
        ("path,label\n1.png,\n2.png, \n", r"no label in 2 of 2 rows \(line 2, line 3\)"),
        ("path,label\n,a\n", "no path in 1 of 1 rows"),
        ("path,label,split\n1.png,a,\n", "no split in 1 of 1 rows"),
        (
            "path,label\n1.png,a\n1.png,b\n",
            r"1\.png \(line 2 and line 3\) has the labels 'a' and 'b'; give each image one label",
        ),
        ("path,label,split\n1.png,a,train\n1.png,a,val\n", "is in the splits 'train' and 'val'"),
        ("path,label\n1.png,a,b\n", "line 2: 3 values under 2 column names"),
        ("path,label\n1.png\n", "line 2: 1 values under 2 column names"),
        ('path,label\n"1.png,a\n', "not a valid CSV file"),
        (
            "path,label\nx.png,a\ny.png,a\n1.png,b\n",
            r"2 of 3 files do not exist \(x.png, y.png\); paths are relative",
        ),
        ("path,label\nd\\x.png,a\n", "write / between folders"),
        ("path,label\n.,a\n", r"1 of 1 files cannot be read \(\.: a folder\)"),
        ("path,label\na\0b,a\n", "(files do not exist|not a valid CSV)"),
    ],
)
def test_manifests_with_mistakes(tmp_path: Path, text: str, reason: str) -> None:
    fill(tmp_path, "1.png", "2.png")
    with pytest.raises(DataError, match=reason) as caught:
        read_dataset(manifest(tmp_path, text))
    assert "list.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_manifest_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("path,label\nä.png,a".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_dataset(tmp_path / "list.csv")


def test_parquet_manifest_equals_csv(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    fill(tmp_path, "1.png", "2.png")
    columns = {"path": ["1.png", "2.png"], "label": [7, 8], "split": ["train", "val"], "other": [[1], [2]]}
    parquet.write_table(pa.table(columns), tmp_path / "list.parquet")
    from_csv = read_dataset(manifest(tmp_path, "path,label,split,other\n1.png,7,train,[1]\n2.png,8,val,[2]\n"))
    assert read_dataset(tmp_path / "list.parquet") == from_csv


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"path": ["1.png"], "label": [["a", "b"]]}, "several labels per image"),
        ({"path": ["1.png"], "label": [None]}, r"no label in 1 of 1 rows \(row 1\)"),
        ({"file": ["1.png"]}, "found file;"),
    ],
)
def test_parquet_manifests_with_mistakes(tmp_path: Path, columns: dict[str, list[object]], reason: str) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), fill(tmp_path, "1.png") / "list.parquet")
    with pytest.raises(DataError, match=reason):
        read_dataset(tmp_path / "list.parquet")


def test_invalid_parquet_and_missing_parquet_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fill(tmp_path, "list.parquet") / "list.parquet"
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_dataset(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"fewsight\[parquet\]"):
        read_dataset(path)


def test_dataset_can_be_moved(tmp_path: Path) -> None:
    fill(tmp_path / "one", *[f"{label}/{i}.png" for label in "ab" for i in range(5)])
    before = read_dataset(tmp_path / "one").splits
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert read_dataset(tmp_path / "two").splits == before
