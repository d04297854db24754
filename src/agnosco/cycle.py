"""What callers call: Algorithm 1 and refinement in turn, with settings that have names.

The presets are chosen from the figures in ``docs/paper.md``, which ``benchmarks/ablation.py`` makes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .ball import L2, AutoL2, Sparse, scaled
from .classifier import Classifier
from .concept import ConceptMap
from .coordinates import Data, Pixel, Spectral
from .errors import AgnoscoError
from .lockstep import Lockstep
from .mapper import MapperConfig, Step, check_ended
from .prepare import PRECISIONS, compiled, images_at_once, placed, prepared, resolve_precision
from .refine import RefineConfig, attention
from .samples import Samples
from .views import AsIs, Crops


@dataclass(frozen=True)
class Config:
    """Everything that decides a map but the classifier, the samples, the class and the seed.

    Args:
        mapper: Settings of Algorithm 1.
        refine: Settings of the refinement that follows it, or None for none.
        cycles: How often the two are run in turn.
        precision: Arithmetic of the network while maps are made: ``"float32"``, ``"bfloat16"``, or ``"auto"``
            for bfloat16 where the device has it in hardware. Everything else is float32 always (on a GPU, PyTorch
            lets convolutions have TF32 by default).
        compiled: Whether to run the network through ``torch.compile`` first; pays for many maps on a GPU.
    """

    mapper: MapperConfig = field(default_factory=MapperConfig)
    refine: RefineConfig | None = field(default_factory=RefineConfig)
    cycles: int = 2
    precision: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise AgnoscoError(f"no precision {self.precision!r}", f"choose from {', '.join(PRECISIONS)}")
        if self.cycles < 1:
            raise AgnoscoError(f"{self.cycles} cycles leave nothing to do", "give at least 1")
        if self.compiled and self.mapper.dropout:
            raise AgnoscoError("a compiled network has no channels to drop", "leave compiled out, or dropout at 0")

    @property
    def steps(self) -> int:
        """Steps that a map takes, refinement included."""
        return self.cycles * (self.mapper.steps + (self.refine.steps if self.refine else 0))

    @property
    def passes(self) -> int:
        """Images that a map sends forward and back through the network."""
        return self.steps * self.mapper.batch


_SEEN = MapperConfig(
    batch=4,
    steps=480,
    step=0.1,
    decay=1.0,
    loss="odds",
    direction="plus",
    clip="masked",
    contrast=(0.5, 1.0),
    coordinates=Data(),
    views=Crops(area=(0.3, 1.0)),
    ball=L2(70.0),
)

PRESETS: dict[str, Config] = {
    "paper": Config(),
    "quick": Config(_SEEN, refine=None, cycles=1, precision="auto"),
    "best": Config(replace(_SEEN, steps=960, ball=L2(90.0)), refine=None, cycles=1, precision="auto"),
    "draft": Config(replace(_SEEN, steps=240), refine=None, cycles=1, precision="auto"),
}
"""``paper`` is the method to the letter, ``quick`` the one whose pictures people and other networks read at a
hundredth of the cost, ``best`` twice ``quick`` with a wider ball: sharper pictures, and nudges that move most
images, named by other networks about as well; ``draft`` half of ``quick`` for a first look."""


def preset(name: str) -> Config:
    """The settings of this name."""
    if name not in PRESETS:
        raise AgnoscoError(f"no preset {name!r}", f"choose from {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step.

    Args:
        label, seed: The map being made.
        stage: Name of its stage, ``"map 1"``, ``"refine 1"``, ``"map 2"`` …
        done: Steps done of this map, all stages together.
        total: Steps that this map takes.
        last: What the last step saw and did.
    """

    label: int
    seed: int
    stage: str
    done: int
    total: int
    last: Step


