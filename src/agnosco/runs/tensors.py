"""A map's safetensors file: bytes to arrays, and to and from a :class:`~agnosco.method.concept.ConceptMap`.

It holds ``nu``, ``stages/NAME`` for ν after each earlier stage, a column ``trace/FIELD`` for each field of a step, and
``xi``, Ξ in 255ths, where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from ..io.storage import Folder
from ..types import Shape, Step
from .manifest import Entry

if TYPE_CHECKING:
    from torch import Tensor

    from ..method.concept import ConceptMap

Arrays = Mapping[str, np.ndarray[Any, Any]]


def to_bytes(concept: ConceptMap) -> bytes:
    """The file of a map."""
    import torch
    from safetensors.torch import save

    tensors = {"nu": concept.nu.contiguous()}
    for name, nu in list(concept.stages.items())[:-1]:  # the last one is nu
        tensors[f"stages/{name}"] = nu.contiguous()
    for column in fields(Step):
        values = [getattr(step, column.name) for step in concept.trace]
        tensors[f"trace/{column.name}"] = torch.tensor(values, dtype=torch.float64)
    if concept.xi is not None:
        tensors["xi"] = (255 * concept.xi).round().to(torch.uint8)
    return save(tensors)


def write_tensors(folder: Folder, name: str, tensors: dict[str, Tensor]) -> str:
    """Write tensors to a safetensors file; returns its full name."""
    from safetensors.torch import save

    return folder.write(name, save(tensors))


def read_arrays(content: bytes, stages: Sequence[str], shape: Shape) -> Arrays:
    """The arrays in the file of a map, checked to be those of a map.

    Args:
        content: The file.
        stages: Names of the stages that its entry gives.
        shape: ``(C, H, W)`` of the run's images.

    Raises:
        ValueError: The file is damaged, or an array is missing or has another shape or type.
    """
    try:
        arrays = safetensors.numpy.load(content)
        steps = arrays["trace/step"].shape[:1]
        _ = [arrays[name] for name in ("nu", *_stage_names(stages), *_trace_names())]
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
    expected = {"nu": (shape, "float32"), "stages": (shape, "float32"), "xi": ((1, *shape[1:]), "uint8")}
    for name, array in sorted(arrays.items()):
        kind = name.partition("/")[0]
        if (array.shape, array.dtype.name) != expected.get(kind, (steps, "float64")):
            raise ValueError(f"its {'map' if kind == 'nu' else kind} is {array.shape} of {array.dtype}")
    if not (np.isfinite(arrays["trace/step"]).all() and np.isfinite(arrays["trace/direction"]).all()):
        raise ValueError("its trace holds steps without a number")
    return arrays


def trace_of(arrays: Arrays) -> tuple[Step, ...]:
    """What every step saw and did."""
    rows = zip(*(arrays[name].tolist() for name in _trace_names()), strict=True)
    return tuple(Step(int(k), p, success, norm, int(sign)) for k, p, success, norm, sign in rows)


def concept_of(arrays: Arrays, entry: Entry) -> ConceptMap:
    """The map in a file, with what its entry says."""
    import torch

    from ..method.concept import ConceptMap

    *_, last = entry.stages
    stages = {name.removeprefix("stages/"): torch.tensor(arrays[name]) for name in _stage_names(entry.stages)}
    nu = torch.tensor(arrays["nu"])
    xi = torch.tensor(arrays["xi"]).float() / 255 if "xi" in arrays else None
    return ConceptMap(
        nu, entry.index, entry.name, entry.seed, entry.probability, stages | {last: nu}, trace_of(arrays), xi
    )


def _stage_names(stages: Sequence[str]) -> list[str]:
    return [f"stages/{name}" for name in stages[:-1]]


def _trace_names() -> list[str]:
    return [f"trace/{column.name}" for column in fields(Step)]
