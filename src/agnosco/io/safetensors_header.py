"""The header of a safetensors file. Nothing in it is trusted: every number is checked against the size of the file.

The safetensors library reads such files too, but it opens them by name a second time and maps them into memory, where a
file that is truncated or replaced meanwhile kills the process. Here the file that was checked is the file that is read.
``test_weights.py`` checks that both give the same tensors.

Format: https://github.com/huggingface/safetensors#format
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import IO, Any

DTYPES = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
    "I16": ("int16", 2), "U16": ("uint16", 2), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I32": ("int32", 4), "U32": ("uint32", 4), "F32": ("float32", 4),
    "I64": ("int64", 8), "U64": ("uint64", 8), "F64": ("float64", 8),
}  # fmt: skip
"""Types of numbers: their names in torch, and bytes per number."""

_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.S)  # a string is one token
_MARKUP = re.compile(r"<[A-Za-z/!?]")


@dataclass(frozen=True)
class HeaderLimits:
    """Limits that sound files stay far below; all are checked before any memory is allocated."""

    header: int = 4 << 20  # bytes of the header
    depth: int = 4  # levels of nesting in the header's JSON; the format needs three
    tensors: int = 20_000
    rank: int = 8  # axes of one tensor
    name: int = 500  # characters of a tensor's name
    total: int = 16 << 30  # bytes of all tensors once loaded, as float32


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a file.

    Args:
        kind: One of :data:`agnosco.models.weights.limits.CODES`.
        name: A short, stable name, such as ``"overlap"``.
        detail: What is wrong, in a few words; may contain uncleaned text from the file.
    """

    kind: str
    name: str
    detail: str


class Suspicious(Exception):
    """A finding that ends the examination of a file."""

    def __init__(self, kind: str, name: str, detail: str) -> None:
        super().__init__(detail)
        self.finding = Finding(kind, name, detail)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header describes it; ``begin`` and ``end`` count bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numbers(self) -> int:
        """How many numbers the tensor has."""
        return prod(self.shape)

    @property
    def is_floating_point(self) -> bool:
        """Whether they are floating-point numbers, which are loaded as float32."""
        return "float" in DTYPES[self.dtype][0]

    @property
    def loaded_bytes(self) -> int:
        """Bytes that the tensor takes once it is loaded."""
        return self.numbers * (4 if self.is_floating_point else DTYPES[self.dtype][1])


@dataclass(frozen=True)
class Header:
    """Everything before the tensors."""

    entries: dict[str, TensorEntry]  # the tensors by name
    metadata: dict[str, str]  # texts by name
    data_start: int  # bytes of the file before the first tensor
    findings: tuple[Finding, ...]  # what is wrong with names and metadata; the tensors can be read all the same


def read_header(file: IO[bytes], limits: HeaderLimits = HeaderLimits()) -> Header:
    """The header of a safetensors file; for bytes, pass ``io.BytesIO(content)``.

    Suspicious if it is no such header, contradicts itself or the file's size, or exceeds a limit.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > limits.header:
        detail = f"its header would be {length:,} bytes long (at most {limits.header:,})"
        raise Suspicious("limit", "header-length", detail)
    if 8 + length > size:
        raise Suspicious("malformed", "truncated", f"its header of {length:,} bytes is cut off")
    fields = _parsed(file.read(length), limits)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad_header("its metadata are not texts")
    if len(fields) > limits.tensors:
        raise Suspicious("limit", "tensor-count", f"it holds {len(fields):,} tensors (at most {limits.tensors:,})")
    entries = {name: _entry(name, value, limits) for name, value in fields.items()}
    _check_layout(entries, size - 8 - length)
    loaded = sum(entry.loaded_bytes for entry in entries.values())
    if loaded > limits.total:
        raise Suspicious("limit", "total-size", f"its tensors would fill {loaded:,} bytes (at most {limits.total:,})")
    return Header(entries, metadata, 8 + length, tuple(_odd_text(entries, metadata, limits)))


def _parsed(text: bytes, limits: HeaderLimits) -> dict[str, Any]:
    depth = 0
    for token in _TOKENS.finditer(text):  # before json, which recurses at every level
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(token[0], 0)
        if depth > limits.depth:
            raise Suspicious("limit", "json-depth", f"its header is nested more than {limits.depth} deep")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise _bad_header("its header is not JSON") from error
    if not isinstance(header, dict):
        raise _bad_header("its header is not a JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Suspicious("malformed", "duplicate-names", "its header holds a name twice")
    return fields


def _bad_header(detail: str) -> Suspicious:
    return Suspicious("malformed", "bad-header", detail)


def _entry(name: str, value: Any, limits: HeaderLimits) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _bad_header("its header describes a tensor by something other than dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _bad_header("its header gives a tensor an invalid dtype, shape or offset")
    if dtype not in DTYPES:
        raise Suspicious("unknown", "dtype", f"it holds numbers of an unsupported type {dtype[:20]!r}")
    if len(shape) > limits.rank:
        raise Suspicious("limit", "rank", f"one of its tensors has {len(shape)} axes (at most {limits.rank})")
    if prod(max(axis, 1) for axis in shape) > limits.total:  # also where the tensor is empty: strides would overflow
        raise Suspicious("limit", "shape", f"one of its tensors has the shape {str(shape)[:100]}")
    entry = TensorEntry(dtype, tuple(shape), *offsets)
    if entry.end - entry.begin != entry.numbers * DTYPES[dtype][1]:
        detail = f"{name[:80]!r}, {dtype} {str(shape)[:100]}, is given {entry.end - entry.begin:,} bytes"
        raise Suspicious("malformed", "size-mismatch", detail)
    return entry


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_layout(entries: dict[str, TensorEntry], data_bytes: int) -> None:
    """Tensors must lie end to end, from the end of the header to the end of the file."""
    reached = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin < reached:
            raise Suspicious("malformed", "overlap", f"two of its tensors share bytes (at {entry.begin:,})")
        if entry.begin > reached:
            raise Suspicious("malformed", "holes", f"{entry.begin - reached:,} bytes between its tensors are unused")
        reached = entry.end
    if reached > data_bytes:
        detail = f"it is cut off: its header asks for {reached:,} bytes, not {data_bytes:,}"
        raise Suspicious("malformed", "truncated", detail)
    if reached < data_bytes:
        raise Suspicious("malformed", "trailing-bytes", f"{data_bytes - reached:,} bytes follow its last tensor")


def _odd_text(entries: dict[str, TensorEntry], metadata: dict[str, str], limits: HeaderLimits) -> Iterator[Finding]:
    for name in entries:
        if not name.isprintable() or _MARKUP.search(name):
            yield Finding("text", "odd-name", f"a tensor's name holds control characters or markup: {name[:80]!r}")
            break
    if any(len(name) > limits.name for name in entries):
        yield Finding("limit", "name-length", f"a tensor's name is longer than {limits.name} characters")
    texts = [text for pair in metadata.items() for text in pair]
    if not all(" ".join(text.split()).isprintable() for text in texts):
        yield Finding("text", "odd-metadata", "its metadata hold control characters")
