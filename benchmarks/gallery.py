"""The gallery: the paper's dials beside ``quick`` beside ``best``, for ten classes of a network.

    python benchmarks/gallery.py                 ResNet-50 with the assets' weights, and the CIFAR ResNet-56
    python benchmarks/gallery.py --bank cifar    only that
    python benchmarks/gallery.py --full          the paper's own 204,800 passes a map: for a GPU
    python benchmarks/gallery.py --tables        write the table into docs/evidence.md
    python benchmarks/gallery.py --unnamed DIR   the pictures once more, in random order and without names

Writes docs/pictures/gallery-BANK.jpg. The runs are those of benchmarks/table1.py, in build/table1, and made where they
are missing; their manifests go to benchmarks/results/manifests. Without ``--full``, the paper's dials get what a CPU
can pay: everything as the paper has it, but b and K; with its probes of both directions, a map takes as long as
``quick``. What the other networks of the bank say of each run goes to benchmarks/results/gallery-BANK.json.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

from ablation import RESULTS, TRIAL_CLASSES, about
from pages import DOCS, made_on, markdown, put
from table1 import cell, mapped, networks, samples

import agnosco
from agnosco import Config
from agnosco.evaluate.transfer import judge
from agnosco.method.render import contact_sheet, stretched, to_picture
from agnosco.runs.run import Run

SOURCES = {"imagenet": ("resnet50", 112), "cifar": ("resnet56", 32)}
COLUMNS, TILE = 5, 224


def affordable_paper() -> Config:
    """The paper's dials at about the time of ``quick``: two cycles of 60 steps and 14 of refinement, of 8 images."""
    paper = agnosco.preset("paper")
    assert paper.refine
    return replace(paper, mapper=replace(paper.mapper, batch=8, steps=60), refine=replace(paper.refine, steps=14))


def slug(words: str) -> str:
    """Words as part of a file name."""
    return words.replace(", ", "-").replace(" ", "-")


def runs(bank: str, full: bool) -> dict[str, Run]:
    """A run of the ten classes for each setting; what is missing is made."""
    name, size = SOURCES[bank]
    source = networks(bank, size)[name]()
    images = samples(bank, None, source)
    settings = {
        "paper" if full else "paper, few passes": agnosco.preset("paper") if full else affordable_paper(),
        "quick": agnosco.preset("quick"),
        "best": agnosco.preset("best"),
    }
    classes = TRIAL_CLASSES if bank == "imagenet" else range(10)
    made = {}
    for words, config in settings.items():
        made[words] = mapped(f"{bank}-{slug(words)}-{size}px-{name}", source, images, config, classes, seeds=1)
    return made


def measure(bank: str, made: dict[str, Run]) -> None:
    """What all networks of the bank say of each run."""
    name, size = SOURCES[bank]
    found = {other: load() for other, load in networks(bank, size).items()}
    images = samples(bank, None, found[name])
    results = {
        "about": about(f"{name} at {size} px, ten classes"),
        "settings": {
            words: {
                "passes": run.config.passes,
                "manifest": run.path.name,
                "targets": {other: judge(run, target, images=images) for other, target in found.items()},
            }
            for words, run in made.items()
        },
    }
    (RESULTS / f"gallery-{bank}.json").write_text(json.dumps(results, indent=1) + "\n")


def tables() -> str:
    """The results as Markdown."""
    parts = []
    for bank in SOURCES:
        path = RESULTS / f"gallery-{bank}.json"
        if not path.exists():
            continue
        results = json.loads(path.read_text())
        names = list(next(iter(results["settings"].values()))["targets"])
        rows = [
            [
                f"{words} ({one['targets'][names[0]]['maps']} maps)",
                f"{one['passes']:,}",
                *(cell(one["targets"][name]) for name in names),
                f"`{one['manifest']}`",
            ]
            for words, one in results["settings"].items()
        ]
        parts.append(
            f"**{results['about']['bank']}**; M_score / top-1 of 10 / top-1 of all / nudge success. "
            f"{made_on(results)}.\n\n" + markdown(["settings", "passes", *names, "manifest"], rows)
        )
    return "\n\n".join(parts)


def draw(bank: str, made: dict[str, Run]) -> None:
    """Blocks of five classes, one row for each setting."""
    columns = {words: [concept for concept in run.maps() if concept.seed == 0] for words, run in made.items()}
    count = len(next(iter(columns.values())))
    tiles, captions = [], []
    for start in range(0, count, COLUMNS):
        for words, concepts in columns.items():
            for concept in concepts[start : start + COLUMNS]:
                tiles.append(to_picture(stretched(concept.pattern)))
                captions.append(f"{concept.name} ({words})")
    name, size = SOURCES[bank]
    passes = ", ".join(f"{words} {run.config.passes:,}" for words, run in made.items())
    precision = next(iter(made.values())).config.precision
    footer = f"{name} at {size} px, seed 0. Passes a map: {passes}. Network in {precision}."
    contact_sheet(tiles, captions, columns=COLUMNS, tile=TILE, footer=footer).save(
        DOCS / "pictures" / f"gallery-{bank}.jpg", quality=88, optimize=True
    )


def unnamed(bank: str, made: dict[str, Run], folder: Path) -> None:
    """A sheet for each setting in an order of its own, numbered; the key is in key-BANK.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    key = []
    for words, run in made.items():
        concepts = [concept for concept in run.maps() if concept.seed == 0]
        random.Random(f"{bank} {words}").shuffle(concepts)
        tiles = [to_picture(stretched(concept.pattern)) for concept in concepts]
        sheet = contact_sheet(tiles, [str(i + 1) for i in range(len(tiles))], columns=COLUMNS, tile=TILE)
        sheet.save(folder / f"{bank}-{slug(words)}.png")
        key.append(f"{words}: " + ", ".join(f"{i + 1} {concept.name}" for i, concept in enumerate(concepts)))
    (folder / f"key-{bank}.txt").write_text("\n".join(key) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", choices=SOURCES)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--unnamed", type=Path, metavar="DIR")
    options = parser.parse_args()
    if options.tables:
        put("docs/evidence.md", "gallery", tables())
        return
    for bank in [options.bank] if options.bank else SOURCES:
        made = runs(bank, options.full)
        draw(bank, made)
        measure(bank, made)
        if options.unnamed:
            unnamed(bank, made, options.unnamed)


if __name__ == "__main__":
    main()
