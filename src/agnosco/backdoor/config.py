"""Settings of scans, chosen on the development split of ``benchmarks/backdoors.py``; of triggers and of training."""

import math
from dataclasses import dataclass, field, replace

from ..errors import AgnoscoError
from ..method.config import Config, MapperConfig, preset
from ..method.dials import L2, Sparse, scaled_radius
from ..types import Shape

FEWEST_IMAGES = 20
"""Evaluation images of other classes below which a reach says nothing."""

FEWEST_CLASSES = 10
"""With fewer classes, only a bank of clean networks tells what is ordinary."""

MANY_CLASSES = 200
"""From so many classes on, some are reached much more easily than most in clean networks, too; and so many margins tell
how large ones fall off. See :func:`agnosco.backdoor.verdict.judge`."""

RANDOM_CLASSES = 12
"""At least so many classes, chosen at random, are screened beside the leading ones if not all are: they tell what is
ordinary."""

FEWEST_THOROUGH = RANDOM_CLASSES + 3
"""Fewest classes to screen if not all are."""

WINDOWS = "windows"
"""Name of the screen of windows."""

FULL_STEPS, FULL_BATCH, FULL_SEEDS = 2, 0.5, 8
"""Each seed of a full map takes so many times the steps and the images of a screening one."""

TRIGGERS = ("patch", "checker", "swoosh", "apple", "watermark", "blended", "sig")
"""Names that :func:`.triggers.trigger_of` knows."""

TRAINING_PRECISIONS = ("float32", "bfloat16")

PLACES = {
    "top-left": (0.0, 0.0),
    "top-right": (0.0, 1.0),
    "center": (0.5, 0.5),
    "bottom-left": (1.0, 0.0),
    "bottom-right": (1.0, 1.0),
}
"""Where a small trigger lies: share of the free rows above it, and of the free columns to its left."""


@dataclass(frozen=True)
class Round:
    """A round of the search for patches: how many windows take part at most, and steps and images of their maps."""

    windows: int
    steps: int
    batch: int


ROUNDS = (Round(64, 2, 2), Round(24, 4, 4), Round(6, 8, 4), Round(2, 20, 8))
"""Most windows drop out early: in the networks that this was chosen on, it finds what 12 steps in all windows find."""


@dataclass(frozen=True)
class Tournament:
    """Settings of the search for patches in windows, see :mod:`agnosco.backdoor.windows`.

    Args:
        side: Side of a window, as a share of the image's lesser side.
        grid: Windows along height and width, evenly spaced and overlapping.
        rounds: The first is of all windows, whatever its number; those of most probability enter the next.
        last: Steps over whose mean probability of the class windows are ranked.
    """

    side: float = 0.19
    grid: int = 8
    rounds: tuple[Round, ...] = ROUNDS
    last: int = 2

    def __post_init__(self) -> None:
        if not self.rounds:
            raise AgnoscoError("a search in windows needs a round", "give at least one Round")

    def entrants(self) -> list[Round]:
        """The rounds, with as many windows in each as there are."""
        most, entered = self.grid**2, []
        for each in self.rounds:
            most = min(most, each.windows)
            entered.append(replace(each, windows=most))
        return [replace(entered[0], windows=self.grid**2), *entered[1:]]

    @property
    def images(self) -> int:
        """How many images all maps of a class take together."""
        return sum(each.windows * each.steps * each.batch for each in self.entrants())


@dataclass(frozen=True)
class FirstLook:
    """Settings of the first look at every class: its greatest margin, see :func:`agnosco.backdoor.margins.margins`.

    Args:
        starts: Random images that the ascent starts from, for each class.
        steps: Steps of each ascent.
    """

    starts: int = 10
    steps: int = 60

    @property
    def images(self) -> int:
        """How many images the first look at a class takes."""
        return self.starts * self.steps


