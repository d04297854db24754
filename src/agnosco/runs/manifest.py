"""The manifest of a run, as typed JSON records: the settings that all its maps share, and an entry for each map."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, convert
from msgspec.structs import replace

from ..io import records
from ..io.records import Record
from ..method.config import Config, config_from_json
from ..types import MOST_SEED, Job, Resize

if TYPE_CHECKING:
    from ..data.samples import Samples
    from ..method.concept import ConceptMap
    from ..models.classifier import Classifier

HELD_OUT, SPLIT_SEED = 0.2, 0
"""Share of the samples that no map is made with, and that every map is judged with; seed of their random choice."""

CPU_FEATURES = ("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16")
"""Instructions that the libraries of PyTorch compute with where a CPU has them, beside its widest vectors."""

CHECKPOINTS = "checkpoints"
"""The folder of checkpoints inside a run folder."""

MOST_MAPS = 50_000
"""Maps of one run: its manifest, with up to 1300 bytes for each, is read as a whole, and no larger than 64 MiB."""

Index = Annotated[int, Meta(ge=0, lt=1 << 31)]
Seed = Annotated[int, Meta(ge=-MOST_SEED, le=MOST_SEED)]
Axis = Annotated[int, Meta(gt=0, lt=1 << 16)]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Group = Sequence[tuple[int, int]]
"""Maps that are made side by side: ``(index, seed)`` of each."""


class ModelRecord(Record, frozen=True, forbid_unknown_fields=True):
    """The classifier of a run.

    Args:
        name: What it was loaded as, such as ``torchvision:resnet50``.
        weights: Base name of its weights file, if one was given.
        fingerprint: Digest of its weights and its preprocessing.
        shape: ``(C, H, W)`` of its input.
        mean, std: Of its preprocessing, one number for each channel.
        classes: How many it knows.
        features: The layer that a refinement compares, if there is one.
        at, directions: The layer that was asked instead of the classes, and the base name of the file of directions in
            its space, if there are any ("given in Python" without a file).
        resize: How its own files say that images are resized, which those of a folder then are; None if they do not.
        labels, prompts: Base names of the files of class names and of prompts, if there were any.
        allow_pickle: Whether the weights were allowed to be a pickle.
    """

    name: str
    weights: str | None
    fingerprint: str
    shape: tuple[Axis, Axis, Axis]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: Index
    features: str | None
    at: str | None = None
    directions: str | None = None
    resize: Resize | None = None
    labels: str | None = None
    prompts: str | None = None
    allow_pickle: bool = False

    @classmethod
    def of(cls, classifier: Classifier, weights: str | Path | None, config: Config) -> ModelRecord:
        """That of a classifier whose weights came from this file, or from the one that it was loaded from."""
        files = classifier.files
        return cls(
            name=classifier.name, weights=Path(weights).name if weights else files.weights,
            fingerprint=classifier.fingerprint, shape=classifier.shape, mean=classifier.mean, std=classifier.std,
            classes=classifier.classes,
            features=classifier.features if config.refine else None, at=classifier.at, directions=classifier.directions,
            resize=classifier.resize, labels=files.labels, prompts=files.prompts, allow_pickle=files.allow_pickle,
        )  # fmt: skip


class SamplesRecord(Record, frozen=True, forbid_unknown_fields=True):
    """The samples of a run: where they came from, how many they are, and which of them are held out."""

    source: str
    count: int
    fingerprint: str
    shape: tuple[Axis, Axis, Axis]
    held_out: Annotated[float, Meta(gt=0, lt=1)]
    split_seed: Seed

    @classmethod
    def of(cls, samples: Samples) -> SamplesRecord:
        """That of all samples; see :func:`split`."""
        return cls(
            source=samples.source, count=len(samples), fingerprint=samples.fingerprint, shape=samples.shape,
            held_out=HELD_OUT, split_seed=SPLIT_SEED,
        )  # fmt: skip


class Settings(Record, frozen=True, forbid_unknown_fields=True):
    """Everything that decides the bits of a run's maps, except class, seed and group.

    Args:
        command: What made the run: ``"map"``, ``"demo"`` or ``"python"``.
        preset: Name of the preset that the configuration is based on; None if Python code built it.
        overrides: Options that replaced settings of the preset; see :func:`agnosco.runs.command.chosen_config`.
        device, threads, versions, model, samples: What the maps are made with.
        config: The configuration, as :func:`~agnosco.method.config.config_to_json` wrote it.
        cpu: The kind of CPU, see :func:`cpu_kind`; None on another device, and in runs of earlier versions.
    """

    command: str
    preset: str | None
    overrides: dict[str, str | int | float | bool]
    device: str
    threads: Annotated[int, Meta(ge=1, le=1 << 12)]
    versions: dict[str, str | None]
    model: ModelRecord
    samples: SamplesRecord
    config: dict[str, Any]
    cpu: str | None = None


class MadeWith(Record, frozen=True, forbid_unknown_fields=True):
    """What the file of a map says that it was made with, so that a lost manifest can be rebuilt.

    Args:
        settings: Those of its run.
        group: The maps that were made side by side, itself among them; none if it was made by itself.
        place: The place of this group among those of the run, from 0.
    """

    settings: Settings
    group: list[tuple[Index, Seed]]
    place: Annotated[int, Meta(ge=0, lt=1 << 31)] | None = None


class Drawn(Record, frozen=True, forbid_unknown_fields=True):
    """Digests of the pictures of a map: the one for people, and the raw one that metrics see."""

    picture: str
    raw: str

    @classmethod
    def of(cls, pictures: Mapping[str, bytes]) -> Drawn:
        """Those of pictures, by the names of these fields."""
        return cls(**{kind: hashlib.sha256(content).hexdigest() for kind, content in pictures.items()})


class Entry(Record, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename={"name": "class"}):
    """A map of a run.

    Args:
        index, name, seed: Its class and seed.
        stages: Names of the stages it went through.
        probability: Of its class, for its picture.
        targeted_success_rate: Share of held-out images that its pattern moves to its class; None if there were none.
        norm: ‖ν‖₂.
        files: Paths inside the run folder, for people: ``map``, ``picture``, ``raw``. They are never followed.
        sha256: Digest of the map's file.
        drawn: Digests of its pictures; None in runs of earlier versions.
        check: Digest of the rest of this entry.
    """

    index: Index
    name: str
    seed: Seed
    stages: Annotated[tuple[str, ...], Meta(min_length=1)]
    probability: float
    targeted_success_rate: float | None
    norm: float
    files: dict[str, str]
    sha256: Digest
    drawn: Drawn | None = None
    check: str | None = None

    @property
    def job(self) -> Job:
        """Its class and seed."""
        return Job(self.index, self.seed)

    @property
    def stem(self) -> str:
        """The name that its files share."""
        return stem_of(self.index, self.name, self.seed)


def split(samples: Samples) -> tuple[Samples, Samples]:
    """The samples that a run's maps are made with, and those held out to judge them."""
    return samples.split(HELD_OUT, seed=SPLIT_SEED)


