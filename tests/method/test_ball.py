"""Projections: closed forms for the balls, a planted stamp for the sparse set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import natural_samples
from torch import Tensor

from agnosco.errors import AgnoscoError
from agnosco.method.ball import Projector
from agnosco.method.dials import L2, AutoL2, Data, Parameterization, Pixel, Sparse, Spectral, scaled_radius
from agnosco.method.parameterization import Basis

CPU = torch.device("cpu")


def pixels(shape: tuple[int, int, int]) -> Basis:
    return Basis(shape, CPU)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def projected(project: Projector, w: Tensor, *, progress: float = 0.5) -> Tensor:
    """Coordinates after a first projection."""
    return project(w, project.begin(), progress=progress, success=0.0)[0]


# -- L2 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "eta"),
    [((3, 224, 224), 30.0), ((3, 112, 112), 15.0), ((1, 28, 28), 30 * 28 / 224 / math.sqrt(3))],
    ids=str,
)
def test_radius_scales_with_the_root_of_the_size(shape: tuple[int, int, int], eta: float) -> None:
    assert scaled_radius(30.0, shape) == pytest.approx(eta, rel=1e-12)
    assert L2().projector(pixels(shape)).begin().eta == pytest.approx(eta, rel=1e-12)


@pytest.mark.parametrize("parameterization", [Pixel(), Data(), Spectral()], ids=str)
def test_l2_scales_what_lies_outside_and_leaves_the_rest(parameterization: Parameterization) -> None:
    samples = natural_samples(20, (3, 10, 7), seed=0)
    basis = parameterization.fit(samples, CPU)
    project = L2(30.0).projector(basis)
    eta = 30 * math.sqrt(3 * 10 * 7 / 150528)
    nu = torch.randn(3, 10, 7, generator=seeded())
    nu /= torch.linalg.vector_norm(nu)
    inside, outside = basis.coordinates(0.99 * eta * nu), basis.coordinates(7 * eta * nu)
    assert torch.equal(projected(project, inside), inside)
    torch.testing.assert_close(basis.pixels(projected(project, outside)), eta * nu, rtol=1e-4, atol=1e-6)


def test_zero_stays_zero() -> None:
    for ball in (L2(), AutoL2(), Sparse(pixels=4)):
        w = torch.zeros(3, 6, 6)
        assert torch.equal(projected(ball.projector(pixels((3, 6, 6))), w, progress=1.0), w)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan])
def test_l2_needs_room(radius: float) -> None:
    with pytest.raises(AgnoscoError, match="radius must be positive"):
        L2(radius)


# -- AutoL2 -------------------------------------------------------------------------------------------


def test_auto_grows_by_its_factor_until_the_limit() -> None:
    unit = math.sqrt(3 * 8 * 8 / 150528)
    project = AutoL2(start=10.0, limit=20.0, growth=1.25).projector(pixels((3, 8, 8)))
    far = torch.full((3, 8, 8), 9.0)
    radii, state = [], project.begin()
    for _ in range(6):
        w, state = project(far, state, progress=0.1, success=0.0)
        radii.append(float(np.linalg.norm(w)) / unit)
    np.testing.assert_allclose(radii, [12.5, 15.625, 19.53125, 20, 20, 20], rtol=1e-5)


def test_auto_stops_growing_while_success_is_high() -> None:
    # The average starts at 0 and is 1 − 0.9ᵏ after k full successes: past 0.9 from k = 22 on (0.9²² = 0.098).
    project = AutoL2(start=10.0, limit=1e9, success=0.9, growth=1.1).projector(pixels((3, 8, 8)))
    state = project.begin()
    etas = [float(state.eta)]
    for success in [1.0] * 40 + [0.0] * 5:
        _, state = project(torch.ones(3, 8, 8), state, progress=0.1, success=success)
        etas.append(float(state.eta))
    grew = np.diff(etas) > 0
    assert grew[:21].all()
    assert not grew[21:40].any()
    assert grew[41:].all()  # 0.9⁴⁰ = 0.015: one failure takes the average from 0.985 to 0.887
    assert etas[21] == pytest.approx(10 * 1.1**21 * math.sqrt(192 / 150528))


def test_auto_starts_anew_for_each_map() -> None:
    project = AutoL2().projector(pixels((3, 8, 8)))
    _, grown = project(torch.ones(3, 8, 8), project.begin(), progress=0.1, success=0.0)
    assert grown.eta > project.begin().eta


# -- Sparse -------------------------------------------------------------------------------------------


def lit(w: Tensor) -> int:
    """Pixels of which any channel is not zero."""
    return int((w != 0).any(0).sum())


def test_sparse_narrows_to_its_pixels() -> None:
    # From all 256 to 4, geometrically over the first half of the steps: ×1/8 in half of that.
    project = Sparse(pixels=4, start=1.0, hold=0.5).projector(pixels((3, 16, 16)))
    w = torch.randn(3, 16, 16, generator=seeded())
    left = [lit(projected(project, w, progress=k / 16)) for k in range(1, 17)]
    assert left[3] == 32
    assert left[7:] == [4] * 9
    assert left == sorted(left, reverse=True)


@given(
    count=st.integers(1, 80),
    start=st.floats(0.01, 1),
    hold=st.floats(0, 1),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_sparse_never_holds_more_than_it_may(count: int, start: float, hold: float, channels: int, seed: int) -> None:
    project = Sparse(count, start, hold).projector(pixels((channels, 9, 11)))
    w = 3 * torch.randn(channels, 9, 11, generator=seeded(seed))
    steps = [projected(project, w, progress=k / 10) for k in range(1, 11)]
    counts = [lit(after) for after in steps]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] <= count
    assert max(after.abs().max() for after in steps) <= 1
    assert torch.linalg.vector_norm(steps[-1]) <= project.begin().eta
    assert project.begin().eta == pytest.approx(math.sqrt(channels * count))  # every channel of every pixel at ±1


@pytest.mark.parametrize("corner", [(0, 0), (4, 7), (11, 11)])
def test_sparse_keeps_a_planted_stamp(corner: tuple[int, int]) -> None:
    w = 0.05 * torch.randn(3, 16, 16, generator=seeded())
    rows, columns = (slice(c, c + 5) for c in corner)
    w[:, rows, columns] = 0.8 * torch.randn(3, 5, 5, generator=seeded(1)).sign()
    after = projected(Sparse(pixels=25).projector(pixels((3, 16, 16))), w, progress=1.0)
    expected = torch.zeros_like(w)
    expected[:, rows, columns] = w[:, rows, columns]
    assert torch.equal(after, expected)


def test_sparse_pixels_hold_together() -> None:
    # A lone bright pixel has less energy around it than each pixel of a dimmer 3 × 3 block.
    w = torch.zeros(1, 12, 12)
    w[0, 2, 2], w[0, 6:9, 6:9] = 0.9, 0.6
    after = projected(Sparse(pixels=9).projector(pixels((1, 12, 12))), w, progress=1.0)
    assert lit(after) == 9
    assert after[0, 2, 2] == 0


@pytest.mark.parametrize("parameterization", [Data(), Spectral()], ids=str)
def test_sparse_refuses_other_coordinates(parameterization: Parameterization) -> None:
    basis = parameterization.fit(natural_samples(5, (3, 8, 8), seed=0), CPU)
    with pytest.raises(AgnoscoError, match="pixel coordinates"):
        Sparse().projector(basis)


@pytest.mark.parametrize("count", [0, 65])
def test_sparse_pixels_must_fit(count: int) -> None:
    with pytest.raises(AgnoscoError, match=f"{count} pixels does not fit images of 8 x 8"):
        Sparse(pixels=count).projector(pixels((3, 8, 8)))


@pytest.mark.parametrize(
    ("ball", "settings"),
    [
        (L2, {"radius": 0.0}),
        (L2, {"radius": float("inf")}),
        (L2, {"radius": float("nan")}),
        (AutoL2, {"start": -5.0, "limit": -5.0}),
        (AutoL2, {"start": 20.0, "limit": 10.0}),
        (AutoL2, {"growth": 0.9}),
        (AutoL2, {"success": float("inf")}),
        (Sparse, {"start": 1.5}),
        (Sparse, {"hold": -0.1}),
    ],
)
def test_balls_without_sense_are_refused(ball: type, settings: dict[str, float]) -> None:
    with pytest.raises(AgnoscoError):
        ball(**settings)
