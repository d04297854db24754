"""Reads the images of a folder: finds the files, and decodes them or takes them from the cache."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..errors import AgnoscoError
from ..types import OnProgress, Shape
from .cache import cache_key, read_cache, write_cache
from .decoding import DECODER, FORMATS, decode_files
from .files import MOST_FILES, Skipped, find_files, summary

MOST_BYTES = 2 * 2**30
"""Decoded images of a folder; fewer files are read if theirs would take more."""


class FolderImages(NamedTuple):
    """The images of a folder.

    Args:
        images: ``(N, C, H, W)`` uint8.
        skipped: Files and folders that gave no image, by name; of very many, the first ones.
        skipped_count: How many were skipped in all.
        files_read: Number of files that were read.
        files_total: Number of files in the folder; more than were read if some were chosen.
    """

    images: Tensor
    skipped: tuple[Skipped, ...]
    skipped_count: int
    files_read: int
    files_total: int


def read_folder(
    path: str | Path,
    shape: Shape,
    *,
    limit: int = MOST_FILES,
    cache: str | Path | None = None,
    progress: OnProgress | None = None,
) -> FolderImages:
    """Every image in a folder and its subfolders, or in one file, in the order of their names.

    Arguments and errors are those of :meth:`.samples.Samples.from_folder`.
    """
    listing = find_files(path, limit=min(limit, max(MOST_BYTES // math.prod(shape), 1)))
    files = listing.files
    cache_file = None if cache is None else Path(cache).expanduser() / f"{cache_key(files, shape, DECODER)}.safetensors"
    decoded = read_cache(cache_file, len(files), shape) if cache_file else None
    if decoded is None:
        decoded = decode_files(files, shape, progress)
        if cache_file and len(decoded[0]):
            write_cache(cache_file, *decoded)
    elif progress:
        progress(len(files), len(files))
    images, undecoded = decoded
    skipped = tuple(sorted([*listing.skipped, *undecoded], key=lambda file: file.name))
    result = FolderImages(images, skipped, listing.skipped_count + len(undecoded), len(files), listing.total)
    if not len(images):
        raise _no_image(path, result)
    return result


def _no_image(path: str | Path, folder: FolderImages) -> AgnoscoError:
    if not folder.skipped:
        return AgnoscoError(f"{str(path)!r} is empty", f"put images into it ({', '.join(FORMATS)})")
    chosen = folder.files_read < folder.files_total
    among = f" among {folder.files_read:,} of its {folder.files_total:,} files" if chosen else ""
    return AgnoscoError(
        f"no readable image in {str(path)!r}{among}: {summary(folder.skipped, folder.skipped_count)}",
        f"give images in one of these formats: {', '.join(FORMATS)}",
    )
