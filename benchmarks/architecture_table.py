"""Writes the table of architectures by which weights files are recognized.

    python benchmarks/architecture_table.py      write src/agnosco/models/architectures.json

Nothing is downloaded, and parameters take no memory. A test compares the table with the installed torchvision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from agnosco.io.safetensors_header import TensorEntry
from agnosco.models.architectures import ARCHITECTURES
from agnosco.models.filling import WithoutMemory
from agnosco.models.fitting import TABLE, signature
from agnosco.models.sources import torchvision_architecture, torchvision_names


def architectures() -> Iterator[tuple[str, Callable[..., nn.Module]]]:
    """Every architecture: its name, and what builds it for a number of classes."""
    for name, (create, _) in ARCHITECTURES.items():
        yield f"agnosco:{name}", lambda num_classes, create=create: create(num_classes)
    for name in torchvision_names():
        yield f"torchvision:{name}", torchvision_architecture(name)
        if name in ("googlenet", "inception_v3"):
            yield f"torchvision:{name}", torchvision_architecture(name, auxiliary=True)


def row(name: str, create: Callable[..., nn.Module]) -> dict[str, Any]:
    """An architecture's row. Its heads are the tensors that change with the number of classes."""
    few, many = (entries(create(num_classes=count)) for count in (7, 11))
    heads = sorted(key for key in few if few[key].shape != many[key].shape)
    assert all(few[key].shape == (7, *many[key].shape[1:]) for key in heads)
    return {"name": name, "tensors": len(few), "heads": heads, "sha256": signature(few, heads)}


def entries(model: nn.Module) -> dict[str, TensorEntry]:
    """A network's tensors as the header of a safetensors file lists them, but for the counters."""
    return {
        key: TensorEntry("F32" if tensor.is_floating_point() else "I64", tuple(tensor.shape), 0, 0)
        for key, tensor in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }


def written(rows: list[dict[str, Any]]) -> str:
    """The file: JSON, one row a line."""
    return "[\n" + ",\n".join(json.dumps(one) for one in rows) + "\n]\n"


if __name__ == "__main__":
    with WithoutMemory():
        TABLE.write_text(written([row(*one) for one in architectures()]), encoding="utf-8")
    print(f"{TABLE}: {TABLE.stat().st_size:,} bytes")
