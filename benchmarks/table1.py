"""The paper's Table 1 on any set of networks: do they recognize the classes in each other's maps?

    python benchmarks/table1.py                          VGG-16, ResNet-50, DenseNet-121, torchvision's own weights
    python benchmarks/table1.py --family imagenet        the four ImageNet networks of the assets, 30 random classes
    python benchmarks/table1.py --family cifar           CIFAR's of the assets (two transformers), ten classes
    python benchmarks/table1.py --sources resnet18 ...   only these sources
    python benchmarks/table1.py --preset paper --seeds 10 --samples IMAGENET   the paper's own experiment
    python benchmarks/table1.py --tables                 write the tables into docs/evidence.md

Two more ImageNet networks of the assets, of a family that is never a source, are judges only. Intervals are over
classes and seeds. Every source has a run folder in build/table1, with its pictures and its manifest. Maps that exist
already are not made again, so that the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from common import (
    ASSETS,
    IMAGENET_NETWORKS,
    RESULTS,
    ROOT,
    TABLE_CLASSES,
    add_row,
    answers,
    argument_parser,
    cifar_networks,
    fill,
    imagenet_network,
    interval_over_classes,
    keep_manifest,
    markdown,
    measured_on,
    mobilenet_v1,
    photograph_classes,
    read_results,
    write_results,
)

import agnosco
from agnosco import Classifier, Config, Samples
from agnosco.evaluate.transfer import matched, score
from agnosco.io.records import to_json
from agnosco.method.score import probabilities_of
from agnosco.runs.jobs import map_runs
from agnosco.runs.run import Run
from agnosco.runs.sheet import write_contact_sheet

Networks = dict[str, Callable[[], Classifier]]

FOLDERS = {"cifar": ASSETS / "cifar10-test", "imagenet": ASSETS / "imagenet-samples"}


def networks(family: str, size: int) -> Networks:
    """The networks of a family by name; each is loaded when it is called."""
    if family == "cifar":
        return {name: lambda network=network: network for name, network in cifar_networks().items()}
    if family == "imagenet":
        return {name: lambda name=name: imagenet_network(name, size) for name in IMAGENET_NETWORKS}
    names = ("vgg16", "resnet50", "densenet121")
    return {name: lambda name=name: agnosco.load(f"torchvision:{name}", size=size) for name in names}


def judges(family: str, size: int) -> Networks:
    """The networks that judge a family's pictures: all of its own, and two MobileNetV1 for ImageNet's."""
    others = ("050", "025") if family == "imagenet" else ()
    return networks(family, size) | {f"mobilenet_v1_{w}": lambda w=w: mobilenet_v1(w) for w in others}


def samples(family: str, folder: str | None, classifier: Classifier) -> Samples:
    """The images of a folder, or those of a family of networks."""
    if folder is None and family not in FOLDERS:
        return Samples.leaves(classifier.shape)
    return Samples.from_folder(folder or FOLDERS[family], classifier.shape)


def photograph_answers(family: str, classifier: Classifier) -> dict[str, float] | None:
    """Top-1 and mean probability of the class, of all classes, on a family's photographs: the ceiling of pictures."""
    if family not in FOLDERS:
        return None
    probabilities = probabilities_of(classifier, samples(family, None, classifier))
    correct: list[bool] = []
    own_probability: list[float] = []
    for own, row in zip(photograph_classes(classifier), probabilities, strict=True):
        if own is not None:
            correct.append(int(row.argmax()) == own)
            own_probability.append(row[own].item())
    return {"top1": fmean(correct), "probability": fmean(own_probability)}


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
    classes = range(10) if family == "cifar" else TABLE_CLASSES[: options.classes]
    path = RESULTS / f"table1-{family}-{options.preset}-{size}px.json"
    loaders = judges(family, size)
    stored = {"sources": {}} | read_results(path, {})
    if "photographs" not in stored:
        stored["photographs"] = {name: photograph_answers(family, load()) for name, load in loaders.items()}
        write_results(path, stored)
    for name in options.sources or networks(family, size):
        source = loaders[name]()
        images = samples(family, options.samples, source)
        folder = f"{family}-{options.preset}-{size}px-{name}"
        run = complete_run(folder, source, images, config, classes, options.seeds)
        targets = {other: judgement(run, load()) for other, load in loaders.items()}
        row = {
            "passes": config.passes, "targets": targets, "labels": [entry.index for entry in run.entries],
            "names": [entry.name for entry in run.entries],
            "targeted_success_rates": [entry.targeted_success_rate for entry in run.entries],
        }  # fmt: skip
        title = f"{family} networks at {size} px, preset {options.preset}"
        print(table(add_row(path, title, name, row, part="sources")), flush=True)


