"""Do other networks recognise the classes in a run's pictures?"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from statistics import fmean

import torch
from torch import Tensor, nn

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..method.concept import ConceptMap
from ..method.score import diversity, intervals, logits_of, predictions, score_of_logits, targeted_success_rate
from ..models.classifier import Classifier
from ..models.loading import as_classifier
from ..runs.run import Run
from ..text import spelling
from .score_record import TOP, Answer, Intervals, Judgement, digest_of


def score(run: Run, target: Classifier | nn.Module | str, *, images: Samples | None = None) -> Judgement:
    """Let a network judge all maps of a run. Writes nothing: :func:`~.score_record.add_scores` stores the result.

    Args:
        run: The run, of at least two classes.
        target: The network. Pictures are resized to its input. A PyTorch module is given pixels in [0, 1] at the size
            of the run; wrap it in a :class:`Classifier` if it needs others.
        images: Images of the target's shape to perturb; of the run's own samples, only those held out are used.

    Returns:
        M_score and the figures beside it.

    Raises:
        AgnoscoError: The target lacks a class of the run, or the run has fewer than two.

    Example:
        >>> from agnosco import Run, load, score
        >>> classifier = load("python:net.py:build", size=16, trust_code=True)
        >>> judgement = score(Run.open("agnosco-run"), classifier)
        >>> judgement.source, judgement.maps, 0.5 <= judgement.m_score <= 1
        (True, 2, True)
    """
    target = as_classifier(target, run.settings.model.shape)
    labels = matched(run, target)
    if len(set(labels)) < 2:
        raise AgnoscoError(f"{run.folder.name!r} has maps of fewer than two classes", "score at least two classes")
    maps = list(run.maps())
    pictures = torch.stack([concept.pixels for concept in maps])
    logits = logits_of(target, pictures)
    ends = intervals(logits, labels)
    spread = None
    with suppress(AgnoscoError):  # of a network without feature maps; the other figures need none
        spread = diversity(target, pictures, labels)
    return Judgement(
        target=target.name,
        fingerprint=target.fingerprint,
        shape=target.shape,
        run=digest_of(run),
        source=target.fingerprint == run.settings.model.fingerprint,
        maps=len(maps),
        classes=len(set(labels)),
        seeds=len({concept.seed for concept in maps}),
        **asdict(score_of_logits(logits, labels)),
        interval=None if ends is None else Intervals(**ends),
        diversity=spread,
        targeted_success_rate=None if images is None else _success_rate(run, target, maps, labels, images),
        answers=_answers(target, logits, labels),
    )


def _answers(target: Classifier, logits: Tensor, labels: Sequence[int]) -> tuple[Answer, ...]:
    """The answers behind logits ``(N, classes)`` for pictures of classes ``labels``."""
    probabilities = logits.double().softmax(1)
    entropies = torch.special.entr(probabilities).sum(1).tolist()
    values, indices = (part.tolist() for part in probabilities.topk(min(TOP, logits.shape[1])))
    return tuple(
        Answer(own=own, entropy=entropy, top=tuple((i, target.labels[i], p) for i, p in zip(*row, strict=True)))
        for own, entropy, *row in zip(labels, entropies, indices, values, strict=True)
    )


def matched(run: Run, target: Classifier) -> list[int]:
    """The target's index of the class of each map of a run, by index and seed.

    If both networks have equally many classes and none of their names disagree, classes are the same by index;
    otherwise they are matched by name.

    Raises:
        AgnoscoError: The target has no class of that name, or several.
    """
    entries = run.entries
    if target.classes == run.settings.model.classes and all(
        _may_be_the_same(entry.name, target.labels[entry.index]) for entry in entries
    ):
        return [entry.index for entry in entries]
    return [_index_by_name(entry.name, target) for entry in entries]


def _index_by_name(name: str, target: Classifier) -> int:
    exact = [index for index, label in enumerate(target.labels) if label == name]
    indices = exact or [index for index, label in enumerate(target.labels) if spelling(label) == spelling(name)]
    if len(indices) == 1 and not name.isdecimal():  # a number means nothing in another network
        return indices[0]
    raise AgnoscoError(
        f"{target.name} has {'several classes' if len(indices) > 1 else 'no class'} {name!r}",
        "choose a network with the same classes; if yours has no class names, give them with --labels",
    )


def _may_be_the_same(name: str, other: str) -> bool:
    """Whether two names may mean one class; a number may mean any."""
    return name.isdecimal() or other.isdecimal() or spelling(name) == spelling(other)


def _success_rate(
    run: Run, target: Classifier, maps: Sequence[ConceptMap], labels: Sequence[int], images: Samples
) -> float | None:
    """Mean targeted success rate of the maps; None if every image already has the class of every map."""
    own, shape = run.settings.samples, run.settings.model.shape
    if shape != target.shape:
        raise AgnoscoError(
            f"{target.name} takes {target.shape}, and the maps are {shape}: they cannot be added to its images",
            "leave --samples or --size out",
        )
    if images.fingerprint == own.fingerprint:
        _, images = images.split(own.held_out, seed=own.split_seed)
    before = predictions(target, images)
    rates = [
        targeted_success_rate(target, concept.nu, label, images, before=before)
        for concept, label in zip(maps, labels, strict=True)
    ]
    rates = [rate for rate in rates if rate == rate]  # NaN: every image had the class already
    return fmean(rates) if rates else None
