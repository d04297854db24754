"""How do two networks differ in what they look for? Each is shown the maps of the other.

A pattern that a network has learned works on that network. So for each class, held-out samples get the maps of both
networks added, and both networks answer. Where a network's own maps work better on it than the other's maps do, in log-
odds, the two look for different things. The *change* of a class adds both networks' advantages, in standard errors of
the seeds. A network compared with itself has none, whichever seeds its maps have: what one side gains, the other loses.

The p-value answers: would chance alone give *any* class so large a change? Seeds of one class are few, so those of all
classes are pooled: what an answer differs by from the mean of its class and run is shuffled over all maps
(`Freedman and Lane 1983 <https://doi.org/10.2307/1391660>`_), for each network on its own, and the greatest change of
any class is noted each time (maxT of Westfall and Young; `Ge et al. 2003 <https://doi.org/10.1007/BF02595811>`_). This
is cautious: the answers of two networks to one map rise and fall together, and so do maps of the same seed, which makes
the change vary less by chance than it does after the shuffling.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from math import isnan, sqrt

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..io import records
from ..io.storage import Folder, Place
from ..method.concept import ConceptMap
from ..method.score import features_of, log_odds, logits_for, logits_of
from ..models.classifier import Classifier
from ..runs.manifest import Entry
from ..runs.origin import check_origin, classifier_of
from ..runs.run import Run
from ..text import spelling
from ..types import OnProgress
from .diff_record import FILE, LEVEL, ClassDiff, DiffRecord, Side
from .score_record import digest_of

IMAGES = 64
"""Most held-out samples that maps are added to."""

SHUFFLES = 1999

LEAST_SPREAD = 1e-6
"""Log-odds; keeps a change finite where all seeds give the same."""


def diff(
    first: Run,
    second: Run,
    models: Sequence[Classifier | nn.Module | str],
    samples: Samples,
    *,
    out: Place | Folder | None = None,
    on_map: OnProgress | None = None,
) -> DiffRecord:
    """Compare two networks class by class; writes ``diff.json`` into the second run's folder, or into ``out``.

    Args:
        first, second: Their runs, with the same settings, samples and classes, and as many seeds of each class. These
            may be other seeds.
        models: Both classifiers, loaded again. A PyTorch module gets the size and normalization of its run.
        samples: The samples of both runs, all of them, read again.
        out: The folder to write to.
        on_map: Called after every answer of a network to a map with how many there are, and their total.

    Returns:
        The differences, most changed class first, as written.

    Raises:
        AgnoscoError: The runs differ in more than the network, or were made with other networks or samples than these;
            or the folder cannot be written.

    Example:
        >>> from agnosco import Run, Samples, diff, load
        >>> classifier = load("python:net.py:build", size=16, trust_code=True)
        >>> run, samples = Run.open("agnosco-run"), Samples.noise(classifier.shape, count=10)
        >>> record = diff(run, run, [classifier, classifier], samples, out="compared")
        >>> [row.change for row in record.classes], record.threshold  # a network and itself; with one seed, no p-value
        ([0.0, 0.0], None)
    """
    runs, folder = (first, second), second.folder if out is None else Folder.of(out)
    _check_alike(first, second)
    networks = [classifier_of(run, model) for run, model in zip(runs, models, strict=True)]
    for run, network in zip(runs, networks, strict=True):
        check_origin(run, network, samples)
    maps = [list(run.maps()) for run in runs]
    images = _some(samples.split(first.settings.samples.held_out, seed=first.settings.samples.split_seed)[1])
    answers = _answers(networks, maps, images, on_map)
    first_side, second_side = (
        Side(network=network.name, fingerprint=network.fingerprint, run=digest_of(run))
        for run, network in zip(runs, networks, strict=True)
    )
    change, p_values, threshold = changes(answers)
    entries = list(zip(_by_class(first), _by_class(second), strict=True))
    classes = _rows(entries, _shown(networks, maps, answers), change, p_values)
    record = DiffRecord(
        first=first_side, second=second_side, seeds=answers.shape[3], threshold=threshold, classes=classes
    )
    folder.make()
    folder.write(FILE, records.encode(record))
    return record


def changes(answers: Tensor, *, shuffles: int = SHUFFLES, seed: int = 0) -> tuple[Tensor, Tensor | None, float | None]:
    """How much each class has changed, and how much of that is chance.

    Args:
        answers: Log-odds, ``(2 networks, 2 runs, classes, seeds)``; run i is that of network i.
        shuffles, seed: Of the p-values.

    Returns:
        Of each class the change and its p-value; and the change that shuffled seeds exceed in some class with a
        probability of 5 %. With one seed the change is in log-odds, and the others are None.
    """
    networks, _, classes, seeds = answers.shape
    observed = _advantages(answers)
    if seeds == 1:
        return observed.mean(0), None, None
    within = (answers - answers.mean(3, keepdim=True)).flatten(1)
    generator = torch.Generator().manual_seed(seed)
    greatest = torch.empty(shuffles, dtype=answers.dtype)
    for place in range(shuffles):
        orders = torch.rand(within.shape, generator=generator).argsort(1)  # each network's own
        shuffled = within.gather(1, orders).view(networks, 2, classes, seeds)
        greatest[place] = _standardized(shuffled).max()
    change = _standardized(answers)
    exceeded = (greatest[:, None] >= change).sum(0)
    return change, (1 + exceeded) / (1 + shuffles), greatest.quantile(1 - LEVEL).item()


def _advantages(answers: Tensor) -> Tensor:
    """How much better each network answers to its own maps than to the other's, ``(2, classes)``, in log-odds."""
    means = answers.mean(3)
    return torch.stack([means[0, 0] - means[0, 1], means[1, 1] - means[1, 0]])


