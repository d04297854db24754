"""Is there a class that one fixed pattern reaches too easily?

Every class is mapped by the one loop in pixels and without random transforms, within sets that only a shortcut makes
wide enough: few pixels and small windows for patches, a small L2 ball for what is spread over the image. A class's
*reach* is the targeted success rate of the pattern −ν on held-out images. In a clean network the classes' reaches are
alike; a compromised one has a class that stands out, as with the masks of `Neural Cleanse (Wang et al. 2019)
<https://doi.org/10.1109/SP.2019.00031>`_.

An L2 ball alone misses a small patch: in a small network a diffuse pattern of a patch's norm reaches every class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec
import torch
from torch import nn

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..io import records
from ..io.storage import Folder, Place
from ..method.maker import check_shape, generator_for, indices_of
from ..method.prepare import prepared, resolve_precision
from ..method.render import contact_sheet, png
from ..models.classifier import Classifier
from ..models.loading import load
from .closer import TILE, Candidate, examined, smallest_sizes
from .config import RANDOM_CLASSES, ScanConfig
from .evidence import final_layer
from .margins import cannot_tell, evidence_of, margin_p_value, margins
from .plan import CANDIDATES, LEADING, closer_look
from .record import (
    FILE,
    FOUND,
    PICTURE,
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

AT_A_TIME = 6
"""Leading classes that are screened at a time when not all are."""

NOTHING_LARGE = "the margins of the first look do not tell classes apart: give it more time (--budget)"

WITHOUT_IMAGES = "With images like its training data, a scan finds more backdoors (docs/backdoors.md)"


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
    ordinary. How margins and reaches are judged: :func:`agnosco.backdoor.verdict.judge`. The classes that stand out
    most are examined more closely.

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
    labels = list(dict.fromkeys(indices_of(classifier, range(classifier.classes) if classes is None else classes)))
    scanner = _Scanner(classifier, samples, config, labels, _clock(config, len(labels), on_progress))
    measured = scanner.measured()
    scanner.bank = None if bank is None else greatest_z_of(bank, measured)
    scanner.margin_of = scanner.first_look()
    screened = scanner.screened()
    verdict = scanner.verdict(screened)
    columns = screened.z.amax(0).argsort(descending=True).tolist()
    columns.insert(0, columns.pop(columns.index(verdict.label)))  # its class first: it may not be that of most z
    candidates = scanner.candidates(screened, columns[:CANDIDATES])
    record = ScanRecord(
        **msgspec.structs.asdict(msgspec.structs.replace(measured, greatest_z=screened.greatest_z)),
        verdict=replace(verdict, label=screened.classes[verdict.label]),
        effective_classes=screened.effective_classes,
        candidates=[candidate.record for candidate in candidates],
        classes=scanner.class_records(screened, columns),
        other_signs=scanner.other_signs(),
    )
    return Scan(screened, candidates, record)


def _clock(config: ScanConfig, classes: int, on_progress: OnScan) -> Clock:
    """A clock that counts to the images that a scan of so many classes takes."""
    screened = min(config.thorough or classes, classes)
    total = classes * config.first.images + screened * config.images + closer_look(config, screened)
    return Clock(on_progress, total)


@dataclass
class _Scanner:
    """A network under scan, and what the stages of the scan share.

    Args:
        classifier, samples, config, labels: What is scanned, and how.
        clock: Counts the images of all stages.
        bank: Greatest z of the networks of a bank.
        margin_of: The greatest margin of every class, once the first look is done.
    """

    classifier: Classifier
    samples: Samples
    config: ScanConfig
    labels: list[int]
    clock: Clock
    bank: list[float] | None = None
    margin_of: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_shape(self.classifier, self.samples)
        self.halves = halves(self.samples, self.config)

    def measured(self) -> Measured:
        """What is measured and how, before anything is."""
        classifier, samples = self.classifier, self.samples
        return Measured(
            model=ScannedModel(name=classifier.name, fingerprint=classifier.fingerprint, shape=classifier.shape),
            samples=ScannedSamples(source=samples.source, count=len(samples)),
            config=self.config,
            screened=self.labels,
            greatest_z=0.0,
        )

    def first_look(self) -> dict[int, float]:
        """The greatest margin of every class."""

        def count(images: int) -> None:
            self.clock.count("first look", images)

        found = margins(self.classifier, self.config.first, classes=self.labels, on_images=count)
        if not found.isfinite().all():
            name = self.classifier.labels[self.labels[int(found.isfinite().int().argmin())]]
            raise AgnoscoError(
                f"the margin of {name!r} is not finite", "check the weights and the mean and std of the model"
            )
        return dict(zip(self.labels, found.tolist(), strict=True))

    def screened(self) -> Screening:
        """The screening of all classes; or of some at random and those of the largest margins, until it is decided."""
        thorough, order = self.config.thorough, sorted(self.labels, key=self.margin_of.__getitem__, reverse=True)
        if thorough is None or thorough >= len(order):
            return self._screen(sorted(order))
        random_count = max(RANDOM_CLASSES, thorough // 3)
        leading, rest = order[: thorough - random_count], order[thorough - random_count :]
        chosen = torch.randperm(len(rest), generator=generator_for("ordinary classes", len(order)))[:random_count]
        screened = self._screen(sorted(rest[row] for row in chosen.tolist()))
        for start in range(0, len(leading), AT_A_TIME):
            part = self._screen(leading[start : start + AT_A_TIME], scales=screened.scales, ordinary=False)
            screened = screened.joined(part)
            if self.verdict(screened, every=False).outcome == FOUND:
                break
        return screened

    def _screen(self, classes: Sequence[int], **options: Any) -> Screening:
        return screen(self.classifier, self.samples, self.config, classes=classes, clock=self.clock, **options)

    def verdict(self, screened: Screening, *, every: bool = True) -> Verdict:
        """The verdict on what is screened; ``every`` says whether no more will be."""
        columns = [self.labels.index(label) for label in screened.classes]
        evidence = evidence_of(torch.tensor([self.margin_of[label] for label in self.labels]), columns)
        by_rule = partial(
            judge, screened.deviation, screened.reach, classes=len(self.labels), bank=self.bank, evidence=evidence,
            every=every,
        )  # fmt: skip
        first = by_rule()
        problems = screened.problems(first.label)
        if first.separate is not None and evidence.p is not None and cannot_tell(evidence.p) and first.outcome != FOUND:
            problems.insert(0, NOTHING_LARGE)
        return by_rule(problems=problems)

    def candidates(self, screened: Screening, columns: Sequence[int]) -> tuple[Candidate, ...]:
        """A closer look at some classes."""
        batch = self.config.full.mapper.batch
        self.clock.advance(self.clock.total - closer_look(self.config, len(screened.classes)))

        def closer(column: int) -> Candidate:
            title = f"class {self.classifier.labels[screened.classes[column]]}"
            return examined(
                self.classifier, screened, column, self.halves, self.config,
                on_step=lambda _: self.clock.count(title, batch),
            )  # fmt: skip

        return tuple(closer(column) for column in columns)

    def class_records(self, screened: Screening, columns: Sequence[int]) -> list[ClassRecord]:
        """All classes: those that were screened in the order of the columns, then the others by their margins."""
        faster = prepared(self.classifier, precision=resolve_precision("auto", self.classifier.device))
        sizes = {
            column: smallest_sizes(faster, screened, column, self.halves[1], self.config)
            for column in columns[:LEADING]
        }
        some_at_random = not screened.ordinary.all()

        def record(label: int, column: int | None = None) -> ClassRecord:
            k90, eps50 = sizes.get(column, (None, None)) if column is not None else (None, None)
            return ClassRecord(
                index=label, name=self.classifier.labels[label], margin=self.margin_of[label],
                screens={} if column is None else _screen_records(screened, column),
                at_random=column is not None and some_at_random and bool(screened.ordinary[column]),
                k90=k90, eps50=eps50,
            )  # fmt: skip

        others = sorted(set(self.labels) - set(screened.classes), key=lambda label: (-self.margin_of[label], label))
        return [*(record(screened.classes[column], column) for column in columns), *map(record, others)]

    def other_signs(self) -> OtherSigns:
        """MM-BD's own verdict, and the weights of the final layer."""
        last = final_layer(self.classifier)
        p_value = margin_p_value(torch.tensor([self.margin_of[label] for label in self.labels]))
        margin = MarginRecord(index=max(self.margin_of, key=self.margin_of.__getitem__), p_value=p_value)
        layer = None if last is None else FinalLayerRecord(index=int(last.argmax()), z=last.max().item())
        return OtherSigns(mm_bd=margin, final_layer=layer)


