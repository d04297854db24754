"""What a picture is worth for its passes: losses, budgets and Horama, on random classes, at the networks' own size.

    python benchmarks/frontier.py resnet18                  measure the rows of ResNet-18 at 224 px that are missing
    python benchmarks/frontier.py resnet50 --classes 12     another source; the first twelve of the random classes
    python benchmarks/frontier.py resnet18 --size 112       another size; 32 for the CIFAR networks
    python benchmarks/frontier.py resnet18 --only budget    only rows whose name contains this
    python benchmarks/frontier.py resnet18 --picture        draw docs/pictures/peers-resnet18.jpg from saved pictures
    python benchmarks/frontier.py --figure                  draw docs/pictures/frontier.png
    python benchmarks/frontier.py --tables                  write the tables into docs/paper.md and docs/evidence.md

The rows of *budget* have the settings of ``quick`` and numbers of passes from 60 to 1,920; below 480, also other
mini-batches, step lengths, contrasts and a smaller ball. The rows of *loss* have 480 passes in that ball and differ in
w, the weight of the other classes in the loss: 0 is minus the logit of the class, 1 minus its log-odds. The row of
*views*, in that ball too, has no mirrored ones. Those of *Horama* are its ``fourier`` and ``maco``
at its best crops, those of *peers* the other methods of benchmarks/peers.py. Other networks judge the raw pictures; two
of them are of a family that is never a source. The classes are ``common.CHOICE_CLASSES``: settings are chosen on them,
so most tables of ``docs/evidence.md`` use others.

Answers are stored for each picture, so that intervals can be computed; pictures are saved in build/frontier. For
seconds beside Horama's, see benchmarks/speed.py.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import (
    CHOICE_CLASSES,
    DOCS,
    IMAGENET_NETWORKS,
    RESULTS,
    ROOT,
    add_row,
    answers,
    argument_parser,
    cifar_networks,
    fill,
    imagenet_network,
    in_short,
    markdown,
    measured_on,
    mobilenet_v1,
    photographs,
    read_results,
    same_settings,
)
from peers import BOX, Peer, others, save_spectrum
from PIL import Image
from torch import Tensor
from torchvision.utils import save_image

import agnosco
from agnosco import L2, Classifier, Config, Crops, Samples
from agnosco.method.config import config_to_json
from agnosco.method.prepare import prepared, resolve_precision
from agnosco.method.render import contact_sheet
from agnosco.method.score import predictions, targeted_success_rate

PASSES = 480
SMALLER = L2(70.0)
BUDGETS: dict[int, dict[str, Any]] = {
    60: {"batch": 2, "step": 0.6, "contrast": (0.2, 0.5), "ball": SMALLER},
    120: {"batch": 2, "step": 0.4, "contrast": (0.2, 0.5), "ball": SMALLER},
    240: {"batch": 2, "step": 0.2, "ball": SMALLER},
    PASSES: {},
    960: {},
    1920: {},
}
"""What differs from ``quick`` at each budget: few passes need small mini-batches, long steps, samples of little
contrast and a smaller ball."""
WEIGHTS = (1.0, 0.5, 0.0, 0.75, 0.25)
LINES = {"agnosco": ("budget:", "-"), "Horama fourier": ("Horama: fourier", "--"), "Horama maco": ("Horama: maco", ":")}
COLOURS = ("#2a5d84", "#a33b20", "#4c8c4a")
COLUMNS = 8  # of the picture


@dataclass(frozen=True)
class Row:
    """One row: settings of agnosco, or another method."""

    group: str
    name: str
    passes: int
    config: Config | None = None
    peer: Peer | None = None

    @property
    def key(self) -> str:
        """Its name in the file of results."""
        return f"{self.group}: {self.name}"


def rows() -> Iterator[Row]:
    """All rows."""
    quick = agnosco.preset("quick")
    crops = quick.mapper.transforms
    assert isinstance(crops, Crops)

    def mapped(passes: int, **changes: Any) -> Config:
        mapper = replace(quick.mapper, **changes)
        return replace(quick, mapper=replace(mapper, steps=passes // mapper.batch))

    for weight in WEIGHTS:
        yield Row("loss", f"w {weight:g}", PASSES, mapped(PASSES, loss=weight, ball=SMALLER))
    yield Row(
        "views", "without mirrored ones", PASSES, mapped(PASSES, transforms=replace(crops, flip=False), ball=SMALLER)
    )
    for passes, changes in BUDGETS.items():
        yield Row("budget", f"{passes} passes", passes, mapped(passes, **changes))
        for kind in ("fourier", "maco"):
            yield Row("Horama", f"{kind}, {passes} passes", passes, peer=Peer(kind, BOX))
    for name, peer in others():
        yield Row("peers", name, PASSES, peer=peer)


@dataclass(frozen=True)
class Setup:
    """A source, the networks that judge its pictures, and the classes."""

    source: Classifier
    judges: dict[str, Classifier]
    classes: tuple[int, ...]


def setup(name: str, size: int) -> Setup:
    """The setup of a source at a size; CIFAR's networks take 32 px."""
    if size == 32:
        networks = cifar_networks()
        return Setup(networks.pop(name), networks, tuple(range(10)))
    judges = {other: imagenet_network(other, size) for other in IMAGENET_NETWORKS if other != name}
    judges |= {f"mobilenet_v1_{width}": mobilenet_v1(width) for width in ("050", "025")}
    return Setup(imagenet_network(name, size), judges, CHOICE_CLASSES)


