"""The contact sheet of augmented batches that `fewsight train --preview N` writes."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP_PX = 4
MIN_TILE_PX = 96
COLUMNS = 8


def contact_sheet(batches: Sequence[np.ndarray], captions: Sequence[Sequence[str]]) -> Image.Image:
    """Draw batches of images as a grid, a caption under each tile; a new batch begins a new row.

    Tiles below 96 px are enlarged by a whole factor with nearest-neighbour resampling, so that every pixel stays
    visible. A caption that is wider than its tile is truncated.

    Args:
        batches: uint8 arrays [B, px, px, 3]; B and px may differ between them.
        captions: one sequence per batch with one short string per image; it may contain line breaks.

    Returns:
        An RGB image with a white background.

    Raises:
        ValueError: there is no image, an array has another shape or type, or the captions are not one per image.
    """
    _check(batches, captions)
    font = ImageFont.load_default()
    tile_px = max(batch.shape[1] * _enlargement(batch.shape[1]) for batch in batches if len(batch))
    num_lines = max((text.count("\n") + 1 for row in captions for text in row), default=1)
    line_px = _line_px(font)
    cell_width, cell_height = tile_px + GAP_PX, tile_px + num_lines * line_px + GAP_PX
    num_columns = min(COLUMNS, max(len(batch) for batch in batches))
    num_rows = sum(-(-len(batch) // num_columns) for batch in batches)
    size = (num_columns * cell_width + GAP_PX, num_rows * cell_height + GAP_PX)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    row = 0
    for batch, texts in zip(batches, captions, strict=True):
        for index, (pixels, text) in enumerate(zip(batch, texts, strict=True)):
            left = GAP_PX + index % num_columns * cell_width
            top = GAP_PX + (row + index // num_columns) * cell_height
            sheet.paste(_tile(pixels), (left, top))
            for line_index, line in enumerate(text.split("\n")):
                position = (left, top + tile_px + line_index * line_px)
                draw.text(position, _fit(line, font, tile_px), fill="black", font=font)
        row += -(-len(batch) // num_columns)
    return sheet


def _check(batches: Sequence[np.ndarray], captions: Sequence[Sequence[str]]) -> None:
    for batch in batches:
        square = batch.ndim == 4 and batch.shape[1] == batch.shape[2] and batch.shape[3] == 3
        if batch.dtype != np.uint8 or not square:
            raise ValueError(f"a batch must be uint8 [B, px, px, 3], got {batch.dtype} {list(batch.shape)}")
    if not any(len(batch) for batch in batches):
        raise ValueError("no image to show")
    if [len(batch) for batch in batches] != [len(texts) for texts in captions]:
        raise ValueError("captions must hold one string for each image of each batch")


def _enlargement(px: int) -> int:
    return -(-MIN_TILE_PX // px)


def _tile(pixels: np.ndarray) -> Image.Image:
    px = len(pixels) * _enlargement(len(pixels))
    return Image.fromarray(pixels).resize((px, px), Image.Resampling.NEAREST)


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _line_px(font: Font) -> int:
    return int(font.getbbox("Ag")[3]) + 3


def _fit(text: str, font: Font, width_px: int) -> str:
    """The longest beginning of `text` that is no wider than `width_px`."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        # Pillow without FreeType falls back to a bitmap font with Latin-1 characters only
        text = text.encode("latin-1", "replace").decode("latin-1")
    while text and font.getlength(text) > width_px:
        text = text[:-1]
    return text
