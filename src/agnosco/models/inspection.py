"""What a weights file contains, in plain values; nothing in it is run, and torch is not imported."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..io.safetensors_header import Finding
from ..text import one_line
from .fitting import find_architecture
from .weights.contents import read_contents
from .weights.limits import CODES, worst

LARGEST, SHOWN = 3, 8
"""How many of the largest tensors are named; how many imports and entries of the metadata are shown."""


@dataclass(frozen=True)
class TensorSummary:
    """Name, shape and type of a tensor in a file."""

    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class Inspection:
    """What a weights file contains. Texts from the file are cut and without control characters.

    Args:
        file, bytes: Name and size of the file.
        format: Its format by its content, such as ``"safetensors"``.
        tensors, tensor_bytes: Number of tensors, as far as known, and bytes of all of them.
        numbers: Number of numbers in all tensors; safetensors only.
        types: Number of tensors of each type, the most frequent first; safetensors only.
        largest: The three tensors with the most numbers; safetensors only.
        fits: Architecture whose weights these are, such as ``"torchvision:resnet18"``; None if it is not known.
        classes: Number of classes that the file has for that architecture.
        imports: Names that a pickle imports, the first eight.
        metadata: Texts in a safetensors header, the first eight.
        findings: What is wrong; empty for a sound safetensors file.
        numbers_read: Whether the numbers were read, to find NaN and Inf.
        exit_code: What ``agnosco inspect`` exits with; 0 if there are no findings.
    """

    file: str
    bytes: int
    format: str
    tensors: int
    tensor_bytes: int
    numbers: int
    types: dict[str, int]
    largest: list[TensorSummary]
    fits: str | None
    classes: int | None
    imports: list[str]
    metadata: dict[str, str]
    findings: list[Finding]
    numbers_read: bool
    exit_code: int


def inspect(path: Path | str, *, finite: bool = False) -> Inspection:
    """What a weights file, from anywhere, contains, found out without running anything in it.

    With ``finite``, the numbers of a safetensors file are read, too, to find NaN and Inf.

    Raises:
        AgnoscoError: There is no such file, or it cannot be read.

    Example:
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> from agnosco import inspect
        >>> save_file({"weight": torch.zeros(5, 3), "bias": torch.zeros(5)}, "theirs.safetensors")
        >>> inspection = inspect("theirs.safetensors")
        >>> inspection.format, inspection.numbers, inspection.findings
        ('safetensors', 20, [])
    """
    contents = read_contents(path, values=finite)
    fits = find_architecture(contents.entries)
    tensors = sorted(contents.entries.items(), key=lambda item: -item[1].numbers)
    return Inspection(
        file=Path(path).name,
        bytes=contents.size,
        format=contents.format,
        tensors=contents.tensors,
        tensor_bytes=contents.tensor_bytes,
        numbers=sum(entry.numbers for _, entry in tensors),
        types=dict(Counter(entry.dtype for entry in contents.entries.values()).most_common()),
        largest=[TensorSummary(one_line(name), entry.shape, entry.dtype) for name, entry in tensors[:LARGEST]],
        fits=fits and fits.name,
        classes=fits and fits.classes,
        imports=[one_line(name) for name in contents.imports[:SHOWN]],
        metadata={one_line(key): one_line(text) for key, text in list(contents.metadata.items())[:SHOWN]},
        findings=[Finding(each.kind, each.name, one_line(each.detail, limit=400)) for each in contents.findings],
        numbers_read=finite and bool(contents.entries),
        exit_code=CODES[worst(contents.findings).kind] if contents.findings else 0,
    )
