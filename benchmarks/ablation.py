"""Every ambiguity of the paper and every dial, one changed at a time, on the real networks of the assets.

    python benchmarks/ablation.py BANK            run what is missing of a bank (--help names them)
    python benchmarks/ablation.py BANK --only X   only the rows whose name contains X
    python benchmarks/ablation.py BANK --again    all rows, from the beginning
    python benchmarks/ablation.py --tables        write the tables into docs/paper.md

A row maps ten classes with one network (the source), shows the raw pictures to networks that had no part
in making them, and nudges held-out images. Results go to benchmarks/results/ablation-BANK.json, row by row,
so that a run that was stopped goes on where it stopped.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from pages import made_on, put

import agnosco
from agnosco import (
    L2,
    AutoL2,
    Classifier,
    Config,
    Crops,
    Data,
    Identity,
    MapperConfig,
    Pixel,
    RefineConfig,
    Samples,
    Spectral,
)
from agnosco.method.config import config_from_json, config_to_json
from agnosco.method.prepare import resolve_precision
from agnosco.method.score import predictions, score, targeted_success_rate

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("AGNOSCO_ASSETS", ROOT / "build" / "assets"))
ARCHITECTURES = Path(os.environ.get("AGNOSCO_ARCHITECTURES", ROOT.parent / "shared" / "tools" / "cifar_archs.py"))
RESULTS = Path(os.environ.get("AGNOSCO_RESULTS", ROOT / "benchmarks" / "results"))
DEVICE = os.environ.get("AGNOSCO_DEVICE", "cpu")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TRIAL_CLASSES = (219, 697, 255, 597, 442, 87, 112, 156, 296, 469)  # method.md's ten
FRESH_CLASSES = tuple(random.Random("classes by which nothing was chosen").sample(range(1000), 10))
DEVELOPMENT_CLASSES = tuple(
    label
    for label in random.Random("development").sample(range(1000), 60)
    if label not in (*FRESH_CLASSES, *TRIAL_CLASSES)
)[:12]
TRANSFER_SEEDS = (0, 1)


@dataclass(frozen=True)
class Row:
    """One line of the tables: settings, and what is mapped with them."""

    group: str
    name: str
    config: Config
    samples: str = "photographs"
    sign: int = -1  # of ν in the picture
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Bank:
    """A source network, the networks that judge its maps, the images, and what a CPU can pay."""

    source: Classifier
    judges: dict[str, Classifier]
    classes: tuple[int, ...]
    photographs: Samples
    base: MapperConfig  # the paper's dials at a budget that a CPU can pay


def imagenet_network(name: str, size: int = 112) -> Classifier:
    """A torchvision network with the assets' weights; they were trained at 224 px."""
    weights = ASSETS / "models" / f"{name}-imagenet.safetensors"
    return agnosco.load(f"torchvision:{name}", weights=weights, size=size, device=DEVICE)


def cifar_network(factory: str, name: str, **normalisation: Any) -> Classifier:
    """One of the assets' CIFAR networks; without mean and std, for pixels as they are."""
    weights = ASSETS / "models" / f"{name}-cifar10.safetensors"
    spec = f"python:{ARCHITECTURES}:{factory}"
    names = sorted(folder.name for folder in (ASSETS / "cifar10-test").iterdir())  # in the order of the classes
    return agnosco.load(spec, weights=weights, size=32, labels=names, trust_code=True, device=DEVICE, **normalisation)


def imagenet() -> Bank:
    """ResNet-18 at 112 px, judged by three others; ten classes, 800 photographs.

    Maps are made in bfloat16 where the CPU has it; every judgement is float32.
    """
    return _imagenet("resnet18")


def resnet50() -> Bank:
    """ResNet-50 at 112 px, judged by three others; ten classes, 800 photographs.

    What bears on pictures that other networks read: `--only` chooses those rows. Precision as above.
    """
    return _imagenet("resnet50")


def _imagenet(name: str) -> Bank:
    names = ("resnet50", "resnet18", "mobilenet_v2", "squeezenet1_1")
    judges = {other: imagenet_network(other) for other in names if other != name}
    source = imagenet_network(name)
    photographs = Samples.from_folder(ASSETS / "imagenet-samples", source.shape)
    return Bank(source, judges, TRIAL_CLASSES, photographs, base=MapperConfig(batch=8, steps=20))


def cifar() -> Bank:
    """The CIFAR ResNet-20 at 32 px, judged by two others; ten classes, 2,000 photographs."""
    judges = {
        "resnet56": cifar_network("CifarResNet(56)", "resnet56", **IMAGENET),
        "wrn16_1": cifar_network("WideResNet(16,1)", "wrn16_1-nad-erased"),
    }
    source = cifar_network("CifarResNet(20)", "resnet20", **IMAGENET)
    photographs = Samples.from_folder(ASSETS / "cifar10-test", source.shape)
    return Bank(source, judges, tuple(range(10)), photographs, base=MapperConfig(batch=16, steps=80))


