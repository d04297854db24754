"""Targeted success rates: the paper's settings at a small budget, on four real networks.

    python benchmarks/targeted_success.py           measure the rows that are missing
    python benchmarks/targeted_success.py --again   measure all rows again
    python benchmarks/targeted_success.py --tables  write the table into docs/paper.md

One map of each class; results go to benchmarks/results/targeted-success.json. The targeted success rate is the share of
held-out images that the perturbation -ν turns into the class. Held out is a fifth of the photographs, which no map was
made with; images that the network gives the class anyway are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

from common import (
    IMAGENET,
    RESULTS,
    TRIAL_CLASSES,
    add_row,
    argument_parser,
    cifar_network,
    fill,
    imagenet_network,
    markdown,
    photographs,
    read_results,
)

import agnosco
from agnosco import Classifier, Config, MapperConfig
from agnosco.method.score import predictions, targeted_success_rate

SMALL_BUDGET = MapperConfig(batch=16, steps=150)
CONFIGS = {
    "paper's settings": Config(SMALL_BUDGET, refine=None, cycles=1),
    "paper's settings, steps falling to 0": Config(replace(SMALL_BUDGET, decay=1.0), refine=None, cycles=1),
}
PATH = RESULTS / "targeted-success.json"
TITLE = "one map of each class; b 16, K 150 with the paper's settings"


def networks() -> Iterator[tuple[str, Classifier, tuple[int, ...]]]:
    """Each network with its name and the classes to map."""
    yield "CIFAR ResNet-20, 32 px", cifar_network("CifarResNet(20)", "resnet20", **IMAGENET), tuple(range(10))
    for size, classes in ((112, TRIAL_CLASSES[:3]), (224, TRIAL_CLASSES[:2])):
        for name in ("squeezenet1_1", "mobilenet_v2", "resnet18"):
            yield f"{name}, {size} px", imagenet_network(name, size), classes


def measure(classifier: Classifier, classes: tuple[int, ...], config: Config) -> dict[str, float]:
    """Means over classes, and the least rate."""
    mapping, held_out = photographs(classifier).split()
    maps = list(agnosco.map_classes(classifier, classes, mapping, config))
    before = predictions(classifier, held_out)
    rates = [targeted_success_rate(classifier, m.nu, m.label, held_out, before=before) for m in maps]
    return {
        "classes": len(classes),
        "targeted_success_rate": round(fmean(rates), 4),
        "least_targeted_success_rate": round(min(rates), 4),
        "probability": round(fmean(m.probability for m in maps), 4),
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: means over classes, with the least in parentheses."""
    lines: dict[str, list[str]] = {}
    for key, row in results["rows"].items():
        network = key.split(": ")[0]
        cells = lines.setdefault(network, [network, str(row["classes"])])
        cells.append(f"{row['targeted_success_rate']:.3f} ({row['least_targeted_success_rate']:.2f})")
    return markdown(["network", "classes", *CONFIGS], lines.values())


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--again", action="store_true", help="measure rows again that have been measured")
    options = parser.parse_args()
    if options.tables:
        fill("docs/paper.md", "targeted-success", table(read_results(PATH)))
        return
    stored = read_results(PATH, {"rows": {}})["rows"]
    for name, classifier, classes in networks():
        for settings, config in CONFIGS.items():
            key = f"{name}: {settings}"
            if key not in stored or options.again:
                row = measure(classifier, classes, config)
                add_row(PATH, TITLE, key, row)
                print(f"{key:60s}", row, flush=True)


if __name__ == "__main__":
    main()
