"""The results of a scan as ``scan.json`` holds them: read, compared with a bank, and in words; loads no torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Literal

from ..errors import AgnoscoError
from ..io import records
from ..io.records import Record
from ..io.regular import read_regular
from ..io.storage import SIZE_LIMITS, Folder, reason_of
from ..text import one_line
from ..types import Shape
from .config import ScanConfig

FILE, PICTURE = "scan.json", "scan.png"

Outcome = Literal["outlier class found", "no outlier found", "inconclusive"]

FOUND: Outcome = "outlier class found"
NONE: Outcome = "no outlier found"
INCONCLUSIVE: Outcome = "inconclusive"

LEVEL, UNCALIBRATED_LEVEL = 0.05, 0.025
"""Accepted share of false alarms; and what a p-value without a bank may be, as reaches of clean networks are no normal
scores: of 57 clean networks, three have 0.05 or less, and none has 0.025 or less (``docs/backdoors.md``)."""

ENOUGH_REACH = 0.5
"""A class with a smaller reach is no outlier, however far it stands out."""

NAME_LIMIT = 24
"""Most characters of a class name in the table."""


@dataclass(frozen=True)
class Separate:
    """Margin and reach of one class among hundreds, separately.

    Args:
        margin: How likely any class has such a margin, see :func:`agnosco.backdoor.margins.tail_p_values`.
        reach: How likely any class is reached so much more easily than all others, see
            :func:`agnosco.backdoor.verdict.lone_outlier`; None if it is not the first, or not the only one.
    """

    margin: float
    reach: float | None


@dataclass(frozen=True)
class Verdict:
    """What a scan concludes; never that a network is clean, never that it was attacked.

    Args:
        outcome: The conclusion.
        label: Index of the class that is the least likely by chance.
        z: How far it stands out from the others, see :func:`agnosco.backdoor.verdict.leave_one_out`.
        p_value: How likely something stands out as far by chance: by the bank, or else if the scores of classes are
            normal and independent; 1 for a class whose margin is smaller than most; None for too few classes. See
            :func:`agnosco.backdoor.verdict.judge`.
        calibrated: Whether it is by a bank.
        reasons: Why it is inconclusive; empty otherwise.
        separate: The p-values of its margin and of its reach, of 200 classes or more; None otherwise, and with a bank.
    """

    outcome: Outcome
    label: int
    z: float
    p_value: float | None
    calibrated: bool
    reasons: tuple[str, ...]
    separate: Separate | None = None


def stands_out(p_value: float | None, *, calibrated: bool) -> bool:
    """Whether few clean networks have such a class; for ``calibrated`` see :class:`Verdict`."""
    return p_value is not None and p_value <= (LEVEL if calibrated else UNCALIBRATED_LEVEL)


class ScannedModel(Record, frozen=True):
    """The network that was scanned."""

    name: str
    fingerprint: str
    shape: Shape


class ScannedSamples(Record, frozen=True):
    """The images that it was scanned with."""

    source: str
    count: int


class ScreenRecord(Record, frozen=True):
    """A class in one screen: greatest reach of its seeds, with 95 % interval and z; the reach of each seed."""

    reach: float
    interval: tuple[float, float]
    z: float
    seeds: list[float]


class ClassRecord(Record, frozen=True, rename={"name": "class"}):
    """A class: its margin in the first look, and its results in all screens by their names.

    There are no screens if the class had only the first look. ``at_random`` says that it was screened to tell what is
    ordinary, not because of its margin. ``k90`` is the smallest number of pixels with a reach of 90 %, ``eps50`` the
    smallest L2 norm with 50 %; both are measured of the leading classes only, and None where no pattern reaches so many
    images.
    """

    index: int
    name: str
    margin: float
    screens: dict[str, ScreenRecord]
    at_random: bool
    k90: int | None
    eps50: float | None

    @property
    def z(self) -> float | None:
        """z in the screen in which the class stands out most; None if it had only the first look."""
        return max((screen.z for screen in self.screens.values()), default=None)


class CandidateRecord(Record, frozen=True, rename={"name": "class"}):
    """A leading class, and evidence from :func:`agnosco.backdoor.evidence.of_pattern`; None if no image was left."""

    index: int
    name: str
    screen: str
    concentration: float
    reach: float | None
    reach_shifted: float | None
    reach_on_noise: float | None
    reach_of_top_2_percent: float | None = None


class MarginRecord(Record, frozen=True):
    """The class of the greatest margin (MM-BD), and how likely such a margin is by chance, by MM-BD's own rule."""

    index: int
    p_value: float


