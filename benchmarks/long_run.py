"""Can one process make maps for ever? Memory, hooks, open files and threads over 300 maps.

    python benchmarks/long_run.py            measure, into benchmarks/results/long-run.json
    python benchmarks/long_run.py --tables   write the table into benchmarks/README.md

Maps are made as by `agnosco map`: several side by side, by Algorithm 1 and the refinement with its hooks in two cycles,
judged on held-out images and written into a run folder, which is opened again for every ten maps. The network is small
and has random weights, so that this takes minutes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
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
    resident_megabytes,
    tensors_alive,
    write_results,
)
from torch import nn

import agnosco
from agnosco import Classifier, Config, RefineConfig, Samples
from agnosco.runs.jobs import map_runs
from agnosco.runs.run import Run

MAPS, CLASSES, WARM = 300, 10, 50
"""All maps, those of one call, and those after which memory has to be flat."""

FLAT = 0.05
"""Largest relative change of memory that counts as none."""

PATH = RESULTS / "long-run.json"


def network(size: int = 32) -> Classifier:
    """Three convolutions with random weights, one of them with batch normalization, and ten classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip
    return Classifier(model, size=size, name="long-run")


def config(steps: int = 10) -> Config:
    """The settings of ``quick``, with the refinement, which adds hooks to the network."""
    mapper = replace(agnosco.preset("quick").mapper, steps=steps)
    return Config(mapper, RefineConfig(steps=5), cycles=2)


def hooks(model: nn.Module) -> int:
    """Number of hooks on the modules of a network."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def state(classifier: Classifier) -> dict[str, float]:
    """What the process holds now."""
    process = psutil.Process()
    return {
        "megabytes": resident_megabytes(),
        "tensors": tensors_alive(),
        "hooks": hooks(classifier.model),
        "files": process.num_fds(),
        "threads": min(_threads(process) for _ in range(20)),  # one that has ended may be counted for a moment
    }


def _threads(process: psutil.Process) -> int:
    time.sleep(0.01)
    return process.num_threads()


def long_run(folder: Path, classifier: Classifier, settings: Config, maps: int) -> Iterator[dict[str, float]]:
    """Make maps, all classes of a seed at a time; yield what the process holds before the first and after each time."""
    samples = Samples.noise(classifier.shape, count=100)
    yield {"maps": 0} | state(classifier)
    for seed in range(maps // CLASSES):
        run = Run.create(folder, classifier=classifier, samples=samples, config=settings)
        for _ in map_runs(run, classifier, samples, range(CLASSES), seeds=[seed]):
            pass
        yield {"maps": (seed + 1) * CLASSES} | state(classifier)


def flat(states: list[dict[str, float]], warm: int = WARM) -> dict[str, bool]:
    """What is the same at the end as after the warm-up: memory within :data:`FLAT`, the rest exactly."""
    early, late = next(state for state in states if state["maps"] >= warm), states[-1]
    near = abs(late["megabytes"] / early["megabytes"] - 1) <= FLAT
    return {"megabytes": near} | {key: late[key] == early[key] for key in ("tensors", "hooks", "files", "threads")}


def tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    states = results["states"]
    shown = [states[0], *(state for state in states[1:] if state["maps"] % WARM == 0)]
    head = ["maps", "MB", "tensors alive", "hooks", "open files", "threads"]
    rows = [
        [f"{state['maps']}", f"{state['megabytes']:.0f}"]
        + [f"{state[key]:.0f}" for key in ("tensors", "hooks", "files", "threads")]
        for state in shown
    ]
    verdicts = ", ".join(f"{key} {'flat' if same else 'NOT flat'}" for key, same in results["flat"].items())
    return f"{measured_on(results)}.\n\n{markdown(head, rows)}\n\nFrom {WARM} maps on: {verdicts}."


def main() -> None:
    if argument_parser(__doc__).parse_args().tables:
        fill("benchmarks/README.md", "long-run", tables(read_results(PATH)))
        return
    states = []
    with tempfile.TemporaryDirectory() as folder:
        for state_now in long_run(Path(folder), network(), config(), MAPS):
            print(state_now, flush=True)
            states.append(state_now)
    write_results(PATH, {"about": about("a small network with random weights"), "states": states, "flat": flat(states)})


if __name__ == "__main__":
    main()
