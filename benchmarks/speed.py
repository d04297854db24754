"""How fast agnosco is beside the reference loop, the best peer and the network's bare forward pass, in one run.

    python benchmarks/speed.py                      measure the cases that are missing
    python benchmarks/speed.py --again              measure all cases again
    python benchmarks/speed.py --only resnet18      only cases whose name contains this
    python benchmarks/speed.py --out FILE --toy     write to FILE, with very few steps, to try the script
    python benchmarks/speed.py --paths              measure each part of the fast path instead
    python benchmarks/speed.py --tables             write the tables into benchmarks/README.md

A *pass* is one image forward through the network and back to its pixels; a map of ``quick`` takes 480, one with the
paper's settings 204,800. Measured are passes per second of

    reference   the reference loop (``agnosco.method.reference``): one map at a time, eager float32
    agnosco     what ``agnosco map`` runs (``agnosco.method.mapper``): as many maps side by side as it chooses
    Horama      its ``fourier``, 6 crops per step
    bound       two bare forward passes for each pass, without gradients, at the best batch and precision: a backward
                pass to the pixels takes as many multiplications as a forward pass

Each round measures all of them, one after the other, for a few steps after a warm-up, so that other load on the machine
affects all alike. Ratios are medians of the ratios of the rounds, with the least and greatest. Weights are random where
the assets have no trained ones: speed is the same. Results go to benchmarks/results/speed-cpu.json, or speed-gpu.json;
AGNOSCO_DEVICE names the device (default: cpu).
"""

from __future__ import annotations

import contextlib
import copy
import io
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from common import (
    ASSETS,
    DEVICE,
    IMAGENET,
    RESULTS,
    about,
    add_row,
    argument_parser,
    cifar_network,
    fill,
    markdown,
    measured_on,
    photographs,
    read_results,
    write_results,
)
from torch import nn

import agnosco
from agnosco import Classifier, Config, MapperConfig, Samples
from agnosco.method import prepare
from agnosco.method.maker import generator_for
from agnosco.method.mapper import Mapper
from agnosco.method.prepare import activation_bytes, compiled, images_at_once, placed, prepared, resolve_precision
from agnosco.method.reference import saliency_map

ROUNDS = 5
SECONDS = 4.0  # least duration of one measurement
BATCHES = (1, 4, 16, 32, 64, 128, 256, 512)  # tried for the bound


@dataclass(frozen=True)
class Case:
    """A network, the size of its images, and the settings."""

    network: str
    size: int
    settings: str
    batch: int  # images per step

    @property
    def name(self) -> str:
        return f"{self.network}, {self.size} px, {self.settings}"


def cases(full: bool) -> list[Case]:
    """The cases; ``full`` for a GPU, which can afford the paper's own batch."""
    quick = agnosco.preset("quick").mapper.batch
    paper = 128 if full else 16
    networks = [("resnet20", 32), ("resnet18", 112), ("resnet18", 224), ("mobilenet_v2", 224), ("resnet50", 112)]
    networks += [("resnet50", 224), ("vgg16", 224)]
    return [
        Case(name, size, settings, batch)
        for name, size in networks
        for settings, batch in (("quick", quick), ("paper", paper))
    ]


def classifier(case: Case, device: torch.device) -> Classifier:
    """The network: a trained one of the assets, or torchvision's with random weights."""
    if case.network == "resnet20":
        return cifar_network("CifarResNet(20)", "resnet20", **IMAGENET).to(device)
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(case.network, weights=None).eval()
    # Batch-norm statistics of a few images keep activations in the range of a trained network.
    with torch.no_grad(), _batch_statistics(model):
        model(torch.randn(8, 3, case.size, case.size))
    return Classifier(model, size=case.size, mean=IMAGENET["mean"], std=IMAGENET["std"], name=case.network).to(device)


