"""Arrays, tensors and items of datasets as uint8 images of one shape."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from ..errors import AgnoscoError
from ..types import Shape
from .decoding import Unreadable, fit
from .files import check_limit

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in grey, as Pillow uses them (`ITU-R BT.601 <https://www.itu.int/rec/R-REC-BT.601>`_)."""

CHUNK = 64
"""Images of an array that are converted at a time; bounds memory."""

ROUNDING = 1e-4
"""How far floats may lie outside [0, 1], as resizing may put them, before they count as a mistake."""


def stored(array: Any, shape: Shape | None) -> Tensor:
    """The images of a NumPy array or a tensor as a new uint8 tensor; see :meth:`.samples.Samples.from_array`."""
    array = _plain(array)
    channels, height, width = array.shape[1:] if shape is None else shape
    images = torch.empty((len(array), channels, height, width), dtype=torch.uint8)
    for start in range(0, len(array), CHUNK):
        images[start : start + CHUNK] = _converted(array[start : start + CHUNK], (channels, height, width))
    return images


def _plain(array: Any) -> np.ndarray | Tensor:
    """A tensor on the CPU, or a NumPy array, with axes (N, C, H, W), of bytes or floats."""
    array = array.detach().cpu() if isinstance(array, Tensor) else np.asarray(array)
    shape = tuple(array.shape)
    if len(shape) == 3:
        array = array[:, None]
    elif len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        array = array.permute(0, 3, 1, 2) if isinstance(array, Tensor) else array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape:
        message = f"an array of shape {shape} is not a set of images"
        raise AgnoscoError(message, "give (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, or grey images (N, H, W)")
    is_float = array.is_floating_point() if isinstance(array, Tensor) else np.issubdtype(array.dtype, np.floating)
    dtype = str(array.dtype).removeprefix("torch.")
    if not is_float and dtype != "uint8":
        raise AgnoscoError(f"pixels cannot be {dtype}", "give uint8 in [0, 255] or float in [0, 1]")
    return array


def _converted(chunk: np.ndarray | Tensor, shape: Shape) -> Tensor:
    """Some images of such an array as uint8 of a shape."""
    if isinstance(chunk, np.ndarray):  # floats of any width or byte order
        chunk = torch.from_numpy(np.array(chunk, dtype=np.uint8 if chunk.dtype == np.uint8 else np.float32))
    if chunk.dtype == torch.uint8 and chunk.shape[1:] == shape:
        return chunk
    pixels = _resized(_recoloured(_unit_floats(chunk), shape[0]), shape[1:])
    return (pixels * 255).round().to(torch.uint8)


def _unit_floats(images: Tensor) -> Tensor:
    """Pixels in [0, 1]."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    low, high = (value.item() for value in images.aminmax())
    if low != low:
        raise AgnoscoError("the array holds NaN", "remove the images that hold it")
    if low < -ROUNDING or high > 1 + ROUNDING:
        bytes_like = low >= 0 and high <= 255
        hint = "divide by 255, or pass uint8" if bytes_like else "undo the normalisation of the pixels first"
        raise AgnoscoError(f"float pixels must lie in [0, 1], but these span [{low:.4g}, {high:.4g}]", hint)
    return images.float().clamp(0, 1)


def _recoloured(pixels: Tensor, channels: int) -> Tensor:
    """Grey to RGB by repetition, RGB to grey by luma."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1)
    return (pixels * pixels.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre, cropped to the proportions of a size and scaled to it."""
    height, width = pixels.shape[2:]
    if (height, width) == size:
        return pixels
    scale = min(height / size[0], width / size[1])
    rows, columns = (max(round(scale * side), 1) for side in size)
    top, left = (height - rows) // 2, (width - columns) // 2
    crop = pixels[:, :, top : top + rows, left : left + columns]
    return F.interpolate(crop, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def items_of(dataset: Any, limit: int | None) -> tuple[Iterable[Any], int]:
    """The items to take, and their greatest number."""
    if limit is not None:
        check_limit(limit)
    length = len(dataset) if hasattr(dataset, "__len__") else None
    bounds = [bound for bound in (length, limit) if bound is not None]
    if not bounds:
        raise AgnoscoError(f"{type(dataset).__name__} has no known length", "give a limit")
    total = min(bounds)
    if length is None or isinstance(dataset, IterableDataset):
        return islice(dataset, total), total
    return (dataset[index * length // total] for index in range(total)), total


def image_of(item: Any, shape: Shape, number: int) -> Tensor:
    """The image of a dataset's item, ``(C, H, W)`` uint8."""
    image = item[0] if isinstance(item, tuple | list) and len(item) > 0 else item
    try:
        if isinstance(image, Image.Image):
            return fit(image, shape)
        if isinstance(image, Tensor | np.ndarray):
            return _converted(_plain(image[None]), shape)[0]
    except AgnoscoError as error:
        raise AgnoscoError(f"sample {number} of the dataset: {error.message}", error.hint) from error
    except Unreadable as error:
        raise AgnoscoError(f"sample {number} of the dataset: {error}", "convert it to RGB in the dataset") from error
    message = f"sample {number} of the dataset is {type(image).__name__}, not an image"
    raise AgnoscoError(message, "give PIL images, tensors or arrays, alone or first in a tuple")
