"""The sample set Ī: the images that a map is averaged over, stored as uint8.

Samples come from a folder of images, an array, a torch ``Dataset``, or are generated (:mod:`.procedural`).
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset

from ..errors import AgnoscoError, AgnoscoWarning
from ..types import OnProgress, Shape
from . import procedural
from .decoding import Unreadable, fit, stack
from .files import MOST_FILES, Skipped, summary
from .folder import read_folder
from .procedural import checked_shape

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in grey, as Pillow uses them (`ITU-R BT.601 <https://www.itu.int/rec/R-REC-BT.601>`_)."""

CHUNK = 64
"""Images of an array that are converted at a time; bounds memory."""

ROUNDING = 1e-4
"""How far floats may lie outside [0, 1], as resizing may put them, before they count as a mistake."""


class Samples:
    """Images of one shape, from which mini-batches are drawn at random.

    Args:
        images: ``(N, C, H, W)`` uint8.
        source: Where they come from, for reports and manifests: a name, not a path.
        skipped: Files of the source that gave no image; of very many, the first ones by name.

    Example:
        >>> from agnosco import Samples
        >>> samples = Samples.leaves((3, 32, 32), count=10)
        >>> samples
        Samples('leaves-10-seed0', 10 of shape (3, 32, 32))
        >>> samples.images.dtype
        torch.uint8
    """

    def __init__(self, images: Tensor, *, source: str, skipped: Iterable[Skipped] = ()) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
            raise AgnoscoError(
                f"samples must be a non-empty uint8 array (N, C, H, W), not {images.dtype} {tuple(images.shape)}",
                "use Samples.from_array, which converts floats in [0, 1]",
            )
        self.images = images
        self.source = source
        self.skipped = tuple(skipped)

    # -- where they come from -----------------------------------------------------------------

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        shape: Shape,
        *,
        limit: int = MOST_FILES,
        cache: str | Path | None = None,
        progress: OnProgress | None = None,
    ) -> Samples:
        """Every image in a folder and its subfolders, of any size and mode, in the order of their names.

        Images are turned upright, resized to cover the shape and cropped at the centre (:func:`.decoding.fit`). Files
        that are hidden or cannot be read are skipped, and named in ``skipped`` and in one warning.

        Args:
            path: A folder, or one image file.
            shape: ``(C, H, W)`` of the samples; C is 1 (grey) or 3 (RGB).
            limit: If there are more files than this, or more than fit into 2 GiB as images, that many are chosen by a
                hash of their names; ``source`` and a warning say so.
            cache: A folder in which decoded images are kept, such as :func:`.cache.default_cache`; None keeps nothing.
            progress: Called with the number of files done and their total.

        Raises:
            AgnoscoError: There is no such folder or no readable image in it, or the shape or the limit is invalid.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> from PIL import Image
            >>> from agnosco import Samples
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Image.new("RGB", (640, 480), "red").save(Path(folder) / "red.png")
            ...     samples = Samples.from_folder(folder, (3, 32, 32))
            >>> samples.images.shape
            torch.Size([1, 3, 32, 32])
        """
        folder = read_folder(path, checked_shape(shape), limit=limit, cache=cache, progress=progress)
        source = Path(os.path.abspath(Path(path).expanduser())).name or "folder"
        if folder.skipped:
            named = summary(folder.skipped, folder.skipped_count)
            message = f"skipped in {source!r}, which gave {len(folder.images)} images: {named}"
            warnings.warn(message, AgnoscoWarning, stacklevel=2)
        if folder.files_read < folder.files_total:
            counts = f"{folder.files_read:,} of {folder.files_total:,} files"
            warnings.warn(f"{counts} in {source!r} were chosen by their names", AgnoscoWarning, stacklevel=2)
            source += f" ({counts})"
        return cls(folder.images, source=source, skipped=folder.skipped)

    @classmethod
    def from_array(cls, array: Any, *, shape: Shape | None = None, source: str = "array") -> Samples:
        """Images from a NumPy array or a tensor, copied.

        Args:
            array: ``(N, C, H, W)``, ``(N, H, W, C)`` or grey ``(N, H, W)``; uint8, or float in [0, 1].
                The channels are last if that axis is 1 or 3 and the second is not.
            shape: ``(C, H, W)`` of the samples: images are cropped at the centre, resized (bilinear, antialiased), and
                made grey or RGB; None takes them as they are.
            source: What reports call them.

        Raises:
            AgnoscoError: The array has other axes, types or values, such as NaN.

        Example:
            >>> import numpy as np
            >>> from agnosco import Samples
            >>> Samples.from_array(np.zeros((5, 64, 64, 3)), shape=(1, 32, 32))
            Samples('array', 5 of shape (1, 32, 32))
        """
        array = _plain(array)
        channels, height, width = array.shape[1:] if shape is None else checked_shape(shape)
        images = torch.empty((len(array), channels, height, width), dtype=torch.uint8)
        for start in range(0, len(array), CHUNK):
            images[start : start + CHUNK] = _converted(array[start : start + CHUNK], (channels, height, width))
        return cls(images, source=source)

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        shape: Shape,
        *,
        limit: int | None = None,
        progress: OnProgress | None = None,
    ) -> Samples:
        """The images of a torch ``Dataset``; labels are ignored.

        Args:
            dataset: Its items are images, or tuples or lists that begin with one: PIL images, or what
                :meth:`from_array` takes, without the first axis. Sizes may differ.
            shape: ``(C, H, W)`` of the samples.
            limit: How many to take, spread evenly over the dataset, which may be sorted by class; of an iterable
                dataset, the first ones. None takes all.
            progress: Called with the number of images done and their total.

        Raises:
            AgnoscoError: An item is not an image, the dataset is empty, or its length is unknown and no limit is given.

        Example:
            >>> import torch
            >>> from torch.utils.data import TensorDataset
            >>> from agnosco import Samples
            >>> dataset = TensorDataset(torch.rand(100, 3, 32, 32), torch.zeros(100))
            >>> Samples.from_dataset(dataset, (3, 32, 32), limit=20)
            Samples('TensorDataset', 20 of shape (3, 32, 32))
        """
        checked_shape(shape)
        items, total = _items(dataset, limit)

        def images() -> Iterator[Tensor]:
            for done, item in enumerate(items, start=1):
                yield _image(item, shape, done - 1)
                if progress:
                    progress(done, total)

        stacked = stack(images(), shape)
        if not len(stacked):
            raise AgnoscoError(f"{type(dataset).__name__} is empty", "give a dataset with images, or leaves or noise")
        return cls(stacked, source=type(dataset).__name__)

    @classmethod
    def leaves(cls, shape: Shape, count: int = 800, seed: int = 0) -> Samples:
        """Dead leaves, which need no data: see :func:`.procedural.leaves`.

        Example:
            >>> from agnosco import Samples
            >>> Samples.leaves((1, 16, 16), count=4)
            Samples('leaves-4-seed0', 4 of shape (1, 16, 16))
        """
        return cls(procedural.leaves(count, shape, seed=seed), source=f"leaves-{count}-seed{seed}")

    @classmethod
    def noise(cls, shape: Shape, count: int = 800, seed: int = 0) -> Samples:
        """Gaussian 1/f noise, which needs no data: see :func:`.procedural.noise`.

        Example:
            >>> from agnosco import Samples
            >>> Samples.noise((3, 16, 16), count=4, seed=1)
            Samples('noise-4-seed1', 4 of shape (3, 16, 16))
        """
        return cls(procedural.noise(count, shape, seed=seed), source=f"noise-{count}-seed{seed}")

    # -- using them ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Samples({self.source!r}, {len(self)} of shape {self.shape})"

    @property
    def shape(self) -> Shape:
        """``(C, H, W)`` of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """A mini-batch ``(count, C, H, W)`` of float32 in [0, 1], with replacement."""
        return self.images[self.choose(count, generator)].float() / 255

    def choose(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices of the images that :meth:`draw` takes, ``(count,)``."""
        return torch.randint(len(self.images), (count,), generator=generator)

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, as float32 in [0, 1], ``size`` at a time."""
        for part in self.images.split(size):
            yield part.float() / 255

    def split(self, held_out: float = 0.2, *, seed: int = 0) -> tuple[Samples, Samples]:
        """Two disjoint sets: one to make maps with, and held-out images to judge them by.

        Only the first has ``skipped``.

        Args:
            held_out: Share of the images in the second set, in (0, 1).
            seed: Decides which images these are.

        Raises:
            AgnoscoError: One of the sets would be empty.
        """
        used, held_out_ones = self.split_indices(held_out, seed=seed)
        return (
            Samples(self.images[used], source=self.source, skipped=self.skipped),
            Samples(self.images[held_out_ones], source=self.source),
        )

    def split_indices(self, held_out: float = 0.2, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Indices of the images in each of the two sets of :meth:`split`, in order."""
        count = round(held_out * len(self))
        if not 0 < count < len(self):
            raise AgnoscoError(f"{len(self)} samples cannot be split at {held_out}", "give at least 3 images")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return order[count:].sort().values, order[:count].sort().values

    @property
    def fingerprint(self) -> str:
        """SHA-256 over shape and pixels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()


# -- arrays -------------------------------------------------------------------------------------


def _plain(array: Any) -> np.ndarray | Tensor:
    """A tensor on the CPU, or a NumPy array, with axes (N, C, H, W)."""
    array = array.detach().cpu() if isinstance(array, Tensor) else np.asarray(array)
    shape = tuple(array.shape)
    if len(shape) == 3:
        array = array[:, None]
    elif len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        array = array.permute(0, 3, 1, 2) if isinstance(array, Tensor) else array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape:
        raise AgnoscoError(
            f"an array of shape {shape} is not a set of images",
            "give (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, or grey images (N, H, W)",
        )
    return array


def _converted(chunk: np.ndarray | Tensor, shape: Shape) -> Tensor:
    """Some images of such an array as uint8 of a shape."""
    images = chunk if isinstance(chunk, Tensor) else _tensor(chunk)
    if images.dtype == torch.uint8 and images.shape[1:] == shape:
        return images
    pixels = _resized(_recoloured(_unit_floats(images), shape[0]), shape[1:])
    return (pixels * 255).round().to(torch.uint8)


def _tensor(chunk: np.ndarray) -> Tensor:
    if chunk.dtype == np.uint8:
        return torch.from_numpy(np.array(chunk))
    if np.issubdtype(chunk.dtype, np.floating):
        return torch.from_numpy(np.array(chunk, dtype=np.float32))  # of any width or byte order
    raise _wrong_type(chunk.dtype)


def _unit_floats(images: Tensor) -> Tensor:
    """Pixels in [0, 1]."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise _wrong_type(images.dtype)
    low, high = (value.item() for value in images.aminmax())
    if low != low:
        raise AgnoscoError("the array holds NaN", "remove the images that hold it")
    if low < -ROUNDING or high > 1 + ROUNDING:
        bytes_like = low >= 0 and high <= 255
        raise AgnoscoError(
            f"float pixels must lie in [0, 1], but these span [{low:.4g}, {high:.4g}]",
            "divide by 255, or pass uint8" if bytes_like else "undo the normalisation of the pixels first",
        )
    return images.float().clamp(0, 1)


