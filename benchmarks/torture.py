"""A run of 60 maps, killed at a hundred random moments: is every map there at the end, and identical?

    python benchmarks/torture.py               100 kills; writes results/torture.json and docs/reliability.md
    python benchmarks/torture.py --kills 5     fewer; writes nothing
    python benchmarks/torture.py --tables      write the table into docs/reliability.md

The command is ``agnosco map`` on a small network: 10 classes, 6 seeds, two cycles with refinement, a ball that grows,
crops, groups of 6 maps, and a checkpoint every few steps. It is started, killed with SIGKILL at a random moment,
started again, and so on until it is complete; then the next run begins, until the number of kills is reached. Every
file of every run is compared with those of an undisturbed run.

Moments are drawn in four ways: at any time; after the process has begun to work; shortly after it has begun to write a
file, where a kill could do harm; and while it writes the manifest or the contact sheet, which is rare. Processes are
forked from one that has imported PyTorch, which takes seconds.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import safetensors.torch
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

from agnosco.cli.app import main as command_line
from agnosco.io import local
from agnosco.io.atomic import PART
from agnosco.method import prepare
from agnosco.method.config import PRESETS, RefineConfig
from agnosco.models.architectures import created
from agnosco.runs import jobs, sheet
from agnosco.runs.run import Run

PATH = RESULTS / "torture.json"
MAPS, SEEDS = 60, 6
PHASES = ("starting", "making maps", "writing a checkpoint", "storing a map", "writing the manifest", "ending")
START, MAKE, CHECKPOINT, STORE, MANIFEST, END = range(len(PHASES))
KINDS = {"at any time": 0.3, "at work": 0.3, "at a write": 0.25, "at the manifest": 0.05, "at the end": 0.1}


@dataclass
class Figures:
    """Counts of a torture."""

    kills: int = 0
    starts: int = 0
    runs: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    maps: int = 0
    missing: int = 0
    files: int = 0
    differing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    parts_after_kills: int = 0
    checkpoints_after_kills: int = 0


class Board:
    """Memory shared with the process to kill: its phase, and how many files it has begun to write."""

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, 8)

    @property
    def phase(self) -> int:
        return self.shared[0]

    @property
    def writes(self) -> int:
        return int.from_bytes(self.shared[1:5], "little")

    def clear(self) -> None:
        self.shared[:] = bytes(8)

    def during(self, phase: int, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which sets the phase while it runs."""

        @wraps(function)
        def wrapped(*args: Any, **options: Any) -> Any:
            before, self.shared[0] = self.shared[0], phase
            result = function(*args, **options)
            self.shared[0] = MAKE if phase == MANIFEST and before == START else before
            return result

        return wrapped

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which counts its calls."""

        @wraps(function)
        def wrapped(*args: Any, **options: Any) -> Any:
            self.shared[1:5] = (self.writes + 1).to_bytes(4, "little")
            return function(*args, **options)

        return wrapped


def prepared(folder: Path, board: Board) -> list[str]:
    """The command. In this process it tells the board its phase, makes small groups and writes checkpoints often."""
    torch.set_num_threads(1)
    safetensors.torch.save_file(created("digits", 10, seed=1).state_dict(), folder / "network.safetensors")
    prepare.MOST_IMAGES = 24  # groups of 6 maps of 4 images each
    jobs.INTERVAL = 0.02
    paper = PRESETS["paper"]
    PRESETS["paper"] = replace(paper, refine=RefineConfig(steps=6, rate=0.05))
    local.atomic_file = board.counted(local.atomic_file)
    Run.write_manifest = board.during(MANIFEST, Run.write_manifest)
    Run.add = board.during(STORE, Run.add)
    sheet.write_contact_sheet = board.during(END, sheet.write_contact_sheet)
    jobs.Checkpoint.write = board.during(CHECKPOINT, jobs.Checkpoint.write)
    return [
        "map", "agnosco:digits", "--weights", str(folder / "network.safetensors"), "--samples", "noise",
        "--preset", "paper", "--ball", "auto", "--transforms", "crops", "--steps", "8", "--batch", "4",
        "--seeds", str(SEEDS), "--device", "cpu", *map(str, range(10)),
    ]  # fmt: skip


def start(
    command: list[str],
    out: Path | None,
    board: Board,
    *,
    change: Callable[[], object] | None = None,
    log: Path | None = None,
) -> int:
    """Start the command in a process of its own, which first makes a change to itself; return its id.

    It writes what it says to a log, by default beside the folder. Without a folder, the command names one itself.
    """
    board.clear()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = log or (out or Path("run")).with_suffix(".log")
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(written, 1)
        os.dup2(written, 2)
        if change is not None:
            change()
        command_line(command if out is None else [*command, "--out", str(out)])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def exit_code(process: int) -> int | None:
    """The exit code of a process; None while it runs."""
    ended, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def kill(process: int, board: Board, chance: random.Random, life: float, figures: Figures) -> bool:
    """Kill a process at a random moment; return whether it was still running."""
    kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
    started = time.perf_counter()
    writes, wait = chance.randint(1, 40), chance.uniform(0, life)
    if kind not in ("at any time", "at work"):
        wait = chance.uniform(0, 0.2 if kind == "at the end" else 0.004)

    def reached() -> bool:
        return {
            "at any time": True,
            "at work": board.phase != START,
            "at a write": board.writes >= writes,
            "at the manifest": board.phase == MANIFEST,
            "at the end": board.phase == END,
        }[kind]

    while not reached():
        if (code := exit_code(process)) is not None:
            return _check_ended(code)
        time.sleep(0.0002)
    if kind == "at any time":
        wait -= time.perf_counter() - started
    time.sleep(max(wait, 0))
    if (code := exit_code(process)) is not None:
        return _check_ended(code)
    os.kill(process, signal.SIGKILL)
    phase = board.phase
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code != -signal.SIGKILL:
        return _check_ended(code)
    figures.kills += 1
    figures.kinds[kind] += 1
    figures.phases[PHASES[phase]] += 1
    return True


def _check_ended(code: int) -> bool:
    """False, as the process ended by itself; SystemExit if it failed."""
    if code != 0:
        raise SystemExit(f"the command failed with exit code {code}: see its log")
    return False


def files(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def torture(kills: int, seed: int, *, say: Callable[[str], None] = print) -> tuple[Figures, float]:
    """Kill and restart until there were so many kills; return the counts and the seconds of an undisturbed run.

    Args:
        kills: How many.
        seed: Seed of their moments.
        say: Called with a line after each run.
    """
    figures, board, chance = Figures(), Board(), random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = prepared(folder, board)
        started = time.perf_counter()
        code = os.waitstatus_to_exitcode(os.waitpid(start(command, folder / "undisturbed", board), 0)[1])
        if code:
            raise SystemExit((folder / "undisturbed.log").read_text())
        life = time.perf_counter() - started
        expected = files(folder / "undisturbed")
        say(f"undisturbed: {life:.1f} s, {len(expected)} files")
        while figures.kills < kills:
            run = folder / f"run{figures.runs}"
            _one_run(command, run, board, chance, life, kills, figures)
            _compare(run, expected, figures)
            shutil.rmtree(run)
            say(f"{figures.kills} kills, {figures.runs} runs complete, {len(figures.differing)} files differ")
    return figures, life


def _one_run(
    command: list[str], out: Path, board: Board, chance: random.Random, life: float, kills: int, figures: Figures
) -> None:
    """One run, started again after every kill until it is complete."""
    try:
        while True:
            figures.starts += 1
            process = start(command, out, board)
            # Kills may be late in the run, because each start continues where the last was killed.
            if figures.kills < kills and kill(process, board, chance, life / 5, figures):
                paths = list(out.rglob("*"))
                figures.parts_after_kills += any(path.name.startswith(PART) for path in paths)
                figures.checkpoints_after_kills += any(path.parent.name == jobs.CHECKPOINTS for path in paths)
                continue
            if figures.kills >= kills and exit_code(process) is None:
                _check_ended(_wait(process))
            return
    except SystemExit as error:
        raise SystemExit(f"{error}\n{out.with_suffix('.log').read_text()[-2000:]}") from error


def _wait(process: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    except ChildProcessError:
        return 0


def _compare(run: Path, expected: dict[str, bytes], figures: Figures) -> None:
    actual = files(run)
    figures.runs += 1
    figures.files += len(expected)
    maps = [name for name in expected if name.endswith(".safetensors")]
    assert len(maps) == MAPS
    figures.maps += len(maps)
    figures.missing += sum(name not in actual for name in maps)
    figures.differing += [name for name in expected if actual.get(name) != expected[name]]
    figures.left_over += [name for name in actual if name not in expected]


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [(phase, str(count)) for phase, count in results["phases"].items()]
    return (
        f"{results['kills']} kills in {results['runs']} runs of {MAPS} maps, {results['starts']} starts "
        f"({measured_on(results)}): {results['missing']} of {results['maps']} maps missing, {results['differing']} of "
        f"{results['files']} files different from those of an undisturbed run, {results['left_over']} files left over. "
        f"{results['parts_after_kills']} kills left a temporary file, which the next start removed, and "
        f"{results['checkpoints_after_kills']} a checkpoint.\n\n" + markdown(("killed while", "times"), rows)
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.tables:
        fill("docs/reliability.md", "torture", table(read_results(PATH)))
        return
    started = time.perf_counter()
    figures, life = torture(options.kills, options.seed)
    results = {
        "about": about("agnosco map, 60 maps of a small network on noise, killed and started again"),
        "kills": figures.kills,
        "starts": figures.starts,
        "runs": figures.runs,
        "phases": {phase: figures.phases[phase] for phase in PHASES},
        "moments": dict(sorted(figures.kinds.items())),
        "maps": figures.maps,
        "missing": figures.missing,
        "files": figures.files,
        "differing": len(figures.differing),
        "left_over": len(figures.left_over),
        "parts_after_kills": figures.parts_after_kills,
        "checkpoints_after_kills": figures.checkpoints_after_kills,
        "seconds_undisturbed": round(life, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(results, indent=1))
    if options.kills >= 100:
        write_results(PATH, results)
        fill("docs/reliability.md", "torture", table(results))
    if figures.missing or figures.differing or figures.left_over:
        raise SystemExit(f"differing: {figures.differing[:9]}, left over: {figures.left_over[:9]}")


if __name__ == "__main__":
    main()
