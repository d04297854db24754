"""Reads the images of a ``.tar``, such as a shard of `WebDataset <https://github.com/webdataset/webdataset>`_.

Nothing is unpacked to the disk, and no link is followed: a name in an archive is a name, and not a place. Of very
many members, some are chosen, and most of those skipped are only counted.
"""

import heapq
import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from torch import Tensor

from ..errors import AgnoscoError
from ..io.regular import open_regular
from ..io.storage import reason_of
from ..text import first_line
from ..types import OnProgress, Resize, Shape
from .decoding import Content, decode_files
from .files import MOST_SKIPPED, PRIVATE, FolderFiles, Skipped, check_limit, name_hash

IMAGES = r"\.(avif|bmp|gif|ico|jpe?g|jpe|jp2|j2k|png|p[bgpn]m|tiff?|webp)"
"""Suffixes of images; a shard of WebDataset holds labels and captions beside them."""

MOST_BYTES = 64 * 2**20
"""Bytes of one image in an archive: it is read as a whole."""

MOST_HEADER = 2**20
"""Bytes of the headers of one member, with its long name and other attributes: tarfile reads them as a whole."""


class _Member(NamedTuple):
    """An image in an archive: its name, and where in the file it is."""

    name: str
    begin: int
    size: int


def is_archive(path: str | Path) -> bool:
    """Whether a path is that of a file that is called a tar."""
    path = Path(os.path.expanduser(path))
    return path.suffix.lower() == ".tar" and os.path.isfile(path)


def read_archive(
    path: str | Path,
    shape: Shape,
    *,
    limit: int,
    seed: int = 0,
    resize: Resize | None = None,
    progress: OnProgress | None = None,
) -> tuple[Tensor, FolderFiles]:
    """Images ``(N, C, H, W)`` uint8 of a tar in the order of their names, and its members that were read or skipped.

    Members that are no regular files, hidden, or not named like images are skipped. If there are more images than the
    limit, that many are chosen by a hash of their names and the seed, as those of a folder are. AgnoscoError if
    the tar is damaged, compressed, or cannot be read, or the limit is below 1.
    """
    check_limit(limit)
    path = Path(os.path.expanduser(path))
    try:
        with open_regular(path) as file:
            listing = _Listing()
            chosen = heapq.nsmallest(limit, listing.images(file), key=lambda member: name_hash(member.name, seed=seed))
            members: dict[str, _Member] = {}
            for member in sorted(chosen):
                if member.name in members:
                    listing.total -= 1
                    listing.skip(member.name, "a second one of this name")
                members.setdefault(member.name, member)
            contents = ((member.name, _content(file, member)) for member in members.values())
            images, undecoded = decode_files(contents, len(members), shape, progress, resize)
    except tarfile.TarError as error:
        message = f"cannot read {path.name}: {first_line(error)}"
        raise AgnoscoError(message, "give a whole tar that is not compressed (gunzip FILE.tar.gz)") from error
    except OSError as error:
        raise AgnoscoError(f"cannot read {str(path)!r}: {reason_of(error)}", "check its permissions") from error
    skipped = sorted([*listing.skipped, *undecoded], key=lambda file: file.name)
    files = dict.fromkeys(members, path)
    count = listing.skipped_count + len(undecoded)
    return images, FolderFiles(files, listing.total, skipped, count, listing.private)


def _content(file: IO[bytes], member: _Member) -> Content:
    """The bytes of a member, or why it is not read."""
    if member.size > MOST_BYTES:
        return f"more than {MOST_BYTES} bytes"
    file.seek(member.begin)
    return io.BytesIO(file.read(member.size))


class _Headers:
    """A file from which tarfile reads headers, no more than :data:`MOST_HEADER` of a member."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left = file, MOST_HEADER
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        """That many bytes; TarError if the member has none left."""
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError(f"a header is larger than {MOST_HEADER:,} bytes")
        return self.file.read(size)


class _Listing:
    """Lists the images in a tar, and counts them and what is skipped."""

    def __init__(self) -> None:
        self.total = self.skipped_count = 0
        self.skipped: list[Skipped] = []
        self.private = False

    def images(self, file: IO[bytes]) -> Iterator[_Member]:
        """The images, in the order in which they were packed; TarError for what is no tar."""
        try:
            yield from self._members(file)
        except (ValueError, LookupError, ArithmeticError, RecursionError) as error:  # as tarfile takes some headers
            raise tarfile.ReadError("a header is damaged") from error

    def _members(self, file: IO[bytes]) -> Iterator[_Member]:
        headers: Any = _Headers(file)  # which tarfile only reads
        with tarfile.open(fileobj=headers, mode="r:") as tar:
            while (member := tar.next()) is not None:
                headers.left = MOST_HEADER
                tar.members = []  # type: ignore[attr-defined]  # which would keep all of them
                if PurePosixPath(member.name).name == PRIVATE:
                    self.private = True
                elif reason := _reason_to_skip(member):
                    self.skip(member.name, reason)
                elif not member.isdir():
                    self.total += 1
                    yield _Member(member.name, member.offset_data, member.size)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError("a header is damaged")

    def skip(self, name: str, reason: str) -> None:
        self.skipped_count += 1
        if len(self.skipped) < MOST_SKIPPED:
            self.skipped.append(Skipped(name, reason))


def _reason_to_skip(member: tarfile.TarInfo) -> str | None:
    """Why a member is skipped; None for an image, or a folder, which says nothing."""
    if member.isdir():
        return None
    if member.issym() or member.islnk():
        return "link, not followed"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    name = PurePosixPath(member.name)
    if any(part.startswith(".") and part not in (".", "..") for part in name.parts):
        return "hidden"
    return None if re.fullmatch(IMAGES, name.suffix, re.IGNORECASE) else "not an image's name"
