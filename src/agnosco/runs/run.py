"""A run folder: the maps of one classifier, and what is needed to make each of them again.

    RUN/
      manifest.json                          the settings, which maps are made side by side, an index of the entries
      contact-sheet.png                      every map, for people
      maps/0001-goldfish-s0.safetensors      ν, the stages before it, the trace, Ξ in 255ths
      maps/0001-goldfish-s0.json             the map's entry, with the digest of its file
      pictures/0001-goldfish-s0.png          for people: stretched, small ones enlarged
      pictures/0001-goldfish-s0-raw.png      what metrics see: Clip(½ − ν)
      checkpoints/                           only while maps are being made

A map's entry is written last: a map is finished if and only if its entry is there and the digests agree. The index in
the manifest saves reading all of them; it is written when a command begins and when it ends.

The same run gives the same bytes on a CPU, however often it is interrupted: no file holds a time, a date or a folder of
this machine. Every file is written whole or not at all. A folder may come from somebody else: nothing in it is run,
no path in it is followed, and every map is checked against its digest.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.samples import Samples
from ..errors import AgnoscoError, AgnoscoWarning
from ..io.local import Local
from ..io.storage import MOVED, Folder, Place, at_once
from ..method.config import Config, config_from_json
from ..method.config import preset as preset_config
from ..method.render import SIDE, enlarged, png
from ..models.classifier import Classifier
from ..types import Job
from .manifest import (
    HELD_OUT,
    SPLIT_SEED,
    Entry,
    Group,
    Settings,
    differences,
    identity,
    read_entry,
    read_manifest,
    sealed,
    settings_of,
    stem,
    stem_of,
    write_entry,
    write_manifest,
)
from .sheet import page_of, sheet_of
from .tensors import Arrays, concept_of, read_arrays, to_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from ..method.concept import ConceptMap

MANIFEST = "manifest.json"
SHEET = "contact-sheet.png"

NOTEBOOK = 40
"""Maps of a run that a notebook shows at most."""

ON_SHEET = 400
"""Maps on a contact sheet at most: nobody opens a picture of more. The report shows all."""

ASKED_FOR = 50
"""Maps whose files are looked up one by one; for more of them, folders are listed."""

TRIES = 5
"""How often a map is written again, if another process writes one of the same name at the same time."""


@dataclass(frozen=True)
class RunStatus:
    """Which of some maps a run has.

    Args:
        entries: Entries of the finished ones, in the order of the jobs.
        missing: The other jobs.
        damaged: What is damaged of the missing ones, in words.
    """

    entries: list[Entry]
    missing: list[Job]
    damaged: list[str]


class Run:
    """A run folder, made by :meth:`create` or :meth:`open`.

    Args:
        folder: The folder.
        settings: What all its maps have in common, as in the manifest.
        groups: Jobs that are made side by side.
        entries: One for each of its maps.

    Example:
        >>> import tempfile, torch
        >>> from agnosco import Classifier, Config, MapperConfig, Run, Samples, map_class
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
        >>> classifier = Classifier(model, size=8, labels=("cat", "dog"))
        >>> samples = Samples(torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8))
        >>> config = Config(MapperConfig(batch=2, steps=3), refine=None, cycles=1)
        >>> folder = tempfile.mkdtemp()
        >>> run = Run.create(folder, classifier=classifier, samples=samples, config=config)
        >>> entry = run.add(map_class(classifier, "dog", samples, config), targeted_success_rate=0.5)
        >>> run.end()
        >>> [(entry.index, entry.name, entry.seed) for entry in Run.open(folder).entries]
        [(1, 'dog', 0)]
        >>> Run.open(folder).map(1).nu.shape
        torch.Size([3, 8, 8])
    """

    def __init__(
        self, folder: Folder, settings: Settings, groups: Iterable[Group] = (), entries: Iterable[Entry] = ()
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.groups = [[Job(*job) for job in group] for group in groups]
        self._entries = {_job(entry): entry for entry in entries}
        self._unreadable: set[str] = set()
        self._begun = False

    @classmethod
    def create(
        cls,
        path: Place | Folder,
        *,
        classifier: Classifier,
        samples: Samples,
        config: Config | str,
        preset: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        command: str = "python",
        weights: str | Path | None = None,
        device: str | None = None,
        threads: int | None = None,
    ) -> Run:
        """A run about to be made; nothing is written before its first map.

        A folder that holds a run with the same settings is continued, with the number of threads that it began with.

        Args:
            path: A path or a URL: a new or empty folder, or that of a run with the same settings.
            classifier: The classifier whose maps these are.
            samples: All samples; maps are made with those that :func:`split` does not hold out.
            config: Settings of every map, or the name of a preset; the precision ``auto`` is noted as what it is here.
            preset, overrides: What the settings were built from, to be noted; see
                :func:`agnosco.runs.command.chosen_config`.
            command: What makes the run: ``"map"``, ``"demo"``, or ``"python"`` for code of one's own.
            weights: The file of the classifier's weights; its base name is noted.
            device, threads: What maps are made with, where that is not this process's: a cluster's.

        Raises:
            AgnoscoError: The folder cannot be written, or holds something else.
        """
        from ..method.prepare import resolve_precision

        check_target(path)
        folder = Folder.of(path)
        if isinstance(config, str):
            config, preset = preset_config(config), config
        config = replace(config, precision=resolve_precision(config.precision, classifier.device))
        settings = settings_of(
            classifier, samples, config, command=command, weights=weights, preset=preset, overrides=overrides,
            device=device, threads=threads,
        )  # fmt: skip
        if not folder.exists(MANIFEST):
            return cls(folder, settings)
        run = cls._read(folder)
        if differing := differences(run.settings, settings):
            raise AgnoscoError(
                f"{folder.name!r} holds a run with other settings ({', '.join(differing[:4])})",
                "choose another folder with --out, or remove this one",
            )
        return run

    @classmethod
    def open(cls, path: Place | Folder) -> Run:
        """A finished or interrupted run, at a path or a URL.

        Raises:
            AgnoscoError: There is none.
        """
        run = cls._read(Folder.of(path))
        if run._unreadable:
            damaged = f"{', '.join(sorted(run._unreadable)[:3])}: {len(run._unreadable)} in all"
            warnings.warn(
                f"{run.folder.name!r} lacks maps whose entries are damaged ({damaged}); the command that made it makes "
                "them again", AgnoscoWarning, stacklevel=2,
            )  # fmt: skip
        return run

    @classmethod
    def _read(cls, folder: Folder) -> Run:
        run = cls._read_manifest(folder)
        run._read_new_entries()
        return run

    @classmethod
    def _read_manifest(cls, folder: Folder) -> Run:
        try:
            settings, groups, entries = read_manifest(folder.read(MANIFEST))
        except FileNotFoundError as error:
            raise AgnoscoError(
                f"{folder.name!r} is not a run folder: it has no {MANIFEST}", "make one with agnosco map"
            ) from error
        except (ValueError, RecursionError) as error:
            raise AgnoscoError(f"{folder.at(MANIFEST)!r} is not the manifest of a run", "make the run again") from error
        run = cls(folder, settings, groups, entries)
        run._begun = True
        return run

    def _read_new_entries(self) -> None:
        """Read the entries that the index lacks."""
        known = {stem(entry) for entry in self._entries.values()}
        names = [name.removesuffix(".json") for name in self.folder.names("maps") if name.endswith(".json")]

        def read(name: str) -> Entry | None:
            try:
                return self._stored_entry(name)
            except ValueError:
                self._unreadable.add(name)
                return None

        for entry in at_once(read, [name for name in names if name not in known]):
            if entry is not None:
                self._entries[_job(entry)] = entry

    def _stored_entry(self, name: str) -> Entry | None:
        """The entry in the file of this stem, None if there is no file; ValueError if it is damaged."""
        try:
            return read_entry(self.folder.read(f"maps/{name}.json"), name)
        except FileNotFoundError:
            return None

    @property
    def path(self) -> Path:
        """The folder as a path.

        Raises:
            AgnoscoError: The folder is not on this machine.
        """
        if isinstance(self.folder, Local):
            return self.folder.path
        raise AgnoscoError(f"{self.folder.name!r} is not a folder on this machine", "use Run.folder")

    @property
    def entries(self) -> list[Entry]:
        """The entry of every map, by index and seed."""
        return [self._entries[key] for key in sorted(self._entries)]

    @property
    def config(self) -> Config:
        """The settings of every map."""
        return config_from_json(self.settings.config)

    def _repr_html_(self) -> str:
        """How a notebook shows it: the first pictures, with their classes."""
        entries = self.entries[:NOTEBOOK]
        return page_of((self._display(entry) for entry in entries), entries, total=len(self._entries))

    def _display(self, entry: Entry) -> Any:
        return self.map(entry.index, entry.seed).display()

    # -- writing ------------------------------------------------------------------------------

    def begin(self, jobs: Sequence[Job], together: int) -> list[list[Job]]:
        """Write down which maps are made side by side, before they are made.

        Maps of a group have the same bits only if all of it is made: whatever happens to this process, the next one
        makes the same groups.

        Args:
            jobs: The maps to be made.
            together: How many maps to make side by side at most, of those that are in no group yet.

        Returns:
            The groups that hold these jobs.
        """
        from ..method.maker import groups_of

        self._prepare()
        self._merge()
        grouped = {job for group in self.groups for job in group}
        self.groups += groups_of([job for job in jobs if job not in grouped], together)
        self._write_manifest()
        needed, seen = set(jobs), set()
        groups = []
        for group in self.groups:
            if not needed.isdisjoint(set(group) - seen):
                groups.append(group)
            seen.update(group)
        return groups

    def end(self) -> None:
        """Write the manifest with an index of all maps, those of other processes too."""
        self._prepare()
        self._merge()
        self._write_manifest()

    def add(self, concept: ConceptMap, *, targeted_success_rate: float) -> Entry:
        """Write a map, its pictures and, last of all, its entry.

        Args:
            concept: The map.
            targeted_success_rate: Share of held-out images that it moves to its class; NaN if there are none to move.

        Returns:
            Its entry.
        """
        import torch

        name = stem_of(concept.label, concept.name, concept.seed)
        content = to_bytes(concept)
        files = {"map": f"maps/{name}.safetensors", "picture": f"pictures/{name}.png"}
        entry = sealed(
            Entry(
                index=concept.label,
                name=concept.name,
                seed=concept.seed,
                stages=tuple(concept.stages),
                probability=concept.probability,
                targeted_success_rate=targeted_success_rate if isfinite(targeted_success_rate) else None,
                norm=torch.linalg.vector_norm(concept.nu, dtype=torch.float64).item(),
                files=files | {"raw": f"pictures/{name}-raw.png"},
                sha256=hashlib.sha256(content).hexdigest(),
            )
        )
        self._prepare()
        if not self._begun:
            self._write_manifest()  # first of all, so that an interrupted run is known as one
        self._write_pictures(concept, entry)
        self._write_map(content, entry)
        self._entries[_job(entry)] = entry
        self._unreadable.discard(name)
        return entry

    def _write_map(self, content: bytes, entry: Entry) -> None:
        """Write a map and its entry; again, if another process's map now lies beside this entry, or the reverse."""
        name = stem(entry)
        for _ in range(TRIES):
            self.write(f"maps/{name}.safetensors", content)
            self.write(f"maps/{name}.json", write_entry(entry))
            with suppress(ValueError):
                stored = self._stored_entry(name)
                if stored is not None and self._digest(name) == stored.sha256:
                    return

    def _write_pictures(self, concept: ConceptMap, entry: Entry) -> None:
        self.write(f"pictures/{stem(entry)}.png", png(enlarged(concept.display(), SIDE)))
        self.write(f"pictures/{stem(entry)}-raw.png", png(concept.image()))

    def write_contact_sheet(self) -> str:
        """Write the first :data:`ON_SHEET` maps in one picture; returns its full name."""
        entries, total = self.entries[:ON_SHEET], len(self._entries)
        pictures = [self._display(entry) for entry in entries]
        return self.write(SHEET, sheet_of(pictures, entries, self.settings, total=total))

    def write(self, name: str, content: bytes) -> str:
        """Write one file of the folder, whole or not at all.

        Args:
            name: Its path inside the folder.
            content: All of it.

        Returns:
            Its full name.

        Raises:
            AgnoscoError: The file cannot be written.
        """
        return self.folder.write(name, content)

    def check_writable(self) -> None:
        """Fail now, rather than when there is something to write.

        Raises:
            AgnoscoError: The folder cannot be written.
        """
        self.folder.check(holding=(MANIFEST,))

    def write_tensors(self, name: str, tensors: dict[str, Tensor]) -> str:
        """Write a safetensors file, as :meth:`write` does."""
        from safetensors.torch import save

        return self.write(name, save(tensors))

    def _prepare(self) -> None:
        """Make the folder; if it has vanished since, fail rather than begin another run in its place."""
        if not self._begun:
            self.folder.make()
        elif not self.folder.exists(MANIFEST):
            raise AgnoscoError(f"{self.folder.name!r} has no {MANIFEST} any more", MOVED)

    def _merge(self) -> None:
        """Take over what another process may have written meanwhile; groups that were there first stay."""
        if not self.folder.exists(MANIFEST):
            return
        other = Run._read_manifest(self.folder)
        self._entries = other._entries | self._entries
        known = {tuple(group) for group in other.groups}
        self.groups = other.groups + [group for group in self.groups if tuple(group) not in known]
        self._read_new_entries()

    def _write_manifest(self) -> None:
        """Write the manifest, unless it says all that already."""
        content = write_manifest(self.settings, self.groups, self.entries)
        if not (self.folder.exists(MANIFEST) and self.folder.read(MANIFEST) == content):
            self.write(MANIFEST, content)
        self._begun = True

    # -- reading ------------------------------------------------------------------------------

    def maps(self) -> Iterator[ConceptMap]:
        """Every map, by index and seed.

        Raises:
            AgnoscoError: The file of a map is missing or was altered.
        """
        return (self.map(entry.index, entry.seed) for entry in self.entries)

    def map(self, index: int, seed: int = 0) -> ConceptMap:
        """The map of one class and seed, as it was made.

        Raises:
            AgnoscoError: The run has no such map, or its file is missing or was altered.
        """
        return self._load(index, seed, concept_of)

    def arrays(self, index: int, seed: int = 0) -> Arrays:
        """The arrays in the file of a map, without PyTorch: ``nu`` and others, see :mod:`agnosco.runs.tensors`.

        Raises:
            AgnoscoError: As for :meth:`map`.
        """
        return self._load(index, seed, lambda arrays, entry: arrays)

    def _load(self, index: int, seed: int, function: Callable[[Arrays, Entry], Any]) -> Any:
        entry = self._entry(index, seed)
        try:
            content = self._content(entry)
            entry = self._entry(index, seed)
            return function(read_arrays(content, entry.stages, self.settings.model.shape), entry)
        except (OSError, ValueError) as error:
            reason = "it does not exist" if isinstance(error, FileNotFoundError) else error
            raise AgnoscoError(
                f"cannot read maps/{stem(entry)}.safetensors of {self.folder.name!r}: {reason}",
                "give the command that made the run again: it makes this map anew",
            ) from error

    def _content(self, entry: Entry) -> bytes:
        """The map's file, if it is the entry's, or a later entry's, which is taken over; ValueError if neither."""
        content = self.folder.read(f"maps/{stem(entry)}.safetensors")
        digest = hashlib.sha256(content).hexdigest()
        if digest == entry.sha256:
            return content
        with suppress(ValueError):
            later = self._stored_entry(stem(entry))
            if later is not None and digest == later.sha256:
                self._entries[_job(later)] = later
                return content
        raise ValueError("its digest is not that of its entry")

    def status(self, jobs: Sequence[Job], *, names: Sequence[str]) -> RunStatus:
        """Which of some maps are finished: each is checked against its digest.

        Maps that another process has finished meanwhile count too. Lost pictures and entries are written again.

        Args:
            jobs: The maps.
            names: The class names of the classifier, by index.
        """
        listed: set[str] | None = None
        if len(jobs) > ASKED_FOR:
            listed = {f"{inside}/{name}" for inside in ("maps", "pictures") for name in self.folder.names(inside)}

        def exists(name: str) -> bool:
            return self.folder.exists(name) if listed is None else name in listed

        results = at_once(lambda job: self._checked(job, names[job.label], exists), jobs)
        missing = [job for job, result in zip(jobs, results, strict=True) if isinstance(result, str)]
        for job in missing:
            self._entries.pop(job, None)
        entries = [result for result in results if isinstance(result, Entry)]
        return RunStatus(entries, missing, [result for result in results if isinstance(result, str) and result])

    def _checked(self, job: Job, class_name: str, exists: Callable[[str], bool]) -> Entry | str:
        """The entry of a finished map; of another what is damaged, in words, or "" if it was never finished."""
        known, stored, damage = self._entries.get(job), None, ""
        name = stem_of(job.label, class_name, job.seed) if known is None else stem(known)
        if exists(f"maps/{name}.json"):
            try:
                stored = self._stored_entry(name)
            except ValueError as error:
                damage = str(error)
        entry = stored or known
        if entry is None:
            return damage
        digest = self._digest(name)
        if digest != entry.sha256:
            return f"{name}.safetensors is {'damaged' if digest else 'missing'}"
        self._entries[job] = entry
        if stored is None:
            self.write(f"maps/{name}.json", write_entry(entry))
        if not (exists(f"pictures/{name}.png") and exists(f"pictures/{name}-raw.png")):
            self._write_pictures(self.map(*job), entry)
        return entry

    def _digest(self, name: str) -> str | None:
        """The SHA-256 of a map's file; None if there is none."""
        try:
            return hashlib.sha256(self.folder.read(f"maps/{name}.safetensors")).hexdigest()
        except FileNotFoundError:
            return None

    def check_origin(self, classifier: Classifier, samples: Samples) -> Settings:
        """Make sure that these are what the run was made with.

        Args:
            classifier: The run's classifier, loaded again.
            samples: The run's samples, all of them, read again.

        Returns:
            The settings that a run with them would have here and now.

        Raises:
            AgnoscoError: They are others.
        """
        own = self.settings
        now = settings_of(classifier, samples, self.config, command=own.command, weights=own.model.weights)
        for what, before, given in (("model", own.model, now.model), ("samples", own.samples, now.samples)):
            if (before.fingerprint, before.shape) != (given.fingerprint, given.shape):
                raise AgnoscoError(
                    f"{self.folder.name!r} was made with other {what}: {identity(before)}, not {identity(given)}",
                    "load what its manifest names, at the same size, with the same mean and std",
                )
        if own.model.features != now.model.features:  # the refinement compares them
            raise AgnoscoError(
                f"{self.folder.name!r} was refined with features {own.model.features!r}, not {now.model.features!r}",
                "load the classifier with those features",
            )
        return now

    def _entry(self, index: int, seed: int) -> Entry:
        if (index, seed) not in self._entries:
            others = ", ".join(f"{index} seed {seed}" for index, seed in sorted(self._entries)[:6])
            raise AgnoscoError(
                f"{self.folder.name!r} has no map of class {index}, seed {seed}", f"it has {others or 'none'}"
            )
        return self._entries[Job(index, seed)]


