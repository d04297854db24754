"""Algorithm 1, line by line, as small functions; :mod:`.reference` has the loop to read, :mod:`.mapper` as it runs.

All of them work on one map ``(C, H, W)``, or on several with leading axes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import MapperConfig
from .parameterization import Basis, each

EPSILON = 1e-12
"""Keeps line 7 from 0 / 0; far below any gradient that matters."""

TINY = 1e-30
"""Keeps a zero step from being divided by its norm."""

WEIGHTS = {"log-odds": 1.0, "logit": 0.0}
"""The weight of the other classes in the losses that have names."""


def perturbed(images: Tensor, nu: Tensor) -> Tensor:
    """Clip(I − ν): images ``(..., C, H, W)`` moved towards the class, in [0, 1] (line 3)."""
    return (images - nu).clamp(0, 1)


def draw_contrasts(count: int, contrast: tuple[float, float], generator: torch.Generator) -> Tensor | None:
    """Random contrasts ``(count, 1, 1, 1)``, or None where all are 1."""
    low, high = contrast
    if low == high == 1:
        return None
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)


def at_contrasts(images: Tensor, contrasts: Tensor | None) -> Tensor:
    """Images ``(..., C, H, W)`` at contrasts ``(..., 1, 1, 1)`` about mid-grey; as they are for None."""
    return images if contrasts is None else 0.5 + contrasts * (images - 0.5)


def class_loss(logits: Tensor, targets: Tensor, loss: str | float) -> Tensor:
    """The loss to minimize, of logits ``(N, classes)`` and classes ``(N,)``, summed over images (line 4).

    The losses are those of :class:`agnosco.method.config.MapperConfig`.
    """
    if loss == "cross-entropy":
        return F.cross_entropy(logits, targets, reduction="sum")
    own = logits.gather(1, targets[:, None])
    weight = WEIGHTS[loss] if isinstance(loss, str) else loss
    if weight == 0:
        return -own.sum()
    others = logits.scatter(1, targets[:, None], -math.inf).logsumexp(1, keepdim=True)
    return (weight * others - own).sum()


def adam_step(
    x: Tensor, mu: Tensor, sigma: Tensor, k: int, *, beta1: float, beta2: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Lines 5–7: the step v and the moments μ and σ, from the mean gradient x of step k and the moments before.

    The moments are zeros before the first step, and k counts from 1: at 0, line 7 is 0 / 0.
    """
    mu = beta1 * mu + (1 - beta1) * x  # line 5
    sigma = beta2 * sigma + (1 - beta2) * x * x  # line 6
    correction = math.sqrt(1 - beta2**k) / (1 - beta1**k)
    return correction * mu / (sigma.sqrt() + EPSILON), mu, sigma  # line 7


def unit_step(v: Tensor, basis: Basis) -> Tensor:
    """v / ‖v‖₂ (lines 8–9); zero stays zero."""
    return v * each(1 / basis.norm(v).clamp_min(TINY), v)


def step_length(v: Tensor, config: MapperConfig, basis: Basis, eta: float | Tensor, k: int) -> Tensor:
    """The factor on v, of every map: 1 for a literal step, otherwise what gives it the length asked for."""
    decay = 1.0
    left = config.steps - k + 1
    if left <= config.decay * config.steps:
        decay = (1 - math.cos(math.pi * left / (config.decay * config.steps + 1))) / 2
    norm = basis.norm(v)
    if config.step == "literal":
        return torch.full_like(norm, decay)
    length = 1.0 if config.step == "unit" else float(config.step) * eta
    return decay * length / norm.clamp_min(TINY)
