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
from pathlib import Path
from typing import IO

PART = ".agnosco-part-"
"""How the name of a temporary file begins; then host, process id and a random number."""

DAY = 86400.0
"""Seconds after which a temporary file of another machine is taken to be abandoned."""

_in_use: set[str] = set()
"""Names of the temporary files that this process is writing."""


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file, open for writing, which replaces the one at the path once the block ends without an error.

    The content is flushed before it is renamed, and the folder afterwards: a loss of power leaves the old file or the
    new one. OSError if it cannot be written.
    """
    part = path.with_name(part_name())
    _in_use.add(part.name)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:  # follows no link
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        flush_folder(path.parent)
    finally:
        with suppress(OSError):
            part.unlink()
        _in_use.discard(part.name)


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


def part_name() -> str:
    """A new name for a temporary file."""
    return f"{PART}{host_name()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def host_name() -> str:
    """The name of this machine, without hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", socket.gethostname()) or "host"


def is_abandoned(name: str, modified: Callable[[], float]) -> bool:
    """Whether a file is a temporary one that no process will finish.

    For files of other machines, ``modified`` decides: it returns when the file was written, in seconds since 1970.
    """
    if not name.startswith(PART):
        return False
    host, _, process = name.removeprefix(PART).rpartition("-")[0].rpartition("-")
    if host != host_name() or not process.isdecimal():
        return time.time() - modified() > DAY
    return name not in _in_use if int(process) == os.getpid() else not _is_alive(int(process))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