def make(
    row: Row, network: Classifier, samples: Samples, spectrum: Path, classes: Sequence[int], seeds: int
) -> list[tuple[Tensor, Tensor]]:
    """The pictures of a row with their ν, seed by seed, and class by class for each."""
    if row.config is not None:
        return [
            (concept.pixels, concept.nu)
            for seed in range(seeds)
            for concept in agnosco.map_classes(network, classes, samples, row.config, seeds=[seed])
        ]
    assert row.peer
    method = row.peer.method(network, spectrum, row.passes)
    pictures = [method(label, seed) for seed in range(seeds) for label in classes]
    return [(picture, 0.5 - picture) for picture in pictures]


def measure(name: str, size: int, count: int | None, seeds: int, only: str) -> None:
    """Measure the rows that have not been measured with as many pictures."""
    parts = setup(name, size)
    precision = resolve_precision("auto", parts.source.device)
    faster = prepared(parts.source, precision=precision)
    mapping, held_out = photographs(parts.source).split()
    before = predictions(parts.source, held_out)
    classes = parts.classes[:count]
    labels = [*classes] * seeds
    path = RESULTS / f"frontier-{name}-{size}px.json"
    title = f"{name} at {size} px"
    with tempfile.TemporaryDirectory() as folder:
        save_spectrum(mapping, Path(folder))
        for row in rows():
            key = row.key
            stored = read_results(path, {"rows": {}})["rows"].get(key)
            measured = stored and len(stored["labels"]) >= len(labels)
            if only not in key or (measured and (row.config is None or same_settings(stored["config"], row.config))):
                continue
            start = time.perf_counter()
            network = faster if row.peer else parts.source
            made = make(row, network, mapping, Path(folder), classes, seeds)
            seconds = (time.perf_counter() - start) / len(made)
            pictures = torch.stack([picture for picture, _ in made])
            config = row.config and config_to_json(replace(row.config, precision=precision))
            result = {
                "group": row.group, "passes": row.passes, "config": config, "precision": precision,
                "seconds": round(seconds, 2), "labels": labels, "seeds": seeds,
                "targeted_success_rate": [
                    round(targeted_success_rate(parts.source, nu, label, held_out, before=before), 4)
                    for (_, nu), label in zip(made, labels, strict=True)
                ],
                "symmetry": [round(symmetry(picture), 3) for picture in pictures],
                "own": answers(parts.source, pictures, labels),
                "others": {judge: answers(network, pictures, labels) for judge, network in parts.judges.items()},
            }  # fmt: skip
            save_image(pictures, picture_file(name, size, key), nrow=len(classes), padding=0)
            add_row(path, title, key, result)
            print(*cells(key, result), sep=" | ", flush=True)


def symmetry(picture: Tensor) -> float:
    """The correlation of a picture ``(C, H, W)`` with its mirror image, colour by colour: 1 if it is symmetric."""
    centred = picture - picture.mean((1, 2), keepdim=True)
    return float((centred * centred.flip(2)).sum() / centred.square().sum())


def picture_file(name: str, size: int, key: str) -> Path:
    """The file of the pictures of a row: one line for each seed."""
    folder = ROOT / "build" / "frontier" / f"{name}-{size}px"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', key).strip('-')}.png"


def compared(passes: int) -> list[Row]:
    """The rows of a number of passes that are compared: settings of ``quick``, then the other methods."""
    return [row for row in rows() if row.passes == passes and (row.peer or row.group == "budget")]


