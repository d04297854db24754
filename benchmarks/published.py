"""Detectors of backdoors on networks that others published, and on a bank of clean ones, for docs/backdoors.md.

    python benchmarks/published.py bank       train the clean networks of the bank that are missing
    python benchmarks/published.py check      measure accuracy and attack success rate of every network
    python benchmarks/published.py measure    run each detector on each network, but not where there is a row already
    python benchmarks/published.py --tables   write the tables into docs/backdoors.md; measure nothing

    --networks, --detectors    only those; "Neural Cleanse, native" takes hours, and runs only if it is named
    --bank-size                how many networks of the bank to use
    --again                    measure rows once more that are there

The published networks and their images are in the assets; their architectures and triggers are in ``more_archs.py``
and ``cifar_archs.py``. The bank is in build/published/bank. Detectors that invert triggers get as many steps as fit
into the time that agnosco took for the same network, so agnosco comes first. Seconds on a CPU are those of the
processor, on one thread: they do not depend on what else runs.
"""

from __future__ import annotations

import math
import runpy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from backdoors import intervals, layer_weights, maximal_margin
from common import (
    ARCHITECTURES,
    ASSETS,
    DEVICE,
    IMAGENET,
    RESULTS,
    ROOT,
    add_row,
    argument_parser,
    fill,
    markdown,
    measured_on,
    read_results,
)
from neural_cleanse import NATIVE_BATCHES, Masks, neural_cleanse
from pixel_backdoor import Patterns, pixel_backdoor
from safetensors.torch import save_file
from torch import Tensor

import agnosco
from agnosco import Classifier, Samples, ScanConfig
from agnosco.backdoor.config import Training
from agnosco.backdoor.record import FOUND, INCONCLUSIVE, NONE, stands_out
from agnosco.backdoor.train import augmented, evaluate, fit
from agnosco.data.datasets import Labelled, from_class_folders
from agnosco.method.prepare import prepared, resolve_precision

FILE, TITLE = RESULTS / "published.json", "detectors of backdoors on published networks"
SHAPE = (3, 32, 32)
CIFAR, SIGNS = "cifar10", "gtsrb"

BANK = ROOT / "build" / "published" / "bank"
BANK_SEEDS = range(30_000, 30_020)
"""Of first weights, and of order and augmentation of the training images, of each network of the bank."""

BANK_TRAINING = Training(epochs=5, batch=64, rate=4e-3, shift=2, flip=True, precision="bfloat16")

ROBUST, ROBUST_SEED = BANK.parent / "robust.safetensors", 30_100
ADVERSARIAL = 0.5
"""The L2 norm of the adversary's step against the network that is trained adversarially."""

BATCH = 8
"""Images of a mini-batch of an inversion, as of agnosco's maps: with the 32 of its authors, too few steps fit in."""

SLOW = (":cct", ":vit")
"""Ends of the names of networks that are scanned with one seed, as ``agnosco scan`` does where time is short."""

SECONDS_PER_CLASS = 12.0
"""Time of detectors that invert triggers where agnosco has not been measured."""

ANOMALY = 2.0
"""Customary cut-off of the anomaly index (Neural Cleanse)."""

SIGNIFICANT = 0.05
"""Cut-off of MM-BD's p-value, its authors' choice."""


