"""Helpers that the benchmarks share: the networks and images of the assets, files of results, tables in the docs."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import torch
import torchvision
from torch import Tensor

import agnosco
from agnosco import AgnoscoError, Classifier, Config, Samples
from agnosco.io.atomic import atomic_file
from agnosco.method.config import config_from_json
from agnosco.method.score import logits_of, predictions, score_of_logits, targeted_success_rate

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ASSETS = Path(os.environ.get("AGNOSCO_ASSETS", ROOT / "build" / "assets"))
ARCHITECTURES = Path(os.environ.get("AGNOSCO_ARCHITECTURES", ROOT.parent / "shared" / "tools" / "cifar_archs.py"))
RESULTS = Path(os.environ.get("AGNOSCO_RESULTS", ROOT / "benchmarks" / "results"))
MANIFESTS = ROOT / "benchmarks" / "results" / "manifests"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""What a new process gets: Python keeps its bytecode, as it does unless it is told not to."""

DEVICE = os.environ.get("AGNOSCO_DEVICE", "cpu")

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
IMAGENET_NETWORKS = ("resnet50", "resnet18", "mobilenet_v2", "squeezenet1_1")
"""Those with ImageNet weights among the assets."""

TRIAL_CLASSES = (219, 697, 255, 597, 442, 87, 112, 156, 296, 469)
"""The ten ImageNet classes of most figures."""

FRESH_CLASSES = tuple(random.Random("classes by which nothing was chosen").sample(range(1000), 10))
"""Ten classes that no setting was chosen on."""

DEVELOPMENT_CLASSES = tuple(
    label
    for label in random.Random("development").sample(range(1000), 60)
    if label not in (*FRESH_CLASSES, *TRIAL_CLASSES)
)[:12]
"""Twelve random classes, to choose settings on at 112 px."""


def random_classes(seed: str, count: int, *, without: Sequence[int] = ()) -> tuple[int, ...]:
    """ImageNet classes chosen at random with a published seed, other than those of all other tables and ``without``."""
    used = {*TRIAL_CLASSES, *FRESH_CLASSES, *DEVELOPMENT_CLASSES, *without}
    return tuple([label for label in random.Random(seed).sample(range(1000), 1000) if label not in used][:count])


CHOICE_CLASSES = random_classes("frontier, to choose settings on", 24)
"""Classes to choose settings on at the networks' native size."""

TABLE_CLASSES = random_classes("table 1 at native size", 40, without=CHOICE_CLASSES)
"""Classes of the tables at native size: nothing was chosen on them."""


# -- command line -----------------------------------------------------------------------------------


def argument_parser(doc: str | None, *, tables: bool = True) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of the script, with the option ``--tables`` if the script has tables."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if tables:
        parser.add_argument("--tables", action="store_true", help="write the tables into the docs; measure nothing")
    return parser


# -- networks and images of the assets --------------------------------------------------------------


def imagenet_network(name: str, size: int = 112) -> Classifier:
    """A torchvision network with the ImageNet weights of the assets, which were trained at 224 px."""
    weights = ASSETS / "models" / f"{name}-imagenet.safetensors"
    return agnosco.load(f"torchvision:{name}", weights=weights, size=size, device=DEVICE)


def cifar_networks() -> dict[str, Classifier]:
    """The clean CIFAR-10 networks of the assets: three residual ones, and two transformers."""
    mean = (0.4914, 0.4822, 0.4465)
    return {
        "resnet20": cifar_network("CifarResNet(20)", "resnet20", **IMAGENET),
        "resnet56": cifar_network("CifarResNet(56)", "resnet56", **IMAGENET),
        "wrn16_1": cifar_network("WideResNet(16,1)", "wrn16_1-nad-erased"),
        "cct": cifar_network("cct", "cct", "more_archs.py", mean=mean, std=(0.2470, 0.2435, 0.2616)),
        "vit": cifar_network("vit", "vit", "more_archs.py", mean=mean, std=(0.2023, 0.1994, 0.2010)),
    }


