"""What happens to a run on a Ray cluster that loses a node or its head; rows of the table of benchmarks/faults.py.

    python benchmarks/cluster_faults.py                both; writes results/faults.json and docs/reliability.md
    python benchmarks/cluster_faults.py --only NAME    one of them, as --list names them
    python benchmarks/cluster_faults.py --few          each a few times; writes nothing

The command is that of faults.py with fewer and longer maps: 30, in groups of six. The nodes are processes of this
machine: a head that makes no maps, to which the command speaks, and two nodes of one worker each. A node is lost by
killing all of its processes. The run is compared with one of the same command on a cluster that nothing disturbs,
because the number of workers decides the groups. As all is on one machine, the lease of a worker that was killed lapses
at once; on another machine it takes a minute (tests/runs/test_cluster.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from cluster import add_node, nodes
from common import argument_parser
from faults import Bench, Row, ended, measure
from torture import exit_code, files

OPTIONS = ("--seeds", "3", "--steps", "60")
"""Enough work that a node can be lost in the middle of it."""

PATIENCE = 900.0
"""Seconds after which something is taken to hang: Ray starts processes, and that of a lost node is noticed late."""

LOSSES = ("the machine of the head", "the head's directing process", "the node of the command")


def node_lost(bench: Bench) -> Row:
    """All processes of a node that makes maps are killed at a random moment; another node takes its place."""
    row = Row(note="the command goes on by itself")
    bench.command += OPTIONS
    with started() as cluster:
        expect(bench, cluster)
        for number in range(bench.times(10)):
            out = f"node-{number}"
            process = at_work(bench, out, cluster)
            row.times += cluster.lose("node", process)
            finish(bench, out, process, row, cluster)
    return row


def head_lost(bench: Bench) -> Row:
    """The head is lost at a random moment, or parts of it; another cluster is started, and continues the run."""
    row, told, finished = Row(), Counter[str](), 0
    bench.command += OPTIONS
    with started() as cluster:
        expect(bench, cluster)
    for number in range(bench.times(9)):
        out = f"head-{number}"
        with started() as cluster:
            process = at_work(bench, out, cluster)
            what = LOSSES[number % len(LOSSES)]
            struck = cluster.lose(what, process)
            row.times += struck
            if code := ended(process, PATIENCE):
                row.told(code, bench.said(out))
                told[next(line for line in ("head of the cluster", "Ray node", "") if line in bench.said(out))] += 1
            elif struck:
                finished += 1
        with started() as cluster:
            finish(bench, out, on_cluster(bench, out, cluster), row, cluster)
    said = ", ".join(f"{what or 'something else'} {count}" for what, count in sorted(told.items()))
    row.note = f"said to be lost: {said}; commands that finished all the same: {finished}"
    return row


def expect(bench: Bench, cluster: Started) -> None:
    """Take a run that nothing disturbs on a cluster as what is expected."""
    out, began = "undisturbed on a cluster", time.perf_counter()
    if code := ended(on_cluster(bench, out, cluster), PATIENCE):
        raise SystemExit(f"exit code {code}\n{bench.said(out)[-2000:]}")
    bench.seconds = time.perf_counter() - began
    bench.expected = files(bench.folder / out)


def on_cluster(bench: Bench, out: str, cluster: Started) -> int:
    """Start the command on a cluster; returns the id of its process."""
    return bench.begun(out, "--cluster", cluster.address, change=small_groups)


def small_groups() -> None:
    """A change after which groups have six maps, and workers write checkpoints often."""
    from agnosco.runs import cluster

    store, make = cluster.store_groups, cluster._make_group

    def often(*arguments: Any) -> Any:  # sent to the workers as code
        from agnosco.runs import jobs

        jobs.INTERVAL = 0.2
        return make(*arguments)

    cluster.store_groups = lambda run, jobs, together: store(run, jobs, min(together, 6))
    cluster._make_group = often


def at_work(bench: Bench, out: str, cluster: Started) -> int:
    """Start the command on a cluster, and return at a random moment of its work."""
    process, end = on_cluster(bench, out, cluster), time.monotonic() + PATIENCE
    while not list((bench.folder / out).glob("leases/*")):
        time.sleep(0.01)
        if (code := exit_code(process)) is not None or time.monotonic() > end:
            raise SystemExit(f"exit code {code}\n{bench.said(out)[-2000:]}")
    time.sleep(bench.chance.uniform(0, bench.seconds / 2))
    return process


def finish(bench: Bench, out: str, process: int, row: Row, cluster: Started) -> None:
    """Wait for a command, give it again if it failed, and compare the run."""
    if code := ended(process, PATIENCE):
        row.told(code, bench.said(out))
        if code := ended(on_cluster(bench, out, cluster), PATIENCE):
            raise SystemExit(f"exit code {code}\n{bench.said(out)[-2000:]}")
    bench.done(out, row)


# -- clusters ----------------------------------------------------------------------------------------


class Started:
    """A Ray cluster that is run by a process of its own, as processes must not be forked from one that uses Ray."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--nodes"], env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.address = self._answer()

    def lose(self, what: str, process: int) -> bool:
        """Kill a ``node`` and add another, or one of :data:`LOSSES`; returns whether a process was still running."""
        assert self.process.stdin is not None
        running = psutil.Process(process).status() != psutil.STATUS_ZOMBIE
        print(what, file=self.process.stdin, flush=True)
        self._answer()
        return running

    def close(self) -> None:
        """End all processes of the cluster."""
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("now: "):
                return line.removeprefix("now: ").strip()
        raise SystemExit("the cluster ended")


@contextmanager
def started() -> Iterator[Started]:
    """A Ray cluster."""
    cluster = Started()
    try:
        yield cluster
    finally:
        cluster.close()


def run_nodes() -> None:
    """Be the process of :class:`Started`."""
    with nodes(0, busy=True) as cluster:
        workers = [add_node(cluster, num_cpus=1) for _ in range(2)]
        print("now:", cluster.address, flush=True)
        for line in sys.stdin:
            lose(cluster, workers, line.strip())
            print("now: done", flush=True)


def lose(cluster: Any, workers: list[Any], what: str) -> None:
    """Kill processes of a cluster; see :meth:`Started.lose`."""
    node = workers.pop(0) if what == "node" else cluster.head_node
    kinds = {"the head's directing process": ["gcs_server"], "the node of the command": ["raylet"]}
    for kind in kinds.get(what, list(node.all_processes)):
        for info in node.all_processes[kind]:
            with suppress(psutil.Error):
                process = psutil.Process(info.process.pid)
                for each in [process, *process.children(recursive=True)]:
                    each.kill()
    if what == "node":
        workers.append(add_node(cluster, num_cpus=1))


FAULTS: dict[str, Callable[[Bench], Row]] = {
    "a node of a Ray cluster lost": node_lost,
    "the head of a Ray cluster lost": head_lost,
}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", choices=[*FAULTS], help="one fault")
    parser.add_argument("--few", action="store_true", help="each a few times; nothing is stored")
    parser.add_argument("--list", action="store_true", help="name the faults")
    parser.add_argument("--nodes", action="store_true", help="used by this script itself: be a Ray cluster")
    options = parser.parse_args()
    if options.list:
        print(*FAULTS, sep="\n")
    elif options.nodes:
        run_nodes()
    else:
        measure(FAULTS, options.only, few=options.few)


if __name__ == "__main__":
    main()
