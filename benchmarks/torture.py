"""A run of 60 maps killed at a hundred random moments: is every map there at the end, and each the very same?

    python benchmarks/torture.py               100 kills; writes results/torture.json and docs/reliability.md
    python benchmarks/torture.py --kills 5     fewer, and writes nothing

The command is ``agnosco map`` on a small network (10 classes, 6 seeds, all of the paper's machinery: two cycles with
refinement, a ball that grows, crops) with groups of 6 maps and a checkpoint every few steps. It is begun, killed with
SIGKILL at a random moment, begun again, and so on until it ends; then the next run is begun, until so many kills have
happened. Every file of every run is compared with those of a run that nobody disturbed. Moments are drawn in four ways:
at any time of the process's life; after it has begun to work; shortly after it has begun to write a file, for that is
where a kill could do harm; and while it writes the manifest or the contact sheet, which it does seldom. Processes are
forked from one that has imported PyTorch, which takes seconds.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from ablation import RESULTS, about
from pages import made_on, markdown, put

from agnosco.cli.app import main as command_line
from agnosco.io import storage
from agnosco.method import prepare
from agnosco.method.config import PRESETS, RefineConfig
from agnosco.models.architectures import created
from agnosco.runs import jobs
from agnosco.runs.run import Run

MAPS, SEEDS = 60, 6
PHASES = ("starting", "making maps", "writing a checkpoint", "storing a map", "writing the manifest", "ending")
START, MAKE, CHECKPOINT, STORE, MANIFEST, END = range(len(PHASES))
KINDS = {"at any time": 0.3, "at work": 0.3, "at a write": 0.25, "at the manifest": 0.05, "at the end": 0.1}


@dataclass
class Figures:
    """What happened."""

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
    """What a process tells the one that will kill it: its phase, and how many files it has begun to write."""

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
        """The same function, which says so while it runs."""

        @wraps(function)
        def told(*args: Any, **options: Any) -> Any:
            before, self.shared[0] = self.shared[0], phase
            result = function(*args, **options)
            self.shared[0] = MAKE if phase == MANIFEST and before == START else before
            return result

        return told

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose calls are counted."""

        @wraps(function)
        def told(*args: Any, **options: Any) -> Any:
            self.shared[1:5] = (self.writes + 1).to_bytes(4, "little")
            return function(*args, **options)

        return told


def prepared(folder: Path, board: Board) -> list[str]:
    """The command, in a process in which it says what it does, makes small groups and writes checkpoints often."""
    torch.set_num_threads(1)
    safetensors.torch.save_file(created("digits", 10, seed=1).state_dict(), folder / "network.safetensors")
    prepare.MOST_IMAGES = 24  # groups of 6 maps of 4 images each
    jobs.EVERY = 0.02
    paper = PRESETS["paper"]
    PRESETS["paper"] = replace(paper, refine=RefineConfig(steps=6, rate=0.05))
    storage._write = board.counted(storage._write)
    Run._write_manifest = board.during(MANIFEST, Run._write_manifest)
    Run.add = board.during(STORE, Run.add)
    Run.write_contact_sheet = board.during(END, Run.write_contact_sheet)
    jobs.Keeper.write = board.during(CHECKPOINT, jobs.Keeper.write)
    return [
        "map", "agnosco:digits", "--weights", str(folder / "network.safetensors"), "--samples", "noise",
        "--preset", "paper", "--ball", "auto", "--transforms", "crops", "--steps", "8", "--batch", "4",
        "--seeds", str(SEEDS), "--device", "cpu", *map(str, range(10)),
    ]  # fmt: skip


