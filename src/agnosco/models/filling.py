"""Builds a network for the weights in a file, and fills it with them if every name and shape agrees."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import AgnoscoError
from ..io.safetensors_header import TensorEntry
from ..text import first_line
from .fitting import find_architecture
from .weights.limits import CODES, HINTS, LIMITS
from .weights.opening import Weights

DESCRIBED = 2.0
"""How many times as many numbers as its weights file a described network may have: it may share some."""

SMALL_BUFFERS = 2**22
"""Numbers of buffers that are not counted: a small network may have more of them than weights, such as indices."""


class WithoutMemory(TorchFunctionMode):
    """Inside, ``torch.empty``, with which layers allocate their parameters, takes neither memory nor time.

    Unlike under ``torch.device("meta")``, other tensors have values: RegNets compute their widths with some.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "meta"} if func is torch.empty else kwargs))


class _Counted(TorchFunctionMode):
    """Inside, no more parameters are made than a file may hold."""

    made = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made += func is torch.empty
        if self.made > LIMITS.tensors:
            message = f"its configuration describes more than {LIMITS.tensors:,} tensors"
            raise AgnoscoError(message, HINTS["limit"], exit_code=CODES["limit"])
        return func(*args, **(kwargs or {}))


def check_described(create: Callable[[], nn.Module], weights: Weights, name: str) -> None:
    """Check that a network that a foreign configuration describes is about as large as its weights.

    It is built without memory. AgnoscoError if it is larger: one could be described that fills any memory.
    """
    with torch.device("meta"), _Counted():
        model = create()
    numbers = sum(parameter.numel() for parameter in model.parameters())
    numbers += max(sum(buffer.numel() for buffer in model.buffers()) - SMALL_BUFFERS, 0)
    held = sum(entry.numbers for entry in weights.entries.values())
    if numbers > DESCRIBED * held:
        message = f"the configuration of {name} describes {numbers:,} numbers, but {weights.name} holds {held:,}"
        raise AgnoscoError(message, HINTS["malformed"], exit_code=CODES["malformed"])


@contextmanager
def building(library: str, name: str) -> Iterator[None]:
    """Inside, whatever a library raises while it follows a foreign configuration becomes an AgnoscoError."""
    try:
        yield
    except AgnoscoError:
        raise
    except Exception as error:
        message = f"{library} cannot build {name}: {first_line(error)}"
        raise AgnoscoError(message, HINTS["malformed"], exit_code=CODES["malformed"]) from error


def described(library: str, create: Callable[[], nn.Module], weights: Weights, name: str) -> nn.Module:
    """A network that a foreign configuration describes, with the weights of a file.

    AgnoscoError if the library cannot build it, it is larger than its weights, or they do not fit it.
    """
    with building(library, name):
        check_described(create, weights, name)
        model = create()
    fill(model, weights, name)
    return model


def last_layer(model: nn.Module) -> str:
    """Name of the weight of the last linear or convolutional layer, which has a row per class."""
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def count_classes(model: nn.Module) -> int:
    """Rows of the last layer."""
    return len(model.get_parameter(last_layer(model)))


def with_classes_of(entries: Mapping[str, TensorEntry], create: Callable[..., nn.Module]) -> nn.Module:
    """A network whose last layer has as many classes as the same layer in a file; ``create`` takes ``num_classes``.

    AgnoscoError if the file has more classes than :data:`LIMITS` allow.
    """
    model = create()
    key = last_layer(model)
    parameter, entry = model.get_parameter(key), entries.get(key)
    if entry is None or entry.shape[1:] != parameter.shape[1:] or entry.shape[0] == len(parameter):
        return model
    if entry.shape[0] > LIMITS.classes:
        message = f"{entry.shape[0]:,} classes are too many (at most {LIMITS.classes:,})"
        raise AgnoscoError(message, HINTS["limit"], exit_code=CODES["limit"])
    return create(num_classes=entry.shape[0])


def fill(model: nn.Module, weights: Weights, name: str, *, keep: Collection[str] = ()) -> None:
    """Give a network its weights from a file, which is read only if every name and shape agrees.

    ``keep`` names tensors of the network that stay as they are, such as a new last layer. AgnoscoError if the file does
    not hold exactly the others, or cannot be read.
    """
    differences = _differences(model, weights.entries, keep)
    if differences:
        message = f"{weights.name} does not hold the weights of {name}: {differences}"
        architecture = find_architecture(weights.entries)
        saved_from = f"name the architecture that they were saved from; they hold {_some(sorted(weights.entries))}"
        raise AgnoscoError(message, f"they are the weights of {architecture.name}" if architecture else saved_from)
    state = model.state_dict()  # has the versions of layers, which MNASNet asks for and a file lacks
    state.update({key: torch.tensor(0) for key in state if key.endswith("num_batches_tracked")})  # for training only
    state.update({key: tensor for key, tensor in weights.read().items() if key not in keep})
    model.load_state_dict(state, assign=True)


def _differences(model: nn.Module, entries: Mapping[str, TensorEntry], keep: Collection[str]) -> str:
    """How a file differs from a network's weights, in words; empty if it does not."""
    state = {key: tensor for key, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    shared = [key for key in state if key in entries and key not in keep]
    reshaped = [key for key in shared if entries[key].shape != state[key].shape]
    needed = [key for key in state if key not in keep and not key.endswith("num_batches_tracked")]
    differences = {
        "missing": [key for key in needed if key not in entries],
        "unexpected": [key for key in sorted(entries) if key not in state],
        "with another shape": [f"{key} {entries[key].shape} instead of {tuple(state[key].shape)}" for key in reshaped],
        "with integers": [k for k in shared if state[k].is_floating_point() and not entries[k].is_floating_point],
    }
    return "; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in differences.items() if keys)


def _some(keys: Sequence[str]) -> str:
    """Up to three names, quoted, since they come from files."""
    return ", ".join(repr(key[:80]) for key in keys[:3]) + (", …" if len(keys) > 3 else "")
