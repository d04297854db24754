"""Small pictures of samples in a run folder, beside the maps that they belong to.

They are written where a command has the samples at hand, never of private ones, and are shown only by
``agnosco report --with-samples``.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..io.storage import Folder
from ..method.render import png

FOLDER, SIDE = "samples", 96
"""Where thumbnails are in a run folder, and the side of a tile in pixels."""

PAPER = "#808080"


def name_of(stem: str, kind: str = "") -> str:
    """The file of a map's thumbnails in its run folder, ``samples/0001-goldfish-s0.png``; a kind ends its name."""
    return f"{FOLDER}/{stem}{kind}.png"


def write_thumbnails(folder: Folder, name: str, rows: Sequence[Sequence[Image.Image]]) -> str:
    """Write rows of pictures as one picture of square tiles; returns its full name."""
    columns = max(map(len, rows), default=0) or 1
    sheet = Image.new("RGB", (columns * SIDE, len(rows) * SIDE), PAPER)
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            sheet.paste(_tile(picture), (across * SIDE, down * SIDE))
    return folder.write(name, png(sheet))


def remove_thumbnails(folder: Folder) -> None:
    """Remove all of a run's thumbnails."""
    for name in folder.names(FOLDER):
        folder.remove(f"{FOLDER}/{name}")


def row_of(sheet: Image.Image, row: int, count: int) -> Image.Image:
    """The first tiles of a row of such a picture, as many as it has."""
    return sheet.crop((0, row * SIDE, min(count * SIDE, sheet.width), (row + 1) * SIDE))


def _tile(picture: Image.Image) -> Image.Image:
    """A picture as a tile, its proportions kept; pixels of a small one stay square."""
    scale = SIDE / max(picture.size)
    width, height = (max(1, round(scale * length)) for length in picture.size)
    tile = Image.new("RGB", (SIDE, SIDE), PAPER)
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    tile.paste(picture.convert("RGB").resize((width, height), method), ((SIDE - width) // 2, (SIDE - height) // 2))
    return tile
