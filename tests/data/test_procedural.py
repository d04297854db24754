"""Procedural images: their statistics against closed forms, measured here from the pixels alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agnosco.data import procedural
from agnosco.errors import AgnoscoError

MAKERS = [procedural.leaves, procedural.noise]


def spectral_slope(images: torch.Tensor) -> float:
    """Exponent of the mean magnitude spectrum, by a straight line through its rings in log-log axes."""
    grey = images.double().mean(1).numpy() / 255
    side = grey.shape[-1]
    magnitude = np.mean([np.abs(np.fft.fft2(image - image.mean())) for image in grey], axis=0)
    rows, columns = np.indices((side, side))
    ring = np.hypot((rows + side // 2) % side - side // 2, (columns + side // 2) % side - side // 2).round().astype(int)
    rings = np.arange(1, side // 2)
    means = [magnitude[ring == radius].mean() for radius in rings]
    return np.polyfit(np.log(rings), np.log(means), 1)[0]


@pytest.mark.parametrize("make", MAKERS)
def test_spectrum_is_about_one_over_f(make) -> None:
    assert -1.5 < spectral_slope(make(64, (3, 64, 64), seed=5)) < -0.8


def test_noise_has_exactly_that_spectrum() -> None:
    assert spectral_slope(procedural.noise(64, (1, 64, 64), seed=5)) == pytest.approx(-1, abs=0.05)


def test_the_slope_is_measured_well() -> None:
    white = torch.randint(256, (64, 1, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    edges = torch.zeros(64, 1, 64, 64, dtype=torch.uint8)
    for index in range(64):  # steps: magnitude falls as 1/f along an axis that holds all of it
        edges[index, :, :, : index // 2 + 16] = 255
    assert spectral_slope(white) == pytest.approx(0, abs=0.02)
    assert spectral_slope(edges) < -1


@pytest.mark.parametrize("make", MAKERS)
def test_colours_are_those_of_photographs(make) -> None:
    """ImageNet: mean (0.485, 0.456, 0.406); R, G and B are 0.9 correlated or more, B and R least."""
    values = make(150, (3, 64, 64), seed=1).transpose(0, 1).flatten(1).double().numpy() / 255
    red_green, red_blue, green_blue = np.corrcoef(values)[np.triu_indices(3, 1)]
    assert values.mean(1) == pytest.approx([0.485, 0.456, 0.406], abs=0.03)
    assert values.std(1) == pytest.approx([0.25] * 3, abs=0.02)  # 0.276 to 0.286 before clipping to [0, 1]
    assert 0.75 < red_blue < red_green < 0.97
    assert 0.75 < red_blue < green_blue < 0.97


def test_radii_follow_the_inverse_cube() -> None:
    """Among leaves centred in the image, where none are left out, r⁻² is uniform."""
    low, high = 1.0, procedural.SMALLEST**-2
    kept = []
    for seed in range(30):
        radii, centres = procedural._scattered((1.0, 1.0), np.random.default_rng(seed))
        kept.append(radii[((centres > 0) & (centres < 1)).all(1)])
    uniform = (np.concatenate(kept) ** -2.0 - low) / (high - low)
    assert len(uniform) > 1000
    assert np.quantile(uniform, [0.1, 0.25, 0.5, 0.75, 0.9]) == pytest.approx([0.1, 0.25, 0.5, 0.75, 0.9], abs=0.03)
    assert uniform.min() >= 0
    assert uniform.max() <= 1


def test_leaves_are_as_dense_as_coverage_says() -> None:
    """Leaves have area πr² each, so those centred in a unit square sum to COVERAGE on average."""
    sums = []
    for seed in range(100):
        radii, centres = procedural._scattered((1.0, 1.0), np.random.default_rng(seed))
        sums.append(np.pi * np.sum(radii[((centres > 0) & (centres < 1)).all(1)] ** 2))
    assert np.mean(sums) == pytest.approx(procedural.COVERAGE, abs=float(4 * np.std(sums) / 10))


def test_outlines_have_the_area_of_the_unit_circle_and_stay_within_reach() -> None:
    for outline in procedural.OUTLINES:
        x, y = outline.T
        assert abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2 == pytest.approx(np.pi)
        assert np.hypot(x, y).max() * np.sqrt(2) <= procedural.REACH


def test_leaves_are_flat_with_sharp_edges() -> None:
    """Most neighbours within a leaf are equal; in noise hardly any are."""
    share = [(x[..., 1:] == x[..., :-1]).all(1).float().mean().item() for x in (m(8, (3, 64, 64)) for m in MAKERS)]
    assert share[0] > 0.5
    assert share[1] < 0.05


def test_leaves_beyond_the_edge_are_as_dense_as_those_within() -> None:
    """A leaf of radius r reaches a unit square from an area of (1 + 2·REACH·r)², all of it equally dense."""
    reaching, within = 0.0, 0
    for seed in range(100):
        radii, centres = procedural._scattered((1.0, 1.0), np.random.default_rng(seed))
        reaching += np.sum((1 + 2 * procedural.REACH * radii) ** -2.0)
        within += np.count_nonzero(((centres > 0) & (centres < 1)).all(1))
    assert within > 10_000
    assert reaching / within == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", [(3, 20, 33), (1, 33, 20), (3, 1, 1), (1, 1, 1)])
def test_an_image_does_not_depend_on_how_many_are_made(make, shape) -> None:
    many, few = make(5, shape, seed=3), make(2, shape, seed=3)
    assert many.shape == (5, *shape)
    assert many.dtype == torch.uint8
    assert many.is_contiguous()
    assert torch.equal(many[:2], few)


@pytest.mark.parametrize("make", MAKERS)
def test_images_differ_by_index_and_by_seed(make) -> None:
    first, second = make(2, (3, 16, 16), seed=0), make(2, (3, 16, 16), seed=1)
    assert len({image.numpy().tobytes() for image in [*first, *second]}) == 4


@pytest.mark.parametrize("make", MAKERS)
def test_grey_is_the_luma_of_the_colours(make) -> None:
    """BT.601: 0.299 R + 0.587 G + 0.114 B."""
    grey, colour = make(3, (1, 24, 24), seed=4).double(), make(3, (3, 24, 24), seed=4).double()
    luma = (colour * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)).sum(1, keepdim=True)
    assert (grey - luma).abs().max() <= 0.51


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("count", "shape", "seed", "named"),
    [
        (0, (3, 8, 8), 0, "0 images"),
        (1, (3, 8, 8), -1, "seed -1"),
        (1, (4, 8, 8), 0, r"\(4, 8, 8\)"),
        (1, (3, 0, 8), 0, r"\(3, 0, 8\)"),
        (1, (8, 8), 0, r"\(8, 8\)"),
    ],
)
def test_what_cannot_be_made_is_said(make, count, shape, seed, named) -> None:
    with pytest.raises(AgnoscoError, match=named):
        make(count, shape, seed=seed)
