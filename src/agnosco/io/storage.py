"""Folders of this machine, or of any store that fsspec knows, in which every file is written whole or not at all.

On a disk: into a temporary file of the same folder, flushed to the disk, then renamed, and the folder flushed; a
process that is killed leaves its temporary file and nothing half-written under a file's own name. An object store (S3,
Google Cloud Storage, Azure) shows an object only once all of it has arrived. On anything else (SFTP, WebDAV, …)
a file is written under a temporary name and moved, which is as whole as moving is there.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ..errors import AgnoscoError
from ..text import without_password
from .regular import read_regular

WRITABLE = "make it writable, or choose another folder with --out"
FULL = "free some space, and give the same command again: it goes on from what is there"
ELSEWHERE = "choose another folder with --out"
GONE = "see what became of it, and give the same command again"
REACHABLE = "check the address, the credentials and the endpoint; the same command goes on from what is there"
"""Hints for what cannot be written or read."""

PART = ".agnosco-part-"
"""What the name of a temporary file begins with; then host, process and a number."""

DAY = 86400.0
"""Seconds after which a temporary file of another machine's is nobody's any more."""

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "memory"}
"""Protocols of stores in which an object is there whole or not at all."""

MOST = {".json": 64 << 20, ".safetensors": 4 << 30, ".png": 256 << 20, ".html": 1 << 30}
"""Bytes that are read of a file, by how its name ends: records, maps and checkpoints, pictures, pages."""

AT_ONCE = 16
"""Files that are read at a time, where there are many: a store's answer takes a while."""

Place = str | os.PathLike[str]
T = TypeVar("T")
R = TypeVar("R")


class Folder(ABC):
    """A folder, named by a path or a URL; files in it are named by their path inside it, with slashes.

    Args:
        name: As it was given, but for a password in it: for people.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def of(place: Place | Folder) -> Folder:
        """The folder at a path, or at a URL such as ``s3://bucket/run``.

        Raises:
            AgnoscoError: A URL of a kind that fsspec does not know, or for which a library is missing.
        """
        if isinstance(place, Folder):
            return place
        name = os.fspath(place)
        if "://" not in name:
            return Local(Path(name))
        if name.startswith("file://"):
            return Local(Path(name.removeprefix("file://")))
        return Remote(name)

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def at(self, name: str) -> str:
        """The full name of a file, for people."""

    @abstractmethod
    def absolute(self, name: str) -> str:
        """The full name of a file, from wherever one is; of the folder itself for no name."""

    @abstractmethod
    def child(self, name: str) -> Folder:
        """A folder inside this one."""

    @abstractmethod
    def check(self, *, holding: Sequence[str]) -> None:
        """Find out, before long work, whether the folder can be written; leaves everything as it was.

        Args:
            holding: Files of which it must hold one, if it holds anything.

        Raises:
            AgnoscoError: It is a file, holds other things, or cannot be written.
        """

    @abstractmethod
    def make(self) -> None:
        """Make the folder, where a store has folders.

        Raises:
            AgnoscoError: It cannot be made.
        """

    @abstractmethod
    def sweep(self) -> None:
        """Remove the temporary files that dead processes left in it and in the folders directly inside.

        Raises:
            AgnoscoError: They cannot be removed.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All of a file.

        Raises:
            FileNotFoundError: There is none.
            AgnoscoError: It cannot be read, has more bytes than :data:`MOST`, is no regular file, or is a link that
                leads out of the folder.
        """

    @abstractmethod
    def write(self, name: str, content: bytes) -> str:
        """Write a file whole, or not at all; an older one of its name is replaced. Gives its full name.

        Raises:
            AgnoscoError: It cannot be written.
        """

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def names(self, inside: str) -> list[str]:
        """Names of the files in a folder inside this one, in order; none if there is no such folder."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, and the folder inside this one that it lay in, if it was the last; none is as well."""

    @abstractmethod
    def modified(self, name: str) -> float:
        """When a file was written, in seconds since 1970.

        Raises:
            FileNotFoundError: There is none.
        """


