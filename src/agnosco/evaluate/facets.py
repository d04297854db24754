"""The facets of a class: the parts of what a network looks for in it (`Neuhaus et al. 2023`_).

The logit of class k is ⟨w_k, φ⟩ + b_k, where φ are the network's last features. Over the samples that the network gives
the class, ψ = w_k ⊙ φ has principal components v_l, and the logit falls into parts, one for each:

    ⟨w_k, φ⟩ − mean = Σ_l α_l,    α_l = ⟨v_l, ψ − mean of ψ⟩ · ⟨1, v_l⟩ = ⟨d_l, φ⟩ + constant

with d_l = ⟨1, v_l⟩ · (v_l ⊙ w_k), whatever the sign of v_l. The parts are uncorrelated over the samples: their
variances add up to the logit's, and facets are in the order of these. Each d_l is a direction in the input of the last
layer, which a map can raise like any other (:class:`agnosco.models.heads.Head`). Nobody names a facet: people look at
its map, and at the samples that have most of it.

.. _Neuhaus et al. 2023: https://arxiv.org/abs/2212.04871
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..io import records
from ..io.storage import Folder, Place
from ..method.algorithm1 import perturbed
from ..method.config import Config
from ..method.folding import alike
from ..method.maker import indices_of, map_class
from ..method.render import to_picture
from ..method.score import logits_of
from ..models.classifier import Classifier
from ..models.heads import INPUT
from ..models.loading import as_classifier
from ..runs.command import chosen_config
from ..runs.jobs import map_runs
from ..runs.manifest import split, stem_of
from ..runs.run import Run
from ..runs.thumbnails import name_of, remove_thumbnails, write_thumbnails
from ..text import one_line
from ..types import OnStep
from .facet_record import DIRECTIONS, FILE, THUMBNAILS, ClassFacets, Facet, FacetsRecord, Strength, overrides_for

FEWEST = 20
"""With fewer samples of a class, its map is added to all samples, and all of these are used."""

STRONGEST = 8
"""Samples that are named for each facet: those that have most of it."""

ROUNDING = 1e-9
"""Components with a smaller share of the variance are rounding."""

BATCH, NAME_LIMIT = 64, 80


def facets(
    classifier: Classifier | nn.Module | str,
    classes: Sequence[int | str],
    samples: Samples,
    out: Place | Folder,
    config: Config | None = None,
    *,
    count: int = 3,
    seeds: Sequence[int] = (0,),
    on_step: OnStep | None = None,
) -> Run:
    """The leading facets of classes, each with its map, in a run folder.

    Args:
        classifier: The network, which must end in a linear layer.
        classes: Indices or names.
        samples: Images, of which those that the network gives a class tell its facets. With fewer than
            :data:`FEWEST` of them, all images tell them, after the class's map was added; ``facets.json`` says so.
        out: The run folder. Its ``facets.safetensors`` holds the directions, with which ``agnosco map`` and
            :func:`agnosco.load` ask for the same targets again.
        config: Settings of the maps; None for the preset ``quick`` with :func:`.facet_record.overrides_for`.
        count: Facets of each class.
        seeds: One map of every facet for each.
        on_step: Called after every step of every map.

    Raises:
        AgnoscoError: There is no such class, the logits are not those of a linear layer, the features of a class do
            not vary, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from agnosco import Samples, facets, load
        >>> classifier = load("python:net.py:build", size=16, trust_code=True)
        >>> run = facets(classifier, [1], Samples.noise(classifier.shape, count=50), tempfile.mkdtemp(), count=2)
        >>> [entry.name for entry in run.entries]
        ['1, facet 1', '1, facet 2']
    """
    classifier = as_classifier(classifier, samples.shape)
    config = config or chosen_config("quick", **overrides_for(classifier.shape))
    found = find_facets(classifier, indices_of(classifier, classes), samples, count=count)
    run = Run.create(out, classifier=found.classifier, samples=samples, config=config)
    found.store(run, seeds=seeds)
    for _ in map_runs(run, found.classifier, samples, found.targets, seeds=seeds, on_step=on_step):
        pass
    return run


@dataclass(frozen=True, eq=False)
class Found:
    """Facets that were found, not yet mapped.

    Args:
        classifier: The network, asked for the facets.
        directions: d_l of each facet by its name, in the order of the classifier's targets.
        pictures: Of each, the images that have most of it, ``(n, C, H, W)`` in [0, 1]; none if they are private.
        record: What is known of them.
    """

    classifier: Classifier
    directions: dict[str, Tensor]
    pictures: dict[str, Tensor]
    record: FacetsRecord

    @property
    def targets(self) -> list[int]:
        """The targets to map; the opposite of a single direction is another target, but no facet."""
        return list(range(len(self.directions)))

    def store(self, run: Run, *, seeds: Sequence[int] = (0,)) -> None:
        """Write the directions, the record and thumbnails of the pictures into the run's folder."""
        if not self.pictures:  # they are private
            remove_thumbnails(run.folder)
        run.end()  # creates the folder of a new run
        run.folder.write(DIRECTIONS, safetensors.torch.save(self.directions))
        run.folder.write(FILE, records.encode(self.record))
        for index, name in enumerate(self.directions):
            pictures = [to_picture(picture) for picture in self.pictures.get(name, ())]
            for seed in seeds if pictures else ():
                write_thumbnails(run.folder, name_of(stem_of(index, name, seed), THUMBNAILS), [pictures])


