"""The preset ``paper`` with its whole budget: 204,800 passes a map, to the letter, and what its open choices are worth.

    python benchmarks/full_budget.py                      make and measure the rows that are missing, in their order
    python benchmarks/full_budget.py --only resnet20      only rows whose name contains this
    python benchmarks/full_budget.py --classes 3          only the first three classes of a row
    python benchmarks/full_budget.py --tables             write the table into docs/paper.md
    python benchmarks/full_budget.py --picture            draw docs/pictures/full-budget.jpg

A row is a run folder in build/full-budget. It may be killed at any time: finished maps stay, and an unfinished one goes
on from its checkpoint, which is at most a minute old. A row that has more classes later keeps those it has. Maps are
made one at a time, on one thread, so that their bits depend on neither the order nor the number of classes.

Seconds are those of the processor (one core), so that they count the work whatever else the machine does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import (
    DOCS,
    RESULTS,
    ROOT,
    TABLE_CLASSES,
    add_row,
    answers,
    argument_parser,
    fill,
    keep_manifest,
    markdown,
    measured_on,
    photographs,
    read_results,
)
from frontier import setup

import agnosco
from agnosco import Config, RefineConfig, Samples
from agnosco.method.config import config_to_json
from agnosco.method.render import contact_sheet
from agnosco.runs.jobs import map_runs
from agnosco.runs.run import Run
from agnosco.runs.sheet import write_contact_sheet
from agnosco.types import Progress

PATH = RESULTS / "full-budget.json"
TITLE = "The preset paper with its whole budget"
RUNS = ROOT / "build" / "full-budget"
PAPER = replace(agnosco.preset("paper"), precision="bfloat16")
"""In bfloat16, two to three times faster; rows of float32 say what that changes."""


@dataclass(frozen=True)
class Row:
    """One row: a source, how its maps are made, and how many classes it has unless told otherwise."""

    name: str
    source: str
    size: int
    classes: int
    config: Config

    @property
    def labels(self) -> list[int]:
        """All classes that the row can have."""
        return list(range(10)) if self.size == 32 else list(TABLE_CLASSES)


def rows() -> Iterator[Row]:
    """All rows, in the order in which they are made."""

    def mapped(**changes: Any) -> Config:
        return replace(PAPER, mapper=replace(PAPER.mapper, **changes))

    def cifar(name: str, config: Config, classes: int = 3) -> Row:
        return Row(f"resnet20 {name}", "resnet20", 32, classes, config)

    yield cifar("paper", PAPER, 10)
    yield cifar("unit step", mapped(step="unit"))
    yield cifar("sign of the gradient", mapped(direction="gradient"))
    yield cifar("falling steps", mapped(decay=1.0))
    yield cifar("no refinement", replace(PAPER, refine=None))
    yield Row("resnet18 paper", "resnet18", 112, 4, PAPER)
    yield Row("resnet56 paper", "resnet56", 32, 10, replace(PAPER, compiled=True))  # a third faster
    yield cifar("always plus", mapped(direction="plus"))
    yield cifar("weight 0", replace(PAPER, refine=RefineConfig(weight=0.0)))
    yield cifar("weight 500", replace(PAPER, refine=RefineConfig(weight=500.0)))
    yield cifar("paper, float32", replace(PAPER, precision="float32"))
    yield Row("resnet18 paper, float32", "resnet18", 112, 1, replace(PAPER, precision="float32"))


# -- making -----------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Processor seconds of every map of a run, in a file beside its folder: they outlive the process."""

    file: Path
    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.process_time)
    written: float = 0.0

    def __post_init__(self) -> None:
        if self.file.exists():
            self.seconds = json.loads(self.file.read_text(encoding="utf-8"))

    def tick(self, progress: Progress) -> None:
        """Count the time since the last step for its map; written every minute, as checkpoints are."""
        now, key = time.process_time(), str(progress.label)
        self.seconds[key] = self.seconds.get(key, 0.0) + now - self.last
        self.last = now
        if now - self.written > 60:
            self.write()

    def write(self) -> None:
        """Write the file at once or not at all."""
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.seconds), encoding="utf-8")
        part.replace(self.file)
        self.written = time.process_time()


def folder_of(row: Row) -> Path:
    """Where the maps of a row are."""
    return RUNS / ("paper-" + row.name.replace(",", "").replace(" ", "-"))


def is_here(row: Row) -> bool:
    """Whether the maps of a row are on this machine."""
    return (folder_of(row) / "manifest.json").exists()


def run_of(row: Row, images: Samples) -> Run:
    """The run of a row; its folder names the photographs without their path, so that any checkout can continue it."""
    source = setup(row.source, row.size).source
    return Run.create(folder_of(row), classifier=source, samples=images, config=row.config)


