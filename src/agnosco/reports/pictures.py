"""Drawings of a map inside the page: pictures, as large as it can afford, as data URIs; curves as inline SVG."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from ..method.render import SMALL, opacity, stretched, to_picture
from ..runs.tensors import Arrays
from ..text import one_line
from ..types import Stage

BUDGET = 20 * 2**20
"""Bytes of all pictures of a page; base64 adds a third."""

GLOW = (255, 140, 0)
"""Colour of Ξ over a picture."""

VEIL = (128, 128, 128)
"""Colour over what contributes little: that of no change."""

WIDTH, HEIGHT = 320.0, 80.0
"""Size of a plot in SVG units."""

MOST = 160
"""Most points of a curve."""


@dataclass(frozen=True)
class Fit:
    """Size and quality of the pictures of a page.

    Args:
        thumbnail, side: Greatest side in pixels of a picture in the grid, and of one among the details of a class.
        quality: Of WebP, from 0 to 100; small pictures are PNG, without loss.
        stages: Whether to show the stages before the last.
    """

    thumbnail: int
    side: int
    quality: int
    stages: bool


FITS = (
    Fit(128, 224, 85, stages=True),
    Fit(112, 192, 75, stages=True),
    Fit(96, 160, 70, stages=True),
    Fit(96, 160, 65, stages=False),
    Fit(80, 128, 55, stages=False),
    Fit(64, 96, 45, stages=False),
)
"""From the best to the smallest."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of a map, as data URIs.

    Args:
        thumbnail: For the grid.
        stages: −ν after each stage, stretched for people, by the stage in words, in order.
        raw: Clip(½ − ν), the picture that metrics see.
        xi: Ξ as a glow to lay over the others; None if the map has none.
        veil: What hides the places that contribute little, to lay over the others; None if the map does not say.
        width, height: Of the map.
    """

    thumbnail: Markup
    stages: dict[str, Markup]
    raw: Markup
    xi: Markup | None
    veil: Markup | None
    width: int
    height: int

    @property
    def weight(self) -> int:
        """Bytes in the page."""
        return sum(map(len, (self.thumbnail, self.raw, self.xi or "", self.veil or "", *self.stages.values())))


def fit_for(maps: Sequence[tuple[Arrays, Sequence[str]]], count: int) -> Fit:
    """The best of :data:`FITS` with which ``count`` maps stay within the budget, estimated from some of them."""
    for fit in FITS:
        weight = sum(pictures(arrays, stages, fit).weight for arrays, stages in maps) / max(len(maps), 1)
        if weight * count * 3 / 4 <= BUDGET:
            return fit
    return FITS[-1]


def pictures(arrays: Arrays, stages: Sequence[str], fit: Fit) -> Pictures:
    """The pictures of a map, from its file and the names of its stages; see :meth:`agnosco.runs.run.Run.arrays`."""
    nu = arrays["nu"]
    earlier = [(name, arrays[f"stages/{name}"]) for name in stages[:-1] if fit.stages]
    shown = {stage_in_words(name): to_picture(stretched(-of_stage)) for name, of_stage in [*earlier, (stages[-1], nu)]}
    last = list(shown.values())[-1]
    return Pictures(
        thumbnail=uri(last, fit.thumbnail, fit.quality),
        stages={name: uri(picture, fit.side, fit.quality) for name, picture in shown.items()},
        raw=uri(to_picture(np.float32(0.5) - nu), fit.side, fit.quality),
        xi=uri(_glow(arrays), 48, 60) if "xi" in arrays else None,
        veil=uri(_veil(arrays), 64, 60) if "contribution" in arrays else None,
        width=last.width,
        height=last.height,
    )


def stage_in_words(name: str) -> str:
    """A stage for people; a text that is no stage, as it is."""
    stage = Stage.parse(name)
    if stage is None:
        return one_line(name)
    kind = {"map": "Algorithm 1", "refine": "refined"}[stage.kind]
    return kind + {1: "", 2: ", again"}.get(stage.cycle, f", cycle {stage.cycle}")


def uri(picture: Image.Image, side: int, quality: int = 85) -> Markup:
    """A picture as a data URI, scaled down to a greatest side in pixels; small ones are stored without loss."""
    content = io.BytesIO()
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side))
    if max(picture.size) < SMALL and picture.mode != "RGBA":
        kind = "png"
        picture.save(content, kind, optimize=True)
    else:
        kind = "webp"
        picture.save(content, kind, quality=quality, method=4)
    return embedded(f"image/{kind}", content.getvalue())


def embedded(kind: str, content: bytes) -> Markup:
    """Content of a MIME type as a data URI."""
    return Markup(f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _glow(arrays: Arrays) -> Image.Image:
    """Ξ as one colour, more opaque where Ξ is greater."""
    return _over(GLOW, np.float32(0.7) * (arrays["xi"][0].astype(np.float32) / 255))


def _veil(arrays: Arrays) -> Image.Image:
    """The colour of no change, more opaque where a place contributes less."""
    return _over(VEIL, 1 - opacity(arrays["contribution"][0].astype(np.float32)))


def _over(colour: tuple[int, int, int], alpha: np.ndarray[Any, np.dtype[np.float32]]) -> Image.Image:
    """One colour, as opaque as ``alpha`` ``(H, W)`` in [0, 1] says."""
    rgba = np.empty((*alpha.shape, 4), np.uint8)
    rgba[..., :3] = colour
    rgba[..., 3] = (255 * alpha).round()
    return Image.fromarray(rgba, "RGBA")


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
