"""Opens regular files only: reading a pipe could wait for ever, and reading a device might never end."""

import errno
import os
import stat
from pathlib import Path
from typing import IO


def open_regular(path: Path | str, *, links: int = 0) -> IO[bytes]:
    """A regular file, open for reading; the file that is checked is the file that is read.

    With ``os.O_NOFOLLOW`` for ``links``, a link is refused. OSError if it cannot be read, or is not a regular file.
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
    """The content of a regular file; OSError as for :func:`open_regular`, ValueError if it has more bytes than most."""
    with open_regular(path, links=links) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most else file.read()
    if max(size, len(content)) > most:
        raise ValueError(f"it has {size:,} bytes, more than {most:,}")
    return content
