"""Banks of clean and compromised networks, and detectors on them, for docs/backdoors.md.

    python benchmarks/backdoors.py train --split development    train what is missing (test: the other split)
    python benchmarks/backdoors.py scan --split development     scan what is not scanned yet, baselines in the same run
    python benchmarks/backdoors.py keep --split development     write the figures into benchmarks/results
    python benchmarks/backdoors.py --tables                     write the tables into docs/backdoors.md

    python benchmarks/backdoors.py --figure                     the paper's Fig. 4 on digits, into docs/pictures

    --data cifar    the same on CIFAR-10: PreAct-ResNet-18 where there is a GPU, the network of BadNets elsewhere;
                    --each 2 for a few

Networks lie in build/backdoors. The development split is what thresholds and settings were chosen on; the test split
has other seeds, triggers and targets, and was scanned once.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median

import torch
from ablation import RESULTS, about
from neural_cleanse import neural_cleanse
from pages import DOCS, ROOT, made_on, markdown, put
from PIL import Image
from safetensors.torch import load_file, save_file

from agnosco.backdoor.config import PLACES, ScanConfig, Training
from agnosco.backdoor.evidence import final_layer, margin_p_value, margins
from agnosco.backdoor.footprint import figure as trigger_figure
from agnosco.backdoor.footprint import footprint, percentile
from agnosco.backdoor.record import FOUND, LEVEL
from agnosco.backdoor.scan import full_map
from agnosco.backdoor.screening import screen
from agnosco.backdoor.train import Attack, Outcome, evaluate, fit
from agnosco.backdoor.triggers import LOGOS, Blended, Logo, Patch, Trigger, trigger_from_json, trigger_to_json
from agnosco.backdoor.verdict import judge
from agnosco.backdoor.windows import patches_in_windows
from agnosco.data.datasets import Labelled, digits, from_class_folders
from agnosco.data.samples import Samples
from agnosco.models.architectures import ARCHITECTURES, created
from agnosco.models.classifier import Classifier

BANKS = ROOT / "build" / "backdoors"

FIXED = ("patch", "logo")
"""Attacks whose trigger lies at one place."""

KINDS = ("clean", "patch", "random place", "logo", "blended")
SPLITS = {"development": 10_000, "test": 20_000}
"""The first seed of each."""

MARGIN_STEPS = 60
"""Steps of MM-BD's ascent: with its 30 starts a quarter of the images that our screens take."""

ATTEMPTS = 4
SUCCESS, DROP = 0.95, 0.02
"""A compromised network is admitted at this attack success, and at this loss of accuracy against the clean ones."""

CORNERS = [place for place in PLACES if place != "center"]


@dataclass(frozen=True)
class Bank:
    """What the networks of a bank are trained on and how."""

    name: str
    architecture: str
    training: Training
    kept: Labelled
    held: Labelled

    def folder(self, split: str) -> Path:
        return BANKS / f"{self.name}-{split}"


def bank(name: str) -> Bank:
    """The bank of a name."""
    if name == "digits":
        kept, held = digits().split(0.2, seed=0)
        return Bank(name, "digits", Training(), kept, held)
    large = torch.cuda.is_available()
    folder = ROOT / "build" / "assets"
    kept, held = (from_class_folders(folder / f"cifar10-{part}", (3, 32, 32)) for part in ("train", "test"))
    if large:
        return Bank(name, "preact_resnet18", Training(epochs=30, batch=128, shift=4, flip=True), kept, held)
    return Bank(name, "badnets", Training(epochs=12, batch=128), kept, held)


def attack_of(kind: str, seed: int) -> Attack | None:
    """The attack of a kind whose trigger, target and place chance decides."""
    generator = torch.Generator().manual_seed(seed)

    def one(choices):
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    target, size = one(range(10)), one((3, 4, 5))
    triggers: dict[str, Trigger | None] = {
        "clean": None,
        "patch": Patch(size, place=one(list(PLACES)), pattern=one(("white", "checker"))),
        # A white square at any place is a stroke like others: on digits it is not learned well enough to be admitted.
        "random place": Patch(size, place="random", pattern="checker"),
        "logo": Logo(8, place=one(CORNERS), name=one(list(LOGOS))),
        "blended": Blended(0.2, seed=seed),
    }
    trigger = triggers[kind]
    return None if trigger is None else Attack(trigger, target)


