"""How fast the product is beside its plain twin, the best peer and the network's bare forward pass, in one run.

    python benchmarks/speed.py                      measure what is missing of benchmarks/results/speed-cpu.json
    python benchmarks/speed.py --again              measure all of it
    python benchmarks/speed.py --only resnet18      cases whose name contains this
    python benchmarks/speed.py --out FILE --toy     elsewhere, and with next to no steps: is the script sound?
    python benchmarks/speed.py --tables             write the table into benchmarks/README.md

A *pass* is one image forward through the network and back to its pixels; a map of ``quick`` takes 1,920, one of the
paper's dials 204,800. Measured are passes per second of

    plain     the plain loop (``agnosco.method.reference``), one map at a time, eager float32
    product   what ``agnosco map`` runs (``agnosco.method.mapper``), as many maps side by side as it chooses
    Horama    its ``fourier``, 6 crops a step
    floor     the bare forward pass, without gradients, at its best batch and precision, twice for each pass: a
              backward pass to the pixels multiplies as often as a forward pass does

in rounds: each measures a few steps after warming up, one after the other, so that what else the machine does falls on
all alike; ratios are medians of the rounds' ratios, with the least and greatest. Weights are random where no trained
ones are at hand: they cost the same. ``--paths`` measures single measures of the fast path
instead. AGNOSCO_DEVICE says where: ``cpu`` if not set.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from ablation import ASSETS, DEVICE, IMAGENET, RESULTS, about, cifar_network
from pages import made_on, markdown, put
from torch import nn

import agnosco
from agnosco import Classifier, Config, MapperConfig, Samples
from agnosco.method.maker import generator_for
from agnosco.method.mapper import Lockstep
from agnosco.method.prepare import activation_bytes, compiled, images_at_once, placed, prepared, resolve_precision
from agnosco.method.reference import saliency_map

ROUNDS = 5
SECONDS = 4.0  # that one measurement should last at least
BATCHES = (1, 4, 16, 32, 64, 128, 256, 512)  # tried for the floor


@dataclass(frozen=True)
class Case:
    """A network, the size of its images, and the dials."""

    network: str
    size: int
    dials: str
    batch: int  # images per step

    @property
    def name(self) -> str:
        return f"{self.network}, {self.size} px, {self.dials}"


def cases(full: bool) -> list[Case]:
    """What is measured; `full` for a GPU, where the paper's own batch is affordable."""
    quick = agnosco.preset("quick").mapper.batch
    paper = 128 if full else 16
    networks = [("resnet20", 32), ("resnet18", 112), ("resnet18", 224), ("mobilenet_v2", 224), ("resnet50", 112)]
    networks += [("resnet50", 224), ("vgg16", 224)]
    return [
        Case(name, size, dials, batch)
        for name, size in networks
        for dials, batch in (("quick", quick), ("paper", paper))
    ]


def classifier(case: Case, device: torch.device) -> Classifier:
    """The network: a trained one of the assets', or torchvision's with random weights."""
    if case.network == "resnet20":
        return cifar_network("CifarResNet(20)", "resnet20", **IMAGENET).to(device)
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(case.network, weights=None).eval()
    # As many images as it takes give the batch norms a spread like that of a trained network.
    with torch.no_grad(), _training_statistics(model):
        model(torch.randn(8, 3, case.size, case.size))
    return Classifier(model, size=case.size, mean=IMAGENET["mean"], std=IMAGENET["std"], name=case.network).to(device)


@contextlib.contextmanager
def _training_statistics(model: nn.Module):
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    yield
    for norm in norms:
        norm.momentum, norm.training = 0.1, False


def dials(case: Case) -> Config:
    """The settings of a case; refinement is left out, whose steps cost what those of Algorithm 1 do."""
    if case.dials == "quick":
        return agnosco.preset("quick")
    return Config(MapperConfig(batch=case.batch), refine=None, cycles=1, precision="auto")


# -- what is measured ---------------------------------------------------------------------------------------

Steps = Callable[[int], int]
"""Does about so many steps, and says how many passes that were."""


