"""Makes the maps that a run lacks, group by group, in this process; judges them on held-out images and stores them.

Finished maps are kept. The same command continues from wherever it was interrupted, to the same bits on a CPU. Any
number of processes may work on one run: each takes the groups that no other has taken.
"""

import atexit
import operator
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec
from weakref import WeakSet

import torch
from torch import nn

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..io.atomic import DAY
from ..io.records import to_json
from ..method.checkpoint import GroupState, packed, unpacked
from ..method.maker import Maker, groups_of, indices_of
from ..method.score import log_odds, logits_for, predictions, share_moved
from ..models.classifier import Classifier
from ..types import MOST_SEED, Job, OnStep
from .leases import Lease, Leases
from .manifest import CHECKPOINTS, MOST_MAPS, Entry, name_of_group, split
from .origin import check_origin, classifier_of
from .run import Run
from .status import RunStatus, status_of, warn_of_other_names

INTERVAL = 60.0
"""Seconds between two checkpoints: a process that is killed loses at most this much work, and a step."""

WAIT, LONGEST_WAIT = 1.0, 10.0
"""Seconds between two looks at groups that other processes are making, at first and at last."""

BRIEFLY = 5.0
"""Seconds that a command which failed waits for its turn to write the manifest."""


@dataclass(frozen=True)
class Finished:
    """A map that is stored.

    Args:
        entry: Its entry.
        seconds: Time to judge it, plus its share of the time to make its group; 0 if it was stored before.
        elsewhere: Whether another process has stored it meanwhile.
    """

    entry: Entry
    seconds: float
    elsewhere: bool = False


class TakenElsewhere(Exception):
    """Another process is making this group: no error, but the reason to go on to the next."""


Backend = Callable[[Run, Classifier, Samples, Sequence[Job], OnStep | None], Iterator[Finished]]
"""Makes maps on other machines and stores them in the run, as :meth:`agnosco.runs.cluster.Cluster.make` does."""

OnEstimate = Callable[[float, int], None]
"""Called with about how many seconds each map will take, and how many maps there are."""

OnWait = Callable[[int], None]
"""Called with the number of groups that other processes are making."""


P = ParamSpec("P")


def _closed_at_exit(function: Callable[P, Generator[Finished]]) -> Callable[P, Iterator[Finished]]:
    """A generator function whose generators are closed when the program ends, while its modules are still there."""

    @wraps(function)
    def begun(*args: P.args, **options: P.kwargs) -> Iterator[Finished]:
        maps = function(*args, **options)
        _open.add(maps)
        return maps

    return begun


_open: WeakSet[Generator[Finished]] = WeakSet()
_at_exit = False


@atexit.register
def _close() -> None:
    global _at_exit
    _at_exit = True  # no thread begins any more, which writing the manifest needs
    for maps in list(_open):
        with suppress(Exception):  # such as of a store: what is left lapses
            maps.close()


