"""Pools of clean and compromised networks, and detectors of backdoors on them, for docs/backdoors.md.

    python benchmarks/backdoors.py train --split development    train the networks that are missing
    python benchmarks/backdoors.py scan --split development     run each detector on each network
    python benchmarks/backdoors.py keep --split development     write the figures into benchmarks/results
    python benchmarks/backdoors.py --tables                     write the tables into docs/backdoors.md
    python benchmarks/backdoors.py --figure                     draw the paper's Fig. 4 on digits, in docs/pictures

    --split test    the other split
    --data cifar    CIFAR-10 instead of digits: PreAct-ResNet-18 on a GPU, the network of BadNets elsewhere

Networks are in build/backdoors. Thresholds and settings were chosen on the development split. The test split has other
seeds, triggers and targets, and was scanned once.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from common import (
    DOCS,
    RESULTS,
    ROOT,
    about,
    argument_parser,
    fill,
    markdown,
    measured_on,
    read_results,
    write_results,
)
from neural_cleanse import neural_cleanse
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from agnosco.backdoor.closer import full_map
from agnosco.backdoor.config import PLACES, FirstLook, ScanConfig, Training
from agnosco.backdoor.evidence import final_layer, footprint
from agnosco.backdoor.margins import evidence_of, margin_p_value, margins
from agnosco.backdoor.record import FOUND, LEVEL
from agnosco.backdoor.screening import screen
from agnosco.backdoor.train import Attack, evaluate, fit
from agnosco.backdoor.triggers import LOGOS, Blended, Logo, Patch, Sinusoid, Trigger, trigger_to_json
from agnosco.backdoor.verdict import judge, leave_one_out, stabilised
from agnosco.backdoor.windows import patches_in_windows
from agnosco.data.datasets import Labelled, digits, from_class_folders
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.method.render import contact_sheet, enlarged, stretched, to_picture
from agnosco.models.architectures import ARCHITECTURES, created
from agnosco.models.classifier import Classifier

POOLS = ROOT / "build" / "backdoors"

FIXED = ("patch", "logo")
"""Attacks whose trigger is always at the same place."""

KINDS = ("clean", "patch", "random place", "logo", "blended")
SPLITS = {"development": 10_000, "test": 20_000}
"""The first seed of each split."""

MARGIN_STEPS = 60
"""Steps of MM-BD's ascent. With its 30 starts, it takes a quarter of the images that the screens of agnosco take."""

ATTEMPTS = 4
SUCCESS, DROP = 0.95, 0.02
"""A compromised network is admitted with at least this attack success rate and at most this loss of accuracy."""

TRIGGER_TYPES: dict[str, type[Trigger]] = {kind.__name__: kind for kind in (Patch, Logo, Blended, Sinusoid)}

TILE = 224
"""Side of a picture in the figure, in pixels."""

CORNERS = [place for place in PLACES if place != "center"]


