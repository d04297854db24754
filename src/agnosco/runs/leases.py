"""Leases: who is making what in a run that several processes share.

    leases/NAME.3.json      who has taken a group of maps, or the manifest; until when; how often renewed

A lease is taken by creating its file, which one process alone can do (:meth:`agnosco.io.storage.Folder.create`), and
renewed by its owner as long as the work lasts. It lapses if its owner is a dead process of this machine, or if it is
not renewed for :data:`LAPSE` seconds by the clock of the process that waits for it: clocks that differ or jump do no
harm. The next owner then creates the file of the next number; the last number counts, and who had an earlier one
leaves the group.

Leases only save work: processes that make the same maps all the same write the same bytes.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from ..errors import AgnoscoError
from ..io import records
from ..io.atomic import is_alive, name_of_process, process_of
from ..io.records import Record
from ..io.storage import Folder

LEASES = "leases"

RENEWAL, LAPSE = 10.0, 60.0
"""Seconds after which an owner renews a lease, and after which one that is not renewed lapses."""

LOOK_AGAIN = 0.2
"""Seconds between two attempts to take a lease that is needed for a moment."""

_FILE = re.compile(r"(?P<name>[\w-]{1,80})\.(?P<number>\d{1,9})\.json", re.ASCII)

_held: dict[str, threading.Thread] = {}
"""Owners of the leases that this process holds, and the threads that took them."""


class LeaseRecord(Record, frozen=True, forbid_unknown_fields=True):
    """What the file of a lease says.

    Args:
        owner: Host, process id and a random number, with hyphens between them.
        until: When it lapses unless it is renewed, by its owner's clock; for people.
        renewed: How often it has been.
    """

    owner: str
    until: str
    renewed: int


class Lease:
    """A lease that this process holds, and renews in a thread of its own until it is released.

    Args:
        file: Its file in the folder.
        lost: Whether it has lapsed, as this process was stopped for long, and another has taken it.
    """

    def __init__(self, leases: Leases, name: str, number: int) -> None:
        self.file, self.lost = f"{LEASES}/{name}.{number}.json", False
        self._leases, self._name, self._number = leases, name, number
        self._owner, self._renewed = name_of_process(), 0
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"renews {self.file}", daemon=True)

    def taken(self) -> bool:
        """Take it; False if another process was faster."""
        _held[self._owner] = threading.current_thread()  # first: another thread must not think it dead
        if not self._leases.folder.create(self.file, self._content()):
            del _held[self._owner]
            return False
        self._thread.start()
        return True

    def release(self) -> None:
        """Let others take it."""
        self._released.set()
        self._thread.join()
        _held.pop(self._owner, None)
        with suppress(AgnoscoError):  # it lapses
            self._leases.folder.remove(self.file)

    def _renew(self) -> None:
        while not self._released.wait(RENEWAL):
            with suppress(AgnoscoError):  # a store that does not answer: it is tried again, or lapses
                if self._leases.numbers(self._name)[-1:] != [self._number]:
                    self.lost = True
                    return
                self._renewed += 1
                self._leases.folder.write(self.file, self._content())

    def _content(self) -> bytes:
        until = datetime.now(UTC) + timedelta(seconds=LAPSE)
        return records.encode(
            LeaseRecord(owner=self._owner, until=until.isoformat(timespec="seconds"), renewed=self._renewed)
        )


class Leases:
    """The leases of a run, as a process sees them."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[bytes, float]] = {}
        """Of files of others: their content, and since when it is that."""

    def take(self, name: str) -> Lease | None:
        """The lease of a name; None if another process, or another thread of this one, holds it.

        One of this very thread is taken from it, as it belongs to an iterator that was left in the middle.
        """
        numbers = self.numbers(name)
        if numbers and not self._has_lapsed(f"{LEASES}/{name}.{numbers[-1]}.json"):
            return None
        lease = Lease(self, name, numbers[-1] + 1 if numbers else 1)
        if not lease.taken():
            return None
        for number in numbers:
            self.folder.remove(f"{LEASES}/{name}.{number}.json")
        return lease

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Inside, this process holds a lease; it waits for it as long as necessary."""
        while (lease := self.take(name)) is None:
            time.sleep(LOOK_AGAIN)
        try:
            yield
        finally:
            lease.release()

    def numbers(self, name: str) -> list[int]:
        """The numbers of the files of a name, ascending."""
        matches = map(_FILE.fullmatch, self.folder.names(LEASES))
        return sorted(int(match["number"]) for match in matches if match is not None and match["name"] == name)

    def _has_lapsed(self, file: str) -> bool:
        try:
            content = self.folder.read(file)
        except FileNotFoundError:  # it was released a moment ago
            return True
        seen, since = self._seen.setdefault(file, (content, time.monotonic()))
        if seen != content:
            self._seen[file] = content, time.monotonic()
            return False
        return _is_dead(content) or time.monotonic() - since > LAPSE


def _is_dead(content: bytes) -> bool:
    """Whether the owner of a lease is a process of this machine, or a thread of this process, that does not work."""
    with suppress(ValueError):
        owner = records.decode(content, LeaseRecord).owner
        process = process_of(owner)
        if process == os.getpid():
            thread = _held.get(owner)
            return thread is None or thread is threading.current_thread() or not thread.is_alive()
        return process is not None and not is_alive(process)
    return False
