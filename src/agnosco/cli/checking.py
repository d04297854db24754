"""``agnosco check``: what a run folder holds, and what is wrong with it, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from ..text import one_line
from .console import Output
from .options import JsonOption, QuietOption, RunFolder

if TYPE_CHECKING:
    from ..runs.check import RunCheck

EXIT_CODES = (
    "Exit codes: 0 all planned maps are finished and nothing is wrong; 2 not a run folder, or it cannot be read; "
    "3 maps are missing, or something is damaged."
)
"""For ``--help``."""

WRONG = 3
"""The exit code if something is missing or damaged."""

LISTED = 10
"""Files of one kind that are named; ``--json`` names all."""


def check(context: typer.Context, run: RunFolder, as_json: JsonOption = False, quiet: QuietOption = False) -> int:
    """Show what a run folder holds, and what is wrong with it. Nothing is changed."""
    from ..reports.check import check as check_run

    output = Output.of(context, quiet=quiet)
    found = check_run(run)
    output.result(asdict(found) | {"is_whole": found.is_whole} if as_json else in_words(found))
    output.say(what_next(found))
    return 0 if found.is_whole else WRONG


def in_words(found: RunCheck) -> str:
    """What was found, one fact a line."""
    from ..runs.check import named

    state = "intact" if found.manifest == "intact" else f"{found.manifest}; the maps say what it said"
    seeds = "seed" if len(found.seeds) == 1 else "seeds"
    groups = f", {found.finished_groups} of {found.groups} groups" if found.groups else ""
    lines = [
        f"{found.run}: {found.finished} of {found.planned} maps finished{groups}",
        f"model: {found.model}, {found.network_classes} classes",
        f"maps: of {found.classes} classes, {seeds} {_some([str(seed) for seed in found.seeds])}",
        f"manifest: {state}",
    ]
    lines += [f"unfinished: {named(found.unfinished)}"] * bool(found.unfinished)
    lines += [f"damaged: {_some(found.damaged)}"] * bool(found.damaged)
    for kind in ("missing", "altered"):
        pictures = [name for name, wrong in found.pictures.items() if wrong == kind]
        lines += [f"pictures {kind}: {_some(pictures)}"] * bool(pictures)
    lines += [f"{file}: {wrong}" for file, wrong in found.records.items()]
    lines += [
        f"checkpoint: {named(jobs) if jobs else f'{file}, of no known group'}"
        for file, jobs in found.checkpoints.items()
    ]
    lines += [f"lease: {file}: {words}" for file, words in found.leases.items()]
    lines += [f"temporary files: {_some(found.temporary)}"] * bool(found.temporary)
    lines += [f"not agnosco's: {_some(found.unknown)}"] * bool(found.unknown)
    lines += ["found: nothing wrong"] * found.is_whole
    return "\n".join(one_line(line, limit=2000) for line in lines)


def what_next(found: RunCheck) -> str:
    """The command that mends the run or makes it again, if there is one."""
    what = "To make it again" if found.is_whole else "To mend and to continue it"
    return f"{what}: {found.command or 'give the command, or run the code, that made it'}"


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:LISTED]) + (f", and {len(names) - LISTED} more" if len(names) > LISTED else "")
