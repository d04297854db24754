"""A run's settings from the options of a command line, and back."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..data.files import ARRAY, DIGITS, Asked, asked
from ..errors import AgnoscoError
from ..method.config import Config, config_from_json
from ..method.config import preset as preset_config
from ..method.dials import DIALS, L2, AutoL2, Ball
from ..types import Job
from .continuing import loadable
from .manifest import Entry, Group, SamplesRecord, Settings

IN_PYTHON = "given in Python"
"""What a classifier calls directions that are not those of a file."""

OVERRIDES = ("parameterization", "transforms", "ball", "loss", "steps", "batch", "radius", "precision", "compiled")
"""Options that replace a setting of a preset, in the order in which a command names them."""


def chosen_config(preset: str, **overrides: Any) -> Config:
    """A preset with some of its settings replaced; None leaves what the preset has.

    Args:
        preset: Name of the preset.
        overrides: New values, by the names in :data:`OVERRIDES`. If the preset has a dial of the given kind already
            (``parameterization``, ``transforms``, ``ball``), its settings stay; another kind comes with its own
            defaults. ``radius`` is η at 3×224×224, or the limit of a ball that grows. A ``loss`` may be a number as
            text.

    Raises:
        AgnoscoError: No such preset, dial, loss or precision, or a radius for a ball that has none.
        TypeError: No such setting.
    """
    if unknown := overrides.keys() - set(OVERRIDES):
        raise TypeError(f"no setting {min(unknown)!r}; choose from {', '.join(OVERRIDES)}")
    config = preset_config(preset)
    mapper = config.mapper
    given = {name: value for name, value in overrides.items() if value is not None}
    for name, kinds in DIALS.items():
        if name in given:
            kind, current = given[name], getattr(mapper, name)
            if kind not in kinds:
                raise AgnoscoError(f"no {name} {kind!r}", f"choose from {', '.join(kinds)}")
            given[name] = current if type(current) is kinds[kind] else kinds[kind]()
    if "loss" in given:
        with suppress(ValueError):  # a name
            given["loss"] = float(given["loss"])
    if "radius" in given:
        given["ball"] = _with_radius(given.get("ball", mapper.ball), given.pop("radius"))
    computing = {name: given.pop(name) for name in ("precision", "compiled") if name in given}
    return replace(config, mapper=replace(mapper, **given), **computing)


def _with_radius(ball: Ball, radius: float) -> Ball:
    if isinstance(ball, L2):
        return replace(ball, radius=radius)
    if isinstance(ball, AutoL2):
        return replace(ball, start=min(ball.start, radius), limit=radius)
    raise AgnoscoError(f"a {type(ball).__name__.lower()} ball has no radius", "leave --radius out, or choose --ball l2")


def command_of(settings: Settings, entries: Sequence[Entry], groups: Sequence[Group] = ()) -> str | None:
    """The command line that makes a run's maps again, from what its manifest says.

    Files are named as in the manifest, without their folders; one of prompts is PROMPTS if its name is not in it.
    None for settings that no command line can give, and for a network or samples that none can load. With groups, the
    command also makes their maps that are not finished.
    """
    if settings.command == "demo":  # which takes no settings
        return "agnosco demo"
    model, options = settings.model, options_of(settings)
    jobs = sorted({*(entry.job for entry in entries), *(Job(*job) for group in groups for job in group)})
    indices = list(dict.fromkeys(job.label for job in jobs))
    seeds = sorted({job.seed for job in jobs})
    channels, height, width = model.shape
    consecutive = not seeds or seeds[-1] - seeds[0] < len(seeds)  # as those of --seeds are
    given = loadable(model.name) is not None and model.directions != IN_PYTHON and settings.samples.source != ARRAY
    in_python = settings.command != "map" and not given
    if in_python or options is None or height != width or not seeds or not consecutive:
        return None
    words = ["agnosco", "map", model.name]
    words += [] if len(indices) == model.classes else [str(index) for index in indices]
    words += ["--weights", model.weights] if model.weights else []
    words += ["--allow-pickle"] * model.allow_pickle + (["--labels", model.labels] if model.labels else [])
    prompts = model.prompts or ("PROMPTS" if model.name.startswith("open_clip:") else None)
    words += ["--prompts", prompts] if prompts else []
    source, count, seed_of_samples = _asked(settings.samples)
    words += ["--samples", source] + [f"--samples-count={count}"] * (count is not None)
    words += [f"--samples-seed={seed_of_samples}"] * (seed_of_samples != 0) + ["--size", str(width)]
    words += [f"--channels={channels}"] * (channels != 3)
    for name, values in (("mean", model.mean), ("std", model.std)):
        words += [f"--{name}", ",".join(repr(value).removesuffix(".0") for value in values)]
    compiled = options.pop("compiled", False)
    words += [f"--{name}={value}" for name, value in options.items()] + ["--compile"] * bool(compiled)
    for name, value in (("features", model.features), ("at", model.at), ("directions", model.directions)):
        words += [f"--{name}={value}"] if value else []
    words += [f"--device={settings.device}"] + ["--trust-code"] * model.name.startswith("python:")
    words += [f"--seed={seeds[0]}"] * (seeds[0] != 0) + [f"--seeds={len(seeds)}"] * (len(seeds) > 1)
    return shlex.join(words)


def options_of(settings: Settings) -> dict[str, Any] | None:
    """The options of ``agnosco map`` that give a run's configuration: ``preset``, then its overrides.

    ``precision`` is among them if it is not the preset's: what ``auto`` was on the run's device. None if there is no
    preset, or if both do not give the configuration in the manifest, because another version or a human wrote it.
    """
    if settings.preset is None:
        return None
    config = config_from_json(settings.config)
    try:
        chosen = chosen_config(settings.preset, **settings.overrides)
        if replace(chosen, precision=config.precision) != config:
            return None
    except (AgnoscoError, TypeError, ValueError):
        return None
    noted = settings.overrides | {"precision": config.precision}
    if config.precision == preset_config(settings.preset).precision:
        del noted["precision"]
    return {"preset": settings.preset} | {name: noted[name] for name in OVERRIDES if name in noted}


def _asked(samples: SamplesRecord) -> Asked:
    """What the options of samples were given."""
    if samples.source == DIGITS:
        return Asked("digits", None, 0)
    given = asked(samples.source)
    is_folder = given.source in ("leaves", "noise", "digits") and not samples.source.startswith(f"{given.source}-")
    return given._replace(source=f"./{given.source}") if is_folder else given