def read_manifest(content: bytes) -> tuple[Settings, list[list[tuple[int, int]]], list[Entry]]:
    """Settings, groups and entries of a manifest.

    An entry that does not agree with its digest is left out; it is read from its own file.

    Raises:
        ValueError: It is not a manifest, or does not agree with its digest.
        AgnoscoError: Its configuration is another version's.
    """
    data = records.parse(content)
    if not isinstance(data, dict):
        raise ValueError("it is not an object")
    if data.pop("check", _digest_of(data)) != _digest_of(data):
        raise ValueError("its digest is another")
    entries = convert(data.pop("maps", None), list[Entry])
    groups = convert(data.pop("groups", []), list[list[tuple[Index, Seed]]])
    settings = convert(data, Settings)
    config_from_json(settings.config)
    return settings, groups, [entry for entry in entries if entry.check in (None, _digest(entry))]


def write_manifest(settings: Settings, groups: Sequence[Group], entries: Sequence[Entry]) -> bytes:
    """A manifest as bytes, with a digest of all but the entries, which have their own; each group is one line of it."""
    data = records.to_json(settings) | {"groups": records.to_json(groups)}
    text = records.encode(data | {"groups": [], "maps": entries, "check": _digest_of(data)}).decode()
    if groups:
        lines = ",\n".join(f"  {json.dumps(group)}" for group in groups)
        text = text.replace('\n "groups": []', f'\n "groups": [\n{lines}\n ]', 1)
    return text.encode()


