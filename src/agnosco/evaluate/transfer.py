"""Whether other networks see a run's classes in its pictures: what ``agnosco score`` prints and keeps in the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..io.records import NUMBER, read_shape
from ..method.concept import ConceptMap
from ..method.score import Score, diversity, intervals, logits_of, predictions, score_of_logits, targeted_success_rate
from ..models.classifier import Classifier
from ..runs.run import Run
from ..text import spelling

SCORES = "scores.json"

Judgement = dict[str, Any]
"""What one target says of a run; see :func:`judge`."""

_FIGURES = {figure.name: NUMBER for figure in fields(Score)}

_JUDGEMENT = {
    "target": str, "fingerprint": str, "shape": [int, int, int], "run": str, "source": bool, "maps": int,
    "classes": int, "seeds": int, **_FIGURES, "interval": (None, {key: [NUMBER, NUMBER] for key in _FIGURES}),
    "diversity": (None, NUMBER), "targeted_success_rate": (None, NUMBER),
}  # fmt: skip
"""What a judgement holds, in the words of :func:`agnosco.io.records.check_shape`."""


def judge(run: Run, target: Classifier, *, images: Samples | None = None) -> Judgement:
    """What a network says of all maps of a run.

    Args:
        run: The run; at least two classes.
        target: The judging network. Pictures are resized to its input.
        images: Samples of the target's shape to nudge; of the run's own, only those held out are used.

    Returns:
        Plain values for JSON: ``target``, ``fingerprint``, ``shape``, ``run`` (a digest of the maps judged),
        ``source`` (whether it is the network that the maps were made with), ``maps``, ``classes``, ``seeds``, the
        figures of :class:`~agnosco.method.score.Score`, ``interval`` (their 95 % bootstrap intervals, or None),
        ``diversity`` (or None) and ``targeted_success_rate`` (or None).

    Raises:
        AgnoscoError: The target lacks a class of the run, or the run has fewer than two.
    """
    labels = matched(run, target)
    if len(set(labels)) < 2:
        raise AgnoscoError(f"{run.folder.name!r} has maps of fewer than two classes", "score at least two classes")
    maps = list(run.maps())
    pictures = torch.stack([concept.pixels for concept in maps])
    fingerprint = target.fingerprint
    logits = logits_of(target, pictures)
    found = intervals(logits, labels)
    return {
        "target": target.name,
        "fingerprint": fingerprint,
        "shape": list(target.shape),
        "run": _state(run),
        "source": fingerprint == run.settings.model.fingerprint,
        "maps": len(maps),
        "classes": len(set(labels)),
        "seeds": len({concept.seed for concept in maps}),
        **asdict(score_of_logits(logits, labels)),
        "interval": found and {figure: list(ends) for figure, ends in found.items()},
        "diversity": _diversity(target, pictures, labels),
        "targeted_success_rate": None if images is None else _moved(run, target, maps, labels, images),
    }


def matched(run: Run, target: Classifier) -> list[int]:
    """The target's index of the class of each of a run's maps, by index and seed.

    Classes are the same where the two networks have as many of them and none of their names disagree, and
    are found by name otherwise.

    Raises:
        AgnoscoError: The target has no class of that name.
    """
    entries = run.entries
    if target.classes == run.settings.model.classes and all(
        _same(entry.name, target.labels[entry.index]) for entry in entries
    ):
        return [entry.index for entry in entries]
    return [_by_name(entry.name, target) for entry in entries]


def _by_name(name: str, target: Classifier) -> int:
    exact = [index for index, label in enumerate(target.labels) if label == name]
    found = exact or [index for index, label in enumerate(target.labels) if spelling(label) == spelling(name)]
    if len(found) == 1 and not name.isdecimal():  # the numbers of another network's classes say nothing
        return found[0]
    raise AgnoscoError(
        f"{target.name} has {'several classes' if len(found) > 1 else 'no class'} {name!r}",
        "choose a network with the same classes; --labels gives names to one that carries none",
    )


def keep(run: Run, judgements: Sequence[Judgement]) -> list[Judgement]:
    """Write judgements into a run beside those already there, newer ones in place of older.

    Those of other maps than the run now holds are dropped: it has grown, or maps were made again. A judgement made
    without images keeps the nudge success that the same network was found to have with them.

    Returns:
        All that the run now holds: the source first, then the others by name.
    """
    known = {(one["fingerprint"], *one["shape"]): one for one in kept_in(run)}
    for one in judgements:
        key = (one["fingerprint"], *one["shape"])
        if one["targeted_success_rate"] is None and key in known:  # judged without images this time
            one = one | {"targeted_success_rate": known[key]["targeted_success_rate"]}
        known[key] = one
    kept = sorted(known.values(), key=lambda one: (not one["source"], one["target"], one["shape"]))
    run.folder.write(SCORES, (json.dumps({"targets": kept}, indent=1, sort_keys=True) + "\n").encode())
    return kept


def kept_in(run: Run) -> list[Judgement]:
    """The judgements that a run holds, of the maps that it holds now.

    Raises:
        AgnoscoError: Their file is damaged, or another version's.
    """
    found = read_shape(run.folder, SCORES, {"targets": [_JUDGEMENT]}, hint="remove it, and score again")
    state = _state(run)
    return [one for one in found["targets"] if one["run"] == state] if found else []


def table(judgements: Sequence[Judgement]) -> str:
    """Judgements as lines of text, one network each."""
    concepts = judgements[0]["classes"]
    rows: list[tuple[str, ...]] = [
        ("seen by", "maps", "M_score", f"top-1 of {concepts}", "top-1 of all", "p", "moved", "diversity")
    ]
    for one in judgements:
        figures = [_with_interval(one, name) for name in ("m_score", "top1_of_concepts", "top1", "probability")]
        rest = ["-" if one[name] is None else f"{one[name]:.2f}" for name in ("targeted_success_rate", "diversity")]
        rows.append((one["target"] + (" (source)" if one["source"] else ""), str(one["maps"]), *figures, *rest))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _state(run: Run) -> str:
    """Which maps a run holds: a digest of theirs."""
    return hashlib.sha256("".join(entry.sha256 for entry in run.entries).encode()).hexdigest()


def _diversity(target: Classifier, pictures: Tensor, labels: Sequence[int]) -> float | None:
    """None for a network that has no feature map, too: the other figures need none."""
    try:
        return diversity(target, pictures, labels)
    except AgnoscoError:
        return None


def _with_interval(one: Judgement, name: str) -> str:
    if one["interval"] is None:
        return f"{one[name]:.3f}"
    low, high = one["interval"][name]
    return f"{one[name]:.3f} [{low:.2f}, {high:.2f}]"


def _moved(
    run: Run, target: Classifier, maps: Sequence[ConceptMap], labels: Sequence[int], images: Samples
) -> float | None:
    """Mean nudge success; maps at another size than the target's input are no nudges for it."""
    made = run.settings.samples
    if run.settings.model.shape != target.shape:
        raise AgnoscoError(
            f"{target.name} takes {target.shape}, and the maps are {run.settings.model.shape}: "
            "they cannot be added to its images",
            "leave --samples or --size out",
        )
    if images.fingerprint == made.fingerprint:
        _, images = images.split(made.held_out, seed=made.split_seed)
    before = predictions(target, images)
    found = [
        targeted_success_rate(target, concept.nu, label, images, before=before)
        for concept, label in zip(maps, labels, strict=True)
    ]
    known = [share for share in found if share == share]  # NaN: every image had the class already
    return fmean(known) if known else None


def _same(name: str, other: str) -> bool:
    """Whether two names may be one class: a number says nothing."""
    return name.isdecimal() or other.isdecimal() or spelling(name) == spelling(other)
