"""Eq. 2 against Adam on an autograd loss, and its attention against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracle import natural, natural_samples
from torch import Tensor, nn
from torch.nn import functional as F

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.method.config import MapperConfig, RefineConfig
from agnosco.method.dials import L2, Data, Parameterization, Pixel, Spectral
from agnosco.method.reference import refine
from agnosco.method.refine import attention
from agnosco.models.classifier import Classifier
from agnosco.types import Step

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)


def convolutional(first: nn.Conv2d, *, head: float = 1.0, seed: int = 0) -> Classifier:
    """One convolution, averaged over the image, and three classes; ``head`` scales what the classes hear of it."""
    linear = nn.Linear(first.out_channels, 3)
    with torch.no_grad():
        linear.weight.copy_(head * torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(seed)))
        linear.bias.zero_()
    return Classifier(nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear), size=8)


def convolution(weights: Tensor, *, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(weights.shape[1], weights.shape[0], weights.shape[2], stride=stride, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weights)
    return layer


def random_classifier() -> Classifier:
    weights = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    return convolutional(convolution(weights), head=0.5)


def refined(
    classifier: Classifier,
    nu: Tensor,
    config: RefineConfig,
    *,
    samples: Samples | None = None,
    parameterization: Parameterization | None = None,
    radius: float = 1e6,
    batch: int = 8,
) -> tuple[Tensor, list[Step]]:
    samples = samples or natural_samples(30, SHAPE, seed=2)
    basis = (parameterization or Pixel()).fit(samples, CPU)
    nu, trace, _ = refine(
        classifier, 1, samples, nu, config, MapperConfig(batch=batch),
        basis=basis, project=L2(radius).projector(basis), generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    return nu, trace


# -- Ξ ------------------------------------------------------------------------------------------------


def test_attention_is_the_rescaled_mean_of_the_activations() -> None:
    # Two filters, one the red of a pixel, the other three times its blue: red + 3 blue, up to a factor.
    weights = torch.zeros(2, 3, 1, 1)
    weights[0, 0], weights[1, 2] = 1, 3
    nu = torch.zeros(SHAPE)
    nu[1] = 0.3  # green, which neither looks at
    nu[2, 0, 0], nu[2, 7, 7], nu[0, 3, 4] = 0.4, -0.4, 0.4  # the picture is ½ − ν
    expected = torch.full((1, 8, 8), 0.5)  # 0.5 + 1.5, half-way between
    expected[0, 0, 0] = 0  # 0.5 + 0.3
    expected[0, 7, 7] = 1  # 0.5 + 2.7
    expected[0, 3, 4] = 1 / 3  # 0.1 + 1.5
    torch.testing.assert_close(attention(convolutional(convolution(weights)), nu), expected)


def test_attention_looks_at_the_clipped_picture() -> None:
    weights = torch.zeros(2, 3, 1, 1)
    weights[:, 0] = 1
    nu = torch.zeros(SHAPE)
    nu[0, 0, 0], nu[0, 7, 7] = 9.0, -2.0  # 0 and 1 in the picture, however far beyond
    xi = attention(convolutional(convolution(weights)), nu)
    assert [xi[0, 0, 0].item(), xi[0, 3, 3].item(), xi[0, 7, 7].item()] == pytest.approx([0.0, 0.5, 1.0])


def test_attention_is_interpolated_to_the_image() -> None:
    # 4 × 4 pixels each to one activation; the picture brightens from left to right in two blocks. Between the blocks'
    # centres (1.5 and 5.5) bilinear interpolation is linear, beyond them flat.
    weights = torch.zeros(1, 3, 4, 4)
    weights[0, 0] = 1 / 16
    nu = torch.zeros(SHAPE)
    nu[0, :, :4], nu[0, :, 4:] = 0.2, -0.3
    row = torch.tensor([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])
    xi = attention(convolutional(convolution(weights, stride=4)), nu)
    torch.testing.assert_close(xi, row.expand(1, 8, 8), rtol=0, atol=1e-6)


def test_flat_attention_clears_nothing() -> None:
    weights = torch.ones(2, 3, 1, 1)
    assert torch.equal(attention(convolutional(convolution(weights)), torch.zeros(SHAPE)), torch.ones(1, 8, 8))


# -- the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 3.0, 50.0])
def test_refinement_is_adam_on_equation_2(weight: float) -> None:
    classifier, samples = random_classifier(), natural_samples(30, SHAPE, seed=2)
    start = torch.from_numpy(0.5 - natural(1, SHAPE, seed=3)[0]).float()
    found, trace = refined(classifier, start, RefineConfig(steps=12, weight=weight, rate=0.02), samples=samples)

    generator = torch.Generator().manual_seed(5)
    xi = attention(classifier, start)
    nu = start.clone().requires_grad_()
    adam = torch.optim.Adam([nu], lr=0.02)
    losses = []
    for _ in range(12):
        moved = samples.draw(8, generator) - nu
        clipped = moved + (moved.clamp(0, 1) - moved).detach()  # the value of the clip, the gradient of none
        logits = classifier(clipped)
        losses.append(logits.softmax(1)[:, 1].mean().item())
        loss = F.cross_entropy(logits, torch.ones(8, dtype=torch.long)) + weight * (nu * (1 - xi)).abs().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.testing.assert_close(found, nu.detach().clamp(-1, 1), rtol=0, atol=1e-4)
    assert [step.probability for step in trace] == pytest.approx(losses, abs=1e-4)
    assert [(step.step, step.direction) for step in trace] == [(k, 0) for k in range(1, 13)]


@pytest.mark.parametrize("parameterization", [Pixel(), Data()], ids=str)
def test_refinement_raises_the_probability(parameterization: Parameterization) -> None:
    _, trace = refined(
        random_classifier(), torch.zeros(SHAPE), RefineConfig(40, 0.0, 0.02), parameterization=parameterization
    )
    assert trace[-1].probability > trace[0].probability + 0.1


def test_only_what_the_network_ignores_is_cleared() -> None:
    # The left half of the picture is dark and answered by 0, the right half bright and answered most: Ξ is 0 and 1.
    # The classes hear nothing, so that only λ moves ν: each step of Adam is its rate, towards zero.
    classifier = convolutional(convolution(torch.ones(1, 3, 1, 1)), head=0.0)
    nu = torch.full(SHAPE, 0.3)
    nu[..., 4:] = -0.3
    found, _ = refined(classifier, nu, RefineConfig(steps=10, weight=50.0, rate=0.01))
    expected = nu.clone()
    expected[..., :4] = 0.2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# -- what comes out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("parameterization", [Pixel(), Data(), Spectral()], ids=str)
def test_result_lies_in_the_ball(parameterization: Parameterization) -> None:
    start = 3 * torch.from_numpy(0.5 - natural(1, SHAPE, seed=3)[0]).float()
    found, _ = refined(
        random_classifier(), start, RefineConfig(steps=3), parameterization=parameterization, radius=30.0
    )
    assert np.linalg.norm(found.double()) == pytest.approx(30 * math.sqrt(3 * 8 * 8 / 150528), rel=1e-5)


@pytest.mark.parametrize("parameterization", [Pixel(), Data(), Spectral()], ids=str)
def test_result_is_a_difference_of_two_pixels(parameterization: Parameterization) -> None:
    start = 2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    found, _ = refined(random_classifier(), start, RefineConfig(steps=2), parameterization=parameterization)
    assert found.abs().max().item() == pytest.approx(1, abs=1e-5)
    beyond = start.abs() > 1.5
    torch.testing.assert_close(found[beyond], start[beyond].sign(), rtol=0, atol=1e-5)


def test_start_is_left_as_it_was() -> None:
    start = torch.full(SHAPE, 0.25)
    refined(random_classifier(), start, RefineConfig(steps=2))
    assert torch.equal(start, torch.full(SHAPE, 0.25))


def test_defaults_are_the_papers() -> None:
    assert (RefineConfig().steps, RefineConfig().weight) == (150, 50.0)


@pytest.mark.parametrize(
    ("steps", "weight", "rate"),
    [
        (0, 1.0, 0.1),
        (5, -1.0, 0.1),
        (5, 1.0, 0.0),
        (5, 1.0, math.nan),
        (5, math.nan, 0.1),
        (5, math.inf, 0.1),
        (5, 1.0, math.inf),
    ],
)
def test_settings_without_sense_are_refused(steps: int, weight: float, rate: float) -> None:
    with pytest.raises(AgnoscoError, match=r"a refinement needs at least 1 step, .* and a positive rate"):
        RefineConfig(steps, weight, rate)
