"""Files of weights: the one door through which they come in.

A file may have been made to harm whoever opens it. So it is told by its content, never by its name; it is looked at
before it is read, with every number in it held against the file's own size and against :class:`.limits.Limits`, before
memory is set aside; and nothing in it is run. Safetensors are read (:mod:`.header`). A pickle of nothing but tensors
is opened where that is asked for, by another process that has little to lose (:mod:`.limited`). Everything else is
refused. ``docs/security.md`` says the same to users.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from ...errors import AgnoscoError, AgnoscoWarning
from ...io.regular import open_regular, read_regular
from . import limited
from .header import Entry, read_header
from .limits import CODES, GRAVEST, LIMITS, Finding, Limits, Suspicious, gravest, refusal
from .pickles import look_at_pickle, look_at_zip

__all__ = [
    "CODES", "GRAVEST", "LIMITS", "Contents", "Finding", "Limits", "Weights", "examine", "gravest", "opened",
    "read_text", "read_weights", "refusal",
]  # fmt: skip

OTHERS = {
    b"GGUF": "GGUF", b"\x89HDF\r\n\x1a\n": "HDF5", b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7z", b"\x93NUMPY": "NumPy",
    b"\x7fELF": "a program (ELF)", b"\xff\xd8\xff": "a JPEG image", b"\x89PNG": "a PNG image",
}  # fmt: skip
"""What else a file begins with, to say what it is. ONNX and others of protobuf have no such mark."""


@dataclass(frozen=True)
class Contents:
    """What a file holds, as far as that is told without reading the tensors.

    Args:
        format: What it is.
        size: Bytes of the file.
        entries: Tensors by name; of safetensors alone.
        metadata: Of safetensors alone.
        imports: Names that a pickle imports.
        tensors: How many there are, as far as that is known.
        held: Bytes of them in the file.
        start: Bytes of the file before the tensors of safetensors.
        findings: What is wrong; empty for a sound safetensors file.
    """

    format: str
    size: int
    entries: dict[str, Entry]
    metadata: dict[str, str]
    imports: tuple[str, ...] = ()
    tensors: int = 0
    held: int = 0
    start: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def shapes(self) -> dict[str, Tensor]:
        """Tensors as they will be loaded, but without numbers: on the meta device."""
        return {
            name: torch.empty(entry.shape, dtype=entry.loaded, device="meta") for name, entry in self.entries.items()
        }


class Weights:
    """A sound safetensors file, open.

    Args:
        name: For messages: the last part of its path.
        shapes: Its tensors without numbers, on the meta device.
    """

    def __init__(self, name: str, file: IO[bytes], contents: Contents) -> None:
        self.name = name
        self.shapes = contents.shapes
        self._file, self._contents = file, contents

    def read(self) -> dict[str, Tensor]:
        """The tensors, floating-point ones as float32.

        Raises:
            AgnoscoError: One holds NaN or Inf, or the file has changed.
        """
        found: dict[str, Tensor] = {}
        try:
            for name, entry in self._contents.entries.items():
                found[name] = entry.read(self._file, self._contents.start)
                _check_finite(name, found[name])
        except Suspicious as error:
            raise refusal(self.name, error.finding) from error
        except OSError as error:
            raise AgnoscoError(f"cannot read {self.name}: {error.strerror or error}", "check the disk") from error
        return found


def read_weights(path: Path | str, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Tensors of a file by name, floating-point ones as float32. See :func:`opened`."""
    with opened(path, allow_pickle=allow_pickle) as weights:
        return weights.read()


@contextmanager
def opened(path: Path | str, *, allow_pickle: bool = False, limits: Limits = LIMITS) -> Iterator[Weights]:
    """A weights file, looked at and found sound; its tensors are not read yet.

    Args:
        path: Safetensors; or, where that is allowed, what ``torch.save(model.state_dict())`` writes.
        allow_pickle: Open a pickle of nothing but tensors, in another process.
        limits: What is refused for its size.

    Raises:
        AgnoscoError: There is no such file; or it is something else, contradicts itself, is over a limit or holds odd
            text, each with an exit code of its own (:data:`.limits.CODES`).
    """
    path = Path(path)
    with _file(path) as file:
        contents = _look(file, limits)
        if not contents.findings:
            yield Weights(path.name, file, contents)
            return
        worst = gravest(contents.findings)
        if worst.kind != "pickle" or not allow_pickle:
            raise refusal(path.name, worst)
        try:
            with limited.converted(file, limits) as made, _file(made.path) as safe:
                contents = _look(safe, limits)
                if contents.findings:
                    raise refusal(path.name, gravest(contents.findings))
                _say_how(path.name, made.told)
                yield Weights(path.name, safe, contents)
        except Suspicious as error:
            raise refusal(path.name, error.finding) from error


