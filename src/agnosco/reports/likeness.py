"""What networks take the pictures of a run for, as the page shows it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from ..evaluate.lookalikes import Pair, lookalikes, to_csv
from ..evaluate.score_record import Judgement
from ..runs.run import Run
from ..text import one_line
from .pictures import embedded

INK = (138, 75, 8)
"""Colour of the matrix, more opaque where the probability is greater; the page's accent."""

MOST_IN_TABLE = 24
"""Most classes of a matrix that is shown as a table."""

NAME_LIMIT = 60
"""Most characters of a class name beside the matrix."""


@dataclass(frozen=True)
class LikenessView:
    """The matrix of a run as the page shows it.

    Args:
        judges: Names of the networks that it is the mean over.
        names: Of the classes, those that are taken for each other side by side.
        cells: The mean probabilities, ``cells[row][column]``; empty where the matrix is shown as a picture.
        picture: The same as a picture with one pixel for each cell, whose opacity is the root of the probability.
        pairs: The strongest pairs.
        table: All answers as CSV, to be downloaded.
    """

    judges: list[str]
    names: list[str]
    cells: list[list[float]]
    picture: Markup
    pairs: list[Pair]
    table: Markup


def likeness_of(run: Run, judgements: list[Judgement]) -> LikenessView | None:
    """That of a run and its judgements; None if no judgement has kept its answers."""
    found = lookalikes(run.entries, judgements)
    if found is None:
        return None
    order = found.order
    p = found.p[np.ix_(order, order)]
    return LikenessView(
        judges=found.judges,
        names=[one_line(found.names[place], limit=NAME_LIMIT) for place in order],
        cells=p.tolist() if len(p) <= MOST_IN_TABLE else [],
        picture=_picture(p),
        pairs=found.pairs(),
        table=embedded("text/csv", to_csv(run.entries, judgements).encode(errors="replace")),
    )


def _picture(p: np.ndarray) -> Markup:
    rgba = np.empty((*p.shape, 4), np.uint8)
    rgba[..., :3] = INK
    rgba[..., 3] = (255 * np.sqrt(p)).round()
    content = io.BytesIO()
    Image.fromarray(rgba, "RGBA").save(content, "png", optimize=True)
    return embedded("image/png", content.getvalue())
