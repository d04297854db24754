"""What happens to a run when things go wrong: maps lost, maps that differ, and what the user is told.

    python benchmarks/faults.py                every fault; writes results/faults.json and docs/reliability.md
    python benchmarks/faults.py --only NAME    one of them, as --list names them; writes its row
    python benchmarks/faults.py --few          each a few times; writes nothing
    python benchmarks/faults.py --tables       write the table into docs/reliability.md

The command is that of torture.py: ``agnosco map``, 60 maps of a small network, forked from a process that has imported
PyTorch. After a fault, it is given again without one, and every file of the run is compared with those of an
undisturbed run. An error counts as told well if the command ends with exit code 2 and two lines, ``Error:`` and
``Hint:``. The faults of Ray clusters are in benchmarks/cluster_faults.py.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, about, argument_parser, fill, markdown, measured_on, read_results, write_results
from torture import MAPS, Board, exit_code, files, prepared, start

from agnosco.io import atomic, local
from agnosco.method import prepare
from agnosco.runs import jobs, leases

PATH = RESULTS / "faults.json"
PROCESSES = 4
SLOW = 0.3
"""Seconds that a step takes longer where processes share a run, as that of a larger network: it waits for nothing."""

PATIENCE = 300.0
"""Seconds after which a process is taken to hang."""


@dataclass
class Row:
    """What one kind of fault did.

    Args:
        times: How often it struck.
        runs: Runs that it struck.
        maps: Their maps, all in all.
        lost, wrong: Files that were missing at the end, or differed from those of an undisturbed run.
        left_over: Files that should not be there.
        errors, in_two_lines: Commands that ended with an error, and those of them that told it well.
        note: What else was measured.
    """

    times: int = 0
    runs: int = 0
    maps: int = 0
    lost: int = 0
    wrong: int = 0
    left_over: int = 0
    errors: int = 0
    in_two_lines: int = 0
    note: str = ""
    examples: list[str] = field(default_factory=list)

    def compare(self, actual: dict[str, bytes], expected: dict[str, bytes]) -> None:
        """Count a run that is said to be complete."""
        self.runs += 1
        self.maps += sum(name.startswith("maps/") and name.endswith(".safetensors") for name in expected)
        self.lost += sum(name not in actual for name in expected)
        wrong = [name for name, content in expected.items() if name in actual and actual[name] != content]
        extra = [name for name in actual if name not in expected]
        self.wrong += len(wrong)
        self.left_over += len(extra)
        self.examples += [*wrong[:3], *extra[:3]]

    def told(self, code: int, said: str) -> None:
        """Count the end of a command that failed."""
        lines = said.rstrip().splitlines()
        self.errors += 1
        well = code == 2 and len(lines) >= 2 and lines[-2].startswith("Error: ") and lines[-1].startswith("Hint: ")
        self.in_two_lines += well
        if not well:
            self.examples.append(f"exit code {code}: {' / '.join(lines[-3:])}"[:400])


class Bench:
    """A folder with the network and an undisturbed run, and the command."""

    def __init__(self, folder: Path, *, few: bool) -> None:
        self.folder, self.few, self.chance = folder, few, random.Random(0)
        self.board = Board()
        self.command = prepared(folder, self.board)
        self.take()

    def take(self, *options: str) -> None:
        """Give the command more options, and run it undisturbed."""
        self.command += options
        self.seconds = self.run("undisturbed")
        self.expected = files(self.folder / "undisturbed")
        shutil.rmtree(self.folder / "undisturbed")

    def times(self, many: int) -> int:
        """How often a fault strikes."""
        return min(many, 3) if self.few else many

    def begun(self, out: str, *options: str, change: Callable[[], object] | None = None, log: str | None = None) -> int:
        """Start the command, with more options, in a process that first makes a change to itself; returns its id."""
        return start(
            [*self.command, *options],
            self.folder / out,
            Board(),
            change=change,
            log=self.folder / (log or f"{out}.log"),
        )

    def run(self, out: str, *, change: Callable[[], object] | None = None) -> float:
        """Run the command; returns its seconds. SystemExit if it fails."""
        began = time.perf_counter()
        code = ended(self.begun(out, change=change))
        if code:
            raise SystemExit(f"{out}: exit code {code}\n{self.said(out)[-2000:]}")
        return time.perf_counter() - began

    def failing(self, out: str, row: Row, *, change: Callable[[], object]) -> bool:
        """Run the command with a fault, and count what it tells; returns whether it failed."""
        (self.folder / f"{out}.log").unlink(missing_ok=True)
        code = ended(self.begun(out, change=change))
        if code:
            row.told(code, self.said(out))
        return code != 0

    def said(self, out: str) -> str:
        """What the commands of a run have written to their standard error."""
        return (self.folder / f"{out}.log").read_text(errors="replace")

    def done(self, out: str, row: Row) -> None:
        """Compare a run, and remove it."""
        row.compare(files(self.folder / out), self.expected)
        shutil.rmtree(self.folder / out)


def ended(process: int, patience: float = PATIENCE) -> int:
    """The exit code of a process, once it has ended; SystemExit if it hangs."""
    end = time.monotonic() + patience
    while (code := exit_code(process)) is None:
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            raise SystemExit("a process hangs")
        time.sleep(0.005)
    return code


# -- faults ------------------------------------------------------------------------------------------


def shared(bench: Bench) -> Row:
    """Four processes share a run; none is disturbed."""
    row, ratios = Row(), []

    def slow() -> None:
        slowed(SLOW)()
        prepare.MOST_IMAGES = 12  # more groups to share

    alone = bench.run("slow", change=slow)
    bench.expected = files(bench.folder / "slow")
    shutil.rmtree(bench.folder / "slow")
    for number in range(bench.times(3)):
        out, began = f"shared-{number}", time.perf_counter()
        processes = [bench.begun(out, change=slow, log=f"{out}-{each}.log") for each in range(PROCESSES)]
        codes = [ended(process) for process in processes]
        ratios.append((time.perf_counter() - began) / alone)
        said = [(bench.folder / f"{out}-{each}.log").read_text() for each in range(PROCESSES)]
        made = sum(text.count("class probability") - text.count("made by another process") for text in said)
        if any(codes) or made != MAPS:
            raise SystemExit(f"exit codes {codes}, {made} maps made\n" + "\n".join(text[-600:] for text in said))
        row.times += 1
        bench.done(out, row)
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    row.note = f"each map made once; wall time as a share of one process's, {alone:.0f} s: {listed}"
    return row


def slowed(seconds: float) -> Callable[[], object]:
    """A change after which every step takes so many seconds more, of which none is computing."""

    def change() -> None:
        ordinary = jobs.Checkpoint.update

        def update(self: jobs.Checkpoint, state: Any) -> None:
            time.sleep(seconds)
            ordinary(self, state)

        jobs.Checkpoint.update = update  # type: ignore[method-assign]

    return change


def shared_and_killed(bench: Bench) -> Row:
    """Four processes share a run; each is killed at random moments, and started again."""
    row, kills = Row(), [0] * PROCESSES
    wanted, slow = bench.times(50), slowed(0.004)
    while min(kills) < wanted:
        out = f"killed-{row.runs}"
        processes: list[int | None] = [bench.begun(out, change=slow, log=f"{out}.log") for _ in range(PROCESSES)]
        while any(process is not None for process in processes):
            time.sleep(bench.chance.uniform(0, bench.seconds / 8))
            for place, process in enumerate(processes):
                if process is None:
                    continue
                code = exit_code(process)
                if code is not None:
                    if code:
                        raise SystemExit(f"exit code {code}\n{bench.said(out)[-2000:]}")
                    processes[place] = None
            alive = [place for place, process in enumerate(processes) if process is not None]
            place = bench.chance.choice(alive) if alive else 0
            process = processes[place]
            if process is not None and kills[place] < wanted:
                os.kill(process, signal.SIGKILL)
                if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL:
                    kills[place] += 1
                    processes[place] = bench.begun(out, change=slow, log=f"{out}.log")
                else:
                    processes[place] = None
        bench.done(out, row)
    row.times = sum(kills)
    row.note = f"kills of each process: {', '.join(map(str, kills))}"
    return row


def full_disk(bench: Bench) -> Row:
    """The disk is full from the n-th write on, for every n."""
    bench.take("--seeds", "1")
    row, count = Row(), _writes(bench)
    step = max(1, count // bench.times(count))
    for number in range(1, count + 1, step):
        out = f"full-{number}"
        row.times += bench.failing(out, row, change=failing_write(number, errno.ENOSPC))
        bench.run(out)
        bench.done(out, row)
    row.note = f"a run of 10 maps, which has {count} writes"
    return row


def _writes(bench: Bench) -> int:
    """How many files an undisturbed run writes."""
    process = start(bench.command, bench.folder / "counted", bench.board, log=bench.folder / "counted.log")
    if ended(process):
        raise SystemExit(bench.said("counted"))
    shutil.rmtree(bench.folder / "counted")
    return bench.board.writes


def failing_write(number: int, reason: int) -> Callable[[], object]:
    """A change after which the n-th file that is written and all after it cannot be."""

    def change() -> None:
        writes = 0
        ordinary, create = local.atomic_file, local.create_file

        def counted() -> None:
            nonlocal writes
            writes += 1
            if writes >= number:
                raise OSError(reason, os.strerror(reason))

        @contextmanager
        def failing(path: Path) -> Iterator[Any]:
            with ordinary(path) as file:
                file.write(b"half of what")
                counted()
                file.seek(0)
                file.truncate()
                yield file

        def created(path: Path, content: bytes) -> bool:
            counted()
            return create(path, content)

        local.atomic_file, local.create_file = failing, created

    return change


def small_disk(bench: Bench) -> Row:
    """A disk of its own (tmpfs), too small for the run, is filled; it is made larger."""
    row, size = Row(), sum(map(len, bench.expected.values()))
    place = bench.folder / "disk"
    place.mkdir()
    for number in range(bench.times(20)):
        room = int(size * bench.chance.uniform(0.05, 1.0))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "none", str(place)]
        if subprocess.run(mount, capture_output=True).returncode:
            row.note = "not measured: this needs the right to mount"
            return row
        try:
            row.times += bench.failing("disk/run", row, change=lambda: None)
            subprocess.run(["mount", "-o", f"remount,size={4 * size + (64 << 20)}", str(place)], check=True)
            bench.run("disk/run")
            row.compare(files(place / "run"), bench.expected)
        finally:
            subprocess.run(["umount", str(place)], check=True)
        del number
    return row


def moved_folder(bench: Bench) -> Row:
    """The run folder is renamed while maps are made, and given its name back."""
    row = Row()
    for number in range(bench.times(30)):
        out, away = f"moved-{number}", bench.folder / f"away-{number}"
        process = bench.begun(out)
        while not (bench.folder / out / "manifest.json").exists():
            time.sleep(0.001)
        time.sleep(bench.chance.uniform(0, bench.seconds * 0.8))
        (bench.folder / out).rename(away)
        if code := ended(process):
            row.times += 1
            row.told(code, bench.said(out))
        if (bench.folder / out).exists():  # nothing may be begun in its place
            row.left_over += len(files(bench.folder / out))
            row.examples.append("a new folder")
            shutil.rmtree(bench.folder / out)
        away.rename(bench.folder / out)
        bench.run(out)
        bench.done(out, row)
    return row


def clock_jumps(bench: Bench) -> Row:
    """Two processes share a run; the clock of one jumps by up to a year, to and fro, at random moments."""
    row = Row()
    for number in range(bench.times(10)):
        out = f"clock-{number}"
        changes = (jumping(number), slowed(0.002))
        processes = [bench.begun(out, change=change, log=f"{out}-{each}.log") for each, change in enumerate(changes)]
        for each, process in enumerate(processes):
            if code := ended(process):
                row.told(code, bench.said(f"{out}-{each}"))
        row.times += int((bench.folder / f"jumps-{number}").read_text())
        bench.done(out, row)
    return row


def jumping(seed: int) -> Callable[[], object]:
    """A change after which the wall clock jumps; the monotonic one does not, as the system promises."""

    def change() -> None:
        slowed(0.002)()
        chance, clock, jumps, offset = random.Random(seed), time.time, 0, 0.0
        path = Path(os.environ["AGNOSCO_BENCH"]) / f"jumps-{seed}"
        path.write_text("0")

        def jumped() -> float:
            nonlocal jumps, offset
            if chance.random() < 0.8:
                jumps, offset = jumps + 1, chance.uniform(-1, 1) * 366 * atomic.DAY
                path.write_text(str(jumps))
            return clock() + offset

        time.time = jumped  # type: ignore[assignment]
        leases.datetime = _Shifted(jumped)  # type: ignore[assignment]

    return change


class _Shifted:
    """What :mod:`agnosco.runs.leases` uses of ``datetime``, by another clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock

    def now(self, zone: Any) -> Any:
        from datetime import datetime

        return datetime.fromtimestamp(max(self.clock(), 0), zone)