@dataclass(frozen=True)
class Pool:
    """Architecture, training and images of a pool of networks."""

    name: str
    architecture: str
    training: Training
    train_images: Labelled
    test_images: Labelled

    def folder(self, split: str) -> Path:
        return POOLS / f"{self.name}-{split}"

    def network(self, seed: int = 0) -> Classifier:
        """The architecture with random weights, on the GPU if there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = created(self.architecture, len(self.train_images.names), seed=seed).to(device)
        return Classifier(model, size=ARCHITECTURES[self.architecture][1][1], labels=self.train_images.names)


def pool_named(name: str) -> Pool:
    """The pool of this name."""
    if name == "digits":
        return Pool(name, "digits", Training(), *digits().split(0.2, seed=0))
    folder = ROOT / "build" / "assets"
    train_images, test_images = (
        from_class_folders(folder / f"cifar10-{part}", (3, 32, 32)) for part in ("train", "test")
    )
    if torch.cuda.is_available():
        training = Training(epochs=30, batch=128, shift=4, flip=True)
        return Pool(name, "preact_resnet18", training, train_images, test_images)
    return Pool(name, "badnets", Training(epochs=12, batch=128), train_images, test_images)


def attack_of(kind: str, seed: int) -> Attack | None:
    """An attack of this kind, with a random trigger, target and place."""
    generator = torch.Generator().manual_seed(seed)

    def choose(choices):
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    target, size = choose(range(10)), choose((3, 4, 5))
    triggers: dict[str, Trigger | None] = {
        "clean": None,
        "patch": Patch(size, place=choose(list(PLACES)), pattern=choose(("white", "checker"))),
        # On digits, a white square at a random place looks like a stroke, and is not learned well enough.
        "random place": Patch(size, place="random", pattern="checker"),
        "logo": Logo(8, place=choose(CORNERS), name=choose(list(LOGOS))),
        "blended": Blended(0.2, seed=seed),
    }
    trigger = triggers[kind]
    return None if trigger is None else Attack(trigger, target)


def train(pool: Pool, split: str, each: int, kinds: Sequence[str] = KINDS) -> None:
    """Train the networks of a split that are missing. Clean ones come first: their accuracy is the measure."""
    folder = pool.folder(split)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        for number in range(each):
            path = folder / f"{kind.replace(' ', '-')}-{number:02d}.json"
            clean = [read_results(other)["accuracy"] for other in folder.glob("clean-??.json")]
            before = read_results(path, {"admitted": False, "attempts": 0})
            for attempt in range(ATTEMPTS if before["admitted"] else before["attempts"], ATTEMPTS):
                seed = SPLITS[split] + 1000 * attempt + 100 * KINDS.index(kind) + number
                entry = {"kind": kind, "seed": seed, "attempts": attempt + 1}
                if train_one(pool, entry, path, fmean(clean or [0.0])):
                    break


def train_one(pool: Pool, entry: dict[str, Any], path: Path, clean: float) -> bool:
    """Train a network and write it.

    Args:
        pool: Its pool.
        entry: Kind, seed and number of the attempt; the figures are added.
        path: File of the entry; the weights go beside it.
        clean: Mean accuracy of the clean networks.

    Returns:
        Whether the network is admitted: the attack works well enough, and so does the network.
    """
    attack, start = attack_of(entry["kind"], entry["seed"]), time.perf_counter()
    classifier = pool.network(entry["seed"])
    fit(classifier, pool.train_images, pool.training, attack=attack, seed=entry["seed"])
    outcome = evaluate(classifier, pool.test_images, attack)
    works = (outcome.attack_success or 0) >= SUCCESS and outcome.accuracy >= clean - DROP
    entry |= {
        "target": attack.target if attack else None,
        "trigger": trigger_to_json(attack.trigger) if attack else None,
        "accuracy": outcome.accuracy, "attack_success_rate": outcome.attack_success,
        "seconds": round(time.perf_counter() - start, 1),
        "admitted": attack is None or works,
    }  # fmt: skip
    print(path.parent.name, path.stem, entry, flush=True)
    save_file(classifier.model.state_dict(), path.with_suffix(".safetensors"))
    write_results(path, entry)
    return entry["admitted"]


def scan(pool: Pool, split: str, part: int, parts: int, names: list[str]) -> None:
    """Run each detector on each admitted network of a split, but not where its result is stored already."""
    for number, path in enumerate(sorted(pool.folder(split).glob("*.json"))):
        if number % parts != part or path.name.endswith(".scan.json"):
            continue
        entry, file = read_results(path), path.with_suffix(".scan.json")
        stored = read_results(file, {"detectors": {}})["detectors"]
        missing = [name for name in names if name not in stored]
        if not (entry["admitted"] and missing):
            continue
        classifier = pool.network()
        classifier.model.load_state_dict(load_file(path.with_suffix(".safetensors")))
        new = {name: timed(DETECTORS[name], classifier, pool.test_images.samples) for name in missing}
        for result in new.values():
            if "patterns" in result:
                save_file({"patterns": result.pop("patterns")}, path.with_suffix(".patterns.safetensors"))
        write_results(file, entry | {"detectors": stored | new})
        summary = {
            name: (result["label"], round(result["score"], 2), result["seconds"]) for name, result in new.items()
        }
        print(split, path.stem, "target", entry["target"], summary, flush=True)


Detector = Callable[[Classifier, Samples], dict[str, Any]]
"""Returns at least ``score`` (greater is more suspicious) and ``label`` (the most suspicious class)."""


def timed(detector: Detector, classifier: Classifier, samples: Samples) -> dict[str, Any]:
    """The result of a detector, with ``seconds``."""
    start = time.perf_counter()
    return {**detector(classifier, samples), "seconds": round(time.perf_counter() - start, 1)}


def agnosco_scan(classifier: Classifier, samples: Samples) -> dict[str, Any]:
    """``agnosco scan`` without its closer look at the suspicious classes."""
    screened = screen(classifier, samples)
    return judged({"reach": screened.reach.tolist(), "problems": screened.problems()}) | {
        "hits": screened.hits.tolist(), "movable": screened.movable.tolist(), "screens": screened.titles,
        "patterns": screened.patterns[screened.z.argmax(0), torch.arange(len(screened.classes))],
    }  # fmt: skip


def judged(
    result: dict[str, Any], bank: Sequence[float] | None = None, margins: Sequence[float] | None = None
) -> dict[str, Any]:
    """A result of agnosco with its score, class and outcome, as its reaches, and margins if given, are judged today."""
    reach = torch.tensor(result["reach"])
    deviation, classes = leave_one_out(stabilised(reach)), reach.shape[1]
    evidence = None if margins is None else evidence_of(torch.tensor(margins), range(classes))
    problems = result.get("problems", ())
    verdict = judge(deviation, reach, classes=classes, bank=bank, problems=problems, evidence=evidence)
    score = deviation.z.max().item()
    return result | {"score": score, "label": verdict.label, "outcome": verdict.outcome}


def cleansed(classifier: Classifier, samples: Samples, steps: int = ScanConfig().images // 32) -> dict[str, Any]:
    """Neural Cleanse; by default with as many images as the screens of agnosco take."""
    masks = neural_cleanse(classifier, samples, steps=steps)
    return {"score": masks.anomaly.max().item(), "label": int(masks.anomaly.argmax()), "norms": masks.norms.tolist()}


def maximal_margin(classifier: Classifier, samples: Samples) -> dict[str, Any]:
    """MM-BD with its 30 starts; it needs no samples."""
    greatest = margins(classifier, FirstLook(30, MARGIN_STEPS))
    p, label = margin_p_value(greatest), int(greatest.argmax())
    return {"score": -math.log(max(p, 1e-300)), "label": label, "p_value": p, "margins": greatest.tolist()}


def layer_weights(classifier: Classifier, samples: Samples) -> dict[str, Any]:
    """The weights of the final layer; it needs no samples."""
    z = final_layer(classifier)
    assert z is not None
    return {"score": z.max().item(), "label": int(z.argmax()), "z": z.tolist()}


def without_images(classifier: Classifier, samples: Samples) -> dict[str, Any]:
    """``agnosco scan`` on dead leaves: how well it detects without images."""
    result = agnosco_scan(classifier, Samples.leaves(samples.shape))
    return {key: value for key, value in result.items() if key != "patterns"}


DETECTORS: dict[str, Detector] = {
    "agnosco": agnosco_scan,
    "agnosco, leaves": without_images,
    "Neural Cleanse": cleansed,
    "Neural Cleanse, 1000 batches": partial(cleansed, steps=1000),
    "MM-BD": maximal_margin,
    "final layer": layer_weights,
}
EQUAL_TIME = ("agnosco", "Neural Cleanse", "MM-BD", "final layer")
"""The detectors that run by default."""


# -- tables ------------------------------------------------------------------------------------------


def keep(pool: Pool, split: str) -> None:
    """Write the figures of a split into benchmarks/results, without the arrays that no table needs."""
    networks = [read_results(path) for path in sorted(pool.folder(split).glob("*.scan.json"))]
    for network in networks:
        for result in network["detectors"].values():
            for key in ("hits", "movable", "memory_mb"):
                result.pop(key, None)
    head = about(f"{pool.name} ({pool.architecture}), {split} split")
    results = {"about": head, "networks": networks, "footprints": footprints(pool, split)}
    write_results(RESULTS / f"backdoors-{pool.name}-{split}.json", results)


def footprints(pool: Pool, split: str) -> list[dict[str, Any]]:
    """How much of its trigger the pattern of the target holds, for each compromised network, and for its null."""
    folder, images = pool.folder(split), pool.test_images.samples.images.float() / 255
    clean = [load_file(path)["patterns"] for path in sorted(folder.glob("clean-*.patterns.safetensors"))]
    rows = []
    for path in sorted(folder.glob("*.patterns.safetensors")):
        name = path.name.split(".")[0]
        entry = read_results(folder / f"{name}.json")
        if entry["kind"] not in FIXED:
            continue
        trigger, target, patterns = trigger_from_json(entry["trigger"]), entry["target"], load_file(path)["patterns"]
        own = footprint(patterns[target], trigger, images)
        others = [pattern for label, pattern in enumerate(patterns) if label != target]
        null = [footprint(pattern, trigger, images) for pattern in [*others, *(each[target] for each in clean)]]
        rows.append({
            "network": name, "kind": entry["kind"], "iou": own.iou, "energy": own.energy,
            "cosine": own.cosine, "percentile": percentile(own.energy, [other.energy for other in null]),
        })  # fmt: skip
    return rows


def trigger_from_json(data: dict[str, Any]) -> Trigger:
    """The trigger that :func:`.triggers.trigger_to_json` wrote.

    Raises:
        AgnoscoError: This version knows no such trigger.
    """
    try:
        settings = dict(data)
        return TRIGGER_TYPES[settings.pop("type")](**settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise AgnoscoError(
            f"this version does not know the trigger: {error}", "use the version that wrote it"
        ) from error


def percentile(value: float, null: Sequence[float]) -> float:
    """Share of a null that a value exceeds, in [0, 1].

    Args:
        value: That of the target class's map.
        null: Those of maps that cannot show the trigger.
    """
    if not null:
        raise AgnoscoError("there are no values to compare with", "give those of other classes or of a clean twin")
    return sum(other < value for other in null) / len(null)


def figure(seed: int = 0, target: int = 3) -> Image.Image:
    """The paper's Fig. 4 on digits: three triggers, with the maps of their networks and those of a clean network."""
    pool = pool_named("digits")
    attacks = [Attack(trigger, target) for trigger in (Patch(4), Logo(8, name="apple"), Blended(0.2))]
    images, patterns = pool.test_images.samples.images.float() / 255, []
    for attack in (None, *attacks):
        classifier = pool.network(seed)
        fit(classifier, pool.train_images, pool.training, attack=attack, seed=seed)
        l2_pattern = full_map(classifier, target, pool.test_images.samples)
        patch = -patches_in_windows(classifier, [target], pool.test_images.samples, ScanConfig().windows)[0, 0]
        patterns.append({"L2 ball": l2_pattern, "window": patch})
    rows = [
        figure_row(attack.trigger, images, own, patterns[0], name=pool.train_images.names[target])
        for attack, own in zip(attacks, patterns[1:], strict=True)
    ]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * row.height))
    return sheet


