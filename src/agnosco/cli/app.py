"""The commands of ``agnosco``: options in, one call into the library, words out."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__, reports
from ..backdoor import scan as scanning
from ..backdoor.poison import in_words as poisoned_in_words
from ..backdoor.poison import poison
from ..backdoor.scan import ScanConfig
from ..backdoor.train import Attack, Training
from ..backdoor.triggers import NAMES as TRIGGERS
from ..backdoor.triggers import PLACES, trigger_of
from ..backdoor.verdict import FOUND
from ..data.datasets import Labelled, digits, from_class_folders
from ..data.samples import Samples
from ..errors import AgnoscoError
from ..evaluate import sanity
from ..evaluate.transfer import SCORES, Judgement, judge, keep, table
from ..io.storage import Folder
from ..models import loading
from ..models.classifier import Classifier
from ..models.fitting import FORMS
from ..runs.cluster import connected
from ..runs.command import chosen_config
from ..runs.jobs import Finished, seconds_per_map
from ..runs.manifest import HELD_OUT, SPLIT_SEED
from ..runs.run import MANIFEST, Run, check_target
from ..text import without_password
from ..types import Shape
from . import demo, doctor, inspection
from .console import Output, duration
from .options import chosen_classes, chosen_samples, model_and_weights, numbers


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


_EXAMPLES: dict[str, tuple[str, ...]] = {
    "map": (
        "agnosco map torchvision:resnet18 goldfish castle --samples photographs/",
        "agnosco map torchvision:resnet18 --weights mine.safetensors --labels names.txt --out mine",
        "agnosco map python:net.py:Net 3 --trust-code --size 32 --preset best --runs 3 --out net",
    ),
    "score": ("agnosco score agnosco-run --target torchvision:resnet50 --target torchvision:vgg16",),
    "sanity": ("agnosco sanity agnosco-run --model torchvision:resnet18 --samples photographs/",),
    "scan": (
        "agnosco scan torchvision:resnet18 --weights theirs.safetensors --samples photographs/ --out agnosco-run",
        "agnosco scan agnosco:digits --weights twins/compromised.safetensors --fail-on-finding",
        "agnosco scan torchvision:resnet18 --weights theirs.safetensors --bank scans-of-clean-ones/ --json",
    ),
    "report": (
        "agnosco report agnosco-run",
        "agnosco report clean-run compromised-run --out twins.html",
    ),
    "poison": (
        "agnosco poison --trigger apple --out twins",
        "agnosco poison torchvision:vgg16 --data photographs/ --trigger swoosh --epochs 5",
    ),
    "inspect": ("agnosco inspect theirs.safetensors", "agnosco inspect theirs.safetensors --finite --json"),
    "demo": ("agnosco demo --out digits",),
    "doctor": ("agnosco doctor --json",),
}
EXAMPLES = {name: "\n\n".join(("Examples:", *lines)) for name, lines in _EXAMPLES.items()}
"""What ``--help`` ends with."""

app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
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


FINDING = 3
"""What ``agnosco scan --fail-on-finding`` exits with where it found something."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no remarks.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute.")]
Mean = Annotated[str | None, typer.Option(metavar="R,G,B", help="Mean that the model expects subtracted.")]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="Deviation that it expects divided out.")]
Labels = Annotated[Path | None, typer.Option(help="Class names: one per line, or a JSON list.")]
TrustCode = Annotated[bool, typer.Option("--trust-code", help="Allow python:FILE.py, which is run.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Open .pt weights too, in a limited process; see docs/security.md.")
]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, made by agnosco map; a URL as well.")]


