"""The samples that are typical of the maps of a run; loads no torch.

``samples.json`` says which they are, and what the network makes of them. ``samples/0001-goldfish-s0.png`` holds the
thumbnails of one map: a row for each of :data:`KINDS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from ..io import records
from ..io.records import Record
from ..io.storage import Folder
from ..runs.thumbnails import remove_thumbnails

if TYPE_CHECKING:
    from ..runs.manifest import Entry

FILE = "samples.json"

KINDS = ("most", "moved", "unmoved")
"""Rows of thumbnails: :class:`Typical` says what they are."""


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
        moved, unmoved: Of the held-out samples of other classes, those whose log-odds of the class the map's pattern
            raises most and least.
    """

    sha256: str
    most: tuple[Sample, ...]
    moved: tuple[Sample, ...]
    unmoved: tuple[Sample, ...]

    @property
    def rows(self) -> list[tuple[Sample, ...]]:
        """In the order of :data:`KINDS`."""
        return [self.most, self.moved, self.unmoved]


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
    remove_thumbnails(folder)
    folder.remove(FILE)


def of_other_maps(record: TypicalRecord | None, entries: Sequence[Entry]) -> bool:
    """Whether a record lacks any of these maps as they are now."""
    if record is None:
        return True
    return any(entry.stem not in record.maps or record.maps[entry.stem].sha256 != entry.sha256 for entry in entries)
