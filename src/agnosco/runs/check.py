"""What a run folder holds, and what is wrong with it; nothing is changed, and torch is not loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from shlex import quote

from ..errors import AgnoscoError
from ..io import records
from ..io.atomic import PART
from ..io.local import Local
from ..io.storage import Folder, Place, in_order
from ..text import one_line
from ..types import Job
from .command import command_of
from .leases import FILE, LEASES, LeaseRecord
from .manifest import CHECKPOINTS, Entry, name_of_group, read_manifest
from .rebuilding import entry_names
from .run import MANIFEST, Run
from .sheet import SHEET, wrong_pictures
from .thumbnails import FOLDER as THUMBNAILS

MAPS, PICTURES = "maps", "pictures"
"""Folders inside a run folder."""

KNOWN: Mapping[str, str] = {
    MAPS: r"\d{4,}-[a-z0-9-]+-s-?\d+\.(json|safetensors)",
    PICTURES: r"\d{4,}-[a-z0-9-]+-s-?\d+(-raw)?\.png",
    CHECKPOINTS: r"[0-9a-f]{24}\.safetensors",
    LEASES: FILE.pattern,
    THUMBNAILS: r".*\.png",
}
"""Folders inside a run folder, and how the files in them are called."""

Reader = Callable[[Run], bool]
"""Reads a record of a run; says whether it is about the maps that the run holds now. AgnoscoError if it is damaged."""


@dataclass(frozen=True)
class RunCheck:
    """What a run folder holds, and what is wrong with it.

    Args:
        run: The folder.
        model, network_classes: The classifier, and how many classes it knows.
        classes, seeds: Of the maps, finished or planned.
        manifest: ``intact``; or ``damaged`` or ``missing``, and its content can be rebuilt from the maps.
        finished, planned: Numbers of maps.
        finished_groups, groups: Numbers of groups of maps that are made side by side.
        unfinished: ``(class, seed)`` of the planned maps that do not count as finished.
        damaged: What is wrong with maps and entries, in words.
        pictures: Files of pictures that are ``missing`` or ``altered``.
        records: Files of results: ``readable``, ``damaged`` or ``of other maps``.
        checkpoints: Files of checkpoints, and the ``(class, seed)`` of their groups; none for an unknown group.
        leases: Files of leases, and their owners and until when they have them, in words; both are texts from outside.
        temporary: Temporary files that a killed process left, or that one is writing; only on this machine.
        unknown: Files and folders that are not agnosco's.
        command: The command that continues the run or makes it again, if one does.
    """

    run: str
    model: str
    network_classes: int
    classes: int
    seeds: list[int]
    manifest: str
    finished: int
    planned: int
    finished_groups: int
    groups: int
    unfinished: list[tuple[int, int]]
    damaged: list[str]
    pictures: dict[str, str]
    records: dict[str, str]
    checkpoints: dict[str, list[tuple[int, int]]]
    leases: dict[str, str]
    temporary: list[str]
    unknown: list[str]
    command: str | None

    @property
    def is_whole(self) -> bool:
        """Whether all planned maps are finished, and nothing is wrong with them, their pictures and their records."""
        sound = self.manifest == "intact" and self.planned > 0 and set(self.records.values()) <= {"readable"}
        return sound and not (self.unfinished or self.damaged or self.pictures)


def check_run(path: Place | Folder, *, readers: Mapping[str, Reader], known: frozenset[str] = frozenset()) -> RunCheck:
    """What a run folder holds, and what is wrong with it.

    Args:
        path: A path or a URL.
        readers: How the files of results are read.
        known: Other files beside the manifest that agnosco writes.

    Raises:
        AgnoscoError: It is not a run folder, or its manifest cannot be rebuilt.
    """
    folder = Folder.of(path)
    run = Run.look(folder)
    planned = sorted({*run.entry_of, *(job for group in run.groups for job in group)})
    entries, damaged = _entries(run)
    finished = {entry.job for entry in entries}
    jobs_of = {f"{name_of_group(group)}.safetensors": [(job.label, job.seed) for job in group] for group in run.groups}
    exists = _listed(folder, PICTURES)
    pictures = list(in_order(lambda entry: wrong_pictures(folder, entry, exists), entries))
    command = command_of(run.settings, run.entries, run.groups)
    return RunCheck(
        run=folder.name, model=run.settings.model.name, network_classes=run.settings.model.classes,
        classes=len({job.label for job in planned}), seeds=sorted({job.seed for job in planned}),
        manifest=_manifest(run),
        finished=len(finished), planned=len(planned),
        finished_groups=sum(finished.issuperset(group) for group in run.groups), groups=len(run.groups),
        unfinished=[(job.label, job.seed) for job in planned if job not in finished], damaged=damaged,
        pictures={name: state for wrong in pictures for name, state in wrong.items()},
        records={file: _state(run, read) for file, read in readers.items() if folder.exists(file)},
        checkpoints={name: jobs_of.get(name, []) for name in folder.names(CHECKPOINTS)},
        leases={name: _lease(folder, name) for name in folder.names(LEASES)},
        temporary=sorted(_temporary(folder)), unknown=sorted(_unknown(folder, known | readers.keys())),
        command=f"{command} --out {quote(folder.name)}" if command and run.settings.command != "demo" else None,
    )  # fmt: skip


def _manifest(run: Run) -> str:
    """The state of a manifest: a damaged entry in its index is left out when it is read, and found here."""
    if run.is_rebuilt:
        return "damaged" if run.is_stored else "missing"
    try:
        content = run.manifest
    except FileNotFoundError:  # meanwhile
        return "missing"
    return "intact" if len(read_manifest(content)[2]) == len(records.parse(content)["maps"]) else "damaged"


def _entries(run: Run) -> tuple[list[Entry], list[str]]:
    """The entries of the finished maps; and what is wrong with the others, and with entries that only the index has."""
    stems = {entry.stem: entry for entry in run.entries}
    names = sorted({*stems, *entry_names(run.folder)})
    checked = list(in_order(lambda name: _checked(run, name, stems.get(name)), names))
    entries = [entry for entry, _ in checked if entry is not None]
    finished = {entry.job: entry.stem for entry in entries}
    faults = [words and words + _of_no_use(name, finished) for name, (_, words) in zip(names, checked, strict=True)]
    return entries, [words for words in faults if words is not None]


def _of_no_use(name: str, finished: Mapping[Job, str]) -> str:
    """What to do with a damaged entry whose map is finished under another name: no command makes it again."""
    parts = re.fullmatch(r"(\d+)-.*-s(-?\d+)", name, re.ASCII)
    other = finished.get(Job(int(parts[1]), int(parts[2])), name) if parts else name
    return f"; remove it: the map is {other}" if other != name else ""


def _checked(run: Run, name: str, known: Entry | None) -> tuple[Entry | None, str | None]:
    """The entry of a map, None if it is not finished; and what is wrong with both, in words."""
    stored, words = None, None
    try:
        stored = run.stored_entry(name)
        if stored is None:
            words = f"{name}.json is missing"
    except ValueError as error:
        words = str(error)
    except AgnoscoError as error:
        words = error.message
    entry = stored or known
    if entry is None:
        return None, words
    try:
        fault = run.fault(entry)
    except AgnoscoError as error:
        fault = error.message
    return (None, fault) if fault else (entry, words)


def _listed(folder: Folder, inside: str) -> Callable[[str], bool]:
    """Whether there is a file, from one look at its folder."""
    return {f"{inside}/{name}" for name in folder.names(inside)}.__contains__


def _state(run: Run, read: Reader) -> str:
    try:
        return "readable" if read(run) else "of other maps"
    except AgnoscoError:
        return "damaged"


def _lease(folder: Folder, name: str) -> str:
    """What a lease says; it may hold anything."""
    try:
        lease = records.decode(folder.read(f"{LEASES}/{name}"), LeaseRecord)
    except (ValueError, FileNotFoundError, AgnoscoError):
        return "cannot be read"
    return one_line(f"{lease.owner}, until {lease.until}")


def _temporary(folder: Folder) -> Iterator[str]:
    if isinstance(folder, Local):
        for inside in ("", *KNOWN):
            place = folder.path / inside
            if place.is_dir() and not (inside and place.is_symlink()):
                with suppress(OSError):  # what cannot be read is told of by those who read it
                    yield from (f"{inside}/{name}".lstrip("/") for name in os.listdir(place) if name.startswith(PART))


def _unknown(folder: Folder, known: frozenset[str]) -> Iterator[str]:
    yield from (name for name in folder.names("") if name not in known | {MANIFEST, SHEET})
    for inside, form in KNOWN.items():
        if isinstance(folder, Local) and (folder.path / inside).is_symlink():
            yield f"{inside}/, a link"  # which is not followed
        else:
            yield from (f"{inside}/{name}" for name in folder.names(inside) if not re.fullmatch(form, name))
    if isinstance(folder, Local):
        others = {entry.name for entry in os.scandir(folder.path) if entry.is_dir()} - KNOWN.keys()
        yield from (f"{name}/" for name in others if name not in known)


def named(jobs: list[tuple[int, int]], most: int = 6) -> str:
    """Maps by class and seed, the first of them: ``class 3 seed 0, class 4 seed 0, and 10 more``."""
    words = [f"class {job.label} seed {job.seed}" for job in (Job(*each) for each in jobs[:most])]
    return ", ".join(words) + (f", and {len(jobs) - most} more" if len(jobs) > most else "")
