"""Do maps move held-out images? The paper's dials at a small budget, and `quick`, on four real networks.

    python benchmarks/nudge.py      writes benchmarks/results/nudge.json

Ten CIFAR classes and two ImageNet ones, one map each. Held-out images are a fifth of the photographs, which no map
was made with; those that the network already gives the class are left out.
"""

from __future__ import annotations

import json
import statistics

from ablation import ASSETS, IMAGENET, RESULTS, TRIAL_CLASSES, about, cifar_network, imagenet_network

import agnosco
from agnosco import Classifier, Config, MapperConfig, Samples
from agnosco.score import nudge_success, predictions

SMALL_BUDGET = Config(MapperConfig(batch=16, steps=150), refine=None, cycles=1)
CONFIGS = {"paper's dials, b 16, K 150": SMALL_BUDGET, "quick": agnosco.preset("quick")}


def networks() -> dict[str, tuple[Classifier, str, tuple[int, ...]]]:
    """Each network with the folder of its photographs and the classes that are mapped."""
    found = {
        name: (imagenet_network(name), "imagenet-samples", TRIAL_CLASSES[:2])
        for name in ("squeezenet1_1", "mobilenet_v2", "resnet18")
    }
    resnet20 = cifar_network("CifarResNet(20)", "resnet20", **IMAGENET)
    return {"cifar resnet20": (resnet20, "cifar10-test", tuple(range(10))), **found}


def measure(classifier: Classifier, folder: str, classes: tuple[int, ...], config: Config) -> dict[str, float]:
    """Means over classes."""
    mapping, held_out = Samples.from_folder(ASSETS / folder, classifier.shape).split()
    maps = list(agnosco.map_classes(classifier, classes, mapping, config))
    before = predictions(classifier, held_out)
    nudges = [nudge_success(classifier, m.nu, m.label, held_out, before=before) for m in maps]
    return {
        "nudge_success": statistics.fmean(nudges),
        "least_nudge_success": min(nudges),
        "probability": statistics.fmean(m.probability for m in maps),
    }


def main() -> None:
    path = RESULTS / "nudge.json"
    results: dict[str, dict] = {}
    for name, (classifier, folder, classes) in networks().items():
        for words, config in CONFIGS.items():
            results[f"{name}: {words}"] = measure(classifier, folder, classes, config)
            print(f"{name:15s} {words:28s}", results[f"{name}: {words}"], flush=True)
    path.write_text(
        json.dumps({"about": about("ten CIFAR classes, two ImageNet classes, one seed"), "rows": results}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
