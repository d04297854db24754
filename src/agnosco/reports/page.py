"""The report of runs: one HTML file.

Its contents come from run folders alone; no model is loaded. Text from outside (class names, file names) is escaped by
Jinja2, and the page's policy (``default-src 'none'``) lets nothing run or load but what the page itself holds.
"""

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from typing import Any

from ..backdoor.record import conclusion
from ..errors import AgnoscoError
from ..io.storage import Folder, Place, folder_and_name, write_whole
from ..runs.run import Run
from ..text import without_password
from ..types import OnProgress
from .classes import rows_of
from .pictures import HEIGHT, WIDTH
from .runs import CONTROLS, DiffView, Matrix, RunView, diffs_of, names_of, view_of
from .target import file_at

FILE = "report.html"

TEXT_LIMIT = 1000
"""Characters that are shown of any text from outside."""

_DOCTYPE = b"<!doctype html>"


@dataclass(frozen=True)
class Report:
    """A report about to be drawn: all files of the runs have been read, but for their maps.

    ``target`` is the file to write; None for :data:`FILE` in the first run's folder.
    """

    runs: Sequence[Run]
    views: Sequence[RunView]
    target: Place | None
    diffs: Sequence[DiffView] = ()

    def write(self, on_map: OnProgress | None = None) -> tuple[str, int]:
        """Draw the page and write it; returns its full name and its size in bytes.

        Raises:
            AgnoscoError: A map is missing or damaged, or the file cannot be written.
        """
        content = self.html(on_map).encode(errors="replace")  # names may hold halves of surrogate pairs
        name = self.runs[0].folder.write(FILE, content) if self.target is None else write_whole(self.target, content)
        return name, len(content)

    def html(self, on_map: OnProgress | None = None) -> str:
        """The page."""
        style, script = (
            files("agnosco.reports").joinpath(name).read_text(encoding="utf-8") for name in ("app.css", "app.js")
        )
        rows = rows_of(self.runs, self.views, self.diffs, on_map)
        return _environment().get_template("page.html.j2").render(
            title=" and ".join(dict.fromkeys(run.settings.model.name for run in self.runs)),
            runs=self.views,
            small=self.runs[0].settings.model.shape[2] < 64,
            models=len({run.settings.model.name for run in self.runs}),
            classes=rows,
            stages=max((list(view.pictures.stages) for row in rows for view in row.maps), key=len),
            glows=any(view.pictures.xi for row in rows for view in row.maps),
            veils=any(view.pictures.veil for row in rows for view in row.maps),
            matrix=Matrix.of(self.views),
            diffs=self.diffs,
            conclusion=conclusion,
            style=style,
            script=script,
            policy=_policy(style, script),
            plot=(WIDTH, HEIGHT),
            version=metadata.version("agnosco"),
        )  # fmt: skip


def report(
    *runs: Run | Place | Folder,
    out: Place | None = None,
    scans: Sequence[Place] = (),
    with_samples: bool = False,
    on_map: OnProgress | None = None,
) -> str:
    """Write an HTML file that shows runs side by side, aligned by class, and return its path.

    Args:
        runs: Runs, their folders or URLs; their scores, sanity checks, scans and differences are shown too.
        out: The file to write, which ends in ``.html``, or a folder; ``report.html`` in the first run's folder if None.
        scans: Folders or files of scans that are not in their runs: the first of the first run, and so on.
        with_samples: Whether to show the samples that the runs have kept; they are somebody's images.
        on_map: Called after every map with the number of maps drawn, and their total.

    Raises:
        AgnoscoError: A folder is not a run, has no map, or is given twice; a file of a run is missing or damaged; a
            scan is of another network; or the file to write exists and is not an HTML page.

    Example:
        >>> from agnosco import report
        >>> report("agnosco-run")
        'agnosco-run/report.html'
    """
    folders = [run.folder if isinstance(run, Run) else run for run in runs]
    return opened(folders, out=out, scans=scans, with_samples=with_samples).write(on_map)[0]


def opened(
    paths: Sequence[Place | Folder],
    *,
    out: Place | None = None,
    scans: Sequence[Place] = (),
    with_samples: bool = False,
) -> Report:
    """A report of runs, not yet drawn: whatever is wrong with its arguments is reported first; see :func:`report`."""
    if not paths:
        raise AgnoscoError("a report needs a run", "give at least one run folder")
    if len(scans) > len(paths):
        raise AgnoscoError(f"{len(scans)} scans for {len(paths)} runs", "give one --scan for each run, in their order")
    runs = [Run.open(path) for path in paths]
    places = [run.folder.absolute("") for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise AgnoscoError(f"{run.folder.name!r} is given twice", "name each run once")
        run.check_maps()
    target = None if out is None else file_at(os.fspath(out), FILE)
    _check_target(runs[0].folder.absolute(FILE) if target is None else target)
    of_runs = [*scans, *[None] * (len(runs) - len(scans))]
    names = names_of(runs)
    views = [view_of(*each, with_samples=with_samples) for each in zip(runs, names, of_runs, strict=True)]
    if with_samples and not any(view.shows_samples for view in views):
        raise AgnoscoError(
            f"{runs[0].folder.name!r} has kept no samples",
            "agnosco map and facets keep some of a folder, a .tar or a data set that is not private; repeat it",
        )
    return Report(runs, views, target, diffs_of(runs, names))


def _check_target(target: str) -> None:
    """Make sure that nothing but an HTML page is overwritten."""
    if not target.lower().endswith((".html", ".htm")):
        raise AgnoscoError(
            f"{target!r} is not an HTML file", "name a file that ends in .html, or a folder with / at its end"
        )
    folder, name = folder_and_name(target)
    try:
        before = folder.read(name)
    except FileNotFoundError:
        return
    if not before.lstrip()[: len(_DOCTYPE)].lower() == _DOCTYPE:
        raise AgnoscoError(f"{without_password(target)!r} is not an HTML page", "choose another name with --out")


def _environment() -> Any:
    import jinja2  # here, because no other command needs it

    return jinja2.Environment(
        loader=jinja2.PackageLoader("agnosco", "reports"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip


def _shown(value: Any) -> Any:
    """Text without control characters, cut at :data:`TEXT_LIMIT`; markup, which agnosco made itself, as it is."""
    if type(value) is not str:
        return value
    clean = CONTROLS.sub("", value)
    return clean if len(clean) <= TEXT_LIMIT else clean[: TEXT_LIMIT - 1] + "…"


def _policy(style: str, script: str) -> str:
    """The page's content security policy: its own script, style and pictures, and nothing else."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src data:; style-src {source(style)}; script-src {source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
