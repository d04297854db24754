"""Search for patches: maps in small windows all over the image start from noise; the best are continued for longer.

Far from a trigger patch no gradient points to it, and a map that starts at zero usually misses it. Noise of full
contrast in a window over the patch is near enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.samples import Samples
from ..method.ball import BallState
from ..method.config import MapperConfig
from ..method.maker import generator_for
from ..method.mapper import Mapper
from ..method.parameterization import Basis
from ..method.prepare import images_at_once, prepared, resolve_precision
from ..models.classifier import Classifier
from ..types import Shape
from .config import Round, Tournament

OnImages = Callable[[int], None] | None
"""Called after every step with the number of images that it took."""

LAST_DECAY = 0.5
"""Share of the last round's steps over which they become shorter."""


class Within:
    """Projection Ψ of maps side by side, each onto its own window and values in [−1, 1].

    Masks are ``(M, 1, H, W)``, 1 inside the window.
    """

    def __init__(self, masks: Tensor, channels: int) -> None:
        self.masks = masks
        self.eta = (channels * masks[0].sum().item()) ** 0.5

    def begin(self) -> BallState:
        return BallState(self.eta)

    def __call__(
        self, w: Tensor, ball: BallState, *, progress: float, success: float | Tensor
    ) -> tuple[Tensor, BallState]:
        return (w * self.masks).clamp(-1, 1), ball


def windows(shape: Shape, config: Tournament) -> Tensor:
    """Masks ``(grid², 1, H, W)`` of all windows; together they cover the image."""
    _, height, width = shape
    side = max(1, round(config.side * min(height, width)))
    masks = torch.zeros(config.grid, config.grid, 1, height, width)
    for row, top in enumerate(_starts(height - side, config.grid)):
        for column, left in enumerate(_starts(width - side, config.grid)):
            masks[row, column, :, top : top + side, left : left + side] = 1
    return masks.flatten(0, 1)


def patches_in_windows(
    classifier: Classifier,
    labels: Sequence[int],
    samples: Samples,
    config: Tournament,
    *,
    seed: int = 0,
    on_images: OnImages = None,
) -> Tensor:
    """The ν of the best windows of each class, ``(classes, windows of the last round, C, H, W)``, on the CPU.

    The windows of a class compete: after each round, those of most probability enter the next. Classes run side by
    side, as many as fill the device in the largest round.
    """
    faster = prepared(classifier, precision=resolve_precision("auto", classifier.device))
    basis, at_once = MapperConfig().parameterization.fit(samples, classifier.device), images_at_once(faster)
    search = _Search(faster, samples, config, basis, at_once, seed, on_images)
    together = max(1, at_once // max(each.windows * each.batch for each in config.entrants()))
    parts = [labels[start : start + together] for start in range(0, len(labels), together)]
    return torch.cat([search.best_of(part).cpu() for part in parts])


@dataclass(frozen=True)
class _Search:
    """What the rounds of all classes share."""

    network: Classifier
    samples: Samples
    config: Tournament
    basis: Basis
    micro_batch: int
    seed: int
    on_images: OnImages

    def best_of(self, labels: Sequence[int]) -> Tensor:
        """The ν of the last round for a few classes side by side, ``(classes, windows, C, H, W)``."""
        shape, device = self.network.shape, self.network.device
        masks = windows(shape, self.config).to(device).expand(len(labels), -1, -1, -1, -1)
        generators = [generator_for("window", label, self.seed, -1) for label in labels]
        noise = torch.stack([_noise((masks.shape[1], *shape), generator) for generator in generators])
        nu, rounds = masks * noise.to(device), self.config.entrants()
        for number, round_ in enumerate(rounds):
            nu, probability = self.maps(labels, nu, masks, round_, number)
            if number + 1 < len(rounds):
                best = probability.topk(rounds[number + 1].windows, dim=1).indices.to(device)
                rows = torch.arange(len(labels), device=device)[:, None]
                nu, masks = nu[rows, best], masks[rows, best]
        return nu

    def maps(
        self, labels: Sequence[int], start: Tensor, masks: Tensor, round_: Round, number: int
    ) -> tuple[Tensor, Tensor]:
        """The maps of a round, and the mean probability of their class over the last steps, ``(classes, windows)``."""
        count, (channels, *_) = start.shape[1], self.network.shape
        final = number + 1 == len(self.config.rounds)
        settings = MapperConfig(
            round_.batch, round_.steps, step=0.2, direction="plus", decay=LAST_DECAY if final else 0.0
        )
        keys = [(label, self.seed, 1000 * number + window) for label in labels for window in range(count)]
        mapper = Mapper(
            self.network, [label for label, *_ in keys], self.samples, settings, basis=self.basis,
            project=Within(masks.flatten(0, 1), channels), micro_batch=self.micro_batch,
            generators=[generator_for("window", *key) for key in keys],
        )  # fmt: skip
        state = begun = mapper.begin(start.flatten(0, 1))
        with self.network.frozen():
            for state in mapper.steps(begun):
                if self.on_images is not None:
                    self.on_images(len(state.w) * settings.batch)
        late = [[step.probability for step in trace[-self.config.last :]] for trace in state.steps_by_map]
        return self.basis.pixels(state.w).view_as(start), torch.tensor(late).mean(1).view(len(labels), count)


def _starts(free: int, count: int) -> list[int]:
    return torch.linspace(0, free, count).round().long().tolist()


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values of −1 and 1 at random."""
    return 2.0 * torch.randint(2, shape, generator=generator, dtype=torch.int8) - 1
