"""From maps to pictures: the one door from numbers to images, and contact sheets. It loads no torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import AgnoscoError
from ..text import one_line

if TYPE_CHECKING:
    from torch import Tensor

    Floats = np.ndarray[Any, np.dtype[np.float32]]

PAPER, INK, FAINT = "white", "black", "#555555"
GAP, LINE = 8, 20
"""Pixels between the pictures of a sheet, and height of a line of its text."""

FOOTER = 1000
"""Most characters of the footer of a sheet."""

SIDE = 224
"""Pixels a side to which pictures of smaller inputs are enlarged."""

FADING = (0.4, 0.8)
"""Of a transparent picture: the share of its area that is invisible, and that up to which it is not all opaque."""

SMALL = 64
"""Pixels a side below which an enlarged picture keeps its pixels square."""


def to_picture(pixels: Tensor | Floats) -> Image.Image:
    """A tensor or an array as a picture.

    Args:
        pixels: ``(C, H, W)`` or ``(H, W)`` in [0, 1], on any device; C is 1 (grey) or 3 (RGB).

    Raises:
        ValueError: Another shape.
    """
    values = _floats(pixels)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ValueError(f"pixels must be (H, W), (1, H, W) or (3, H, W), not {tuple(pixels.shape)}")
    with np.errstate(invalid="ignore"):  # a foreign map may hold NaN
        levels = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))


def transparent_picture(pixels: Tensor | Floats, contribution: Tensor | Floats) -> Image.Image:
    """Pixels ``(C, H, W)`` as a picture with an alpha channel: :func:`opacity` of a contribution ``(1, H, W)``."""
    picture = to_picture(pixels)
    picture.putalpha(to_picture(opacity(contribution)))
    return picture


def opacity(contribution: Tensor | Floats) -> Floats:
    """How opaque each place of a picture is, ``(H, W)`` or ``(1, H, W)`` in [0, 1], from how much it contributes.

    It rises smoothly between the two quantiles of :data:`FADING`; contributions that are all the same hide nothing.
    """
    values = _floats(contribution)
    low, high = np.quantile(values, FADING)
    risen = ((values - low) / (high - low)).clip(0, 1) if high > low else values >= high
    return (risen * risen * (3.0 - 2.0 * risen)).astype(np.float32)


def _floats(values: Tensor | Floats) -> Floats:
    """A tensor of any device, or an array, as an array."""
    array = values if isinstance(values, np.ndarray) else values.detach().float().cpu().numpy()
    return array.astype(np.float32, copy=False)


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def stretched(pattern: Tensor | Floats, *, tail: float = 0.01) -> Floats:
    """A pattern ``(C, H, W)`` around zero as pixels in [0, 1] around mid-grey, for people to look at.

    The scale leaves out the largest magnitudes: a share ``tail`` of those that are not zero. It is the same for all
    channels, and zero stays mid-grey, so colours are those of the pattern.
    """
    values = _floats(pattern)
    magnitudes = np.abs(values[values != 0]).astype(np.float64)
    # the share in single precision, as torch takes it: pictures stay the same to the byte
    with np.errstate(invalid="ignore", over="ignore"):  # a foreign map may hold NaN and huge numbers
        scale = np.float32(np.quantile(magnitudes, float(np.float32(1 - tail))) if len(magnitudes) else 1)
        return (np.float32(0.5) + np.float32(0.5) * values / scale).clip(0, 1)


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """A picture enlarged by a whole factor, to a longer side of about ``side`` pixels.

    Pixels of small pictures stay square, since each may matter (a trigger has 3×3); others are smoothed.
    """
    factor = max(1, round(side / max(picture.size)))
    way = Image.Resampling.NEAREST if max(picture.size) < SMALL else Image.Resampling.BICUBIC
    return picture.resize((picture.width * factor, picture.height * factor), way)


def contact_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], *, columns: int = 5, tile: int = 160, footer: str = ""
) -> Image.Image:
    """Pictures in a grid, each with a caption below, and a footer that says what they have in common.

    Small pictures are enlarged to about ``tile`` pixels, and captions are cut to the width of a tile. Captions and
    footer may hold text from outside: they are drawn without control characters.
    """
    if not pictures or len(pictures) != len(captions):
        raise AgnoscoError(
            f"{len(pictures)} pictures and {len(captions)} captions", "give at least one, and as many of each"
        )
    tiles = [enlarged(picture.convert("RGB"), tile) for picture in pictures]
    width, height = max(t.width for t in tiles), max(t.height for t in tiles)
    font, line = ImageFont.load_default(14), LINE
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    footer_lines = _wrapped(one_line(footer, limit=FOOTER), font, columns * (width + GAP) - GAP)
    size = (columns * (width + GAP) + GAP, rows * (height + line + GAP) + GAP + len(footer_lines) * line)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(tiles, captions, strict=True)):
        x = GAP + i % columns * (width + GAP)
        y = GAP + i // columns * (height + line + GAP)
        sheet.paste(picture, (x, y))
        draw.text((x, y + height + 2), _cut_to(one_line(caption), font, width), fill=INK, font=font)
    for i, text in enumerate(footer_lines):
        draw.text((GAP, size[1] - (len(footer_lines) - i) * line), text, fill=FAINT, font=font)
    return sheet


def _cut_to(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Text cut to a width in pixels, with dots where something is left out."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Text broken at spaces into lines of at most a width in pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
