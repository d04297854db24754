"""Is any test flaky? The whole suite again and again, in random order, on all cores, on one core, and beside load.

    python benchmarks/suite.py 6           six times more; adds to results/suite.json and docs/reliability.md
    python benchmarks/suite.py --tables    write the table into docs/reliability.md

Each time, modules are shuffled, and the tests within them, by the seed that its row names; the next time takes the next
of the three ways. ``pytest --random-order-seed SEED`` gives an order again. The suite is that of ``make test``, which
has to have run before: it installs what the tests need.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from common import RESULTS, ROOT, about, argument_parser, fill, markdown, measured_on, read_results, write_results

PATH = RESULTS / "suite.json"
WAYS = ("all cores", "one core", "all cores, beside as many busy processes")
BUSY = "while True: sum(range(10_000))"


def run(way: str, seed: int) -> dict[str, Any]:
    """Run the suite once; returns how many tests passed and were skipped, which failed, and the seconds it took."""
    alone = way == "one core"
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, load(0 if "beside" not in way else os.cpu_count() or 1):
        report = Path(folder) / "report.xml"
        order = ["--random-order", "--random-order-seed", str(seed)]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *order, f"--junitxml={report}"]
        command += ["-n", "0"] if alone else ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]
        prefix = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))] if alone else []
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        log = Path(folder) / "log"
        with log.open("w") as output:
            code = subprocess.run(
                [*prefix, *command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            ).returncode
        if code not in (0, 1):
            raise SystemExit(f"pytest ended with exit code {code}\n{log.read_text()[-3000:]}")
        if code:
            print(log.read_text()[-20_000:], file=sys.stderr, flush=True)
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "way": way, "seed": seed, "passed": len(cases) - skipped - len(failed), "skipped": skipped, "failed": failed,
        "seconds": round(time.perf_counter() - began), "commit": commit(),
    }  # fmt: skip


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
    """The commit of the working copy, in short."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = []
    for way in WAYS:
        runs = [each for each in results["runs"] if each["way"] == way]
        if not runs:
            continue
        failed = [f"`{re.sub(r'[|`]', ' ', name)}` ({each['commit']})" for each in runs for name in each["failed"]]
        green = sum(not each["failed"] for each in runs)
        tests = max(each["passed"] + len(each["failed"]) for each in runs)
        seconds = sorted(each["seconds"] for each in runs)[len(runs) // 2]
        rows.append([way, f"{green} of {len(runs)}", f"{tests:,}", str(round(seconds / 60)), ", ".join(failed)])
    head = ["the suite on", "green", "tests", "minutes (median)", "failed, and at which commit"]
    return f"{measured_on(results)}.\n\n{markdown(head, rows)}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("times", type=int, nargs="?", default=0, help="how often")
    options = parser.parse_args()
    for _ in range(options.times):
        runs = read_results(PATH, {"runs": []})["runs"]
        done = run(WAYS[len(runs) % len(WAYS)], len(runs) + 1)
        print(done, flush=True)
        write_results(PATH, {"about": about("make test, in random order"), "runs": [*runs, done]})
    if options.times or options.tables:
        fill("docs/reliability.md", "suite", table(read_results(PATH)))
    else:
        parser.print_usage()


if __name__ == "__main__":
    main()
