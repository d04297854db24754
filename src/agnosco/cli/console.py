"""What a command says: data on stdout; progress, remarks, warnings and errors on stderr."""

from __future__ import annotations

import json
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import AgnoscoError, AgnoscoWarning
from ..text import one_line

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from ..data.samples import Samples
    from ..models.classifier import Classifier
    from ..runs.jobs import Backend, Finished
    from ..runs.run import Run
    from ..runs.status import RunStatus
    from ..types import OnStep, Progress

LONG = 10.0
"""Seconds beyond which work is announced."""

LONGEST = 2000
"""Characters of a line; an error may hold a class name of a megabyte."""


class Terminated(KeyboardInterrupt):
    """A batch system's SIGTERM: the same as Ctrl-C, but for the exit code."""


class Output:
    """The one way in which commands speak.

    Lines on stderr are never wrapped, so that an error is two lines on every terminal; text from
    outside (class names, paths) loses its control characters.

    Args:
        quiet: Say no remarks and show no progress; warnings and errors stay.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    @classmethod
    def of(cls, context: typer.Context, *, quiet: bool) -> Output:
        """The output of a command that was called, told whether to be quiet."""
        output: Output = context.obj
        output.quiet = quiet
        return output

    @cached_property
    def _stderr(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, soft_wrap=True, highlight=False)

    # -- lines ---------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A remark."""
        if not self.quiet:
            self._line(text)

    def say_how_long(self, each: float, count: int, rest: str = "Ctrl-C keeps finished ones") -> None:
        """What so many maps will take, at so many seconds each, if that is long; and what else there is to say."""
        if each * count >= LONG:
            self.say(f"{count} maps of about {duration(each)}: {duration(each * count)} in all. {rest}")

    def result(self, data: Any) -> None:
        """The command's result: text as it is, anything else as one JSON object."""
        print(data if isinstance(data, str) else json.dumps(data, indent=1))

    def error(self, error: AgnoscoError) -> None:
        """What the user did wrong, in two lines."""
        self._line(error.message, "Error: ", "bold red")
        self._line(error.hint, "Hint: ", "bold")

    @contextmanager
    def warnings(self) -> Iterator[None]:
        """Inside, agnosco's own warnings are lines like the others; other libraries' stay as they are."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", AgnoscoWarning)
            ordinary = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
                if issubclass(category, AgnoscoWarning):
                    self._line(str(message), "Warning: ", "yellow")
                else:
                    ordinary(message, category, *place, **rest)

            warnings.showwarning = show
            yield

    def run(self, command: Callable[[], Any]) -> int:
        """Do something; what the user did wrong in it is said, and a bug keeps its traceback.

        Returns:
            The exit code.
        """
        try:
            with self.warnings(), _terminable():
                code = command()
        except AgnoscoError as error:
            self.error(error)
            return error.exit_code
        except Terminated:
            return 128 + signal.SIGTERM
        except KeyboardInterrupt:
            return 130
        return code if isinstance(code, int) else 0

    def _line(self, text: str, label: str = "", style: str = "") -> None:
        from rich.text import Text

        self._stderr.print(Text.assemble((label, style), one_line(text, limit=LONGEST)))
        sys.stderr.flush()

    # -- progress ------------------------------------------------------------------------------

    @contextmanager
    def bar(self) -> Iterator[Callable[[str, str, int, int], None]]:
        """A live line on a terminal; nothing elsewhere.

        Yields:
            What it is called with: a title, the state, how much is done, and of how much.
        """
        if self.quiet or not self._stderr.is_terminal:
            yield lambda *_: None
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        with Progress(*columns, console=self._stderr, transient=True) as live:
            task = live.add_task("", state="", total=None)

            def show(title: str, state: str, done: int, total: int) -> None:
                live.update(task, description=one_line(title, limit=40), state=state, completed=done, total=total)

            yield show

    @contextmanager
    def steps(self) -> Iterator[OnStep]:
        """A live line for maps whose number is not known."""
        with self.bar() as show:
            yield lambda step: show(f"class {step.label}", _state(step), step.done, step.total)

    def make(
        self,
        run: Run,
        classifier: Classifier,
        samples: Samples,
        classes: Sequence[int],
        *,
        seeds: Sequence[int] = (0,),
        backend: Backend | None = None,
    ) -> list[Finished]:
        """Maps, made under a bar and with a line for each; those that are there already are kept as they are.

        Args:
            run, classifier, samples, classes, seeds, backend: See :func:`agnosco.runs.jobs.run_maps`.

        Returns:
            All of them, in the order of classes and seeds; then those that were made with them.
        """
        from ..runs import jobs

        making = _Making(self, list(dict.fromkeys((label, seed) for label in classes for seed in seeds)))

        try:
            with self.bar() as show:

                def on_step(step: Progress) -> None:
                    making.step(step, show, classifier.labels)

                for one in jobs.run_maps(
                    run, classifier, samples, classes, seeds=seeds, on_step=on_step, on_status=making.found,
                    on_estimate=None if self.quiet else self.say_how_long, backend=backend,
                ):  # fmt: skip
                    making.made.append(one)
                    self.say(_told(one))
        except (KeyboardInterrupt, AgnoscoError) as error:
            if making.made:
                with suppress(AgnoscoError):
                    self._wrote(run, making)
            if isinstance(error, KeyboardInterrupt):
                self.say("Interrupted. The same command goes on from here")
            raise
        self._wrote(run, making)
        return making.all()

    def _wrote(self, run: Run, making: _Making) -> None:
        from ..runs.sheet import write_contact_sheet

        sheet = write_contact_sheet(run)
        count, total = len(making.made), making.wanted
        made = f"{count}" if count >= total else f"{count} of {total}"
        wrote = f"Wrote {made} {'map' if total == 1 else 'maps'} to {run.folder}. " if making.made else ""
        self.say(f"{wrote}Look at {sheet}")


class _Making:
    """What a command has made, and what it found there."""

    def __init__(self, output: Output, jobs: list[tuple[int, int]]) -> None:
        self.output = output
        self.jobs = jobs
        self.kept: list[Finished] = []
        self.made: list[Finished] = []
        self.steps: dict[tuple[int, int], int] = {}

    @property
    def wanted(self) -> int:
        """How many maps were not there."""
        return len(self.jobs) - len(self.kept)

    def found(self, found: RunStatus) -> None:
        """Say what is there, and what is damaged."""
        from ..runs.jobs import Finished

        self.kept = [Finished(entry, 0.0) for entry in found.entries]
        for damage in found.damaged:
            self.output.say(f"{damage}: it is made again")
        if self.kept:
            self.output.say(f"{len(self.kept)} of {len(self.jobs)} maps are there already")

    def step(self, step: Progress, show: Callable[[str, str, int, int], None], names: Sequence[str]) -> None:
        """Show how far it is."""
        self.steps[step.label, step.seed] = step.done
        making = len(self.steps) - len(self.made)
        which = names[step.label] if making == 1 else f"{making} maps at once"
        total = max(self.wanted, len(self.steps))
        title = f"{which} ({len(self.steps)}/{total})"
        show(title, _state(step), sum(self.steps.values()), total * step.total)

    def all(self) -> list[Finished]:
        """All of them, in the order of the jobs; then those that were made with them."""
        order = {job: place for place, job in enumerate(self.jobs)}
        found = {(one.entry.index, one.entry.seed): one for one in (*self.kept, *self.made)}
        return [found[key] for key in sorted(found, key=lambda key: order.get(key, len(order)))]


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM raises :class:`Terminated`, so that what is under way is written down."""

    def terminate(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def duration(seconds: float) -> str:
    """A length of time in words."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _state(step: Progress) -> str:
    return f"step {step.done}/{step.total}  p {step.last.probability:.2f}  ‖ν‖ {step.last.norm:.1f}"


def _told(one: Finished) -> str:
    entry = one.entry
    moves = (
        ""
        if entry.targeted_success_rate is None
        else f", moves {entry.targeted_success_rate:.0%} of held-out images to it"
    )
    return (
        f"{entry.name} ({entry.index}), seed {entry.seed}: "
        f"the picture is given its class with p {entry.probability:.2f}{moves}, {duration(one.seconds)}"
    )
