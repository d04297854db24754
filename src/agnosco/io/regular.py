"""Regular files of this machine, and nothing else: a pipe waits for whoever writes into it, and a device never ends."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO


def open_regular(path: Path | str, *, links: int = 0) -> IO[bytes]:
    """A regular file, open for reading; what was looked at is what is read.

    Args:
        path: The file, or a link to one.
        links: Flags for links: ``os.O_NOFOLLOW`` refuses a path that ends in one.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    waiting = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, os.O_RDONLY | waiting | links)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return open(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder")
    raise OSError(errno.EINVAL, "not a regular file")


def read_regular(path: Path | str, *, most: int, links: int = 0) -> bytes:
    """All of a regular file of no more than so many bytes.

    Raises:
        OSError: As above.
        ValueError: It is longer.
    """
    with open_regular(path, links=links) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most else file.read()
    if max(size, len(content)) > most:
        raise ValueError(f"it has {size:,} bytes, more than {most:,}")
    return content
