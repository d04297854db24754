"""What pickles and the zips around them hold, read as data: nothing here is ever unpickled.

A pickle is a program. ``pickletools`` takes it apart without running it, and the names that it would import say what
it is: those that rebuild tensors, or others. That is how files are told apart; it is not what keeps them from running.
That is ``torch.load(weights_only=True)`` in a limited process (:mod:`.limited`), and that most are not opened at all.
"""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from .limits import Finding, Limits, Suspicious

MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What a file of ``torch.save`` from before 1.6 begins with, after the protocol."""

_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "Untyped")
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
PLAIN = {
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.Size",
    "torch.storage.UntypedStorage",
    *(f"torch.{name}Storage" for name in _STORAGES), *(f"torch.{name}" for name in _DTYPES),
}  # fmt: skip
"""What a dictionary of tensors imports."""

_MEMO = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_RECALL = {"GET", "BINGET", "LONG_BINGET"}
_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_OPERATIONS = 1_000_000
_IMPORTS = 1_000
_TEXT = 200
"""Characters of a text that are kept: a name of :data:`PLAIN` is shorter, and what is cut ends in a mark."""

_UNREADABLE = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError,
    ValueError, OverflowError, IndexError, EOFError, OSError,
)  # fmt: skip


@dataclass(frozen=True)
class Pickled:
    """What a file of pickles is: its format, what it imports, how many tensors of how many bytes it has, findings."""

    format: str
    imports: tuple[str, ...] = ()
    tensors: int = 0
    held: int = 0
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Program:
    """One pickle: the names that it imports, how many storages it asks for, and where it ends."""

    imports: frozenset[str]
    storages: int
    length: int


def program_of(data: bytes) -> Program:
    """Takes a pickle apart.

    Raises:
        ValueError: It is none, or does not end, or not within a million operations.
        Suspicious: It imports a thousand things.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's, of odd escapes in a text
        return _program(io.BytesIO(data))


def _program(stream: io.BytesIO) -> Program:
    imports: set[str] = set()
    memo: dict[Any, str | None] = {}
    last: list[str | None] = [None, None]  # what lies on top of the stack, where that is a text for certain
    storages = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        name = operation.name
        if count > _OPERATIONS:
            raise ValueError("too many operations")
        if name in _MEMO:
            memo[len(memo) if name == "MEMOIZE" else argument] = last[1]
            continue
        imports |= _imported(name, argument, last)
        if len(imports) > _IMPORTS:
            raise Suspicious("limit", "imports", f"it is a pickle that names more than {_IMPORTS:,} things to import")
        storages += name in ("PERSID", "BINPERSID")
        text = memo.get(argument) if name in _RECALL else _cut(str(argument)) if name in _STRINGS else None
        last = [last[1] if text is not None else None, text]
    return Program(frozenset(imports), storages, stream.tell())


def _imported(name: str, argument: Any, last: list[str | None]) -> set[str]:
    """What an operation imports, by the two texts before it."""
    if name in ("GLOBAL", "INST"):
        return {_cut(str(argument)).replace(" ", ".", 1)}
    if name == "STACK_GLOBAL":
        return {".".join(one if one is not None else "?" for one in last)}
    return {f"extension {argument}"} if name.startswith("EXT") else set()


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}…"


def _told(imports: frozenset[str] | set[str]) -> Iterator[Finding]:
    """What the names say that a pickle imports."""
    others = sorted(imports - PLAIN)
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        detail = f"it is a pickle that runs {', '.join(one[:60] for one in others[:3])}{more} when it is opened"
        yield Finding("code", "imports", detail)
    else:
        yield Finding("pickle", "pickle", "it is a pickle of tensors (torch.save), not safetensors")


# -- pickles alone -----------------------------------------------------------------------------------


