"""What the page shows of a run besides its maps: name, facts, command, scores, sanity checks and scan."""

from __future__ import annotations

import io
import math
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup, escape
from PIL import Image

from ..backdoor import record as scanning
from ..errors import AgnoscoError
from ..evaluate import diff_record, facet_record, sample_record, sanity_record
from ..evaluate.diff_record import ClassDiff, DiffRecord
from ..evaluate.score_record import Judgement, read_scores, told_apart
from ..io.local import Local
from ..io.storage import Folder, Place, in_order
from ..method.config import describe
from ..runs import thumbnails
from ..runs.command import command_of, options_of
from ..runs.run import Run
from ..text import one_line, without_password
from .likeness import LikenessView, likeness_of
from .pictures import embedded, uri

SHORT_NAME_LIMIT = 80
"""Most characters of the name of a network, its weights or a folder."""

LAST_DATE = datetime(9999, 12, 31, tzinfo=UTC).timestamp()

LARGEST = 2**26
"""Most pixels of a picture in a run's folder; agnosco writes far fewer."""

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn the direction of writing: a name would turn round the number after it."""


@dataclass(frozen=True)
class RunView:
    """A run as the page shows it."""

    name: str
    facts: list[tuple[str, str]]
    command: Markup | None
    manifest: Markup
    scores: list[Judgement]
    likeness: LikenessView | None
    sanity: sanity_record.SanityRecord | None
    sanity_picture: Markup | None
    scan: scanning.ScanRecord | None
    scan_picture: Markup | None
    samples: sample_record.TypicalRecord | None
    facets: facet_record.FacetsRecord | None
    source: str
    shows_samples: bool


def view_of(run: Run, name: str, scan: Place | None, *, with_samples: bool = False) -> RunView:
    """A run as the page shows it; ``scan`` is the folder or file of its scan, if not in the run's folder.

    Raises:
        AgnoscoError: A file of the run is missing or damaged, or ``scan`` does not exist or is of another network.
    """
    if scan is None:
        folder, record = run.folder, own_scan(run)
    else:
        folder, file = _scan_at(os.fspath(scan))
        record = _scan_of(run, folder, file, hint="give one --scan for each run, in their order")
        if record is None:
            raise AgnoscoError(f"there is no {folder.at(file)!r}", "give a folder that agnosco scan --out wrote")
    command = command_of(run.settings, run.entries)
    scores = told_apart(read_scores(run))
    return RunView(
        name=name,
        facts=facts_of(run),
        command=None if command is None else escape(CONTROLS.sub("", command)),
        manifest=embedded("application/json", run.manifest),
        scores=scores,
        likeness=likeness_of(run, scores),
        sanity=sanity_record.read(run.folder),
        sanity_picture=_shown(run.folder, sanity_record.SHEET),
        scan=record,
        scan_picture=_shown(folder, scanning.PICTURE) if record else None,
        samples=sample_record.read(run.folder) if with_samples else None,
        facets=facet_record.read(run.folder),
        source=run.settings.samples.source,
        shows_samples=with_samples and bool(run.folder.names(thumbnails.FOLDER)),
    )


def names_of(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its network; if two are the same, with the weights; or else with the folder."""
    plain = [one_line(run.settings.model.name, limit=SHORT_NAME_LIMIT) for run in runs]
    weights = [one_line(run.settings.model.weights or "own weights", limit=SHORT_NAME_LIMIT) for run in runs]
    weighted = [", ".join(both) for both in zip(plain, weights, strict=True)]
    places = [without_password(run.folder.absolute("")).replace(os.sep, "/").split("/") for run in runs]
    depths = range(1, max(map(len, places)) + 1)
    depth = next((d for d in depths if len({tuple(place[-d:]) for place in places}) == len(runs)), depths[-1])
    foldered = [f"{name}, {'/'.join(place[-depth:])}" for name, place in zip(plain, places, strict=True)]
    return [
        next((names[place] for names in (plain, weighted) if names.count(names[place]) == 1), foldered[place])
        for place in range(len(runs))
    ]


def facts_of(run: Run) -> list[tuple[str, str]]:
    """Facts about a run, as names and values.

    Raises:
        AgnoscoError: The file of a map is missing.
    """
    *facts, versions = recorded_facts(run)
    return [*facts, ("files dated", _dates(run)), versions]


def recorded_facts(run: Run) -> list[tuple[str, str]]:
    """Facts that the run's manifest and entries hold, as names and values; the versions come last."""
    settings, entries = run.settings, run.entries
    model, samples, shape = settings.model, settings.samples, settings.model.shape
    seeds = sorted({entry.seed for entry in entries})
    versions = ", ".join(f"{name} {version}" for name, version in settings.versions.items() if version)
    return [
        ("model", f"{model.name}, {model.classes} classes"),
        *([("asked", f"{_asked(model.directions)} at {model.at}")] if model.at else []),
        ("weights", f"{model.weights or 'own'}, fingerprint {model.fingerprint[:16]}"),
        ("input", f"{shape[2]} × {shape[1]} px, mean {_plain(model.mean)}, std {_plain(model.std)}"),
        ("samples", f"{samples.source}, {samples.count} images, fingerprint {samples.fingerprint[:16]}"),
        ("maps", f"{len(entries)} of {len({e.index for e in entries})} classes, seeds {_plain(seeds)}"),
        ("settings", f"{_preset(run)}: {describe(run.config, shape)}"),
        ("device", f"{settings.device}, {settings.threads} threads"),
        ("versions", versions),
    ]


