"""Image files of any size and mode as uint8 tensors of one shape, in parallel and cached by content.

Nothing is left out silently: whatever in a folder does not become an image is named, with its
reason, in a :class:`Skipped`. Files are untrusted: only well-known formats are tried (none that
starts another program), only regular files are opened, and sizes are limited as Pillow limits them.
So is what a folder may take of memory: of very many files some are chosen, and of very many that are
skipped the rest are counted.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import os
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import AgnoscoError, AgnoscoWarning
from ..types import OnProgress, Shape

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is tried; Pillow knows others, but some are run through external programs (EPS) or look like text."""

DECODER = f"1 Pillow {PIL.__version__}"
"""Part of a cache's key: the number grows whenever this file would decode anything differently."""

WORKERS = min(8, os.cpu_count() or 1)
PENDING = 4
"""Images per worker that are decoded ahead of the one that is waited for; bounds memory."""

BLOCK_BYTES = 16 * 2**20
"""Of images that are stacked together first."""

MOST_FILES = 10_000
"""Files of a folder that are read unless told otherwise: ten times what a map needs (the paper's 800 to 1000)."""

MOST_BYTES = 2 * 2**30
"""Decoded images of a folder: fewer files are read where theirs would take more."""

KEPT = 1000
"""Files and folders passed over that are kept by name; the rest are counted."""

NAMED = 3
"""Skipped files that a message names before it counts the rest."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Skipped:
    """A file or folder that gave no image.

    Args:
        name: Its path beneath the folder that was read, with ``/`` between parts.
        reason: Why, in a few words, such as ``"truncated"``.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name!r} ({self.reason})"  # repr: a file name may hold line breaks or escapes


class Decoded(NamedTuple):
    """Images ``(N, C, H, W)`` uint8 of files, and those that gave none."""

    images: Tensor
    skipped: tuple[Skipped, ...]


class Folder(NamedTuple):
    """What a folder gave.

    Args:
        images: ``(N, C, H, W)`` uint8.
        skipped: What is not among them, by name; of what was passed over, the first :data:`KEPT`.
        left_out: How many were skipped in all.
        read: Files that were read.
        files: Files that there are; more than were read where some were chosen.
    """

    images: Tensor
    skipped: tuple[Skipped, ...]
    left_out: int
    read: int
    files: int


