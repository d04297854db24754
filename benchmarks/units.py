"""Units and directions of ResNet-18's layers: does a map raise what it was asked for, and nothing else as much?

    python benchmarks/units.py                  50 channels at random of three layers, and 20 directions of each
    python benchmarks/units.py --only layer3.1  only rows whose name contains this
    python benchmarks/units.py --picture        draw docs/pictures/units.jpg from units at 224 px
    python benchmarks/units.py --tables         write the table into docs/evidence.md

A channel's activation is its mean over all places; pictures are at 112 px, preset ``quick``. For each, the table says
how often it exceeds the 99.9th percentile of the same channel's activations on the photographs of the assets, and how
often no other channel of the layer is raised by more of its own standard deviations over the photographs. Directions
with a planted answer are sums of two to four channels with random weights: the table gives the cosine between the
direction and how the picture's features differ from the photographs' mean, in standard deviations, beside that of the
best photograph.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from common import (
    ASSETS,
    DEVICE,
    DOCS,
    RESULTS,
    add_row,
    argument_parser,
    fill,
    markdown,
    measured_on,
    photographs,
    read_results,
)
from torch import Tensor

import agnosco
from agnosco import Classifier
from agnosco.method.config import config_to_json
from agnosco.method.render import contact_sheet
from agnosco.method.score import logits_of

PATH = RESULTS / "units.json"
LAYERS = {"layer2.1": 128, "layer3.1": 256, "layer4.1": 512}
CHANNELS, DIRECTIONS, PERCENTILE = 50, 20, 0.999
SHOWN, COLUMNS = 8, 8  # channels of each layer in the picture, the first of the random ones
QUICK = agnosco.preset("quick")


def network(layer: str, size: int = 112, directions: Mapping[str, Tensor] | None = None) -> Classifier:
    """ResNet-18 with the weights of the assets, asked at a layer."""
    weights = ASSETS / "models" / "resnet18-imagenet.safetensors"
    name = "torchvision:resnet18"
    return agnosco.load(name, weights=weights, size=size, at=layer, directions=directions, device=DEVICE)


def channels(layer: str) -> list[int]:
    """The channels of a layer that are mapped, chosen at random with a seed."""
    return sorted(random.Random(f"units of {layer}").sample(range(LAYERS[layer]), CHANNELS))


def planted(layer: str) -> dict[str, Tensor]:
    """Directions of random channels and weights, each of length 1."""
    generator = torch.Generator().manual_seed(0)
    directions = {}
    for index in range(DIRECTIONS):
        count = 2 + index % 3
        chosen = torch.randperm(LAYERS[layer], generator=generator)[:count]
        weights = 0.5 + torch.rand(count, generator=generator)
        direction = torch.zeros(LAYERS[layer]).index_copy(0, chosen, weights)
        directions[f"{count} channels, {index:02d}"] = direction / direction.norm()
    return directions


def pictures_of(classifier: Classifier, labels: Sequence[int]) -> Tensor:
    """Pictures ``(N, C, H, W)`` of targets, seed 0."""
    mapping, _ = photographs(classifier).split()
    return torch.stack([concept.pixels for concept in agnosco.map_classes(classifier, labels, mapping, QUICK)])


def measure_channels(layer: str) -> dict[str, Any]:
    """What the maps of channels do to the layer."""
    classifier, chosen = network(layer), channels(layer)
    usual = logits_of(classifier, photographs(classifier).images.float() / 255)
    answers = logits_of(classifier, pictures_of(classifier, chosen))
    own = answers[range(len(chosen)), chosen]
    raised = ((answers - usual.mean(0)) / usual.std(0).clamp(min=1e-6)).argmax(1)
    return {
        "channels": chosen,
        "above": (own > usual.quantile(PERCENTILE, 0)[chosen]).int().tolist(),
        "most_raised": (raised == torch.tensor(chosen)).int().tolist(),
        "times_the_percentile": [round(v, 3) for v in (own / usual.quantile(PERCENTILE, 0)[chosen]).tolist()],
    }


def measure_directions(layer: str) -> dict[str, Any]:
    """How well the features of the maps of planted directions point along them, beside the best photograph's."""
    directions = planted(layer)
    whole, classifier = network(layer), network(layer, directions=directions)
    usual = logits_of(whole, photographs(whole).images.float() / 255)
    scale = usual.std(0).clamp(min=1e-6)
    features = logits_of(whole, pictures_of(classifier, range(len(directions))))
    rows = torch.stack(list(directions.values()))
    found = torch.cosine_similarity((features - usual.mean(0)) / scale, rows / scale)
    best = torch.cosine_similarity(((usual - usual.mean(0)) / scale)[:, None], (rows / scale)[None], dim=2).amax(0)
    return {
        "directions": list(directions),
        "cosine": [round(value, 3) for value in found.tolist()],
        "best_photograph": [round(value, 3) for value in best.tolist()],
    }


def measure(only: str) -> None:
    """Measure the rows whose name contains a text."""
    rows = {f"channels of {layer}": (measure_channels, layer) for layer in LAYERS}
    rows |= {f"directions in {layer}": (measure_directions, layer) for layer in LAYERS}
    for name, (measured, layer) in rows.items():
        if only in name:
            row = measured(layer) | {"layer": layer, "config": config_to_json(QUICK)}
            add_row(PATH, "Units and directions of ResNet-18 at 112 px, preset quick", name, row)
            print(*cells(name, row), sep=" | ", flush=True)


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    if "cosine" in row:
        ahead = fmean(ours > best for ours, best in zip(row["cosine"], row["best_photograph"], strict=True))
        cosines = f"{fmean(row['cosine']):.2f} / {fmean(row['best_photograph']):.2f} / {ahead:.2f}"
        return [f"{name} ({len(row['cosine'])})", "", "", "", cosines]
    times = f"{fmean(row['times_the_percentile']):.1f} ({min(row['times_the_percentile']):.1f})"
    return [
        f"{name} ({len(row['channels'])})", f"{fmean(row['above']):.2f}", f"{fmean(row['most_raised']):.2f}", times, "",
    ]  # fmt: skip


def tables() -> str:
    """The results as Markdown."""
    results = read_results(PATH)
    head = ["row (pictures)", "above the photographs' 99.9th percentile", "most raised of its layer"]
    head += ["times that percentile (least)", "cosine to the planted direction: map / best photograph / share ahead"]
    return f"{measured_on(results)}.\n\n{markdown(head, [cells(*row) for row in results['rows'].items()])}"


def draw() -> None:
    """Draw the first channels of each layer at 224 px, one row for each layer."""
    tiles, captions = [], []
    for layer in LAYERS:
        classifier, chosen = network(layer, 224), channels(layer)[:SHOWN]
        mapping, _ = photographs(classifier).split()
        for concept in agnosco.map_classes(classifier, chosen, mapping, QUICK):
            tiles.append(concept.display())
            captions.append(classifier.labels[concept.label])
    footer = f"Channels of ResNet-18 at 224 px, chosen at random; preset quick, {QUICK.passes} passes a map, seed 0."
    contact_sheet(tiles, captions, columns=COLUMNS, tile=224, footer=footer).save(
        DOCS / "pictures" / "units.jpg", quality=88, optimize=True
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--picture", action="store_true", help="draw the picture; measure nothing")
    options = parser.parse_args()
    if options.tables:
        fill("docs/evidence.md", "units", tables())
    elif options.picture:
        draw()
    else:
        measure(options.only)


if __name__ == "__main__":
    main()