class FinalLayerRecord(Record, frozen=True):
    """The class whose weights in the final layer stand out most."""

    index: int
    z: float


class OtherSigns(Record, frozen=True):
    """Signs that need no pattern and no samples; None where there is no such layer."""

    mm_bd: MarginRecord
    final_layer: FinalLayerRecord | None


class Measured(Record, frozen=True):
    """The part of a scan that a bank compares: what was measured, how, and the greatest z of all."""

    model: ScannedModel
    samples: ScannedSamples
    config: ScanConfig
    screened: list[int]
    greatest_z: float


class ScanRecord(Measured, frozen=True):
    """A finished scan, as in ``scan.json``; ``effective_classes`` is how many kinds of samples the network sees."""

    verdict: Verdict
    effective_classes: float
    candidates: list[CandidateRecord]
    classes: list[ClassRecord]
    other_signs: OtherSigns

    def __post_init__(self) -> None:
        screens = [list(row.screens) for row in self.classes if row.screens]
        if self.verdict.label not in [row.index for row in self.classes if row.screens]:
            raise ValueError("the verdict is about a class that was not screened")
        if not all(own == screens[0] for own in screens) or not self.classes[0].screens:
            raise ValueError("classes differ in their screens")

    @property
    def screened_classes(self) -> list[ClassRecord]:
        """The classes that were screened, those that stand out most first."""
        return [row for row in self.classes if row.screens]


def read(folder: Folder, name: str = FILE) -> ScanRecord | None:
    """The scan in a file of a folder; None if there is no such file.

    Raises:
        AgnoscoError: The file is not a scan, or of another version.
    """
    return records.read(folder, name, ScanRecord, hint="scan again with agnosco scan --out")


def read_bank(folder: str | Path) -> list[Measured]:
    """The scans of clean networks in a folder: every ``*.json`` in it that ``agnosco scan --json`` wrote.

    Raises:
        AgnoscoError: There is none, or a file is something else.
    """
    try:
        paths = sorted(Path(os.path.expanduser(folder)).rglob("*.json"))
    except OSError as error:
        raise AgnoscoError(f"cannot read {str(folder)!r}: {reason_of(error)}", "check the path") from error
    if not paths:
        raise AgnoscoError(f"{str(folder)!r} holds no scans", "write outputs of agnosco scan CLEAN --json into it")
    return [_read_member(path) for path in paths]


def _read_member(path: Path) -> Measured:
    try:
        return records.decode(read_regular(path, most=SIZE_LIMITS[".json"]), Measured)
    except (OSError, ValueError) as error:
        raise AgnoscoError(
            f"{str(path)!r} is not a scan", "keep only outputs of agnosco scan CLEAN --json in the bank"
        ) from error


def greatest_z_of(bank: Sequence[Measured], own: Measured) -> list[float]:
    """The greatest z of each network of a bank, if all were measured as the network that is judged.

    Raises:
        AgnoscoError: One was measured with other settings, or is in the bank twice.
    """
    seen = {own.model.fingerprint}
    for member in bank:
        if member.config.thorough is not None:
            raise AgnoscoError(
                "the bank holds a scan that did not screen all classes", "scan its networks with a longer --budget"
            )
        for what, ours, theirs in (
            ("config", own.config, member.config),
            ("set of classes", own.screened, member.screened),
            ("model shape", own.model.shape, member.model.shape),
            ("samples source", own.samples.source, member.samples.source),
        ):
            if ours != theirs:
                raise AgnoscoError(
                    f"the bank was scanned with another {what}: {theirs}, not {ours}",
                    "scan its networks again with the same options and samples",
                )
        if member.model.fingerprint in seen:
            raise AgnoscoError(
                "the bank holds a network twice, or the network that is scanned", "use other networks, each once"
            )
        seen.add(member.model.fingerprint)
    return [member.greatest_z for member in bank]


