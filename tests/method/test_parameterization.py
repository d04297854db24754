"""The map A between coordinates and pixels: its inverse, its adjoint, and whether samples really come out white."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import natural_samples

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.method.dials import Data, Parameterization, Pixel, Spectral
from agnosco.method.parameterization import FourierBasis, pulled_back

CPU = torch.device("cpu")
shapes = st.tuples(st.sampled_from([1, 3]), st.integers(2, 9), st.integers(2, 9))
seeds = st.integers(0, 2**16)


def random_basis(shape: tuple[int, int, int], generator: torch.Generator) -> FourierBasis:
    """A basis of float64, far from the identity in frequency and in colour."""
    channels, height, width = shape
    spectrum = 0.1 + 10 * torch.rand(height, width // 2 + 1, generator=generator, dtype=torch.float64)
    colour = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    colour += 4 * torch.eye(channels, dtype=torch.float64)
    return FourierBasis(shape, CPU, spectrum=spectrum, colour=colour)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("transform", ["nothing", "a crop", "a basis"])
def test_a_gradient_is_pulled_back_to_the_bits_that_autograd_gives_when_handed_it(
    transform: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (60 * torch.randn(4, 3, 8, 8, generator=generator)).to(dtype).requires_grad_()
    if transform == "a basis":
        basis = random_basis((3, 8, 8), generator)
        y = basis.pixels(torch.view_as_real(torch.fft.rfft2(x.double())))
    else:
        y = x if transform == "nothing" else x[..., 2:7, 1:6]
    g = (60_000 * torch.rand(y.shape, generator=generator)).to(y.dtype)  # in float16, their product's sum overflows
    (expected,) = torch.autograd.grad(y, x, g, retain_graph=True)
    assert torch.equal(pulled_back(y, x, g), expected)


# -- A as a linear map --------------------------------------------------------------------------------


@given(shape=shapes, seed=seeds)
def test_pixels_are_the_weighted_waves(shape: tuple[int, int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis = random_basis(shape, generator)
    w = torch.randn(shape[0], shape[1], shape[2] // 2 + 1, 2, generator=generator, dtype=torch.float64)
    waves = (w[..., 0] + 1j * w[..., 1]).numpy() * basis.spectrum.numpy()
    grey = np.fft.irfft2(waves, s=shape[1:], norm="ortho")
    np.testing.assert_allclose(basis.pixels(w), np.tensordot(basis.colour.numpy(), grey, 1), atol=1e-10)


@given(shape=shapes, seed=seeds)
def test_coordinates_invert_pixels(shape: tuple[int, int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis = random_basis(shape, generator)
    nu = torch.randn(shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(basis.pixels(basis.coordinates(nu)), nu, rtol=0, atol=1e-9)


@given(shape=shapes, seed=seeds)
def test_pullback_is_the_adjoint(shape: tuple[int, int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis = random_basis(shape, generator)
    w = torch.randn(shape[0], shape[1], shape[2] // 2 + 1, 2, generator=generator, dtype=torch.float64)
    g = torch.randn(shape, generator=generator, dtype=torch.float64)
    assert torch.sum(basis.pixels(w) * g).item() == pytest.approx(torch.sum(w * basis.pullback(g)).item(), abs=1e-8)


@given(shape=shapes, seed=seeds)
def test_norm_is_that_of_the_pixels(shape: tuple[int, int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis = random_basis(shape, generator)
    nu = torch.randn(shape, generator=generator, dtype=torch.float64)
    assert basis.norm(basis.coordinates(nu)).item() == pytest.approx(np.linalg.norm(nu))


def test_pixel_coordinates_are_the_pixels() -> None:
    basis = Pixel().fit(natural_samples(2, (3, 4, 5), seed=0), CPU)
    nu = torch.randn(3, 4, 5)
    assert basis.shape == (3, 4, 5)
    assert torch.equal(basis.pixels(nu), nu)
    assert torch.equal(basis.coordinates(nu), nu)
    assert torch.equal(basis.pullback(nu), nu)
    assert basis.norm(nu).item() == pytest.approx(nu.double().square().sum().sqrt().item())


# -- Data ---------------------------------------------------------------------------------------------


def rings(height: int, width: int) -> NDArray[np.int64]:
    """Frequencies by their magnitude, to the nearest wave per longer side, ``(H, W // 2 + 1)``."""
    cycles = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    return np.rint(cycles * max(height, width)).astype(int)


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 15, 12), (1, 16, 9)], ids=str)
def test_data_coordinates_are_white_in_frequency(shape: tuple[int, int, int]) -> None:
    samples = natural_samples(300, shape, seed=0)
    basis = Data(exponent=1.0).fit(samples, CPU)
    assert isinstance(basis, FourierBasis)
    images = samples.images.double().numpy() / 255
    grey = np.einsum("ij,njhw->nihw", np.linalg.inv(basis.colour.double().numpy()), images)
    grey -= grey.mean((2, 3), keepdims=True)
    faded = grey * np.outer(np.hanning(shape[1] + 2)[1:-1], np.hanning(shape[2] + 2)[1:-1])
    white = (np.abs(np.fft.rfft2(faded)) / basis.spectrum.numpy()).mean((0, 1))
    ring = rings(*shape[1:])
    magnitude = np.array([white[ring == r].mean() for r in np.unique(ring)[1:]])
    np.testing.assert_allclose(magnitude, magnitude.mean(), rtol=1e-2)  # half a ring may round either way


