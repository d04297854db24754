"""Rules of the verdict, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from agnosco.backdoor.margins import evidence_of
from agnosco.backdoor.record import Outcome, Verdict
from agnosco.backdoor.verdict import (
    FOUND,
    INCONCLUSIVE,
    LEAST_P,
    NONE,
    Deviation,
    MarginEvidence,
    judge,
    leave_one_out,
    lone_outlier,
    of_many,
    p_value,
    robust_z,
    stabilised,
    student_tail,
    wilson,
)


def test_robust_z_counts_from_the_median_in_deviations() -> None:
    # Median 3; distances 2 1 0 1 97, their median 1; one robust deviation is 1.4826.
    z = robust_z(torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0]), floor=0.1)
    torch.testing.assert_close(z, torch.tensor([-2.0, -1.0, 0.0, 1.0, 97.0]) / 1.4826)


def test_the_median_of_an_even_number_is_in_the_middle() -> None:
    assert robust_z(torch.tensor([0.0, 0.0, 1.0, 1.0]), floor=0.1)[2] == pytest.approx(0.5 / (0.5 * 1.4826))


def test_a_class_is_measured_by_all_others_but_itself() -> None:
    found = leave_one_out(torch.tensor([[1.0, 2.0, 3.0, 4.0, 100.0]]))
    assert found.z[0, 4].item() == pytest.approx(97.5 / math.sqrt(5 / 3 * 1.25))  # 1 to 4: mean 2.5, variance 5/3
    mean = 107 / 4
    variance = ((1 - mean) ** 2 + (2 - mean) ** 2 + (4 - mean) ** 2 + (100 - mean) ** 2) / 3
    assert found.z[0, 2].item() == pytest.approx((3 - mean) / math.sqrt(variance * 1.25))
    assert found.others.tolist() == [[4] * 5]
    assert torch.equal(found.tested, found.z)


def test_only_ordinary_classes_tell_what_is_ordinary() -> None:
    ordinary = torch.tensor([True, True, True, True, False, False])
    found = leave_one_out(torch.tensor([[1.0, 2.0, 3.0, 4.0, 100.0, 50.0]]), ordinary)
    assert found.z[0, 4].item() == pytest.approx(97.5 / math.sqrt(5 / 3 * 1.25))
    assert found.z[0, 5].item() == pytest.approx(47.5 / math.sqrt(5 / 3 * 1.25))
    assert found.others.tolist() == [[3, 3, 3, 3, 4, 4]]


def test_two_outliers_do_not_hide_each_other() -> None:
    found = leave_one_out(torch.tensor([[1.0, 2.0, 3.0, 4.0, 100.0, 90.0]]))
    # Without each other, both are measured by 1 to 4; the p-value of both is that of the second.
    assert found.z[0, 4].item() == pytest.approx(97.5 / math.sqrt(5 / 3 * 1.25))
    assert found.z[0, 5].item() == pytest.approx(87.5 / math.sqrt(5 / 3 * 1.25))
    assert found.tested[0, 4] == found.tested[0, 5] == found.z[0, 5]
    assert found.others[0, 4:].tolist() == [4, 4]
    assert found.p_value(0, 4) == found.p_value(0, 5)


def test_an_outlier_among_the_ordinary_classes_does_not_take_the_place_of_a_leading_one() -> None:
    reach = torch.full((1, 13), 0.1)
    reach[0, 3], reach[0, 12] = 0.9, 1.0  # one of the twelve, and the leading one
    ordinary = torch.arange(13) < 12
    found = leave_one_out(stabilised(reach), ordinary)
    verdict = judge(found, reach, classes=100)
    assert (verdict.outcome, verdict.label) == (FOUND, 12)


def test_alike_classes_make_no_outlier_of_a_hair() -> None:
    z = leave_one_out(torch.tensor([[0.0] * 9 + [0.05]])).z
    assert z.max() == pytest.approx(0.5 / math.sqrt(1 + 1 / 9))  # over the floor of 0.1


def test_too_few_classes_have_no_deviation() -> None:
    for count in (1, 2):
        found = leave_one_out(torch.rand(3, count))
        assert torch.equal(found.z, torch.zeros(3, count, dtype=torch.float64))
        verdict = judge(found, torch.ones(3, count), classes=count, bank=[2.0] * 30)
        assert verdict.outcome == INCONCLUSIVE
        assert f"{count} classes cannot be compared" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("t", "freedom", "tail"),
    [(12.706, 1, 0.025), (1.860, 8, 0.05), (3.055, 12, 0.005), (2.447, 6, 0.025), (1.697, 30, 0.05), (0.0, 7, 0.5)],
)
def test_students_tails_are_those_of_the_tables(t: float, freedom: int, tail: float) -> None:
    assert student_tail(t, freedom) == pytest.approx(tail, rel=2e-3)
    assert student_tail(-t, freedom) == pytest.approx(1 - tail, rel=2e-3)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 8, 9, 41, 42, 998])
def test_students_tails_are_those_of_scipy(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for t in (-3.0, 0.3, 2.0, 5.0, 7.5):
        assert student_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-6, abs=2e-15)
    assert student_tail(100.0, 998) == LEAST_P  # never 0, and never negative


def test_false_alarms_are_as_rare_as_said_if_scores_are_normal() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(2000, 10, generator=generator)
    found = leave_one_out(scores, floor=0.0)
    first = found.z.argmax(1).tolist()
    alarms = [of_many(found.p_value(row, column), 10) <= 0.05 for row, column in enumerate(first)]
    assert 0.035 < sum(alarms) / len(alarms) < 0.07


def test_many_tests_make_a_small_p_value_likely() -> None:
    assert of_many(0.05, 1) == pytest.approx(0.05)
    assert of_many(0.5, 2) == pytest.approx(0.75)
    assert of_many(1e-4, 30) == pytest.approx(0.003, rel=0.01)


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


Z = torch.zeros(2, 10, dtype=torch.float64)
Z[1, 7] = 12.0
REACH = torch.full((2, 10), 0.1)
REACH[1, 7] = 0.9


def judged(z: torch.Tensor, reach: torch.Tensor, **options):
    """The verdict on classes that are each compared with all others."""
    count = z.shape[1]
    return judge(Deviation(z, z, torch.full(z.shape, count - 1)), reach, classes=count, **options)


def test_a_class_that_stands_out_and_is_reached_is_found() -> None:
    verdict = judged(Z, REACH)
    assert (verdict.outcome, verdict.label, verdict.z) == (FOUND, 7, 12.0)
    # Student's t of 12 with 8 degrees of freedom is exceeded with probability 1.075e-6; 2 screens of 10 classes.
    assert verdict.p_value == pytest.approx(20 * 1.075e-6, rel=0.01)
    assert not verdict.calibrated


def test_a_class_that_stands_out_but_is_hardly_reached_is_not() -> None:
    hardly = REACH.clone()
    hardly[1, 7] = 0.4
    hardly[0, 7] = 1.0  # in the screen in which it does not stand out
    assert judged(Z, hardly).outcome == NONE


def test_a_screen_that_hardly_reaches_hides_no_other() -> None:
    both, reach = Z.clone(), REACH.clone()
    both[0, 7], reach[0, 7] = 20.0, 0.4  # stands out most where it is hardly reached
    assert judged(both, reach) == judged(Z, REACH)
    both[0, 3], reach[0, 3] = 20.0, 0.4  # and another class too
    assert judged(both, reach).label == 7


def test_what_is_likely_by_chance_is_not_found() -> None:
    assert judged(Z / 4, REACH).outcome == NONE
    # Nine others: t of 4.5 is exceeded with probability 0.0010, in one of 20 with 0.020; in one of 2,000 with 0.86.
    assert judged(Z * 0.375, REACH).outcome == FOUND
    assert judge(Deviation(Z * 0.375, Z * 0.375, torch.full((2, 10), 9)), REACH, classes=1000).outcome == NONE
    # t of 4.2: 0.029, which clean networks have more often than their scores say; not so with a bank of them.
    assert judged(Z * 0.35, REACH).outcome == NONE
    assert judged(Z * 0.35, REACH, bank=[4.0] * 39).outcome == FOUND


def test_the_class_that_is_least_likely_by_chance_is_named_although_another_has_a_greater_z() -> None:
    # By SciPy, t exceeds 7.3 with probability 7.7e-6 at 11 degrees of freedom, and 7.5 with 1.0e-5 at 10.
    z, others, reach = torch.zeros(1, 13, dtype=torch.float64), torch.full((1, 13), 11), torch.full((1, 13), 0.6)
    z[0, 3], z[0, 12], others[0, 12] = 7.5, 7.3, 12
    verdict = judge(Deviation(z, z, others), reach, classes=1000)
    assert (verdict.label, verdict.z) == (12, 7.3)
    assert verdict.p_value == pytest.approx(7.7e-6 * 1000, rel=0.02)
    assert judge(Deviation(z, z, others), reach, classes=1000, bank=[1.0] * 30).label == 3  # a bank goes by z


EVERY = torch.ones(10, dtype=torch.bool)


def of_a_thousand(margin_p: torch.Tensor, z: torch.Tensor = Z, reach: torch.Tensor = REACH) -> Verdict:
    """The verdict on ten classes of a thousand, of these margins."""
    deviation = Deviation(z, z, torch.full((2, 10), 9))
    return judge(deviation, reach, classes=1000, evidence=MarginEvidence(EVERY, margin_p))


def test_a_class_that_its_margin_singled_out_must_be_reached_more_easily_than_ordinary_ones() -> None:
    z = Z * 0.375  # alone, its p is 1.0e-3 by SciPy; in one of two screens, 2.0e-3
    margin_p = torch.full((10,), 0.9)
    margin_p[7] = 0.01
    verdict = of_a_thousand(margin_p, z)
    assert (verdict.outcome, verdict.label, verdict.p_value) == (FOUND, 7, pytest.approx(0.02))  # one of two ways
    assert verdict.separate is not None
    assert verdict.separate.margin == pytest.approx(0.01)
    margin_p[7] = 1e-9
    assert of_a_thousand(margin_p, z).p_value == pytest.approx(4e-3, rel=0.01)
    margin_p[7] = 0.5
    assert of_a_thousand(margin_p, z).outcome == NONE
    margin_p[7], margin_p[3] = 0.5, 1e-9  # of another class, which is hardly reached
    assert of_a_thousand(margin_p, z).outcome == NONE


def test_or_it_must_be_reached_more_easily_than_all_whatever_its_margin() -> None:
    margin_p, reach = torch.full((10,), 0.9), REACH.clone()
    reach[1, 7] = 1.0  # beside 0.1: z 11.85, which Student's t exceeds with probability 1.18e-6; of 1,000 in 2 screens
    verdict = of_a_thousand(margin_p, reach=reach)
    assert (verdict.outcome, verdict.label) == (FOUND, 7)
    assert verdict.p_value == pytest.approx(2 * 2000 * 1.18e-6, rel=0.02)
    assert verdict.separate is not None
    assert verdict.separate.reach == pytest.approx(2000 * 1.18e-6, rel=0.02)
    reach[1, 3] = 0.7  # with a second one beside it, neither is
    assert of_a_thousand(margin_p, reach=reach).outcome == NONE


def reach_of(*scores: float, screens: int = 1) -> torch.Tensor:
    """Reaches that have these scores in the last screen, and 0 in the others."""
    reach = torch.zeros(screens, len(scores))
    reach[-1] = torch.tensor(scores).sin().square()
    return reach


def test_of_normal_scores_one_stands_out_alone_in_one_of_twenty() -> None:
    scores = 0.8 + 0.15 * torch.randn(2000, 3, 18, generator=torch.Generator().manual_seed(1))
    found = [lone_outlier(one.sin().square(), 54).nan_to_num(1.0).min().item() <= 0.05 for one in scores]
    assert sum(found) / 2000 == pytest.approx(0.05, abs=0.015)  # three standard errors


@pytest.mark.parametrize("classes", [18, 200])
def test_two_that_stand_out_are_not_alone_however_many_they_are_compared_with(classes: int) -> None:
    ordinary = (0.3 + 0.1 * torch.randn(classes, generator=torch.Generator().manual_seed(1))).tolist()
    reach = reach_of(*ordinary[:4], 1.5, *ordinary[5:])
    p_values = lone_outlier(reach, classes)
    assert p_values[0, 4] < 1e-4
    assert p_values.isnan().sum() == classes - 1  # no other is the first
    for score, alone in ((1.2, False), (0.7, True)):  # reached by 87 %, and by 41 %, which is no rival
        assert lone_outlier(reach_of(*ordinary[:4], 1.5, *ordinary[5:9], score, *ordinary[10:]), classes)[
            0, 4
        ].isnan() == (not alone)


def test_a_rival_in_another_screen_or_a_pair_of_rivals_leaves_none_alone() -> None:
    reach = reach_of(1.5, *[0.3] * 16, screens=2)
    assert lone_outlier(reach, 34)[1, 0] < 1e-4
    reach[0, 5] = 0.9
    assert lone_outlier(reach, 34).isnan().all()
    assert lone_outlier(reach_of(1.5, 1.0, 1.0, *[0.3] * 14), 17).isnan().all()  # which must not hide each other


def test_none_is_alone_before_all_are_screened() -> None:
    reach = torch.full((1, 18), 0.05)
    reach[0, 3] = 1.0
    deviation, margin_p = leave_one_out(stabilised(reach)), torch.full((18,), 0.9)
    evidence = MarginEvidence(torch.ones(18, dtype=torch.bool), margin_p)
    for every, outcome in ((True, FOUND), (False, NONE)):
        assert judge(deviation, reach, classes=1000, evidence=evidence, every=every).outcome == outcome


def test_a_class_that_is_reached_more_easily_does_not_hide_the_one_whose_margin_stands_out() -> None:
    z, reach, margin_p = Z.clone(), REACH.clone(), torch.full((10,), 0.9)
    z[1, 3], reach[1, 3], margin_p[3] = 6.0, 0.9, 0.01  # z is 12 for class 7
    verdict = of_a_thousand(margin_p, z, reach)
    assert (verdict.outcome, verdict.label, verdict.z) == (FOUND, 3, 6.0)


@pytest.mark.parametrize(("larger", "outcome"), [(0, FOUND), (5, FOUND), (6, NONE)])
def test_a_class_with_a_smaller_margin_than_most_is_no_outlier_unless_a_bank_says_so(
    larger: int, outcome: Outcome
) -> None:
    order = [place for place in range(10) if place != 7]
    order.insert(larger, 7)
    margins = torch.zeros(10)
    margins[order] = torch.arange(10.0).flip(0)
    evidence = evidence_of(margins, range(10))
    assert evidence.p is None
    verdict = judged(Z, REACH, evidence=evidence)
    assert (verdict.outcome, verdict.label == 7) == (outcome, outcome == FOUND)
    assert judged(Z, REACH, evidence=evidence, bank=[4.0] * 39).outcome == FOUND


def test_a_class_of_small_margin_is_not_named_even_if_nothing_is_unlikely() -> None:
    evidence = MarginEvidence(torch.arange(150) != 7, None)
    z = torch.zeros(1, 150, dtype=torch.float64)
    z[0, 7] = 12.0
    verdict = judged(z, torch.full((1, 150), 0.6), evidence=evidence)
    assert (verdict.outcome, verdict.label == 7) == (NONE, False)


def test_few_classes_are_inconclusive_without_a_bank() -> None:
    verdict = judged(Z[:, 5:], REACH[:, 5:])
    assert verdict.outcome == INCONCLUSIVE
    assert "5 classes" in verdict.reasons[0]
    assert verdict.p_value is None
    assert judged(Z[:, 5:], REACH[:, 5:], bank=[1.0] * 19).outcome == FOUND


def test_a_bank_decides_by_its_p_value() -> None:
    found = judged(Z, REACH, bank=[3.0] * 19)
    assert (found.outcome, found.calibrated) == (FOUND, True)
    assert judged(Z, REACH, bank=[3.0] * 18 + [13.0]).outcome == NONE
    small = judged(Z, REACH, bank=[3.0] * 5)
    assert small.outcome == INCONCLUSIVE
    assert small.p_value == pytest.approx(1 / 6)


def test_a_problem_leaves_no_verdict() -> None:
    verdict = judged(Z, REACH, problems=["seeds disagree"])
    assert verdict.outcome == INCONCLUSIVE
    assert verdict.reasons == ("seeds disagree",)
