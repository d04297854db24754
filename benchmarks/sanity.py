"""The sanity checks of ``agnosco sanity`` on real networks, for docs/evidence.md.

    python benchmarks/sanity.py                 all runs; what is measured already is not measured again
    python benchmarks/sanity.py --only cifar    runs of this name
    python benchmarks/sanity.py --tables        write the tables into docs/evidence.md

Runs are those of benchmarks/table1.py and benchmarks/gallery.py, in build/table1, made where they are missing; the
pictures of the cascade are RUN/sanity.png.
"""

from __future__ import annotations

import argparse
import json

from ablation import RESULTS, TRIAL_CLASSES, about
from gallery import affordable_paper, slug
from pages import made_on, markdown, put
from table1 import mapped, networks, samples

import agnosco
from agnosco.evaluate.sanity import check, words
from agnosco.method.config import config_to_json

PATH = RESULTS / "sanity.json"
SEEDS = 2

# Bank, network, size, settings, and how many classes are mapped again at every level.
RUNS = (
    ("cifar", "resnet20", 32, "quick", 10),
    ("cifar", "resnet20", 32, "paper, few passes", 10),
    ("imagenet", "resnet18", 112, "quick", 3),
)


def measure(only: str) -> None:
    """Check the runs that are not checked yet."""
    for bank, name, size, settings, classes in RUNS:
        key = f"{name} at {size} px, {settings}"
        results = json.loads(PATH.read_text()) if PATH.exists() else {"runs": {}}
        config = affordable_paper() if settings.startswith("paper") else agnosco.preset(settings)
        have = results["runs"].get(key, {}).get("config")
        if have == config_to_json(config) or only not in f"{bank} {key}":
            continue
        source = networks(bank, size)[name]()
        images = samples(bank, None, source)
        folder = f"{bank}-{slug(settings)}-{size}px-{name}"
        run = mapped(folder, source, images, config, range(10) if bank == "cifar" else TRIAL_CLASSES, SEEDS)
        found = check(run, source, images, classes=classes)
        results = json.loads(PATH.read_text()) if PATH.exists() else {"runs": {}}
        results["about"] = about("sanity checks")
        results["runs"][key] = found | {"manifest": f"{folder}.json", "config": config_to_json(config)}
        PATH.write_text(json.dumps(results, indent=1) + "\n")
        print(table(key, results["runs"][key]), flush=True)


def table(key: str, found: dict) -> str:
    """One run's checks as Markdown."""
    seeds, labels, planted = found["seeds"], found["labels"], found["planted"]
    rows = [("another seed, same class", seeds["one class"], None), ("another class", seeds["two classes"], None)]
    rows += [(words(level["stages"]), level["likeness"], level["probability"]) for level in found["cascade"]]
    cells = [
        [name, *(f"{alike[measure]:.3f}" for measure in ("ssim", "rank", "features")), "" if p is None else f"{p:.3f}"]
        for name, alike, p in rows
    ]
    top, same, other = found["cascade"][0]["likeness"], seeds["one class"], seeds["two classes"]
    left = (top["features"] - other["features"]) / (same["features"] - other["features"])
    own = sum(row[i] for i, row in enumerate(planted)) / len(planted)
    right = sum(max(row) == row[i] for i, row in enumerate(planted))
    return (
        f"**{key}** ({len(found['classes'])} classes; `benchmarks/results/manifests/{found['manifest']}`). Labels: "
        f"{labels['right']:.0%} of the pictures are given their own class of the run; the most that another class gets "
        f"is p {labels['other']:.3f}. Planted templates: {right} of {len(planted)} maps are most like their own, "
        f"correlation {own:.2f}. Top layer redrawn: SSIM {top['ssim']:.3f}, where another seed has {same['ssim']:.3f} "
        f"and another class {other['ssim']:.3f}; of what a class's features have in common beyond another class's, "
        f"{left:.0%} is left.\n\n"
        + markdown(["likeness of a map to that of", "SSIM", "rank correlation", "features", "p of the class"], cells)
    )


def tables() -> str:
    """All runs as Markdown."""
    results = json.loads(PATH.read_text())
    return "\n\n".join(
        [f"Measured on {made_on(results)}.", *(table(key, found) for key, found in results["runs"].items())]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        put("docs/evidence.md", "sanity", tables())
    else:
        measure(options.only)


if __name__ == "__main__":
    main()
