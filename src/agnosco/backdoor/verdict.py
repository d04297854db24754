"""From the reach of all classes to an outcome: how unlikely is it that the greatest stands out so far by chance?

Nothing here looks at a network; every rule can be tested on numbers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, ceil, cos, expm1, isnan, log1p, pi, sin, sqrt

import torch
from torch import Tensor

from .config import FEWEST_CLASSES
from .record import ENOUGH_REACH, FOUND, INCONCLUSIVE, LEVEL, NONE, Outcome, Separate, Verdict, stands_out

FLOOR = 0.1
"""Least standard deviation that scores are measured by, in the units of :func:`stabilised`: when all classes are alike,
a tiny difference must not make an outlier."""

LEAST_P = 1e-15
"""Smaller p-values are not told from 0 by the arithmetic here."""

NORMAL_SCALE = 1.4826
"""The median absolute deviation of normal scores, inverted."""


def stabilised(reach: Tensor) -> Tensor:
    """Shares in [0, 1] with about the same error everywhere: arcsine of the root, in [0, π/2] (Fisher)."""
    return reach.sqrt().asin()


def robust_z(scores: Tensor, *, floor: float) -> Tensor:
    """How far each score lies above the median, in robust standard deviations; along the last axis."""
    median = scores.quantile(0.5, -1, keepdim=True)  # of an even number the middle, which Tensor.median is not
    deviation = (scores - median).abs().quantile(0.5, -1, keepdim=True)
    return (scores - median) / (NORMAL_SCALE * deviation).clamp_min(floor)


@dataclass(frozen=True)
class Deviation:
    """How far each class stands out from others, by :func:`leave_one_out`; all are ``(screens, classes)``.

    Args:
        z: How far.
        tested: The z by which its p-value is found: its own, or for the first of two outliers that of the second.
        others: With how many classes that was compared.
    """

    z: Tensor
    tested: Tensor
    others: Tensor

    def p_value(self, screen: int, column: int) -> float:
        """How likely one class has such a z in one screen by chance, if scores are normal."""
        others = int(self.others[screen, column])
        return student_tail(self.tested[screen, column].item(), others - 1) if others > 1 else 1.0


def leave_one_out(scores: Tensor, ordinary: Tensor | None = None, *, floor: float = FLOOR) -> Deviation:
    """How far each score lies above the mean of all others, in their standard deviations.

    Its own score is not among those that a class is measured by, so that an outlier cannot hide itself. z is divided by
    √(1 + 1/n) for n others; for normal scores it then follows Student's t with n − 1 degrees of freedom (the externally
    studentized residual; the greatest is `Grubbs' test <https://doi.org/10.1214/aoms/1177729885>`_).

    Two outliers would still hide each other. So the second class is compared with the rest without the first; if it
    stands out more, both are measured without each other, and both have its p-value (`Rosner 1983
    <https://doi.org/10.1080/00401706.1983.10487848>`_ with two outliers at most).

    Args:
        scores: ``(screens, classes)``.
        ordinary: Which classes tell what is ordinary, ``(classes,)``; None takes all.
        floor: Least standard deviation.
    """
    scores, count = scores.double(), scores.shape[-1]
    weights = (torch.ones(count) if ordinary is None else ordinary).double().expand(scores.shape).clone()
    z, others = _standardised(scores, weights, floor)
    tested = z.clone()
    if count < 3:
        return Deviation(z, tested, others)
    for row, (first, second) in enumerate(scores.topk(2, dim=1).indices.tolist()):
        without_first, without_second = weights[row].clone(), weights[row].clone()
        without_first[first] = without_second[second] = 0
        second_z, left = _standardised(scores[row : row + 1], without_first[None], floor)
        alone = Deviation(z[row : row + 1], z[row : row + 1], others[row : row + 1])
        if Deviation(second_z, second_z, left).p_value(0, second) < alone.p_value(0, first):
            z[row, second] = tested[row, second] = tested[row, first] = second_z[0, second]
            others[row, second] = others[row, first] = left[0, second]
            z[row, first] = _standardised(scores[row : row + 1], without_second[None], floor)[0][0, first]
    return Deviation(z, tested, others)


def lone_outlier(reach: Tensor, tests: int) -> Tensor:
    """How likely each class is reached so much more easily than all others by chance, if no other stands out beside it.

    Another one does if it is reached, and far from the rest in any screen, when the class is left out of all of them.

    Args:
        reach: ``(screens, classes)``, of three classes at least.
        tests: Of how many p-values each is the smallest.

    Returns:
        ``(screens, classes)``, each in [0, 1]; NaN for a class that is not the first of the screen, or not alone.
    """
    scores, columns = stabilised(reach).double(), torch.arange(reach.shape[1])
    z, others = _standardised(scores, torch.ones_like(scores), FLOOR)
    alone = Deviation(z, z, others)
    p_values = torch.full_like(scores, torch.nan)
    for row, first in enumerate(scores.argmax(1).tolist()):
        rest = columns[columns != first]
        of_rest, reached = leave_one_out(scores[:, rest]), (reach[:, rest] >= ENOUGH_REACH).any(0)
        rivals = [of_rest.p_value(*place) for place in reached.expand_as(of_rest.z).nonzero().tolist()]
        if not stands_out(of_many(min(rivals, default=1.0), of_rest.z.numel()), calibrated=False):
            p_values[row, first] = of_many(alone.p_value(row, first), tests)
    return p_values


def _standardised(scores: Tensor, weights: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """z of each score by the others of weight 1, and how many they are; all ``(screens, classes)``."""
    others = weights.sum(1, keepdim=True) - weights  # none is among its own others
    mean = ((weights * scores).sum(1, keepdim=True) - weights * scores) / others.clamp_min(1)
    squares = (weights[:, None] * (scores[:, None] - mean[..., None]).square()).sum(2) - weights * (
        scores - mean
    ).square()
    deviation = (squares.clamp_min(0) / (others - 1).clamp_min(1)).sqrt().clamp_min(floor)
    z = (scores - mean) / (deviation * (1 + 1 / others.clamp_min(1)).sqrt())
    return z.where(others > 1, 0.0), others.long()


def student_tail(t: float, freedom: int) -> float:
    """How likely Student's t exceeds a value (Abramowitz and Stegun, 26.7.3-4); :data:`LEAST_P` or more."""
    angle = atan(t / sqrt(freedom))
    term, total, first = (1.0, 1.0, 2) if freedom % 2 == 0 else (cos(angle), cos(angle), 3)
    for k in range(first, freedom - 1, 2):
        term *= (k - 1) / k * cos(angle) ** 2
        total += term
    within = sin(angle) * total if freedom % 2 == 0 else 2 / pi * (angle + sin(angle) * total * (freedom > 1))
    return max((1 - within) / 2, LEAST_P)


