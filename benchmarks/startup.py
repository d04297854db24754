"""How long a command takes from Enter to its answer, beside `python -c "import torch"`.

    python benchmarks/startup.py            measure (a minute), into benchmarks/results/startup.json
    python benchmarks/startup.py --tables   write the table into benchmarks/README.md

Every command runs in a new process, five times in turn with the others, after a round that is not counted. A ratio is
the median over rounds of the command's time divided by that of the import in the same round. The weights file is a
ResNet-18 (45 MB); the run has ten maps of 224 x 224 pixels. Python keeps its bytecode, as it does after a first use.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import safetensors.torch
import torch
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
from torch import nn
from torchvision import models

import agnosco
from agnosco import Classifier, Config, Samples
from agnosco.runs.jobs import map_runs
from agnosco.runs.run import Run

PATH = RESULTS / "startup.json"
ROUNDS, MAPS, SIZE = 5, 10, 224

TORCH = 'python -c "import torch"'
MAP = "map python:net.py:build 0 --trust-code --size 16 --samples noise --steps 1 --device cpu --out new"
COMMANDS: dict[str, list[str]] = {
    "agnosco --help": ["--help"],
    "completion of `agnosco sc`": [],
    "agnosco --version": ["--version"],
    "agnosco map --help": ["map", "--help"],
    "wrong usage: agnosco mpa": ["mpa"],
    "agnosco inspect FILE.safetensors": ["inspect", "resnet18.safetensors"],
    "agnosco report RUN": ["report", "run"],
    "agnosco doctor": ["doctor"],
    "agnosco map net.py, one step": [*MAP.split()],
}
COMPLETION = {"_AGNOSCO_COMPLETE": "complete_bash", "COMP_WORDS": "agnosco sc", "COMP_CWORD": "1"}
TARGETS = {
    "agnosco --help": 0.4,
    "completion of `agnosco sc`": 0.4,
    "agnosco inspect FILE.safetensors": 0.8,
    "agnosco report RUN": 1.5,
}
"""Seconds that a command may take on an idle machine."""

EXIT_CODES = {"wrong usage: agnosco mpa": 2}
"""Other commands exit with 0."""


NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))
"""


def prepare(folder: Path) -> None:
    """A weights file, a run of ten maps, and a network in Python."""
    (folder / "net.py").write_text(NET)
    torch.manual_seed(0)
    safetensors.torch.save_file(models.resnet18().state_dict(), folder / "resnet18.safetensors")
    model = nn.Sequential(nn.Conv2d(3, 8, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    classifier = Classifier(model.append(nn.Linear(128, MAPS)), size=SIZE, name="startup")
    samples = Samples.noise(classifier.shape, count=20)
    config = Config(replace(agnosco.preset("quick").mapper, steps=10), refine=None, cycles=1)
    run = Run.create(folder / "run", classifier=classifier, samples=samples, config=config)
    for _ in map_runs(run, classifier, samples, range(MAPS)):
        pass


def seconds(folder: Path, *args: str, exit_code: int = 0, **environment: str) -> float:
    """Seconds that a new process of Python takes."""
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "src")} | environment
    start = time.perf_counter()
    process = subprocess.run([sys.executable, *args], cwd=folder, env=environment, capture_output=True, timeout=120)
    taken = time.perf_counter() - start
    if process.returncode != exit_code:
        raise RuntimeError(f"{args} exited with {process.returncode}: {process.stderr.decode()}")
    return taken


def measure_round(folder: Path) -> dict[str, float]:
    """Seconds of each command, and of the import of torch."""
    shutil.rmtree(folder / "new", ignore_errors=True)
    times = {TORCH: seconds(folder, "-c", "import torch")}
    for name, words in COMMANDS.items():
        environment = {} if words else COMPLETION
        exit_code = EXIT_CODES.get(name, 0)
        times[name] = seconds(folder, "-m", "agnosco", *words, exit_code=exit_code, **environment)
    return times


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    rounds = results["rounds"]
    rows = []
    for name in rounds[0]:
        ratio = median(times[name] / times[TORCH] for times in rounds)
        target = f"{TARGETS[name]} s" if name in TARGETS else "-"
        rows.append([name, f"{median(times[name] for times in rounds):.2f}", f"{ratio:.2f}", target])
    head = ["command", f"s, median of {len(rounds)}", "/ import torch", "target"]
    return f"{measured_on(results)}.\n\n{markdown(head, rows)}"


def main() -> None:
    if argument_parser(__doc__).parse_args().tables:
        fill("benchmarks/README.md", "startup", table(read_results(PATH)))
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        rounds = [measure_round(Path(name)) for _ in range(1 + ROUNDS)][1:]  # the first fills caches
    results = {"about": about("commands in new processes"), "rounds": rounds}
    write_results(PATH, results)
    print(table(results))


if __name__ == "__main__":
    main()