def find_facets(classifier: Classifier, classes: Sequence[int], samples: Samples, *, count: int = 3) -> Found:
    """The leading facets of classes, for maps to be made of them; the arguments are those of :func:`facets`."""
    if count < 1:
        raise AgnoscoError(f"there are no {count} facets", "give at least 1")
    network = LinearNetwork.of(classifier)
    features = network.features(samples)
    found = [_facets_of(network, index, name, samples, features, count) for index, name in _named(classifier, classes)]
    rows = {name: row for of_class in found for name, row in of_class.directions.items()}
    pictures = {name: images for of_class in found for name, images in of_class.pictures.items()}
    directions = dict(sorted(rows.items()))  # the order in which a safetensors file holds them
    record = FacetsRecord(layer=network.layer, classes=tuple(of_class.record for of_class in found))
    asked = network.asked(directions)
    asked.directions = DIRECTIONS  # where they will be
    return Found(asked, directions, {} if samples.private else pictures, record)


@dataclass(frozen=True, eq=False)
class _OfClass:
    """The leading facets of one class; see :class:`Found`."""

    record: ClassFacets
    directions: dict[str, Tensor]
    pictures: dict[str, Tensor]


def _facets_of(
    network: LinearNetwork, index: int, name: str, samples: Samples, features: Tensor, count: int
) -> _OfClass:
    """The leading facets of a class, from φ ``(N, D)`` of all samples."""
    rows, nu = network.given(index, features), None
    given = len(rows)
    if given < FEWEST:
        nu = map_class(network.classifier, index, split(samples)[0]).nu
        features, rows = network.features(samples, nu), torch.arange(len(samples))
    parts = parts_of(features[rows], network.weights[index])
    if parts is None:
        message = f"{name!r} has no facets: its logit is the same for all of {len(rows)} samples"
        raise AgnoscoError(message, "give samples that differ, some of them of the class")
    found = [_facet(parts, place, rows, name, count) for place in range(min(count, len(parts.directions)))]
    pictures = {
        facet.name: _moved(samples.images[[each.sample for each in facet.strongest]].float() / 255, nu)
        for facet in found
    }  # fmt: skip
    record = ClassFacets(
        index=index, name=name, given=given, samples=len(rows), nudged=nu is not None, facets=tuple(found)
    )
    return _OfClass(record, dict(zip(pictures, parts.directions, strict=False)), pictures)


def _facet(parts: Parts, place: int, rows: Tensor, name: str, count: int) -> Facet:
    """What is known of a facet of a class, whose parts come from these samples ``(n,)``."""
    alpha = parts.alpha[:, place]
    order = alpha.argsort(descending=True, stable=True)[:STRONGEST]
    pairs = zip(rows[order].tolist(), alpha[order].tolist(), strict=True)
    return Facet(
        name=f"{name}, facet {place + 1:0{len(str(count))}d}", number=place + 1,
        logit_share=parts.logit_shares[place].item(), variance_share=parts.variance_shares[place].item(),
        strongest=tuple(Strength(sample=sample, alpha=value) for sample, value in pairs),
    )  # fmt: skip


