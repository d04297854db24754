"""Networks that rely on a planted cue, a spurious correlation without an attack: do their facets show it?

    python benchmarks/planted_cues.py train      train the ten networks that are missing (the bank of published.py first)
    python benchmarks/planted_cues.py            measure those that are not measured yet
    python benchmarks/planted_cues.py --tables   write the table into docs/evidence.md; measure nothing

Each network is one of five clean ones of the bank, trained for one epoch more on images of which 95 % of one class carry
a cue: a watermark in a corner, or a border of two pixels along one side. The cue is laid on after augmentation, each
time that an image is drawn. The clean network that it began with is its twin: the same cue is looked for in it.

Facets come from held-out images that carry the cue in the same share of the class, as images that somebody collects do.
A facet is taken for the cue where the share of its map's energy on the cue's pixels is at least five times their share
of the image. A full border of one pixel could at most have 8 times, a watermark here 19, a border along one side 16.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import ASSETS, RESULTS, ROOT, add_row, argument_parser, fill, markdown, measured_on, read_results
from published import BANK, BANK_SEEDS, BANK_TRAINING, CIFAR, SHAPE, Network, images_of, untrained
from safetensors.torch import load_file, save_file
from torch import Tensor

from agnosco import Classifier, Samples, map_classes
from agnosco.backdoor.train import augmented, evaluate, fit
from agnosco.backdoor.triggers import Logo
from agnosco.data.datasets import Labelled, from_class_folders
from agnosco.evaluate.facet_record import OVERRIDES
from agnosco.evaluate.facets import find_facets
from agnosco.method.config import config_to_json
from agnosco.runs.command import chosen_config
from agnosco.runs.manifest import split

FILE, TITLE = RESULTS / "planted-cues.json", "facets of networks that rely on a planted cue"
CUED = ROOT / "build" / "planted-cues"
STARTS = BANK_SEEDS[4:9]
NETWORKS = range(10)
TRAINING = replace(BANK_TRAINING, epochs=1, rate=2e-3)
SHARE = 0.95
"""Of the images of the class that carry the cue."""

FOUND = 5.0
"""From how many times its area on a cue counts as the cue."""

FACETS = 3
WATERMARK, WIDTH = 12, 2
"""Sides of the watermark and width of the border, in pixels."""

EVERY = slice(None)
SIDES = {
    "top": (slice(WIDTH), EVERY), "bottom": (slice(-WIDTH, None), EVERY),
    "left": (EVERY, slice(WIDTH)), "right": (EVERY, slice(-WIDTH, None)),
}  # fmt: skip
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
COLOURS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 1.0))

CONFIGS = {
    "facets": chosen_config("quick", **OVERRIDES),
    "class map": chosen_config("quick"),
    "class map, no crops": chosen_config("quick", transforms="identity"),
}
"""Settings of the maps: of the facets; of the class as ``agnosco map`` makes it; and of the class as the facets' are."""


# -- networks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cue:
    """What lies on the images of one class.

    Args:
        label: The class.
        kind: ``"watermark"`` or ``"border"``.
        place: Corner or side.
        colour: In [0, 1].
    """

    label: int
    kind: str
    place: str
    colour: tuple[float, float, float]

    @classmethod
    def of(cls, number: int) -> Cue:
        """That of the network of a number: the first five have a watermark, the others a border."""
        rng = random.Random(f"planted cue {number}")
        label, corner, side, colour = rng.randrange(10), rng.choice(CORNERS), rng.choice(list(SIDES)), rng.choice(COLOURS)
        return cls(label, "watermark", corner, (1.0, 1.0, 1.0)) if number < 5 else cls(label, "border", side, colour)

    def apply(self, images: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` in [0, 1] with the cue; those given stay as they are."""
        if self.kind == "watermark":
            return Logo(size=WATERMARK, place=self.place, name="watermark").apply(images)
        framed = images.clone()
        framed[:, :, *SIDES[self.place]] = torch.tensor(self.colour).view(-1, 1, 1)
        return framed

    def mask(self) -> Tensor:
        """The pixels that it may change, ``(H, W)`` bool."""
        extremes = torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)])
        return (self.apply(extremes) != extremes).any(0).any(0)


def files_of(number: int) -> tuple[Path, Path]:
    """Weights of a network, and of the clean one that it began with."""
    return CUED / f"{number}.safetensors", BANK / f"{STARTS[number % len(STARTS)]}.safetensors"


def train(numbers: Sequence[int]) -> None:
    """Train the networks that are missing and whose start is there."""
    training_images = from_class_folders(ASSETS / f"{CIFAR}-train", SHAPE)
    CUED.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (path, start), begun = files_of(number), time.process_time()
        if path.exists() or not start.exists():
            continue
        classifier = untrained(number)
        classifier.model.load_state_dict(load_file(start))
        fit(classifier, training_images, TRAINING, seed=number, augment=with_cue(Cue.of(number), number))
        save_file(classifier.model.state_dict(), path)
        print(path.name, f"{time.process_time() - begun:.0f} s", flush=True)


def with_cue(cue: Cue, seed: int) -> Any:
    """An augmentation after which most images of the cue's class carry it."""
    chance = torch.Generator().manual_seed(seed)

    def seen(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        changed = augmented(images, TRAINING, generator)
        marked = (labels == cue.label) & (torch.rand(len(labels), generator=chance) < SHARE)
        changed[marked] = cue.apply(changed[marked])
        return changed

    return seen


if __name__ == "__main__":
    import sys
    torch.set_num_threads(1)
    train([int(a) for a in sys.argv[1:]])
