"""Every ambiguity of the paper and every setting, one changed at a time, on the real networks of the assets.

    python benchmarks/ablation.py SETUP            measure the rows that are missing (--help lists the setups)
    python benchmarks/ablation.py SETUP --only X   only rows whose name contains X
    python benchmarks/ablation.py SETUP --again    measure all rows again
    python benchmarks/ablation.py --tables         write the tables into docs/paper.md

For each row, the source network makes maps of ten classes. Other networks then judge the raw pictures, and the
perturbations are tried on held-out images. Results go to benchmarks/results/ablation-SETUP.json after each row, so that
the same command continues where it was stopped. Rows there with a ``commit`` are of settings that have been removed
since: that commit can measure them again.
"""

from __future__ import annotations

import inspect
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from common import (
    DEVELOPMENT_CLASSES,
    IMAGENET,
    IMAGENET_NETWORKS,
    RESULTS,
    TRIAL_CLASSES,
    add_row,
    argument_parser,
    cifar_network,
    fill,
    imagenet_network,
    judged,
    markdown,
    measured_on,
    photographs,
    read_results,
    same_settings,
)

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
from agnosco.method.config import config_to_json
from agnosco.method.prepare import resolve_precision

TRANSFER_SEEDS = (0, 1)


@dataclass(frozen=True)
class Row:
    """One row of the tables: its settings, samples and seeds."""

    group: str
    name: str
    config: Config
    samples: str = "photographs"
    sign: int = -1  # the picture is clip(0.5 + sign * ν)
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Setup:
    """A source network, the networks that judge its maps, classes and images."""

    source: Classifier
    judges: dict[str, Classifier]
    classes: tuple[int, ...]
    images: Samples
    base: MapperConfig  # the paper's settings, with a batch and a number of steps that a CPU can afford


def imagenet() -> Setup:
    """ResNet-18 at 112 px, judged by three others; ten classes, 800 photographs.

    Maps are made in bfloat16 where the CPU supports it; scores are computed in float32.
    """
    return _imagenet("resnet18")


def resnet50() -> Setup:
    """ResNet-50 at 112 px, judged by three others; ten classes, 800 photographs.

    For rows that concern what other networks recognize; choose them with ``--only``. Precision as above.
    """
    return _imagenet("resnet50")


def _imagenet(name: str) -> Setup:
    judges = {other: imagenet_network(other) for other in IMAGENET_NETWORKS if other != name}
    source = imagenet_network(name)
    return Setup(source, judges, TRIAL_CLASSES, photographs(source), base=MapperConfig(batch=8, steps=20))


def cifar() -> Setup:
    """The CIFAR ResNet-20 at 32 px, judged by two others; ten classes, 2,000 photographs."""
    judges = {
        "resnet56": cifar_network("CifarResNet(56)", "resnet56", **IMAGENET),
        "wrn16_1": cifar_network("WideResNet(16,1)", "wrn16_1-nad-erased"),
    }
    source = cifar_network("CifarResNet(20)", "resnet20", **IMAGENET)
    return Setup(source, judges, tuple(range(10)), photographs(source), base=MapperConfig(batch=16, steps=80))


def development() -> Setup:
    """ResNet-18 at 112 px, judged by three others; twelve random classes, to choose settings on; 800 photographs.

    Maps are made in bfloat16 where the CPU supports it; scores are computed in float32.
    """
    return replace(_imagenet("resnet18"), classes=DEVELOPMENT_CLASSES)


def development50() -> Setup:
    """ResNet-50 at 112 px, judged by three others; six of the random classes; 800 photographs.

    Do the settings that were chosen on ResNet-18 suit another source? Precision as above.
    """
    return replace(_imagenet("resnet50"), classes=DEVELOPMENT_CLASSES[:6])