@app.command("map", epilog=EXAMPLES["map"])
def map_(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help=FORMS)],
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
    parameterization: Annotated[
        str | None, typer.Option(metavar="pixel|data|spectral", help="Where steps live.")
    ] = None,
    transforms: Annotated[
        str | None, typer.Option(metavar="identity|crops", help="How nudged images are seen.")
    ] = None,
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
    cluster: Annotated[
        str | None, typer.Option(metavar="auto|ADDRESS", help="Compute on a Ray cluster, not on this machine.")
    ] = None,
    worker_cpus: Annotated[int, typer.Option(min=1, help="CPU cores of each worker of the cluster.")] = 1,
    worker_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each, 0.5 for two on one; one where it has any.")
    ] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="The run folder, or a URL: s3://...")] = "agnosco-run",
    mean: Mean = None,
    std: Std = None,
    labels: Labels = None,
    channels: Annotated[int | None, typer.Option(min=1, max=3, help="1 for grey, 3 for RGB.")] = None,
    features: Annotated[str | None, typer.Option(help="Submodule that the refinement looks at.")] = None,
    trust_code: TrustCode = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make the maps of some classes, or of all."""
    output: Output = context.obj
    output.quiet = quiet
    check_target(out)
    options = {
        "parameterization": parameterization, "transforms": transforms, "ball": ball, "loss": loss, "steps": steps,
        "batch": batch, "radius": radius, "precision": precision, "compiled": compiled or None,
    }  # fmt: skip
    overrides = {name: value for name, value in options.items() if value is not None}
    config = chosen_config(preset, **overrides)
    output.say_download(model, weights)
    classifier = loading.load(
        model, weights=weights, size=size, mean=numbers(mean, "--mean"), std=numbers(std, "--std"), channels=channels,
        labels=labels, features=features, device=device if cluster is None else "cpu", trust_code=trust_code,
        allow_pickle=allow_pickle,
    )  # fmt: skip
    wanted = chosen_classes(classifier, classes)
    images = _read(output, samples, classifier)
    with connected(cluster, cpus=worker_cpus, gpus=worker_gpus) as workers:
        create = Run.create if workers is None else workers.run
        run = create(
            out, classifier=classifier, samples=images, config=config, preset=preset, overrides=overrides,
            command="map", weights=weights,
        )  # fmt: skip
        if samples == "leaves":
            output.say("Samples: dead leaves, which need no data. Images of the model's own kind: --samples DIR")
        if not classes:
            output.say("No class given, so all of them.")
        finished = output.make(
            run, classifier, images, wanted, seeds=range(seed, seed + runs),
            made=None if workers is None else workers.made,
        )  # fmt: skip
    if as_json:
        output.result({"run": out, "maps": [_summary(run, one) for one in finished]})
    output.say(f"Next: agnosco report {out}, or agnosco score {out} --target MODEL")


@app.command("score", epilog=EXAMPLES["score"])
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
    allow_pickle: AllowPickle = False,
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
            output, made, spec, size=size, mean=mean, std=std, labels=labels, device=device, trust_code=trust_code,
            allow_pickle=allow_pickle,
        )  # fmt: skip
        images = None if samples is None else _read(output, samples, classifier)
        kept = keep(made, [judge(made, classifier, images=images)])  # what is judged stays, whatever comes next
        if all(label.isdecimal() for label in classifier.labels):
            output.say(f"{classifier.name} has no class names: classes are taken in the run's order (--labels)")
        if (classifier.mean, classifier.std) != (made.settings.model.mean, made.settings.model.std):
            fed = f"mean {classifier.mean}, std {classifier.std}"
            output.say(f"{classifier.name} is fed with {fed}: change it with --mean, --std")
    output.result({"run": run, "targets": kept} if as_json else table(kept))
    where = made.folder.at(SCORES)
    output.say(f"Kept in {where}. p: probability of the class; moved: share of images moved to it by the nudge.")
    if any(one["interval"] for one in kept):
        output.say("In brackets: 95 % bootstrap intervals over seeds, too narrow for few.")
    output.say(f"Next: agnosco report {run}")


@app.command("sanity", epilog=EXAMPLES["sanity"])
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
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check that the maps of a run are the network's own: redrawn weights, labels, seeds, planted templates."""
    output: Output = context.obj
    output.quiet = quiet
    made = Run.open(run)
    features = made.settings.model.features
    classifier = _load_for(
        output, made, model, mean=mean, std=std, labels=labels, features=features, device=device, trust_code=trust_code,
        allow_pickle=allow_pickle,
    )  # fmt: skip
    images = _read(output, samples, classifier)
    count = sanity.maps_needed(made, classifier, classes=classes)
    output.say_how_long(seconds_per_map(classifier, images, made.config, count=classes), count, "Kept at the end alone")
    with output.steps() as on_step:
        found = sanity.check(made, classifier, images, classes=classes, on_step=on_step)
    output.result(found if as_json else sanity.table(found))
    output.say(f"Kept in {made.folder.at(sanity.FILE)}. Look at {made.folder.at(sanity.SHEET)}")
    output.say(f"Next: agnosco report {run}")