def test_data_coordinates_find_the_law_of_the_samples() -> None:
    # Samples of spectrum 1/f: slope −1, and −½ for half the exponent.
    samples = natural_samples(300, (1, 48, 48), seed=0)
    middle = (rings(48, 48) >= 4) & (rings(48, 48) <= 20)
    for exponent in (1.0, 0.5):
        basis = Data(exponent=exponent).fit(samples, CPU)
        assert isinstance(basis, FourierBasis)
        slope, _ = np.polyfit(np.log(rings(48, 48)[middle]), np.log(basis.spectrum.numpy()[middle]), 1)
        assert slope == pytest.approx(-exponent, rel=0.1)


def test_data_coordinates_favour_no_direction() -> None:
    # Vertical stripes: all that varies does so from left to right.
    stripes = natural_samples(50, (1, 12, 12), seed=0).images[:, :, :1].expand(-1, -1, 12, -1).contiguous()
    basis = Data().fit(Samples(stripes, source="stripes"), CPU)
    assert isinstance(basis, FourierBasis)
    torch.testing.assert_close(basis.spectrum[:7, 0], basis.spectrum[0, :7])


def test_data_coordinates_are_white_in_colour() -> None:
    samples = natural_samples(300, (3, 16, 16), seed=0)
    basis = Data().fit(samples, CPU)
    assert isinstance(basis, FourierBasis)
    values = (samples.images.double() / 255).transpose(0, 1).flatten(1).numpy()
    before = np.cov(values)
    assert abs(before[0, 1]) > 0.5 * before[0, 0]  # far from white to begin with
    after = np.cov(np.linalg.solve(basis.colour.double().numpy(), values))
    np.testing.assert_allclose(after, np.eye(3) * np.trace(after) / 3, atol=0.01 * np.trace(after) / 3)
    assert np.linalg.norm(basis.colour) == pytest.approx(3**0.5, rel=1e-5)


def test_brightness_weighs_no_more_than_any_wave() -> None:
    basis = Data().fit(natural_samples(50, (3, 16, 16), seed=0), CPU)
    assert isinstance(basis, FourierBasis)
    spectrum = basis.spectrum.ravel()
    torch.testing.assert_close(
        spectrum[0], spectrum[1:].max()
    )  # though the mean of images in [0, 1] is their largest coefficient