def begun(command: list[str], out: Path, board: Board) -> int:
    """The command, in a process of its own; its id."""
    board.clear()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        command_line([*command, "--out", str(out)])
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(process: int) -> int | None:
    """The exit code of a process; None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def killed(process: int, board: Board, chance: random.Random, life: float, figures: Figures) -> bool:
    """Kill a process at a random moment; whether it was still there then."""
    kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
    begun_at = time.perf_counter()
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
        if (code := ended(process)) is not None:
            return _over(code)
        time.sleep(0.0002)
    if kind == "at any time":
        wait -= time.perf_counter() - begun_at
    time.sleep(max(wait, 0))
    if (code := ended(process)) is not None:
        return _over(code)
    os.kill(process, signal.SIGKILL)
    phase = board.phase
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code != -signal.SIGKILL:
        return _over(code)
    figures.kills += 1
    figures.kinds[kind] += 1
    figures.phases[PHASES[phase]] += 1
    return True


def _over(code: int) -> bool:
    if code != 0:
        raise SystemExit(f"the command ended with {code}: see its log")
    return False


def files(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def torture(kills: int, seed: int, *, say: Callable[[str], None] = print) -> tuple[Figures, float]:
    """So many kills; what happened, and how long an undisturbed run takes.

    Args:
        kills: How many.
        seed: Of their moments.
        say: Called with a line now and then.
    """
    figures, board, chance = Figures(), Board(), random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = prepared(folder, board)
        begun_at = time.perf_counter()
        code = os.waitstatus_to_exitcode(os.waitpid(begun(command, folder / "undisturbed", board), 0)[1])
        if code:
            raise SystemExit((folder / "undisturbed.log").read_text())
        life = time.perf_counter() - begun_at
        expected = files(folder / "undisturbed")
        say(f"undisturbed: {life:.1f} s, {len(expected)} files")
        while figures.kills < kills:
            run = folder / f"run{figures.runs}"
            _one_run(command, run, board, chance, life, kills, figures)
            _compared(run, expected, figures)
            shutil.rmtree(run)
            say(f"{figures.kills} kills, {figures.runs} runs complete, {len(figures.differing)} files differ")
    return figures, life


def _one_run(
    command: list[str], out: Path, board: Board, chance: random.Random, life: float, kills: int, figures: Figures
) -> None:
    """A run, begun again after every kill until it ends."""
    try:
        while True:
            figures.starts += 1
            process = begun(command, out, board)
            # A run goes on after every kill, so that moments near its end are drawn too.
            if figures.kills < kills and killed(process, board, chance, life / 5, figures):
                found = list(out.rglob("*"))
                figures.parts_after_kills += any(path.name.startswith(storage.PART) for path in found)
                figures.checkpoints_after_kills += any(path.parent.name == jobs.CHECKPOINTS for path in found)
                continue
            if figures.kills >= kills and ended(process) is None and _over(_waited(process)):
                raise AssertionError
            return
    except SystemExit as error:
        raise SystemExit(f"{error}\n{out.with_suffix('.log').read_text()[-2000:]}") from error


def _waited(process: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    except ChildProcessError:
        return 0


def _compared(run: Path, expected: dict[str, bytes], figures: Figures) -> None:
    found = files(run)
    figures.runs += 1
    figures.files += len(expected)
    maps = [name for name in expected if name.endswith(".safetensors")]
    assert len(maps) == MAPS
    figures.maps += len(maps)
    figures.missing += sum(name not in found for name in maps)
    figures.differing += [name for name in expected if found.get(name) != expected[name]]
    figures.left_over += [name for name in found if name not in expected]


def told(results: dict[str, Any]) -> str:
    """The figures, as the page has them."""
    rows = [(phase, str(count)) for phase, count in results["phases"].items()]
    return (
        f"{results['kills']} kills in {results['runs']} runs of {MAPS} maps, {results['starts']} starts "
        f"({made_on(results)}): {results['missing']} of {results['maps']} maps missing, {results['differing']} of "
        f"{results['files']} files other than those of an undisturbed run, {results['left_over']} files left over. "
        f"{results['parts_after_kills']} kills left a temporary file, which the next start removed, and "
        f"{results['checkpoints_after_kills']} a checkpoint.\n\n" + markdown(("killed while", "times"), rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun_at = time.perf_counter()
    figures, life = torture(options.kills, options.seed)
    results = {
        "about": about("agnosco map, 60 maps of a small network on noise, killed and begun again"),
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
        "seconds": round(time.perf_counter() - begun_at, 1),
    }
    print(json.dumps(results, indent=1))
    if options.kills >= 100:
        (RESULTS / "torture.json").write_text(json.dumps(results, indent=1) + "\n")
        put("docs/reliability.md", "torture", told(results))
    if figures.missing or figures.differing or figures.left_over:
        raise SystemExit(f"differing: {figures.differing[:9]}, left over: {figures.left_over[:9]}")


if __name__ == "__main__":
    main()
