"""The reference: Algorithm 1 and Eq. 2 as a reader of the paper would write them, one map at a time.

What runs is :mod:`agnosco.method.mapper` and :mod:`agnosco.method.refine`, many maps at once; tests compare the two.

Symbols of the paper (https://arxiv.org/abs/2303.17836), used as names:

======  ================  ============================================================================================
K       ``classifier``    the network: pixels in [0, 1] → logits
ℓ       ``label``         index of the class
Ī       ``samples``       the sample set; ``images`` is a mini-batch I of it
ν       ``nu``            the map. −ν is a targeted universal adversarial perturbation: Clip(I − ν) moves to the class
x       ``x``             mean gradient of the loss over the mini-batch
μ, σ    ``mu, sigma``     first and second moments of x
v       ``v``             the step, μ / √σ with bias correction
η       ``ball.eta``      bound on ‖ν‖₂
Ψ       ``project``       projection onto the ball
Ξ       ``xi``            where the last convolutional stage answers to the map's picture
λ       ``weight``        weight of the term of Eq. 2 that clears what the network does not look at
w       ``w``             coordinates of ν in the chosen parameterization (the paper has ν = w)
======  ================  ============================================================================================
"""

import torch
from torch import Tensor

from ..data.samples import Samples
from ..models.classifier import Classifier
from ..types import Step
from .algorithm1 import adam_step, at_contrasts, class_loss, draw_contrasts, perturbed, step_length, unit_step
from .ball import BallState, Projector
from .config import MapperConfig, RefineConfig
from .dials import Transforms
from .parameterization import Basis, each
from .refine import attention


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
    ball: BallState | None = None,
) -> tuple[Tensor, list[Step], BallState]:
    """The map ν of one class, by Algorithm 1.

    Args:
        classifier, label, samples: K, ℓ and Ī.
        config: Settings.
        basis: ``config.parameterization`` fitted to the samples.
        project: Ψ, the projector of ``config.ball`` for this basis.
        generator: A CPU generator; the only source of chance.
        start: ν to begin with, ``(C, H, W)``; zero (line 1's black image) if None.
        ball: What the projections of the stage before left; a fresh start if None.

    Returns:
        ν, ``(C, H, W)`` float32 with ‖ν‖₂ ≤ η, what every step did, and what the projections left.
    """
    ball = ball or project.begin()
    w = basis.coordinates(torch.zeros(basis.shape, device=basis.device) if start is None else start)  # line 1
    mu, sigma = torch.zeros_like(w), torch.zeros_like(w)
    trace: list[Step] = []
    with classifier.frozen():
        for k in range(1, config.steps + 1):  # line 2
            images = mini_batch(samples, config, generator).to(basis.device)  # line 3
            nu = basis.pixels(w)
            gradient, probability, success = loss_gradient(classifier, label, images, nu, config, generator)
            x = basis.pullback(gradient)  # line 4
            v, mu, sigma = adam_step(x, mu, sigma, k, beta1=config.beta1, beta2=config.beta2)  # lines 5-7
            sign = _direction(classifier, label, images, nu, x, v, config, basis, generator)  # lines 8-14
            v = v * each(step_length(v, config, basis, ball.eta, k), v)
            w, ball = project(w + sign * v, ball, progress=k / config.steps, success=success)  # lines 11, 13, 15
            trace.append(Step(k, probability, success, basis.norm(w).item(), sign))
    return basis.pixels(w), trace, ball


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
    ball: BallState | None = None,
) -> tuple[Tensor, list[Step], BallState]:
    """Eq. 2: the map with what the network does not look at cleared away.

    Adam minimizes the loss of perturbed images together with λ · mean |ν ⊙ (1 − Ξ)|. Batch, contrast and transforms are
    those of Algorithm 1 ("other parameter values the same").

    Args:
        nu: The map that Algorithm 1 found, ``(C, H, W)``.
        config, mapper: Settings of the refinement, and of the Algorithm 1 that it follows.
        classifier, label, samples, basis, project, generator, ball: As in :func:`saliency_map`.

    Returns:
        ν, ``(C, H, W)``, each value in [−1, 1] and projected onto the ball; the rest as in :func:`saliency_map`.
    """
    xi = attention(classifier, nu)
    w = basis.coordinates(nu).clone()
    adam = torch.optim.Adam([w], lr=config.rate)
    trace: list[Step] = []
    with classifier.frozen():
        for k in range(1, config.steps + 1):
            nu = basis.pixels(w)
            images = mini_batch(samples, mapper, generator).to(basis.device)
            gradient, probability, success = loss_gradient(classifier, label, images, nu, mapper, generator)
            shrink = config.weight * nu.sign() * (1 - xi) / nu.numel()  # of λ · mean |ν ⊙ (1 − Ξ)|
            w.grad = basis.pullback(shrink - gradient)  # images are perturbed by −ν, hence the minus
            adam.step()
            trace.append(Step(k, probability, success, basis.norm(w).item(), 0))
    w = basis.coordinates(basis.pixels(w).clamp(-1, 1))  # a difference of two pixels is in [−1, 1]
    w, ball = project(w, ball or project.begin(), progress=1.0, success=trace[-1].success)
    return basis.pixels(w), trace, ball


def mini_batch(samples: Samples, config: MapperConfig, generator: torch.Generator) -> Tensor:
    """I: b random samples, ``(b, C, H, W)``, each at a random contrast (line 3)."""
    images = samples.draw(config.batch, generator)
    return at_contrasts(images, draw_contrasts(len(images), config.contrast, generator))


def loss_gradient(
    classifier: Classifier, label: int, images: Tensor, nu: Tensor, config: MapperConfig, generator: torch.Generator
) -> tuple[Tensor, float, float]:
    """Line 4: the mean over a mini-batch of ∇ of the loss, at the clipped images.

    Returns:
        The gradient ``(C, H, W)``, the mean probability of the class, the share of images given the class.
    """
    clipped = perturbed(images, nu).requires_grad_()
    logits = classifier(transformed(config.transforms, clipped, generator))
    targets = torch.full((len(images),), label, device=logits.device)
    (gradient,) = torch.autograd.grad(class_loss(logits, targets, config.loss), clipped)
    if config.clip == "masked":
        gradient = gradient * (clipped == images - nu)
    probability, success = logits.softmax(1)[:, label], logits.argmax(1) == label
    return gradient.mean(0), probability.mean().item(), success.float().mean().item()


def transformed(transforms: Transforms, images: Tensor, generator: torch.Generator) -> Tensor:
    """Images ``(N, C, H, W)``, transformed at random."""
    return transforms.apply(images, *(part.to(images.device) for part in transforms.draw(images.shape, generator)))


def _direction(
    classifier: Classifier, label: int, images: Tensor, nu: Tensor, x: Tensor, v: Tensor,
    config: MapperConfig, basis: Basis, generator: torch.Generator,
) -> int:  # fmt: skip
    """Lines 8–14: +1 if adding v serves the class at least as well as subtracting it, else −1."""
    if config.direction == "plus":
        return 1
    if config.direction == "gradient":
        return 1 if (x * v).sum() >= 0 else -1
    unit = basis.pixels(unit_step(v, basis))
    state = generator.get_state()
    means: list[float] = []
    for probe in (nu + unit, nu - unit):
        generator.set_state(state)  # both are seen under the same transforms
        seen = transformed(config.transforms, perturbed(images, probe), generator)
        means.append(classifier.probabilities(seen)[:, label].mean().item())  # line 10: E[K(I) → ℓ]
    return 1 if means[0] >= means[1] else -1
