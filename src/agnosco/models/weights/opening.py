"""Opens weights files; all of them are opened here.

Safetensors are read directly. A pickle of nothing but tensors is opened if that is allowed, by another process with few
rights (:mod:`.restricted`). All else is refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ...errors import AgnoscoError, AgnoscoWarning
from ...io.safetensors_header import Finding, Suspicious
from . import restricted
from .contents import Contents, contents_of, open_file, read_tensor
from .limits import LIMITS, Limits, refusal, worst

if TYPE_CHECKING:
    from torch import Tensor


class Weights:
    """A sound safetensors file, or several, open; the tensors are not read yet. ``name`` is for messages."""

    def __init__(self, name: str, *files: tuple[IO[bytes], Contents]) -> None:
        self.name = name
        self.entries = {key: entry for _, contents in files for key, entry in contents.entries.items()}
        self._files = files

    @classmethod
    def together(cls, name: str, parts: Sequence[Weights]) -> Weights:
        """Several files as one; AgnoscoError if a tensor is in two, or they are too large together."""
        weights = cls(name, *(file for part in parts for file in part._files))
        if len(weights.entries) < sum(len(part.entries) for part in parts):
            raise refusal(name, Finding("malformed", "duplicate-names", "a tensor is in two of its files"))
        if sum(entry.loaded_bytes for entry in weights.entries.values()) > LIMITS.total:
            detail = f"its tensors would fill more than {LIMITS.total:,} bytes"
            raise refusal(name, Finding("limit", "total-size", detail))
        return weights

    def read(self) -> dict[str, Tensor]:
        """The tensors by name, floating-point ones as float32.

        AgnoscoError if one holds NaN or Inf, or a file has changed meanwhile.
        """
        try:
            return {
                name: read_tensor(file, contents, name) for file, contents in self._files for name in contents.entries
            }
        except Suspicious as error:
            raise refusal(self.name, error.finding) from error
        except OSError as error:
            raise AgnoscoError(f"cannot read {self.name}: {error.strerror or error}", "check the disk") from error


def read_weights(path: Path | str, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a file by name, floating-point ones as float32. See :func:`open_weights`."""
    with open_weights(path, allow_pickle=allow_pickle) as weights:
        return weights.read()


@contextmanager
def open_weights(path: Path | str, *, allow_pickle: bool = False, limits: Limits = LIMITS) -> Iterator[Weights]:
    """A weights file that was checked and is sound: safetensors, within the limits.

    With ``allow_pickle``, also what ``torch.save(model.state_dict())`` writes, if it holds only tensors; another
    process opens it. AgnoscoError if there is no such file, or it is something else, contradicts itself, exceeds a
    limit or holds unprintable text; each has its own exit code (:data:`.limits.CODES`).
    """
    path = Path(os.path.expanduser(path))
    with open_file(path) as file:
        contents = contents_of(file, limits)
        if not contents.findings:
            yield Weights(path.name, (file, contents))
            return
        finding = worst(contents.findings)
        if finding.kind != "pickle" or not allow_pickle:
            raise refusal(path.name, finding)
        try:
            with restricted.converted(file, limits) as (safe_path, remarks), open_file(safe_path) as safe:
                contents = contents_of(safe, limits)
                if contents.findings:
                    raise refusal(path.name, worst(contents.findings))
                caution = "it is a pickle, opened in a restricted process, which is no real barrier (docs/security.md)"
                warnings.warn(f"{path.name}: {'; '.join([caution, *remarks])}", AgnoscoWarning, stacklevel=4)
                yield Weights(path.name, (safe, contents))
        except Suspicious as error:
            raise refusal(path.name, error.finding) from error