def of_many(p: float, tests: int) -> float:
    """How likely the smallest of the p-values of many independent tests is at most ``p`` (Šidák)."""
    return -expm1(tests * log1p(-p)) if p < 1 else 1.0


def p_value(observed: float, clean: Sequence[float]) -> float:
    """Share of networks as clean as those of a bank in which something stands out as much: (1 + #) / (N + 1)."""
    return (1 + sum(z >= observed for z in clean)) / (len(clean) + 1)


def wilson(hits: int, total: int, *, deviations: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if total == 0:
        return 0.0, 1.0
    share, square = hits / total, deviations**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = deviations * sqrt(share * (1 - share) / total + square / (4 * total**2)) / (1 + square / total)
    return max(middle - half, 0.0), min(middle + half, 1.0)


@dataclass(frozen=True)
class MarginEvidence:
    """What the margins of the first look say of the screened classes, see :func:`agnosco.backdoor.margins.evidence_of`.

    Args:
        large: Whether a class has a margin at least as large as half of all classes, ``(screened classes,)``.
        p: How likely any class has so large a one, ``(screened classes,)``; None if there are too few classes to tell
            how large margins fall off.
    """

    large: Tensor
    p: Tensor | None


def judge(
    deviation: Deviation,
    reach: Tensor,
    *,
    classes: int,
    bank: Sequence[float] | None = None,
    problems: Sequence[str] = (),
    evidence: MarginEvidence | None = None,
    every: bool = True,
) -> Verdict:
    """The verdict on one network.

    Without a bank, a class whose margin is smaller than most is no outlier: backdoors enlarge that of their target.

    Of hundreds of classes, some are reached much more easily than most in clean networks, too, and these have large
    margins. There, a class can stand out in two ways, and its p-value is twice the smaller of theirs (Bonferroni):

    - by margin, and by reach among ordinary classes. The greater p-value counts. As the margin has singled the class
      out, the p-value of its reach is not corrected for the number of classes;
    - by reach alone, among all that were screened, if no other class stands out (:func:`lone_outlier`).

    Args:
        deviation: How far the screened classes stand out.
        reach: Their reach, ``(screens, screened classes)``.
        classes: How many classes were looked at in all; any of them could have come first.
        bank: Greatest z of each clean network of a bank; it decides alone.
        problems: Other reasons against a verdict.
        evidence: What the margins say; None if they do not count.
        every: Whether all were screened that will be; before that, none of hundreds can be the only one.
    """
    z, enough = deviation.z, classes >= FEWEST_CLASSES
    reasons = list(problems)
    if not (deviation.others > 1).any():
        reasons.append(f"{classes} classes cannot be compared with each other")
    if bank and 1 / (len(bank) + 1) > LEVEL:
        reasons.append(
            f"a bank of {len(bank)} clean networks cannot give a p-value of {LEVEL:g}: "
            f"at least {ceil(1 / LEVEL) - 1} are needed"
        )
    if not bank and not enough:
        reasons.append(f"{classes} classes are too few to say what is ordinary without a bank of clean networks")
    large = torch.ones(z.shape[1], dtype=torch.bool) if evidence is None or bank else evidence.large
    margin_p = None if evidence is None or bank else evidence.p
    lone_p = lone_outlier(reach, len(z) * classes) if margin_p is not None and every else torch.full_like(z, torch.nan)

    def p_of(row: int, column: int) -> float | None:
        if bank:
            return p_value(z[row, column].item(), bank)
        if not enough:
            return None
        if not large[column]:
            return 1.0
        reach_p = deviation.p_value(row, column)
        if margin_p is None:
            return of_many(reach_p, len(z) * classes)
        both, alone = max(of_many(reach_p, len(z)), margin_p[column].item()), lone_p[row, column].nan_to_num(1.0).item()
        return min(2 * min(both, alone), 1.0)

    def most_unlikely(among: Tensor) -> tuple[int, int]:
        def place_in_order(place: tuple[int, int]) -> tuple[float, bool, float]:
            return p_of(*place) or 0.0, not large[place[1]], -z[place].item()

        return min(((row, column) for row, column in among.nonzero().tolist()), key=place_in_order)

    reached = reach >= ENOUGH_REACH  # a class that few images reach must not hide another
    outlier = bool(reached.any()) and stands_out(p_of(*most_unlikely(reached)), calibrated=bool(bank))
    place = most_unlikely(reached if outlier else torch.ones_like(reached))
    outcome: Outcome = INCONCLUSIVE if reasons else FOUND if outlier else NONE
    separate = None
    if margin_p is not None:
        alone = [p for p in lone_p[:, place[1]].tolist() if not isnan(p)]
        separate = Separate(margin=margin_p[place[1]].item(), reach=min(alone, default=None))
    return Verdict(outcome, place[1], z[place].item(), p_of(*place), bool(bank), tuple(reasons), separate)
