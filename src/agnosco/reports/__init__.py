"""One HTML file for people who would rather look than read: it opens from disk, and asks nothing of the network.

What is in it comes from run folders alone; no model is loaded. Text from outside (class names, file names) is
escaped by Jinja2, and the page's own policy (``default-src 'none'``) lets nothing run or load but what it holds.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from typing import Any

from ..errors import AgnoscoError
from ..io.local import Local
from ..io.storage import Folder, Place, write_whole
from ..runs.run import Run
from ..text import without_password
from .classes import OnMap, rows_of
from .curves import HEIGHT, WIDTH
from .runs import Matrix, RunView, names_of, view_of

FILE = "report.html"

LONGEST = 1000
"""Characters of a text from outside; what is longer is cut, wherever it stands."""

_DOCTYPE = b"<!doctype html>"
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Report:
    """A report about to be drawn: all that it tells of runs is read, but for their maps.

    Args:
        runs: The runs.
        views: How the page shows them.
        target: The file to write; None for :data:`FILE` in the first run's folder.
    """

    runs: Sequence[Run]
    views: Sequence[RunView]
    target: Place | None

    def write(self, on_map: OnMap = None) -> tuple[str, int]:
        """Draw it and write it; where it is, and how many bytes it has.

        Args:
            on_map: Called after every map, with how many are drawn, and of how many.

        Raises:
            AgnoscoError: A map is missing or damaged, or the file cannot be written.
        """
        content = self.html(on_map).encode()
        written = self.runs[0].folder.write(FILE, content) if self.target is None else write_whole(self.target, content)
        return written, len(content)

    def html(self, on_map: OnMap = None) -> str:
        """The page."""
        style, script = (files(__name__).joinpath(name).read_text(encoding="utf-8") for name in ("app.css", "app.js"))
        rows = rows_of(self.runs, self.views, on_map)
        return _environment().get_template("page.html.j2").render(
            title=" and ".join(dict.fromkeys(run.settings.model.name for run in self.runs)),
            runs=self.views,
            models=len({run.settings.model.name for run in self.runs}),
            classes=rows,
            stages=max((list(one.pictures.stages) for row in rows for one in row.maps), key=len),
            glows=any(one.pictures.xi for row in rows for one in row.maps),
            matrix=Matrix.of(self.views),
            style=style,
            script=script,
            policy=_policy(style, script),
            plot=(WIDTH, HEIGHT),
            version=metadata.version("agnosco"),
        )  # fmt: skip


def opened(paths: Sequence[Place | Folder], *, out: Place | None = None, scans: Sequence[Place] = ()) -> Report:
    """A report of some runs, aligned by class; whatever is wrong with them is said before maps are drawn.

    Args:
        paths: Run folders, or URLs of some; scores, sanity results and a scan are shown where they lie in them.
        out: The file to write, which ends in ``.html``, or a folder; ``report.html`` in the first run's folder if None.
        scans: Folders or files of scans, the first of the first run, and so on; where they lie elsewhere.

    Raises:
        AgnoscoError: A folder is no run, has no map, or is given twice; a scan or another file is none; or the file
            to write is something else than a page.
    """
    if len(scans) > len(paths):
        raise AgnoscoError(f"{len(scans)} scans for {len(paths)} runs", "give one --scan for each run, in their order")
    runs = [Run.open(path) for path in paths]
    places = [run.folder.absolute("") for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise AgnoscoError(f"{run.folder.name!r} is given twice", "name each run once")
        if not run.entries:
            raise AgnoscoError(f"{run.folder.name!r} has no maps", "make some with agnosco map")
    target = None if out is None else _target(os.fspath(out))
    _check_target(runs[0].folder.absolute(FILE) if target is None else target)
    of_runs = [*scans, *[None] * (len(runs) - len(scans))]
    views = [view_of(*each) for each in zip(runs, names_of(runs), of_runs, strict=True)]
    return Report(runs, views, target)


def write(
    paths: Sequence[Place | Folder], *, out: Place | None = None, scans: Sequence[Place] = (), on_map: OnMap = None
) -> tuple[str, int]:
    """Write the report of some runs; see :func:`opened` and :meth:`Report.write`."""
    return opened(paths, out=out, scans=scans).write(on_map)


def _target(out: str) -> str:
    """The file to write; of a folder, the one of that name in it."""
    if out.endswith(("/", os.sep)) or (isinstance(Folder.of(out), Local) and os.path.isdir(out)):
        return f"{out.rstrip('/' + os.sep)}/{FILE}"
    return out


def _check_target(target: str) -> None:
    """Make sure that nothing is lost that is no page."""
    if not target.lower().endswith((".html", ".htm")):
        raise AgnoscoError(f"{target!r} is no HTML file", "give a name that ends in .html, or a folder that ends in /")
    folder, name = os.path.split(target)
    try:
        before = Folder.of(folder or ".").read(name)
    except FileNotFoundError:
        return
    if not before.lstrip()[: len(_DOCTYPE)].lower() == _DOCTYPE:
        raise AgnoscoError(f"{without_password(target)!r} is there, and no HTML page", "choose another name with --out")


# -- the page ----------------------------------------------------------------------------------------


def _environment() -> Any:
    import jinja2  # which no other command needs

    return jinja2.Environment(
        loader=jinja2.PackageLoader("agnosco", "reports"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip


def _shown(value: Any) -> Any:
    """Text as it may be shown in a terminal too, where somebody looks at the page's source, and no longer than that.

    What agnosco has made itself (pictures, curves, a command) is markup, and stays whole.
    """
    if type(value) is not str:
        return value
    clean = _CONTROLS.sub("", value)
    return clean if len(clean) <= LONGEST else clean[: LONGEST - 1] + "…"


def _policy(style: str, script: str) -> str:
    """What the page may do: run its own script, have its own style, show its own pictures; nothing else."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src data:; style-src {source(style)}; script-src {source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
