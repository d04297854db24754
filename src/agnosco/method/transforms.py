"""Dial 2: random transforms of perturbed images.

The paper has none. With random crops and flips, a pattern must work at any place and scale. A scan does without: crops
hide a trigger that has a fixed place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def draw_crops(
    shape: Sequence[int], generator: torch.Generator, *, area: tuple[float, float], flip: bool, noise: float
) -> tuple[Tensor, ...]:
    """The affine map of each crop, ``(N, 2, 3)``, and its noise where there is any."""
    count = shape[0]
    low, high = area
    share, *place = torch.rand(3, count, generator=generator)
    scale = (low + (high - low) * share).sqrt()
    mirror = torch.ones(count)
    if flip:
        mirror = 1 - 2 * torch.randint(2, (count,), generator=generator).float()
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = scale * mirror
    affine[:, 1, 1] = scale
    affine[:, :, 2] = (1 - scale)[:, None] * (2 * torch.stack(place, 1) - 1)
    return (affine, noise * torch.randn(*shape, generator=generator)) if noise else (affine,)


def cropped(images: Tensor, *drawn: Tensor) -> Tensor:
    """Images ``(N, C, H, W)`` under what :func:`draw_crops` drew."""
    affine, *noise = drawn
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    seen = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return seen + noise[0] if noise else seen
