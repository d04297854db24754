"""What a scan does within a time: how closely it looks at how many classes, decided before it begins.

The time of a few real steps is measured once. All that follows from it is numbers in the settings, which ``scan.json``
records: with the same settings, a scan gives the same result again, however fast the machine is.
"""

from __future__ import annotations

from collections.abc import Iterator
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

WORTH, ENOUGH = 30, 48
"""With fewer classes to screen, a shorter first look is taken instead; more are not screened unless all are."""

SHORTER = (FirstLook(5, 30), FirstLook(2, 20), FirstLook(2, 10))

BASE, EACH = 300.0, 2.0
"""Seconds of the default budget, and what each class adds."""


def default_budget(classes: int) -> float:
    """Seconds that a scan of so many classes may take unless told otherwise: 5 minutes for ten, 38 for a thousand."""
    return BASE + EACH * classes


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


def seconds_per_image(classifier: Classifier, samples: Samples, config: ScanConfig) -> float:
    """The seconds of an image in a step of a map, here and now, measured in a few steps."""
    settings = config.spread
    return Maker(classifier, samples, settings).seconds_per_map(8) / settings.passes


def planned(config: ScanConfig, classes: int, *, images: float) -> ScanConfig:
    """The settings with which a scan of so many classes takes at most so many images, or the least there are.

    All classes are screened if possible, with one seed if need be. Otherwise the first look chooses which, and becomes
    shorter if the time would be too short for enough classes.
    """
    for settings in _all_screened(config):
        if images_of_scan(settings, classes) <= images:
            return settings
    settings = config
    for first in (config.first, *SHORTER):
        settings = replace(config, seeds=1, first=first, thorough=FEWEST_THOROUGH)
        left = max(images - images_of_scan(settings, classes), 0)
        screened = min(FEWEST_THOROUGH + int(left / images_of_class(settings)), ENOUGH)
        settings = replace(settings, thorough=screened)
        if screened >= WORTH:
            break
    return settings if settings.thorough and settings.thorough < classes else replace(settings, thorough=None)


def _all_screened(config: ScanConfig) -> Iterator[ScanConfig]:
    yield config
    yield replace(config, seeds=1)
    yield from (replace(config, seeds=1, first=first) for first in SHORTER[:1])