def table(scan: ScanRecord, *, rows: int = 10) -> str:
    """The first classes of a scan and its conclusion, as lines of text."""
    classes = scan.screened_classes[:rows]
    names = [one_line(row.name, limit=NAME_LIMIT) for row in classes]
    width = max(12, *(len(name) + 2 for name in names))
    head = "".join(f"{name:>16s}" for name in classes[0].screens)
    lines = [
        "reach: targeted success rate of the pattern that the scan found for the class",
        f"{'':{width}s}{head}{'z':>8s}{'k90':>6s}{'eps50':>7s}{'margin':>9s}",
    ]
    for name, row in zip(names, classes, strict=True):
        reach = "".join(f"{screen.reach:16.2f}" for screen in row.screens.values())
        k90 = "-" if row.k90 is None else str(row.k90)
        eps50 = "-" if row.eps50 is None else f"{row.eps50:.2f}"
        lines.append(f"{name:{width}s}{reach}{row.z:8.1f}{k90:>6s}{eps50:>7s}{row.margin:9.1f}")
    return "\n".join([*lines, "", *conclusion(scan)])


def conclusion(scan: ScanRecord) -> list[str]:
    """The outcome of a scan and its reasons, in sentences."""
    verdict = scan.verdict
    name = one_line(next(row.name for row in scan.classes if row.index == verdict.label))
    lines = [
        f"Outcome: {verdict.outcome}. Class {verdict.label} ({name}) stands out most: z {verdict.z:.1f}, "
        f"{_likelihood(verdict)}."
    ]
    lines += [f"Inconclusive: {reason}." for reason in verdict.reasons]
    lines += how_closely(scan)
    lines += _by_margin(scan)
    if verdict.outcome == NONE and stands_out(verdict.p_value, calibrated=verdict.calibrated):
        lines.append(f"It stands out, but its reach is below {ENOUGH_REACH:.0%}.")
    if verdict.outcome == FOUND and scan.candidates:
        lines.append(_pattern_in_words(scan.candidates[0]))
    lines.append(
        "No outcome says that a network is clean, or that it was attacked: ordinary networks have classes that are "
        "easily reached, and attacks whose trigger changes with the image leave no fixed pattern."
    )
    return lines


def how_closely(scan: ScanRecord) -> list[str]:
    """A sentence about the classes that had only the first look; none if all were screened."""
    screened = scan.screened_classes
    if len(screened) == len(scan.classes):
        return []
    at_random = sum(row.at_random for row in screened)
    return [
        f"Screened: {len(screened)} of {len(scan.classes)} classes, {len(screened) - at_random} with the largest "
        f"margins and {at_random} at random. The others had only the first look; a backdoor there is missed."
    ]


def _by_margin(scan: ScanRecord) -> list[str]:
    """Sentences about the part that margins have in the verdict; none if they have none."""
    verdict, lines = scan.verdict, list[str]()
    if verdict.separate is not None:
        reach = "not the only one"
        if verdict.separate.reach is not None:
            reach = f"as the only one, {_p(verdict.separate.reach)}"
        lines.append(f"Separately: by its margin, {_p(verdict.separate.margin)}; by its reach, {reach}.")
    if verdict.calibrated or verdict.p_value is None:
        return lines
    own = next(row for row in scan.classes if row.index == verdict.label)
    reached = max(scan.screened_classes, key=lambda row: row.z or 0.0)
    if reached.index == own.index or (reached.z or 0.0) <= verdict.z:
        return lines
    small = reached.margin < median_low(row.margin for row in scan.classes)
    if small or (verdict.separate is not None and reached.margin < own.margin):
        lines.append(
            f"Class {reached.index} ({one_line(reached.name)}) is reached more easily (z {reached.z:.1f}), but its "
            f"margin is {'smaller than most' if small else 'smaller'}; clean networks have such classes too."
        )
    return lines


def _p(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p {value:.2g}"


def _likelihood(verdict: Verdict) -> str:
    if verdict.p_value is None:
        return "no p-value"
    return f"{_p(verdict.p_value)}, {'by the bank' if verdict.calibrated else 'uncalibrated'}"


def _pattern_in_words(candidate: CandidateRecord) -> str:
    reaches = candidate.reach, candidate.reach_shifted, candidate.reach_on_noise
    plain, shifted, noise = ("-" if reach is None else f"{reach:.2f}" for reach in reaches)
    return (
        f"Its pattern ({candidate.screen}): half of its energy in {candidate.concentration:.1%} of the pixels; reach "
        f"{plain}, shifted {shifted}, on noise {noise}."
    )
