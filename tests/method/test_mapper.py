"""What runs against the reference: maps made side by side are those that the reference makes one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import natural_samples
from torch import Tensor, nn

from agnosco.data.samples import Samples
from agnosco.method.config import MapperConfig, RefineConfig
from agnosco.method.dials import AutoL2, Crops, Data, Sparse, Spectral
from agnosco.method.maker import generator_for
from agnosco.method.mapper import LoopState, Mapper
from agnosco.method.reference import refine, saliency_map
from agnosco.method.refine import Refiner
from agnosco.models.classifier import Classifier
from agnosco.types import Step

SHAPE = (3, 12, 10)
CPU = torch.device("cpu")
PAPER = MapperConfig(batch=5, steps=12)
LABELS, SEEDS = (2, 0, 3, 2), (0, 0, 1, 7)
# From black, all pixels take first steps of one length, and which of them a sparse ball keeps is rounding's choice.
START = 0.05 * torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(9))

SETTINGS = {
    "paper": PAPER,
    "unit steps, first-order direction": replace(PAPER, step="unit", direction="gradient"),
    "masked clip, steps falling": replace(PAPER, clip="masked", step=0.1, decay=0.5, direction="plus"),
    "log-odds": replace(PAPER, loss="log-odds"),
    "half the weight of the other classes": replace(PAPER, loss=0.5),
    "faded samples": replace(PAPER, contrast=(0.2, 0.9)),
    "crops with noise": replace(PAPER, transforms=Crops((0.3, 1.0), noise=0.02)),
    "data coordinates": replace(PAPER, parameterization=Data(), step=0.1, direction="plus"),
    "spectral coordinates": replace(PAPER, parameterization=Spectral(), step=0.1),
    "growing ball": replace(PAPER, ball=AutoL2(start=3.0, growth=1.3, success=0.6)),
    "sparse ball": replace(PAPER, ball=Sparse(pixels=9), step=0.1),
}


def classifier() -> Classifier:
    """A small network of sharp answers, so that maps have something to find.

    In float64: sums over batches of other sizes are rounded otherwise, by how much depends on the CPU, and moments
    amplify it (in float32, to 7e-4 of the greatest value on one with AVX-512).
    """
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 6 * 5, 4),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return Classifier(model.double(), size=(12, 10))


def by_reference(
    network: Classifier, samples: Samples, config: MapperConfig, refined: RefineConfig | None = None
) -> tuple[list[Tensor], list[list[Step]]]:
    basis = config.parameterization.fit(samples, CPU)
    maps, traces = [], []
    for label, seed, start in zip(LABELS, SEEDS, START, strict=True):
        generator, project = generator_for(label, seed), config.ball.projector(basis)
        nu, trace, ball = saliency_map(
            network, label, samples, config, basis=basis, project=project, generator=generator, start=start
        )
        if refined is not None:
            nu, trace, _ = refine(
                network, label, samples, nu, refined, config, basis=basis, project=project, generator=generator,
                ball=ball,
            )  # fmt: skip
        maps.append(nu)
        traces.append(trace)
    return maps, traces


def side_by_side(network: Classifier, samples: Samples, config: MapperConfig, micro_batch: int) -> Mapper:
    generators = [generator_for(*one) for one in zip(LABELS, SEEDS, strict=True)]
    basis = config.parameterization.fit(samples, CPU)
    return Mapper(
        network, LABELS, samples, config, basis=basis, project=config.ball.projector(basis), generators=generators,
        micro_batch=micro_batch,
    )  # fmt: skip


def run(loop: Mapper | Refiner, state: LoopState) -> LoopState:
    """The state after all steps."""
    with loop.classifier.frozen():
        *_, last = loop.steps(state)
    return last


def assert_same(found: list[list[Step]], expected: list[list[Step]]) -> None:
    for ours, plain in zip(found, expected, strict=True):
        assert [(s.step, s.direction, s.success) for s in ours] == [
            (s.step, s.direction, pytest.approx(s.success)) for s in plain
        ]
        np.testing.assert_allclose([s.probability for s in ours], [s.probability for s in plain], atol=1e-4)
        np.testing.assert_allclose([s.norm for s in ours], [s.norm for s in plain], rtol=1e-4)


@pytest.mark.parametrize("micro_batch", [3, 100])
@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_maps_side_by_side_are_those_of_the_reference(config: MapperConfig, micro_batch: int) -> None:
    network, samples = classifier(), natural_samples(30, SHAPE, seed=4)
    expected, traces = by_reference(network, samples, config)
    mapper = side_by_side(network, samples, config, micro_batch)
    state = run(mapper, mapper.begin(START))
    nu = mapper.basis.pixels(state.w)
    assert len({one.numpy().tobytes() for one in nu}) == 4
    for one, plain in zip(nu, expected, strict=True):
        np.testing.assert_allclose(one, plain, atol=1e-3 * plain.abs().max().item())
    assert_same(state.steps_by_map, traces)


@pytest.mark.parametrize(
    "config", [PAPER, SETTINGS["data coordinates"], SETTINGS["growing ball"]], ids=["pixel", "data", "growing ball"]
)
def test_refinement_side_by_side_is_that_of_the_reference(config: MapperConfig) -> None:
    network, samples, refined = classifier(), natural_samples(30, SHAPE, seed=4), RefineConfig(steps=8, rate=0.02)
    expected, traces = by_reference(network, samples, config, refined)
    mapper = side_by_side(network, samples, config, 7)
    state = run(mapper, mapper.begin(START))
    refiner = Refiner(mapper, refined, network)
    state = run(refiner, refiner.begin(mapper.basis.pixels(state.w), state.ball))
    nu = mapper.basis.pixels(state.w)
    for one, plain in zip(nu, expected, strict=True):
        np.testing.assert_allclose(one, plain, atol=2e-3 * plain.abs().max().item())
    assert_same(state.steps_by_map, traces)


def test_balls_that_grow_grow_each_by_its_own_success() -> None:
    # The reference gives each map a projector of its own; here one serves all, and must not mix them up.
    network, samples = classifier(), natural_samples(30, SHAPE, seed=4)
    config = replace(PAPER, ball=AutoL2(start=3.0, growth=1.3, success=0.3), steps=20)
    mapper = side_by_side(network, samples, config, 100)
    eta = run(mapper, mapper.begin(START)).ball.eta
    assert isinstance(eta, Tensor)
    assert len(set(eta.tolist())) > 1


def test_both_directions_are_one_batch_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    network, samples = classifier(), natural_samples(30, SHAPE, seed=4)
    calls: list[tuple[int, bool]] = []
    hook = network.model.register_forward_hook(
        lambda _module, inputs, _output: calls.append((len(inputs[0]), torch.is_grad_enabled()))
    )
    mapper = side_by_side(network, samples, replace(PAPER, steps=2), 1000)
    run(mapper, mapper.begin(START))
    hook.remove()
    assert calls == [(20, True), (40, False)] * 2


def test_memory_is_bounded_by_the_micro_batch() -> None:
    network, samples = classifier(), natural_samples(30, SHAPE, seed=4)
    sizes: dict[bool, list[int]] = {True: [], False: []}
    hook = network.model.register_forward_hook(
        lambda _module, inputs, _output: sizes[torch.is_grad_enabled()].append(len(inputs[0]))
    )
    mapper = side_by_side(network, samples, replace(PAPER, steps=1), 6)
    run(mapper, mapper.begin(START))
    hook.remove()
    assert sizes == {True: [6, 6, 6, 2], False: [12, 12, 12, 4]}  # nothing is kept of the probes


def test_a_tie_of_the_probes_goes_to_plus() -> None:
    # A network that gives all images the same: both directions serve the class alike (line 10: at least).
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 10, 4))
    with torch.no_grad():
        for parameter in flat.parameters():
            parameter.zero_()
    network, samples = Classifier(flat, size=(12, 10)), natural_samples(30, SHAPE, seed=4)
    mapper = side_by_side(network, samples, replace(PAPER, steps=2), 100)
    trace = run(mapper, mapper.begin(START)).trace
    assert {step.direction for steps in trace for step in steps} == {1}
