"""The order of stages, what a run reports, and settings on their way to JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import LinearSoftmax, natural, natural_samples
from torch import Tensor, nn

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError, AgnoscoWarning
from agnosco.method import maker
from agnosco.method import refine as refining
from agnosco.method.checkpoint import GroupState, fits
from agnosco.method.concept import ConceptMap
from agnosco.method.config import (
    PRESETS,
    Config,
    MapperConfig,
    RefineConfig,
    config_from_json,
    config_to_json,
    describe,
    preset,
)
from agnosco.method.dials import L2, AutoL2, Crops, Data, Identity, Pixel, Sparse, Spectral, scaled_radius
from agnosco.method.maker import generator_for, map_class, map_classes, maps_together
from agnosco.method.reference import refine, saliency_map
from agnosco.models.classifier import Classifier
from agnosco.types import Job, Progress

SHAPE = (3, 8, 8)
SMALL = Config(MapperConfig(batch=4, steps=3), RefineConfig(steps=2), cycles=2)
WHITE = Config(
    MapperConfig(batch=4, steps=4, step=0.1, parameterization=Data(), transforms=Crops(noise=0.02), ball=AutoL2()),
    None,
    cycles=1,
)


class Convolutional(nn.Module):
    """One convolution and four classes: has the feature map that the refinement looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6 * 36, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.stage(pixels).flatten(1))


def classifier(precision: torch.dtype = torch.float32) -> Classifier:
    generator = torch.Generator().manual_seed(0)
    model = Convolutional()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return Classifier(model.to(precision), size=8, labels=["ant", "bee", "cat", "dog"])


SAMPLES = natural_samples(20, SHAPE, seed=0)


# -- stages -------------------------------------------------------------------------------------------


def test_stages_come_in_turn() -> None:
    seen: list[Progress] = []
    result = map_class(classifier(), "bee", SAMPLES, SMALL, seed=7, on_step=seen.append)
    assert [str(p.stage) for p in seen] == ["map 1"] * 3 + ["refine 1"] * 2 + ["map 2"] * 3 + ["refine 2"] * 2
    assert [p.done for p in seen] == list(range(1, 11))
    assert {(p.label, p.seed, p.total) for p in seen} == {(1, 7, 10)}
    assert [p.last.step for p in seen] == [1, 2, 3, 1, 2, 1, 2, 3, 1, 2]
    assert tuple(p.last for p in seen) == result.trace
    assert list(result.stages) == ["map 1", "refine 1", "map 2", "refine 2"]
    assert torch.equal(result.stages["refine 2"], result.nu)
    assert (SMALL.steps, SMALL.passes) == (10, 40)


def test_without_refinement_there_are_only_maps() -> None:
    seen: list[Progress] = []
    config = Config(MapperConfig(batch=4, steps=2), None, cycles=3)
    result = map_class(classifier(), 0, SAMPLES, config, on_step=seen.append)
    assert list(result.stages) == ["map 1", "map 2", "map 3"]
    assert seen[-1].done == seen[-1].total == config.steps == 6


def test_each_stage_begins_where_the_last_one_ended() -> None:
    network, generator, nu = classifier(), generator_for(2, 1), torch.zeros(SHAPE)
    basis = Pixel().fit(SAMPLES, network.device)
    project = L2().projector(basis)
    assert SMALL.refine is not None
    stages = []
    for _ in range(2):  # 2 × (Algorithm 1 → refinement), with moments that start anew in every call
        nu, _, _ = saliency_map(
            network, 2, SAMPLES, SMALL.mapper, basis=basis, project=project, generator=generator, start=nu
        )
        stages.append(nu)
        nu, _, _ = refine(
            network, 2, SAMPLES, nu, SMALL.refine, SMALL.mapper, basis=basis, project=project, generator=generator
        )
        stages.append(nu)
    result = map_class(network, 2, SAMPLES, SMALL, seed=1)
    for made, expected in zip(result.stages.values(), stages, strict=True):
        assert torch.equal(made, expected)


# -- what is taken for a classifier -------------------------------------------------------------------


def test_a_bare_module_makes_the_maps_that_its_classifier_makes() -> None:
    model = classifier().model
    expected = map_class(Classifier(model, size=8), 2, SAMPLES, SMALL)
    assert torch.equal(map_class(model, 2, SAMPLES, SMALL, size=8).nu, expected.nu)
    (only,) = map_classes(model, [2], SAMPLES, SMALL, size=(8, 8))
    assert torch.equal(only.nu, expected.nu)


