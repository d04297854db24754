"""The classes that fail in Table 1, one by one: which lever mends them, without a change to the method?

    python benchmarks/levers.py resnet50        make and measure the rows that are missing
    python benchmarks/levers.py --tables        write the tables into docs/evidence.md

The classes of a source are those whose picture is recognised by fewer than half of the other networks in
benchmarks/table1.py: they are chosen for having failed, so any other draw looks better. The row to compare with is
*another seed*, which changes nothing but chance. Pictures are in build/levers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from common import (
    IMAGENET_NETWORKS,
    RESULTS,
    ROOT,
    add_row,
    answers,
    argument_parser,
    fill,
    markdown,
    measured_on,
    photographs,
    read_results,
)
from frontier import Setup, setup
from torchvision.utils import save_image

import agnosco
from agnosco import Config, Crops, Samples
from agnosco.method.concept import ConceptMap
from agnosco.method.score import targeted_success_rate

PATH = RESULTS / "levers.json"
SIZE = 224
SEEDS = 4


@dataclass(frozen=True)
class Lever:
    """What differs from ``quick``, seed 0; of several seeds, the source chooses the one with most targeted success."""

    name: str
    config: Config
    seeds: tuple[int, ...] = (1,)


def levers() -> Iterator[Lever]:
    """All of them."""
    quick = agnosco.preset("quick")
    crops = quick.mapper.transforms
    assert isinstance(crops, Crops)

    def mapped(**changes: Any) -> Config:
        return replace(quick, mapper=replace(quick.mapper, **changes))

    yield Lever("quick", quick, (0,))
    yield Lever("another seed", quick)
    yield Lever(f"the source's choice of {SEEDS} seeds", quick, tuple(range(SEEDS)))
    yield Lever("best", agnosco.preset("best"))
    yield Lever("full weight on the other classes", mapped(loss=1.0))
    yield Lever("larger crops", mapped(transforms=replace(crops, area=(0.5, 1.0))))
    yield Lever("samples at full contrast", mapped(contrast=(1.0, 1.0)))


def failing(source: str) -> list[int]:
    """The classes whose picture fewer than half of the other networks recognise in Table 1, seed 0."""
    result = read_results(RESULTS / f"table1-imagenet-quick-{SIZE}px.json")["sources"][source]
    others = [said["answers"]["top1"] for judge, said in result["targets"].items() if judge != source]
    right: dict[int, float] = {}
    for label, *each in zip(result["labels"], *others, strict=True):
        right.setdefault(label, fmean(each))  # the first picture of a class is that of seed 0
    return [label for label, share in right.items() if share < 0.5]


@dataclass(frozen=True)
class Bench:
    """A source with its judges, and its photographs: to map with, and held out."""

    parts: Setup
    mapping: Samples
    held_out: Samples

    def map(self, lever: Lever, label: int) -> ConceptMap:
        """A class's map; of several seeds, that which the source itself prefers."""
        maps = agnosco.map_classes(self.parts.source, [label], self.mapping, lever.config, seeds=lever.seeds)
        return max(maps, key=lambda concept: self.rate(concept, label))

    def rate(self, concept: ConceptMap, label: int) -> float:
        """Targeted success rate on held-out photographs."""
        return targeted_success_rate(self.parts.source, concept.nu, label, self.held_out)


def measure(source: str) -> None:
    """Make and measure the rows of a source that are missing."""
    parts, classes = setup(source, SIZE), failing(source)
    bench = Bench(parts, *photographs(parts.source).split())
    folder = ROOT / "build" / "levers"
    folder.mkdir(parents=True, exist_ok=True)
    for lever in levers():
        key = f"{source}: {lever.name}"
        if key in read_results(PATH, {"rows": {}})["rows"]:
            continue
        maps = [bench.map(lever, label) for label in classes]
        pictures = torch.stack([concept.pixels for concept in maps])
        save_image(pictures, folder / f"{source}-{lever.name.replace(' ', '-')}.png", nrow=len(classes), padding=0)
        row = {
            "source": source, "lever": lever.name, "labels": classes,
            "passes": lever.config.passes * len(lever.seeds),
            "names": [parts.source.labels[label] for label in classes],
            "targeted_success_rate": [bench.rate(*each) for each in zip(maps, classes, strict=True)],
            "others": {judge: answers(network, pictures, classes) for judge, network in parts.judges.items()},
        }  # fmt: skip
        add_row(PATH, "Classes that fail in Table 1", key, row)
        print(*cells(row), sep=" | ", flush=True)


def cells(row: dict[str, Any]) -> list[str]:
    """A row: passes, targeted success rate, mean over judges and classes, and the share of judges of each class."""
    others = row["others"].values()
    shares = [fmean(right) for right in zip(*(said["top1"] for said in others), strict=True)]
    rates = row["targeted_success_rate"]
    mean = f"{fmean(shares):.2f} / {fmean(fmean(said['p']) for said in others):.2f}"
    return [row["lever"], f"{row['passes']:,}", f"{fmean(rates):.2f}", mean, *(f"{share:.1f}" for share in shares)]


def tables() -> str:
    """The rows of all sources as Markdown."""
    results, parts = read_results(PATH), []
    for source in IMAGENET_NETWORKS:
        rows = [row for row in results["rows"].values() if row["source"] == source]
        if rows:
            head = ["lever", "passes", "targeted success rate", "judges: top-1 of all / p", *rows[0]["names"]]
            parts.append(f"**{source}**\n\n{markdown(head, [cells(row) for row in rows])}")
    return f"{measured_on(results)}.\n\n" + "\n\n".join(parts)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("source", nargs="?", choices=IMAGENET_NETWORKS)
    options = parser.parse_args()
    if options.tables:
        fill("docs/evidence.md", "levers", tables())
    elif options.source:
        measure(options.source)
    else:
        parser.print_usage()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
