"""How likely a large margin is among many classes."""

from __future__ import annotations

import math

import pytest
import torch

from agnosco.backdoor.margins import tail_p_values


def pareto(exponent: float, classes: int, seed: int) -> torch.Tensor:
    """Margins that follow Pareto's law."""
    shares = torch.rand(classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 5 * (1 - shares) ** (-1 / exponent)


@pytest.mark.parametrize("classes", [200, 1000])
@pytest.mark.parametrize("exponent", [1.5, 4.0])
def test_false_alarms_are_no_more_than_said_under_paretos_law(exponent: float, classes: int) -> None:
    alarms = [tail_p_values(pareto(exponent, classes, seed)).min().item() <= 0.05 for seed in range(1000)]
    assert 0.02 < sum(alarms) / 1000 < 0.06


def test_lighter_tails_make_fewer() -> None:
    for margins in (torch.rand(300, 1000).mul(20), torch.randn(300, 1000).mul(5).add(10), -torch.rand(300, 1000).log()):
        assert sum(tail_p_values(row).min().item() <= 0.05 for row in margins) <= 9
        margins[:, 500] = 10 * margins.amax(1)
        assert all(tail_p_values(row)[500] <= 0.05 for row in margins)


def test_margins_that_stand_out_are_unlikely_and_do_not_hide_each_other() -> None:
    for count in (1, 2, 5):
        margins = 100 * torch.arange(1.0, 1001.0, dtype=torch.float64) ** (-1 / 3.5)  # as the law expects them
        targets = 200 + torch.arange(count) * 7
        margins[targets] = margins.max() * torch.linspace(10, 11, count, dtype=torch.float64)
        p_values = tail_p_values(margins)
        assert (p_values[targets] < 0.025).all()
        others = p_values.clone()
        others[targets] = 1
        assert others.min() > 0.1
        assert torch.equal(p_values.argsort(stable=True)[:count].sort().values, targets)


def test_as_many_classes_are_expected_above_a_margin_as_the_law_says() -> None:
    # 100 margins r^(-1/2), so that exponent 2 puts r of them at or above each. The largest 20 are compared with the
    # 21st. The logarithms of 21 / r are halved; their sum from the sixth on, and five times that of the sixth:
    #   S = ½ (ln 21/6 + ... + ln 21/20) + 5/2 ln 21/6 = 7.192.
    # The exponent a follows, given the margins, a^14 exp(-a S). The mean of 20 exp(-a x) is 20 (1 + x / S)^-15.
    margins = torch.arange(1.0, 101.0, dtype=torch.float64) ** -0.5
    p_values = tail_p_values(margins)
    assert p_values[20].item() == pytest.approx(1 - math.exp(-20))
    expected = 20 * (1 + math.log(21) / 2 / 7.192) ** -15
    assert p_values[0].item() == pytest.approx(1 - math.exp(-expected), rel=1e-4)


def test_a_hair_among_almost_equal_margins_makes_no_outlier() -> None:
    margins = 60 + torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 1000
    margins[3] = 60.1
    assert tail_p_values(margins)[3] > 0.9
    margins[3] = 120.0
    assert tail_p_values(margins)[3] < 0.025


def test_margins_that_cannot_tell_give_ones() -> None:
    assert (tail_p_values(torch.full((100,), 3.0)) > 0.99).all()
    negative = -torch.rand(1000)
    negative[:15] *= -1
    for margins in (-torch.rand(100), negative, *(torch.arange(count).float() for count in (0, 1, 2))):
        assert torch.equal(tail_p_values(margins), torch.ones(len(margins), dtype=torch.float64))
