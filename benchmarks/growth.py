"""What a map costs as images per step, steps, size, classes and maps grow; and whether memory stays flat.

    python benchmarks/growth.py            measure, into benchmarks/results/growth-cpu.json
    python benchmarks/growth.py --figure   draw docs/pictures/growth.png
    python benchmarks/growth.py --tables   write the table into benchmarks/README.md

A small convolutional network of random weights, so that an hour is enough for all of it. Every point is the median of
three. Time is given per pass where it should not change, so that a line is flat where the cost grows as expected.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ablation import RESULTS, about
from pages import DOCS, made_on, markdown, put
from torch import nn

import agnosco
from agnosco import Classifier, Config, Samples

REPEATS = 3
LEAK_MAPS = 200
PATH = RESULTS / "growth-cpu.json"


def network(size: int, classes: int = 10) -> Classifier:
    """Three convolutions and as many classes as asked for."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip
    return Classifier(model, size=size)


def config(batch: int = 8, steps: int = 20) -> Config:
    """The dials of ``quick``."""
    mapper = replace(agnosco.preset("quick").mapper, batch=batch, steps=steps)
    return Config(mapper, refine=None, cycles=1)


def seconds(made: Classifier, settings: Config, maps: int = 1, together: int | None = 1) -> float:
    """Median time of so many maps of different classes."""
    samples = Samples.noise(made.shape, count=64)
    found = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        for _ in agnosco.map_classes(made, range(maps), samples, settings, together=together):
            pass
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def rising() -> dict[str, dict[str, list[float]]]:
    """Milliseconds per pass, or per map, along each axis."""
    seconds(network(64), config())  # warm up
    axes: dict[str, dict[str, list[float]]] = {}

    def note(axis: str, at: float, cost: float) -> None:
        points = axes.setdefault(axis, {"at": [], "ms": []})
        points["at"].append(at)
        points["ms"].append(1000 * cost)
        print(f"{axis} {at}: {1000 * cost:.3f} ms", flush=True)

    for batch in (1, 2, 4, 8, 16, 32, 64, 128):
        note("images per step: ms per pass", batch, seconds(network(64), config(batch=batch)) / (20 * batch))
    for steps in (10, 20, 40, 80, 160, 320):
        note("steps: ms per pass", steps, seconds(network(64), config(steps=steps)) / (8 * steps))
    for size in (16, 32, 64, 128, 256):
        cost = seconds(network(size), config()) / (160 * (size / 64) ** 2)
        note("side of the image in pixels: ms per pass and 4,096 pixels", size, cost)
    for classes in (2, 10, 100, 1000):
        note("classes of the network: ms per pass", classes, seconds(network(64, classes), config()) / 160)
    for maps in (1, 10, 100, 1000):
        cost = seconds(network(16, 1000), config(batch=4, steps=10), maps=maps, together=None) / maps
        note("maps of 40 passes at 16 pixels: ms per map", maps, cost)
    return axes


def leaking() -> list[list[float]]:
    """Resident megabytes after every tenth of many maps, and tensors alive."""
    import gc

    made, samples = network(64), Samples.noise((3, 64, 64), count=64)
    found = []
    for done in range(1, LEAK_MAPS + 1):
        agnosco.map_class(made, done % 10, samples, config(steps=10), seed=done)
        if done % 10 == 0:
            gc.collect()
            alive = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
            found.append([done, _resident(), alive])
    return found


def _resident() -> float:
    """Megabytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def figure(results: dict[str, Any]) -> None:
    """A panel for each axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = results["rising"]
    chart, panels = pyplot.subplots(2, 3, figsize=(12, 6.4))
    for panel, (axis, points) in zip(panels.flat, axes.items(), strict=False):
        what, unit = axis.split(": ")
        panel.plot(points["at"], points["ms"], marker="o", color="#2a5d84")
        panel.set(xscale="log", xlabel=what, ylabel=unit, ylim=(0, 1.15 * max(points["ms"])))
        panel.set_xticks(points["at"], [f"{at:g}" for at in points["at"]])
        panel.minorticks_off()
    done, resident, _alive = zip(*results["leak"], strict=True)
    panels.flat[5].plot(done, resident, color="#a33b20", marker="o")
    panels.flat[5].set(xlabel="maps made in one process", ylabel="MB resident", ylim=(0, 1.15 * max(resident)))
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
    chart.tight_layout()
    chart.savefig(DOCS / "pictures" / "growth.png", dpi=100)


def tables(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        [axis, "  ".join(f"{at:g}: {ms:.3g}" for at, ms in zip(points["at"], points["ms"], strict=True))]
        for axis, points in results["rising"].items()
    ]
    early, late = results["leak"][1], results["leak"][-1]
    return "\n\n".join(
        [
            f"{made_on(results)}.",
            markdown(["cost", "median of three"], rows),
            f"Memory after {early[0]:g} maps {early[1]:.0f} MB and {early[2]:g} tensors alive, after {late[0]:g} maps "
            f"{late[1]:.0f} MB and {late[2]:g}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", action="store_true")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.figure:
        figure(json.loads(PATH.read_text()))
    elif options.tables:
        put("benchmarks/README.md", "growth", tables(json.loads(PATH.read_text())))
    else:
        results = {"about": about("a small network of random weights"), "rising": rising(), "leak": leaking()}
        PATH.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
