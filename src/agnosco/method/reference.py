"""Algorithm 1: the input-agnostic saliency mapper, one loop with three dials.

Symbols of the paper (arXiv 2303.17836), used as names here::

    I      images      a mini-batch of samples
    ν      nu          the map; samples are nudged by −ν, so the class's pattern is −ν
    x      x           mean gradient of the loss over the mini-batch
    μ, σ   mu, sigma   first and second moments of x
    v      v           the step, μ / √σ with bias correction
    η      eta         bound on ‖ν‖₂
    w      w           ν in the chosen coordinates (agnosco's; the paper has ν = w)

Short, obvious, one map at a time: what :mod:`agnosco.method.mapper`, which makes the maps, is held to by the tests.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.samples import Samples
from ..errors import AgnoscoError, AgnoscoWarning
from ..models.classifier import Classifier
from ..types import Step
from .ball import Projector
from .config import MapperConfig
from .dials import Transforms
from .parameterization import Basis, each
from .transforms import transformed

MICRO_BATCH = 32
"""Images whose activations are held at once; bounds memory and changes nothing else."""

TINY = 1e-30
"""Keeps a zero step from being divided by its norm."""


class Moments:
    """Lines 1, 5–7: Adam's running moments of x and the bias-corrected step v."""

    epsilon = 1e-12  # against 0 / 0 only: far below any gradient that steers

    def __init__(self, beta1: float, beta2: float) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.mu: Tensor | float = 0.0
        self.sigma: Tensor | float = 0.0
        self.k = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.k += 1  # k starts at 1: at 0, line 7 is 0 / 0
        self.mu = self.beta1 * self.mu + (1 - self.beta1) * x  # line 5
        self.sigma = self.beta2 * self.sigma + (1 - self.beta2) * x * x  # line 6
        correction = math.sqrt(1 - self.beta2**self.k) / (1 - self.beta1**self.k)
        return correction * self.mu / (self.sigma.sqrt() + self.epsilon)  # line 7


def saliency_map(
    classifier: Classifier,
    label: int,
    samples: Samples,
    config: MapperConfig,
    *,
    basis: Basis,
    project: Projector,
    generator: torch.Generator,
    start: Tensor | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> tuple[Tensor, list[Step]]:
    """The map ν of one class, by Algorithm 1.

    Args:
        classifier: The network K.
        label: Index ℓ of the class.
        samples: The sample set Ī.
        config: Settings.
        basis: ``config.parameterization`` fitted to the samples.
        project: Ψ, the projector of ``config.ball`` for this basis.
        generator: A CPU generator; the only source of chance.
        start: ν to begin with, ``(C, H, W)``; zero (line 1's black image) if None.
        on_step: Called after every step.

    Returns:
        ν, ``(C, H, W)`` float32 with ‖ν‖₂ ≤ η, and what every step did.

    Raises:
        AgnoscoError: The gradients are not finite.
    """
    moments = Moments(config.beta1, config.beta2)
    w = basis.coordinates(torch.zeros(basis.shape, device=basis.device) if start is None else start)  # line 1
    trace: list[Step] = []
    with classifier.frozen():
        for k in range(1, config.steps + 1):  # line 2
            images = samples.draw(config.batch, generator)
            images = faded(images, draw_contrasts(len(images), config.contrast, generator)).to(basis.device)  # line 3
            nu = basis.pixels(w)
            gradient, probability, success = loss_gradient(classifier, label, images, nu, config, generator)
            x = basis.pullback(gradient)  # line 4
            v = moments(x)  # lines 5-7
            sign = _direction(classifier, label, images, nu, x, v, config, basis, generator)  # lines 8-14
            v = v * each(step_length(v, config, basis, project.eta, k), v)
            w = project(w + sign * v, progress=k / config.steps, success=success)  # lines 11, 13, 15
            norm = basis.norm(w).item()
            trace.append(Step(k, probability, success, norm, sign))
            if on_step is not None:
                on_step(trace[-1])
    check_ended(label, trace[-1])
    return basis.pixels(w), trace


def check_ended(label: int, last: Step) -> None:
    """Say so if a map came to nothing.

    Raises:
        AgnoscoError: Its gradients are not finite.
    """
    if not math.isfinite(last.norm):
        raise AgnoscoError(
            f"the gradients of class {label} are not finite", "check the weights and the mean and std of the model"
        )
    if last.norm == 0:
        warnings.warn(f"the gradients of class {label} vanish: its map is empty", AgnoscoWarning, stacklevel=3)


def perturbed(images: Tensor, nu: Tensor) -> Tensor:
    """Clip(I − ν): samples ``(..., C, H, W)`` moved towards the class, in [0, 1] (line 3)."""
    return (images - nu).clamp(0, 1)


def faded(images: Tensor, contrasts: Tensor | None) -> Tensor:
    """Samples ``(..., C, H, W)`` at contrasts ``(..., 1, 1, 1)`` about mid-grey; None leaves them as they are."""
    return images if contrasts is None else 0.5 + contrasts * (images - 0.5)


def draw_contrasts(count: int, contrast: tuple[float, float], generator: torch.Generator) -> Tensor | None:
    """Random contrasts ``(count, 1, 1, 1)``, or None where all are 1."""
    low, high = contrast
    if low == high == 1:
        return None
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)


