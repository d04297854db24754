"""The gallery: classes of a network with the paper's settings, ``quick`` and ``best``, beside each other.

    python benchmarks/gallery.py                 ResNet-50 and ResNet-18 at 224 px, and the CIFAR ResNet-56
    python benchmarks/gallery.py --only cifar    only that
    python benchmarks/gallery.py --full          the paper's own 204,800 passes per map: needs a GPU
    python benchmarks/gallery.py --readme        draw only the first picture of README, with ``best``; or ``quick``
    python benchmarks/gallery.py --tables        write the table into docs/evidence.md

Draws docs/pictures/gallery-NAME.jpg. ImageNet's classes are the first twelve of ``common.TABLE_CLASSES``: random ones,
on which nothing was chosen. The runs are those of benchmarks/table1.py in build/table1; what is missing is made, and
their manifests go to benchmarks/results/manifests. Without ``--full``, the paper's settings get as few passes as take
the time of ``quick``: only b and the numbers of steps differ. What other networks say of the pictures goes to
benchmarks/results/gallery-NAME.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from common import (
    DOCS,
    RESULTS,
    TABLE_CLASSES,
    about,
    answers,
    argument_parser,
    fill,
    in_short,
    markdown,
    measured_on,
    read_results,
    write_results,
)
from PIL import Image
from table1 import complete_run, judges, networks, samples

import agnosco
from agnosco import ConceptMap, Config
from agnosco.method.render import contact_sheet, stretched, to_picture
from agnosco.runs.run import Run


@dataclass(frozen=True)
class Source:
    """A network of the gallery, and how its figure is laid out."""

    family: str
    name: str
    size: int
    classes: Sequence[int]
    columns: int

    def run(self, setting: str, config: Config) -> Run:
        """The run of a setting; maps that are missing are made."""
        network = networks(self.family, self.size)[self.name]()
        images = samples(self.family, None, network)
        folder = f"{self.family}-{slug(setting)}-{self.size}px-{self.name}"
        return complete_run(folder, network, images, config, self.classes, seeds=1)

    def maps(self, run: Run) -> list[ConceptMap]:
        """The first map of each class of the gallery; a run of Table 1 has more."""
        return [run.map(label) for label in self.classes]


SOURCES = {
    "resnet50": Source("imagenet", "resnet50", 224, TABLE_CLASSES[:12], columns=6),
    "resnet18": Source("imagenet", "resnet18", 224, TABLE_CLASSES[:12], columns=6),
    "cifar": Source("cifar", "resnet56", 32, range(10), columns=5),
}
TILE = 224


def affordable_paper() -> Config:
    """The paper's settings, with as many steps as take about the time of ``quick``, and its number of images a step.

    Since the paper tries both directions, a step of the loop takes as long as two steps of the refinement. There are as
    many of these for one of the loop as in the paper.
    """
    paper, quick = agnosco.preset("paper"), agnosco.preset("quick")
    assert paper.refine
    ratio = paper.refine.steps / paper.mapper.steps
    batch = quick.mapper.batch
    steps = max(1, round(quick.passes / (batch * paper.cycles * (2 + ratio))))
    return replace(
        paper,
        mapper=replace(paper.mapper, batch=batch, steps=steps),
        refine=replace(paper.refine, steps=max(1, round(steps * ratio))),
    )


def slug(text: str) -> str:
    """Text as part of a file name."""
    return text.replace(", ", "-").replace(" ", "-")


def settings(family: str, full: bool) -> dict[str, Config]:
    """The settings that are compared; few passes with the paper's give noise on ImageNet, and are left out there."""
    paper = {"paper": agnosco.preset("paper")} if full else {"paper, few passes": affordable_paper()}
    presets = {name: agnosco.preset(name) for name in ("quick", "best")}
    return paper | presets if full or family == "cifar" else presets


