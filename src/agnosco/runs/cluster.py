"""The same jobs on many machines: each group of maps is a task of a Ray cluster (extra ``agnosco[ray]``).

The network and the samples are sent to every node once. A worker makes a group as a process of its own would, from
its checkpoint where there is one, and writes the maps straight into the run's folder, which all machines must reach: a
shared disk, or a store such as ``s3://bucket/run``. A worker that dies is replaced, and what it was making goes on.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..method.config import Config
from ..method.maker import maps_together
from ..method.prepare import resolve_precision
from ..models.classifier import Classifier
from ..types import Job, OnStep, Progress
from .jobs import Finished, Worker, store_groups
from .run import Run
from .status import status_of

RETRIES = 5
"""How often a group is given to another worker when one dies."""

TELLING = 1.0
"""Seconds between two words of a worker's on how far it is."""

ANSWERING = 10.0
"""Seconds within which the head of a cluster has to answer."""

STOPPING = 20.0
"""Seconds that workers have to write a checkpoint when they are stopped."""

LISTENING = 0.2
"""Seconds that the driver waits before it listens again."""


@dataclass(frozen=True)
class Machine:
    """What a worker of the cluster computes with.

    Args:
        device: Kind of device.
        threads: Threads of PyTorch on a CPU.
        precision: What the settings' precision is there.
        together: Maps that fit side by side.
        versions: Of what decides the bits of a map.
    """

    device: str
    threads: int
    precision: str
    together: int
    versions: dict[str, str]


