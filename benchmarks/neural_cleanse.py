"""Neural Cleanse (Wang et al., IEEE S&P 2019), written from the paper and the settings of its authors' code.

For every class, it optimizes a mask m and a pattern p, so that the network gives the class to images x changed to
(1 − m) x + m p, with the smallest possible mask: the cost of ‖m‖₁ rises while enough images are given the class, and
falls while they are not. A class whose smallest mask is an outlier is the target. All classes run side by side.

The authors' code runs 31 batches of 32 images between two decisions (is the class reached, has the mask stopped
shrinking), 1000 times: 150 times the cost of a scan by agnosco. Here every batch decides, so that it ends within the
same time. At the authors' cost, its verdicts may be better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from agnosco.backdoor.verdict import NORMAL_SCALE
from agnosco.data.samples import Samples
from agnosco.models.classifier import Classifier

SUCCESS = 0.99
FIRST_COST, UP, DOWN = 1e-3, 2.0, 2.0**1.5
PATIENCE, STOP_PATIENCE = 5, 25
EPSILON = 1e-7


@dataclass
class Masks:
    """The result for every class.

    Args:
        norms: ‖m‖₁ of the smallest mask that gives the class to enough images, in pixels; all pixels if there is none.
        stopped: Whether the search for a class ended before its steps ran out.
    """

    norms: Tensor
    stopped: Tensor

    @property
    def anomaly(self) -> Tensor:
        """The anomaly index of each class, positive where its mask is smaller than the median."""
        below = self.norms.quantile(0.5) - self.norms
        deviation = below.abs().quantile(0.5)
        return below / (NORMAL_SCALE * deviation).clamp_min(1e-6)


def neural_cleanse(
    classifier: Classifier, samples: Samples, *, steps: int = 1000, batch: int = 32, rate: float = 0.1, seed: int = 0
) -> Masks:
    """Find the smallest mask of every class.

    Args:
        classifier: The network.
        samples: Clean images.
        steps: Greatest number of mini-batches for each class.
        batch: Images in each.
        rate: Learning rate of Adam, with betas of 0.5 and 0.9.
        seed: Seed of the start and of the mini-batches.
    """
    count, (channels, height, width), device = classifier.classes, classifier.shape, classifier.device
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randn(count, 1, height, width, generator=generator).to(device).requires_grad_()
    pattern = torch.randn(count, channels, height, width, generator=generator).to(device).requires_grad_()
    adam = torch.optim.Adam([mask, pattern], rate, betas=(0.5, 0.9))
    cost, up, down, since = torch.zeros(4, count, device=device)
    rose, fell = torch.zeros(2, count, dtype=torch.bool, device=device)
    best = torch.full((count,), float(height * width), device=device)
    live = torch.ones(count, dtype=torch.bool, device=device)
    targets = torch.arange(count, device=device).repeat_interleave(batch)
    with classifier.frozen():
        for _ in range(steps):
            images = samples.draw(batch, generator).to(device)
            m, p = _unit(mask), _unit(pattern)
            shown = ((1 - m)[:, None] * images + (m * p)[:, None]).flatten(0, 1)
            logits = classifier(shown)
            norms = m.sum((1, 2, 3))
            losses = F.cross_entropy(logits, targets, reduction="none").view(count, batch).mean(1) + cost * norms
            mask.grad, pattern.grad = torch.autograd.grad(losses[live].sum(), [mask, pattern])
            right = (logits.argmax(1) == targets).float().view(count, batch).mean(1) >= SUCCESS
            better = live & right & (norms.detach() < best)
            since = torch.where(better & (norms.detach() < 0.99 * best), 0.0, since + (best < height * width))
            best = torch.where(better, norms.detach(), best)
            up, down = torch.where(right, up + 1, 0.0), torch.where(right, 0.0, down + 1)
            rose, fell = rose | ((up >= PATIENCE) & (cost > 0)), fell | ((down >= PATIENCE) & (cost > 0))
            live &= ~((since >= STOP_PATIENCE) & rose & fell)  # not before the cost has risen and fallen
            cost = torch.where(up >= PATIENCE, (cost * UP).clamp_min(FIRST_COST), cost)
            cost = torch.where(down >= PATIENCE, cost / DOWN, cost)
            up, down = up.masked_fill(up >= PATIENCE, 0), down.masked_fill(down >= PATIENCE, 0)
            if not live.any():
                break
            adam.step()
    return Masks(best.cpu(), ~live.cpu())


def _unit(raw: Tensor) -> Tensor:
    return raw.tanh() / (2 - EPSILON) + 0.5
