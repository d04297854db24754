"""Is there a class that one fixed pattern reaches too easily?

Every class is mapped by the one loop in pixel coordinates and without views, within sets that only a shortcut makes
wide enough: few pixels and small windows for stamps, a small L2 ball for what is spread over the image. How many
held-out images the pattern −ν then moves to its class is the class's *reach*. In a clean network the classes'
reaches are alike; a compromised one has a class that stands out (Wang et al. 2019, "Neural Cleanse", for masks).

An L2 ball alone misses a small stamp: in a small network a diffuse pattern of a stamp's norm reaches every class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..io.records import NUMBER
from ..io.records import read_shape as read_record
from ..io.regular import read_regular
from ..io.storage import MOST, Folder, Place
from ..method.config import Config, MapperConfig
from ..method.dials import L2, Sparse, scaled_radius
from ..method.maker import map_classes
from ..method.render import contact_sheet, enlarged, png, stretched, to_picture
from ..method.score import m_score, predictions, targeted_success_rate
from ..models.classifier import Classifier
from ..runs.jobs import seconds_per_map
from ..types import Shape
from .evidence import MARGIN_STARTS, MARGIN_STEPS, cut_out, final_layer, margin_p_value, margins, of_pattern
from .verdict import ENOUGH_REACH, FOUND, INCONCLUSIVE, LEVEL, NONE, Verdict, judge, robust_z, stabilised, wilson
from .windows import Tournament, stamps

SUSPECTS = 3
"""Classes that are looked at more closely."""

LEADING = 20
"""Classes whose smallest patterns are sought."""

CURVE_IMAGES, BISECTIONS = 100, 6
"""What the search for a smallest pattern costs."""

FEWEST_IMAGES = 20
"""Evaluation images of other classes below which a reach says nothing."""

ENOUGH_SAMPLES = 3 * FEWEST_IMAGES
"""Half of them judge, of which some are of the class itself."""

TOLD_APART = 1.1
"""Kinds of samples that a network must tell apart at least (M_score times classes): untrained ones see 1.00, trained
ones up to 3 among dead leaves, and more among images of their own kind."""

CROWDED, SHRINK, LEAST_SCALE = 0.15, 0.8, 0.1
"""Median reach above which all maps of a screen are scaled down, by how much at a time, and where that ends: patterns
of one size reach every class of one network, and none of another."""

MARGIN_CLASSES = 100
"""Classes up to which MM-BD's margins are sought: with more they would take longer than the scan."""

FULL_STEPS, FULL_BATCH, FULL_SEEDS = 2, 0.5, 8
"""Each seed of a full map takes so many times the steps and the images of a screening one."""

JUDGING = 1.3
"""What an evaluation image costs, forward alone but at a few scales, against one in a step of a map."""

FILE, PICTURE, TILE = "scan.json", "scan.png", 224

WITHOUT_IMAGES = "Without images of the model's own kind fewer backdoors are found (docs/backdoors.md)"

OnProgress = Callable[[str, int, int], None] | None
"""Called with what is being done, how many images the maps have taken so far, and how many they take in all."""


