"""``agnosco report``, ``agnosco card`` and ``agnosco demo``: write what others read, and show what agnosco does."""

from functools import partial
from typing import Annotated

import typer

from ..text import without_password
from .console import Output
from .options import JsonOption, QuietOption, RunFolder


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
        typer.Option(
            "--with-samples", help="Also show the sample images kept in the runs: check that you may share them."
        ),
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
        output.result({"report": without_password(path), "bytes": size})
    sent = "shows sample images: send it only if you may share them" if with_samples else "can be sent as it is"
    output.say(f"Wrote {path} ({size / 1e6:.1f} MB). Open it in a browser. It works offline and {sent}")


def card(
    context: typer.Context,
    run: RunFolder,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE.md|DIR/", help="File to write (default: card.md in the run folder)."),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(metavar="README.md", help="Put the section into this Markdown file, whose other text stays."),
    ] = None,
    classes: Annotated[int, typer.Option(min=1, help="Classes of which a picture is shown.")] = 12,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a section for a model card: pictures, figures, limits and fingerprints of a run, as Markdown.

    Every sentence comes from the run's records. Pictures go into the folder agnosco-pictures beside the file.
    """
    from ..reports.card import opened

    output = Output.of(context, quiet=quiet)
    path, pictures = opened(run, out=out, into=into, classes=classes).write()
    if as_json:
        output.result({"card": path, "pictures": pictures})
    output.say(f"Wrote {path} and {len(pictures)} pictures beside it")


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
