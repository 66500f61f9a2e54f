"""The split by seed, and the choice of samples to train on or to evaluate."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewsight.data import Dataset, Sample, digest, evaluation_samples, read_dataset, split_by_seed, training_samples
from fewsight.errors import DataError

class_sizes = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 40), min_size=1, max_size=6)
holdouts = st.floats(0, 0.99)


def made(sizes: dict[str, int]) -> list[Sample]:
    return [Sample(f"{label}/{i}.png", label) for label, count in sizes.items() for i in range(count)]


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(root / name)
    return root


def in_memory(**splits: dict[str, int]) -> Dataset:
    return Dataset(Path("photos"), {name: tuple(made(sizes)) for name, sizes in splits.items()}, "splits")


@settings(deadline=None, max_examples=60)
@given(class_sizes, holdouts, st.integers(0, 2**63 - 1))
def test_split_is_stratified_disjoint_covering_and_the_same_again(
    sizes: dict[str, int], holdout: float, seed: int
) -> None:
    samples = made(sizes)
    train, val = split_by_seed(samples, holdout=holdout, seed=seed)
    assert sorted((*train, *val), key=lambda s: s.path) == sorted(samples, key=lambda s: s.path)
    assert not set(train) & set(val)
    kept, held = Counter(s.label for s in train), Counter(s.label for s in val)
    for label, count in sizes.items():
        assert kept[label] >= 1
        assert (held[label] >= 1) == (count >= 2 and holdout > 0)
        if 1 <= holdout * count <= count - 1:
            assert abs(held[label] - holdout * count) <= 0.5
    assert split_by_seed(samples, holdout=holdout, seed=seed) == (train, val)
    assert set(split_by_seed(samples[::-1], holdout=holdout, seed=seed)[1]) == set(val)


@settings(deadline=None, max_examples=30)
@given(class_sizes, st.integers(0, 1000))
def test_split_of_a_class_does_not_depend_on_the_others(sizes: dict[str, int], seed: int) -> None:
    both = split_by_seed(made({**sizes, "another": 9}), holdout=0.3, seed=seed)[1]
    alone = split_by_seed(made(sizes), holdout=0.3, seed=seed)[1]
    if "another" not in sizes:
        assert {s for s in both if s.label != "another"} == set(alone)


def test_split_changes_with_the_seed_and_is_not_the_first_images() -> None:
    samples = made({"a": 100})
    held = [split_by_seed(samples, holdout=0.2, seed=seed)[1] for seed in range(3)]
    assert [len(val) for val in held] == [20, 20, 20]
    assert len({*held, tuple(samples[:20])}) == 4


@pytest.mark.parametrize("holdout", [-0.1, 1, 1.5, float("nan")])
def test_holdout_out_of_range_is_refused(holdout: float) -> None:
    with pytest.raises(DataError, match=r"holdout is .* at least 0 and below 1"):
        split_by_seed(made({"a": 3}), holdout=holdout, seed=0)


def test_training_samples_keeps_or_merges_val() -> None:
    dataset = in_memory(train={"b": 3, "a": 2}, val={"b": 1})
    classes, train, val = training_samples(dataset)
    assert (classes, len(train), len(val)) == (("a", "b"), 5, 1)
    classes, train, val = training_samples(dataset, merge_val=True)
    assert (classes, len(train), len(val)) == (("a", "b"), 6, 0)


def test_training_works_from_two_images_a_class(tmp_path: Path) -> None:
    dataset = read_dataset(folder(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/2.png"))
    classes, train, val = training_samples(dataset)
    assert (classes, len(train), len(val)) == (("a", "b"), 2, 2)


@pytest.mark.parametrize(
    ("splits", "reason"),
    [
        ({"test": {"a": 2, "b": 2}}, "no train split; found test; if one of them is, give --splits train=test"),
        ({"train": {"a": 2}}, r"only one class to train on \(a\); at least 2"),
        ({"train": {"a": 2, "b": 1, "c": 1}}, r"2 classes have one image to train on \(b, c\)"),
        ({"train": {"a": 2, "b": 1}}, r"1 class has one image to train on \(b\)"),
        ({"train": {"Cat": 2, "cat": 2}}, "'Cat' and 'cat' differ only by case"),
        ({"train": {"Cat": 2, "b": 2}, "val": {"cat": 1}}, "'Cat' and 'cat' differ only by case"),
        ({"train": {"caf\u00e9": 2, "cafe\u0301": 2}}, r"'cafe\\u0301' and 'caf\\xe9' look alike"),
        ({"train": {"cat": 2, "cat\u200b": 2}}, r"'cat' and 'cat\\u200b' look alike"),
        ({"train": {"cat": 2, "cat ": 2}}, "'cat' and 'cat ' look alike"),
        ({"train": {"big  cat": 2, "big\u00a0cat": 2}}, "look alike"),
        ({"train": {"\uff23at": 2, "b": 2}, "val": {"cat": 1}}, "look alike"),
        ({"train": {"a": 2, "b": 2}, "val": {"a": 1, "x": 1}}, r"val holds classes that train lacks \(x\)"),
    ],
)
def test_training_data_with_mistakes(splits: dict[str, dict[str, int]], reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        training_samples(in_memory(**splits))
    assert str(caught.value).startswith("photos: ")


def test_merging_a_missing_val_is_refused() -> None:
    with pytest.raises(DataError, match="no val split to merge; found train"):
        training_samples(in_memory(train={"a": 2, "b": 2}), merge_val=True)


def test_other_splits_do_not_stop_training() -> None:
    dataset = in_memory(train={"a": 2, "b": 2}, test={"unknown": 1, "A": 1})
    assert training_samples(dataset)[0] == ("a", "b")


def test_evaluation_matches_labels_by_name(tmp_path: Path) -> None:
    folder(tmp_path, "train/a/1.png", "test/c/1.png", "test/b/1.png", "val/a/1.png")
    evaluated = evaluation_samples(tmp_path, ("a", "b", "c"))
    assert (evaluated.split, evaluated.labels) == ("test", (1, 2))
    assert [sample.label for sample in evaluated.samples] == ["b", "c"]
    assert evaluation_samples(tmp_path, ("a", "b", "c"), "validation").labels == (0,)
    assert evaluation_samples(tmp_path, ("c", "b", "a")).labels == (1, 0)


def test_evaluation_takes_a_folder_without_train_whole(tmp_path: Path) -> None:
    folder(tmp_path, *[f"{label}/{i}.png" for label in "ab" for i in range(5)])
    evaluated = evaluation_samples(tmp_path, ("a", "b"))
    assert (evaluated.split, len(evaluated.samples), evaluated.labels) == ("all", 10, (0,) * 5 + (1,) * 5)
    assert len(evaluation_samples(tmp_path, ("a", "b"), "val").samples) == 2
    same = evaluation_samples(tmp_path, ("a", "b"), trained_on=tmp_path)
    assert (same.split, same.samples) == ("val", read_dataset(tmp_path).splits["val"])


def test_evaluation_names_a_class_that_only_looks_like_the_runs(tmp_path: Path) -> None:
    folder(tmp_path, "cafe\u0301/1.png")
    with pytest.raises(DataError, match=r"'caf\\xe9' and 'cafe\\u0301' look alike.*: rename the data's"):
        evaluation_samples(tmp_path, ("b", "caf\u00e9"))


def test_evaluation_reads_a_split_by_each_of_its_names(tmp_path: Path) -> None:
    folder(tmp_path, "training/a/1.png", "validation/a/2.png", "testing/a/3.png")
    assert evaluation_samples(tmp_path, ("a",)).split == "test"
    for name in ("val", "validation", "valid"):
        evaluated = evaluation_samples(tmp_path, ("a",), name)
        assert (evaluated.split, evaluated.samples[0].path) == ("val", "validation/a/2.png")
    evaluated = evaluation_samples(tmp_path, ("a",), "val", splits="val=testing")
    assert evaluated.samples[0].path == "testing/a/3.png"


def test_one_class_that_is_a_folder_of_classes_is_named(tmp_path: Path) -> None:
    folder(tmp_path / "one", "archive/cat/1.png", "archive/dog/1.png")
    with pytest.raises(DataError, match=r"only one class .* are the classes, give .*one/archive as DATA"):
        training_samples(read_dataset(tmp_path / "one"))
    folder(tmp_path / "two", "train/train/cat/1.png", "train/train/dog/1.png")
    with pytest.raises(DataError, match=r"only one class .* give --splits train=train/train"):
        training_samples(read_dataset(tmp_path / "two"))


def test_manifest_without_train_is_named(tmp_path: Path) -> None:
    folder(tmp_path, "1.png")
    (tmp_path / "list.csv").write_text("path,label,split\n1.png,a,learn\n")
    with pytest.raises(DataError, match=r"list\.csv: no train split; found learn; .* --splits train=learn"):
        training_samples(read_dataset(tmp_path / "list.csv"))


def test_evaluation_of_one_class_works(tmp_path: Path) -> None:
    assert evaluation_samples(folder(tmp_path, "b/1.png"), ("a", "b")).labels == (1,)


def test_evaluation_without_test_takes_val(tmp_path: Path) -> None:
    folder(tmp_path, "train/a/1.png", "val/a/1.png", "test/1.png")
    assert evaluation_samples(tmp_path, ("a",)).split == "val"
    with pytest.raises(DataError, match="test has no labels, so it can be predicted"):
        evaluation_samples(tmp_path, ("a",), "test")


def test_evaluation_refuses_unknown_labels_and_splits(tmp_path: Path) -> None:
    folder(tmp_path, "train/a/1.png", "test/x/1.png", "test/y/1.png")
    with pytest.raises(DataError, match=r"test holds classes .* \(x, y\); the run has 2 \(a, b\)"):
        evaluation_samples(tmp_path, ("a", "b"))
    with pytest.raises(DataError, match="no split 'dev'; splits with labels: test, train"):
        evaluation_samples(tmp_path, ("a", "b"), "dev")


def test_digest_sees_path_size_label_and_order(tmp_path: Path) -> None:
    folder(tmp_path, "a/1.png", "a/2.png")
    samples = [Sample("a/1.png", "a"), Sample("a/2.png", "a")]
    first = digest(samples, tmp_path)
    assert len(first) == 32
    assert digest(samples, tmp_path) == first
    assert digest(samples[::-1], tmp_path) != first
    assert digest([Sample("a/1.png", "b"), samples[1]], tmp_path) != first
    (tmp_path / "a/1.png").write_bytes(b"longer now" * 100)
    assert digest(samples, tmp_path) != first
    with pytest.raises(DataError, match=r"3\.png: cannot be read"):
        digest([Sample("a/3.png", "a")], tmp_path)
