"""The mathematics of benchmarks/questions.py: pairs of photographs, likeness of features, paths through a network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from agnosco import Classifier
from agnosco.evaluate.checks import stages_of
from agnosco.models.features import feature_map

FAVOURED = 10
"""How many photographs with the highest logits of a class are the right answers of its pairs."""

KINDS = {"easy": (0.5, 1.0), "hard": (0.05, 0.25)}
"""Where the wrong answer of a pair lies among the photographs, from the highest logit to the lowest."""


# -- pairs of photographs ---------------------------------------------------------------------------


def pairs(logits: Tensor, kind: str, *, without: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Photographs whose pairs are asked: those that excite a class most, and others that excite it less.

    Args:
        logits: ``(N,)``, the source's logit of the class for each photograph.
        kind: One of ``KINDS``.
        without: Photographs to leave out.

    Returns:
        Indices of the right answers and of the wrong ones; every right one is asked against every wrong one.
    """
    order = torch.tensor([index for index in logits.argsort(descending=True).tolist() if index not in without])
    start, end = (round(share * len(order)) for share in KINDS[kind])
    return order[:FAVOURED], order[max(start, FAVOURED) : end]


def share_right(likeness: Tensor, right: Tensor, wrong: Tensor) -> float:
    """Share of pairs in which the right photograph is more like the explanation; a tie counts half.

    Args:
        likeness: ``(N,)``, of each photograph to the explanation.
        right, wrong: Indices, as of :func:`pairs`.
    """
    difference = likeness[right][:, None] - likeness[wrong][None]
    return ((difference > 0).double() + 0.5 * (difference == 0)).mean().item()


# -- features ---------------------------------------------------------------------------------------


def fitted(images: Tensor, network: Classifier) -> Tensor:
    """Images at the size of a network's input."""
    return F.interpolate(images, size=network.shape[1:], mode="bilinear", antialias=True)


def features(network: Classifier, images: Tensor) -> Tensor:
    """Channel means of a network's last convolutional stage, at unit length, ``(N, D)``."""
    parts = [network.activations(fitted(part, network)).mean((2, 3)) for part in images.split(32)]
    return F.normalize(torch.cat(parts))


def stage_means(network: Classifier, images: Tensor) -> dict[str, Tensor]:
    """Channel means ``(N, D)`` of every stage with weights that answers with a feature map, from the input up.

    Batch norms are left out: once channel means are standardised, theirs are those of the stage before.
    """
    found: dict[str, list[Tensor]] = {}

    def note(stage: str, output: object) -> None:
        grid = feature_map(output, network.shape)
        if grid is not None:
            found.setdefault(stage, []).append(grid.float().mean((2, 3)))

    with ExitStack() as hooks, torch.no_grad():
        for stage in reversed(stages_of(network.model)):
            module = network.model.get_submodule(stage)
            if isinstance(module, nn.BatchNorm2d):
                continue
            hooks.enter_context(module.register_forward_hook(lambda _m, _i, output, stage=stage: note(stage, output)))
        for part in images.split(32):
            network(part)
    return {stage: torch.cat(means) for stage, means in found.items()}


# -- paths ------------------------------------------------------------------------------------------


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of all rows of two matrices, ``(N, D)`` and ``(M, D)``, as ``(N, M)``."""
    ranked = (torch.from_numpy(rankdata(part.double().numpy(), axis=1)) for part in (first, second))
    ours, theirs = (F.normalize(ranks - ranks.mean(1, keepdim=True)) for ranks in ranked)
    return ours @ theirs.T


@dataclass(frozen=True)
class Naturalness:
    """Likeness of pictures to photographs at one stage, on a scale of photographs: 1 the same class, 0 another.

    Args:
        same: Mean rank correlation of two photographs of one class.
        different: That of photographs of two classes.
        natural: Of each picture: its likeness to photographs of its class.
        specific: Of each picture: that likeness less its likeness to photographs of other classes.
    """

    same: float
    different: float
    natural: list[float]
    specific: list[float]


def path(pictures: Tensor, labels: Sequence[int], photographs: Tensor, classes: Sequence[int]) -> Naturalness:
    """How natural the activations of pictures are at one stage.

    Args:
        pictures: ``(N, D)``, channel means for pictures.
        labels: The class of each picture.
        photographs: ``(M, D)``, channel means for photographs; of each class at least two.
        classes: The class of each photograph.
    """
    owner = torch.tensor(classes)
    alike = spearman(photographs, photographs)
    of_pictures = spearman(pictures, photographs)
    same, different = {}, {}
    for label in sorted(set(labels)):
        own = owner == label
        within = alike[own][:, own]
        same[label] = ((within.sum() - within.trace()) / (own.sum() * (own.sum() - 1))).item()
        different[label] = alike[own][:, ~own].mean().item()
    gap = (sum(same.values()) - sum(different.values())) / len(same)
    natural, specific = [], []
    for row, label in zip(of_pictures, labels, strict=True):
        to_own, to_others = row[owner == label].mean().item(), row[owner != label].mean().item()
        natural.append(round((to_own - different[label]) / gap, 4))
        specific.append(round((to_own - to_others) / gap, 4))
    return Naturalness(sum(same.values()) / len(same), sum(different.values()) / len(same), natural, specific)
