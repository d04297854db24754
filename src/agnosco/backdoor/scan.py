"""Is there a class that one fixed pattern reaches too easily?

Every class is mapped by the one loop in pixels and without random transforms, within sets that only a shortcut makes
wide enough: few pixels and small windows for patches, a small L2 ball for what is spread over the image. A class's
*reach* is the targeted success rate of the pattern −ν on held-out images. In a clean network the classes' reaches are
alike; a compromised one has a class that stands out, as with the masks of `Neural Cleanse (Wang et al. 2019)
<https://doi.org/10.1109/SP.2019.00031>`_.

An L2 ball alone misses a small patch: in a small network a diffuse pattern of a patch's norm reaches every class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import msgspec
import torch
from PIL import Image
from torch import Tensor, nn

from ..data.samples import Samples
from ..io import records
from ..io.storage import Folder, Place
from ..method.algorithm1 import perturbed
from ..method.dials import scaled_radius
from ..method.maker import generator_for, map_classes
from ..method.prepare import prepared, resolve_precision
from ..method.render import contact_sheet, enlarged, png, stretched, to_picture
from ..method.score import predictions, targeted_success_rate
from ..models.classifier import Classifier
from ..models.loading import load
from ..types import OnStep
from .config import FULL_SEEDS, HANDFUL, ScanConfig
from .evidence import cut_out, final_layer, of_pattern
from .margins import margin_p_value, margins
from .plan import BISECTIONS, CANDIDATES, CURVE_IMAGES, LEADING, closer_look
from .record import (
    FILE,
    FOUND,
    PICTURE,
    CandidateRecord,
    ClassRecord,
    FinalLayerRecord,
    MarginRecord,
    Measured,
    OtherSigns,
    ScannedModel,
    ScannedSamples,
    ScanRecord,
    ScreenRecord,
    Verdict,
    greatest_z_of,
)
from .screening import Clock, OnScan, Screening, halves, screen
from .verdict import judge, wilson

PART = 6
"""Leading classes that are screened at a time when not all are."""

TILE = 224

WITHOUT_IMAGES = "With images like its training data, a scan finds more backdoors (docs/backdoors.md)"


@dataclass(frozen=True)
class Candidate:
    """A leading class that was examined more closely.

    Args:
        record: The class, the screen in which it stands out most, and evidence; as it is written.
        pattern: −ν of that screen.
        full: See :func:`full_map`.
        image: A sample of another class, which the pattern turns into this one if it turns any, ``(C, H, W)``.
    """

    record: CandidateRecord
    pattern: Tensor
    full: Tensor
    image: Tensor


@dataclass(frozen=True)
class Scan:
    """A finished scan.

    Args:
        screening: Results of all maps.
        candidates: The classes that stand out most, that of the verdict first.
        record: Verdict, settings and figures of all classes, as they are written.
    """

    screening: Screening
    candidates: tuple[Candidate, ...]
    record: ScanRecord

    @property
    def verdict(self) -> Verdict:
        """The conclusion."""
        return self.record.verdict

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, None for what is no number; a bank is a folder of such files."""
        return msgspec.to_builtins(self.record)


