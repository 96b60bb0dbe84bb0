"""Side-by-side pictures with a label above each column, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACKGROUND = (255, 255, 255)
_INK = (20, 20, 20)
_GAP = 8


def to_rgb8(image: np.ndarray) -> np.ndarray:
    """Convert an HW or HW3 image of uint8 or uint16 to HW3 uint8, for display.

    Raises:
        TypeError: The dtype is another one.
    """
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise TypeError(f"image has dtype {image.dtype}; a panel is drawn from uint8 or uint16")
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def draw_panel(rows: Sequence[Sequence[tuple[str, np.ndarray]]], height: int | None = None):
    """Draw one RGB picture of labeled images.

    Args:
        rows: A list of ``(label, image)`` per row; images are HW or HW3, uint8 or uint16, of any
            sizes.
        height: Height in pixels to which every row is resized; ``None`` keeps the images' sizes.

    Returns:
        uint8 array [H, W, 3].
    """
    tiles = [[(label, _fit(image, height)) for label, image in row] for row in rows]
    font = ImageFont.load_default(size=_font_size(tiles))
    bar = int(font.getbbox("Ag|")[3]) + _GAP
    width = max(_row_width(row) for row in tiles)
    total = _GAP + sum(bar + max(t.height for _, t in row) + _GAP for row in tiles)
    canvas = Image.new("RGB", (width, total), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    top = _GAP
    for row in tiles:
        left = _GAP
        for label, tile in row:
            draw.text((left, top), label, fill=_INK, font=font)
            canvas.paste(tile, (left, top + bar))
            left += tile.width + _GAP
        top += bar + max(tile.height for _, tile in row) + _GAP
    return np.asarray(canvas)


def _fit(image: np.ndarray, height: int | None) -> Image.Image:
    tile = Image.fromarray(to_rgb8(image))
    if height is None or tile.height == height:
        return tile
    width = max(1, round(tile.width * height / tile.height))
    return tile.resize((width, height), Image.Resampling.LANCZOS)


def _row_width(row: list[tuple[str, Image.Image]]) -> int:
    return _GAP + sum(tile.width + _GAP for _, tile in row)


def _font_size(tiles: list[list[tuple[str, Image.Image]]]) -> int:
    """Return a size that reads well (width / 16) and lets every label fit its tile."""
    narrowest = min(tile.width for row in tiles for _, tile in row)
    size = min(28, max(10, narrowest // 16))
    while size > 6:
        font = ImageFont.load_default(size=size)
        if all(font.getlength(label) <= tile.width for row in tiles for label, tile in row):
            break
        size -= 1
    return size