def test_a_module_that_does_not_tell_its_input_size_needs_one() -> None:
    for make in (
        lambda: map_class(classifier().model, 0, SAMPLES),
        lambda: map_classes(classifier().model, [0], SAMPLES),
    ):
        with pytest.raises(AgnoscoError) as raised:
            make()
        assert raised.value.message == "the input size of Convolutional is unknown"
        assert raised.value.hint == "pass it: size=224 (height and width in pixels)"


def test_a_classifier_has_its_size_already() -> None:
    with pytest.raises(AgnoscoError, match="already a Classifier: size cannot be changed"):
        map_classes(classifier(), [0], SAMPLES, size=16)


def test_other_things_are_no_classifier() -> None:
    with pytest.raises(AgnoscoError, match="dict is not a classifier"):
        map_classes({}, [0], SAMPLES)  # pyright: ignore[reportArgumentType]


# -- maps ---------------------------------------------------------------------------------------------


def assert_same_but_for_rounding(one: ConceptMap, other: ConceptMap) -> None:
    """What is promised of a map made in another company: CPUs sum batches of different sizes in different orders.

    Of networks in float64 the sums differ by 1e-16, so that what is left is the rounding of ν to float32.
    """
    torch.testing.assert_close(one.nu, other.nu, rtol=0, atol=CLOSE)
    assert list(one.stages) == list(other.stages)
    for name in one.stages:
        torch.testing.assert_close(one.stages[name], other.stages[name], rtol=0, atol=CLOSE)
    assert [(s.step, s.direction) for s in one.trace] == [(s.step, s.direction) for s in other.trace]
    for what in ("probability", "success", "norm"):
        expected = pytest.approx([getattr(step, what) for step in other.trace], rel=0, abs=CLOSE)
        assert [getattr(step, what) for step in one.trace] == expected
    torch.testing.assert_close(one.contribution, other.contribution, rtol=0, atol=100 * CLOSE)


CLOSE = 1e-5


@pytest.mark.parametrize("config", [SMALL, WHITE], ids=["paper", "white"])
def test_a_map_alone_is_the_map_among_others(config: Config) -> None:
    network = classifier(torch.float64)
    among = list(map_classes(network, ["dog", 1, "ant"], SAMPLES, config, seeds=[4, 5]))
    assert [(m.label, m.name, m.seed) for m in among] == [
        (label, name, seed) for label, name in ((3, "dog"), (1, "bee"), (0, "ant")) for seed in (4, 5)
    ]
    for one in among:
        assert_same_but_for_rounding(map_class(network, one.label, SAMPLES, config, seed=one.seed), one)
    for one, other in combinations(among, 2):  # another seed or class, another map
        assert (one.nu - other.nu).abs().max() > 1000 * CLOSE


def test_maps_are_made_in_groups_when_asked_for() -> None:
    steps: list[Progress] = []
    maps = map_classes(classifier(), [0, 1, 2], SAMPLES, SMALL, together=2, on_step=steps.append)
    assert steps == []
    next(maps)
    assert [(p.label, p.done) for p in steps] == [(label, k) for k in range(1, SMALL.steps + 1) for label in (0, 1)]
    next(maps)
    assert len(steps) == 2 * SMALL.steps
    next(maps)
    assert {p.label for p in steps[2 * SMALL.steps :]} == {2}


def test_result_is_the_pattern_on_grey() -> None:
    weights = 0.05 * (natural(3, SHAPE, seed=1) - 0.5)
    model = LinearSoftmax(weights, np.array([0.1, -0.2, 0.3]))
    result = map_class(model.classifier(), 2, SAMPLES, Config(MapperConfig(batch=4, steps=3, ball=L2(200)), None))
    nu = result.nu.numpy()
    assert nu.dtype == np.float32
    np.testing.assert_array_equal(result.pattern, -nu)
    picture = np.clip(0.5 - nu, 0, 1)
    assert (np.abs(nu) > 0.5).any()  # so that the clip counts
    np.testing.assert_allclose(result.pixels, picture, atol=1e-6)
    probability, unclipped = model.probabilities(np.stack([picture, 0.5 - nu]).astype(float))[:, 2]
    assert abs(probability - unclipped) > 1e-3
    assert result.probability == pytest.approx(probability, abs=1e-5)
    np.testing.assert_array_equal(np.asarray(result.image()), np.round(255 * picture).transpose(1, 2, 0))
    assert result.display().size == (8, 8)