# -- networks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network that is scanned.

    Args:
        kind: ``"backdoored"``, ``"control"`` (clean, by others) or ``"bank"``.
        weights: File of its weights.
        factory: Its architecture, a function of ``more_archs.py`` or ``cifar_archs.py``.
        data: What it was trained on.
        target: The class that its trigger means; None if it is clean.
        trigger: What lays the trigger on images: a name that ``stamped`` knows, or ``"grid"``; None if it is clean.
        mean, std: Of each channel, for its input; None for none.
    """

    kind: str
    weights: Path
    factory: str
    data: str = CIFAR
    target: int | None = None
    trigger: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def load(self) -> Classifier:
        """The network, ready to be scanned."""
        return agnosco.load(
            architecture(self.factory), weights=self.weights, size=SHAPE[1], mean=self.mean, std=self.std,
            trust_code=True, device=DEVICE,
        )  # fmt: skip


def architecture(factory: str) -> str:
    """What :func:`agnosco.load` calls an architecture of the assets."""
    file = "cifar_archs.py" if "ResNet" in factory else "more_archs.py"
    return f"python:{ARCHITECTURES.with_name(file)}:{factory}"


def attacked(weights: str, target: int, trigger: str, factory: str = "small_vgg", data: str = CIFAR) -> Network:
    """A backdoored network of the assets."""
    path = ASSETS / "models" / f"{weights}-target{target}-{data}.safetensors"
    return Network("backdoored", path, factory, data, target, trigger)


def control(weights: str, factory: str, **normalisation: Any) -> Network:
    """A clean network of the assets."""
    return Network("control", ASSETS / "models" / f"{weights}-cifar10.safetensors", factory, **normalisation)


CIFAR_MEAN = (0.4914, 0.4822, 0.4465)

PUBLISHED = {
    "white square": attacked("small_vgg-ibau-badnets", 8, "white4"),
    "eight pixels": attacked("small_vgg-ibau-l0_inv", 0, "l0_inv"),
    "faint pattern": attacked("small_vgg-ibau-l2_inv", 0, "l2_inv"),
    "coloured square": attacked("small_vgg-ibau-trojan_sq", 2, "trojan_sq"),
    "watermark": attacked("small_vgg-ibau-trojan_wm", 2, "trojan_wm"),
    "signs, white square": attacked("small_vgg-ibau-badnets", 8, "white4", "small_vgg_gtsrb", SIGNS),
    "signs, eight pixels": attacked("small_vgg-ibau-l0_inv", 0, "l0_inv", "small_vgg_gtsrb", SIGNS),
    "grid": attacked("wrn16_1-nad-grid", 5, "grid", "WideResNet(16,1)"),
    "grid, erased": control("wrn16_1-nad-erased", "WideResNet(16,1)"),
    "keras_vgg": control("keras_vgg-clean", "keras_vgg"),
    "resnet20": control("resnet20", "CifarResNet(20)", **IMAGENET),
    "resnet56": control("resnet56", "CifarResNet(56)", **IMAGENET),
    "cct": control("cct", "cct", mean=CIFAR_MEAN, std=(0.2470, 0.2435, 0.2616)),
    "vit": control("vit", "vit", mean=CIFAR_MEAN, std=(0.2023, 0.1994, 0.2010)),
}
"""The networks of the assets; backdoored ones by their trigger."""


def networks(bank_size: int) -> dict[str, Network]:
    """The published networks, and those of the bank that are trained."""
    paths = {f"bank {seed}": BANK / f"{seed}.safetensors" for seed in BANK_SEEDS[:bank_size]}
    bank = {name: Network("bank", path, "small_vgg") for name, path in paths.items() if path.exists()}
    robust = {"adversarially trained": Network("control", ROBUST, "small_vgg")} if ROBUST.exists() else {}
    return PUBLISHED | robust | bank


def images_of(data: str) -> Labelled:
    """The test images of CIFAR-10 or of the traffic signs."""
    return from_class_folders(ASSETS / f"{data}-test", SHAPE)


# -- bank and check ----------------------------------------------------------------------------------


def train_bank(size: int) -> None:
    """Train the networks of the bank that are missing; one that was interrupted goes on from its last epoch."""
    training_images = from_class_folders(ASSETS / "cifar10-train", SHAPE)
    BANK.mkdir(parents=True, exist_ok=True)
    for seed in BANK_SEEDS[:size]:
        path, start = BANK / f"{seed}.safetensors", time.process_time()
        if path.exists():
            continue
        classifier, checkpoint = untrained(seed), path.with_suffix(".checkpoint")
        fit(classifier, training_images, BANK_TRAINING, seed=seed, checkpoint=checkpoint)
        save_file(classifier.model.state_dict(), path)
        checkpoint.unlink()
        print(path.name, f"{time.process_time() - start:.0f} s", flush=True)


def train_robust() -> None:
    """Train a network against one step of an adversary on each image (Goodfellow et al. 2015), for three epochs."""
    if ROBUST.exists():
        return
    classifier = untrained(ROBUST_SEED)

    def attacked_images(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        seen = augmented(images, BANK_TRAINING, generator).requires_grad_()
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(classifier.model(seen), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, seen)
        length = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        return (seen + ADVERSARIAL * gradient / length).clamp(0, 1).detach()

    training_images = from_class_folders(ASSETS / "cifar10-train", SHAPE)
    fit(classifier, training_images, replace(BANK_TRAINING, epochs=3), seed=ROBUST_SEED, augment=attacked_images)
    ROBUST.parent.mkdir(parents=True, exist_ok=True)
    save_file(classifier.model.state_dict(), ROBUST)


def untrained(seed: int) -> Classifier:
    """A small VGG with the random weights of a seed; without dropout, because its training is short."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = agnosco.load(architecture("small_vgg"), size=SHAPE[1], trust_code=True, device=DEVICE)
    classifier.model.requires_grad_(True)
    for module in classifier.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return classifier


