"""The local runner: maps of several classes and seeds, judged on held-out images, into a run folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from .classifier import Classifier
from .cycle import Config, Progress, map_classes, maps_together
from .errors import AgnoscoWarning
from .samples import Samples
from .score import nudge_success, predictions
from .store import Entry, Run, split

TIMED = 3
"""Steps of the measurement in :func:`seconds_per_map`; the first of them warms up."""


@dataclass(frozen=True)
class Finished:
    """A map that was made and stored.

    Args:
        entry: Its entry in the manifest.
        seconds: Its share of what making it and those beside it took, and what judging it took.
    """

    entry: Entry
    seconds: float


def run_maps(
    run: Run,
    classifier: Classifier,
    samples: Samples,
    classes: Sequence[int | str],
    *,
    seeds: Sequence[int] = (0,),
    on_step: Callable[[Progress], None] | None = None,
) -> Iterator[Finished]:
    """Make maps and store each as soon as it is finished; maps made side by side are finished together.

    Args:
        run: Where they go; its settings are used.
        classifier: The network.
        samples: All samples; see :func:`agnosco.store.split`.
        classes: Indices or names.
        seeds: One map of every class for each.
        on_step: Called after every step, for every map.
    """
    kept, held_out = split(samples)
    side_by_side: set[tuple[int, int]] = set()

    def told(progress: Progress) -> None:
        side_by_side.add((progress.label, progress.seed))
        if on_step is not None:
            on_step(progress)

    maps = map_classes(classifier, classes, kept, run.config, seeds=seeds, on_step=told)
    before = predictions(classifier, held_out)
    begun, share = time.perf_counter(), 0.0
    for concept in maps:
        if side_by_side:  # the first of them
            share = (time.perf_counter() - begun) / len(side_by_side)
            side_by_side.clear()
        begun = time.perf_counter()
        success = nudge_success(classifier, concept.nu, concept.label, held_out, before=before)
        entry = run.add(concept, nudge_success=success)
        yield Finished(entry, share + time.perf_counter() - begun)
        begun = time.perf_counter()


def seconds_per_map(classifier: Classifier, samples: Samples, config: Config, *, count: int = 1) -> float:
    """About how long each of so many maps takes here and now: real steps, measured after a warm-up, times their number.

    Args:
        classifier: The network.
        samples: All samples.
        config: Settings of the maps.
        count: How many maps will be made; several are made side by side.
    """
    short = replace(config, mapper=replace(config.mapper, steps=TIMED), refine=None, cycles=1)
    together = min(count, maps_together(classifier, config))
    moments: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AgnoscoWarning)  # what there is to say, the maps themselves will say
        list(
            map_classes(
                classifier, [0], samples, short, seeds=range(together), together=together,
                on_step=lambda _: moments.append(time.perf_counter()),
            )
        )  # fmt: skip
    return config.steps * (moments[-1] - moments[together - 1]) / (TIMED - 1) / together