def remake(path: Place | Folder, index: int, seed: int, classifier: Classifier, samples: Samples) -> ConceptMap:
    """A map of a run, made again from its manifest, alone: the same but for the rounding of sums.

    Args:
        path: The run folder.
        index: Class of the map.
        seed: Its seed.
        classifier: The run's classifier, loaded again.
        samples: The run's samples, all of them, read again.

    Raises:
        AgnoscoError: The run has no such map, or was made with another classifier or other samples.

    Example:
        >>> import tempfile, torch
        >>> from agnosco import Classifier, Config, MapperConfig, Run, Samples, map_class, remake
        >>> classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)), size=8)
        >>> samples = Samples(torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8))
        >>> config = Config(MapperConfig(batch=2, steps=3), refine=None, cycles=1)
        >>> run = Run.create(tempfile.mkdtemp(), classifier=classifier, samples=samples, config=config)
        >>> made_with, held_out = samples.split(0.2, seed=0)
        >>> first = map_class(classifier, 1, made_with, config, seed=5)
        >>> entry = run.add(first, targeted_success_rate=0.5)
        >>> torch.equal(remake(run.folder, 1, 5, classifier, samples).nu, first.nu)
        True
    """
    from ..method.maker import map_class

    run = Run.open(path)
    run._entry(index, seed)
    own, now = run.settings, run.check_origin(classifier, samples)
    compared = {key: (getattr(own, key), getattr(now, key)) for key in ("versions", "device", "threads")}
    if differing := [f"{key} {before}, now {here}" for key, (before, here) in compared.items() if before != here]:
        message = f"the last bits of the map may differ ({'; '.join(differing)})"
        warnings.warn(message, AgnoscoWarning, stacklevel=2)
    made_with, _ = samples.split(own.samples.held_out, seed=own.samples.split_seed)
    return map_class(classifier, index, made_with, run.config, seed=seed)


def split(samples: Samples) -> tuple[Samples, Samples]:
    """The samples that a run's maps are made with, and those held out to judge them."""
    return samples.split(HELD_OUT, seed=SPLIT_SEED)


def check_target(path: Place | Folder, *, holding: Sequence[str] = (MANIFEST,)) -> None:
    """Find out, before long work, whether a folder can be written; leaves everything as it was.

    Args:
        path: The folder, a path or a URL.
        holding: Files of which it must hold one, unless it is empty: those that show that it was written before.

    Raises:
        AgnoscoError: The path is a file, a folder with other things in it, or cannot be written.
    """
    Folder.of(path).check(holding=holding)


def _job(entry: Entry) -> Job:
    return Job(entry.index, entry.seed)
