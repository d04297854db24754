"""What a run folder says of itself: settings, and an entry for each map, as JSON that can be trusted or refused."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..data.samples import Samples
from ..io.records import NUMBER, check_shape
from ..method.config import Config, config_from_json, config_to_json
from ..models.classifier import Classifier

HELD_OUT = 0.2
"""Share of the samples that no map is made with, and every map is judged by."""

SPLIT_SEED = 0

SLUG = 40
"""Longest class name in a file's name."""

SIDE = 1 << 16
"""An image has fewer channels, and fewer pixels in a row or a column."""

CHECK = "check"
"""The key of an entry's own digest."""

Entry = dict[str, Any]

_SETTINGS: dict[str, Any] = {
    "command": str,
    "device": str,
    "threads": int,
    "versions": {str: str | None},
    "model": {
        "name": str, "weights": str | None, "fingerprint": str, "shape": [int, int, int], "mean": [NUMBER],
        "std": [NUMBER], "classes": int, "features": str | None,
    },
    "samples": {
        "source": str, "count": int, "fingerprint": str, "shape": [int, int, int], "held_out": float,
        "split_seed": int,
    },
}  # fmt: skip
_ENTRY: dict[str, Any] = {
    "index": int, "class": str, "seed": int, "stages": [str], "probability": float,
    "targeted_success_rate": float | None, "norm": float, "files": {str: str}, "sha256": str,
}  # fmt: skip


def settings_of(
    classifier: Classifier,
    samples: Samples,
    config: Config,
    command: str,
    weights: str | Path | None,
    *,
    device: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """All that decides the bits of a run's maps, but class, seed and groups; as JSON gives it back."""
    settings = {
        "command": command,
        "versions": {
            "agnosco": _version("agnosco"),
            "torch": torch.__version__,
            "torchvision": _version("torchvision"),
        },
        "device": device or str(classifier.device),
        "threads": threads or torch.get_num_threads(),
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


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Where settings differ: ``threads 1, now 2``; a long value, such as a digest, by its name alone."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{name} {key}".strip())
    elif old != new:
        told = f"{name} {old}, now {new}"
        yield told if len(told) < 60 else name


def read_manifest(content: bytes) -> tuple[dict[str, Any], list[list[tuple[int, int]]], list[Entry]]:
    """Settings, groups and entries of a manifest.

    Groups are lists of ``(index, seed)``. An entry that carries a digest and does not agree with it is left out: its
    own file says what it was.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError, AgnoscoError: It is none.
    """
    data = json.loads(content.decode())
    entries = data.pop("maps")
    groups = [[_key(index, seed) for index, seed in group] for group in data.pop("groups", [])]
    config_from_json(data["config"])
    _check_settings(data)
    for entry in entries:
        _check_entry(entry)
    return data, groups, [entry for entry in entries if _digest(entry) == entry.get(CHECK, _digest(entry))]


def write_manifest(
    settings: dict[str, Any], groups: Sequence[Sequence[tuple[int, int]]], entries: Sequence[Entry]
) -> bytes:
    """A manifest; a group is one line of it."""
    none = '\n "groups": []'
    text = _plain(settings | {"groups": [], "maps": list(entries)})
    if groups:
        lines = ",\n".join(f"  {json.dumps(group)}" for group in groups)
        text = text.replace(none, f'\n "groups": [\n{lines}\n ]', 1)
    return (text + "\n").encode()


def read_entry(content: bytes, name: str) -> Entry:
    """The entry in a file of this stem.

    Raises:
        ValueError: The file is damaged, or of another map.
    """
    try:
        entry = json.loads(content.decode())
        _check_entry(entry)
        if write_entry(entry) == content and stem(entry) == name:
            return entry
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name}.json is damaged") from error
    raise ValueError(f"{name}.json is damaged")


def write_entry(entry: Entry) -> bytes:
    """The file of an entry: with a digest of its own, so that what is read back is what was written."""
    return (_plain({**entry, CHECK: _digest(entry)}) + "\n").encode()


def checked(entry: Entry) -> Entry:
    """An entry with its own digest, as JSON gives it back."""
    return json.loads(write_entry(entry))


def stem(entry: Entry) -> str:
    """The name that a map's files share; made from the entry, never read from it."""
    return stem_of(entry["index"], entry["class"], entry["seed"])


def stem_of(index: int, name: str, seed: int) -> str:
    """The name that the files of a class's map share."""
    return f"{index:04d}-{slug(name)}-s{seed:d}"


def slug(name: str) -> str:
    """A class name as part of a file name: a-z, 0-9 and hyphens, at most 40 characters."""
    ascii_name = unicodedata.normalize("NFKD", name[:1000]).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_name).strip("-")[:SLUG].strip("-") or "class"


def identity(part: dict[str, Any]) -> str:
    """A model or a sample set in words."""
    return f"{part.get('name') or part.get('source')} {part['shape']} ({part['fingerprint'][:8]})"


def _plain(entry: Entry) -> str:
    return json.dumps(entry, indent=1, sort_keys=True, allow_nan=False)


def _digest(entry: Entry) -> str:
    rest = {key: value for key, value in entry.items() if key != CHECK}
    return hashlib.sha256(_plain(rest).encode()).hexdigest()


def _check_settings(data: dict[str, Any]) -> None:
    """Make sure that settings are what is read of them, and can be written again; ValueError and others where not."""
    check_shape(_SETTINGS, data)
    _plain(data)
    model, samples = data["model"], data["samples"]
    for shape in (model["shape"], samples["shape"]):
        if not all(0 < axis < SIDE for axis in shape):
            raise ValueError(f"no image is {shape}")
    if not 0 < samples["held_out"] < 1:
        raise ValueError(f"nobody holds out {samples['held_out']}")
    _key(model["classes"], samples["split_seed"])


def _check_entry(entry: Entry) -> None:
    """The same of an entry."""
    check_shape(_ENTRY, entry)
    _key(entry["index"], entry["seed"])
    if not entry["stages"]:
        raise ValueError("a map without stages")


def _key(index: Any, seed: Any) -> tuple[int, int]:
    """An index and a seed, of which file names and generators are made."""
    if type(index) is not int or type(seed) is not int:
        raise TypeError(f"a group names {index!r}, {seed!r}")
    if not (0 <= index < 1 << 31 and -(1 << 63) <= seed < 1 << 63):
        raise ValueError("an index or a seed that none can have")
    return index, seed


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
