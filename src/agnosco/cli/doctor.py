"""``agnosco doctor``: what is installed on this machine, and what is missing."""

from __future__ import annotations

import os
import platform
import re
from typing import Annotated, Any, NamedTuple

import typer

from .. import __version__
from .options import JsonOption

EXTRAS = {
    "demo": "agnosco demo and agnosco poison --data digits",
    "timm": "models named timm:NAME",
    "hf": "models named hf:..., and data sets of Hugging Face",
    "clip": "models named open_clip:...",
    "evidence": "agnosco sanity",
    "s3": "run folders named s3://...",
    "ray": "agnosco map --cluster",
    "docs": "building the documentation",
}
"""What each extra of pyproject.toml is for."""

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)[^;>]*(?:>=(?P<minimum>[\w.]+))?[^;]*(?:;.*extra == [\"'](?P<extra>\w+))?")


class Requirement(NamedTuple):
    """A package that agnosco or, if ``extra`` is not None, one of its extras needs in a minimum version."""

    name: str
    minimum: str
    extra: str | None

    @classmethod
    def parsed(cls, text: str) -> Requirement:
        """A requirement as ``importlib.metadata`` gives it: ``'timm>=1.0.12; extra == "timm"'``."""
        match = _REQUIREMENT.match(text)
        assert match is not None
        return cls(match["name"], match["minimum"] or "0", match["extra"])

    @property
    def advice(self) -> dict[str, str]:
        """What the package is needed for, and the command that installs it."""
        return {
            "package": self.name,
            "needed_for": EXTRAS[self.extra] if self.extra else "agnosco itself",
            "command": f"pip install '.[{self.extra}]'" if self.extra else "pip install .",
        }


def doctor(
    context: typer.Context,
    devices: Annotated[
        bool, typer.Option("--devices", help="Also list devices; this loads PyTorch, which takes a few seconds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the versions of installed packages, and which are missing or too old."""
    facts = environment(devices=devices)
    context.obj.result(facts if as_json else in_words(facts))


def environment(*, devices: bool = False) -> dict[str, Any]:
    """Versions of packages, what is missing or too old, cores and the cache folder, as plain JSON values.

    Devices and threads, for which torch is imported, are None unless asked for.
    """
    from importlib import metadata

    from ..data.cache import default_cache
    from ..runs.manifest import version_of

    requirements = [Requirement.parsed(text) for text in metadata.requires("agnosco") or ()]
    versions = {each.name: version_of(each.name) for each in requirements}
    return {
        "agnosco": __version__,
        "python": platform.python_version(),
        "packages": versions,
        **(_devices() if devices else dict.fromkeys(("devices", "default_device", "threads"))),
        "cores": os.cpu_count(),
        "cache": str(default_cache()),
        "missing": [each.advice for each in requirements if versions[each.name] is None],
        "too_old": [
            each.advice | {"version": versions[each.name], "minimum": each.minimum}
            for each in requirements
            if _numbers(versions[each.name] or each.minimum) < _numbers(each.minimum)
        ],
    }


def in_words(facts: dict[str, Any]) -> str:
    """The facts of :func:`environment`, one a line."""
    lines = [f"agnosco {facts['agnosco']} on Python {facts['python']}"]
    lines += [f"  {name} {version or 'not installed'}" for name, version in facts["packages"].items()]
    if facts["devices"] is None:
        lines.append("devices: not listed (--devices)")
    else:
        lines.append(f"devices: {', '.join(facts['devices'])} (auto is {facts['default_device']})")
        lines.append(f"threads: {facts['threads']}")
    lines += [f"cores: {facts['cores']}", f"cache: {facts['cache']}"]
    lines += ["missing: {package}, for {needed_for}: {command}".format(**each) for each in facts["missing"]]
    too_old = "too old: {package} {version}, at least {minimum} is needed for {needed_for}: {command}"
    lines += [too_old.format(**each) for each in facts["too_old"]]
    return "\n".join(lines if facts["missing"] or facts["too_old"] else [*lines, "nothing is missing"])


def _devices() -> dict[str, Any]:
    """The devices that maps can be made on, the fastest first, and torch's threads."""
    import torch

    from ..models.loading import resolve_device

    names = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    names += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    return {"devices": names, "default_device": str(resolve_device("auto")), "threads": torch.get_num_threads()}


def _numbers(version: str) -> list[int]:
    """A version's numbers, for comparison: ``2.10.0+cpu`` is [2, 10]."""
    release = re.sub(r"(\.0+)*$", "", re.split(r"[+a-zA-Z]", version)[0])
    return [int(number) for number in re.findall(r"\d+", release)]
