"""What is chosen on a command line, as the objects of the library."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from ..data.datasets import DIGITS, digits
from ..data.decoding import default_cache
from ..data.samples import Samples, Shape, plain_source
from ..errors import AgnoscoError
from ..method.ball import L2, AutoL2, Ball, Sparse
from ..method.maker import PRESETS, Config, config_from_json, preset
from ..method.parameterization import Coordinates, Data, Pixel, Spectral
from ..method.transforms import AsIs, Crops, Views
from ..models.classifier import Classifier
from ..types import OnProgress

COORDINATES: dict[str, type[Coordinates]] = {"pixel": Pixel, "data": Data, "spectral": Spectral}
VIEWS: dict[str, type[Views]] = {"as-is": AsIs, "crops": Crops}
BALLS: dict[str, type[Ball]] = {"l2": L2, "sparse": Sparse, "auto": AutoL2}


def chosen_config(
    base: str,
    *,
    coordinates: str | None = None,
    views: str | None = None,
    ball: str | None = None,
    loss: str | None = None,
    steps: int | None = None,
    batch: int | None = None,
    radius: float | None = None,
    precision: str | None = None,
    compiled: bool = False,
) -> Config:
    """A preset with single dials replaced; None leaves what the preset has.

    Args:
        base: Name of the preset.
        coordinates, views, ball: Kind of each dial. One that the preset has already keeps the
            preset's settings; another comes with its own defaults.
        loss: What a step descends.
        steps: K, of Algorithm 1 in every cycle.
        batch: b.
        radius: η at 3×224×224; the limit of a ball that grows.
        precision: Arithmetic of the network.
        compiled: Whether to run it through ``torch.compile``.

    Raises:
        AgnoscoError: No such preset, dial, loss or precision, or a radius for a ball that has none.
    """
    config = preset(base)
    mapper = config.mapper
    changes: dict[str, Any] = {
        "coordinates": _dial(COORDINATES, "coordinates", coordinates, mapper.coordinates),
        "views": _dial(VIEWS, "views", views, mapper.views),
        "ball": _with_radius(_dial(BALLS, "ball", ball, mapper.ball), radius),
    }
    values = {"loss": loss, "steps": steps, "batch": batch}
    changes |= {name: value for name, value in values.items() if value is not None}
    precision = config.precision if precision is None else precision
    return replace(config, mapper=replace(mapper, **changes), precision=precision, compiled=compiled)


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


def _dial(kinds: dict[str, type[Any]], name: str, wanted: str | None, current: Any) -> Any:
    """A dial of the kind that is wanted: the current one, if it is of that kind."""
    if wanted is None:
        return current
    if wanted not in kinds:
        raise AgnoscoError(f"no {name} {wanted!r}", f"choose from {', '.join(kinds)}")
    return current if type(current) is kinds[wanted] else kinds[wanted]()


def _with_radius(ball: Ball, radius: float | None) -> Ball:
    if radius is None:
        return ball
    if isinstance(ball, L2):
        return replace(ball, radius=radius)
    if isinstance(ball, AutoL2):
        return replace(ball, start=min(ball.start, radius), limit=radius)
    raise AgnoscoError(f"a {type(ball).__name__.lower()} ball has no radius", "leave --radius out, or choose --ball l2")


def command_of(settings: dict[str, Any], entries: Sequence[dict[str, Any]]) -> str | None:
    """The command line that makes a run's maps: what its manifest says, as words.

    Files are named as the manifest names them, without their folders; files of class names it does not name at all.

    Args:
        settings: The run's settings.
        entries: Its maps' entries in the manifest.

    Returns:
        None for settings that no command line can give, or that Python code gave.
    """
    if settings["command"] == "demo":  # which has no settings to give
        return "agnosco demo"
    model, config = settings["model"], config_from_json(settings["config"])
    dials = dials_of(config)
    indices = list(dict.fromkeys(entry["index"] for entry in entries))
    seeds = sorted({entry["seed"] for entry in entries})
    channels, height, width = model["shape"]
    in_a_row = seeds[-1] - seeds[0] < len(seeds)  # as those of --runs are
    if settings["command"] != "map" or dials is None or height != width or not in_a_row:
        return None
    words = ["agnosco", "map", model["name"]]
    words += [] if len(indices) == model["classes"] else [str(index) for index in indices]
    words += ["--weights", model["weights"]] if model["weights"] else []
    words += ["--samples", _source_of(settings["samples"]), "--size", str(width)]
    words += [f"--channels={channels}"] * (channels != 3)
    for name in ("mean", "std"):
        words += [f"--{name}", ",".join(repr(value).removesuffix(".0") for value in model[name])]
    words += [f"--{name}={value}" for name, value in dials.items()] + ["--compile"] * bool(config.compiled)
    words += [f"--features={model['features']}"] if model["features"] else []
    words += [f"--device={settings['device']}"] + ["--trust-code"] * model["name"].startswith("python:")
    words += [f"--seed={seeds[0]}"] * (seeds[0] != 0) + [f"--runs={len(seeds)}"] * (len(seeds) > 1)
    return shlex.join(words)


def dials_of(config: Config) -> dict[str, Any] | None:
    """The options of :func:`chosen_config` that give a configuration, the preset first and as few as there can be.

    ``compiled`` is left to the configuration.
    """
    found = []
    for base in PRESETS:
        dials = _changed_from(base, config)
        if chosen_config(base, **dials, compiled=config.compiled) == config:
            found.append({"preset": base} | dials)
    return min(found, key=len, default=None)


def _changed_from(base: str, config: Config) -> dict[str, Any]:
    """Options in which a configuration differs from a preset."""
    mapper, own = config.mapper, preset(base).mapper
    dials: dict[str, Any] = {}
    for name, kinds in (("coordinates", COORDINATES), ("views", VIEWS), ("ball", BALLS)):
        if type(getattr(mapper, name)) is not type(getattr(own, name)):
            dials[name] = next(word for word, kind in kinds.items() if type(getattr(mapper, name)) is kind)
    for name in ("loss", "steps", "batch"):
        if getattr(mapper, name) != getattr(own, name):
            dials[name] = getattr(mapper, name)
    if mapper.ball != _dial(BALLS, "ball", dials.get("ball"), own.ball) and isinstance(mapper.ball, L2 | AutoL2):
        dials["radius"] = mapper.ball.radius if isinstance(mapper.ball, L2) else mapper.ball.limit
    if config.precision != preset(base).precision:
        dials["precision"] = config.precision
    return dials


def _source_of(samples: dict[str, Any]) -> str:
    """What :func:`chosen_samples` was given."""
    source = samples["source"]
    if source == DIGITS:
        return "digits"
    return f"./{source}" if source in ("leaves", "noise", "digits") else plain_source(source)  # a folder of that name
