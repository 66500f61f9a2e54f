"""Words for messages."""

import pytest

from fewsight.wording import counted, first_few, named


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "epoch", "1 epoch"),
        (2, "epoch", "2 epochs"),
        (0, "image", "0 images"),
        (1200, "image", "1,200 images"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (3, "batch", "3 batches"),
        (2, "loading process", "2 loading processes"),
        (50, "image outside a class folder", "50 images outside a class folder"),
        (2, "link to a folder already read", "2 links to a folder already read"),
        (2, "folder without images", "2 folders without images"),
    ],
)
def test_counted_noun_is_singular_or_plural(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


def test_first_few_items_are_followed_by_the_number_of_others() -> None:
    assert first_few("abc", 3) == ["a", "b", "c"]
    assert first_few("abcd", 3, ", in a file") == ["a", "b", "c", "and 1 more, in a file"]
    assert first_few([]) == []
    assert first_few(map(str, range(2000)), 1) == ["0", "and 1,999 more"]


def test_names_stand_in_one_line() -> None:
    assert named([]) == ""
    assert named(["a", "b, and c"], 2) == "a, b, and c"
    assert named(["a", "b, and c", "d"], 2) == "a, b, and c and 1 more"
