"""Heads on a frozen body: what is asked of a network instead of its classes.

A head turns the answer of a layer into scores ``(N, targets)``, one for each of its channels, or for each of some given
directions in its space. The rest of agnosco takes them for logits of as many classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AgnoscoError
from ..text import nearest
from ..types import Shape
from .features import attends, feature_map
from .hooks import of_this_thread, submodule_names
from .weights.opening import read_weights

CENTER, INPUT = ":center", ":input"


class _Answered(BaseException):
    """Ends a pass at the layer that was asked; no ``except Exception`` of a network catches it."""


class Head(nn.Module):
    """A network up to one of its layers, and scores of what that layer answers.

    Args:
        body: The whole network; what comes after the layer is not run.
        layer: Name of a submodule whose output is a feature map ``(N, D, h, w)``, tokens ``(N, T, D)``, or a vector
            ``(N, D)``. Of one that is called several times in a pass, such as a block's only ReLU, the first answer
            is taken.
        at_input: Whether the layer's input is asked instead of its answer.
        center: Whether the score is that of the place in the middle; else it is the mean over all places.
        directions: Vectors by name, ``(D,)`` each, or several ``(K, D)``: the scores are the products with them. None
            for the channels themselves. One alone is given its opposite as the other target.

    Raises:
        AgnoscoError: There is no such layer, a direction has another number of values than others, or two have one
            name. When images are passed: the layer does not answer with the above, or has no place in the middle.
    """

    directions: Tensor | None

    def __init__(
        self, body: nn.Module, layer: str, *, at_input: bool = False, center: bool = False,
        directions: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        names = list(submodule_names(body).values())
        if layer not in names:
            near = nearest(layer, [name + end for name in names for end in (CENTER, INPUT)] if ":" in layer else names)
            message = f"{type(body).__name__} has no layer {layer!r}"
            raise AgnoscoError(message, f"{near}; agnosco map MODEL --list-layers lists all")
        self.body, self.layer, self.at_input, self.center = body, layer, at_input, center
        rows: dict[str, Tensor] = {}
        for name, row in _rows(directions or {}):
            if name in rows:
                raise AgnoscoError(f"two directions are called {name!r}", "rename one")
            rows[name] = row
        if len(rows) == 1:  # there is no softmax over one score
            rows |= {f"minus {name}": -row for name, row in rows.items()}
        if len({len(row) for row in rows.values()}) > 1:
            raise AgnoscoError("the directions have different numbers of values", "give those of one layer")
        self.names = list(rows)
        device = next((parameter.device for parameter in body.parameters()), None)
        self.register_buffer("directions", torch.stack(list(rows.values())).float().to(device) if rows else None)

    @property
    def asked(self) -> str:
        """The layer, with ``:input`` if its input is asked, and ``:center`` if only the place in the middle is."""
        return self.layer + INPUT * self.at_input + CENTER * self.center

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(N, targets)`` of normalised images."""
        answer = answer_of(self.body, self.layer, images, at_input=self.at_input)
        features = self._pooled(answer, images.shape[1:])
        if self.directions is None:
            return features
        if features.shape[1] != self.directions.shape[1]:
            message = f"the directions have {self.directions.shape[1]} values, but {self.asked} {features.shape[1]}"
            raise AgnoscoError(message, "name the layer in whose space they are")
        return features.float() @ self.directions.float().T

    def labels(self, count: int) -> list[str]:
        """Names of the targets."""
        return self.names or [f"{self.layer}{INPUT * self.at_input} {index}" for index in range(count)]

    @property
    def _answers(self) -> str:
        """The beginning of a sentence about what is read."""
        return f"{self.layer!r} {'is given' if self.at_input else 'answers'}"

    def _pooled(self, answer: Tensor, image: torch.Size) -> Tensor:
        """``(N, D)`` of what the layer answers."""
        shape: Shape = (image[0], image[1], image[2])
        if self.center:
            grid = feature_map(answer, shape)
            if grid is None:
                message = f"{self._answers} {tuple(answer.shape)}, which has no place in the middle"
                raise AgnoscoError(message, f"name it without {CENTER}, or name a layer before it")
            return grid[:, :, grid.shape[2] // 2, grid.shape[3] // 2]
        values = at_places(answer, shape)
        if values is None:
            message = f"{self._answers} {tuple(answer.shape)}, neither a feature map nor tokens nor a vector"
            raise AgnoscoError(message, "name another layer")
        return values.mean(2)


def at_places(answer: Tensor, image: Shape) -> Tensor | None:
    """The values ``(N, D, places)`` of what a layer answers to images ``(C, H, W)``; None if it has no channels.

    A vector is one place. What is no feature map has all of its tokens as places, extra ones too.
    """
    grid = feature_map(answer, image)
    if grid is not None:
        return grid.flatten(2)
    if answer.ndim == 4:
        pooled_last = answer.shape[1] == answer.shape[2] == 1  # of a network whose channels are last
        return (answer.permute(0, 3, 1, 2) if pooled_last else answer).flatten(2)
    if answer.ndim == 3:
        return answer.transpose(1, 2)
    return answer[:, :, None] if answer.ndim == 2 else None


def answer_of(body: nn.Module, layer: str, images: Tensor, *, at_input: bool = False) -> Tensor:
    """What a layer answers to images, or what it is given; they go through the network no further.

    AgnoscoError if that is no tensor, or images do not reach the layer.
    """
    noted: list[Any] = []

    @of_this_thread
    def note(*passed: Any) -> None:  # the module; its arguments; those with names, or its answer
        noted.append(passed[1:] if at_input else passed[2])
        raise _Answered

    module = body.get_submodule(layer)
    hook = module.register_forward_pre_hook(note, with_kwargs=True) if at_input else module.register_forward_hook(note)
    with hook, suppress(_Answered):
        body(images)
    tensor = tensor_in(noted[0]) if noted else None
    if tensor is None:
        message = f"{layer!r} is given no tensor" if at_input else f"{layer!r} does not answer to images with a tensor"
        raise AgnoscoError(message, "name another layer")
    return tensor


def tensor_in(output: Any) -> Tensor | None:
    """The tensor in what a module answers, which may be in a tuple, a dict or a record; the first of several."""
    if isinstance(output, Tensor):
        return output
    if is_dataclass(output) and not isinstance(output, Mapping | type):
        output = [getattr(output, field.name) for field in fields(output)]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return next((found for each in output if (found := tensor_in(each)) is not None), None)
    return None


def logits_in(output: object) -> Tensor:
    """The logits ``(N, classes)`` in a model's answer, which may wrap them as Hugging Face and torchvision do.

    Those of a segmentation network, ``(N, classes, h, w)``, are averaged over places.
    """
    if isinstance(output, Mapping):  # of several tensors, the one with a usual name
        output = next((output[key] for key in ("logits", "out") if key in output), output)
    logits = tensor_in(getattr(output, "logits", output))
    if logits is not None and logits.ndim == 4:
        return logits.mean((2, 3))
    if logits is None:
        message = f"the model answers a {type(output).__name__}, not logits"
        raise AgnoscoError(message, "wrap it so that it returns (N, classes)")
    return logits


@dataclass(frozen=True)
class Layer:
    """A layer that can be asked: its name, what it is, how many channels it has and in how many places."""

    name: str
    kind: str
    channels: int
    places: int


def layers_of(body: nn.Module, images: Tensor) -> list[Layer]:
    """All layers that can be asked, in the order in which images ``(N, C, H, W)``, normalised, go through them."""
    found: dict[str, Layer] = {}
    names = submodule_names(body)
    shape: Shape = (images.shape[1], images.shape[2], images.shape[3])

    @of_this_thread
    def note(module: nn.Module, _inputs: object, output: object) -> None:
        answer = tensor_in(output)
        if answer is None or answer.ndim < 2 or len(answer) != len(images) or attends(answer):
            return
        values = at_places(answer, shape)
        if values is not None:
            found.setdefault(names[module], Layer(names[module], type(module).__name__, *values.shape[1:]))

    with ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(note))
        body(images)
    return list(found.values())


