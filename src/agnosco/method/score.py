"""How well a network recognises the classes of a set of maps: M_score (Eq. 3–5) and the figures beside it."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..models.classifier import Classifier
from .algorithm1 import perturbed


@dataclass(frozen=True)
class Score:
    """How well a target network recognises the pictures of L concepts.

    M_score does not check that the *right* class is recognised (a permutation of the classes scores 1), so three
    figures stand beside it.

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


def logits_of(target: Classifier, pictures: Tensor) -> Tensor:
    """A network's logits for pictures ``(N, C, H, W)``, resized to its input: ``(N, classes)`` on the CPU.

    Pictures are raw ones in [0, 1] (``ConceptMap.pixels``), never those for display.
    """
    with torch.no_grad():
        return torch.cat([target(_fitted(part, target).to(target.device)).cpu() for part in pictures.split(64)])


def score_of_logits(logits: Tensor, labels: Sequence[int]) -> Score:
    """The score of a target by its logits ``(N, classes)`` for pictures of classes ``labels``, L of them distinct."""
    if len(logits) != len(labels):
        raise AgnoscoError(f"{len(labels)} labels for {len(logits)} pictures", "give one label for each picture")
    if len(set(labels)) < 2:
        raise AgnoscoError("the pictures are of a single class", "score at least two classes")
    targets = torch.tensor(labels)
    concepts = targets.unique()
    return Score(
        m_score=m_score(logits[:, concepts].double().softmax(1)),
        top1_of_concepts=(concepts[logits[:, concepts].argmax(1)] == targets).double().mean().item(),
        top1=(logits.argmax(1) == targets).double().mean().item(),
        probability=logits.double().softmax(1).gather(1, targets[:, None]).mean().item(),
    )


def m_score(conditional: Tensor) -> float:
    """M_score from the conditional probabilities of L concepts, ``(N, L)``, rows summing to 1 (Eq. 3–5).

    exp(mean KL(P_cond ‖ P_marg)) / L, where P_marg is the mean row; the sum of the paper's Eq. 4 would not be a
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

    Maps are resampled with replacement within their class, so that every resample has all concepts. With few seeds the
    intervals are too narrow; the choice of classes is not part of them.

    Args:
        logits: The target's, ``(N, classes)``.
        labels: The class of each map.
        share: Share of resamples inside an interval.
        resamples, seed: Of the bootstrap.

    Returns:
        Lower and upper end for each figure; None if a class has a single map.
    """
    groups = [torch.tensor([i for i, other in enumerate(labels) if other == label]) for label in sorted(set(labels))]
    if min(len(group) for group in groups) < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn: list[tuple[float, ...]] = []
    for _ in range(resamples):
        rows = torch.cat([g[torch.randint(len(g), (len(g),), generator=generator)] for g in groups]).tolist()
        drawn.append(astuple(score_of_logits(logits[rows], [labels[row] for row in rows])))
    ends = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64)
    lows, highs = torch.tensor(drawn, dtype=torch.float64).quantile(ends, dim=0).tolist()
    return {figure.name: (low, high) for figure, low, high in zip(fields(Score), lows, highs, strict=True)}


def diversity(target: Classifier, pictures: Tensor, labels: Sequence[int]) -> float | None:
    """How much a network tells pictures ``(N, C, H, W)`` of a class apart; None if no class has two pictures.

    One minus the cosine between the channel means of the target's last convolutional stage, over all pairs of pictures
    of a class, averaged over classes: 0 if they are the same, about 1 if they have nothing in common.
    """
    features = F.normalize(features_of(target, pictures))
    differences: list[float] = []
    for label in sorted(set(labels)):
        rows = features[torch.tensor([other == label for other in labels])]
        pairs = torch.triu_indices(len(rows), len(rows), offset=1)
        if pairs.shape[1]:
            differences.append(1 - (rows @ rows.T)[pairs[0], pairs[1]].mean().item())
    return sum(differences) / len(differences) if differences else None


def features_of(target: Classifier, pictures: Tensor) -> Tensor:
    """Channel means of a network's last convolutional stage for pictures: ``(N, D)`` float64 on the CPU."""
    parts = [target.activations(_fitted(part, target).to(target.device)).mean((2, 3)) for part in pictures.split(64)]
    return torch.cat(parts).cpu().double()


def _fitted(pictures: Tensor, target: Classifier) -> Tensor:
    """Pictures at the size of a network's input."""
    if pictures.shape[1] != target.shape[0]:
        raise AgnoscoError(
            f"the pictures have {pictures.shape[1]} channels, and {target.name} takes {target.shape[0]}",
            "choose a network for the same kind of images",
        )
    if pictures.shape[2:] == target.shape[1:]:
        return pictures
    return F.interpolate(pictures, size=target.shape[1:], mode="bilinear", antialias=True)


def logits_for(classifier: Classifier, images: Samples, *, nu: Tensor | None = None) -> Tensor:
    """A network's logits for images, perturbed by ν ``(C, H, W)`` if given: ``(N, classes)`` on the CPU."""
    device = classifier.device
    parts = (part.to(device) for part in images.batches(64))
    seen = parts if nu is None else (perturbed(part, nu.to(device)) for part in parts)
    with torch.no_grad():
        return torch.cat([classifier(part).cpu() for part in seen])


def probabilities_of(classifier: Classifier, images: Samples, *, nu: Tensor | None = None) -> Tensor:
    """Softmax of :func:`logits_for`, ``(N, classes)``."""
    return logits_for(classifier, images, nu=nu).softmax(1)


def predictions(classifier: Classifier, images: Samples) -> Tensor:
    """The class that a network gives each image, ``(N,)`` on the CPU."""
    return probabilities_of(classifier, images).argmax(1)


def log_odds(logits: Tensor, label: int) -> Tensor:
    """Log-odds of a class, ln p − ln(1 − p), of logits ``(N, classes)``: ``(N,)`` in float64, finite where p is 1."""
    values = logits.double()
    others = values.index_fill(1, torch.tensor(label, device=values.device), -torch.inf)
    return values[:, label] - others.logsumexp(1)


def targeted_success_rate(
    classifier: Classifier, nu: Tensor, label: int, images: Samples, *, before: Tensor | None = None
) -> float:
    """Share of images that a network gives a class once they are perturbed, of those that it did not give it before.

    Args:
        nu, label: A map, ``(C, H, W)``, and its class.
        images: Held-out samples, not those that the map was made with.
        before: Their :func:`predictions`, if known already.

    Returns:
        A share in [0, 1]; NaN if every image has the class already.
    """
    before = predictions(classifier, images) if before is None else before
    return share_moved(probabilities_of(classifier, images, nu=nu), label, before)


def share_moved(probabilities: Tensor, label: int, before: Tensor) -> float:
    """Share of images that have a class by these probabilities ``(N, classes)``, of those that had another before.

    ``before`` is the class of each, ``(N,)``. NaN if every image had the class already.
    """
    return (probabilities.argmax(1) == label)[before != label].double().mean().item()