def look_at_pickle(file: IO[bytes], size: int, limits: Limits) -> Pickled | None:
    """A pickle without a zip around it, such as ``torch.save`` wrote until 1.6; None if the file is none."""
    file.seek(0)
    data = file.read(min(size, limits.header))
    tagged = data[:1] == b"\x80" and data[1:2] in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05")
    legacy = tagged and MAGIC in data[:40]  # some protocols have the length of a frame before it
    imports: set[str] = set()
    findings: list[Finding] = []
    storages = reached = 0
    try:
        for _ in range(5 if legacy else 1):  # magic, version, machine, what was saved, names of storages
            program = program_of(data[reached:])
            imports |= program.imports
            storages += program.storages
            reached += program.length
    except _UNREADABLE:
        if not tagged:
            return None
        findings.append(Finding("malformed", "bad-pickle", "it begins as a pickle, and is none"))
    except Suspicious as error:
        findings.append(error.finding)
    findings += _size(size, limits)
    if _is_zip_at_the_end(file, size):
        findings.append(Finding("malformed", "polyglot", "it is a pickle and a zip at once"))
    if legacy or imports - PLAIN:
        findings += _told(imports)
    elif not findings:
        findings.append(Finding("unknown", "plain-pickle", "it is a pickle, but none that torch.save wrote"))
    kind = "torch.save (legacy)" if legacy else "pickle"
    return Pickled(kind, tuple(sorted(imports)), storages, max(size - reached, 0), tuple(findings))


def _size(size: int, limits: Limits) -> Iterator[Finding]:
    """Whether a file is larger than its tensors may be: a checksum reads all of it, even where it is holes."""
    if size > limits.total + limits.header:
        detail = f"it is {size:,} bytes long (its tensors may have {limits.total:,})"
        yield Finding("limit", "total-size", detail)


def _is_zip_at_the_end(file: IO[bytes], size: int) -> bool:
    file.seek(max(size - 22, 0))
    return file.read(4) == b"PK\5\6"


# -- pickles in a zip --------------------------------------------------------------------------------


def look_at_zip(file: IO[bytes], size: int, limits: Limits) -> Pickled:
    """A zip: one of ``torch.save``, TorchScript, ``torch.export``, or another."""
    try:
        _check_directory(file, size, limits)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            kind = _kind(members)
            if kind != "torch.save":
                return Pickled(kind, findings=(_by_kind(kind),))
            findings = [*_size(size, limits)] or _first(_members(members, limits)) or _first(_layout(file, archive))
            return _look_inside(archive, members, findings, limits)
    except Suspicious as error:
        return Pickled("zip", findings=(error.finding,))
    except _UNREADABLE:
        return Pickled("zip", findings=(Finding("malformed", "bad-zip", "it begins as a zip, and is none"),))


def _look_inside(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], findings: list[Finding], limits: Limits
) -> Pickled:
    """The pickle of a ``torch.save``."""
    (member,) = [one for one in members if _below(one) == "data.pkl"]
    held = sum(one.file_size for one in members if _below(one).startswith("data/"))
    if findings:  # such as that it is packed, and then it is not unpacked
        return Pickled("torch.save", held=held, findings=tuple(findings))
    if member.file_size > limits.header:
        detail = f"its pickle is {member.file_size:,} bytes long (at most {limits.header:,})"
        raise Suspicious("limit", "pickle-length", detail)
    try:
        program = program_of(archive.read(member))
    except zipfile.BadZipFile as error:
        raise Suspicious("malformed", "bad-crc", "a checksum of the zip is wrong") from error
    except _UNREADABLE as error:
        raise Suspicious("malformed", "bad-pickle", "the pickle in the zip is none") from error
    if program.storages > limits.tensors:
        raise Suspicious("limit", "tensor-count", f"it holds {program.storages:,} tensors (at most {limits.tensors:,})")
    found = (*_told(program.imports), *_first(_checksums(archive)))
    return Pickled("torch.save", tuple(sorted(program.imports)), program.storages, held, found)


def _first(findings: Iterator[Finding]) -> list[Finding]:
    """The first of each name: a hostile file has thousands."""
    return list({finding.name: finding for finding in findings}.values())


def _below(member: zipfile.ZipInfo) -> str:
    """The name within the one folder that torch puts all members into."""
    return member.filename.partition("/")[2]


def _kind(members: list[zipfile.ZipInfo]) -> str:
    names = [_below(member) for member in members]
    if any(name == "constants.pkl" or name.startswith("code/") for name in names):
        return "TorchScript"
    exported = ("archive_format", "serialized_exported_program.json", "serialized_state_dict.pt")
    if any(name in exported or name.startswith(("models/", "data/sample_inputs/")) for name in names) or any(
        member.filename in exported for member in members
    ):
        return "torch.export (.pt2)"
    return "torch.save" if names.count("data.pkl") == 1 else "zip"