def check(chosen: dict[str, Network], *, again: bool = False) -> None:
    """Measure what each network does with test images, and with those that carry its trigger."""
    images = {data: images_of(data) for data in sorted({network.data for network in chosen.values()})}
    stored = read_results(FILE, {})
    for name, network in chosen.items():
        if again or name not in stored.get("networks", {}):
            row = checked(network, images[network.data])
            bank = {"training": asdict(BANK_TRAINING), "seeds": list(BANK_SEEDS)}
            add_row(FILE, TITLE, name, row, part="networks", bank=bank)
            print(name, row, flush=True)


def checked(network: Network, images: Labelled) -> dict[str, Any]:
    """Kind, classes, target, accuracy and attack success rate of a network; the last is None if it is clean."""
    classifier = network.load()
    row = {"kind": network.kind, "data": network.data, "classes": classifier.classes, "target": network.target}
    row["accuracy"], row["attack_success_rate"] = evaluate(classifier, images).accuracy, None
    if network.trigger is not None and network.target is not None:
        trigger = trigger_named(network.trigger)
        row["attack_success_rate"] = attack_success_rate(classifier, images, trigger, network.target)
    return row


def trigger_named(name: str) -> Callable[[Tensor], Tensor]:
    """What lays a trigger of the assets on images ``(N, 3, 32, 32)`` in [0, 1]."""
    if name == "grid":
        return runpy.run_path(str(ARCHITECTURES))["grid_trigger"]
    stamped = runpy.run_path(str(ARCHITECTURES.with_name("more_archs.py")))["stamped"]
    return lambda images: stamped(images, name)


def attack_success_rate(
    classifier: Classifier, images: Labelled, trigger: Callable[[Tensor], Tensor], target: int
) -> float:
    """Share of the images of other classes that are given the target once they carry the trigger."""
    others = images.part((images.labels != target).nonzero()[:, 0]).samples
    hits = [classifier.probabilities(trigger(part).to(DEVICE)).argmax(1) == target for part in others.batches(128)]
    return torch.cat(hits).double().mean().item()


# -- detectors ---------------------------------------------------------------------------------------


Detector = Callable[[Classifier, Samples, float], dict[str, Any]]
"""From a network, clean images and the seconds that it may take to ``score`` (greater is more suspicious) and ``order``
(classes, the most suspicious first), and ``outcome`` if it has a cut-off."""


class Inversion(Protocol):
    """A detector that inverts triggers: Neural Cleanse or Pixel Backdoor."""

    def __call__(
        self, classifier: Classifier, samples: Samples, *, steps: int = ..., batch: int = ...
    ) -> Masks | Patterns: ...


def agnosco_scan(classifier: Classifier, samples: Samples, seconds: float) -> dict[str, Any]:
    """``agnosco scan`` from end to end, at its default settings, or for slow networks with one seed."""
    slow = classifier.name.endswith(SLOW)
    result = agnosco.scan(classifier, samples, replace(ScanConfig(), seeds=1) if slow else ScanConfig())
    order, p = [row.index for row in result.record.classes], result.verdict.p_value
    assert p is not None  # there are at least ten classes
    rows = sorted(result.record.classes, key=lambda row: row.index)
    return {
        "score": -math.log10(max(p, 1e-12)), "order": order, "outcome": result.verdict.outcome, "p_value": p,
        "margins": [round(row.margin, 2) for row in rows],
        "reach": {name: [round(row.screens[name].reach, 3) for row in rows] for name in rows[0].screens},
    }  # fmt: skip


def cleansed(classifier: Classifier, samples: Samples, seconds: float) -> dict[str, Any]:
    """Neural Cleanse, in as many steps as fit into the time."""
    return inverted(neural_cleanse, classifier, samples, seconds)


def cleansed_natively(classifier: Classifier, samples: Samples, seconds: float) -> dict[str, Any]:
    """Neural Cleanse, with as many images between two decisions, and as many decisions, as its authors take."""
    network = prepared(classifier, precision=resolve_precision("auto", classifier.device))
    return by_anomaly(neural_cleanse(network, samples, steps=1000, batches=NATIVE_BATCHES))


def pixels_inverted(classifier: Classifier, samples: Samples, seconds: float) -> dict[str, Any]:
    """Pixel Backdoor, in as many steps as fit into the time."""
    return inverted(pixel_backdoor, classifier, samples, seconds)


