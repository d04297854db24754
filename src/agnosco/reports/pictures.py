"""Pictures inside a page: data URIs, as large as the page can afford."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ..method.concept import ConceptMap
from ..method.render import SMALL, stretched, to_picture
from ..text import one_line

BUDGET = 20 * 2**20
"""Bytes of all pictures of a page; base64 makes a third more of them."""

GLOW = (255, 140, 0)
"""Colour of Ξ over a picture."""


@dataclass(frozen=True)
class Fit:
    """How pictures are made to fit.

    Args:
        thumbnail, side: Greatest side of a picture in the grid, and of one that is looked at, in pixels.
        quality: Of WebP, from 0 to 100; small pictures are PNG, without loss.
        stages: Whether the maps before the last are shown.
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
        stages: After each stage that is shown, by what it is called, in order; stretched for people.
        raw: Clip(½ − ν), what metrics see.
        xi: Ξ as a glow to lay over the others, or None.
        width, height: Of the map.
    """

    thumbnail: Markup
    stages: dict[str, Markup]
    raw: Markup
    xi: Markup | None
    width: int
    height: int

    @property
    def weight(self) -> int:
        """Bytes in the page."""
        return sum(map(len, (self.thumbnail, self.raw, self.xi or "", *self.stages.values())))


def fit_for(concepts: Sequence[ConceptMap], count: int) -> Fit:
    """The best way to show so many maps within the budget, judged by some of them."""
    for fit in FITS:
        weight = sum(pictures(concept, fit).weight for concept in concepts) / max(len(concepts), 1)
        if weight * count * 3 / 4 <= BUDGET:
            return fit
    return FITS[-1]


def pictures(concept: ConceptMap, fit: Fit) -> Pictures:
    """The pictures of a map."""
    stages = concept.stages if fit.stages else {list(concept.stages)[-1]: concept.nu}
    shown = {stage_in_words(name): to_picture(stretched(-nu)) for name, nu in stages.items()}
    last = list(shown.values())[-1]
    return Pictures(
        thumbnail=uri(last, fit.thumbnail, fit.quality),
        stages={name: uri(picture, fit.side, fit.quality) for name, picture in shown.items()},
        raw=uri(concept.image(), fit.side, fit.quality),
        xi=None if concept.xi is None else uri(_glow(concept.xi), 48, 60),
        width=last.width,
        height=last.height,
    )


def stage_in_words(name: str) -> str:
    """What people call a stage that a manifest calls ``map 1``, ``refine 1``, ``map 2`` and so on."""
    known = re.fullmatch(r"(map|refine) (\d{1,3})", name)
    if known is None:
        return one_line(name)
    kind, cycle = {"map": "Algorithm 1", "refine": "refined"}[known[1]], int(known[2])
    return kind + {1: "", 2: ", again"}.get(cycle, f", cycle {cycle}")


def uri(picture: Image.Image, side: int, quality: int = 85) -> Markup:
    """A picture as a data URI, no larger than a side; small ones keep their pixels as they are."""
    content = io.BytesIO()
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side))
    if max(picture.size) < SMALL and picture.mode != "RGBA":
        picture.save(content, "PNG", optimize=True)
        return _uri("png", content)
    picture.save(content, "WEBP", quality=quality, method=4)
    return _uri("webp", content)


def _glow(xi: Tensor) -> Image.Image:
    """Ξ, ``(1, H, W)``, as a colour that is more opaque where it is greater."""
    alpha = (0.7 * xi[0]).clamp(0, 1)
    colour = torch.tensor(GLOW)[:, None, None].expand(3, *alpha.shape)
    rgba = torch.cat([colour, (255 * alpha).round()[None]]).to(torch.uint8)
    return Image.fromarray(rgba.permute(1, 2, 0).contiguous().numpy(), "RGBA")


def _uri(kind: str, content: io.BytesIO) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}")