def _wrong_type(dtype: Any) -> AgnoscoError:
    return AgnoscoError(
        f"pixels cannot be {str(dtype).removeprefix('torch.')}", "give uint8 in [0, 255] or float in [0, 1]"
    )


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


# -- datasets -----------------------------------------------------------------------------------


def _items(dataset: Any, limit: int | None) -> tuple[Iterable[Any], int]:
    """The items to take, and how many there are at most."""
    if limit is not None and limit < 1:
        raise AgnoscoError(f"a limit of {limit} leaves no samples", "give at least 1")
    length = len(dataset) if hasattr(dataset, "__len__") else None
    bounds = [bound for bound in (length, limit) if bound is not None]
    if not bounds:
        raise AgnoscoError(f"{type(dataset).__name__} has no known length", "give a limit")
    total = min(bounds)
    if length is None or isinstance(dataset, IterableDataset):
        return islice(dataset, total), total
    return (dataset[index * length // total] for index in range(total)), total


def _image(item: Any, shape: Shape, number: int) -> Tensor:
    """The image of a dataset's item, ``(C, H, W)`` uint8."""
    image = item[0] if isinstance(item, tuple | list) and len(item) > 0 else item
    try:
        if isinstance(image, Image.Image):
            return fit(image, shape)
        if isinstance(image, Tensor | np.ndarray):
            return _converted(_plain(image[None]), shape)[0]
    except (AgnoscoError, Unreadable) as error:
        hint = error.hint if isinstance(error, AgnoscoError) else "convert it to RGB in the dataset"
        reason = error.message if isinstance(error, AgnoscoError) else str(error)
        raise AgnoscoError(f"sample {number} of the dataset: {reason}", hint) from error
    raise AgnoscoError(
        f"sample {number} of the dataset is {type(image).__name__}, not an image",
        "give PIL images, tensors or arrays, alone or first in a tuple",
    )
