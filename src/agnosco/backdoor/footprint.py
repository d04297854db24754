"""How much of a known trigger a map shows: the paper's Fig. 4 as a number.

It is compared with chance: with maps that cannot show the trigger, those of other classes and of the clean twin.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ..errors import AgnoscoError
from ..method.ball import top_energy_mask
from .triggers import Trigger


@dataclass(frozen=True)
class Footprint:
    """How similar a map's pattern is to a trigger.

    Args:
        iou: Intersection over union of the trigger's pixels and as many of the pattern's of most energy, in [0, 1].
        energy: Share of the pattern's energy inside the trigger's pixels, over their share of the area; 1 by chance.
        cosine: Between the pattern and E[T(x) − x], in [−1, 1].
    """

    iou: float
    energy: float
    cosine: float


def footprint(pattern: Tensor, trigger: Trigger, images: Tensor) -> Footprint:
    """The footprint of a trigger in a pattern.

    Args:
        pattern: −ν, ``(C, H, W)``.
        trigger: The trigger; at a random place its mask is the whole image, and only the cosine says something.
        images: Clean images ``(N, C, H, W)`` in [0, 1], over which the trigger's mean change is taken.

    Raises:
        AgnoscoError: Pattern and images are of different shapes.
    """
    if pattern.shape != images.shape[1:]:
        raise AgnoscoError(
            f"the pattern has the shape {tuple(pattern.shape)}, but the images have {tuple(images.shape[1:])}",
            "give images of the pattern's shape",
        )
    channels, height, width = pattern.shape
    mask = trigger.mask((channels, height, width)).view(height, width)
    energy = pattern.double().square().sum(0)
    count = int(mask.sum())
    top = top_energy_mask(energy, count)
    both = int((top & mask).sum())
    inside = energy[mask].sum() / energy.sum().clamp_min(1e-30)
    cosine = F.cosine_similarity(pattern.flatten(), trigger.difference(images).flatten(), dim=0)
    return Footprint(both / (2 * count - both), inside.item() * mask.numel() / count, cosine.item())
