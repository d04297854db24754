"""Maps per minute on a Ray cluster of one worker and of two, and in one process without a cluster.

    python benchmarks/cluster.py            measure, into benchmarks/results/cluster.json
    python benchmarks/cluster.py --tables   write the table into docs/reliability.md

The nodes of the cluster are processes of this machine with one core each, so it needs two idle cores. Another run warms
up the workers first. In the last run a worker is killed in the middle.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from common import (
    RESULTS,
    about,
    argument_parser,
    fill,
    markdown,
    measured_on,
    read_results,
    write_results,
)
from growth import config, network

from agnosco import Run, Samples
from agnosco.runs.cluster import Cluster
from agnosco.runs.jobs import map_runs
from agnosco.types import Progress

MAPS, STEPS, SIZE = 100, 200, 64
PATH = RESULTS / "cluster.json"


def measure(cluster: Cluster | None, folder: Path, *, maps: int = MAPS, kill: bool = False) -> dict[str, Any]:
    """Seconds that so many maps take, how many were made, and how many workers were killed."""
    classifier, settings = network(SIZE), config(batch=4, steps=STEPS)
    samples = Samples.noise(classifier.shape, count=64)
    create = Run.create if cluster is None else cluster.run
    run = create(str(folder), classifier=classifier, samples=samples, config=settings)
    killed: list[int] = []

    def on_step(step: Progress) -> None:
        if kill and not killed:
            killed.extend(kill_a_worker())

    start = time.perf_counter()
    backend = None if cluster is None else cluster.make
    seeds = range(-(-maps // 10))
    finished = list(map_runs(run, classifier, samples, range(10), seeds=seeds, on_step=on_step, backend=backend))
    return {"seconds": time.perf_counter() - start, "maps": len(finished), "killed": len(killed)}


def kill_a_worker() -> list[int]:
    """Kill the process of a worker that makes maps, as the kernel does when memory runs out; return its id."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any("_make_group" in part for part in process.cmdline()):
                process.kill()
                return [process.pid]
    return []


@contextmanager
def nodes(workers: int, *, busy: bool = False) -> Iterator[Any]:
    """A Ray cluster of processes of this machine: a head that makes no maps, and nodes of one worker each.

    On a busy machine workers are as important as other processes; otherwise Ray makes them nice.
    """
    changes = {"RAY_USAGE_STATS_ENABLED": "0"} | ({"RAY_worker_niceness": "0"} if busy else {})
    before = {name: os.environ.get(name) for name in changes}
    os.environ |= changes
    from ray.cluster_utils import Cluster as Nodes

    cluster = Nodes()
    try:
        add_node(cluster, num_cpus=0, include_dashboard=False)
        for _ in range(workers):
            add_node(cluster, num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


STARTS = 4
"""How often a node is started at most. Ray gives it 30 seconds, which a busy machine may not have."""


def add_node(cluster: Any, **options: Any) -> Any:
    """Add a node; if it does not start, its processes are killed and it is started again."""
    here, known = psutil.Process(), {cluster.head_node, *cluster.worker_nodes}
    before = set(here.children())
    for start in range(1, STARTS + 1):
        try:
            return cluster.add_node(**options)
        except Exception:  # what Ray says of a time that is over depends on where it was waiting
            for node in {cluster.head_node, *cluster.worker_nodes} - known:
                cluster.remove_node(node, allow_graceful=False)
            for process in set(here.children()) - before:
                with suppress(psutil.Error):
                    process.kill()
            if start == STARTS:
                raise


def on_nodes(count: int, scratch: Path, *, kill: bool = False) -> dict[str, Any]:
    """Measure on a cluster of so many worker nodes."""
    with nodes(count) as started, Cluster(str(started.address)) as cluster:
        measure(cluster, scratch / f"warm-{count}-{kill}", maps=10)
        return measure(cluster, scratch / f"run-{count}-{kill}", kill=kill)


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    alone = results["runs"]["one process, no cluster"]
    rows = []
    for name, run in results["runs"].items():
        rate = run["maps"] / run["seconds"]
        rows.append([name, str(run["maps"]), f"{60 * rate:.0f}", f"{rate * alone['seconds'] / alone['maps']:.2f}"])
    return f"{measured_on(results)}.\n\n{markdown(['where', 'maps', 'maps per minute', 'ratio to one process'], rows)}"


def main() -> None:
    if argument_parser(__doc__).parse_args().tables:
        fill("docs/reliability.md", "cluster", table(read_results(PATH)))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        measure(None, scratch / "warm", maps=10)
        runs = {
            "one process, no cluster": measure(None, scratch / "alone"),
            "a cluster of one worker": on_nodes(1, scratch),
            "a cluster of two workers": on_nodes(2, scratch),
            "two workers, one killed in the middle": on_nodes(2, scratch, kill=True),
        }
    results = {"about": about("a small network with random weights"), "runs": runs}
    write_results(PATH, results)
    print(table(results))


if __name__ == "__main__":
    main()