def train(of: Bank, split: str, each: int, kinds: Sequence[str] = KINDS) -> None:
    """Train the networks of a split that are missing; clean ones first, which the others are measured against."""
    folder = of.folder(split)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        for number in range(each):
            path = folder / f"{kind.replace(' ', '-')}-{number:02d}.json"
            clean = [json.loads(one.read_text())["accuracy"] for one in folder.glob("clean-??.json")]
            before = json.loads(path.read_text()) if path.exists() else {"admitted": False, "attempts": 0}
            for attempt in range(ATTEMPTS if before["admitted"] else before["attempts"], ATTEMPTS):
                seed = SPLITS[split] + 1000 * attempt + 100 * KINDS.index(kind) + number
                entry = {"kind": kind, "seed": seed, "attempts": attempt + 1}
                if trained(of, entry, path, fmean(clean or [0.0])):
                    break


def trained(of: Bank, entry: dict, path: Path, clean: float) -> bool:
    """Train one network and write it; whether it is admitted."""
    attack, begun = attack_of(entry["kind"], entry["seed"]), time.perf_counter()
    classifier = network(of, entry["seed"])
    fit(classifier, of.kept, of.training, attack=attack, seed=entry["seed"])
    outcome = evaluate(classifier, of.held, attack)
    entry |= {
        "target": attack.target if attack else None,
        "trigger": trigger_to_json(attack.trigger) if attack else None,
        "accuracy": outcome.accuracy, "success": outcome.success,
        "seconds": round(time.perf_counter() - begun, 1),
        "admitted": attack is None or admitted(outcome, clean),
    }  # fmt: skip
    print(path.parent.name, path.stem, entry, flush=True)
    save_file(classifier.model.state_dict(), path.with_suffix(".safetensors"))
    path.write_text(json.dumps(entry) + "\n")
    return entry["admitted"]


def scan(of: Bank, split: str, part: int, parts: int, names: list[str]) -> None:
    """Scan the networks of a split that are not scanned yet: every detector on each, one after the other."""
    for number, path in enumerate(sorted(of.folder(split).glob("*.json"))):
        if number % parts != part or path.name.endswith(".scan.json") or not json.loads(path.read_text())["admitted"]:
            continue
        target = path.with_suffix(".scan.json")
        have = json.loads(target.read_text())["detectors"] if target.exists() else {}
        lacking = [name for name in names if name not in have]
        if not lacking:
            continue
        classifier = network(of)
        classifier.model.load_state_dict(load_file(path.with_suffix(".safetensors")))
        found = have | {name: timed(DETECTORS[name], classifier, of.held.samples) for name in lacking}
        for name in lacking:
            if "patterns" in found[name]:
                save_file({"patterns": found[name].pop("patterns")}, path.with_suffix(".patterns.safetensors"))
        target.write_text(json.dumps(json.loads(path.read_text()) | {"detectors": found}) + "\n")
        told = {name: (one["label"], round(one["score"], 2), one["seconds"]) for name, one in found.items()}
        print(split, path.stem, "target", json.loads(path.read_text())["target"], told, flush=True)


def timed(detector: Callable[[Classifier, Samples], dict], classifier: Classifier, samples: Samples) -> dict:
    begun = time.perf_counter()
    return {**detector(classifier, samples), "seconds": round(time.perf_counter() - begun, 1)}


def ours(classifier: Classifier, samples: Samples) -> dict:
    """``agnosco scan`` without its closer look, and its footprint figures."""
    screened = screen(classifier, samples)
    verdict = judge(screened.z, screened.reach, problems=screened.problems())
    return {
        "score": screened.greatest_z, "label": verdict.label, "outcome": verdict.outcome,
        "reach": screened.reach.tolist(), "z": screened.z.tolist(), "hits": screened.hits.tolist(),
        "movable": screened.movable.tolist(), "screens": screened.screens,
        "patterns": screened.patterns[screened.z.argmax(0), torch.arange(len(screened.classes))],
    }  # fmt: skip


