"""The samples that are typical of the classes of a run, as ``samples.json`` and ``samples/`` hold them; loads no torch.

RUN/
samples.json                      which samples, and what the network makes of them
samples/0001-goldfish-s0.png      thumbnails: a row for each kind of :data:`KINDS`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta
from PIL import Image

from ..io import records
from ..io.records import Record
from ..io.storage import Folder
from ..method.render import png

if TYPE_CHECKING:
    from ..runs.manifest import Entry

FILE = "samples.json"

SIDE = 96
"""Side of a thumbnail in pixels."""

KINDS = ("most", "moved", "kept")
"""Rows of thumbnails: :class:`Typical` says what they are."""

PAPER = "#808080"


class Sample(Record, frozen=True):
    """A sample, by its place in the sample set, and what the network makes of it.

    Args:
        index: From 0, among all samples of the run.
        value: Probability of the class, for those of a map with the map's pattern; of what is no class, such as a
            channel, its score.
    """

    index: Annotated[int, Meta(ge=0)]
    value: float


class Typical(Record, frozen=True):
    """The samples that are typical of a map.

    Args:
        sha256: Of the map's file.
        most: Those to which the network gives the class most.
        moved, kept: Of the held-out samples of other classes, those that the map's pattern moves to the class most
            easily, and those that it moves least.
    """

    sha256: str
    most: tuple[Sample, ...]
    moved: tuple[Sample, ...]
    kept: tuple[Sample, ...]

    @property
    def rows(self) -> list[tuple[Sample, ...]]:
        """In the order of :data:`KINDS`."""
        return [self.most, self.moved, self.kept]


class TypicalRecord(Record, frozen=True):
    """The typical samples of all maps of a run.

    Args:
        source: What the samples are called.
        fingerprint: Of the samples.
        seen, count: How many of them the network has seen, and how many there are.
        scores: Whether values are scores, of what is no class.
        maps: By the stem of the map.
    """

    source: str
    fingerprint: str
    seen: int
    count: int
    scores: bool
    maps: dict[str, Typical]


def read(folder: Folder) -> TypicalRecord | None:
    """The record in a run's folder; None if no samples were kept.

    Raises:
        AgnoscoError: The file is damaged or of another version.
    """
    hint = "remove it, and give the command that made the run again"
    return records.read(folder, FILE, TypicalRecord, hint=hint)


def write(folder: Folder, record: TypicalRecord) -> str:
    """Write the record into a run's folder; returns its full name."""
    return folder.write(FILE, records.encode(record))


def remove(folder: Folder) -> None:
    """Remove what a run's folder holds of samples."""
    for name in folder.names("samples"):
        folder.remove(f"samples/{name}")
    folder.remove(FILE)


def thumbnails_of(entry: Entry) -> str:
    """Name of the picture with the thumbnails of a map."""
    return f"samples/{entry.stem}.png"


def write_thumbnails(folder: Folder, name: str, rows: Sequence[Sequence[Image.Image]]) -> str:
    """Write rows of pictures as one picture of square tiles; returns its full name."""
    columns = max(map(len, rows), default=0) or 1
    sheet = Image.new("RGB", (columns * SIDE, len(rows) * SIDE), PAPER)
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            sheet.paste(_tile(picture), (across * SIDE, down * SIDE))
    return folder.write(name, png(sheet))


def row_of(sheet: Image.Image, row: int, count: int) -> Image.Image:
    """The first tiles of a row of such a picture."""
    return sheet.crop((0, row * SIDE, count * SIDE, (row + 1) * SIDE))


def _tile(picture: Image.Image) -> Image.Image:
    """A picture as a tile, its proportions kept; pixels of a small one stay square."""
    scale = SIDE / max(picture.size)
    width, height = (max(1, round(scale * length)) for length in picture.size)
    tile = Image.new("RGB", (SIDE, SIDE), PAPER)
    filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    tile.paste(picture.convert("RGB").resize((width, height), filter_), ((SIDE - width) // 2, (SIDE - height) // 2))
    return tile


def of_other_maps(record: TypicalRecord | None, entries: Sequence[Entry]) -> bool:
    """Whether a record lacks any of these maps as they are now."""
    if record is None:
        return True
    return any(entry.stem not in record.maps or record.maps[entry.stem].sha256 != entry.sha256 for entry in entries)