def with_head(model: nn.Module, at: str | None, directions: Path | str | Mapping[str, Tensor] | None) -> nn.Module:
    """A network with the head that these options of :func:`agnosco.load` stand for; as it is without any.

    Args:
        model: The network.
        at: A layer, with ``:input`` for what it is given, and ``:center`` for the place in the middle.
        directions: A safetensors file, or tensors by name.
    """
    if at is None:
        if directions is not None:
            raise AgnoscoError("directions need a layer", "name it: at='layer4' (--at layer4)")
        return model
    given = read_weights(directions) if isinstance(directions, str | Path) else directions
    if given is not None and not given:
        raise AgnoscoError("there are no directions", "give at least one vector")
    place = at.removesuffix(CENTER)
    at_input, center = place.endswith(INPUT), at.endswith(CENTER)
    return Head(model, place.removesuffix(INPUT), at_input=at_input, center=center, directions=given)


def _rows(directions: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Directions one by one, with a number where a tensor holds several."""
    rows: list[tuple[str, Tensor]] = []
    for name, tensor in directions.items():
        if tensor.ndim not in (1, 2) or not tensor.numel() or not tensor.is_floating_point():
            message = f"direction {name!r} has the shape {tuple(tensor.shape)}"
            raise AgnoscoError(message, "give vectors (D,) or (K, D) of floating-point numbers")
        several = [(f"{name} {index}", row) for index, row in enumerate(tensor)]
        rows += several if tensor.ndim == 2 else [(name, tensor)]
    return rows