class Local(Folder):
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def at(self, name: str) -> str:
        return str(self.path / name)

    def absolute(self, name: str) -> str:
        return os.path.abspath(self.path / name)

    def child(self, name: str) -> Folder:
        return Local(self.path / name)

    def check(self, *, holding: Sequence[str]) -> None:
        path = self.path
        try:
            made = [folder for folder in (path, *path.parents) if not folder.exists()]
            if path.exists() and not path.is_dir():
                raise AgnoscoError(f"{self.name!r} is a file, not a folder", ELSEWHERE)
            others = path.is_dir() and any(not one.name.startswith(PART) for one in path.iterdir())  # of a first kill
            if others and not any((path / name).is_file() for name in holding):
                raise AgnoscoError(
                    f"{self.name!r} holds things, but no {holding[0]}", "choose another folder with --out"
                )
            try:
                path.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=path):
                    pass
            finally:
                for folder in made:
                    with suppress(OSError):
                        folder.rmdir()
        except OSError as error:
            raise _unwritable(self.name, error) from error

    def make(self) -> None:
        try:
            if not self.path.is_dir():
                self.path.mkdir(parents=True, exist_ok=True)
                _flush_folder(self.path.parent)
        except OSError as error:
            raise _unwritable(self.name, error) from error

    def sweep(self) -> None:
        if not self.path.is_dir():
            return
        try:
            inside = [Path(entry) for entry in os.scandir(self.path) if entry.is_dir(follow_symlinks=False)]
            for folder in (self.path, *inside):
                _sweep(folder)
        except OSError as error:
            raise _unwritable(self.name, error) from error

    def read(self, name: str) -> bytes:
        path, root = (os.path.realpath(one) for one in (self.path / name, self.path))
        if os.path.commonpath([path, root]) != root:
            raise AgnoscoError(f"{self.at(name)!r} is a link that leads out of its folder", "put the file itself there")
        try:
            return read_regular(path, most=_most(name), links=getattr(os, "O_NOFOLLOW", 0))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(self.at(name)) from error
        except (OSError, ValueError) as error:
            hint = "make it readable, or remove it"
            raise AgnoscoError(f"cannot read {self.at(name)!r}: {_reason(error)}", hint) from error

    def write(self, name: str, content: bytes) -> str:
        path = self.path / name
        if path.parent != self.path and path.parent.is_symlink():
            raise AgnoscoError(f"{str(path.parent)!r} is a link", ELSEWHERE)
        try:
            try:
                self._write(path, content)
            except FileNotFoundError:  # another process may just have removed the empty folder inside this one
                self._write(path, content)
        except OSError as error:
            raise _unwritable(str(path), error) from error
        return str(path)

    def _write(self, path: Path, content: bytes) -> None:
        if path.parent != self.path and not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)  # but not the folder itself: if it has gone, its files have too
            _flush_folder(self.path)
        _write(path, content)

    def exists(self, name: str) -> bool:
        return (self.path / name).is_file()

    def names(self, inside: str) -> list[str]:
        try:
            found = [entry.name for entry in os.scandir(self.path / inside) if not entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise AgnoscoError(f"cannot read {self.at(inside)!r}: {_reason(error)}", "make it readable") from error
        return sorted(name for name in found if not name.startswith(PART))

    def remove(self, name: str) -> None:
        path = self.path / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(str(path), error) from error
        if path.parent != self.path:
            with suppress(OSError):  # others lie there
                path.parent.rmdir()

    def modified(self, name: str) -> float:
        return (self.path / name).stat().st_mtime


class Remote(Folder):
    """A folder of a store that fsspec knows.

    Nothing is remembered of what lies there: another process may write into it.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        super().__init__(without_password(self.url))
        from fsspec.core import url_to_fs

        try:
            self.files, root = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            extra = "pip install '.[s3]' in the clone of agnosco" if self.name.startswith("s3") else str(error)
            raise AgnoscoError(f"a library that {self.name!r} needs is not installed", extra) from error
        except ValueError as error:
            raise AgnoscoError(
                f"no folder {self.name!r}: {without_password(str(error))}", "name a path, or a URL as s3://bucket/run"
            ) from error
        self.root = root.rstrip("/")
        protocols = (self.files.protocol,) if isinstance(self.files.protocol, str) else self.files.protocol
        self.whole = not OBJECT_STORES.isdisjoint(protocols)

    def at(self, name: str) -> str:
        return f"{self.name}/{name}"

    def absolute(self, name: str) -> str:
        return f"{self.url}/{name}".rstrip("/")

    def child(self, name: str) -> Folder:
        return Remote(f"{self.url}/{name}")

    def check(self, *, holding: Sequence[str]) -> None:
        if any(self.names("")) and not any(self.exists(name) for name in holding):
            raise AgnoscoError(f"{self.name!r} holds things, but no {holding[0]}", ELSEWHERE)
        probe = _part_name()
        self.write(probe, b"")
        self.remove(probe)

    def make(self) -> None:
        pass

    def sweep(self) -> None:
        for inside in ("", *self._list("", kind="directory")):
            for name in self._list(inside, kind="file"):
                path = f"{inside}/{name}".lstrip("/")
                if _abandoned(name, lambda path=path: self.modified(path)):
                    self.remove(path)

    def read(self, name: str) -> bytes:
        with self._told("read", name):
            content = self.files.cat_file(self._path(name))
        if len(content) > _most(name):
            raise AgnoscoError(f"cannot read {self.at(name)!r}: it has {len(content):,} bytes", "remove it")
        return content

    def write(self, name: str, content: bytes) -> str:
        with self._told("write", name):
            try:
                self._put(self._path(name), content)
            except FileNotFoundError as error:  # no such bucket
                raise AgnoscoError(f"cannot write {self.at(name)!r}: {_reason(error)}", REACHABLE) from error
        return self.at(name)

    def exists(self, name: str) -> bool:
        try:
            with self._told("read", name):
                return self.files.info(self._path(name))["type"] == "file"
        except FileNotFoundError:
            return False

    def names(self, inside: str) -> list[str]:
        return [name for name in self._list(inside, kind="file") if not name.startswith(PART)]

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), self._told("remove", name):
            self.files.rm_file(self._path(name))

    def modified(self, name: str) -> float:
        with self._told("read", name):
            return self.files.modified(self._path(name)).timestamp()

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")

    def _put(self, path: str, content: bytes) -> None:
        if self.whole:
            self.files.pipe_file(path, content)
            return
        folder = path.rpartition("/")[0]
        self.files.makedirs(folder, exist_ok=True)
        part = f"{folder}/{_part_name()}"
        try:
            self.files.pipe_file(part, content)
            self.files.mv(part, path)
        except BaseException:
            with suppress(Exception):
                self.files.rm_file(part)
            raise

    def _list(self, inside: str, *, kind: str) -> list[str]:
        """Names of files, or of folders, in a folder inside this one."""
        try:
            with self._told("read", inside):
                found = self.files.ls(self._path(inside), detail=True)
        except FileNotFoundError:
            return []
        own = self._path(inside)
        paths = [one["name"].rstrip("/") for one in found if one["type"] == kind]
        return sorted(path.rpartition("/")[2] for path in paths if path.lstrip("/") != own.lstrip("/"))

    @contextmanager
    def _told(self, doing: str, name: str) -> Iterator[None]:
        """What the library of a store raises, in two lines."""
        try:
            yield
        except (AgnoscoError, FileNotFoundError):
            raise
        except Exception as error:  # credentials, endpoints, the network: every library has errors of its own
            raise AgnoscoError(f"cannot {doing} {self.at(name)!r}: {_reason(error)}", REACHABLE) from error


def write_whole(place: Place, content: bytes) -> str:
    """Write a file at a path or a URL, and the folder that it lies in, whole or not at all; gives its full name.

    Raises:
        AgnoscoError: It cannot be written.
    """
    folder, name = os.path.split(os.fspath(place))
    if folder.endswith(":/"):
        raise AgnoscoError(f"{os.fspath(place)!r} names no folder", "write it as s3://bucket/report.html")
    target = Folder.of(folder or ".")
    target.make()
    target.write(name, content)
    return os.fspath(place)


def at_once(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """What a function that waits for files gives for each item, in order."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, items))


def _most(name: str) -> int:
    return MOST.get(os.path.splitext(name)[1].lower(), MOST[".json"])


# -- one file of this machine ------------------------------------------------------------------------

_writing: set[str] = set()
"""Names of temporary files that this process is writing."""


def _write(path: Path, content: bytes) -> None:
    part = _part_name()
    _writing.add(part)
    try:
        new = os.open(path.with_name(part), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # whatever links lie there
        with open(new, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path.with_name(part), path)
        _flush_folder(path.parent)
    finally:
        with suppress(OSError):
            path.with_name(part).unlink()
        _writing.discard(part)


def _flush_folder(path: Path) -> None:
    """Make sure that names in a folder outlive a loss of power; some network disks do not offer it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _part_name() -> str:
    return f"{PART}{_host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", socket.gethostname()) or "host"


def _sweep(folder: Path) -> None:
    """Remove temporary files that nobody will finish."""
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # another process was faster
            if _abandoned(entry.name, lambda entry=entry: entry.stat(follow_symlinks=False).st_mtime):
                os.unlink(entry.path)


def _abandoned(name: str, modified: Callable[[], float]) -> bool:
    """Whether a file is a temporary one whose process is dead; of another machine's, whether it is a day old."""
    if not name.startswith(PART):
        return False
    host, _, rest = name.removeprefix(PART).rpartition("-")[0].rpartition("-")
    if host == _host() and rest.isdecimal():
        return name not in _writing if int(rest) == os.getpid() else not _alive(int(rest))
    return time.time() - modified() > DAY


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _reason(error: Any) -> str:
    """Why something failed, in a few words."""
    told = without_password(getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()
    return told[:1].lower() + told.splitlines()[0][1:200]


def _unwritable(name: str, error: OSError) -> AgnoscoError:
    hints = {errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.ENOENT: GONE, errno.ESTALE: GONE, errno.EIO: GONE}
    reason = "its folder is gone" if error.errno == errno.ENOENT else _reason(error)
    return AgnoscoError(f"cannot write {name!r}: {reason}", hints.get(error.errno or 0, WRITABLE))
