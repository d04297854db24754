"""What other networks say of a run's maps, as ``scores.json`` in its folder holds it; loads no torch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from ..io import records
from ..io.records import Record
from ..runs.run import Run
from ..text import aligned
from ..types import Shape

FILE = "scores.json"

TOP = 10
"""Most classes of an answer."""

Probability = Annotated[float, Meta(ge=0, le=1)]

FIGURES = ("m_score", "top1_of_concepts", "top1", "probability")
"""Fields of :class:`~agnosco.method.score.Score`."""


class Intervals(Record, frozen=True):
    """95 % bootstrap intervals of the figures, over seeds."""

    m_score: tuple[float, float]
    top1_of_concepts: tuple[float, float]
    top1: tuple[float, float]
    probability: tuple[float, float]


class Answer(Record, frozen=True):
    """What a network says of the picture of one map.

    Args:
        own: The network's index of the class of the map.
        entropy: Of its probabilities, in nats; 0 where it is certain.
        top: Index, name and probability of its most probable classes, :data:`TOP` at most.
    """

    own: int
    entropy: Annotated[float, Meta(ge=0)]
    top: tuple[tuple[int, str, Probability], ...]


class Judgement(Record, frozen=True):
    """What one network says of the maps of a run.

    Args:
        target: Name of the network.
        fingerprint, shape: Of the network.
        run: Digest of the maps that were judged; see :func:`digest_of`.
        source: Whether the maps were made with this network.
        maps, classes, seeds: How many were judged.
        m_score, top1_of_concepts, top1, probability: See :class:`~agnosco.method.score.Score`.
        interval: None where a class has a single map.
        diversity: See :func:`agnosco.method.score.diversity`; None where no class has two maps, and for a network
            without feature maps.
        targeted_success_rate: Mean over maps; None without images to perturb.
        answers: To the picture of each map, by index and seed; none in files that were written before they were kept.
    """

    target: str
    fingerprint: str
    shape: Shape
    run: str
    source: bool
    maps: int
    classes: int
    seeds: int
    m_score: float
    top1_of_concepts: float
    top1: float
    probability: float
    interval: Intervals | None
    diversity: float | None
    targeted_success_rate: float | None
    answers: tuple[Answer, ...] = ()

    def __post_init__(self) -> None:
        if len(self.answers) not in (0, self.maps):
            raise ValueError("there must be an answer for each map")

    @property
    def network(self) -> tuple[object, ...]:
        """What tells the network from others, and from itself at another size."""
        return self.fingerprint, *self.shape


class Scores(Record, frozen=True):
    """All judgements of a run."""

    targets: list[Judgement]


def read_scores(run: Run) -> list[Judgement]:
    """The judgements in a run's folder that are about the maps that it holds now.

    Raises:
        AgnoscoError: The file is damaged or of another version.
    """
    digest = digest_of(run)
    return [judgement for judgement in _stored(run) if judgement.run == digest]


def add_scores(run: Run, judgements: Sequence[Judgement]) -> list[Judgement]:
    """Write judgements into a run's folder; each replaces an earlier one by the same network, of the same maps.

    Judgements of other maps than the folder holds now, or these judgements are of, are dropped. A judgement without
    images keeps the targeted success rate that the same network had with images. Other processes may add theirs at the
    same time.

    Returns:
        All judgements of these maps that the folder now holds: the source first, then by name.
    """
    ours = {digest_of(run), *(judgement.run for judgement in judgements)}
    with run.alone():
        kept = ours | {digest_of(Run.look(run.folder))}
        stored = {(judgement.network, judgement.run): judgement for judgement in _stored(run) if judgement.run in kept}
        for judgement in judgements:
            key = judgement.network, judgement.run
            if key in stored and judgement.targeted_success_rate is None:
                rate = stored[key].targeted_success_rate
                judgement = msgspec.structs.replace(judgement, targeted_success_rate=rate)
            stored[key] = judgement
        ordered = sorted(stored.values(), key=lambda one: (not one.source, one.target, one.shape, one.run))
        run.folder.write(FILE, records.encode(Scores(targets=ordered)))
    return [judgement for judgement in ordered if judgement.run in ours]


def _stored(run: Run) -> list[Judgement]:
    scores = records.read(run.folder, FILE, Scores, hint="remove it and score again")
    return scores.targets if scores else []


def digest_of(run: Run) -> str:
    """A digest of the maps that a run holds."""
    return hashlib.sha256("".join(entry.sha256 for entry in run.entries).encode()).hexdigest()


def without_answers(judgements: Sequence[Judgement]) -> list[Judgement]:
    """The same judgements without their answers, which are long."""
    return [msgspec.structs.replace(judgement, answers=()) for judgement in judgements]


def told_apart(judgements: Sequence[Judgement]) -> list[Judgement]:
    """The same judgements; where several networks share a name, their size and fingerprint are added to it."""
    shared = Counter({judgement.network: judgement.target for judgement in judgements}.values())
    return [
        judgement
        if shared[judgement.target] == 1
        else msgspec.structs.replace(
            judgement, target=f"{judgement.target} ({judgement.shape[2]} px, {judgement.fingerprint[:8]})"
        )
        for judgement in judgements
    ]


def table(judgements: Sequence[Judgement]) -> str:
    """Judgements as lines of text, one network each."""
    return "\n".join(aligned(rows_of(judgements)))


def rows_of(judgements: Sequence[Judgement]) -> list[tuple[str, ...]]:
    """Judgements as the rows of a table, one network each; the first row is its head."""
    concepts = f"top-1 of {judgements[0].classes}"
    rows: list[tuple[str, ...]] = [
        ("network", "maps", "M_score", concepts, "top-1 of all", "p", "success rate", "diversity")
    ]
    for judgement in told_apart(judgements):
        name = judgement.target + (" (source)" if judgement.source else "")
        figures = [_with_interval(judgement, figure) for figure in FIGURES]
        rest = [
            "-" if value is None else f"{value:.2f}" for value in (judgement.targeted_success_rate, judgement.diversity)
        ]
        rows.append((name, str(judgement.maps), *figures, *rest))
    return rows


def _with_interval(judgement: Judgement, figure: str) -> str:
    value = f"{getattr(judgement, figure):.3f}"
    if judgement.interval is None:
        return value
    low, high = getattr(judgement.interval, figure)
    return f"{value} [{low:.2f}, {high:.2f}]"
