"""Files that are written whole or not at all: under a temporary name, flushed to the disk, then renamed.

A process that is killed leaves its temporary file, and nothing half-written under a file's own name.
"""

import errno
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

PART = ".agnosco-part-"
"""How the name of a temporary file begins; then host, process id and a random number."""

DAY = 86400.0
"""Seconds after which a temporary file of another machine is taken to be abandoned."""

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
"""Errors of disks without hard links."""

_in_use: set[str] = set()
"""Names of the temporary files that this process is writing."""


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file, open for writing, which replaces the one at the path once the block ends without an error.

    The content is flushed before it is renamed, and the folder afterwards: a loss of power leaves the old file or the
    new one. OSError if it cannot be written.
    """
    with _part_of(path) as part:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:  # follows no link
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        flush_folder(path.parent)


def create_file(path: Path, content: bytes) -> bool:
    """Write a file unless there is one; returns whether this call did, as only one of several processes does.

    It is there whole or not at all, and flushed like those of :func:`atomic_file`. On a disk without hard links, two
    that write at the same moment may both be told that they did. OSError if it cannot be written.
    """
    with _part_of(path) as part:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:  # follows no link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from None
            return part.stat().st_nlink > 1  # a network disk may have done it and lost its answer
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if os.path.lexists(path):
                return False
            os.replace(part, path)
        flush_folder(path.parent)
        return True


def flush_folder(path: Path) -> None:
    """Make sure that the names in a folder survive a loss of power; some network disks do not offer this."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextmanager
def part_name() -> Iterator[str]:
    """A new name for a temporary file, which this process does not take for an abandoned one inside."""
    name = PART + name_of_process()
    _in_use.add(name)
    try:
        yield name
    finally:
        _in_use.discard(name)


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """A temporary file beside another, which is gone afterwards."""
    with part_name() as name:
        part = path.with_name(name)
        try:
            yield part
        finally:
            with suppress(OSError):
                part.unlink()


def name_of_process() -> str:
    """A new name that tells which process of which machine it is of: host, process id and a random number."""
    return f"{host_name()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


@cache
def host_name() -> str:
    """What tells this machine from others, without hyphens: its name and, on Linux, its start and its processes' space.

    Containers and copies of a machine may have one name, but not the same processes.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "_", socket.gethostname()) or "host"
    with suppress(OSError):
        start = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{name}.{start}.{os.stat('/proc/self/ns/pid').st_ino:x}"
    return name


def is_abandoned(name: str, modified: Callable[[], float]) -> bool:
    """Whether a file is a temporary one that no process will finish.

    For files of other machines, ``modified`` decides: it returns when the file was written, in seconds since 1970.
    """
    if not name.startswith(PART):
        return False
    process = process_of(name.removeprefix(PART))
    if process is None:
        return time.time() - modified() > DAY
    return name not in _in_use if process == os.getpid() else not is_alive(process)


def process_of(name: str) -> int | None:
    """The id of the process that a name of :func:`name_of_process` is of; None if it is of another machine."""
    host, _, process = name.rpartition("-")[0].rpartition("-")
    return int(process) if host == host_name() and process.isdecimal() and process.isascii() else None


def is_alive(process: int) -> bool:
    """Whether there is a process of this id on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