def _named(classifier: Classifier, classes: Sequence[int]) -> list[tuple[int, str]]:
    """Classes, each once, with names that differ."""
    names = {index: one_line(classifier.labels[index], limit=NAME_LIMIT) for index in classes}
    return [
        (index, f"{name} ({index})" if list(names.values()).count(name) > 1 else name) for index, name in names.items()
    ]


def _moved(images: Tensor, nu: Tensor | None) -> Tensor:
    """Images ``(N, C, H, W)`` in [0, 1], with a class's map −ν added if there is one."""
    return images if nu is None else perturbed(images, nu)


@dataclass(frozen=True, eq=False)
class LinearNetwork:
    """A network that ends in a linear layer.

    Args:
        classifier: The network.
        layer: Name of the layer.
        weights, biases: Of the layer, ``(classes, D)`` and ``(classes,)``.
    """

    classifier: Classifier
    layer: str
    weights: Tensor
    biases: Tensor

    @classmethod
    def of(cls, classifier: Classifier) -> LinearNetwork:
        """A classifier as such; AgnoscoError if its logits are not those of a linear layer."""
        images = Samples.noise(classifier.shape, count=4)
        logits = logits_of(classifier, images.images.float() / 255)
        for name, module in reversed(list(classifier.body.named_modules())):
            if isinstance(module, nn.Linear | nn.Conv2d) and len(module.weight) == classifier.classes:
                weights = module.weight.detach().flatten(1).float().cpu()
                biases = torch.zeros(len(weights)) if module.bias is None else module.bias.detach().float().cpu()
                network = cls(classifier, name, weights, biases)
                with suppress(AgnoscoError):  # a layer that images do not reach
                    features = network.features(images)
                    if features.shape[1] == weights.shape[1] and alike(network.logits(features), logits):
                        return network
        message = f"{classifier.name} does not end in a linear layer, so its logits have no facets"
        raise AgnoscoError(message, "map its classes, or directions in a layer: agnosco map MODEL --at LAYER")

    def asked(self, directions: Mapping[str, Tensor] | None = None) -> Classifier:
        """The network asked for its last features φ, or for directions among them."""
        return self.classifier.asked_at(self.layer + INPUT, directions)

    def features(self, samples: Samples, nu: Tensor | None = None) -> Tensor:
        """φ ``(N, D)`` of samples; with a map ν ``(C, H, W)``, of samples that it was added to."""
        asked = self.asked()
        return torch.cat([logits_of(asked, _moved(part, nu)) for part in samples.batches(BATCH)])

    def logits(self, features: Tensor) -> Tensor:
        """``(N, classes)`` of features."""
        return features @ self.weights.T + self.biases

    def given(self, index: int, features: Tensor) -> Tensor:
        """Which of the features are given a class, ``(n,)``."""
        return (self.logits(features).argmax(1) == index).nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a class's logit over N samples, that of the greatest variance first.

    Args:
        directions: d_l, ``(L, D)``.
        alpha: α_l of every sample, ``(N, L)``, in logits.
        logit_shares: Of the variance of the logit; they add up to 1, ``(L,)``.
        variance_shares: Of the variance of ψ, in the same order.
    """

    directions: Tensor
    alpha: Tensor
    logit_shares: Tensor
    variance_shares: Tensor


def parts_of(features: Tensor, weights: Tensor) -> Parts | None:
    """The parts of a logit ⟨w, φ⟩ from features φ ``(N, D)`` and weights w ``(D,)``; None if it is constant."""
    if len(features) < 2:
        return None
    psi = (features * weights).double()
    centred = psi - psi.mean(0)
    _, lengths, components = torch.linalg.svd(centred, full_matrices=False)
    variances = lengths.square() / lengths.square().sum()
    components, variances = (each[variances > ROUNDING] for each in (components, variances))
    sums = components.sum(1)
    alpha = centred @ components.T * sums
    contributions = alpha.square().sum(0)
    if not contributions.sum() > 0:  # not even for NaN
        return None
    order = contributions.argsort(descending=True, stable=True)
    directions = sums[:, None] * components * weights.double()
    shares = contributions / contributions.sum()
    return Parts(directions[order].float(), alpha[:, order], shares[order], variances[order])
