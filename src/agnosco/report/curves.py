"""Curves of a map's making, as the points of inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..concept import ConceptMap

WIDTH, HEIGHT = 320.0, 80.0
"""Of a plot, in its own units."""

MOST = 160
"""Points of a curve: more of them no one can tell apart."""


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps of a map.

    Args:
        title: What it is.
        points: For ``<polyline>``.
        low, high: Values at the bottom and at the top.
        last: The last value.
    """

    title: str
    points: str
    low: float
    high: float
    last: float


def curves(concept: ConceptMap) -> list[Curve]:
    """p(class) and ‖ν‖ over all steps."""
    if len(concept.trace) < 2:
        return []
    return [
        _curve("mean p(class) of nudged samples", [step.probability for step in concept.trace], 1.0),
        _curve("‖ν‖", [step.norm for step in concept.trace], None),
    ]


def boundaries(concept: ConceptMap) -> list[float]:
    """Where a new stage begins, in the plot's units: its steps are counted from 1 again."""
    last = len(concept.trace) - 1
    begins = [k for k, (one, other) in enumerate(pairwise(concept.trace), start=1) if other.step <= one.step]
    return [round(WIDTH * k / last, 1) for k in begins]


def _curve(title: str, values: Sequence[float], top: float | None) -> Curve:
    high = max(values) or 1.0 if top is None else top
    stride = max(1, len(values) // MOST)
    kept = sorted({*range(0, len(values), stride), len(values) - 1})
    points = " ".join(f"{WIDTH * k / (len(values) - 1):.1f},{HEIGHT * (1 - values[k] / high):.1f}" for k in kept)
    return Curve(title, points, 0.0, high, values[-1])
