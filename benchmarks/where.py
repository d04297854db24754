"""Where in the picture? What is left of p(class) if 30 % of the area of a pattern is kept, chosen in several ways.

    python benchmarks/where.py resnet18                  measure a source: its maps of quick, seed 0
    python benchmarks/where.py resnet20                  one of CIFAR's networks, at 32 px
    python benchmarks/where.py resnet18 --only random    only ways whose name matches this
    python benchmarks/where.py resnet18 --picture        draw docs/pictures/where-resnet18.jpg
    python benchmarks/where.py --tables                  write the table into docs/evidence.md

The pictures are raw ones, Clip(1/2 - nu * mask), with a mask of zeros and ones: outside, nothing is left but grey. The
source and another network are asked for p(class). ImageNet's classes are the first of Table 1's random ones, on which
nothing was chosen. Maps are kept in build/where, with the sum of |gradient| over their steps.

Random areas are drawn three times: single pixels; squares of a grid; and blobs, the greatest values of noise that is
smoothed as contributions are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import (
    DOCS,
    RESULTS,
    ROOT,
    TABLE_CLASSES,
    add_row,
    argument_parser,
    cifar_networks,
    fill,
    imagenet_network,
    markdown,
    measured_on,
    photographs,
    read_results,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import agnosco
from agnosco import Classifier
from agnosco.method.algorithm1 import class_loss
from agnosco.method.maker import Maker, generator_for, groups_of
from agnosco.method.mapper import Mapper
from agnosco.method.refine import attention
from agnosco.method.render import contact_sheet, stretched, to_picture, transparent_picture
from agnosco.method.where import IMAGES, SMOOTHING, contributions, smoothed
from agnosco.types import Job

PATH = RESULTS / "where.json"
AREA = 0.3
CLASSES = 12  # of ImageNet
DRAWS = 3
COLUMNS = 5  # of the picture
STEPS = 16  # of integrated gradients, and of the optimised mask
OTHERS = {"resnet18": "squeezenet1_1", "squeezenet1_1": "resnet18", "resnet20": "resnet56"}
"""For each source, the network that is asked besides."""

OURS = f"|∂| of {IMAGES} images after the run (agnosco)"


@dataclass(frozen=True, eq=False)
class Map:
    """A finished map: ν ``(C, H, W)``, and |∂| summed over its steps, ``(1, H, W)``."""

    label: int
    nu: Tensor
    gradients: Tensor


class Noting(Mapper):
    """Algorithm 1 that sums |∂| over its steps."""

    noted: Tensor | float = 0.0

    def gradient(self, images: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = super().gradient(images, nu)
        self.noted = self.noted + found[0].abs().sum(1, keepdim=True)
        return found


class Bench:
    """A source, the network that is asked besides, and the maps."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "resnet20":
            networks, classes = cifar_networks(), range(10)
        else:
            networks = {one: imagenet_network(one, 224) for one in (name, OTHERS[name])}
            classes = TABLE_CLASSES[:CLASSES]
        self.source, self.other = networks[name], networks[OTHERS[name]]
        mapping, _ = photographs(self.source).split()
        self.maker = Maker(self.source, mapping, agnosco.preset("quick"))
        self.maps = list(self.made(classes))
        self.side = self.source.shape[1]
        self.found: dict[int, Tensor] = {}

    def made(self, classes: Any) -> Iterator[Map]:
        """The maps of these classes; those that are not in build/where are made."""
        for group in groups_of([Job(label, 0) for label in classes], self.maker.together):
            files = [ROOT / "build" / "where" / self.name / f"{job.label}.safetensors" for job in group]
            if not all(file.exists() for file in files):
                self.make(group, files)
            for job, file in zip(group, files, strict=True):
                yield Map(job.label, **load_file(file))

    def make(self, group: list[Job], files: list[Path]) -> None:
        """Make the maps of a group, as ``agnosco map`` does."""
        mapper = self.mapper(group, "", Noting)
        assert isinstance(mapper, Noting)
        with self.maker.network.frozen():
            *_, state = mapper.steps(mapper.begin(torch.zeros(len(group), *self.source.shape)))
        assert isinstance(mapper.noted, Tensor)
        for nu, noted, file in zip(self.maker.basis.pixels(state.w), mapper.noted, files, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"nu": nu.contiguous(), "gradients": noted.contiguous()}, file)
            print(f"made {file.name}", flush=True)

    def mapper(self, group: list[Job], purpose: str, kind: type[Mapper] = Mapper) -> Mapper:
        """Algorithm 1 for a group, with the generators of a purpose."""
        maker = self.maker
        generators = [generator_for(*job, *([purpose] if purpose else [])) for job in group]
        labels = [job.label for job in group]
        return kind(
            maker.network, labels, maker.samples, maker.config.mapper, basis=maker.basis, project=maker.project,
            generators=generators, micro_batch=maker.micro_batch,
        )  # fmt: skip

    # -- ways to say how much each place contributes: (1, H, W) ------------------------------------

    def after_the_run(self, one: Map) -> Tensor:
        """What agnosco keeps; controls use it again."""
        if one.label not in self.found:
            with self.maker.network.frozen():
                (self.found[one.label],) = contributions(self.mapper([Job(one.label, 0)], "where"), one.nu[None])
        return self.found[one.label]

    def during_the_run(self, one: Map) -> Tensor:
        return self.smooth(one.gradients)

    def times_pattern(self, one: Map) -> Tensor:
        """|∂ · ν| of as many images after the run."""
        mapper, total = self.mapper([Job(one.label, 0)], "where"), torch.zeros_like(one.nu)
        with self.maker.network.frozen():
            for _ in range(math.ceil(IMAGES / mapper.config.batch)):
                total = total + (mapper.gradient(mapper.mini_batches(), one.nu[None])[0][0] * one.nu).abs()
        return self.smooth(total.sum(0, keepdim=True))

    def integrated_gradients(self, one: Map) -> Tensor:
        """From grey to the picture, along a straight line (Sundararajan et al. 2017)."""
        total = torch.zeros_like(one.nu)
        for k in range(STEPS):
            total = total - self.slope((0.5 - (k + 0.5) / STEPS * one.nu).clamp(0, 1), one.label)
        return self.smooth((total * -one.nu).sum(0, keepdim=True))

    def occlusion(self, one: Map) -> Tensor:
        """How much the loss rises without the pattern in a square of a 7 x 7 grid (8 x 8 at 32 px)."""
        cells = self.cells(4)
        squares = F.interpolate(torch.eye(cells**2).view(-1, 1, cells, cells), size=(self.side, self.side))
        with torch.no_grad():
            losses = torch.stack(
                [self.loss((0.5 - one.nu * (1 - square)).clamp(0, 1), one.label) for square in squares]
            )
        return self.enlarged(losses.view(1, cells, cells))

    def optimised(self, one: Map) -> Tensor:
        """A coarse mask of 30 % of the area that keeps the loss low, after Fong et al. 2019."""
        values = torch.zeros(1, self.cells(2), self.cells(2))
        velocity = torch.zeros_like(values)
        for _ in range(STEPS):
            values.requires_grad_()
            shown = self.enlarged(values)
            soft = torch.sigmoid(2 * (shown - shown.detach().quantile(1 - AREA)))
            (gradient,) = torch.autograd.grad(self.loss((0.5 - soft * one.nu).clamp(0, 1), one.label), values)
            velocity = 0.6 * velocity - standardised(gradient)
            values = standardised(values.detach() + velocity)
        return self.enlarged(values)

    def attention(self, one: Map) -> Tensor:
        return attention(self.source, one.nu)

    def of_another_class(self, one: Map) -> Tensor:
        place = [other.label for other in self.maps].index(one.label)
        return self.after_the_run(self.maps[place - 1])

    # -- areas that know nothing of the map ---------------------------------------------------------

    def shifted(self, one: Map, generator: torch.Generator) -> Tensor:
        """The own one, shifted at random; what leaves at one side comes back at the other."""
        by = torch.randint(self.side, (2,), generator=generator).tolist()
        return self.after_the_run(one).roll(by, (1, 2))

    def centre(self, _one: Map) -> Tensor:
        places = torch.linspace(-1, 1, self.side)
        return -(places[:, None] ** 2 + places**2)[None]

    def pixels(self, _one: Map, generator: torch.Generator) -> Tensor:
        return torch.rand(1, self.side, self.side, generator=generator)

    def blobs(self, _one: Map, generator: torch.Generator) -> Tensor:
        return self.smooth(torch.randn(1, self.side, self.side, generator=generator))

    def squares(self, of: int) -> Callable[[Map, torch.Generator], Tensor]:
        """Squares of a grid at random, a share of 1/of of the side."""

        def drawn(_one: Map, generator: torch.Generator) -> Tensor:
            return F.interpolate(torch.rand(1, 1, of, of, generator=generator), size=(self.side, self.side))[0]

        return drawn

    # -- what they share ----------------------------------------------------------------------------

    def cells(self, pixels: int) -> int:
        """Cells of a grid: 7 and 14 a side at 224 px, 8 and 16 at 32 px."""
        return self.side // pixels if self.side == 32 else self.side // (8 * pixels)

    def smooth(self, values: Tensor) -> Tensor:
        return smoothed(values[None], SMOOTHING * self.side)[0]

    def enlarged(self, values: Tensor) -> Tensor:
        return F.interpolate(values[None], size=(self.side, self.side), mode="bilinear")[0]

    def loss(self, picture: Tensor, label: int) -> Tensor:
        """The loss of ``quick`` of one picture."""
        return class_loss(self.source(picture[None]), torch.tensor([label]), self.maker.config.mapper.loss)

    def slope(self, picture: Tensor, label: int) -> Tensor:
        picture = picture.requires_grad_()
        return torch.autograd.grad(self.loss(picture, label), picture)[0]

    def ways(self) -> Iterator[tuple[str, str, Callable[..., Tensor]]]:
        """Name, passes besides those of the map, and the function, of each way; random ones take a generator."""
        yield OURS, str(IMAGES), self.after_the_run
        yield "|∂| of all steps of the run", "0", self.during_the_run
        yield f"|∂ · ν| of {IMAGES} images after the run", str(IMAGES), self.times_pattern
        yield "integrated gradients", str(STEPS), self.integrated_gradients
        yield "occlusion by squares", f"{self.cells(4) ** 2} forward", self.occlusion
        yield "optimised mask", str(STEPS), self.optimised
        yield "Ξ", "1 forward", self.attention
        yield "agnosco's of another class", "-", self.of_another_class
        yield "agnosco's, shifted at random", "-", self.shifted
        yield "disc in the middle", "-", self.centre
        yield "random blobs", "-", self.blobs
        yield f"random squares of 1/{self.cells(2)} of the side", "-", self.squares(self.cells(2))
        yield f"random squares of 1/{self.cells(4)} of the side", "-", self.squares(self.cells(4))
        yield "random pixels", "-", self.pixels