def mm_bd(classifier: Classifier, samples: Samples, seconds: float) -> dict[str, Any]:
    """MM-BD; it needs no samples."""
    result = maximal_margin(prepared(classifier), samples)
    outcome = FOUND if result["p_value"] < SIGNIFICANT else NONE
    return {"score": result["score"], "order": descending(result["margins"]), "outcome": outcome}


def last_layer(classifier: Classifier, samples: Samples, seconds: float) -> dict[str, Any]:
    """The weights of the final layer; it needs no samples, and has no cut-off."""
    result = layer_weights(classifier, samples)
    return {"score": result["score"], "order": descending(result["z"])}


DETECTORS: dict[str, Detector] = {
    "agnosco": agnosco_scan,
    "Neural Cleanse": cleansed,
    "Neural Cleanse, native": cleansed_natively,
    "Pixel Backdoor": pixels_inverted,
    "MM-BD": mm_bd,
    "final layer": last_layer,
}
ON_REQUEST = ("Neural Cleanse, native",)
"""Detectors that run only if they are named."""


def clock() -> float:
    """Seconds of the processor on a CPU, which no other process lengthens; those that pass elsewhere."""
    return time.process_time() if DEVICE == "cpu" else time.perf_counter()


def inverted(invert: Inversion, classifier: Classifier, samples: Samples, seconds: float) -> dict[str, Any]:
    """What an inversion finds in as many steps as fit into some seconds, by the time of two.

    It runs in bfloat16 where the hardware has it.
    """
    network = prepared(classifier, precision=resolve_precision("auto", classifier.device))
    invert(network, samples, steps=1, batch=BATCH)  # the first pass through a network takes longer
    start = clock()
    invert(network, samples, steps=2, batch=BATCH)
    steps = max(1, round(2 * seconds / (clock() - start)))
    return by_anomaly(invert(network, samples, steps=steps, batch=BATCH)) | {"steps": steps}


def by_anomaly(found: Masks | Patterns) -> dict[str, Any]:
    """The row of an inversion: the class of the smallest trigger is the most suspicious."""
    anomaly, sizes = found.anomaly, found.norms if isinstance(found, Masks) else found.sizes
    return {
        "score": anomaly.max().item(), "order": descending(anomaly.tolist()),
        "outcome": FOUND if anomaly.max() > ANOMALY else NONE, "sizes": [round(size, 1) for size in sizes.tolist()],
    }  # fmt: skip


def descending(values: Sequence[float]) -> list[int]:
    """The indices of values, that of the greatest first."""
    return sorted(range(len(values)), key=lambda index: -values[index])


def measure(chosen: dict[str, Network], names: Sequence[str], *, again: bool = False) -> None:
    """Run detectors on networks and store a row for each."""
    images = {data: images_of(data).samples for data in sorted({network.data for network in chosen.values()})}
    for name, network in chosen.items():
        for detector in names:
            rows = read_results(FILE, {}).get("rows", {})
            key = f"{name}: {detector}"
            if again or key not in rows:
                own = rows.get(f"{name}: agnosco")
                result = measured(detector, network.load(), images[network.data], own["seconds"] if own else None)
                add_row(FILE, TITLE, key, {"network": name, "detector": detector} | result)
                print(key, {k: result[k] for k in result if k not in ("sizes", "order")}, flush=True)


def measured(detector: str, classifier: Classifier, samples: Samples, limit: float | None) -> dict[str, Any]:
    """What a detector says of a network, with ``label``, the most suspicious class, and ``seconds``.

    Args:
        detector: Its name.
        classifier: The network.
        samples: Clean images.
        limit: Seconds that an inversion may take; None if agnosco was not measured.
    """
    start = clock()
    result = DETECTORS[detector](classifier, samples, limit or SECONDS_PER_CLASS * classifier.classes)
    return result | {"label": result["order"][0], "seconds": round(clock() - start, 1)}


# -- tables ------------------------------------------------------------------------------------------


SHORT = {FOUND: "found", NONE: "no", INCONCLUSIVE: "inconclusive"}


def table(results: dict[str, Any]) -> str:
    """What every detector says of every network, and how well it tells backdoored networks from clean ones."""
    about, rows = results["networks"], results["rows"]
    names = [name for name in DETECTORS if any(row["detector"] == name for row in rows.values())]
    head = ["network", "target", "attack success rate", "accuracy", *names]
    body = [
        [name, *described(about[name]), *(cell(rows.get(f"{name}: {each}"), about[name]["target"]) for each in names)]
        for name in about
        if about[name]["kind"] != "bank"
    ]
    summary = [line for name in names if (line := summary_line(name, about, rows))]
    return (
        f"{measured_on(results)}. {bank_in_words(about)}In each cell: outcome, rank of the target, statistic, seconds."
        f"\n\n{markdown(head, body)}\n\n{markdown(SUMMARY, summary)}"
    )