@_closed_at_exit
def map_runs(
    run: Run,
    classifier: Classifier | nn.Module | str,
    samples: Samples,
    classes: Sequence[int | str],
    *,
    seeds: Sequence[int] = (0,),
    together: int | None = None,
    on_step: OnStep | None = None,
    on_status: Callable[[RunStatus], None] | None = None,
    on_estimate: OnEstimate | None = None,
    on_wait: OnWait | None = None,
    backend: Backend | None = None,
) -> Generator[Finished]:
    """Make the maps that a run lacks, and store each as soon as it is finished.

    Maps made side by side are finished together. If one of them is missing, the whole group is made again, so that it
    has the same bits. Groups that another process is making are left to it; at the end, this one waits for them, and
    makes those whose process dies.

    Args:
        run: Where the maps are stored; its settings are used.
        classifier: The network; see :func:`agnosco.runs.origin.classifier_of`.
        samples: All samples; see :func:`agnosco.runs.manifest.split`.
        classes: Indices or names.
        seeds: One map of every class for each.
        together: Maps to make side by side; None fills the device.
        on_step: Called after every step, for every map.
        on_status: Called first, with the maps that are finished already.
        on_estimate: Called before the first step, after a few steps for measurement.
        on_wait: Called with the number of groups left when only such are left as other processes are making.
        backend: Makes the maps; None for this process, to which ``together``, ``on_estimate`` and ``on_wait`` apply.

    Raises:
        AgnoscoError: There is no such class or seed; the run would have more than 50,000 maps; it was made with another
            network or other samples; or its folder has vanished or cannot be written any more. Finished maps are kept.

    Example:
        >>> from agnosco import Run, Samples, load, map_runs
        >>> run, classifier = Run.open("agnosco-run"), load("python:net.py:build", size=16, trust_code=True)
        >>> samples = Samples.noise(classifier.shape, count=10)
        >>> [finished.entry.seed for finished in map_runs(run, classifier, samples, [1], seeds=[0, 1])]  # it has seed 0
        [1]
    """
    classifier = classifier_of(run, classifier)
    check_origin(run, classifier, samples)
    labels = indices_of(classifier, classes)
    seeds = [operator.index(seed) for seed in seeds]  # those of numpy, too, are written into files
    if beyond := [seed for seed in seeds if abs(seed) > MOST_SEED]:
        raise AgnoscoError(f"there is no seed {beyond[0]}", f"give at most {MOST_SEED}")
    jobs = list(dict.fromkeys(Job(label, seed) for label in labels for seed in seeds))
    if (count := len({*run.entry_of, *jobs})) > MOST_MAPS:
        raise AgnoscoError(f"{count:,} maps are too many for one run", f"make several, of at most {MOST_MAPS:,} each")
    run.folder.sweep()
    status = status_of(run, jobs, names=classifier.labels)
    warn_of_other_names(run, status.entries, classifier.labels)
    if on_status is not None:
        on_status(status)
    try:
        if status.missing and backend is not None:
            yield from backend(run, classifier, samples, status.missing, on_step)
        elif status.missing:
            with threads(run.settings.threads):
                worker = Worker(run, classifier, samples)
            made = worker.make_all(status.missing, together, on_step=on_step, on_estimate=on_estimate, on_wait=on_wait)
            yield from _with_threads(run, made)
    except BaseException:
        if run.is_stored and not _at_exit:
            with suppress(AgnoscoError):  # the entries say the same
                run.end(patience=BRIEFLY)
        raise
    run.end()
    _tidy(run)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, PyTorch computes with so many threads on the CPU: their number decides the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _with_threads(run: Run, maps: Iterator[Finished]) -> Iterator[Finished]:
    """The same maps, made with the threads of the run; code that runs between two of them has its own number."""
    while True:
        with threads(run.settings.threads):
            finished = next(maps, None)
        if finished is None:
            return
        yield finished


def store_groups(run: Run, jobs: Sequence[Job], together: int) -> list[list[Job]]:
    """Store which maps are made side by side, before they are made; returns the groups that hold these jobs.

    The maps of a group have the same bits only if all of it is made: whatever happens to this process, the next one
    makes the same groups. Jobs that are in no group yet are put into groups of at most ``together``.
    """
    with run.alone():
        run.merge()
        grouped = {job for group in run.groups for job in group}
        run.groups += groups_of([job for job in jobs if job not in grouped], together)
        run.write_manifest()
    needed, seen = set(jobs), set()
    groups = []
    for group in run.groups:
        if not needed.isdisjoint(set(group) - seen):
            groups.append(group)
        seen.update(group)
    return groups