def standardised(values: Tensor) -> Tensor:
    """Values of mean 0 and standard deviation 1."""
    return (values - values.mean()) / values.std().clamp_min(1e-12)


def kept(values: Tensor, area: float = AREA) -> Tensor:
    """The mask ``(1, H, W)`` of the places with the greatest values, exactly this share of the area."""
    mask = torch.zeros(values.numel())
    mask[values.flatten().argsort(descending=True, stable=True)[: round(area * values.numel())]] = 1
    return mask.view_as(values)


def p_of(network: Classifier, pictures: list[Tensor], labels: list[int]) -> list[float]:
    """The probability that a network gives each picture's class."""
    answers = torch.cat([network.probabilities(part) for part in torch.stack(pictures).split(16)])
    return [round(value, 4) for value in answers[range(len(labels)), labels].tolist()]


def measure(name: str, only: str) -> None:
    """Measure the ways of a source that have not been measured."""
    bench = Bench(name)
    stored = read_results(PATH, {"rows": {}})["rows"]
    labels = [one.label for one in bench.maps]
    whole = {"own": p_of(bench.source, [(0.5 - one.nu).clamp(0, 1) for one in bench.maps], labels)}
    whole |= {"other": p_of(bench.other, [(0.5 - one.nu).clamp(0, 1) for one in bench.maps], labels)}
    for way, passes, values_of in bench.ways():
        key = f"{name} at {bench.side} px: {way}"
        if not re.search(only, way) or key in stored:
            continue
        random = way.startswith("random") or way.endswith("at random")
        pictures, of = [], []
        for one in bench.maps:
            for draw in range(DRAWS if random else 1):
                chance = [generator_for(one.label, draw, way)] if random else []
                pictures.append((0.5 - one.nu * kept(values_of(one, *chance))).clamp(0, 1))
                of.append(one.label)
        row = {
            "source": name, "side": bench.side, "other_network": OTHERS[name], "way": way, "passes": passes,
            "labels": of, "own": p_of(bench.source, pictures, of), "other": p_of(bench.other, pictures, of),
            "whole": whole,
        }  # fmt: skip
        add_row(PATH, "what is left of p(class) if 30 % of the area of a pattern is kept", key, row)
        print(key, *cells(row)[2:], sep="   ", flush=True)


