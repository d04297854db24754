"""Neural Cleanse (Wang et al., IEEE S&P 2019), written from the paper and the settings of its authors' code.

For every class, it optimizes a mask m and a pattern p, so that the network gives the class to images x changed to
(1 − m) x + m p, with the smallest possible mask: the cost of ‖m‖₁ rises while enough images are given the class, and
falls while they are not. A class whose smallest mask is an outlier is the target. All classes run side by side.

The authors' code runs 31 batches of 32 images (:data:`NATIVE_BATCHES`) between two decisions (is the class reached, has
the mask stopped shrinking), up to 1000 times: 150 times the cost of a scan by agnosco. By default every batch decides
here, so that it ends within the same time. At the authors' cost, its verdicts may be better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from agnosco.backdoor.verdict import NORMAL_SCALE
from agnosco.data.samples import Samples
from agnosco.models.classifier import Classifier

NATIVE_BATCHES = 31
SUCCESS = 0.99
FIRST_COST = 1e-3
STOP_PATIENCE = 25
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
        return anomaly_index(self.norms)


def anomaly_index(sizes: Tensor, *, least: float = 1e-6) -> Tensor:
    """How far each size is below the median, in robust standard deviations of at least ``least``."""
    below = sizes.quantile(0.5) - sizes
    deviation = below.abs().quantile(0.5)
    return below / (NORMAL_SCALE * deviation).clamp_min(least)


class Costs:
    """The cost of size for each class: it rises while the class is reached, and falls while it is not.

    Args:
        start: The cost at the beginning, ``(classes,)``.
        rise: By which it is multiplied after ``patience`` decisions in a row that the class is reached.
        patience: The number of decisions.
        least: Least cost after a rise.
    """

    def __init__(self, start: Tensor, *, rise: float, patience: int, least: float = 0.0) -> None:
        self.now, self.rise, self.patience, self.least = start, rise, patience, least
        self._above, self._below = torch.zeros_like(start), torch.zeros_like(start)
        self.rose, self.fell = torch.zeros_like(start, dtype=torch.bool), torch.zeros_like(start, dtype=torch.bool)

    def decide(self, reached: Tensor) -> None:
        """Change the costs by whether each class is reached now, ``(classes,)`` bool."""
        self._above = torch.where(reached, self._above + 1, 0.0)
        self._below = torch.where(reached, 0.0, self._below + 1)
        rises, falls = self._above >= self.patience, self._below >= self.patience
        self.rose |= rises & (self.now > 0)
        self.fell |= falls & (self.now > 0)
        self.now = torch.where(rises, (self.now * self.rise).clamp_min(self.least), self.now)
        self.now = torch.where(falls, self.now / self.rise**1.5, self.now)
        self._above, self._below = self._above.masked_fill(rises, 0), self._below.masked_fill(falls, 0)


def neural_cleanse(
    classifier: Classifier,
    samples: Samples,
    *,
    steps: int = 1000,
    batches: int = 1,
    batch: int = 32,
    rate: float = 0.1,
    seed: int = 0,
) -> Masks:
    """Find the smallest mask of every class.

    Args:
        classifier: The network.
        samples: Clean images.
        steps: Greatest number of decisions for each class.
        batches: Mini-batches between two decisions.
        batch: Images in each.
        rate: Learning rate of Adam, with betas of 0.5 and 0.9.
        seed: Seed of the start and of the mini-batches.
    """
    count, (channels, height, width), device = classifier.classes, classifier.shape, classifier.device
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randn(count, 1, height, width, generator=generator).to(device).requires_grad_()
    pattern = torch.randn(count, channels, height, width, generator=generator).to(device).requires_grad_()
    adam = torch.optim.Adam([mask, pattern], rate, betas=(0.5, 0.9))
    costs = Costs(torch.zeros(count, device=device), rise=2.0, patience=5, least=FIRST_COST)
    since, nothing = torch.zeros(count, device=device), float(height * width)
    best, live = torch.full_like(since, nothing), torch.ones_like(since, dtype=torch.bool)
    with classifier.frozen():
        for _ in range(steps):
            images = (samples.draw(batch, generator).to(device) for _ in range(batches))
            taken = [_descend(classifier, part, mask, pattern, costs.now, live, adam) for part in images]
            shares, norms = (torch.stack(each).mean(0) for each in zip(*taken, strict=True))
            right = shares >= SUCCESS
            better = live & right & (norms < best)
            since = torch.where(better & (norms < 0.99 * best), 0.0, since + (best < nothing))
            best = torch.where(better, norms, best)
            costs.decide(right)
            live &= ~((since >= STOP_PATIENCE) & costs.rose & costs.fell)  # not before the cost has risen and fallen
            if not live.any():
                break
    return Masks(best.cpu(), ~live.cpu())


def _descend(
    classifier: Classifier, images: Tensor, mask: Tensor, pattern: Tensor, cost: Tensor, live: Tensor,
    adam: torch.optim.Optimizer,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step of the classes that are still searched; what share of images each was given, and ‖m‖₁ before it."""
    m, p = _unit(mask[live]), _unit(pattern[live])
    norms = m.sum((1, 2, 3))
    losses, right = given((1 - m)[:, None] * images + (m * p)[:, None], classifier, live)
    mask.grad, pattern.grad = torch.autograd.grad((losses + cost[live] * norms).sum(), [mask, pattern])
    adam.step()
    shares, sizes = torch.zeros_like(cost), torch.zeros_like(cost)
    shares[live], sizes[live] = right, norms.detach()
    return shares, sizes


def given(shown: Tensor, classifier: Classifier, live: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of each class's own images, and the share of them that is given the class.

    Args:
        shown: ``(searched, images, C, H, W)``.
        classifier: The network.
        live: Which classes are searched, ``(classes,)`` bool.
    """
    searched, batch = shown.shape[:2]
    targets = live.nonzero()[:, 0].repeat_interleave(batch)
    logits = classifier(shown.flatten(0, 1))
    losses = F.cross_entropy(logits, targets, reduction="none").view(searched, batch).mean(1)
    return losses, (logits.argmax(1) == targets).float().view(searched, batch).mean(1)


def _unit(raw: Tensor) -> Tensor:
    return raw.tanh() / (2 - EPSILON) + 0.5