def out_of_memory(bench: Bench) -> Row:
    """A process may not have more memory than it had at its start and up to 200 MiB."""
    row = Row()
    for number in range(bench.times(10)):
        out = f"memory-{number}"
        row.times += bench.failing(out, row, change=limited(int(bench.chance.uniform(0, 200) * (1 << 20))))
        bench.run(out)
        bench.done(out, row)
    return row


def limited(more: int) -> Callable[[], object]:
    """A change after which this process may have only so many bytes more."""

    def change() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return change


def object_store(bench: Bench) -> Row:
    """A run in S3, whose server answers 503, drops connections and is slow now and then; killed at random moments."""
    row = Row()
    with store() as (environment, bucket):
        os.environ |= environment
        for number in range(bench.times(4)):
            out, kills = f"s3-{number}", 0
            address = f"s3://{bucket}/{out}"
            command = [*bench.command, "--out", address]
            while True:
                process = start(command, None, Board(), log=bench.folder / f"{out}.log")
                code = None
                if kills < bench.times(13):
                    end = time.monotonic() + bench.chance.uniform(0, 6)
                    while (code := exit_code(process)) is None and time.monotonic() < end:
                        time.sleep(0.01)
                    if code is None:
                        os.kill(process, signal.SIGKILL)
                        os.waitpid(process, 0)
                        kills += 1
                        continue
                code = ended(process) if code is None else code
                if code == 0:
                    break
                row.told(code, bench.said(out))
            row.times += kills
            # read in a process of its own: a forked one must not use what s3fs keeps in this one
            listing = subprocess.run(
                [sys.executable, __file__, "--read", address], capture_output=True, check=True, text=True
            ).stdout
            actual = {name: bytes.fromhex(content) for name, content in json.loads(listing).items()}
            row.compare(actual, bench.expected)
        counts = json.loads((Path(environment["AGNOSCO_BENCH"]) / "store.json").read_text())
    row.note = ", ".join(f"{count} {what}" for what, count in counts.items())
    return row


