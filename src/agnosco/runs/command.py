"""A run's settings from the words of a command line, and back."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..data.source_names import DIGITS, plain_source
from ..errors import AgnoscoError
from ..method.config import PRESETS, Config, config_from_json, preset
from ..method.dials import (
    BALLS,
    L2,
    PARAMETERIZATIONS,
    TRANSFORMS,
    AutoL2,
    Ball,
)


def chosen_config(
    base: str,
    *,
    parameterization: str | None = None,
    transforms: str | None = None,
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
        "parameterization": _dial(PARAMETERIZATIONS, "parameterization", parameterization, mapper.parameterization),
        "transforms": _dial(TRANSFORMS, "transforms", transforms, mapper.transforms),
        "ball": _with_radius(_dial(BALLS, "ball", ball, mapper.ball), radius),
    }
    values = {"loss": loss, "steps": steps, "batch": batch}
    changes |= {name: value for name, value in values.items() if value is not None}
    precision = config.precision if precision is None else precision
    return replace(config, mapper=replace(mapper, **changes), precision=precision, compiled=compiled)


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
    for name, kinds in (("parameterization", PARAMETERIZATIONS), ("transforms", TRANSFORMS), ("ball", BALLS)):
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
