"""Views of ramps, where a crop shows itself: its slope is its side, its level its place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Array
from torch import Tensor

from agnosco.errors import AgnoscoError
from agnosco.method.dials import Crops, Identity
from agnosco.method.reference import transformed

SIDE = 32


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramps(count: int) -> Tensor:
    """Channel 0 holds each pixel's x, channel 1 its y, as shares of the image: ``(N, 2, 32, 32)``."""
    place = (torch.arange(SIDE) + 0.5) / SIDE
    return torch.stack(torch.meshgrid(place, place, indexing="xy")).expand(count, -1, -1, -1).contiguous()


def crops_of(seen: Tensor) -> tuple[Array, Array, Array, Array]:
    """Sides and centres of the crops that views of :func:`ramps` show: ``(x side, y side, x centre, y centre)``.

    Read off the two middle pixels, which lie inside every crop; at its edge a crop may look half a pixel
    beyond the outermost pixel's centre, where the image goes on flat.
    """
    a, b = SIDE // 2 - 1, SIDE // 2
    x, y = seen[:, 0, a], seen[:, 1, :, a]
    sides = [SIDE * (ramp[:, b] - ramp[:, a]).numpy() for ramp in (x, y)]
    centres = [(ramp[:, a] + ramp[:, b]).numpy() / 2 for ramp in (x, y)]
    return sides[0], sides[1], centres[0], centres[1]


def test_as_is_is_the_image() -> None:
    images = ramps(3)
    assert transformed(Identity(), images, seeded()) is images


def test_a_crop_of_everything_is_the_image() -> None:
    images = torch.rand(4, 3, 9, 14, generator=seeded(1))
    seen = transformed(Crops(area=(1.0, 1.0), flip=False), images, seeded())
    torch.testing.assert_close(seen, images, rtol=0, atol=1e-5)


def test_a_flip_is_a_mirror() -> None:
    images = torch.rand(40, 3, 9, 14, generator=seeded(1))
    seen = transformed(Crops(area=(1.0, 1.0)), images, seeded())
    plain, mirrored = (torch.isclose(seen, i, atol=1e-5).all((1, 2, 3)) for i in (images, images.flip(3)))
    assert (plain ^ mirrored).all()
    assert plain.any()
    assert mirrored.any()


def test_a_crop_of_a_ramp_is_a_ramp() -> None:
    # A quarter of the area is half the side: half the slope, everywhere but in the last half pixel of the image.
    seen = transformed(Crops(area=(0.25, 0.25), flip=False), ramps(50), seeded())
    slopes = SIDE * np.diff(seen[:, 0].numpy(), axis=2)[:, :, 1:-1]
    np.testing.assert_allclose(slopes, 0.5, atol=1e-4)
    assert np.ptp(seen[:, 0].numpy(), axis=1).max() < 1e-5  # straight: x does not change from top to bottom
    slopes = SIDE * np.diff(seen[:, 1].numpy(), axis=1)[:, 1:-1]
    np.testing.assert_allclose(slopes, 0.5, atol=1e-4)


def test_areas_are_uniform_within_their_bounds() -> None:
    width, height, _, _ = crops_of(transformed(Crops(area=(0.2, 0.6), flip=False), ramps(2000), seeded()))
    np.testing.assert_allclose(width, height, atol=1e-4)
    area = width * height
    assert area.min() > 0.2 - 1e-4
    assert area.max() < 0.6 + 1e-4
    assert area.mean() == pytest.approx(0.4, abs=0.01)  # sd 0.115 / √2000 = 0.0026
    assert area.std() == pytest.approx(0.4 / math.sqrt(12), rel=0.05)


def test_crops_lie_anywhere_inside_the_image() -> None:
    width, height, x, y = crops_of(transformed(Crops(area=(0.2, 0.6), flip=False), ramps(2000), seeded()))
    for side, centre in ((width, x), (height, y)):
        place = (centre - side / 2) / (1 - side)  # 0 touches one border, 1 the other
        assert place.min() > -1e-3
        assert place.max() < 1 + 1e-3
        assert place.mean() == pytest.approx(0.5, abs=0.026)  # sd 0.289 / √2000 = 0.0065
        assert place.std() == pytest.approx(1 / math.sqrt(12), rel=0.05)
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.1


def test_a_crop_greater_than_the_image_holds_all_of_it() -> None:
    # Four times the area is twice the side: the image fills 16 of 32 pixels, somewhere, and its borders go on.
    seen = transformed(Crops(area=(4.0, 4.0), flip=False), ramps(500), seeded())
    lowest, highest = 0.5 / SIDE, 1 - 0.5 / SIDE  # the centres of the outermost pixels
    for ramp in (seen[:, 0, 0].numpy(), seen[:, 1, :, 0].numpy()):
        assert (np.diff(ramp, axis=1) > -1e-6).all()
        np.testing.assert_allclose(ramp.min(1), lowest, atol=0.5 / SIDE)
        np.testing.assert_allclose(ramp.max(1), highest, atol=0.5 / SIDE)
        before = (np.abs(ramp - lowest) < 1e-4).sum(1)  # pixels left of the image, or above it
        assert before.min() <= 1
        assert before.max() >= SIDE / 2 - 1
        assert before.mean() == pytest.approx(SIDE / 4, abs=1)


def test_half_of_the_views_are_flipped() -> None:
    width, height, _, _ = crops_of(transformed(Crops(), ramps(2000), seeded()))
    assert (width < 0).mean() == pytest.approx(0.5, abs=0.045)  # four sd
    assert (height > 0).all()


def test_gradient_reaches_the_pixels_seen() -> None:
    # Bilinear weights sum to one: what all output pixels together pass back is their number.
    images = ramps(8).requires_grad_()
    transformed(Crops(area=(0.2, 0.6)), images, seeded()).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad.sum((1, 2, 3)), torch.full((8,), 2.0 * SIDE * SIDE))
    untouched = (images.grad == 0).double().mean((1, 2, 3))
    assert (untouched > 0.3).all()  # a crop is at most 60 % of the image, and half a pixel around it
    assert (untouched < 0.8).all()


def test_noise_has_the_standard_deviation_asked_for() -> None:
    images = torch.full((64, 3, 16, 16), 0.5)
    noise = transformed(Crops(noise=0.07), images, seeded()) - images
    assert noise.mean().item() == pytest.approx(0, abs=0.002)  # 49152 values
    assert noise.std().item() == pytest.approx(0.07, rel=0.02)


def test_generator_decides() -> None:
    images, transforms = torch.rand(6, 3, 8, 8, generator=seeded(1)), Crops(noise=0.05)
    assert torch.equal(transformed(transforms, images, seeded(3)), transformed(transforms, images, seeded(3)))
    assert not torch.equal(transformed(transforms, images, seeded(3)), transformed(transforms, images, seeded(4)))


@pytest.mark.parametrize(
    "settings", [{"area": (0.0, 1.0)}, {"area": (0.5, 0.2)}, {"area": (0.5, math.inf)}, {"noise": -0.1}]
)
def test_views_without_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(AgnoscoError, match=r"area of crops cannot|noise must be at least 0"):
        Crops(**settings)