def development() -> Bank:
    """ResNet-18 at 112 px, judged by three others; twelve classes drawn by lot, to choose dials by; 800 photographs.

    Maps are made in bfloat16 where the CPU has it; every judgement is float32.
    """
    return replace(_imagenet("resnet18"), classes=DEVELOPMENT_CLASSES)


def development50() -> Bank:
    """ResNet-50 at 112 px, judged by three others; six of the classes drawn by lot; 800 photographs.

    Whether what was chosen on ResNet-18 serves another source. Precision as above.
    """
    return replace(_imagenet("resnet50"), classes=DEVELOPMENT_CLASSES[:6])


BANKS: dict[str, Callable[[], Bank]] = {
    "imagenet": imagenet,
    "resnet50": resnet50,
    "cifar": cifar,
    "development": development,
    "development50": development50,
}


CROSS_ENTROPY = MapperConfig(
    batch=4, steps=480, step=0.1, decay=1.0, direction="plus", clip="masked",
    parameterization=Data(), transforms=Crops((0.3, 1.0)), ball=L2(60.0),
)  # fmt: skip
"""``quick`` before its loss and the contrasts of its samples were chosen: what the rows of *dials* change."""


def rows(base: MapperConfig) -> Iterator[Row]:
    """All rows; the first of each group is what the others change."""
    yield Row("presets", "draft", agnosco.preset("draft"), seeds=TRANSFER_SEEDS)  # the others: docs/evidence.md
    yield from quick_rows()
    yield from dial_rows()
    yield from paper_rows(base)


