"""What pickles and the zips around them contain, read as data: nothing is unpickled here.

A pickle is a program. ``pickletools`` disassembles it without running it, and the names that it would import show
whether it is a pickle of tensors. This only recognizes files; what protects from them is that most are not opened at
all, and others by ``torch.load(weights_only=True)`` in a restricted process (:mod:`.restricted`).
"""

import io
import pickletools
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from ...io.safetensors_header import Finding, Suspicious
from .limits import Contents, Limits

MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of a file of ``torch.save`` from before 1.6, after the protocol."""

_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "Untyped")
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
PLAIN = {
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.Size",
    "torch.storage.UntypedStorage",
    *(f"torch.{name}Storage" for name in _STORAGES), *(f"torch.{name}" for name in _DTYPES),
}  # fmt: skip
"""Names that a dictionary of tensors imports."""

_MEMO = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_RECALL = {"GET", "BINGET", "LONG_BINGET"}
_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_OPERATIONS = 1_000_000
_IMPORTS = 1_000
_TEXT = 200
"""Characters that are kept of a text; every name in :data:`PLAIN` is shorter, and a cut text ends in an ellipsis."""

_QUIET = threading.Lock()
"""Of the filters of warnings, which are those of the whole process."""

_UNREADABLE = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError,
    ValueError, OverflowError, IndexError, EOFError, OSError,
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """One pickle: the names that it imports, the number of storages that it loads, and its length in bytes."""

    imports: frozenset[str]
    storages: int
    length: int


def program_of(data: bytes) -> Program:
    """Disassembles a pickle; ValueError if it is none, does not end, or has more than a million operations.

    Suspicious if it imports more than a thousand names.
    """
    stream = io.BytesIO(data)
    imports: set[str] = set()
    memo: dict[Any, str | None] = {}
    last: list[str | None] = [None, None]  # top of the stack, where it is certainly a text
    storages = 0
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Python, about odd escapes in a text
        for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
            name = operation.name
            if count > _OPERATIONS:
                raise ValueError("too many operations")
            if name in _MEMO:
                memo[len(memo) if name == "MEMOIZE" else argument] = last[1]
                continue
            imports |= _imported(name, argument, last)
            if len(imports) > _IMPORTS:
                raise Suspicious("limit", "imports", f"it is a pickle that imports more than {_IMPORTS:,} names")
            storages += name in ("PERSID", "BINPERSID")
            text = memo.get(argument) if name in _RECALL else _cut(str(argument)) if name in _STRINGS else None
            last = [last[1] if text is not None else None, text]
    return Program(frozenset(imports), storages, stream.tell())


def _imported(name: str, argument: Any, last: list[str | None]) -> set[str]:
    """Names that an operation imports, given the two texts before it."""
    if name in ("GLOBAL", "INST"):
        return {_cut(str(argument)).replace(" ", ".", 1)}
    if name == "STACK_GLOBAL":
        return {".".join("?" if text is None else text for text in last)}
    return {f"extension {argument}"} if name.startswith("EXT") else set()


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}…"


def _by_imports(imports: frozenset[str] | set[str]) -> Finding:
    """The finding for the names that a pickle imports."""
    others = sorted(imports - PLAIN)
    if not others:
        return Finding("pickle", "pickle", "it is a pickle of tensors (torch.save), not safetensors")
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    detail = f"it is a pickle that runs {', '.join(name[:60] for name in others[:3])}{more} when it is opened"
    return Finding("code", "imports", detail)


def examine_pickle(file: IO[bytes], size: int, limits: Limits) -> Contents | None:
    """A pickle without a zip around it, as ``torch.save`` wrote until 1.6; None if the file is not one."""
    file.seek(0)
    data = file.read(min(size, limits.header))
    tagged = data[:1] == b"\x80" and data[1:2] in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05")
    legacy = tagged and MAGIC in data[:40]  # some protocols put the length of a frame before it
    imports: set[str] = set()
    findings: list[Finding] = []
    storages = reached = 0
    try:
        for _ in range(5 if legacy else 1):  # magic, version, machine, saved object, names of storages
            program = program_of(data[reached:])
            imports |= program.imports
            storages += program.storages
            reached += program.length
    except _UNREADABLE:
        if not tagged:
            return None
        findings.append(Finding("malformed", "bad-pickle", "it begins like a pickle, but is not one"))
    except Suspicious as error:
        findings.append(error.finding)
    findings += _too_large(size, limits)
    file.seek(max(size - 22, 0))
    if file.read(4) == b"PK\5\6":
        findings.append(Finding("malformed", "polyglot", "it is a pickle and a zip at once"))
    if legacy or imports - PLAIN:
        findings.append(_by_imports(imports))
    elif not findings:
        findings.append(Finding("unknown", "plain-pickle", "it is a pickle, but not one that torch.save wrote"))
    kind = "torch.save (legacy)" if legacy else "pickle"
    return Contents(
        kind, size, tuple(findings), imports=tuple(sorted(imports)), tensors=storages,
        tensor_bytes=max(size - reached, 0),
    )  # fmt: skip


def _too_large(size: int, limits: Limits) -> Iterator[Finding]:
    """A finding if the file is larger than its tensors may be: checksums would read all of it."""
    if size > limits.total + limits.header:
        yield Finding("limit", "total-size", f"it is {size:,} bytes long (its tensors may have {limits.total:,})")


def examine_zip(file: IO[bytes], size: int, limits: Limits) -> Contents:
    """A zip: from ``torch.save``, TorchScript, ``torch.export``, or something else."""
    try:
        _check_directory(file, size, limits)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            kind = _kind(members)
            if kind != "torch.save":
                return Contents(kind, size, (_by_kind(kind),))
            findings = [*_too_large(size, limits)] or _unique(_members(members, limits))
            findings = findings or _unique(_layout(file, archive))
            return _examine_members(archive, size, findings, limits)
    except Suspicious as error:
        return Contents("zip", size, (error.finding,))
    except _UNREADABLE:
        return Contents("zip", size, (Finding("malformed", "bad-zip", "it begins like a zip, but is not one"),))


def _examine_members(archive: zipfile.ZipFile, size: int, findings: list[Finding], limits: Limits) -> Contents:
    """The pickle inside a zip of ``torch.save``; not read if there already are findings, such as compression."""
    members = archive.infolist()
    (member,) = [member for member in members if _inner_name(member) == "data.pkl"]
    tensor_bytes = sum(member.file_size for member in members if _inner_name(member).startswith("data/"))
    if findings:
        return Contents("torch.save", size, tuple(findings), tensor_bytes=tensor_bytes)
    if member.file_size > limits.header:
        detail = f"its pickle is {member.file_size:,} bytes long (at most {limits.header:,})"
        raise Suspicious("limit", "pickle-length", detail)
    try:
        program = program_of(archive.read(member))
    except zipfile.BadZipFile as error:
        raise Suspicious("malformed", "bad-crc", "a checksum of the zip is wrong") from error
    except _UNREADABLE as error:
        raise Suspicious("malformed", "bad-pickle", "its data.pkl is not a pickle") from error
    if program.storages > limits.tensors:
        raise Suspicious("limit", "tensor-count", f"it holds {program.storages:,} tensors (at most {limits.tensors:,})")
    all_findings = (_by_imports(program.imports), *_checksums(archive))
    return Contents(
        "torch.save", size, all_findings, imports=tuple(sorted(program.imports)), tensors=program.storages,
        tensor_bytes=tensor_bytes,
    )  # fmt: skip


def _unique(findings: Iterator[Finding]) -> list[Finding]:
    """One finding of each name: a hostile file has thousands."""
    return list({finding.name: finding for finding in findings}.values())


def _inner_name(member: zipfile.ZipInfo) -> str:
    """A member's name inside the one folder that torch puts all members into."""
    return member.filename.partition("/")[2]


