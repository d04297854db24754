"""How far a group of maps has come, as one safetensors file from which it goes on to the same bits.

The file holds tensors and, in one metadata key, JSON: what it is of, and a digest of all the rest. What is damaged,
or of another group or other settings, is no checkpoint; nor is what has a digest that is right and is no state of
such a group: the file may come from anyone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from math import isfinite
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..types import Step
from .ball import Projector, carried
from .mapper import LoopState
from .parameterization import Basis

KEY = "agnosco"
"""The one key of the file's metadata: several would be written in an order of chance."""

_LOOP = ("w", "mu", "sigma", "xi", "success")


@dataclass(frozen=True)
class GroupState:
    """Where M maps that are made side by side stand.

    Args:
        stages: ν after every finished stage, ``(M, C, H, W)`` on the CPU, by its name.
        traces: Steps of the finished stages, for each map.
        loop: Where the running stage stands; None between two of them.
        generators: State of every map's generator.
        ball: What Ψ has learned; see :func:`agnosco.method.ball.carried`.
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
    if state.loop is not None:
        tensors |= {f"loop/{name}": getattr(state.loop, name) for name in _LOOP}
        tensors["loop/trace"] = _columns(state.loop.trace)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    told = {"about": about, "stages": list(state.stages), "loop": state.loop is not None, "ball": learned}
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
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError, SafetensorError):
        return None  # a RecursionError is a RuntimeError


def fits(state: GroupState, stages: Mapping[str, int], *, count: int, basis: Basis, project: Projector) -> bool:
    """Whether a state can be one of a group: what it holds has the names, counts and shapes of theirs.

    Args:
        state: The state.
        stages: How many steps each stage has, in order.
        count: How many maps there are.
        basis: The coordinates.
        project: A fresh Ψ.
    """
    done = list(state.stages)
    if done != list(stages)[: len(done)] or {len(state.traces), len(state.generators)} != {count}:
        return False
    steps = sum(stages[name] for name in done)
    return (
        all(_is(nu, (count, *basis.shape)) for nu in state.stages.values())
        and all(len(trace) == steps for trace in state.traces)
        and all(_ended(state, place) for place in range(count) if done)
        and state.ball.keys() == carried(project).keys()
        and all(_learned(value, count) for value in state.ball.values())
        and (state.loop is None or _under_way(state.loop, list(stages.items())[len(done) :], count, basis))
    )


def _is(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    return tensor.shape == shape and tensor.dtype == torch.float32


def _ended(state: GroupState, place: int) -> bool:
    """Whether a map is finite where its trace says so."""
    finite = all(nu[place].isfinite().all() for nu in state.stages.values())
    return finite or not isfinite(state.traces[place][-1].norm)


def _learned(value: Any, count: int) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and value.shape in ((), (1,), (count,))
    return isinstance(value, int | float)


def _under_way(loop: LoopState, left: list[tuple[str, int]], count: int, basis: Basis) -> bool:
    """Whether a loop can be that of the first stage that is left."""
    if not left:
        return False
    _, steps = left[0]
    w = tuple(basis.coordinates(torch.zeros(count, *basis.shape, device=basis.device)).shape)
    return (
        all(_is(tensor, w) for tensor in (loop.w, loop.mu, loop.sigma))
        and _is(loop.xi, (count, 1, *basis.shape[1:]))
        and loop.success.shape == (count,)
        and len(loop.trace) <= steps
        and all(len(row) == count for row in loop.trace)
    )


def _state(tensors: dict[str, Tensor], told: dict[str, Any], device: torch.device) -> GroupState:
    loop = None
    if told["loop"]:
        parts = {name: tensors[f"loop/{name}"].to(device) for name in _LOOP}
        loop = LoopState(**parts, trace=_steps(tensors["loop/trace"]))
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