def loss_gradient(
    classifier: Classifier,
    label: int,
    images: Tensor,
    nu: Tensor,
    config: MapperConfig,
    generator: torch.Generator,
) -> tuple[Tensor, float, float]:
    """Line 4: the mean over a mini-batch of ∇ of the loss, at the clipped images.

    Returns:
        The gradient ``(C, H, W)``, the mean probability of the class, the share given the class.
    """
    clipped = perturbed(images, nu).requires_grad_()
    seen = transformed(config.transforms, clipped, generator)
    gradients: list[Tensor] = []
    probability = success = 0.0
    for start in range(0, len(images), MICRO_BATCH):
        rows = slice(start, start + MICRO_BATCH)
        part = seen.detach()[rows].requires_grad_()
        logits = classifier(part)
        target = torch.full((len(part),), label, device=logits.device)
        gradients += torch.autograd.grad(class_loss(logits, target, config.loss), part)
        probability += logits.detach().softmax(1)[:, label].sum().item()
        success += (logits.argmax(1) == label).sum().item()
    (gradient,) = torch.autograd.grad(seen, clipped, torch.cat(gradients))  # back through the views
    if config.clip == "masked":
        gradient = gradient * (clipped == images - nu)
    return gradient.mean(0), probability / len(images), success / len(images)


def class_loss(logits: Tensor, targets: Tensor, loss: str) -> Tensor:
    """The sum over images of how far each is from its target; see :class:`MapperConfig`.

    Args:
        logits: ``(N, classes)``.
        targets: ``(N,)``.
        loss: One of :data:`agnosco.method.config.LOSSES`.
    """
    if loss == "cross-entropy":
        return F.cross_entropy(logits, targets, reduction="sum")
    own = logits.gather(1, targets[:, None])
    if loss == "logit":
        return -own.sum()
    rivals = logits.scatter(1, targets[:, None], -math.inf).logsumexp(1, keepdim=True)
    return (rivals - own).sum()


def _direction(
    classifier: Classifier,
    label: int,
    images: Tensor,
    nu: Tensor,
    x: Tensor,
    v: Tensor,
    config: MapperConfig,
    basis: Basis,
    generator: torch.Generator,
) -> int:
    """Lines 8–14: +1 if adding v serves the class at least as well as subtracting it, else −1."""
    if config.direction == "plus":
        return 1
    if config.direction == "gradient":
        return 1 if (x * v).sum() >= 0 else -1
    unit = basis.pixels(unit_step(v, basis))
    state = generator.get_state()
    means: list[float] = []
    for probe in (nu + unit, nu - unit):
        generator.set_state(state)  # both are looked at through the same views
        means.append(_mean_probability(classifier, label, perturbed(images, probe), config.transforms, generator))
    return 1 if means[0] >= means[1] else -1


def _mean_probability(
    classifier: Classifier, label: int, images: Tensor, transforms: Transforms, generator: torch.Generator
) -> float:
    """E[K(I) → ℓ]: mean softmax probability of the class over images (line 10)."""
    seen = transformed(transforms, images, generator)
    parts = [classifier.probabilities(part)[:, label] for part in seen.split(MICRO_BATCH)]
    return torch.cat(parts).mean().item()


def unit_step(v: Tensor, basis: Basis) -> Tensor:
    """v / ‖v‖₂ (lines 8–9), of every map; zero stays zero."""
    return v * each(1 / basis.norm(v).clamp_min(TINY), v)


def step_length(v: Tensor, config: MapperConfig, basis: Basis, eta: float | Tensor, k: int) -> Tensor:
    """The factor on v, of every map: 1 for a literal step, otherwise what gives it the length asked for."""
    decay = 1.0
    left = config.steps - k + 1
    if left <= config.decay * config.steps:
        decay = (1 - math.cos(math.pi * left / (config.decay * config.steps + 1))) / 2
    norm = basis.norm(v)
    if config.step == "literal":
        return torch.full_like(norm, decay)
    length = 1.0 if config.step == "unit" else float(config.step) * eta
    return decay * length / norm.clamp_min(TINY)
