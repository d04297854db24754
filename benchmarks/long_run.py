"""Whether one process can go on making maps: memory, hooks, open files and threads over 300 maps.

    python benchmarks/long_run.py            measure, into benchmarks/results/long-run.json
    python benchmarks/long_run.py --tables   write the table into benchmarks/README.md

Maps take the way of `agnosco map`: several side by side, Algorithm 1 and the refinement with its hooks in two cycles,
random gains of channels with theirs, judged on held-out images and written into a run folder, which is opened again for
every ten. The network is small and of random weights, so that minutes are enough.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from ablation import RESULTS, about
from pages import made_on, markdown, put
from torch import nn

import agnosco
from agnosco import Classifier, Config, Samples
from agnosco.method.config import RefineConfig
from agnosco.runs.jobs import run_maps
from agnosco.runs.run import Run

MAPS, CLASSES, WARM = 300, 10, 50
"""Maps in all, those of one call, and those after which memory has to be flat."""

FLAT = 0.05
"""Change of memory that counts as none."""

PATH = RESULTS / "long-run.json"


def network(size: int = 32) -> Classifier:
    """Three convolutions, of which one has a batch normalisation, and ten classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip
    return Classifier(model, size=size, name="long-run")


def config(steps: int = 10) -> Config:
    """The dials of ``quick``, refined: what hangs a hook on a network besides."""
    mapper = replace(agnosco.preset("quick").mapper, steps=steps)
    return Config(mapper, RefineConfig(steps=5), cycles=2)


def hooks(model: nn.Module) -> int:
    """Hooks on all modules of a network."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def state(classifier: Classifier) -> dict[str, float]:
    """What a process holds now."""
    gc.collect()
    process = psutil.Process()
    return {
        "megabytes": process.memory_info().rss / 2**20,
        "tensors": sum(type(thing) is torch.Tensor for thing in gc.get_objects()),
        "hooks": hooks(classifier.model),
        "files": process.num_fds(),
        "threads": process.num_threads(),
    }


def long_run(folder: Path, classifier: Classifier, settings: Config, maps: int) -> Iterator[dict[str, float]]:
    """Makes maps, a seed of every class at a time, and says what the process holds before the first and after each."""
    samples = Samples.noise(classifier.shape, count=100)
    yield {"maps": 0} | state(classifier)
    for seed in range(maps // CLASSES):
        run = Run.create(folder, classifier=classifier, samples=samples, config=settings)
        for _ in run_maps(run, classifier, samples, range(CLASSES), seeds=[seed]):
            pass
        yield {"maps": (seed + 1) * CLASSES} | state(classifier)


def flat(states: list[dict[str, float]], warm: int = WARM) -> dict[str, bool]:
    """What was the same at the end as after the warm-up: memory within a share, the rest to the last."""
    early, late = next(one for one in states if one["maps"] >= warm), states[-1]
    near = abs(late["megabytes"] / early["megabytes"] - 1) <= FLAT
    return {"megabytes": near} | {what: late[what] == early[what] for what in ("tensors", "hooks", "files", "threads")}


def tables(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    states = results["states"]
    shown = [states[0], *(one for one in states[1:] if one["maps"] % WARM == 0)]
    head = ["maps", "MB", "tensors alive", "hooks", "open files", "threads"]
    rows = [
        [f"{one['maps']}", f"{one['megabytes']:.0f}"]
        + [f"{one[what]:.0f}" for what in ("tensors", "hooks", "files", "threads")]
        for one in shown
    ]
    told = ", ".join(f"{what} {'flat' if same else 'NOT flat'}" for what, same in results["flat"].items())
    return f"{made_on(results)}.\n\n{markdown(head, rows)}\n\nFrom {WARM} maps on: {told}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        put("benchmarks/README.md", "long-run", tables(json.loads(PATH.read_text())))
        return
    states = []
    with tempfile.TemporaryDirectory() as folder:
        for one in long_run(Path(folder), network(), config(), MAPS):
            print(one, flush=True)
            states.append(one)
    results = {"about": about("a small network of random weights"), "states": states, "flat": flat(states)}
    PATH.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