def _standardized(answers: Tensor) -> Tensor:
    """The sum of both advantages of each class in its standard errors, by the spread of seeds of all classes."""
    seeds = answers.shape[3]
    spread = answers.var(3).mean((1, 2)).sqrt().clamp_min(LEAST_SPREAD)  # of each network's answers
    errors = spread * sqrt(2 / seeds)  # of an advantage, which is a difference of two means
    return (_advantages(answers) / errors[:, None]).sum(0) / sqrt(2)


def _check_alike(first: Run, second: Run) -> None:
    """Check that two runs differ in nothing but the network, and perhaps in the numbers of their seeds."""
    names = f"{first.folder.name!r} and {second.folder.name!r}"
    again = "map both networks with the same command"
    for run in (first, second):
        run.check_maps()
        if run.settings.model.at:
            message = f"{run.folder.name!r} has maps of {run.settings.model.at}, which is no class"
            raise AgnoscoError(message, "compare maps of classes, made without --at")
    if first.settings.samples.fingerprint != second.settings.samples.fingerprint:
        raise AgnoscoError(f"{names} were made with different samples", again)
    if replace(first.config, precision=second.config.precision) != second.config:
        raise AgnoscoError(f"{names} were made with different settings", again)
    classes = [[(entries[0].index, spelling(entries[0].name)) for entries in _by_class(run)] for run in (first, second)]
    if classes[0] != classes[1]:
        odd = sorted(set(classes[0]) ^ set(classes[1]))
        message = f"{names} have different classes: {odd[0][1]!r} ({odd[0][0]}) is in one of them"
        raise AgnoscoError(message, f"{again}, and the same --labels")
    counts = {len(entries) for run in (first, second) for entries in _by_class(run)}
    if len(counts) > 1:
        message = f"{names} have different numbers of seeds: a class has {min(counts)} to {max(counts)} maps"
        raise AgnoscoError(message, "map every class with the same --seeds")


def _by_class(run: Run) -> list[list[Entry]]:
    """The entries of a run, class by class, each by seed."""
    return [list(entries) for _, entries in groupby(run.entries, key=lambda entry: entry.index)]


