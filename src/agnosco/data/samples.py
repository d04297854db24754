"""The sample set Ī: images that a map is averaged over, stored as uint8."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import AgnoscoError, AgnoscoWarning
from ..types import OnProgress, Resize, Shape
from . import arrays, procedural
from .archives import is_archive, read_archive
from .cache import cache_key, read_cache, write_cache
from .decoding import DECODER, FORMATS, decode_files, stack
from .files import ARRAY, MADE, MOST_FILES, FolderFiles, Skipped, chosen_of, find_files, is_marked, no_folder, summary
from .hub_datasets import HUB, is_dataset, read_dataset
from .procedural import checked_shape

FOLDER_BYTES = 2 * 2**30
"""Decoded images of a folder; fewer files are read if theirs would take more."""


class Samples:
    """Images of one shape, from which mini-batches are drawn at random.

    Args:
        images: ``(N, C, H, W)`` uint8.
        source: Where they come from, for reports and manifests: a name, not a path.
        skipped: Files of the source that gave no image; of very many, the first ones by name.
        private: Whether run folders, reports and scans may show none of them.

    Example:
        >>> from agnosco import Samples
        >>> Samples.leaves((3, 32, 32), count=10)
        Samples('leaves-10-seed0', 10 of shape (3, 32, 32))
    """

    def __init__(self, images: Tensor, *, source: str, skipped: Iterable[Skipped] = (), private: bool = False) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
            message = f"samples must be a non-empty uint8 array (N, C, H, W), not {images.dtype} {tuple(images.shape)}"
            raise AgnoscoError(message, "use Samples.from_array, which converts floats in [0, 1]")
        self.images = images
        self.source = source
        self.skipped = tuple(skipped)
        self.private = private

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        shape: Shape,
        *,
        resize: Resize | None = None,
        limit: int = MOST_FILES,
        seed: int = 0,
        cache: str | Path | None = None,
        progress: OnProgress | None = None,
    ) -> Samples:
        """Every image in a folder and its subfolders, in the order of their names.

        Images of any size and mode are turned upright, resized to cover the shape and cropped at the centre, or as
        ``resize`` says (:func:`.decoding.fit`). Hidden and unreadable files are skipped, and named in ``skipped`` and
        in one warning. A file ``.private`` in the folder, or in any above or below, makes the samples private.

        Args:
            path: A folder, one image file, or a ``.tar`` of images, which is not unpacked and not cached; or a data set
                of Hugging Face: a folder that ``save_to_disk`` wrote, or ``hf:ORG/NAME``, with ``:SPLIT`` and
                ``@REVISION`` if need be.
            shape: ``(C, H, W)`` of the samples; C is 1 (grey) or 3 (RGB).
            resize: How the network's own images were resized (``classifier.resize``); None covers the shape.
            limit: If there are more files than this, or more than fit into 2 GiB as images, that many are chosen by a
                hash of their names and the seed, the same on every machine; ``source`` and a warning say so. Those of
                a smaller limit are among those of a larger one.
            seed: Of that choice, from 0.
            cache: A folder in which decoded images are kept, such as :func:`.cache.default_cache`; None keeps nothing.
            progress: Called with the number of files done and their total.

        Raises:
            AgnoscoError: There is no such folder, it has no readable image, or the shape or the limit is invalid.

        Example:
            >>> from PIL import Image
            >>> from agnosco import Samples
            >>> Image.new("RGB", (640, 480), "red").save("red.png")
            >>> Samples.from_folder("red.png", (3, 32, 32))
            Samples('red.png', 1 of shape (3, 32, 32))
        """
        images, folder = read_folder(
            path, checked_shape(shape), resize=resize, limit=limit, seed=seed, cache=cache, progress=progress
        )
        on_hub = str(path).startswith(HUB)
        source = str(path) if on_hub else os.path.basename(os.path.abspath(os.path.expanduser(path))) or "folder"
        if folder.skipped:
            named = summary(folder.skipped, folder.skipped_count)
            message = f"skipped in {source!r}, which gave {len(images)} images: {named}"
            warnings.warn(message, AgnoscoWarning, stacklevel=2)
        if len(folder.files) < folder.total:
            counts = f"{len(folder.files):,} of {folder.total:,} files"
            chosen = f"chosen by their names{f' and the seed {seed}' if seed else ''}"
            warnings.warn(f"{counts} in {source!r} were {chosen}", AgnoscoWarning, stacklevel=2)
            source = chosen_of(source, len(folder.files), folder.total, seed)
        private = folder.private or (not on_hub and is_marked(path))
        return cls(images, source=source, skipped=folder.skipped, private=private)

    @classmethod
    def from_array(cls, array: Any, *, shape: Shape | None = None, source: str = ARRAY) -> Samples:
        """Images from a NumPy array or a tensor, copied.

        Args:
            array: ``(N, C, H, W)``, ``(N, H, W, C)`` or grey ``(N, H, W)``; uint8, or float in [0, 1].
                The channels are last if that axis is 1 or 3 and the second is not.
            shape: ``(C, H, W)`` of the samples: images are cropped at the centre, resized (bilinear, antialiased), and
                made grey or RGB; None takes them as they are.
            source: What reports call them.

        Raises:
            AgnoscoError: The array has other axes or another type, or values outside [0, 1] or NaN.

        Example:
            >>> import numpy as np
            >>> from agnosco import Samples
            >>> Samples.from_array(np.zeros((5, 64, 64, 3)), shape=(1, 32, 32))
            Samples('array', 5 of shape (1, 32, 32))
        """
        return cls(arrays.stored(array, None if shape is None else checked_shape(shape)), source=source)

    @classmethod
    def from_dataset(
        cls, dataset: Dataset, shape: Shape, *, limit: int | None = None, progress: OnProgress | None = None
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
            AgnoscoError: An item is not an image, the dataset is empty, or it has no length and no limit is given.

        Example:
            >>> import torch
            >>> from agnosco import Samples
            >>> dataset = torch.utils.data.TensorDataset(torch.rand(100, 3, 32, 32))
            >>> Samples.from_dataset(dataset, (3, 32, 32), limit=20)
            Samples('TensorDataset', 20 of shape (3, 32, 32))
        """
        checked_shape(shape)
        items, total = arrays.items_of(dataset, limit)

        def images() -> Iterator[Tensor]:
            for done, item in enumerate(items, start=1):
                yield arrays.image_of(item, shape, done - 1)
                if progress:
                    progress(done, total)

        stacked = stack(images(), shape)
        if not len(stacked):
            raise AgnoscoError(f"{type(dataset).__name__} is empty", "give a dataset with at least one image")
        return cls(stacked, source=type(dataset).__name__)

    @classmethod
    def leaves(cls, shape: Shape, count: int = MADE, seed: int = 0) -> Samples:
        """Dead leaves, which need no data: see :func:`.procedural.leaves`."""
        return cls(procedural.leaves(count, shape, seed=seed), source=f"leaves-{count}-seed{seed}")

    @classmethod
    def noise(cls, shape: Shape, count: int = MADE, seed: int = 0) -> Samples:
        """Gaussian 1/f noise, which needs no data: see :func:`.procedural.noise`."""
        return cls(procedural.noise(count, shape, seed=seed), source=f"noise-{count}-seed{seed}")

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

    def part(self, indices: Tensor | slice) -> Samples:
        """The images with these indices."""
        return Samples(self.images[indices], source=self.source, private=self.private)

    def split(self, held_out: float = 0.2, *, seed: int = 0) -> tuple[Samples, Samples]:
        """Two disjoint sets: images to make maps with, which keep ``skipped``, and held-out images to judge them by.

        ``held_out`` is the second set's share of the images, in (0, 1); the seed decides which these are.

        Raises:
            AgnoscoError: The share is not in (0, 1), or one of the sets would be empty.

        Example:
            >>> from agnosco import Samples
            >>> used, held_out = Samples.noise((3, 8, 8), count=10).split()
            >>> len(used), len(held_out)
            (8, 2)
        """
        used, others = self.split_indices(held_out, seed=seed)
        first = self.part(used)
        first.skipped = self.skipped
        return first, self.part(others)

    def split_indices(self, held_out: float = 0.2, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Indices of the images in each of the two sets of :meth:`split`, in order."""
        if not 0 < held_out < 1:
            raise AgnoscoError(f"held_out must be between 0 and 1, not {held_out}", "the default is 0.2")
        count = round(held_out * len(self))
        if not 0 < count < len(self):
            message = f"{len(self)} images cannot be split: a share of {held_out} is {count} of them"
            raise AgnoscoError(message, "give more images, or another share")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return order[count:].sort().values, order[:count].sort().values

    @property
    def fingerprint(self) -> str:
        """SHA-256 over shape and pixels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def read_folder(
    path: str | Path,
    shape: Shape,
    *,
    resize: Resize | None = None,
    limit: int = MOST_FILES,
    seed: int = 0,
    cache: str | Path | None = None,
    progress: OnProgress | None = None,
) -> tuple[Tensor, FolderFiles]:
    """Images ``(N, C, H, W)`` of a folder, and its files that were read or skipped; see :meth:`Samples.from_folder`."""
    if not str(path):  # which would be this folder
        raise no_folder(path)
    limit = min(limit, max(FOLDER_BYTES // math.prod(shape), 1))
    if is_archive(path) or is_dataset(path):
        read = read_archive if is_archive(path) else read_dataset
        images, folder = read(path, shape, limit=limit, seed=seed, resize=resize, progress=progress)
        if not len(images):
            raise _no_image(path, folder)
        return images, folder
    listing = find_files(path, limit=limit, seed=seed)
    files, unread = listing.files, set()
    decoder = DECODER if resize is None else f"{DECODER} {resize}"
    cache_file = None
    if cache is not None:
        key, unread = cache_key(files, shape, decoder)
        cache_file = Path(os.path.expanduser(cache)) / f"{key}.safetensors"
    decoded = read_cache(cache_file, len(files), shape) if cache_file else None
    if decoded is None:
        decoded = decode_files(files.items(), len(files), shape, progress, resize)
        momentary = {file.name for file in decoded[1] if file.momentary}
        if cache_file and len(decoded[0]) and momentary <= unread <= {file.name for file in decoded[1]}:
            write_cache(cache_file, *decoded)
    elif progress:
        progress(len(files), len(files))
    images, undecoded = decoded
    skipped = sorted([*listing.skipped, *undecoded], key=lambda file: file.name)
    folder = listing._replace(skipped=skipped, skipped_count=listing.skipped_count + len(undecoded))
    if not len(images):
        raise _no_image(path, folder)
    return images, folder


def _no_image(path: str | Path, folder: FolderFiles) -> AgnoscoError:
    if not folder.skipped:
        return AgnoscoError(f"{str(path)!r} is empty", f"put images into it ({', '.join(FORMATS)})")
    read, total = len(folder.files), folder.total
    among = f" among {read:,} of its {total:,} files" if read < total else ""
    message = f"no readable image in {str(path)!r}{among}: {summary(folder.skipped, folder.skipped_count)}"
    return AgnoscoError(message, f"give images in one of these formats: {', '.join(FORMATS)}")