def mobilenet_v1(width: str) -> Classifier:
    """A MobileNetV1 of the assets, half (``"050"``) or a quarter as wide (``"025"``): a judge of another family."""
    weights = ASSETS / "models" / f"mobilenet_v1_{width}-imagenet.safetensors"
    spec = f"python:{ARCHITECTURES.with_name('more_archs.py')}:mobilenet_v1_{width}"
    size, half = {"050": 160, "025": 224}[width], (0.5, 0.5, 0.5)
    names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]  # in the order of ImageNet, as its own
    return agnosco.load(
        spec, weights=weights, size=size, mean=half, std=half, labels=names, trust_code=True, device=DEVICE
    )


def cifar_network(factory: str, name: str, file: str = "cifar_archs.py", /, **normalisation: Any) -> Classifier:
    """A CIFAR-10 network of the assets; without mean and std, it takes pixels as they are."""
    weights = ASSETS / "models" / f"{name}-cifar10.safetensors"
    spec = f"python:{ARCHITECTURES.with_name(file)}:{factory}"
    names = sorted(folder.name for folder in (ASSETS / "cifar10-test").iterdir())  # in the order of the classes
    return agnosco.load(spec, weights=weights, size=32, labels=names, trust_code=True, device=DEVICE, **normalisation)


def photographs(classifier: Classifier) -> Samples:
    """The photographs of the assets for a network: CIFAR-10's where its images are 32 px wide, ImageNet's elsewhere."""
    folder = "cifar10-test" if classifier.shape[1] == 32 else "imagenet-samples"
    return Samples.from_folder(ASSETS / folder, classifier.shape)


def photograph_classes(classifier: Classifier) -> list[int | None]:
    """The class of each of :func:`photographs`; None for ImageNet's few classes that share their name with another."""
    folder = ASSETS / ("cifar10-test" if classifier.shape[1] == 32 else "imagenet-samples")
    classes: list[int | None] = []
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*.*")):  # as Samples orders them
        name = path.parts[0] if len(path.parts) > 1 else path.stem.split("_", 1)[1].replace("_", " ")
        try:
            classes.append(classifier.index(name))
        except AgnoscoError:
            classes.append(None)
    return classes


# -- figures ----------------------------------------------------------------------------------------


def judged(
    source: Classifier,
    judges: Mapping[str, Classifier],
    pictures: Tensor,
    nus: Sequence[Tensor],
    labels: Sequence[int],
    held_out: Samples,
) -> dict[str, Any]:
    """What the source and other networks say of pictures, and how well their perturbations work on the source.

    Args:
        source: The network that the pictures were made with.
        judges: Other networks.
        pictures: ``(N, C, H, W)`` in [0, 1].
        nus: ν of each picture.
        labels: The class of each picture.
        held_out: Images to perturb.

    Returns:
        ``targeted_success_rate`` (mean over pictures), ``own`` (the source's scores), ``others`` (by network).
    """
    before = predictions(source, held_out)
    rates = [
        targeted_success_rate(source, nu, label, held_out, before=before) for nu, label in zip(nus, labels, strict=True)
    ]
    return {
        "targeted_success_rate": fmean(rates),
        "own": asdict(score_of_logits(logits_of(source, pictures), labels)),
        "others": {name: asdict(score_of_logits(logits_of(judge, pictures), labels)) for name, judge in judges.items()},
    }


def answers(judge: Classifier, pictures: Tensor, labels: Sequence[int]) -> dict[str, Any]:
    """What a network says of pictures: M_score (None of one class), top-1 of all classes and probability of each."""
    logits = logits_of(judge, pictures)
    targets = torch.tensor(labels)
    own = logits.softmax(1).gather(1, targets[:, None])[:, 0]
    return {
        "m_score": score_of_logits(logits, labels).m_score if len(set(labels)) > 1 else None,
        "top1": (logits.argmax(1) == targets).int().tolist(),
        "p": [round(value, 4) for value in own.tolist()],
    }


def in_short(said: Mapping[str, Any]) -> str:
    """What a network says of pictures, by :func:`answers`: M_score / top-1 of all classes / mean probability."""
    return f"{said['m_score']:.3f} / {fmean(said['top1']):.2f} / {fmean(said['p']):.2f}"


