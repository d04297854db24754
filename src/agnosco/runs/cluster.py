"""Makes the maps of a run on many machines: each group is a task of a Ray cluster (extra ``agnosco[ray]``).

The network and the samples are sent to every node once. A worker makes a group as a process of its own would, from
its checkpoint if it has one, and writes the maps straight into the run's folder, which all machines must reach: a
shared disk, or a store such as ``s3://bucket/run``. A worker that dies is replaced, and its group is continued.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..method.config import Config
from ..method.maker import maps_together
from ..method.prepare import resolve_precision
from ..models.classifier import Classifier
from ..text import first_line
from ..types import Job, OnStep, Progress
from .connection import connected
from .jobs import WAIT, Finished, TakenElsewhere, Worker, store_groups
from .leases import Leases
from .manifest import cpu_kind, name_of_group, versions
from .run import Run

RETRIES = 5
"""How often a group is given to another worker when one dies."""

REPORT_INTERVAL, POLL_INTERVAL = 1.0, 0.2
"""Seconds between two reports of a worker's progress, and between two looks at what the workers have done."""

STOP_TIMEOUT, PROGRESS_TIMEOUT = 20.0, 5.0
"""Seconds that stopped workers have to write a checkpoint, and that progress may take to arrive."""

SAME_COMMAND = "look at the cluster's logs; the same command continues from here"


@dataclass(frozen=True)
class Machine:
    """What a worker computes with: its precision, how many maps fit side by side, versions of packages, kind of CPU."""

    precision: str
    together: int
    versions: dict[str, str | None]
    cpu: str | None


class Sent:
    """What was sent: the very network, as it was, since code has no fingerprint; the samples' pixels; the settings."""

    def __init__(self, classifier: Classifier, samples: Samples, config: Config) -> None:
        self.classifier, self.config = classifier, config
        self.fingerprints = classifier.fingerprint, samples.fingerprint

    def is_still(self, classifier: Classifier, samples: Samples, config: Config) -> bool:
        """Whether these are the same and have not changed."""
        same = self.classifier is classifier and self.config == config
        return same and self.fingerprints == (classifier.fingerprint, samples.fingerprint)