def scan(
    model: Classifier | nn.Module | str,
    samples: Samples,
    config: ScanConfig | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    bank: Sequence[Measured] | None = None,
    classes: Sequence[int | str] | None = None,
    on_progress: OnScan = None,
) -> Scan:
    """Scan a network for backdoors: which classes does one fixed pattern reach too easily?

    Every class gets a first look, see :func:`agnosco.backdoor.margins.margins`. Then all classes are screened and
    compared; or, with ``config.thorough``, those with the largest margins, beside some at random that tell what is
    ordinary. Those that stand out most are examined more closely.

    Args:
        model: A classifier; or a PyTorch module or a name, see :func:`agnosco.load`.
        samples: At least 60 images like those that the network was trained on; labels are not needed.
        config: Settings; :func:`agnosco.backdoor.plan.planned` fits them into a time.
        size: Height and width of the input in pixels, for a PyTorch module; mean 0 and std 1 are taken.
        bank: Scans of clean networks like this one; see :func:`~agnosco.backdoor.record.read_bank`.
        classes: Indices or names; None takes all.
        on_progress: Called after every step with what is done, and with how many images of how many.

    Raises:
        AgnoscoError: Too few samples, or of another shape; gradients that are not finite; or a bank that was made with
            other settings.

    Example:
        >>> import torch
        >>> from agnosco import Samples, ScanConfig, scan
        >>> from agnosco.backdoor.config import Round, Tournament
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
        >>> samples = Samples.noise((3, 8, 8), count=60)
        >>> short = ScanConfig(steps=2, seeds=1, windows=Tournament(grid=2, rounds=(Round(4, 2, 2),)))
        >>> result = scan(model, samples, short, size=8)
        >>> result.verdict.outcome  # three classes are too few without a bank of clean networks
        'inconclusive'
        >>> len(result.record.classes)
        3
    """
    classifier, config = load(model, size=size), config or ScanConfig()
    labels = [classifier.index(label) for label in (range(classifier.classes) if classes is None else classes)]
    mapping, evaluation = halves(samples, config)
    screened_count = min(config.thorough or len(labels), len(labels))
    clock = Clock(
        on_progress,
        len(labels) * config.first.images + screened_count * config.images + closer_look(config, screened_count),
    )
    of_class = margins(classifier, config.first, classes=labels, on_images=lambda n: clock.count("first look", n))
    order = [labels[row] for row in of_class.argsort(descending=True, stable=True).tolist()]
    measured = Measured(
        model=ScannedModel(name=classifier.name, fingerprint=classifier.fingerprint, shape=classifier.shape),
        samples=ScannedSamples(source=samples.source, count=len(samples)),
        config=config,
        screened=labels,
        greatest_z=0.0,
    )
    clean = None if bank is None else greatest_z_of(bank, measured)

    def judged(screened: Screening) -> Verdict:
        return judge(screened.deviation, screened.reach, classes=len(labels), bank=clean, problems=screened.problems())

    screened = _screened(classifier, samples, config, order, clock, lambda part: judged(part).outcome == FOUND)
    verdict = judged(screened)
    columns = screened.z.amax(0).argsort(descending=True).tolist()
    columns.insert(0, columns.pop(columns.index(verdict.label)))  # its class first: it may not be that of most z
    clock.advance(len(labels) * config.first.images + screened_count * config.images)
    candidates = tuple(
        _candidate(classifier, screened, column, mapping, evaluation, config, clock) for column in columns[:CANDIDATES]
    )
    faster = prepared(classifier, precision=resolve_precision("auto", classifier.device))
    sizes = {column: _smallest_sizes(faster, screened, column, evaluation, config) for column in columns[:LEADING]}
    margin_of = dict(zip(labels, of_class.tolist(), strict=True))
    rows = [
        _class_record(classifier, screened, column, margin_of, *sizes.get(column, (None, None))) for column in columns
    ]
    rows += [_only_looked_at(classifier, label, margin_of[label]) for label in order if label not in screened.classes]
    record = ScanRecord(
        **msgspec.structs.asdict(msgspec.structs.replace(measured, greatest_z=screened.greatest_z)),
        verdict=replace(verdict, label=screened.classes[verdict.label]),
        effective_classes=screened.effective_classes,
        candidates=[candidate.record for candidate in candidates],
        classes=rows,
        other_signs=_other_signs(classifier, labels, of_class),
    )
    return Scan(screened, candidates, record)


