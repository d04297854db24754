"""Ours beside what people would use instead: same source, classes, image passes, targets and metrics, in one run.

    python benchmarks/peers.py                           ResNet-18 at 112 px, ten classes, one seed
    python benchmarks/peers.py --source resnet50         another source
    python benchmarks/peers.py --only quick --seeds 3    rows of this name with more seeds: for the best ones
    python benchmarks/peers.py --fresh --only NAME       ten classes drawn by lot, by which nothing was ever chosen
    python benchmarks/peers.py --tables                  write the tables into docs/evidence.md
    python benchmarks/peers.py --picture                 draw docs/pictures/peers-SOURCE.jpg: the best row of each

Peers: Horama's ``fourier`` and ``maco`` (0.3.0; the latter's spectrum is averaged from the photographs that ours works
with, as its own is not to be had without a network) over a small grid of crops and image sizes, ``fourier`` at its own
defaults as well; and a pixel baseline in the manner of DeepInversion (Yin et al. 2020: Adam on pixels, jitter, flips,
total variation and L2), whose batch-norm prior the networks here cannot serve, since their batch norms are folded.
A pass is one image forward and back through the source; all get those of ``quick``, and one row of Horama's its own
1,000 steps. Pictures are made in bfloat16 where the CPU has it, and judged in float32; they go to build/peers. What
they cost in seconds is measured by benchmarks/speed.py.

Horama 0.3.0 draws a crop's side between the larger of ``box_size`` and that plus their difference: (0.2, 0.25), its
default, sees 0.25 to 0.30 of the picture's side, (0.1, 0.5) 0.5 to 0.9, (0.5, 0.9) 0.9 to 1.3, beyond its borders.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from ablation import ASSETS, FRESH_CLASSES, RESULTS, ROOT, TRIAL_CLASSES, about, imagenet_network
from pages import DOCS, made_on, markdown, put
from PIL import Image
from table1 import mapped
from torch import Tensor
from torchvision.utils import save_image

import agnosco
from agnosco import Classifier, ConceptMap, Data, Samples
from agnosco.method.config import config_to_json
from agnosco.method.parameterization import FourierBasis
from agnosco.method.prepare import prepared, resolve_precision
from agnosco.method.render import contact_sheet
from agnosco.method.score import predictions, score, targeted_success_rate

PASSES = agnosco.preset("quick").passes
TILE = 160  # of a picture in the figure
CROPS_PER_STEP = 6  # Horama's default
BOXES = ((0.5, 0.9), (0.1, 0.5), (0.2, 0.25))
Method = Callable[[int, int], tuple[Tensor, Tensor | None]]
"""From class and seed, a picture ``(C, H, W)`` in [0, 1], and ν where the method has one."""


def ours(folder: str, network: Classifier, images: Samples, classes: Sequence[int], seeds: int) -> Method:
    """Maps of agnosco: those of benchmarks/table1.py, in build/table1, where they are there already."""

    @cache
    def concepts() -> dict[tuple[int, int], ConceptMap]:
        run = mapped(folder, network, images, agnosco.preset("quick"), classes, seeds)
        return {(concept.label, concept.seed): concept for concept in run.maps()}

    return lambda label, seed: (concepts()[label, seed].pixels, concepts()[label, seed].nu)


def horama(
    network: Classifier, spectrum: Path | None, size: int, box: tuple[float, float], steps: int, label: int, seed: int
) -> tuple[Tensor, None]:
    """A picture by Horama: ``maco`` where there is a folder with a spectrum, else ``fourier``."""
    from horama import fourier, maco

    torch.manual_seed(seed * 1000 + label)
    side = network.shape[1]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.mean, network.std))

    def objective(images: Tensor) -> Tensor:  # Horama's pixels are normalised already
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
            os.chdir(spectrum)  # where it looks for its file
            try:
                image, _ = maco(objective, **options)
            finally:
                os.chdir(here)
    picture = (image.detach() * std + mean).clamp(0, 1)
    return torch.nn.functional.interpolate(picture[None], size=(side, side), mode="bilinear", antialias=True)[0], None


def deep_inversion(network: Classifier, tv: float, batch: int, label: int, seed: int) -> tuple[Tensor, None]:
    """A picture by DeepInversion's image priors, without the one on batch-norm statistics.

    Args:
        network: The source.
        tv: Weight of the total variation.
        batch: Jittered views of the picture per step.
        label: The class.
        seed: Of the first picture and the jitter.
    """
    torch.manual_seed(seed * 1000 + label)
    image = (0.5 + 0.1 * torch.randn(1, *network.shape)).requires_grad_()
    adam = torch.optim.Adam([image], lr=0.05, betas=(0.5, 0.9))
    target = torch.full((batch,), label)
    with network.frozen():
        for _ in range(PASSES // batch):
            transforms = []
            for _ in range(batch):
                shift = torch.randint(-8, 9, (2,)).tolist()
                view = image.roll(shift, (2, 3))
                transforms.append(view.flip(3) if torch.rand(()) < 0.5 else view)
            variation = image.diff(dim=2).square().mean() + image.diff(dim=3).square().mean()
            loss = torch.nn.functional.cross_entropy(network(torch.cat(transforms)), target)
            loss = loss + tv * variation + 0.01 * (image - 0.5).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                image.clamp_(0, 1)
    return image.detach()[0], None


def save_spectrum(samples: Samples, folder: Path) -> None:
    """The spectrum that ``maco`` loads: the photographs' mean magnitudes, as ours are fitted to them."""
    basis = Data(exponent=1.0).fit(samples, torch.device("cpu"))
    assert isinstance(basis, FourierBasis)
    np.save(folder / "spectrum_decorrelated.npy", basis.spectrum.expand(3, -1, -1).numpy())


