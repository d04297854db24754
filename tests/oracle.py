"""What the core is held against: Algorithm 1 a second time, and images and classifiers of known make.

:func:`algorithm1` is written from the paper's listing (arXiv 2303.17836) in float64 NumPy, for classifiers whose
gradient is a closed form. It shares no code with agnosco; only :meth:`LinearSoftmax.classifier` hands the same
weights to both sides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agnosco.data.samples import Samples
from agnosco.models.classifier import Classifier

Array = NDArray[np.float64]
Shape = tuple[int, int, int]

# Colours of natural(): lower triangular, so that it is the Cholesky factor of its own covariance.
MIXING = np.array([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [0.6, 0.3, 0.4]])


@dataclass(frozen=True)
class LinearSoftmax:
    """Class probabilities softmax(W·I + c), with the gradient of the cross-entropy in closed form.

    Args:
        weights: W, ``(classes, C, H, W)``.
        bias: c, ``(classes,)``.
    """

    weights: Array
    bias: Array

    def probabilities(self, images: Array) -> Array:
        """``(N, classes)`` for images ``(N, C, H, W)``."""
        logits = np.einsum("lchw,nchw->nl", self.weights, images) + self.bias
        raised = np.exp(logits - logits.max(1, keepdims=True))
        return raised / raised.sum(1, keepdims=True)

    def gradient(self, images: Array, label: int) -> Array:
        """∇_I CE = Wᵀ(p − e_ℓ) for each image, ``(N, C, H, W)``."""
        excess = self.probabilities(images)
        excess[:, label] -= 1
        return np.einsum("nl,lchw->nchw", excess, self.weights)

    def classifier(self) -> Classifier:
        """The same weights as a network that agnosco takes."""
        classes, channels, height, width = self.weights.shape
        layer = nn.Linear(channels * height * width, classes)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.weights.reshape(classes, -1)))
            layer.bias.copy_(torch.from_numpy(self.bias))
        return Classifier(nn.Sequential(nn.Flatten(), layer), size=(height, width), channels=channels)


@dataclass(frozen=True)
class Run:
    """What Algorithm 1 did.

    Args:
        nu: ν after the last step.
        signs: +1 where v was added, −1 where subtracted, a step each.
        gaps: By how much the branch taken was ahead of the other, a step each.
        norms: ‖ν‖₂ after each step.
        probabilities: Mean probability of the class before each step.
        successes: Share of the mini-batch given the class before each step.
        clipped: Share of nudged values, over all steps, that Clip changed.
    """

    nu: Array
    signs: list[int]
    gaps: list[float]
    norms: list[float]
    probabilities: list[float]
    successes: list[float]
    clipped: float


def algorithm1(
    model: LinearSoftmax,
    label: int,
    batches: Iterable[Array],
    *,
    eta: float,
    seed: Array,
    step: str = "literal",
    direction: str = "lookahead",
    clip: str = "straight-through",
) -> Run:
    """Algorithm 1 of the paper, line by line.

    Args:
        model: K.
        label: ℓ.
        batches: What line 3 draws, one for each of the K iterations.
        eta: η.
        seed: ν to begin with.
        step: ``"literal"`` adds v as lines 11 and 13 say, ``"unit"`` what lines 8 and 9 probe, v / ‖v‖₂.
        direction: Decides line 10 by ``"lookahead"`` (the paper), by ``"gradient"``, ⟨x, v⟩ ≥ 0, or always ``"plus"``.
        clip: Whether the gradient of line 4 is ``"masked"`` where line 3 clips, or goes ``"straight-through"``.
    """
    nu, mu, sigma = seed.astype(float), np.zeros_like(seed), np.zeros_like(seed)  # line 1
    beta1, beta2 = 0.9, 0.999
    run = Run(nu, [], [], [], [], [], 0.0)
    clipped = []
    for k, images in enumerate(batches, start=1):  # line 2
        shown = np.clip(images - nu, 0, 1)  # line 3
        inside = shown == images - nu
        clipped.append(1 - inside.mean())
        before = model.probabilities(shown)
        run.probabilities.append(before[:, label].mean())
        run.successes.append(np.mean(before.argmax(1) == label))
        passed = {"straight-through": 1, "masked": inside}[clip]
        x = np.mean(model.gradient(shown, label) * passed, axis=0)  # line 4
        mu = beta1 * mu + (1 - beta1) * x  # line 5
        sigma = beta2 * sigma + (1 - beta2) * x**2  # line 6
        size = np.sqrt(sigma) * (1 - beta1**k)
        v = np.divide(
            mu * np.sqrt(1 - beta2**k), size, out=np.zeros_like(nu), where=size > 0
        )  # line 7; 0 / 0 is no step
        unit = v / np.linalg.norm(v)
        plus = np.clip(images - (nu + unit), 0, 1)  # line 8
        minus = np.clip(images - (nu - unit), 0, 1)  # line 9
        ahead = {
            "lookahead": model.probabilities(plus)[:, label].mean() - model.probabilities(minus)[:, label].mean(),
            "gradient": np.vdot(x, v),
            "plus": np.inf,
        }[direction]
        run.signs.append(1 if ahead >= 0 else -1)  # lines 10, 12
        run.gaps.append(abs(ahead))
        nu = nu + run.signs[-1] * {"literal": v, "unit": unit}[step]  # lines 11, 13
        nu = nu * min(1, eta / np.linalg.norm(nu))  # line 15
        run.norms.append(float(np.linalg.norm(nu)))
    return Run(nu, run.signs, run.gaps, run.norms, run.probabilities, run.successes, float(np.mean(clipped)))  # line 17


def amplitudes(height: int, width: int) -> Array:
    """1/f over the half plane of a real FFT, ``(H, W // 2 + 1)``; the zero frequency counts as the lowest other."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    return 1 / frequency


def natural(count: int, shape: Shape, *, seed: int) -> Array:
    """Images with a 1/f spectrum and the colours of :data:`MIXING`, ``(N, C, H, W)`` in [0, 1] about ½."""
    channels, height, width = shape
    noise = np.random.default_rng(seed).standard_normal((count, *shape))
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * amplitudes(height, width), s=(height, width))
    coloured = np.einsum("ij,njhw->nihw", MIXING[:channels, :channels], smooth)
    return np.clip(0.5 + 0.2 * coloured / coloured.std(), 0, 1)


def natural_samples(count: int, shape: Shape, *, seed: int) -> Samples:
    """:func:`natural` images as a sample set."""
    images = np.round(255 * natural(count, shape, seed=seed)).astype(np.uint8)
    return Samples(torch.from_numpy(images), source="natural")
