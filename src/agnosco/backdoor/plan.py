"""What a scan does within a time: how closely it looks at how many classes, decided before it begins.

The time of a few real steps is measured once. All that follows from it is numbers in the settings, which ``scan.json``
records: with the same settings, a scan gives the same result again, however fast the machine is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..data.samples import Samples
from ..method.maker import Maker
from ..models.classifier import Classifier
from .config import FEWEST_THOROUGH, FULL_SEEDS, FirstLook, ScanConfig

CANDIDATES = 3
"""Classes that are examined more closely."""

LEADING = 10
"""Classes whose smallest patterns are sought."""

CURVE_IMAGES, BISECTIONS = 100, 6
"""Images and steps of the search for a smallest pattern."""

FORWARD = 0.4
"""Cost of an image that is only evaluated, relative to one in a step of a map."""

SCALES = 5
"""At how many scales the patterns of a screen are evaluated, about."""

SCREENS = 3

ENOUGH_CLASSES = 30
"""With fewer classes to screen, a shorter first look is taken instead."""

SHORTER = (FirstLook(5, 30), FirstLook(2, 20), FirstLook(2, 10))

SLACK = 1.3
"""What a scan may take longer than its images say: evaluation at more scales, and other work of the machine."""

BASE_SECONDS, SECONDS_PER_CLASS = 300.0, 2.0
"""Seconds of the default budget, and what each class adds."""


def default_budget(classes: int) -> float:
    """Seconds that a scan of so many classes may take unless told otherwise: 5 minutes for ten, 38 for a thousand."""
    return BASE_SECONDS + SECONDS_PER_CLASS * classes


def images_of_scan(config: ScanConfig, classes: int) -> float:
    """About how many images a scan of so many classes takes; one that is only evaluated counts for its cost."""
    screened = min(config.thorough or classes, classes)
    smallest = 2 * (BISECTIONS + 1) * CURVE_IMAGES * FORWARD * min(screened, LEADING)
    of_screens = screened * images_of_class(config)
    return classes * config.first.images + of_screens + closer_look(config, screened) + smallest


def images_of_class(config: ScanConfig) -> float:
    """About how many images the screening of a class takes, with its evaluation."""
    return config.images + SCREENS * config.seeds * SCALES * config.evaluation * FORWARD


def closer_look(config: ScanConfig, classes: int) -> int:
    """How many images the longer maps of the leading classes take."""
    return min(classes, CANDIDATES) * FULL_SEEDS * config.full.passes


def seconds_per_image(classifier: Classifier, samples: Samples, config: ScanConfig, classes: int) -> float:
    """The seconds of an image in a step of as many maps side by side as a scan makes, here and now."""
    settings = config.spread
    return Maker(classifier, samples, settings).seconds_per_map(classes * config.seeds) / settings.passes


def planned(config: ScanConfig, classes: int, *, images: float, seeds: Sequence[int] | None = None) -> ScanConfig:
    """The settings with which a scan of so many classes takes at most so many images, or the least there are.

    All classes are screened if possible, with fewer seeds if need be. Otherwise the first look chooses which, and
    becomes shorter if the time would be too short for enough classes.

    Args:
        config: The settings of a scan that has time enough; a number of classes in ``thorough`` is kept.
        classes: How many classes there are.
        images: How many images the scan may take, as :func:`images_of_scan` counts them.
        seeds: Numbers of seeds to choose from, the largest first; None takes the config's, and 1.
    """
    seeds = seeds or sorted({config.seeds, 1}, reverse=True)
    looks = (config.first, *SHORTER)
    some = config.thorough if config.thorough is not None and config.thorough < classes else None
    choices = [replace(config, seeds=count, thorough=some) for count in seeds]
    choices += [replace(choices[-1], first=first) for first in (looks if some else looks[:2])]
    for settings in choices:
        if images_of_scan(settings, classes) <= images:
            return settings
    if some or classes <= FEWEST_THOROUGH:
        return choices[-1]
    return _staged(choices[-1], classes, images, looks)


def _staged(config: ScanConfig, classes: int, images: float, looks: Sequence[FirstLook]) -> ScanConfig:
    """Settings that screen as many classes as the time allows after the longest first look that leaves enough of it."""
    settings = config
    for first in looks:
        settings = replace(config, first=first, thorough=FEWEST_THOROUGH)
        left = max(images - images_of_scan(settings, classes), 0)
        screened = min(FEWEST_THOROUGH + int(left / images_of_class(settings)), classes - 1)
        settings = replace(settings, thorough=screened)
        if screened >= ENOUGH_CLASSES:
            break
    return settings
