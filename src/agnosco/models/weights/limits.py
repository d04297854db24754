"""What a weights file may hold, what is found wrong with one, and what each finding makes a command exit with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import AgnoscoError


@dataclass(frozen=True)
class Limits:
    """What a sound file of a classifier is far below; all of it is checked before memory is set aside.

    Args:
        header: Bytes of a safetensors header, of a zip's directory, and of the program of a pickle.
        depth: How deep the JSON of a header is nested; three are what it takes.
        tensors: How many there are.
        rank: Axes of a tensor.
        name: Characters of a tensor's name.
        total: Bytes of all tensors as float32, which they are loaded as.
        classes: Rows of the last layer, where a network is built to fit them.
        labels: Bytes of a file of class names.
        seconds: How long a pickle may take to open.
    """

    header: int = 4 << 20
    depth: int = 4
    tensors: int = 20_000
    rank: int = 8
    name: int = 500
    total: int = 16 << 30
    classes: int = 100_000
    labels: int = 16 << 20
    seconds: int = 120


LIMITS = Limits()

CODES = {"pickle": 10, "code": 11, "malformed": 12, "limit": 13, "not-finite": 14, "unknown": 15, "text": 16}
"""What a command exits with, by the kind of a finding."""

GRAVEST = ("code", "limit", "malformed", "text", "not-finite", "unknown", "pickle")
"""Which of several findings decides the exit code."""

_SAVE = "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
HINTS = {
    "pickle": "ask for safetensors; or add --allow-pickle, which opens it in a limited process (docs/security.md)",
    "code": f"ask for safetensors; where it is trusted, load it elsewhere and write {_SAVE} (docs/security.md)",
    "malformed": "get the file again, from whoever made it; agnosco inspect tells more",
    "limit": "no sound weights come near it; docs/security.md has the limits",
    "not-finite": "get the weights again",
    "unknown": f"ask for safetensors; where the model loads elsewhere, write {_SAVE}",
    "text": "get the file from whoever made it; agnosco inspect tells more",
}


@dataclass(frozen=True)
class Finding:
    """Something about a file that keeps it from being opened.

    Args:
        kind: One of :data:`CODES`.
        name: A short stable name, such as ``"overlap"``.
        detail: What it is, in a few words; text of the file in it is not cleaned.
    """

    kind: str
    name: str
    detail: str


class Suspicious(Exception):
    """A finding after which there is nothing more to look at."""

    def __init__(self, kind: str, name: str, detail: str) -> None:
        super().__init__(detail)
        self.finding = Finding(kind, name, detail)


def gravest(findings: Sequence[Finding]) -> Finding:
    """The finding that decides what a command exits with."""
    return min(findings, key=lambda finding: GRAVEST.index(finding.kind))


def refusal(file: str, finding: Finding) -> AgnoscoError:
    """The error of a command that does not open a file."""
    return AgnoscoError(f"{file}: {finding.detail}", HINTS[finding.kind], exit_code=CODES[finding.kind])
