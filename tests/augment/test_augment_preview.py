import numpy as np
import pytest

from fewsight.augment import contact_sheet


def noise_batch(count: int, px: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, px, px, 3), dtype=np.uint8)


def contains(sheet: np.ndarray, tile: np.ndarray) -> bool:
    """Whether `tile` is in `sheet`, pixel for pixel."""
    px = len(tile)
    rows, columns = np.nonzero((sheet[: -px + 1, : -px + 1] == tile[0, 0]).all(axis=2))
    return any(np.array_equal(sheet[r : r + px, c : c + px], tile) for r, c in zip(rows, columns, strict=True))


def test_contact_sheet_shows_every_image_exactly() -> None:
    batches = [noise_batch(11, 128), noise_batch(3, 128, seed=1)]
    captions = [[f"cat {index}" for index in range(len(batch))] for batch in batches]
    sheet = np.asarray(contact_sheet(batches, captions))
    for batch in batches:
        assert all(contains(sheet, tile) for tile in batch)
    # eight columns; the second batch starts a third row
    assert 8 * 128 < sheet.shape[1] < 8 * 140
    assert 3 * 128 < sheet.shape[0] < 3 * 160


def test_contact_sheet_enlarges_small_tiles_by_a_whole_factor() -> None:
    batch = noise_batch(2, 8)
    sheet = np.asarray(contact_sheet([batch], [["a", "b"]]))
    assert all(contains(sheet, tile.repeat(12, axis=0).repeat(12, axis=1)) for tile in batch)


def test_contact_sheet_draws_captions_under_their_tiles_and_truncates_long_ones() -> None:
    batch = np.full((2, 96, 96, 3), 255, np.uint8)
    empty = np.asarray(contact_sheet([batch], [["", ""]]))
    captioned = np.asarray(contact_sheet([batch], [["cat 0.62 + a very long name of a class", ""]]))
    assert captioned.shape == empty.shape
    rows, columns = np.nonzero((captioned != empty).any(axis=2))
    assert rows.min() >= 4 + 96
    assert columns.min() >= 4
    assert columns.max() < 4 + 96 + 4  # not under the second tile


def test_contact_sheet_makes_room_for_lines_and_accepts_any_script() -> None:
    batch = noise_batch(1, 96)
    one, two = (contact_sheet([batch], [[text]]) for text in ("猫", "cat 0.6\n犬 0.4"))
    assert two.height > one.height


def test_contact_sheet_accepts_batches_of_different_sizes() -> None:
    small, large = noise_batch(2, 96), noise_batch(1, 224)
    sheet = np.asarray(contact_sheet([small, large], [["", ""], [""]]))
    assert contains(sheet, small[1])
    assert contains(sheet, large[0])


def test_contact_sheet_refuses_wrong_arrays_and_captions() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[B, px, px, 3\], got float64 \[1, 8, 8, 3\]"):
        contact_sheet([np.zeros((1, 8, 8, 3))], [[""]])
    with pytest.raises(ValueError, match=r"got uint8 \[1, 3, 8, 8\]"):
        contact_sheet([np.zeros((1, 3, 8, 8), np.uint8)], [[""]])
    with pytest.raises(ValueError, match="one string for each image"):
        contact_sheet([noise_batch(2, 8)], [[""]])
    with pytest.raises(ValueError, match="no image"):
        contact_sheet([], [])
