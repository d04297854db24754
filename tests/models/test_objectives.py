"""Any objective of the logits: its map is that of a class where the two are the same, and raises what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers import Planted, planted, samples
from oracle import LinearSoftmax, natural, natural_samples
from torch import Tensor, nn

from agnosco import Classifier, Config, MapperConfig, RefineConfig, Samples, map_class, map_objective, preset
from agnosco.errors import AgnoscoError
from agnosco.method.refine import attention
from agnosco.method.score import probabilities_of

PAPER = Config(MapperConfig(batch=4, steps=6), RefineConfig(steps=3), cycles=2)
PLAIN = Config(MapperConfig(batch=16, steps=40, step=0.1, decay=1.0), refine=None, cycles=1)
QUICK = Config(replace(preset("quick").mapper, steps=10, batch=4), refine=None, cycles=1)


class Convolutional(nn.Module):
    """A stage that Ξ looks at, as many channels as classes, and a batch norm that is folded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stage = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        self.head = nn.Linear(6 * 36, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.stage(pixels).flatten(1))


def linear(weights: Tensor) -> Classifier:
    return LinearSoftmax(weights.double().numpy(), torch.zeros(len(weights)).numpy()).classifier()


def own_logit(logits: Tensor) -> Tensor:
    return logits[:, 0]


def entropy(logits: Tensor) -> Tensor:
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


@pytest.mark.parametrize("config", [PAPER, QUICK], ids=["paper", "quick"])
def test_the_objective_of_one_logit_is_the_map_of_that_class_by_its_logit(config: Config) -> None:
    config = replace(config, mapper=replace(config.mapper, direction="plus"))  # the probabilities are not the same
    classifier, images = Classifier(Convolutional(), size=8), natural_samples(20, (3, 8, 8), seed=0)
    by_logit = replace(config, mapper=replace(config.mapper, loss="logit"))
    expected = map_class(classifier, 0, images, by_logit, seed=3)
    for loss in ("cross-entropy", 0.5):  # neither is used
        asked = replace(config, mapper=replace(config.mapper, loss=loss))
        found = map_objective(classifier, own_logit, images, asked, seed=3)
        assert found.nu.equal(expected.nu)
        assert found.xi is not None
        assert found.xi.equal(attention(classifier, found.nu))
    assert classifier.labels == ("0", "1", "2", "3")  # as it was


def test_the_difference_of_two_classes_is_the_map_of_their_difference() -> None:
    weights = torch.from_numpy(natural(3, (3, 8, 8), seed=5)).float() - 0.5
    images = natural_samples(20, (3, 8, 8), seed=0)
    found = map_objective(linear(weights), lambda z: z[:, 2] - z[:, 1], images, PLAIN, name="2, not 1")
    difference = weights[2] - weights[1]
    twice = torch.stack([difference, -difference])
    by_logit = replace(PLAIN, mapper=replace(PLAIN.mapper, loss="logit"))
    expected = map_class(linear(twice), 0, images, by_logit)
    torch.testing.assert_close(found.nu, expected.nu, rtol=0, atol=1e-4)
    assert (found.name, found.label) == ("2, not 1", 0)
    assert found.probability == pytest.approx(expected.probability, abs=1e-4)
    assert [step.success for step in found.trace] == [step.success for step in expected.trace]


def test_two_planted_patterns_are_found_with_their_signs() -> None:
    network = planted(None)
    concept = map_objective(network, lambda z: z[:, 3] + z[:, 4] - 2 * z[:, 7], samples(), PLAIN)
    waves = Planted(None).weight.detach()
    products = waves @ concept.pattern.flatten()
    assert products.argsort(descending=True)[:2].sort().values.tolist() == [3, 4]
    assert products.argmin() == 7
    assert products[7] < 0


def test_entropy_is_raised_by_taking_away_what_images_share_and_lowered_by_adding_it() -> None:
    network, wave = planted(None), Planted(None).weight.detach()[2].view(1, 16, 16)
    images = Samples.from_array((samples().images / 255 + 0.1 * wave).clamp(0, 1))
    raised = map_objective(network, entropy, images, PLAIN)
    lowered = map_objective(network, lambda z: -entropy(z), images, PLAIN)
    means = [
        torch.special.entr(probabilities_of(network, images, nu=nu)).sum(1).mean().item()
        for nu in (raised.nu, torch.zeros_like(raised.nu), lowered.nu)
    ]
    assert means[0] > means[1] > means[2]
    assert (raised.pattern * wave).sum() < 0 < (lowered.pattern * wave).sum()


def test_channels_of_a_layer_are_logits_too() -> None:
    classifier = Classifier(Convolutional(), size=8, at="stage")
    images = natural_samples(20, (3, 8, 8), seed=0)
    concept = map_objective(classifier, lambda channels: channels[:, 1] - channels[:, 5], images, PLAIN)
    grey = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    scores = classifier(grey)[0]
    (slope,) = torch.autograd.grad(scores[1] - scores[5], grey)  # the same everywhere: channels are linear
    assert torch.cosine_similarity(concept.pattern.flatten(), slope.flatten(), dim=0) > 0.7
    assert concept.xi is not None


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda z: z.mean(), r"answers shape \(\) to logits \(2, 4\), not \(2,\).*one number for each image"),
        (lambda z: z, r"answers shape \(2, 4\)"),
        (lambda z: [1.0, 2.0], "answers a list"),
        (lambda z: (z[:, [0]] - z[:, [3]]).squeeze(), r"answers shape \(\) to logits \(1, 4\)"),
        (lambda z: z[:2, 0] - z[:2, 3], r"answers shape \(2,\) to logits \(3, 4\)"),
        (lambda z: z.argmax(1), "does not depend on the logits"),
        (lambda z: z.detach()[:, 0], "does not depend on the logits.*leave out argmax"),
    ],
)
def test_what_is_no_objective_is_refused(objective: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(AgnoscoError, match=message):
        map_objective(Convolutional(), objective, natural_samples(4, (3, 8, 8), seed=0), "draft", size=8)