def _kind(members: list[zipfile.ZipInfo]) -> str:
    names = [_inner_name(member) for member in members]
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
    return Finding("unknown", "zip", "it is a zip, but not one that torch.save wrote")


def _check_directory(file: IO[bytes], size: int, limits: Limits) -> None:
    """The directory must lie at the very end and be of a sensible size: ``zipfile`` would read all of it."""
    file.seek(max(size - 22, 0))
    end = file.read(22)
    if end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        raise Suspicious("malformed", "stray-bytes", "it begins as a zip, but does not end as one")
    length, begin = struct.unpack("<LL", end[12:20])
    directory_end = size - 22
    file.seek(max(size - 42, 0))
    locator = file.read(20)
    if locator[:4] == b"PK\6\7":
        directory_end = struct.unpack("<Q", locator[8:16])[0]
        file.seek(min(directory_end, size))
        record = file.read(56)
        if record[:4] != b"PK\6\6" or directory_end != size - 42 - len(record):
            raise Suspicious("malformed", "stray-bytes", "the directory of the zip is not where the zip says")
        length, begin = struct.unpack("<QQ", record[40:56])
    if length > limits.header:
        detail = f"its directory is {length:,} bytes long (at most {limits.header:,})"
        raise Suspicious("limit", "directory-length", detail)
    if begin + length != directory_end:
        raise Suspicious("malformed", "stray-bytes", "there are bytes before the zip or after its directory")


def _members(members: list[zipfile.ZipInfo], limits: Limits) -> Iterator[Finding]:
    """What is wrong with the members of a zip, by its directory."""
    if len(members) > limits.tensors + 100:
        yield Finding("limit", "member-count", f"it has {len(members):,} members (at most {limits.tensors + 100:,})")
    names = [member.filename for member in members]
    if len({name.casefold() for name in names}) < len(names):
        yield Finding("malformed", "duplicate-names", "two of its members have the same name")
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
            detail = f"it is compressed, and would grow from {member.compress_size:,} to {member.file_size:,} bytes"
            yield Finding("limit", "compressed", detail)
        elif member.compress_size != member.file_size:
            yield Finding("malformed", "size-mismatch", "one of its members has two sizes")


_SHARED = Finding("malformed", "overlap", "some of its members share bytes")
_STRAY = Finding("malformed", "stray-bytes", "it holds bytes that belong to no member")


def _layout(file: IO[bytes], archive: zipfile.ZipFile) -> Iterator[Finding]:
    """Members must lie end to end, from the first byte to the directory."""
    reached, allowed = 0, {0}
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        gap = member.header_offset - reached
        if gap not in allowed:
            yield _SHARED if gap < min(allowed) else _STRAY
            return
        file.seek(member.header_offset)
        local = file.read(30)
        if local[:4] != b"PK\3\4" or local[6:10] != struct.pack("<HH", member.flag_bits, member.compress_type):
            yield Finding("malformed", "local-header", "a member's own header contradicts the directory")
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
