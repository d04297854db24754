"""The paper's Table 1 on any set of networks: do they name the classes in each other's maps?

    python benchmarks/table1.py                          VGG-16, ResNet-50, DenseNet-121, torchvision's own weights
    python benchmarks/table1.py --bank imagenet          the four real ImageNet networks of the assets, at --size
    python benchmarks/table1.py --bank cifar             the CIFAR ResNets of the assets, ten classes
    python benchmarks/table1.py --sources resnet18 ...   only these sources
    python benchmarks/table1.py --preset paper --seeds 10 --samples IMAGENET   the paper's own numbers of everything
    python benchmarks/table1.py --tables                 write the tables into docs/evidence.md

Every source has a run folder in build/table1, with its pictures and its manifest; maps that are there already are not
made again, so that a run that was stopped goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Sequence
from statistics import fmean

from ablation import ASSETS, IMAGENET, RESULTS, ROOT, TRIAL_CLASSES, about, cifar_network, imagenet_network
from pages import keep_manifest, made_on, markdown, put

import agnosco
from agnosco import AgnoscoError, Classifier, Config, Samples
from agnosco.evaluate.transfer import Judgement, judge
from agnosco.method.score import predictions
from agnosco.runs.jobs import run_maps
from agnosco.runs.run import Run

Networks = dict[str, Callable[[], Classifier]]


def networks(bank: str, size: int) -> Networks:
    """The networks of a bank, each loaded when it is called."""
    if bank == "cifar":
        return {
            "resnet20": lambda: cifar_network("CifarResNet(20)", "resnet20", **IMAGENET),
            "resnet56": lambda: cifar_network("CifarResNet(56)", "resnet56", **IMAGENET),
        }
    if bank == "imagenet":
        names = ("resnet50", "resnet18", "mobilenet_v2", "squeezenet1_1")
        return {name: lambda name=name: imagenet_network(name, size) for name in names}
    names = ("vgg16", "resnet50", "densenet121")
    return {name: lambda name=name: agnosco.load(f"torchvision:{name}", size=size) for name in names}


FOLDERS = {"cifar": ASSETS / "cifar10-test", "imagenet": ASSETS / "imagenet-samples"}


def samples(bank: str, folder: str | None, classifier: Classifier) -> Samples:
    """The images of a bank, or of a folder."""
    if folder is None and bank not in FOLDERS:
        return Samples.leaves(classifier.shape)
    return Samples.from_folder(folder or FOLDERS[bank], classifier.shape)


def photographs(bank: str, classifier: Classifier) -> float | None:
    """Share of a bank's photographs that a network gives their class: something to hold the maps against."""
    if bank not in FOLDERS:
        return None
    names = sorted(path.relative_to(FOLDERS[bank]) for path in FOLDERS[bank].rglob("*.*"))  # as Samples has them
    told = predictions(classifier, samples(bank, None, classifier)).tolist()
    right: list[bool] = []
    for name, found in zip(names, told, strict=True):
        own = name.parts[0] if len(name.parts) > 1 else name.stem.split("_", 1)[1].replace("_", " ")
        with contextlib.suppress(AgnoscoError):  # the Cardigan and the cardigan
            right.append(classifier.index(own) == found)
    return fmean(right)


def mapped(name: str, source: Classifier, images: Samples, config: Config, classes: Sequence[int], seeds: int) -> Run:
    """The run of a source; what it lacks is made."""
    run = Run.create(ROOT / "build" / "table1" / name, classifier=source, samples=images, config=config)
    have = {(entry.index, entry.seed) for entry in run.entries}
    for seed in range(seeds):
        lacking = [index for index in classes if (index, seed) not in have]
        for one in run_maps(run, source, images, lacking, seeds=[seed]) if lacking else ():
            print(f"{name}: {one.entry.name}, seed {seed}, {one.seconds:.0f} s", flush=True)
    run.write_contact_sheet()
    keep_manifest(run.path)
    return run


def measure(options: argparse.Namespace) -> None:
    """All sources of a bank, each judged by all of its networks."""
    bank, config = options.bank, agnosco.preset(options.preset)
    size = 32 if bank == "cifar" else options.size
    classes = range(10) if bank == "cifar" else TRIAL_CLASSES
    path = RESULTS / f"table1-{bank}-{options.preset}-{size}px.json"
    found = networks(bank, size)
    for name in options.sources or found:
        source = found[name]()
        images = samples(bank, options.samples, source)
        run = mapped(f"{bank}-{options.preset}-{size}px-{name}", source, images, config, classes, options.seeds)
        targets = {other: judge(run, load(), images=images) for other, load in found.items()}
        results = json.loads(path.read_text()) if path.exists() else {"sources": {}}  # others may work beside us
        results["about"] = about(f"{bank} networks at {size} px, preset {options.preset}")
        results["sources"][name] = {"passes": config.passes, "targets": targets}
        results["photographs"] = {other: photographs(bank, load()) for other, load in found.items()}
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(lines(results), flush=True)


def cell(one: Judgement) -> str:
    """M_score / top-1 of 10 / top-1 of all / nudge success."""
    figures = [one["m_score"], one["top1_of_concepts"], one["top1"], one["targeted_success_rate"]]
    return " / ".join(f"{figure:.2f}" for figure in figures)


def lines(results: dict) -> str:
    """The results of a bank as a Markdown table, with the means over targets that had no part in the maps."""
    sources = results["sources"]
    names = list(next(iter(sources.values()))["targets"])
    rows = []
    for name, result in sources.items():
        others = [one for one in result["targets"].values() if not one["source"]]
        mean = f"{fmean(one['m_score'] for one in others):.3f} / {fmean(one['top1'] for one in others):.2f}"
        maps = next(iter(result["targets"].values()))["maps"]
        rows.append([f"{name} ({maps} maps)", *(cell(result["targets"][target]) for target in names), mean])
    known = results.get("photographs", {})
    rows.append(["photographs", *(f"- / - / {known[name]:.2f} / -" if known.get(name) else "-" for name in names), ""])
    return markdown(["source", *names, "others: mean M_score / top-1 of all"], rows)


def tables() -> str:
    """All results as Markdown."""
    parts = []
    for path in sorted(RESULTS.glob("table1-*.json")):
        results = json.loads(path.read_text())
        passes = next(iter(results["sources"].values()))["passes"]
        parts.append(
            f"**{results['about']['bank']}**, {passes:,} passes a map; {made_on(results)}.\n\n{lines(results)}"
        )
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", choices=("torchvision", "imagenet", "cifar"), default="torchvision")
    parser.add_argument("--sources", nargs="*")
    parser.add_argument("--preset", choices=agnosco.PRESETS, default="quick")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--samples", help="a folder of images")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        put("docs/evidence.md", "table1", tables())
    else:
        measure(options)


if __name__ == "__main__":
    main()
