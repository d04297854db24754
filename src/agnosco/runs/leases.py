"""Leases: who is making what in a run that several processes share.

    leases/NAME.3.json      who has taken a group of maps, or the manifest; until when; how often renewed

A lease is taken by creating its file, which one process alone can do (:meth:`agnosco.io.storage.Folder.create`), and
renewed by its owner as long as it works. It lapses if its owner is a dead process of this machine, or if it is not
renewed for :data:`LAPSE` seconds by the clock of the process that waits for it: clocks that differ or jump do no harm.
The next owner then creates the file of the next number. The last number counts; who had an earlier one leaves the work.

Leases save work. Without them, processes that make the same maps write the same bytes all the same, on a CPU.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Collection, Iterator
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

PATIENCE = 600.0
"""Seconds without a sign of work after which an owner does not renew any more: it hangs, or nobody asks it for maps."""

LOOK_AGAIN = 0.2
"""Seconds between two attempts to take a lease that is needed for a moment."""

FILE = re.compile(r"(?P<name>[\w-]{1,80})\.(?P<number>\d{1,6})\.json", re.ASCII)
MOST = 999_999

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
        lost: Whether another has taken it, because this process was stopped for long, or hung.
    """

    def __init__(self, leases: Leases, name: str, number: int) -> None:
        self.file, self.lost = _file(name, number), False
        self._leases, self._name, self._number = leases, name, number
        self._owner, self._renewals = name_of_process(), 0
        self._looked = self._worked = time.monotonic()
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def create(self) -> bool:
        """Create its file; False if another process was faster."""
        _held[self._owner] = threading.current_thread()  # first: another thread must not think it dead
        created = False
        try:
            created = self._leases.folder.create(self.file, self._content())
        finally:
            if not created:
                del _held[self._owner]
        return created

    def keep(self) -> None:
        """Renew it from now on."""
        thread = threading.Thread(target=self._keep, name=f"renews {self.file}", daemon=True)
        thread.start()
        self._thread = thread  # not one that could not begin, for which nobody could wait

    def working(self) -> bool:
        """Say that the work goes on; False if the lease is lost. Looks if it was not renewed in time."""
        self._worked = time.monotonic()
        if self._worked - self._looked > LAPSE:  # this process was stopped
            with suppress(AgnoscoError):
                self._renew()
        return not self.lost

    def release(self) -> None:
        """Let others take it."""
        self._released.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        _held.pop(self._owner, None)
        with suppress(AgnoscoError):  # it lapses
            if self.is_there():
                self._leases.folder.remove(self.file)

    def _keep(self) -> None:
        while not (self.lost or self._released.wait(RENEWAL)):
            if time.monotonic() - self._worked < PATIENCE:
                with suppress(AgnoscoError):  # a store that does not answer: it is tried again, or lapses
                    self._renew()

    def _renew(self) -> None:
        """Whoever takes it between the look and the write loses it again: work is done twice, nothing else."""
        if not self.is_there() or self._leases.numbers(self._name)[-1:] != [self._number]:
            self.lost = True
            return
        self._renewals += 1
        self._leases.folder.write(self.file, self._content())
        self._looked = time.monotonic()

    def is_there(self) -> bool:
        """Whether its file is still its own."""
        with suppress(FileNotFoundError, ValueError):
            return records.decode(self._leases.folder.read(self.file), LeaseRecord).owner == self._owner
        return False

    def _content(self) -> bytes:
        until = (datetime.now(UTC) + timedelta(seconds=LAPSE)).isoformat(timespec="seconds")
        return records.encode(LeaseRecord(owner=self._owner, until=until, renewed=self._renewals))


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
        lapsed: dict[int, bytes] = {}
        for number in self.numbers(name):
            content = self._lapsed(_file(name, number))
            if content is None:
                return None
            lapsed[number] = content
        own = max(lapsed, default=0) + 1
        lease = Lease(self, name, own)
        try:
            if not lease.create():
                return None
            # Others may have taken and released it meanwhile: its numbers begin again, or this one passed for lapsed.
            others = {number: self._content_of(_file(name, number)) for number in self.numbers(name) if number != own}
            if not lease.is_there() or any(content != lapsed.get(number) for number, content in others.items()):
                lease.release()
                return None
            for number in lapsed:
                self.folder.remove(_file(name, number))
            lease.keep()
        except BaseException:  # such as Ctrl-C: nobody would release it
            lease.release()
            raise
        return lease

    @contextmanager
    def holding(self, name: str, *, patience: float | None = None) -> Iterator[None]:
        """Inside, this process holds a lease; it waits for it, for so many seconds at most.

        AgnoscoError if it has not got it then.
        """
        end = time.monotonic() + (float("inf") if patience is None else patience)
        while (lease := self.take(name)) is None:
            if time.monotonic() > end:
                raise AgnoscoError(f"another process holds the lease of the {name}", "give the same command again")
            time.sleep(LOOK_AGAIN)
        try:
            yield
        finally:
            lease.release()

    def remove(self, names: Collection[str]) -> None:
        """Remove all leases of these names, whoever has them: nothing is left to do."""
        for match in self._files():
            if match["name"] in names:
                self.folder.remove(f"{LEASES}/{match.string}")

    def names(self) -> set[str]:
        """The names of which there are files."""
        return {match["name"] for match in self._files()}

    def _files(self) -> list[re.Match[str]]:
        return [match for file in self.folder.names(LEASES) if (match := FILE.fullmatch(file)) is not None]

    def numbers(self, name: str) -> list[int]:
        """The numbers of the files of a name, ascending; AgnoscoError if there can be no greater one."""
        numbers = sorted(int(match["number"]) for match in self._files() if match["name"] == name)
        if numbers[-1:] == [MOST]:
            raise AgnoscoError(f"{self.folder.at(_file(name, MOST))!r} is no lease of agnosco's", "remove it")
        return numbers

    def _lapsed(self, file: str) -> bytes | None:
        """The content of a lease that has lapsed; None if it has not."""
        content = self._content_of(file)
        seen, since = self._seen.setdefault(file, (content, time.monotonic()))
        if seen != content:
            self._seen[file] = content, time.monotonic()
            since = time.monotonic()
        return content if _is_dead(content) or time.monotonic() - since > LAPSE else None

    def _content_of(self, file: str) -> bytes:
        """The content of a file; nothing if it was released a moment ago."""
        with suppress(FileNotFoundError):
            return self.folder.read(file)
        return b""


def _file(name: str, number: int) -> str:
    return f"{LEASES}/{name}.{number}.json"


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