def choice_rows() -> Iterator[Row]:
    """What loss, contrast and radius of the presets are to be chosen from, at half of ``quick``'s passes."""
    half = agnosco.preset("draft")
    before = replace(CROSS_ENTROPY, steps=CROSS_ENTROPY.steps // 2)

    def mapped(**changes: Any) -> Config:
        return replace(half, mapper=replace(before, **changes))

    yield Row("choice", "cross-entropy, as the samples are, radius 60", mapped())
    yield Row("choice", "contrasts 0-1", mapped(contrast=(0.0, 1.0)))
    yield Row("choice", "views with noise of 0.06", mapped(transforms=Crops((0.3, 1.0), noise=0.06)))
    yield Row("choice", "logit", mapped(loss="logit"))
    yield Row("choice", "logit, contrasts 0-1", mapped(loss="logit", contrast=(0.0, 1.0)))
    yield Row("choice", "log-odds", mapped(loss="log-odds"))
    yield Row("choice", "log-odds, contrasts 0-1", mapped(loss="log-odds", contrast=(0.0, 1.0)))
    for low, radius in ((0.5, 70.0), (0.25, 80.0)):
        changes = {"contrast": (low, 1.0), "ball": L2(radius)}
        yield Row("choice", f"log-odds, contrasts {low:g}-1, radius {radius:g}", mapped(loss="log-odds", **changes))


def paper_rows(base: MapperConfig) -> Iterator[Row]:
    """The readings of the paper, in its own coordinates."""

    def mapped(**changes: Any) -> Config:
        return Config(replace(base, **changes), refine=None, cycles=1)

    yield Row("paper", f"paper's dials, b {base.batch}, K {base.steps}", mapped())
    yield Row("paper", "picture of +nu", mapped(), sign=1)
    yield Row("paper", "step unit", mapped(step="unit"))
    yield Row("paper", "step 0.05 of the radius", mapped(step=0.05))
    yield Row("paper", "steps falling to 0", mapped(decay=1.0))
    yield Row("paper", "clip masked", mapped(clip="masked"))
    yield Row("paper", "loss odds", mapped(loss="log-odds"))
    yield Row("paper", "direction gradient", mapped(direction="gradient"))
    yield Row("paper", "direction plus", mapped(direction="plus"))
    for factor in (0.5, 2, 3):
        yield Row("paper", f"radius x {factor:g}", mapped(ball=L2(30.0 * factor)))
    yield Row("paper", "radius auto", mapped(ball=AutoL2()))
    yield Row("paper", "b / 4, K x 4", mapped(batch=base.batch // 4, steps=base.steps * 4))
    yield Row("paper", "b x 4, K / 4", mapped(batch=base.batch * 4, steps=base.steps // 4))
    yield Row("paper", "K / 2", mapped(steps=base.steps // 2))
    yield Row("paper", "K x 2", mapped(steps=base.steps * 2))
    yield from refine_rows(base)


def refine_rows(base: MapperConfig) -> Iterator[Row]:
    """λ, Adam's rate and the number of cycles, each refinement as long as half of Algorithm 1."""
    half = base.steps // 2
    for weight in (0.0, 10.0, 50.0, 250.0):
        yield Row("refinement", f"lambda {weight:g}", Config(base, RefineConfig(half, weight), cycles=1))
    for rate in (0.001, 0.1):
        yield Row("refinement", f"rate {rate:g}", Config(base, RefineConfig(half, rate=rate), cycles=1))
    two = Config(replace(base, steps=half), RefineConfig(half // 2), cycles=2)
    yield Row("refinement", "2 cycles of half the length", two)


def quick_rows() -> Iterator[Row]:
    """What decides most of ``quick`` put back, and how many passes it needs."""
    quick = agnosco.preset("quick")
    mapper = replace(quick.mapper, steps=quick.mapper.steps // 4)

    def mapped(**changes: Any) -> Config:
        return replace(quick, mapper=replace(mapper, **changes))

    yield Row("quick", "at a quarter of its passes", mapped())
    for share in (16, 8, 2):
        yield Row("quick", f"at 1/{share} of its passes", mapped(steps=quick.mapper.steps // share))
    yield Row("quick", "cross-entropy", mapped(loss="cross-entropy"))
    yield Row("quick", "samples as they are", mapped(contrast=(1.0, 1.0)))
    yield Row("quick", "cross-entropy, samples as they are", mapped(loss="cross-entropy", contrast=(1.0, 1.0)))
    yield Row("quick", "cross-entropy, samples as they are, radius 60", replace(quick, mapper=_quarter(CROSS_ENTROPY)))
    yield Row("quick", "logit", mapped(loss="logit"))
    yield Row("quick", "images as they are, no crops", mapped(transforms=Identity()))
    yield Row("quick", "spectral coordinates", mapped(parameterization=Spectral()))
    yield Row("quick", "pixel coordinates", mapped(parameterization=Pixel()))
    yield Row("quick", "samples: leaves", mapped(), samples="leaves")


def _quarter(mapper: MapperConfig) -> MapperConfig:
    return replace(mapper, steps=mapper.steps // 4)


def dial_rows() -> Iterator[Row]:
    """Each setting of :data:`CROSS_ENTROPY` put back to the paper's or changed, at a quarter of its passes."""
    mapper = _quarter(CROSS_ENTROPY)

    def mapped(**changes: Any) -> Config:
        return Config(replace(mapper, **changes), refine=None, cycles=1, precision="auto")

    yield Row("dials", "cross-entropy, radius 60", mapped())
    for words, parameterization in (("pixel", Pixel()), ("spectral", Spectral()), ("data", mapper.parameterization)):
        for seen, transforms in (("as is", Identity()), ("crops", mapper.transforms)):
            if (words, seen) != ("data", "crops"):
                yield Row("dials", f"{words}, {seen}", mapped(parameterization=parameterization, transforms=transforms))
    for factor in (0.5, 1.5):
        yield Row("dials", f"radius x {factor:.2g}", mapped(ball=L2(60.0 * factor)))
    yield Row("dials", "radius auto", mapped(ball=AutoL2()))
    yield Row("dials", "data spectrum as it is", mapped(parameterization=Data(exponent=1.0)))
    yield Row("dials", "clip straight-through", mapped(clip="straight-through"))
    yield Row("dials", "samples at contrasts of 0-1", mapped(contrast=(0.0, 1.0)))
    yield Row("dials", "steps of equal length", mapped(step=0.05, decay=0.0))
    yield Row("dials", "crops of 10-100 %", mapped(transforms=Crops((0.1, 1.0))))
    yield Row("dials", "crops of 30-170 %", mapped(transforms=Crops((0.3, 1.7))))
    yield Row("dials", "crops of 30-170 %, radius x 1.33", mapped(transforms=Crops((0.3, 1.7)), ball=L2(80.0)))
    yield Row("dials", "views with noise of 0.03", mapped(transforms=Crops((0.3, 1.0), noise=0.03)))
    yield Row("dials", "b / 2, 2 K", mapped(batch=mapper.batch // 2, steps=mapper.steps * 2))
    yield Row("dials", "2 b, K / 2", mapped(batch=mapper.batch * 2, steps=mapper.steps // 2))
    yield Row("dials", "direction lookahead", mapped(direction="lookahead"))
    yield Row("dials", "refined", replace(mapped(), refine=RefineConfig(steps=mapper.steps // 2)))
    yield Row("dials", "samples: leaves", mapped(), samples="leaves")
    yield Row("dials", "samples: noise", mapped(), samples="noise")


def sample_set(bank: Bank, kind: str) -> tuple[Samples, Samples]:
    """Images to map with, of this kind, and held-out photographs to judge by."""
    mapping, held_out = bank.photographs.split()
    if kind == "leaves":
        mapping = Samples.leaves(bank.source.shape)
    elif kind == "noise":
        mapping = Samples.noise(bank.source.shape)
    return mapping, held_out


def measure(bank: Bank, row: Row) -> dict[str, object]:
    """Run one row."""
    mapping, held_out = sample_set(bank, row.samples)
    began = time.perf_counter()
    config = replace(row.config, precision="auto")
    maps = list(agnosco.map_classes(bank.source, bank.classes, mapping, config, seeds=row.seeds))
    seconds = (time.perf_counter() - began) / len(maps)
    pictures = torch.stack([(0.5 + row.sign * m.nu).clamp(0, 1) for m in maps])
    labels = [m.label for m in maps]
    before = predictions(bank.source, held_out)
    nudges = [targeted_success_rate(bank.source, -row.sign * m.nu, m.label, held_out, before=before) for m in maps]
    return {
        "group": row.group,
        "config": config_to_json(replace(config, precision=resolve_precision("auto", bank.source.device))),
        "samples": row.samples,
        "seeds": len(row.seeds),
        "passes": row.config.passes,
        "seconds_per_map": round(seconds, 2),
        "targeted_success_rate": statistics.fmean(nudges),
        "own": asdict(score(bank.source, pictures, labels)),
        "others": {name: asdict(score(judge, pictures, labels)) for name, judge in bank.judges.items()},
    }


def about(what: str) -> dict[str, object]:
    """What a results file says of itself: what was measured, on what, with what, and when."""
    hardware = f"{os.cpu_count()} x {platform.machine()} CPU cores, {torch.get_num_threads()} threads"
    return {
        "bank": what,
        "hardware": hardware if DEVICE == "cpu" else torch.cuda.get_device_name(DEVICE),
        "versions": {"agnosco": agnosco.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "date": date.today().isoformat(),
    }


def run(bank_name: str, only: str, again: bool) -> None:
    """Measure the rows that are missing, writing after each."""
    path = RESULTS / f"ablation-{bank_name}.json"
    done = json.loads(path.read_text()) if path.exists() and not again else {"rows": {}}
    bank = BANKS[bank_name]()
    done["about"] = about(inspect.cleandoc(BANKS[bank_name].__doc__ or ""))
    for row in choice_rows() if bank_name.startswith("development") else rows(bank.base):
        key = f"{row.group}: {row.name}"
        if only not in key or (key in done["rows"] and _same(done["rows"][key]["config"], row.config)):
            continue
        result = measure(bank, row)
        if path.exists():  # another process may have measured other rows meanwhile
            done["rows"] |= json.loads(path.read_text())["rows"] if not again else {}
        done["rows"][key] = result
        path.write_text(json.dumps(done, indent=1) + "\n")
        print(line(row.name, done["rows"][key]), flush=True)


def _same(made: dict, config: Config) -> bool:
    """Whether a row was made with these settings, in whatever precision."""
    return replace(config_from_json(made), precision=config.precision) == config


COLUMNS = ("row", "passes", "own p", "nudged", "other networks: M_score", "top-1 of 10", "top-1 of all", "s/map")


def line(name: str, result: dict) -> str:
    """A result as a line of a Markdown table; the figures of other networks are means, the least in brackets."""
    others = result["others"].values()

    def over(key: str) -> str:
        values = [judge[key] for judge in others]
        return f"{statistics.fmean(values):.2f} ({min(values):.2f})"

    cells = (
        name, f"{result['passes']:,}", f"{result['own']['probability']:.2f}", f"{result['targeted_success_rate']:.2f}",
        over("m_score"), over("top1_of_concepts"), over("top1"), f"{result['seconds_per_map']:.1f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def tables() -> str:
    """All results as Markdown."""
    parts = []
    for bank_name in BANKS:
        path = RESULTS / f"ablation-{bank_name}.json"
        if not path.exists():
            continue
        results = json.loads(path.read_text())
        parts.append(f"### {results['about']['bank']}\n\n{made_on(results)}.")
        for group in dict.fromkeys(result["group"] for result in results["rows"].values()):
            body = [
                line(key.removeprefix(f"{group}: "), result)
                for key, result in results["rows"].items()
                if result["group"] == group
            ]
            head = ["| " + " | ".join((group, *COLUMNS[1:])) + " |", "|---" * len(COLUMNS) + "|"]
            parts.append("\n".join(head + body))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", nargs="?", choices=BANKS)
    parser.add_argument("--only", default="")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.bank:
        run(options.bank, options.only, options.again)
    if options.tables:
        put("docs/paper.md", "ablation", tables())
    if not (options.bank or options.tables):
        parser.print_usage(sys.stderr)


if __name__ == "__main__":
    main()
