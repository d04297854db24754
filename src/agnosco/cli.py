"""The commands of ``agnosco``: options in, one call into the library, words out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import __version__, demo, doctor, sanity, zoo
from .classifier import Classifier
from .console import Output
from .errors import AgnoscoError
from .jobs import Finished, seconds_per_map
from .options import chosen_classes, chosen_config, chosen_samples, model_and_weights, numbers
from .samples import Samples
from .store import Run, check_target
from .transfer import SCORES, Judgement, judge, keep, table


class Commands(TyperGroup):
    """The group of commands, with one way for everything that goes wrong."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command and exit."""
        output = Output()
        options |= {"prog_name": "agnosco", "standalone_mode": False, "obj": output}
        sys.exit(output.run(lambda: self._called(*args, **options)))

    def _called(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except typer.Abort as error:
            raise KeyboardInterrupt from error
        except Exception as error:
            told = getattr(error, "format_message", None)  # what Typer raises for wrong usage
            if told is None:
                raise
            command = getattr(getattr(error, "ctx", None), "command_path", "agnosco")
            raise AgnoscoError(told().rstrip("."), f"see {command} --help") from error


app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)
main = app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agnosco {__version__}")
        raise typer.Exit()


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """See what an image classifier has learned to recognise as each of its classes."""


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no remarks.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute.")]
Mean = Annotated[str | None, typer.Option(metavar="R,G,B", help="Mean that the model expects subtracted.")]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="Deviation that it expects divided out.")]
Labels = Annotated[Path | None, typer.Option(help="Class names: one per line, or a JSON list.")]
TrustCode = Annotated[bool, typer.Option("--trust-code", help="Allow python:FILE.py, which is run.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, made by agnosco map.")]


