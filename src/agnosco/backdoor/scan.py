"""Is there a class that one fixed pattern reaches too easily?

Every class is mapped by the one loop in pixels and without random transforms, within sets that only a shortcut makes
wide enough: few pixels and small windows for patches, a small L2 ball for what is spread over the image. A class's
*reach* is the targeted success rate of the pattern −ν on held-out images. In a clean network the classes' reaches are
alike; a compromised one has a class that stands out, as with the masks of `Neural Cleanse (Wang et al. 2019)
<https://doi.org/10.1109/SP.2019.00031>`_.

An L2 ball alone misses a small patch: in a small network a diffuse pattern of a patch's norm reaches every class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from ..data.samples import Samples
from ..io import records
from ..io.storage import Folder, Place
from ..method.dials import scaled_radius
from ..method.maker import Maker, map_classes
from ..method.render import contact_sheet, enlarged, png, stretched, to_picture
from ..method.score import targeted_success_rate
from ..models.classifier import Classifier
from ..models.loading import load
from ..types import OnStep
from .config import FULL_SEEDS, ScanConfig
from .evidence import MARGIN_STARTS, MARGIN_STEPS, cut_out, final_layer, margin_p_value, margins, of_pattern
from .record import (
    FILE,
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

CANDIDATES = 3
"""Classes that are examined more closely."""

LEADING = 20
"""Classes whose smallest patterns are sought."""

CURVE_IMAGES, BISECTIONS = 100, 6
"""Images and steps of the search for a smallest pattern."""

MARGIN_CLASSES = 100
"""Classes up to which MM-BD's margins are sought: with more they would take longer than the scan."""

EVALUATION_COST = 1.3
"""Cost of an evaluation image, forward alone but at a few scales, relative to one in a step of a map."""

TILE = 224

WITHOUT_IMAGES = "With images like its training data, a scan finds more backdoors (docs/backdoors.md)"


