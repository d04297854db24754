"""Finds the architecture that a weights file belongs to, by the names and shapes of its tensors, without torch.

``architectures.json`` has a row for each architecture of agnosco and each classifier of torchvision, written by
``benchmarks/architecture_table.py``: the number of tensors, those that have a row per class, and a signature. GoogLeNet
and Inception have two rows, with and without their auxiliary heads.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..io.safetensors_header import TensorEntry
from .weights.limits import LIMITS

FORMS = (
    "torchvision:NAME, timm:NAME, hf:ORG/NAME, hf:DIR, open_clip:NAME/PRETRAINED, agnosco:NAME or "
    "python:FILE.py:FACTORY"
)
"""How models are named."""

TABLE = Path(__file__).with_name("architectures.json")


class Architecture(NamedTuple):
    """An architecture, such as ``torchvision:resnet18``, and the number of classes that a file has for it."""

    name: str
    classes: int


def find_architecture(entries: Mapping[str, TensorEntry]) -> Architecture | None:
    """The architecture whose weights these tensors are; None if there is none in the table."""
    tensors = _without_counters(entries)
    for row in table():
        if row["tensors"] != len(tensors) or not all(tensors.get(key) and tensors[key].shape for key in row["heads"]):
            continue
        counts = {tensors[key].shape[0] for key in row["heads"]}
        if len(counts) == 1 and 0 < min(counts) <= LIMITS.classes and signature(tensors, row["heads"]) == row["sha256"]:
            return Architecture(row["name"], counts.pop())
    return None


@cache
def table() -> list[dict[str, Any]]:
    """The rows: ``name``, ``tensors``, ``heads`` and ``sha256``."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def signature(entries: Mapping[str, TensorEntry], heads: Sequence[str]) -> str:
    """SHA-256 over names, kinds and shapes of tensors, but not over the number of classes of the ``heads``."""
    lines = [
        f"{key}:{'float' if entry.is_floating_point else 'integer'}:"
        f"{('*', *entry.shape[1:]) if key in heads else entry.shape}\n"
        for key, entry in sorted(_without_counters(entries).items())
    ]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _without_counters(entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """All tensors but the counters of batch normalization, which files may lack."""
    return {key: entry for key, entry in entries.items() if not key.endswith("num_batches_tracked")}