class Cluster:
    """A connection to a Ray cluster, and what each of its workers may use. A context manager.

    Args:
        address: ``"auto"`` for the one that this machine belongs to, or the address of its head.
        cpus: CPU cores of a worker.
        gpus: GPUs of a worker; a share lets several use one. None: one, where the cluster has any.

    Raises:
        AgnoscoError: Ray is not installed, there is no cluster, or none of its machines has so much.
    """

    def __init__(self, address: str, *, cpus: int = 1, gpus: float | None = None) -> None:
        self.ray = _ray()
        _connected(self.ray, address)
        there = self.ray.cluster_resources()
        self.cpus, self.gpus = cpus, min(there.get("GPU", 0), 1) if gpus is None else gpus
        self._sent: _Sent | None = None
        self.workers = self._workers()
        if not self.workers:
            self.close()
            raise AgnoscoError(
                f"no machine of the cluster has {cpus} CPU cores and {self.gpus:g} GPUs for a worker",
                "ask for less with --worker-cpus and --worker-gpus",
            )

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster, which goes on without us."""
        self.ray.shutdown()

    def send(self, classifier: Classifier, samples: Samples, config: Config) -> Machine:
        """Give the network and the samples to the cluster, and ask what a worker there computes with.

        Raises:
            AgnoscoError: The network cannot be sent, or the workers have other versions.
        """
        _by_value(self.ray, classifier)
        try:
            refs = [self.ray.put(classifier), self.ray.put(samples)]
        except (TypeError, AttributeError, ValueError) as error:  # whatever a module of somebody's may hold
            raise AgnoscoError(f"{classifier.name} cannot be sent: {error}", "leave --cluster out") from error
        key = f"{os.getpid()}-{time.time_ns()}"
        machine: Machine = self._answer(self._task(_looked_at).remote(key, refs, config, self.gpus > 0, self.cpus))
        if machine.versions != versions():
            told = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
            raise AgnoscoError(
                f"the workers have other versions ({told})", "install the same ones on every machine of the cluster"
            )
        self._sent = _Sent(key, refs, machine)
        return machine

    def run(
        self,
        path: str,
        *,
        classifier: Classifier,
        samples: Samples,
        config: Config,
        preset: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        command: str = "python",
        weights: str | Path | None = None,
    ) -> Run:
        """A run about to be made by the cluster: :meth:`agnosco.runs.run.Run.create` with what its workers have."""
        machine = self.send(classifier, samples, config)
        return Run.create(
            path, classifier=classifier, samples=samples, config=replace(config, precision=machine.precision),
            preset=preset, overrides=overrides, command=command, weights=weights,
            device=machine.device, threads=machine.threads,
        )  # fmt: skip

    def made(
        self, run: Run, classifier: Classifier, samples: Samples, jobs: Sequence[Job], on_step: OnStep | None
    ) -> Iterator[Finished]:
        """Make maps and store them, as :func:`agnosco.runs.jobs.made_here` does; each group is a task.

        Args:
            run: Where they go; a folder that all machines reach.
            classifier, samples: What goes there, if nothing was sent yet.
            jobs: What is to be made.
            on_step: Called now and then, for every map.
        """
        if self._sent is None:
            self.send(classifier, samples, run.config)
        assert self._sent is not None
        sent, place = self._sent, run.folder.absolute("")
        groups = store_groups(run, jobs, min(sent.machine.together, -(-len(jobs) // self.workers)))
        events = None if on_step is None else self._queue()
        make, missing = self._task(_group_made), set(jobs)
        pending = [
            make.remote(sent.key, sent.refs, sent.machine, place, group, missing.intersection(group), events)
            for group in groups
        ]
        try:
            while pending:
                ready, pending = self.ray.wait(pending, timeout=LISTENING)
                _tell(events, on_step)
                for ref in ready:
                    yield from self._answer(ref)
            _tell(events, on_step)
        finally:
            self._cancel(pending)

    def _cancel(self, pending: list[Any]) -> None:
        """Have the workers stop as Ctrl-C would, and wait until they have written down where they were."""
        for ref in pending:
            with suppress(Exception):
                self.ray.cancel(ref)
        if pending:
            with suppress(Exception):
                self.ray.wait(pending, num_returns=len(pending), timeout=STOPPING)

    def _answer(self, ref: Any) -> Any:
        """What a task gave; what a user can mend is raised as it was there."""
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
            raise AgnoscoError(
                f"a worker was lost {RETRIES + 1} times over a group: {str(error).splitlines()[0]}",
                "look at the cluster's logs; the same command goes on from here",
            ) from error

    def _task(self, function: Callable[..., Any]) -> Any:
        return self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(function)

    def _workers(self) -> int:
        """How many workers fit into the cluster at once."""
        found = 0
        for node in self.ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            fits = [has.get("CPU", 0) // self.cpus]
            fits += [has.get("GPU", 0) // self.gpus] if self.gpus else []
            found += int(min(fits))
        return found

    def _queue(self) -> Any:
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=True)
        return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # lost with us, not with a worker


def connected(
    address: str | None, *, cpus: int = 1, gpus: float | None = None
) -> AbstractContextManager[Cluster | None]:
    """The cluster at an address, inside a ``with``; None for None: this process alone."""
    return nullcontext() if address is None else Cluster(address, cpus=cpus, gpus=gpus)


@dataclass(frozen=True)
class _Sent:
    """What the cluster has of a run: a key of the network and the samples, where they lie, and who works there."""

    key: str
    refs: list[Any]
    machine: Machine


def versions() -> dict[str, str]:
    """Of what decides the bits of a map."""
    return {name: metadata.version(name) for name in ("agnosco", "torch", "torchvision")}


# -- on a worker ---------------------------------------------------------------------------------------


_known: dict[str, tuple[Classifier, Samples]] = {}
"""What this process was sent; of the last key alone."""

_workers: dict[tuple[str, str], Worker] = {}


def _looked_at(key: str, refs: list[Any], config: Config, on_gpu: bool, threads: int) -> Machine:
    """What this process computes with."""
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.set_num_threads(threads)
    classifier, _ = _received(key, refs, device)
    precision = resolve_precision(config.precision, device)
    together = maps_together(classifier, replace(config, precision=precision))
    return Machine(str(device), threads, precision, together, versions())


def _group_made(
    key: str, refs: list[Any], machine: Machine, place: str, group: Sequence[Job], missing: set[Job], events: Any
) -> list[Finished]:
    """A group made here; of its maps, those that were missing when it was given away, whoever stored them."""
    torch.set_num_threads(machine.threads)
    if (key, place) not in _workers:
        _workers.clear()
        run = _opened(place)
        _workers[key, place] = Worker(run, *_received(key, refs, torch.device(machine.device)))
    worker = _workers[key, place]
    made = {(one.entry.index, one.entry.seed): one for one in worker.make(group, on_step=_teller(events))}
    others = status_of(worker.run, [job for job in missing if job not in made], names=worker.classifier.labels)
    return [*made.values(), *(Finished(entry, 0.0) for entry in others.entries)]


def _received(key: str, refs: list[Any], device: torch.device) -> tuple[Classifier, Samples]:
    """The network, on the device, and the samples; unpacked once in a process."""
    import ray

    if key not in _known:
        _known.clear()
        classifier, samples = ray.get(refs)
        _known[key] = classifier.to(device), samples
    return _known[key]


def _opened(place: str) -> Run:
    try:
        return Run.open(place)
    except AgnoscoError as error:
        raise AgnoscoError(
            f"a worker on {os.uname().nodename} does not find the run: {error.message}",
            "give a folder that all machines reach: a shared disk, or a store such as s3://bucket/run",
        ) from error


def _teller(events: Any) -> OnStep | None:
    """What tells the driver how far every map is, not too often."""
    if events is None:
        return None
    latest: dict[Job, Progress] = {}
    told = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told
        latest[Job(progress.label, progress.seed)] = progress
        if time.monotonic() - told >= TELLING or progress.done == progress.total:
            with suppress(Exception):  # a driver that does not listen is no reason to stop
                events.actor.put_nowait_batch.remote(list(latest.values()))
            latest.clear()
            told = time.monotonic()

    return tell


# -- Ray -----------------------------------------------------------------------------------------------


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that we start; others have their own say
    try:
        import ray
    except ModuleNotFoundError as error:
        raise AgnoscoError("Ray is not installed", "pip install '.[ray]' in the clone of agnosco") from error
    return ray


def _connected(ray: Any, address: str) -> None:
    """Join a cluster; the process's own way with SIGTERM, which Ray replaces, stays."""
    with _own_signals():
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except (OSError, ValueError, RuntimeError) as error:
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise AgnoscoError(
                f"no Ray cluster at {address!r}: {told}",
                "start one (`ray start --head --disable-usage-stats`), or leave --cluster out",
            ) from error


def _knock(address: str) -> None:
    """Find out at once whether anybody answers, for which Ray itself takes minutes; OSError if nobody does."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=ANSWERING).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _by_value(ray: Any, classifier: Classifier) -> None:
    """Have the code of ``python:`` files sent along, which the workers do not have."""
    used = {type(layer).__module__ for layer in classifier.model.modules()}
    folders = {os.path.dirname(_file_of(name)) for name in used if name.startswith("_agnosco_")}
    for name in used:
        if os.path.dirname(_file_of(name)) in folders:  # the file itself, and what it imports from beside it
            ray.cloudpickle.register_pickle_by_value(sys.modules[name])


def _file_of(module: str) -> str:
    return os.path.abspath(getattr(sys.modules[module], "__file__", None) or "")


def _tell(events: Any, on_step: OnStep | None) -> None:
    """Hand on what workers told meanwhile."""
    if events is None or on_step is None:
        return
    try:
        told = events.get_nowait_batch(events.qsize())
    except Exception:  # whatever became of the queue: without progress the work goes on
        return
    for progress in told:
        on_step(progress)
