"""Reads the images of data sets of Hugging Face: what ``save_to_disk`` wrote, or a data set of the hub by name.

The ``datasets`` library gives the encoded images of the first column of images; they are decoded as files are. It runs
no code of a data set. An image that is only a path, into the disk of whoever made the data set, is skipped.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import AgnoscoError
from ..text import first_line, nearest
from ..types import OnProgress, Resize, Shape
from .decoding import Content, decode_files
from .files import PRIVATE, FolderFiles, check_limit, name_hash

HUB = "hf:"
SAVED, SPLITS = "dataset_info.json", "dataset_dict.json"
"""Files that tell a saved data set, and a folder of its splits, from a folder of images."""

_NAME = re.compile(r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<split>\w+))?(?:@(?P<revision>[^\s@]+))?", re.ASCII)


def is_dataset(path: str | Path) -> bool:
    """Whether a path is that of a saved data set, or ``hf:ORG/NAME[:SPLIT][@REVISION]``."""
    folder = Path(os.path.expanduser(path))
    return str(path).startswith(HUB) or any(os.path.isfile(folder / name) for name in (SPLITS, SAVED))


def read_dataset(
    path: str | Path,
    shape: Shape,
    *,
    limit: int,
    seed: int = 0,
    resize: Resize | None = None,
    progress: OnProgress | None = None,
) -> tuple[Tensor, FolderFiles]:
    """Images ``(N, C, H, W)`` uint8 of a data set in its order, and its rows that were read or skipped.

    If it has more rows than the limit, that many are chosen by a hash of their numbers and the seed. AgnoscoError
    if there is no such data set, it has no column of images, or it has several splits and none is named.
    """
    check_limit(limit)
    with _errors(str(path)):
        rows = _images(_opened(str(path)), str(path))
        total = len(rows)
    names = sorted((f"row {index}" for index in range(total)), key=partial(name_hash, seed=seed))[:limit]
    chosen = sorted(int(name.removeprefix("row ")) for name in names)

    def contents() -> Iterator[tuple[str, Content]]:
        for index in chosen:
            with _errors(str(path)):
                encoded = rows[index][rows.column_names[0]]
            data = encoded and encoded["bytes"]
            yield f"row {index}", io.BytesIO(data) if data else "no image in it"

    images, skipped = decode_files(contents(), len(chosen), shape, progress, resize)
    files = {f"row {index}": Path(path) for index in chosen}
    private = not str(path).startswith(HUB) and any(Path(os.path.expanduser(path)).rglob(PRIVATE))
    return images, FolderFiles(files, total, list(skipped), len(skipped), private)


def _opened(path: str) -> Any:
    """The data set; of a folder or name with several splits, the one that is named."""
    try:
        import datasets
    except ImportError as error:
        raise AgnoscoError("datasets is not installed", "pip install '.[hf]' in the clone of agnosco") from error
    if not path.startswith(HUB):
        opened = datasets.load_from_disk(os.path.expanduser(path))
        split = None
    else:
        match = _NAME.fullmatch(path)
        if match is None or ".." in path:
            raise AgnoscoError(f"{path!r} does not name a data set", "give hf:ORG/NAME, :SPLIT and @REVISION optional")
        split = match["split"]
        opened = datasets.load_dataset(match["name"], revision=match["revision"])
    if not isinstance(opened, dict):
        return opened
    if split is None and len(opened) == 1:
        return next(iter(opened.values()))
    if split not in opened:
        form = f"{path}:SPLIT" if path.startswith(HUB) else "the folder of one of them"
        message = f"{path!r} has the splits {', '.join(map(str, opened))}"
        raise AgnoscoError(message, f"give {form}" if split is None else nearest(split, list(map(str, opened))))
    return opened[split]


def _images(dataset: Any, path: str) -> Any:
    """The first column of images, encoded."""
    import datasets

    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if not columns:
        message = f"{path!r} has no column of images, but {', '.join(dataset.features)}"
        raise AgnoscoError(message, "give a data set of images")
    return dataset.select_columns(columns[:1]).cast_column(columns[0], datasets.Image(decode=False))


@contextmanager
def _errors(path: str) -> Iterator[None]:
    """Inside, whatever the library raises becomes an AgnoscoError."""
    try:
        yield
    except AgnoscoError:
        raise
    except Exception as error:  # the library raises nearly anything for a damaged data set, or without a network
        message = f"cannot read the data set {path!r}: {type(error).__name__}: {first_line(error)}"
        raise AgnoscoError(message, "check its name; without a network, give a folder of save_to_disk") from error
