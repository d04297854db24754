"""Folders in which every file is written whole or not at all: the interface, and the folder that a path or a URL names.

:mod:`agnosco.io.local` keeps them on this machine, :mod:`agnosco.io.remote` in any store that fsspec knows.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ..errors import AgnoscoError
from ..text import first_line, without_password

ELSEWHERE = "choose another folder with --out"
MOVED = "check whether it was moved or deleted, then give the same command again"
"""Hints for folders that cannot be written."""

SIZE_LIMITS = {".json": 64 << 20, ".safetensors": 4 << 30, ".png": 256 << 20, ".html": 1 << 30}
"""Largest files that are read, in bytes, by suffix: records, maps and checkpoints, pictures, pages."""

TRIES = 5
"""How often a write is tried while other processes remove its folder, or the file of that name."""

THREADS = 16
"""Files that are read at a time: a store takes a while to answer."""

PENDING = 4
"""Items per thread that are processed ahead of the reader; bounds memory."""

Place = str | os.PathLike[str]
T = TypeVar("T")
R = TypeVar("R")


class Folder(ABC):
    """A folder, named by a path or a URL; files in it are named by their path inside it, with slashes.

    Its ``name`` is for people: as it was given, without a password.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def of(place: Place | Folder) -> Folder:
        """The folder at a path, which may begin with ``~``, or at a URL such as ``s3://bucket/run``.

        AgnoscoError if fsspec cannot open it.
        """
        from .local import Local
        from .remote import Remote

        if isinstance(place, Folder):
            return place
        name = os.fspath(place).removeprefix("file://")
        return Remote(name) if "://" in name else Local(Path(os.path.expanduser(name)))

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def at(self, name: str) -> str:
        """The full name of a file, for people."""

    @abstractmethod
    def absolute(self, name: str) -> str:
        """The full name of a file from any working directory, or of the folder itself if the name is empty."""

    @abstractmethod
    def check(self, *, holding: Sequence[str]) -> None:
        """Check, before long work, that the folder can be written; nothing is changed.

        AgnoscoError if it is a file, is not empty and has none of the files ``holding``, or cannot be written.
        """

    def _check_holding(self, holding: Sequence[str]) -> None:
        if not any(self.exists(name) for name in holding):
            raise AgnoscoError(f"{self.name!r} is not empty and has no {holding[0]}", ELSEWHERE)

    @abstractmethod
    def make(self) -> None:
        """Create the folder, where a store has folders; AgnoscoError if that is impossible."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove the temporary files of dead processes from it and from the folders directly inside."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if it does not exist.

        AgnoscoError if it cannot be read, is larger than :data:`SIZE_LIMITS`, is not a regular file, or is a link that
        leads out of the folder.
        """

    @abstractmethod
    def write(self, name: str, content: bytes) -> str:
        """Write or replace a file, whole or not at all; returns its full name. AgnoscoError if it cannot be written."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one; returns whether this call did. AgnoscoError if it cannot be written.

        Of several processes, only one does; two may where a store has no such operation (``docs/reliability.md``).
        """

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def names(self, inside: str) -> list[str]:
        """Sorted names of the files in a folder inside this one; none if there is no such folder."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it exists, and the folder inside this one that held it, if that is now empty."""

    @abstractmethod
    def modified(self, name: str) -> float:
        """When a file was written, in seconds since 1970; NaN where a store does not say.

        FileNotFoundError if it does not exist.
        """


def write_whole(place: Place, content: bytes) -> str:
    """Write a file at a path or a URL, whole or not at all, and create its folder; returns its full name.

    Raises AgnoscoError if that is impossible.
    """
    folder, name = folder_and_name(place)
    folder.make()
    folder.write(name, content)
    return os.fspath(place)


def folder_and_name(place: Place) -> tuple[Folder, str]:
    """The folder of the file at a path or a URL, and the file's name in it; AgnoscoError for a URL without a folder."""
    path = os.fspath(place).removeprefix("file://")
    folder, name = os.path.split(path)
    if "://" in path and "://" not in folder:  # the two slashes at the end of a folder are gone
        raise AgnoscoError(f"{without_password(path)!r} names no folder", "write it as s3://bucket/FILE")
    return Folder.of(folder or "."), name


def in_order(function: Callable[[T], R], items: Iterable[T], *, threads: int = THREADS) -> Iterator[R]:
    """Like ``map``, but in several threads, each at most :data:`PENDING` items ahead of the reader."""
    pool, pending = ThreadPoolExecutor(threads), deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= PENDING * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, nothing more is begun


def size_limit(name: str) -> int:
    """Bytes that a file of this name may have."""
    return SIZE_LIMITS.get(os.path.splitext(name)[1].lower(), SIZE_LIMITS[".json"])


def reason_of(error: Exception) -> str:
    """Why something failed, in a few words."""
    text = without_password(getattr(error, "strerror", None) or first_line(error))
    return text[:1].lower() + text[1:]
