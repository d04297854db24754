"""agnosco beside other methods: the same source, classes, image passes, judges and metrics, in one run.

    python benchmarks/peers.py                           ResNet-18 at 112 px, ten classes, one seed
    python benchmarks/peers.py --source resnet50         another source
    python benchmarks/peers.py --only quick --seeds 3    rows of this name with more seeds: for the best ones
    python benchmarks/peers.py --fresh --only NAME       ten random classes, on which nothing was chosen
    python benchmarks/peers.py --tables                  write the tables into docs/evidence.md
    python benchmarks/peers.py --picture                 draw docs/pictures/peers-SOURCE.jpg: the best row of each

Methods to compare with:

- Horama 0.3.0, ``fourier`` and ``maco``, over a small grid of crops and image sizes; ``fourier`` at its own defaults
  too. The spectrum of ``maco`` is averaged from the same photographs that agnosco uses: its own has to be downloaded.
- Optimization of pixels in the manner of DeepInversion (Yin et al. 2020): Adam, jitter, flips, total variation and L2.
  It lacks DeepInversion's prior on batch-norm statistics, because the networks here have folded batch norms.

A pass is one image forward and back through the source. Every method gets the passes of ``quick``; one row of Horama
has its own 1,000 steps. Pictures are made in bfloat16 where the CPU supports it, scored in float32, and saved in
build/peers. For seconds, see benchmarks/speed.py.

Horama 0.3.0 draws the side of a crop between the larger value of ``box_size`` and that plus their difference. So (0.2,
0.25), its default, shows 0.25 to 0.30 of the picture's side, (0.1, 0.5) 0.5 to 0.9, and (0.5, 0.9) 0.9 to 1.3, beyond
its borders.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from common import (
    DOCS,
    FRESH_CLASSES,
    IMAGENET_NETWORKS,
    RESULTS,
    ROOT,
    TRIAL_CLASSES,
    add_row,
    argument_parser,
    fill,
    imagenet_network,
    judged,
    markdown,
    measured_on,
    photographs,
    read_results,
    same_settings,
)
from PIL import Image
from table1 import complete_run
from torch import Tensor
from torchvision.utils import save_image

import agnosco
from agnosco import Classifier, ConceptMap, Config, Data, Samples
from agnosco.method.config import config_to_json
from agnosco.method.parameterization import FourierBasis
from agnosco.method.prepare import prepared, resolve_precision
from agnosco.method.render import contact_sheet

PASSES = agnosco.preset("quick").passes
TILE = 160  # side of a picture in the figure
CROPS_PER_STEP = 6  # Horama's default
BOXES = ((0.5, 0.9), (0.1, 0.5), (0.2, 0.25))
Method = Callable[[int, int], tuple[Tensor, Tensor | None]]
"""Takes class and seed; returns a picture ``(C, H, W)`` in [0, 1], and ν if the method has one."""


def agnosco_quick(folder: str, network: Classifier, images: Samples, classes: Sequence[int], seeds: int) -> Method:
    """Maps of agnosco, from the run of benchmarks/table1.py if it has them."""

    @cache
    def concepts() -> dict[tuple[int, int], ConceptMap]:
        run = complete_run(folder, network, images, agnosco.preset("quick"), classes, seeds)
        return {(concept.label, concept.seed): concept for concept in run.maps()}

    return lambda label, seed: (concepts()[label, seed].pixels, concepts()[label, seed].nu)


def horama(
    network: Classifier, spectrum: Path | None, size: int, box: tuple[float, float], steps: int, label: int, seed: int
) -> tuple[Tensor, None]:
    """A picture by Horama: ``maco`` if given a folder with a spectrum, else ``fourier``."""
    from horama import fourier, maco

    torch.manual_seed(seed * 1000 + label)
    side = network.shape[1]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.mean, network.std))

    def objective(images: Tensor) -> Tensor:  # Horama's images are normalized already
        return network.model(images)[:, label].mean()

    options = {
        "total_steps": steps, "image_size": size, "model_input_size": side, "box_size": box,
        "crops_per_iteration": CROPS_PER_STEP, "device": "cpu",
    }  # fmt: skip
    with network.frozen(), contextlib.redirect_stderr(io.StringIO()):
        if spectrum is None:
            image, _ = fourier(objective, **options)
        else:
            here = Path.cwd()
            os.chdir(spectrum)  # maco looks for its file in the working directory
            try:
                image, _ = maco(objective, **options)
            finally:
                os.chdir(here)
    picture = (image.detach() * std + mean).clamp(0, 1)
    return torch.nn.functional.interpolate(picture[None], size=(side, side), mode="bilinear", antialias=True)[0], None


def deep_inversion(network: Classifier, tv: float, batch: int, label: int, seed: int) -> tuple[Tensor, None]:
    """A picture by DeepInversion's image priors, without its prior on batch-norm statistics.

    Args:
        network: The source.
        tv: Weight of the total variation.
        batch: Jittered copies of the picture per step.
        label: The class.
        seed: Seed of the first picture and of the jitter.
    """
    torch.manual_seed(seed * 1000 + label)
    image = (0.5 + 0.1 * torch.randn(1, *network.shape)).requires_grad_()
    adam = torch.optim.Adam([image], lr=0.05, betas=(0.5, 0.9))
    target = torch.full((batch,), label)
    with network.frozen():
        for _ in range(PASSES // batch):
            jittered = []
            for _ in range(batch):
                shift = torch.randint(-8, 9, (2,)).tolist()
                moved = image.roll(shift, (2, 3))
                jittered.append(moved.flip(3) if torch.rand(()) < 0.5 else moved)
            variation = image.diff(dim=2).square().mean() + image.diff(dim=3).square().mean()
            loss = torch.nn.functional.cross_entropy(network(torch.cat(jittered)), target)
            loss = loss + tv * variation + 0.01 * (image - 0.5).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                image.clamp_(0, 1)
    return image.detach()[0], None


def save_spectrum(samples: Samples, folder: Path) -> None:
    """Save the spectrum that ``maco`` loads: mean magnitudes of the photographs, as ``Data`` measures them."""
    basis = Data(exponent=1.0).fit(samples, torch.device("cpu"))
    assert isinstance(basis, FourierBasis)
    np.save(folder / "spectrum_decorrelated.npy", basis.spectrum.expand(3, -1, -1).numpy())


def peers(network: Classifier, spectrum: Path) -> dict[str, Method]:
    """The methods to compare with."""
    side = network.shape[1]
    methods: dict[str, Method] = {}
    for kind, folder in (("fourier", None), ("maco", spectrum)):
        for size in (side, 2 * side) if kind == "fourier" else (side,):
            for box in BOXES:
                name = f"Horama {kind}, {size} px, box_size {box}"
                methods[name] = partial(horama, network, folder, size, box, PASSES // CROPS_PER_STEP)
    for tv in (10.0, 100.0):
        methods[f"DeepInversion-style pixels, tv {tv:g}"] = partial(deep_inversion, network, tv, 8)
    methods["Horama fourier, its default crops and image size: 1280 px, box_size (0.2, 0.25)"] = partial(
        horama, network, None, 1280, BOXES[-1], PASSES // CROPS_PER_STEP
    )
    methods[f"Horama fourier, its own 1,000 steps, {side} px, box_size {BOXES[0]}"] = partial(
        horama, network, None, side, BOXES[0], 1000
    )
    return methods


def measure(source: str, only: str, seeds: int, fresh: bool) -> None:
    """Measure the methods that have not been measured, in one run."""
    network = imagenet_network(source)
    precision = resolve_precision("auto", network.device)
    faster = prepared(network, precision=precision)
    judges = {name: imagenet_network(name) for name in IMAGENET_NETWORKS if name != source}
    images = photographs(network)
    mapping, held_out = images.split()
    classes = FRESH_CLASSES if fresh else TRIAL_CLASSES
    path = RESULTS / f"peers-{source}{'-fresh' if fresh else ''}.json"
    title = f"{source} at 112 px, {'ten random classes' if fresh else 'ten classes'}, {PASSES:,} passes per picture"
    stored = read_results(path, {"rows": {}})["rows"]
    labels = [label for _ in range(seeds) for label in classes]
    with tempfile.TemporaryDirectory() as folder:
        save_spectrum(mapping, Path(folder))
        run = f"imagenet-quick-112px-{source}{'-fresh' if fresh else ''}"
        own = agnosco_quick(run, network, images, classes, seeds)
        methods = {"agnosco quick": own} | peers(faster, Path(folder))
        for name, method in methods.items():
            config = replace(agnosco.preset("quick"), precision=precision) if name == "agnosco quick" else None
            if only not in name or _is_measured(stored.get(name), seeds, config):
                continue
            made = [method(label, seed) for seed in range(seeds) for label in classes]
            pictures = torch.stack([picture for picture, _ in made])
            # The picture of another method becomes a perturbation as those of agnosco do: its difference from grey.
            nus = [0.5 - picture if nu is None else nu for picture, nu in made]
            row = {
                "seeds": seeds,
                "config": config and config_to_json(config),
                "precision": precision,
                "norm": fmean(nu.norm().item() for nu in nus),
                **judged(network, judges, pictures, nus, labels, held_out),
            }
            add_row(path, title, name, row)
            file = picture_file(path.stem.removeprefix("peers-"), name)
            save_image(pictures, file, nrow=len(classes), padding=0)
            print(*cells(name, row), sep=" | ", flush=True)


def _is_measured(stored: dict[str, Any] | None, seeds: int, config: Config | None) -> bool:
    """Whether a stored row has as many seeds and these settings."""
    if stored is None or stored["seeds"] < seeds:
        return False
    return config is None or same_settings(stored["config"], config)


def picture_file(source: str, name: str) -> Path:
    """The file of the pictures of a row: one line for each seed."""
    folder = ROOT / "build" / "peers" / source
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-')}.png"


def draw(source: str) -> None:
    """Draw the first seed of the best row of each method: the one that other networks recognize most often."""
    network = imagenet_network(source)
    side = network.shape[1]
    rows = read_results(RESULTS / f"peers-{source}.json")["rows"]
    best: dict[str, str] = {}
    for name in sorted(rows, key=lambda name: mean_top1(rows[name])):  # the last of a method is its best
        if "steps" not in name:  # the same number of passes
            best[name.split(",")[0]] = name
    tiles, captions = [], []
    for name in (name for name in rows if name in best.values()):
        with Image.open(picture_file(source, name)) as sheet:
            for column, label in enumerate(TRIAL_CLASSES):
                tile = sheet.crop((column * side, 0, (column + 1) * side, side))
                tiles.append(tile.resize((TILE, TILE), Image.Resampling.BICUBIC))
                captions.append(network.labels[label])
    footer = f"{source} at {side} px, {PASSES:,} passes, as measured. Rows: " + "; ".join(
        name for name in rows if name in best.values()
    )
    contact_sheet(tiles, captions, columns=len(TRIAL_CLASSES), tile=TILE, footer=footer).save(
        DOCS / "pictures" / f"peers-{source}.jpg", quality=88, optimize=True
    )


def mean_top1(row: dict[str, Any]) -> float:
    """Top-1 among all classes, averaged over the other networks."""
    return fmean(judge["top1"] for judge in row["others"].values())


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """A row of a table."""
    others = [
        f"{judge['m_score']:.3f} / {judge['top1_of_concepts']:.2f} / {judge['top1']:.2f}"
        for judge in row["others"].values()
    ]
    return [
        f"{name} ({len(TRIAL_CLASSES) * row['seeds']})",
        f"{row['own']['probability']:.2f}",
        f"{row['targeted_success_rate']:.2f}",
        f"{row['norm']:.0f}",
        *others,
        row["precision"],
    ]


def tables() -> str:
    """All results as Markdown."""
    parts = []
    for path in sorted(RESULTS.glob("peers-*.json")):
        results = read_results(path)
        rows = results["rows"]
        names = list(next(iter(rows.values()))["others"])
        head = ["method (pictures)", "own p", "targeted success rate", "norm", *names, "precision"]
        body = markdown(head, [cells(*row) for row in rows.items()])
        parts.append(
            f"**{results['about']['title']}**; M_score / top-1 of 10 / top-1 of all. {measured_on(results)}.\n\n{body}"
        )
    return "\n\n".join(parts)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--source", choices=IMAGENET_NETWORKS, default="resnet18")
    parser.add_argument("--only", default="", help="only methods whose name contains this")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="classes on which nothing was chosen")
    parser.add_argument("--picture", action="store_true", help="draw the figure; measure nothing")
    options = parser.parse_args()
    if options.tables:
        fill("docs/evidence.md", "peers", tables())
    elif options.picture:
        draw(options.source)
    else:
        measure(options.source, options.only, options.seeds, options.fresh)


if __name__ == "__main__":
    main()