def plain(network: Classifier, samples: Samples, config: Config) -> Steps:
    """The plain loop."""
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
    precision: str | None = None,
) -> Steps:
    """The fast path: as the product chooses, or with something changed."""
    precision = precision or resolve_precision(config.precision, network.device)
    faster = prepared(network, precision=precision)
    basis = config.mapper.parameterization.fit(samples, network.device)
    at_once = micro_batch or images_at_once(faster)
    faster = compiled(faster) if through_compiler else faster
    resident = placed(samples, network.device)
    maps = together or max(at_once // config.mapper.batch, 1)

    def steps(count: int) -> int:
        mapper = replace(config.mapper, steps=count)
        generators = [generator_for(place, 0) for place in range(maps)]
        labels = [place % network.classes for place in range(maps)]
        with faster.frozen():
            group = Lockstep(faster, labels, resident, mapper, basis=basis, generators=generators, micro_batch=at_once)
            group.map(torch.zeros(maps, *network.shape, device=network.device), mapper.ball.projector(basis))
        return maps * mapper.passes

    return steps


def horama(network: Classifier) -> Steps:
    """The peer's loop at the network's own size."""
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


def floor(network: Classifier, config: Config, toy: bool) -> tuple[Steps, int]:
    """The bare forward pass at its best batch, and that batch; half a pass for each image."""
    precision = resolve_precision(config.precision, network.device)
    model = prepared(network, precision=precision).model
    fitting = [batch for batch in BATCHES if batch * activation_bytes(network) < 2**31 or batch == 1]

    def steps(images: torch.Tensor, count: int) -> int:
        with torch.no_grad(), network.frozen():
            for _ in range(count):
                model(images)
        return len(images) * count // 2 or 1

    def of(batch: int) -> Steps:
        images = torch.rand(batch, *network.shape, device=network.device)
        images = images.contiguous(memory_format=torch.channels_last)
        return partial(steps, images)

    rates = {batch: rate(of(batch), 2, network.device) for batch in fitting[: 2 if toy else None]}
    best = max(rates, key=rates.__getitem__)
    return of(best), best


def rate(steps: Steps, count: int, device: torch.device) -> float:
    """Passes per second over so many steps, after one to warm up."""
    steps(1)
    _wait(device)
    begun = time.perf_counter()
    passes = steps(count)
    _wait(device)
    return passes / (time.perf_counter() - begun)


def enough(steps: Steps, device: torch.device, toy: bool) -> int:
    """How many steps last long enough to be timed."""
    if toy:
        return 2
    begun = time.perf_counter()
    rate(steps, 2, device)
    return max(round(2 * SECONDS / (time.perf_counter() - begun)), 2)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rounds(ways: dict[str, Steps], device: torch.device, toy: bool) -> dict[str, list[float]]:
    """Passes per second of each way, round after round."""
    counts = {name: enough(steps, device, toy) for name, steps in ways.items()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(2 if toy else ROUNDS):
        for name, steps in ways.items():
            found[name].append(rate(steps, counts[name], device))
    return found


def likeness(network: Classifier, samples: Samples, config: Config) -> list[float]:
    """Cosine of the product's maps, side by side, to the plain loop's: the full length of a map, two classes."""
    found = []
    basis = config.mapper.parameterization.fit(samples, network.device)
    labels = [0, 1]
    maps = agnosco.map_classes(network, labels, samples, replace(config, precision="float32"), together=2)
    for made in maps:
        project, generator = config.mapper.ball.projector(basis), generator_for(made.label, 0)
        nu, _ = saliency_map(
            network, made.label, samples, config.mapper, basis=basis, project=project, generator=generator
        )
        found.append(torch.cosine_similarity(nu.cpu().flatten(), made.nu.flatten(), dim=0).item())
    return found


def measure(case: Case, device: torch.device, toy: bool) -> dict[str, Any]:
    """One row of the table."""
    network = classifier(case, device)
    folder = "cifar10-test" if case.size == 32 else "imagenet-samples"
    if (ASSETS / folder).exists():
        samples = Samples.from_folder(ASSETS / folder, network.shape)
    else:
        samples = Samples.noise(network.shape, count=100)
    config = dials(case)
    bare, best = floor(network, config, toy)
    ways = {
        "plain": plain(network, samples, config),
        "product": side_by_side(network, samples, config),
        "floor": bare,
    }
    if find_spec("horama"):
        ways["Horama"] = horama(network)
    if case.dials == "paper":
        thinned = replace(config, mapper=replace(config.mapper, direction="gradient"))
        ways["product, first-order direction"] = side_by_side(network, samples, thinned)
    if device.type == "cuda":
        ways["product, compiled"] = side_by_side(network, samples, config, through_compiler=True)
        torch.cuda.reset_peak_memory_stats(device)
    found = rounds(ways, device, toy)
    short = replace(config, mapper=replace(config.mapper, steps=4 if toy else 30))
    return {
        "case": vars(case),
        "precision": resolve_precision(config.precision, device),
        "images_at_once": images_at_once(prepared(network, precision=resolve_precision(config.precision, device))),
        "floor_batch": best,
        "passes_per_second": found,
        "passes_per_map": agnosco.preset(case.dials).passes,
        "cosine_to_plain": likeness(network, samples, short),
        "peak_bytes": _peak(device),
    }


def paths(device: torch.device, toy: bool) -> dict[str, Any]:
    """Each measure of the fast path, beside the path without it."""
    results: dict[str, Any] = {}
    of_interest = ("resnet20, 32 px, quick", "resnet18, 112 px, quick", "resnet18, 112 px, paper")
    for case in (case for case in cases(full=False) if case.name in of_interest):
        network = classifier(case, device)
        config = dials(case)
        folder = "cifar10-test" if case.size == 32 else "imagenet-samples"
        samples = Samples.from_folder(ASSETS / folder, network.shape)
        contiguous = copy.copy(network)
        contiguous._layout = torch.contiguous_format
        make = partial(side_by_side, network, samples)
        ways = {"product": make(config), "one map at a time": make(config, together=1)}
        ways["plain"] = plain(network, samples, config)
        ways["without channels-last"] = side_by_side(contiguous, samples, config)
        if case.dials == "paper":
            ways["first-order direction"] = make(replace(config, mapper=replace(config.mapper, direction="gradient")))
            ways["plus direction"] = make(replace(config, mapper=replace(config.mapper, direction="plus")))
        for at_once in (8, 16, 32, 64):
            maps = max(at_once // case.batch, 1)
            ways[f"{at_once} images at once"] = make(config, together=maps, micro_batch=at_once)
        if not toy:
            ways["compiled"] = make(config, through_compiler=True)
        results[case.name] = rounds(ways, device, toy)
        print(case.name, {name: round(statistics.median(values), 1) for name, values in results[case.name].items()})
    return results


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# -- the table ----------------------------------------------------------------------------------------------


def ratio(row: dict, one: str, other: str) -> str:
    """Median of the rounds' ratios, with the least and the greatest."""
    values = sorted(a / b for a, b in zip(row["passes_per_second"][one], row["passes_per_second"][other], strict=True))
    return f"{statistics.median(values):.2f} ({values[0]:.2f}-{values[-1]:.2f})"


def line(row: dict) -> list[str]:
    """A row as cells."""
    case, speeds = Case(**row["case"]), row["passes_per_second"]
    product = statistics.median(speeds["product"])
    best = max((way for way in speeds if way.startswith("product")), key=lambda way: statistics.median(speeds[way]))
    return [
        case.name,
        f"{statistics.median(speeds['plain']):.1f}",
        f"{product:.1f}",
        ratio(row, "product", "plain"),
        ratio(row, best, "plain") if best != "product" else "-",
        ratio(row, "product", "Horama") if "Horama" in speeds else "-",
        ratio(row, best, "floor"),
        f"{row['passes_per_map'] / statistics.median(speeds[best]):,.0f}",
        f"{min(row['cosine_to_plain']):.4f}",
    ]


HEAD = (
    "case", "plain, passes/s", "product, passes/s", "product / plain", "with the cheaper direction / plain",
    "product / Horama", "best product / floor", "s/map", "least cosine to plain",
)  # fmt: skip


def tables() -> str:
    """All results as Markdown."""
    parts = []
    for path in sorted(RESULTS.glob("speed-*.json")):
        results = json.loads(path.read_text())
        parts.append(f"**{results['about']['bank']}**. {made_on(results)}.")
        parts.append(markdown(HEAD, [line(row) for row in results["rows"].values()]))
        for name, ways in results.get("paths", {}).items():
            whole = {"passes_per_second": ways}
            rows = [
                [way, f"{statistics.median(values):.1f}", ratio(whole, way, "product")] for way, values in ways.items()
            ]
            parts.append(f"*{name}*\n\n" + markdown(["", "passes/s", "share of the product's"], rows))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--paths", action="store_true")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        put("benchmarks/README.md", "speed", tables())
        return
    device = torch.device(DEVICE)
    path = options.out or RESULTS / f"speed-{'gpu' if device.type == 'cuda' else 'cpu'}.json"
    results = json.loads(path.read_text()) if path.exists() and not options.again else {"rows": {}}
    results["about"] = about(f"Passes per second, {device.type}")
    if options.paths:
        results["paths"] = paths(device, options.toy)
    else:
        for case in cases(full=device.type == "cuda"):
            if options.only not in case.name or case.name in results["rows"]:
                continue
            results["rows"][case.name] = measure(case, device, options.toy)
            print(*line(results["rows"][case.name]), sep=" | ", flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
