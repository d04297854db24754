"""The gallery: ten classes of a network with the paper's settings, ``quick`` and ``best``, beside each other.

    python benchmarks/gallery.py                 ResNet-50 with the assets' weights, and the CIFAR ResNet-56
    python benchmarks/gallery.py --family cifar  only that
    python benchmarks/gallery.py --full          the paper's own 204,800 passes per map: needs a GPU
    python benchmarks/gallery.py --tables        write the table into docs/evidence.md
    python benchmarks/gallery.py --unnamed DIR   also save the pictures in random order and without names

Draws docs/pictures/gallery-FAMILY.jpg. The runs are those of benchmarks/table1.py in build/table1; what is missing is
made, and their manifests go to benchmarks/results/manifests. Without ``--full``, the paper's settings get a budget that
a CPU can afford: only b and K differ. Since the paper tries both directions in every step, a map takes as long as with
``quick``. Scores by the other networks of the family go to benchmarks/results/gallery-FAMILY.json.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import (
    DOCS,
    RESULTS,
    TRIAL_CLASSES,
    about,
    argument_parser,
    fill,
    markdown,
    measured_on,
    read_results,
    write_results,
)
from table1 import complete_run, networks, samples

import agnosco
from agnosco import Config
from agnosco.evaluate.transfer import score
from agnosco.io.records import to_json
from agnosco.method.render import contact_sheet, stretched, to_picture
from agnosco.runs.run import Run

SOURCES = {"imagenet": ("resnet50", 112), "cifar": ("resnet56", 32)}
COLUMNS, TILE = 5, 224


def affordable_paper() -> Config:
    """The paper's settings in about the time of ``quick``: two cycles of 60 steps and 14 of refinement, b 8."""
    paper = agnosco.preset("paper")
    assert paper.refine
    return replace(paper, mapper=replace(paper.mapper, batch=8, steps=60), refine=replace(paper.refine, steps=14))


def slug(text: str) -> str:
    """Text as part of a file name."""
    return text.replace(", ", "-").replace(" ", "-")


def runs(family: str, full: bool) -> dict[str, Run]:
    """A run of the ten classes for each setting; what is missing is made."""
    name, size = SOURCES[family]
    source = networks(family, size)[name]()
    images = samples(family, None, source)
    settings = {
        "paper" if full else "paper, few passes": agnosco.preset("paper") if full else affordable_paper(),
        "quick": agnosco.preset("quick"),
        "best": agnosco.preset("best"),
    }
    classes = TRIAL_CLASSES if family == "imagenet" else range(10)
    return {
        title: complete_run(f"{family}-{slug(title)}-{size}px-{name}", source, images, config, classes, seeds=1)
        for title, config in settings.items()
    }


def measure(family: str, runs_by_setting: dict[str, Run]) -> None:
    """Score each run by all networks of the family."""
    name, size = SOURCES[family]
    targets = {other: load() for other, load in networks(family, size).items()}
    images = samples(family, None, targets[name])
    results = {
        "about": about(f"{name} at {size} px, ten classes"),
        "settings": {
            title: {
                "passes": run.config.passes,
                "manifest": run.path.name,
                "targets": {other: to_json(score(run, target, images=images)) for other, target in targets.items()},
            }
            for title, run in runs_by_setting.items()
        },
    }
    write_results(RESULTS / f"gallery-{family}.json", results)


def cell(judgement: dict[str, Any]) -> str:
    """M_score / top-1 of 10 / top-1 of all / targeted success rate."""
    figures = ("m_score", "top1_of_concepts", "top1", "targeted_success_rate")
    return " / ".join(f"{judgement[figure]:.2f}" for figure in figures)


def tables() -> str:
    """The results as Markdown."""
    parts = []
    for path in (RESULTS / f"gallery-{family}.json" for family in SOURCES):
        if not path.exists():
            continue
        results = read_results(path)
        names = list(next(iter(results["settings"].values()))["targets"])
        rows = [
            [
                f"{title} ({setting['targets'][names[0]]['maps']} maps)",
                f"{setting['passes']:,}",
                *(cell(setting["targets"][name]) for name in names),
                f"`{setting['manifest']}`",
            ]
            for title, setting in results["settings"].items()
        ]
        parts.append(
            f"**{results['about']['title']}**; M_score / top-1 of 10 / top-1 of all / targeted success rate. "
            f"{measured_on(results)}.\n\n" + markdown(["settings", "passes", *names, "manifest"], rows)
        )
    return "\n\n".join(parts)


def draw(family: str, runs_by_setting: dict[str, Run]) -> None:
    """Draw the figure: blocks of five classes, one row for each setting."""
    maps = {title: [concept for concept in run.maps() if concept.seed == 0] for title, run in runs_by_setting.items()}
    count = len(next(iter(maps.values())))
    tiles, captions = [], []
    for start in range(0, count, COLUMNS):
        for title, concepts in maps.items():
            for concept in concepts[start : start + COLUMNS]:
                tiles.append(to_picture(stretched(concept.pattern)))
                captions.append(f"{concept.name} ({title})")
    name, size = SOURCES[family]
    passes = ", ".join(f"{title} {run.config.passes:,}" for title, run in runs_by_setting.items())
    precision = next(iter(runs_by_setting.values())).config.precision
    footer = f"{name} at {size} px, seed 0. Passes per map: {passes}. Network in {precision}."
    contact_sheet(tiles, captions, columns=COLUMNS, tile=TILE, footer=footer).save(
        DOCS / "pictures" / f"gallery-{family}.jpg", quality=88, optimize=True
    )


def save_unnamed(family: str, runs_by_setting: dict[str, Run], folder: Path) -> None:
    """Save a sheet of numbered pictures for each setting, each in another order; the key is in key-FAMILY.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    key = []
    for title, run in runs_by_setting.items():
        concepts = [concept for concept in run.maps() if concept.seed == 0]
        random.Random(f"{family} {title}").shuffle(concepts)
        tiles = [to_picture(stretched(concept.pattern)) for concept in concepts]
        sheet = contact_sheet(tiles, [str(i + 1) for i in range(len(tiles))], columns=COLUMNS, tile=TILE)
        sheet.save(folder / f"{family}-{slug(title)}.png")
        key.append(f"{title}: " + ", ".join(f"{i + 1} {concept.name}" for i, concept in enumerate(concepts)))
    (folder / f"key-{family}.txt").write_text("\n".join(key) + "\n")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--family", choices=SOURCES, help="which networks (default: all)")
    parser.add_argument("--full", action="store_true", help="the paper's own number of passes")
    parser.add_argument("--unnamed", type=Path, metavar="DIR", help="where to save the pictures without names")
    options = parser.parse_args()
    if options.tables:
        fill("docs/evidence.md", "gallery", tables())
        return
    for family in [options.family] if options.family else SOURCES:
        runs_by_setting = runs(family, options.full)
        draw(family, runs_by_setting)
        measure(family, runs_by_setting)
        if options.unnamed:
            save_unnamed(family, runs_by_setting, options.unnamed)


if __name__ == "__main__":
    main()
