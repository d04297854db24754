"""What a run shows people: a picture of each map, the contact sheet, and the run in a notebook."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable
from contextlib import suppress
from math import ceil, sqrt
from typing import TYPE_CHECKING

from msgspec.structs import asdict

from ..errors import AgnoscoError
from ..io.storage import Folder
from ..method.config import describe
from ..method.render import SIDE, contact_sheet, enlarged, png
from ..text import one_line
from .manifest import Entry, picture_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..method.concept import ConceptMap
    from .run import Run

SHEET = "contact-sheet.png"

ON_SHEET = 400
"""Maps on a contact sheet at most. The report shows all."""

IN_NOTEBOOK, THUMBNAIL = 40, 128
"""Maps of a run that a notebook shows at most, and the size of each in pixels."""

CAPTION = 31
"""Longest caption under a map."""


def pictures_of(concept: ConceptMap) -> dict[str, bytes]:
    """The pictures of a map, by the fields of :class:`~agnosco.runs.manifest.Drawn`: for people, and for metrics."""
    return {"picture": png(enlarged(concept.display(), SIDE)), "raw": png(concept.image())}


def wrong_pictures(folder: Folder, entry: Entry, exists: Callable[[str], bool]) -> dict[str, str]:
    """The pictures of a map that are ``missing`` or ``altered``, by the names of their files.

    Without digests in the entry, only what is missing is known.
    """
    digests = {"picture": None, "raw": None} if entry.drawn is None else asdict(entry.drawn)
    wrong = {}
    for kind, digest in digests.items():
        name = picture_of(entry.stem, kind)
        if not exists(name):
            wrong[name] = "missing"
        elif digest is not None and _digest(folder, name) != digest:
            wrong[name] = "altered"
    return wrong


def _digest(folder: Folder, name: str) -> str | None:
    with suppress(AgnoscoError, FileNotFoundError):  # a link, a pipe, or gone meanwhile
        return hashlib.sha256(folder.read(name)).hexdigest()
    return None


def write_contact_sheet(run: Run) -> str:
    """Write the first :data:`ON_SHEET` maps of a run in one picture; returns its full name."""
    entries, total = run.entries[:ON_SHEET], len(run.entries)
    several = len({entry.seed for entry in entries}) > 1
    captions = [caption(entry, with_seed=several) for entry in entries]
    some = "" if len(entries) == total else f"The first {len(entries)} of {total} maps. "
    model, samples = run.settings.model, run.settings.samples
    footer = (
        f"{some}{model.name} at {model.shape[2]} px. {describe(run.config, model.shape)}. "
        f"Samples: {samples.source}, {samples.count}. p: probability that the model gives the picture's class; "
        "success: targeted success rate on held-out images."
    )
    columns = max(5, ceil(sqrt(len(captions))))
    pictures = [run.map(*entry.job).display() for entry in entries]
    sheet = contact_sheet(pictures, captions, columns=columns, tile=SIDE, footer=footer)
    return run.folder.write(SHEET, png(sheet))


def page_of(run: Run) -> str:
    """The first maps of a run as HTML for a notebook, each with its class; nothing in it is executed."""
    entries = run.entries
    tiles = [_tile(run.map(*entry.job).display(), entry) for entry in entries[:IN_NOTEBOOK]]
    more = len(entries) - len(tiles)
    rest = f"<p>and {more} more: <code>agnosco report</code> shows all</p>" if more > 0 else ""
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(tiles)}</div>{rest}'


def caption(entry: Entry, *, with_seed: bool) -> str:
    """A map's class, its seed if needed, and its figures: ``goldfish: p 0.99, success 80%``.

    The class's index goes before a name that is not in ASCII: the font of contact sheets draws all else alike.
    """
    success = "" if entry.targeted_success_rate is None else f", success {entry.targeted_success_rate:.0%}"
    figures = (f" s{entry.seed}" if with_seed else "") + f": p {entry.probability:.2f}{success}"
    name = entry.name if entry.name.isascii() else f"{entry.index} {entry.name}"
    return one_line(name, limit=CAPTION - len(figures)) + figures


def _tile(picture: Image, entry: Entry) -> str:
    encoded = base64.b64encode(png(enlarged(picture, THUMBNAIL))).decode()
    words = html.escape(caption(entry, with_seed=True))
    return (
        f'<figure style="margin:0"><img src="data:image/png;base64,{encoded}" alt="{words}">'
        f"<figcaption>{words}</figcaption></figure>"
    )
