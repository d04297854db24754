"""What only a GPU can settle in minutes: whole maps at the paper's settings, all classes of a network, bfloat16.

    python benchmarks/gpu.py whole        seconds for 1000 maps of ResNet-50 with ``quick``, and for maps of the paper's
                                          204,800 passes of VGG-16 and ResNet-50, all at 224 px
    python benchmarks/gpu.py precision    the same maps in bfloat16 and in float32: how alike, and as well named?
    python benchmarks/gpu.py ... --toy    with next to no steps

Run by benchmarks/gpu.sh; results go to AGNOSCO_RESULTS as gpu-*.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from statistics import fmean

import torch
import torchvision
from ablation import ASSETS, DEVICE, IMAGENET, RESULTS, TRIAL_CLASSES, about, imagenet_network

import agnosco
from agnosco import Classifier, Config, Samples
from agnosco.method.maker import maps_together
from agnosco.method.prepare import resolve_precision
from agnosco.method.score import predictions, score, targeted_success_rate


def whole(toy: bool) -> dict:
    """Seconds of the runs that the paper, and the issue "Speed", speak of."""
    size, classes = (64, 8) if toy else (224, 1000)
    quick, paper = agnosco.preset("quick"), replace(agnosco.preset("paper"), precision="auto")
    if toy:
        quick = replace(quick, mapper=replace(quick.mapper, steps=2))
        assert paper.refine
        paper = replace(paper, mapper=replace(paper.mapper, steps=2, batch=8), refine=replace(paper.refine, steps=2))
    gradient = replace(paper, mapper=replace(paper.mapper, direction="gradient"))
    found = {}
    for name, config, count, what in (
        ("resnet50", quick, classes, "quick, all classes"),
        ("vgg16", paper, 1, "paper, one map"),
        ("resnet50", paper, 1, "paper, one map"),
        ("vgg16", gradient, 1, "paper with the cheaper direction, one map"),
        ("resnet50", gradient, 1, "paper with the cheaper direction, one map"),
    ):
        network = _network(name, size)
        samples = Samples.from_folder(ASSETS / "imagenet-samples", network.shape)
        for compiled in (False, True) if DEVICE != "cpu" else (False,):
            if DEVICE != "cpu":
                torch.cuda.reset_peak_memory_stats()
            begun = time.perf_counter()
            maps = agnosco.map_classes(network, range(count), samples, replace(config, compiled=compiled))
            made = sum(1 for _ in maps)
            seconds = time.perf_counter() - begun
            key = f"{name} at {size} px, {what}{', compiled' if compiled else ''}"
            found[key] = {
                "maps": made,
                "passes": made * config.passes,
                "seconds": round(seconds, 2),
                "together": maps_together(network, config),
                "precision": _precision(config),
                "peak_gigabytes": torch.cuda.max_memory_allocated() / 2**30 if DEVICE != "cpu" else None,
            }
            print(key, found[key], flush=True)
            _keep("gpu-whole", found)
    return found


def precision(toy: bool) -> dict:
    """Maps of ten classes in both precisions."""
    size = 64 if toy else 224
    source = imagenet_network("resnet50", size)
    judges = {name: imagenet_network(name, size) for name in ("resnet18", "mobilenet_v2", "squeezenet1_1")}
    kept, held_out = Samples.from_folder(ASSETS / "imagenet-samples", source.shape).split()
    before = predictions(source, held_out)
    classes = TRIAL_CLASSES[: 2 if toy else None]
    found: dict[str, dict] = {}
    maps = {}
    for name in ("quick",) if toy else ("quick", "best"):
        for kind in ("float32", "bfloat16"):
            config = replace(agnosco.preset(name), precision=kind)
            if toy:
                config = replace(config, mapper=replace(config.mapper, steps=2))
            made = list(agnosco.map_classes(source, classes, kept, config))
            maps[name, kind] = made
            pictures = torch.stack([one.pixels for one in made])
            found[f"{name}, {kind}"] = {
                "own": asdict(score(source, pictures, classes)),
                "others": {other: asdict(score(judge, pictures, classes)) for other, judge in judges.items()},
                "targeted_success_rate": fmean(
                    targeted_success_rate(source, one.nu, one.label, held_out, before=before) for one in made
                ),
            }
        pairs = zip(maps[name, "float32"], maps[name, "bfloat16"], strict=True)
        found[f"{name}: cosine"] = {
            "each": [torch.cosine_similarity(a.nu.flatten(), b.nu.flatten(), dim=0).item() for a, b in pairs]
        }
        _keep("gpu-precision", found)
    return found


def _network(name: str, size: int) -> Classifier:
    """A trained network of the assets', or torchvision's with random weights: speed is the same."""
    if (ASSETS / "models" / f"{name}-imagenet.safetensors").exists():
        return imagenet_network(name, size)
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    return Classifier(model, size=size, mean=IMAGENET["mean"], std=IMAGENET["std"], name=name).to(DEVICE)


def _precision(config: Config) -> str:
    return resolve_precision(config.precision, torch.device(DEVICE))


def _keep(name: str, found: dict) -> None:
    """Write what there is: a stage may be cut off."""
    text = json.dumps({"about": about(name), "rows": found}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("whole", "precision"))
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    {"whole": whole, "precision": precision}[options.stage](options.toy)


if __name__ == "__main__":
    main()
