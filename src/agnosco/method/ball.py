"""Dial 3: the projection Ψ onto a bounded set, after every step (line 15 of Algorithm 1).

An L2 ball, the paper's, makes all values of ν work together: pictures of concepts. A sparse ball leaves only the few
pixels that carry most energy: the triggers that backdoors are made of.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import AgnoscoError
from .dials import AutoL2, Sparse, scaled_radius
from .parameterization import Basis, each


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


@dataclass
class WithinL2:
    basis: Basis
    eta: float | Tensor

    def __call__(self, w: Tensor, *, progress: float, success: float | Tensor) -> Tensor:
        return w * each((self.eta / self.basis.norm(w)).clamp(max=1), w)


@dataclass
class GrowingL2:
    basis: Basis
    ball: AutoL2
    eta: float | Tensor = field(init=False)
    average: float | Tensor = 0.0

    def __post_init__(self) -> None:
        self.eta = scaled_radius(self.ball.start, self.basis.shape)

    def __call__(self, w: Tensor, *, progress: float, success: float | Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * torch.as_tensor(success, device=w.device)
        if progress < 1:  # the last projection keeps the radius it finds
            growth = torch.where(self.average < self.ball.success, self.ball.growth, 1.0)
            self.eta = (self.eta * growth).clamp(max=scaled_radius(self.ball.limit, self.basis.shape))
        return WithinL2(self.basis, self.eta)(w, progress=progress, success=success)


class FewPixels:
    def __init__(self, basis: Basis, ball: Sparse) -> None:
        channels, height, width = self.shape = basis.shape
        if type(basis) is not Basis:
            raise AgnoscoError("a sparse ball needs pixel coordinates", "choose --parameterization pixel, or --ball l2")
        if not 1 <= ball.pixels <= height * width:
            raise AgnoscoError(f"{ball.pixels} pixels do not fit into {height} x {width}", "give a smaller number")
        self.ball = ball
        self.eta = (channels * ball.pixels) ** 0.5

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
    return {"eta": project.eta, "average": project.average} if isinstance(project, GrowingL2) else {}


def carry_on(project: Projector, learned: dict[str, float | Tensor]) -> None:
    """Give a fresh projector what another of its kind had learned."""
    for name, value in learned.items():
        setattr(project, name, value)
