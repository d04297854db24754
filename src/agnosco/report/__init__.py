"""One HTML file for people who would rather look than read: it opens from disk, and asks nothing of the network.

What is in it comes from run folders alone; no model is loaded. Text from outside (class names, file names) is
escaped by Jinja2, and the page's own policy (``default-src 'none'``) lets nothing run or load but what it holds.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from importlib.resources import files
from typing import Any

from PIL import Image

from .. import sanity, transfer
from ..backdoor import scan as scanning
from ..backdoor.verdict import FOUND
from ..classifier import spelling
from ..concept import ConceptMap
from ..cycle import PRESETS, describe, preset
from ..errors import AgnoscoError
from ..manifest import Entry, slug, stem
from ..options import command_of
from ..storage import Folder, Place, at_once, write_whole
from ..store import MANIFEST, Run, one_line
from .curves import HEIGHT, WIDTH, Curve, boundaries, curves
from .pictures import Fit, Pictures, fit_for, pictures, uri

FILE = "report.html"

LONGEST = 200
"""Characters that are shown of a class name."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

TRIED = 6
"""Maps by which the size of pictures is chosen."""

OnMap = Callable[[int, int], None] | None

Class = tuple[int, str]
"""Index and name."""


@dataclass(frozen=True)
class MapView:
    """A map as the page shows it."""

    run: int
    seed: int
    probability: float
    nudge_success: float | None
    norm: float
    pictures: Pictures
    curves: list[Curve]
    boundaries: list[float]


@dataclass(frozen=True)
class ClassView:
    """A class and its maps of all runs.

    Args:
        anchor: What a link to it ends with.
        index, name: As the first run that has it calls it.
        maps: Of all runs.
        slots: One map of each run, that of the least seed, or None: what the grid shows.
        z: How far it stands out in the scan in which it stands out most; None if none looked at it.
        outlier_in: Runs whose scan found it to be an outlier, by name.
    """

    anchor: str
    index: int
    name: str
    maps: list[MapView]
    slots: list[MapView | None]
    z: float | None
    outlier_in: list[str]


@dataclass(frozen=True)
class RunView:
    """A run as the page shows it."""

    name: str
    facts: list[tuple[str, str]]
    command: str | None
    manifest: str
    scores: list[dict[str, Any]]
    sanity: dict[str, Any] | None
    sanity_picture: str | None
    scan: dict[str, Any] | None
    conclusion: list[str]
    scan_picture: str | None
    size: tuple[int, int]


def write(
    paths: Sequence[Place | Folder], *, out: Place | None = None, scans: Sequence[Place] = (), on_map: OnMap = None
) -> tuple[str, int]:
    """Write the report of some runs, aligned by class.

    Args:
        paths: Run folders, or URLs of some; scores, sanity results and a scan are shown where they lie in them.
        out: The file to write; ``report.html`` in the first run's folder if None.
        scans: Folders or files of scans, the first of the first run, and so on; where they lie elsewhere.
        on_map: Called after every map, with how many are drawn, and of how many.

    Returns:
        Where it is, and how many bytes it has.

    Raises:
        AgnoscoError: A folder is no run, has no map, or holds a damaged one; or the file cannot be written.
    """
    runs = [Run.open(path) for path in paths]
    for run in runs:
        if not run.entries:
            raise AgnoscoError(f"{run.folder.name!r} has no maps", "make some with agnosco map")
    content = html(runs, scans=scans, on_map=on_map).encode()
    written = runs[0].folder.write(FILE, content) if out is None else write_whole(out, content)
    return written, len(content)


def html(runs: Sequence[Run], *, scans: Sequence[Place] = (), on_map: OnMap = None) -> str:
    """The page; see :func:`write`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agnosco", "report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_without_controls,
    )  # fmt: skip
    style, script = (files(__name__).joinpath(name).read_text(encoding="utf-8") for name in ("app.css", "app.js"))
    views = [_run_view(run, scans[place] if place < len(scans) else None) for place, run in enumerate(runs)]
    views = [replace(view, name=name) for view, name in zip(views, _names(runs), strict=True)]
    return environment.get_template("page.html.j2").render(
        title=" and ".join(dict.fromkeys(run.settings["model"]["name"] for run in runs)),
        runs=views,
        models=len({run.settings["model"]["name"] for run in runs}),
        classes=_classes(runs, views, on_map),
        matrix=_matrix(views),
        style=style,
        script=script,
        policy=_policy(style, script),
        plot=(WIDTH, HEIGHT),
        version=metadata.version("agnosco"),
    )


def _without_controls(value: Any) -> Any:
    """Text as it may be shown in a terminal too, where somebody looks at the page's source."""
    return _CONTROLS.sub("", value) if type(value) is str else value


