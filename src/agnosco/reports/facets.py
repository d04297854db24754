"""What the page shows beside the map of a facet."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from ..evaluate.facet_record import THUMBNAILS
from ..io.storage import Folder
from ..runs.manifest import Entry
from ..runs.thumbnails import SIDE, name_of
from .pictures import Fit, uri
from .runs import RunView, picture_in


@dataclass(frozen=True)
class FacetView:
    """A facet as the page shows it.

    Args:
        origin: Its place among the facets of its class, and what they come from, in words.
        logit_share: Its share of the variance of the class's logit.
        picture: The samples that have most of it, side by side; None if they are not to be shown.
        values: How much each of them has, in words.
    """

    origin: str
    logit_share: float
    picture: Markup | None
    values: list[str]


def facet_of(folder: Folder, entry: Entry, view: RunView, fit: Fit) -> FacetView | None:
    """The facet that a map shows; None if it shows none.

    Raises:
        AgnoscoError: The picture of its samples is damaged.
    """
    pair = view.facets and view.facets.by_name.get(entry.name)
    if not pair:
        return None
    of_class, facet = pair
    has_samples = view.shows_samples and facet.strongest
    strip = picture_in(folder, name_of(entry.stem, THUMBNAILS)) if has_samples else None
    side = min(SIDE, fit.thumbnail) * len(facet.strongest)
    return FacetView(
        origin=f"Facet {facet.number} of {of_class.name}, from {of_class.origin}",
        logit_share=facet.logit_share,
        picture=None if strip is None else uri(strip, side, fit.quality),
        values=[f"{each.alpha:+.1f}" for each in facet.strongest],
    )