def make(row: Row, count: int) -> None:
    """Make the maps of a row that are missing, then measure the row."""
    parts = setup(row.source, row.size)
    images = portable(photographs(parts.source))
    run = run_of(row, images)
    clock = Clock(RUNS / f"{run.path.name}.seconds.json")
    labels = row.labels[:count]
    missing = [label for label in labels if label not in {entry.index for entry in run.entries}]
    on_step = clock.tick
    for made in map_runs(run, parts.source, images, missing, together=1, on_step=on_step) if missing else ():
        clock.write()
        print(f"{row.name}: {made.entry.name}, p {made.entry.probability:.3f}", flush=True)
    write_contact_sheet(run)
    keep_manifest(run.path)
    maps = [run.map(label) for label in labels]
    entries = [run.entry(label) for label in labels]
    pictures = torch.stack([concept.pixels for concept in maps])
    directions = [[step.direction for step in concept.trace if step.direction] for concept in maps]
    result = {
        "config": config_to_json(row.config), "source": row.source, "size": row.size, "labels": labels,
        "passes": row.config.passes, "seconds": [round(clock.seconds.get(str(label), 0.0), 1) for label in labels],
        "targeted_success_rate": [entry.targeted_success_rate for entry in entries],
        "minus": [round(fmean(sign < 0 for sign in signs), 4) for signs in directions],
        "norm": [round(entry.norm, 3) for entry in entries],
        "own": answers(parts.source, pictures, labels),
        "others": {judge: answers(network, pictures, labels) for judge, network in parts.judges.items()},
    }  # fmt: skip
    add_row(PATH, TITLE, row.name, result)
    print(*cells(row.name, result), sep=" | ", flush=True)


def portable(images: Samples) -> Samples:
    """The same photographs, whose source is the name of their folder."""
    return Samples(images.images, source=Path(images.source).name)


def measure(only: str, classes: int | None) -> None:
    """Make and measure the rows that lack classes."""
    for row in rows():
        count = min(classes or row.classes, len(row.labels))
        stored = read_results(PATH, {"rows": {}})["rows"].get(row.name)
        if only in row.name and (stored is None or len(stored["labels"]) < count):
            make(row, count)


# -- results ----------------------------------------------------------------------------------------


def cells(name: str, row: dict[str, Any], paper: dict[str, Any] | None = None) -> list[str]:
    """A row of the table; the cells before the last two say what ``paper``, of the same source, has on its classes."""
    scores = [judge["m_score"] for judge in row["others"].values() if judge["m_score"] is not None]
    rates, minus = row["targeted_success_rate"], fmean(row["minus"])
    compared = "-"
    if paper is not None and paper is not row and paper["labels"][: len(rates)] == row["labels"]:
        same = paper["targeted_success_rate"][: len(rates)]
        compared = f"{fmean(same):.3f}; {judged(paper, len(rates))}"
    return [
        f"{name} ({len(row['labels'])})",
        f"{fmean(row['own']['p']):.2f}",
        f"{fmean(rates):.3f} ({min(rates):.2f})",
        f"{fmean(scores):.2f} ({min(scores):.2f}-{max(scores):.2f})" if scores else "-",
        judged(row, len(rates)),
        compared,
        "-" if row["config"]["mapper"]["direction"] == "plus" else f"{minus:.3f}",
        f"{fmean(row['seconds']) / 60:.0f}",
    ]


def judged(row: dict[str, Any], count: int) -> str:
    """Top-1 of all classes and probability, mean over the judges and the first classes of a row."""
    top1, p = (fmean(fmean(judge[figure][:count]) for judge in row["others"].values()) for figure in ("top1", "p"))
    return f"{top1:.2f} / {p:.2f}"


def tables() -> str:
    """The results as Markdown; rows that are not measured yet are left out."""
    results = read_results(PATH)
    head = ["row (maps)", "own p", "targeted success rate (least)", "judges: mean M_score (least-greatest)"]
    head += ["judges: top-1 of all / p", "*paper* on the same classes: success rate; top-1 / p"]
    head += ["share of steps that take minus", "minutes a map, one core"]
    made = results["rows"]
    papers = {row.source: made.get(f"{row.source} paper") for row in rows()}
    body = markdown(head, [cells(row.name, made[row.name], papers[row.source]) for row in rows() if row.name in made])
    return f"Off-diagonal M_score in the paper's Table 1: 0.69-0.94. {measured_on(results)}.\n\n{body}"


def draw() -> None:
    """Draw the maps of every row at the preset's settings whose maps are on this machine, stretched for display."""
    measured: Sequence[str] = list(read_results(PATH)["rows"])
    tiles, captions = [], []
    shown = [row for row in rows() if row.name in measured and row.name == f"{row.source} paper" and is_here(row)]
    by_source = {row.source: row for row in reversed(shown)}  # the first row of a source
    for row in reversed(by_source.values()):
        run = Run.open(run_of(row, portable(photographs(setup(row.source, row.size).source))).path)
        for entry in run.entries:
            tiles.append(run.map(entry.index).display())
            captions.append(f"{entry.name}, {row.source}")
    footer = (
        f"Preset paper, {PAPER.passes:,} passes a map: {', '.join(row.name for row in reversed(by_source.values()))}"
    )
    contact_sheet(tiles, captions, columns=5, tile=160, footer=footer).save(
        DOCS / "pictures" / "full-budget.jpg", quality=88, optimize=True
    )


def options_of() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--classes", type=int, help="only so many classes of each row, always the first ones")
    parser.add_argument("--picture", action="store_true", help="draw the picture; measure nothing")
    return parser.parse_args()


def main() -> None:
    options = options_of()
    if options.tables:
        fill("docs/paper.md", "full-budget", tables())
    elif options.picture:
        draw()
    else:
        measure(options.only, options.classes)


if __name__ == "__main__":
    RUNS.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    main()
