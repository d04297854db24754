"""The cycle: maps of several classes, each by Algorithm 1 and the refinement (Eq. 2) in turn."""

import hashlib
import math
import operator
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from ..data.samples import Samples
from ..errors import AgnoscoError, AgnoscoWarning
from ..models.classifier import Classifier
from ..models.loading import load
from ..models.objectives import Objective, with_objective
from ..types import Job, OnStep, Progress
from .checkpoint import GroupState, fits
from .concept import ConceptMap
from .config import Config, MapperConfig, preset
from .mapper import Mapper
from .prepare import compiled, images_at_once, placed, prepared, resolve_precision
from .refine import Refiner, attention
from .where import contributions

TIMED = 3
"""Steps of the measurement in :meth:`Maker.seconds_per_map`; the first of them warms up."""


def map_classes(
    classifier: Classifier | nn.Module | str,
    classes: Iterable[int | str],
    samples: Samples,
    config: Config | str = "quick",
    *,
    size: int | tuple[int, int] | None = None,
    seeds: Iterable[int] = (0,),
    together: int | None = None,
    on_step: OnStep | None = None,
) -> Iterator[ConceptMap]:
    """The maps of several classes and seeds, each as soon as it is finished.

    As many are made side by side as fill the device. Every map has its own generator, so a map made alone equals the
    same map made beside others but for the rounding of sums. Many steps amplify it, most where it decides something (a
    direction of lines 8–14, the pixels of a sparse ball).

    Args:
        classifier: The network: a :class:`Classifier`, or a module or name of which :func:`load` makes one.
        classes: Indices or names.
        samples: Images to average over, of the classifier's shape.
        config: Settings, or the name of a preset.
        size: Height and width in pixels of the input of a module that does not carry them.
        seeds: One map of every class for each.
        together: Maps to make side by side; None fills the device.
        on_step: Called after every step, for every map.

    Raises:
        AgnoscoError: There is no such class or preset, the samples have another shape, or :func:`load` refuses the
            network; or, after the sound maps of its group, the gradients of a class are not finite.

    Example:
        >>> import torch
        >>> from agnosco import Samples, map_classes
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        >>> samples = Samples.noise((3, 8, 8), count=16)
        >>> for concept in map_classes(model, [0, 1], samples, "draft", size=8):
        ...     print(concept.label, tuple(concept.pattern.shape))
        0 (3, 8, 8)
        1 (3, 8, 8)
    """
    classifier = load(classifier, size=size)
    config = preset(config) if isinstance(config, str) else config
    labels = indices_of(classifier, classes)
    check_shape(classifier, samples)
    if together is not None and together < 1:
        raise AgnoscoError(f"together must be at least 1, not {together}", "None fills the device")
    seeds = [operator.index(seed) for seed in seeds]  # those of numpy, too, are written into files
    jobs = [Job(label, seed) for label in labels for seed in seeds]
    maker = Maker(classifier, samples, config)
    groups = groups_of(jobs, together or maker.together)
    return chain.from_iterable(maker.make(group, on_step=on_step) for group in groups)


