"""Images with their classes, to train networks on: handwritten digits, or a folder for each class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import AgnoscoError
from ..types import OnProgress, Shape
from .decoding import default_cache
from .samples import Samples

DIGITS = "scikit-learn digits"
"""What the handwritten digits are called in a manifest."""

SIDE, DIGIT = 32, 24
"""Pixels of an image of a digit, and of the digit in its middle."""

MOST_BYTES = 4 * 2**30
"""Decoded images of all classes together; each class has its share."""


@dataclass(frozen=True)
class Labelled:
    """Images and the class of each.

    Args:
        samples: The images.
        labels: ``(N,)`` int64.
        names: Of the classes.
    """

    samples: Samples
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, indices: Tensor) -> Labelled:
        """Some of them."""
        samples = Samples(self.samples.images[indices], source=self.samples.source)
        return Labelled(samples, self.labels[indices], self.names)

    def split(self, held_out: float, *, seed: int) -> tuple[Labelled, Labelled]:
        """Two disjoint parts, divided as :meth:`Samples.split` divides the images."""
        kept, held = self.samples.split_indices(held_out, seed=seed)
        return self.part(kept), self.part(held)


def digits() -> Labelled:
    """scikit-learn's handwritten digits, white on black, 1797 of 1×32×32.

    They are 8×8 pixels enlarged to 24×24 (Alpaydin and Kaynak, UCI 1998), and come with scikit-learn.

    Raises:
        AgnoscoError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise AgnoscoError(
            "the handwritten digits come with scikit-learn, which is missing",
            "pip install '.[demo]' in the clone of agnosco",
        ) from error
    data: Any = load_digits()
    images = torch.from_numpy(np.asarray(data["images"])).float()[:, None] / 16
    large = F.interpolate(images, size=(DIGIT, DIGIT), mode="bilinear", align_corners=False)
    framed = F.pad(large, [(SIDE - DIGIT) // 2] * 4)
    samples = Samples.from_array(framed, source=DIGITS)
    labels = torch.from_numpy(np.asarray(data["target"])).long()
    return Labelled(samples, labels, tuple(f"digit {i}" for i in range(10)))


def from_class_folders(path: str | Path, shape: Shape, *, progress: OnProgress | None = None) -> Labelled:
    """The images of a folder that holds one folder for each class; classes are in the order of their names.

    Where they would take more than :data:`MOST_BYTES`, some of each class are chosen, which a warning says.

    Args:
        path: The folder.
        shape: ``(C, H, W)`` of the images; see :meth:`Samples.from_folder`.
        progress: Called with the number of classes read and their total.

    Raises:
        AgnoscoError: There are not at least two such folders, or one holds no readable image.
    """
    path = Path(path).expanduser()
    folders = (
        sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith(".")) if path.is_dir() else []
    )
    if len(folders) < 2:
        raise AgnoscoError(
            f"{str(path)!r} does not hold a folder for each class", "give DIR with DIR/CLASS/IMAGE in it"
        )
    limit = max(MOST_BYTES // math.prod(shape) // len(folders), 1)
    parts = []
    for done, folder in enumerate(folders, start=1):
        parts.append(Samples.from_folder(folder, shape, limit=limit, cache=default_cache()).images)
        if progress:
            progress(done, len(folders))
    labels = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    return Labelled(Samples(torch.cat(parts), source=path.name), labels, tuple(folder.name for folder in folders))
