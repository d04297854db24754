"""``agnosco report`` and ``agnosco demo``: write a page, and show what agnosco does."""

from functools import partial
from typing import Annotated

import typer

from .console import Output
from .options import JsonOption, QuietOption


def report(
    context: typer.Context,
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Run folders, shown side by side.", show_default=False)
    ],
    scan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR", help="Folder of a scan that is not in its run folder; give one per run, in the same order."
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE.html|DIR/", help="File to write (default: report.html in the first run)."),
    ] = None,
    with_samples: Annotated[
        bool,
        typer.Option("--with-samples", help="Show the samples that the runs have kept: they are somebody's images."),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write an HTML file that shows the maps, scores, checks and scans of runs.

    It is a single file that works offline. Without --with-samples, it shows at most three samples, and only if there is
    a scan.png.
    """
    from ..reports import page

    output = Output.of(context, quiet=quiet)
    opened = page.opened(runs, out=out, scans=scan or (), with_samples=with_samples)
    with output.bar() as show:
        path, size = opened.write(partial(show, "drawing the report"))
    if as_json:
        output.result({"report": path, "bytes": size})
    output.say(f"Wrote {path} ({size / 1e6:.1f} MB). Open it in a browser. It works offline and can be sent as it is")


def demo(
    context: typer.Context,
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder to write: a path or a URL.")] = "agnosco-demo",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train two small networks on handwritten digits; map and scan both.

    One of them has a backdoor. Takes one to three minutes and downloads nothing.
    """
    from ..io.storage import Folder
    from ..reports.page import FILE
    from . import demo

    output = Output.of(context, quiet=quiet)
    runs = demo.run(out, output)
    if as_json:
        output.result({"report": Folder.of(out).at(FILE), "runs": [run.folder.name for run in runs]})
