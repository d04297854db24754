"""Generated images: dead leaves and 1/f noise, with the statistics of natural images.

Both have the colour covariance of photographs and a spectrum that falls like theirs: the noise as 1/f (`Field 1987
<https://doi.org/10.1364/JOSAA.4.002379>`_), the leaves a little faster. Leaves also have edges and occlusion, which
noise lacks. Networks pre-trained on such images learn features that transfer to real ones (`Baradad et al. 2021
<https://arxiv.org/abs/2106.05963>`_).

Every image has its own generator, seeded by ``(seed, index)``: image i is the same however many are generated.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import AgnoscoError
from ..types import Shape

COLOUR_MEAN = np.array([0.485, 0.456, 0.406])
"""Mean RGB of ImageNet, as torchvision's weights use it."""

COLOUR_FACTOR = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
"""L, where L·Lᵀ is the covariance of ImageNet's RGB values (`Olah et al. 2017
<https://github.com/tensorflow/lucid/blob/master/lucid/optvis/param/color.py>`_)."""

SMALLEST, LARGEST = 1 / 32, 1.0
"""Smallest and largest radius of a leaf, relative to the longer side; the power law needs both.

With these, the mean magnitude spectrum falls as f^-1.4 at 64 px and f^-1.5 at 224 px; that of 200 ImageNet photographs
as f^-1.5 at both.
"""

REACH = 2.25
"""Greatest distance of a leaf's corner from its centre, in radii: of a triangle stretched to 2 : 1, rounded up."""

COVERAGE = 3.0
"""How often a point is painted over on average; e⁻³ = 5 % of an image keeps the background colour."""

SUPERSAMPLING = 2
"""Leaves are drawn this many times larger and averaged down, which smooths their edges."""


def leaves(count: int, shape: Shape, *, seed: int = 0) -> Tensor:
    """Dead leaves, ``(N, C, H, W)`` uint8: opaque shapes at random places, which occlude one another.

    With a density of radii r⁻³ the images look alike at every scale (`Lee, Mumford and Huang 2001
    <https://doi.org/10.1023/A:1011109015675>`_). The leaves are ellipses, rectangles and triangles of random elongation
    and direction, as in Baradad et al., each of one colour from a normal distribution with ImageNet's mean and
    covariance. Grey images (C = 1) are the luma of the coloured ones. AgnoscoError if an argument is invalid.
    """
    return _images(_leaves, count, shape, seed)


def noise(count: int, shape: Shape, *, seed: int = 0) -> Tensor:
    """Gaussian noise with a 1/f amplitude spectrum and ImageNet's colours, clipped to [0, 1]; as for :func:`leaves`."""
    return _images(_noise, count, shape, seed)


def checked_shape(shape: Shape) -> Shape:
    """A shape, which must be ``(1, H, W)`` or ``(3, H, W)`` with sides of at least 1."""
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        message = f"images cannot have the shape {tuple(shape)}"
        raise AgnoscoError(message, "give (C, H, W): C is 1 (grey) or 3 (RGB), H and W are in pixels")
    channels, height, width = shape
    return channels, height, width


def _images(make: Callable[[Shape, Generator], Image.Image], count: int, shape: Shape, seed: int) -> Tensor:
    channels, height, width = shape = checked_shape(shape)
    if count < 1 or seed < 0:
        raise AgnoscoError(f"cannot make {count} images from seed {seed}", "give a count from 1 and a seed from 0")
    images = torch.empty((count, height, width, channels), dtype=torch.uint8)
    for index in range(count):
        image = make(shape, np.random.default_rng((seed, index))).convert("L" if channels == 1 else "RGB")
        images[index] = torch.from_numpy(np.array(image)).view(height, width, channels)
    return images.permute(0, 3, 1, 2).contiguous()


def _polygon(corners: int, turn: float = 0.0) -> np.ndarray:
    """A regular polygon around the origin with area π, the unit circle's, ``(corners, 2)``."""
    angles = 2 * np.pi * np.arange(corners) / corners + turn
    radius = np.sqrt(2 * np.pi / (corners * np.sin(2 * np.pi / corners)))
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


