"""The classes of all runs, aligned, each with its maps."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..backdoor.record import FOUND
from ..evaluate.diff_record import ClassDiff
from ..evaluate.lookalikes import also_in
from ..runs.manifest import Entry, slug
from ..runs.run import Run
from ..text import one_line, spelling
from ..types import OnProgress
from .facets import FacetView, facet_of
from .pictures import Curve, Fit, Pictures, boundaries, curves, fit_for, pictures
from .runs import DiffView, RunView
from .samples import SampleRow, sample_rows

NAME_LIMIT = 200
"""Most characters of a class name on the page."""

TRIED = 6
"""Maps of a run from which the size of all pictures is estimated."""

Class = tuple[int, str]
"""Index and name."""

Part = tuple[int, Entry]
"""The number of a run on the page, from 0, and the entry of one of its maps."""


@dataclass(frozen=True)
class MapView:
    """A map as the page shows it.

    Args:
        run: The number of its run.
        seen: Names of the networks that were asked, and what else each sees in its picture, by probability.
        samples: Its typical samples, if they are to be shown.
        facet: What is known of the facet that it shows; None for another map.
    """

    run: int
    entry: Entry
    pictures: Pictures
    curves: list[Curve]
    boundaries: list[float]
    seen: list[tuple[str, list[tuple[str, float]]]]
    samples: list[SampleRow]
    facet: FacetView | None


@dataclass(frozen=True)
class ClassView:
    """A class and its maps of all runs.

    Args:
        anchor: The end of a link to it.
        index, name: Those of the first run that has it.
        maps: Of all runs.
        slots: What the grid shows: of each run the map with the lowest seed, or None.
        z: Its greatest z in any scan; None if it was not scanned.
        outlier_in: Names of the runs whose scan found it to be an outlier.
        diffs: How much it differs between two of the runs, for each pair that was compared.
    """

    anchor: str
    index: int
    name: str
    maps: list[MapView]
    slots: list[MapView | None]
    z: float | None
    outlier_in: list[str]
    diffs: list[ClassDiff | None]


def rows_of(
    runs: Sequence[Run], views: Sequence[RunView], diffs: Sequence[DiffView], on_map: OnProgress | None
) -> list[ClassView]:
    """Every class of any run, by index, with the maps of all runs.

    Raises:
        AgnoscoError: A map is missing or damaged.
    """
    total = sum(len(run.entries) for run in runs)
    fit = _fit(runs, total)
    also_seen = [also_in(run.entries, view.scores) for run, view in zip(runs, views, strict=True)]
    done = 0

    def drawn(part: Part) -> MapView:
        nonlocal done
        place, entry = part
        arrays, stages = runs[place].arrays(entry.index, entry.seed), entry.stages
        drawings = pictures(arrays, stages, fit), curves(arrays, stages, norm=entry.norm), boundaries(arrays)
        done += 1
        if on_map is not None:
            on_map(done, total)
        folder, view = runs[place].folder, views[place]
        samples, facet = sample_rows(folder, entry, view.samples, fit), facet_of(folder, entry, view, fit)
        seen = also_seen[place].get(entry.stem, [])
        return MapView(place, entry, *drawings, seen=seen, samples=samples, facet=facet)

    rows: dict[str, ClassView] = {}
    for (index, name), parts in sorted(aligned(runs).items(), key=lambda item: item[0][0]):
        maps = [drawn(part) for part in parts]
        anchor = f"{index}-{slug(name)}"
        while anchor in rows:
            anchor += "-"
        first = {view.run: view for view in reversed(maps)}
        slots = [first.get(place) for place in range(len(runs))]
        z, outlier_in = _standing(views, parts)
        changed = [diff.row_of((place, entry.index) for place, entry in parts) for diff in diffs]
        rows[anchor] = ClassView(anchor, index, one_line(name, limit=NAME_LIMIT), maps, slots, z, outlier_in, changed)
    return list(rows.values())


def _standing(views: Sequence[RunView], parts: Sequence[Part]) -> tuple[float | None, list[str]]:
    """The greatest z of a class in any scan, and the names of the runs in whose scan it is the outlier."""
    scores, outlier_in = [], []
    for place, index in dict.fromkeys((place, entry.index) for place, entry in parts):
        scan = views[place].scan
        if scan is None:
            continue
        scores += [row.z for row in scan.screened_classes if row.index == index and row.z is not None]
        if scan.verdict.outcome == FOUND and scan.verdict.label == index:
            outlier_in.append(views[place].name)
    return max(scores, default=None), outlier_in


def aligned(runs: Sequence[Run]) -> dict[Class, list[Part]]:
    """Entries of all runs by class: those of the same index and name, or else of the same name alone."""
    rows: dict[Class, list[Part]] = {}
    for place, run in enumerate(runs):
        classes = list(dict.fromkeys((entry.index, entry.name) for entry in run.entries))
        homes = _homes(list(rows), classes)
        for entry in run.entries:
            rows.setdefault(homes[entry.index, entry.name], []).append((place, entry))
    return rows


def _homes(rows: Sequence[Class], classes: Sequence[Class]) -> dict[Class, Class]:
    """The row of each class of a run, no row twice; rows with the same index are given away first."""
    same = {(index, spelling(name)): (index, name) for index, name in rows}
    homes = {key: same[key[0], spelling(key[1])] for key in classes if (key[0], spelling(key[1])) in same}
    for key in classes:
        if key not in homes:
            taken = set(homes.values())
            alike = [row for row in rows if spelling(row[1]) == spelling(key[1]) and row not in taken]
            homes[key] = alike[0] if len(alike) == 1 else key
    return homes


def _fit(runs: Sequence[Run], total: int) -> Fit:
    """Size and quality of the pictures, estimated from some maps of the first run and the last."""
    tried = [
        (run.arrays(entry.index, entry.seed), entry.stages)
        for run in {id(run): run for run in (runs[0], runs[-1])}.values()
        for entry in run.entries[:: max(1, len(run.entries) // TRIED)][:TRIED]
    ]
    return fit_for(tried, total)
