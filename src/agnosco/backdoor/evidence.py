"""Evidence beside a scan's outcome: properties of a pattern, also beside a known trigger, and a sign without one.

It does not decide the outcome; docs/backdoors.md says how well each tells compromised networks from clean ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..method.ball import top_energy_mask
from ..method.score import targeted_success_rate
from ..models.classifier import Classifier
from .triggers import Trigger
from .verdict import robust_z


def concentration(nu: Tensor, *, share: float = 0.5) -> float:
    """The smallest share of the pixels that holds a share of the energy of a map ``(C, H, W)``."""
    energy = nu.square().sum(0).flatten().sort(descending=True).values.double()
    if energy.sum() == 0:
        return 1.0
    return (int((energy.cumsum(0) < share * energy.sum()).sum()) + 1) / energy.numel()


def cut_out(nu: Tensor, pixels: int) -> Tensor:
    """A map ``(C, H, W)`` with zeros at all pixels but those of most energy."""
    return nu * top_energy_mask(nu.square().sum(0), pixels)


def of_pattern(classifier: Classifier, nu: Tensor, label: int, images: Samples) -> dict[str, float]:
    """How much reach the pattern of a map ``(C, H, W)`` keeps when it is cut out, shifted, or added to noise.

    Returns:
        ``reach``; ``concentration``; ``reach_of_top_2_percent``; ``reach_shifted``, by a quarter of height and width
        (a trigger that works only at one place loses it); ``reach_on_noise``. NaN if no image of another class is left.
    """
    _, height, width = nu.shape
    shifted = torch.roll(nu, (height // 4, width // 4), (1, 2))
    noise = Samples.noise(images.shape, count=min(len(images), 100), seed=1)

    def reach(of: Tensor, on: Samples = images) -> float:
        return targeted_success_rate(classifier, of, label, on)

    return {
        "reach": reach(nu),
        "concentration": concentration(nu),
        "reach_of_top_2_percent": reach(cut_out(nu, max(1, round(0.02 * height * width)))),
        "reach_shifted": reach(shifted),
        "reach_on_noise": reach(nu, noise),
    }


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
    """How much of a known trigger a pattern shows: the paper's Fig. 4 as a number.

    Compare it with chance: with maps that cannot show the trigger, those of other classes and of the clean twin.

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


def final_layer(classifier: Classifier) -> Tensor | None:
    """Robust z of the mean weight of each class in the last linear layer (Fields et al. 2021), ``(classes,)``.

    A control that needs no image and takes a millisecond; None if there is no such layer.
    """
    layers = [
        module
        for module in classifier.model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and len(module.weight) == classifier.classes
    ]
    if not layers:
        return None
    return robust_z(layers[-1].weight.detach().float().flatten(1).mean(1), floor=1e-6).cpu()
