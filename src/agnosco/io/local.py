"""Folders of this machine. What lies there is not trusted: no pipe is opened, and no link out of a folder followed."""

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ..errors import AgnoscoError
from .atomic import PART, atomic_file, create_file, flush_folder, is_abandoned
from .regular import read_regular
from .storage import ELSEWHERE, MOVED, TRIES, Folder, reason_of, size_limit

WRITABLE = f"make it writable, or {ELSEWHERE}"
FULL = "free some space, then give the same command again: it continues from what is there"
HINTS = {errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.ENOENT: MOVED, errno.ESTALE: MOVED, errno.EIO: MOVED}

T = TypeVar("T")


class Local(Folder):
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def at(self, name: str) -> str:
        return str(self.path / name)

    def absolute(self, name: str) -> str:
        return os.path.abspath(self.path / name)

    def check(self, *, holding: Sequence[str]) -> None:
        with _errors(self.name):
            if self.path.exists() and not self.path.is_dir():
                raise AgnoscoError(f"{self.name!r} is a file, not a folder", ELSEWHERE)
            # A kill at the very first write leaves nothing but temporary files.
            if self.path.is_dir() and any(not entry.name.startswith(PART) for entry in self.path.iterdir()):
                self._check_holding(holding)
            self._try_to_write()

    def _try_to_write(self) -> None:
        """Write a temporary file into it, or into the nearest folder above that exists."""
        existing = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass

    def make(self) -> None:
        with _errors(self.name):
            if not self.path.is_dir():
                self.path.mkdir(parents=True, exist_ok=True)
                flush_folder(self.path.parent)

    def sweep(self) -> None:
        if not os.path.isdir(self.path):
            return
        with _errors(self.name):
            inside = [entry.path for entry in os.scandir(self.path) if entry.is_dir(follow_symlinks=False)]
            for folder in (self.path, *inside):
                with suppress(FileNotFoundError):  # another process was faster
                    self._sweep(folder)

    def _sweep(self, folder: Path | str) -> None:
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):
                if is_abandoned(entry.name, lambda entry=entry: entry.stat(follow_symlinks=False).st_mtime):
                    os.unlink(entry.path)

    def read(self, name: str) -> bytes:
        path, root = os.path.realpath(self.path / name), os.path.realpath(self.path)
        if os.path.commonpath([path, root]) != root:
            raise AgnoscoError(f"{self.at(name)!r} is a link that leads out of its folder", "put the file itself there")
        try:
            return read_regular(path, most=size_limit(name), links=getattr(os, "O_NOFOLLOW", 0))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(self.at(name)) from error
        except (OSError, ValueError) as error:
            hint = "make it readable, or remove it"
            raise AgnoscoError(f"cannot read {self.at(name)!r}: {reason_of(error)}", hint) from error

    def write(self, name: str, content: bytes) -> str:
        def write(path: Path) -> None:
            with atomic_file(path) as file:
                file.write(content)

        self._put(name, write)
        return self.at(name)

    def create(self, name: str, content: bytes) -> bool:
        return self._put(name, lambda path: create_file(path, content))

    def _put(self, name: str, write: Callable[[Path], T]) -> T:
        """Have a file written, and the folder inside this one that it lies in created; returns what ``write`` does."""
        path = self.path / name
        if path.parent != self.path and path.parent.is_symlink():
            raise AgnoscoError(f"{str(path.parent)!r} is a link", ELSEWHERE)
        with _errors(str(path)):
            # Another process may just have removed the empty folder inside this one: mkdir may find it, and then not.
            for _ in range(TRIES - 1):
                with suppress(FileNotFoundError, FileExistsError):
                    return self._put_at(path, write)
            return self._put_at(path, write)

    def _put_at(self, path: Path, write: Callable[[Path], T]) -> T:
        if path.parent != self.path and not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)  # but not the folder itself: if it was removed, so were its files
            flush_folder(self.path)
        return write(path)

    def exists(self, name: str) -> bool:
        try:
            return stat.S_ISREG(self._status(name).st_mode)
        except FileNotFoundError:
            return False

    def names(self, inside: str) -> list[str]:
        try:
            names = [entry.name for entry in os.scandir(self.path / inside) if not entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise AgnoscoError(f"cannot read {self.at(inside)!r}: {reason_of(error)}", "make it readable") from error
        return sorted(name for name in names if not name.startswith(PART))

    def remove(self, name: str) -> None:
        path = self.path / name
        with _errors(str(path)):
            path.unlink(missing_ok=True)
        if path.parent != self.path:
            with suppress(OSError):  # it is not empty
                path.parent.rmdir()

    def modified(self, name: str) -> float:
        return self._status(name).st_mtime

    def _status(self, name: str) -> os.stat_result:
        """What the disk says of a file; FileNotFoundError if it does not exist, AgnoscoError if that is not known."""
        try:
            return os.stat(self.path / name)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(self.at(name)) from error
        except OSError as error:
            raise AgnoscoError(f"cannot read {self.at(name)!r}: {reason_of(error)}", "make it readable") from error


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Inside, an error of the operating system becomes an :class:`AgnoscoError`: a file or folder is not writable."""
    try:
        yield
    except OSError as error:
        reason = "its folder does not exist any more" if error.errno == errno.ENOENT else reason_of(error)
        raise AgnoscoError(f"cannot write {name!r}: {reason}", HINTS.get(error.errno or 0, WRITABLE)) from error