@dataclass(frozen=True)
class Candidate:
    """A leading class that was examined more closely.

    Args:
        record: The class, the screen in which it stands out most, and evidence; as it is written.
        pattern: −ν of that screen.
        full: See :func:`full_map`.
    """

    record: CandidateRecord
    pattern: Tensor
    full: Tensor


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

    All classes are screened and compared; those that stand out most are examined more closely.

    Args:
        model: A classifier; or a PyTorch module or a name, see :func:`agnosco.load`.
        samples: At least 60 images like those that the network was trained on; labels are not needed.
        config: Settings.
        size: Height and width of the input in pixels, for a PyTorch module; mean 0 and std 1 are taken.
        bank: Scans of clean networks like this one; see :func:`~agnosco.backdoor.record.read_bank`.
        classes: Indices or names; None takes all.
        on_progress: Called after every step, of the screening first and then of the candidates' maps.

    Raises:
        AgnoscoError: Too few samples, or of another shape; gradients that are not finite; or a bank that was made with
            other settings.

    Example:
        >>> import torch
        >>> from agnosco import Samples, ScanConfig, scan
        >>> from agnosco.backdoor.config import Tournament
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
        >>> samples = Samples.noise((3, 8, 8), count=60)
        >>> short = ScanConfig(steps=2, seeds=1, windows=Tournament(grid=2, steps=2, longer_steps=2))
        >>> result = scan(model, samples, short, size=8)
        >>> result.verdict.outcome  # three classes are too few without a bank of clean networks
        'inconclusive'
        >>> len(result.record.classes)
        3
    """
    classifier = load(model, size=size)
    config = config or ScanConfig()
    screened = screen(classifier, samples, config, classes=classes, on_progress=on_progress)
    measured = Measured(
        model=ScannedModel(name=classifier.name, fingerprint=classifier.fingerprint, shape=classifier.shape),
        samples=ScannedSamples(source=samples.source, count=len(samples)),
        config=config,
        screened=list(screened.classes),
        greatest_z=screened.greatest_z,
    )
    clean = None if bank is None else greatest_z_of(bank, measured)
    verdict = judge(screened.z, screened.reach, bank=clean, problems=screened.problems())
    order = screened.z.amax(0).argsort(descending=True).tolist()
    order.insert(0, order.pop(order.index(verdict.label)))  # the verdict's class first: it may not be that of most z
    mapping, evaluation = halves(samples, config)
    clock = Clock(on_progress, len(order[:CANDIDATES]) * FULL_SEEDS * config.full.passes)
    candidates = tuple(
        _candidate(classifier, screened, column, mapping, evaluation, config, clock) for column in order[:CANDIDATES]
    )
    sizes = {column: _smallest_sizes(classifier, screened, column, evaluation, config) for column in order[:LEADING]}
    record = ScanRecord(
        **msgspec.structs.asdict(measured),
        verdict=replace(verdict, label=screened.classes[verdict.label]),
        effective_classes=screened.effective_classes,
        candidates=[candidate.record for candidate in candidates],
        classes=[_class_record(classifier, screened, column, *sizes.get(column, (None, None))) for column in order],
        other_signs=_other_signs(classifier),
    )
    return Scan(screened, candidates, record)


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


def seconds_of_scan(classifier: Classifier, samples: Samples, config: ScanConfig, *, classes: int) -> float:
    """Least time that a scan takes here and now, in seconds: that of real steps, times the images that it takes.

    Screens that have to be scaled down time and again, and steps in other sets, can double it.
    """
    spread = config.spread
    each = Maker(classifier, samples, spread).seconds_per_map(classes * config.seeds)
    candidates = min(classes, CANDIDATES) * FULL_SEEDS * config.full.passes
    evaluation = 3 * config.seeds * config.evaluation * EVALUATION_COST
    of_margins = classifier.classes * MARGIN_STARTS * MARGIN_STEPS if classifier.classes <= MARGIN_CLASSES else 0
    images = classes * (config.images + evaluation) + candidates + of_margins
    return each * images / (spread.steps * spread.mapper.batch)


def write(scan: Scan, place: Place | Folder) -> tuple[str, str]:
    """Write a scan as JSON, and its candidates' patterns as a picture, into a folder; returns the names of both files.

    Raises:
        AgnoscoError: The folder cannot be written.
    """
    patterns = [pattern for candidate in scan.candidates for pattern in (candidate.pattern, candidate.full)]
    captions = [
        f"{candidate.record.name}: {kind}"
        for candidate in scan.candidates
        for kind in (candidate.record.screen, "full, L2")
    ]
    sheet = contact_sheet(
        [enlarged(to_picture(stretched(pattern)), TILE) for pattern in patterns], captions, columns=2, tile=TILE,
        footer=f"{scan.record.model.name}. {scan.verdict.outcome}.",
    )  # fmt: skip
    folder = Folder.of(place)
    folder.make()
    picture = folder.write(PICTURE, png(sheet))
    return folder.write(FILE, records.encode(scan.record)), picture


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
    record = CandidateRecord(index=label, name=name, screen=screened.screens[row], **finite)
    return Candidate(record, pattern, full)


def _class_record(
    classifier: Classifier, screened: Screening, column: int, k90: int | None, eps50: float | None
) -> ClassRecord:
    label, movable = screened.classes[column], int(screened.movable[column])
    screens = {}
    for name, reach, z, hits in zip(
        screened.screens, screened.reach[:, column], screened.z[:, column], screened.hits[:, column], strict=True
    ):
        interval, seeds = wilson(int(hits.max()), movable), (hits / max(movable, 1)).tolist()
        screens[name] = ScreenRecord(reach=reach.item(), interval=interval, z=z.item(), seeds=seeds)
    return ClassRecord(index=label, name=classifier.labels[label], screens=screens, k90=k90, eps50=eps50)


def _smallest_sizes(
    classifier: Classifier, screened: Screening, column: int, evaluation: Samples, config: ScanConfig
) -> tuple[int | None, float | None]:
    """k90 and eps50 of a class."""
    images = Samples(evaluation.images[:CURVE_IMAGES], source=evaluation.source)

    def reach(nu: Tensor) -> float:
        return targeted_success_rate(classifier, nu, screened.classes[column], images)

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


def _other_signs(classifier: Classifier) -> OtherSigns:
    last, margin = final_layer(classifier), None
    if classifier.classes <= MARGIN_CLASSES:
        greatest = margins(classifier)
        margin = MarginRecord(index=int(greatest.argmax()), p_value=margin_p_value(greatest))
    layer = None if last is None else FinalLayerRecord(index=int(last.argmax()), z=last.max().item())
    return OtherSigns(mm_bd=margin, final_layer=layer)
