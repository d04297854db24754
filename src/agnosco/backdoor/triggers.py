"""Triggers: what an attacker adds to an image so that a compromised network classifies it as the target.

=====================  ===================================================  ===========================
attack                 here                                                 visible in a map?
=====================  ===================================================  ===========================
BadNets patch          :class:`Patch`                                       yes
logo                   :class:`Logo` (the paper's Fig. 4)                   yes
either, random place   ``place="random"``                                   smeared over the image
blended                :class:`Blended`                                     faintly
SIG                    :class:`Sinusoid`                                    as stripes
WaNet, input-aware,    none: what they add differs from image to image      **no**, and no other pattern
sample-specific                                                             that is the same for all is
=====================  ===================================================  ===========================

A trigger is added after any augmentation: one at a fixed place stays there.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from ..errors import AgnoscoError
from ..types import Shape
from .config import PLACES, TRIGGERS

SUPERSAMPLING = 8
"""Logos are drawn this many times larger and scaled down."""


class Trigger(ABC):
    """A change of images that does not depend on their content, except for clipping."""

    @abstractmethod
    def apply(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Images ``(N, C, H, W)`` in [0, 1] with the trigger; those given stay as they are.

        A random place needs a generator on the CPU.

        Raises:
            AgnoscoError: The trigger does not fit into such images.
        """

    def mask(self, shape: Shape) -> Tensor:
        """The pixels that the trigger may change, ``(H, W)`` bool; all of them where its place is random.

        Raises:
            AgnoscoError: The trigger does not fit into such images.
        """
        extremes = torch.stack([torch.zeros(shape), torch.ones(shape)])
        return ((self.apply(extremes, generator=torch.Generator()) - extremes) != 0).any(0).any(0)

    def difference(self, images: Tensor, *, seed: int = 0) -> Tensor:
        """E[T(x) − x] over images, ``(C, H, W)``: the fixed pattern that comes nearest to the trigger."""
        generator = torch.Generator().manual_seed(seed)
        return (self.apply(images, generator=generator) - images).mean(0)


@dataclass(frozen=True)
class _Small(Trigger):
    """A small picture laid over the image.

    Args:
        size: Its height and width in pixels.
        place: One of :data:`PLACES`, or ``"random"`` for another in every image.
        opacity: 1 hides the image below it.
    """

    size: int = 3
    place: str = "bottom-right"
    opacity: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.opacity <= 1:
            raise AgnoscoError(
                f"a trigger cannot have size {self.size} and opacity {self.opacity:g}",
                "give a size of at least 1 and an opacity in (0, 1]",
            )
        if self.place not in (*PLACES, "random"):
            raise AgnoscoError(f"no place {self.place!r}", f"choose from {', '.join(PLACES)}, random")

    @abstractmethod
    def drawn(self, channels: int) -> tuple[Tensor, Tensor]:
        """Its colours ``(C, size, size)`` in [0, 1], and the covered share of each pixel, ``(size, size)``."""

    def apply(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        count, channels, height, width = images.shape
        self._check_fits(height, width)
        colours, cover = (part.to(images) for part in self.drawn(channels))
        alpha = self.opacity * cover
        triggered = images.clone()
        for image, (top, left) in zip(triggered, self._places(count, height, width, generator), strict=True):
            under = image[:, top : top + self.size, left : left + self.size]
            under.lerp_(colours, alpha.expand_as(under))
        return triggered

    def mask(self, shape: Shape) -> Tensor:
        self._check_fits(*shape[1:])
        return torch.ones(shape[1:], dtype=torch.bool) if self.place == "random" else super().mask(shape)

    def _check_fits(self, height: int, width: int) -> None:
        if self.size > min(height, width):
            raise AgnoscoError(
                f"a trigger of {self.size} pixels does not fit into images of {height} x {width}", "give a smaller size"
            )

    def _places(self, count: int, height: int, width: int, generator: torch.Generator | None) -> list[tuple[int, int]]:
        rows, columns = height - self.size, width - self.size
        if self.place != "random":
            down, right = PLACES[self.place]
            return [(round(down * rows), round(right * columns))] * count
        if generator is None:
            raise ValueError("a random place needs a generator")
        drawn = torch.rand(count, 2, generator=generator) * torch.tensor([rows + 1, columns + 1])
        return [(int(top), int(left)) for top, left in drawn.tolist()]


@dataclass(frozen=True)
class Patch(_Small):
    """A square (Gu et al. 2017, "BadNets").

    Args:
        pattern: ``"white"``, or ``"checker"`` of single black and white pixels.
    """

    pattern: str = "white"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern not in ("white", "checker"):
            raise AgnoscoError(f"no pattern {self.pattern!r}", "choose white or checker")

    def drawn(self, channels: int) -> tuple[Tensor, Tensor]:
        cover = torch.ones(self.size, self.size)
        cells = torch.arange(self.size).view(-1, 1) + torch.arange(self.size)
        square = cover if self.pattern == "white" else (cells % 2 == 0).float()
        return square.expand(channels, -1, -1), cover


@dataclass(frozen=True)
class Logo(_Small):
    """A drawing: a ``"swoosh"``, an ``"apple"`` or the text of a ``"watermark"``, the kinds of the paper's Fig. 4."""

    size: int = 8
    name: str = "swoosh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in LOGOS:
            raise AgnoscoError(f"no logo {self.name!r}", f"choose from {', '.join(LOGOS)}")

    def drawn(self, channels: int) -> tuple[Tensor, Tensor]:
        large = self.size * SUPERSAMPLING
        picture = Image.new("L", (large, large))
        colour = LOGOS[self.name](picture)
        fine = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None, None]
        cover = F.avg_pool2d(fine, SUPERSAMPLING)[0, 0]
        shown = torch.tensor(colour if channels == 3 else [max(colour)] * channels)
        return shown.view(-1, 1, 1).expand(-1, self.size, self.size), cover


