"""Which samples does the network give a class most, and which does a map's pattern move most and least easily?

One forward pass over the samples answers the first; the second is known since the map was judged.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..data.files import is_synthetic
from ..data.samples import Samples
from ..method.prepare import images_at_once, prepared
from ..method.render import to_picture
from ..method.score import log_odds
from ..models.classifier import Classifier
from ..runs.jobs import threads
from ..runs.manifest import Entry
from ..runs.origin import check_origin
from ..runs.run import Run
from ..runs.thumbnails import name_of, write_thumbnails
from ..types import OnProgress
from .sample_record import Sample, Typical, TypicalRecord, of_other_maps, read, remove, write

COUNT = 5
"""Samples of a kind that are kept for each map."""

MOST_SEEN = 4000
"""Samples that the network sees at most: all that are held out, and others at random."""

NOTHING = np.zeros(0, np.float32)


def may_be_kept(samples: Samples) -> bool:
    """Whether thumbnails of samples may be kept, and say something: they are neither private nor synthetic."""
    return not samples.private and not is_synthetic(samples.source)


def keep_typical(
    run: Run, classifier: Classifier, samples: Samples, *, on_progress: OnProgress | None = None
) -> TypicalRecord | None:
    """Find the typical samples of a run's maps, and write them into its folder as thumbnails.

    What a folder has of the same maps is kept. Nothing is written of samples that :func:`may_be_kept` refuses, and what
    was written before of private ones is removed.

    Args:
        run: The run, all of whose maps are finished.
        classifier, samples: What it was made with; all samples.
        on_progress: Called with the number of samples that the network has seen, and their total.

    Returns:
        What was found, as written; None for such samples.

    Raises:
        AgnoscoError: The run was made with others, or cannot be written.
    """
    if samples.private:
        remove(run.folder)
    if not may_be_kept(samples):
        return None
    before = read(run.folder)
    if before is not None and not of_other_maps(before, run.entries):
        return before
    check_origin(run, classifier, samples)
    held_out = samples.split_indices(run.settings.samples.held_out, seed=run.settings.samples.split_seed)[1]
    seen, labels = _seen(len(samples), held_out), sorted({entry.index for entry in run.entries})
    with threads(run.settings.threads):
        values, given = _answers(run, classifier, samples.part(seen), labels, on_progress)
    maps = {}
    for entry in run.entries:
        own = values[:, labels.index(entry.index)]
        moved, unmoved = _moved(run, entry, held_out[:MOST_SEEN], given, None if classifier.at else own)
        most = _first(seen, own, own if classifier.at else own.sigmoid())
        typical = Typical(sha256=entry.sha256, most=most, moved=moved, unmoved=unmoved)
        pictures = [[to_picture(samples.images[each.index] / 255) for each in row] for row in typical.rows]
        write_thumbnails(run.folder, name_of(entry.stem), pictures)
        maps[entry.stem] = typical
    record = TypicalRecord(
        source=samples.source, fingerprint=samples.fingerprint, seen=len(seen), count=len(samples),
        scores=classifier.at is not None, maps=maps,
    )  # fmt: skip
    write(run.folder, record)
    return record


def _moved(
    run: Run, entry: Entry, held_out: Tensor, given: Tensor, before: Tensor | None
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """The held-out samples of other classes that a map's pattern moves most, and those that it moves least.

    Args:
        held_out: Indices of the held-out samples, which are the first of those that the network has seen.
        given: The class of each seen sample.
        before: Their log-odds of the map's class without the pattern; None takes what they are with it.
    """
    odds = torch.from_numpy(run.arrays(*entry.job).get("held_out", NOTHING)).double()[: len(held_out)]
    others = (given[: len(odds)] != entry.index).nonzero()[:, 0]
    after = odds[others]
    change = after if before is None else after - before[others]
    most, least = (_first(held_out[others], sign * change, after.sigmoid()) for sign in (1, -1))
    return most, least


def _seen(count: int, held_out: Tensor) -> Tensor:
    """Indices of the samples that the network sees: those held out, then others at random, in order."""
    others = torch.ones(count, dtype=torch.bool)
    others[held_out] = False
    rest = others.nonzero()[:, 0]
    chosen = torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))[: max(MOST_SEEN - len(held_out), 0)]
    return torch.cat([held_out[:MOST_SEEN], rest[chosen.sort().values]])


def _answers(
    run: Run, classifier: Classifier, samples: Samples, labels: list[int], on_progress: OnProgress | None
) -> tuple[Tensor, Tensor]:
    """What the network makes of samples: log-odds ``(N, labels)``, or scores of what is no class; the class of each."""
    network = prepared(classifier, precision=run.config.precision)
    values, given = [], []
    for batch in samples.batches(min(images_at_once(network), 64)):
        with torch.no_grad():
            logits = network(batch.to(network.device)).cpu()
        of_classes = [logits[:, label].double() if classifier.at else log_odds(logits, label) for label in labels]
        values.append(torch.stack(of_classes, 1))
        given.append(logits.argmax(1))
        if on_progress is not None:
            on_progress(sum(map(len, given)), len(samples))
    return torch.cat(values), torch.cat(given)


def _first(indices: Tensor, order: Tensor, values: Tensor) -> tuple[Sample, ...]:
    """The samples that are greatest in order, the greatest first, with their values."""
    places = order.argsort(descending=True, stable=True)[:COUNT].tolist()
    return tuple(Sample(index=int(indices[place]), value=float(values[place])) for place in places)