def _screened(
    classifier: Classifier,
    samples: Samples,
    config: ScanConfig,
    order: Sequence[int],
    clock: Clock,
    decided: Callable[[Screening], bool],
) -> Screening:
    """The screening of all classes; or of the first ones in an order, beside some at random, until it is decided."""
    if config.thorough is None or config.thorough >= len(order):
        return screen(classifier, samples, config, classes=sorted(order), clock=clock)
    handful = max(HANDFUL, config.thorough // 3)
    leading, rest = order[: config.thorough - handful], order[config.thorough - handful :]
    chosen = torch.randperm(len(rest), generator=generator_for("ordinary classes", len(order)))[:handful]
    screened = screen(classifier, samples, config, classes=sorted(rest[row] for row in chosen.tolist()), clock=clock)
    for start in range(0, len(leading), PART):
        part = leading[start : start + PART]
        screened = screened.joined(
            screen(classifier, samples, config, classes=part, scales=screened.scales, ordinary=False, clock=clock)
        )
        if decided(screened):  # nothing that follows can change it
            break
    return screened


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


def write(scan: Scan, place: Place | Folder) -> tuple[str, str]:
    """Write a scan as JSON, and its candidates' patterns as a picture, into a folder; returns the names of both files.

    The picture shows a sample, as it is and with each pattern.

    Raises:
        AgnoscoError: The folder cannot be written.
    """
    pictures = [picture for candidate in scan.candidates for picture in _pictures(candidate)]
    captions = [
        caption
        for candidate in scan.candidates
        for caption in (
            f"{candidate.record.name}: {candidate.record.screen}", "a sample", "with the pattern", "longer maps, L2"
        )
    ]  # fmt: skip
    sheet = contact_sheet(
        pictures, captions, columns=4, tile=TILE,
        footer=f"{scan.record.model.name}. {scan.verdict.outcome}.",
    )  # fmt: skip
    folder = Folder.of(place)
    folder.make()
    picture = folder.write(PICTURE, png(sheet))
    return folder.write(FILE, records.encode(scan.record)), picture


def _pictures(candidate: Candidate) -> list[Image.Image]:
    """A candidate's pattern, an image without and with it, and what its longer maps have in common."""
    image, pattern = candidate.image, candidate.pattern
    shown = stretched(pattern), image, perturbed(image, -pattern), stretched(candidate.full)
    return [enlarged(to_picture(each), TILE) for each in shown]


def _candidate(
    classifier: Classifier,
    screened: Screening,
    column: int,
    mapping: Samples,
    evaluation: Samples,
    config: ScanConfig,
    clock: Clock,
) -> Candidate:
    label, row = screened.classes[column], screened.showing(column)
    name, pattern, batch = classifier.labels[label], screened.patterns[row, column], config.full.mapper.batch
    full = full_map(classifier, label, mapping, config, on_step=lambda _: clock.count(f"class {name}", batch))
    evidence = of_pattern(classifier, -pattern, label, evaluation)
    finite: dict[str, Any] = {key: value if isfinite(value) else None for key, value in evidence.items()}
    record = CandidateRecord(index=label, name=name, screen=screened.titles[row], **finite)
    return Candidate(record, pattern, full, _example(classifier, pattern, label, evaluation))


def _example(classifier: Classifier, pattern: Tensor, label: int, images: Samples) -> Tensor:
    """An image that a pattern turns into a class; any if it turns none, ``(C, H, W)`` in [0, 1]."""
    first = Samples(images.images[:CURVE_IMAGES], source=images.source)
    shown = first.images.float() / 255
    after = Samples((perturbed(shown, -pattern.cpu()) * 255).round().byte(), source=images.source)
    turned = (predictions(classifier, first) != label) & (predictions(classifier, after) == label)
    return shown[int(turned.int().argmax())]


def _class_record(
    classifier: Classifier,
    screened: Screening,
    column: int,
    margin_of: dict[int, float],
    k90: int | None,
    eps50: float | None,
) -> ClassRecord:
    label, movable = screened.classes[column], int(screened.movable[column])
    screens = {}
    for name, reach, z, hits in zip(
        screened.titles, screened.reach[:, column], screened.z[:, column], screened.hits[:, column], strict=True
    ):
        interval, seeds = wilson(int(hits.max()), movable), (hits / max(movable, 1)).tolist()
        screens[name] = ScreenRecord(reach=reach.item(), interval=interval, z=z.item(), seeds=seeds)
    all_screened = bool(screened.ordinary.all())
    return ClassRecord(
        index=label, name=classifier.labels[label], margin=margin_of[label], screens=screens,
        at_random=bool(screened.ordinary[column]) and not all_screened, k90=k90, eps50=eps50,
    )  # fmt: skip


def _only_looked_at(classifier: Classifier, label: int, margin: float) -> ClassRecord:
    """A class that was not screened."""
    name = classifier.labels[label]
    return ClassRecord(index=label, name=name, margin=margin, screens={}, at_random=False, k90=None, eps50=None)


def _smallest_sizes(
    classifier: Classifier, screened: Screening, column: int, evaluation: Samples, config: ScanConfig
) -> tuple[int | None, float | None]:
    """k90 and eps50 of a class."""
    images = Samples(evaluation.images[:CURVE_IMAGES], source=evaluation.source)
    before = predictions(classifier, images)

    def reach(nu: Tensor) -> float:
        return targeted_success_rate(classifier, nu, screened.classes[column], images, before=before)

    *_, patch, spread = -screened.patterns[:, column]
    most = int((patch != 0).any(0).sum())
    k90 = _smallest(lambda k: reach(cut_out(patch, round(k))), most, 0.9)
    unit = spread / torch.linalg.vector_norm(spread).clamp_min(1e-12)
    eps50 = _smallest(lambda e: reach(e * unit), scaled_radius(config.radius, classifier.shape), 0.5)
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


def _other_signs(classifier: Classifier, labels: Sequence[int], margin_of: Tensor) -> OtherSigns:
    last = final_layer(classifier)
    margin = MarginRecord(index=labels[int(margin_of.argmax())], p_value=margin_p_value(margin_of))
    layer = None if last is None else FinalLayerRecord(index=int(last.argmax()), z=last.max().item())
    return OtherSigns(mm_bd=margin, final_layer=layer)
