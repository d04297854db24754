"""``agnosco diff`` on networks that were tampered with, copied, trained anew or only mapped anew, for docs/evidence.md.

    python benchmarks/differences.py train       train the twenty digits networks with a backdoor, and their clean twins
    python benchmarks/differences.py measure     map and compare all pairs that have not been compared
    python benchmarks/differences.py --tables    write the table into docs/evidence.md

Networks and runs are in build/differences. Every run has three seeds of the preset ``plain``. The statistic and this
preset were chosen on twins of other seeds.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Any

import torch
from backdoors import DROP, SUCCESS, Pool, attack_of, pool_named
from common import (
    RESULTS,
    ROOT,
    add_row,
    argument_parser,
    cifar_network,
    cifar_networks,
    fill,
    markdown,
    measured_on,
    photographs,
    read_results,
)
from safetensors.torch import load_file

from agnosco import Classifier, Run, Samples, diff, map_runs, preset
from agnosco.backdoor.poison import poison
from agnosco.data.datasets import digits
from agnosco.evaluate.diff_record import DiffRecord
from agnosco.io import records
from agnosco.method.config import config_to_json

PATH = RESULTS / "differences.json"
FOLDER = ROOT / "build" / "differences"

TWINS, START, ATTEMPTS, EPOCHS = 20, 50_000, 4, 8
"""Pairs of digits networks, the seed of the first, how often one is trained until its backdoor works, and for how
long."""

KINDS = ("patch", "logo", "blended", "random place")
"""Of the backdoors, in turn."""

PRESET = "plain"
SEEDS = (0, 1, 2)
OTHER_SEEDS = (3, 4, 5)

COPY = " in bfloat16"
"""Ends the name of a network whose weights are rounded."""


@dataclass(frozen=True)
class Pair:
    """Two networks to compare, by name; ``target`` is the class of the backdoor that one of them has.

    ``seeds`` are those of the second run.
    """

    kind: str
    first: str
    second: str
    target: int | None = None
    seeds: tuple[int, ...] = SEEDS

    @property
    def name(self) -> str:
        """What the results call it."""
        return f"{self.first} and {self.second}" + (", other seeds" if self.seeds != SEEDS else "")


def pairs() -> Iterator[Pair]:
    """All of them."""
    for number in range(TWINS):
        attack, name = admitted(number)["attack"], f"digits-{number:02d}"
        kind = f"digits, {KINDS[number % len(KINDS)]}"
        yield Pair(kind, f"{name} clean", f"{name} compromised", target=attack["target"])
    yield Pair("CIFAR-10, NAD's network and erased", "wrn16_1", "wrn16_1 backdoored", target=5)
    for network in ("digits-00 clean", "resnet20"):
        yield Pair("copy in bfloat16", network, network + COPY)
        yield Pair("the same network, other seeds", network, network, seeds=OTHER_SEEDS)
    yield Pair("trained anew", "digits-00 clean", "digits-01 clean")


# -- networks and runs ----------------------------------------------------------------------------------


@cache
def pool() -> Pool:
    """The pool of digits networks of benchmarks/backdoors.py, trained for a shorter time."""
    usual = pool_named("digits")
    return replace(usual, training=replace(usual.training, epochs=EPOCHS))


def train() -> None:
    """Train the twins that are missing, each until its backdoor works and does no harm otherwise."""
    for number in range(TWINS):
        for attempt in range(ATTEMPTS):
            out, seed = FOLDER / f"digits-{number:02d}", START + 1000 * attempt + number
            if not (out / "manifest.json").exists():
                attack = attack_of(KINDS[number % len(KINDS)], seed)
                assert attack is not None
                data = pool().train_images, pool().test_images
                poison(out, lambda seed=seed: pool().network(seed), *data, attack, pool().training, seed=seed)
            if works(said := admitted(number)["networks"]):
                print(out.name, said, flush=True)
                break
            shutil.rmtree(out)


def admitted(number: int) -> dict[str, Any]:
    """The manifest of a pair of twins."""
    return read_results(FOLDER / f"digits-{number:02d}" / "manifest.json")


def works(networks: dict[str, Any]) -> bool:
    """Whether a backdoor works, and the network is as accurate as its twin."""
    compromised, clean = networks["compromised"], networks["clean"]
    return compromised["attack_success"] >= SUCCESS and compromised["accuracy"] >= clean["accuracy"] - DROP


def network_named(name: str) -> Classifier:
    """A network by the name that it has in :func:`pairs`."""
    if name.endswith(COPY):
        classifier = network_named(name.removesuffix(COPY))
        with torch.no_grad():
            for tensor in (*classifier.model.parameters(), *classifier.model.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(tensor.bfloat16())
        return classifier
    if name.startswith("digits"):
        folder, which = name.split()
        classifier = pool().network()
        classifier.model.load_state_dict(load_file(FOLDER / folder / f"{which}.safetensors"))
        return classifier
    if name == "wrn16_1 backdoored":
        return cifar_network("WideResNet(16,1)", "wrn16_1-nad-grid-target5")
    return cifar_networks()[name]


def samples_of(classifier: Classifier) -> Samples:
    """What a network is mapped with."""
    return digits().samples if classifier.shape[0] == 1 else photographs(classifier)


def complete_run(name: str, classifier: Classifier, seeds: Sequence[int]) -> Run:
    """The run of a network with these seeds; maps that are missing are made."""
    images = samples_of(classifier)
    folder = FOLDER / "runs" / f"{name.replace(' ', '-')}-seeds-{seeds[0]}"
    run = Run.create(folder, classifier=classifier, samples=images, config=PRESET)
    for _ in map_runs(run, classifier, images, range(classifier.classes), seeds=seeds):
        pass
    return run


def measure(only: str) -> None:
    """Compare the pairs that have not been compared."""
    for pair in pairs():
        if only not in pair.name or pair.name in read_results(PATH, {"rows": {}})["rows"]:
            continue
        networks = [network_named(name) for name in (pair.first, pair.second)]
        first = complete_run(pair.first, networks[0], SEEDS)
        second = complete_run(pair.second, networks[1], pair.seeds)
        record = diff(first, second, networks, samples_of(networks[0]))
        row = {"kind": pair.kind, "target": pair.target} | figures(record)
        add_row(PATH, "differences between networks", pair.name, row, config=config_to_json(preset(PRESET)))
        print(pair.name, row, flush=True)


def figures(record: DiffRecord) -> dict[str, Any]:
    """What is kept of a comparison: of each class, most changed first, index, change and p-value; and all else."""
    return {
        "threshold": record.threshold,
        "order": [row.index for row in record.classes],
        "change": [round(row.change, 2) for row in record.classes],
        "p_value": [row.p_value for row in record.classes],
        "classes": [
            {name: value for name, value in records.to_json(row).items() if name not in ("change", "p_value", "class")}
            for row in record.classes
        ],  # what each network answers, in the same order
    }


# -- tables -----------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """All pairs, kind by kind, as Markdown."""
    rows = list(results["rows"].values())
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    head = [
        "pairs", "number", "target first", "change of the target: median (least)",
        "greatest of the others: median (most)", "classes beyond the seeds' own 95 %",
    ]  # fmt: skip
    lines = [cells(kind, [row for row in rows if row["kind"] == kind]) for kind in kinds]
    digits_rows = [row for row in rows if row["kind"].startswith("digits")]
    lines.insert(len({row["kind"] for row in digits_rows}), cells("all digits", digits_rows))
    return f"{measured_on(results)}.\n\n{markdown(head, lines)}"


def cells(kind: str, rows: list[dict[str, Any]]) -> list[str]:
    """The line of some pairs."""
    targets = [row["change"][row["order"].index(row["target"])] for row in rows if row["target"] is not None]
    first = sum(row["order"][0] == row["target"] for row in rows)
    others = [
        max(change for index, change in zip(row["order"], row["change"], strict=True) if index != row["target"])
        for row in rows
    ]
    beyond = [sum(p <= 0.05 for p in row["p_value"]) for row in rows]
    return [
        kind, str(len(rows)),
        f"{first} of {len(rows)}" if targets else "–",
        f"{median(targets):.1f} ({min(targets):.1f})" if targets else "–",
        f"{median(others):.1f} ({max(others):.1f})",
        f"{' to '.join(map(str, sorted({min(beyond), max(beyond)})))} of {len(rows[0]['order'])}",
    ]  # fmt: skip


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("what", nargs="?", choices=("train", "measure"))
    parser.add_argument("--only", default="", help="only pairs whose name contains this")
    options = parser.parse_args()
    if options.what == "train":
        train()
    if options.what == "measure":
        measure(options.only)
    if options.tables:
        fill("docs/evidence.md", "differences", table(read_results(PATH)))


if __name__ == "__main__":
    main()
