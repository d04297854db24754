"""Is any test flaky? The whole suite again and again, in random order, on all cores, on one, beside load.

    python benchmarks/suite.py 6           six rounds more; adds to results/suite.json and docs/reliability.md
    python benchmarks/suite.py --tables    write the table into docs/reliability.md

    --way WAY    only in this way; otherwise, each round in the way of the fewest runs so far

Each time, modules are shuffled, and the tests within them, by a seed. ``pytest --random-order-seed SEED`` gives the
order of one core again; on several, which tests run beside each other is chance. The suite is that of ``make test``,
which has to have run before: it installs what the tests need.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

from common import (
    ENVIRONMENT,
    RESULTS,
    ROOT,
    about,
    argument_parser,
    fill,
    markdown,
    measured_on,
    read_results,
    write_results,
)

PATH = RESULTS / "suite.json"
PAGE = "docs/reliability.md"
BUSY = "while True: sum(range(10_000))"


@dataclass(frozen=True)
class Way:
    """How the suite is run: on one core in one process, or on all; beside how many busy processes; how many at once."""

    name: str
    one_core: bool = False
    busy: int = 0
    at_once: int = 1

    @property
    def command(self) -> list[str]:
        """What runs pytest in this way."""
        if self.one_core:
            core = str(min(os.sched_getaffinity(0)))
            return ["taskset", "--cpu-list", core, sys.executable, "-m", "pytest", "-n", "0"]
        return [sys.executable, "-m", "pytest", "-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]


WAYS = (
    Way("all cores"),
    Way("one core", one_core=True),
    Way("all cores, each busy", busy=os.cpu_count() or 1),
    Way("all cores, twice at once", at_once=2),
)


def round_of(way: Way, seeds: Sequence[int]) -> list[Future[dict[str, Any]]]:
    """The suite with each seed, at once: what :func:`run` returns, or its error."""
    at = commit()
    with load(way.busy), ThreadPoolExecutor(len(seeds)) as pool:
        return [pool.submit(run, way, seed, at) for seed in seeds]


def run(way: Way, seed: int, at: str) -> dict[str, Any]:
    """Run the suite once; returns how many tests passed and were skipped, which failed, and the seconds it took."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.xml", Path(folder) / "log"
        options = ["-q", "-m", "not slow", "--random-order", "--random-order-seed", str(seed), f"--junitxml={report}"]
        with log.open("w") as output:
            code = subprocess.run(
                [*way.command, *options], cwd=ROOT, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            ).returncode  # fmt: skip
        cases = list(ElementTree.parse(report).getroot().iter("testcase")) if report.exists() else []
        failed = [name_of(case) for case in cases if case.find("failure") is not None or case.find("error") is not None]
        if bool(code) != bool(failed):
            raise RuntimeError(f"pytest ended with exit code {code}\n{log.read_text()[-3000:]}")
        if failed:
            print(log.read_text()[-20_000:], file=sys.stderr, flush=True)
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "way": way.name, "seed": seed, "passed": len(cases) - skipped - len(failed), "skipped": skipped,
        "failed": failed, "seconds": round(time.perf_counter() - began), "commit": at,
        "about": about("make test, in random order"),
    }  # fmt: skip


def name_of(case: ElementTree.Element) -> str:
    """The name of a test, as pytest takes it, nearly: a class of tests is written as a file."""
    return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"


@contextmanager
def load(count: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def commit() -> str:
    """The commit of the working copy, in short, with a plus if anything but results differs from it."""

    def said(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    changed = said("status", "--porcelain", "--", ".", ":!benchmarks/results", f":!{PAGE}")
    return said("describe", "--always", "--exclude=*") + ("+" if changed else "")


def red(run: dict[str, Any]) -> list[str]:
    """What failed in a suite, as Markdown: each test, or how many of a file if several."""
    files = Counter(name.split("::")[0] for name in run["failed"])
    names = [name for name in run["failed"] if files[name.split("::")[0]] == 1]
    texts = [f"`{re.sub(r'[|`]', ' ', name)}`" for name in names]
    texts += [f"{count} tests of `{file}`" for file, count in files.items() if count > 1]
    return [f"{text} ({run['commit']})" for text in texts]


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = []
    for way in WAYS:
        runs = [each for each in results["runs"] if each["way"] == way.name]
        if not runs:
            continue
        failed = [text for each in runs for text in red(each)]
        green = sum(not each["failed"] for each in runs)
        tests = max(each["passed"] + len(each["failed"]) for each in runs)
        minutes = median(each["seconds"] for each in runs) / 60
        skipped = max(each["skipped"] for each in runs)
        rows.append(
            [way.name, f"{green} of {len(runs)}", f"{tests:,} ({skipped})", f"{minutes:.0f}", ", ".join(failed)]
        )
    head = ["the suite on", "green", "tests (skipped)", "minutes (median)", "failed, and at which commit"]
    last = list(takewhile(lambda run: not run["failed"], reversed(results["runs"])))
    return (
        f"The last time: {measured_on(results['runs'][-1])}. Of {len(results['runs'])} suites, the last {len(last)} "
        f"were green.\n\n{markdown(head, rows)}"
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=0, help="how many")
    parser.add_argument("--way", choices=[way.name for way in WAYS])
    options = parser.parse_args()
    ways = [way for way in WAYS if options.way in (None, way.name)]
    for _ in range(options.rounds):
        runs = read_results(PATH, {"runs": []})["runs"]
        so_far = Counter(each["way"] for each in runs)
        way = min(ways, key=lambda way: so_far[way.name])
        suites = round_of(way, range(len(runs) + 1, len(runs) + 1 + way.at_once))
        ended = [suite.result() for suite in suites if not suite.exception()]
        print(*ended, sep="\n", flush=True)
        if ended:
            write_results(PATH, {"runs": [*runs, *ended]})
            fill(PAGE, "suite", table(read_results(PATH)))  # at once: the next suite tests that page and results agree
        for suite in suites:
            suite.result()  # raises its error
    if options.tables:
        fill(PAGE, "suite", table(read_results(PATH)))
    elif not options.rounds:
        parser.print_usage()


if __name__ == "__main__":
    main()