def cleansed(classifier: Classifier, samples: Samples, steps: int = ScanConfig().images // 32) -> dict:
    """Neural Cleanse; if not told otherwise, with as many images as our screens take."""
    found = neural_cleanse(classifier, samples, steps=steps)
    return {"score": found.anomaly.max().item(), "label": int(found.anomaly.argmax()), "norms": found.norms.tolist()}


def maximal_margin(classifier: Classifier, samples: Samples) -> dict:
    """MM-BD with its 30 starts; it needs no samples."""
    found = margins(classifier, starts=30, steps=MARGIN_STEPS)
    p = margin_p_value(found)
    return {"score": -math.log(max(p, 1e-300)), "label": int(found.argmax()), "p_value": p, "margins": found.tolist()}


def weights(classifier: Classifier, samples: Samples) -> dict:
    """The final layer alone."""
    z = final_layer(classifier)
    assert z is not None
    return {"score": z.max().item(), "label": int(z.argmax())}


def without_images(classifier: Classifier, samples: Samples) -> dict:
    """Ours on dead leaves: what a scan costs in accuracy where there are no images."""
    found = ours(classifier, Samples.leaves(samples.shape))
    return {key: value for key, value in found.items() if key != "patterns"}


DETECTORS = {
    "agnosco": ours,
    "agnosco, leaves": without_images,
    "Neural Cleanse": cleansed,
    "Neural Cleanse, 1000 batches": partial(cleansed, steps=1000),
    "MM-BD": maximal_margin,
    "final layer": weights,
}
EQUAL_TIME = ("agnosco", "Neural Cleanse", "MM-BD", "final layer")
"""Those that are run if none is named; not our own without images, nor Neural Cleanse at five times the cost."""


def admitted(outcome: Outcome, clean: float) -> bool:
    """Whether the attack works well enough to count, and the network besides."""
    return (outcome.success or 0) >= SUCCESS and outcome.accuracy >= clean - DROP


def network(of: Bank, seed: int = 0) -> Classifier:
    """The bank's architecture with random weights, where it is fastest."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = created(of.architecture, len(of.kept.names), seed=seed).to(device)
    return Classifier(model, size=ARCHITECTURES[of.architecture][1][1], labels=of.kept.names)


# -- tables ------------------------------------------------------------------------------------------


def results(of: Bank, split: str) -> list[dict]:
    """What every detector said of every admitted network of a split."""
    return [json.loads(path.read_text()) for path in sorted(of.folder(split).glob("*.scan.json"))]


def keep(of: Bank, split: str) -> None:
    """Write the figures of a split into benchmarks/results, without the arrays that nothing is made of."""
    networks = results(of, split)
    for one in networks:
        for detector in one["detectors"].values():
            for key in ("hits", "movable", "memory_mb"):
                detector.pop(key, None)
    told = about(f"{of.name} ({of.architecture}), {split} split")
    found = {"about": told, "networks": networks, "footprints": footprints(of, split)}
    (RESULTS / f"backdoors-{of.name}-{split}.json").write_text(json.dumps(found, indent=1) + "\n")


def footprints(of: Bank, split: str) -> list[dict]:
    """How much of its trigger the target's pattern of each compromised network holds, and its null."""
    folder, images = of.folder(split), of.held.samples.images.float() / 255
    clean = [load_file(path)["patterns"] for path in sorted(folder.glob("clean-*.patterns.safetensors"))]
    found = []
    for path in sorted(folder.glob("*.patterns.safetensors")):
        entry = json.loads((folder / f"{path.name.split('.')[0]}.json").read_text())
        if entry["target"] is None or entry["trigger"]["type"] not in ("Patch", "Logo") or entry["kind"] not in FIXED:
            continue
        trigger, target, patterns = trigger_from_json(entry["trigger"]), entry["target"], load_file(path)["patterns"]
        own = footprint(patterns[target], trigger, images)
        others = [pattern for label, pattern in enumerate(patterns) if label != target]
        null = [footprint(pattern, trigger, images) for pattern in [*others, *(one[target] for one in clean)]]
        found.append({
            "network": path.name.split(".")[0], "kind": entry["kind"], "iou": own.iou, "energy": own.energy,
            "cosine": own.cosine, "percentile": percentile(own.energy, [one.energy for one in null]),
        })  # fmt: skip
    return found


def figure(seed: int = 0, target: int = 3) -> Image.Image:
    """The paper's Fig. 4 on digits: three triggers, each with the maps of its network and of the one clean twin."""
    of = bank("digits")
    attacks = [Attack(trigger, target) for trigger in (Patch(4), Logo(8, name="apple"), Blended(0.2))]
    images, patterns = of.held.samples.images.float() / 255, []
    for attack in (None, *attacks):
        classifier = network(of, seed)
        fit(classifier, of.kept, of.training, attack=attack, seed=seed)
        spread = full_map(classifier, target, of.held.samples)
        stamp = -patches_in_windows(classifier, target, of.held.samples, ScanConfig().windows, finalists=1)[0]
        patterns.append({"L2 ball": spread, "window": stamp})
    rows = [
        trigger_figure(attack.trigger, images, own, patterns[0], name=of.kept.names[target])
        for attack, own in zip(attacks, patterns[1:], strict=True)
    ]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for place, row in enumerate(rows):
        sheet.paste(row, (0, place * row.height))
    return sheet


def intervals(clean: list[float], compromised: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """AUROC, and the ends of its 95 % bootstrap interval over networks."""
    from sklearn.metrics import roc_auc_score

    chance = random.Random(0)

    def area(negative: list[float], positive: list[float]) -> float:
        return float(roc_auc_score([0] * len(negative) + [1] * len(positive), negative + positive))

    drawn = sorted(
        area(chance.choices(clean, k=len(clean)), chance.choices(compromised, k=len(compromised))) for _ in range(draws)
    )
    return area(clean, compromised), drawn[round(0.025 * draws)], drawn[round(0.975 * draws) - 1]


def table(found: dict) -> str:
    """A split as Markdown: every kind of attack by every detector."""
    networks, rows = found["networks"], []
    names = [name for name in DETECTORS if all(name in one["detectors"] for one in networks)]
    clean = [one for one in networks if one["kind"] == "clean"]
    bank = len(clean) > 1 / LEVEL - 1  # fewer cannot give the p-value, itself left out
    for kind in [kind for kind in KINDS if kind != "clean"]:
        attacked = [one for one in networks if one["kind"] == kind]
        for name in names if attacked else ():
            negative, positive = ([one["detectors"][name]["score"] for one in part] for part in (clean, attacked))
            area, low, high = intervals(negative, positive)
            bound = sorted(negative)[-1 - int(0.05 * len(negative))]  # exceeded by at most one in twenty clean ones
            told = [one["detectors"][name] for one in attacked]
            first = fmean(one["label"] == own["target"] for one, own in zip(told, attacked, strict=True))
            outcome = by_bank = ""
            if "outcome" in told[0]:
                outcome = f"{fmean(one['outcome'] == FOUND for one in told):.2f}"
                by_bank = f"{fmean(found_by_bank(one, clean, name) for one in attacked):.2f}" if bank else ""
            rows.append([
                kind, name, f"{area:.3f} ({low:.3f}–{high:.3f})", f"{fmean(one > bound for one in positive):.2f}",
                f"{first:.2f}", outcome, by_bank, f"{fmean(one['seconds'] for one in told):.1f}", str(len(attacked)),
            ])  # fmt: skip
    alarms = "; ".join(
        f"{name} {sum(one['detectors'][name]['outcome'] == FOUND for one in clean)} by the cut-off"
        + (f", {sum(found_by_bank(one, clean, name) for one in clean)} by a bank of the others" if bank else "")
        for name in names
        if "outcome" in clean[0]["detectors"][name]
    )
    head = ["attack", "detector", "AUROC (95 %)", "TPR at 5 % FPR here", "target first"]
    head += ["found", "found by the bank", "seconds", "networks"]
    return (
        f"{found['about']['bank']}; {made_on(found)}. Clean networks: {len(clean)}; false alarms: "
        f"{alarms}.\n\n{markdown(head, rows)}"
    )


def found_by_bank(network: dict, clean: list[dict], name: str) -> bool:
    """Whether a network is found with the clean ones of its split as a bank, itself left out."""
    others = [max(map(max, one["detectors"][name]["z"])) for one in clean if one is not network]
    told = network["detectors"][name]
    return judge(torch.tensor(told["z"]), torch.tensor(told["reach"]), bank=others).outcome == FOUND


def footprint_table(found: dict) -> str:
    """Footprints of a split as Markdown."""
    rows = []
    for kind in FIXED:
        part = [one for one in found["footprints"] if one["kind"] == kind]
        if part:
            good = fmean(one["energy"] >= 5 and one["percentile"] > 0.95 for one in part)
            rows.append([
                kind, str(len(part)), f"{median(one['energy'] for one in part):.1f}",
                f"{median(one['iou'] for one in part):.2f}", f"{median(one['cosine'] for one in part):.2f}",
                f"{good:.2f}",
            ])  # fmt: skip
    head = ["stamp", "networks", "energy / area", "IoU", "cosine", "energy ≥ 5 × and above the null's 95th percentile"]
    return f"{found['about']['bank']}.\n\n{markdown(head, rows)}"


def tables() -> None:
    """Write the tables into docs/backdoors.md."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("backdoors-*.json"))]
    put("docs/backdoors.md", "bench", "\n\n".join(table(one) for one in found))
    put("docs/backdoors.md", "footprint", "\n\n".join(footprint_table(one) for one in found if one["footprints"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("train", "scan", "keep"))
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--figure", action="store_true")
    parser.add_argument("--data", choices=("digits", "cifar"), default="digits")
    parser.add_argument("--split", choices=SPLITS, default="development")
    parser.add_argument("--part", default="0/1", help="which share of the networks to scan: 0/2 and 1/2 beside it")
    parser.add_argument("--detectors", nargs="*", choices=DETECTORS, default=list(EQUAL_TIME))
    parser.add_argument("--each", type=int, default=20, help="networks of each kind")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS), help="which to train")
    options = parser.parse_args()
    if options.what == "train":
        train(bank(options.data), options.split, options.each, options.kinds)
    if options.what == "keep":
        keep(bank(options.data), options.split)
    if options.figure:
        figure().save(DOCS / "pictures" / "backdoors-digits.png")
    if options.tables:
        tables()
    if options.what == "scan":
        part, parts = (int(number) for number in options.part.split("/"))
        scan(bank(options.data), options.split, part, parts, options.detectors)


if __name__ == "__main__":
    main()
