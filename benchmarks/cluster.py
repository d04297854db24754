"""Maps per minute on a Ray cluster of one worker and of two, and in one process without it.

    python benchmarks/cluster.py            measure, into benchmarks/results/cluster.json
    python benchmarks/cluster.py --tables   write the table into docs/reliability.md

The nodes of the cluster are processes of this machine, each with one core; so it takes two cores that have nothing else
to do. Workers are warmed up by a run before the one that is measured. In the last run a worker is killed in the middle.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from ablation import RESULTS, about
from growth import config, network
from pages import made_on, markdown, put

from agnosco import Run, Samples
from agnosco.runs.cluster import Cluster
from agnosco.runs.jobs import run_maps
from agnosco.types import Progress

MAPS, STEPS, SIZE = 100, 200, 64
PATH = RESULTS / "cluster.json"


def measured(cluster: Cluster | None, folder: Path, *, maps: int = MAPS, kill: bool = False) -> dict[str, Any]:
    """Seconds that so many maps take, and what their folder holds."""
    classifier, settings = network(SIZE), config(batch=4, steps=STEPS)
    samples = Samples.noise(classifier.shape, count=64)
    create = Run.create if cluster is None else cluster.run
    run = create(str(folder), classifier=classifier, samples=samples, config=settings)
    killed: list[int] = []

    def on_step(step: Progress) -> None:
        if kill and not killed:
            killed.extend(kill_a_worker())

    begun = time.perf_counter()
    made = None if cluster is None else cluster.made
    seeds = range(-(-maps // 10))
    found = list(run_maps(run, classifier, samples, range(10), seeds=seeds, on_step=on_step, made=made))
    return {"seconds": time.perf_counter() - begun, "maps": len(found), "killed": len(killed)}


def kill_a_worker() -> list[int]:
    """Kill the process of a worker that makes maps, as the kernel kills one that needs too much memory."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any("_group_made" in part for part in process.cmdline()):
                process.kill()
                return [process.pid]
    return []


def on_nodes(count: int, scratch: Path, *, kill: bool = False) -> dict[str, Any]:
    """The same on a cluster of so many worker nodes."""
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(count):
            nodes.add_node(num_cpus=1)
        with Cluster(str(nodes.address)) as cluster:
            measured(cluster, scratch / f"warm-{count}-{kill}", maps=10)
            return measured(cluster, scratch / f"run-{count}-{kill}", kill=kill)
    finally:
        nodes.shutdown()


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    alone = results["runs"]["one process, no cluster"]
    rows = []
    for name, run in results["runs"].items():
        rate = run["maps"] / run["seconds"]
        rows.append([name, str(run["maps"]), f"{60 * rate:.0f}", f"{rate * alone['seconds'] / alone['maps']:.2f}"])
    return f"{made_on(results)}.\n\n{markdown(['where', 'maps', 'maps a minute', 'against one process'], rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true")
    if parser.parse_args().tables:
        put("docs/reliability.md", "cluster", table(json.loads(PATH.read_text())))
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        measured(None, Path(scratch) / "warm", maps=10)
        runs = {"one process, no cluster": measured(None, Path(scratch) / "alone")}
        runs["a cluster of one worker"] = on_nodes(1, Path(scratch))
        runs["a cluster of two workers"] = on_nodes(2, Path(scratch))
        runs["two workers, one killed in the middle"] = on_nodes(2, Path(scratch), kill=True)
    results = {"about": about("a small network of random weights"), "runs": runs}
    PATH.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
