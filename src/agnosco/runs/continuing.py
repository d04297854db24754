"""What must be the same when a run is continued: what decides the bits of its maps, and nothing else."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from ..errors import AgnoscoError, AgnoscoWarning
from ..io.records import to_json
from .manifest import Settings

NOT_COMPARED: dict[str, tuple[str, ...]] = {
    "": ("command", "preset", "overrides", "threads", "cpu"),
    "model": ("weights", "resize", "labels", "prompts", "allow_pickle"),
    "samples": ("source",),
}
"""Settings that may differ, by the part that they are in.

They are names of what other settings say, such as a fingerprint; or the run decides them; or they are warned of.
"""

LOADABLE = ("torchvision", "timm", "hf", "open_clip", "agnosco", "python")
"""How the names of models begin that the command line can load, before a colon."""


def check_same(old: Settings, new: Settings, name: str) -> None:
    """Check that a run of this name, with old settings, can be continued with the new ones; AgnoscoError if not.

    An AgnoscoWarning says that another kind of CPU may give other last bits.
    """
    refuse_others(old, new, name)
    if None not in (old.cpu, new.cpu) and old.cpu != new.cpu:
        kinds = f"{old.cpu}, and this one has {new.cpu}"
        message = f"{name!r} was begun on a CPU with {kinds}: the last bits of its maps may differ"
        warnings.warn(message, AgnoscoWarning, stacklevel=3)


def refuse_others(old: Settings, new: Settings, name: str) -> None:
    """AgnoscoError if a run of this name, with old settings, is another than one with the new ones."""
    if differing := differences(old, new):
        message = f"{name!r} holds a run with other settings ({', '.join(differing[:4])})"
        raise AgnoscoError(message, _what_to_do(old, new))


def differences(old: Settings, new: Settings) -> list[str]:
    """Differences in what decides the maps: ``device cpu, now cuda``, or the name alone if the values are long."""
    names = [loadable(settings.model.name) for settings in (old, new)]
    if None in names:  # such as that of a bare module: the fingerprint has to do
        names = ["", ""]
    return list(_differences(_compared(old, names[0] or ""), _compared(new, names[1] or "")))


def loadable(name: str) -> str | None:
    """The name of a model that the command line can load, without the folder of its file; None for another name.

    Names are compared although there are fingerprints, because these are not over code.
    """
    source, colon, rest = name.partition(":")
    if not colon or source not in LOADABLE:
        return None
    if source == "python":
        file, _, factory = rest.partition(".py:")
        return f"{source}:{re.split(r'[/:]', file.replace(chr(92), '/'))[-1]}.py:{factory}"
    return name


def _compared(settings: Settings, name: str) -> dict[str, Any]:
    """What is compared of settings, as JSON."""
    data = to_json(settings)
    data["device"] = _kind(settings.device)
    data["model"]["name"] = name
    for part, left_out in NOT_COMPARED.items():
        for key in left_out:
            del (data[part] if part else data)[key]
    return data


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{name} {key}".strip())
    elif old != new:
        change = f"{name} {old}, now {new}"
        yield change if len(change) < 60 else name


def _what_to_do(old: Settings, new: Settings) -> str:
    """What to install or to choose so that a run can be continued, if that is enough."""
    like = replace(new, versions=old.versions, device=old.device)
    if _kind(old.device) != _kind(new.device):  # which may decide the precision
        like = replace(like, config=new.config | {"precision": old.config.get("precision")})
    if differences(old, like):
        return "choose another folder with --out, or remove this one"
    packages = [
        f"{package} {version}" for package, version in old.versions.items()
        if version is not None and new.versions.get(package) != version
    ]  # fmt: skip
    advice = [f"install {' and '.join(packages)}, which it was begun with"] if packages else []
    if _kind(old.device) != _kind(new.device):
        advice.append(f"continue it with --device {_kind(old.device)}, on a machine that has one")
    return "; ".join(advice) or "choose another folder with --out"


def _kind(device: str) -> str:
    """The kind of a device: ``cuda`` of ``cuda:0``."""
    return device.partition(":")[0]