class Worker:
    """Makes the maps of a run and stores them, on the classifier's device; the network is prepared once."""

    def __init__(self, run: Run, classifier: Classifier, samples: Samples) -> None:
        self.made_with, self.held_out = split(samples)
        self.run, self.classifier = run, classifier
        self.leases = Leases(run.folder)
        self.prepare()

    def prepare(self) -> None:
        """Prepare the network, with as many threads as the maps are made with."""
        self.maker = Maker(self.classifier, self.made_with, self.run.config)
        self.before = predictions(self.classifier, self.held_out)

    def make_all(
        self, jobs: Sequence[Job], together: int | None, *, on_step: OnStep | None, on_estimate: OnEstimate | None,
        on_wait: OnWait | None,
    ) -> Iterator[Finished]:  # fmt: skip
        """Make maps, group after group, beside other processes; the arguments are those of :func:`map_runs`."""
        together = together or self.maker.together
        if on_estimate is not None:
            on_estimate(self.maker.seconds_per_map(min(len(jobs), together)), len(jobs))
        before = self.run.settings.threads
        groups = store_groups(self.run, jobs, together)
        if self.run.settings.threads != before:  # another process has begun the run a moment ago
            torch.set_num_threads(self.run.settings.threads)
            self.prepare()
        lacking = set(jobs) | {job for group in groups for job in group if job not in self.run.entry_of}
        wait = WAIT
        while groups:
            taken = []
            for group in groups:
                try:
                    for finished in self.make(group, lacking, on_step=on_step):
                        lacking.discard(finished.entry.job)
                        yield finished
                except TakenElsewhere:
                    taken.append(group)
            if taken == groups:
                if on_wait is not None:
                    on_wait(len(taken))
                time.sleep(wait)
            wait = min(1.5 * wait, LONGEST_WAIT) if taken == groups else WAIT
            groups = taken

    def make(
        self, group: Sequence[Job], lacking: Collection[Job] = (), *, on_step: OnStep | None = None
    ) -> Iterator[Finished]:
        """Make a group, from its checkpoint if it has one, and store those of its maps that are missing.

        Args:
            group: The maps that are made side by side.
            lacking: Maps to yield even if another process has stored them meanwhile.
            on_step: Called after every step, for every map.

        Raises:
            TakenElsewhere: Another process is making it.
        """
        lease = self.leases.take(name_of_group(group))
        if lease is None:
            raise TakenElsewhere
        try:
            if list(group) not in self.run.groups:  # another process has planned it meanwhile
                self.run.merge()
            status = status_of(self.run, group, names=self.classifier.labels)
            yield from [Finished(entry, 0.0, elsewhere=True) for entry in status.entries if entry.job in lacking]
            if status.missing:
                yield from self._make(group, status.missing, lease, on_step)
        finally:
            lease.release()

    def _make(
        self, group: Sequence[Job], missing: Sequence[Job], lease: Lease, on_step: OnStep | None
    ) -> Iterator[Finished]:
        checkpoint = Checkpoint(self.run, group)
        state = checkpoint.load(self.classifier.device)
        start, share = time.perf_counter(), None

        def update(state: GroupState) -> None:
            if not lease.working():
                raise TakenElsewhere
            checkpoint.update(state)

        try:
            for concept in self.maker.make(group, on_step=on_step, state=state, on_state=update):
                if share is None:  # the first of them
                    share = (time.perf_counter() - start) / len(missing)
                start = time.perf_counter()
                if (concept.label, concept.seed) in missing:
                    logits = logits_for(self.classifier, self.held_out, nu=concept.nu)
                    rate = share_moved(logits.softmax(1), concept.label, self.before)
                    odds = log_odds(logits, concept.label)
                    entry = self.run.add(concept, targeted_success_rate=rate, held_out=odds, group=group)
                    yield Finished(entry, share + time.perf_counter() - start)
        except KeyboardInterrupt:
            checkpoint.interrupt()
            raise
        self.run.folder.remove(checkpoint.name)


class Checkpoint:
    """The checkpoint of a group of a run, written from time to time while the group is made."""

    def __init__(self, run: Run, group: Sequence[Job]) -> None:
        self.folder = run.folder
        self.stages = len(run.config.stages)
        self.about = {"settings": to_json(run.settings), "group": [list(job) for job in group]}
        self.name = f"{CHECKPOINTS}/{name_of_group(group)}.safetensors"
        self.started = self.written = time.monotonic()
        self.latest: GroupState | None = None

    def update(self, state: GroupState) -> None:
        """Take the state after a step; it is written if the last one is old, or if a group that took long is done."""
        self.latest = state
        complete = len(state.finished) == self.stages
        if time.monotonic() - (self.started if complete else self.written) >= INTERVAL:
            self.write()

    def write(self) -> None:
        """Write the latest state, if it is not written yet."""
        if self.latest is not None:
            self.folder.write(self.name, packed(self.latest, self.about))
            self.written, self.latest = time.monotonic(), None

    def interrupt(self) -> None:
        """Write it a last time, if this process has worked on the group for long."""
        if time.monotonic() - self.started >= INTERVAL:
            self.write()

    def load(self, device: torch.device) -> GroupState | None:
        """The state that an interrupted process left; None if there is none. A file of anything else is removed."""
        try:
            content = self.folder.read(self.name)
        except FileNotFoundError:
            return None
        state = unpacked(content, self.about, device)
        if state is None:
            self.folder.remove(self.name)
        return state


def _is_whole(run: Run, group: Sequence[Job]) -> bool:
    """Whether all maps of a group are there as their entries say; if not, another process may be making it again."""
    return run.entry_of.keys() >= set(group) and not any(run.fault(run.entry_of[job]) for job in group)


def _tidy(run: Run) -> None:
    """Remove the checkpoints and leases of finished groups, and the checkpoints of unknown groups that are old.

    A new one of an unknown group may belong to another process, which has just begun.
    """
    leases = Leases(run.folder)
    left = {*leases.names(), *(file.removesuffix(".safetensors") for file in run.folder.names(CHECKPOINTS))}
    groups = {name_of_group(group): group for group in run.groups}
    finished = {name: _is_whole(run, groups[name]) for name in left & groups.keys()}
    leases.remove({name for name, is_finished in finished.items() if is_finished})
    for file in run.folder.names(CHECKPOINTS):
        path = f"{CHECKPOINTS}/{file}"
        with suppress(FileNotFoundError):  # another process was faster
            if finished.get(file.removesuffix(".safetensors"), time.time() - run.folder.modified(path) > DAY):
                run.folder.remove(path)