def judgement(run: Run, judge: Classifier) -> dict[str, Any]:
    """What a network says of a run, and of each of its pictures."""
    stored = to_json(score(run, judge))
    pictures = torch.stack([concept.pixels for concept in run.maps()])
    return stored | {"answers": answers(judge, pictures, matched(run, judge))}


def cell(judgement: dict[str, Any], labels: Sequence[int]) -> str:
    """M_score / top-1 of all classes / mean probability of the class, the last two with their intervals."""
    parts = [f"{judgement['m_score']:.3f}" if "m_score" in judgement else "-"]
    for values in (judgement["answers"]["top1"], judgement["answers"]["p"]):
        low, high = interval_over_classes(values, labels)
        parts.append(f"{fmean(values):.2f} ({low:.2f}-{high:.2f})")
    return " / ".join(parts)


def cells(name: str, result: dict[str, Any]) -> list[str]:
    """A source's row of the table: its targeted success rate, and what every network says of its pictures."""
    rates, labels = result["targeted_success_rates"], result["labels"]
    low, high = interval_over_classes(rates, labels)
    judged = ["itself" if target == name else cell(said, labels) for target, said in result["targets"].items()]
    return [f"{fmean(rates):.2f} ({low:.2f}-{high:.2f}), least {min(rates):.2f}", *judged]


def own_best(result: dict[str, Any]) -> dict[str, Any]:
    """A source's result with one picture of each class: that of the greatest targeted success rate.

    The source itself chooses; M_score, which is of all pictures together, is left out.
    """
    rates, labels = result["targeted_success_rates"], result["labels"]
    chosen = [
        max((i for i, each in enumerate(labels) if each == label), key=rates.__getitem__) for label in set(labels)
    ]

    def of_chosen(values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in chosen]

    targets = {
        target: {"answers": {key: of_chosen(said["answers"][key]) for key in ("top1", "p")}}
        for target, said in result["targets"].items()
    }
    return {"labels": of_chosen(labels), "targeted_success_rates": of_chosen(rates), "targets": targets}


def table(results: dict[str, Any]) -> str:
    """A family as a Markdown table."""
    sources = results["sources"]
    names = list(next(iter(sources.values()))["targets"])
    rows = []
    for name, result in sources.items():
        rows.append([f"{name} ({len(result['labels'])} pictures)", *cells(name, result)])
        if len(set(result["labels"])) < len(result["labels"]):
            rows.append(
                [f"{name}, of each class's seeds the one with the greatest rate", *cells(name, own_best(result))]
            )
    known = results["photographs"]
    photographs = (f"- / {known[n]['top1']:.2f} / {known[n]['probability']:.2f}" if known[n] else "-" for n in names)
    rows.append(["photographs", "-", *photographs])
    return "\n".join([markdown(["source", "targeted success rate", *names], rows), "", *hardest(sources)])


def hardest(sources: dict[str, Any]) -> list[str]:
    """One line for each source: the classes whose pictures the other networks recognise less than half of the time."""
    lines = []
    for name, result in sources.items():
        others = [target["answers"]["top1"] for other, target in result["targets"].items() if other != name]
        shares: dict[str, list[float]] = {}
        for class_name, *right in zip(result["names"], *others, strict=True):
            shares.setdefault(class_name, []).append(fmean(right))
        means = {class_name: fmean(right) for class_name, right in shares.items()}
        below = [
            f"{known} ({means[known]:.2f})" for known in sorted(means, key=means.__getitem__) if means[known] < 0.5
        ]
        lines.append(f"- Recognised by less than half of the others, {name}: {', '.join(below) or 'none'}.")
    return lines


def tables() -> str:
    """All results as Markdown."""
    parts = []
    for path in sorted(RESULTS.glob("table1-*.json")):
        results = read_results(path)
        if not results["sources"]:
            continue
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
    parser.add_argument("--classes", type=int, default=30, help="how many of ImageNet's random classes, at most 40")
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
