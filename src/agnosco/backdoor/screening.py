"""Screens of all classes: maps in sets that only a shortcut makes wide enough, and how many images they reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..method.config import Config
from ..method.maker import map_classes
from ..method.score import m_score, predictions, probabilities_of, targeted_success_rate
from ..models.classifier import Classifier
from .config import FEWEST_IMAGES, ScanConfig, Tournament
from .record import ENOUGH_REACH
from .verdict import robust_z, stabilised
from .windows import patches_in_windows

ENOUGH_SAMPLES = 3 * FEWEST_IMAGES
"""Half of them are for evaluation, and some of those are of the class itself."""

FEWEST_KINDS = 1.1
"""Kinds of samples that a network must see at least (M_score times classes): untrained ones see 1.00, trained ones up
to 3 among dead leaves, and more among images of their own kind."""

CROWDED, SHRINK, LEAST_SCALE = 0.15, 0.8, 0.1
"""Median reach above which all maps of a screen are scaled down, by how much at a time, and where that ends: patterns
of one size reach every class of one network, and none of another."""

OnScan = Callable[[str, int, int], None] | None
"""Called with what is being done, how many images the maps have taken so far, and how many they take in all."""


@dataclass(frozen=True)
class Screening:
    """Results of the screening of all classes.

    Args:
        screens: Names of the screens.
        classes: Indices of the classes that were screened.
        hits: Number of evaluation images that each map turns into its class, ``(screens, classes, seeds)``.
        movable: Number of evaluation images that are not classified as the class already, ``(classes,)``.
        patterns: −ν of the seed with the greatest reach, ``(screens, classes, C, H, W)``.
        effective_classes: How many kinds of samples the network sees: from 1 to the number of its classes.
    """

    screens: tuple[str, ...]
    classes: tuple[int, ...]
    hits: Tensor
    movable: Tensor
    patterns: Tensor
    effective_classes: float

    @property
    def reach(self) -> Tensor:
        """Greatest reach of any seed, ``(screens, classes)``."""
        return self.hits.amax(2) / self.movable.clamp_min(1)

    @property
    def z(self) -> Tensor:
        """Robust z of the reaches over classes, ``(screens, classes)``."""
        return robust_z(stabilised(self.reach))

    @property
    def greatest_z(self) -> float:
        """Of all classes and screens; a bank holds it of each clean network."""
        return self.z.max().item()

    def showing(self, column: int) -> int:
        """The screen in which a class stands out most: of those with enough reach, if there are any."""
        z, reached = self.z[:, column], self.reach[:, column] >= ENOUGH_REACH
        return int((z.where(reached, -torch.inf) if reached.any() else z).argmax())

    def problems(self) -> list[str]:
        """Reasons against a verdict."""
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
        if self._rival_seeds():
            problems.append("seeds disagree about the class")
        return problems

    def _rival_seeds(self) -> bool:
        """Whether another class has the greatest reach in as many seeds as the one that stands out."""
        enough = self.z.where(self.reach >= ENOUGH_REACH, -torch.inf)
        label = int(enough.amax(0).argmax())
        reach = self.hits[self.showing(label)] / self.movable.clamp_min(1)[:, None]
        leaders = [int(of_seed.argmax()) for of_seed in reach.T if of_seed.max() >= ENOUGH_REACH]
        others = max((leaders.count(other) for other in leaders if other != label), default=0)
        return others >= max(leaders.count(label), 1)


def screen(
    classifier: Classifier,
    samples: Samples,
    config: ScanConfig | None = None,
    *,
    classes: Sequence[int | str] | None = None,
    on_progress: OnScan = None,
) -> Screening:
    """Screen the classes of a network, by index or name; all of them if None.

    Maps are made with half of the samples and evaluated on the others. Labels are not needed.

    Raises:
        AgnoscoError: Too few samples, samples of another shape, or gradients that are not finite.
    """
    config = config or ScanConfig()
    labels = [classifier.index(label) for label in (range(classifier.classes) if classes is None else classes)]
    mapping, evaluation = halves(samples, config)
    before = predictions(classifier, evaluation)
    movable = torch.tensor([int((before != label).sum()) for label in labels])

    def hits_of(nus: Tensor) -> Tensor:
        """How many evaluation images maps ``(classes, seeds, C, H, W)`` turn into their classes."""
        shares = [
            [targeted_success_rate(classifier, nu, label, evaluation, before=before) for nu in of_class]
            for label, of_class in zip(labels, nus, strict=True)
        ]
        return (torch.tensor(shares).nan_to_num() * movable[:, None]).round()

    screens, hits, patterns = [], [], []
    clock = Clock(on_progress, len(labels) * config.images)
    for name, settings in config.screens(classifier.shape).items():
        nus = _maps(classifier, labels, mapping, settings, config.seeds, clock, name)
        scale, counts = 1.0, hits_of(nus)
        while _crowded(counts, movable) and scale > LEAST_SCALE:
            scale *= SHRINK
            counts = hits_of(scale * nus)
        screens.append(name if scale == 1 else f"{name} x {scale:.2f}")
        hits.append(counts)
        patterns.append(-(scale * nus)[torch.arange(len(labels)), counts.argmax(1)])
    effective = m_score(probabilities_of(classifier, evaluation).double()) * classifier.classes
    return Screening(tuple(screens), tuple(labels), torch.stack(hits), movable, torch.stack(patterns), effective)


def halves(samples: Samples, config: ScanConfig) -> tuple[Samples, Samples]:
    """Samples to map with, and those to evaluate on.

    Raises:
        AgnoscoError: There are too few.
    """
    if len(samples) < ENOUGH_SAMPLES:
        raise AgnoscoError(f"{len(samples)} samples are too few to scan with", f"give at least {ENOUGH_SAMPLES}")
    mapping, evaluation = samples.split(0.5)
    return mapping, Samples(evaluation.images[: config.evaluation], source=evaluation.source)


def _maps(
    classifier: Classifier,
    labels: list[int],
    samples: Samples,
    settings: Config | Tournament,
    seeds: int,
    clock: Clock,
    title: str,
) -> Tensor:
    """ν of all maps of a screen, ``(classes, seeds, C, H, W)``."""
    if isinstance(settings, Tournament):
        on_images = partial(clock.count, title)
        patches = [
            patches_in_windows(classifier, label, samples, settings, finalists=seeds, on_images=on_images)
            for label in labels
        ]
        return torch.stack(patches)

    def on_step(_: object) -> None:
        clock.count(title, settings.mapper.batch)

    maps = map_classes(classifier, labels, samples, settings, seeds=range(seeds), on_step=on_step)
    return torch.stack([concept.nu for concept in maps]).unflatten(0, (len(labels), seeds))


class Clock:
    """Counts the images that the maps of a scan have taken, over several screens."""

    def __init__(self, on_progress: OnScan, total: int) -> None:
        self.on_progress = on_progress or (lambda *_: None)
        self.total = total
        self.done = 0

    def count(self, title: str, images: int) -> None:
        """Add images and report them under a title."""
        self.done += images
        self.on_progress(title, self.done, self.total)


def _crowded(hits: Tensor, movable: Tensor) -> bool:
    """Whether most classes are reached by so many images that none could stand out."""
    return ((hits.amax(1) / movable.clamp_min(1)).quantile(0.5) > CROWDED).item()  # type: ignore[return-value]