def entry_for(
    concept: ConceptMap, content: bytes, pictures: Mapping[str, bytes], *, targeted_success_rate: float
) -> Entry:
    """The entry of a map whose file and pictures have this content; a rate that is not finite becomes None."""
    import torch

    name = stem_of(concept.label, concept.name, concept.seed)
    drawn_at = {kind: picture_of(name, kind) for kind in pictures}
    entry = Entry(
        index=concept.label, name=concept.name, seed=concept.seed, stages=tuple(concept.stages),
        probability=float(concept.probability),  # a 1 would be read again as 1.0, and have another digest
        targeted_success_rate=float(targeted_success_rate) if isfinite(targeted_success_rate) else None,
        norm=torch.linalg.vector_norm(concept.nu, dtype=torch.float64).item(),
        files={"map": f"maps/{name}.safetensors"} | drawn_at, sha256=hashlib.sha256(content).hexdigest(),
        drawn=Drawn.of(pictures),
    )  # fmt: skip
    return sealed(entry)


def read_entry(content: bytes, name: str) -> Entry:
    """The entry in the file of this stem; ValueError if it is damaged, or another map's."""
    with suppress(ValueError):
        entry = records.decode(content, Entry)
        if write_entry(entry) == content and entry.stem == name:
            return entry
    raise ValueError(f"{name}.json is damaged")


def write_entry(entry: Entry) -> bytes:
    """The file of an entry, with its digest, so that damage is noticed."""
    return records.encode(sealed(entry))


def sealed(entry: Entry) -> Entry:
    """An entry with its own digest."""
    return replace(entry, check=_digest(entry))


def stem_of(index: int, name: str, seed: int) -> str:
    """The name that the files of a class's map share: ``0001-goldfish-s0``."""
    return f"{index:04d}-{slug(name)}-s{seed:d}"


def picture_of(stem: str, kind: str) -> str:
    """The file of a picture of a map: ``picture``, for people, or ``raw``."""
    return f"pictures/{stem}{'-raw' if kind == 'raw' else ''}.png"


def name_of_group(group: Group) -> str:
    """What a group's checkpoint and its leases are called."""
    return hashlib.sha256(json.dumps(group).encode()).hexdigest()[:24]


def slug(name: str) -> str:
    """A class name as part of a file name: a-z, 0-9 and hyphens, at most 40 characters."""
    ascii_name = unicodedata.normalize("NFKD", name[:1000]).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_name).strip("-")[:40].strip("-") or "class"


def identity(part: ModelRecord | SamplesRecord) -> str:
    """A classifier or a sample set in a few words."""
    name = part.name if isinstance(part, ModelRecord) else part.source
    return f"{name} {list(part.shape)} ({part.fingerprint[:8]})"


def _digest_of(data: dict[str, Any]) -> str:
    """The digest of a manifest's values, except for its entries."""
    values = {key: value for key, value in data.items() if key != "maps"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _digest(entry: Entry) -> str:
    unsealed = records.encode(replace(entry, check=None))
    return hashlib.sha256(unsealed.removesuffix(b"\n")).hexdigest()


def cpu_kind(device: str) -> str | None:
    """What decides the last bits on a CPU: its vectors and its matrix instructions; None for another device."""
    if device.partition(":")[0] != "cpu":
        return None
    import torch

    has = getattr(torch.cpu, "get_capabilities", dict)()
    return " ".join([torch.backends.cpu.get_cpu_capability(), *(name for name in CPU_FEATURES if has.get(name))])


def versions() -> dict[str, str | None]:
    """Versions of the packages that decide the bits of a map."""
    import torch

    return {"agnosco": version_of("agnosco"), "torch": str(torch.__version__), "torchvision": version_of("torchvision")}


def version_of(package: str) -> str | None:
    """The version of a package that is installed; None if it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