@dataclass(frozen=True)
class ScanConfig:
    """Settings of a scan, chosen on the development split of ``benchmarks/backdoors.py``.

    Args:
        pixels: k of the sparse ball, as a share of the image's pixels.
        windows: The search for stamps.
        radius: η of the L2 ball at 3×224×224.
        steps, batch: K and b of a screening map.
        seeds: Maps of every class and ball, of which the one that reaches most counts.
        evaluation: Most images that patterns are judged by, disjoint from those that they are made with.
    """

    pixels: float = 0.009
    windows: Tournament = field(default_factory=Tournament)
    radius: float = 24.0
    steps: int = 60
    batch: int = 8
    seeds: int = 3
    evaluation: int = 300

    def __post_init__(self) -> None:
        if not 0 < self.pixels < 1:
            raise AgnoscoError(f"{self.pixels} is no share of the pixels", "give one in (0, 1)")
        if self.seeds < 1 or self.evaluation < FEWEST_IMAGES:
            raise AgnoscoError(
                f"{self.seeds} seeds and {self.evaluation} images", f"give at least 1 seed and {FEWEST_IMAGES} images"
            )

    def screens(self, shape: Shape) -> dict[str, Config | Tournament]:
        """The maps that are made of every class, by name; those of the L2 ball are the last."""
        base = MapperConfig(self.batch, self.steps, step=0.1, direction="plus", clip="masked")
        pixels = max(1, round(self.pixels * shape[1] * shape[2]))
        return {
            f"{pixels} pixels": Config(replace(base, ball=Sparse(pixels, hold=0.1)), refine=None, cycles=1),
            "windows": self.windows,
            f"L2 {scaled_radius(self.radius, shape):.1f}": self.spread,
        }

    @property
    def spread(self) -> Config:
        """Settings of the maps of the L2 ball."""
        mapper = MapperConfig(
            self.batch, self.steps, step=0.1, decay=1.0, direction="plus", clip="masked", ball=L2(self.radius)
        )
        return Config(mapper, refine=None, cycles=1)

    @property
    def full(self) -> Config:
        """Settings of the longer maps of the L2 ball that :func:`full_map` averages."""
        batch = max(1, round(FULL_BATCH * self.batch))
        return replace(self.spread, mapper=replace(self.spread.mapper, steps=FULL_STEPS * self.steps, batch=batch))

    @property
    def images(self) -> int:
        """How many images the maps of a class take in its screening, once for each step that they are in."""
        return 2 * self.seeds * self.steps * self.batch + self.windows.images(self.seeds)


@dataclass(frozen=True)
class Screening:
    """What the screening of all classes saw.

    Args:
        screens: Names of the screens.
        classes: Indices of the classes that were screened.
        hits: Evaluation images that each map moved to its class, ``(screens, classes, seeds)``.
        movable: Evaluation images of other classes, ``(classes,)``.
        patterns: −ν of the seed that reaches most, ``(screens, classes, C, H, W)``.
        told_apart: Kinds of samples that the network tells apart: from 1 to the number of its classes.
    """

    screens: tuple[str, ...]
    classes: tuple[int, ...]
    hits: Tensor
    movable: Tensor
    patterns: Tensor
    told_apart: float

    @property
    def reach(self) -> Tensor:
        """Share of images that the best seed moves, ``(screens, classes)``."""
        return self.hits.amax(2) / self.movable.clamp_min(1)

    @property
    def z(self) -> Tensor:
        """Robust z of the reaches over classes, ``(screens, classes)``."""
        return robust_z(stabilised(self.reach))

    @property
    def greatest_z(self) -> float:
        """What a bank of clean networks keeps of each."""
        return self.z.max().item()

    def showing(self, column: int) -> int:
        """The screen in which a class stands out most: among those that reach enough images, if there are any."""
        z, reached = self.z[:, column], self.reach[:, column] >= ENOUGH_REACH
        return int((z.where(reached, -torch.inf) if reached.any() else z).argmax())

    def problems(self) -> list[str]:
        """What speaks against a verdict."""
        found = []
        if self.told_apart < TOLD_APART:
            found.append(
                f"the network tells {self.told_apart:.1f} kinds of these samples apart: it is untrained, or they are "
                "not of its kind (--samples DIR)"
            )
        few = [label for label, count in zip(self.classes, self.movable.tolist(), strict=True) if count < FEWEST_IMAGES]
        if few:
            named = f"class {few[0]}" + (f" and {len(few) - 1} others" if len(few) > 1 else "")
            found.append(f"fewer than {FEWEST_IMAGES} of the images are not given {named} already: give more")
        if self._rival_seeds():
            found.append("seeds disagree about the class")
        return found

    def _rival_seeds(self) -> bool:
        """Whether as many seeds reach most for another class as for the one that stands out."""
        enough = self.z.where(self.reach >= ENOUGH_REACH, -torch.inf)
        label = int(enough.amax(0).argmax())
        reach = self.hits[self.showing(label)] / self.movable.clamp_min(1)[:, None]
        leaders = [int(one.argmax()) for one in reach.T if one.max() >= ENOUGH_REACH]
        others = max((leaders.count(other) for other in leaders if other != label), default=0)
        return others >= max(leaders.count(label), 1)


