"""Dial 3: the projection Ψ onto a bounded set, after every step (line 15 of Algorithm 1).

In an L2 ball, the paper's, all values of ν work together: maps are pictures of concepts. A sparse ball leaves only the
few pixels of most energy, as a backdoor's trigger has them.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import AgnoscoError
from .dials import AutoL2, Sparse, scaled_radius
from .parameterization import Basis, each

Numbers = float | Tensor
"""One number, or one for each map ``(M,)``."""


@dataclass(frozen=True)
class BallState:
    """What a projection carries from step to step.

    Args:
        eta: η, the bound on ‖ν‖₂.
        success: Share of the mini-batches given the class, averaged over steps; of balls that grow by it.
    """

    eta: Numbers
    success: Numbers = 0.0


class Projector(Protocol):
    """Ψ, for one map or for several side by side."""

    def begin(self) -> BallState:
        """The state before the first step."""
        ...

    def __call__(self, w: Tensor, ball: BallState, *, progress: float, success: Numbers) -> tuple[Tensor, BallState]:
        """The projected coordinates of a map, or of several along leading axes, and what the next projection needs.

        Args:
            ball: What the last projection returned.
            progress: Share of the steps done, in (0, 1].
            success: Share of this step's mini-batch that was given the class before the step.
        """
        ...


@dataclass(frozen=True)
class WithinL2:
    """ν · min(1, η/‖ν‖₂)."""

    basis: Basis
    eta: Numbers

    def begin(self) -> BallState:
        return BallState(self.eta)

    def __call__(self, w: Tensor, ball: BallState, *, progress: float, success: Numbers) -> tuple[Tensor, BallState]:
        return w * each((ball.eta / self.basis.norm(w)).clamp(max=1), w), ball


@dataclass(frozen=True)
class GrowingL2:
    """An L2 ball whose η grows while too few images are given the class; see :class:`agnosco.method.dials.AutoL2`."""

    basis: Basis
    settings: AutoL2

    @property
    def radii(self) -> tuple[float, float]:
        """The least and the greatest η."""
        shape = self.basis.shape
        return scaled_radius(self.settings.start, shape), scaled_radius(self.settings.limit, shape)

    def begin(self) -> BallState:
        return BallState(self.radii[0])

    def __call__(self, w: Tensor, ball: BallState, *, progress: float, success: Numbers) -> tuple[Tensor, BallState]:
        average = 0.9 * ball.success + 0.1 * torch.as_tensor(success, device=w.device)
        eta = ball.eta
        if progress < 1:  # the last projection keeps its radius
            growth = torch.where(average < self.settings.success, self.settings.growth, 1.0)
            eta = (eta * growth).clamp(max=self.radii[1])
        return WithinL2(self.basis, eta)(w, BallState(eta, average), progress=progress, success=success)


class FewPixels:
    """All but the k pixels of most energy set to zero, and values clipped to [−1, 1]."""

    def __init__(self, basis: Basis, settings: Sparse) -> None:
        _, height, width = self.shape = basis.shape
        if type(basis) is not Basis:
            raise AgnoscoError("a sparse ball needs pixel coordinates", "choose --parameterization pixel, or --ball l2")
        if not 1 <= settings.pixels <= height * width:
            raise AgnoscoError(
                f"a sparse ball of {settings.pixels} pixels does not fit images of {height} x {width}",
                f"give 1 to {height * width} pixels",
            )
        self.settings = settings

    def begin(self) -> BallState:
        return BallState((self.shape[0] * self.settings.pixels) ** 0.5)

    def __call__(self, w: Tensor, ball: BallState, *, progress: float, success: Numbers) -> tuple[Tensor, BallState]:
        maps = w.view(-1, *self.shape)
        energy = F.avg_pool2d(maps.square().sum(1, keepdim=True), 3, stride=1, padding=1)
        return (maps * top_energy_mask(energy, self._pixels(progress))).clamp(-1, 1).view_as(w), ball

    def _pixels(self, progress: float) -> int:
        """k, which falls geometrically from its start to its end, then stays."""
        last = self.settings.pixels
        first = max(last, self.settings.start * self.shape[1] * self.shape[2])
        falling = min(progress / max(1 - self.settings.hold, 1e-9), 1.0)
        return round(first * (last / first) ** falling)


def top_energy_mask(energy: Tensor, pixels: int) -> Tensor:
    """Where the ``pixels`` pixels of most energy ``(..., H, W)`` are: a boolean mask; all if there are no more."""
    flat = energy.flatten(-2)
    top = flat.topk(min(pixels, flat.shape[-1])).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter(-1, top, True).view_as(energy)
