"""Where in its picture a class is: how much each place of a map contributes.

That is how strongly the loss of perturbed samples responds to a change there: |∂|, where ∂ is the gradient of line 4 at
the finished map (`saliency of gradients, Simonyan et al. 2014 <https://arxiv.org/abs/1312.6034>`_, of many images at
once). Other ways, and why not: ``benchmarks/where.py``. Symbols are those of :mod:`agnosco.method.reference`, and as in
:mod:`.mapper`, M maps are rows of one tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .mapper import Mapper

IMAGES = 16
"""Perturbed samples that contributions are averaged over, at least: 3 % of the passes of ``quick``."""

SMOOTHING = 1 / 28
"""Standard deviation of the smoothing, as a share of the shorter side: 8 pixels of 224."""


def contributions(mapper: Mapper, nu: Tensor) -> Tensor:
    """How much each place of finished maps ν ``(M, C, H, W)`` contributes, ``(M, 1, H, W)`` in [0, 1].

    |∂| summed over channels and over mini-batches, of the maps' own samples, transforms and loss; smoothed, and divided
    by its greatest value. All ones where the gradients vanish, so that nothing is hidden.
    """
    total = torch.zeros_like(nu[:, :1])
    for _ in range(math.ceil(IMAGES / mapper.config.batch)):
        gradient, _, _ = mapper.gradient(mapper.mini_batches(), nu)
        total = total + gradient.abs().sum(1, keepdim=True)
    smooth = smoothed(total, SMOOTHING * min(nu.shape[2:]))
    greatest = smooth.amax((2, 3), keepdim=True)
    return torch.where(greatest > 0, smooth / greatest, torch.ones_like(smooth)).clamp(0, 1)


def smoothed(values: Tensor, sigma: float) -> Tensor:
    """Values ``(N, 1, H, W)`` smoothed with a Gaussian of ``sigma`` pixels; the edge goes on beyond itself."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=values.device, dtype=values.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(values, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
