"""Options that several commands share, and what their words mean to the library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import AgnoscoError

if TYPE_CHECKING:
    from ..data.samples import Samples
    from ..models.classifier import Classifier
    from ..types import OnProgress, Shape
    from .console import Output

# Panels of --help; what stands in none of them is about the command's output.
model_option = partial(typer.Option, rich_help_panel="Model")
images_option = partial(typer.Option, rich_help_panel="Images")
method_option = partial(typer.Option, rich_help_panel="Method")
computing_option = partial(typer.Option, rich_help_panel="Computing")

IMAGE_SOURCES = "DIR|leaves|noise"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="torchvision:NAME, timm:NAME, agnosco:NAME or python:FILE.py:FACTORY.", show_default=False
    ),
]
RunFolder = Annotated[
    str, typer.Argument(metavar="RUN", help="Run folder made by agnosco map, or its URL.", show_default=False)
]
Weights = Annotated[Path | None, model_option(help="Weights, a safetensors file (default: the model's own).")]
Size = Annotated[int | None, model_option(min=1, help="Height and width of the input (default: the model's own).")]
Mean = Annotated[
    str | None, model_option(metavar="R,G,B", help="Mean by which the input is normalized (default: the model's own).")
]
Std = Annotated[str | None, model_option(metavar="R,G,B", help="Standard deviation, likewise.")]
Labels = Annotated[Path | None, model_option(help="Class names: a text file, one per line, or a JSON list.")]
Channels = Annotated[int | None, model_option(min=1, max=3, help="Color channels: 1 for gray, 3 for RGB.")]
TrustCode = Annotated[bool, model_option("--trust-code", help="Allow python:FILE.py, which runs that file.")]
AllowPickle = Annotated[
    bool, model_option("--allow-pickle", help="Also open .pt files, in a restricted process (docs/security.md).")
]
Device = Annotated[str, computing_option(metavar="auto|cpu|cuda|mps", help="Device to compute on.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output: one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show warnings and errors only.")]


def load_classifier(
    output: Output, model: str, *, weights: Path | str | None, mean: str | None, std: str | None, **options: Any
) -> Classifier:
    """The classifier of a command's options; a download is announced first.

    Args:
        output: Where to announce it.
        model, weights: Name and weights file.
        mean, std: As they are typed.
        options: Those of :func:`agnosco.load`.
    """
    from ..models import loading

    download = None if weights else loading.to_download(model)
    if download is not None:
        output.say(f"Downloading {download}, once")
    return loading.load(model, weights=weights, mean=numbers(mean, "--mean"), std=numbers(std, "--std"), **options)


def chosen_classes(classifier: Classifier, classes: Sequence[str] | None) -> list[int]:
    """Indices of the classes that are named, each once; of all classes if none is."""
    return list(dict.fromkeys(classifier.index(label) for label in classes or range(classifier.classes)))


def read_samples(output: Output, source: str, classifier: Classifier) -> Samples:
    """The samples that ``--samples`` names, in the classifier's shape, read under a progress bar."""
    with output.bar() as show:
        return chosen_samples(
            source, classifier.shape,
            progress=lambda done, total: show("reading samples", f"{done}/{total}", done, total),
        )  # fmt: skip


def chosen_samples(source: str, shape: Shape, *, progress: OnProgress | None = None) -> Samples:
    """Samples of a name: ``leaves`` or ``noise``, which need no data, ``digits``, or a folder of images.

    Args:
        source: The name; a folder that is called ``leaves`` is ``./leaves``. ``digits`` are scikit-learn's.
        shape: ``(C, H, W)`` of the samples.
        progress: Called with the number of files read and their total.
    """
    from ..data.cache import default_cache
    from ..data.datasets import digits
    from ..data.samples import Samples

    if source == "leaves":
        return Samples.leaves(shape)
    if source == "noise":
        return Samples.noise(shape)
    if source == "digits":
        return digits().samples
    return Samples.from_folder(source, shape, cache=default_cache(), progress=progress)


def model_and_weights(spec: str) -> tuple[str, str | None]:
    """``MODEL=WEIGHTS`` as the two; the calls of ``python:FILE.py:Net(depth=20)`` may hold other equals signs."""
    call = re.match(r"python:[^=]*?:\w+\(.*\)(?==|$)", spec)
    end = call.end() if call else 0
    model, equals, weights = spec[end:].partition("=")
    if not equals:
        return spec, None
    model = spec[:end] + model
    if not (model and weights):
        raise AgnoscoError(f"no target {spec!r}", "write MODEL or MODEL=WEIGHTS.safetensors")
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
