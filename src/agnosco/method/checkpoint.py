"""The checkpoint of a group of maps: one safetensors file from which the group continues to the same bits.

The file holds tensors and, in one metadata key, JSON: which group and settings it is of, and a digest of all else. A
file that is damaged, or of another group or other settings, is not used; nor is one whose digest is right, but whose
tensors cannot be those of the group: it may come from anyone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from io import BytesIO
from math import inf, isfinite
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..io.safetensors_header import Suspicious, read_header
from ..types import Step
from .ball import BallState, GrowingL2, Projector
from .mapper import LoopState
from .parameterization import Basis

KEY = "agnosco-2"
"""The one key of the file's metadata: the order of several would be random. The number counts versions of the state."""

_LOOP = ("w", "mu", "sigma", "xi", "success")


@dataclass(frozen=True)
class GroupState:
    """The state of M maps that are made side by side.

    Args:
        finished: ν after every finished stage, ``(M, C, H, W)`` on the CPU.
        traces: Steps of the finished stages, for each map.
        loop: The state of the running stage; None between two stages.
        generators: State of every map's generator.
        ball: What the last projection left.
    """

    finished: list[Tensor]
    traces: list[list[Step]]
    loop: LoopState | None
    generators: list[Tensor]
    ball: BallState

    @classmethod
    def begin(cls, generators: Sequence[torch.Generator], ball: BallState) -> GroupState:
        """Before the first step."""
        return cls([], [[] for _ in generators], None, _states(generators), ball)

    def at(self, loop: LoopState, generators: Sequence[torch.Generator]) -> GroupState:
        """The state after another step of the running stage."""
        return replace(self, loop=loop, generators=_states(generators), ball=loop.ball)

    def after(self, nu: Tensor, loop: LoopState, generators: Sequence[torch.Generator]) -> GroupState:
        """The state after the running stage, which ends with maps ν ``(M, C, H, W)``."""
        traces = [earlier + steps for earlier, steps in zip(self.traces, loop.steps_by_map, strict=True)]
        finished = [*self.finished, nu.cpu().contiguous()]
        return GroupState(finished, traces, None, _states(generators), loop.ball)


def packed(state: GroupState, about: dict[str, Any]) -> bytes:
    """A state as the bytes of a file, with ``about``: the group and settings that it is of, for :func:`unpacked`."""
    ball = vars(state.ball)
    tensors = {f"finished/{place}": nu for place, nu in enumerate(state.finished)}
    tensors |= {f"ball/{name}": value for name, value in ball.items() if isinstance(value, Tensor)}
    tensors |= {"generators": torch.stack(state.generators), "traces": _columns(state.traces)}
    if state.loop is not None:
        tensors |= {f"loop/{name}": getattr(state.loop, name) for name in _LOOP}
        tensors["loop/trace"] = _columns(state.loop.trace)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {
        "about": about,
        "finished": len(state.finished),
        "loop": state.loop is not None,
        "ball": {name: value for name, value in ball.items() if not isinstance(value, Tensor)},
    }
    header["digest"] = _digest(tensors, header)
    return safetensors.torch.save(tensors, {KEY: json.dumps(header, sort_keys=True)})


def unpacked(content: bytes, about: dict[str, Any], device: torch.device) -> GroupState | None:
    """The state in a file, on a device; None if the file is damaged, or of another group or other settings."""
    try:
        header = json.loads(read_header(BytesIO(content)).metadata[KEY])
        tensors = safetensors.torch.load(content)
        digest = header.pop("digest")
        if header["about"] != about or digest != _digest(tensors, header):
            return None
        return _state(tensors, header, device)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError, SafetensorError, Suspicious):
        return None  # a RecursionError is a RuntimeError


def fits(state: GroupState, steps: Sequence[int], *, count: int, basis: Basis, project: Projector) -> bool:
    """Whether a state can be that of a group: of ``count`` maps, with ``steps`` in each stage, projected by Ψ."""
    done = len(state.finished)
    if done > len(steps) or {len(state.traces), len(state.generators)} != {count}:
        return False
    return (
        all(_is(nu, (count, *basis.shape)) for nu in state.finished)
        and all(len(trace) == sum(steps[:done]) for trace in state.traces)
        and all(_is_consistent(state, place) for place in range(count) if done)
        and _is_reached(state.ball, project, count)
        and (state.loop is None or (done < len(steps) and _fits_stage(state.loop, steps[done], count, basis)))
    )


def _is(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    return tensor.shape == shape and tensor.dtype == torch.float32


def _is_consistent(state: GroupState, place: int) -> bool:
    """Whether a map is finite where its trace says so."""
    finite = all(nu[place].isfinite().all() for nu in state.finished)
    return finite or not isfinite(state.traces[place][-1].norm)


def _is_reached(ball: BallState, project: Projector, count: int) -> bool:
    """Whether projections can have left a ball: otherwise its maps would leave the norm ball."""
    if not isinstance(project, GrowingL2):
        return type(ball.eta) is float and type(ball.success) is float and ball == project.begin()
    for value, (low, high) in ((ball.eta, project.radii), (ball.success, (0.0, inf))):
        if not (type(value) is float or (isinstance(value, Tensor) and any(_is(value, s) for s in ((), (count,))))):
            return False
        numbers = torch.as_tensor(value)
        if not (numbers.isfinite() & (numbers >= torch.tensor(low)) & (numbers <= torch.tensor(high))).all():
            return False
    return True


def _fits_stage(loop: LoopState, steps: int, count: int, basis: Basis) -> bool:
    """Whether a loop can be that of a stage of a number of steps."""
    w = tuple(basis.coordinates(torch.zeros(count, *basis.shape, device=basis.device)).shape)
    return (
        all(_is(tensor, w) for tensor in (loop.w, loop.mu, loop.sigma))
        and _is(loop.xi, (count, 1, *basis.shape[1:]))
        and loop.success.shape == (count,)
        and len(loop.trace) <= steps
        and all(len(row) == count for row in loop.trace)
    )


def _state(tensors: dict[str, Tensor], header: dict[str, Any], device: torch.device) -> GroupState:
    names = [name for name in tensors if name.startswith("ball/")]
    ball = BallState(**header["ball"], **{name.removeprefix("ball/"): tensors[name].to(device) for name in names})
    loop = None
    if header["loop"]:
        parts = {name: tensors[f"loop/{name}"].to(device) for name in _LOOP}
        loop = LoopState(**parts, ball=ball, trace=_steps(tensors["loop/trace"]))
    generators = [row.clone() for row in tensors["generators"]]  # copies: set_state ignores where a view begins
    for generator in generators:
        torch.Generator().set_state(generator)  # RuntimeError or TypeError if it is no generator's state
    finished = [tensors[f"finished/{place}"] for place in range(header["finished"])]
    return GroupState(finished, _steps(tensors["traces"]), loop, generators, ball)


def _states(generators: Sequence[torch.Generator]) -> list[Tensor]:
    return [generator.get_state() for generator in generators]


def _columns(rows: list[list[Step]]) -> Tensor:
    """Steps, of whatever two axes, as numbers: ``(…, …, 5)``."""
    numbers = [[astuple(step) for step in row] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64).view(len(rows), len(rows[0]) if rows else 0, len(fields(Step)))


def _steps(columns: Tensor) -> list[list[Step]]:
    return [
        [Step(int(k), p, success, norm, int(sign)) for k, p, success, norm, sign in row] for row in columns.tolist()
    ]


def _digest(tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
