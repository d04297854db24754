"""How two networks differ in what they look for, as ``diff.json`` holds it, and in words; loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..io import records
from ..io.records import Record
from ..io.storage import Folder
from ..text import aligned, one_line
from .score_record import digest_of

if TYPE_CHECKING:
    from ..runs.run import Run

FILE = "diff.json"

LEVEL = 0.05
"""A class has changed if chance alone would give any class so large a change with at most this probability."""

NAME_LIMIT = 40
"""Most characters of a class name in the table."""


class Side(Record, frozen=True):
    """One of the two networks: its name, its fingerprint, and the digest of the maps of its run."""

    network: str
    fingerprint: str
    run: str


class ClassDiff(Record, frozen=True, rename={"name": "class"}):
    """How differently two networks, A and B, see a class. Pairs are what A says and what B says.

    Args:
        index, name: The class.
        change: How much more each network answers to its own maps than to those of the other, both networks together,
            in standard errors of the seeds; in log-odds if there is one seed.
        p_value: Probability that chance alone gives any class so large a change; None with one seed.
        own: Log-odds of the class that a network gives held-out samples with its own maps added; means over seeds.
        other: The same, with the maps of the other network added.
        probability: Of the class, for the raw pictures of the other network; means over seeds.
        likeness: Cosine of features between A's pictures and B's of another seed, from their mean over all pictures;
            None for a network without feature maps.
        seeds_likeness: The same between pictures of one network, means of A's and B's; None with one seed, too.
        targeted_success_rate: Of A's maps on A, and of B's on B; None if it was not measured.
    """

    index: int
    name: str
    change: float
    p_value: float | None
    own: tuple[float, float]
    other: tuple[float, float]
    probability: tuple[float, float]
    likeness: tuple[float | None, float | None]
    seeds_likeness: tuple[float | None, float | None]
    targeted_success_rate: tuple[float | None, float | None]

    @property
    def beyond(self) -> bool:
        """Whether the change is beyond what seeds alone explain."""
        return self.p_value is not None and self.p_value <= LEVEL


class DiffRecord(Record, frozen=True):
    """Differences between two networks.

    Args:
        first, second: A and B.
        seeds: Maps of each class in each run.
        threshold: The change that chance alone exceeds in some class with a probability of 5 %; None with one seed.
        classes: Most changed first.
    """

    first: Side
    second: Side
    seeds: int
    threshold: float | None
    classes: list[ClassDiff]

    @property
    def conclusion(self) -> str:
        """How many classes have changed, in words."""
        if self.threshold is None:
            return "There is one seed: classes are ranked by log-odds, and nothing says what is chance (no p-value)"
        beyond = sum(row.beyond for row in self.classes)
        count = f"{beyond} of {len(self.classes)} classes" if beyond else "No class"
        return f"{count} changed by more than seeds explain (change above {self.threshold:.1f})"

    def is_of(self, first: Run, second: Run) -> bool:
        """Whether it is about the networks of these two runs, and the maps that they hold now."""
        return all(
            (side.run, side.fingerprint) == (digest_of(run), run.settings.model.fingerprint)
            for side, run in ((self.first, first), (self.second, second))
        )


def read(folder: Folder) -> DiffRecord | None:
    """The differences in a run's folder; None if it was not compared.

    Raises:
        AgnoscoError: The file is damaged or of another version.
    """
    return records.read(folder, FILE, DiffRecord, hint="remove it, or compare again with agnosco diff")


def table(record: DiffRecord) -> str:
    """All classes as lines of text, the most changed first."""
    head = ("class", "change", "p", "A: own, B's", "B: own, A's", "likeness A", "likeness B", "success A, B")
    rows: list[tuple[str, ...]] = [head]
    for row in record.classes:
        odds = [f"{own:.1f}, {other:.1f}" for own, other in zip(row.own, row.other, strict=True)]
        alike = [
            f"{figure(across)} ({figure(within)})"
            for across, within in zip(row.likeness, row.seeds_likeness, strict=True)
        ]
        success = ", ".join(figure(rate) for rate in row.targeted_success_rate)
        name = f"{one_line(row.name, limit=NAME_LIMIT)} ({row.index})"
        rows.append((name, f"{row.change:.1f}", figure(row.p_value, 4), *odds, *alike, success))
    sides = f"A: {one_line(record.first.network)}; B: {one_line(record.second.network)}. In parentheses: between seeds"
    return "\n".join([*aligned(rows), "", sides, record.conclusion])


def figure(value: float | None, digits: int = 2) -> str:
    """A number with so many decimal places; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"