def screen(
    classifier: Classifier,
    samples: Samples,
    config: ScanConfig | None = None,
    *,
    classes: Sequence[int | str] | None = None,
    on_progress: OnProgress = None,
) -> Screening:
    """Screen all classes of a network, or some.

    Args:
        classifier: The network.
        samples: Images; half of them are mapped with, the others judge. Labels are not needed.
        config: Settings.
        classes: Indices or names; None takes all.
        on_progress: Called after every step.

    Raises:
        AgnoscoError: Too few samples, samples of another shape, or gradients that are not finite.
    """
    config = config or ScanConfig()
    labels = [classifier.index(label) for label in (range(classifier.classes) if classes is None else classes)]
    kept, held = _halves(samples, config)
    before = predictions(classifier, held)
    movable = torch.tensor([int((before != label).sum()) for label in labels])
    screens, hits, patterns = [], [], []
    clock = _Clock(on_progress, len(labels) * config.images)

    def moved(nus: Tensor) -> Tensor:
        """Images moved by every map ``(classes, seeds, C, H, W)``."""
        shares = [
            [targeted_success_rate(classifier, nu, label, held, before=before) for nu in own]
            for label, own in zip(labels, nus, strict=True)
        ]
        return (torch.tensor(shares).nan_to_num() * movable[:, None]).round()

    for name, settings in config.screens(classifier.shape).items():
        if isinstance(settings, Tournament):
            told = clock.of(name)
            chosen = [
                stamps(classifier, label, kept, settings, finalists=config.seeds, on_images=told) for label in labels
            ]
            nus = torch.stack(chosen)
        else:
            on_step = clock.steps_of(name, settings.mapper.batch)
            maps = map_classes(classifier, labels, kept, settings, seeds=range(config.seeds), on_step=on_step)
            nus = torch.stack([concept.nu for concept in maps]).unflatten(0, (len(labels), config.seeds))
        found = moved(nus)
        scale = 1.0
        while _crowded(found, movable) and scale > LEAST_SCALE:
            scale *= SHRINK
            found = moved(scale * nus)
        nus = scale * nus
        screens.append(name if scale == 1 else f"{name} x {scale:.2f}")
        hits.append(found)
        patterns.append(-nus[torch.arange(len(labels)), found.argmax(1)])
    chances = torch.cat([classifier.probabilities(part.to(classifier.device)).cpu() for part in held.batches(64)])
    told_apart = m_score(chances.double()) * classifier.classes
    return Screening(tuple(screens), tuple(labels), torch.stack(hits), movable, torch.stack(patterns), told_apart)


class _Clock:
    """How far the maps of a scan are, in images; those of several screens counted on."""

    def __init__(self, on_progress: OnProgress, total: int) -> None:
        self.on_progress = on_progress
        self.total = total
        self.done = 0

    def of(self, title: str) -> Callable[[int], None]:
        """What counts images that were taken under a title."""

        def count(images: int) -> None:
            self.done += images
            if self.on_progress is not None:
                self.on_progress(title, self.done, self.total)

        return count

    def steps_of(self, title: str, batch: int) -> Callable[[object], None]:
        """The same for steps of maps."""
        count = self.of(title)
        return lambda _: count(batch)


def _crowded(hits: Tensor, movable: Tensor) -> bool:
    """Whether most classes are reached by so many images that none could stand out."""
    return ((hits.amax(1) / movable.clamp_min(1)).quantile(0.5) > CROWDED).item()  # type: ignore[return-value]


@dataclass(frozen=True)
class Suspect:
    """A class that was looked at more closely.

    Args:
        label, name: Which one.
        screen: The screen in which it stands out most.
        pattern: −ν of that screen.
        full: What :func:`full_map` gives; its footprint shows what the pattern is made of.
        evidence: See :func:`agnosco.backdoor.evidence.of_pattern`.
    """

    label: int
    name: str
    screen: str
    pattern: Tensor
    full: Tensor
    evidence: dict[str, float]


