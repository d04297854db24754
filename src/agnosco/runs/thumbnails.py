"""Small pictures of samples in a run folder, beside the maps that they belong to.

They are written where a command has the samples at hand, and shown only by ``agnosco report --with-samples``. Samples
in a folder that holds a file ``.private`` are never copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..io.storage import Folder
from ..method.render import png

FOLDER, SIDE = "samples", 96
"""Where thumbnails are in a run folder, and their greatest side in pixels."""

PRIVATE = ".private"
"""A file of this name in a folder of samples forbids to copy them."""


def may_be_shown(source: str | Path) -> bool:
    """Whether samples at a path, or of another source, may be copied in small: no file beside them forbids it."""
    path = Path(source).expanduser()
    return not ((path if path.is_dir() else path.parent) / PRIVATE).exists()


def write_thumbnails(folder: Folder, stem: str, pictures: Sequence[Image.Image]) -> str:
    """Write pictures, side by side in squares, beside the map with this stem; returns the file's full name."""
    side = min(SIDE, max(max(picture.size) for picture in pictures))
    strip = Image.new("RGB", (side * len(pictures), side), "white")
    for place, picture in enumerate(pictures):
        small = picture.convert("RGB")
        small.thumbnail((side, side))
        strip.paste(small, (place * side + (side - small.width) // 2, (side - small.height) // 2))
    return folder.write(name_of(stem), png(strip))


def name_of(stem: str) -> str:
    """The file of a map's thumbnails in its run folder."""
    return f"{FOLDER}/{stem}-facet.png"
