"""A run folder: the maps of one classifier, and what is needed to make each of them again.

    RUN/
      manifest.json                          the settings, and one entry per map
      contact-sheet.png                      every map, for people
      maps/0001-goldfish-s0.safetensors      ν, the stages before it, the trace, Ξ in 255ths
      pictures/0001-goldfish-s0.png          for people: stretched, small ones enlarged
      pictures/0001-goldfish-s0-raw.png      what metrics see: Clip(½ − ν)

The same run gives the same bytes on a CPU: no file holds a time, a date or a folder of this machine.
Every file is written whole or not at all. A folder may come from somebody else: nothing in it is run,
no path in it is followed, and every map is checked against its digest.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import tempfile
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from importlib import metadata
from math import ceil, isfinite, sqrt
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .classifier import Classifier
from .concept import ConceptMap
from .cycle import Config, config_from_json, config_to_json, describe, map_class
from .errors import AgnoscoError, AgnoscoWarning
from .mapper import Step
from .prepare import resolve_precision
from .render import SIDE, contact_sheet, enlarged, png
from .samples import Samples

MANIFEST = "manifest.json"
SHEET = "contact-sheet.png"

HELD_OUT = 0.2
"""Share of the samples that no map is made with, and every map is judged by."""

SPLIT_SEED = 0

NOTEBOOK, THUMBNAIL = 40, 128
"""Maps that a notebook shows of a run, and their size."""

SLUG, SHOWN, CAPTION = 40, 200, 31
"""Longest class name in a file's name, in a line that is printed, and longest caption under a tile."""

WRITABLE = "make it writable, or map into another folder with --out"
"""Hint for a folder that cannot be written."""

Entry = dict[str, Any]


