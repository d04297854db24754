"""Pictures by several methods, for benchmarks/questions.py: made once, and kept in build/questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from common import RESULTS, ROOT, add_row, photograph_classes, photographs
from fooled import fooled, watched
from frontier import BOX, Setup, setup
from gallery import affordable_paper, slug
from likeness import stage_means
from peers import CROPS_PER_STEP, horama
from torch import Tensor

import agnosco
from agnosco import Classifier, Config, Samples
from agnosco.method.config import config_to_json
from agnosco.method.prepare import prepared, resolve_precision

WATCHED = 3
"""Of how many classes a detector has seen how a method makes the pictures."""

Jobs = Sequence[tuple[int, int]]  # class and seed of each picture


def methods() -> dict[str, Config | None]:
    """The methods by name, with their settings if they are agnosco's."""
    return {"agnosco quick": agnosco.preset("quick"), "Horama fourier": None, "paper, few passes": affordable_paper()}


def passes(method: str) -> int:
    """Images forward and back through the source for each picture."""
    return (methods()[method] or agnosco.preset("quick")).passes


def make(method: str, source: Classifier, mapping: Samples, jobs: Jobs) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Pictures of classes and seeds by a method, each as soon as it is finished."""
    if config := methods()[method]:
        classes, seeds = (sorted(set(part)) for part in zip(*jobs, strict=True))
        for concept in agnosco.map_classes(source, classes, mapping, config, seeds=seeds):
            yield (concept.label, concept.seed), concept.pixels
        return
    network = prepared(source, precision=resolve_precision("auto", source.device))
    for job in jobs:
        yield job, horama(network, None, source.shape[1], BOX, passes(method) // CROPS_PER_STEP, *job)


def pictures(method: str, source: Classifier, mapping: Samples, jobs: Jobs, folder: str) -> Tensor:
    """Pictures by a method, ``(N, C, H, W)``; those that exist already are not made again."""
    config = methods()[method]
    settings = f"{source.fingerprint}, {config_to_json(config) if config else (BOX, passes(method))}"
    file = ROOT / "build" / "questions" / folder / f"{slug(method)}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = torch.load(file) if file.exists() else {}
    if kept.get("settings") != settings:
        kept = {"settings": settings, "pictures": {}}
    if missing := [job for job in jobs if job not in kept["pictures"]]:
        for job, picture in make(method, source, mapping, missing):
            kept["pictures"][job] = picture.float().cpu()
            torch.save(kept, file)
            print(folder, method, source.labels[job[0]], *job, flush=True)
    return torch.stack([kept["pictures"][job] for job in jobs])


@dataclass(frozen=True)
class Inquiry:
    """A source, what it is asked about, and where the answers go."""

    name: str
    size: int
    classes: int
    seeds: int

    @cached_property
    def _setup(self) -> Setup:
        return setup(self.name, self.size)

    @property
    def source(self) -> Classifier:
        """The network that the pictures are made with."""
        return self._setup.source

    @property
    def judges(self) -> dict[str, Classifier]:
        """Other networks."""
        return self._setup.judges

    @cached_property
    def photographs(self) -> Samples:
        """All photographs."""
        return photographs(self.source)

    @cached_property
    def images(self) -> Tensor:
        """All photographs ``(M, C, H, W)``."""
        return torch.cat(list(self.photographs.batches(64)))

    @cached_property
    def owners(self) -> list[int | None]:
        """The class of each photograph."""
        return photograph_classes(self.source)

    @cached_property
    def stage_means(self) -> dict[str, Tensor]:
        """What the source's stages answer to all photographs."""
        return stage_means(self.source, self.images)

    def halves(self) -> tuple[Tensor, Tensor]:
        """Which photographs the pictures are made with, and which are held out."""
        return self.photographs.split_indices(0.5)

    def made(self, method: str, labels: Sequence[int], source: Classifier | None = None) -> tuple[Tensor, list[int]]:
        """Pictures of classes by a method, and their classes; of another source if it is given."""
        jobs = [(label, seed) for seed in range(self.seeds) for label in labels]
        folder = f"{self.name}-{self.size}px" + ("-fooled" if source else "")
        mapping, _ = self.photographs.split(0.5)
        return pictures(method, source or self.source, mapping, jobs, folder), [label for label, _ in jobs]

    def fooled(self, method: str) -> Classifier:
        """The source fooled on purpose, by a detector that has seen how a method makes its pictures."""
        network, seen = watched(self.source)
        mapping, _ = self.photographs.split(0.5)
        for _ in make(method, network, mapping, [(label, 0) for label in range(WATCHED)]):
            pass
        return fooled(self.source, self.images[self.halves()[0]], torch.cat(seen))

    def store(self, part: str, name: str, row: dict[str, Any]) -> None:
        """Add a row to the results."""
        file = RESULTS / f"questions-{self.name}-{self.size}px.json"
        add_row(file, f"{self.name} at {self.size} px", name, row, part=part)
        print(part, name, flush=True)
