"""Keeps decoded images between runs, under a key made from the content of their files."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AgnoscoError, AgnoscoWarning
from ..io.atomic import atomic_file
from ..io.local import Local
from ..io.regular import open_regular
from ..io.safetensors_header import HeaderLimits, Suspicious, read_header
from ..io.storage import in_order, reason_of
from ..types import Shape
from .files import THREADS, Skipped

if TYPE_CHECKING:
    from torch import Tensor

CACHE_LIMITS = HeaderLimits(header=64 << 20)
"""The header lists the skipped files."""


def default_cache() -> Path:
    """``$AGNOSCO_CACHE``, or else ``agnosco`` in ``$XDG_CACHE_HOME``, if it is an absolute path, or in ``~/.cache``.

    See https://specifications.freedesktop.org/basedir-spec/latest/.
    """
    if chosen := os.environ.get("AGNOSCO_CACHE"):
        return Path(os.path.expanduser(chosen))
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "agnosco"


def cache_key(files: Mapping[str, Path], shape: Shape, decoder: str) -> tuple[str, set[str]]:
    """SHA-256 over names and contents of files, the shape of the images, and the version of the decoder.

    Also the names of the files that could not be read: the key is one of the reason, not of their content.
    """
    digest = hashlib.sha256(json.dumps([decoder, shape, list(files)]).encode())
    unread = set()
    for name, found in zip(files, in_order(_content_digest, files.values(), threads=THREADS), strict=True):
        if isinstance(found, str):
            unread.add(name)
        digest.update(hashlib.sha256(found.encode()).digest() if isinstance(found, str) else found)
    return digest.hexdigest(), unread


def read_cache(path: Path, count: int, shape: Shape) -> tuple[Tensor, tuple[Skipped, ...]] | None:
    """Images ``(N, C, H, W)`` uint8 and skipped files, ``count`` in all, of a cache file; None if it is of no use."""
    import torch

    try:
        with open_regular(path) as file:
            header = read_header(file, CACHE_LIMITS)
            notes, entry = json.loads(header.metadata["agnosco"]), header.entries["images"]
            skipped = tuple(Skipped(*fields) for fields in notes["skipped"])
            if entry.dtype != "U8" or entry.shape != (count - len(skipped), *shape):
                return None
            images = torch.empty(entry.shape, dtype=torch.uint8)
            file.seek(header.data_start + entry.begin)
            file.readinto(images.numpy())  # type: ignore[attr-defined]  # every binary file has it
    except (OSError, Suspicious, KeyError, TypeError, ValueError, RecursionError):
        return None
    return (images, skipped) if notes["sha256"] == _pixels_digest(images) else None


def write_cache(path: Path, images: Tensor, skipped: tuple[Skipped, ...]) -> None:
    """Write a cache file whole or not at all; if it cannot be written, only warn."""
    notes = {"skipped": [(file.name, file.reason) for file in skipped], "sha256": _pixels_digest(images)}
    pixels = images.numpy().data
    layout = {"dtype": "U8", "shape": list(images.shape), "data_offsets": [0, pixels.nbytes]}
    header = json.dumps({"__metadata__": {"agnosco": json.dumps(notes)}, "images": layout}).encode()
    header += b" " * (-len(header) % 8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(AgnoscoError):  # what cannot be removed does not hinder writing
            Local(path.parent).sweep()
        with atomic_file(path) as file:
            file.writelines([len(header).to_bytes(8, "little"), header, pixels])
    except OSError as error:
        message = f"samples could not be cached in {str(path.parent)!r}: {reason_of(error)}"
        warnings.warn(message, AgnoscoWarning, stacklevel=4)


def _content_digest(path: Path) -> bytes | str:
    """The digest of a file, or why it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return reason_of(error)


def _pixels_digest(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().data).hexdigest()