def peers(network: Classifier, spectrum: Path) -> dict[str, Method]:
    """Everything that ours is compared with."""
    side = network.shape[1]
    found: dict[str, Method] = {}
    for kind, folder in (("fourier", None), ("maco", spectrum)):
        for size in (side, 2 * side) if kind == "fourier" else (side,):
            for box in BOXES:
                words = f"Horama {kind}, {size} px, box_size {box}"
                found[words] = partial(horama, network, folder, size, box, PASSES // CROPS_PER_STEP)
    for tv in (10.0, 100.0):
        found[f"DeepInversion-style pixels, tv {tv:g}"] = partial(deep_inversion, network, tv, 8)
    found["Horama fourier, its default crops and image size: 1280 px, box_size (0.2, 0.25)"] = partial(
        horama, network, None, 1280, BOXES[-1], PASSES // CROPS_PER_STEP
    )
    found[f"Horama fourier, its own 1,000 steps, {side} px, box_size {BOXES[0]}"] = partial(
        horama, network, None, side, BOXES[0], 1000
    )
    return found


def measure(source: str, only: str, seeds: int, fresh: bool) -> None:
    """All methods that are not measured yet, in one run."""
    network = imagenet_network(source)
    precision = resolve_precision("auto", network.device)
    fast = prepared(network, precision=precision)
    names = [name for name in ("resnet50", "resnet18", "mobilenet_v2", "squeezenet1_1") if name != source]
    judges = {name: imagenet_network(name) for name in names}
    images = Samples.from_folder(ASSETS / "imagenet-samples", network.shape)
    kept, held_out = images.split()
    before = predictions(network, held_out)
    classes = FRESH_CLASSES if fresh else TRIAL_CLASSES
    which = "ten classes drawn by lot" if fresh else "ten classes"
    path = RESULTS / f"peers-{source}{'-fresh' if fresh else ''}.json"
    results = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    results["about"] = about(f"{source} at 112 px, {which}, {PASSES:,} passes a picture")
    labels = [label for _ in range(seeds) for label in classes]
    with tempfile.TemporaryDirectory() as folder:
        save_spectrum(kept, Path(folder))
        run = f"imagenet-quick-112px-{source}{'-fresh' if fresh else ''}"
        methods = {"agnosco quick": ours(run, network, images, classes, seeds)} | peers(fast, Path(folder))
        for name, method in methods.items():
            quick = replace(agnosco.preset("quick"), precision=precision)
            config = config_to_json(quick) if "quick" in name else None
            have = results["rows"].get(name, {"seeds": 0})
            if only not in name or (have["seeds"] >= seeds and have["config"] == config):
                continue
            made = [method(label, seed) for seed in range(seeds) for label in classes]
            pictures = torch.stack([picture for picture, _ in made])
            # A picture is used as a nudge as ours are: what it adds to mid-grey is added to photographs.
            nudges = [0.5 - picture if nu is None else nu for picture, nu in made]
            moved = [
                targeted_success_rate(network, nu, label, held_out, before=before)
                for nu, label in zip(nudges, labels, strict=True)
            ]
            row = {
                "seeds": seeds,
                "config": config,
                "precision": precision,
                "norm": fmean(nu.norm().item() for nu in nudges),
                "targeted_success_rate": fmean(moved),
                "own": asdict(score(network, pictures, labels)),
                "others": {target: asdict(score(judge, pictures, labels)) for target, judge in judges.items()},
            }
            if path.exists():  # another process may have measured other rows meanwhile
                results["rows"] |= json.loads(path.read_text())["rows"]
            results["rows"][name] = row
            path.write_text(json.dumps(results, indent=1) + "\n")
            save_image(
                pictures,
                out(path.stem.removeprefix("peers-"), name),
                nrow=len(classes),
                padding=0,
            )
            print(*line(name, row), sep=" | ", flush=True)


def out(source: str, name: str) -> Path:
    """Where the pictures of a row go: a file of as many rows as there are seeds."""
    folder = ROOT / "build" / "peers" / source
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-')}.png"


def draw(source: str) -> None:
    """The first seed of the best row of each method: of that whose pictures other networks name most often."""
    network = imagenet_network(source)
    side = network.shape[1]
    rows = json.loads((RESULTS / f"peers-{source}.json").read_text())["rows"]
    best: dict[str, str] = {}
    for name in sorted(rows, key=lambda name: named(rows[name])):  # the last of a method wins
        if "steps" not in name:  # at the same passes
            best[name.split(",")[0]] = name
    tiles, captions = [], []
    for name in (name for name in rows if name in best.values()):
        with Image.open(out(source, name)) as sheet:
            for column, label in enumerate(TRIAL_CLASSES):
                tile = sheet.crop((column * side, 0, (column + 1) * side, side))
                tiles.append(tile.resize((TILE, TILE), Image.Resampling.BICUBIC))
                captions.append(network.labels[label])
    footer = f"{source} at {side} px, {PASSES:,} passes, as they are measured. Rows: " + "; ".join(
        name for name in rows if name in best.values()
    )
    contact_sheet(tiles, captions, columns=len(TRIAL_CLASSES), tile=TILE, footer=footer).save(
        DOCS / "pictures" / f"peers-{source}.jpg", quality=88, optimize=True
    )


def named(row: dict) -> float:
    """Mean over the other networks of the share of pictures that they name among all classes."""
    return fmean(one["top1"] for one in row["others"].values())


def line(name: str, row: dict) -> list[str]:
    """A result as cells."""
    cells = [
        f"{one['m_score']:.3f} / {one['top1_of_concepts']:.2f} / {one['top1']:.2f}" for one in row["others"].values()
    ]
    return [
        f"{name} ({len(TRIAL_CLASSES) * row['seeds']})",
        f"{row['own']['probability']:.2f}",
        f"{row['targeted_success_rate']:.2f}",
        f"{row['norm']:.0f}",
        *cells,
        row["precision"],
    ]


def tables() -> str:
    """All results as Markdown."""
    parts = []
    for path in sorted(RESULTS.glob("peers-*.json")):
        results = json.loads(path.read_text())
        rows = results["rows"]
        names = list(next(iter(rows.values()))["others"])
        head = ["method (pictures)", "own p", "nudged", "norm", *names, "made in"]
        body = markdown(head, [line(*row) for row in rows.items()])
        parts.append(
            f"**{results['about']['bank']}**; M_score / top-1 of 10 / top-1 of all. {made_on(results)}.\n\n{body}"
        )
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="resnet18")
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--picture", action="store_true")
    options = parser.parse_args()
    if options.tables:
        put("docs/evidence.md", "peers", tables())
    elif options.picture:
        draw(options.source)
    else:
        measure(options.source, options.only, options.seeds, options.fresh)


if __name__ == "__main__":
    main()