def interval_over_classes(
    values: Sequence[float], labels: Sequence[int], *, share: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """The bootstrap interval of the mean of values, one for each picture, over classes and their seeds.

    Whole classes are resampled with replacement, each with all of its seeds: the seeds of a class are more alike than
    pictures of two classes.
    """
    groups = [[v for v, other in zip(values, labels, strict=True) if other == label] for label in sorted(set(labels))]
    sums = torch.tensor([[sum(group), len(group)] for group in groups], dtype=torch.float64)
    drawn = torch.randint(len(groups), (resamples, len(groups)), generator=torch.Generator().manual_seed(0))
    totals = sums[drawn].sum(1)
    ends = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64)
    low, high = (totals[:, 0] / totals[:, 1]).quantile(ends).tolist()
    return low, high


def resident_megabytes() -> float:
    """Memory of this process that is in RAM."""
    return psutil.Process().memory_info().rss / 2**20


def tensors_alive() -> int:
    """Number of tensors that this process holds."""
    gc.collect()
    return sum(type(thing) is torch.Tensor for thing in gc.get_objects())


def same_settings(stored: dict[str, Any] | None, config: Config) -> bool:
    """Whether a stored result has these settings, in whatever precision."""
    return stored is not None and replace(config_from_json(stored), precision=config.precision) == config


# -- files of results -------------------------------------------------------------------------------


def about(title: str) -> dict[str, Any]:
    """The head of a file of results: what was measured, on which hardware, with which versions, and when."""
    hardware = f"{os.cpu_count()} x {platform.machine()} CPU cores, {torch.get_num_threads()} threads"
    return {
        "title": title,
        "hardware": hardware if DEVICE == "cpu" else torch.cuda.get_device_name(DEVICE),
        "versions": {"agnosco": agnosco.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "date": date.today().isoformat(),
    }


def read_results(path: Path, otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
    """A file of results; ``otherwise`` where there is none yet."""
    if otherwise is not None and not path.exists():
        return otherwise
    return json.loads(path.read_text(encoding="utf-8"))


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write a file of results."""
    _write(path, json.dumps(results, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    """Write a file at once: the tests, which read it, may be running."""
    with atomic_file(path) as file:
        file.write(text.encode())


def add_row(
    path: Path, title: str, name: str, row: dict[str, Any], *, part: str = "rows", **more: Any
) -> dict[str, Any]:
    """Add a row to a file of results, or replace it; rows that other processes write meanwhile stay.

    Args:
        path: The file.
        title: What is measured.
        name: Name of the row.
        row: Its figures.
        part: Key of the rows in the file.
        **more: Other keys of the file.

    Returns:
        The results as they are now.
    """
    results = read_results(path, {part: {}})
    results |= {"about": about(title), **more}
    results.setdefault(part, {})[name] = row
    write_results(path, results)
    return results


def keep_manifest(run: Path) -> None:
    """Copy the manifest of a run folder to the results, with paths in the repository relative to its root.

    A manifest that is there already stays if it has the same settings, all of these maps, and more.
    """
    MANIFESTS.mkdir(exist_ok=True)
    path = MANIFESTS / f"{run.name}.json"
    text = (run / "manifest.json").read_text(encoding="utf-8").replace(f"{ROOT}/", "")
    if not path.exists() or not _has_more(read_results(path), json.loads(text)):
        path.write_text(text, encoding="utf-8")


def _has_more(kept: dict[str, Any], manifest: dict[str, Any]) -> bool:
    """Whether the first manifest has the settings of the second, all of its maps, and more."""
    kept_maps, maps = ({(entry["index"], entry["seed"]) for entry in each["maps"]} for each in (kept, manifest))
    return kept_maps > maps and all(kept[part] == manifest[part] for part in ("config", "model", "samples"))


# -- tables in the docs -----------------------------------------------------------------------------


def fill(page: str, name: str, text: str) -> None:
    """Replace the text between ``<!-- NAME -->`` and ``<!-- /NAME -->`` in a page, given relative to the root."""
    path = ROOT / page
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, rest = path.read_text(encoding="utf-8").split(opening, 1)
    after = rest.split(closing, 1)[1]
    _write(path, f"{before}{opening}{text}\n{closing}{after}")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured_on(results: dict[str, Any]) -> str:
    """Hardware, version of PyTorch and date of a file of results, in words."""
    head = results["about"]
    return f"{head['hardware']}, torch {head['versions']['torch']}, {head['date']}"