def draw(name: str) -> None:
    """Draw the display pictures of a source's first maps: whole, and with what contributes little faded into white."""
    bench = Bench(name)
    shown = bench.maps[:COLUMNS]
    whole = [to_picture(stretched(-one.nu)) for one in shown]
    faded = [
        Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        for picture in (transparent_picture(stretched(-one.nu), bench.after_the_run(one)) for one in shown)
    ]
    captions = [*(bench.source.labels[one.label] for one in shown), *[""] * len(shown)]
    footer = (
        f"{name} at {bench.side} px, quick, seed 0. Below, 40 % of the area is hidden, and 20 % is not faded at all."
    )
    sheet = contact_sheet([*whole, *faded], captions, columns=COLUMNS, tile=bench.side, footer=footer)
    sheet.save(DOCS / "pictures" / f"where-{name}.jpg", quality=88, optimize=True)


def left(row: dict[str, Any], who: str) -> float:
    """The mean p(class) of masked pictures, as a share of that of whole ones."""
    return fmean(row[who]) / fmean(row["whole"][who])


def cells(row: dict[str, Any]) -> list[str]:
    """A way as a row of the table."""
    count = len(set(row["labels"]))
    draws = f" x {len(row['labels']) // count}" if len(row["labels"]) > count else ""
    way = row["way"].replace("|", r"\|")  # of a magnitude, not of a table
    return [way, f"{count}{draws}", row["passes"], f"{left(row, 'own'):.2f}", f"{left(row, 'other'):.2f}"]


