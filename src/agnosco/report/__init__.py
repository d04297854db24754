"""One HTML file for people who would rather look than read: it opens from disk, and asks nothing of the network.

What is in it comes from run folders alone; no model is loaded. Text from outside (class names, file names) is
escaped by Jinja2, and the page's own policy (``default-src 'none'``) lets nothing run or load but what it holds.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from .. import sanity, transfer
from ..backdoor import scan as scanning
from ..classifier import spelling
from ..concept import ConceptMap
from ..cycle import PRESETS, describe, preset
from ..errors import AgnoscoError
from ..options import command_of
from ..store import MANIFEST, Entry, Run, one_line, slug, write_whole
from .curves import HEIGHT, WIDTH, Curve, boundaries, curves
from .pictures import Fit, Pictures, fit_for, pictures, uri

FILE = "report.html"

LONGEST = 200
"""Characters that are shown of a class name."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

TRIED = 6
"""Maps by which the size of pictures is chosen."""

OnMap = Callable[[int, int], None] | None


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
    """A class and its maps of all runs."""

    anchor: str
    index: int
    name: str
    maps: list[MapView]
    z: float | None

    @property
    def first(self) -> list[MapView]:
        """One map of each run, that of the least seed: what the grid shows."""
        return list({one.run: one for one in reversed(self.maps)}.values())[::-1]


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


def write(paths: Sequence[str | Path], *, out: Path, scans: Sequence[str | Path] = (), on_map: OnMap = None) -> Path:
    """Write the report of some runs, aligned by class.

    Args:
        paths: Run folders; scores, sanity results and a scan are shown where they lie in them.
        out: The file to write.
        scans: Folders or files of scans, the first of the first run, and so on; where they lie elsewhere.
        on_map: Called after every map, with how many are drawn, and of how many.

    Raises:
        AgnoscoError: A folder is no run, has no map, or holds a damaged one; or the file cannot be written.
    """
    runs = [Run.open(path) for path in paths]
    for run in runs:
        if not run.entries:
            raise AgnoscoError(f"{str(run.path)!r} has no maps", "make some with agnosco map")
    return write_whole(out, html(runs, scans=scans, on_map=on_map).encode())


def html(runs: Sequence[Run], *, scans: Sequence[str | Path] = (), on_map: OnMap = None) -> str:
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
        classes=_classes(runs, views, on_map),
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
    """What tells the runs apart: the network, its weights, and where that is not enough, the folder."""
    plain = [run.settings["model"]["name"] for run in runs]
    weights = [run.settings["model"]["weights"] or "own weights" for run in runs]
    weighted = [f"{name}, {own}" for name, own in zip(plain, weights, strict=True)]
    for names in (plain, weighted):
        if len(set(names)) == len(runs):
            return names
    return [f"{name}, {run.path.resolve().name}" for name, run in zip(plain, runs, strict=True)]


def _run_view(run: Run, scan: str | Path | None) -> RunView:
    folder = run.path if scan is None else Path(scan)
    found = _json(folder / scanning.FILE if folder.is_dir() else folder, needed=scan is not None)
    if found is not None and "screened" not in found:
        raise AgnoscoError(f"{str(folder)!r} is no scan", "name what agnosco scan --out wrote")
    return RunView(
        name="",
        facts=_facts(run),
        command=command_of(run.settings, run.entries),
        manifest="data:application/json;base64," + base64.b64encode((run.path / MANIFEST).read_bytes()).decode(),
        scores=transfer.kept_in(run),
        sanity=_json(run.path / sanity.FILE),
        sanity_picture=_picture(run.path / sanity.SHEET),
        scan=found,
        conclusion=scanning.conclusion(found) if found else [],
        scan_picture=_picture((folder if folder.is_dir() else folder.parent) / scanning.PICTURE) if found else None,
        size=tuple(run.settings["model"]["shape"][:0:-1]),  # type: ignore[arg-type]
    )


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
    times = sorted((run.path / entry["files"]["map"]).stat().st_mtime for entry in run.entries)
    last = datetime.fromtimestamp(times[-1], UTC)
    took = f", the first {(times[-1] - times[0]) / 60:.0f} min before the last" if times[-1] - times[0] >= 60 else ""
    return f"{last:%Y-%m-%d %H:%M} UTC{took}"


def _plain(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _json(path: Path, *, needed: bool = False) -> Any:
    """What a JSON file holds; None if there is none and none is needed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not needed:
            return None
        raise AgnoscoError(f"there is no {str(path)!r}", "name what agnosco scan --out wrote") from error
    except (OSError, ValueError) as error:
        raise AgnoscoError(f"cannot read {str(path)!r}", "remove it, or make it again") from error


def _picture(path: Path) -> str | None:
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        return uri(picture.convert("RGB"), 1600, 80)


# -- classes -----------------------------------------------------------------------------------------


def _classes(runs: Sequence[Run], views: Sequence[RunView], on_map: OnMap) -> list[ClassView]:
    """Every class of any run, by index, with the maps of all runs."""
    aligned = _aligned(runs)
    total = sum(len(run.entries) for run in runs)
    fit = _fit(runs, total)
    rows = views[0].scan["classes"] if views[0].scan else []
    z = {row["index"]: max(seen["z"] for seen in row["screens"].values()) for row in rows}
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
        found.append(ClassView(anchor, index, one_line(name, limit=LONGEST), maps, z.get(index)))
    return found


def _aligned(runs: Sequence[Run]) -> dict[tuple[int, str], list[tuple[int, Entry]]]:
    """Entries of all runs by class: the same index and name, or else the same name, which may have another index."""
    rows: dict[tuple[int, str], list[tuple[int, Entry]]] = {}
    for place, run in enumerate(runs):
        before = list(rows)
        for entry in run.entries:
            key = (entry["index"], entry["class"])
            if key not in rows:
                alike = [row for row in before if spelling(row[1]) == spelling(entry["class"])]
                exact = [row for row in alike if row[0] == entry["index"]]
                key = (exact or alike)[0] if exact or len(alike) == 1 else key
            rows.setdefault(key, []).append((place, entry))
    return rows


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