def bank_in_words(about: dict[str, Any]) -> str:
    """Number of networks in the bank and their accuracy, as a sentence; empty without a bank."""
    accuracies = [each["accuracy"] for each in about.values() if each["kind"] == "bank"]
    if not accuracies:
        return ""
    return f"Networks in the bank: {len(accuracies)}, of accuracy {min(accuracies):.2f}–{max(accuracies):.2f}. "


def described(about: dict[str, Any]) -> list[str]:
    """Target, attack success rate and accuracy of a network."""
    clean = about["target"] is None
    success = "" if clean else f"{about['attack_success_rate']:.2f}"
    return ["clean" if clean else str(about["target"]), success, f"{about['accuracy']:.2f}"]


def cell(row: dict[str, Any] | None, target: int | None) -> str:
    """What a detector says of a network: outcome, rank of the target, statistic, seconds."""
    if row is None:
        return ""
    said = [SHORT[outcome_of(row)]] if "outcome" in row else []
    said += [] if target is None else [f"rank {rank(row['order'], target)}"]
    return ", ".join([*said, f"{row['score']:.1f}", f"{row['seconds']:.0f} s"])


def outcome_of(row: dict[str, Any]) -> str:
    """The outcome by today's rule; a row keeps that of its time."""
    return row["outcome"] if "p_value" not in row or stands_out(row["p_value"], calibrated=False) else NONE


def rank(order: Sequence[int], target: int) -> int:
    """The place of the target among the classes, the most suspicious first; from 1."""
    return list(order).index(target) + 1


SUMMARY = ["detector", "networks", "AUROC (95 %)", "target first", "found", "false alarms, published"]
SUMMARY += ["false alarms, bank", "seconds, 10 classes", "seconds, 43 classes"]


def summary_line(name: str, about: dict[str, Any], rows: dict[str, Any]) -> list[str]:
    """How well a detector tells backdoored networks from clean ones, and its median time; empty without both kinds."""
    own = [(about[row["network"]], row) for row in rows.values() if row["detector"] == name and row["network"] in about]
    attacked = [(each, row) for each, row in own if each["kind"] == "backdoored"]
    clean = [row["score"] for each, row in own if each["kind"] != "backdoored"]
    if not (attacked and clean):
        return []
    area, low, high = intervals(clean, [row["score"] for _, row in attacked])
    first = sum(rank(row["order"], each["target"]) == 1 for each, row in attacked)
    return [
        name, f"{len(attacked)} + {len(clean)}", f"{area:.3f} ({low:.3f}–{high:.3f})", f"{first} of {len(attacked)}",
        *(found_of(own, kind) for kind in ("backdoored", "control", "bank")),
        *(median_seconds(own, classes) for classes in (10, 43)),
    ]  # fmt: skip


Pairs = list[tuple[dict[str, Any], dict[str, Any]]]
"""What is known of each network, with the row of a detector."""


def found_of(own: Pairs, kind: str) -> str:
    """In how many of the networks of a kind a detector finds something; empty if it has no cut-off."""
    outcomes = [outcome_of(row) for each, row in own if each["kind"] == kind and "outcome" in row]
    return f"{outcomes.count(FOUND)} of {len(outcomes)}" if outcomes else ""


def median_seconds(own: Pairs, classes: int) -> str:
    """Median time for networks with so many classes."""
    seconds = [row["seconds"] for each, row in own if each["classes"] == classes]
    return f"{median(seconds):.0f}" if seconds else ""


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("what", nargs="?", choices=("bank", "check", "measure"))
    parser.add_argument("--networks", nargs="*", help="names such as 'grid' or 'bank 30000'; default: all")
    parser.add_argument("--detectors", nargs="*", choices=DETECTORS)
    parser.add_argument("--bank-size", type=int, default=len(BANK_SEEDS))
    parser.add_argument("--again", action="store_true", help="measure rows once more that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    every = networks(options.bank_size)
    chosen = every if options.networks is None else {name: every[name] for name in options.networks}
    if options.what == "bank":
        train_robust()
        train_bank(options.bank_size)
    if options.what == "check":
        check(chosen, again=options.again)
    if options.what == "measure":
        names = options.detectors or [name for name in DETECTORS if name not in ON_REQUEST]
        measure(chosen, names, again=options.again)
    if options.tables:
        fill("docs/backdoors.md", "published", table(read_results(FILE)))


if __name__ == "__main__":
    main()
