"""Gains of channels: against the layers written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import natural_samples
from torch import Tensor, nn
from torch.nn import functional as F

from agnosco.method import reference
from agnosco.method.config import MapperConfig
from agnosco.method.dials import Pixel
from agnosco.method.dropout import draw_gains, scaled_channels
from agnosco.method.reference import saliency_map
from agnosco.models.classifier import Classifier


class Net(nn.Module):
    """Two convolutions, a hidden linear layer on tokens, class scores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2)
        self.tokens, self.scores = nn.Linear(8, 7), nn.Linear(7, 5)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.second(F.relu(self.first(images)))
        return self.scores(F.relu(self.tokens(seen.flatten(2).transpose(1, 2))).mean(1))


def gains_of(net: nn.Module, deviation: float = 0.3, count: int = 4) -> dict[nn.Module, Tensor]:
    return draw_gains(net, deviation, count, 5, torch.Generator().manual_seed(1))


def test_every_channel_of_every_image_has_its_gain() -> None:
    net, images = Net(), torch.rand(4, 3, 9, 9)
    gains = gains_of(net)
    assert {module: tuple(gain.shape) for module, gain in gains.items()} == {
        net.first: (4, 6), net.second: (4, 8), net.tokens: (4, 7),  # and not the class scores
    }  # fmt: skip
    with torch.no_grad(), scaled_channels(gains):
        found = net(images)
    for i in range(4):
        with torch.no_grad():
            seen = net.first(images[i : i + 1]) * gains[net.first][i].reshape(1, 6, 1, 1)
            seen = net.second(F.relu(seen)) * gains[net.second][i].reshape(1, 8, 1, 1)
            tokens = net.tokens(seen[0].flatten(1).T) * gains[net.tokens][i]
            expected = net.scores(F.relu(tokens).mean(0))
        torch.testing.assert_close(found[i], expected)


def test_class_scores_of_a_convolution_stay_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # as SqueezeNet
    assert list(gains_of(net)) == [net[0]]


def test_gains_are_about_one() -> None:
    drawn = torch.cat([gain.flatten() for gain in gains_of(Net(), 0.3, 5000).values()])
    assert drawn.mean().item() == pytest.approx(1, abs=0.005)  # 0.3 / √105000 = 0.001
    assert drawn.std().item() == pytest.approx(0.3, abs=0.005)


def test_none_draws_nothing_and_takes_no_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert draw_gains(Net(), 0.0, 4, 5, generator) == {}
    assert torch.equal(generator.get_state(), before)


def test_the_network_is_given_back() -> None:
    net, images = Net(), torch.rand(4, 3, 9, 9)
    before = net(images)
    with pytest.raises(KeyboardInterrupt), scaled_channels(gains_of(net)):
        raise KeyboardInterrupt
    torch.testing.assert_close(net(images), before, rtol=0, atol=0)
    assert not any(module._forward_hooks for module in net.modules())


class Windows(nn.Module):
    """A layer that is shown more rows than there are images."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Linear(3 * 16, 6)
        self.scores = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        windows = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * 16)
        return self.scores(self.each(windows).unflatten(0, (len(images), -1)).mean(1))


def test_layers_without_a_row_for_each_image_stay() -> None:
    net, images = Windows(), torch.rand(4, 3, 8, 8)
    with scaled_channels(gains_of(net)):
        found = net(images)
    torch.testing.assert_close(found, net(images), rtol=0, atol=0)


def test_half_precision_stays_half() -> None:
    net = Net().to(torch.bfloat16)
    with scaled_channels(gains_of(net)):
        assert net(torch.rand(4, 3, 9, 9).bfloat16()).dtype == torch.bfloat16


def small_map(**changes: float) -> Tensor:
    samples = natural_samples(12, (3, 9, 9), seed=1)
    classifier = Classifier(Net(), size=9)
    config = MapperConfig(batch=6, steps=5, step=0.1, direction="plus", **changes)  # type: ignore[arg-type]
    basis = Pixel().fit(samples, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    nu, _ = saliency_map(
        classifier, 2, samples, config, basis=basis, project=config.ball.projector(basis), generator=generator
    )
    return nu


def test_a_map_sees_the_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, whole = small_map(), small_map(dropout=0.3)
    assert F.cosine_similarity(plain.flatten(), whole.flatten(), dim=0) < 0.999
    monkeypatch.setattr(reference, "MICRO_BATCH", 4)  # bounds memory and changes nothing else
    np.testing.assert_allclose(small_map(dropout=0.3), whole, atol=1e-5)