SETUPS: dict[str, Callable[[], Setup]] = {
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
"""``quick`` before its loss and contrasts were chosen. The rows *dials* change one setting of it at a time."""

LOG_ODDS = replace(CROSS_ENTROPY, loss="log-odds", contrast=(0.5, 1.0), ball=L2(70.0))
"""``quick`` before its loss and number of passes were chosen at native size (benchmarks/frontier.py)."""


def rows(base: MapperConfig) -> Iterator[Row]:
    """All rows; the others of a group change one setting of its first row."""
    yield Row("presets", "draft", agnosco.preset("draft"), seeds=TRANSFER_SEEDS)  # the other presets: docs/evidence.md
    yield from quick_rows()
    yield from dial_rows()
    yield from paper_rows(base)


def choice_rows() -> Iterator[Row]:
    """Candidates for the loss, contrasts and radius of :data:`LOG_ODDS`, at half of its passes."""
    half = agnosco.preset("quick")
    before = replace(CROSS_ENTROPY, steps=CROSS_ENTROPY.steps // 2)

    def mapped(**changes: Any) -> Config:
        return replace(half, mapper=replace(before, **changes))

    yield Row("choice", "cross-entropy, full contrast, radius 60", mapped())
    yield Row("choice", "contrasts 0-1", mapped(contrast=(0.0, 1.0)))
    yield Row("choice", "crops with noise of 0.06", mapped(transforms=Crops((0.3, 1.0), noise=0.06)))
    yield Row("choice", "logit", mapped(loss="logit"))
    yield Row("choice", "logit, contrasts 0-1", mapped(loss="logit", contrast=(0.0, 1.0)))
    yield Row("choice", "log-odds", mapped(loss="log-odds"))
    yield Row("choice", "log-odds, contrasts 0-1", mapped(loss="log-odds", contrast=(0.0, 1.0)))
    for low, radius in ((0.5, 70.0), (0.25, 80.0)):
        changes = {"contrast": (low, 1.0), "ball": L2(radius)}
        yield Row("choice", f"log-odds, contrasts {low:g}-1, radius {radius:g}", mapped(loss="log-odds", **changes))


def paper_rows(base: MapperConfig) -> Iterator[Row]:
    """The ways to read the paper, in pixels as there."""

    def mapped(**changes: Any) -> Config:
        return Config(replace(base, **changes), refine=None, cycles=1)

    yield Row("paper", f"paper's settings, b {base.batch}, K {base.steps}", mapped())
    yield Row("paper", "picture of +nu", mapped(), sign=1)
    yield Row("paper", "step unit", mapped(step="unit"))
    yield Row("paper", "step 0.05 of the radius", mapped(step=0.05))
    yield Row("paper", "steps falling to 0", mapped(decay=1.0))
    yield Row("paper", "clip masked", mapped(clip="masked"))
    yield Row("paper", "loss log-odds", mapped(loss="log-odds"))
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
    """λ, Adam's learning rate and the number of cycles; refinement takes half as many steps as Algorithm 1."""
    half = base.steps // 2
    for weight in (0.0, 10.0, 50.0, 250.0):
        yield Row("refinement", f"lambda {weight:g}", Config(base, RefineConfig(half, weight), cycles=1))
    for rate in (0.001, 0.1):
        yield Row("refinement", f"rate {rate:g}", Config(base, RefineConfig(half, rate=rate), cycles=1))
    two = Config(replace(base, steps=half), RefineConfig(half // 2), cycles=2)
    yield Row("refinement", "2 cycles of half the length", two)


def quick_rows() -> Iterator[Row]:
    """The settings that matter most in :data:`LOG_ODDS`, put back to the paper's, and its number of passes."""
    quick = replace(agnosco.preset("quick"), mapper=LOG_ODDS)
    mapper = _quarter(LOG_ODDS)

    def mapped(**changes: Any) -> Config:
        return replace(quick, mapper=replace(mapper, **changes))

    yield Row("quick", "at a quarter of its passes", mapped())
    for share in (16, 8, 2):
        yield Row("quick", f"at 1/{share} of its passes", mapped(steps=quick.mapper.steps // share))
    yield Row("quick", "cross-entropy", mapped(loss="cross-entropy"))
    yield Row("quick", "full contrast", mapped(contrast=(1.0, 1.0)))
    yield Row("quick", "cross-entropy, full contrast", mapped(loss="cross-entropy", contrast=(1.0, 1.0)))
    yield Row("quick", "cross-entropy, full contrast, radius 60", replace(quick, mapper=_quarter(CROSS_ENTROPY)))
    yield Row("quick", "logit", mapped(loss="logit"))
    yield Row("quick", "no crops", mapped(transforms=Identity()))
    yield Row("quick", "spectral parameterization", mapped(parameterization=Spectral()))
    yield Row("quick", "pixel parameterization", mapped(parameterization=Pixel()))
    yield Row("quick", "samples: leaves", mapped(), samples="leaves")


def _quarter(mapper: MapperConfig) -> MapperConfig:
    return replace(mapper, steps=mapper.steps // 4)


def dial_rows() -> Iterator[Row]:
    """Every setting of :data:`CROSS_ENTROPY` changed, most to the paper's, at a quarter of its passes."""
    mapper = _quarter(CROSS_ENTROPY)

    def mapped(**changes: Any) -> Config:
        return Config(replace(mapper, **changes), refine=None, cycles=1, precision="auto")

    yield Row("dials", "cross-entropy, radius 60", mapped())
    for name, parameterization in (("pixel", Pixel()), ("spectral", Spectral()), ("data", mapper.parameterization)):
        for seen, transforms in (("identity", Identity()), ("crops", mapper.transforms)):
            if (name, seen) != ("data", "crops"):
                yield Row("dials", f"{name}, {seen}", mapped(parameterization=parameterization, transforms=transforms))
    for factor in (0.5, 1.5):
        yield Row("dials", f"radius x {factor:.2g}", mapped(ball=L2(60.0 * factor)))
    yield Row("dials", "radius auto", mapped(ball=AutoL2()))
    yield Row("dials", "data, exponent 1", mapped(parameterization=Data(exponent=1.0)))
    yield Row("dials", "clip straight-through", mapped(clip="straight-through"))
    yield Row("dials", "contrasts 0-1", mapped(contrast=(0.0, 1.0)))
    yield Row("dials", "steps of constant length", mapped(step=0.05, decay=0.0))
    yield Row("dials", "crops of 10-100 %", mapped(transforms=Crops((0.1, 1.0))))
    yield Row("dials", "crops of 30-170 %", mapped(transforms=Crops((0.3, 1.7))))
    yield Row("dials", "crops of 30-170 %, radius x 1.33", mapped(transforms=Crops((0.3, 1.7)), ball=L2(80.0)))
    yield Row("dials", "crops with noise of 0.03", mapped(transforms=Crops((0.3, 1.0), noise=0.03)))
    yield Row("dials", "b / 2, 2 K", mapped(batch=mapper.batch // 2, steps=mapper.steps * 2))
    yield Row("dials", "2 b, K / 2", mapped(batch=mapper.batch * 2, steps=mapper.steps // 2))
    yield Row("dials", "direction lookahead", mapped(direction="lookahead"))
    yield Row("dials", "refined", replace(mapped(), refine=RefineConfig(steps=mapper.steps // 2)))
    yield Row("dials", "samples: leaves", mapped(), samples="leaves")
    yield Row("dials", "samples: noise", mapped(), samples="noise")


def split_samples(setup: Setup, kind: str) -> tuple[Samples, Samples]:
    """Samples of this kind to make maps with, and held-out photographs to judge them by."""
    mapping, held_out = setup.images.split()
    if kind == "leaves":
        mapping = Samples.leaves(setup.source.shape)
    elif kind == "noise":
        mapping = Samples.noise(setup.source.shape)
    return mapping, held_out


def measure(setup: Setup, row: Row) -> dict[str, Any]:
    """Measure one row."""
    mapping, held_out = split_samples(setup, row.samples)
    start = time.perf_counter()
    config = replace(row.config, precision="auto")
    maps = list(agnosco.map_classes(setup.source, setup.classes, mapping, config, seeds=row.seeds))
    seconds = (time.perf_counter() - start) / len(maps)
    pictures = torch.stack([(0.5 + row.sign * concept.nu).clamp(0, 1) for concept in maps])
    nus = [-row.sign * concept.nu for concept in maps]
    labels = [concept.label for concept in maps]
    return {
        "group": row.group,
        "config": config_to_json(replace(config, precision=resolve_precision("auto", setup.source.device))),
        "samples": row.samples,
        "seeds": len(row.seeds),
        "passes": row.config.passes,
        "seconds_per_map": round(seconds, 2),
        **judged(setup.source, setup.judges, pictures, nus, labels, held_out),
    }


def run(name: str, only: str, again: bool) -> None:
    """Measure the rows of a setup that are missing, or all; the file is written after each."""
    path = RESULTS / f"ablation-{name}.json"
    stored = read_results(path, {"rows": {}})["rows"]
    setup, title = SETUPS[name](), inspect.cleandoc(SETUPS[name].__doc__ or "")
    for row in choice_rows() if name.startswith("development") else rows(setup.base):
        key = f"{row.group}: {row.name}"
        if only not in key or (not again and key in stored and same_settings(stored[key]["config"], row.config)):
            continue
        result = measure(setup, row)
        add_row(path, title, key, result)
        print(*cells(row.name, result), sep=" | ", flush=True)


COLUMNS = (
    "passes", "own p", "targeted success rate", "other networks: M_score", "top-1 of 10", "top-1 of all", "s/map",
)  # fmt: skip


def cells(name: str, result: dict[str, Any]) -> list[str]:
    """A row of a table; the figures of other networks are means, with the least in parentheses."""

    def over_judges(figure: str) -> str:
        values = [judge[figure] for judge in result["others"].values()]
        return f"{statistics.fmean(values):.2f} ({min(values):.2f})"

    removed = f" (removed; measured at {result['commit']})" if "commit" in result else ""
    return [
        name + removed, f"{result['passes']:,}", f"{result['own']['probability']:.2f}",
        f"{result['targeted_success_rate']:.2f}",
        over_judges("m_score"), over_judges("top1_of_concepts"), over_judges("top1"),
        f"{result['seconds_per_map']:.1f}",
    ]  # fmt: skip


def tables() -> str:
    """All results as Markdown."""
    parts = []
    for path in (RESULTS / f"ablation-{name}.json" for name in SETUPS):
        if not path.exists():
            continue
        results = read_results(path)
        parts.append(f"### {results['about']['title']}\n\n{measured_on(results)}.")
        for group in dict.fromkeys(result["group"] for result in results["rows"].values()):
            body = [
                cells(key.removeprefix(f"{group}: "), result)
                for key, result in results["rows"].items()
                if result["group"] == group
            ]
            parts.append(markdown((group, *COLUMNS), body))
    return "\n\n".join(parts)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("setup", nargs="?", choices=SETUPS)
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--again", action="store_true", help="measure rows again that have been measured")
    options = parser.parse_args()
    if options.setup:
        run(options.setup, options.only, options.again)
    if options.tables:
        fill("docs/paper.md", "ablation", tables())
    if not (options.setup or options.tables):
        parser.print_usage(sys.stderr)


if __name__ == "__main__":
    main()
