"""What a map costs as images per step, steps, size, classes and maps grow, and whether memory stays flat.

    python benchmarks/growth.py            measure, into benchmarks/results/growth-cpu.json
    python benchmarks/growth.py --figure   draw docs/pictures/growth.png
    python benchmarks/growth.py --tables   write the table into benchmarks/README.md

A small convolutional network with random weights, so that all of it takes an hour. Every point is the median of three.
Times are per pass where they should not change, so that a flat line means that the cost grows as expected.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from common import (
    DOCS,
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
from agnosco import Classifier, Config, Samples

REPEATS = 3
MAPS = 200  # made in one process, to see whether memory stays flat
PATH = RESULTS / "growth-cpu.json"


def network(size: int, classes: int = 10) -> Classifier:
    """Three convolutions with random weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip
    return Classifier(model, size=size)


def config(batch: int = 8, steps: int = 20) -> Config:
    """The settings of ``quick``, at this size of a mini-batch and number of steps."""
    mapper = replace(agnosco.preset("quick").mapper, batch=batch, steps=steps)
    return Config(mapper, refine=None, cycles=1)


def seconds(classifier: Classifier, settings: Config, maps: int = 1, together: int | None = 1) -> float:
    """Median time of so many maps of different classes."""
    samples = Samples.noise(classifier.shape, count=64)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in agnosco.map_classes(classifier, range(maps), samples, settings, together=together):
            pass
        times.append(time.perf_counter() - start)
    return median(times)


def costs() -> dict[str, dict[str, list[float]]]:
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


def memory() -> list[list[float]]:
    """After every tenth map: number of maps, resident megabytes, and tensors alive."""
    classifier, samples = network(64), Samples.noise((3, 64, 64), count=64)
    rows = []
    for maps in range(1, MAPS + 1):
        agnosco.map_class(classifier, maps % 10, samples, config(steps=10), seed=maps)
        if maps % 10 == 0:
            rows.append([maps, resident_megabytes(), tensors_alive()])
    return rows


def draw(results: dict[str, Any]) -> None:
    """Draw a panel for each axis, and one for memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = results["costs"]
    chart, panels = pyplot.subplots(2, 3, figsize=(12, 6.4))
    for panel, (axis, points) in zip(panels.flat, axes.items(), strict=False):
        label, unit = axis.split(": ")
        panel.plot(points["at"], points["ms"], marker="o", color="#2a5d84")
        panel.set(xscale="log", xlabel=label, ylabel=unit, ylim=(0, 1.15 * max(points["ms"])))
        panel.set_xticks(points["at"], [f"{at:g}" for at in points["at"]])
        panel.minorticks_off()
    maps, resident, _tensors = zip(*results["memory"], strict=True)
    panels.flat[5].plot(maps, resident, color="#a33b20", marker="o")
    panels.flat[5].set(xlabel="maps made in one process", ylabel="MB resident", ylim=(0, 1.15 * max(resident)))
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
    chart.tight_layout()
    chart.savefig(DOCS / "pictures" / "growth.png", dpi=100)


def tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [
        [axis, "  ".join(f"{at:g}: {ms:.3g}" for at, ms in zip(points["at"], points["ms"], strict=True))]
        for axis, points in results["costs"].items()
    ]
    early, late = results["memory"][1], results["memory"][-1]
    return "\n\n".join(
        [
            f"{measured_on(results)}.",
            markdown(["cost", "median of three"], rows),
            f"Memory: {early[1]:.0f} MB and {early[2]:g} tensors alive after {early[0]:g} maps, "
            f"{late[1]:.0f} MB and {late[2]:g} after {late[0]:g} maps.",
        ]
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--figure", action="store_true", help="draw the figure; measure nothing")
    options = parser.parse_args()
    if options.figure:
        draw(read_results(PATH))
    elif options.tables:
        fill("benchmarks/README.md", "growth", tables(read_results(PATH)))
    else:
        title = "a small network with random weights"
        write_results(PATH, {"about": about(title), "costs": costs(), "memory": memory()})


if __name__ == "__main__":
    main()
