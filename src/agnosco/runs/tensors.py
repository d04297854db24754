"""The safetensors file of a map, as arrays and as a :class:`~agnosco.method.concept.ConceptMap`.

It holds ``nu``, ``stages/NAME`` (ν after each earlier stage), a column ``trace/FIELD`` for each field of a step, ``xi``
(Ξ in 255ths) if the network has a convolutional stage, ``contribution`` (in 255ths) unless an earlier version made the
map, and ``held_out``, the log-odds of the class for each held-out image with the pattern, ``(N,)``, if the map was
judged by some. Its metadata say, as JSON, what it was made with (:class:`~agnosco.runs.manifest.MadeWith`), unless an
earlier version made it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from ..io import records
from ..io.safetensors_header import Suspicious, read_header
from ..io.storage import Folder
from ..types import Shape, Step
from .manifest import Entry, MadeWith

if TYPE_CHECKING:
    from torch import Tensor

    from ..method.concept import ConceptMap

KEY = "agnosco"
"""The one key of the file's metadata: the order of several would be random."""

Arrays = Mapping[str, np.ndarray[Any, Any]]

COLUMNS = {f"trace/{field.name}": field.name for field in fields(Step)}
"""Fields of a step, by the names of their arrays."""

SHARES = ("xi", "contribution")
"""Fields of a map in [0, 1], one number for each place, kept in 255ths; a file may lack them."""


def to_bytes(concept: ConceptMap, made_with: MadeWith, held_out: Tensor | None = None) -> bytes:
    """The file of a map; ``held_out`` are the log-odds ``(N,)`` of held-out images."""
    import torch
    from safetensors.torch import save

    tensors = {"nu": concept.nu.contiguous()}
    tensors |= {f"stages/{name}": concept.stages[name].contiguous() for name in list(concept.stages)[:-1]}
    for name, field in COLUMNS.items():
        tensors[name] = torch.tensor([getattr(step, field) for step in concept.trace], dtype=torch.float64)
    for name in SHARES:
        if (shares := getattr(concept, name)) is not None:
            tensors[name] = (255 * shares).round().to(torch.uint8)
    if held_out is not None:
        tensors["held_out"] = held_out.float().contiguous()
    return save(tensors, {KEY: json.dumps(records.to_json(made_with), sort_keys=True)})


def made_with_of(content: bytes) -> MadeWith | None:
    """What the file of a map says that it was made with; None if it says nothing that can be read."""
    try:
        return records.decode(read_header(BytesIO(content)).metadata[KEY].encode(), MadeWith)
    except (KeyError, ValueError, Suspicious):
        return None


def write_tensors(folder: Folder, name: str, tensors: dict[str, Tensor]) -> str:
    """Write tensors to a safetensors file; returns its full name."""
    from safetensors.torch import save

    return folder.write(name, save(tensors))


def read_arrays(content: bytes, stages: Sequence[str], shape: Shape) -> Arrays:
    """The arrays in the file of a map with these stages, for images of shape ``(C, H, W)``; all are checked.

    Raises:
        ValueError: The file is damaged, or an array is missing or has another shape or type.
    """
    try:
        arrays = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
    if missing := {"nu", *COLUMNS, *(f"stages/{stage}" for stage in stages[:-1])} - arrays.keys():
        raise ValueError(f"it lacks {sorted(missing)[0]}")
    steps = (arrays["trace/step"].size,)
    expected: dict[str, tuple[tuple[int, ...], str]] = {"nu": (shape, "float32"), "stages": (shape, "float32")}
    expected |= {name: ((1, *shape[1:]), "uint8") for name in SHARES}
    if "held_out" in arrays:
        expected["held_out"] = ((arrays["held_out"].size,), "float32")
    for name, array in sorted(arrays.items(), key=lambda item: (item[0] != "nu", item[0])):
        kind = name.partition("/")[0]
        if (array.shape, array.dtype.name) != expected.get(kind, (steps, "float64")):
            raise ValueError(f"its {'map' if kind == 'nu' else kind} is {array.shape} of {array.dtype}")
    if not (np.isfinite(arrays["trace/step"]).all() and np.isfinite(arrays["trace/direction"]).all()):
        raise ValueError("its trace holds steps without a number")
    return arrays


def concept_of(arrays: Arrays, entry: Entry) -> ConceptMap:
    """The map in a file, with what its entry says."""
    import torch

    from ..method.concept import ConceptMap

    nu = torch.tensor(arrays["nu"])
    stages = {stage: torch.tensor(arrays[f"stages/{stage}"]) for stage in entry.stages[:-1]}
    stages[entry.stages[-1]] = nu
    shares = {name: torch.tensor(arrays[name]).float() / 255 for name in SHARES if name in arrays}
    rows = zip(*(arrays[name].tolist() for name in COLUMNS), strict=True)
    trace = tuple(Step(int(k), p, success, norm, int(sign)) for k, p, success, norm, sign in rows)
    return ConceptMap(nu, entry.index, entry.name, entry.seed, entry.probability, stages, trace, **shares)
