"""What only a GPU can measure in minutes: maps at the paper's settings, all classes of a network, bfloat16.

    python benchmarks/gpu.py whole        seconds for 1000 maps of ResNet-50 with ``quick``, and for maps of the paper's
                                          204,800 passes of VGG-16 and ResNet-50, all at 224 px
    python benchmarks/gpu.py precision    the same maps in bfloat16 and in float32: their similarity and their scores
    python benchmarks/gpu.py ... --toy    with very few steps, to try the script

benchmarks/gpu.sh runs this; results go to AGNOSCO_RESULTS as gpu-*.json.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
import torchvision
from common import (
    ASSETS,
    DEVICE,
    IMAGENET,
    IMAGENET_NETWORKS,
    RESULTS,
    TRIAL_CLASSES,
    add_row,
    argument_parser,
    imagenet_network,
    judged,
    photographs,
)

import agnosco
from agnosco import Classifier, Config
from agnosco.method.maker import maps_together
from agnosco.method.prepare import resolve_precision


def whole(toy: bool) -> None:
    """Seconds of whole runs."""
    size, classes = (64, 8) if toy else (224, 1000)
    quick, paper = agnosco.preset("quick"), replace(agnosco.preset("paper"), precision="auto")
    if toy:
        quick = replace(quick, mapper=replace(quick.mapper, steps=2))
        assert paper.refine
        paper = replace(paper, mapper=replace(paper.mapper, steps=2, batch=8), refine=replace(paper.refine, steps=2))
    gradient = replace(paper, mapper=replace(paper.mapper, direction="gradient"))
    for name, config, count, title in (
        ("resnet50", quick, classes, "quick, all classes"),
        ("vgg16", paper, 1, "paper, one map"),
        ("resnet50", paper, 1, "paper, one map"),
        ("vgg16", gradient, 1, "paper with the cheaper direction, one map"),
        ("resnet50", gradient, 1, "paper with the cheaper direction, one map"),
    ):
        network = _network(name, size)
        for compiled in (False, True) if DEVICE != "cpu" else (False,):
            key = f"{name} at {size} px, {title}{', compiled' if compiled else ''}"
            _add("gpu-whole", key, timed(network, replace(config, compiled=compiled), count))


def timed(network: Classifier, config: Config, count: int) -> dict[str, Any]:
    """Seconds and memory for so many maps."""
    samples = photographs(network)
    if DEVICE != "cpu":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    maps = sum(1 for _ in agnosco.map_classes(network, range(count), samples, config))
    seconds = time.perf_counter() - start
    return {
        "maps": maps,
        "passes": maps * config.passes,
        "seconds": round(seconds, 2),
        "together": maps_together(network, config),
        "precision": resolve_precision(config.precision, torch.device(DEVICE)),
        "peak_gigabytes": torch.cuda.max_memory_allocated() / 2**30 if DEVICE != "cpu" else None,
    }


def precision(toy: bool) -> None:
    """Maps of ten classes in both precisions."""
    size = 64 if toy else 224
    source = imagenet_network("resnet50", size)
    judges = {name: imagenet_network(name, size) for name in IMAGENET_NETWORKS if name != "resnet50"}
    mapping, held_out = photographs(source).split()
    classes = TRIAL_CLASSES[: 2 if toy else None]
    for name in ("quick",) if toy else ("quick", "best"):
        nus = {}
        for kind in ("float32", "bfloat16"):
            config = replace(agnosco.preset(name), precision=kind)
            if toy:
                config = replace(config, mapper=replace(config.mapper, steps=2))
            maps = list(agnosco.map_classes(source, classes, mapping, config))
            nus[kind] = [concept.nu for concept in maps]
            pictures = torch.stack([concept.pixels for concept in maps])
            _add("gpu-precision", f"{name}, {kind}", judged(source, judges, pictures, nus[kind], classes, held_out))
        pairs = zip(nus["float32"], nus["bfloat16"], strict=True)
        cosines = [torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item() for a, b in pairs]
        _add("gpu-precision", f"{name}: cosine", {"each": cosines})


def _network(name: str, size: int) -> Classifier:
    """A trained network of the assets, or torchvision's with random weights, which is as fast."""
    if (ASSETS / "models" / f"{name}-imagenet.safetensors").exists():
        return imagenet_network(name, size)
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    return Classifier(model, size=size, mean=IMAGENET["mean"], std=IMAGENET["std"], name=name).to(DEVICE)


def _add(file: str, key: str, row: dict[str, Any]) -> None:
    """Write each row at once: a stage may be cut off."""
    add_row(RESULTS / f"{file}.json", file, key, row)
    print(key, row, flush=True)


def main() -> None:
    parser = argument_parser(__doc__, tables=False)
    parser.add_argument("stage", choices=("whole", "precision"))
    parser.add_argument("--toy", action="store_true", help="very few steps, to try the script")
    options = parser.parse_args()
    {"whole": whole, "precision": precision}[options.stage](options.toy)


if __name__ == "__main__":
    main()