def _some(held_out: Samples) -> Samples:
    """At most :data:`IMAGES` samples, spread evenly over those held out, which may be sorted by class."""
    return held_out.part(slice(None, None, -(-len(held_out) // IMAGES)))


def _answers(
    networks: Sequence[Classifier], maps: Sequence[Sequence[ConceptMap]], images: Samples, on_map: OnProgress | None
) -> Tensor:
    """Log-odds of each map's class for images with the map added, ``(networks, runs, classes, seeds)``."""
    total = len(networks) * sum(map(len, maps))
    answers: list[float] = []
    for network in networks:
        for concept in (concept for of_run in maps for concept in of_run):
            logits = logits_for(network, images, nu=concept.nu)
            answers.append(log_odds(logits, concept.label).mean().item())
            if on_map is not None:
                on_map(len(answers), total)
    classes = len({concept.label for concept in maps[0]})
    return torch.tensor(answers, dtype=torch.float64).view(len(networks), len(maps), classes, -1)


def _shown(networks: Sequence[Classifier], maps: Sequence[Sequence[ConceptMap]], answers: Tensor) -> dict[str, Tensor]:
    """Figures of :class:`ClassDiff` that are pairs, ``(2 networks, classes)`` each; NaN where there is none."""
    means, classes = answers.mean(3), answers.shape[2]
    pictures = [torch.stack([concept.pixels for concept in of_run]) for of_run in maps]
    labels = torch.tensor([concept.label for concept in maps[0]])
    seeds = torch.tensor([[concept.seed for concept in of_run] for of_run in maps]).view(2, classes, -1)
    probabilities, likenesses = [], []
    for network, theirs in zip(networks, reversed(pictures), strict=True):
        own = logits_of(network, theirs).double().softmax(1).gather(1, labels[:, None])
        probabilities.append(own.view(classes, -1).mean(1))
        likenesses.append(torch.full((2, classes), torch.nan))
        with suppress(AgnoscoError):  # of a network without feature maps
            features = features_of(network, torch.cat(pictures))
            likenesses[-1] = likeness(features.view(2, classes, -1, features.shape[1]), seeds)
    across, within = torch.stack(likenesses, 1)
    return {
        "own": torch.stack([means[0, 0], means[1, 1]]), "other": torch.stack([means[0, 1], means[1, 0]]),
        "probability": torch.stack(probabilities), "likeness": across, "seeds_likeness": within,
    }  # fmt: skip


def likeness(features: Tensor, seeds: Tensor) -> Tensor:
    """How much alike a network finds the pictures of two runs, and those of one run.

    Args:
        features: Of all pictures, ``(2 runs, classes, seeds, D)``; cosines are taken from their mean.
        seeds: The number of each seed, ``(2 runs, classes, seeds)``: pairs of the same are left out, because they
            share their random choices.

    Returns:
        ``(2, classes)``: mean cosine of pairs across the runs, and of pairs within them; NaN where there is no pair.
    """
    centred = F.normalize(features - features.mean((0, 1, 2)), dim=3)
    cosines = torch.einsum("rcid,scjd->rscij", centred, centred)
    same = seeds[:, None, :, :, None] == seeds[None, :, :, None, :]
    pairs = cosines.masked_fill(same, torch.nan)
    within = torch.cat([pairs[0, 0], pairs[1, 1]], 2)
    return torch.stack([pairs[0, 1].flatten(1).nanmean(1), within.flatten(1).nanmean(1)])


def _rows(
    entries: Sequence[tuple[list[Entry], list[Entry]]],
    shown: Mapping[str, Tensor],
    change: Tensor,
    p_values: Tensor | None,
) -> list[ClassDiff]:
    """All classes, most changed first; ``entries`` are those of each class in both runs."""
    rows = [
        msgspec.convert(
            {
                "index": first[0].index, "class": first[0].name, "change": change[place].item(),
                "p_value": None if p_values is None else p_values[place].item(),
                "targeted_success_rate": (_rate(first), _rate(second)),
            } | {name: _pair(values[:, place]) for name, values in shown.items()},
            ClassDiff,
        )
        for place, (first, second) in enumerate(entries)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row.change)


def _pair(values: Tensor) -> tuple[float | None, float | None]:
    """Two figures; None for NaN."""
    first, second = (None if isnan(value) else value for value in values.tolist())
    return first, second


def _rate(entries: Sequence[Entry]) -> float | None:
    """Mean targeted success rate of maps; None where one was not measured."""
    rates = [entry.targeted_success_rate for entry in entries]
    return None if None in rates else sum(rate for rate in rates if rate is not None) / len(rates)
