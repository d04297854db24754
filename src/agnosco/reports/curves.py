"""Curves of a map's making, as the points of inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from ..method.concept import ConceptMap

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
        high: The value at the top; at the bottom it is 0.
        last: The last value, and what there is to say of it.
    """

    title: str
    points: Markup
    high: float
    last: str


def curves(concept: ConceptMap, *, norm: float) -> list[Curve]:
    """p(class) and ‖ν‖ over all steps.

    A step of Algorithm 1 ends with the projection; a refinement is projected once, after its last step, so that its
    steps may leave the ball.

    Args:
        concept: The map.
        norm: ‖ν‖ of the map as it is.
    """
    if len(concept.trace) < 2:
        return []
    probability, norms = ([getattr(step, name) for step in concept.trace] for name in ("probability", "norm"))
    refined = any(stage.startswith("refine") for stage in concept.stages)
    title = "‖ν‖; of a refinement, before it is projected" if refined else "‖ν‖"
    last = f"{norms[-1]:.2f}" + (f", and {norm:.2f} once projected" if refined else "")
    return [
        Curve("mean p(class) of nudged samples", _points(probability, 1.0), 1.0, f"{probability[-1]:.2f}"),
        Curve(title, _points(norms, max(norms) or 1.0), max(norms) or 1.0, last),
    ]


def boundaries(concept: ConceptMap) -> list[float]:
    """Where a new stage begins, in the plot's units: its steps are counted from 1 again."""
    last = len(concept.trace) - 1
    begins = [k for k, (one, other) in enumerate(pairwise(concept.trace), start=1) if other.step <= one.step]
    return [round(WIDTH * k / last, 1) for k in begins]


def _points(values: Sequence[float], high: float) -> Markup:
    """Values from left to right, the greatest at the top: in SVG, y grows downwards."""
    last = len(values) - 1
    stride = max(1, len(values) // MOST)
    kept = sorted({*range(0, len(values), stride), last})
    return Markup(" ".join(f"{WIDTH * k / last:.1f},{HEIGHT * (1 - values[k] / high):.1f}" for k in kept))