def test_floor_keeps_what_samples_lack_within_reach() -> None:
    samples = natural_samples(20, (1, 16, 16), seed=0)
    free, held = (Data(exponent=1.0, floor=floor).fit(samples, CPU) for floor in (1e-9, 0.3))
    assert isinstance(free, FourierBasis)
    assert isinstance(held, FourierBasis)
    expected = (free.spectrum / free.spectrum.max()).clamp_min(0.3)
    assert (expected == 0.3).any()
    torch.testing.assert_close(held.spectrum / held.spectrum.max(), expected)


GREY = natural_samples(20, (1, 9, 8), seed=0).images.expand(-1, 3, -1, -1).contiguous()
CONSTANT = torch.full((4, 3, 7, 9), 77, dtype=torch.uint8)


@pytest.mark.parametrize("images", [GREY, CONSTANT, CONSTANT[:1, :1]], ids=["grey in RGB", "constant", "one image"])
def test_samples_that_lack_almost_everything_give_a_basis(images: torch.Tensor) -> None:
    basis = Data().fit(Samples(images, source="poor"), CPU)
    nu = torch.randn(basis.shape, generator=torch.Generator().manual_seed(0))
    w = basis.coordinates(nu)
    assert w.isfinite().all()
    assert basis.pullback(nu).isfinite().all()
    torch.testing.assert_close(basis.pixels(w), nu, rtol=0, atol=1e-3)


@pytest.mark.parametrize("levels", [[77], [3, 50, 77, 200], list(range(256))], ids=["one", "four", "all"])
@pytest.mark.parametrize("shape", [(3, 7, 9), (1, 16, 16), (3, 31, 5)], ids=str)
def test_constant_samples_favour_no_frequency(shape: tuple[int, int, int], levels: list[int]) -> None:
    """Nothing is scaled up that is but the rounding of their means, which differs from CPU to CPU."""
    images = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *shape)
    basis = Data().fit(Samples(images.contiguous(), source="constant"), CPU)
    assert isinstance(basis, FourierBasis)
    torch.testing.assert_close(basis.spectrum, torch.ones_like(basis.spectrum))


# -- Spectral -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 15, 12)], ids=str)
@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5])
def test_spectral_coordinates_fall_off_with_frequency(shape: tuple[int, int, int], exponent: float) -> None:
    basis = Spectral(exponent).fit(natural_samples(2, shape, seed=0), CPU)
    assert isinstance(basis, FourierBasis)
    cycles = np.hypot(*np.meshgrid(np.fft.fftfreq(shape[1]), np.fft.rfftfreq(shape[2]), indexing="ij"))
    spectrum = basis.spectrum.double().numpy()
    slope, _ = np.polyfit(np.log(cycles.ravel()[1:]), np.log(spectrum.ravel()[1:]), 1)
    assert slope == pytest.approx(-exponent, abs=1e-5)
    assert spectrum[0, 0] == pytest.approx(spectrum.ravel()[1:].max())
    assert torch.equal(basis.colour, torch.eye(shape[0]))


@pytest.mark.parametrize("parameterization", [Data(), Spectral(1.0), Spectral(2.0)], ids=str)
def test_spectrum_has_unit_mean_square(parameterization: Parameterization) -> None:
    basis = parameterization.fit(natural_samples(20, (3, 12, 10), seed=0), CPU)
    assert isinstance(basis, FourierBasis)
    assert np.mean(basis.spectrum.double().numpy() ** 2) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("exponent", [float("nan"), float("inf"), -1.0, 11.0])
@pytest.mark.parametrize("kind", [Data, Spectral])
def test_exponents_without_sense_are_refused(kind: type, exponent: float) -> None:
    with pytest.raises(AgnoscoError, match="exponent of"):
        kind(exponent)


@pytest.mark.parametrize("floor", [0.0, -1.0, 1.5, float("nan")])
def test_floors_without_sense_are_refused(floor: float) -> None:
    with pytest.raises(AgnoscoError, match="floor must be above 0"):
        Data(floor=floor)
