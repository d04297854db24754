"""Options that several commands share, and what their values stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import AgnoscoError
from ..method.config import LOSSES, PRECISIONS, PRESETS
from ..method.dials import BALLS, PARAMETERIZATIONS, TRANSFORMS
from ..types import MOST_SEED

if TYPE_CHECKING:
    from ..data.samples import Samples
    from ..models.classifier import Classifier
    from ..types import Resize
    from .console import Output

# The panels of --help. Options about the output of a command are in none of them.
model_option = partial(typer.Option, rich_help_panel="Model")
images_option = partial(typer.Option, rich_help_panel="Images")
method_option = partial(typer.Option, rich_help_panel="Method")
computing_option = partial(typer.Option, rich_help_panel="Computing")

MOST_SECONDS = 1e7
"""No budget of time is longer: four months."""

samples_option = partial(images_option, metavar="DIR|FILE.tar|hf:ORG/NAME|leaves|noise")


def choice(names: Iterable[str], help: str, panel: str = "Method") -> Any:
    """An option that takes one of some names."""
    return typer.Option(metavar="|".join(names), help=help, rich_help_panel=panel)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME, timm:NAME, hf:ORG/NAME, hf:DIR, open_clip:NAME/PRETRAINED, agnosco:NAME or "
        "python:FILE.py:FACTORY.",
        show_default=False,
    ),
]
RunFolder = Annotated[
    str, typer.Argument(metavar="RUN", help="Run folder made by agnosco map, or its URL.", show_default=False)
]
WeightsOption = Annotated[
    Path | None, model_option(help="Weights file, as safetensors (default: the model's own weights).")
]
SizeOption = Annotated[
    int | None, model_option(min=1, help="Height and width of the input (default: the model's own).")
]
MeanOption = Annotated[
    str | None, model_option(metavar="R,G,B", help="Mean for normalising (default: the model's own).")
]
StdOption = Annotated[
    str | None, model_option(metavar="R,G,B", help="Standard deviation for normalising (default: the model's own).")
]
AtOption = Annotated[
    str | None,
    model_option(
        metavar="LAYER",
        help="Map the channels of this layer instead of classes; LAYER:center asks only the place in its middle, "
        "LAYER:input what the layer is given.",
    ),
]
DirectionsOption = Annotated[
    Path | None, model_option(help="Ask for these directions in the layer's space: a safetensors file of vectors.")
]
PromptsOption = Annotated[
    Path | None,
    model_option(help="Classes of open_clip:NAME: a text file of names, one a line, or NAME, a tab and a sentence."),
]
LabelsOption = Annotated[Path | None, model_option(help="Class names: a text file with one per line, or a JSON list.")]
ChannelsOption = Annotated[int | None, model_option(min=1, max=3, help="Colour channels: 1 for grey, 3 for RGB.")]
TrustCodeOption = Annotated[
    bool, model_option("--trust-code", help="Allow models named python:FILE.py; this runs the file.")
]
AllowPickleOption = Annotated[
    bool, model_option("--allow-pickle", help="Also open .pt files, in a restricted process; see docs/security.md.")
]
PresetOption = Annotated[str, choice(PRESETS, "Settings to start from; the options below override them.")]
ParameterizationOption = Annotated[
    str | None,
    choice(PARAMETERIZATIONS, "What is optimised: pixels, or frequencies weighted as in the samples or by 1/f."),
]
TransformsOption = Annotated[
    str | None, choice(TRANSFORMS, "Random transforms of perturbed images, or none (identity).")
]
BallOption = Annotated[
    str | None,
    choice(BALLS, "Norm ball that bounds the map; sparse: few pixels; auto: an L2 ball grown until the map works."),
]
LossOption = Annotated[
    str | None,
    choice(
        (*LOSSES, "WEIGHT"), "Loss to minimise: a name, or the other classes' weight in it (1: log-odds, 0: logit)."
    ),
]
StepsOption = Annotated[
    int | None, method_option(min=1, help="Steps of the paper's Algorithm 1 (the preset paper runs it twice).")
]
BatchOption = Annotated[int | None, method_option(min=1, help="Images per mini-batch.")]
RadiusOption = Annotated[
    float | None, method_option(help="Radius of the ball for 3 x 224 x 224 images; scaled for other sizes.")
]
SeedsOption = Annotated[int, method_option(min=1, help="Number of seeds: each gives one map of every class.")]
SeedOption = Annotated[int, method_option(min=0, max=MOST_SEED, help="First seed.")]
PrecisionOption = Annotated[
    str | None,
    choice(PRECISIONS, "Precision of the network; auto: bfloat16 if the device supports it.", "Computing"),
]
CompileOption = Annotated[
    bool,
    computing_option("--compile", help="Compile the network first: takes a minute, pays off for many maps on a GPU."),
]
DeviceOption = Annotated[str, computing_option(metavar="auto|cpu|cuda|mps", help="Device to compute on.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output: one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show warnings and errors only.")]


SamplesCountOption = Annotated[
    int | None,
    images_option(
        min=1,
        metavar="N",
        help="Take N files, chosen at random by their names (default: all, of a folder up to 10,000).",
    ),
]
SamplesSeedOption = Annotated[
    int, images_option(min=0, max=MOST_SEED, help="Seed of this choice, or of synthetic images: the same everywhere.")
]


def load_classifier(output: Output, context: typer.Context, model: str, **changes: Any) -> Classifier:
    """The classifier that a model's name and a command's options stand for; a download is announced.

    ``changes`` are options of :func:`agnosco.load` that replace those of the command.
    """
    from ..models import loading

    names = (
        "weights", "labels", "size", "channels", "features", "at", "directions", "prompts", "device", "trust_code",
        "allow_pickle",
    )  # fmt: skip
    options = {name: context.params[name] for name in names if name in context.params}
    options |= {name: numbers(context.params[name], f"--{name}") for name in ("mean", "std")} | changes
    download = None if options["weights"] else loading.to_download(model)
    if download is not None:
        output.say(f"Downloading {download}; this happens only once")
    return loading.load(model, **options)


def chosen_classes(classifier: Classifier, classes: Sequence[str] | None) -> list[int]:
    """Indices of the named classes, each once; of all classes if none is named."""
    return list(dict.fromkeys(classifier.index(label) for label in classes or range(classifier.classes)))


def read_samples(output: Output, context: typer.Context, classifier: Classifier, resize: Resize | None) -> Samples:
    """The samples that a command's options name, of the classifier's shape; a folder named ``leaves`` is ``./leaves``.

    AgnoscoError if they cannot be read, a number of digits is asked for, or digits for a network of other images.
    """
    from ..data.cache import default_cache
    from ..data.datasets import digits
    from ..data.files import MADE, MOST_FILES
    from ..data.samples import Samples

    source, count, seed = (context.params[name] for name in ("samples", "samples_count", "samples_seed"))
    if source in ("leaves", "noise"):
        make = Samples.leaves if source == "leaves" else Samples.noise
        return make(classifier.shape, count=count or MADE, seed=seed)
    if source == "digits":
        if count is not None:
            raise AgnoscoError("digits are always all of them", "leave --samples-count out")
        images = digits().samples
        if images.shape != classifier.shape:
            message = f"digits are {images.shape}, and {classifier.name} takes {classifier.shape}"
            raise AgnoscoError(message, "give another folder or kind of images with --samples")
        return images
    with output.bar() as show:
        progress = partial(show, "reading samples")
        return Samples.from_folder(
            source, classifier.shape, resize=resize, limit=count or MOST_FILES, seed=seed, cache=default_cache(),
            progress=progress,
        )  # fmt: skip


def model_and_weights(target: str) -> tuple[str, str | None]:
    """``MODEL=WEIGHTS`` as the two; the call in ``python:FILE.py:Net(depth=20)`` may contain other equals signs."""
    call = re.match(r"python:[^=]*?:\w+\(.*\)(?==|$)", target)
    end = call.end() if call else 0
    model, equals, weights = target[end:].partition("=")
    if not equals:
        return target, None
    model = target[:end] + model
    if not (model and weights):
        raise AgnoscoError(f"{target!r} has an empty name or weights file", "write MODEL or MODEL=WEIGHTS.safetensors")
    return model, weights


def numbers(text: str | None, option: str) -> list[float] | None:
    """Numbers separated by commas, as in ``--mean 0.485,0.456,0.406``."""
    if text is None:
        return None
    hint = f"write it as {option} 0.485,0.456,0.406"
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise AgnoscoError(f"{option} {text!r} is not a list of numbers", hint) from error
    if not all(isfinite(value) for value in values):
        raise AgnoscoError(f"{option} {text!r} is not finite", hint)
    return values


def seconds_in(text: str) -> float:
    """A length of time, such as ``90s``, ``5m`` or ``1h``, in seconds; a bare number is seconds."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text.strip())
    seconds = float(parts[1]) * {"s": 1, "m": 60, "h": 3600}[parts[2] or "s"] if parts else 0.0
    if not 0 < seconds < MOST_SECONDS:
        raise AgnoscoError(f"{text!r} is not a length of time", "write it as 90s, 5m or 1h")
    return seconds
