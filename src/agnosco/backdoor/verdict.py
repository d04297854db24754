"""From scores of classes to an outcome: robust z, a cut-off or a p-value, and the reasons against a verdict.

Nothing here looks at a network; every rule can be tested on numbers alone.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, sqrt

import torch
from torch import Tensor

from .record import ENOUGH_REACH, FOUND, INCONCLUSIVE, LEVEL, NONE, Outcome, Verdict, stands_out

FLOOR = 0.1
"""Least scale that scores are measured by, in the units of :func:`stabilised`: when all classes are alike, a tiny
difference must not make an outlier."""

FEWEST_CLASSES = 10
"""With fewer classes, only a bank of clean networks tells what is ordinary."""

NORMAL_SCALE = 1.4826
"""The median absolute deviation of normal scores, inverted."""


def stabilised(reach: Tensor) -> Tensor:
    """Shares in [0, 1] with about the same error everywhere: arcsine of the root, in [0, π/2] (Fisher)."""
    return reach.sqrt().asin()


def robust_z(scores: Tensor, *, floor: float = FLOOR) -> Tensor:
    """How far each score lies above the median, in robust standard deviations; along the last axis."""
    median = scores.quantile(0.5, -1, keepdim=True)  # of an even number the middle, which Tensor.median is not
    deviation = (scores - median).abs().quantile(0.5, -1, keepdim=True)
    return (scores - median) / (NORMAL_SCALE * deviation).clamp_min(floor)


@lru_cache
def simulated_cutoff(classes: int, screens: int) -> float:
    """What the greatest robust z over classes and screens exceeds in a share :data:`LEVEL` of networks by chance.

    Scores are taken to be normal and independent, which those of real networks are not: it is uncalibrated.
    """
    generator = torch.Generator().manual_seed(0)
    draws = (torch.randn(1000, screens, classes, generator=generator) for _ in range(20))
    return torch.cat([robust_z(scores, floor=0.0).amax((1, 2)) for scores in draws]).quantile(1 - LEVEL).item()


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


def judge(z: Tensor, reach: Tensor, *, bank: Sequence[float] | None = None, problems: Sequence[str] = ()) -> Verdict:
    """The verdict on one network.

    Args:
        z: Robust z, ``(screens, classes)``.
        reach: Reach of the classes, of the same shape.
        bank: Greatest z of each clean network of a bank.
        problems: Other reasons against a verdict.
    """
    enough = z.shape[1] >= FEWEST_CLASSES
    reasons = list(problems)
    if bank and 1 / (len(bank) + 1) > LEVEL:
        reasons.append(
            f"a bank of {len(bank)} clean networks cannot give a p-value of {LEVEL:g}: "
            f"at least {ceil(1 / LEVEL) - 1} are needed"
        )
    if not bank and not enough:
        reasons.append(f"{z.shape[1]} classes are too few to say what is ordinary without a bank of clean networks")
    cutoff = simulated_cutoff(z.shape[1], z.shape[0]) if enough and not bank else None
    reached = z.where(reach >= ENOUGH_REACH, -torch.inf)  # a class that few images reach must not hide another
    greatest = reached.max().item()
    outlier = stands_out(greatest, cutoff, p_value(greatest, bank) if bank else None)
    deciding = reached if outlier else z
    label, observed = int(deciding.amax(0).argmax()), deciding.max().item()
    p = p_value(observed, bank) if bank else None
    outcome: Outcome = INCONCLUSIVE if reasons else FOUND if outlier else NONE
    return Verdict(outcome, label, observed, cutoff, p, tuple(reasons))