def examine(path: Path | str, *, values: bool = False, limits: Limits = LIMITS) -> Contents:
    """What a file holds, without loading it.

    Args:
        path: Any file.
        values: Read the tensors of safetensors, one at a time, for NaN and Inf.
        limits: What counts as too large.

    Raises:
        AgnoscoError: There is no such file, or it may not be read.
    """
    with _file(Path(path)) as file:
        contents = _look(file, limits)
        if not values or not contents.entries:
            return contents
        return replace(contents, findings=(*contents.findings, *_not_finite(file, contents)))


def read_text(path: Path, *, limits: Limits = LIMITS) -> str:
    """The text of a regular file that is no longer than class names should be; UTF-8.

    Raises:
        OSError: It cannot be read, or is no regular file.
        ValueError: It is too long, or no UTF-8.
    """
    return read_regular(path, most=limits.labels).decode("utf-8-sig")


# -- opening -----------------------------------------------------------------------------------------


def _file(path: Path) -> IO[bytes]:
    try:
        return open_regular(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise AgnoscoError(f"there is no weights file {str(path)!r}", "check the path") from error
    except (OSError, ValueError) as error:  # a ValueError is a path with a null byte
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise AgnoscoError(f"cannot read {path.name}: {why}", "give a regular file that may be read") from error


# -- looking -----------------------------------------------------------------------------------------


def _look(file: IO[bytes], limits: Limits) -> Contents:
    """What a file is, told by its content."""
    size = os.fstat(file.fileno()).st_size
    try:
        file.seek(0)
        head = file.read(512)
        if head[:4] in (b"PK\3\4", b"PK\5\6"):
            found = look_at_zip(file, size, limits)
            return _pickled(found.format, size, found.findings, found.imports, found.tensors, found.held)
        if head[8:9] == b"{":  # no pickle has a zero after its protocol
            return _safetensors(file, size, limits)
        if head[257:262] == b"ustar":
            detail = "it is a tar, as torch.save wrote before 0.1.10, with pickles that run when it is opened"
            return _pickled("tar", size, (Finding("code", "tar", detail),))
        if len(head) < 9:
            return _pickled("unknown", size, (Finding("malformed", "too-short", f"it is {size} bytes long"),))
        found = look_at_pickle(file, size, limits)
        if found is not None:
            return _pickled(found.format, size, found.findings, found.imports, found.tensors, found.held)
    except OSError as error:
        raise AgnoscoError(f"cannot read the file: {error.strerror or error}", "check the disk") from error
    kind = next((name for mark, name in OTHERS.items() if head.startswith(mark)), "unknown")
    known = "" if kind == "unknown" else f": it is {kind}"
    detail = f"it is no safetensors file, the only kind that is opened{known}"
    return _pickled(kind, size, (Finding("unknown", "format", detail),))


def _pickled(
    kind: str, size: int, findings: tuple[Finding, ...], imports: tuple[str, ...] = (), tensors: int = 0, held: int = 0
) -> Contents:
    return Contents(kind, size, {}, {}, imports, tensors, held, findings=findings)


def _safetensors(file: IO[bytes], size: int, limits: Limits) -> Contents:
    try:
        header = read_header(file, size, limits)
    except Suspicious as error:
        return _pickled("safetensors", size, (error.finding,))
    return Contents(
        "safetensors", size, header.entries, header.metadata, tensors=len(header.entries), held=size - header.start,
        start=header.start, findings=header.findings,
    )  # fmt: skip


def _not_finite(file: IO[bytes], contents: Contents) -> Iterator[Finding]:
    for name, entry in contents.entries.items():
        try:
            _check_finite(name, entry.read(file, contents.start))
        except Suspicious as error:
            yield error.finding
            return


def _check_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise Suspicious("not-finite", "not-finite", f"{name[:80]!r} is not finite (NaN or Inf)")


def _say_how(name: str, told: list[str]) -> None:
    how = "; ".join(["it is a pickle, opened in a limited process, which is no boundary (docs/security.md)", *told])
    warnings.warn(f"{name}: {how}", AgnoscoWarning, stacklevel=5)