def read_folder(
    path: str | Path,
    shape: Shape,
    *,
    limit: int = MOST_FILES,
    cache: str | Path | None = None,
    progress: OnProgress | None = None,
) -> Folder:
    """Every image beneath a folder, or in one file, in the order of their names.

    Args:
        path: Folder, or image file.
        shape: ``(C, H, W)`` wanted, C being 1 or 3.
        limit: Read at most so many files, and no more than fit into :data:`MOST_BYTES`; see :func:`find_files`.
        cache: Folder that keeps the result under a key made from the files' content; None for none.
        progress: Called with files done and their total, in the caller's thread.

    Raises:
        AgnoscoError: Nothing there, nothing that can be read, or a limit that leaves none.
    """
    found = find_files(path, limit=min(limit, max(MOST_BYTES // math.prod(shape), 1)))
    files = found.files
    kept = None if cache is None else Path(cache).expanduser() / f"{_key(files, shape)}.safetensors"
    decoded = _load(kept, files, shape) if kept else None
    if decoded is None:
        decoded = _decode_all(files, shape, progress)
        if kept and len(decoded.images):
            _save(kept, decoded)
    elif progress:
        progress(len(files), len(files))
    skipped = tuple(sorted([*found.skipped, *decoded.skipped], key=lambda one: one.name))
    left_out = found.passed + len(decoded.skipped)
    read = Folder(decoded.images, skipped, left_out, len(files), found.total)
    if not len(read.images):
        raise _no_image(path, read)
    return read


def summary(skipped: Sequence[Skipped], count: int) -> str:
    """The first few of so many by name, and a count of the rest."""
    rest = f" and {count - NAMED} more" if count > NAMED else ""
    return ", ".join(map(str, skipped[:NAMED])) + rest


def default_cache() -> Path:
    """Where decoded samples are kept: ``$AGNOSCO_CACHE``, else ``agnosco`` in the user's cache folder.

    That folder is ``$XDG_CACHE_HOME`` or ``~/.cache`` (XDG Base Directory Specification, which has
    relative paths ignored).
    """
    if chosen := os.environ.get("AGNOSCO_CACHE"):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "agnosco"


# -- finding files ------------------------------------------------------------------------------


class Found(NamedTuple):
    """What lies beneath a folder.

    Args:
        files: Regular files by their relative names, sorted; if there are too many, those chosen.
        total: How many there are.
        skipped: What was passed over, by name: the first :data:`KEPT`.
        passed: How many were.
    """

    files: dict[str, Path]
    total: int
    skipped: list[Skipped]
    passed: int


def find_files(path: str | Path, *, limit: int = MOST_FILES) -> Found:
    """The regular files beneath a folder; or the one file, where the path is that of a file.

    Hidden files and folders are passed over, and so are links to folders, which may lead round in a circle, and links
    to files outside of the folder: a folder that somebody else packed could name any file of one's own.

    Args:
        path: Folder or file.
        limit: Of more files than this, so many are chosen, by a hash of their names: as if at random, but
            the same ones wherever the folder lies and in whatever order it is listed. Names are looked at one
            by one, so that memory is bounded by this and not by their number.

    Raises:
        AgnoscoError: There is no such folder, it may not be read, or the limit is below 1.
    """
    if limit < 1:
        raise AgnoscoError(f"a limit of {limit} leaves no samples", "give at least 1")
    root = Path(path).expanduser()
    try:
        if root.is_file():  # or a link to one: it was named by whoever typed it
            return Found({root.name: root}, 1, [], 0)
        listing = _Listing(root)
        chosen = heapq.nsmallest(limit, listing.names(), key=_rank)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AgnoscoError(
            f"no folder {str(path)!r}", "check the path; 'leaves' and 'noise' are samples that need no folder"
        ) from error
    except OSError as error:
        raise AgnoscoError(f"cannot read {str(path)!r}: {_why(error)}", "check its permissions") from error
    files = {name: root / name for name in sorted(chosen)}
    return Found(files, listing.total, listing.skipped(), listing.passed)


def _rank(name: str) -> bytes:
    """A file's place among those that may be chosen; file names may hold what UTF-8 cannot."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


class _Listing:
    """The names of regular files beneath a folder, and a count of them and of what is passed over."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root.resolve()
        self.total = self.passed = 0
        self._skipped: list[Skipped] = []

    def names(self) -> Iterator[str]:
        """Relative names with ``/`` between parts, in no order."""
        folders = [""]
        while folders:
            beneath = folders.pop()
            try:
                with os.scandir(self.root / beneath) as entries:
                    for entry in entries:
                        name = beneath + entry.name
                        if obstacle := _obstacle(entry, self.home):
                            self._pass(name, obstacle)
                        elif entry.is_dir():
                            folders.append(f"{name}/")
                        else:
                            self.total += 1
                            yield name
            except OSError as error:
                if not beneath:
                    raise
                self._pass(beneath[:-1], _why(error))

    def _pass(self, name: str, reason: str) -> None:
        self.passed += 1
        self._skipped.append(Skipped(name, reason))
        if len(self._skipped) > 2 * KEPT:
            self._skipped = self.skipped()

    def skipped(self) -> list[Skipped]:
        """The first :data:`KEPT` of what was passed over, by name."""
        return sorted(self._skipped, key=lambda one: one.name)[:KEPT]


def _obstacle(entry: os.DirEntry[str], home: Path) -> str | None:
    """Why this is neither a folder to look into nor a file to open."""
    try:
        folder, file = entry.is_dir(), entry.is_file()
    except OSError as error:  # such as a link to itself
        return _why(error)
    if entry.name.startswith("."):
        return "hidden folder" if folder else "hidden"
    if folder:
        return "link to a folder, not followed" if entry.is_symlink() else None
    if file:
        leads_out = entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(home)
        return "link out of the folder, not followed" if leads_out else None
    broken = entry.is_symlink() and not os.path.exists(entry.path)
    return "broken link" if broken else "not a regular file"  # opening a pipe or a device may never return


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _no_image(path: str | Path, found: Folder) -> AgnoscoError:
    if not found.skipped:
        return AgnoscoError(f"{str(path)!r} is empty", f"put images into it ({', '.join(FORMATS)})")
    tried = f" among {found.read:,} of its {found.files:,} files" if found.read < found.files else ""
    return AgnoscoError(
        f"no readable image in {str(path)!r}{tried}: {summary(found.skipped, found.left_out)}",
        f"give images of one of these formats: {', '.join(FORMATS)}",
    )


# -- decoding -----------------------------------------------------------------------------------


class Unreadable(Exception):
    """A file's content that gives no image, with the reason for :class:`Skipped`."""


def decode(path: Path, shape: Shape) -> Tensor:
    """One file as a uint8 image.

    Raises:
        Unreadable: It cannot be opened, is no image, is damaged, or is too large.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
            if not head:
                raise Unreadable("empty file")
            return fit(_opened(file, head, max(shape[1:])), shape)
    except OSError as error:
        raise Unreadable(_why(error)) from error


def fit(image: Image.Image, shape: Shape) -> Tensor:
    """A PIL image as it will be seen: resized (bicubic, antialiased) to cover the shape, and cropped at the centre.

    16-bit greys are scaled to 8 bits; transparent parts show white, as on a page; colour profiles
    are ignored; colours become grey by luma (ITU-R BT.601).

    Args:
        image: Any size and mode.
        shape: ``(C, H, W)``; C is 1 for grey or 3 for RGB.

    Returns:
        ``(C, H, W)`` uint8.

    Raises:
        Unreadable: Its pixels have no known meaning as grey or colour.
    """
    channels, height, width = shape
    if not image.width * image.height:
        raise Unreadable("no pixels")
    plain = _rgb(image)
    if channels == 1:
        plain = plain.convert("L")
    pixels = np.array(ImageOps.fit(plain, (width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).view(height, width, channels).permute(2, 0, 1).contiguous()


def _opened(file: IO[bytes], head: bytes, side: int) -> Image.Image:
    """The first frame, loaded and upright; JPEGs at a fraction of their size where that is enough."""
    try:
        image = Image.open(file, formats=_formats())
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:  # Pillow itself only warns up to twice that
            raise Unreadable(_too_large())
        # Twice the size, so that bicubic resizing, and not the JPEG decoder, sets the sharpness.
        image.draft(None, (2 * side, 2 * side))
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable(_too_large()) from error
    except UnidentifiedImageError as error:
        known = any(accept and accept(head) is True for _, accept in (Image.OPEN[name] for name in _formats()))
        raise Unreadable("damaged or truncated" if known else "not an image") from error
    except Unreadable:
        raise
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        what = str(error) or type(error).__name__
        raise Unreadable("truncated" if "truncated" in what.lower() else f"damaged: {what}") from error
    with suppress(Exception):  # damaged EXIF data is no reason to lose the image
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # a Pillow may be built without some


def _too_large() -> str:
    return f"more than {Image.MAX_IMAGE_PIXELS} pixels"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    try:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return image.convert("RGB")
    except ValueError as error:
        raise Unreadable(f"pixels of mode {image.mode}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits (modes ``I`` and ``I;16``), or floats in [0, 1], which Pillow would clip at 255."""
    values = np.asarray(image)
    full = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= full):  # so written that NaN fails
        raise Unreadable(f"pixels outside [0, {full}]")
    return Image.fromarray(np.rint(values * (255 / full)).astype(np.uint8))


def _decode_all(files: dict[str, Path], shape: Shape, progress: OnProgress | None) -> Decoded:
    def attempt(path: Path) -> Tensor | str:
        try:
            return decode(path, shape)
        except Unreadable as reason:
            return str(reason)

    skipped = []

    def images() -> Iterator[Tensor]:
        for done, (name, result) in enumerate(zip(files, in_order(attempt, files.values()), strict=True), start=1):
            if isinstance(result, Tensor):
                yield result
            else:
                skipped.append(Skipped(name, result))
            if progress:
                progress(done, len(files))

    return Decoded(gathered(images(), shape), tuple(skipped))


def gathered(images: Iterable[Tensor], shape: Shape) -> Tensor:
    """Stacks images as they come, so that they are never all in memory twice.

    By way of blocks, which an allocator gives back to the system when they are done with, as it does not single images.
    """
    size = max(BLOCK_BYTES // math.prod(shape), 1)
    blocks: deque[Tensor] = deque()
    count = 0
    for image in images:
        if count % size == 0:
            blocks.append(torch.empty((size, *shape), dtype=torch.uint8))
        blocks[-1][count % size].copy_(image)
        count += 1
    stack = torch.empty((count, *shape), dtype=torch.uint8)
    for start in range(0, count, size):
        rows = stack[start : start + size]
        rows.copy_(blocks.popleft()[: len(rows)])
    return stack


def in_order(function: Callable[[T], R], items: Iterable[T], *, workers: int = WORKERS) -> Iterator[R]:
    """As ``map``, but by several threads that run at most :data:`PENDING` items each ahead of the reader."""
    with ThreadPoolExecutor(workers) as pool:
        pending = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= PENDING * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


# -- the cache ----------------------------------------------------------------------------------


def _key(files: dict[str, Path], shape: Shape) -> str:
    """SHA-256 over names, contents, shape and decoder."""
    digest = hashlib.sha256(json.dumps([DECODER, shape, list(files)]).encode())
    for content in in_order(_content, files.values()):
        digest.update(content)
    return digest.hexdigest()


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return hashlib.sha256(_why(error).encode()).digest()  # skipped later, for the same reason


def _load(kept: Path, files: dict[str, Path], shape: Shape) -> Decoded | None:
    """What a cache file holds, or None if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(kept, framework="pt") as file:
            notes, images = json.loads(file.metadata()["agnosco"]), file.get_tensor("images").clone()
        skipped = tuple(Skipped(*entry) for entry in notes["skipped"])
        whole = notes["sha256"] == _pixels_digest(images) and len(images) + len(skipped) == len(files)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    return Decoded(images, skipped) if whole and images.shape[1:] == shape else None


def _save(kept: Path, decoded: Decoded) -> None:
    """Writes a cache file as a whole or not at all; a cache that cannot be written is no error."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    notes = {"skipped": [astuple(one) for one in decoded.skipped], "sha256": _pixels_digest(decoded.images)}
    metadata = {"agnosco": json.dumps(notes)}  # one entry: safetensors writes several in any order
    unfinished = kept.with_name(f"{kept.stem}.{uuid.uuid4().hex}.tmp")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": decoded.images}, unfinished, metadata=metadata)
        os.replace(unfinished, kept)
    except (OSError, SafetensorError) as error:
        why = _why(error) if isinstance(error, OSError) else error
        warnings.warn(f"samples could not be cached in {str(kept.parent)!r}: {why}", AgnoscoWarning, stacklevel=4)
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _pixels_digest(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().data).hexdigest()