@contextmanager
def store() -> Iterator[tuple[dict[str, str], str]]:
    """An S3 of its own process that fails now and then; the environment that reaches it, and a bucket."""
    folder = os.environ["AGNOSCO_BENCH"]
    process = subprocess.Popen([sys.executable, __file__, "--serve", folder])
    try:
        address = Path(folder) / "address"
        while not address.exists():
            time.sleep(0.05)
            if process.poll() is not None:
                raise SystemExit("the store did not start")
        yield {
            "AWS_ENDPOINT_URL": address.read_text(), "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": "nowhere", "AWS_SHARED_CREDENTIALS_FILE": "nowhere",
            "AGNOSCO_BENCH": folder,
        }, "maps"  # fmt: skip
    finally:
        process.terminate()
        process.wait()


def serve(folder: Path) -> None:
    """Serve S3 on a free port, failing now and then; the address and the counts of failures go into the folder."""
    import socket

    from moto.backends import get_backend
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application, chance = DomainDispatcherApplication(create_backend_app), random.Random(0)
    counts = {"requests": 0, "answers of 503": 0, "dropped connections": 0, "delays": 0}

    def failing(environ: dict[str, Any], respond: Callable[..., Any]) -> Any:
        counts["requests"] += 1
        kind = chance.random()
        if counts["requests"] > 1:
            if kind < 0.02:
                counts["answers of 503"] += 1
                respond("503 Slow Down", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
            answer = list(application(environ, respond)) if kind < 0.03 else None
            if answer is not None:  # the work is done, and nobody is told
                counts["dropped connections"] += 1
                with suppress(OSError):
                    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                return answer
            if kind < 0.06:
                counts["delays"] += 1
                time.sleep(chance.uniform(0, 0.3))
        if counts["requests"] % 50 == 0:
            (folder / "store.json").write_text(json.dumps(counts))
        return application(environ, respond)

    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, failing, threaded=True)
    with suppress(Exception):
        get_backend("s3")["123456789012"]["aws"].create_bucket("maps", "us-east-1")
    (folder / "address.part").write_text(f"http://127.0.0.1:{server.port}")
    (folder / "address.part").rename(folder / "address")
    server.serve_forever()