def _policy(style: str, script: str) -> str:
    """What the page may do: run its own script, have its own style, show its own pictures; nothing else."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src data:; style-src {source(style)}; script-src {source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


# -- runs --------------------------------------------------------------------------------------------


def _names(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart: the network; where that is not enough, its weights; or else the folder."""
    plain = [run.settings["model"]["name"] for run in runs]
    weighted = [
        f"{name}, {run.settings['model']['weights'] or 'own weights'}" for name, run in zip(plain, runs, strict=True)
    ]
    folders = [os.path.basename(run.folder.absolute("")) for run in runs]
    foldered = [f"{name}, {folder}" for name, folder in zip(plain, folders, strict=True)]
    return [
        next((names[place] for names in (plain, weighted) if names.count(names[place]) == 1), foldered[place])
        for place in range(len(runs))
    ]


def _run_view(run: Run, scan: Place | None) -> RunView:
    folder, name = (run.folder, scanning.FILE) if scan is None else _scan_at(os.fspath(scan))
    found = _json(folder, name, needed=scan is not None)
    if found is not None and "screened" not in found:
        raise AgnoscoError(f"{folder.at(name)!r} is no scan", "name what agnosco scan --out wrote")
    return RunView(
        name="",
        facts=_facts(run),
        command=command_of(run.settings, run.entries),
        manifest="data:application/json;base64," + base64.b64encode(run.folder.read(MANIFEST)).decode(),
        scores=transfer.kept_in(run),
        sanity=_sanity(_json(run.folder, sanity.FILE)),
        sanity_picture=_picture(run.folder, sanity.SHEET),
        scan=found,
        conclusion=scanning.conclusion(found) if found else [],
        scan_picture=_picture(folder, scanning.PICTURE) if found else None,
        size=tuple(run.settings["model"]["shape"][:0:-1]),  # type: ignore[arg-type]
    )


