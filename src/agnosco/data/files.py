"""Finds the files of a folder. Links that lead out of it, pipes and hidden files are skipped, and named.

Memory is bounded however many files there are: some are chosen, and most of those skipped are only counted.
"""

import hashlib
import heapq
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..errors import AgnoscoError
from ..io.storage import reason_of

MADE_SOURCE = r"(leaves|noise)-(\d{1,9})-seed(\d{1,19})"
"""What manifests call synthetic images: their kind, number and seed."""

MOST_FILES = 10_000
"""Files of a folder that are read by default: ten times what a map needs (800 to 1000 in the paper)."""

MOST_SKIPPED = 1000
"""Skipped files and folders that are remembered by name; the rest are counted."""

PRIVATE = ".private"
"""A file of this name, in the folder of images or in any folder above or below, marks all of them as private."""

MOST_NAMED = 3
"""Skipped files that a message names; the rest are counted."""

THREADS = min(8, os.cpu_count() or 1)
"""Files that are read and decoded at a time: most of that is computing."""

MADE = 800
"""Synthetic images that are made by default."""

DIGITS = "scikit-learn digits"
"""What manifests call the samples of :func:`.datasets.digits`."""

ARRAY = "array"
"""What manifests call samples from an array, unless they are given a name."""


@dataclass(frozen=True)
class Skipped:
    """A file or folder that gave no image: its path inside the folder, and why, such as ``"truncated"``.

    ``momentary`` says that its content may not be at fault: it could not be read, or there was too little memory.
    """

    name: str
    reason: str
    momentary: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name!r} ({self.reason})"  # repr: a file name may hold line breaks or escapes


class FolderFiles(NamedTuple):
    """The files of a folder by relative name, sorted; of too many, the chosen ones; ``total`` counts all.

    ``private`` says whether any folder among them is marked as such.

    Skipped files and folders are sorted, too; of very many, they are the first ones, and ``skipped_count`` counts all.
    """

    files: dict[str, Path]
    total: int
    skipped: list[Skipped]
    skipped_count: int
    private: bool = False


def find_files(path: str | Path, *, limit: int = MOST_FILES, seed: int = 0) -> FolderFiles:
    """The regular files in a folder and its subfolders; or the one file, if the path is a file.

    Hidden files and folders are skipped. So are links to folders, which may form a loop, and links to files outside the
    folder: somebody else's folder could otherwise point to any file of yours. If there are more files than the limit,
    that many are chosen by a hash of their names and the seed: at random, but always the same ones, wherever the folder
    lies and in whatever order it is listed. AgnoscoError if there is no such folder, it cannot be read,
    or the limit is below 1.
    """
    check_limit(limit)
    root = Path(os.path.expanduser(path))
    try:
        if root.is_file():  # or a link to a file: the user named it
            return FolderFiles({root.name: root}, 1, [], 0)
        listing = _Listing(root)
        chosen = heapq.nsmallest(limit, listing.names(), key=partial(name_hash, seed=seed))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise no_folder(path) from error
    except OSError as error:
        raise AgnoscoError(f"cannot read {str(path)!r}: {reason_of(error)}", "check its permissions") from error
    files = {name: root / name for name in sorted(chosen)}
    return FolderFiles(files, listing.total, listing.skipped(), listing.skipped_count, listing.private)


def no_folder(path: str | Path) -> AgnoscoError:
    """What is said of a folder that does not exist."""
    hint = "check the path; 'leaves' and 'noise' are samples that need no folder"
    return AgnoscoError(f"no folder {str(path)!r}", hint)


def is_marked(path: str | Path) -> bool:
    """Whether a folder or a file, or any folder above it, is marked as private; where links lead counts too."""
    named = Path(os.path.expanduser(path))
    places = [Path(os.path.abspath(named)), Path(os.path.realpath(named))]
    return any(os.path.lexists(folder / PRIVATE) for place in places for folder in (place, *place.parents))


