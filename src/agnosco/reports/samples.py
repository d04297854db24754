"""The typical samples of a map as the page shows them, if it is asked to."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from ..evaluate.sample_record import TypicalRecord
from ..io.storage import Folder
from ..runs.manifest import Entry
from ..runs.thumbnails import SIDE, name_of, row_of
from .pictures import Fit, uri
from .runs import picture_in

TITLES = (
    "Samples that the network gives the class most",
    "Held-out samples that the pattern moves most: p with it",
    "Held-out samples that it moves least: p with it",
)


@dataclass(frozen=True)
class SampleRow:
    """A row of thumbnails.

    Args:
        title: What they are.
        picture: All of them, side by side.
        values: What the network makes of each, in words.
    """

    title: str
    picture: Markup
    values: list[str]


def sample_rows(folder: Folder, entry: Entry, record: TypicalRecord | None, fit: Fit) -> list[SampleRow]:
    """The rows of a map; none if its samples are not to be shown, or were kept of an earlier map.

    Raises:
        AgnoscoError: The picture is damaged.
    """
    typical = record and record.maps.get(entry.stem)
    if not record or not typical or typical.sha256 != entry.sha256:
        return []
    sheet = picture_in(folder, name_of(entry.stem))
    if sheet is None:
        return []
    letters = ["score" if record.scores else "p", "p", "p"]
    side = min(SIDE, fit.thumbnail)
    return [
        SampleRow(
            title, uri(row_of(sheet, place, len(row)), side * len(row), fit.quality),
            [f"{letter} {sample.value:.2f}" for sample in row],
        )
        for place, (title, row, letter) in enumerate(zip(TITLES, typical.rows, letters, strict=True))
        if row
    ]  # fmt: skip
