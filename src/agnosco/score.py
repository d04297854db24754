"""How well a network sees the classes in a set of maps: M_score (Eq. 3–5) and what stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .classifier import Classifier
from .errors import AgnoscoError
from .mapper import nudged
from .samples import Samples


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
    if len(pictures) != len(labels) or len(set(labels)) < 2:
        raise AgnoscoError(f"{len(pictures)} pictures of {len(set(labels))} classes", "score at least two classes")
    own = torch.tensor(labels)
    concepts = own.unique()
    with torch.no_grad():
        logits = torch.cat([target(part.to(target.device)).cpu() for part in pictures.split(64)])
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


def predictions(classifier: Classifier, images: Samples) -> Tensor:
    """The class that a network gives each image, ``(N,)`` on the CPU."""
    parts = [classifier.probabilities(part.to(classifier.device)).argmax(1).cpu() for part in images.batches(64)]
    return torch.cat(parts)


def nudge_success(
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
        classifier.probabilities(nudged(part.to(classifier.device), nu)).argmax(1).cpu() == label
        for part in images.batches(64)
    ]
    return torch.cat(moved)[before != label].double().mean().item()