@contextlib.contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """While this is open, batch norms take their statistics from the images that they see."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    yield
    for norm in norms:
        norm.momentum, norm.training = 0.1, False


def config_of(case: Case) -> Config:
    """The settings of a case, without refinement, whose steps cost as much as those of Algorithm 1."""
    if case.settings == "quick":
        return agnosco.preset("quick")
    return Config(MapperConfig(batch=case.batch), refine=None, cycles=1, precision="auto")


# -- what is measured -------------------------------------------------------------------------------

Steps = Callable[[int], int]
"""Runs about so many steps; returns how many passes they took."""


def reference(network: Classifier, samples: Samples, config: Config) -> Steps:
    """The reference loop."""
    basis = config.mapper.parameterization.fit(samples, network.device)

    def steps(count: int) -> int:
        mapper = replace(config.mapper, steps=count)
        project, generator = mapper.ball.projector(basis), generator_for(0, 0)
        saliency_map(network, 0, samples, mapper, basis=basis, project=project, generator=generator)
        return mapper.passes

    return steps


def side_by_side(
    network: Classifier,
    samples: Samples,
    config: Config,
    *,
    together: int | None = None,
    micro_batch: int | None = None,
    through_compiler: bool = False,
    fold: bool = True,
) -> Steps:
    """The fast path: as agnosco runs it, or with something changed."""
    with contextlib.nullcontext() if fold else patch.object(prepare, "_folded", lambda classifier: classifier.model):
        faster = prepared(network, precision=resolve_precision(config.precision, network.device))
    basis = config.mapper.parameterization.fit(samples, network.device)
    at_once = micro_batch or images_at_once(faster)
    faster = compiled(faster) if through_compiler else faster
    resident = placed(samples, network.device)
    maps = together or max(at_once // config.mapper.batch, 1)

    def steps(count: int) -> int:
        mapper = replace(config.mapper, steps=count)
        generators = [generator_for(place, 0) for place in range(maps)]
        labels = [place % network.classes for place in range(maps)]
        group = Mapper(
            faster, labels, resident, mapper, basis=basis, project=mapper.ball.projector(basis), generators=generators,
            micro_batch=at_once,
        )  # fmt: skip
        with faster.frozen():
            for _ in group.steps(group.begin(torch.zeros(maps, *network.shape, device=network.device))):
                pass
        return maps * mapper.passes

    return steps


def horama(network: Classifier) -> Steps:
    """Horama's loop at the network's own size."""
    from horama import fourier

    size = network.shape[1]

    def steps(count: int) -> int:
        with network.frozen(), contextlib.redirect_stderr(io.StringIO()):
            fourier(
                lambda images: network.model(images)[:, 0].mean(), total_steps=count, image_size=size,
                model_input_size=size, box_size=(0.5, 0.9), crops_per_iteration=6, device=str(network.device),
            )  # fmt: skip
        return 6 * count

    return steps


def bound(network: Classifier, config: Config, toy: bool) -> tuple[Steps, int]:
    """The bare forward pass at its best batch, and that batch; an image counts as half a pass."""
    precision = resolve_precision(config.precision, network.device)
    model = prepared(network, precision=precision).model
    fitting = [batch for batch in BATCHES if batch * activation_bytes(network) < 2**31 or batch == 1]

    def steps(images: torch.Tensor, count: int) -> int:
        with torch.no_grad(), network.frozen():
            for _ in range(count):
                model(images)
        return len(images) * count // 2 or 1

    def at(batch: int) -> Steps:
        images = torch.rand(batch, *network.shape, device=network.device)
        images = images.contiguous(memory_format=torch.channels_last)
        return partial(steps, images)

    rates = {batch: rate(at(batch), 2, network.device) for batch in fitting[: 2 if toy else None]}
    best = max(rates, key=rates.__getitem__)
    return at(best), best


def rate(steps: Steps, count: int, device: torch.device) -> float:
    """Passes per second over so many steps, after one step of warm-up."""
    steps(1)
    _wait(device)
    start = time.perf_counter()
    passes = steps(count)
    _wait(device)
    return passes / (time.perf_counter() - start)


def steps_to_time(steps: Steps, device: torch.device, toy: bool) -> int:
    """How many steps take long enough to be timed."""
    if toy:
        return 2
    start = time.perf_counter()
    rate(steps, 2, device)
    return max(round(2 * SECONDS / (time.perf_counter() - start)), 2)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rounds(ways: dict[str, Steps], device: torch.device, toy: bool) -> dict[str, list[float]]:
    """Passes per second of each way, in every round."""
    counts = {name: steps_to_time(steps, device, toy) for name, steps in ways.items()}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(2 if toy else ROUNDS):
        for name, steps in ways.items():
            rates[name].append(rate(steps, counts[name], device))
    return rates


def cosines_to_reference(network: Classifier, samples: Samples, config: Config) -> list[float]:
    """Cosine between the maps of agnosco, made side by side, and those of the reference loop, for two classes."""
    cosines = []
    basis = config.mapper.parameterization.fit(samples, network.device)
    labels = [0, 1]
    maps = agnosco.map_classes(network, labels, samples, replace(config, precision="float32"), together=2)
    for concept in maps:
        project, generator = config.mapper.ball.projector(basis), generator_for(concept.label, 0)
        nu, _, _ = saliency_map(
            network, concept.label, samples, config.mapper, basis=basis, project=project, generator=generator
        )
        cosines.append(torch.cosine_similarity(nu.cpu().flatten(), concept.nu.flatten(), dim=0).item())
    return cosines


def measure(case: Case, device: torch.device, toy: bool) -> dict[str, Any]:
    """One row of the table."""
    network = classifier(case, device)
    samples = photographs(network) if ASSETS.exists() else Samples.noise(network.shape, count=100)
    config = config_of(case)
    forward, best_batch = bound(network, config, toy)
    ways = {
        "reference": reference(network, samples, config),
        "agnosco": side_by_side(network, samples, config),
        "bound": forward,
    }
    if find_spec("horama"):
        ways["Horama"] = horama(network)
    if case.settings == "paper":
        cheaper = replace(config, mapper=replace(config.mapper, direction="gradient"))
        ways["agnosco, direction gradient"] = side_by_side(network, samples, cheaper)
    if device.type == "cuda":
        ways["agnosco, compiled"] = side_by_side(network, samples, config, through_compiler=True)
        torch.cuda.reset_peak_memory_stats(device)
    rates = rounds(ways, device, toy)
    short = replace(config, mapper=replace(config.mapper, steps=4 if toy else 30))
    return {
        "case": vars(case),
        "precision": resolve_precision(config.precision, device),
        "images_at_once": images_at_once(prepared(network, precision=resolve_precision(config.precision, device))),
        "bound_batch": best_batch,
        "passes_per_second": rates,
        "cosine_to_reference": cosines_to_reference(network, samples, short),
        "peak_bytes": _peak(device),
    }


def paths(device: torch.device, toy: bool) -> dict[str, Any]:
    """Each part of the fast path, beside the path without it."""
    results: dict[str, Any] = {}
    names = ("resnet20, 32 px, quick", "resnet18, 112 px, quick", "resnet18, 112 px, paper")
    for case in (case for case in cases(full=False) if case.name in names):
        results[case.name] = rounds(variants(case, classifier(case, device), toy), device, toy)
        print(case.name, {name: round(median(values), 1) for name, values in results[case.name].items()})
    return results


def variants(case: Case, network: Classifier, toy: bool) -> dict[str, Steps]:
    """The fast path of a case as agnosco runs it, without each of its parts, and with other numbers of images."""
    config, samples = config_of(case), photographs(network)
    contiguous = copy.copy(network)
    contiguous._layout = torch.contiguous_format
    make = partial(side_by_side, network, samples)
    ways = {"agnosco": make(config), "one map at a time": make(config, together=1)}
    ways["reference"] = reference(network, samples, config)
    ways["without channels-last"] = side_by_side(contiguous, samples, config)
    ways["batch norms not folded"] = make(config, fold=False)
    if case.settings == "paper":
        ways["direction gradient"] = make(replace(config, mapper=replace(config.mapper, direction="gradient")))
        ways["direction plus"] = make(replace(config, mapper=replace(config.mapper, direction="plus")))
    for at_once in (8, 16, 32, 64):
        maps = max(at_once // case.batch, 1)
        ways[f"{at_once} images at once"] = make(config, together=maps, micro_batch=at_once)
    if not toy:
        ways["compiled"] = make(config, through_compiler=True)
    return ways


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# -- tables -----------------------------------------------------------------------------------------


def ratio(row: dict[str, Any], one: str, other: str) -> str:
    """Median of the ratios of the rounds, with the least and the greatest."""
    values = sorted(a / b for a, b in zip(row["passes_per_second"][one], row["passes_per_second"][other], strict=True))
    return f"{median(values):.2f} ({values[0]:.2f}-{values[-1]:.2f})"


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    case, speeds = Case(**row["case"]), row["passes_per_second"]
    own = median(speeds["agnosco"])
    best = max((way for way in speeds if way.startswith("agnosco")), key=lambda way: median(speeds[way]))
    return [
        case.name,
        f"{median(speeds['reference']):.1f}",
        f"{own:.1f}",
        ratio(row, "agnosco", "reference"),
        ratio(row, best, "reference") if best != "agnosco" else "-",
        ratio(row, "agnosco", "Horama") if "Horama" in speeds else "-",
        ratio(row, best, "bound"),
        f"{agnosco.preset(case.settings).passes / median(speeds[best]):,.0f}",
        f"{min(row['cosine_to_reference']):.4f}",
    ]


HEAD = (
    "case", "reference, passes/s", "agnosco, passes/s", "agnosco / reference", "with the cheaper direction / reference",
    "agnosco / Horama", "best of agnosco / bound", "s/map", "least cosine to the reference",
)  # fmt: skip


def tables() -> str:
    """All results as Markdown."""
    parts = []
    for path in sorted(RESULTS.glob("speed-*.json")):
        results = read_results(path)
        parts.append(f"**{results['about']['title']}**. {measured_on(results)}.")
        parts.append(markdown(HEAD, [cells(row) for row in results["rows"].values()]))
        for name, ways in results.get("paths", {}).items():
            row = {"passes_per_second": ways}
            rows = [[way, f"{median(values):.1f}", ratio(row, way, "agnosco")] for way, values in ways.items()]
            parts.append(f"*{name}*\n\n" + markdown(["", "passes/s", "ratio to agnosco"], rows))
    return "\n\n".join(parts)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--again", action="store_true", help="measure cases again that have been measured")
    parser.add_argument("--paths", action="store_true", help="measure each part of the fast path")
    parser.add_argument("--toy", action="store_true", help="very few steps, to try the script")
    parser.add_argument("--out", type=Path, help="file of results")
    options = parser.parse_args()
    if options.tables:
        fill("benchmarks/README.md", "speed", tables())
        return
    device = torch.device(DEVICE)
    path = options.out or RESULTS / f"speed-{'gpu' if device.type == 'cuda' else 'cpu'}.json"
    title = f"Passes per second, {device.type}"
    stored = read_results(path, {"rows": {}})
    if options.paths:
        write_results(path, stored | {"about": about(title), "paths": paths(device, options.toy)})
        return
    for case in cases(full=device.type == "cuda"):
        if options.only in case.name and (options.again or case.name not in stored["rows"]):
            row = measure(case, device, options.toy)
            add_row(path, title, case.name, row)
            print(*cells(row), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
