"""What callers call: the maps of several classes, each by Algorithm 1 and the refinement in turn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..models.classifier import Classifier
from ..types import Job, OnStep, Progress, Step
from .ball import Projector, carry_on
from .checkpoint import GroupState, fits
from .concept import ConceptMap
from .config import Config, preset
from .mapper import Lockstep, LoopState
from .prepare import compiled, images_at_once, placed, prepared, resolve_precision
from .reference import check_ended
from .refine import attention


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
    precision = resolve_precision(config.precision, classifier.device)
    faster = prepared(classifier, precision=precision)
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