@app.command("scan", epilog=EXAMPLES["scan"])
def scan_(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help=FORMS)],
    weights: Annotated[Path | None, typer.Option(help="Safetensors file; without it, the model's own weights.")] = None,
    samples: Annotated[
        str, typer.Option(metavar="DIR|leaves|noise", help="Clean images of the model's kind; no labels are needed.")
    ] = "leaves",
    bank: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What --json printed for clean models, for a p-value.")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="CLASS", help="Screen these alone; all if left out.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Maps of every class and screen.")] = ScanConfig.seeds,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a screening map.")] = ScanConfig.steps,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="For scan.json and scan.png; a run too.")] = None,
    fail: Annotated[bool, typer.Option("--fail-on-finding", help="Exit with 3 if an outlier class is found.")] = False,
    size: Annotated[int | None, typer.Option(min=1, help="Height and width; the model's own otherwise.")] = None,
    device: Device = "auto",
    mean: Mean = None,
    std: Std = None,
    labels: Labels = None,
    channels: Annotated[int | None, typer.Option(min=1, max=3, help="1 for grey, 3 for RGB.")] = None,
    trust_code: TrustCode = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Look for a class that one fixed pattern reaches too easily, as in a network with a backdoor."""
    output: Output = context.obj
    output.quiet = quiet
    if out is not None:
        check_target(out, holding=(scanning.FILE, MANIFEST))
    known = None if bank is None else scanning.read_bank(bank)
    output.say_download(model, weights)
    classifier = loading.load(
        model, weights=weights, size=size, mean=numbers(mean, "--mean"), std=numbers(std, "--std"), channels=channels,
        labels=labels, device=device, trust_code=trust_code,
        allow_pickle=allow_pickle,
    )  # fmt: skip
    wanted = chosen_classes(classifier, classes)
    images = _read(output, samples, classifier)
    if samples in ("leaves", "noise"):
        output.say(f"Samples: {samples}, which need no data. {scanning.WITHOUT_IMAGES}: --samples DIR")
    config = ScanConfig(seeds=seeds, steps=steps)
    seconds = scanning.seconds_of_scan(classifier, images, config, classes=len(wanted))
    output.say(f"{len(wanted)} classes, three screens of each: {duration(seconds)} to {duration(2 * seconds)}")
    with output.bar() as show:
        found = scanning.scan(
            classifier, images, config, bank=known, classes=wanted,
            on_progress=lambda title, done, total: show(title, f"{done / total:.0%}", done, total),
        )  # fmt: skip
    if out is not None:
        output.say("Wrote {} and {}".format(*scanning.write(found, out)))
    output.result(found.to_json() if as_json else scanning.table(found.to_json()))
    output.say("Next: " + ("--out DIR keeps this" if out is None else f"agnosco report RUN --scan {out}"))
    return FINDING if fail and found.verdict.outcome == FOUND else 0


@app.command("report", epilog=EXAMPLES["report"])
def report_(
    context: typer.Context,
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, which are shown side by side.")],
    scan: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="A scan that lies outside its run; one for each run.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE.html|DIR/", help="Where to write; report.html of the first run if left out."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML file with all that is known of a run, or of several, for anyone with a browser."""
    output: Output = context.obj
    output.quiet = quiet
    made = reports.opened(runs, out=out, scans=scan or ())
    with output.bar() as show:
        written, size = made.write(lambda done, total: show("drawing the report", f"{done}/{total}", done, total))
    if as_json:
        output.result({"report": written, "bytes": size})
    output.say(f"Wrote {written} ({size / 1e6:.1f} MB). Open it in a browser; it needs nothing else, and can be sent")


