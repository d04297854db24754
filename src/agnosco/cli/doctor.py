"""What agnosco finds on this machine, and what is missing."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from .. import __version__
from ..data.cache import default_cache
from ..models.devices import resolve_device

NEEDED = ("torch", "torchvision", "numpy", "pillow", "safetensors", "typer", "rich")
OPTIONAL = {
    "timm": ("models named timm:NAME", "pip install '.[timm]'"),
    "scikit-learn": ("agnosco demo", "pip install '.[demo]'"),
}


def examine() -> dict[str, Any]:
    """Versions, devices, threads, the cache folder, and what is missing, as plain JSON values."""
    versions = {name: _version(name) for name in (*NEEDED, *OPTIONAL)}
    return {
        "agnosco": __version__,
        "python": platform.python_version(),
        "packages": versions,
        "devices": devices(),
        "default_device": str(resolve_device("auto")),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cache": str(default_cache()),
        "missing": [
            {"package": name, "needed_for": purpose, "command": command}
            for name, (purpose, command) in OPTIONAL.items()
            if versions[name] is None
        ],
    }


def devices() -> list[str]:
    """The devices that maps can be made on, the fastest first."""
    found = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def in_words(found: dict[str, Any]) -> str:
    """What :func:`examine` found, one fact a line."""
    lines = [f"agnosco {found['agnosco']} on Python {found['python']}"]
    lines += [f"  {name} {version or 'not installed'}" for name, version in found["packages"].items()]
    lines.append(f"devices: {', '.join(found['devices'])} (auto takes {found['default_device']})")
    lines.append(f"threads: {found['threads']} on {found['cores']} cores")
    lines.append(f"cache: {found['cache']}")
    lines += [f"missing: {one['package']}, for {one['needed_for']}: {one['command']}" for one in found["missing"]]
    return "\n".join(lines if found["missing"] else [*lines, "nothing is missing"])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