@app.command("map")
def map_(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help=zoo.FORMS)],
    classes: Annotated[
        list[str] | None, typer.Argument(metavar="[CLASS]...", help="Indices or names; none: all.", show_default=False)
    ] = None,
    *,
    weights: Annotated[Path | None, typer.Option(help="Safetensors file; without it, the model's own weights.")] = None,
    samples: Annotated[str, typer.Option(metavar="DIR|leaves|noise", help="Images to average over.")] = "leaves",
    size: Annotated[int | None, typer.Option(min=1, help="Height and width; the model's own otherwise.")] = None,
    preset: Annotated[
        str, typer.Option(metavar="paper|quick|best|draft", help="The settings to begin with.")
    ] = "quick",
    coordinates: Annotated[str | None, typer.Option(metavar="pixel|data|spectral", help="Where steps live.")] = None,
    views: Annotated[str | None, typer.Option(metavar="as-is|crops", help="How nudged images are seen.")] = None,
    ball: Annotated[str | None, typer.Option(metavar="l2|sparse|auto", help="What bounds the map.")] = None,
    loss: Annotated[str | None, typer.Option(metavar="cross-entropy|odds|logit", help="What a step descends.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of Algorithm 1, in each cycle.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    radius: Annotated[float | None, typer.Option(help="L2 norm of the map at 3 x 224 x 224.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Maps of every class, with seeds from --seed on.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    device: Device = "auto",
    precision: Annotated[
        str | None, typer.Option(metavar="auto|float32|bfloat16", help="Of the network; auto: the device's fastest.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the network first: a minute, for many maps on a GPU.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run folder.")] = Path("agnosco-run"),
    mean: Mean = None,
    std: Std = None,
    labels: Labels = None,
    channels: Annotated[int | None, typer.Option(min=1, max=3, help="1 for grey, 3 for RGB.")] = None,
    features: Annotated[str | None, typer.Option(help="Submodule that the refinement looks at.")] = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make the maps of some classes, or of all."""
    output: Output = context.obj
    output.quiet = quiet
    check_target(out)
    config = chosen_config(
        preset, coordinates=coordinates, views=views, ball=ball, loss=loss, steps=steps, batch=batch,
        radius=radius, precision=precision, compiled=compiled,
    )  # fmt: skip
    classifier = zoo.load(
        model, weights=weights, size=size, mean=numbers(mean, "--mean"), std=numbers(std, "--std"), channels=channels,
        labels=labels, features=features, device=device, trust_code=trust_code,
    )  # fmt: skip
    wanted = chosen_classes(classifier, classes)
    images = _read(output, samples, classifier)
    run = Run.create(out, classifier=classifier, samples=images, config=config, weights=weights)
    if samples == "leaves":
        output.say("Samples: dead leaves, which need no data. Images of the model's own kind: --samples DIR")
    if not classes:
        output.say("No class given, so all of them.")
        count = len(wanted) * runs
        output.say_how_long(seconds_per_map(classifier, images, config, count=count), count)
    finished = output.make(run, classifier, images, wanted, seeds=range(seed, seed + runs))
    if as_json:
        output.result({"run": str(out), "maps": [_summary(run, one) for one in finished]})


@app.command("score")
def score_(
    context: typer.Context,
    run: RunFolder,
    target: Annotated[
        list[str],
        typer.Option(metavar="MODEL[=WEIGHTS]", help="A network that judges: torchvision:NAME=FILE.safetensors ..."),
    ],
    samples: Annotated[
        str | None, typer.Option(metavar="DIR|leaves|noise", help="Images to nudge; of the run's own, the held-out.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Input size of the targets; the run's if left out.")] = None,
    device: Device = "auto",
    mean: Mean = None,
    std: Std = None,
    labels: Labels = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the pictures of a run to networks: do they name the classes?"""
    output: Output = context.obj
    output.quiet = quiet
    made = Run.open(run)
    kept: list[Judgement] = []
    for spec in target:
        classifier = _load_for(
            made, spec, size=size, mean=mean, std=std, labels=labels, device=device, trust_code=trust_code
        )
        images = None if samples is None else _read(output, samples, classifier)
        kept = keep(made, [judge(made, classifier, images=images)])  # what is judged stays, whatever comes next
        if all(label.isdecimal() for label in classifier.labels):
            output.say(f"{classifier.name} has no class names: classes are taken in the run's order (--labels)")
        if (classifier.mean, classifier.std) != tuple(tuple(made.settings["model"][name]) for name in ("mean", "std")):
            fed = f"mean {classifier.mean}, std {classifier.std}"
            output.say(f"{classifier.name} is fed with {fed}: change it with --mean, --std")
    output.result({"run": str(run), "targets": kept} if as_json else table(kept))
    output.say(f"Kept in {run / SCORES}. p: probability of the class; moved: share of images moved to it by the nudge.")
    if any(one["interval"] for one in kept):
        output.say("In brackets: 95 % bootstrap intervals over seeds, too narrow for few.")


@app.command("sanity")
def sanity_(
    context: typer.Context,
    run: RunFolder,
    model: Annotated[str, typer.Option(metavar="MODEL[=WEIGHTS]", help="The network that the run was made with.")],
    samples: Annotated[str, typer.Option(metavar="DIR|leaves|noise", help="The images that it was made with.")] = (
        "leaves"
    ),
    classes: Annotated[int, typer.Option(min=2, help="How many classes are mapped again at every level.")] = 3,
    device: Device = "auto",
    mean: Mean = None,
    std: Std = None,
    labels: Labels = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check that the maps of a run are the network's own: redrawn weights, labels, seeds, planted templates."""
    output: Output = context.obj
    output.quiet = quiet
    made = Run.open(run)
    features = made.settings["model"]["features"]
    classifier = _load_for(
        made, model, mean=mean, std=std, labels=labels, features=features, device=device, trust_code=trust_code
    )
    images = _read(output, samples, classifier)
    with output.steps() as on_step:
        found = sanity.check(made, classifier, images, classes=classes, on_step=on_step)
    output.result(found if as_json else sanity.table(found))
    output.say(f"Kept in {run / sanity.FILE}. Look at {run / sanity.SHEET}")


@app.command("demo")
def demo_(
    context: typer.Context,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run folder.")] = Path("agnosco-demo"),
    quiet: Quiet = False,
) -> None:
    """Train a small network on handwritten digits and picture its ten classes; needs no data and no network."""
    output: Output = context.obj
    output.quiet = quiet
    demo.run(out, output)


@app.command("doctor")
def doctor_(context: typer.Context, as_json: AsJson = False) -> None:
    """Show versions, devices, and what is missing."""
    found = doctor.examine()
    context.obj.result(found if as_json else doctor.in_words(found))


def _load_for(
    run: Run, spec: str, *, size: int | None = None, mean: str | None, std: str | None, **options: Any
) -> Classifier:
    """The network MODEL[=WEIGHTS], for images as the run's are."""
    model, weights = model_and_weights(spec)
    channels, height, width = run.settings["model"]["shape"]
    return zoo.load(
        model, weights=weights, size=size or (height, width), channels=channels,
        mean=numbers(mean, "--mean"), std=numbers(std, "--std"), **options,
    )  # fmt: skip


def _read(output: Output, source: str, classifier: Classifier) -> Samples:
    return output.read(lambda progress: chosen_samples(source, classifier.shape, progress=progress))


def _summary(run: Run, one: Finished) -> dict[str, Any]:
    kept = {key: one.entry[key] for key in ("class", "index", "seed", "probability")}
    picture = run.path.absolute() / one.entry["files"]["picture"]  # to be opened from any folder
    return kept | {"seconds": round(one.seconds, 3), "picture": str(picture)}
