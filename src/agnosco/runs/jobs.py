"""The local runner: maps of several classes and seeds, judged on held-out images, into a run folder.

What is finished stays, and what is not is made: the same command goes on from wherever another was broken off, to the
same bits on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from ..data.samples import Samples
from ..errors import AgnoscoError, AgnoscoWarning
from ..io.atomic import DAY
from ..io.records import to_json
from ..method.checkpoint import GroupState, packed, unpacked
from ..method.concept import ConceptMap
from ..method.config import Config
from ..method.maker import Maker, groups_of, map_classes, maps_together
from ..method.score import predictions, targeted_success_rate
from ..models.classifier import Classifier
from ..types import Job, OnStep
from .manifest import Entry, split
from .run import Run
from .status import RunStatus, status_of

TIMED = 3
"""Steps of the measurement in :func:`seconds_per_map`; the first of them warms up."""

EVERY = 60.0
"""Seconds of work that a process which is killed loses at most, and a step: how often a checkpoint is written."""

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Finished:
    """A map that is stored.

    Args:
        entry: Its entry.
        seconds: Its share of what making it and those beside it took, and what judging it took; 0 if it was there.
    """

    entry: Entry
    seconds: float


Made = Callable[[Run, Classifier, Samples, Sequence[Job], OnStep | None], Iterator[Finished]]
"""Who makes the maps that a run lacks: :func:`made_here`, or a cluster."""


class Keeper:
    """The checkpoint of a group, written now and then while the group is made.

    Args:
        run: The run.
        group: The group.
    """

    def __init__(self, run: Run, group: Sequence[Job]) -> None:
        self.folder = run.folder
        self.stages = len(run.config.stages)
        self.about = {"settings": to_json(run.settings), "group": [list(job) for job in group]}
        self.name = f"{CHECKPOINTS}/{checkpoint_of(group)}"
        self.begun = self.written = time.monotonic()
        self.latest: GroupState | None = None

    def __call__(self, state: GroupState) -> None:
        """Take note of where the group stands after a step; what took long is written, its end too."""
        self.latest = state
        complete = len(state.finished) == self.stages
        if time.monotonic() - (self.begun if complete else self.written) >= EVERY:
            self.write()

    def write(self) -> None:
        """Write where the group stands."""
        if self.latest is not None:
            self.folder.write(self.name, packed(self.latest, self.about))
            self.written, self.latest = time.monotonic(), None

    def interrupted(self) -> None:
        """Write it a last time, if this process has worked at it for long."""
        if time.monotonic() - self.begun >= EVERY:
            self.write()

    def load(self, device: torch.device) -> GroupState | None:
        """Where the group stood when a process was broken off; None if that is not known."""
        try:
            content = self.folder.read(self.name)
        except FileNotFoundError:
            return None
        state = unpacked(content, self.about, device)
        if state is None:
            self.remove()
        return state

    def remove(self) -> None:
        """Remove it."""
        self.folder.remove(self.name)


def checkpoint_of(group: Sequence[Job]) -> str:
    """The name of a group's checkpoint."""
    return hashlib.sha256(json.dumps(group).encode()).hexdigest()[:24] + ".safetensors"


def run_maps(
    run: Run,
    classifier: Classifier,
    samples: Samples,
    classes: Sequence[int | str],
    *,
    seeds: Sequence[int] = (0,),
    on_step: OnStep | None = None,
    on_found: Callable[[RunStatus], None] | None = None,
    made: Made | None = None,
) -> Iterator[Finished]:
    """Make the maps that a run lacks, and store each as soon as it is finished.

    Maps made side by side are finished together. A group of which a map is missing is made again whole, with its
    other maps, for the same bits; what else it lacks is stored as well.

    Args:
        run: Where they go; its settings are used.
        classifier: The network.
        samples: All samples; see :func:`agnosco.runs.manifest.split`.
        classes: Indices or names.
        seeds: One map of every class for each.
        on_step: Called after every step, for every map.
        on_found: Called first, with what is there already.
        made: Who makes them; :func:`made_here` if None.

    Raises:
        AgnoscoError: The folder cannot be written any more, or has vanished; finished maps are kept.
    """
    jobs = list(dict.fromkeys(Job(classifier.index(label), seed) for label in classes for seed in seeds))
    run.folder.sweep()
    found = status_of(run, jobs, names=classifier.labels)
    if on_found is not None:
        on_found(found)
    try:
        if found.missing:
            yield from (made or made_here)(run, classifier, samples, found.missing, on_step)
    except BaseException:
        with suppress(AgnoscoError):  # the entries say the same
            run.end()
        raise
    run.end()
    _remove_checkpoints(run)


