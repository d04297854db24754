"""What else do networks see in the picture of a class? Behind "also looks like"; loads no torch.

Its numbers are the answers that :func:`agnosco.evaluate.transfer.score` keeps.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .score_record import Answer, Judgement

if TYPE_CHECKING:
    from ..runs.manifest import Entry

COLUMNS = ("map", "map_index", "seed", "network", "fingerprint", "rank", "class", "class_index", "p")
"""Of the table that :func:`to_csv` writes."""


LEAST = 0.01
"""Smaller probabilities are no likeness."""


LEVELS = 24
"""How often classes are halved at most: links that peel off one class at a time would take as many steps as classes."""


class Pair(NamedTuple):
    """A class, what else is seen in its pictures, and the mean probability of that."""

    name: str
    other: str
    p: float


@dataclass(frozen=True, eq=False)
class Lookalikes:
    """How often the picture of one class is taken for another.

    Args:
        names: Of the classes of a run, by index.
        p: ``(classes, classes)``: in row i, the mean probability of each class for the pictures of class i.
        beyond: The same for classes that the run has no pictures of, by row and name.
        judges: Names of the networks that the mean is over.
    """

    names: list[str]
    p: np.ndarray[Any, Any]
    judges: list[str]
    beyond: Mapping[tuple[int, str], float] = field(default_factory=dict)

    @property
    def order(self) -> list[int]:
        """The classes such that those that are taken for each other stand together, by recursive spectral bisection.

        Square roots are taken of the probabilities, so that weak links count.
        """
        links = np.sqrt(self.p + self.p.T)
        np.fill_diagonal(links, 0)
        return _bisected(links, list(range(len(links))), LEVELS)

    def pairs(self, count: int = 10) -> list[Pair]:
        """The classes of the run with what else is seen in them most, the greatest first; none below :data:`LEAST`."""
        others = self.p * (1 - np.eye(len(self.p)))
        found = [Pair(self.names[i], self.names[j], float(others[i, j])) for i, j in np.argwhere(others >= LEAST)]
        found += [Pair(self.names[row], name, p) for (row, name), p in self.beyond.items() if p >= LEAST]
        return sorted(found, key=lambda pair: -pair.p)[:count]


def _bisected(links: np.ndarray[Any, Any], chosen: list[int], levels: int) -> list[int]:
    """Some classes in two halves that have few links to each other, and each of these again, so many levels down.

    The halves are those of the signs of the Fiedler vector, the second eigenvector of the normalised Laplacian (`von
    Luxburg 2007, "A tutorial on spectral clustering" <https://arxiv.org/abs/0711.0189>`_).
    """
    if len(chosen) < 3 or not levels:
        return chosen
    own = links[np.ix_(chosen, chosen)]
    own = own + max(own.max(), 1e-9) * 1e-6  # no class stands apart altogether
    scale = 1 / np.sqrt(own.sum(1))
    _, vectors = np.linalg.eigh(np.eye(len(own)) - scale[:, None] * own * scale)
    fiedler = scale * vectors[:, 1]
    ordered = [chosen[place] for place in np.argsort(fiedler, kind="stable")]
    cut = int((fiedler < 0).sum())
    if not 0 < cut < len(chosen):
        return ordered
    return _bisected(links, ordered[:cut], levels - 1) + _bisected(links, ordered[cut:], levels - 1)


def lookalikes(entries: Sequence[Entry], judgements: Sequence[Judgement]) -> Lookalikes | None:
    """What other networks take the pictures of a run for; what its own network does, if no other has judged it.

    A probability that an answer leaves out, because it is none of its greatest, counts as 0.

    Args:
        entries: Those of the run, by index and seed.
        judgements: Of the run as it is now; see :func:`.score_record.read_scores`.

    Returns:
        The matrix; None if no judgement has kept its answers.

    Example:
        >>> from agnosco import Run
        >>> from agnosco.evaluate.lookalikes import lookalikes
        >>> run = Run.open("agnosco-run")
        >>> lookalikes(run.entries, []) is None  # no network has judged it
        True
    """
    answered = [judgement for judgement in judgements if judgement.answers]
    chosen = [judgement for judgement in answered if not judgement.source] or answered
    if not chosen:
        return None
    names = {entry.index: entry.name for entry in entries}
    place = {index: row for row, index in enumerate(sorted(names))}
    p, count = np.zeros((len(names), len(names))), np.zeros((len(names), 1))
    beyond: dict[tuple[int, str], float] = defaultdict(float)
    for judgement in chosen:
        rows = [place[entry.index] for entry in entries]
        column = {answer.own: row for answer, row in zip(judgement.answers, rows, strict=True)}
        for row, answer in zip(rows, judgement.answers, strict=True):
            count[row] += 1
            for index, name, probability in answer.top:
                if index in column:
                    p[row, column[index]] += probability
                else:
                    beyond[row, name] += probability
    means = {(row, name): total / float(count[row, 0]) for (row, name), total in beyond.items()}
    return Lookalikes([names[index] for index in sorted(names)], p / count, [each.target for each in chosen], means)


Others = list[tuple[str, float]]
"""Names of other classes and their probabilities, the most probable first."""


def also(answer: Answer, count: int = 5, least: float = LEAST) -> Others:
    """What an answer holds beside the map's own class."""
    return [(name, p) for index, name, p in answer.top if index != answer.own and p >= least][:count]


def also_in(entries: Sequence[Entry], judgements: Sequence[Judgement]) -> dict[str, list[tuple[str, Others]]]:
    """By the stem of each map: the networks that were asked, and what else each sees in it."""
    answered = [judgement for judgement in judgements if judgement.answers]
    return {
        entry.stem: [(judgement.target, also(judgement.answers[place])) for judgement in answered]
        for place, entry in enumerate(entries)
    }


def to_csv(entries: Sequence[Entry], judgements: Sequence[Judgement]) -> str:
    """All answers as a table with :data:`COLUMNS`, one line for each class of an answer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_lines(entries, judgements))
    return text.getvalue()


def _lines(entries: Sequence[Entry], judgements: Sequence[Judgement]) -> Iterator[tuple[Any, ...]]:
    for judgement in judgements:
        for entry, answer in zip(entries, judgement.answers, strict=False):
            own = _text(entry.name), entry.index, entry.seed, _text(judgement.target), judgement.fingerprint[:16]
            for rank, (index, name, p) in enumerate(answer.top, start=1):
                yield *own, rank, _text(name), index, f"{p:.6g}"


def _text(name: str) -> str:
    """A name that no spreadsheet takes for a formula.

    See `OWASP, CSV injection <https://owasp.org/www-community/attacks/CSV_Injection>`_.
    """
    return f"'{name}" if name[:1] in tuple("=+-@\t\r") else name
