"""Maps that a command makes: a progress bar, a line for each, and what is said at the end or after Ctrl-C."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from ..errors import AgnoscoError
from ..types import Job, Progress
from .console import Output, ShowProgress, duration, step_in_words

if TYPE_CHECKING:
    from ..data.samples import Samples
    from ..models.classifier import Classifier
    from ..runs.jobs import Backend, Finished
    from ..runs.run import Run
    from ..runs.status import RunStatus


def make_maps(
    output: Output,
    run: Run,
    classifier: Classifier,
    samples: Samples,
    classes: Sequence[int],
    *,
    seeds: Sequence[int] = (0,),
    backend: Backend | None = None,
) -> list[Finished]:
    """Make the maps that a run lacks, as :func:`agnosco.runs.jobs.map_runs`, with a progress bar and a line for each.

    Returns:
        All of these maps, whoever made them, in the order of classes and seeds; then those that were made side by side
        with them.
    """
    from ..runs.jobs import map_runs

    progress = _MapsProgress(output, classifier.labels, [Job(label, seed) for label in classes for seed in seeds])
    try:
        with output.bar() as show:
            for finished in map_runs(
                run, classifier, samples, classes, seeds=seeds, on_step=lambda step: progress.step(step, show),
                on_status=progress.start, on_estimate=None if output.quiet else output.say_how_long,
                on_wait=progress.wait, backend=backend,
            ):  # fmt: skip
                progress.finish(finished)
    except (KeyboardInterrupt, AgnoscoError) as error:
        if progress.new:
            with suppress(AgnoscoError):
                progress.end(run)
        if isinstance(error, KeyboardInterrupt):
            output.say("Interrupted. To continue, give the same command again")
        raise
    progress.end(run)
    order = {job: place for place, job in enumerate(progress.jobs)}
    maps = [*progress.existing, *progress.new, *progress.elsewhere]
    return sorted(maps, key=lambda each: order.get(each.entry.job, len(order)))


class _MapsProgress:
    """What a command says of its maps, the ``jobs``, while they are made."""

    def __init__(self, output: Output, names: Sequence[str], jobs: Sequence[Job]) -> None:
        self.output, self.names, self.jobs = output, names, jobs
        self.existing: list[Finished] = []
        self.new: list[Finished] = []
        self.elsewhere: list[Finished] = []  # by other processes meanwhile
        self.missing = len(jobs)  # when the command began
        self.steps: dict[Job, int] = {}
        self.waits = False

    def start(self, status: RunStatus) -> None:
        """Say which maps exist and which are damaged."""
        from ..runs.jobs import Finished

        self.existing = [Finished(entry, 0.0) for entry in status.entries]
        self.missing -= len(self.existing)
        for damage in status.damaged:
            self.output.say(f"{damage}: it will be made again")
        if count := len(status.redrawn):
            pictures = "1 picture was" if count == 1 else f"{count} pictures were"
            self.output.say(f"{pictures} altered or missing: drawn again")
        if self.existing:
            self.output.say(f"{len(self.existing)} of {len(self.jobs)} maps are finished already")

    def step(self, step: Progress, show: ShowProgress) -> None:
        """Show a step in the progress bar."""
        self.steps[Job(step.label, step.seed)] = step.done
        together = len(self.steps) - len(self.new)
        title = self.names[step.label] if together == 1 else f"{together} maps side by side"
        total = max(self.missing - len(self.elsewhere), len(self.steps))
        show(f"{title} ({len(self.steps)}/{total})", sum(self.steps.values()), total * step.total, step_in_words(step))

    def wait(self, groups: int) -> None:
        """Say once that nothing is left but what other processes are making."""
        if not self.waits:
            what = "the last group" if groups == 1 else f"the last {groups} groups"
            self.output.say(f"Other processes are making {what} of maps: waiting for them")
        self.waits = True

    def finish(self, finished: Finished) -> None:
        """Say that a map is finished."""
        (self.elsewhere if finished.elsewhere else self.new).append(finished)
        entry, rate = finished.entry, finished.entry.targeted_success_rate
        success = "" if rate is None else f", targeted success rate {rate:.0%}"
        self.output.say(
            f"{entry.name} ({entry.index}), seed {entry.seed}: class probability of the picture {entry.probability:.2f}"
            f"{success}, {'made by another process' if finished.elsewhere else duration(finished.seconds)}"
        )

    def end(self, run: Run) -> None:
        """Draw the contact sheet; say where it and the maps are."""
        from ..runs.sheet import write_contact_sheet

        sheet = write_contact_sheet(run)
        count = f"{len(self.new)}" if len(self.new) >= self.missing else f"{len(self.new)} of {self.missing}"
        wrote = f"Wrote {count} {'map' if self.missing == 1 else 'maps'} to {run.folder}. " if self.new else ""
        others = f"Other processes wrote {len(self.elsewhere)}. " if self.elsewhere else ""
        self.output.say(f"{wrote}{others}Look at {sheet}")


def keep_samples(output: Output, run: Run, classifier: Classifier, samples: Samples) -> None:
    """Keep the samples that are typical of a run's maps, for ``agnosco report --with-samples``, and say so."""
    from ..evaluate.typical import keep_typical

    with output.bar() as show:
        found = keep_typical(run, classifier, samples, on_progress=partial(show, "looking for typical samples"))
    if samples.private:
        output.say("The samples are private: the run keeps none of them")
    elif found is not None:
        output.say(f"Kept thumbnails of typical samples in {run.folder.at('samples')}: agnosco report --with-samples")


def remove_samples(run: Run) -> None:
    """Remove what a run has kept of its samples."""
    from ..evaluate.sample_record import remove

    remove(run.folder)
