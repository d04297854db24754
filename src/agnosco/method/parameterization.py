"""Dial 1: the parameterization in which a map is optimized, as a linear map ν = A·w from coordinates w.

In pixels, as in the paper, Adam's normalisation gives every frequency the same step, and the result looks like noise.
In coordinates where natural images are white, the same loop puts its steps where images have their energy.
"""

import torch
from torch import Tensor

from ..data.samples import Samples
from ..types import Shape


class Basis:
    """The linear map ν = A·w for images of one shape ``(C, H, W)``, on a device; this one is the identity.

    ν and w may have leading axes, for several maps at once.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.device = device

    def pixels(self, w: Tensor) -> Tensor:
        """ν = A·w, ``(C, H, W)``."""
        return w

    def coordinates(self, nu: Tensor) -> Tensor:
        """w = A⁻¹·ν."""
        return nu

    def norm(self, w: Tensor) -> Tensor:
        """‖A·w‖₂ of every map, accumulated in float64 where the device has it."""
        precision = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.linalg.vector_norm(self.pixels(w), dim=(-3, -2, -1), dtype=precision)

    def pullback(self, gradient: Tensor) -> Tensor:
        """Aᵀ·g: a gradient with respect to ν, ``(C, H, W)``, as a gradient with respect to w."""
        w = self.coordinates(torch.zeros_like(gradient)).requires_grad_()
        return pulled_back(self.pixels(w), w, gradient)


def pulled_back(y: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """Jᵀ·g: a gradient with respect to y, of its shape, as one with respect to the x that y was computed from.

    For a basis, and for random transforms. It is the gradient of ⟨y, g⟩, to the bit: given g itself,
    ``torch.autograd.grad(y, x, g)`` would first import sympy, which is a large part of a second.
    """
    return torch.autograd.grad((y * gradient).sum(), x)[0]


def each(factor: Tensor, w: Tensor) -> Tensor:
    """A factor for each map, in the shape and type that multiply coordinates w."""
    return factor.to(w).view(*factor.shape, *[1] * (w.ndim - factor.ndim))


class FourierBasis(Basis):
    """ν = L · irfft2(w · spectrum): colour mixed by L, frequencies weighted by a spectrum.

    Args:
        spectrum: ``(H, W // 2 + 1)``, positive: the weight of each frequency.
        colour: ``(C, C)``, invertible: the factor L of the colour covariance L·Lᵀ.
    """

    def __init__(self, shape: Shape, device: torch.device, *, spectrum: Tensor, colour: Tensor) -> None:
        super().__init__(shape, device)
        self.spectrum = spectrum.to(device)
        self.colour = colour.to(device)
        self.colour_inverse = torch.linalg.inv(self.colour)

    def pixels(self, w: Tensor) -> Tensor:
        """ν from Fourier coefficients ``(C, H, W // 2 + 1, 2)``, last axis real and imaginary."""
        waves = torch.view_as_complex(w) * self.spectrum
        grey = torch.fft.irfft2(waves, s=self.shape[1:], norm="ortho")
        return torch.einsum("ij,...jhw->...ihw", self.colour, grey)

    def coordinates(self, nu: Tensor) -> Tensor:
        grey = torch.einsum("ij,...jhw->...ihw", self.colour_inverse, nu)
        return torch.view_as_real(torch.fft.rfft2(grey, norm="ortho") / self.spectrum).contiguous()


def spectral_basis(samples: Samples, device: torch.device, exponent: float) -> FourierBasis:
    """A 1/f^exponent amplitude spectrum, and colours as they are."""
    channels, height, width = samples.shape
    lowest = 1 / max(height, width)  # the zero frequency gets the weight of the lowest other
    spectrum = _frequencies(height, width).clamp_min(lowest) ** -exponent
    return FourierBasis(samples.shape, device, spectrum=_unit(spectrum), colour=torch.eye(channels))


def data_basis(samples: Samples, device: torch.device, *, exponent: float, floor: float) -> FourierBasis:
    """The samples' own spectrum and colours; see :class:`agnosco.method.dials.Data`.

    Images are faded out towards their borders first (Hann window): otherwise the jump from one border to the opposite
    one shows up in the spectrum, and as a lattice in the maps.
    """
    colour = _colour_factor(samples, floor)
    spectrum = _spectrum(samples, torch.linalg.inv(colour)) ** exponent
    spectrum = spectrum.clamp_min(floor * spectrum.max().item())
    return FourierBasis(samples.shape, device, spectrum=_unit(spectrum), colour=colour)


def _spectrum(samples: Samples, whiten: Tensor) -> Tensor:
    """Mean Fourier magnitude of colour-whitened samples, ``(H, W // 2 + 1)``, the same in every direction."""
    _, height, width = samples.shape
    window = _fade(height)[:, None] * _fade(width)
    total = torch.zeros(height, width // 2 + 1)
    for images in samples.batches(64):
        white = torch.einsum("ij,njhw->nihw", whiten, images)
        white = white - white.mean((2, 3), keepdim=True)
        white[(images == images[..., :1, :1]).flatten(1).all(1)] = 0  # of an image of one colour, only rounding is left
        total += torch.fft.rfft2(white * window, norm="ortho").abs().sum((0, 1))
    ring = (_frequencies(height, width) * max(height, width)).round().long().flatten()
    mean = torch.bincount(ring, total.flatten()) / torch.bincount(ring).clamp_min(1)
    mean[0] = mean[1:].max() if len(mean) > 1 else 1  # brightness gets no more weight than other frequencies
    return mean[ring].view_as(total) if mean.max() > 0 else torch.ones_like(total)


def _fade(size: int) -> Tensor:
    """A symmetric Hann window of this many values, without its zeros."""
    return torch.hann_window(size + 2, periodic=False)[1:-1]


def _frequencies(height: int, width: int) -> Tensor:
    """Magnitude of each frequency of ``rfft2``, ``(H, W // 2 + 1)``, in cycles per pixel."""
    return torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])


def _unit(spectrum: Tensor) -> Tensor:
    """Scaled to unit mean square, so that A keeps the norm of white coordinates on average."""
    return spectrum / spectrum.square().mean().sqrt()


def _colour_factor(samples: Samples, floor: float) -> Tensor:
    """Cholesky factor of the samples' colour covariance, of Frobenius norm √C."""
    channels = samples.shape[0]
    count, mean = 0, torch.zeros(channels, dtype=torch.float64)
    second = torch.zeros(channels, channels, dtype=torch.float64)
    for images in samples.batches(64):
        flat = images.double().transpose(0, 1).flatten(1)
        count += flat.shape[1]
        mean += flat.sum(1)
        second += flat @ flat.T
    mean /= count
    covariance = second / count - mean.outer(mean)
    total = max(covariance.trace().item(), 1e-4)  # samples that vary less than this are of one colour
    covariance += floor**2 * total * torch.eye(channels)
    factor = torch.linalg.cholesky(covariance)
    return (factor * channels**0.5 / torch.linalg.norm(factor)).float()
