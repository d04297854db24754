"""A run folder: the maps of one classifier, and what is needed to make each of them again.

    RUN/
      manifest.json                          the settings, which maps are made side by side, an index of the entries
      contact-sheet.png                      every map, for people
      maps/0001-goldfish-s0.safetensors      ν, the stages before it, the trace, Ξ, contributions, held-out log-odds
      maps/0001-goldfish-s0.json             the map's entry, with the digest of its file
      pictures/0001-goldfish-s0.png          for people: stretched, small ones enlarged
      pictures/0001-goldfish-s0-raw.png      what metrics see: Clip(½ − ν)
      checkpoints/, leases/                  only while maps are being made

A map's entry is written last: a map is finished if and only if its entry exists and the digests agree. The manifest's
index saves reading all entries; it is written when a command begins and when it ends. If the manifest is damaged or
lost, it is rebuilt from the maps, each of which says what it was made with.

The same run gives the same bytes on a CPU, however often it is interrupted: no file holds a time, a date or a path of
this machine. Every file is written whole or not at all. A folder may come from anyone: nothing in it is executed, no
path in it is followed, and every map is checked against its digest.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AgnoscoError, AgnoscoWarning
from ..io.local import Local
from ..io.records import to_json
from ..io.storage import MOVED, Folder, Place, in_order
from ..method.config import Config, config_from_json, config_to_json
from ..method.config import preset as preset_config
from ..types import MOST_SEED, Job
from . import manifest
from .continuing import check_same, differences, refuse_others
from .leases import Leases
from .manifest import Entry, Group, MadeWith, ModelRecord, SamplesRecord, Settings
from .rebuilding import entry_names, rebuilt
from .sheet import page_of, pictures_of
from .tensors import Arrays, concept_of, made_with_of, read_arrays, to_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..data.samples import Samples
    from ..method.concept import ConceptMap
    from ..models.classifier import Classifier

MANIFEST = "manifest.json"

TRIES = 5
"""How often a map is written again, if another process writes one of the same name at the same time."""


class Run:
    """A run folder, made by :meth:`create` or :meth:`open`.

    Args:
        settings: What all its maps have in common, as in the manifest.
        groups: Maps that are made side by side.
        entries: One for each finished map.

    Its attributes are these, the index of the entries by :class:`~agnosco.types.Job` (``entry_of``), and what was wrong
    with its files when it was opened, in words (``faults``).

    Example:
        >>> import tempfile, torch
        >>> from agnosco import Classifier, Config, MapperConfig, Run, Samples, map_class
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
        >>> classifier = Classifier(model, size=8, labels=("cat", "dog"))
        >>> samples = Samples.noise(classifier.shape, count=10)
        >>> config = Config(MapperConfig(batch=2, steps=3), refine=None, cycles=1)
        >>> folder = tempfile.mkdtemp()
        >>> run = Run.create(folder, classifier=classifier, samples=samples, config=config)
        >>> entry = run.add(map_class(classifier, "dog", samples, config), targeted_success_rate=0.5)
        >>> run.end()
        >>> Run.open(folder).map(1).nu.shape
        torch.Size([3, 8, 8])
    """

    def __init__(
        self, folder: Folder, settings: Settings, groups: Iterable[Group] = (), entries: Iterable[Entry] = ()
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.groups = [[Job(*job) for job in group] for group in groups]
        self.entry_of = {entry.job: entry for entry in entries}
        self.faults: list[str] = []  # what was wrong with its files when it was opened, in words
        self._damaged: set[str] = set()  # stems of entries that cannot be read
        self.is_stored = False  # whether the folder has a manifest
        self.is_rebuilt = False  # whether that is lost or damaged, and the maps said the same
        self._written: float | None = None  # when the manifest was written that was found to be this run's

    @classmethod
    def create(
        cls,
        path: Place | Folder,
        *,
        classifier: Classifier | nn.Module | str,
        samples: Samples,
        config: Config | str,
        preset: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        command: str = "python",
        weights: str | Path | None = None,
        device: str | None = None,
        threads: int | None = None,
        cpu: str | None = None,
    ) -> Run:
        """A new run, or the run in the folder if it has the same settings; nothing is written before its first map.

        A manifest that is damaged or lost is rebuilt from the maps, and written.

        Args:
            path: A path or a URL: a new or empty folder, or that of a run with the same settings.
            classifier: The network whose maps these are; a module or a name is taken for images of the samples' shape.
            samples: All samples; maps are made with those that :func:`~agnosco.runs.manifest.split` does not hold out.
            config: Settings of every map, or the name of a preset; the precision ``auto`` is stored as what it is here.
            preset, overrides: What the settings were built from; see :func:`agnosco.runs.command.chosen_config`.
            command: What makes the run: ``"map"``, ``"demo"``, or ``"python"`` for other code.
            weights: The file of the classifier's weights, if it was not loaded from it; its base name is stored.
            device, threads, cpu: What a cluster makes the maps with. A run that is continued keeps its threads.

        Raises:
            AgnoscoError: The folder cannot be written, or holds something else; or the network takes no such samples.
        """
        import torch

        from ..method.maker import check_shape
        from ..method.prepare import resolve_precision
        from ..models.loading import as_classifier

        check_target(path)
        folder = Folder.of(path)
        if isinstance(config, str):
            config, preset = preset_config(config), config
        classifier = as_classifier(classifier, samples.shape)
        check_shape(classifier, samples)
        config = replace(config, precision=resolve_precision(config.precision, classifier.device))
        settings = Settings(
            command=command, preset=preset, overrides=dict(overrides or {}), device=device or str(classifier.device),
            threads=threads or torch.get_num_threads(), versions=manifest.versions(),
            model=ModelRecord.of(classifier, weights, config), samples=SamplesRecord.of(samples),
            config=to_json(config_to_json(config)), cpu=cpu or manifest.cpu_kind(device or str(classifier.device)),
        )  # fmt: skip
        if not folder.exists(MANIFEST) and not entry_names(folder):
            return cls(folder, settings)
        run = cls._read_manifest(folder)
        for fault in run.faults:
            warnings.warn(fault, AgnoscoWarning, stacklevel=2)
        run._read_new_entries()
        check_same(run.settings, settings, folder.name)
        if run.is_rebuilt:
            run.end()
        return run

    @classmethod
    def open(cls, path: Place | Folder) -> Run:
        """The run at a path or a URL, finished or interrupted; AgnoscoError if there is none.

        Nothing is written: a manifest that is damaged or lost is rebuilt in memory. An AgnoscoWarning says so, and that
        entries are damaged.
        """
        run = cls.look(path)
        for fault in run.faults:
            warnings.warn(fault, AgnoscoWarning, stacklevel=2)
        return run

    @classmethod
    def look(cls, path: Place | Folder) -> Run:
        """The same as :meth:`open` without warnings: ``faults`` has them, in words."""
        run = cls._read_manifest(Folder.of(path))
        run._read_new_entries()
        if run._damaged:
            damaged = f"{', '.join(sorted(run._damaged)[:3])}: {len(run._damaged)} in all"
            run.faults.append(
                f"{run.folder.name!r} has damaged entries ({damaged}): give the command that made it again, to make "
                "these maps again"
            )
        return run

    @classmethod
    def _read_manifest(cls, folder: Folder) -> Run:
        try:
            run = cls(folder, *manifest.read_manifest(folder.read(MANIFEST)))
        except (FileNotFoundError, ValueError, RecursionError) as error:
            return cls._rebuilt(folder, error)
        run.is_stored = True
        return run

    @classmethod
    def _rebuilt(cls, folder: Folder, error: Exception) -> Run:
        """A run whose manifest could not be read, from its maps; AgnoscoError if they do not suffice."""
        is_missing = isinstance(error, FileNotFoundError)
        found = rebuilt(folder)
        if found is None:
            message, hint = f"{folder.name!r} is not a run folder: it has no {MANIFEST}", "make one with agnosco map"
            if not is_missing:
                message = f"{folder.at(MANIFEST)!r} is not the manifest of a run"
                hint = "no intact map says what it was made with: put a copy of the file back, or make the run again"
            elif entry_names(folder):
                hint = f"no intact map says what it was made with: put a copy of {MANIFEST} back, or make the run again"
            raise AgnoscoError(message, hint) from error
        state, maps = "missing" if is_missing else "damaged", "map" if found.maps == 1 else f"{found.maps} maps"
        run = cls(folder, found.settings, found.groups, found.entries)
        run.faults.append(f"{MANIFEST} of {folder.name!r} is {state}; it was rebuilt from its {maps}")
        run.is_stored, run.is_rebuilt = not is_missing, True
        return run

    def _read_new_entries(self) -> None:
        """Read the entries that the index lacks."""
        stems = set(entry_names(self.folder))
        stems -= {entry.stem for entry in self.entry_of.values()}

        def read(name: str) -> Entry | None:
            try:
                return self.stored_entry(name)
            except ValueError:
                self._damaged.add(name)
                return None

        self.entry_of |= {entry.job: entry for entry in in_order(read, sorted(stems)) if entry is not None}

    def stored_entry(self, name: str) -> Entry | None:
        """The entry in the file of this stem, None if there is no file; ValueError if it is damaged."""
        try:
            return manifest.read_entry(self.folder.read(f"maps/{name}.json"), name)
        except FileNotFoundError:
            return None

    def fault(self, entry: Entry) -> str | None:
        """What is wrong with the file of a map, in words; None if it is that of its entry and of these settings."""
        name = f"{entry.stem}.safetensors"
        try:
            content = self.folder.read(f"maps/{name}")
        except FileNotFoundError:
            return f"{name} is missing"
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            return f"{name} is damaged"
        made = made_with_of(content)
        if made and made.settings != self.settings and differences(made.settings, self.settings):
            return f"{name} is of a run with other settings"
        return None

    @property
    def path(self) -> Path:
        """The folder as a path; AgnoscoError if it is not on this machine."""
        if isinstance(self.folder, Local):
            return self.folder.path
        raise AgnoscoError(f"{self.folder.name!r} is not a folder on this machine", "use Run.folder")

    @property
    def entries(self) -> list[Entry]:
        """The entry of every map, by index and seed."""
        return [self.entry_of[job] for job in sorted(self.entry_of)]

    def check_maps(self) -> None:
        """AgnoscoError if it has no map."""
        if not self.entry_of:
            raise AgnoscoError(f"{self.folder.name!r} has no maps", "make some with agnosco map")

    @property
    def config(self) -> Config:
        """The settings of every map."""
        return config_from_json(self.settings.config)

    def _repr_html_(self) -> str:
        """How a notebook shows it: the first pictures, with their classes."""
        return page_of(self)

    def end(self, *, patience: float | None = None) -> None:
        """Write the manifest with an index of all maps, including those of other processes; see :meth:`alone`."""
        with self.alone(patience=patience):
            self.merge()
            self.write_manifest()

    @contextmanager
    def alone(self, *, patience: float | None = None) -> Iterator[None]:
        """Inside, no other process changes the manifest; see :mod:`agnosco.runs.leases`.

        AgnoscoError if the folder has vanished, or another process has it for longer than ``patience`` seconds.
        """
        self._begin()
        with Leases(self.folder).holding("manifest", patience=patience):
            yield

    def add(
        self,
        concept: ConceptMap,
        *,
        targeted_success_rate: float,
        held_out: Tensor | None = None,
        group: Group | None = None,
    ) -> Entry:
        """Write a map, its pictures and, last of all, its entry, which is returned.

        Args:
            concept: The map.
            targeted_success_rate: That on held-out images; NaN if there are none.
            held_out: Log-odds of the class for each of these images with the map's pattern, ``(N,)``, to be kept.
            group: The maps that it was made side by side with; None takes the run's first group that it is in.

        Raises:
            AgnoscoError: An entry cannot hold its seed or its figures; the folder has vanished, or cannot be written.
        """
        if self.is_stored:
            self._check_folder()
        else:
            self.end()  # first of all, so that an interrupted run is known as one
        content, pictures = to_bytes(concept, self._made_with(concept, group), held_out), pictures_of(concept)
        try:
            entry = manifest.entry_for(concept, content, pictures, targeted_success_rate=targeted_success_rate)
            manifest.read_entry(manifest.write_entry(entry), entry.stem)
        except ValueError as error:
            message = f"no run can hold the map of {concept.name!r} with seed {concept.seed}: a number is out of range"
            raise AgnoscoError(message, f"give finite numbers, and a seed of at most {MOST_SEED}") from error
        for kind, picture in pictures.items():
            self.folder.write(manifest.picture_of(entry.stem, kind), picture)
        self._write_map(content, entry)
        self.entry_of[entry.job] = entry
        self._damaged.discard(entry.stem)
        return entry

    def discard(self, entry: Entry) -> None:
        """Remove the files of a map that is of no use any more; its entry goes first."""
        pictures = [manifest.picture_of(entry.stem, kind) for kind in ("picture", "raw")]
        for name in (f"maps/{entry.stem}.json", f"maps/{entry.stem}.safetensors", *pictures):
            self.folder.remove(name)

    def _made_with(self, concept: ConceptMap, group: Group | None) -> MadeWith:
        """What the file of a map says that it was made with."""
        job = Job(concept.label, concept.seed)
        if group is None:
            group = next((group for group in self.groups if job in group), [])
        members = [Job(*other) for other in group]
        place = next((place for place, other in enumerate(self.groups) if other == members), None)
        return MadeWith(settings=self.settings, group=list(members), place=place)

    def _write_map(self, content: bytes, entry: Entry) -> None:
        """Write a map and its entry; again, if another process's map now lies beside this entry, or the reverse.

        AgnoscoError if it does every time.
        """
        name = entry.stem
        for _ in range(TRIES):
            self.folder.write(f"maps/{name}.safetensors", content)
            self.folder.write(f"maps/{name}.json", manifest.write_entry(entry))
            with suppress(ValueError):
                stored = self.stored_entry(name)
                if stored is not None and self.fault(stored) is None:
                    return
        message = f"the map {self.folder.at(f'maps/{name}.safetensors')!r} was not written as it is"
        raise AgnoscoError(message, "give the same command again")

    def merge(self) -> None:
        """Take over the groups and entries that other processes have written, and their number of threads.

        Their groups come first. AgnoscoError if the folder has vanished, as another run is not begun in its place, or
        if another process has begun a run with other settings there.
        """
        self._begin()
        other = self._stored()
        if other is not None:
            for fault in other.faults:
                warnings.warn(fault, AgnoscoWarning, stacklevel=2)
            check_same(other.settings, self.settings, self.folder.name)
            self.settings = other.settings
            self.entry_of = other.entry_of | self.entry_of
            known = {tuple(group) for group in other.groups}
            self.groups = other.groups + [group for group in self.groups if tuple(group) not in known]
        self._read_new_entries()

    def _stored(self) -> Run | None:
        """The run as its manifest says it now; None if that is still damaged or lost, and this is what was rebuilt."""
        try:
            return Run(self.folder, *manifest.read_manifest(self.folder.read(MANIFEST)))
        except (FileNotFoundError, ValueError, RecursionError) as error:
            return None if self.is_rebuilt else Run._rebuilt(self.folder, error)

    @property
    def manifest(self) -> bytes:
        """The content of its manifest, as it is in the folder, or as it was rebuilt."""
        if self.is_rebuilt:
            return manifest.write_manifest(self.settings, self.groups, self.entries)
        return self.folder.read(MANIFEST)

    def write_manifest(self) -> None:
        """Write the manifest as it is in memory, unless it already says all this."""
        content = manifest.write_manifest(self.settings, self.groups, self.entries)
        if not (self.folder.exists(MANIFEST) and self.folder.read(MANIFEST) == content):
            self.folder.write(MANIFEST, content)
        self.is_stored, self.is_rebuilt = True, False

    def _begin(self) -> None:
        """Create the folder of a new run with a manifest, so that it is known as one; that of an old one must be there.

        Another process may begin the same run at the same time: one of them creates the manifest.
        """
        if self.is_stored or self.is_rebuilt:
            self._check_folder()
            return
        self.folder.make()
        self.folder.create(MANIFEST, manifest.write_manifest(self.settings, (), ()))
        self.is_stored = True

    def _check_folder(self) -> None:
        """AgnoscoError if the folder of a run has vanished, or another run is there: this one does not go on in it."""
        try:
            written = self.folder.modified(MANIFEST)
        except FileNotFoundError:
            if self.is_rebuilt and entry_names(self.folder):
                return
            raise AgnoscoError(f"{self.folder.name!r} has no {MANIFEST} any more", MOVED) from None
        if written != self._written:
            with suppress(FileNotFoundError, ValueError, RecursionError):  # it is rebuilt at the end
                settings, *_ = manifest.read_manifest(self.folder.read(MANIFEST))
                refuse_others(settings, self.settings, self.folder.name)
                self._written = written

    def maps(self) -> Iterator[ConceptMap]:
        """Every map, by index and seed; raises what :meth:`map` does."""
        return (self.map(*entry.job) for entry in self.entries)

    def map(self, index: int, seed: int = 0) -> ConceptMap:
        """The map of one class and seed, as it was made.

        Raises:
            AgnoscoError: The run has no such map, or its file is missing or was altered.
        """
        return concept_of(self.arrays(index, seed), self.entry(index, seed))

    def arrays(self, index: int, seed: int = 0) -> Arrays:
        """The arrays in the file of a map, without PyTorch; see :mod:`agnosco.runs.tensors`. Raises as :meth:`map`."""
        entry = self.entry(index, seed)
        try:
            return read_arrays(self._content(entry), self.entry(index, seed).stages, self.settings.model.shape)
        except (OSError, ValueError) as error:
            reason = "it does not exist" if isinstance(error, FileNotFoundError) else error
            raise AgnoscoError(
                f"cannot read maps/{entry.stem}.safetensors of {self.folder.name!r}: {reason}",
                "give the command that made the run again: it makes this map again",
            ) from error

    def _content(self, entry: Entry) -> bytes:
        """The map's file, if it is the entry's, or a later entry's, which is taken over; ValueError if neither."""
        content = self.folder.read(f"maps/{entry.stem}.safetensors")
        digest = hashlib.sha256(content).hexdigest()
        if digest == entry.sha256:
            return content
        with suppress(ValueError):
            later = self.stored_entry(entry.stem)
            if later is not None and digest == later.sha256:
                self.entry_of[later.job] = later
                return content
        raise ValueError("its digest is not that of its entry")

    def entry(self, index: int, seed: int = 0) -> Entry:
        """The entry of the map of one class and seed; AgnoscoError if the run has no such map."""
        if (index, seed) not in self.entry_of:
            others = ", ".join(f"{index} seed {seed}" for index, seed in sorted(self.entry_of)[:6])
            raise AgnoscoError(
                f"{self.folder.name!r} has no map of class {index}, seed {seed}", f"it has {others or 'none'}"
            )
        return self.entry_of[Job(index, seed)]


def check_target(path: Place | Folder, *, holding: Sequence[str] = (MANIFEST,)) -> None:
    """Check, before long work, that a folder can be written; see :meth:`agnosco.io.storage.Folder.check`.

    A run whose manifest is lost is one by its maps.
    """
    folder = Folder.of(path)
    if holding == (MANIFEST,) and not folder.exists(MANIFEST):
        holding = (MANIFEST, *(f"maps/{name}.json" for name in entry_names(folder)[:1]))
    folder.check(holding=holding)