def map_classes(
    classifier: Classifier,
    classes: Iterable[int | str],
    samples: Samples,
    config: Config | str = "quick",
    *,
    seeds: Iterable[int] = (0,),
    together: int | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Iterator[ConceptMap]:
    """The maps of several classes and seeds, each as soon as it is finished.

    As many are made side by side as fill the device. Every map has its own generator, so it is the same whether made
    alone or among others, but for the rounding of sums; which many steps amplify, most where it decides something
    (a direction of lines 8-14, the pixels of a sparse ball).

    Args:
        classifier: The network.
        classes: Indices or names.
        samples: Images to average over, of the classifier's shape.
        config: Settings, or the name of a preset.
        seeds: One map of every class for each.
        together: Maps to make side by side; None fills the device.
        on_step: Called after every step, for every map.

    Raises:
        AgnoscoError: No such class or preset, or samples of another shape; or, once the sound maps made beside it
            are handed out, that the gradients of a class are not finite.
    """
    config = preset(config) if isinstance(config, str) else config
    if isinstance(classes, str):
        raise AgnoscoError(f"{classes!r} is one class, not several", f"write [{classes!r}], or use map_class")
    labels = [classifier.index(label) for label in classes]
    if samples.shape != classifier.shape:
        raise AgnoscoError(
            f"samples of shape {samples.shape} for a classifier of {classifier.shape}",
            "make them with classifier.shape",
        )
    if together is not None and together < 1:
        raise AgnoscoError(f"{together} maps at once leave nothing to do", "give at least 1, or None")
    seeds = list(seeds)
    maps = [(label, seed) for label in labels for seed in seeds]
    return _in_groups(classifier, maps, samples, config, together, on_step)


def map_class(
    classifier: Classifier,
    label: int | str,
    samples: Samples,
    config: Config | str = "quick",
    *,
    seed: int = 0,
    on_step: Callable[[Progress], None] | None = None,
) -> ConceptMap:
    """The map of one class; see :func:`map_classes`."""
    return next(map_classes(classifier, [label], samples, config, seeds=[seed], on_step=on_step))


def maps_together(classifier: Classifier, config: Config) -> int:
    """How many maps to make side by side, so that their mini-batches fill the device."""
    return _ready(classifier, config)[1]


def _ready(classifier: Classifier, config: Config) -> tuple[Classifier, int, int]:
    """The network as the settings ask for it, how many maps to make with it side by side, how many images to hold."""
    own_layers = config.mapper.dropout > 0  # which it scales
    precision = resolve_precision(config.precision, classifier.device)
    faster = prepared(classifier, precision=precision, fold=not own_layers)
    images = images_at_once(faster)
    maps = max(images // config.mapper.batch, 1)
    return compiled(faster) if config.compiled else faster, maps, images


def _in_groups(
    classifier: Classifier,
    maps: list[tuple[int, int]],
    samples: Samples,
    config: Config,
    together: int | None,
    on_step: Callable[[Progress], None] | None,
) -> Iterator[ConceptMap]:
    basis = config.mapper.coordinates.fit(samples, classifier.device)
    faster, fitting, micro_batch = _ready(classifier, config)
    resident = placed(samples, classifier.device)
    size = math.ceil(len(maps) / math.ceil(len(maps) / (together or fitting))) if maps else 1  # of equal groups
    for start in range(0, len(maps), size):
        group = maps[start : start + size]
        side_by_side = Lockstep(
            faster, [label for label, _ in group], resident, config.mapper,
            basis=basis, generators=[generator_for(*one) for one in group], micro_batch=micro_batch,
        )  # fmt: skip
        yield from _group(classifier, group, side_by_side, config, on_step)


def _group(
    classifier: Classifier,
    maps: list[tuple[int, int]],
    side_by_side: Lockstep,
    config: Config,
    on_step: Callable[[Progress], None] | None,
) -> Iterator[ConceptMap]:
    """Maps that are made side by side, one after the other as they are handed out."""
    basis = side_by_side.basis
    project = config.mapper.ball.projector(basis)
    stages: list[tuple[str, Tensor]] = []
    traces: list[list[Step]] = [[] for _ in maps]
    nu = torch.zeros(len(maps), *basis.shape, device=basis.device)  # line 1: the black image

    def told(steps: list[Step]) -> None:
        if on_step is not None:
            for (label, seed), before, step in zip(maps, traces, steps, strict=True):
                on_step(Progress(label, seed, stage, len(before) + step.step, config.steps, step))

    with side_by_side.classifier.frozen():
        for cycle in range(1, config.cycles + 1):
            stage = f"map {cycle}"
            nu, seen = side_by_side.map(nu, project, told)
            for trace, steps in zip(traces, seen, strict=True):
                trace += steps
            stages.append((stage, nu.cpu()))
            if config.refine is None:
                continue
            stage = f"refine {cycle}"
            nu, seen = side_by_side.refine(nu, config.refine, project, classifier, told)
            for trace, steps in zip(traces, seen, strict=True):
                trace += steps
            stages.append((stage, nu.cpu()))
    for place in sorted(range(len(maps)), key=lambda place: not math.isfinite(traces[place][-1].norm)):
        label, seed = maps[place]
        check_ended(label, traces[place][-1])  # those that raise come last
        own = {stage: all_maps[place].clone() for stage, all_maps in stages}
        pixels = (0.5 - nu[place]).clamp(0, 1)[None]
        probability = classifier.probabilities(pixels)[0, label].item()
        name = classifier.labels[label]
        xi = _attention(classifier, nu[place])
        yield ConceptMap(nu[place].cpu().clone(), label, name, seed, probability, own, tuple(traces[place]), xi)


def _attention(classifier: Classifier, nu: Tensor) -> Tensor | None:
    """Ξ of a finished map, on the CPU; None for a network without a stage that has places."""
    try:
        return attention(classifier, nu).cpu()
    except AgnoscoError:
        return None


def generator_for(label: int, seed: int) -> torch.Generator:
    """The generator that a map owns: from its label and seed, and nothing else."""
    digest = hashlib.sha256(f"{label}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


_DIALS: dict[str, dict[str, type]] = {
    name: {dial.__name__: dial for dial in dials}
    for name, dials in {
        "coordinates": (Pixel, Data, Spectral),
        "views": (AsIs, Crops),
        "ball": (L2, AutoL2, Sparse),
    }.items()
}


def config_to_json(config: Config) -> dict[str, Any]:
    """Settings as plain JSON values; each dial carries its ``type``."""

    def plain(name: str, value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            kind = {"type": type(value).__name__} if name in _DIALS else {}
            return kind | {f.name: plain(f.name, getattr(value, f.name)) for f in fields(value)}
        return list(value) if isinstance(value, tuple) else value

    return plain("", config)


def config_from_json(data: dict[str, Any]) -> Config:
    """The settings that :func:`config_to_json` wrote.

    Raises:
        AgnoscoError: They name a dial or a setting that this version does not know.
    """

    def built(name: str, value: Any) -> Any:
        if name in _DIALS:
            rest = {part: built(part, setting) for part, setting in value.items() if part != "type"}
            return _DIALS[name][value["type"]](**rest)
        return tuple(value) if isinstance(value, list) else value

    try:
        parts = dict(data)
        mapper = MapperConfig(**{name: built(name, value) for name, value in parts.pop("mapper").items()})
        refine = parts.pop("refine")
        return Config(mapper, RefineConfig(**refine) if refine else None, parts.pop("cycles"), **parts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AgnoscoError(
            f"settings that this version does not know: {error}", "use the version that wrote them"
        ) from error


def describe(config: Config, shape: tuple[int, int, int]) -> str:
    """The settings in one line, for captions: which dials a picture was made with, and what it cost.

    Args:
        config: The settings.
        shape: ``(C, H, W)`` of the images, to which a radius is scaled.
    """
    mapper = config.mapper
    eta = f" ({scaled(mapper.ball.radius, shape):.1f} at this size)" if isinstance(mapper.ball, L2) else ""
    refined = f", refined with λ {config.refine.weight:g}" if config.refine else ""
    cycles = f"{config.cycles} x " if config.cycles > 1 else ""
    loop = ["network in bfloat16"] if config.precision == "bfloat16" else []
    loop += _changed(mapper, ("step", "decay", "average", "coarse", "loss", "direction", "clip", "contrast", "dropout"))
    return (
        f"{_words(mapper.coordinates)}, {_words(mapper.views)}, {_words(mapper.ball)}{eta}, "
        f"{cycles}{mapper.steps} steps of {mapper.batch} images{refined}{''.join(f', {words}' for words in loop)}"
    )


def _words(dial: Any) -> str:
    """A dial in words: its kind, and the settings in which it differs from its defaults."""
    return " ".join([type(dial).__name__, *_changed(dial, [f.name for f in fields(dial)])])


def _changed(settings: Any, names: Iterable[str]) -> list[str]:
    """The settings of these names that are not at their defaults."""
    defaults = {f.name: f.default for f in fields(settings)}
    return [f"{name} {getattr(settings, name)}" for name in names if getattr(settings, name) != defaults[name]]