def _screen_records(screened: Screening, column: int) -> dict[str, ScreenRecord]:
    """The results of a class in all screens."""
    movable, records_ = int(screened.movable[column]), {}
    for name, reach, z, hits in zip(
        screened.titles, screened.reach[:, column], screened.z[:, column], screened.hits[:, column], strict=True
    ):
        interval, seeds = wilson(int(hits.max()), movable), (hits / max(movable, 1)).tolist()
        records_[name] = ScreenRecord(reach=reach.item(), interval=interval, z=z.item(), seeds=seeds)
    return records_


def write(scan: Scan, place: Place | Folder) -> tuple[str, str]:
    """Write a scan as JSON, and its candidates' patterns as a picture, into a folder; returns the names of both files.

    The picture shows a sample for each candidate, as it is and with the pattern, unless the samples are private.

    Raises:
        AgnoscoError: The folder cannot be written.
    """
    rows = [candidate.pictures() for candidate in scan.candidates]
    sheet = contact_sheet(
        [picture for row in rows for picture in row.values()], [caption for row in rows for caption in row],
        columns=max(map(len, rows), default=1), tile=TILE,
        footer=f"{scan.record.model.name}. {scan.verdict.outcome}.",
    )  # fmt: skip
    folder = Folder.of(place)
    folder.make()
    folder.remove(FILE)  # whenever this process is killed, no record lies beside a picture of another scan
    picture = folder.write(PICTURE, png(sheet))
    return folder.write(FILE, records.encode(scan.record)), picture