def measure(key: str, runs: dict[str, Run]) -> None:
    """Ask all judges of a source about its pictures in the gallery."""
    source = SOURCES[key]
    networks_by_name = {name: load() for name, load in judges(source.family, source.size).items()}
    results: dict[str, Any] = {"about": about(f"{source.name} at {source.size} px"), "settings": {}}
    for setting, run in runs.items():
        pictures = torch.stack([concept.pixels for concept in source.maps(run)])
        results["settings"][setting] = {
            "passes": run.config.passes,
            "manifest": run.path.name,
            "labels": list(source.classes),
            "targeted_success_rates": [run.entry(label).targeted_success_rate for label in source.classes],
            "targets": {name: answers(judge, pictures, source.classes) for name, judge in networks_by_name.items()},
        }
    write_results(RESULTS / f"gallery-{key}.json", results)


def cells(title: str, row: dict[str, Any]) -> list[str]:
    """A row of a table: M_score / top-1 of all classes / mean probability of the class for each judge."""
    rates = row["targeted_success_rates"]
    return [
        f"{title} ({len(rates)} maps)",
        f"{row['passes']:,}",
        f"{fmean(rates):.2f}, least {min(rates):.2f}",
        *map(in_short, row["targets"].values()),
        f"`{row['manifest']}`",
    ]


def tables() -> str:
    """The results as Markdown."""
    parts = []
    for path in (path for key in SOURCES if (path := RESULTS / f"gallery-{key}.json").exists()):
        results = read_results(path)
        names = next(iter(results["settings"].values()))["targets"]
        rows = [cells(title, row) for title, row in results["settings"].items()]
        parts.append(
            f"**{results['about']['title']}**; M_score / top-1 of all / mean p. {measured_on(results)}.\n\n"
            + markdown(["settings", "passes", "targeted success rate", *names, "manifest"], rows)
        )
    return "\n\n".join(parts)


def for_people(concept: ConceptMap) -> Image.Image:
    """The picture of a map at full contrast."""
    return to_picture(stretched(concept.pattern))


def draw(key: str, runs: dict[str, Run]) -> None:
    """Draw the figure: blocks of classes, one row for each setting."""
    source = SOURCES[key]
    maps = {setting: source.maps(run) for setting, run in runs.items()}
    tiles, captions = [], []
    for start in range(0, len(source.classes), source.columns):
        for setting, concepts in maps.items():
            for concept in concepts[start : start + source.columns]:
                tiles.append(for_people(concept))
                captions.append(f"{concept.name} ({setting})")
    passes = ", ".join(f"{name} {run.config.passes:,} in {run.config.precision}" for name, run in runs.items())
    footer = f"{source.name} at {source.size} px, seed 0. Passes per map: {passes}."
    contact_sheet(tiles, captions, columns=source.columns, tile=TILE, footer=footer).save(
        DOCS / "pictures" / f"gallery-{key}.jpg", quality=80, optimize=True
    )


def draw_readme(setting: str) -> None:
    """Draw the first picture of README: the classes of ResNet-18's gallery with one setting."""
    source = SOURCES["resnet18"]
    concepts = source.maps(source.run(setting, agnosco.preset(setting)))
    sheet = contact_sheet(
        [for_people(concept) for concept in concepts], [concept.name for concept in concepts],
        columns=source.columns, tile=TILE,
    )  # fmt: skip
    sheet.save(DOCS / "pictures" / "imagenet-resnet18.jpg", quality=90, optimize=True)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", choices=SOURCES, help="which networks (default: all)")
    parser.add_argument("--full", action="store_true", help="the paper's own number of passes")
    parser.add_argument(
        "--readme", nargs="?", const="best", choices=("quick", "best"), help="draw the first picture of README"
    )
    options = parser.parse_args()
    if options.tables:
        fill("docs/evidence.md", "gallery", tables())
        return
    if options.readme:
        draw_readme(options.readme)
        return
    for key in [options.only] if options.only else SOURCES:
        compared = settings(SOURCES[key].family, options.full)
        runs = {setting: SOURCES[key].run(setting, config) for setting, config in compared.items()}
        draw(key, runs)
        measure(key, runs)


if __name__ == "__main__":
    main()
