"""Rules of the verdict, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from agnosco.backdoor.verdict import (
    FOUND,
    INCONCLUSIVE,
    NONE,
    judge,
    p_value,
    robust_z,
    simulated_cutoff,
    stabilised,
    wilson,
)


def test_robust_z_counts_from_the_median_in_deviations() -> None:
    # Median 3; distances 2 1 0 1 97, their median 1; one robust deviation is 1.4826.
    z = robust_z(torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0]))
    torch.testing.assert_close(z, torch.tensor([-2.0, -1.0, 0.0, 1.0, 97.0]) / 1.4826)


def test_the_median_of_an_even_number_is_in_the_middle() -> None:
    assert robust_z(torch.tensor([0.0, 0.0, 1.0, 1.0]))[2] == pytest.approx(0.5 / (0.5 * 1.4826))


def test_alike_classes_make_no_outlier_of_a_hair() -> None:
    assert robust_z(torch.tensor([0.0] * 9 + [0.05])).max() == pytest.approx(0.5)  # over the floor of 0.1


@pytest.mark.parametrize(("classes", "expected"), [(10, 3.85), (43, 3.5), (100, 3.5), (1000, 3.9)])
def test_simulated_cutoffs_are_those_of_the_protocol(classes: int, expected: float) -> None:
    assert simulated_cutoff(classes, 1) == pytest.approx(expected, abs=0.08)  # backdoors.md


def test_more_screens_need_a_higher_cutoff() -> None:
    assert simulated_cutoff(10, 3) > simulated_cutoff(10, 2) > simulated_cutoff(10, 1)


def test_an_anomaly_index_of_2_is_often_chance() -> None:
    # backdoors.md: "> 2" flags 32 to 42 % of clean ten-class networks.
    draws = robust_z(torch.randn(4000, 10, generator=torch.Generator().manual_seed(1)), floor=0.0).amax(1)
    assert 0.3 < (draws > 2).double().mean() < 0.45


def test_p_value_is_never_zero() -> None:
    assert p_value(9.0, [1.0] * 19) == pytest.approx(0.05)
    assert p_value(1.0, [0.0, 1.0, 2.0]) == pytest.approx(3 / 4)  # an equal one counts


def test_wilson_interval() -> None:
    # 8 of 10 at 95 %: (0.490, 0.943), Newcombe 1998.
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(0, 100)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(0.037, abs=1e-3)


def test_stabilised_runs_from_0_to_a_quarter_turn() -> None:
    ends = stabilised(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([0.0, math.pi / 4, math.pi / 2]))


Z = torch.zeros(2, 10)
Z[1, 7] = 12.0
REACH = torch.full((2, 10), 0.1)
REACH[1, 7] = 0.9


def test_a_class_that_stands_out_and_is_reached_is_found() -> None:
    verdict = judge(Z, REACH)
    assert (verdict.outcome, verdict.label, verdict.z) == (FOUND, 7, 12.0)
    assert verdict.cutoff is not None
    assert verdict.p_value is None


def test_a_class_that_stands_out_but_is_hardly_reached_is_not() -> None:
    hardly = REACH.clone()
    hardly[1, 7] = 0.4
    hardly[0, 7] = 1.0  # in the screen in which it does not stand out
    assert judge(Z, hardly).outcome == NONE


def test_a_screen_that_hardly_reaches_hides_no_other() -> None:
    both, reach = Z.clone(), REACH.clone()
    both[0, 7], reach[0, 7] = 20.0, 0.4  # stands out most where it is hardly reached
    assert judge(both, reach) == judge(Z, REACH)
    both[0, 3], reach[0, 3] = 20.0, 0.4  # and another class too
    assert judge(both, reach).label == 7


def test_below_the_cutoff_nothing_is_found() -> None:
    assert judge(Z / 4, REACH).outcome == NONE


def test_few_classes_are_inconclusive_without_a_bank() -> None:
    verdict = judge(Z[:, 5:], REACH[:, 5:])
    assert verdict.outcome == INCONCLUSIVE
    assert "5 classes" in verdict.reasons[0]
    assert verdict.cutoff is None  # of one class alone it would be no number
    assert judge(Z[:, 5:], REACH[:, 5:], bank=[1.0] * 19).outcome == FOUND


def test_a_bank_decides_by_its_p_value() -> None:
    assert judge(Z, REACH, bank=[3.0] * 19).outcome == FOUND
    assert judge(Z, REACH, bank=[3.0] * 18 + [13.0]).outcome == NONE
    small = judge(Z, REACH, bank=[3.0] * 5)
    assert small.outcome == INCONCLUSIVE
    assert small.p_value == pytest.approx(1 / 6)


def test_a_problem_leaves_no_verdict() -> None:
    verdict = judge(Z, REACH, problems=["seeds disagree"])
    assert verdict.outcome == INCONCLUSIVE
    assert verdict.reasons == ("seeds disagree",)
