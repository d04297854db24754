"""What several rooms speak of: shapes, jobs, and what a step of the mapper reports."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Shape = tuple[int, int, int]
"""Of an image: ``(C, H, W)``."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
"""Filters that resize images, as Pillow calls them."""

MOST_SEED = (1 << 63) - 1
"""The largest seed, and the negative of the smallest: what manifests can hold."""

SMALLEST_SHARE = 0.1
"""The smallest share of a resized image that is kept: a rule may come from anyone, and images are decoded by it."""


@dataclass(frozen=True)
class Resize:
    """How an image of any size becomes a network's input, in the words of timm's ``pretrained_cfg``.

    Args:
        crop_pct: Share of the resized image's side that is kept: for an input of 224 pixels and 0.875, images are
            resized to 256 pixels, and cropped at the centre.
        crop_mode: ``"center"`` resizes the shorter side to this length and keeps the proportions; ``"squash"`` resizes
            both sides to it.
        interpolation: The filter, always antialiased.

    Raises:
        ValueError: The share is not in [0.1, 1].

    Example:
        >>> from agnosco.types import Resize
        >>> str(Resize(0.875, "center", "bilinear"))
        'center 0.875 bilinear'
    """

    crop_pct: float = 1.0
    crop_mode: Literal["center", "squash"] = "center"
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if not SMALLEST_SHARE <= self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be in [{SMALLEST_SHARE}, 1], not {self.crop_pct}")

    def __str__(self) -> str:
        return f"{self.crop_mode} {self.crop_pct:g} {self.interpolation}"


OnProgress = Callable[[int, int], None]
"""Called with how many are done, and how many there are in all."""


class Stage(NamedTuple):
    """A stage of the cycle that makes a map: as text, ``map 1``, ``refine 1``, ``map 2`` and so on.

    Args:
        kind: ``"map"`` for Algorithm 1, ``"refine"`` for the refinement.
        cycle: From 1.
    """

    kind: Literal["map", "refine"]
    cycle: int

    def __str__(self) -> str:
        return f"{self.kind} {self.cycle}"

    @classmethod
    def parse(cls, text: str) -> Stage | None:
        """The stage of such a text; None for another text."""
        parts = re.fullmatch(r"(map|refine) ([1-9][0-9]{0,2})", text)
        return parts and cls("map" if parts[1] == "map" else "refine", int(parts[2]))


class Job(NamedTuple):
    """A map to be made: the class's index, and the seed."""

    label: int
    seed: int


@dataclass(frozen=True)
class Step:
    """What one step saw and did.

    Args:
        step: k, from 1.
        probability: Mean softmax probability of the class over the perturbed mini-batch, before the step.
        success: Share of that mini-batch classified as the class.
        norm: ‖ν‖₂ after the step.
        direction: +1 if v was added, −1 if subtracted, 0 in the refinement.

    Example:
        >>> from agnosco import Step
        >>> Step(1, probability=0.2, success=0.1, norm=3.0, direction=1).norm
        3.0
    """

    step: int
    probability: float
    success: float
    norm: float
    direction: int


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step.

    Args:
        label, seed: The map being made.
        done: Steps done of this map, all stages together.
        total: Steps that this map takes.
        last: What the last step saw and did.

    Example:
        >>> import torch
        >>> from agnosco import Config, MapperConfig, Progress, Samples, map_class
        >>> def show(progress: Progress) -> None:
        ...     print(f"{progress.stage}: step {progress.done} of {progress.total}")
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        >>> config = Config(MapperConfig(batch=4, steps=2), refine=None, cycles=1)
        >>> concept = map_class(model, 0, Samples.noise((3, 8, 8), count=8), config, size=8, on_step=show)
        map 1: step 1 of 2
        map 1: step 2 of 2
    """

    label: int
    seed: int
    stage: Stage
    done: int
    total: int
    last: Step


OnStep = Callable[[Progress], None]
"""Called after every step of a map, with where the map stands."""