def _by_kind(kind: str) -> Finding:
    if kind == "TorchScript":
        return Finding("code", "torchscript", "it is TorchScript, a program that may read and write files")
    if kind.startswith("torch.export"):
        return Finding("code", "torch-export", "it is a .pt2 of torch.export, whose pickles run when it is opened")
    return Finding("unknown", "zip", "it is a zip, but none that torch.save wrote")


def _check_directory(file: IO[bytes], size: int, limits: Limits) -> None:
    """The directory lies at the very end, and is not larger than need be; ``zipfile`` would read all of it."""
    file.seek(max(size - 22, 0))
    end = file.read(22)
    if end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        raise Suspicious("malformed", "stray-bytes", "it begins as a zip, but does not end as one")
    length, begin = struct.unpack("<LL", end[12:20])
    behind = size - 22
    file.seek(max(size - 42, 0))
    locator = file.read(20)
    if locator[:4] == b"PK\6\7":
        behind = struct.unpack("<Q", locator[8:16])[0]
        file.seek(min(behind, size))
        record = file.read(56)
        if record[:4] != b"PK\6\6" or behind != size - 42 - len(record):
            raise Suspicious("malformed", "stray-bytes", "the directory of the zip is not where it says")
        length, begin = struct.unpack("<QQ", record[40:56])
    if length > limits.header:
        detail = f"its directory is {length:,} bytes long (at most {limits.header:,})"
        raise Suspicious("limit", "directory-length", detail)
    if begin + length != behind:
        raise Suspicious("malformed", "stray-bytes", "something lies before the zip or behind its directory")


def _members(members: list[zipfile.ZipInfo], limits: Limits) -> Iterator[Finding]:
    """What is wrong with the members of a zip, by its directory."""
    if len(members) > limits.tensors + 100:
        yield Finding("limit", "member-count", f"it has {len(members):,} members (at most {limits.tensors + 100:,})")
    names = [member.filename for member in members]
    if len({name.casefold() for name in names}) < len(names):
        yield Finding("malformed", "duplicate-names", "it has two members of one name")
    if len({name.partition("/")[0] for name in names}) > 1:
        yield Finding("malformed", "folders", "its members lie in several folders")
    for member in members:
        parts = member.orig_filename.replace("\\", "/").split("/")
        if ".." in parts or "" in parts or ":" in parts[0] or not member.orig_filename.isprintable():
            yield Finding("malformed", "member-path", f"it has a member {member.orig_filename[:80]!r}")
        if member.flag_bits & 1:
            yield Finding("malformed", "encrypted", "it is encrypted")
        elif member.flag_bits & ~0x808:  # what torch sets: sizes follow the data; names are UTF-8
            yield Finding("malformed", "flag-bits", f"its members carry the flags {member.flag_bits:#x}")
        if member.compress_type != zipfile.ZIP_STORED:
            detail = f"it is packed, and would swell from {member.compress_size:,} to {member.file_size:,} bytes"
            yield Finding("limit", "compressed", detail)
        elif member.compress_size != member.file_size:
            yield Finding("malformed", "size-mismatch", "a member of it has two sizes")


_SHARED = Finding("malformed", "overlap", "members of it share bytes")
_STRAY = Finding("malformed", "stray-bytes", "it holds bytes that belong to no member")


def _layout(file: IO[bytes], archive: zipfile.ZipFile) -> Iterator[Finding]:
    """Members lie end to end, from the first byte to the directory."""
    reached, allowed = 0, {0}
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        gap = member.header_offset - reached
        if gap not in allowed:
            yield _SHARED if gap < min(allowed) else _STRAY
            return
        file.seek(member.header_offset)
        local = file.read(30)
        if local[:4] != b"PK\3\4" or local[6:10] != struct.pack("<HH", member.flag_bits, member.compress_type):
            yield Finding("malformed", "local-header", "a member's own header says other things than the directory")
            return
        reached = member.header_offset + 30 + sum(struct.unpack("<HH", local[26:30])) + member.compress_size
        allowed = {12, 16, 20, 24} if member.flag_bits & 8 else {0}  # the sizes that follow the data
    if archive.start_dir - reached not in allowed:
        yield _STRAY


def _checksums(archive: zipfile.ZipFile) -> Iterator[Finding]:
    try:
        wrong = archive.testzip()
    except _UNREADABLE:
        wrong = "a member"
    if wrong is not None:
        yield Finding("malformed", "bad-crc", "a checksum of the zip is wrong")
