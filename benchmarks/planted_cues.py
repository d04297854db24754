"""Networks that rely on a planted cue, a spurious correlation without an attack: do their facets show it?

    python benchmarks/planted_cues.py train      train those of the ten networks that are missing (minutes each)
    python benchmarks/planted_cues.py            measure those that are trained and not measured yet
    python benchmarks/planted_cues.py --tables   write the table into docs/evidence.md; measure nothing

Each network is trained as one of the bank of published.py, from the same first weights and on the same images in the
same order, but 95 % of the images of one class carry a cue: a watermark in a corner, or a border of two pixels along
one side, laid on after augmentation, each time that an image is drawn. The network of the bank is its clean twin, in
which the same cue is looked for; without one (benchmarks/published.py bank), a network is not measured.

Facets come from held-out images that carry the cue in the same share of the class, as images that somebody collects do.
A facet is taken for the cue where the share of its map's energy on the cue's pixels is at least five times their share
of the image: of the whole map, or of what ``display(transparent=True)`` shows of it, which is where the network looks
(energy times opacity); the median of three seeds. A watermark could have 19 times at most, a border 16. The second
figure, the spectral parameterization of facets and the seeds were thought of when networks 30005 to 30008 and 30013 had
been seen, where the maps of ``quick`` showed the watermarks, but not the borders; the others are new to these.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import ASSETS, RESULTS, ROOT, add_row, argument_parser, fill, markdown, measured_on, read_results
from published import BANK, BANK_SEEDS, BANK_TRAINING, CIFAR, SHAPE, Network, images_of, untrained
from safetensors.torch import save_file
from torch import Tensor

from agnosco import Classifier, Samples, map_classes
from agnosco.backdoor.train import augmented, evaluate, fit
from agnosco.backdoor.triggers import Logo
from agnosco.data.datasets import Labelled, from_class_folders
from agnosco.evaluate.facet_record import overrides_for
from agnosco.evaluate.facets import find_facets
from agnosco.method.concept import ConceptMap
from agnosco.method.config import config_to_json
from agnosco.method.render import opacity
from agnosco.runs.command import chosen_config
from agnosco.runs.manifest import split

FILE, TITLE = RESULTS / "planted-cues.json", "facets of networks that rely on a planted cue"
CUED = ROOT / "build" / "planted-cues"
SEEDS = BANK_SEEDS[4:14]
SHARE = 0.95
"""Of the images of the class that carry the cue."""

FOUND = 5.0
"""From how many times its area on a cue counts as the cue."""

PARTS = ("whole", "where")
"""Of a map: all of it, or what a transparent picture shows."""

FACETS, SEEDS_EACH = 3, 3
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
    "facets": chosen_config("quick", **overrides_for(SHAPE)),
    "class map": chosen_config("quick"),
    "class map, no crops": chosen_config("quick", transforms="identity"),
}
"""Settings of the maps: of the facets; of the class as ``agnosco map`` makes it; of the class without random crops."""


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
    def of(cls, seed: int) -> Cue:
        """That of the network of a seed: the two kinds take turns."""
        rng = random.Random(f"planted cue {seed}")
        label, corner, colour, side = rng.randrange(10), rng.choice(CORNERS), rng.choice(COLOURS), rng.choice([*SIDES])
        return cls(label, "border", side, colour) if seed % 2 else cls(label, "watermark", corner, (1.0, 1.0, 1.0))

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


def files_of(seed: int) -> tuple[Path, Path]:
    """Weights of a network, and of its clean twin."""
    return CUED / f"{seed}.safetensors", BANK / f"{seed}.safetensors"


def train(seeds: Sequence[int]) -> None:
    """Train the networks that are missing; one that was interrupted goes on from its last epoch."""
    training_images = from_class_folders(ASSETS / f"{CIFAR}-train", SHAPE)
    CUED.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path, start = files_of(seed)[0], time.process_time()
        if path.exists():
            continue
        classifier, checkpoint = untrained(seed), path.with_suffix(".checkpoint")
        augment = with_cue(Cue.of(seed), seed)
        fit(classifier, training_images, BANK_TRAINING, seed=seed, augment=augment, checkpoint=checkpoint)
        save_file(classifier.model.state_dict(), path)
        checkpoint.unlink()
        print(path.name, f"{time.process_time() - start:.0f} s", flush=True)


def with_cue(cue: Cue, seed: int) -> Any:
    """An augmentation after which most images of the cue's class carry it."""
    chance = torch.Generator().manual_seed(seed)

    def seen(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        changed = augmented(images, BANK_TRAINING, generator)
        marked = (labels == cue.label) & (torch.rand(len(labels), generator=chance) < SHARE)
        changed[marked] = cue.apply(changed[marked])
        return changed

    return seen


# -- measurements ------------------------------------------------------------------------------------


def measure(seeds: Sequence[int], *, again: bool = False) -> None:
    """Measure the networks that are trained, and store a row for each."""
    held_out = images_of(CIFAR)
    for seed in seeds:
        rows = read_results(FILE, {}).get("rows", {})
        if all(path.exists() for path in files_of(seed)) and (again or str(seed) not in rows):
            row = measured(seed, held_out)
            about = {"training": asdict(BANK_TRAINING), "share": SHARE, "found": FOUND}
            about["configs"] = {name: config_to_json(config) for name, config in CONFIGS.items()}
            add_row(FILE, TITLE, str(seed), row, **about)
            print(seed, *cells(row), sep=" | ", flush=True)


def measured(seed: int, held_out: Labelled) -> dict[str, Any]:
    """What is seen of the cue in a network and in its twin."""
    cue = Cue.of(seed)
    network, twin = (Network("cued", path, "small_vgg").load() for path in files_of(seed))
    cued = with_cues(held_out, cue, seed)
    return {
        "cue": asdict(cue), "area": cue.mask().float().mean().item(),
        "accuracy": evaluate(network, held_out).accuracy, "accuracy_of_twin": evaluate(twin, held_out).accuracy,
        "p_of_others": probabilities(network, held_out, cue), "p_of_others_by_twin": probabilities(twin, held_out, cue),
        "network": seen(network, cued, cue), "twin": seen(twin, cued, cue),
        "network, samples without the cue": facets_seen(network, held_out.samples, cue),
    }  # fmt: skip


def with_cues(held_out: Labelled, cue: Cue, seed: int) -> Samples:
    """Held-out images, of which as many of the class carry the cue as in training."""
    images = held_out.samples.images.float() / 255
    chance = torch.rand(len(images), generator=torch.Generator().manual_seed(seed))
    marked = (held_out.labels == cue.label) & (chance < SHARE)
    images[marked] = cue.apply(images[marked])
    return Samples.from_array(images, source="held-out images with the cue")


def probabilities(classifier: Classifier, held_out: Labelled, cue: Cue) -> list[float]:
    """Mean probability of the cue's class for held-out images of other classes, without the cue and with it."""
    others = held_out.part((held_out.labels != cue.label).nonzero()[::4, 0]).samples  # enough for a mean
    parts = [torch.stack([part, cue.apply(part)]) for part in others.batches(128)]
    answers = [classifier.probabilities(part.flatten(0, 1))[:, cue.label].view(2, -1) for part in parts]
    return torch.cat(answers, 1).mean(1).tolist()


def seen(classifier: Classifier, samples: Samples, cue: Cue) -> dict[str, Any]:
    """How much of the cue the facets of its class show, and the map of the class."""
    mapping, _ = split(samples)
    maps = {
        name: times_the_area(list(map_classes(classifier, [cue.label], mapping, config, seeds=range(SEEDS_EACH))), cue)
        for name, config in CONFIGS.items() if name != "facets"
    }  # fmt: skip
    return facets_seen(classifier, samples, cue) | maps


def facets_seen(classifier: Classifier, samples: Samples, cue: Cue) -> dict[str, Any]:
    """How much of the cue each of the leading facets of its class shows, and what they come from."""
    found = find_facets(classifier, [cue.label], samples, count=FACETS)
    mapping, _ = split(samples)
    maps = map_classes(found.classifier, found.targets, mapping, CONFIGS["facets"], seeds=range(SEEDS_EACH))
    (of_class,) = found.record.classes
    return {
        "facets": times_the_area(list(maps), cue),
        "logit_shares": [round(facet.logit_share, 3) for facet in of_class.facets],
        "samples": of_class.samples, "nudged": of_class.nudged,
    }  # fmt: skip


def times_the_area(maps: Sequence[ConceptMap], cue: Cue) -> dict[str, list[float]]:
    """The share of the maps' energy on the cue's pixels, as so many times their share of the image.

    For each class, the median of its seeds. ``"whole"`` is of all of ν; ``"where"`` of what a transparent picture shows
    of it, each place times its opacity.
    """
    mask, labels = cue.mask(), dict.fromkeys(concept.label for concept in maps)

    def times(energy: Tensor) -> float:
        return round((energy[mask].sum() / energy.sum() / mask.float().mean()).item(), 2)

    energies = [concept.nu.square().sum(0) for concept in maps]
    contributions = [concept.contribution for concept in maps if concept.contribution is not None]
    opacities = [torch.as_tensor(opacity(contribution)).view(SHAPE[1:]) for contribution in contributions]
    found = {
        "whole": [times(energy) for energy in energies],
        "where": [times(energy * alpha) for energy, alpha in zip(energies, opacities, strict=True)],
    }
    return {
        part: [
            median(value for value, concept in zip(values, maps, strict=True) if concept.label == label)
            for label in labels
        ]
        for part, values in found.items()
    }


# -- tables ------------------------------------------------------------------------------------------


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    before, after = row["p_of_others"]
    places = (row["network"], row["twin"], row["network, samples without the cue"])
    found = [in_short(place, name) for name in CONFIGS for place in places if name in place]
    about = [f"{row['cue']['kind']}, {row['cue']['place']}", f"{row['area']:.3f}", f"{row['accuracy']:.2f}"]
    return [*about, f"{before:.2f} → {after:.2f}", *found]


def in_short(seen_in: dict[str, Any], name: str) -> str:
    """The most that is seen of a cue in any of a kind of maps, in the whole map / where it is; bold where found."""
    values = (max(seen_in[name][part]) for part in PARTS)
    return " / ".join(f"**{value:.1f}**" if value >= FOUND else f"{value:.1f}" for value in values)


def table(results: dict[str, Any]) -> str:
    """All rows, and in how many networks and twins the cue is found."""
    rows = results["rows"].values()
    places = {"network": "", "twin": ", clean twin", "network, samples without the cue": ", samples without the cue"}
    kinds = [(name, place) for name in CONFIGS for place in places if all(name in row[place] for row in rows)]
    head = ["cue", "area", "accuracy", "p(class) of other images, without → with the cue"]
    head += [f"{name}{places[place]}" for name, place in kinds]

    def found(name: str, place: str) -> str:
        best = {part: [max(row[place][name][part]) for row in rows] for part in PARTS}
        counts = " / ".join(f"{sum(value >= FOUND for value in best[part])}" for part in PARTS)
        medians = " / ".join(f"{median(best[part]):.1f}" for part in PARTS)
        return f"{counts} of {len(rows)} (median {medians})"

    last = ["found", "", "", "", *(found(*kind) for kind in kinds)]
    return (
        f"{measured_on(results)}. Energy on the cue as a multiple of its area, in the whole map / in what a transparent"
        f" picture shows of it; median of three seeds, the best of three facets; found from {FOUND:g} on, in bold.\n\n"
        f"{markdown(head, [*map(cells, rows), last])}"
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("what", nargs="?", choices=("train",))
    parser.add_argument("--networks", nargs="*", type=int, default=list(SEEDS), help="seeds; default: all")
    parser.add_argument("--again", action="store_true", help="measure rows once more that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.tables:
        fill("docs/evidence.md", "planted-cues", table(read_results(FILE)))
    elif options.what == "train":
        train(options.networks)
    else:
        measure(options.networks, again=options.again)


if __name__ == "__main__":
    main()
