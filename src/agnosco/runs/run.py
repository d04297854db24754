"""A run folder: the maps of one classifier, and what is needed to make each of them again.

    RUN/
      manifest.json                          the settings, which maps are made side by side, an index of the entries
      contact-sheet.png                      every map, for people
      maps/0001-goldfish-s0.safetensors      ν, the stages before it, the trace, Ξ in 255ths
      maps/0001-goldfish-s0.json             the map's entry, with the digest of its file
      pictures/0001-goldfish-s0.png          for people: stretched, small ones enlarged
      pictures/0001-goldfish-s0-raw.png      what metrics see: Clip(½ − ν)
      checkpoints/                           only while maps are being made

A map's entry is written last: a map is finished if and only if its entry is there, and the digests agree. The
manifest's index saves reading all of them; it is written when a command begins and when it ends.

The same run gives the same bytes on a CPU, however often it is broken off: no file holds a time, a date or a folder of
this machine. Every file is written whole or not at all. A folder may come from somebody else: nothing in it is run,
no path in it is followed, and every map is checked against its digest.
"""

from __future__ import annotations

import base64
import hashlib
import html
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil, isfinite, sqrt
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..data.samples import Samples
from ..errors import AgnoscoError, AgnoscoWarning
from ..io.storage import GONE, Folder, Local, Place, at_once
from ..method.concept import ConceptMap
from ..method.config import Config, config_from_json, describe
from ..method.maker import groups_of, map_class
from ..method.prepare import resolve_precision
from ..method.render import SIDE, contact_sheet, enlarged, png
from ..models.classifier import Classifier
from ..text import one_line
from ..types import Job, Step
from .manifest import (
    HELD_OUT,
    SPLIT_SEED,
    Entry,
    checked,
    differences,
    identity,
    read_entry,
    read_manifest,
    settings_of,
    stem,
    stem_of,
    write_entry,
    write_manifest,
)

MANIFEST = "manifest.json"
SHEET = "contact-sheet.png"

NOTEBOOK, THUMBNAIL = 40, 128
"""Maps that a notebook shows of a run, and their size."""

CAPTION = 31
"""Longest caption under a tile."""

ON_SHEET = 400
"""Maps of a contact sheet at most: a picture of more of them nobody opens. The report shows all."""

ASKED_FOR = 50
"""Maps that are asked for one by one; for more of them, folders are listed."""

TRIES = 5
"""How often a map is written again, if another process writes another one of the same name at the same time."""