def _sanity(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What ``agnosco sanity`` found, as the page says it."""
    if found is None:
        return None
    return {
        "classes": found["classes"],
        "rows": sanity.compared(found),
        "labels": sanity.labels_in_words(found),
        "planted": sanity.planted_in_words(found),
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    """What a reader wants to know of a run, as words."""
    settings, entries = run.settings, run.entries
    model, samples, shape = settings["model"], settings["samples"], tuple(settings["model"]["shape"])
    seeds = sorted({entry["seed"] for entry in entries})
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items() if version)
    return [
        ("model", f"{model['name']}, {model['classes']} classes"),
        ("weights", f"{model['weights'] or 'own'}, fingerprint {model['fingerprint'][:16]}"),
        ("input", f"{shape[2]} × {shape[1]} px, mean {_plain(model['mean'])}, std {_plain(model['std'])}"),
        ("samples", f"{samples['source']}, {samples['count']} images, fingerprint {samples['fingerprint'][:16]}"),
        ("maps", f"{len(entries)} of {len({e['index'] for e in entries})} classes, seeds {_plain(seeds)}"),
        ("settings", f"{_preset(run)}: {describe(run.config, shape)}"),
        ("device", f"{settings['device']}, {settings['threads']} threads"),
        ("made", _when(run)),
        ("versions", versions),
    ]


def _preset(run: Run) -> str:
    """The name of the settings."""
    config = run.config
    for name in PRESETS:
        if replace(preset(name), precision=config.precision, compiled=config.compiled) == config:
            return f"preset {name}"
    return "no preset"


def _when(run: Run) -> str:
    """When the maps were made, by the clock of their files: a manifest holds no time."""
    times = sorted(at_once(lambda entry: run.folder.modified(f"maps/{stem(entry)}.safetensors"), run.entries))
    last = datetime.fromtimestamp(times[-1], UTC)
    took = f", the first {(times[-1] - times[0]) / 60:.0f} min before the last" if times[-1] - times[0] >= 60 else ""
    return f"{last:%Y-%m-%d %H:%M} UTC{took}"


def _plain(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _scan_at(place: str) -> tuple[Folder, str]:
    """The folder and the name of a scan, of which the folder or the file is given."""
    parent, name = os.path.split(place)
    if name.endswith(".json") and not Folder.of(place).exists(scanning.FILE):
        return Folder.of(parent or "."), name
    return Folder.of(place), scanning.FILE


def _json(folder: Folder, name: str, *, needed: bool = False) -> Any:
    """What a JSON file holds; None if there is none and none is needed."""
    try:
        return json.loads(folder.read(name).decode())
    except FileNotFoundError as error:
        if not needed:
            return None
        raise AgnoscoError(f"there is no {folder.at(name)!r}", "name what agnosco scan --out wrote") from error
    except ValueError as error:
        raise AgnoscoError(f"cannot read {folder.at(name)!r}", "remove it, or make it again") from error


def _picture(folder: Folder, name: str) -> str | None:
    try:
        with Image.open(io.BytesIO(folder.read(name))) as picture:
            return uri(picture.convert("RGB"), 1600, 80)
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class Matrix:
    """M_score of the maps of every run that was judged, by every network that judged one.

    Args:
        targets: Names of the judges, one for each column.
        rows: Name of a run, and what each judge said of it, or None.
        nudged, diverse: Whether any judge was given images to nudge, and any run several seeds.
    """

    targets: list[str]
    rows: list[tuple[str, list[dict[str, Any] | None]]]
    nudged: bool
    diverse: bool


def _matrix(views: Sequence[RunView]) -> Matrix:
    judged = [(view.name, {one["target"]: one for one in view.scores}) for view in views if view.scores]
    targets = list(dict.fromkeys(target for _, scores in judged for target in scores))
    scores = [one for view in views for one in view.scores]
    return Matrix(
        targets,
        rows=[(name, [of.get(target) for target in targets]) for name, of in judged],
        nudged=any(one["nudge_success"] is not None for one in scores),
        diverse=any(one["diversity"] is not None for one in scores),
    )


# -- classes -----------------------------------------------------------------------------------------


def _classes(runs: Sequence[Run], views: Sequence[RunView], on_map: OnMap) -> list[ClassView]:
    """Every class of any run, by index, with the maps of all runs."""
    aligned = _aligned(runs)
    total = sum(len(run.entries) for run in runs)
    fit = _fit(runs, total)
    done, taken, found = 0, set(), []
    for (index, name), parts in sorted(aligned.items(), key=lambda item: item[0][0]):
        maps = []
        for place, entry in parts:
            maps.append(_map_view(place, runs[place].map(entry["index"], entry["seed"]), entry, fit))
            done += 1
            if on_map is not None:
                on_map(done, total)
        anchor = f"{index}-{slug(name)}"
        while anchor in taken:
            anchor += "-"
        taken.add(anchor)
        z, outlier_in = _standing(views, parts)
        first = {one.run: one for one in reversed(maps)}
        found.append(
            ClassView(
                anchor,
                index,
                one_line(name, limit=LONGEST),
                maps,
                [first.get(at) for at in range(len(runs))],
                z,
                outlier_in,
            )
        )
    return found


def _standing(views: Sequence[RunView], parts: Sequence[tuple[int, Entry]]) -> tuple[float | None, list[str]]:
    """How far a class stands out in the scan in which it stands out most, and the runs in which it is the outlier."""
    scores, outlier_in = [], []
    for place, index in dict.fromkeys((place, entry["index"]) for place, entry in parts):
        scan = views[place].scan
        if scan is None:
            continue
        rows = [row for row in scan["classes"] if row["index"] == index]
        scores += [seen["z"] for row in rows for seen in row["screens"].values()]
        if scan["verdict"]["outcome"] == FOUND and scan["verdict"]["label"] == index:
            outlier_in.append(views[place].name)
    return max(scores, default=None), outlier_in


def _aligned(runs: Sequence[Run]) -> dict[Class, list[tuple[int, Entry]]]:
    """Entries of all runs by class: the same index and name, or else the same name, which may have another index."""
    rows: dict[Class, list[tuple[int, Entry]]] = {}
    for place, run in enumerate(runs):
        classes = list(dict.fromkeys((entry["index"], entry["class"]) for entry in run.entries))
        homes = _homes(list(rows), classes)
        for entry in run.entries:
            rows.setdefault(homes[entry["index"], entry["class"]], []).append((place, entry))
    return rows


def _homes(rows: Sequence[Class], classes: Sequence[Class]) -> dict[Class, Class]:
    """The row of each class of a run, no row of two; first come those that have an index in common with theirs."""
    homes = {one: row for one in classes for row in rows if row[0] == one[0] and spelling(row[1]) == spelling(one[1])}
    for one in classes:
        if one not in homes:
            taken = set(homes.values())
            alike = [row for row in rows if spelling(row[1]) == spelling(one[1]) and row not in taken]
            homes[one] = alike[0] if len(alike) == 1 else one
    return homes


def _fit(runs: Sequence[Run], total: int) -> Fit:
    """How large pictures may be, judged by some maps of the first run and the last."""
    tried = [
        run.map(entry["index"], entry["seed"])
        for run in {id(run): run for run in (runs[0], runs[-1])}.values()
        for entry in run.entries[:: max(1, len(run.entries) // TRIED)][:TRIED]
    ]
    return fit_for(tried, total)


def _map_view(place: int, concept: ConceptMap, entry: Entry, fit: Fit) -> MapView:
    return MapView(
        run=place,
        seed=concept.seed,
        probability=concept.probability,
        nudge_success=entry["nudge_success"],
        norm=entry["norm"],
        pictures=pictures(concept, fit),
        curves=curves(concept),
        boundaries=boundaries(concept),
    )
