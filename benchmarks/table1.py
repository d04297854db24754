"""The paper's Table 1 on any set of networks: do they recognize the classes in each other's maps?

    python benchmarks/table1.py                          VGG-16, ResNet-50, DenseNet-121, torchvision's own weights
    python benchmarks/table1.py --family imagenet        the four ImageNet networks of the assets, at --size
    python benchmarks/table1.py --family cifar           the CIFAR ResNets of the assets, ten classes
    python benchmarks/table1.py --sources resnet18 ...   only these sources
    python benchmarks/table1.py --preset paper --seeds 10 --samples IMAGENET   the paper's own experiment
    python benchmarks/table1.py --tables                 write the tables into docs/evidence.md

Every source has a run folder in build/table1, with its pictures and its manifest. Maps that exist already are not made
again, so that the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from common import (
    ASSETS,
    IMAGENET,
    IMAGENET_NETWORKS,
    RESULTS,
    ROOT,
    TRIAL_CLASSES,
    add_row,
    argument_parser,
    cifar_network,
    fill,
    imagenet_network,
    keep_manifest,
    markdown,
    measured_on,
    read_results,
)

import agnosco
from agnosco import AgnoscoError, Classifier, Config, Samples
from agnosco.evaluate.transfer import score
from agnosco.io.records import to_json
from agnosco.method.score import predictions
from agnosco.runs.jobs import map_runs
from agnosco.runs.run import Run
from agnosco.runs.sheet import write_contact_sheet

Networks = dict[str, Callable[[], Classifier]]

FOLDERS = {"cifar": ASSETS / "cifar10-test", "imagenet": ASSETS / "imagenet-samples"}


def networks(family: str, size: int) -> Networks:
    """The networks of a family by name; each is loaded when it is called."""
    if family == "cifar":
        return {
            "resnet20": lambda: cifar_network("CifarResNet(20)", "resnet20", **IMAGENET),
            "resnet56": lambda: cifar_network("CifarResNet(56)", "resnet56", **IMAGENET),
        }
    if family == "imagenet":
        return {name: lambda name=name: imagenet_network(name, size) for name in IMAGENET_NETWORKS}
    names = ("vgg16", "resnet50", "densenet121")
    return {name: lambda name=name: agnosco.load(f"torchvision:{name}", size=size) for name in names}


def samples(family: str, folder: str | None, classifier: Classifier) -> Samples:
    """The images of a folder, or those of a family of networks."""
    if folder is None and family not in FOLDERS:
        return Samples.leaves(classifier.shape)
    return Samples.from_folder(folder or FOLDERS[family], classifier.shape)


def photograph_accuracy(family: str, classifier: Classifier) -> float | None:
    """Top-1 accuracy on the photographs of a family: what the figures of maps can be compared with."""
    if family not in FOLDERS:
        return None
    names = sorted(path.relative_to(FOLDERS[family]) for path in FOLDERS[family].rglob("*.*"))  # as Samples orders them
    predicted = predictions(classifier, samples(family, None, classifier)).tolist()
    correct: list[bool] = []
    for name, label in zip(names, predicted, strict=True):
        own = name.parts[0] if len(name.parts) > 1 else name.stem.split("_", 1)[1].replace("_", " ")
        with contextlib.suppress(AgnoscoError):  # ImageNet has two classes of some names
            correct.append(classifier.index(own) == label)
    return fmean(correct)


def complete_run(
    name: str, source: Classifier, images: Samples, config: Config, classes: Sequence[int], seeds: int
) -> Run:
    """The run of a source; maps that are missing are made, and its manifest is copied to the results."""
    run = Run.create(ROOT / "build" / "table1" / name, classifier=source, samples=images, config=config)
    finished = {(entry.index, entry.seed) for entry in run.entries}
    for seed in range(seeds):
        missing = [index for index in classes if (index, seed) not in finished]
        for made in map_runs(run, source, images, missing, seeds=[seed]) if missing else ():
            print(f"{name}: {made.entry.name}, seed {seed}, {made.seconds:.0f} s", flush=True)
    write_contact_sheet(run)
    keep_manifest(run.path)
    return run


def measure(options: argparse.Namespace) -> None:
    """All sources of a family, each judged by all of its networks."""
    family, config = options.family, agnosco.preset(options.preset)
    size = 32 if family == "cifar" else options.size
    classes = range(10) if family == "cifar" else TRIAL_CLASSES
    path = RESULTS / f"table1-{family}-{options.preset}-{size}px.json"
    loaders = networks(family, size)
    accuracies = {name: photograph_accuracy(family, load()) for name, load in loaders.items()}
    for name in options.sources or loaders:
        source = loaders[name]()
        images = samples(family, options.samples, source)
        folder = f"{family}-{options.preset}-{size}px-{name}"
        run = complete_run(folder, source, images, config, classes, options.seeds)
        targets = {other: to_json(score(run, load(), images=images)) for other, load in loaders.items()}
        row = {"passes": config.passes, "targets": targets}
        title = f"{family} networks at {size} px, preset {options.preset}"
        print(table(add_row(path, title, name, row, part="sources", photographs=accuracies)), flush=True)


def cell(judgement: dict[str, Any]) -> str:
    """M_score / top-1 of 10 / top-1 of all / targeted success rate."""
    figures = ("m_score", "top1_of_concepts", "top1", "targeted_success_rate")
    return " / ".join(f"{judgement[figure]:.2f}" for figure in figures)


def table(results: dict[str, Any]) -> str:
    """A family as a Markdown table; means are over the targets that had no part in making the maps."""
    sources = results["sources"]
    names = list(next(iter(sources.values()))["targets"])
    rows = []
    for name, result in sources.items():
        others = [target for target in result["targets"].values() if not target["source"]]
        mean = f"{fmean(target['m_score'] for target in others):.3f} / {fmean(target['top1'] for target in others):.2f}"
        maps = next(iter(result["targets"].values()))["maps"]
        rows.append([f"{name} ({maps} maps)", *(cell(result["targets"][target]) for target in names), mean])
    known = results.get("photographs", {})
    rows.append(["photographs", *(f"- / - / {known[name]:.2f} / -" if known.get(name) else "-" for name in names), ""])
    return markdown(["source", *names, "others: mean M_score / top-1 of all"], rows)


def tables() -> str:
    """All results as Markdown."""
    parts = []
    for path in sorted(RESULTS.glob("table1-*.json")):
        results = read_results(path)
        passes = next(iter(results["sources"].values()))["passes"]
        parts.append(
            f"**{results['about']['title']}**, {passes:,} passes per map; {measured_on(results)}.\n\n{table(results)}"
        )
    return "\n\n".join(parts)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--family", choices=("torchvision", "imagenet", "cifar"), default="torchvision")
    parser.add_argument("--sources", nargs="*", help="names of networks (default: all of the family)")
    parser.add_argument("--preset", choices=agnosco.PRESETS, default="quick")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--samples", help="a folder of images")
    options = parser.parse_args()
    if options.tables:
        fill("docs/evidence.md", "table1", tables())
    else:
        measure(options)


if __name__ == "__main__":
    main()
