"""What a run folder shows people: the contact sheet, and a run in a notebook."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING

from ..method.config import config_from_json, describe
from ..method.render import SIDE, contact_sheet, enlarged, png
from ..text import one_line
from .manifest import Entry, Settings

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = 128
"""Size of a map in a notebook, in pixels."""

CAPTION = 31
"""Longest caption under a map."""


def sheet_of(pictures: Sequence[Image], entries: Sequence[Entry], settings: Settings, *, total: int) -> bytes:
    """The contact sheet as a PNG file.

    Args:
        pictures: Of the maps that are shown, the first of the run.
        entries: Of the same maps.
        settings: The run's.
        total: How many maps the run has.
    """
    several = len({entry.seed for entry in entries}) > 1
    captions = [caption(entry, with_seed=several) for entry in entries]
    some = "" if len(entries) == total else f"The first {len(entries)} of {total} maps. "
    model, samples = settings.model, settings.samples
    footer = (
        f"{some}{model.name} at {model.shape[2]} px. {describe(config_from_json(settings.config), model.shape)}. "
        f"Samples: {samples.source}, {samples.count}. p: what the model gives the picture; moves: share of held-out "
        "images that the map moves to its class."
    )
    columns = max(5, ceil(sqrt(len(captions))))
    return png(contact_sheet(pictures, captions, columns=columns, tile=SIDE, footer=one_line(footer, limit=1000)))


def page_of(pictures: Iterable[Image], entries: Iterable[Entry], *, total: int) -> str:
    """Maps as HTML for a notebook, each with its class; nothing in it runs."""
    tiles = [_tile(picture, entry) for picture, entry in zip(pictures, entries, strict=True)]
    more = total - len(tiles)
    rest = f"<p>and {more} more: <code>agnosco report</code> shows all</p>" if more > 0 else ""
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(tiles)}</div>{rest}'


def caption(entry: Entry, *, with_seed: bool) -> str:
    """A map's class, its seed if that is needed, and its figures: ``goldfish  p 0.99, moves 80%``."""
    moves = "" if entry.targeted_success_rate is None else f", moves {entry.targeted_success_rate:.0%}"
    figures = (f" s{entry.seed}" if with_seed else "") + f"  p {entry.probability:.2f}{moves}"
    return one_line(entry.name, limit=CAPTION - len(figures)) + figures


def _tile(picture: Image, entry: Entry) -> str:
    encoded = base64.b64encode(png(enlarged(picture, THUMBNAIL))).decode()
    words = html.escape(caption(entry, with_seed=True))
    return (
        f'<figure style="margin:0"><img src="data:image/png;base64,{encoded}" alt="{words}">'
        f"<figcaption>{words}</figcaption></figure>"
    )
