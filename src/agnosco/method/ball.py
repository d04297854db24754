"""Dial 3: the bounded set that ν is projected onto after every step, Ψ in line 15 of Algorithm 1.

An L2 ball, the paper's, makes all values of ν work together: pictures of concepts. A sparse set
leaves only the few pixels that carry most energy: the stamps that backdoors are made of.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import AgnoscoError
from ..types import Shape
from .parameterization import Basis, each

REFERENCE_VALUES = 3 * 224 * 224
"""Radii are given for this many values (the paper's images) and scale with √d for others."""


class Projector(Protocol):
    """Ψ for one map, or for several side by side: projects w in place of line 15."""

    eta: float | Tensor
    """Bound on ‖ν‖₂ that holds after the last projection; of each map, where they differ."""

    def __call__(self, w: Tensor, *, progress: float, success: float | Tensor) -> Tensor:
        """Project w.

        Args:
            w: Coordinates of the map, or of several along leading axes.
            progress: Share of the steps done, in (0, 1].
            success: Share of this step's mini-batch that was given the class before the step; of each map.
        """
        ...


class Ball(Protocol):
    """A choice of ball."""

    def projector(self, basis: Basis) -> Projector:
        """A fresh Ψ for maps of this basis."""
        ...


@dataclass(frozen=True)
class L2:
    """‖ν‖₂ ≤ η: the paper.

    Args:
        radius: η for 3×224×224 values in [0, 1], the paper's 30 by default; for d values it is scaled
            by √(d / 150528), so that the root mean square per value stays the same (30 is 0.077).
    """

    radius: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.radius < inf:
            raise AgnoscoError(
                f"a radius of {self.radius} leaves no room for a map", "give a positive one; the paper's is 30"
            )

    def projector(self, basis: Basis) -> Projector:
        return _WithinL2(basis, scaled(self.radius, basis.shape))


@dataclass(frozen=True)
class AutoL2:
    """An L2 ball that grows until the nudge gives the class to most samples.

    Args:
        start: First radius, in the units of :class:`L2`.
        limit: Greatest radius.
        success: Share of nudged samples, averaged over steps, at which it stops growing.
        growth: Factor of growth per step.
    """

    start: float = 15.0
    limit: float = 120.0
    success: float = 0.9
    growth: float = 1.03

    def __post_init__(self) -> None:
        if not (0 < self.start <= self.limit < inf and 0 <= self.success < inf and 1 <= self.growth < inf):
            raise AgnoscoError(
                f"no ball can grow with {self}",
                "give 0 < start <= limit, and a growth of at least 1",
            )

    def projector(self, basis: Basis) -> Projector:
        return _Growing(basis, self)


@dataclass(frozen=True)
class Sparse:
    """Only the k pixels of most energy, each value in [-1, 1]; k falls during the run.

    Energy is summed over channels and smoothed over 3×3 pixels, so that the pixels kept hold together
    as a stamp does. Needs :class:`~agnosco.method.parameterization.Pixel` coordinates.

    Args:
        pixels: k at the end.
        start: k at the beginning, as a share of all pixels.
        hold: Share of the steps, at the end, that work with the final k.
    """

    pixels: int = 25
    start: float = 1.0
    hold: float = 0.3

    def __post_init__(self) -> None:
        if not (0 < self.start <= 1 and 0 <= self.hold <= 1):
            raise AgnoscoError(f"no sparse ball with {self}", "give a start in (0, 1] and a hold in [0, 1]")

    def projector(self, basis: Basis) -> Projector:
        if type(basis) is not Basis:
            raise AgnoscoError("a sparse ball needs pixel coordinates", "choose --parameterization pixel, or --ball l2")
        if not 1 <= self.pixels <= basis.shape[1] * basis.shape[2]:
            raise AgnoscoError(
                f"{self.pixels} pixels do not fit into {basis.shape[1]} x {basis.shape[2]}", "give a smaller number"
            )
        return _FewPixels(self, basis.shape)


@dataclass
class _WithinL2:
    basis: Basis
    eta: float | Tensor

    def __call__(self, w: Tensor, *, progress: float, success: float | Tensor) -> Tensor:
        return w * each((self.eta / self.basis.norm(w)).clamp(max=1), w)


@dataclass
class _Growing:
    basis: Basis
    ball: AutoL2
    eta: float | Tensor = field(init=False)
    average: float | Tensor = 0.0

    def __post_init__(self) -> None:
        self.eta = scaled(self.ball.start, self.basis.shape)

    def __call__(self, w: Tensor, *, progress: float, success: float | Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * torch.as_tensor(success, device=w.device)
        if progress < 1:  # the last projection keeps the radius it finds
            growth = torch.where(self.average < self.ball.success, self.ball.growth, 1.0)
            self.eta = (self.eta * growth).clamp(max=scaled(self.ball.limit, self.basis.shape))
        return _WithinL2(self.basis, self.eta)(w, progress=progress, success=success)


class _FewPixels:
    def __init__(self, ball: Sparse, shape: Shape) -> None:
        self.ball = ball
        self.shape = shape
        self.eta = (shape[0] * ball.pixels) ** 0.5

    def __call__(self, w: Tensor, *, progress: float, success: float | Tensor) -> Tensor:
        maps = w.view(-1, *self.shape)
        energy = F.avg_pool2d(maps.square().sum(1, keepdim=True), 3, stride=1, padding=1).flatten(1)
        kept = torch.zeros_like(energy).scatter(1, energy.topk(self._pixels(progress)).indices, 1.0)
        return (maps * kept.view(-1, 1, *self.shape[1:])).clamp(-1, 1).view_as(w)

    def _pixels(self, progress: float) -> int:
        """k falls geometrically from its start to its end, then holds."""
        last = self.ball.pixels
        first = max(last, self.ball.start * self.shape[1] * self.shape[2])
        falling = min(progress / max(1 - self.ball.hold, 1e-9), 1.0)
        return round(first * (last / first) ** falling)


def carried(project: Projector) -> dict[str, float | Tensor]:
    """What a projector has learned from the steps so far; with it, :func:`carry_on` makes a fresh one go on."""
    return {"eta": project.eta, "average": project.average} if isinstance(project, _Growing) else {}


def carry_on(project: Projector, learned: dict[str, float | Tensor]) -> None:
    """Give a fresh projector what another of its kind had learned."""
    for name, value in learned.items():
        setattr(project, name, value)


def scaled(radius: float, shape: Shape) -> float:
    """η for images of this shape: the radius at 3×224×224, times √(d / 150528)."""
    channels, height, width = shape
    return radius * (channels * height * width / REFERENCE_VALUES) ** 0.5
