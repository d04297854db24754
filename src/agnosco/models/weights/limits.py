"""What a weights file may contain, and the exit code and hint for everything that can be wrong with one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import AgnoscoError
from ...io.safetensors_header import Finding, HeaderLimits, TensorEntry


@dataclass(frozen=True)
class Limits(HeaderLimits):
    """Limits that the weights of sound classifiers stay far below, checked before any memory is allocated.

    ``header`` also limits the directory of a zip and the program of a pickle.
    """

    classes: int = 100_000  # rows of the last layer, when a network is built to fit them
    labels: int = 16 << 20  # bytes of a file of class names
    seconds: int = 120  # time for opening a pickle


LIMITS = Limits()


@dataclass(frozen=True)
class Contents:
    """What a file contains, as far as can be told without reading the tensors.

    Only a sound safetensors file has no findings. ``entries``, ``metadata`` and ``data_start``, the bytes before the
    first tensor, are of safetensors; ``imports`` are of pickles. The number and bytes of all tensors may not be known.
    """

    format: str
    size: int
    findings: tuple[Finding, ...] = ()
    entries: dict[str, TensorEntry] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    tensors: int = 0
    tensor_bytes: int = 0
    data_start: int = 0


CODES = {"pickle": 10, "code": 11, "malformed": 12, "limit": 13, "not-finite": 14, "unknown": 15, "text": 16}
"""Exit code of a command, by the kind of a finding."""

SEVERITY = ("code", "limit", "malformed", "text", "not-finite", "unknown", "pickle")
"""Which of several findings decides the exit code, worst first."""

_SAVE = "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
HINTS = {
    "pickle": "ask for safetensors; or add --allow-pickle, which opens it in a restricted process (docs/security.md)",
    "code": f"ask for safetensors; if you trust it, load it elsewhere and write {_SAVE} (docs/security.md)",
    "malformed": "get the file again from whoever made it; agnosco inspect tells more",
    "limit": "no sound weights come near this limit; docs/security.md lists all limits",
    "not-finite": "get the weights again",
    "unknown": f"ask for safetensors; if the model loads elsewhere, write {_SAVE}",
    "text": "get the file from whoever made it; agnosco inspect tells more",
}


def worst(findings: Sequence[Finding]) -> Finding:
    """The finding that decides the exit code."""
    return min(findings, key=lambda finding: SEVERITY.index(finding.kind))


def refusal(file: str, finding: Finding) -> AgnoscoError:
    """The error of a command that refuses a file."""
    return AgnoscoError(f"{file}: {finding.detail}", HINTS[finding.kind], exit_code=CODES[finding.kind])
