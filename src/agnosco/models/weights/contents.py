"""What a weights file contains, found out without loading it and without torch.

A file may have been made to do harm. So its format is recognized by its content, never by its name; every number in it
is checked against the file's size and :class:`.limits.Limits` before memory is allocated; and nothing in it is run
(``docs/security.md``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ...errors import AgnoscoError
from ...io.regular import open_regular
from ...io.safetensors_header import DTYPES, Finding, Suspicious, read_header
from ...io.storage import reason_of
from .limits import LIMITS, Contents, Limits
from .pickle_scan import examine_pickle, examine_zip

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = {
    b"GGUF": "GGUF", b"\x89HDF\r\n\x1a\n": "HDF5", b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7z", b"\x93NUMPY": "NumPy",
    b"\x7fELF": "a program (ELF)", b"\xff\xd8\xff": "a JPEG image", b"\x89PNG": "a PNG image",
}  # fmt: skip
"""Other formats by their first bytes, for messages; protobuf files, such as ONNX, have no such mark."""


def read_contents(path: Path | str, *, values: bool = False, limits: Limits = LIMITS) -> Contents:
    """What any file contains; with ``values``, tensors of safetensors are read too, one at a time, to find NaN and Inf.

    AgnoscoError if there is no such file, or it cannot be read.
    """
    with open_file(Path(path)) as file:
        contents = contents_of(file, limits)
        try:
            for name in contents.entries if values else ():
                read_tensor(file, contents, name)
        except Suspicious as error:
            return replace(contents, findings=(*contents.findings, error.finding))
        return contents


def open_file(path: Path) -> IO[bytes]:
    """A regular file, open for reading; AgnoscoError if there is no such file, or it cannot be read."""
    try:
        return open_regular(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise AgnoscoError(f"there is no weights file {str(path)!r}", "check the path") from error
    except (OSError, ValueError) as error:  # a ValueError is a path with a null byte
        hint = "give a regular file that you may read"
        raise AgnoscoError(f"cannot read {path.name}: {reason_of(error)}", hint) from error


def contents_of(file: IO[bytes], limits: Limits) -> Contents:
    """What an open file contains; AgnoscoError if the disk cannot be read."""
    try:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(512)
        if head[:4] in (b"PK\3\4", b"PK\5\6"):
            return examine_zip(file, size, limits)
        if head[8:9] == b"{":  # no pickle has a zero after its protocol
            return _safetensors(file, size, limits)
        if head[257:262] == b"ustar":
            detail = "it is a tar, as torch.save wrote before 0.1.10, with pickles that run when it is opened"
            return Contents("tar", size, (Finding("code", "tar", detail),))
        if len(head) < 9:
            return Contents("unknown", size, (Finding("malformed", "too-short", f"it is {size} bytes long"),))
        pickled = examine_pickle(file, size, limits)
    except OSError as error:
        raise AgnoscoError(f"cannot read the file: {error.strerror or error}", "check the disk") from error
    if pickled is not None:
        return pickled
    kind = next((name for mark, name in FORMATS.items() if head.startswith(mark)), "unknown")
    known = "" if kind == "unknown" else f": it is {kind}"
    detail = f"it is not a safetensors file, the only kind that is opened{known}"
    return Contents(kind, size, (Finding("unknown", "format", detail),))


def _safetensors(file: IO[bytes], size: int, limits: Limits) -> Contents:
    try:
        header = read_header(file, limits)
    except Suspicious as error:
        return Contents("safetensors", size, (error.finding,))
    return Contents(
        "safetensors", size, header.findings, header.entries, header.metadata, tensors=len(header.entries),
        tensor_bytes=size - header.data_start, data_start=header.data_start,
    )  # fmt: skip


def read_tensor(file: IO[bytes], contents: Contents, name: str) -> Tensor:
    """One tensor of a safetensors file; floating-point numbers become float32.

    Suspicious if it holds NaN or Inf, the file ends before it does, or it does not fit into memory.
    """
    import torch

    entry = contents.entries[name]
    try:
        tensor = torch.empty(entry.shape, dtype=getattr(torch, DTYPES[entry.dtype][0]))
    except RuntimeError as error:  # what torch raises instead of a MemoryError
        raise Suspicious("limit", "memory", "it needs more memory than there is") from error
    if tensor.numel():
        raw = tensor.reshape(-1).view(torch.uint8)
        file.seek(contents.data_start + entry.begin)
        if file.readinto(raw.numpy()) != len(raw):  # type: ignore[attr-defined]  # every binary file has it
            raise Suspicious("malformed", "truncated", "it was cut off while it was read")
        if tensor.dtype == torch.bool:
            tensor = raw.view(entry.shape) != 0  # any byte but 0 and 1 would be no truth value
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(torch.float32)
    if not tensor.isfinite().all():
        raise Suspicious("not-finite", "not-finite", f"{name[:80]!r} is not finite (NaN or Inf)")
    return tensor