def figure_row(
    trigger: Trigger, images: Tensor, compromised: Mapping[str, Tensor], clean: Mapping[str, Tensor], *, name: str
) -> Image.Image:
    """A row of the figure: trigger, triggered picture, and maps of the target class of both twins.

    Args:
        trigger: The trigger.
        images: Clean images ``(N, C, H, W)`` in [0, 1]; the first is shown with the trigger.
        compromised, clean: Patterns −ν ``(C, H, W)`` of the target class, of the compromised network and its twin, by
            what they are.
        name: Of the target class.
    """
    generator = torch.Generator().manual_seed(0)
    alone = trigger.apply(torch.full_like(images[:1], 0.5), generator=generator)[0]
    triggered = trigger.apply(images[:1], generator=generator)[0]
    pictures = [to_picture(alone), to_picture(images[0]), to_picture(triggered)]
    pictures += [to_picture(stretched(pattern)) for pattern in (*compromised.values(), *clean.values())]
    captions = ["trigger", "image", f"classified as {name}"]
    captions += [f"compromised, {kind}" for kind in compromised] + [f"clean twin, {kind}" for kind in clean]
    return contact_sheet(
        [enlarged(picture, TILE) for picture in pictures], captions, columns=len(pictures), tile=TILE,
        footer=f"Maps of {name}, made without the trigger; only the compromised network has seen it.",
    )  # fmt: skip


