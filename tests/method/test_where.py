"""How much each place contributes: held against a network whose gradient is known everywhere."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import LinearSoftmax, natural, natural_samples
from scipy.ndimage import gaussian_filter

from agnosco.method.checkpoint import GroupState
from agnosco.method.concept import ConceptMap
from agnosco.method.config import Config, MapperConfig, RefineConfig
from agnosco.method.maker import Maker, map_class, map_classes
from agnosco.method.render import opacity, stretched, to_picture
from agnosco.method.where import contributions, smoothed
from agnosco.types import Job, Step

SHAPE = (3, 8, 8)
SAMPLES = natural_samples(20, SHAPE, seed=0)
CONFIG = Config(MapperConfig(batch=4, steps=3, loss="logit"), None, cycles=1)
WEIGHTS = natural(3, SHAPE, seed=1) - 0.5
NETWORK = LinearSoftmax(WEIGHTS, np.zeros(3)).classifier()


def mapper(labels: list[int], config: MapperConfig = CONFIG.mapper):
    making = Maker(NETWORK, SAMPLES, replace(CONFIG, mapper=config))
    return making._mapper(NETWORK, [Job(label, 0) for label in labels], config, [torch.Generator() for _ in labels])


def test_of_a_linear_network_it_is_the_gradient_wherever_the_image_is() -> None:
    (found,) = contributions(mapper([2]), torch.rand(1, *SHAPE))
    expected = gaussian_filter(np.abs(WEIGHTS[2]).sum(0), 8 / 28, mode="nearest", radius=1)
    np.testing.assert_allclose(found[0], expected / expected.max(), rtol=1e-5)


def test_it_is_averaged_over_sixteen_images_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    for batch, count in ((4, 4), (16, 1), (7, 3), (64, 1)):
        one, drawn = mapper([0], replace(CONFIG.mapper, batch=batch)), []
        draw = one.mini_batches
        monkeypatch.setattr(one, "mini_batches", lambda draw=draw, drawn=drawn: drawn.append(draw()) or drawn[-1])
        contributions(one, torch.zeros(1, *SHAPE))
        assert [images.shape[1] for images in drawn] == [batch] * count


def test_where_all_gradients_vanish_nothing_is_hidden() -> None:
    dead = LinearSoftmax(np.zeros((3, *SHAPE)), np.zeros(3)).classifier()
    making = Maker(dead, SAMPLES, CONFIG)
    mapper = making._mapper(dead, [Job(0, 0)], CONFIG.mapper, [torch.Generator()])
    assert contributions(mapper, torch.rand(1, *SHAPE)).eq(1).all()


def test_smoothing_is_a_gaussian_that_loses_nothing() -> None:
    values = torch.zeros(1, 1, 41, 41)
    values[0, 0, 20, 20] = 1.0
    found = smoothed(values, 3.0)[0, 0]
    assert found.sum().item() == pytest.approx(1)
    assert (found[20, 23] / found[20, 20]).item() == pytest.approx(math.exp(-0.5))
    assert (found[14, 20] / found[20, 20]).item() == pytest.approx(math.exp(-2))
    torch.testing.assert_close(smoothed(torch.full((1, 1, 5, 7), 0.3), 2.0), torch.full((1, 1, 5, 7), 0.3))


def test_the_same_map_has_the_same_bits_however_often_it_is_interrupted() -> None:
    config = Config(MapperConfig(batch=4, steps=3), RefineConfig(steps=2), cycles=2)
    group, states = [Job(0, 0), Job(2, 1)], []
    network = _convolutional()
    whole = list(Maker(network, SAMPLES, config).make(group, on_state=states.append))
    for state in (states[1], states[-1]):
        again = list(Maker(network, SAMPLES, config).make(group, state=_copied(state)))
        for one, other in zip(whole, again, strict=True):
            assert one.contribution is not None
            assert other.contribution is not None
            assert torch.equal(one.contribution, other.contribution)


def _convolutional():
    from agnosco.models.classifier import Classifier

    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(6 * 36, 3)
    return Classifier(torch.nn.Sequential(*layers), size=8)


def _copied(state: GroupState) -> GroupState:
    return replace(state, generators=[generator.clone() for generator in state.generators])


def test_it_changes_no_map() -> None:
    """A map that is made without it has the same ν: its random numbers are its own."""
    alone = map_class(NETWORK, 1, SAMPLES, CONFIG)
    among = {concept.label: concept for concept in map_classes(NETWORK, [0, 1, 2], SAMPLES, CONFIG)}
    assert alone.contribution is not None
    assert alone.contribution.shape == (1, 8, 8)
    assert 0 <= alone.contribution.min() <= alone.contribution.max() == 1
    torch.testing.assert_close(alone.contribution, among[1].contribution, rtol=0, atol=1e-5)


# -- the picture --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGBA"), (1, "LA")])
def test_the_transparent_picture_is_the_display_picture_with_an_alpha_channel(channels: int, mode: str) -> None:
    nu = torch.rand(channels, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    contribution = torch.linspace(0, 1, 16).view(1, 4, 4)
    made = ConceptMap(nu, 0, "a", 0, 1.0, {"map 1": nu}, (Step(1, 1.0, 1.0, 1.0, 1),), None, contribution)
    picture = made.display(transparent=True)
    assert picture.mode == mode
    *colours, alpha = (np.asarray(band) for band in picture.split())
    plain = made.display()
    assert plain.tobytes() == to_picture(stretched(-nu)).tobytes()
    assert [band.tolist() for band in colours] == [np.asarray(band).tolist() for band in plain.split()]
    # sixteen even steps: nothing up to 0.4, all from 0.8 on, and in between 3t² − 2t³, as at 9/15: t = 1/2
    assert (alpha.flatten()[:7] == 0).all()
    assert (alpha.flatten()[12:] == 255).all()
    assert alpha.flatten()[9] in (127, 128)
    assert (np.diff(alpha.flatten().astype(int)) >= 0).all()


def test_contributions_that_are_all_the_same_hide_nothing() -> None:
    assert (opacity(torch.ones(1, 4, 4)) == 1).all()
    assert (opacity(torch.zeros(1, 4, 4)) == 1).all()
