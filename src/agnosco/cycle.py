"""What callers call: Algorithm 1 and refinement in turn, with settings that have names.

The presets are chosen from the figures in ``docs/paper.md``, which ``benchmarks/ablation.py`` makes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch

from .ball import L2, AutoL2, Sparse, scaled
from .classifier import Classifier
from .concept import ConceptMap
from .coordinates import Basis, Data, Pixel, Spectral
from .errors import AgnoscoError
from .mapper import MapperConfig, Step, saliency_map
from .refine import RefineConfig, refine
from .samples import Samples
from .views import AsIs, Crops


@dataclass(frozen=True)
class Config:
    """Everything that decides a map but the classifier, the samples, the class and the seed.

    Args:
        mapper: Settings of Algorithm 1.
        refine: Settings of the refinement that follows it, or None for none.
        cycles: How often the two are run in turn.
    """

    mapper: MapperConfig = field(default_factory=MapperConfig)
    refine: RefineConfig | None = field(default_factory=RefineConfig)
    cycles: int = 2

    def __post_init__(self) -> None:
        if self.cycles < 1:
            raise AgnoscoError(f"{self.cycles} cycles leave nothing to do", "give at least 1")

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
    direction="plus",
    clip="masked",
    coordinates=Data(),
    views=Crops(area=(0.3, 1.0)),
    ball=L2(60.0),
)

PRESETS: dict[str, Config] = {
    "paper": Config(),
    "quick": Config(_SEEN, refine=None, cycles=1),
    "best": Config(replace(_SEEN, steps=960, ball=L2(80.0)), refine=None, cycles=1),
    "draft": Config(replace(_SEEN, steps=240), refine=None, cycles=1),
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
    on_step: Callable[[Progress], None] | None = None,
) -> Iterator[ConceptMap]:
    """The maps of several classes and seeds, each as soon as it is finished.

    Every map has its own generator, so it is the same whether made alone or among others.

    Args:
        classifier: The network.
        classes: Indices or names.
        samples: Images to average over, of the classifier's shape.
        config: Settings, or the name of a preset.
        seeds: One map of every class for each.
        on_step: Called after every step.

    Raises:
        AgnoscoError: No such class or preset, or samples of another shape.
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
    basis = config.mapper.coordinates.fit(samples, classifier.device)
    seeds = list(seeds)
    return (
        _map_class(classifier, label, samples, config, seed=seed, basis=basis, on_step=on_step)
        for label in labels
        for seed in seeds
    )


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


def _map_class(
    classifier: Classifier,
    label: int,
    samples: Samples,
    config: Config,
    *,
    seed: int,
    basis: Basis,
    on_step: Callable[[Progress], None] | None,
) -> ConceptMap:
    mapper = config.mapper
    generator = generator_for(label, seed)
    project = mapper.ball.projector(basis)
    stages: dict[str, torch.Tensor] = {}
    trace: list[Step] = []
    nu = torch.zeros(basis.shape, device=basis.device)  # line 1: the black image

    def told(step: Step) -> None:
        if on_step is not None:
            on_step(Progress(label, seed, stage, len(trace) + step.step, config.steps, step))

    for cycle in range(1, config.cycles + 1):
        stage = f"map {cycle}"
        nu, seen = saliency_map(
            classifier, label, samples, mapper,
            basis=basis, project=project, generator=generator, start=nu, on_step=told,
        )  # fmt: skip
        stages[stage] = nu.cpu()
        trace += seen
        if config.refine is None:
            continue
        stage = f"refine {cycle}"
        nu, seen = refine(
            classifier, label, samples, nu, config.refine, mapper,
            basis=basis, project=project, generator=generator, on_step=told,
        )  # fmt: skip
        stages[stage] = nu.cpu()
        trace += seen
    probability = classifier.probabilities((0.5 - nu).clamp(0, 1)[None])[0, label].item()
    return ConceptMap(nu.cpu(), label, classifier.labels[label], seed, probability, stages, tuple(trace))


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
    except (KeyError, TypeError, AttributeError) as error:
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
    loop = _changed(mapper, ("step", "decay", "average", "coarse", "direction", "clip", "contrast", "dropout"))
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
