"""Do maps move held-out images? The paper's dials at a small budget, on four real networks.

    python benchmarks/nudge.py           measure what is missing of benchmarks/results/nudge.json
    python benchmarks/nudge.py --again   measure all of it
    python benchmarks/nudge.py --tables  write the table into docs/paper.md

One map of each class. Held-out images are a fifth of the photographs, which no map was made with; those that the
network already gives the class are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace

from ablation import ASSETS, IMAGENET, RESULTS, TRIAL_CLASSES, about, cifar_network, imagenet_network
from pages import markdown, put

import agnosco
from agnosco import Classifier, Config, MapperConfig, Samples
from agnosco.method.score import predictions, targeted_success_rate

SMALL_BUDGET = MapperConfig(batch=16, steps=150)
CONFIGS = {
    "paper's dials": Config(SMALL_BUDGET, refine=None, cycles=1),
    "paper's dials, steps falling to 0": Config(replace(SMALL_BUDGET, decay=1.0), refine=None, cycles=1),
}


def networks() -> Iterator[tuple[str, Classifier, str, tuple[int, ...]]]:
    """Each network's name, itself, the folder of its photographs and the classes that are mapped."""
    resnet20 = cifar_network("CifarResNet(20)", "resnet20", **IMAGENET)
    yield "CIFAR ResNet-20, 32 px", resnet20, "cifar10-test", tuple(range(10))
    for size, classes in ((112, TRIAL_CLASSES[:3]), (224, TRIAL_CLASSES[:2])):
        for name in ("squeezenet1_1", "mobilenet_v2", "resnet18"):
            yield f"{name}, {size} px", imagenet_network(name, size), "imagenet-samples", classes


def measure(classifier: Classifier, folder: str, classes: tuple[int, ...], config: Config) -> dict[str, float]:
    """Means over classes."""
    mapping, held_out = Samples.from_folder(ASSETS / folder, classifier.shape).split()
    maps = list(agnosco.map_classes(classifier, classes, mapping, config))
    before = predictions(classifier, held_out)
    nudges = [targeted_success_rate(classifier, m.nu, m.label, held_out, before=before) for m in maps]
    return {
        "classes": len(classes),
        "targeted_success_rate": round(statistics.fmean(nudges), 4),
        "least_targeted_success_rate": round(min(nudges), 4),
        "probability": round(statistics.fmean(m.probability for m in maps), 4),
    }


def table(results: dict) -> str:
    """The results as Markdown: means over classes, the least in brackets."""
    found: dict[str, list[str]] = {}
    for key, row in results["rows"].items():
        network = key.split(": ")[0]
        cells = found.setdefault(network, [network, str(row["classes"])])
        cells.append(f"{row['targeted_success_rate']:.3f} ({row['least_targeted_success_rate']:.2f})")
    return markdown(["network", "classes", *CONFIGS], found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    path = RESULTS / "nudge.json"
    results = json.loads(path.read_text()) if path.exists() and not options.again else {"rows": {}}
    if options.tables:
        put("docs/paper.md", "nudge", table(results))
        return
    results["about"] = about("one map of each class; b 16, K 150 with the paper's dials")
    for name, classifier, folder, classes in networks():
        for words, config in CONFIGS.items():
            key = f"{name}: {words}"
            if key in results["rows"]:
                continue
            results["rows"][key] = measure(classifier, folder, classes, config)
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{key:60s}", results["rows"][key], flush=True)


if __name__ == "__main__":
    main()
