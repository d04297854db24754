"""What other networks see in a picture beside its class, and the mistakes that networks make on photographs.

    python benchmarks/lookalikes.py cifar       two sources; answers beside the confusion on held-out images
    python benchmarks/lookalikes.py imagenet    ResNet-18 at 224 px: its strongest pairs
    python benchmarks/lookalikes.py --tables    write the tables into docs/evidence.md

The maps are those of ``quick``, of the runs in build/table1; those that are missing are made. The matrix is that of the
report (:mod:`agnosco.evaluate.lookalikes`): the mean over networks that had no part in the maps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import (
    ASSETS,
    RESULTS,
    TABLE_CLASSES,
    add_row,
    argument_parser,
    fill,
    markdown,
    measured_on,
    read_results,
)
from scipy.stats import spearmanr
from table1 import complete_run, judges, samples

import agnosco
from agnosco import Classifier, Run
from agnosco.data.datasets import Labelled, from_class_folders
from agnosco.evaluate.lookalikes import Lookalikes, lookalikes
from agnosco.evaluate.transfer import score
from agnosco.method.score import probabilities_of

PATH, TITLE = RESULTS / "lookalikes.json", "what else is seen in a picture, and confusion on photographs"
SOURCES = {"cifar": ("resnet20", "resnet56"), "imagenet": ("resnet18",)}
SIZES = {"cifar": 32, "imagenet": 224}
SEEDS = {"cifar": 3, "imagenet": 1}
CLASSES = {"cifar": tuple(range(10)), "imagenet": TABLE_CLASSES[:30]}
RESAMPLES = 2000
MEASURED = ("with_source", "with_judges")


def run_of(family: str, name: str) -> Run:
    """The run of a source, with every map."""
    source = judges(family, SIZES[family])[name]()
    folder = f"{family}-quick-{SIZES[family]}px-{name}"
    images = samples(family, None, source)
    return complete_run(folder, source, images, agnosco.preset("quick"), CLASSES[family], SEEDS[family])


def judged(family: str, name: str, run: Run) -> Lookalikes:
    """The matrix of a source's run, by all other networks of its family."""
    others = {other: load for other, load in judges(family, SIZES[family]).items() if other != name}
    found = lookalikes(run.entries, [score(run, load()) for load in others.values()])
    assert found is not None
    return found


def confusion(classifier: Classifier, images: Labelled) -> np.ndarray[Any, Any]:
    """Mean probabilities ``(classes, classes)``: row i, those that images of class i are given."""
    probabilities = probabilities_of(classifier, images.samples).double()
    return torch.stack([probabilities[images.labels == label].mean(0) for label in range(len(images.names))]).numpy()


def rank_correlation(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    """Spearman's, over pairs of two classes."""
    off = ~np.eye(len(first), dtype=bool)
    correlation: Any = spearmanr(first[off], second[off])
    return float(correlation[0])


def interval(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> list[float]:
    """Bootstrapped 95 % interval of that correlation, over classes."""
    generator = np.random.default_rng(0)
    values = []
    for _ in range(RESAMPLES):
        rows = np.unique(generator.integers(len(first), size=len(first)))
        values.append(rank_correlation(first[np.ix_(rows, rows)], second[np.ix_(rows, rows)]))
    return [float(end) for end in np.nanpercentile(values, (2.5, 97.5))]


def measure(family: str) -> None:
    """The sources of a family."""
    for name in SOURCES[family]:
        run = run_of(family, name)
        found = judged(family, name, run)
        row: dict[str, Any] = {
            "family": family, "maps": len(run.entries), "judges": found.judges,
            "pairs": [(pair.name, pair.other, round(pair.p, 4)) for pair in found.pairs(10)],
        }  # fmt: skip
        if family == "cifar":
            images = from_class_folders(ASSETS / "cifar10-test", (3, 32, 32))
            networks = {other: load() for other, load in judges(family, 32).items()}
            own = confusion(networks[name], images)
            of_judges = np.mean([confusion(networks[other], images) for other in networks if other != name], 0)
            row |= {
                "with_source": rank_correlation(found.p, own), "with_source_interval": interval(found.p, own),
                "with_judges": rank_correlation(found.p, of_judges),
                "with_judges_interval": interval(found.p, of_judges),
                "source_with_judges": rank_correlation(own, of_judges),
            }  # fmt: skip
        add_row(PATH, TITLE, name, row)
        print(name, row, flush=True)


def tables() -> str:
    """The results as Markdown."""
    results = read_results(PATH)
    rows = results["rows"]
    head = ["maps of", "with the source's own confusion", "with the judges' confusion", "source's with the judges'"]
    body = [
        [
            f"{name} ({row['maps']})",
            *(f"{row[key]:.2f} ({row[f'{key}_interval'][0]:.2f}-{row[f'{key}_interval'][1]:.2f})" for key in MEASURED),
            f"{row['source_with_judges']:.2f}",
        ]
        for name, row in rows.items()
        if row["family"] == "cifar"
    ]
    pairs = [
        [f"{name}", *pair[:2], f"{pair[2]:.3f}"]
        for name, row in rows.items()
        if row["family"] == "imagenet"
        for pair in row["pairs"]
    ]
    parts = [markdown(head, body)] if body else []
    parts += [markdown(["maps of", "pictures of", "also look like", "p"], pairs)] if pairs else []
    return "\n\n".join([f"{measured_on(results)}.", *parts])


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("family", nargs="?", choices=SOURCES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.family:
        measure(options.family)
    if options.tables:
        fill("docs/evidence.md", "lookalikes", tables())


if __name__ == "__main__":
    main()