@dataclass(frozen=True)
class Standing:
    """What a run has of some jobs.

    Args:
        entries: Of those that are finished, in the order of the jobs.
        missing: The others.
        damaged: Of these, what was found of them and cannot be used, in words.
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
    """

    def __init__(
        self,
        folder: Folder,
        settings: dict[str, Any],
        groups: Iterable[Iterable[tuple[int, int]]] = (),
        entries: Iterable[Entry] = (),
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
        config: Config,
        command: str = "python",
        weights: str | Path | None = None,
        device: str | None = None,
        threads: int | None = None,
    ) -> Run:
        """A run about to be made; nothing is written before its first map.

        A folder that holds a run with the same settings is continued.

        Args:
            path: Where, a path or a URL; a new or empty folder, or that of a run with the same settings.
            classifier: Whose maps these are.
            samples: All samples; maps are made with those that :func:`split` keeps.
            config: Settings of every map; the precision ``auto`` is noted as what it is here.
            command: What makes the run: ``"map"``, ``"demo"``, or ``"python"`` for code of one's own.
            weights: The file of the classifier's weights; its base name is noted.
            device, threads: What maps are made with, where that is not this process's: a cluster's.

        Raises:
            AgnoscoError: The folder cannot be written, or holds something else.
        """
        check_target(path)
        folder = Folder.of(path)
        config = replace(config, precision=resolve_precision(config.precision, classifier.device))
        settings = settings_of(classifier, samples, config, command, weights, device=device, threads=threads)
        if not folder.exists(MANIFEST):
            return cls(folder, settings)
        run = cls._opened(folder)
        differing = list(differences(run.settings, settings))
        if differing:
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
        run = cls._opened(Folder.of(path))
        if run._unreadable:
            told = f"{', '.join(sorted(run._unreadable)[:3])}: {len(run._unreadable)} in all"
            warnings.warn(
                f"{run.folder.name!r} lacks maps whose entries are damaged ({told}); the command that made it makes "
                "them again", AgnoscoWarning, stacklevel=2,
            )  # fmt: skip
        return run

    @classmethod
    def _opened(cls, folder: Folder) -> Run:
        run = cls._listed(folder)
        run._read_others()
        return run

    @classmethod
    def _listed(cls, folder: Folder) -> Run:
        """What the manifest says."""
        try:
            settings, groups, entries = read_manifest(folder.read(MANIFEST))
        except FileNotFoundError as error:
            raise AgnoscoError(
                f"{folder.name!r} is no run folder: it has no {MANIFEST}", "make one with agnosco map"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AgnoscoError(f"{folder.at(MANIFEST)!r} is no manifest of a run", "make the run again") from error
        run = cls(folder, settings, groups, entries)
        run._begun = True
        return run

    def _read_others(self) -> None:
        """Read the entries that the index lacks."""
        known = {stem(entry) for entry in self._entries.values()}
        names = [name.removesuffix(".json") for name in self.folder.names("maps") if name.endswith(".json")]

        for found in at_once(self._found, [name for name in names if name not in known]):
            if isinstance(found, str):
                self._unreadable.add(found)
            elif found is not None:
                self._entries[_job(found)] = found

    def _found(self, name: str) -> Entry | str | None:
        """The entry of this stem; its stem where it is damaged, None where there is none."""
        try:
            return read_entry(self.folder.read(f"maps/{name}.json"), name)
        except FileNotFoundError:
            return None
        except ValueError:
            return name

    @property
    def path(self) -> Path:
        """The folder as a path.

        Raises:
            AgnoscoError: It is none of this machine.
        """
        if isinstance(self.folder, Local):
            return self.folder.path
        raise AgnoscoError(f"{self.folder.name!r} is no folder of this machine", "use Run.folder")

    @property
    def entries(self) -> list[Entry]:
        """The entry of every map, by index and seed."""
        return [self._entries[key] for key in sorted(self._entries)]

    @property
    def config(self) -> Config:
        """The settings of every map."""
        return config_from_json(self.settings["config"])

    def _repr_html_(self) -> str:
        """How a notebook shows it: the first pictures, with their classes."""
        tiles = "".join(_tile(self.map(entry["index"], entry["seed"]), entry) for entry in self.entries[:NOTEBOOK])
        more = len(self.entries) - NOTEBOOK
        rest = f"<p>and {more} more: <code>agnosco report</code> shows all</p>" if more > 0 else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{tiles}</div>{rest}'

    # -- writing ------------------------------------------------------------------------------

    def begin(self, jobs: Sequence[Job], together: int) -> list[list[Job]]:
        """Write down which of some jobs are made side by side, before they are made.

        Maps of a group have the same bits only if all of it is made: whatever becomes of this process, the next one
        makes the same groups.

        Args:
            jobs: What is to be made.
            together: How many maps to make side by side at most, of those that are in no group yet.

        Returns:
            The groups that hold these jobs.
        """
        self._prepare()
        self._merge()
        grouped = {job for group in self.groups for job in group}
        self.groups += groups_of([job for job in jobs if job not in grouped], together)
        self._write_manifest()
        wanted, taken = set(jobs), set()
        found = []
        for group in self.groups:
            if not wanted.isdisjoint(set(group) - taken):
                found.append(group)
            taken.update(group)
        return found

    def end(self) -> None:
        """Write the manifest with an index of all maps; another process's too."""
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
        name = stem_of(concept.label, concept.name, concept.seed)
        content = safetensors.torch.save(_tensors(concept))
        entry = checked(
            {
                "index": concept.label,
                "class": concept.name,
                "seed": concept.seed,
                "stages": list(concept.stages),
                "probability": concept.probability,
                "targeted_success_rate": targeted_success_rate if isfinite(targeted_success_rate) else None,
                "norm": torch.linalg.vector_norm(concept.nu, dtype=torch.float64).item(),
                "files": {
                    "map": f"maps/{name}.safetensors",
                    "picture": f"pictures/{name}.png",
                    "raw": f"pictures/{name}-raw.png",
                },
                "sha256": hashlib.sha256(content).hexdigest(),
            }
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
        """A map and its entry; again, if those of another process and these have come to lie side by side."""
        name = stem(entry)
        for _ in range(TRIES):
            self.write(f"maps/{name}.safetensors", content)
            self.write(f"maps/{name}.json", write_entry(entry))
            found = self._found(name)
            if isinstance(found, dict) and self._digest(name) == found["sha256"]:
                return

    def _write_pictures(self, concept: ConceptMap, entry: Entry) -> None:
        self.write(f"pictures/{stem(entry)}.png", png(enlarged(concept.display(), SIDE)))
        self.write(f"pictures/{stem(entry)}-raw.png", png(concept.image()))

    def write_contact_sheet(self) -> str:
        """Write the maps, the first :data:`ON_SHEET` of them, in one picture, and say where it is."""
        entries, total = self.entries[:ON_SHEET], len(self.entries)
        seeds = {entry["seed"] for entry in entries}
        captions = [_caption(entry, several=len(seeds) > 1) for entry in entries]
        some = "" if len(entries) == total else f"The first {len(entries)} of {total} maps. "
        model, samples = self.settings["model"], self.settings["samples"]
        shape = tuple(model["shape"])
        footer = (
            f"{some}{model['name']} at {shape[2]} px. {describe(self.config, shape)}. Samples: {samples['source']}, "
            f"{samples['count']}. p: what the model gives the picture; moves: share of held-out images that the map "
            "moves to its class."
        )
        sheet = contact_sheet(
            [self.map(entry["index"], entry["seed"]).display() for entry in entries],
            captions,
            columns=max(5, ceil(sqrt(len(captions)))),
            tile=SIDE,
            footer=one_line(footer, limit=1000),
        )
        return self.write(SHEET, png(sheet))

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
        return self.write(name, safetensors.torch.save(tensors))

    def _prepare(self) -> None:
        """Make the folder; if it has vanished since, fail rather than begin another run in its place."""
        if not self._begun:
            self.folder.make()
        elif not self.folder.exists(MANIFEST):
            raise AgnoscoError(f"{self.folder.name!r} is gone: it has no {MANIFEST} any more", GONE)

    def _merge(self) -> None:
        """Take over what another process may have written down meanwhile; groups that were there first stay."""
        if not self.folder.exists(MANIFEST):
            return
        other = Run._listed(self.folder)
        self._entries = other._entries | self._entries
        known = {tuple(group) for group in other.groups}
        self.groups = other.groups + [group for group in self.groups if tuple(group) not in known]
        self._read_others()

    def _write_manifest(self) -> None:
        """Write the manifest, unless it says all that already."""
        content = write_manifest(self.settings, [list(group) for group in self.groups], self.entries)
        if not (self.folder.exists(MANIFEST) and self.folder.read(MANIFEST) == content):
            self.write(MANIFEST, content)
        self._begun = True

    # -- reading ------------------------------------------------------------------------------

    def maps(self) -> Iterator[ConceptMap]:
        """Every map, by index and seed.

        Raises:
            AgnoscoError: The file of a map is missing or was altered.
        """
        return (self.map(entry["index"], entry["seed"]) for entry in self.entries)

    def map(self, index: int, seed: int = 0) -> ConceptMap:
        """The map of one class and seed, as it was made.

        Raises:
            AgnoscoError: The run has no such map, or its file is missing or was altered.
        """
        entry = self._entry(index, seed)
        name = f"maps/{stem(entry)}.safetensors"
        try:
            content = self._content(entry)
            tensors = safetensors.torch.load(content)
            _check_tensors(tensors, tuple(self.settings["model"]["shape"]))
            return _concept(tensors, self._entry(index, seed))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, safetensors.SafetensorError) as error:
            raise AgnoscoError(
                f"cannot read {name} of {self.folder.name!r}: {_words(error)}",
                "give the command that made the run again: it makes this map anew",
            ) from error

    def _content(self, entry: Entry) -> bytes:
        """A map's file, once it is sure that it is the entry's; or that of a later entry, which is taken over."""
        content = self.folder.read(f"maps/{stem(entry)}.safetensors")
        if hashlib.sha256(content).hexdigest() == entry["sha256"]:
            return content
        later = self._found(stem(entry))
        if not isinstance(later, dict) or hashlib.sha256(content).hexdigest() != later["sha256"]:
            raise ValueError("its digest is not that of its entry")
        self._entries[_job(later)] = later
        return content

    def standing(self, jobs: Sequence[Job], *, names: Sequence[str]) -> Standing:
        """What there is of some jobs, once it is sure that it can be read: every map is held to its digest.

        What another process has finished meanwhile is found too. Pictures and entries that are lost are written anew.

        Args:
            jobs: Which.
            names: The class names of the classifier, by index.
        """
        listed: set[str] | None = None
        if len(jobs) > ASKED_FOR:
            listed = {f"{inside}/{name}" for inside in ("maps", "pictures") for name in self.folder.names(inside)}

        def there(name: str) -> bool:
            return self.folder.exists(name) if listed is None else name in listed

        def look(job: Job) -> str | None:
            return self._look(job, names[job.label], there)

        told = at_once(look, jobs)
        entries = [self._entries[job] for job, damage in zip(jobs, told, strict=True) if damage is None]
        missing = [job for job, damage in zip(jobs, told, strict=True) if damage is not None]
        for job in missing:
            self._entries.pop(job, None)
        return Standing(entries, missing, [damage for damage in told if damage])

    def _look(self, job: Job, name: str, there: Callable[[str], bool]) -> str | None:
        """None for a map that is finished, "" for one that was not, otherwise what is wrong with it."""
        known = self._entries.get(job)
        name = stem_of(job.label, name, job.seed) if known is None else stem(known)
        found = self._found(name) if there(f"maps/{name}.json") else None
        entry = found if isinstance(found, dict) else known
        if entry is None:
            return f"{name}.json is damaged" if found else ""
        digest = self._digest(name)
        if digest != entry["sha256"]:
            return f"{name}.safetensors is {'damaged' if digest else 'missing'}"
        self._entries[job] = entry
        if not isinstance(found, dict):
            self.write(f"maps/{name}.json", write_entry(entry))
        if not (there(f"pictures/{name}.png") and there(f"pictures/{name}-raw.png")):
            self._write_pictures(self.map(*job), entry)
        return None

    def _digest(self, name: str) -> str | None:
        """The SHA-256 of a map's file; None if there is none."""
        try:
            return hashlib.sha256(self.folder.read(f"maps/{name}.safetensors")).hexdigest()
        except FileNotFoundError:
            return None

    def check_origin(self, classifier: Classifier, samples: Samples) -> dict[str, Any]:
        """Make sure that these are what the run was made with.

        Args:
            classifier: The run's classifier, loaded again.
            samples: The run's samples, all of them, read again.

        Returns:
            The settings that a run with them would have here and now.

        Raises:
            AgnoscoError: They are others.
        """
        made = self.settings
        now = settings_of(classifier, samples, self.config, made["command"], made["model"]["weights"])
        for what in ("model", "samples"):
            if (made[what]["fingerprint"], made[what]["shape"]) != (now[what]["fingerprint"], now[what]["shape"]):
                raise AgnoscoError(
                    f"{self.folder.name!r} was made with other {what}: {identity(made[what])}, "
                    f"not {identity(now[what])}",
                    "load what its manifest names, at the same size, with the same mean and std",
                )
        if made["model"]["features"] != now["model"]["features"]:  # a refinement looks at them
            raise AgnoscoError(
                f"{self.folder.name!r} was refined with features {made['model']['features']!r}, "
                f"not {now['model']['features']!r}",
                "load the classifier with those features",
            )
        return now

    def _entry(self, index: int, seed: int) -> Entry:
        if (index, seed) not in self._entries:
            here = ", ".join(f"{index} seed {seed}" for index, seed in sorted(self._entries)[:6])
            raise AgnoscoError(
                f"{self.folder.name!r} has no map of class {index}, seed {seed}", f"it has {here or 'none'}"
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
    """
    run = Run.open(path)
    run._entry(index, seed)
    made, now = run.settings, run.check_origin(classifier, samples)
    differing = [key for key in ("versions", "device", "threads") if made[key] != now[key]]
    if differing:
        told = "; ".join(f"{key} {made[key]}, now {now[key]}" for key in differing)
        warnings.warn(f"the last bits of the map may differ ({told})", AgnoscoWarning, stacklevel=2)
    kept, _ = samples.split(made["samples"]["held_out"], seed=made["samples"]["split_seed"])
    return map_class(classifier, index, kept, run.config, seed=seed)


def split(samples: Samples) -> tuple[Samples, Samples]:
    """The samples that a run's maps are made with, and those that they are judged by."""
    return samples.split(HELD_OUT, seed=SPLIT_SEED)


def check_target(path: Place | Folder, *, holding: Sequence[str] = (MANIFEST,)) -> None:
    """Find out, before long work, whether a folder can be written; leaves everything as it was.

    Args:
        path: The folder, a path or a URL.
        holding: Files of which it must hold one, if it holds anything: those that say that it was written before.

    Raises:
        AgnoscoError: The path is a file, a folder with other things in it, or cannot be written.
    """
    Folder.of(path).check(holding=holding)


def _job(entry: Entry) -> Job:
    return Job(entry["index"], entry["seed"])


def _words(error: Exception) -> str:
    return "there is none" if isinstance(error, FileNotFoundError) else str(error)


def _caption(entry: Entry, *, several: bool) -> str:
    moves = "" if entry["targeted_success_rate"] is None else f", moves {entry['targeted_success_rate']:.0%}"
    figures = (f" s{entry['seed']}" if several else "") + f"  p {entry['probability']:.2f}{moves}"
    return one_line(entry["class"], limit=CAPTION - len(figures)) + figures


def _tile(concept: ConceptMap, entry: Entry) -> str:
    picture = base64.b64encode(png(enlarged(concept.display(), THUMBNAIL))).decode()
    caption = html.escape(_caption(entry, several=True))
    return (
        f'<figure style="margin:0"><img src="data:image/png;base64,{picture}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _tensors(concept: ConceptMap) -> dict[str, Tensor]:
    """What a map's file holds; the last stage is ν itself."""
    tensors = {"nu": concept.nu.contiguous()}
    for name, nu in list(concept.stages.items())[:-1]:
        tensors[f"stages/{name}"] = nu.contiguous()
    for column in fields(Step):
        values = [getattr(step, column.name) for step in concept.trace]
        tensors[f"trace/{column.name}"] = torch.tensor(values, dtype=torch.float64)
    if concept.xi is not None:
        tensors["xi"] = (255 * concept.xi).round().to(torch.uint8)
    return tensors


def _check_tensors(tensors: dict[str, Tensor], shape: tuple[int, ...]) -> None:
    """Make sure that a file's tensors are those of a map ``(C, H, W)``; ValueError where not."""
    steps = tensors["trace/step"].shape
    for name, tensor in sorted(tensors.items()):
        what = name.partition("/")[0]
        wanted, dtype = (shape, torch.float32) if what in ("nu", "stages") else (steps[:1], torch.float64)
        if what == "xi":
            wanted, dtype = (1, *shape[1:]), torch.uint8
        if tensor.shape != wanted or tensor.dtype != dtype:
            raise ValueError(f"its {'map' if what == 'nu' else what} is {tuple(tensor.shape)} of {tensor.dtype}")


def _concept(tensors: dict[str, Tensor], entry: Entry) -> ConceptMap:
    nu = tensors["nu"]
    *earlier, last = entry["stages"]
    stages = {name: tensors[f"stages/{name}"] for name in earlier} | {last: nu}
    columns = {column.name: tensors[f"trace/{column.name}"].tolist() for column in fields(Step)}
    rows = zip(*columns.values(), strict=True)
    trace = tuple(Step(int(k), p, success, norm, int(sign)) for k, p, success, norm, sign in rows)
    xi = tensors["xi"].float() / 255 if "xi" in tensors else None
    return ConceptMap(nu, entry["index"], entry["class"], entry["seed"], entry["probability"], stages, trace, xi)
