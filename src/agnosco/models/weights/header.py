"""The header of a safetensors file, believed in nothing: every number is checked against the file's own size.

The safetensors library reads such files as well; but it opens them by name a second time and maps them into memory,
where a file that is cut off or exchanged meanwhile ends the process. Here the file that was looked at is the one that
is read. ``test_weights.py`` holds both to the same tensors.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import torch
from torch import Tensor

from .limits import Finding, Limits, Suspicious

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "I64": torch.int64, "U64": torch.uint64, "F64": torch.float64,
}  # fmt: skip

_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.S)  # strings are passed over as wholes
_MARKUP = re.compile(r"<[A-Za-z/!?]")


@dataclass(frozen=True)
class Entry:
    """One tensor as the header has it; ``begin`` and ``end`` are bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return prod(self.shape)

    @property
    def loaded(self) -> torch.dtype:
        """What it becomes: float32, if it is of floating-point numbers."""
        own = DTYPES[self.dtype]
        return torch.float32 if own.is_floating_point else own

    def read(self, file: IO[bytes], start: int) -> Tensor:
        """The tensor itself, with ``start`` bytes of file before the data.

        Raises:
            Suspicious: The file ends before it, or memory does.
        """
        try:
            own = torch.empty(self.shape, dtype=DTYPES[self.dtype])
        except RuntimeError as error:  # what torch raises where others raise a MemoryError
            raise Suspicious("limit", "memory", "it takes more memory than there is") from error
        if own.numel():
            raw = own.reshape(-1).view(torch.uint8)
            file.seek(start + self.begin)
            if file.readinto(raw.numpy()) != len(raw):  # type: ignore[attr-defined]  # of every binary file
                raise Suspicious("malformed", "truncated", "it was cut off while it was read")
            if own.dtype == torch.bool:
                own = raw.view(self.shape) != 0  # any other byte would be no truth value
        return own.to(self.loaded)


@dataclass(frozen=True)
class Header:
    """All that stands before the tensors; ``findings`` are what does not keep one from reading on."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    start: int
    findings: tuple[Finding, ...]


def read_header(file: IO[bytes], size: int, limits: Limits) -> Header:
    """The header of a file of a size.

    Raises:
        Suspicious: It is no header, contradicts itself or the file, or is over a limit.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > limits.header:
        detail = f"its header would be {length:,} bytes long (at most {limits.header:,})"
        raise Suspicious("limit", "header-length", detail)
    if 8 + length > size:
        raise Suspicious("malformed", "truncated", f"its header of {length:,} bytes is cut off")
    raw = _parsed(file.read(length), limits)
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad("its metadata are no texts")
    if len(raw) > limits.tensors:
        raise Suspicious("limit", "tensor-count", f"it holds {len(raw):,} tensors (at most {limits.tensors:,})")
    entries = {name: _entry(name, value, limits) for name, value in raw.items()}
    _check_layout(entries, size - 8 - length)
    loaded = sum(entry.numbers * entry.loaded.itemsize for entry in entries.values())
    if loaded > limits.total:
        detail = f"its tensors would fill {loaded:,} bytes (at most {limits.total:,})"
        raise Suspicious("limit", "total-size", detail)
    return Header(entries, metadata, 8 + length, tuple(_odd_text(entries, metadata, limits)))


def _parsed(text: bytes, limits: Limits) -> dict[str, Any]:
    depth = 0
    for token in _TOKENS.finditer(text):  # before json, which calls itself for every level
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(token[0], 0)
        if depth > limits.depth:
            raise Suspicious("limit", "json-depth", f"its header is nested more than {limits.depth} deep")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # no UTF-8 and no JSON are ValueErrors
        raise _bad("its header is no JSON") from error
    if not isinstance(header, dict):
        raise _bad("its header is no JSON object")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Suspicious("malformed", "duplicate-names", "its header holds a name twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _bad(detail: str) -> Suspicious:
    return Suspicious("malformed", "bad-header", detail)


def _entry(name: str, value: Any, limits: Limits) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _bad("its header says of a tensor something else than dtype, shape and offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not _wholes(shape) or not _wholes(offsets) or len(offsets) != 2:
        raise _bad("its header gives a tensor no proper dtype, shape or offsets")
    if dtype not in DTYPES:
        raise Suspicious("unknown", "dtype", f"it holds numbers of a type {dtype[:20]!r} that is not read")
    if len(shape) > limits.rank:
        raise Suspicious("limit", "rank", f"a tensor of it has {len(shape)} axes (at most {limits.rank})")
    if prod(max(axis, 1) for axis in shape) > limits.total:  # of an empty one, too: its strides would overflow
        raise Suspicious("limit", "shape", f"a tensor of it has the shape {_shown(shape)}")
    entry = Entry(dtype, tuple(shape), *offsets)
    if entry.end - entry.begin != entry.numbers * DTYPES[dtype].itemsize:
        detail = f"{name[:80]!r}, {dtype} {_shown(shape)}, is given {entry.end - entry.begin:,} bytes"
        raise Suspicious("malformed", "size-mismatch", detail)
    return entry


def _wholes(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _shown(shape: list[int]) -> str:
    return str(shape)[:100]


def _check_layout(entries: dict[str, Entry], held: int) -> None:
    """Tensors lie end to end, from the header to the end of the file."""
    reached = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin < reached:
            raise Suspicious("malformed", "overlap", f"tensors of it share bytes (at {entry.begin:,})")
        if entry.begin > reached:
            raise Suspicious("malformed", "holes", f"between its tensors lie {entry.begin - reached:,} other bytes")
        reached = entry.end
    if reached > held:
        detail = f"it is cut off: its header asks for {reached:,} bytes, not {held:,}"
        raise Suspicious("malformed", "truncated", detail)
    if reached < held:
        raise Suspicious("malformed", "trailing-bytes", f"behind its tensors lie {held - reached:,} other bytes")


def _odd_text(entries: dict[str, Entry], metadata: dict[str, str], limits: Limits) -> Iterator[Finding]:
    for name in entries:
        if not name.isprintable() or _MARKUP.search(name):
            yield Finding("text", "odd-name", f"a tensor's name holds control characters or markup: {name[:80]!r}")
            break
    if any(len(name) > limits.name for name in entries):
        yield Finding("limit", "name-length", f"a tensor's name is longer than {limits.name} characters")
    texts = [text for pair in metadata.items() for text in pair]
    if not all(" ".join(text.split()).isprintable() for text in texts):
        yield Finding("text", "odd-metadata", "its metadata hold control characters")