class Cluster:
    """A connection to a Ray cluster, and what each of its workers may use. A context manager.

    Args:
        address: ``"auto"`` for the one that this machine belongs to, or the address of its head.
        cpus: CPU cores of a worker.
        gpus: GPUs of a worker; a share lets several workers use one. None: one, if the cluster has any.

    Raises:
        AgnoscoError: Ray is not installed, there is no cluster, or none of its machines has enough cores and GPUs.
    """

    def __init__(self, address: str, *, cpus: int = 1, gpus: float | None = None) -> None:
        self.ray = _ray()
        self.lifeline = connected(self.ray, address)
        self.cpus, self.gpus = cpus, min(self.ray.cluster_resources().get("GPU", 0), 1) if gpus is None else gpus
        self.device = "cuda" if self.gpus > 0 else "cpu"
        self._sent: tuple[Sent, tuple[Any, Any], Machine] | None = None
        """What was sent last; references to it; what the workers compute with."""
        needs = {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self.workers = sum(int(min(node.get(name, 0) // need for name, need in needs.items())) for node in nodes)
        """How many of them fit into the cluster at once."""
        if not self.workers:
            self.ray.shutdown()
            raise AgnoscoError(
                f"no machine of the cluster has {cpus} CPU cores and {self.gpus:g} GPUs for a worker",
                "ask for less with --worker-cpus and --worker-gpus",
            )

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()  # which ends the connection, not the cluster

    def send(self, classifier: Classifier, samples: Samples, config: Config) -> Machine:
        """Send the network and the samples to the cluster, and ask what a worker there computes with.

        AgnoscoError if the network cannot be sent, or if the workers have other versions.
        """
        _by_value(self.ray, classifier)
        try:
            refs = self.ray.put(classifier), self.ray.put(samples)
        except (TypeError, AttributeError, ValueError) as error:  # a module may hold anything
            raise AgnoscoError(f"{classifier.name} cannot be sent: {error}", "leave --cluster out") from error
        machine: Machine = self._answer(self._task(_machine).remote(refs, config, self.device))
        if machine.versions != versions():
            others = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
            raise AgnoscoError(
                f"the workers have other versions ({others})", "install the same ones on every machine of the cluster"
            )
        self._sent = Sent(classifier, samples, replace(config, precision=machine.precision)), refs, machine
        return machine

    def run(self, path: str, *, classifier: Classifier, samples: Samples, config: Config, **options: Any) -> Run:
        """A run for the cluster to make: :meth:`agnosco.runs.run.Run.create`, with the device of its workers."""
        machine = self.send(classifier, samples, config)
        return Run.create(
            path, classifier=classifier, samples=samples, config=replace(config, precision=machine.precision),
            device=self.device, threads=self.cpus, cpu=machine.cpu, **options,
        )  # fmt: skip

    def make(
        self, run: Run, classifier: Classifier, samples: Samples, jobs: Sequence[Job], on_step: OnStep | None
    ) -> Iterator[Finished]:
        """Make maps and store them: the ``backend`` of :func:`agnosco.runs.jobs.map_runs`; each group is a task.

        The run's folder must be one that all machines reach. The network and the samples are sent to the cluster,
        unless they are what was sent last. ``on_step`` is called from time to time, for every map.
        """
        if self._sent is None or not self._sent[0].is_still(classifier, samples, run.config):
            self.send(classifier, samples, run.config)
        assert self._sent is not None
        _, refs, machine = self._sent
        together = min(machine.together, -(-len(jobs) // self.workers))
        groups = store_groups(run, jobs, together)
        queue = None if on_step is None else self._queue()
        make, missing, place = self._task(_make_group), set(jobs), run.folder.absolute("")

        def begun(group: Sequence[Job]) -> Any:
            return make.remote(refs, self.device, place, group, missing.intersection(group), queue)

        pending = {begun(group): group for group in groups}
        leases, taken = Leases(run.folder), list[Sequence[Job]]()  # by others; here they are watched until they lapse
        looked = time.monotonic()
        try:
            while pending or taken:
                ready = self._ended(list(pending)) if pending else []
                _forward(queue, on_step)
                for ref in ready:
                    group = pending.pop(ref)
                    finished = self._answer(ref)
                    yield from finished or ()
                    taken += [group] * (finished is None)
                if time.monotonic() - looked >= WAIT:
                    free = [group for group in taken if _is_free(leases, group)]
                    pending |= {begun(group): group for group in free}
                    taken, looked = [group for group in taken if group not in free], time.monotonic()
                elif not pending:
                    time.sleep(POLL_INTERVAL)
            _forward(queue, on_step)
        finally:
            self._cancel(list(pending))

    def _cancel(self, pending: list[Any]) -> None:
        """Stop the workers as Ctrl-C would, and wait until they have written their checkpoints.

        A task that has ended must not be cancelled: Ray 2.60 may abort this process ("Tried to complete task that was
        not pending"). One that ends within microseconds of the look still can be.
        """
        told = not self.lifeline.node_lost and self.ray.is_initialized()  # at the end of a program, Ray may have ended
        if not (told and pending):
            return
        for ref in pending:
            with suppress(Exception):
                ended, _ = self.ray.wait([ref], timeout=0)
                if not ended:
                    self.ray.cancel(ref)
        with suppress(Exception):
            self.ray.wait(pending, num_returns=len(pending), timeout=STOP_TIMEOUT)

    def _answer(self, ref: Any) -> Any:
        """The result of a task, once it is there; an :class:`AgnoscoError` is raised as it was in the worker."""
        while not self._ended([ref]):
            pass
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, AgnoscoError):
                raise error.cause from None
            if isinstance(error.cause, self.ray.exceptions.RaySystemError):  # what was sent could not be unpacked
                raise AgnoscoError(
                    f"a worker cannot unpack the network: {str(error.cause).strip().splitlines()[-1]}",
                    "install the code that the network is made of on every machine of the cluster",
                ) from error
            raise
        except self.ray.exceptions.RayError as error:
            self.lifeline.look()
            raise AgnoscoError(
                f"a worker was lost {RETRIES + 1} times over a group: {first_line(error)}",
                SAME_COMMAND,
            ) from error

    def _ended(self, refs: list[Any]) -> list[Any]:
        """Those of some tasks that have ended, after a short wait. AgnoscoError if the connection is lost."""
        try:
            ended, _ = self.ray.wait(refs, timeout=POLL_INTERVAL)
        except self.ray.exceptions.RayError as error:
            self.lifeline.look()
            raise AgnoscoError(f"Ray failed: {first_line(error)}", SAME_COMMAND) from error
        self.lifeline.check()
        return ended

    def _task(self, function: Callable[..., Any]) -> Any:
        return self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(function)

    def _queue(self) -> Any:
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=True)
        return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # it must not die with a worker


@lru_cache(maxsize=1)
def _receive(refs: tuple[Any, Any], device: str) -> tuple[Classifier, Samples]:
    """The network, on a device, and the samples; unpacked once in a process."""
    import ray

    classifier, samples = ray.get(list(refs))
    return classifier.to(torch.device(device)), samples


@lru_cache(maxsize=1)
def _worker(refs: tuple[Any, Any], device: str, place: str) -> Worker:
    """What makes the maps of a run in this process."""
    try:
        run = Run.open(place)
    except AgnoscoError as error:
        raise AgnoscoError(
            f"a worker on {os.uname().nodename} cannot open the run: {error.message}",
            "give a folder that all machines reach: a shared disk, or a store such as s3://bucket/run",
        ) from error
    torch.set_num_threads(run.settings.threads)  # which decide the bits, however many cores this worker has
    return Worker(run, *_receive(refs, device))


def _machine(refs: tuple[Any, Any], config: Config, device: str) -> Machine:
    """What this process computes with."""
    classifier, _ = _receive(refs, device)
    precision = resolve_precision(config.precision, torch.device(device))
    together = maps_together(classifier, replace(config, precision=precision))
    return Machine(precision, together, versions(), cpu_kind(device))


def _is_free(leases: Leases, group: Sequence[Job]) -> bool:
    """Whether a worker can take a group now: nobody holds its lease, or that has lapsed and is removed here."""
    lease = leases.take(name_of_group(group))
    if lease is not None:
        lease.release()
    return lease is not None


def _make_group(
    refs: tuple[Any, Any], device: str, place: str, group: Sequence[Job], missing: set[Job], queue: Any
) -> list[Finished] | None:
    """Make a group; returns those of its maps that were missing when the task was created, whoever made them.

    None if another process is making it.
    """
    worker = _worker(refs, device, place)
    torch.set_num_threads(worker.run.settings.threads)  # also if this process has made maps of another run meanwhile
    on_step = None if queue is None else _reporter(queue)
    try:
        return list(worker.make(group, missing, on_step=on_step))
    except TakenElsewhere:
        return None


def _reporter(queue: Any) -> OnStep:
    """Sends the progress of every map to the driver, at most once in :data:`REPORT_INTERVAL`."""
    latest: dict[Job, Progress] = {}
    sent = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal sent
        latest[Job(progress.label, progress.seed)] = progress
        if time.monotonic() - sent >= REPORT_INTERVAL or progress.done == progress.total:
            with suppress(Exception):  # without progress the work continues
                queue.actor.put_nowait_batch.remote(list(latest.values()))
            latest.clear()
            sent = time.monotonic()

    return report


def _forward(queue: Any, on_step: OnStep | None) -> None:
    """Pass on the progress that workers have reported."""
    if queue is None or on_step is None:
        return
    import ray

    reported = []
    with suppress(Exception):  # without progress the work continues
        size = ray.get(queue.actor.qsize.remote(), timeout=PROGRESS_TIMEOUT)
        reported = ray.get(queue.actor.get_nowait_batch.remote(size), timeout=PROGRESS_TIMEOUT)
    for progress in reported:
        on_step(progress)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # for clusters that we start
    try:
        import ray
    except ModuleNotFoundError as error:
        raise AgnoscoError("Ray is not installed", "pip install '.[ray]' in the clone of agnosco") from error
    return ray


def _by_value(ray: Any, classifier: Classifier) -> None:
    """Have Ray send the code of ``python:`` files, which the workers do not have."""
    used = {type(layer).__module__ for layer in classifier.model.modules()}
    folders = {os.path.dirname(_file_of(name)) for name in used if name.startswith("_agnosco_")}
    for name in used:
        if os.path.dirname(_file_of(name)) in folders:  # the file itself, and what it imports from beside it
            ray.cloudpickle.register_pickle_by_value(sys.modules[name])


def _file_of(module: str) -> str:
    return os.path.abspath(getattr(sys.modules[module], "__file__", None) or "")
