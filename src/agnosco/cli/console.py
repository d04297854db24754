"""How a command speaks: data on stdout; progress, remarks, warnings and errors on stderr."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from ..errors import AgnoscoError, AgnoscoWarning
from ..text import one_line, without_password

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from ..types import Progress

ShowProgress = Callable[..., None]
"""Called with a title, how much is done and of how much; and, if that says too little, with a ``state``."""

LONG = 10.0
"""Seconds; work that takes longer is announced."""

LONGEST = 2000
"""Characters of a line; an error may contain a class name of a megabyte."""

MORE_MEMORY = "free some, or choose a smaller network, --size or --batch; the same command continues from what is there"

UNTOLD = ("strict", "surrogateescape")
"""How Python itself has streams treat what they cannot encode, the second in the locale C."""

OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory|can't start new thread"
    r"|failed to map segment"
)
"""What the errors of PyTorch, CUDA and the operating system say."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems send: the same as Ctrl-C, with another exit code."""


class Output:
    """Where a command prints, and how; if it is quiet, no remarks and no progress.

    Lines on stderr are never wrapped, so that an error has two lines on every terminal. Text from outside (class names,
    paths) is printed without its control characters, and URLs without their passwords.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    @classmethod
    def of(cls, context: typer.Context, *, quiet: bool) -> Output:
        """The output of a command."""
        output: Output = context.obj
        output.quiet = quiet
        return output

    @cached_property
    def _stderr(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, soft_wrap=True, highlight=False)

    def result(self, data: Any) -> None:
        """Print the command's result: text as it is, anything else as one JSON object.

        What the terminal's encoding lacks is escaped, unless it is told what to do with it: the work is done, and names
        may be in any script.
        """
        if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors in UNTOLD:
            sys.stdout.reconfigure(errors="backslashreplace")
        print(data if isinstance(data, str) else json.dumps(data, indent=1))

    def say(self, text: str) -> None:
        """Print a remark."""
        if not self.quiet:
            self._line(text)

    def say_how_long(self, each: float, count: int, rest: str = "Ctrl-C keeps finished maps") -> None:
        """Announce maps that take long: seconds for each, their number, and another remark."""
        if each * count >= LONG:
            self.say(f"{count} maps of about {duration(each)}: {duration(each * count)} in all. {rest}")

    def run(self, command: Callable[[], Any]) -> int:
        """Call a command; returns the exit code. An AgnoscoError is printed in two lines; a bug keeps its traceback."""
        try:
            with self._warnings(), _terminable():
                code = command()
        except AgnoscoError as error:
            self._line(error.message, "Error: ", "bold red")
            self._line(error.hint, "Hint: ", "bold")
            return error.exit_code
        except (MemoryError, RuntimeError, OSError, ImportError) as error:
            if not is_out_of_memory(error):
                raise
            sys.stderr.write(f"Error: there is not enough memory\nHint: {MORE_MEMORY}\n")  # rich may need some, too
            return 2
        except Terminated:
            return 128 + signal.SIGTERM
        except KeyboardInterrupt:
            return 130
        return code if isinstance(code, int) else 0

    @contextmanager
    def _warnings(self) -> Iterator[None]:
        """Inside, warnings of agnosco are printed as lines like the others; those of other libraries as always."""
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

    def _line(self, text: str, label: str = "", style: str = "") -> None:
        from rich.text import Text

        self._stderr.print(Text.assemble((label, style), one_line(without_password(text), limit=LONGEST)))
        sys.stderr.flush()

    @contextmanager
    def bar(self) -> Iterator[ShowProgress]:
        """A progress bar on a terminal; nothing elsewhere. Yields the function that updates it."""
        if self.quiet or not self._stderr.is_terminal:
            yield lambda *_: None
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        with Progress(*columns, console=self._stderr, transient=True) as live:
            task = live.add_task("", state="", total=None)

            def show(title: str, done: int, total: int, state: str = "") -> None:
                live.update(task, description=one_line(title, limit=40), completed=done, total=total, state=state)

            yield show


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM raises :class:`Terminated`, so that work in progress is saved."""

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


def step_in_words(step: Progress) -> str:
    """Where a map stands after a step."""
    return f"step {step.done}/{step.total}  p {step.last.probability:.2f}  ‖ν‖ {step.last.norm:.1f}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that led to it, is that there is not enough memory."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or OUT_OF_MEMORY.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