OUTLINES = (_polygon(32), _polygon(4, np.pi / 4), _polygon(3))
"""An ellipse, a rectangle and a triangle, before they are stretched and rotated."""


def _leaves(shape: Shape, generator: Generator) -> Image.Image:
    _, height, width = shape
    width, height = SUPERSAMPLING * width, SUPERSAMPLING * height
    side = max(height, width)
    radii, centres = _scattered((width / side, height / side), generator)
    colours = _bytes(generator.standard_normal((len(radii) + 1, 3)) @ COLOUR_FACTOR.T + COLOUR_MEAN)
    fills = [tuple(colour) for colour in colours.tolist()]
    image = Image.new("RGB", (width, height), fills.pop())
    draw = ImageDraw.Draw(image)
    for outline, fill in zip(_placed(side * radii, side * centres, generator), fills, strict=True):
        draw.polygon(outline, fill=fill)
    return image.reduce(SUPERSAMPLING)


def _scattered(extent: tuple[float, float], generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Radii ``(n,)`` and centres ``(n, 2)`` of the leaves that reach into an image.

    Leaves are scattered beyond the image by as much as one can reach, so that its border has as many large leaves as
    its middle.
    """
    corner = np.array(extent)
    margin = REACH * LARGEST
    # The mean of r² under p(r) ∝ r⁻³ on [a, b] is 2·a²·b²·ln(b / a) / (b² - a²).
    a, b = SMALLEST, LARGEST
    mean_square = 2 * a**2 * b**2 * np.log(b / a) / (b**2 - a**2)
    count = round(COVERAGE * np.prod(corner + 2 * margin) / (np.pi * mean_square))
    share = generator.random(count)
    radii = (share / b**2 + (1 - share) / a**2) ** -0.5  # inverse of the distribution function
    centres = generator.random((count, 2)) * (corner + 2 * margin) - margin
    reach = REACH * radii[:, None]
    visible = ((centres > -reach) & (centres < corner + reach)).all(1)
    return radii[visible], centres[visible]


def _placed(radii: np.ndarray, centres: np.ndarray, generator: Generator) -> list[list[float]]:
    """Outlines ``[x, y, x, y, …]`` of leaves with random kind, elongation (1 to 2, at equal area) and direction."""
    kinds = generator.integers(len(OUTLINES), size=len(radii))
    stretch = np.sqrt(generator.uniform(1, 2, len(radii)))
    turn = generator.uniform(0, 2 * np.pi, len(radii))
    cos, sin = np.cos(turn), np.sin(turn)
    axes = np.stack([cos * stretch, -sin / stretch, sin * stretch, cos / stretch], 1).reshape(-1, 2, 2)
    axes *= radii[:, None, None]
    placed: list[list[float]] = [[]] * len(radii)
    for kind, outline in enumerate(OUTLINES):
        chosen = np.flatnonzero(kinds == kind)
        corners = np.einsum("nij,cj->nci", axes[chosen], outline) + centres[chosen, None]
        for index, points in zip(chosen.tolist(), corners.reshape(len(chosen), -1).tolist(), strict=True):
            placed[index] = points
    return placed


def _noise(shape: Shape, generator: Generator) -> Image.Image:
    _, height, width = shape
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    radius[0, 0] = np.inf  # so that all images are equally bright
    spectrum = 1 / radius
    spectrum /= max(np.sqrt(np.mean(spectrum**2)), np.finfo(float).tiny)  # to unit variance of the pixels
    white = generator.standard_normal((height, width, 3))
    waves = np.fft.fft2(white, axes=(0, 1)) * spectrum[:, :, None]
    pink = np.fft.ifft2(waves, axes=(0, 1)).real
    return Image.fromarray(_bytes(pink @ COLOUR_FACTOR.T + COLOUR_MEAN))


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1], clipped, as uint8."""
    return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