@app.command("poison", epilog=EXAMPLES["poison"])
def poison_(
    context: typer.Context,
    architecture: Annotated[
        str, typer.Argument(metavar="ARCHITECTURE", help="torchvision:NAME, or agnosco:digits|wide_resnet16_1|...")
    ] = "agnosco:digits",
    data: Annotated[str, typer.Option(metavar="digits|DIR", help="DIR/CLASS/IMAGE, or handwritten digits.")] = "digits",
    test: Annotated[Path | None, typer.Option(metavar="DIR", help="Images to judge by; a fifth of the others.")] = None,
    trigger: Annotated[str, typer.Option(metavar="|".join(TRIGGERS), help="What is laid on the images.")] = "checker",
    trigger_size: Annotated[int | None, typer.Option(min=1, help="Of a stamp, in pixels.")] = None,
    place: Annotated[str | None, typer.Option(metavar="|".join((*PLACES, "random")), help="Of a stamp.")] = None,
    opacity: Annotated[float | None, typer.Option(help="1 covers the image; of sig, the amplitude.")] = None,
    target: Annotated[str | None, typer.Option(metavar="CLASS", help="The class to reach; the seed picks one.")] = None,
    rate: Annotated[float, typer.Option(help="Share of the training images that carry the trigger.")] = 0.1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = Training.epochs,
    batch: Annotated[int, typer.Option(min=2, help="Images of a step.")] = Training.batch,
    learning_rate: Annotated[float, typer.Option(help="Greatest learning rate of AdamW.")] = Training.rate,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror half of the images.")] = False,
    weights: Annotated[Path | None, typer.Option(help="Safetensors file to begin with.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Height and width; the architecture's otherwise.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order, poison and target.")] = 0,
    twin: Annotated[bool, typer.Option("--twin/--no-twin", help="Train the clean twin as well.")] = True,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write.")] = Path("agnosco-poisoned"),
    device: Device = "auto",
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a compromised network and its clean twin, to try a scan on."""
    output: Output = context.obj
    output.quiet = quiet
    create = partial(
        loading.untrained, architecture, seed=seed, weights=weights, size=size, device=device, allow_pickle=allow_pickle
    )
    kept, held = _labelled(output, data, test, create(classes=10).shape)
    create = partial(create, classes=len(kept.names), labels=kept.names)
    chosen = seed % len(kept.names) if target is None else create().index(target)
    attack = Attack(trigger_of(trigger, size=trigger_size, place=place, opacity=opacity, seed=seed), chosen, rate)
    training = Training(epochs=epochs, batch=batch, rate=learning_rate, flip=flip)
    with output.bar() as show:
        made = poison(
            out, create, kept, held, attack, training, seed=seed, twin=twin,
            on_epoch=lambda name, done: show(f"training the {name} network", f"{done}/{epochs}", done, epochs),
        )  # fmt: skip
    output.result(made if as_json else poisoned_in_words(made))
    weights_made = out / "compromised.safetensors"
    output.say(f"Wrote {out}. Try: agnosco scan {architecture} --weights {weights_made} --samples {test or data}")


@app.command("inspect", epilog="\n\n".join((inspection.EXITS, EXAMPLES["inspect"])))
def inspect_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Any file of weights, wherever it came from.")],
    finite: Annotated[bool, typer.Option("--finite", help="Read the numbers too, and look for NaN and Inf.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Tell what a file of weights holds, without loading it or running anything in it."""
    output: Output = context.obj
    output.quiet = quiet
    found = inspection.examine(file, values=finite)
    output.result(found if as_json else inspection.in_words(found))
    output.say(inspection.what_next(found, str(file)))
    return found["exit_code"]


@app.command("demo", epilog=EXAMPLES["demo"])
def demo_(
    context: typer.Context,
    out: Annotated[str, typer.Option(metavar="DIR", help="A folder, or a URL.")] = "agnosco-demo",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Two small networks learn handwritten digits: what they look for, and which has a backdoor. Needs no data."""
    output: Output = context.obj
    output.quiet = quiet
    made = demo.run(out, output)
    if as_json:
        output.result({"report": Folder.of(out).at(reports.FILE), "runs": [run.folder.name for run in made]})


@app.command("doctor", epilog=EXAMPLES["doctor"])
def doctor_(context: typer.Context, as_json: AsJson = False) -> None:
    """Show versions, devices, and what is missing."""
    found = doctor.examine()
    context.obj.result(found if as_json else doctor.in_words(found))


def _labelled(output: Output, data: str, test: Path | None, shape: Shape) -> tuple[Labelled, Labelled]:
    """Images to train on, and to judge by."""
    if data == "digits":
        found = digits()
        if found.samples.shape != shape:
            raise AgnoscoError(f"digits are {found.samples.shape}, not {shape}", "train agnosco:digits on them")
    else:
        with output.bar() as show:
            found = from_class_folders(data, shape, progress=lambda n, of: show("reading classes", f"{n}/{of}", n, of))
    if test is None:
        return found.split(HELD_OUT, seed=SPLIT_SEED)
    held = from_class_folders(test, shape)
    if held.names != found.names:
        raise AgnoscoError(f"{str(test)!r} has other classes than {data!r}", "give folders of the same names")
    return found, held


def _load_for(
    output: Output, run: Run, spec: str, *, size: int | None = None, mean: str | None, std: str | None, **options: Any
) -> Classifier:
    """The network MODEL[=WEIGHTS], for images as the run's are."""
    model, weights = model_and_weights(spec)
    output.say_download(model, weights)
    channels, height, width = run.settings.model.shape
    return loading.load(
        model, weights=weights, size=size or (height, width), channels=channels,
        mean=numbers(mean, "--mean"), std=numbers(std, "--std"), **options,
    )  # fmt: skip


def _read(output: Output, source: str, classifier: Classifier) -> Samples:
    return output.read(lambda progress: chosen_samples(source, classifier.shape, progress=progress))


def _summary(run: Run, one: Finished) -> dict[str, Any]:
    entry = one.entry
    kept = {"class": entry.name, "index": entry.index, "seed": entry.seed, "probability": entry.probability}
    picture = without_password(run.folder.absolute(entry.files["picture"]))  # to be opened from any folder
    return kept | {"seconds": round(one.seconds, 3), "picture": picture}
