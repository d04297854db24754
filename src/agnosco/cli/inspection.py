"""What a file of weights holds, for people: ``agnosco inspect``."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..text import one_line
from .console import Output
from .options import AsJson, Quiet

if TYPE_CHECKING:
    from ..models.weights.contents import Contents

LARGEST = 3
"""Tensors that are named."""

WORDS = 8
"""Names that are listed of what a pickle imports, and entries of metadata."""

EXITS = (
    "Exit codes: 0 sound safetensors; 2 no such file; 10 pickle, 11 code, 12 malformed, 13 limit, 14 not-finite, "
    "15 unknown, 16 text (see docs/security.md). Commands that load a file exit with the same codes."
)
"""For ``--help``."""


def inspect(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Any weights file, from anywhere.", show_default=False)],
    finite: Annotated[bool, typer.Option("--finite", help="Also read the numbers, to look for NaN and Inf.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Show what a weights file contains, without running anything in it."""
    output = Output.of(context, quiet=quiet)
    description = describe_file(file, values=finite)
    output.result(description if as_json else in_words(description))
    output.say(what_next(description, str(file)))
    return description["exit_code"]


def describe_file(path: Path, *, values: bool = False) -> dict[str, Any]:
    """What a file contains, as plain JSON values, its texts cleaned.

    Args:
        path: The file.
        values: Read the numbers too, to find NaN and Inf.

    Raises:
        AgnoscoError: There is no such file, or it may not be read.
    """
    from ..models.fitting import find_architecture
    from ..models.weights.contents import read_contents
    from ..models.weights.limits import CODES, worst

    contents = read_contents(path, values=values)
    fits = find_architecture(contents.entries)
    return {
        "file": path.name,
        "bytes": contents.size,
        "format": contents.format,
        "tensors": contents.tensors,
        "tensor_bytes": contents.tensor_bytes,
        **_numbers(contents),
        "fits": fits and fits.name,
        "classes": fits and fits.classes,
        "imports": [one_line(name) for name in contents.imports[:WORDS]],
        "metadata": {one_line(key): one_line(text, limit=200) for key, text in [*contents.metadata.items()][:WORDS]},
        "findings": [
            {"kind": finding.kind, "name": finding.name, "detail": one_line(finding.detail, limit=400)}
            for finding in contents.findings
        ],
        "numbers_read": values and bool(contents.entries),
        "exit_code": CODES[worst(contents.findings).kind] if contents.findings else 0,
    }


def in_words(found: dict[str, Any]) -> str:
    """What :func:`describe_file` found, one fact a line."""
    lines = [f"{one_line(found['file'])}: {found['format']}, {found['bytes']:,} bytes"]
    if found["tensors"]:
        types = ", ".join(f"{count} {name}" for name, count in found["types"].items())
        counted = f", {found['numbers']:,} numbers ({types})" if types else ""
        lines.append(f"tensors: {found['tensors']:,}{counted}, {found['tensor_bytes']:,} bytes")
    lines += [f"largest: {one['name']} {one['shape']} {one['type']}" for one in found["largest"]]
    if found["fits"]:
        lines.append(f"fits: {found['fits']}, {found['classes']:,} classes")
    if found["imports"]:
        lines.append(f"imports: {', '.join(found['imports'])}")
    lines += [f"metadata: {key} = {text}" for key, text in found["metadata"].items()]
    lines += [f"found: {one['kind']} ({one['name']}): {one['detail']}" for one in found["findings"]]
    if not found["findings"]:
        unread = "" if found["numbers_read"] else "; its numbers were not read (--finite)"
        lines.append(f"found: nothing wrong{unread}")
    return "\n".join(lines)


def what_next(found: dict[str, Any], path: str) -> str:
    """The next command to type, or why there is none."""
    kinds = {one["kind"] for one in found["findings"]}
    if kinds == {"pickle"}:
        return f"Try: agnosco map MODEL --weights {shlex.quote(path)} --allow-pickle, in a container (docs/security.md)"
    if kinds:
        return "No command of agnosco opens it. Ask for safetensors: docs/security.md"
    return f"Try: agnosco map {found['fits'] or 'MODEL'} --weights {shlex.quote(path)}"


def _numbers(contents: Contents) -> dict[str, Any]:
    """Counts and types of the tensors, and the largest."""
    entries = contents.entries
    largest = sorted(entries, key=lambda name: -entries[name].numbers)[:LARGEST]
    return {
        "numbers": sum(entry.numbers for entry in entries.values()),
        "types": dict(Counter(entry.dtype for entry in entries.values()).most_common()),
        "largest": [
            {"name": one_line(name), "shape": list(entries[name].shape), "type": entries[name].dtype}
            for name in largest
        ],
    }
