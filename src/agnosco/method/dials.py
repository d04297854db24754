"""The three dials of the mapper: what each can be set to, and the one table of their names.

1. ``parameterization``: in which the map is optimized (:class:`Pixel`, :class:`Data`, :class:`Spectral`).
2. ``transforms``: of perturbed images, at random (:class:`Identity`, :class:`Crops`).
3. ``ball``: onto which ν is projected after every step (:class:`L2`, :class:`AutoL2`, :class:`Sparse`).

Settings load no torch; :mod:`agnosco.method.parameterization` and :mod:`agnosco.method.ball` work with tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import TYPE_CHECKING, Any

from ..errors import AgnoscoError
from ..types import Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..data.samples import Samples
    from .ball import Projector
    from .parameterization import Basis

REFERENCE_VALUES = 3 * 224 * 224
"""Values of the paper's images, for which radii are given."""


def scaled_radius(radius: float, shape: Shape) -> float:
    """η for images ``(C, H, W)`` of d values: the radius at 3×224×224, times √(d / 150528)."""
    return radius * (prod(shape) / REFERENCE_VALUES) ** 0.5


@dataclass(frozen=True)
class Pixel:
    """Pixels, as in the paper.

    Example:
        >>> from agnosco import MapperConfig, Pixel
        >>> config = MapperConfig(parameterization=Pixel())
    """

    def fit(self, samples: Samples, device: torch.device) -> Basis:
        """The linear map ν = A·w for the shape and, where it needs them, the statistics of samples."""
        from .parameterization import Basis

        return Basis(samples.shape, device)


