"""Pixel Backdoor (Tao et al., CVPR 2022), written from the paper and the settings of its authors' code.

For every class, it optimizes what is added to each pixel and what is taken from it: a positive and a negative pattern,
both clipped to [0, 1], so that the network gives the class to images clip(x + positive − negative), with as few changed
pixels as possible. Pixels are counted softly, by a hyperbolic tangent of the greatest channel; the cost of their number
rises while enough images are given the class, and falls while they are not. Whenever the number shrinks, values below
one grey level are set to zero, and the search goes on from there. All classes run side by side, over images of all
classes; the authors' code leaves out those of the target.

The paper compares the smallest count with a threshold of each data set. There is none for the networks here, so the
counts are compared with each other, like the masks of Neural Cleanse.

The authors' code runs three batches of 32 images (:data:`NATIVE_BATCHES`) between two decisions, 1000 times. By default
every batch decides here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from neural_cleanse import EPSILON, Costs, anomaly_index, given
from torch import Tensor

from agnosco.data.samples import Samples
from agnosco.models.classifier import Classifier

NATIVE_BATCHES = 3
SUCCESS = 0.9
FIRST_COST = 1e-3
GREY_LEVEL = 1 / 255


@dataclass
class Patterns:
    """The result for every class.

    Args:
        patterns: What is added to images, ``(classes, C, H, W)`` in [−1, 1]; zeros if no pattern gave the class to
            enough images.
        sizes: Number of pixels that it changes; all pixels if there is none.
    """

    patterns: Tensor
    sizes: Tensor

    @property
    def anomaly(self) -> Tensor:
        """The anomaly index of each class, positive where its pattern is smaller than the median."""
        return anomaly_index(self.sizes, least=1.0)


def pixel_backdoor(
    classifier: Classifier,
    samples: Samples,
    *,
    steps: int = 1000,
    batches: int = 1,
    batch: int = 32,
    rate: float = 0.1,
    seed: int = 0,
) -> Patterns:
    """Find the pattern of fewest pixels of every class.

    Args:
        classifier: The network.
        samples: Clean images.
        steps: Number of decisions for each class.
        batches: Mini-batches between two decisions.
        batch: Images in each.
        rate: Learning rate of Adam, with betas of 0.5 and 0.9.
        seed: Seed of the start and of the mini-batches.
    """
    count, shape, device = classifier.classes, classifier.shape, classifier.device
    generator = torch.Generator().manual_seed(seed)
    parts = torch.rand(2, count, *shape, generator=generator).to(device).requires_grad_()  # positive, negative
    adam = torch.optim.Adam([parts], rate, betas=(0.5, 0.9))
    costs = Costs(torch.full((count,), FIRST_COST, device=device), rise=1.5, patience=10)
    least = torch.full((count,), torch.inf, device=device)
    best, best_parts = torch.full_like(least, shape[1] * shape[2]), torch.zeros_like(parts)
    with classifier.frozen():
        for _ in range(steps):
            images = (samples.draw(batch, generator).to(device) for _ in range(batches))
            taken = [_descend(classifier, part, parts, costs.now, adam) for part in images]
            shares, counts = (torch.stack([each[part] for each in taken]).mean(0) for part in (0, 1))
            kept = _without_small_values(taken[-1][2])
            pixels, right = changed_pixels(kept), shares >= SUCCESS
            better = right & (counts < least) & (pixels < best)
            least, best = torch.where(better, counts, least), torch.where(better, pixels, best)
            best_parts[:, better] = parts.data[:, better] = kept[:, better]
            costs.decide(right)
    return Patterns((best_parts[0] - best_parts[1]).cpu(), best.cpu())


def _descend(
    classifier: Classifier, images: Tensor, parts: Tensor, cost: Tensor, adam: torch.optim.Optimizer
) -> tuple[Tensor, Tensor, Tensor]:
    """One step; before it: what share of images each class was given, the soft count of its pixels, and the parts."""
    before = parts.detach().clone()
    positive, negative = parts.clamp(0, 1)
    counts = ((parts / 10).tanh() / (2 - EPSILON) + 0.5).amax(2).sum((0, 2, 3))
    shown = (images + (positive - negative)[:, None]).clamp(0, 1)
    losses, right = given(shown, classifier, torch.ones_like(cost, dtype=torch.bool))
    (parts.grad,) = torch.autograd.grad((losses + cost * counts).sum(), [parts])
    adam.step()
    return right, counts.detach(), before


def _without_small_values(parts: Tensor) -> Tensor:
    """Both parts as they are added, with zeros where they are less than one grey level."""
    clipped = parts.clamp(0, 1)
    return clipped.where(clipped >= GREY_LEVEL, 0.0)


def changed_pixels(parts: Tensor) -> Tensor:
    """Number of pixels that each class's pattern changes, ``(classes,)``, from both parts ``(2, classes, C, H, W)``."""
    return (parts[0] != parts[1]).any(1).sum((1, 2)).float()
