"""How p(class) and ‖ν‖ developed while a map was made, as curves of inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from markupsafe import Markup

from ..runs.tensors import Arrays
from ..types import Stage

WIDTH, HEIGHT = 320.0, 80.0
"""Size of a plot in SVG units."""

MOST = 160
"""Most points of a curve."""


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps of a map.

    Args:
        title: Name of the quantity.
        points: Points of a ``<polyline>``.
        high: Value at the top of the plot; 0 is at the bottom.
        last: The last value, in words.
    """

    title: str
    points: Markup
    high: float
    last: str


def curves(arrays: Arrays, stages: Sequence[str], *, norm: float) -> list[Curve]:
    """p(class) and ‖ν‖ over all steps; none if there are fewer than two.

    Each step of Algorithm 1 ends with the projection. A refinement is projected only after its last step, so its steps
    may leave the norm ball; ``norm`` is ‖ν‖ of the finished map.
    """
    probability, norms = arrays["trace/probability"].tolist(), arrays["trace/norm"].tolist()
    high = max(filter(isfinite, norms), default=0.0) or 1.0
    if len(norms) < 2:
        return []
    refined = any(stage is not None and stage.kind == "refine" for stage in map(Stage.parse, stages))
    title = "‖ν‖; of a refinement, before the projection" if refined else "‖ν‖"
    last = f"{norms[-1]:.2f}" + (f", and {norm:.2f} after the projection" if refined else "")
    return [
        Curve("mean p(class) of perturbed images", _points(probability, 1.0), 1.0, f"{probability[-1]:.2f}"),
        Curve(title, _points(norms, high), high, last),
    ]


def boundaries(arrays: Arrays) -> list[float]:
    """Where a new stage begins, in the plot's units: there, steps are counted from 1 again."""
    steps = arrays["trace/step"].tolist()
    begins = [k for k, (step, following) in enumerate(pairwise(steps), start=1) if following <= step]
    return [round(WIDTH * k / (len(steps) - 1), 1) for k in begins]


def _points(values: Sequence[float], high: float) -> Markup:
    """Finite values from left to right, the greatest at the top; in SVG, y grows downwards."""
    last = len(values) - 1
    steps = sorted({*range(0, len(values), max(1, len(values) // MOST)), last})
    points = [(WIDTH * k / last, HEIGHT * (1 - values[k] / high)) for k in steps]
    return Markup(" ".join(f"{x:.1f},{y:.1f}" for x, y in points if isfinite(y)))
