"""Which maps of a run are finished, missing or damaged."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec.structs import asdict, replace

from ..errors import AgnoscoError, AgnoscoWarning
from ..io.storage import in_order
from ..text import one_line
from ..types import Job
from .manifest import Drawn, Entry, picture_of, sealed, stem_of, write_entry
from .run import Run
from .sheet import pictures_of, wrong_pictures

if TYPE_CHECKING:
    from ..method.concept import ConceptMap

LISTED = 50
"""Maps beyond which folders are listed; the files of fewer are looked up one by one."""


@dataclass(frozen=True)
class RunStatus:
    """Which of some maps a run has."""

    entries: list[Entry]  # of the finished ones, in the order of the jobs
    missing: list[Job]
    damaged: list[str]  # messages about the damaged ones among the missing
    redrawn: list[str] = field(default_factory=list)  # pictures that were altered or missing, and were drawn again


def status_of(run: Run, jobs: Sequence[Job], *, names: Sequence[str]) -> RunStatus:
    """Which of some maps are finished: each is checked against its digest.

    Maps that another process has finished meanwhile count too. Lost entries are written again, and lost or altered
    pictures are drawn again.
    The names are the classifier's, by index.
    """
    if beyond := [job for job in jobs if job.label >= len(names)]:
        message = (
            f"{run.folder.name!r} plans a map of class {beyond[0].label}, and the network has {len(names)} classes"
        )
        raise AgnoscoError(message, "its manifest.json was altered: put a copy of it back, or make the run again")
    exists = run.folder.exists
    if len(jobs) > LISTED:
        files = {f"{inside}/{name}" for inside in ("maps", "pictures") for name in run.folder.names(inside)}
        exists = files.__contains__
    redrawn: list[str] = []
    results = list(in_order(lambda job: _checked(run, job, names[job.label], exists, redrawn), jobs))
    missing = [job for job, (entry, _) in zip(jobs, results, strict=True) if entry is None]
    for job in missing:
        damaged = run.entry_of.pop(job, None)
        if damaged is not None and damaged.stem != stem_of(job.label, names[job.label], job.seed):
            run.discard(damaged)  # the class has another name now, and so will the files
    entries = [entry for entry, _ in results if entry is not None]
    return RunStatus(entries, missing, [damage for _, damage in results if damage is not None], sorted(redrawn))


def warn_of_other_names(run: Run, entries: Sequence[Entry], names: Sequence[str]) -> None:
    """Warn if finished maps call their classes otherwise than the classifier, whose names these are, by index.

    A classifier without names, which numbers its classes, says nothing else.
    """
    named = (entry for entry in entries if names[entry.index] not in (entry.name, str(entry.index)))
    others = {entry.index: entry.name for entry in named}
    if not others:
        return
    index, name = next(iter(others.items()))
    count = "1 class" if len(others) == 1 else f"{len(others)} classes"
    message = (
        f"{run.folder.name!r} has maps of {count} under other names than the network's: {one_line(name)!r} for class "
        f"{index}, {one_line(names[index])!r}; for maps under the new names, make another run"
    )
    warnings.warn(message, AgnoscoWarning, stacklevel=3)


def _checked(
    run: Run, job: Job, class_name: str, exists: Callable[[str], bool], redrawn: list[str]
) -> tuple[Entry | None, str | None]:
    """The entry of a map, None if it is not finished; and a message if that is because it is damaged.

    The names of pictures that are drawn again are added to ``redrawn``.
    """
    known, stored, damage = run.entry_of.get(job), None, None
    name = stem_of(job.label, class_name, job.seed) if known is None else known.stem
    if exists(f"maps/{name}.json"):
        try:
            stored = run.stored_entry(name)
        except ValueError as error:
            damage = str(error)
    entry = stored or known
    if entry is None:
        return None, damage
    if fault := run.fault(entry):
        return None, fault
    run.entry_of[job] = entry
    if stored is None:
        run.folder.write(f"maps/{name}.json", write_entry(entry))
    if wrong := wrong_pictures(run.folder, entry, exists):
        try:
            concept = run.map(*job)
        except AgnoscoError as error:  # it is what its entry says, and no map
            return None, error.message
        redrawn += wrong
        entry = run.entry_of[job] = _drawn_again(run, concept, entry, wrong)
    return entry, None


def _drawn_again(run: Run, concept: ConceptMap, entry: Entry, names: Collection[str]) -> Entry:
    """The entry of a map some of whose pictures are drawn again.

    Another version of Pillow may write other bytes; then the entry is written again, with their digests.
    """
    pictures = pictures_of(concept)
    for kind, content in pictures.items():
        if picture_of(entry.stem, kind) in names:
            run.folder.write(picture_of(entry.stem, kind), content)
    if entry.drawn is None:
        return entry
    new = asdict(Drawn.of(pictures))
    kept = {kind: digest for kind, digest in asdict(entry.drawn).items() if picture_of(entry.stem, kind) not in names}
    drawn = Drawn(**(new | kept))
    if drawn != entry.drawn:
        entry = sealed(replace(entry, drawn=drawn))
        run.folder.write(f"maps/{entry.stem}.json", write_entry(entry))
    return entry
