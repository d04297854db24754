"""Eq. 2: the map refined with the network's own activations.

The cross-entropy of nudged samples is minimised together with λ · mean |ν ⊙ (1 − Ξ)|, where Ξ says
how strongly the last convolutional stage answers at each place to the map's own picture: what the
network does not look at is cleared away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.samples import Samples
from ..models.classifier import Classifier
from ..types import Step
from .ball import Projector
from .config import MapperConfig, RefineConfig
from .parameterization import Basis
from .reference import draw_contrasts, faded, loss_gradient


def refine(
    classifier: Classifier,
    label: int,
    samples: Samples,
    nu: Tensor,
    config: RefineConfig,
    mapper: MapperConfig,
    *,
    basis: Basis,
    project: Projector,
    generator: torch.Generator,
    on_step: Callable[[Step], None] | None = None,
) -> tuple[Tensor, list[Step]]:
    """The map with what the network does not look at cleared away.

    Batch, contrast and views are those of Algorithm 1 ("other parameter values the same").

    Args:
        nu: The map that Algorithm 1 found, ``(C, H, W)``.
        config: Settings of the refinement.
        mapper: Settings of the Algorithm 1 that it follows.

    Returns:
        ν, ``(C, H, W)``, each value in [−1, 1] and projected onto the ball; and what every step saw.
    """
    xi = attention(classifier, nu)
    w = basis.coordinates(nu).clone()
    adam = torch.optim.Adam([w], lr=config.rate)
    trace: list[Step] = []
    with classifier.frozen():
        for k in range(1, config.steps + 1):
            nu = basis.pixels(w)
            images = samples.draw(mapper.batch, generator)
            images = faded(images, draw_contrasts(len(images), mapper.contrast, generator)).to(basis.device)
            gradient, probability, success = loss_gradient(classifier, label, images, nu, mapper, generator)
            shrink = config.weight * nu.sign() * (1 - xi) / nu.numel()  # of λ · mean |ν ⊙ (1 − Ξ)|
            w.grad = basis.pullback(shrink - gradient)  # samples are nudged by −ν, hence the minus
            adam.step()
            norm = basis.norm(w).item()
            trace.append(Step(k, probability, success, norm, 0))
            if on_step is not None:
                on_step(trace[-1])
    w = basis.coordinates(basis.pixels(w).clamp(-1, 1))  # a difference of two pixels is in [−1, 1]
    return basis.pixels(project(w, progress=1.0, success=trace[-1].success)), trace


def attention(classifier: Classifier, nu: Tensor) -> Tensor:
    """Ξ, ``(1, H, W)`` in [0, 1]: where the last convolutional stage answers to the map's picture.

    The mean over channels of its activations for Clip(½ − ν), interpolated to the image (bilinear) and
    min–max normalised; all ones where the activations are flat, so that nothing is cleared.
    """
    grid = classifier.activations((0.5 - nu).clamp(0, 1)[None]).mean(1, keepdim=True)
    xi = F.interpolate(grid, size=nu.shape[1:], mode="bilinear", align_corners=False)[0]
    low, high = xi.min(), xi.max()
    return (xi - low) / (high - low) if high > low else torch.ones_like(xi)