def read_store(address: str) -> dict[str, str]:
    """All objects of a run in a store, in hexadecimal."""
    from agnosco.io.storage import Folder

    folder, found = Folder.of(address), {}
    for inside in ("", "maps", "pictures", "checkpoints", "leases", "samples"):
        for name in folder.names(inside):
            path = f"{inside}/{name}".lstrip("/")
            found[path] = folder.read(path).hex()
    return found


FAULTS: dict[str, Callable[[Bench], Row]] = {
    "four processes share a run": shared,
    "four processes share a run, killed": shared_and_killed,
    "disk full from the n-th write on": full_disk,
    "a small disk, filled": small_disk,
    "folder renamed": moved_folder,
    "clock jumps": clock_jumps,
    "out of memory": out_of_memory,
    "S3 with faults, killed": object_store,
}


def table(results: dict[str, Any]) -> str:
    """The rows as Markdown."""
    head = ("fault", "times", "maps", "lost", "wrong", "left over", "errors in two lines", "")
    rows = [
        (
            name, str(row["times"]), str(row["maps"]), str(row["lost"]), str(row["wrong"]), str(row["left_over"]),
            f"{row['in_two_lines']} of {row['errors']}" if row["errors"] else "", row["note"],
        )
        for name, row in results["rows"].items()
    ]  # fmt: skip
    return f"{measured_on(results)}.\n\n{markdown(head, rows)}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", choices=[*FAULTS], help="one fault")
    parser.add_argument("--few", action="store_true", help="each a few times; nothing is stored")
    parser.add_argument("--list", action="store_true", help="name the faults")
    parser.add_argument("--serve", type=Path, help="used by this script itself: serve S3, failing now and then")
    parser.add_argument("--read", help="used by this script itself: print the objects of a run")
    options = parser.parse_args()
    if options.list:
        print(*FAULTS, sep="\n")
    elif options.serve:
        serve(options.serve)
    elif options.read:
        print(json.dumps(read_store(options.read)))
    elif options.tables:
        fill("docs/reliability.md", "faults", table(read_results(PATH)))
    else:
        measure(FAULTS, options.only, few=options.few)


def measure(faults: Mapping[str, Callable[[Bench], Row]], only: str | None, *, few: bool) -> None:
    """Try faults, and store their rows."""
    torch.set_num_threads(1)
    failed = []
    for name in [only] if only else faults:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["AGNOSCO_BENCH"] = folder
            began = time.perf_counter()
            row = faults[name](Bench(Path(folder), few=few))
        print(name, json.dumps(asdict(row)), f"{time.perf_counter() - began:.0f} s", flush=True)
        if row.lost or row.wrong or row.left_over or row.errors != row.in_two_lines:
            failed.append(name)
        if not few:
            results = read_results(PATH, {"rows": {}})
            rows = results["rows"] | {name: {key: value for key, value in asdict(row).items() if key != "examples"}}
            write_results(PATH, {"about": about("agnosco map, maps of a small network, with faults"), "rows": rows})
    if not few:
        fill("docs/reliability.md", "faults", table(read_results(PATH)))
    if failed:
        raise SystemExit(f"not as promised: {', '.join(failed)}")


if __name__ == "__main__":
    main()
