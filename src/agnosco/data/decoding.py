"""Decodes image files of any size and mode to uint8 tensors of one shape.

Files are not trusted: only well-known formats are tried, none that runs another program, up to Pillow's limit of size.
"""

import errno
import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..io.storage import in_order, reason_of
from ..types import OnProgress, Resize, Shape
from .files import THREADS, Skipped

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are tried; Pillow knows others, but some run external programs (EPS) or look like text."""

DECODER = f"1 Pillow {PIL.__version__}"
"""Part of a cache's key; increase the number whenever this module would decode anything differently."""

BLOCK_BYTES = 16 * 2**20
"""Size of the blocks in which images are first stacked."""


Content = Path | IO[bytes] | str
"""A file, what it contains, or why it is not read."""


OF_CONTENT = (None, errno.EINVAL, errno.EOVERFLOW)
"""Numbers of errors that a file's content is at fault for: Pillow's own, and places that no file reaches."""


class Unreadable(Exception):
    """A file gives no image; the message says why, in a few words. ``momentary``: it may be read another time."""

    def __init__(self, reason: str, *, momentary: bool = False) -> None:
        super().__init__(reason)
        self.momentary = momentary


def decode(content: Path | IO[bytes], shape: Shape, resize: Resize | None = None) -> Tensor:
    """One file as a uint8 image; Unreadable if it cannot be opened, is no image, is damaged, or is too large."""
    try:
        with content.open("rb") if isinstance(content, Path) else content as file:
            head = file.read(16)
            if not head:
                raise Unreadable("empty file")
            side = max(shape[1:]) / (resize.crop_pct if resize else 1)
            return fit(_open(file, head, math.ceil(side)), shape, resize)
    except OSError as error:
        raise Unreadable(reason_of(error), momentary=error.errno not in OF_CONTENT) from error


def fit(image: Image.Image, shape: Shape, resize: Resize | None = None) -> Tensor:
    """A PIL image of any size and mode as ``(C, H, W)`` uint8.

    It is resized (bicubic, antialiased) to cover the shape and cropped at the centre, or as ``resize`` says. 16-bit
    grey is scaled to 8 bits, transparent parts become white, colour profiles are ignored; colours become grey, if C is
    1, by luma (`ITU-R BT.601 <https://www.itu.int/rec/R-REC-BT.601>`_). Unreadable if its pixels cannot be interpreted
    as grey or colour.
    """
    channels, height, width = shape
    if not image.width * image.height:
        raise Unreadable("no pixels")
    plain = _rgb(image).convert("L") if channels == 1 else _rgb(image)
    if resize is None:
        fitted = ImageOps.fit(plain, (width, height), Image.Resampling.BICUBIC)
    else:
        fitted = _resized(plain, width, height, resize)
    return torch.from_numpy(np.array(fitted)).view(height, width, channels).permute(2, 0, 1).contiguous()


def _resized(image: Image.Image, width: int, height: int, rule: Resize) -> Image.Image:
    """The part of the resized image that a rule keeps. The rest, which may be very long, is not computed."""
    across, down = round(width / rule.crop_pct), round(height / rule.crop_pct)  # of the whole image, resized
    if rule.crop_mode == "center":
        wide = image.width * down > across * image.height
        across, down = (
            (down * image.width // image.height, down) if wide else (across, across * image.height // image.width)
        )
    left, top = (across - width) // 2, (down - height) // 2
    x, y = image.width / across, image.height / down
    box = (left * x, top * y, (left + width) * x, (top + height) * y)
    return image.resize((width, height), Image.Resampling[rule.interpolation.upper()], box)


def _open(file: IO[bytes], head: bytes, side: int) -> Image.Image:
    """The first frame, loaded and turned upright; a large JPEG at a fraction of its size if that is enough."""
    try:
        image = Image.open(file, formats=_formats())
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:  # Pillow itself only warns up to twice that
            raise Image.DecompressionBombError
        # Twice the size, so that bicubic resizing determines the sharpness, not the JPEG decoder.
        image.draft(None, (2 * side, 2 * side))
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        known = any(accept and accept(head) is True for _, accept in (Image.OPEN[name] for name in _formats()))
        raise Unreadable("damaged or truncated" if known else "not an image") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        reason = str(error) or type(error).__name__
        if isinstance(error, MemoryError) or getattr(error, "errno", None) not in OF_CONTENT:
            raise Unreadable(f"cannot be read: {reason}", momentary=True) from error
        raise Unreadable("truncated" if "truncated" in reason.lower() else f"damaged: {reason}") from error
    with suppress(Exception):  # damaged EXIF data is no reason to skip the image
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # a Pillow may be built without some


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
    """16-bit grey (modes ``I`` and ``I;16``) or floats in [0, 1] as 8 bits; Pillow would clip them at 255."""
    values = np.asarray(image)
    full = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= full):  # false for NaN, too
        raise Unreadable(f"pixels outside [0, {full}]")
    return Image.fromarray(np.rint(values * (255 / full)).astype(np.uint8))


def decode_files(
    files: Iterable[tuple[str, Content]],
    count: int,
    shape: Shape,
    progress: OnProgress | None,
    resize: Resize | None = None,
) -> tuple[Tensor, tuple[Skipped, ...]]:
    """Images ``(N, C, H, W)`` uint8 of ``count`` files with their names, and the files that gave none."""

    def attempt(file: tuple[str, Content]) -> Tensor | Skipped:
        name, content = file
        try:
            return Skipped(name, content) if isinstance(content, str) else decode(content, shape, resize)
        except Unreadable as reason:
            return Skipped(name, str(reason), reason.momentary)

    skipped: list[Skipped] = []

    def images() -> Iterator[Tensor]:
        results = in_order(attempt, files, threads=THREADS)
        for done, result in enumerate(results, start=1):
            if isinstance(result, Tensor):
                yield result
            else:
                skipped.append(result)
            if progress:
                progress(done, count)

    stacked = stack(images(), shape)  # which fills ``skipped``
    return stacked, tuple(skipped)


def stack(images: Iterable[Tensor], shape: Shape) -> Tensor:
    """Images ``(N, C, H, W)`` uint8, stacked as they come, so that they are never all in memory twice.

    They are collected in blocks, since the memory of blocks, unlike that of single images, returns to the system.
    """
    size = max(BLOCK_BYTES // math.prod(shape), 1)
    blocks: deque[Tensor] = deque()
    count = 0
    for image in images:
        if count % size == 0:
            blocks.append(torch.empty((size, *shape), dtype=torch.uint8))
        blocks[-1][count % size].copy_(image)
        count += 1
    stacked = torch.empty((count, *shape), dtype=torch.uint8)
    for start in range(0, count, size):
        rows = stacked[start : start + size]
        rows.copy_(blocks.popleft()[: len(rows)])
    return stacked
