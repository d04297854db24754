"""How far a group of maps has come, as one safetensors file from which it goes on to the same bits.

The file holds tensors and, in one metadata key, JSON: what it is of, and a digest of all the rest. What is damaged,
or of another group or other settings, is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .ball import Projector, carried
from .lockstep import LoopState
from .mapper import Step

KEY = "agnosco"
"""The one key of the file's metadata: several would be written in an order of chance."""

_LOOP = ("w", "mu", "sigma", "kept", "success")


@dataclass(frozen=True)
class GroupState:
    """Where M maps that are made side by side stand.

    Args:
        stages: ν after every finished stage, ``(M, C, H, W)`` on the CPU, by its name.
        traces: Steps of the finished stages, for each map.
        loop: Where the running stage stands; None between two of them.
        generators: State of every map's generator.
        ball: What Ψ has learned; see :func:`agnosco.ball.carried`.
    """

    stages: dict[str, Tensor]
    traces: list[list[Step]]
    loop: LoopState | None
    generators: list[Tensor]
    ball: dict[str, float | Tensor]

    @classmethod
    def begin(cls, generators: Sequence[torch.Generator]) -> GroupState:
        """Before the first step."""
        return cls({}, [[] for _ in generators], None, [one.get_state() for one in generators], {})

    def at(self, loop: LoopState, generators: Sequence[torch.Generator], project: Projector) -> GroupState:
        """The same, after another step of the running stage."""
        states = [one.get_state() for one in generators]
        return replace(self, loop=loop, generators=states, ball=carried(project))

    def after(
        self, stage: str, nu: Tensor, steps: list[list[Step]], generators: Sequence[torch.Generator], project: Projector
    ) -> GroupState:
        """The same, after another stage."""
        traces = [before + own for before, own in zip(self.traces, steps, strict=True)]
        states = [one.get_state() for one in generators]
        return GroupState(self.stages | {stage: nu.cpu().contiguous()}, traces, None, states, carried(project))


def packed(state: GroupState, about: dict[str, Any]) -> bytes:
    """A state as a file.

    Args:
        state: The state.
        about: What it is of; only who says the same gets it back.
    """
    learned = {name: value for name, value in state.ball.items() if not isinstance(value, Tensor)}
    tensors = {f"stages/{name}": nu for name, nu in state.stages.items()}
    tensors |= {f"ball/{name}": value for name, value in state.ball.items() if isinstance(value, Tensor)}
    tensors |= {"generators": torch.stack(state.generators), "traces": _columns(state.traces)}
    loop: dict[str, Any] | None = None
    if state.loop is not None:
        tensors |= {f"loop/{name}": getattr(state.loop, name) for name in _LOOP}
        tensors["loop/trace"] = _columns(state.loop.trace)
        loop = {"averaged": state.loop.averaged}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    told = {"about": about, "stages": list(state.stages), "loop": loop, "ball": learned}
    told["digest"] = _digest(tensors, told)
    return safetensors.torch.save(tensors, {KEY: json.dumps(told, sort_keys=True)})


def unpacked(content: bytes, about: dict[str, Any], device: torch.device) -> GroupState | None:
    """The state in a file, on a device; None if the file is damaged, or of something else."""
    try:
        told = json.loads(_metadata(content)[KEY])
        tensors = safetensors.torch.load(content)
        digest = told.pop("digest")
        if told["about"] != about or digest != _digest(tensors, told):
            return None
        return _state(tensors, told, device)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError):
        return None


def _state(tensors: dict[str, Tensor], told: dict[str, Any], device: torch.device) -> GroupState:
    loop = None
    if told["loop"] is not None:
        parts = {name: tensors[f"loop/{name}"].to(device) for name in _LOOP}
        loop = LoopState(**parts, averaged=told["loop"]["averaged"], trace=_steps(tensors["loop/trace"]))
    learned = {name[5:]: tensor.to(device) for name, tensor in tensors.items() if name.startswith("ball/")}
    return GroupState(
        {name: tensors[f"stages/{name}"] for name in told["stages"]},
        _steps(tensors["traces"]),
        loop,
        [_valid(row.clone()) for row in tensors["generators"]],  # a copy: set_state ignores where a view begins
        told["ball"] | learned,
    )


def _valid(state: Tensor) -> Tensor:
    """A generator's state, if it is one; RuntimeError or TypeError where not."""
    torch.Generator().set_state(state)
    return state


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, which its library gives of files on a disk alone."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def _columns(rows: list[list[Step]]) -> Tensor:
    """Steps, of whatever two axes, as numbers: ``(…, …, 5)``."""
    numbers = [[astuple(step) for step in row] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64).view(len(rows), len(rows[0]) if rows else 0, len(fields(Step)))


def _steps(columns: Tensor) -> list[list[Step]]:
    return [
        [Step(int(k), p, success, norm, int(sign)) for k, p, success, norm, sign in row] for row in columns.tolist()
    ]


def _digest(tensors: dict[str, Tensor], told: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