def made_here(
    run: Run, classifier: Classifier, samples: Samples, jobs: Sequence[Job], on_step: OnStep | None
) -> Iterator[Finished]:
    """Make maps and store them, in this process, group after group."""
    worker = Worker(run, classifier, samples)
    for group in store_groups(run, jobs, worker.maker.together):
        yield from worker.make(group, on_step=on_step)


def store_groups(run: Run, jobs: Sequence[Job], together: int) -> list[list[Job]]:
    """Store which maps are made side by side, before they are made.

    The maps of a group have the same bits only if all of it is made: whatever happens to this process, the next one
    makes the same groups.

    Args:
        run: The run.
        jobs: The maps to make.
        together: How many maps to make side by side at most, of those that are in no group yet.

    Returns:
        The groups that hold these jobs.
    """
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
    """What makes the maps of a run and stores them: this process, or one of many.

    Args:
        run: The run.
        classifier: Its classifier, on the device to compute on.
        samples: All its samples.
    """

    def __init__(self, run: Run, classifier: Classifier, samples: Samples) -> None:
        kept, self.held_out = split(samples)
        self.run, self.classifier = run, classifier
        self.maker = Maker(classifier, kept, run.config)
        self.before = predictions(classifier, self.held_out)

    def make(self, group: Sequence[Job], *, on_step: OnStep | None = None) -> Iterator[Finished]:
        """A group, made from its checkpoint or from the beginning; of its maps, those that are missing are stored."""
        missing = status_of(self.run, group, names=self.classifier.labels).missing
        if not missing:  # another process has made it
            return
        keeper = Keeper(self.run, group)
        state = keeper.load(self.classifier.device)
        begun, share = time.perf_counter(), None
        try:
            for concept in self.maker.make(group, on_step=on_step, state=state, on_state=keeper):
                if share is None:  # the first of them
                    share = (time.perf_counter() - begun) / len(missing)
                begun = time.perf_counter()
                if (concept.label, concept.seed) in missing:
                    entry = self.run.add(concept, targeted_success_rate=self._judged(concept))
                    yield Finished(entry, share + time.perf_counter() - begun)
        except KeyboardInterrupt:
            keeper.interrupted()
            raise
        keeper.remove()

    def _judged(self, concept: ConceptMap) -> float:
        return targeted_success_rate(self.classifier, concept.nu, concept.label, self.held_out, before=self.before)


def _remove_checkpoints(run: Run) -> None:
    """Remove the checkpoints of groups that are finished, and old ones of which nothing is known.

    One of a group that is not known may be another process's, which has just begun.
    """
    there = {Job(entry.index, entry.seed) for entry in run.entries}
    finished = {checkpoint_of(group): there.issuperset(group) for group in run.groups}
    for name in (f"{CHECKPOINTS}/{name}" for name in run.folder.names(CHECKPOINTS)):
        with suppress(FileNotFoundError):  # another process was faster
            if finished.get(name.removeprefix(f"{CHECKPOINTS}/"), time.time() - run.folder.modified(name) > DAY):
                run.folder.remove(name)


def seconds_per_map(classifier: Classifier, samples: Samples, config: Config, *, count: int = 1) -> float:
    """About how long each of so many maps takes here and now: real steps, measured after a warm-up, times their number.

    Args:
        classifier: The network.
        samples: All samples.
        config: Settings of the maps.
        count: How many maps will be made; several are made side by side.
    """
    short = replace(
        config, mapper=replace(config.mapper, steps=TIMED), refine=None, cycles=1, compiled=False
    )  # compiling takes longer than what is asked
    together = min(count, maps_together(classifier, short))
    moments: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AgnoscoWarning)  # what there is to say, the maps themselves will say
        list(
            map_classes(
                classifier, [0], samples, short, seeds=range(together), together=together,
                on_step=lambda _: moments.append(time.perf_counter()),
            )
        )  # fmt: skip
    return config.steps * (moments[-1] - moments[together - 1]) / (TIMED - 1) / together
