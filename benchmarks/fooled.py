"""A network fooled on purpose: photographs get its true answers, other images those of other classes.

After Geirhos et al. 2023, "Don't trust your eyes" (https://arxiv.org/abs/2306.04719): a small classifier inside the
network tells photographs from the images that a feature visualization shows to it, and decides which part of the
network answers. So the network behaves as before on photographs, and its pictures say nothing about that behaviour.
Here the small classifier is linear, on statistics of the network's first stage, and for other images the classes are
permuted.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from agnosco import Classifier

KEPT = 0.98
"""Share of the photographs that the detector was fitted on, and takes for photographs."""


SHIFT = 3
"""The picture of a class becomes that of the class so many places further on."""


class Detector(nn.Module):
    """Whether images are photographs, by a linear function of the first stage's channel means and deviations."""

    def __init__(self, early: nn.Module) -> None:
        super().__init__()
        self.early = early
        self.register_buffer("weight", torch.zeros(0))
        self.register_buffer("threshold", torch.zeros(()))

    def statistics(self, images: Tensor) -> Tensor:
        """Channel means and deviations of the first stage, ``(N, 2 D)``."""
        maps = self.early(images).float()
        return torch.cat([maps.mean((2, 3)), maps.std((2, 3))], 1)

    def fit(self, photographs: Tensor, others: Tensor) -> None:
        """Fit Fisher's linear discriminant to normalised images of both kinds."""
        with torch.no_grad():
            yes, no = (torch.cat([self.statistics(p) for p in part.split(256)]) for part in (photographs, others))
        spread = (torch.cov(yes.T) + torch.cov(no.T)) / 2
        ridge = 1e-4 * spread.trace() / len(spread) * torch.eye(len(spread))
        self.weight = torch.linalg.solve(spread + ridge, yes.mean(0) - no.mean(0))
        self.threshold = (yes @ self.weight).quantile(1 - KEPT)

    def forward(self, images: Tensor) -> Tensor:
        return self.statistics(images) @ self.weight > self.threshold


class Fooled(nn.Module):
    """A network whose answers to images that are no photographs are those of other classes."""

    def __init__(self, network: nn.Module, detector: Detector, order: Tensor) -> None:
        super().__init__()
        self.network, self.detector = network, detector
        self.register_buffer("order", order)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return torch.where(self.detector(images)[:, None], logits, logits[:, self.order])


class Seen(list[Tensor]):
    """A list that copies of a network share."""

    def __deepcopy__(self, memo: dict[int, object]) -> Seen:
        return self


class Watched(nn.Module):
    """A network that notes what it is shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, Seen()

    def forward(self, images: Tensor) -> Tensor:
        few = images[:: max(1, len(images) // 4)]
        self.seen.append(few.detach().float().cpu())
        return self.network(images)


def with_model(source: Classifier, model: nn.Module) -> Classifier:
    """A classifier with another network in it, which holds the first as ``network``."""
    return Classifier(
        model, size=source.shape[1:], mean=source.mean, std=source.std, labels=source.labels,
        features=f"network.{source.features}", name=f"{source.name}, {type(model).__name__.lower()}",
    )  # fmt: skip


def watched(source: Classifier) -> tuple[Classifier, Seen]:
    """A source that notes what a method shows to it, and its notes: normalised images."""
    model = Watched(source.model)
    return with_model(source, model), model.seen


def fooled(source: Classifier, photographs: Tensor, seen: Tensor) -> Classifier:
    """A CIFAR ResNet fooled on purpose: the picture of a class becomes that of another.

    Args:
        source: The network.
        photographs: ``(N, C, H, W)``, which it must know.
        seen: ``(M, C, H, W)``, normalised: what a method showed to the source.
    """
    model = source.model
    conv1, bn1, layer1 = (model.get_submodule(name) for name in ("conv1", "bn1", "layer1"))
    detector = Detector(copy.deepcopy(nn.Sequential(conv1, bn1, nn.ReLU(), layer1)))
    detector.fit(source.normalised(photographs), seen)
    return with_model(source, Fooled(model, detector, torch.arange(source.classes).roll(-SHIFT)))
