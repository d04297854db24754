"""``agnosco inspect``: what a weights file contains, in words."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..text import one_line
from .console import Output
from .options import JsonOption, QuietOption

if TYPE_CHECKING:
    from ..models.inspection import Inspection

EXIT_CODES = (
    "Exit codes: 0 intact safetensors; 2 no such file; 10 pickle, 11 code, 12 malformed, 13 limit, 14 not-finite, "
    "15 unknown, 16 text (explained in docs/security.md). All commands that load a file use these codes."
)
"""For ``--help``."""


def inspect(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Weights file of any format, from any source.", show_default=False)
    ],
    finite: Annotated[bool, typer.Option("--finite", help="Also read the values, to find NaN and Inf.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Show what a weights file contains, without running anything in it."""
    from ..models.inspection import inspect as inspect_file

    output = Output.of(context, quiet=quiet)
    inspection = inspect_file(file, finite=finite)
    output.result(asdict(inspection) if as_json else in_words(inspection))
    output.say(what_next(inspection, str(file)))
    return inspection.exit_code


def in_words(inspection: Inspection) -> str:
    """An inspection, one fact a line."""
    lines = [f"{one_line(inspection.file)}: {inspection.format}, {inspection.bytes:,} bytes"]
    if inspection.tensors:
        types = ", ".join(f"{count} {name}" for name, count in inspection.types.items())
        numbers = f", {inspection.numbers:,} numbers ({types})" if types else ""
        lines.append(f"tensors: {inspection.tensors:,}{numbers}, {inspection.tensor_bytes:,} bytes")
    lines += [f"largest: {tensor.name} {list(tensor.shape)} {tensor.type}" for tensor in inspection.largest]
    if inspection.fits:
        lines.append(f"fits: {inspection.fits}, {inspection.classes:,} classes")
    if inspection.imports:
        lines.append(f"imports: {', '.join(inspection.imports)}")
    lines += [f"metadata: {key} = {text}" for key, text in inspection.metadata.items()]
    lines += [f"found: {finding.kind} ({finding.name}): {finding.detail}" for finding in inspection.findings]
    if not inspection.findings:
        unread = "" if inspection.numbers_read else "; the numbers were not read (--finite)"
        lines.append(f"found: nothing wrong{unread}")
    return "\n".join(lines)


def what_next(inspection: Inspection, path: str) -> str:
    """The next command to type, or why there is none."""
    kinds = {finding.kind for finding in inspection.findings}
    if kinds == {"pickle"}:
        return f"Try: agnosco map MODEL --weights {shlex.quote(path)} --allow-pickle, in a container (docs/security.md)"
    if kinds:
        return "No command of agnosco opens this file. Ask for safetensors (docs/security.md)"
    return f"Try: agnosco map {inspection.fits or 'MODEL'} --weights {shlex.quote(path)}"