def draw(name: str, size: int, passes: int) -> None:
    """Draw pictures of the first classes: one row for ``quick`` and for each method of Horama at its best crops."""
    network = imagenet_network(name, size)
    results = read_results(RESULTS / f"frontier-{name}-{size}px.json")["rows"]
    shown = [row for row in compared(passes) if row.group != "peers" and row.key in results]
    tiles, captions = [], []
    for row in shown:
        with Image.open(picture_file(name, size, row.key)) as sheet:
            for column, label in enumerate(results[row.key]["labels"][:COLUMNS]):
                tiles.append(sheet.crop((column * size, 0, (column + 1) * size, size)))
                captions.append(network.labels[label])
    names = "; ".join(f"Horama {row.peer.kind}, box_size {row.peer.box}" if row.peer else "agnosco" for row in shown)
    footer = f"{name} at {size} px, {passes:,} passes a picture, seed 0, as measured. Rows: {names}."
    contact_sheet(tiles, captions, columns=COLUMNS, tile=size, footer=footer).save(
        DOCS / "pictures" / f"peers-{name}.jpg", quality=88, optimize=True
    )


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """A row of a table: M_score / top-1 of all classes / mean p of each judge, and their mean."""
    others = list(row["others"].values())
    mean = f"{fmean(fmean(judge['top1']) for judge in others):.2f} / {mean_p(row):.3f}"
    rates = row["targeted_success_rate"]
    return [
        f"{name} ({len(row['labels'])})",
        f"{row['passes']:,}",
        f"{fmean(row['own']['p']):.2f}",
        f"{fmean(rates):.3f} ({min(rates):.2f})",
        *map(in_short, others),
        mean,
    ]


def tables(pattern: str, keys: Collection[str]) -> str:
    """The rows of these keys as Markdown, of all files of results whose name matches a pattern."""
    parts = []
    for path in sorted(RESULTS.glob(pattern)):
        results = read_results(path)
        measured = {key: row for key, row in results["rows"].items() if key in keys}
        if not measured:
            continue
        first = next(iter(measured.values()))
        head = ["row", "passes", "own p", "targeted success rate (least)", *first["others"], "mean of judges"]
        parts.append(
            f"**{results['about']['title']}** (pictures in brackets); M_score / top-1 of all / mean p. "
            f"{measured_on(results)}.\n\n{markdown(head, [cells(*row) for row in measured.items()])}"
        )
    return "\n\n".join(parts)


def draw_frontier() -> None:
    """Draw mean p of the judges against passes, for every source at 224 px that has several budgets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chart, panel = pyplot.subplots(figsize=(8, 4.8))
    for path, colour in zip(sorted(RESULTS.glob("frontier-*-224px.json")), COLOURS * 2, strict=False):
        measured = read_results(path)["rows"]
        count = min(len(row["labels"]) for row in measured.values())  # all points are of the same classes
        for method, (start, style) in LINES.items():
            chosen = [row for key, row in measured.items() if key.startswith(start)]
            if len(chosen) > 1:
                points = sorted((row["passes"], mean_p(row, count)) for row in chosen)
                label = f"{path.stem.split('-')[1]}, {method}"
                panel.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=label)
    panel.set(xscale="log", xlabel="passes per picture", ylim=(0, 1))
    panel.set_ylabel("mean probability of the class, five other networks")
    panel.set_xticks(list(BUDGETS), [f"{passes:,}" for passes in BUDGETS])
    panel.minorticks_off()
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    chart.tight_layout()
    chart.savefig(DOCS / "pictures" / "frontier.png", dpi=100)


def mean_p(row: dict[str, Any], count: int | None = None) -> float:
    """The mean probability of the class over the judges of a row, of its first ``count`` pictures or of all."""
    return fmean(fmean(judge["p"][:count]) for judge in row["others"].values())


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--figure", action="store_true", help="draw quality against passes; measure nothing")
    parser.add_argument("source", nargs="?", help="an ImageNet network of the assets, or with --size 32 one of CIFAR")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--classes", type=int, help="how many of the random classes (default: all)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--picture", action="store_true", help="draw the pictures of a source; measure nothing")
    parser.add_argument(
        "--passes", type=int, default=PASSES, help="which rows the pictures are of (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.tables:
        fill("docs/paper.md", "frontier", tables("frontier-*.json", {r.key for r in rows() if r.group != "peers"}))
        fill("docs/evidence.md", "peers", tables("frontier-*-224px.json", {row.key for row in compared(PASSES)}))
    elif options.figure:
        draw_frontier()
    elif options.picture:
        draw(options.source, options.size, options.passes)
    elif options.source:
        measure(options.source, options.size, options.classes, options.seeds, options.only)
    else:
        parser.print_usage()


if __name__ == "__main__":
    main()