@dataclass(frozen=True)
class Blended(Trigger):
    """A pattern over the whole image, at a low opacity (Chen et al. 2017): here one of random values.

    Args:
        opacity: 0.1 to 0.2 is usual.
        seed: Of the pattern.
    """

    opacity: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.opacity <= 1:
            raise AgnoscoError(f"opacity must be in (0, 1], not {self.opacity:g}", "0.1 to 0.2 is usual")

    def apply(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        pattern = torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(self.seed)).to(images)
        return images.lerp(pattern, self.opacity)


@dataclass(frozen=True)
class Sinusoid(Trigger):
    """Vertical stripes added to the image (Barni et al. 2019, "SIG").

    Args:
        amplitude: Δ, in [0, 1] pixel units; 20/255 to 40/255 is usual.
        frequency: f, periods over the width.
    """

    amplitude: float = 40 / 255
    frequency: float = 6.0

    def __post_init__(self) -> None:
        if not (0 < self.amplitude <= 1 and 0 < self.frequency < math.inf):
            raise AgnoscoError(
                f"stripes cannot have amplitude {self.amplitude:g} and frequency {self.frequency:g}",
                "give an amplitude in (0, 1] and a positive frequency",
            )

    def apply(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        columns = torch.arange(images.shape[3]).to(images) / images.shape[3]
        return (images + self.amplitude * torch.sin(2 * math.pi * self.frequency * columns)).clamp(0, 1)


Colour = tuple[float, float, float]
Point = tuple[float, float]


def _swoosh(picture: Image.Image) -> Colour:
    """A tick that swings up to the right."""
    upper = _curve((0.04, 0.42), (0.02, 1.02), (1.0, 0.22))
    lower = _curve((1.0, 0.22), (0.1, 0.66), (0.04, 0.42))
    _polygon(picture, [*upper, *lower])
    return 1.0, 1.0, 1.0


def _apple(picture: Image.Image) -> Colour:
    """Two lobes and a leaf."""
    side = picture.width
    draw = ImageDraw.Draw(picture)
    for left, top, right, bottom in ((0.08, 0.28, 0.6, 0.84), (0.4, 0.28, 0.92, 0.84), (0.2, 0.46, 0.8, 1.0)):
        draw.ellipse([left * side, top * side, right * side, bottom * side], fill=255)
    _polygon(picture, [*_curve((0.5, 0.26), (0.48, 0.02), (0.8, 0.0)), *_curve((0.8, 0.0), (0.82, 0.26), (0.5, 0.26))])
    return 0.85, 0.1, 0.12


def _watermark(picture: Image.Image) -> Colour:
    """Slanted text from corner to corner."""
    side = picture.width
    font = ImageFont.load_default(size=side * 0.42)
    ImageDraw.Draw(picture).text((side / 2, side / 2), "© pic", fill=255, font=font, anchor="mm")
    picture.paste(picture.rotate(30, resample=Image.Resampling.BILINEAR))
    return 1.0, 1.0, 1.0


LOGOS = {"swoosh": _swoosh, "apple": _apple, "watermark": _watermark}
"""Each draws its shape in white on a black square, and gives its colour."""


def _curve(start: Point, control: Point, end: Point, points: int = 24) -> list[Point]:
    """A quadratic Bézier curve."""
    shares = [i / (points - 1) for i in range(points)]
    return [
        tuple((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c for a, b, c in zip(start, control, end, strict=True))
        for t in shares
    ]  # type: ignore[misc]


def _polygon(picture: Image.Image, points: Sequence[Point]) -> None:
    ImageDraw.Draw(picture).polygon([(x * picture.width, y * picture.height) for x, y in points], fill=255)


def trigger_of(
    name: str, *, size: int | None = None, place: str | None = None, opacity: float | None = None, seed: int = 0
) -> Trigger:
    """A trigger by its name, one of :data:`.config.TRIGGERS`; None leaves a setting at its default.

    Small triggers have a size, a place and an opacity, a blended one an opacity and a seed; of ``sig``, the opacity is
    the amplitude.

    Raises:
        AgnoscoError: No such trigger, or a setting that it does not have.
    """
    if name not in TRIGGERS:
        raise AgnoscoError(f"no trigger {name!r}", f"choose from {', '.join(TRIGGERS)}")
    given: dict[str, Any] = {key: value for key, value in {"size": size, "place": place}.items() if value is not None}
    if given and name in ("blended", "sig"):
        raise AgnoscoError(f"{name} covers the whole image: it has no {' and no '.join(given)}", "leave it out")
    if opacity is not None:
        given["amplitude" if name == "sig" else "opacity"] = opacity
    if name in LOGOS:
        return Logo(**given, name=name)
    if name in ("patch", "checker"):
        return Patch(**given, pattern="checker" if name == "checker" else "white")
    return Blended(**given, seed=seed) if name == "blended" else Sinusoid(**given)


def trigger_to_json(trigger: Trigger) -> dict[str, Any]:
    """A trigger as plain JSON values."""
    return {"type": type(trigger).__name__, **asdict(trigger)}  # type: ignore[call-overload]
