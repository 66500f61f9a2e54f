"""Words for messages."""

import pytest

from fewsight.wording import counted


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
    ],
)
def test_counted_noun_is_singular_or_plural(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text