def test_generators_differ_by_label_and_seed() -> None:
    def first(label: int, seed: int) -> int:
        return int(torch.randint(2**62, (), generator=generator_for(label, seed)))

    assert first(3, 1) == first(3, 1)
    assert len({first(label, seed) for label in range(12) for seed in range(12)}) == 144


# -- mistakes -----------------------------------------------------------------------------------------


def test_samples_of_another_shape_are_refused_at_once() -> None:
    with pytest.raises(AgnoscoError, match=r"samples have shape \(3, 8, 9\), and Convolutional takes \(3, 8, 8\)"):
        map_classes(classifier(), [0], natural_samples(4, (3, 8, 9), seed=0), SMALL)


def test_unknown_classes_and_presets_are_refused_at_once() -> None:
    with pytest.raises(AgnoscoError, match=r"'bea'.*did you mean 'bee'"):
        map_classes(classifier(), ["ant", "bea"], SAMPLES, SMALL)
    with pytest.raises(AgnoscoError, match=r"no preset 'fast'.*paper"):
        map_classes(classifier(), ["ant"], SAMPLES, "fast")
    with pytest.raises(AgnoscoError, match="cycles must be at least 1, not 0"):
        Config(cycles=0)


class Detached(nn.Module):
    """Hands images on without their gradients."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.detach()


def test_what_the_network_lacks_is_said_before_the_first_step() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(AgnoscoError, match="no stage whose output is a feature map"):
        map_classes(Classifier(flat, size=8), [0], SAMPLES, SMALL)
    with pytest.raises(AgnoscoError, match=r"'1' of Sequential answers .* not a feature map"):
        map_classes(Classifier(flat, size=8, features="1"), [0], SAMPLES, SMALL)
    map_classes(Classifier(flat, size=8), [0], SAMPLES, replace(SMALL, refine=None))
    detached = nn.Sequential(Detached(), flat)
    with pytest.raises(AgnoscoError, match="no gradient of Sequential reaches the pixels"):
        map_classes(Classifier(detached, size=8), [0], SAMPLES, replace(SMALL, refine=None))


@pytest.mark.parametrize("mapper", [MapperConfig(batch=4, steps=2), WHITE.mapper], ids=["paper", "white"])
def test_gradients_that_lead_nowhere_are_told(mapper: MapperConfig) -> None:
    class Dead(nn.Module):
        """The same finite logits for every image, with another gradient."""

        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, pixels: Tensor) -> Tensor:
            gone = pixels.flatten(1)[:, :3]
            if gone.requires_grad:
                gone.register_hook(lambda gradient: gradient * self.factor)
            return gone - gone.detach() + torch.tensor([1.0, 2.0, 3.0])

    config = Config(mapper, None, cycles=1)
    with pytest.warns(AgnoscoWarning, match="gradients of '1' vanish"):
        map_class(Classifier(Dead(0.0), size=8), 1, SAMPLES, config)
    with pytest.raises(AgnoscoError, match="gradients of '1' are not finite"):
        map_class(Classifier(Dead(float("nan")), size=8), 1, SAMPLES, config)


def test_one_class_in_place_of_several_is_refused() -> None:
    with pytest.raises(AgnoscoError, match=r"'10' is one class, not several.*\['10'\]"):
        map_classes(classifier(), "10", SAMPLES, SMALL)


class HalfBroken(nn.Module):
    """Sound for the classes but the first, whose gradient is not a number."""

    def forward(self, pixels: Tensor) -> Tensor:
        logits = pixels.flatten(1)[:, :3] * 4
        if logits.requires_grad:
            logits.register_hook(lambda slope: torch.where(slope[:, :1] < 0, torch.nan, slope))
        return logits


def test_sound_maps_are_handed_out_before_an_error_of_another() -> None:
    config = Config(MapperConfig(batch=4, steps=3), None, cycles=1)
    maps = map_classes(Classifier(HalfBroken(), size=8), [0, 1, 2], SAMPLES, config)
    assert [next(maps).label, next(maps).label] == [1, 2]
    with pytest.raises(AgnoscoError, match="gradients of '0' are not finite"):
        next(maps)


def test_each_map_has_the_trace_of_its_own_class() -> None:
    network = classifier(torch.float64)
    maps = list(map_classes(network, [0, 1, 2], SAMPLES, SMALL))
    for one in maps:
        assert_same_but_for_rounding(map_class(network, one.label, SAMPLES, SMALL), one)
    for one, other in combinations(maps, 2):
        assert max(abs(a.probability - b.probability) for a, b in zip(one.trace, other.trace, strict=True)) > 0.01


def test_as_many_maps_as_fill_the_device_are_made_in_equal_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "images_at_once", lambda _network: 13)
    assert maps_together(classifier(), SMALL) == 3  # of 4 images each
    steps: list[Progress] = []
    list(map_classes(classifier(), range(4), SAMPLES, SMALL, on_step=steps.append))
    assert [p.label for p in steps if p.done == 1] == [0, 1, 2, 3]
    assert [p.done for p in steps[: 2 * SMALL.steps]] == [k for k in range(1, SMALL.steps + 1) for _ in range(2)]
    monkeypatch.setattr(maker, "images_at_once", lambda _network: 1)
    assert maps_together(classifier(), SMALL) == 1


def test_no_maps_at_once_are_refused() -> None:
    with pytest.raises(AgnoscoError, match="together must be at least 1, not 0"):
        map_classes(classifier(), [0], SAMPLES, SMALL, together=0)
    assert list(map_classes(classifier(), [], SAMPLES, SMALL)) == []


def test_the_network_alone_runs_in_bfloat16() -> None:
    network, kinds = classifier(), set()
    original = network.model.forward

    def watched(pixels: Tensor) -> Tensor:
        kinds.add((torch.is_autocast_enabled("cpu"), pixels.dtype))
        return original(pixels)

    network.model.forward = watched
    made = map_class(network, 1, SAMPLES, replace(SMALL, precision="bfloat16"))
    assert (True, torch.float32) in kinds  # pixels as they are, in autocast
    network.model.forward = original
    assert made.nu.dtype == torch.float32
    assert made.probability == network.probabilities(made.pixels[None])[0, 1].item()  # by the network as it was given
    exact = map_class(network, 1, SAMPLES, SMALL)
    assert not torch.equal(made.nu, exact.nu)
    assert list(made.stages) == list(exact.stages)


def test_refinement_looks_at_the_network_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    network, looked = classifier(), []
    monkeypatch.setattr(refining, "attention", lambda one, nu: looked.append(one) or torch.ones(1, *nu.shape[-2:]))
    map_class(network, 1, SAMPLES, replace(SMALL, precision="bfloat16"))
    assert looked == [network] * SMALL.cycles


# -- states to continue from --------------------------------------------------------------------------


def test_a_ball_that_cannot_have_grown_so_far_is_not_continued_from() -> None:
    config = replace(WHITE, mapper=replace(WHITE.mapper, ball=AutoL2(start=20.0, limit=21.0)))
    making, states = maker.Maker(classifier(), SAMPLES, config), []
    list(making.make([Job(0, 0), Job(1, 0)], on_state=states.append))

    def can_continue(state: GroupState) -> bool:
        return fits(state, [4], count=2, basis=making.basis, project=making.project)

    assert all(can_continue(state) for state in states)
    limit = scaled_radius(21.0, SHAPE)
    far = [torch.tensor([limit, math.nan]), torch.tensor([limit, 2 * limit]), torch.full((3,), limit)]
    for eta in (1e9, 2 * limit, math.nan, 0.0, -limit, "1", 10**400, None, *far):
        assert not can_continue(replace(states[1], ball=replace(states[1].ball, eta=eta))), eta
    for success in (math.inf, math.nan, torch.tensor([0.5, math.nan]), torch.full((3,), 0.5)):
        assert not can_continue(replace(states[1], ball=replace(states[1].ball, success=success))), success


# -- presets and settings -----------------------------------------------------------------------------


def test_paper_is_the_paper() -> None:
    config = preset("paper")
    mapper = config.mapper
    assert (mapper.batch, mapper.steps, mapper.step, mapper.direction) == (128, 650, "literal", "lookahead")
    assert (mapper.decay, mapper.clip, mapper.contrast) == (0.0, "straight-through", (1.0, 1.0))
    assert (mapper.parameterization, mapper.transforms, mapper.ball) == (Pixel(), Identity(), L2(30.0))
    assert config.refine == RefineConfig(steps=150, weight=50.0)
    assert config.cycles == 2
    assert config.passes == 2 * (650 + 150) * 128


@pytest.mark.parametrize("name", PRESETS)
def test_presets_describe_themselves(name: str) -> None:
    config = preset(name)
    line = describe(config, (3, 112, 112))
    assert "\n" not in line
    assert f"steps of {config.mapper.batch} images" in line
    for dial in (config.mapper.parameterization, config.mapper.transforms, config.mapper.ball):
        assert type(dial).__name__ in line
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


def test_descriptions_name_what_was_changed() -> None:
    words = "Pixel, Identity, L2 (15.0 at this size), 2 x 650 steps of 128 images, refined with λ 50"
    assert describe(Config(), (3, 112, 112)) == words
    changed = Config(
        MapperConfig(
            batch=9, steps=70, parameterization=Spectral(1.5), transforms=Crops(flip=False), ball=Sparse(pixels=16)
        ),
        None,
        1,
    )
    words = "Spectral exponent 1.5, Crops flip False, Sparse pixels 16, 70 steps of 9 images, step 0.05, clip masked"
    assert describe(replace(changed, mapper=replace(changed.mapper, step=0.05, clip="masked")), (3, 8, 8)) == words


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, exclude_min=True)


def ranges(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(numbers(low, high), numbers(low, high)).map(lambda pair: (min(pair), max(pair)))


mappers = st.builds(
    MapperConfig,
    batch=st.integers(1, 512),
    steps=st.integers(1, 5000),
    step=st.sampled_from(["literal", "unit"]) | numbers(0, 2),
    decay=st.floats(0, 1),
    direction=st.sampled_from(["lookahead", "gradient", "plus"]),
    clip=st.sampled_from(["straight-through", "masked"]),
    contrast=ranges(0, 1),
    parameterization=st.just(Pixel())
    | st.builds(Data, exponent=st.floats(0, 2), floor=numbers(0, 1))
    | st.builds(Spectral, st.floats(0, 3)),
    transforms=st.just(Identity()) | st.builds(Crops, area=ranges(0, 1), flip=st.booleans(), noise=st.floats(0, 1)),
    ball=st.builds(L2, numbers(0, 500))
    | st.builds(AutoL2, numbers(0, 50), numbers(50, 500), st.floats(0, 1), st.floats(1, 2))
    | st.builds(Sparse, st.integers(1, 400), numbers(0, 1), st.floats(0, 1)),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.999),
)
refinements = st.none() | st.builds(RefineConfig, st.integers(1, 999), st.floats(0, 1e4), numbers(0, 1))


@given(st.builds(Config, mappers, refinements, st.integers(1, 9)))
def test_settings_survive_json(config: Config) -> None:
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


def test_settings_as_json_name_their_dials() -> None:
    plain = config_to_json(WHITE)
    assert plain["refine"] is None
    assert plain["mapper"]["transforms"] == {"type": "crops", "area": [0.1, 1.0], "flip": True, "noise": 0.02}
    assert plain["mapper"]["parameterization"]["type"] == "data"
    assert plain["mapper"]["batch"] == 4


MISTAKES: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown setting": lambda data: data["mapper"].update(colour=1),
    "unknown setting of the refinement": lambda data: data["refine"].update(colour=1),
    "unknown setting of a dial": lambda data: data["mapper"]["ball"].update(colour=1),
    "unknown dial": lambda data: data["mapper"]["ball"].update(type="Cube"),
    "dial without a type": lambda data: data["mapper"]["transforms"].clear(),
    "no mapper": lambda data: data.pop("mapper"),
    "no cycles": lambda data: data.pop("cycles"),
    "one contrast of two": lambda data: data["mapper"].update(contrast=[1.0]),
    "text for a number": lambda data: data["mapper"].update(batch="many"),
    "unknown part": lambda data: data.update(colour=1),
    "dial in another's place": lambda data: data["mapper"].update(transforms={"type": "l2", "radius": 3.0}),
    "mapper that is no object": lambda data: data.update(mapper=[1, 2]),
}


@pytest.mark.parametrize("spoil", MISTAKES.values(), ids=MISTAKES)
def test_settings_of_another_version_are_refused(spoil: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(json.dumps(config_to_json(SMALL)))
    spoil(data)
    with pytest.raises(AgnoscoError, match="settings"):
        config_from_json(data)


# -- how long ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "together", "expected"), [(1, 4, 6.0 * 100), (4, 4, 6.0 * 100 / 4), (4, 2, 300.0)])
def test_estimate_is_step_time_after_the_warm_up_times_steps(
    monkeypatch: pytest.MonkeyPatch, count: int, together: int, expected: float
) -> None:
    ends = iter([100.0, 106.0, 112.0])  # seconds at the ends of three steps, the first of which took long
    monkeypatch.setattr(maker.time, "perf_counter", lambda: next(ends))
    monkeypatch.setattr(maker, "images_at_once", lambda _network: 2 * together)
    network = Classifier(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(12, 2)), size=2)
    samples = Samples(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), source="black")
    config = Config(MapperConfig(batch=2, steps=40), RefineConfig(steps=10), cycles=2)
    assert maker.Maker(network, samples, config).seconds_per_map(count) == expected