def intervals(clean: list[float], compromised: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """AUROC, and the ends of its 95 % interval (bootstrap over networks)."""
    chance = random.Random(0)

    def area(negative: list[float], positive: list[float]) -> float:
        return fmean((high > low) + (high == low) / 2 for high in positive for low in negative)

    drawn = sorted(
        area(chance.choices(clean, k=len(clean)), chance.choices(compromised, k=len(compromised))) for _ in range(draws)
    )
    return area(clean, compromised), drawn[round(0.025 * draws)], drawn[round(0.975 * draws) - 1]


def table(results: dict[str, Any]) -> str:
    """A split as Markdown: every detector on every kind of attack."""
    networks, rows = [judged_today(network) for network in results["networks"]], []
    names = [name for name in DETECTORS if all(name in network["detectors"] for network in networks)]
    clean = [network for network in networks if network["kind"] == "clean"]
    has_bank = len(clean) > 1 / LEVEL - 1  # with fewer, no p-value can be small enough, as one is left out
    for kind in [kind for kind in KINDS if kind != "clean"]:
        attacked = [network for network in networks if network["kind"] == kind]
        rows += [table_row(kind, name, clean, attacked, has_bank) for name in names if attacked]
    alarms = "; ".join(
        f"{name} {sum(network['detectors'][name]['outcome'] == FOUND for network in clean)} by the p-value"
        + (f", {sum(found_by_bank(each, clean, name) for each in clean)} with a bank of the others" if has_bank else "")
        for name in names
        if "outcome" in clean[0]["detectors"][name]
    )
    head = ["attack", "detector", "AUROC (95 %)", "TPR at 5 % FPR here", "target first"]
    head += ["found", "found with a bank", "seconds", "networks"]
    return (
        f"{results['about']['title']}; {measured_on(results)}. Clean networks: {len(clean)}; false alarms: "
        f"{alarms}.\n\n{markdown(head, rows)}"
    )


def table_row(kind: str, name: str, clean: list[dict], attacked: list[dict], has_bank: bool) -> list[str]:
    """One detector on one kind of attack."""
    negative, positive = ([each["detectors"][name]["score"] for each in part] for part in (clean, attacked))
    area, low, high = intervals(negative, positive)
    bound = sorted(negative)[-1 - int(0.05 * len(negative))]  # at most one clean network in twenty exceeds it
    verdicts = [network["detectors"][name] for network in attacked]
    first = fmean(own["label"] == each["target"] for own, each in zip(verdicts, attacked, strict=True))
    found = by_bank = ""
    if "outcome" in verdicts[0]:
        found = f"{fmean(own['outcome'] == FOUND for own in verdicts):.2f}"
        by_bank = f"{fmean(found_by_bank(each, clean, name) for each in attacked):.2f}" if has_bank else ""
    return [
        kind, name, f"{area:.3f} ({low:.3f}–{high:.3f})", f"{fmean(score > bound for score in positive):.2f}",
        f"{first:.2f}", found, by_bank, f"{fmean(own['seconds'] for own in verdicts):.1f}", str(len(attacked)),
    ]  # fmt: skip


def found_by_bank(network: dict[str, Any], clean: list[dict], name: str) -> bool:
    """Whether a network is found with the other clean networks of its split as a bank."""
    bank = [other["detectors"][name]["score"] for other in clean if other is not network]
    return judged(network["detectors"][name], bank)["outcome"] == FOUND


def judged_today(network: dict[str, Any]) -> dict[str, Any]:
    """A network whose stored reaches are judged by today's rule, with MM-BD's margins where they were measured."""
    margins_of_all = network["detectors"].get("MM-BD", {}).get("margins")
    detectors = {
        name: judged(own, margins=margins_of_all) if "reach" in own else own
        for name, own in network["detectors"].items()
    }
    return network | {"detectors": detectors}


def footprint_table(results: dict[str, Any]) -> str:
    """Footprints of a split as Markdown."""
    rows = []
    for kind in FIXED:
        part = [row for row in results["footprints"] if row["kind"] == kind]
        if part:
            good = fmean(row["energy"] >= 5 and row["percentile"] > 0.95 for row in part)
            medians = (f"{median(row[key] for row in part):.{digits}f}" for key, digits in MEDIANS.items())
            rows.append([kind, str(len(part)), *medians, f"{good:.2f}"])
    head = ["trigger", "networks", "energy / area", "IoU", "cosine"]
    head += ["energy ≥ 5 × and above the 95th percentile of the null"]
    return f"{results['about']['title']}.\n\n{markdown(head, rows)}"


MEDIANS = {"energy": 1, "iou": 2, "cosine": 2}
"""Figures of a footprint in the table, with their decimal places."""


def tables() -> None:
    """Write the tables into docs/backdoors.md."""
    splits = [read_results(path) for path in sorted(RESULTS.glob("backdoors-*.json"))]
    fill("docs/backdoors.md", "bench", "\n\n".join(table(split) for split in splits))
    fill("docs/backdoors.md", "footprint", "\n\n".join(footprint_table(each) for each in splits if each["footprints"]))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("what", nargs="?", choices=("train", "scan", "keep"))
    parser.add_argument("--figure", action="store_true", help="draw the figure")
    parser.add_argument("--data", choices=("digits", "cifar"), default="digits")
    parser.add_argument("--split", choices=SPLITS, default="development")
    parser.add_argument("--part", default="0/1", help="share of the networks to scan: 0/2 and 1/2 for two processes")
    parser.add_argument("--detectors", nargs="*", choices=DETECTORS, default=list(EQUAL_TIME))
    parser.add_argument("--each", type=int, default=20, help="networks of each kind")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS), help="kinds to train")
    options = parser.parse_args()
    if options.what == "train":
        train(pool_named(options.data), options.split, options.each, options.kinds)
    if options.what == "scan":
        part, parts = (int(number) for number in options.part.split("/"))
        scan(pool_named(options.data), options.split, part, parts, options.detectors)
    if options.what == "keep":
        keep(pool_named(options.data), options.split)
    if options.figure:
        figure().save(DOCS / "pictures" / "backdoors-digits.png")
    if options.tables:
        tables()


if __name__ == "__main__":
    main()