class Run:
    """A run folder, made by :meth:`create` or :meth:`open`.

    Args:
        path: The folder.
        settings: What all its maps have in common, as in the manifest.
        entries: One for each of its maps, as in the manifest.
    """

    def __init__(self, path: Path, settings: dict[str, Any], entries: list[Entry]) -> None:
        self.path = path
        self.settings = settings
        self._entries = {(entry["index"], entry["seed"]): entry for entry in entries}

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        classifier: Classifier,
        samples: Samples,
        config: Config,
        command: str = "map",
        weights: str | Path | None = None,
    ) -> Run:
        """A run about to be made; nothing is written before its first map.

        A folder that holds a run with the same settings is continued: maps made again replace the old ones.

        Args:
            path: Where; a new or empty folder, or that of a run with the same settings.
            classifier: Whose maps these are.
            samples: All samples; maps are made with those that :func:`split` keeps.
            config: Settings of every map; the precision ``auto`` is noted as what it is here.
            command: What makes the run, without paths.
            weights: The file of the classifier's weights; its base name is noted.

        Raises:
            AgnoscoError: The folder cannot be written, or holds something else.
        """
        path = Path(path)
        check_target(path)
        config = replace(config, precision=resolve_precision(config.precision, classifier.device))
        settings = _settings(classifier, samples, config, command, weights)
        if not (path / MANIFEST).exists():
            return cls(path, settings, [])
        run = cls.open(path)
        differing = list(_differences(run.settings, settings))
        if differing:
            raise AgnoscoError(
                f"{str(path)!r} holds a run with other settings ({', '.join(differing[:4])})",
                "choose another folder with --out, or remove this one",
            )
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """A finished or interrupted run.

        Raises:
            AgnoscoError: There is none.
        """
        path = Path(path)
        try:
            data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            entries = data.pop("maps")
            config_from_json(data["config"])
            _check_shape(_SETTINGS, data)
            for entry in entries:
                _check_shape(_ENTRY, entry)
                _stem(entry)
            return cls(path, data, entries)
        except FileNotFoundError as error:
            raise AgnoscoError(
                f"{str(path)!r} is no run folder: it has no {MANIFEST}", "make one with agnosco map"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AgnoscoError(f"{str(path / MANIFEST)!r} is no manifest of a run", "make the run again") from error

    @property
    def entries(self) -> list[Entry]:
        """The manifest's entry of every map, by index and seed."""
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

    def add(self, concept: ConceptMap, *, nudge_success: float) -> Entry:
        """Write a map, its pictures and the manifest.

        Args:
            concept: The map.
            nudge_success: Share of held-out images that it moves to its class; NaN if there are none to move.

        Returns:
            Its entry in the manifest.
        """
        entry: Entry = {
            "index": concept.label,
            "class": concept.name,
            "seed": concept.seed,
            "stages": list(concept.stages),
            "probability": concept.probability,
            "nudge_success": nudge_success if isfinite(nudge_success) else None,
            "norm": torch.linalg.vector_norm(concept.nu, dtype=torch.float64).item(),
        }
        stem = _stem(entry)
        entry["files"] = {
            "map": f"maps/{stem}.safetensors",
            "picture": f"pictures/{stem}.png",
            "raw": f"pictures/{stem}-raw.png",
        }
        if not (self.path / MANIFEST).exists():
            self._write_manifest()  # first of all, so that an interrupted run is known as one
        entry["sha256"] = self.write_tensors(entry["files"]["map"], _tensors(concept))
        self.write(entry["files"]["picture"], png(enlarged(concept.display(), SIDE)))
        self.write(entry["files"]["raw"], png(concept.image()))
        self._entries[concept.label, concept.seed] = entry
        self._write_manifest()
        return entry

    def write_contact_sheet(self) -> Path:
        """Write all maps in one picture, and say where it is."""
        seeds = {entry["seed"] for entry in self.entries}
        captions = [_caption(entry, several=len(seeds) > 1) for entry in self.entries]
        model, samples = self.settings["model"], self.settings["samples"]
        shape = tuple(model["shape"])
        footer = (
            f"{model['name']} at {shape[2]} px. {describe(self.config, shape)}. Samples: {samples['source']}, "
            f"{samples['count']}. p: what the model gives the picture; moves: share of held-out images that the map "
            "moves to its class."
        )
        sheet = contact_sheet(
            [concept.display() for concept in self.maps()],
            captions,
            columns=max(5, ceil(sqrt(len(captions)))),
            tile=SIDE,
            footer=one_line(footer, limit=1000),
        )
        return self.write(SHEET, png(sheet))

    def write(self, name: str, content: bytes) -> Path:
        """Write one file of the folder, whole or not at all.

        Args:
            name: Its path inside the folder.
            content: All of it.

        Raises:
            AgnoscoError: The file cannot be written.
        """
        path = self.path / name
        if path.parent != self.path and path.parent.is_symlink():
            raise AgnoscoError(f"{str(path.parent)!r} is a link", "choose another folder with --out")
        return write_whole(path, content)

    def check_writable(self) -> None:
        """Fail now, rather than when there is something to write.

        Raises:
            AgnoscoError: The folder cannot be written.
        """
        if not os.access(self.path, os.W_OK):
            raise AgnoscoError(f"cannot write into {str(self.path)!r}", WRITABLE)

    def write_tensors(self, name: str, tensors: dict[str, Tensor]) -> str:
        """Write a safetensors file, as :meth:`write` does, and give its SHA-256."""
        content = safetensors.torch.save(tensors)
        self.write(name, content)
        return hashlib.sha256(content).hexdigest()

    def _write_manifest(self) -> None:
        data = self.settings | {"maps": self.entries}
        self.write(MANIFEST, (json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())

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
        name = f"maps/{_stem(entry)}.safetensors"
        try:
            content = (self.path / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise ValueError("its digest is not that of the manifest")
            concept = _concept(safetensors.torch.load(content), entry)
            if list(concept.nu.shape) != self.settings["model"]["shape"] or concept.nu.dtype != torch.float32:
                raise ValueError(f"its map is {tuple(concept.nu.shape)} of {concept.nu.dtype}")
            return concept
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise AgnoscoError(f"cannot read {name} of {str(self.path)!r}: {error}", "make this map again") from error

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
        now = _settings(classifier, samples, self.config, made["command"], made["model"]["weights"])
        for what in ("model", "samples"):
            if (made[what]["fingerprint"], made[what]["shape"]) != (now[what]["fingerprint"], now[what]["shape"]):
                raise AgnoscoError(
                    f"{str(self.path)!r} was made with other {what}: {_identity(made[what])}, "
                    f"not {_identity(now[what])}",
                    "load what its manifest names, at the same size, with the same mean and std",
                )
        if made["model"]["features"] != now["model"]["features"]:  # a refinement looks at them
            raise AgnoscoError(
                f"{str(self.path)!r} was refined with features {made['model']['features']!r}, "
                f"not {now['model']['features']!r}",
                "load the classifier with those features",
            )
        return now

    def _entry(self, index: int, seed: int) -> Entry:
        if (index, seed) not in self._entries:
            here = ", ".join(f"{index} seed {seed}" for index, seed in sorted(self._entries)[:6])
            raise AgnoscoError(
                f"{str(self.path)!r} has no map of class {index}, seed {seed}", f"it has {here or 'none'}"
            )
        return self._entries[index, seed]


def remake(path: str | Path, index: int, seed: int, classifier: Classifier, samples: Samples) -> ConceptMap:
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


def check_target(path: str | Path, *, holding: Sequence[str] = (MANIFEST,)) -> None:
    """Find out, before long work, whether a folder can be written; leaves everything as it was.

    Args:
        path: The folder.
        holding: Files of which it must hold one, if it holds anything: those that say that it was written before.

    Raises:
        AgnoscoError: The path is a file, a folder with other things in it, or cannot be written.
    """
    path = Path(path)
    try:
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        if path.exists() and not path.is_dir():
            raise AgnoscoError(f"{str(path)!r} is a file, not a folder", "choose another folder with --out")
        if path.is_dir() and any(path.iterdir()) and not any((path / name).is_file() for name in holding):
            raise AgnoscoError(f"{str(path)!r} holds things, but no {holding[0]}", "choose another folder with --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        finally:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
    except OSError as error:
        raise _unwritable(path, error) from error


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file, and the folder that it lies in, whole or not at all.

    Raises:
        AgnoscoError: It cannot be written.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=".part-")  # a new file, whatever links lie there
        with open(handle, "wb") as file:
            file.write(content)
        os.chmod(part, 0o666 & ~_umask())
        os.replace(part, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if part is not None:
            with suppress(OSError):
                os.unlink(part)
    return path


def one_line(text: str, *, limit: int = SHOWN) -> str:
    """Untrusted text as one line without control characters, cut to a length."""
    clean = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def slug(name: str) -> str:
    """A class name as part of a file name: a-z, 0-9 and hyphens, at most 40 characters."""
    ascii_name = unicodedata.normalize("NFKD", name[:1000]).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_name).strip("-")[:SLUG].strip("-") or "class"


def _settings(
    classifier: Classifier, samples: Samples, config: Config, command: str, weights: str | Path | None
) -> dict[str, Any]:
    """All that decides the bits of a run's maps, but class and seed; as JSON gives it back."""
    settings = {
        "command": command,
        "versions": {
            "agnosco": _version("agnosco"),
            "torch": torch.__version__,
            "torchvision": _version("torchvision"),
        },
        "device": str(classifier.device),
        "threads": torch.get_num_threads(),
        "model": {
            "name": classifier.name,
            "weights": Path(weights).name if weights else None,
            "fingerprint": classifier.fingerprint,
            "shape": classifier.shape,
            "mean": classifier.mean,
            "std": classifier.std,
            "classes": classifier.classes,
            "features": classifier.features if config.refine else None,
        },
        "samples": {
            "source": samples.source,
            "count": len(samples),
            "fingerprint": samples.fingerprint,
            "shape": samples.shape,
            "held_out": HELD_OUT,
            "split_seed": SPLIT_SEED,
        },
        "config": config_to_json(config),
    }
    return json.loads(json.dumps(settings))


_SETTINGS: dict[str, Any] = {
    "command": str,
    "device": str,
    "threads": int,
    "versions": dict,
    "model": {
        "name": str, "weights": str | None, "fingerprint": str, "shape": list, "classes": int, "features": str | None,
    },
    "samples": {
        "source": str, "count": int, "fingerprint": str, "shape": list, "held_out": float, "split_seed": int,
    },
}  # fmt: skip
_ENTRY: dict[str, Any] = {
    "index": int, "class": str, "seed": int, "stages": list, "probability": float,
    "nudge_success": float | None, "files": dict, "sha256": str,
}  # fmt: skip


def _check_shape(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Make sure that what is read later is there and of its type; TypeError or KeyError where not."""
    for key, kind in wanted.items():
        if isinstance(kind, dict):
            _check_shape(kind, found[key])
        elif not isinstance(found[key], kind):
            raise TypeError(f"{key} is {found[key]!r}")


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Where settings differ: ``threads 1, now 2``; a long value, such as a digest, by its name alone."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{name} {key}".strip())
    elif old != new:
        told = f"{name} {old}, now {new}"
        yield told if len(told) < 60 else name


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _identity(part: dict[str, Any]) -> str:
    return f"{part.get('name') or part.get('source')} {part['shape']} ({part['fingerprint'][:8]})"


def _stem(entry: Entry) -> str:
    """The name that a map's files share; made from the entry, never read from it."""
    return f"{entry['index']:04d}-{slug(entry['class'])}-s{entry['seed']:d}"


def _caption(entry: Entry, *, several: bool) -> str:
    moves = "" if entry["nudge_success"] is None else f", moves {entry['nudge_success']:.0%}"
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


def _concept(tensors: dict[str, Tensor], entry: Entry) -> ConceptMap:
    nu = tensors["nu"]
    *earlier, last = entry["stages"]
    stages = {name: tensors[f"stages/{name}"] for name in earlier} | {last: nu}
    columns = {column.name: tensors[f"trace/{column.name}"].tolist() for column in fields(Step)}
    rows = zip(*columns.values(), strict=True)
    trace = tuple(Step(int(k), p, success, norm, int(sign)) for k, p, success, norm, sign in rows)
    xi = tensors["xi"].float() / 255 if "xi" in tensors else None
    return ConceptMap(nu, entry["index"], entry["class"], entry["seed"], entry["probability"], stages, trace, xi)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _unwritable(path: Path, error: OSError) -> AgnoscoError:
    reason = (error.strerror or str(error)).lower()
    return AgnoscoError(f"cannot write {str(path)!r}: {reason}", WRITABLE)
