"""A closer look at the classes that stand out most: evidence that does not decide the outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.samples import Samples
from ..method.algorithm1 import perturbed
from ..method.maker import map_classes
from ..method.render import enlarged, stretched, to_picture
from ..method.score import predictions, targeted_success_rate
from ..models.classifier import Classifier
from ..types import OnStep
from .config import FULL_SEEDS, ScanConfig
from .evidence import cut_out, of_pattern
from .plan import BISECTIONS, CURVE_IMAGES
from .record import CandidateRecord
from .screening import Screening

TILE = 224
"""Side of a picture in pixels."""


@dataclass(frozen=True)
class Candidate:
    """A leading class that was examined more closely.

    Args:
        record: The class, the screen in which it stands out most, and evidence; as it is written.
        pattern: −ν of that screen.
        full: See :func:`full_map`.
        image: A sample, which the pattern turns into this class if it turns any, ``(C, H, W)``; None if the samples are
            private.
    """

    record: CandidateRecord
    pattern: Tensor
    full: Tensor
    image: Tensor | None

    def pictures(self) -> dict[str, Image.Image]:
        """Its pattern, an image without and with it, and what its longer maps have in common, by their captions."""
        shown = {f"{self.record.name}: {self.record.screen}": stretched(self.pattern)}
        if self.image is not None:
            shown |= {"a sample": self.image, "with the pattern": perturbed(self.image, -self.pattern)}
        shown["longer maps, L2"] = stretched(self.full)
        return {name: enlarged(to_picture(each), TILE) for name, each in shown.items()}


def examined(
    classifier: Classifier,
    screened: Screening,
    column: int,
    halves: tuple[Samples, Samples],
    config: ScanConfig,
    *,
    on_step: OnStep | None = None,
) -> Candidate:
    """A closer look at a class, given by its column; ``halves`` are the images to map with and to evaluate on."""
    label, row = screened.classes[column], screened.showing(column)
    name, pattern, (mapping, evaluation) = classifier.labels[label], screened.patterns[row, column], halves
    full = full_map(classifier, label, mapping, config, on_step=on_step)
    evidence = of_pattern(classifier, -pattern, label, evaluation)
    finite: dict[str, Any] = {key: value if isfinite(value) else None for key, value in evidence.items()}
    record = CandidateRecord(index=label, name=name, screen=screened.titles[row], **finite)
    return Candidate(record, pattern, full, _example(classifier, pattern, label, evaluation))


def _example(classifier: Classifier, pattern: Tensor, label: int, images: Samples) -> Tensor | None:
    """An image that a pattern turns into a class; any if it turns none, ``(C, H, W)`` in [0, 1]; no private one."""
    if images.private:
        return None
    first = images.part(slice(CURVE_IMAGES))
    shown = first.images.float() / 255
    after = Samples((perturbed(shown, -pattern.cpu()) * 255).round().byte(), source=images.source)
    turned = (predictions(classifier, first) != label) & (predictions(classifier, after) == label)
    return shown[int(turned.int().argmax())]


def full_map(
    classifier: Classifier,
    label: int,
    samples: Samples,
    config: ScanConfig | None = None,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """What longer maps of several seeds within the L2 ball have in common: the mean of their −ν, ``(C, H, W)``.

    Maps of small mini-batches are noisy, each in its own way; what the network looks for is in all of them.
    """
    config = config or ScanConfig()
    maps = map_classes(classifier, [label], samples, config.full, seeds=range(FULL_SEEDS), on_step=on_step)
    return torch.stack([concept.pattern for concept in maps]).mean(0)


def smallest_sizes(
    classifier: Classifier, screened: Screening, column: int, evaluation: Samples, config: ScanConfig
) -> tuple[int | None, float | None]:
    """k90 and eps50 of a class, see :class:`agnosco.backdoor.record.ClassRecord`."""
    images = evaluation.part(slice(CURVE_IMAGES))
    before = predictions(classifier, images)

    def reach(nu: Tensor) -> float:
        return targeted_success_rate(classifier, nu, screened.classes[column], images, before=before)

    *_, patch, spread = -screened.patterns[:, column]
    most = int((patch != 0).any(0).sum())
    k90 = _smallest(lambda k: reach(cut_out(patch, round(k))), most, 0.9)
    unit = spread / torch.linalg.vector_norm(spread).clamp_min(1e-12)
    eps50 = _smallest(lambda e: reach(e * unit), torch.linalg.vector_norm(spread).item(), 0.5)
    return None if k90 is None else round(k90), eps50


def _smallest(reach: Callable[[float], float], greatest: float, enough: float) -> float | None:
    """The smallest size with enough reach, by bisection; None if the greatest has too little."""
    if greatest <= 0 or not reach(greatest) >= enough:
        return None
    low, high = 0.0, float(greatest)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if reach(middle) >= enough else (middle, high)
    return high
