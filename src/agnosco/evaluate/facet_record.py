"""The facets of a run's classes, as ``facets.json`` in its folder holds them; loads no torch."""

from __future__ import annotations

from ..io import records
from ..io.records import Record
from ..io.storage import Folder
from ..types import Shape

FILE, DIRECTIONS = "facets.json", "facets.safetensors"

THUMBNAILS = "-facet"
"""Ends the names of thumbnails, see :func:`agnosco.runs.thumbnails.name_of`."""

SMALL = 64
"""Pixels a side below which images are small."""


def overrides_for(shape: Shape) -> dict[str, str]:
    """Settings in which maps of facets differ from the preset's, if nothing else is asked for.

    A facet is raised whatever becomes of the others, which are parts of the same logit. What lies at one place of the
    images, as a watermark does, stays there. And in small images, what is rare, as the thin line of a border is, is not
    held back by the spectrum of the samples (``benchmarks/planted_cues.py``); in large ones, that makes clearer maps.

    Args:
        shape: ``(C, H, W)`` of the network's images.
    """
    small = {"parameterization": "spectral"} if min(shape[1:]) < SMALL else {}
    return small | {"transforms": "identity", "loss": "logit"}


class Strength(Record, frozen=True):
    """How much of a facet a sample has: ``alpha`` logits more than the mean of the class's samples."""

    sample: int
    alpha: float


class Facet(Record, frozen=True):
    """A facet of a class: one of the parts into which its logit falls.

    Args:
        name: Of the run's target that asks for it.
        number: From 1, for the facet that explains most.
        logit_share: Its share of the variance of the class's logit over the samples.
        variance_share: Its principal component's share of the variance of ψ.
        strongest: The samples that have most of it, in order.
    """

    name: str
    number: int
    logit_share: float
    variance_share: float
    strongest: tuple[Strength, ...]


class ClassFacets(Record, frozen=True, rename={"name": "class"}):
    """The leading facets of a class.

    Args:
        index, name: Of the class.
        given: To how many samples the network gives the class.
        samples: How many the facets come from.
        nudged: Whether these are all samples, with the class's map added, because it is given to too few of them.
        facets: In order.
    """

    index: int
    name: str
    given: int
    samples: int
    nudged: bool
    facets: tuple[Facet, ...]

    @property
    def origin(self) -> str:
        """What the facets come from, in words."""
        if self.nudged:
            few = f"the network gives it to only {self.given} of them"
            return f"{self.samples} samples with the map of the class added, because {few}"
        return f"{self.samples} samples that the network gives the class"


class FacetsRecord(Record, frozen=True):
    """The facets of a run: ``layer`` is the last one, which computes the logits from the features."""

    layer: str
    classes: tuple[ClassFacets, ...]

    @property
    def by_name(self) -> dict[str, tuple[ClassFacets, Facet]]:
        """Each facet, and its class, by the name of the run's target."""
        return {facet.name: (of_class, facet) for of_class in self.classes for facet in of_class.facets}


def read(folder: Folder) -> FacetsRecord | None:
    """The facets in a run's folder; None if it has none.

    Raises:
        AgnoscoError: The file is damaged or of another version.
    """
    return records.read(folder, FILE, FacetsRecord, hint="find the facets again with agnosco facets")


def table(record: FacetsRecord) -> str:
    """All facets as lines of text."""
    lines: list[str] = []
    for of_class in record.classes:
        lines += [*([""] if lines else []), f"{of_class.name} ({of_class.index}), from {of_class.origin}"]
        for facet in of_class.facets:
            most = ", ".join(f"{each.sample} ({each.alpha:+.1f})" for each in facet.strongest[:4])
            lines.append(
                f"  facet {facet.number}  {facet.logit_share:4.0%} of the logit's variance; samples with most: {most}"
            )
    return "\n".join(lines)
