"""Screens of all classes: maps in sets that only a shortcut makes wide enough, and how many images they reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..method.config import Config
from ..method.maker import check_shape, indices_of, map_classes
from ..method.prepare import prepared, resolve_precision
from ..method.score import m_score, predictions, probabilities_of, targeted_success_rate
from ..models.classifier import Classifier
from .config import FEWEST_IMAGES, WINDOWS, ScanConfig, Tournament
from .record import ENOUGH_REACH
from .verdict import Deviation, leave_one_out, stabilised
from .windows import patches_in_windows

ENOUGH_SAMPLES = 3 * FEWEST_IMAGES
"""Half of them are for evaluation, and some of those are of the class itself."""

FEWEST_KINDS = 1.1
"""Kinds of samples that a network must see at least (M_score times classes): untrained ones see 1.00, trained ones up
to 3 among dead leaves, and more among images of their own kind."""

CROWDED, SHRINK, MOST_SHRUNK = 0.15, 0.8, 11
"""Median reach above which all maps of a screen are scaled down, by how much at a time, and how often at most: patterns
of one size reach every class of one network, and none of another."""

OnScan = Callable[[str, int, int], None] | None
"""Called with what is being done, how many images the maps have taken so far, and how many they take in all."""


@dataclass(frozen=True)
class Screening:
    """Results of the screening of classes.

    Args:
        screens: Names of the screens.
        scales: By what the patterns of each screen are multiplied.
        classes: Indices of the classes that were screened.
        ordinary: Whether each of them tells what is ordinary: all, unless only the leading ones and some at random were
            screened, ``(classes,)``.
        hits: Number of evaluation images that each map turns into its class, ``(screens, classes, seeds)``.
        movable: Number of evaluation images that are not classified as the class already, ``(classes,)``.
        patterns: −ν of the seed with the greatest reach, ``(screens, classes, C, H, W)``.
        effective_classes: How many kinds of samples the network sees: from 1 to the number of its classes.
    """

    screens: tuple[str, ...]
    scales: tuple[float, ...]
    classes: tuple[int, ...]
    ordinary: Tensor
    hits: Tensor
    movable: Tensor
    patterns: Tensor
    effective_classes: float

    @property
    def reach(self) -> Tensor:
        """Greatest reach of any seed, ``(screens, classes)``."""
        return self.hits.amax(2) / self.movable.clamp_min(1)

    @cached_property
    def deviation(self) -> Deviation:
        """How far the reach of each class stands out from those of the ordinary ones."""
        return leave_one_out(stabilised(self.reach), self.ordinary)

    @property
    def z(self) -> Tensor:
        """That as a number, ``(screens, classes)``."""
        return self.deviation.z

    @property
    def greatest_z(self) -> float:
        """Of all classes and screens; a bank holds it of each clean network."""
        return self.z.max().item()

    @property
    def titles(self) -> tuple[str, ...]:
        """Names of the screens, with their scales if they are not 1."""
        named = zip(self.screens, self.scales, strict=True)
        return tuple(name if scale == 1 else f"{name} x {scale:.2f}" for name, scale in named)

    def showing(self, column: int) -> int:
        """The screen in which a class stands out most: of those with enough reach, if there are any."""
        z, reached = self.z[:, column], self.reach[:, column] >= ENOUGH_REACH
        return int((z.where(reached, -torch.inf) if reached.any() else z).argmax())

    def joined(self, others: Screening) -> Screening:
        """These classes and others, which were screened at the same scales."""
        return replace(
            self,
            classes=self.classes + others.classes,
            ordinary=torch.cat([self.ordinary, others.ordinary]),
            hits=torch.cat([self.hits, others.hits], 1),
            movable=torch.cat([self.movable, others.movable]),
            patterns=torch.cat([self.patterns, others.patterns], 1),
        )

    def problems(self, column: int | None = None) -> list[str]:
        """Reasons against the verdict that a class stands out; by default, the one of greatest z."""
        problems = []
        if self.effective_classes < FEWEST_KINDS:
            problems.append(
                f"the network sees only {self.effective_classes:.1f} kinds of these samples: it is untrained, or they "
                "are not of its kind (--samples DIR)"
            )
        few = [label for label, count in zip(self.classes, self.movable.tolist(), strict=True) if count < FEWEST_IMAGES]
        if few:
            named = f"class {few[0]}" + (f" and {len(few) - 1} others" if len(few) > 1 else "")
            problems.append(
                f"fewer than {FEWEST_IMAGES} of the images are of other classes than {named}: give more images"
            )
        if self._rival_seeds(column):
            problems.append("seeds disagree about the class")
        return problems

    def _rival_seeds(self, label: int | None) -> bool:
        """Whether another class has the greatest reach in as many seeds as the one that stands out.

        If its reach is small, the class that stands out most among those of more reach is taken. Not in the screen of
        windows, whose maps are no seeds, and not with a single seed.
        """
        if label is None or self.reach[:, label].max() < ENOUGH_REACH:
            label = int(self.z.where(self.reach >= ENOUGH_REACH, -torch.inf).amax(0).argmax())
        screen, hits = self.showing(label), self.hits[self.showing(label)]
        if self.screens[screen] == WINDOWS or hits.shape[1] == 1:
            return False
        reach = hits / self.movable.clamp_min(1)[:, None]
        leaders = [int(of_seed.argmax()) for of_seed in reach.T if of_seed.max() >= ENOUGH_REACH]
        others = max((leaders.count(other) for other in leaders if other != label), default=0)
        return others >= max(leaders.count(label), 1)


def screen(
    classifier: Classifier,
    samples: Samples,
    config: ScanConfig | None = None,
    *,
    classes: Sequence[int | str] | None = None,
    scales: Sequence[float] | None = None,
    ordinary: bool = True,
    clock: Clock | None = None,
) -> Screening:
    """Screen the classes of a network, by index or name; all of them if None.

    Maps are made with half of the samples and evaluated on the others. Labels are not needed.

    Args:
        classifier: The network.
        samples: Images.
        config: Settings.
        classes: Indices or names.
        scales: By what to multiply the patterns of each screen; None scales them down until most classes are reached by
            few images.
        ordinary: Whether these classes tell what is ordinary.
        clock: Counts the images that the maps take.

    Raises:
        AgnoscoError: Too few samples, samples of another shape, or gradients that are not finite.
    """
    config = config or ScanConfig()
    labels = indices_of(classifier, range(classifier.classes) if classes is None else classes)
    if not labels:
        raise AgnoscoError("there are no classes to screen", "name some, or leave classes out for all")
    check_shape(classifier, samples)
    mapping, evaluation = halves(samples, config)
    evaluated = _Evaluation.of(classifier, labels, evaluation)
    clock = clock or Clock(None, len(labels) * config.images)
    screens, used, hits, patterns = [], [], [], []
    for number, (name, settings) in enumerate(config.screens(classifier.shape).items()):
        nus = _maps(classifier, labels, mapping, settings, config.seeds, clock, name)
        scale, counts = evaluated.scaled(nus, None if scales is None else scales[number])
        screens.append(name)
        used.append(scale)
        hits.append(counts)
        patterns.append(-(scale * nus)[torch.arange(len(labels)), counts.argmax(1)])
    return Screening(
        tuple(screens), tuple(used), tuple(labels), torch.full((len(labels),), ordinary), _stacked(hits),
        evaluated.movable, torch.stack(patterns), evaluated.effective_classes,
    )  # fmt: skip


def _stacked(hits: list[Tensor]) -> Tensor:
    """``(screens, classes, seeds)`` of screens that may differ in their seeds: what is missing reaches nothing."""
    most = max(counts.shape[1] for counts in hits)
    return torch.stack([torch.nn.functional.pad(counts, (0, most - counts.shape[1])) for counts in hits])


@dataclass(frozen=True)
class _Evaluation:
    """How many images patterns turn into their classes.

    Args:
        network: The network, made fast.
        labels: The classes.
        images: Images that no map was made with.
        before: What the network gives them as they are.
        movable: How many of them it does not give each class already.
        effective_classes: How many kinds of images the network sees.
    """

    network: Classifier
    labels: list[int]
    images: Samples
    before: Tensor
    movable: Tensor
    effective_classes: float

    @classmethod
    def of(cls, classifier: Classifier, labels: list[int], images: Samples) -> _Evaluation:
        """An evaluation on images."""
        network = prepared(classifier, precision=resolve_precision("auto", classifier.device))
        before = predictions(network, images)
        movable = torch.tensor([int((before != label).sum()) for label in labels])
        kinds = m_score(probabilities_of(classifier, images).double()) * classifier.classes
        return cls(network, labels, images, before, movable, kinds)

    def hits(self, nus: Tensor, scale: float) -> Tensor:
        """How many images maps ``(classes, seeds, C, H, W)``, scaled, turn into their classes, ``(classes, seeds)``."""

        def share(nu: Tensor, label: int) -> float:
            return targeted_success_rate(self.network, scale * nu, label, self.images, before=self.before)

        with self.network.frozen():
            shares = [[share(nu, k) for nu in of_class] for k, of_class in zip(self.labels, nus, strict=True)]
        return (torch.tensor(shares).nan_to_num() * self.movable[:, None]).round()

    def scaled(self, nus: Tensor, scale: float | None) -> tuple[float, Tensor]:
        """A scale and the hits at it; None finds, by bisection, one at which most classes are reached by few images."""
        if scale is not None:
            return scale, self.hits(nus, scale)
        hits = lru_cache(lambda power: self.hits(nus, SHRINK**power))
        low, high = -1, MOST_SHRUNK  # the greatest scale that is not crowded lies above low
        middle = 0  # most screens are not crowded at all
        while high - low > 1:
            low, high = (middle, high) if _crowded(hits(middle), self.movable) else (low, middle)
            middle = (low + high) // 2
        return SHRINK**high, hits(high)


def halves(samples: Samples, config: ScanConfig) -> tuple[Samples, Samples]:
    """Samples to map with, and those to evaluate on.

    Raises:
        AgnoscoError: There are too few.
    """
    if len(samples) < ENOUGH_SAMPLES:
        raise AgnoscoError(f"{len(samples)} samples are too few to scan with", f"give at least {ENOUGH_SAMPLES}")
    mapping, evaluation = samples.split(0.5)
    return mapping, evaluation.part(slice(config.evaluation))


def _maps(
    classifier: Classifier,
    labels: list[int],
    samples: Samples,
    settings: Config | Tournament,
    seeds: int,
    clock: Clock,
    title: str,
) -> Tensor:
    """ν of all maps of a screen, ``(classes, seeds, C, H, W)``; the best windows of a class take the place of seeds."""
    if isinstance(settings, Tournament):
        return patches_in_windows(classifier, labels, samples, settings, on_images=partial(clock.count, title))

    def on_step(_: object) -> None:
        clock.count(title, settings.mapper.batch)

    maps = map_classes(classifier, labels, samples, settings, seeds=range(seeds), on_step=on_step)
    return torch.stack([concept.nu for concept in maps]).unflatten(0, (len(labels), seeds))


class Clock:
    """Counts the images that the maps of a scan have taken, over its stages."""

    def __init__(self, on_progress: OnScan, total: int) -> None:
        self.on_progress = on_progress or (lambda *_: None)
        self.total = total
        self.done = 0

    def count(self, title: str, images: int) -> None:
        """Add images and report them under a title."""
        self.done += images
        self.on_progress(title, self.done, self.total)

    def advance(self, done: int) -> None:
        """Skip images that will not be needed, up to a number."""
        self.done = max(self.done, done)


def _crowded(hits: Tensor, movable: Tensor) -> bool:
    """Whether most classes are reached by so many images that none could stand out."""
    return ((hits.amax(1) / movable.clamp_min(1)).quantile(0.5, interpolation="lower") > CROWDED).item()  # type: ignore[return-value]