def map_class(
    classifier: Classifier | nn.Module | str,
    label: int | str,
    samples: Samples,
    config: Config | str = "quick",
    *,
    size: int | tuple[int, int] | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> ConceptMap:
    """The map of one class; see :func:`map_classes`.

    Example:
        >>> import torch
        >>> from agnosco import Classifier, Samples, map_class
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        >>> classifier = Classifier(model, size=8, labels=["cat", "dog"])
        >>> concept = map_class(classifier, "dog", Samples.noise(classifier.shape, count=16), "draft")
        >>> concept.name, concept.seed
        ('dog', 0)
    """
    return next(map_classes(classifier, [label], samples, config, size=size, seeds=[seed], on_step=on_step))


def map_objective(
    classifier: Classifier | nn.Module | str,
    objective: Objective,
    samples: Samples,
    config: Config | str = "quick",
    *,
    name: str = "objective",
    size: int | tuple[int, int] | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> ConceptMap:
    """The map of any objective of the logits, such as the difference or the sum of several classes.

    It raises the mean of the objective over perturbed images; the loss of the settings is not used. Where a probability
    is reported (``probability``, the steps, lines 8–14 of Algorithm 1), it is 1 / (1 + exp(−2 f)) for the value f, and
    ``success`` is the share of images for which f is positive: a targeted success rate needs a class, and there is
    none. Run folders and the command line take no objective, because a Python function cannot be read from a manifest.

    Args:
        classifier, samples, config, size, seed, on_step: As in :func:`map_classes`.
        objective: Takes logits ``(N, classes)``, float32, and answers a value for each image, ``(N,)``, which can be
            differentiated. It is maximised; to lower something, answer its negative. Where probability and success
            matter (``AutoL2``, ``direction="lookahead"``), subtract what counts as success. For a classifier
            with ``at``, the logits are the scores of the layer's channels.
        name: What the map is called.

    Raises:
        AgnoscoError: The objective answers something else, or for the reasons of :func:`map_classes`.

    Example:
        >>> import torch
        >>> from agnosco import Samples, map_objective
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
        >>> samples = Samples.noise((3, 8, 8), count=16)
        >>> def first_not_last(logits):
        ...     return logits[:, 0] - logits[:, 3]
        >>> map_objective(model, first_not_last, samples, "draft", size=8, name="first, not last").name
        'first, not last'
    """
    asked = with_objective(load(classifier, size=size), objective, name)
    config = preset(config) if isinstance(config, str) else config
    config = replace(config, mapper=replace(config.mapper, loss="logit"))
    return map_class(asked, 0, samples, config, seed=seed, on_step=on_step)


def indices_of(classifier: Classifier, classes: Iterable[int | str]) -> list[int]:
    """Indices of classes; AgnoscoError if there is no such class, or one name is given instead of several."""
    if isinstance(classes, str):
        raise AgnoscoError(f"{classes!r} is one class, not several", f"write [{classes!r}]")
    return [classifier.index(label) for label in classes]


def check_shape(classifier: Classifier, samples: Samples) -> None:
    """Raise an AgnoscoError for samples that the classifier does not take."""
    if samples.shape != classifier.shape:
        raise AgnoscoError(
            f"the samples have shape {samples.shape}, and {classifier.name} takes {classifier.shape}",
            "make them with classifier.shape",
        )


def maps_together(classifier: Classifier, config: Config) -> int:
    """How many maps to make side by side to fill the device."""
    return _sized(classifier, config)[2]


def groups_of(jobs: Sequence[Job], together: int) -> list[list[Job]]:
    """Jobs in as few groups as possible, of about the same size, with at most ``together`` jobs each."""
    if not jobs:
        return []
    size = math.ceil(len(jobs) / math.ceil(len(jobs) / together))
    return [list(jobs[start : start + size]) for start in range(0, len(jobs), size)]


class Maker:
    """Makes the maps of one classifier: the prepared network, and all else that its maps share.

    Raises:
        AgnoscoError: The settings do not go together, no gradient reaches the pixels, or the refinement finds no
            feature map.
    """

    def __init__(self, classifier: Classifier, samples: Samples, config: Config) -> None:
        self.classifier = classifier
        self.config = config
        if config.refine:  # a network that has no feature map is refused before the first step
            classifier.activations(torch.zeros(1, *classifier.shape, device=classifier.device))
        self.basis = config.mapper.parameterization.fit(samples, classifier.device)
        self.project = config.mapper.ball.projector(self.basis)
        self.prepared, self.micro_batch, self.together = _sized(classifier, config)
        self.network = compiled(self.prepared) if config.compiled else self.prepared
        self.samples = placed(samples, classifier.device)

    def make(
        self,
        group: Sequence[Job],
        *,
        on_step: OnStep | None = None,
        state: GroupState | None = None,
        on_state: Callable[[GroupState], None] | None = None,
    ) -> Iterator[ConceptMap]:
        """The maps of a group, made side by side.

        The same group of the same settings gives the same bits on a CPU, however often it is interrupted.

        Args:
            group: The maps to make.
            on_step: Called after every step, for every map.
            state: The state to continue from; a state that cannot be of this group is ignored.
            on_state: Called after every step and every stage, with a state to continue from.

        Raises:
            AgnoscoError: After the sound maps: the gradients of a class are not finite.
        """
        generators = [generator_for(*job) for job in group]
        steps = list(self.config.stages.values())
        if state is None or not fits(state, steps, count=len(group), basis=self.basis, project=self.project):
            state = GroupState.begin(generators, self.project.begin())
        first = state
        with self.network.frozen():
            for state in self._states(group, first, generators):
                if on_step is not None:
                    self._report(group, state, on_step)
                if on_state is not None:
                    on_state(state)
            contribution = self._contributions(group, state.finished[-1])
        norms = [trace[-1].norm for trace in state.traces]
        for place in sorted(range(len(group)), key=lambda place: not math.isfinite(norms[place])):
            _check_norm(self.classifier.labels[group[place].label], norms[place])  # those that raise come last
            yield self._concept(group[place], place, state, contribution[place])

    def seconds_per_map(self, count: int = 1) -> float:
        """Estimate of the seconds that each of ``count`` maps takes on this machine, from a few measured steps."""
        group = [Job(0, seed) for seed in range(min(count, self.together))]
        generators, few_steps = [generator_for(*job) for job in group], replace(self.config.mapper, steps=TIMED)
        mapper = self._mapper(self.prepared, group, few_steps, generators)  # compiling would take longer than this
        ends = []
        with self.prepared.frozen():
            for _ in mapper.steps(mapper.begin(self._black(len(group)))):
                ends.append(time.perf_counter())
        return self.config.steps * (ends[-1] - ends[0]) / (TIMED - 1) / len(group)

    def _states(
        self, group: Sequence[Job], state: GroupState, generators: Sequence[torch.Generator]
    ) -> Iterator[GroupState]:
        """The states of the group after every step that is left, and after every stage."""
        for generator, saved in zip(generators, state.generators, strict=True):
            generator.set_state(saved)
        mapper = self._mapper(self.network, group, self.config.mapper, generators)
        for stage in list(self.config.stages)[len(state.finished) :]:
            refine = self.config.refine if stage.kind == "refine" else None
            loop = Refiner(mapper, refine, self.classifier) if refine else mapper
            nu = state.finished[-1].to(self.basis.device) if state.finished else self._black(len(group))
            loop_state = first = state.loop or loop.begin(nu, state.ball)
            for loop_state in loop.steps(first):
                state = state.at(loop_state, generators)
                yield state
            state = state.after(self.basis.pixels(loop_state.w), loop_state, generators)
            yield state

    def _mapper(
        self, network: Classifier, group: Sequence[Job], config: MapperConfig, generators: Sequence[torch.Generator]
    ) -> Mapper:
        return Mapper(
            network, [job.label for job in group], self.samples, config, basis=self.basis, project=self.project,
            generators=generators, micro_batch=self.micro_batch,
        )  # fmt: skip

    def _black(self, maps: int) -> Tensor:
        """Line 1: ν of the black image, ``(maps, C, H, W)``."""
        return torch.zeros(maps, *self.basis.shape, device=self.basis.device)

    def _report(self, group: Sequence[Job], state: GroupState, on_step: OnStep) -> None:
        """Report the progress of each map of a group, after a step."""
        if state.loop is None:  # the end of a stage
            return
        stage = list(self.config.stages)[len(state.finished)]
        for job, trace, step in zip(group, state.traces, state.loop.trace[-1], strict=True):
            on_step(Progress(*job, stage, len(trace) + step.step, self.config.steps, step))

    def _contributions(self, group: Sequence[Job], nu: Tensor) -> Tensor:
        """How much each place of the finished maps of a group contributes, ``(maps, 1, H, W)`` on the CPU.

        Their generators are new ones: a group that was interrupted ends with the same bits.
        """
        generators = [generator_for(*job, "where") for job in group]
        mapper = self._mapper(self.network, group, self.config.mapper, generators)
        return contributions(mapper, nu.to(self.basis.device)).cpu()

    def _concept(self, job: Job, place: int, state: GroupState, contribution: Tensor) -> ConceptMap:
        """The finished map at a place of its group; its probability is by the network as given, not as prepared."""
        label, seed = job
        maps = [all_maps[place].clone() for all_maps in state.finished]
        stages = {str(stage): nu for stage, nu in zip(self.config.stages, maps, strict=True)}
        nu = maps[-1].to(self.classifier.device)
        probability = self.classifier.probabilities((0.5 - nu).clamp(0, 1)[None])[0, label].item()
        try:
            xi = attention(self.classifier, nu).cpu()
        except AgnoscoError:  # a network without a feature map
            xi = None
        name, trace = self.classifier.labels[label], tuple(state.traces[place])
        where = contribution.clone()
        return ConceptMap(nu.cpu().clone(), label, name, seed, probability, stages, trace, xi, where)


def _sized(classifier: Classifier, config: Config) -> tuple[Classifier, int, int]:
    """The prepared network, how many images to send through it at once, and how many maps to make side by side."""
    network = prepared(classifier, precision=resolve_precision(config.precision, classifier.device))
    images = images_at_once(network)
    return network, images, max(images // config.mapper.batch, 1)


def _check_norm(name: str, norm: float) -> None:
    """Refuse a map whose gradients are not finite, and warn if they vanish."""
    if not math.isfinite(norm):
        raise AgnoscoError(
            f"the gradients of {name!r} are not finite", "check the weights and the mean and std of the model"
        )
    if norm == 0:
        warnings.warn(f"the gradients of {name!r} vanish: its map is empty", AgnoscoWarning, stacklevel=3)


def generator_for(*key: int | str) -> torch.Generator:
    """A generator that depends on its key only; that of a map is the label and the seed."""
    digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