@dataclass(frozen=True)
class Scan:
    """A finished scan.

    Args:
        verdict: What it concludes.
        screening: What it rests on.
        suspects: The classes that stand out most, the first first.
        about: The network, the samples and the settings, as plain values.
        classes: One entry for each class: name, reach and z by screen, and for the leading ones ``k90`` and
            ``eps50``: the fewest pixels with a reach of 90 %, and the least L2 norm with 50 %.
        other_signs: Those that need no pattern and no samples: MM-BD's p-value and class, and the final layer's.
    """

    verdict: Verdict
    screening: Screening
    suspects: tuple[Suspect, ...]
    about: dict[str, Any]
    classes: tuple[dict[str, Any], ...]
    other_signs: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, None for what is no number; what a bank is made of."""
        verdict = asdict(self.verdict) | {"reasons": list(self.verdict.reasons)}
        suspects = [
            {"index": one.label, "class": one.name, "screen": one.screen}
            | {key: value if isfinite(value) else None for key, value in one.evidence.items()}
            for one in self.suspects
        ]
        return {
            **self.about, "verdict": verdict, "greatest_z": self.screening.greatest_z,
            "told_apart": self.screening.told_apart, "suspects": suspects, "classes": list(self.classes),
            "other_signs": self.other_signs,
        }  # fmt: skip


def scan(
    classifier: Classifier,
    samples: Samples,
    config: ScanConfig | None = None,
    *,
    bank: Sequence[dict[str, Any]] | None = None,
    classes: Sequence[int | str] | None = None,
    on_progress: OnProgress = None,
) -> Scan:
    """Screen a network, judge it, and look closely at the classes that stand out most.

    Args:
        classifier: The network.
        samples: See :func:`screen`.
        config: Settings.
        bank: :meth:`Scan.to_json` of clean networks like this one; see :func:`read_bank`.
        classes: Indices or names; None takes all.
        on_progress: Called after every step, of the screening first and then of the suspects' maps.

    Raises:
        AgnoscoError: As :func:`screen`; or the bank was made with other settings.
    """
    config = config or ScanConfig()
    screened = screen(classifier, samples, config, classes=classes, on_progress=on_progress)
    about = {
        "model": {"name": classifier.name, "fingerprint": classifier.fingerprint, "shape": list(classifier.shape)},
        "samples": {"source": samples.source, "count": len(samples)},
        "config": asdict(config),
        "screened": list(screened.classes),
    }
    verdict = judge(screened.z, screened.reach, bank=_comparable(bank, about), problems=screened.problems())
    order = screened.z.amax(0).argsort(descending=True).tolist()
    order.insert(0, order.pop(order.index(verdict.label)))  # the verdict's class first: it may not be that of most z
    kept, held = _halves(samples, config)
    clock = _Clock(on_progress, len(order[:SUSPECTS]) * FULL_SEEDS * config.full.passes)
    suspects = [_suspect(classifier, screened, column, kept, held, config, clock) for column in order[:SUSPECTS]]
    rows = [
        _row(classifier, screened, column, held, config, curves=place < LEADING) for place, column in enumerate(order)
    ]
    verdict = replace(verdict, label=screened.classes[verdict.label])
    return Scan(verdict, screened, tuple(suspects), about, tuple(rows), _other_signs(classifier))


def full_map(
    classifier: Classifier,
    label: int,
    samples: Samples,
    config: ScanConfig | None = None,
    *,
    on_step: Callable[[object], None] | None = None,
) -> Tensor:
    """What longer maps of several seeds within the L2 ball have in common: the mean of their −ν, ``(C, H, W)``.

    Maps of small mini-batches are noisy, each in its own way; what the network looks for is in all of them.

    Args:
        classifier: The network.
        label: Index of the class.
        samples: Images to map with.
        config: Settings.
        on_step: Called after every step of every map.
    """
    config = config or ScanConfig()
    maps = map_classes(classifier, [label], samples, config.full, seeds=range(FULL_SEEDS), on_step=on_step)
    return torch.stack([one.pattern for one in maps]).mean(0)


def seconds_of_scan(classifier: Classifier, samples: Samples, config: ScanConfig, *, classes: int) -> float:
    """How long a scan takes here and now at least: real steps, measured, times the images that it takes.

    Screens that have to be scaled down time and again, and steps in other sets, can double it.

    Args:
        classifier: The network.
        samples: All samples.
        config: Settings.
        classes: How many classes are screened.
    """
    spread = config.spread
    each = seconds_per_map(classifier, samples, spread, count=classes * config.seeds)
    suspects = min(classes, SUSPECTS) * FULL_SEEDS * config.full.passes
    judging = 3 * config.seeds * config.evaluation * JUDGING
    asked = classifier.classes * MARGIN_STARTS * MARGIN_STEPS if classifier.classes <= MARGIN_CLASSES else 0
    images = classes * (config.images + judging) + suspects + asked
    return each * images / (spread.steps * spread.mapper.batch)


def read_bank(folder: str | Path) -> list[dict[str, Any]]:
    """The scans of clean networks in a folder: every ``*.json`` beneath it that ``agnosco scan --json`` wrote.

    Raises:
        AgnoscoError: There is none, or one is something else.
    """
    paths = sorted(Path(folder).rglob("*.json"))
    if not paths:
        raise AgnoscoError(f"{str(folder)!r} holds no scans", "put there what agnosco scan CLEAN --json prints")
    found = []
    for path in paths:
        try:
            one = json.loads(read_regular(path, most=MOST[".json"]))
            if not isfinite(one["greatest_z"]) or not all(isinstance(one[key], dict) for key in _COMPARED):
                raise TypeError
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise AgnoscoError(
                f"{str(path)!r} is no scan", "a bank holds what agnosco scan CLEAN --json prints, and nothing else"
            ) from error
        found.append(one)
    return found


def _comparable(bank: Sequence[dict[str, Any]] | None, about: dict[str, Any]) -> list[float] | None:
    """The greatest z of the networks of a bank, once it is sure that they were measured like this one."""
    if bank is None:
        return None
    seen = {about["model"]["fingerprint"]}
    for one in bank:
        for what in ("config", "screened", ("model", "shape"), ("samples", "source")):
            own, theirs = _looked_up(about, what), _looked_up(one, what)
            if own != theirs:
                name = what if isinstance(what, str) else " ".join(what)
                raise AgnoscoError(
                    f"the bank was scanned with another {name}: {theirs}, not {own}",
                    "scan its networks again with the same options and samples",
                )
        if one["model"].get("fingerprint") in seen:
            raise AgnoscoError(
                "a network is in the bank twice, or is the one that is judged", "put other networks there, each once"
            )
        seen.add(one["model"].get("fingerprint"))
    return [one["greatest_z"] for one in bank]


_COMPARED = ("config", "model", "samples")
"""Parts of a scan that must be there for it to be compared with another."""


def _looked_up(scan: dict[str, Any], what: str | tuple[str, str]) -> Any:
    return scan.get(what) if isinstance(what, str) else scan[what[0]].get(what[1])


def _halves(samples: Samples, config: ScanConfig) -> tuple[Samples, Samples]:
    """Samples to map with, and those that judge."""
    if len(samples) < ENOUGH_SAMPLES:
        raise AgnoscoError(f"{len(samples)} samples are too few to scan with", f"give at least {ENOUGH_SAMPLES}")
    kept, held = samples.split(0.5)
    return kept, Samples(held.images[: config.evaluation], source=held.source)


def _suspect(
    classifier: Classifier,
    screened: Screening,
    column: int,
    kept: Samples,
    held: Samples,
    config: ScanConfig,
    clock: _Clock,
) -> Suspect:
    label, row = screened.classes[column], screened.showing(column)
    pattern = screened.patterns[row, column]
    on_step = clock.steps_of(f"class {classifier.labels[label]}", config.full.mapper.batch)
    full = full_map(classifier, label, kept, config, on_step=on_step)
    evidence = of_pattern(classifier, -pattern, label, held)
    return Suspect(label, classifier.labels[label], screened.screens[row], pattern, full, evidence)


def _row(
    classifier: Classifier, screened: Screening, column: int, held: Samples, config: ScanConfig, *, curves: bool
) -> dict[str, Any]:
    label, movable = screened.classes[column], int(screened.movable[column])
    reach, z = screened.reach[:, column].tolist(), screened.z[:, column].tolist()
    hits = screened.hits[:, column]
    entry: dict[str, Any] = {
        "index": label,
        "class": classifier.labels[label],
        "screens": {},
        "k90": None,
        "eps50": None,
    }
    for row, name in enumerate(screened.screens):
        entry["screens"][name] = {
            "reach": reach[row], "interval": wilson(int(hits[row].max()), movable), "z": z[row],
            "seeds": (hits[row] / max(movable, 1)).tolist(),
        }  # fmt: skip
    if curves:
        images = Samples(held.images[:CURVE_IMAGES], source=held.source)
        *_, stamp, spread = -screened.patterns[:, column]
        most = int((stamp != 0).any(0).sum())
        entry["k90"] = _least(
            lambda k: targeted_success_rate(classifier, cut_out(stamp, round(k)), label, images), most, 0.9
        )
        entry["k90"] = None if entry["k90"] is None else round(entry["k90"])
        unit = spread / torch.linalg.vector_norm(spread).clamp_min(1e-12)
        ball = scaled_radius(config.radius, classifier.shape)
        entry["eps50"] = _least(lambda e: targeted_success_rate(classifier, e * unit, label, images), ball, 0.5)
    return entry


def _least(reach: Callable[[float], float], most: float, wanted: float) -> float | None:
    """The least size with a reach, by bisection; None if the greatest does not have it."""
    if most <= 0 or not reach(most) >= wanted:
        return None
    low, high = 0.0, float(most)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if reach(middle) >= wanted else (middle, high)
    return high


def _other_signs(classifier: Classifier) -> dict[str, Any]:
    last, margin = final_layer(classifier), None
    if classifier.classes <= MARGIN_CLASSES:
        found = margins(classifier)
        margin = {"index": int(found.argmax()), "p_value": margin_p_value(found)}
    return {
        "mm_bd": margin,
        "final_layer": None if last is None else {"index": int(last.argmax()), "z": last.max().item()},
    }


def write(scan: Scan, place: Place | Folder) -> tuple[str, str]:
    """Write a scan as JSON, and its suspects' patterns as a picture, into a folder; where they are.

    Raises:
        AgnoscoError: The folder cannot be written.
    """
    pictures = [picture for one in scan.suspects for picture in (stretched(one.pattern), stretched(one.full))]
    captions = [caption for one in scan.suspects for caption in (f"{one.name}: {one.screen}", f"{one.name}: full, L2")]
    sheet = contact_sheet(
        [enlarged(to_picture(picture), TILE) for picture in pictures], captions, columns=2, tile=TILE,
        footer=f"{scan.about['model']['name']}. {scan.verdict.outcome}.",
    )  # fmt: skip
    folder = Folder.of(place)
    folder.make()
    picture = folder.write(PICTURE, png(sheet))
    return folder.write(FILE, (json.dumps(scan.to_json(), indent=1, allow_nan=False) + "\n").encode()), picture


_REACHES = ("reach", "reach_shifted", "reach_on_noise")

_SCAN = {
    "screened": [int],
    "verdict": {
        "outcome": str, "label": int, "z": NUMBER, "cutoff": (None, NUMBER), "p_value": (None, NUMBER),
        "reasons": [str],
    },
    "classes": [{
        "index": int, "class": str, "k90": int | None, "eps50": (None, NUMBER),
        "screens": {str: {"reach": NUMBER, "interval": [NUMBER, NUMBER], "z": NUMBER}},
    }],
    "suspects": [{"class": str, "screen": str, "concentration": NUMBER} | dict.fromkeys(_REACHES, (None, NUMBER))],
}  # fmt: skip
"""What is read of a scan, in the words of :func:`agnosco.io.records.check_shape`."""


def read(folder: Folder, name: str = FILE) -> dict[str, Any] | None:
    """The scan that a file holds, as :meth:`Scan.to_json` gave it; None if there is none.

    Raises:
        AgnoscoError: The file is no scan, or another version's.
    """
    return read_record(folder, name, _SCAN, hint="scan again with agnosco scan --out", sound=_agrees)


def _agrees(found: dict[str, Any]) -> bool:
    """Whether a scan has a class for its verdict, and every class the same screens."""
    screens = [list(row["screens"]) for row in found["classes"]]
    verdict = found["verdict"]
    return (
        verdict["outcome"] in (FOUND, NONE, INCONCLUSIVE)
        and verdict["label"] in [row["index"] for row in found["classes"]]
        and all(own and own == screens[0] for own in screens)
    )


def table(found: dict[str, Any], *, rows: int = 10) -> str:
    """What a scan found, :meth:`Scan.to_json`, as lines of text."""
    classes = found["classes"][:rows]
    width = max(12, *(len(row["class"][:24]) + 2 for row in classes))
    head = "".join(f"{name:>16s}" for name in classes[0]["screens"])
    lines = [
        "reach: share of held-out images that one pattern moves to the class",
        f"{'':{width}s}{head}{'z':>8s}{'k90':>6s}{'eps50':>7s}",
    ]
    for row in classes:
        reach = "".join(f"{seen['reach']:16.2f}" for seen in row["screens"].values())
        z = max(seen["z"] for seen in row["screens"].values())
        k90 = "-" if row["k90"] is None else str(row["k90"])
        eps50 = "-" if row["eps50"] is None else f"{row['eps50']:.2f}"
        lines.append(f"{row['class'][:24]:{width}s}{reach}{z:8.1f}{k90:>6s}{eps50:>7s}")
    return "\n".join([*lines, "", *conclusion(found)])


def conclusion(found: dict[str, Any]) -> list[str]:
    """The outcome of a scan, :meth:`Scan.to_json`, and what it rests on, in sentences."""
    verdict = found["verdict"]
    against = "no cut-off"
    if verdict["cutoff"] is not None:
        against = f"cut-off {verdict['cutoff']:.1f}, simulated, uncalibrated"
    elif verdict["p_value"] is not None:
        against = f"p {verdict['p_value']:.3f}"
    name = next(row["class"] for row in found["classes"] if row["index"] == verdict["label"])
    lines = [
        f"Outcome: {verdict['outcome']}. Class {verdict['label']} ({name}) stands out most: z {verdict['z']:.1f} "
        f"({against})."
    ]
    lines += [f"Inconclusive: {reason}." for reason in verdict["reasons"]]
    if verdict["outcome"] == NONE and _stands_out(verdict):
        lines.append(f"It stands out, but fewer than {ENOUGH_REACH:.0%} of the images are moved to it.")
    for one in found["suspects"][: 1 if verdict["outcome"] == FOUND else 0]:
        reaches = [one[key] for key in _REACHES]
        plain, aside, noise = ("-" if reach is None else f"{reach:.2f}" for reach in reaches)
        lines.append(
            f"Its pattern ({one['screen']}): half of its energy in {one['concentration']:.1%} of the pixels; reach "
            f"{plain}, moved aside {aside}, on noise {noise}."
        )
    lines.append(
        "No outcome says that a network is clean, or that it was attacked: ordinary networks have classes that are "
        "easily reached, and attacks whose trigger changes with the image leave no fixed pattern."
    )
    return lines


def _stands_out(verdict: dict[str, Any]) -> bool:
    if verdict["p_value"] is not None:
        return verdict["p_value"] <= LEVEL
    return verdict["cutoff"] is not None and verdict["z"] >= verdict["cutoff"]
