"""Dial 2: how a nudged image is seen.

The paper shows the classifier the nudged image as it is. Seen through random crops and flips, a
nudge must work wherever and at whatever scale it is looked at: an expectation over views beside the
expectation over samples. Views hide a trigger that sits at a fixed place; scans go without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import AgnoscoError


class Transforms(Protocol):
    """A way to see images: what chance decides, and what is seen then.

    The two are apart so that the views of several maps, each with a generator of its own, are seen at once.
    """

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """What chance decides for images of shape ``(N, C, H, W)``: tensors of N rows, drawn on the CPU."""
        ...

    def apply(self, images: Tensor, *drawn: Tensor) -> Tensor:
        """Differentiable views ``(N, C, H, W)`` of images of that shape."""
        ...


@dataclass(frozen=True)
class Identity:
    """The image as it is: the paper."""

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        return ()

    def apply(self, images: Tensor, *drawn: Tensor) -> Tensor:
        return images


@dataclass(frozen=True)
class Crops:
    """A random crop of each image, resized back (bilinear), flipped half the time, with some noise.

    Args:
        area: Least and greatest area of a crop, as a share of the image's. Above 1 a crop holds the whole image and
            what lies around it, where the colours of its borders go on: the image is seen from further away.
        flip: Whether to mirror half of the views left to right.
        noise: Standard deviation of Gaussian noise added to the view, in [0, 1] pixel units.
    """

    area: tuple[float, float] = (0.1, 1.0)
    flip: bool = True
    noise: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.area
        if not (0 < low <= high < inf and 0 <= self.noise < inf):
            raise AgnoscoError(f"no views with {self}", "give 0 < least <= greatest area, and noise of at least 0")

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """The affine map of each view, ``(N, 2, 3)``, and its noise where there is any."""
        count = shape[0]
        low, high = self.area
        share, *place = torch.rand(3, count, generator=generator)
        scale = (low + (high - low) * share).sqrt()
        mirror = torch.ones(count)
        if self.flip:
            mirror = 1 - 2 * torch.randint(2, (count,), generator=generator).float()
        affine = torch.zeros(count, 2, 3)
        affine[:, 0, 0] = scale * mirror
        affine[:, 1, 1] = scale
        affine[:, :, 2] = (1 - scale)[:, None] * (2 * torch.stack(place, 1) - 1)
        return (affine, self.noise * torch.randn(*shape, generator=generator)) if self.noise else (affine,)

    def apply(self, images: Tensor, *drawn: Tensor) -> Tensor:
        affine, *noise = drawn
        grid = F.affine_grid(affine, list(images.shape), align_corners=False)
        seen = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return seen + noise[0] if noise else seen


def transformed(transforms: Transforms, images: Tensor, generator: torch.Generator) -> Tensor:
    """Images as these views see them."""
    return transforms.apply(images, *(part.to(images.device) for part in transforms.draw(images.shape, generator)))