@dataclass(frozen=True)
class Spectral:
    """Fourier coefficients weighted by 1/f^exponent, and colours as they are, whatever the samples.

    Args:
        exponent: From 0 (a flat spectrum) to 10; natural images have about 1
            (`Field 1987 <https://doi.org/10.1364/JOSAA.4.002379>`_).

    Example:
        >>> from agnosco import MapperConfig, Spectral
        >>> config = MapperConfig(parameterization=Spectral(1.0))
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        _check_exponent(self.exponent)

    def fit(self, samples: Samples, device: torch.device) -> Basis:
        from .parameterization import spectral_basis

        return spectral_basis(samples, device, self.exponent)


@dataclass(frozen=True)
class Data:
    """Coordinates in which the samples are white, in frequency and in colour.

    The spectrum is the samples' mean Fourier magnitude, the same in every direction; colours are mixed by the Cholesky
    factor of the samples' colour covariance. So the map knows nothing but the samples that Algorithm 1 averages over.

    Args:
        exponent: Power to which the spectrum is raised, from 0 to 10; below 1, there is more fine detail.
        floor: Least weight of a frequency and of a colour direction, as a share of the greatest, in (0, 1]. It keeps
            the linear map invertible where samples lack some (grey or very smooth images).

    Example:
        >>> from agnosco import Data, MapperConfig
        >>> config = MapperConfig(parameterization=Data(0.8))
    """

    exponent: float = 0.9
    floor: float = 1e-4

    def __post_init__(self) -> None:
        _check_exponent(self.exponent)
        if not 0 < self.floor <= 1:
            raise AgnoscoError(f"floor must be above 0 and at most 1, not {self.floor}", "the default is 1e-4")

    def fit(self, samples: Samples, device: torch.device) -> Basis:
        from .parameterization import data_basis

        return data_basis(samples, device, exponent=self.exponent, floor=self.floor)


def _check_exponent(exponent: float) -> None:
    if not 0 <= exponent <= 10:
        raise AgnoscoError(
            f"the exponent of a spectrum must be between 0 and 10, not {exponent}", "that of natural images is about 1"
        )


@dataclass(frozen=True)
class Identity:
    """No transform, as in the paper.

    Example:
        >>> from agnosco import Identity, MapperConfig
        >>> config = MapperConfig(transforms=Identity())
    """

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """The random numbers for images ``(N, C, H, W)`` of one map: tensors of N rows, on the CPU."""
        return ()

    def apply(self, images: Tensor, *drawn: Tensor) -> Tensor:
        """The transformed images ``(N, C, H, W)`` of all maps, differentiable with respect to ``images``."""
        return images


@dataclass(frozen=True)
class Crops:
    """A random crop of each image, resized back (bilinear), mirrored half the time, with some noise.

    So a pattern must work at any place and scale. A scan does without: crops hide a trigger that has a fixed place.

    Args:
        area: Least and greatest area of a crop, as a share of the image's. A crop above 1 is the whole image made
            smaller, with the colours of its borders around it.
        flip: Whether half of the crops are mirrored left to right.
        noise: Standard deviation of Gaussian noise added to the crop; pixels are in [0, 1].

    Example:
        >>> from agnosco import Crops, MapperConfig
        >>> config = MapperConfig(transforms=Crops(area=(0.3, 1.0)))
    """

    area: tuple[float, float] = (0.1, 1.0)
    flip: bool = True
    noise: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.area
        if not 0 < low <= high < inf:
            raise AgnoscoError(
                f"the area of crops cannot be from {low} to {high}", "give two numbers above 0, the smaller one first"
            )
        if not 0 <= self.noise < inf:
            raise AgnoscoError(f"noise must be at least 0, not {self.noise}", "0 adds none")

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """The affine map of each crop, ``(N, 2, 3)``, and its noise where there is any."""
        import torch

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
        from torch.nn import functional as F

        affine, *noise = drawn
        grid = F.affine_grid(affine, list(images.shape), align_corners=False)
        seen = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return seen + noise[0] if noise else seen


@dataclass(frozen=True)
class L2:
    """‖ν‖₂ ≤ η, as in the paper.

    Args:
        radius: η for 3×224×224 values in [0, 1]; the paper's is 30. For d values it is scaled by √(d / 150528), so that
            the root mean square per value stays the same (0.077 for 30).

    Example:
        >>> from agnosco import L2, MapperConfig
        >>> config = MapperConfig(ball=L2(70.0))
    """

    radius: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.radius < inf:
            raise AgnoscoError(f"radius must be positive and finite, not {self.radius}", "the paper's is 30")

    def projector(self, basis: Basis) -> Projector:
        """Ψ for maps in this parameterization."""
        from .ball import WithinL2

        return WithinL2(basis, scaled_radius(self.radius, basis.shape))


@dataclass(frozen=True)
class AutoL2:
    """An L2 ball that grows until most perturbed images are given the class.

    Args:
        start: First radius, in the units of :class:`L2`.
        limit: Greatest radius.
        success: Share of perturbed images given the class, averaged over steps, at which the ball stops growing.
        growth: Factor of growth per step.

    Example:
        >>> from agnosco import AutoL2, MapperConfig
        >>> config = MapperConfig(ball=AutoL2(limit=60.0))
    """

    start: float = 15.0
    limit: float = 120.0
    success: float = 0.9
    growth: float = 1.03

    def __post_init__(self) -> None:
        if not (0 < self.start <= self.limit < inf and 0 <= self.success < inf and 1 <= self.growth < inf):
            raise AgnoscoError(
                f"a ball cannot grow from {self.start} to {self.limit} by a factor of {self.growth} per step, "
                f"until a share of {self.success} is given the class",
                "give 0 < start <= limit, a growth of at least 1, and a success of at least 0",
            )

    def projector(self, basis: Basis) -> Projector:
        from .ball import GrowingL2

        return GrowingL2(basis, self)


@dataclass(frozen=True)
class Sparse:
    """Only the k pixels of most energy, each value in [−1, 1]; k falls during the run. Needs :class:`Pixel`.

    Energy is summed over channels and smoothed over 3×3 pixels, so that the pixels stay together as those of a trigger
    do.

    Args:
        pixels: k at the end.
        start: k at the beginning, as a share of all pixels, in (0, 1].
        hold: Share of the steps, at the end, with the final k, in [0, 1].

    Example:
        >>> from agnosco import MapperConfig, Sparse
        >>> config = MapperConfig(ball=Sparse(pixels=16))
    """

    pixels: int = 25
    start: float = 1.0
    hold: float = 0.3

    def __post_init__(self) -> None:
        if not (0 < self.start <= 1 and 0 <= self.hold <= 1):
            raise AgnoscoError(
                f"start must be above 0 and at most 1, and hold between 0 and 1, not {self.start} and {self.hold}",
                "both are shares; the defaults are 1.0 and 0.3",
            )

    def projector(self, basis: Basis) -> Projector:
        from .ball import FewPixels

        return FewPixels(basis, self)


Parameterization = Pixel | Data | Spectral
"""Coordinates w in which the map ν is optimized: moments, steps and the radius are of w."""

Transforms = Identity | Crops
"""Random transforms: numbers are drawn for each map with its own generator, and applied to all maps in one pass."""

Ball = L2 | AutoL2 | Sparse
"""The bounded set onto which Ψ projects ν after every step (line 15 of Algorithm 1)."""

PARAMETERIZATIONS: dict[str, type[Parameterization]] = {"pixel": Pixel, "data": Data, "spectral": Spectral}
TRANSFORMS: dict[str, type[Transforms]] = {"identity": Identity, "crops": Crops}
BALLS: dict[str, type[Ball]] = {"l2": L2, "sparse": Sparse, "auto": AutoL2}
DIALS: dict[str, dict[str, type[Any]]] = {
    "parameterization": PARAMETERIZATIONS, "transforms": TRANSFORMS, "ball": BALLS
}  # fmt: skip
"""What each dial can be set to, by its name on the command line and in a manifest. A new setting needs a line here."""


def name_of(dial: object) -> str:
    """The name of a setting of a dial: ``"data"`` for ``Data()``."""
    return next(name for kinds in DIALS.values() for name, kind in kinds.items() if type(dial) is kind)