def check_limit(limit: int) -> None:
    """AgnoscoError if a limit leaves no samples."""
    if limit < 1:
        raise AgnoscoError(f"a limit of {limit} leaves no samples", "give at least 1")


def is_synthetic(source: str) -> bool:
    """Whether samples of a source were made, and are nobody's: leaves or noise."""
    return re.fullmatch(MADE_SOURCE, source) is not None


class Asked(NamedTuple):
    """The samples that were asked for: a folder or a kind of images, how many of them, and the seed of the choice."""

    source: str
    number: int | None
    seed: int


def chosen_of(source: str, count: int, total: int, seed: int) -> str:
    """A source of which some files were chosen, for reports and manifests; :func:`asked` reads it."""
    return f"{source} ({count:,} of {total:,} files{f', seed {seed}' if seed else ''})"


def asked(source: str) -> Asked:
    """What was asked for to get samples of this source; a number of None stands for all, or the usual number."""
    made = re.fullmatch(MADE_SOURCE, source)
    if made:
        return Asked(made[1], None if made[2] == str(MADE) else int(made[2]), int(made[3]))
    some = re.fullmatch(r"(.*) \(([\d,]{1,12}) of [\d,]+ files(?:, seed (\d{1,19}))?\)", source, re.DOTALL)
    if some:
        return Asked(some[1], int(some[2].replace(",", "")), int(some[3] or 0))
    return Asked(source, None, 0)


def summary(skipped: Sequence[Skipped], count: int) -> str:
    """The first few of ``count`` skipped files by name, and the number of the others."""
    rest = f" and {count - MOST_NAMED} more" if count > MOST_NAMED else ""
    return ", ".join(map(str, skipped[:MOST_NAMED])) + rest


def name_hash(name: str, *, seed: int = 0) -> bytes:
    """What files are ordered by for the choice; their names may hold what UTF-8 cannot encode.

    A name has no zero byte, so that no name with one seed is another name with another.
    """
    named = f"{seed}\0{name}" if seed else name
    return hashlib.sha256(named.encode("utf-8", "surrogatepass")).digest()


class _Listing:
    """Lists the regular files of a folder one at a time, and counts them and what is skipped."""

    def __init__(self, root: Path) -> None:
        self.root, self.real_root = root, Path(os.path.realpath(root))
        self.total = self.skipped_count = 0
        self.private = False
        self._skipped: list[Skipped] = []

    def names(self) -> Iterator[str]:
        """Relative names with ``/`` between the parts, in no order."""
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self.root / folder) as entries:
                    for entry in entries:
                        name = folder + entry.name
                        if entry.name == PRIVATE:
                            self.private = True
                        elif reason := _reason_to_skip(entry, self.real_root):
                            self._skip(name, reason)
                        elif entry.is_dir():
                            folders.append(f"{name}/")
                        else:
                            self.total += 1
                            yield name
            except OSError as error:
                if not folder:
                    raise
                self._skip(folder[:-1], reason_of(error))

    def _skip(self, name: str, reason: str) -> None:
        self.skipped_count += 1
        self._skipped.append(Skipped(name, reason))
        if len(self._skipped) > 2 * MOST_SKIPPED:
            self._skipped = self.skipped()

    def skipped(self) -> list[Skipped]:
        """The first :data:`MOST_SKIPPED` skipped files and folders, by name."""
        return sorted(self._skipped, key=lambda file: file.name)[:MOST_SKIPPED]


def _reason_to_skip(entry: os.DirEntry[str], real_root: Path) -> str | None:
    """Why an entry is skipped; None for a folder to list or a file to open."""
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError as error:  # such as a link to itself
        return reason_of(error)
    if entry.name.startswith("."):
        return "hidden folder" if is_folder else "hidden"
    if is_folder:
        return "link to a folder, not followed" if entry.is_symlink() else None
    if is_file:
        leads_out = entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(real_root)
        return "link out of the folder, not followed" if leads_out else None
    broken = entry.is_symlink() and not os.path.exists(entry.path)
    return "broken link" if broken else "not a regular file"  # opening a pipe or a device may never return
