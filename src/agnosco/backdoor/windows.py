"""Search for patches: maps in small windows all over the image start from noise; the best are continued for longer.

Far from a trigger patch no gradient points to it, and a map that starts at zero usually misses it. Noise of full
contrast in a window over the patch is near enough.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..data.samples import Samples
from ..method.ball import BallState
from ..method.config import MapperConfig
from ..method.maker import generator_for
from ..method.mapper import Mapper
from ..method.prepare import images_at_once, prepared
from ..models.classifier import Classifier
from ..types import Shape
from .config import Tournament


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
    label: int,
    samples: Samples,
    config: Tournament,
    *,
    finalists: int,
    seed: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> Tensor:
    """The ν of a class's best windows, which are mapped for longer, ``(finalists, C, H, W)``, on the CPU.

    ``on_images`` is called after every step with the number of images that it took.
    """
    first = MapperConfig(config.batch, config.steps, step=0.2, direction="plus")
    masks = windows(classifier.shape, config).to(classifier.device)
    generator = generator_for("window", label, seed, -1)
    noise = 2 * torch.randint(2, (len(masks), *classifier.shape), generator=generator) - 1.0
    faster = prepared(classifier)
    basis = first.parameterization.fit(samples, classifier.device)
    micro_batch = images_at_once(faster)

    def maps(start: Tensor, masks: Tensor, settings: MapperConfig, round_: int) -> tuple[Tensor, Tensor]:
        generators = [generator_for("window", label, seed, round_ * 1000 + i) for i in range(len(masks))]
        mapper = Mapper(
            faster, [label] * len(masks), samples, settings, basis=basis, project=Within(masks, classifier.shape[0]),
            generators=generators, micro_batch=micro_batch,
        )  # fmt: skip
        state = begun = mapper.begin(start)
        with faster.frozen():
            for state in mapper.steps(begun):
                if on_images is not None:
                    on_images(len(state.w) * settings.batch)
        late = [[step.probability for step in trace[-config.last :]] for trace in state.steps_by_map]
        return basis.pixels(state.w), torch.tensor(late).mean(1)

    nu, probabilities = maps(masks * noise.to(masks.device), masks, first, 0)
    best = probabilities.topk(min(finalists, len(masks))).indices.to(masks.device)
    longer = replace(first, batch=config.longer_batch, steps=config.longer_steps, decay=0.5)
    return maps(nu[best], masks[best], longer, 1)[0].cpu()


def _starts(free: int, count: int) -> list[int]:
    return torch.linspace(0, free, count).round().long().tolist()