def tables() -> str:
    """All sources as Markdown."""
    results = read_results(PATH)
    parts = []
    for source, side, other in dict.fromkeys(
        (row["source"], row["side"], row["other_network"]) for row in results["rows"].values()
    ):
        rows = [cells(row) for row in results["rows"].values() if row["source"] == source]
        whole = next(row["whole"] for row in results["rows"].values() if row["source"] == source)
        head = ["30 % of the area by", "maps", "more passes", "left of p, by the source", f"by {other}"]
        parts.append(
            f"**{source} at {side} px**; p of the whole pictures {fmean(whole['own']):.2f}, by {other} "
            f"{fmean(whole['other']):.2f}. {measured_on(results)}.\n\n{markdown(head, rows)}"
        )
    return "\n\n".join(parts)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("source", nargs="?", choices=OTHERS, help="network of the assets")
    parser.add_argument("--only", default="", help="only ways whose name matches this expression")
    parser.add_argument("--picture", action="store_true", help="draw the pictures of a source; measure nothing")
    options = parser.parse_args()
    if options.tables:
        fill("docs/evidence.md", "where", tables())
    elif options.source and options.picture:
        draw(options.source)
    elif options.source:
        measure(options.source, options.only)
    else:
        parser.print_usage()


if __name__ == "__main__":
    main()