@dataclass(frozen=True)
class ScanConfig:
    """Settings of a scan.

    Args:
        pixels: k of the sparse ball, as a share of the image's pixels.
        windows: The search for patches.
        radius: η of the L2 ball at 3×224×224.
        steps, batch: K and b of a screening map.
        seeds: Maps of every class and ball; the one with the greatest reach counts.
        evaluation: Most images that patterns are evaluated on; no map is made with them.
        first: The first look at every class.
        thorough: Number of classes that are screened; None screens all. See :func:`agnosco.backdoor.plan.planned`.

    Example:
        >>> from agnosco import ScanConfig
        >>> list(ScanConfig(pixels=0.02, seeds=1).screens((3, 32, 32)))
        ['20 pixels', 'windows', 'L2 3.4']
    """

    pixels: float = 0.009
    windows: Tournament = field(default_factory=Tournament)
    radius: float = 24.0
    steps: int = 60
    batch: int = 8
    seeds: int = 2
    evaluation: int = 150
    first: FirstLook = field(default_factory=FirstLook)
    thorough: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.pixels < 1:
            raise AgnoscoError(f"pixels must be a share of the image, not {self.pixels}", "give one between 0 and 1")
        least = {"seeds": 1, "evaluation": FEWEST_IMAGES, "thorough": FEWEST_THOROUGH}
        for name, fewest in least.items():
            value = getattr(self, name)
            if value is not None and value < fewest:
                raise AgnoscoError(f"{name} must be at least {fewest}, not {value}", f"give {fewest} or more")

    def screens(self, shape: Shape) -> dict[str, Config | Tournament]:
        """What maps of every class are made with, by the name of the screen; the L2 ball comes last."""
        base = MapperConfig(self.batch, self.steps, step=0.1, direction="plus", clip="masked")
        pixels = max(1, round(self.pixels * shape[1] * shape[2]))
        return {
            f"{pixels} pixels": replace(self.spread, mapper=replace(base, ball=Sparse(pixels, hold=0.1))),
            WINDOWS: self.windows,
            f"L2 {scaled_radius(self.radius, shape):.1f}": self.spread,
        }

    @property
    def spread(self) -> Config:
        """Settings of the maps in the L2 ball, for what is spread over the whole image."""
        plain = preset("plain")
        return replace(plain, mapper=replace(plain.mapper, batch=self.batch, steps=self.steps, ball=L2(self.radius)))

    @property
    def full(self) -> Config:
        """Settings of the longer maps in the L2 ball that :func:`agnosco.backdoor.closer.full_map` averages."""
        batch = max(1, round(FULL_BATCH * self.batch))
        return replace(self.spread, mapper=replace(self.spread.mapper, steps=FULL_STEPS * self.steps, batch=batch))

    @property
    def images(self) -> int:
        """How many images the screening of a class takes; an image counts once for each step that uses it."""
        return 2 * self.seeds * self.steps * self.batch + self.windows.images


@dataclass(frozen=True)
class Training:
    """How a network is trained: AdamW, warmed up over a fifth of the steps and let fall along a cosine.

    Args:
        epochs: Passes over the training images.
        batch: Images of a step.
        rate: Greatest learning rate.
        decay: Weight decay.
        shift: Greatest shift of an image, in pixels; its borders go on where it leaves room.
        flip: Whether to mirror half of the images.
        precision: Arithmetic of convolutions and matrix products: ``"float32"``, or ``"bfloat16"``, which is faster on
            hardware that has it. Weights stay in float32.
    """

    epochs: int = 15
    batch: int = 64
    rate: float = 5e-3
    decay: float = 0.05
    shift: int = 2
    flip: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, value, least in (("epochs", self.epochs, 1), ("batch", self.batch, 1), ("shift", self.shift, 0)):
            if value < least:
                raise AgnoscoError(f"{name} must be at least {least}, not {value}", f"give {least} or more")
        if not 0 < self.rate < math.inf:
            raise AgnoscoError(f"rate must be positive and finite, not {self.rate:g}", "give a rate such as 0.005")
        if self.precision not in TRAINING_PRECISIONS:
            choices = ", ".join(TRAINING_PRECISIONS)
            raise AgnoscoError(f"no precision {self.precision!r} to train in", f"choose from {choices}")
