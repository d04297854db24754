"""Labelled images to train networks on: handwritten digits, or a folder per class."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import AgnoscoError
from ..io.storage import reason_of
from ..types import OnProgress, Shape
from .cache import default_cache
from .files import DIGITS
from .samples import Samples

SIDE, DIGIT = 32, 24
"""Width of an image of a digit in pixels, and of the digit in its middle."""

MOST_BYTES = 4 * 2**30
"""Decoded images of all classes together; each class gets an equal share."""


@dataclass(frozen=True)
class Labelled:
    """Images, the class of each ``(N,)`` int64, and the names of the classes."""

    samples: Samples
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, indices: Tensor) -> Labelled:
        """The images with these indices."""
        return Labelled(self.samples.part(indices), self.labels[indices], self.names)

    def split(self, held_out: float, *, seed: int) -> tuple[Labelled, Labelled]:
        """Two disjoint parts, split as :meth:`Samples.split` splits images."""
        used, others = self.samples.split_indices(held_out, seed=seed)
        return self.part(used), self.part(others)


def digits() -> Labelled:
    """scikit-learn's handwritten digits: 1797 images of 1×32×32, white on black.

    They are 8×8 pixels enlarged to 24×24 (`Alpaydin and Kaynak 1998 <https://doi.org/10.24432/C50P49>`_). AgnoscoError
    if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = "the handwritten digits come with scikit-learn, which is not installed"
        raise AgnoscoError(message, "pip install '.[demo]' in the clone of agnosco") from error
    data: Any = load_digits()
    images = torch.from_numpy(np.asarray(data["images"])).float()[:, None] / 16
    large = F.interpolate(images, size=(DIGIT, DIGIT), mode="bilinear", align_corners=False)
    framed = F.pad(large, [(SIDE - DIGIT) // 2] * 4)
    labels = torch.from_numpy(np.asarray(data["target"])).long()
    return Labelled(Samples.from_array(framed, source=DIGITS), labels, tuple(f"digit {i}" for i in range(10)))


def _folders(path: Path) -> list[Path]:
    """The folders in a folder, but for hidden ones, by name; none if there is no such folder."""
    try:
        return sorted(entry for entry in path.iterdir() if os.path.isdir(entry) and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise AgnoscoError(f"cannot read {str(path)!r}: {reason_of(error)}", "check its permissions") from error


def from_class_folders(path: str | Path, shape: Shape, *, progress: OnProgress | None = None) -> Labelled:
    """The images of a folder that holds one folder per class, in the order of the classes' names.

    If they would take more than :data:`MOST_BYTES`, some of each class are chosen, and a warning says so. ``progress``
    is called with the number of classes read and their total. AgnoscoError if there are fewer than two such folders, or
    one has no readable image.
    """
    path = Path(os.path.expanduser(path))
    folders = _folders(path)
    if len(folders) < 2:
        message = f"{str(path)!r} does not hold a folder per class"
        raise AgnoscoError(message, "give a folder DIR with images DIR/CLASS/IMAGE")
    limit = max(MOST_BYTES // math.prod(shape) // len(folders), 1)
    parts = []
    for done, folder in enumerate(folders, start=1):
        parts.append(Samples.from_folder(folder, shape, limit=limit, cache=default_cache()))
        if progress:
            progress(done, len(folders))
    labels = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    private = any(part.private for part in parts)
    samples = Samples(torch.cat([part.images for part in parts]), source=path.name, private=private)
    return Labelled(samples, labels, tuple(folder.name for folder in folders))