def _preset(run: Run) -> str:
    """The preset and the options that change it."""
    options = options_of(run.settings)
    if options is None:
        return "no preset"
    others = [f"{name} {value}" for name, value in options.items() if name not in ("preset", "precision", "compiled")]
    return f"preset {options['preset']}" + (f" with {', '.join(others)}" if others else "")


def _dates(run: Run) -> str:
    """First and last date of the maps' files; a manifest holds none. Unknown in a store that does not say."""
    try:
        times = list(in_order(lambda entry: run.folder.modified(f"maps/{entry.stem}.safetensors"), run.entries))
    except FileNotFoundError as error:
        raise AgnoscoError(
            f"a map of {run.folder.name!r} is missing: {os.path.basename(error.filename or str(error))}",
            "give the command that made the run again: it makes this map again",
        ) from error
    known = [time for time in times if not math.isnan(time)]
    if not known:
        return "unknown"
    calendar = (min(max(time, 0), LAST_DATE) for time in (min(known), max(known)))  # files may have any date
    first, last = (f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M}" for time in calendar)
    return f"{first} UTC" if first == last else f"{first} to {last} UTC"


def _asked(directions: str | None) -> str:
    return f"directions ({directions})" if directions else "channels"


def _plain(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def own_scan(run: Run) -> scanning.ScanRecord | None:
    """The scan in a run's folder; None if there is none, AgnoscoError if it is damaged or of another network."""
    return _scan_of(run, run.folder, scanning.FILE, hint="remove it, or scan this one")


def _scan_of(run: Run, folder: Folder, file: str, *, hint: str) -> scanning.ScanRecord | None:
    """The scan of a run's network in a file; None if there is no such file."""
    record = scanning.read(folder, file)
    if record is not None and record.model.fingerprint != run.settings.model.fingerprint:
        raise AgnoscoError(f"{folder.at(file)!r} is a scan of another network", hint)
    return record


def _scan_at(place: str) -> tuple[Folder, str]:
    """The folder and file name of a scan, given as a folder or a file."""
    parent, name = os.path.split(place)
    if name.endswith(".json") and not Folder.of(place).exists(scanning.FILE):
        return Folder.of(parent or "."), name
    return Folder.of(place), scanning.FILE


def _shown(folder: Folder, name: str) -> Markup | None:
    """A picture in the run's folder as the page shows it; None if there is none. Raises as :func:`picture_in`."""
    picture = picture_in(folder, name)
    return None if picture is None else uri(picture, 1600, 80)


def picture_in(folder: Folder, name: str) -> Image.Image | None:
    """A picture in a run's folder; None if there is none.

    AgnoscoError if it is a link, which might lead to a private file; not a picture; or too large.
    """
    hint = "remove it or create it again"
    if isinstance(folder, Local) and (folder.path / name).is_symlink():
        raise AgnoscoError(f"{folder.at(name)!r} is a link", hint)
    try:
        content = folder.read(name)
    except FileNotFoundError:
        return None
    try:
        width, height = struct.unpack(">II", content[16:24])  # of its first chunk: Pillow would warn first
        if content[12:16] == b"IHDR" and width * height > LARGEST:
            raise AgnoscoError(f"{folder.at(name)!r} has more than {LARGEST:,} pixels", hint)
        picture = Image.open(io.BytesIO(content), formats=["PNG"])
        if picture.size != (width, height):
            raise ValueError("its size is not that of its first chunk")
        return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise AgnoscoError(f"{folder.at(name)!r} is not a picture", hint) from error


@dataclass(frozen=True)
class DiffView:
    """Differences between the networks of two runs on the page.

    Args:
        title: Their names.
        places: Their numbers on the page, from 0.
        record: All classes, most changed first.
    """

    title: str
    places: tuple[int, int]
    record: DiffRecord

    def row_of(self, classes: Iterable[tuple[int, int]]) -> ClassDiff | None:
        """That of a class, given as the number of a run and the class's index there, for each run that has it."""
        indices = {index for place, index in classes if place == self.places[0]}
        return next((row for row in self.record.classes if row.index in indices), None)


def diffs_of(runs: Sequence[Run], names: Sequence[str]) -> list[DiffView]:
    """Differences between runs of the page, from the folders of the second ones; those of other maps are left out.

    Raises:
        AgnoscoError: The file of one is damaged or of another version.
    """
    found = [(place, diff_record.read(run.folder)) for place, run in enumerate(runs)]
    return [
        DiffView(f"{names[first]} and {names[second]}", (first, second), record)
        for second, record in found
        for first, run in enumerate(runs)
        if record is not None and first != second and record.is_of(run, runs[second])
    ]


@dataclass(frozen=True)
class Matrix:
    """M_score of each run by each network that judged it.

    Args:
        targets: Names of the networks, one for each column.
        rows: Name of each run, and each network's judgement of it, or None.
        perturbed, diverse: Whether any network has a targeted success rate, and any a diversity.
    """

    targets: list[str]
    rows: list[tuple[str, list[Judgement | None]]]
    perturbed: bool
    diverse: bool

    @classmethod
    def of(cls, views: Sequence[RunView]) -> Matrix:
        """The matrix of some runs."""
        judgements = told_apart([judgement for view in views for judgement in view.scores])
        names = {judgement.network: judgement.target for judgement in judgements}
        judged = [(view.name, {one.network: one for one in view.scores}) for view in views if view.scores]
        return cls(
            list(names.values()),
            rows=[(name, [of.get(network) for network in names]) for name, of in judged],
            perturbed=any(judgement.targeted_success_rate is not None for judgement in judgements),
            diverse=any(judgement.diversity is not None for judgement in judgements),
        )
