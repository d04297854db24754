"""How well a network sees the classes in a set of maps: M_score (Eq. 3–5) and what stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..models.classifier import Classifier
from .formulas import perturbed


@dataclass(frozen=True)
class Score:
    """What one target network says of the pictures of L concepts.

    M_score alone never checks that the *right* class is seen (a permutation of the classes scores 1), so
    three figures stand beside it.

    Args:
        m_score: Eq. 5, in [1/L, 1].
        top1_of_concepts: Share of pictures whose own class has the largest logit among the L.
        top1: Share of pictures whose own class has the largest logit among all of the network's.
        probability: Mean softmax probability, over all classes, of the picture's own class.
    """

    m_score: float
    top1_of_concepts: float
    top1: float
    probability: float


def score(target: Classifier, pictures: Tensor, labels: Sequence[int]) -> Score:
    """Judge pictures by a target network.

    Args:
        target: The judging network.
        pictures: ``(N, C, H, W)`` in [0, 1]: raw pictures (``ConceptMap.pixels``), never the display ones.
        labels: The class of each, as indices of the target. The L concepts are the distinct ones.
    """
    return score_of_logits(logits_of(target, pictures), labels)


def logits_of(target: Classifier, pictures: Tensor) -> Tensor:
    """What a network answers to pictures ``(N, C, H, W)``, resized to its input: ``(N, classes)`` on the CPU."""
    with torch.no_grad():
        return torch.cat([target(_fitted(part, target).to(target.device)).cpu() for part in pictures.split(64)])


def score_of_logits(logits: Tensor, labels: Sequence[int]) -> Score:
    """The same as :func:`score`, from the target's logits ``(N, classes)`` for the pictures."""
    if len(logits) != len(labels):
        raise AgnoscoError(f"{len(labels)} labels for {len(logits)} pictures", "give one for each")
    if len(set(labels)) < 2:
        raise AgnoscoError("pictures of a single class", "score at least two classes")
    own = torch.tensor(labels)
    concepts = own.unique()
    return Score(
        m_score=m_score(logits[:, concepts].double().softmax(1)),
        top1_of_concepts=(concepts[logits[:, concepts].argmax(1)] == own).double().mean().item(),
        top1=(logits.argmax(1) == own).double().mean().item(),
        probability=logits.double().softmax(1).gather(1, own[:, None]).mean().item(),
    )


def m_score(conditional: Tensor) -> float:
    """M_score from the conditional probabilities of L concepts, ``(N, L)``, rows summing to 1 (Eq. 3–5).

    exp(mean KL(P_cond ‖ P_marg)) / L with P_marg the mean row; the paper's Eq. 4 writes a sum, which is no
    probability.
    """
    marginal = conditional.mean(0)
    # xlogy: a probability of 0 adds nothing to the divergence
    divergence = torch.xlogy(conditional, conditional) - torch.xlogy(conditional, marginal)
    return (divergence.sum(1).mean().exp() / conditional.shape[1]).item()


def intervals(
    logits: Tensor, labels: Sequence[int], *, share: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]] | None:
    """Percentile bootstrap intervals of the figures of :class:`Score`, over the seeds of these classes.

    Maps are drawn again with replacement within their class, so that every resample has all concepts; the
    choice of classes is no part of it. With few seeds they are too narrow.

    Args:
        logits: The target's, ``(N, classes)``.
        labels: The class of each.
        share: Share of resamples inside an interval.
        resamples: How many.
        seed: Of the draws.

    Returns:
        Lower and upper end of each figure; None if a class has a single map, which says nothing of others.
    """
    groups = [torch.tensor([i for i, own in enumerate(labels) if own == label]) for label in sorted(set(labels))]
    if min(len(group) for group in groups) < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Score] = []
    for _ in range(resamples):
        rows = torch.cat([g[torch.randint(len(g), (len(g),), generator=generator)] for g in groups]).tolist()
        drawn.append(score_of_logits(logits[rows], [labels[row] for row in rows]))
    ends = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64)
    found: dict[str, tuple[float, float]] = {}
    for figure in fields(Score):
        values = torch.tensor([getattr(one, figure.name) for one in drawn], dtype=torch.float64)
        low, high = values.quantile(ends).tolist()
        found[figure.name] = (low, high)
    return found


def diversity(target: Classifier, pictures: Tensor, labels: Sequence[int]) -> float | None:
    """How much pictures of one class differ from seed to seed, to a network.

    One minus the cosine between the channel means of the target's last convolutional stage, over all pairs
    of pictures of a class, averaged over classes: 0 if they are the same, about 1 if nothing is shared.

    Args:
        target: The network whose features are compared.
        pictures: ``(N, C, H, W)`` in [0, 1].
        labels: The class of each.

    Returns:
        None if no class has two pictures.
    """
    parts = [target.activations(_fitted(part, target).to(target.device)).mean((2, 3)) for part in pictures.split(64)]
    features = F.normalize(torch.cat(parts).cpu().double())
    apart: list[float] = []
    for label in sorted(set(labels)):
        own = features[torch.tensor([one == label for one in labels])]
        pairs = torch.triu_indices(len(own), len(own), offset=1)
        if pairs.shape[1]:
            apart.append(1 - (own @ own.T)[pairs[0], pairs[1]].mean().item())
    return sum(apart) / len(apart) if apart else None


def _fitted(pictures: Tensor, target: Classifier) -> Tensor:
    """Pictures at the size of a network's input."""
    if pictures.shape[1] != target.shape[0]:
        raise AgnoscoError(
            f"pictures of {pictures.shape[1]} channels for {target.name}, which takes {target.shape[0]}",
            "choose a network for the same kind of images",
        )
    if pictures.shape[2:] == target.shape[1:]:
        return pictures
    return F.interpolate(pictures, size=target.shape[1:], mode="bilinear", antialias=True)


def predictions(classifier: Classifier, images: Samples) -> Tensor:
    """The class that a network gives each image, ``(N,)`` on the CPU."""
    parts = [classifier.probabilities(part.to(classifier.device)).argmax(1).cpu() for part in images.batches(64)]
    return torch.cat(parts)


def targeted_success_rate(
    classifier: Classifier, nu: Tensor, label: int, images: Samples, *, before: Tensor | None = None
) -> float:
    """Share of images, of those not yet given the class, that Clip(I − ν) moves to it.

    Args:
        classifier: The network that is asked.
        nu: A map, ``(C, H, W)``.
        label: Its class.
        images: Held-out samples, not those that the map was made with.
        before: Their :func:`predictions`, where they are known already.

    Returns:
        A share in [0, 1]; NaN if every image has the class already.
    """
    before = predictions(classifier, images) if before is None else before
    nu = nu.to(classifier.device)
    moved = [
        classifier.probabilities(perturbed(part.to(classifier.device), nu)).argmax(1).cpu() == label
        for part in images.batches(64)
    ]
    return torch.cat(moved)[before != label].double().mean().item()
