"""The sanity checks of ``agnosco sanity`` on real networks, for docs/evidence.md.

    python benchmarks/sanity.py                 check all runs that have not been checked
    python benchmarks/sanity.py --only cifar    runs whose name contains this
    python benchmarks/sanity.py --tables        write the tables into docs/evidence.md

The runs are those of benchmarks/table1.py and benchmarks/gallery.py, in build/table1; missing maps are made. Pictures
of the cascade are in RUN/sanity.png.
"""

from __future__ import annotations

from typing import Any

import msgspec
from common import (
    RESULTS,
    TABLE_CLASSES,
    add_row,
    argument_parser,
    fill,
    markdown,
    measured_on,
    read_results,
    same_settings,
)
from gallery import affordable_paper, slug
from table1 import complete_run, networks, samples

import agnosco
from agnosco.evaluate.sanity import sanity
from agnosco.evaluate.sanity_record import SanityRecord
from agnosco.io import records
from agnosco.method.config import config_to_json

PATH = RESULTS / "sanity.json"
SEEDS = 2
MAPPED = 30  # ImageNet classes of the run of benchmarks/table1.py

RUNS = (
    ("cifar", "resnet20", 32, "quick", 10),
    ("cifar", "resnet20", 32, "paper, few passes", 10),
    ("imagenet", "resnet18", 224, "quick", 3),
)
"""Family, network, size, settings, and how many classes are mapped again at every level of the cascade."""


def measure(only: str) -> None:
    """Check the runs that have not been checked."""
    stored = read_results(PATH, {"runs": {}})["runs"]
    for family, name, size, settings, classes in RUNS:
        key = f"{name} at {size} px, {settings}"
        config = affordable_paper() if settings.startswith("paper") else agnosco.preset(settings)
        if only not in f"{family} {key}" or same_settings(stored.get(key, {}).get("config"), config):
            continue
        source = networks(family, size)[name]()
        images = samples(family, None, source)
        folder = f"{family}-{slug(settings)}-{size}px-{name}"
        mapped_classes = range(10) if family == "cifar" else TABLE_CLASSES[:MAPPED]
        run = complete_run(folder, source, images, config, mapped_classes, SEEDS)
        checks = records.to_json(sanity(run, source, images, classes=classes))
        row = checks | {"manifest": f"{folder}.json", "config": config_to_json(config)}
        add_row(PATH, "sanity checks", key, row, part="runs")
        print(table(key, row), flush=True)


def table(key: str, checks: dict[str, Any]) -> str:
    """The checks of one run as Markdown."""
    record = msgspec.convert(checks, SanityRecord)
    labels, planted = record.labels, record.planted
    cells = [
        [name, f"{alike.ssim:.3f}", f"{alike.rank:.3f}", f"{alike.features:.3f}", "" if p is None else f"{p:.3f}"]
        for name, alike, p in record.comparisons
    ]
    top, same, other = record.cascade[0].similarity, record.seeds.same_class, record.seeds.other_class
    assert same is not None  # every run has two seeds
    left = (top.features - other.features) / (same.features - other.features)
    own = sum(row[i] for i, row in enumerate(planted)) / len(planted)
    correct = sum(max(row) == row[i] for i, row in enumerate(planted))
    return (
        f"**{key}** ({len(record.classes)} classes; `benchmarks/results/manifests/{checks['manifest']}`). Labels: "
        f"{labels.right:.0%} of the pictures get their own class of the run; the highest probability of another "
        f"class is {labels.other:.3f}. Planted templates: {correct} of {len(planted)} maps are most similar to "
        f"their own template, with a mean correlation of {own:.2f}. Top layer randomized: SSIM {top.ssim:.3f}, "
        f"compared with {same.ssim:.3f} for another seed and {other.ssim:.3f} for another class; of the "
        f"similarity of features that a class has beyond another class, {left:.0%} remains.\n\n"
        + markdown(["similarity to the map of", "SSIM", "rank correlation", "features", "p of the class"], cells)
    )


def tables() -> str:
    """All runs as Markdown."""
    results = read_results(PATH)
    return "\n\n".join(
        [f"Measured on {measured_on(results)}.", *(table(key, checks) for key, checks in results["runs"].items())]
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", default="", help="only runs whose name contains this")
    options = parser.parse_args()
    if options.tables:
        fill("docs/evidence.md", "sanity", tables())
    else:
        measure(options.only)


if __name__ == "__main__":
    main()
