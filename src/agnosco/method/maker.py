"""What callers call: Algorithm 1 and refinement in turn, with settings that have names.

The presets are chosen from the figures in ``docs/paper.md``, which ``benchmarks/ablation.py`` makes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..models.classifier import Classifier
from ..types import Job, OnStep, Progress, Step
from .ball import L2, AutoL2, Projector, Sparse, carry_on, scaled
from .checkpoint import GroupState, fits
from .concept import ConceptMap
from .mapper import Lockstep, LoopState
from .parameterization import Data, Pixel, Spectral
from .prepare import PRECISIONS, compiled, images_at_once, placed, prepared, resolve_precision
from .reference import MapperConfig, check_ended
from .refine import RefineConfig, attention
from .transforms import Crops, Identity


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
    def stages(self) -> list[str]:
        """What a map goes through: ``"map 1"``, ``"refine 1"``, ``"map 2"`` and so on."""
        kinds = ("map", "refine") if self.refine else ("map",)
        return [f"{kind} {cycle}" for cycle in range(1, self.cycles + 1) for kind in kinds]

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
    loss="log-odds",
    direction="plus",
    clip="masked",
    contrast=(0.5, 1.0),
    parameterization=Data(),
    transforms=Crops(area=(0.3, 1.0)),
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


def map_classes(
    classifier: Classifier,
    classes: Iterable[int | str],
    samples: Samples,
    config: Config | str = "quick",
    *,
    seeds: Iterable[int] = (0,),
    together: int | None = None,
    on_step: OnStep | None = None,
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
    jobs = [Job(label, seed) for label in labels for seed in seeds]
    return _in_groups(classifier, jobs, samples, config, together, on_step)


def map_class(
    classifier: Classifier,
    label: int | str,
    samples: Samples,
    config: Config | str = "quick",
    *,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> ConceptMap:
    """The map of one class; see :func:`map_classes`."""
    return next(map_classes(classifier, [label], samples, config, seeds=[seed], on_step=on_step))


def maps_together(classifier: Classifier, config: Config) -> int:
    """How many maps to make side by side, so that their mini-batches fill the device."""
    return _ready(classifier, config)[1]


def groups_of(jobs: Sequence[Job], together: int) -> list[list[Job]]:
    """Jobs in groups of about the same size, as few as there can be with so many together at most."""
    if not jobs:
        return []
    size = math.ceil(len(jobs) / math.ceil(len(jobs) / together))
    return [list(jobs[start : start + size]) for start in range(0, len(jobs), size)]


class Maker:
    """What makes the maps of one classifier: the network as the settings ask for it, and all that its maps share.

    Args:
        classifier: The network.
        samples: Images to average over, of the classifier's shape.
        config: Settings.
    """

    def __init__(self, classifier: Classifier, samples: Samples, config: Config) -> None:
        self.classifier = classifier
        self.config = config
        self.basis = config.mapper.parameterization.fit(samples, classifier.device)
        config.mapper.ball.projector(self.basis)  # what does not go together is said before anything is done
        self.faster, self.together, self.micro_batch = _ready(classifier, config)
        self.resident = placed(samples, classifier.device)

    def make(
        self,
        group: Sequence[Job],
        *,
        on_step: OnStep | None = None,
        state: GroupState | None = None,
        keep: Callable[[GroupState], None] | None = None,
    ) -> Iterator[ConceptMap]:
        """Maps made side by side, one after the other as they are handed out.

        The same group of the same settings gives the same bits on a CPU, however often it is broken off in between.

        Args:
            group: Which.
            on_step: Called after every step, for every map.
            state: Where to go on from; one that cannot be of this group is left alone.
            keep: Called after every step and every stage, with what to go on from.

        Raises:
            AgnoscoError: Once the sound maps are handed out: the gradients of a class are not finite.
        """
        made = self._all_stages(group, state, on_step, keep)
        for place in sorted(range(len(group)), key=lambda place: not math.isfinite(made.traces[place][-1].norm)):
            check_ended(group[place].label, made.traces[place][-1])  # those that raise come last
            yield self._concept(group[place], place, made)

    def _all_stages(
        self,
        group: Sequence[Job],
        state: GroupState | None,
        on_step: OnStep | None,
        keep: Callable[[GroupState], None] | None,
    ) -> GroupState:
        generators = [generator_for(*job) for job in group]
        project = self.config.mapper.ball.projector(self.basis)
        if state is None or not fits(state, self._steps, count=len(group), basis=self.basis, project=project):
            state = GroupState.begin(generators)
        for generator, before in zip(generators, state.generators, strict=True):
            generator.set_state(before)
        carry_on(project, state.ball)
        side_by_side = Lockstep(
            self.faster, [job.label for job in group], self.resident, self.config.mapper,
            basis=self.basis, generators=generators, micro_batch=self.micro_batch,
        )  # fmt: skip
        with self.faster.frozen():
            for stage in self.config.stages[len(state.stages) :]:
                nu, steps = self._stage(stage, side_by_side, project, group, state, on_step, keep)
                state = state.after(stage, nu, steps, generators, project)
                if keep is not None:
                    keep(state)
        return state

    @property
    def _steps(self) -> dict[str, int]:
        """How many steps each stage has."""
        of = {"map": self.config.mapper.steps, "refine": self.config.refine.steps if self.config.refine else 0}
        return {stage: of[stage.partition(" ")[0]] for stage in self.config.stages}

    def _stage(
        self,
        stage: str,
        side_by_side: Lockstep,
        project: Projector,
        group: Sequence[Job],
        before: GroupState,
        on_step: OnStep | None,
        keep: Callable[[GroupState], None] | None,
    ) -> tuple[Tensor, list[list[Step]]]:
        """One stage from where the group stands: ν, and what every step did for each map."""

        def told(steps: list[Step]) -> None:
            for job, trace, step in zip(group, before.traces, steps, strict=True):
                if on_step is not None:
                    on_step(Progress(*job, stage, len(trace) + step.step, self.config.steps, step))

        def stepped(loop: LoopState) -> None:
            if keep is not None:
                keep(before.at(loop, side_by_side.generators, project))

        nu = torch.zeros(len(group), *self.basis.shape, device=self.basis.device)  # line 1: the black image
        for finished in before.stages.values():
            nu = finished.to(self.basis.device)
        if stage.startswith("map"):
            return side_by_side.map(nu, project, told, state=before.loop, on_state=stepped)
        assert self.config.refine is not None
        return side_by_side.refine(
            nu, self.config.refine, project, self.classifier, told, state=before.loop, on_state=stepped
        )

    def _concept(self, job: Job, place: int, made: GroupState) -> ConceptMap:
        """The map at a place of its group, judged by the network as it is."""
        label, seed = job
        stages = {stage: all_maps[place].clone() for stage, all_maps in made.stages.items()}
        nu = stages[self.config.stages[-1]].to(self.classifier.device)
        probability = self.classifier.probabilities((0.5 - nu).clamp(0, 1)[None])[0, label].item()
        xi = _attention(self.classifier, nu)
        name, trace = self.classifier.labels[label], tuple(made.traces[place])
        return ConceptMap(nu.cpu().clone(), label, name, seed, probability, stages, trace, xi)


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
    jobs: list[Job],
    samples: Samples,
    config: Config,
    together: int | None,
    on_step: OnStep | None,
) -> Iterator[ConceptMap]:
    maker = Maker(classifier, samples, config)
    for group in groups_of(jobs, together or maker.together):
        yield from maker.make(group, on_step=on_step)


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
        "parameterization": (Pixel, Data, Spectral),
        "transforms": (Identity, Crops),
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
        f"{_words(mapper.parameterization)}, {_words(mapper.transforms)}, {_words(mapper.ball)}{eta}, "
        f"{cycles}{mapper.steps} steps of {mapper.batch} images{refined}{''.join(f', {words}' for words in loop)}"
    )


def _words(dial: Any) -> str:
    """A dial in words: its kind, and the settings in which it differs from its defaults."""
    return " ".join([type(dial).__name__, *_changed(dial, [f.name for f in fields(dial)])])


def _changed(settings: Any, names: Iterable[str]) -> list[str]:
    """The settings of these names that are not at their defaults."""
    defaults = {f.name: f.default for f in fields(settings)}
    return [f"{name} {getattr(settings, name)}" for name in names if getattr(settings, name) != defaults[name]]
