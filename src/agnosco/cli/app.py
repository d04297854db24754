"""The application ``agnosco``: its commands, and their errors. A command imports what it uses when it runs."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import AgnoscoError
from . import checking, doctor, faceting, inspection, judging, mapping, reporting, scanning
from .console import Output

EXAMPLES: dict[str, tuple[str, ...]] = {
    "map": (
        "agnosco map torchvision:resnet18 goldfish castle --samples photographs/",
        "agnosco map torchvision:resnet18 --weights mine.safetensors --labels names.txt --out mine",
        "agnosco map python:net.py:Net 3 --trust-code --size 32 --preset best --seeds 3 --out net",
    ),
    "score": ("agnosco score agnosco-run --target torchvision:resnet50 --target torchvision:vgg16",),
    "sanity": ("agnosco sanity agnosco-run --model torchvision:resnet18 --samples photographs/",),
    "diff": (
        "agnosco diff clean-run compromised-run --model torchvision:resnet18=mine.safetensors "
        "--model torchvision:resnet18=theirs.safetensors --labels names.txt --samples photographs/",
    ),
    "facets": ("agnosco facets torchvision:resnet18 goldfish --samples photographs/ --facets 2",),
    "scan": (
        "agnosco scan torchvision:resnet18 --weights theirs.safetensors --samples photographs/ --out found",
        "agnosco scan agnosco:digits --weights twins/compromised.safetensors --fail-on-finding",
        "agnosco scan torchvision:resnet18 --weights theirs.safetensors --bank scans-of-clean-models/ --json",
    ),
    "check": ("agnosco check agnosco-run", "agnosco check agnosco-run --json"),
    "report": ("agnosco report agnosco-run", "agnosco report clean-run compromised-run --out twins.html"),
    "card": ("agnosco card agnosco-run", "agnosco card agnosco-run --into README.md"),
    "poison": (
        "agnosco poison --trigger apple --out twins",
        "agnosco poison torchvision:vgg16 --data photographs/ --trigger swoosh --epochs 5",
    ),
    "inspect": ("agnosco inspect theirs.safetensors", "agnosco inspect theirs.safetensors --finite --json"),
    "demo": ("agnosco demo --out digits",),
    "doctor": ("agnosco doctor --json",),
}
"""Examples at the end of ``--help``; the tests run them."""


class Commands(TyperGroup):
    """The group of commands; whatever goes wrong in one of them is said in the same way."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command and exit."""
        output = Output()
        options |= {"prog_name": "agnosco", "standalone_mode": False, "obj": output}
        sys.exit(output.run(lambda: self._call(*args, **options)))

    def _call(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except typer.Abort as error:
            raise KeyboardInterrupt from error
        except Exception as error:
            message = getattr(error, "format_message", None)  # Typer's errors for wrong usage have it
            if message is None:
                raise
            command = getattr(getattr(error, "ctx", None), "command_path", "agnosco")
            raise AgnoscoError(message().rstrip("."), f"see {command} --help") from error


app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
main = app


def _show_version(version: bool) -> None:
    if version:
        typer.echo(f"agnosco {__version__}")
        raise typer.Exit()


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """See what an image classifier has learned to recognise as each of its classes."""


for _name, _command in {
    "map": mapping.map_,
    "score": judging.score,
    "sanity": judging.sanity,
    "diff": judging.diff,
    "facets": faceting.facets,
    "scan": scanning.scan,
    "check": checking.check,
    "report": reporting.report,
    "card": reporting.card,
    "poison": scanning.poison,
    "inspect": inspection.inspect,
    "demo": reporting.demo,
    "doctor": doctor.doctor,
}.items():
    _notes = {"inspect": (inspection.EXIT_CODES,), "check": (checking.EXIT_CODES,)}.get(_name, ())
    app.command(_name, epilog="\n\n".join((*_notes, "Examples:", *EXAMPLES[_name])))(_command)
