"""Banks of clean and compromised networks, and detectors on them, for docs/backdoors.md.

    python benchmarks/backdoors.py train --split development    train what is missing (test: the other split)
    python benchmarks/backdoors.py scan --split development     scan what is not scanned yet, baselines in the same run
    python benchmarks/backdoors.py --tables                     write the tables into docs/backdoors.md

    --data cifar    the same on CIFAR-10: PreAct-ResNet-18 where there is a GPU, WRN-16-1 elsewhere; --each 2 for a few

Networks lie in build/backdoors. The development split is what thresholds and settings were chosen on; the test split
has other seeds, triggers and targets, and was scanned once.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from neural_cleanse import neural_cleanse
from pages import ROOT
from safetensors.torch import load_file, save_file

from agnosco.architectures import ARCHITECTURES, created
from agnosco.backdoor.evidence import final_layer, margin_p_value, margins
from agnosco.backdoor.scan import ScanConfig, screen
from agnosco.backdoor.train import Attack, Outcome, Training, evaluate, fit
from agnosco.backdoor.triggers import LOGOS, PLACES, Blended, Logo, Patch, Trigger, trigger_to_json
from agnosco.backdoor.verdict import judge
from agnosco.classifier import Classifier
from agnosco.datasets import Labelled, digits, from_class_folders
from agnosco.samples import Samples

BANKS = ROOT / "build" / "backdoors"

KINDS = ("clean", "patch", "random place", "logo", "blended")
SPLITS = {"development": 10_000, "test": 20_000}
"""The first seed of each."""

MARGIN_STEPS = 60
"""Steps of MM-BD's ascent; with 30 starts and ten classes, half of the images that our screens take."""

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
    training = Training(epochs=30 if large else 12, batch=128, shift=4, flip=True)
    return Bank(name, "preact_resnet18" if large else "wide_resnet16_1", training, kept, held)


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


def train(of: Bank, split: str, each: int) -> None:
    """Train the networks of a split that are missing; clean ones first, which the others are measured against."""
    folder = of.folder(split)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        for number in range(each):
            path = folder / f"{kind.replace(' ', '-')}-{number:02d}.json"
            clean = [json.loads(one.read_text())["accuracy"] for one in folder.glob("clean-??.json")]
            for attempt in range(0 if path.exists() else ATTEMPTS):
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
    }  # fmt: skip


def cleansed(classifier: Classifier, samples: Samples) -> dict:
    """Neural Cleanse with as many images as our screens take."""
    config, search = ScanConfig(), ScanConfig().windows
    images = search.grid**2 * search.steps * search.batch + config.seeds * search.longer_steps * search.longer_batch
    images += 2 * config.seeds * config.steps * config.batch
    found = neural_cleanse(classifier, samples, steps=images // 32)
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


DETECTORS = {"agnosco": ours, "Neural Cleanse": cleansed, "MM-BD": maximal_margin, "final layer": weights}


def admitted(outcome: Outcome, clean: float) -> bool:
    """Whether the attack works well enough to count, and the network besides."""
    return (outcome.success or 0) >= SUCCESS and outcome.accuracy >= clean - DROP


def network(of: Bank, seed: int = 0) -> Classifier:
    """The bank's architecture with random weights, where it is fastest."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = created(of.architecture, len(of.kept.names), seed=seed).to(device)
    return Classifier(model, size=ARCHITECTURES[of.architecture][1][1], labels=of.kept.names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("train", "scan"))
    parser.add_argument("--data", choices=("digits", "cifar"), default="digits")
    parser.add_argument("--split", choices=SPLITS, default="development")
    parser.add_argument("--part", default="0/1", help="which share of the networks to scan: 0/2 and 1/2 beside it")
    parser.add_argument("--detectors", nargs="*", default=list(DETECTORS))
    parser.add_argument("--each", type=int, default=20, help="networks of each kind")
    options = parser.parse_args()
    if options.what == "train":
        train(bank(options.data), options.split, options.each)
    if options.what == "scan":
        part, parts = (int(number) for number in options.part.split("/"))
        scan(bank(options.data), options.split, part, parts, options.detectors)


if __name__ == "__main__":
    main()
