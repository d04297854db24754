"""What several rooms speak of: shapes, jobs, and what a step of the mapper reports."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Shape = tuple[int, int, int]
"""Of an image: ``(C, H, W)``."""

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
