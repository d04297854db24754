"""What is chosen on a command line, as the objects of the library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite

from ..data.cache import default_cache
from ..data.datasets import digits
from ..data.samples import Samples, Shape
from ..errors import AgnoscoError
from ..models.classifier import Classifier
from ..types import OnProgress


def chosen_classes(classifier: Classifier, classes: Sequence[str] | None) -> list[int]:
    """Indices of the classes that are named, each once; of all if none is."""
    return list(dict.fromkeys(classifier.index(label) for label in classes or range(classifier.classes)))


def chosen_samples(source: str, shape: Shape, *, progress: OnProgress | None = None) -> Samples:
    """Samples of a name: ``leaves`` or ``noise``, which need no data, ``digits``, or a folder of images.

    Args:
        source: The name; a folder that is called ``leaves`` is ``./leaves``. ``digits`` are scikit-learn's.
        shape: ``(C, H, W)`` of the samples.
        progress: Called with the number of files read and their total.
    """
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
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise AgnoscoError(
            f"{option} {text!r} is no list of numbers", f"write it as {option} 0.485,0.456,0.406"
        ) from error
    if not all(isfinite(value) for value in values):
        raise AgnoscoError(f"{option} {text!r} is not finite", f"write it as {option} 0.485,0.456,0.406")
    return values
