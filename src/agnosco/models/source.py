"""What a source of networks can do: it turns a name into a network, with what is known about its input."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

from torch import nn

from ..errors import AgnoscoError
from ..text import first_line
from ..types import Resize
from .weights.limits import CODES, HINTS
from .weights.opening import Weights

T = TypeVar("T")

NO_PROMPTS = (
    "prompts are the classes of open_clip:NAME; other networks have their own",
    "leave prompts (--prompts) out",
)
"""The error of prompts for another source, and its hint."""

OpenWeights = Callable[[], AbstractContextManager[Weights]]
"""Opens the weights file; called once the name has been checked."""


@dataclass(frozen=True)
class Network:
    """A network, and arguments of :class:`agnosco.models.classifier.Classifier`, as far as the source knows them.

    ``assumed`` says whose size, mean and std these are, if not surely those of these weights, such as those of the
    architecture's own weights: probably right, since most networks are fine-tuned from them.
    """

    model: nn.Module
    name: str
    size: int | tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    labels: Sequence[str] | None = None
    channels: int | None = None
    assumed: str | None = None
    resize: Resize | None = None


def of_foreign_file(network: Network, file: str) -> Network:
    """A network as it is; AgnoscoError if its size, mean or std, which a foreign file gave, are no numbers."""
    size = (network.size, network.size) if isinstance(network.size, int) else network.size
    right = size is None or (len(size) == 2 and all(isinstance(side, int) for side in size))
    for values in (network.mean, network.std):
        sequence = isinstance(values, list | tuple) and all(isinstance(each, int | float) for each in values)
        right &= values is None or (sequence and all(map(math.isfinite, values)))
    if not right:
        message = f"{file} does not give a size in pixels, and numbers for mean and std"
        raise AgnoscoError(message, HINTS["malformed"], exit_code=CODES["malformed"])
    return network


class Source(ABC):
    """What every source can do; names are given without the source's own, such as ``resnet18``."""

    @abstractmethod
    def network(self, name: str, weights: OpenWeights | None, *, trust_code: bool) -> Network:
        """A network with the weights of a file, or with its own for None.

        AgnoscoError if there is no such network, the weights do not fit, or they cannot be downloaded.
        """

    def with_prompts(self, prompts: Path | str | Sequence[str]) -> "Source":
        """The source of networks whose classes are these; AgnoscoError if its networks have their own."""
        raise AgnoscoError(*NO_PROMPTS)

    def untrained(self, name: str, classes: int) -> Network | None:
        """An architecture with random weights; None if there is no such architecture."""
        return None

    def download(self, name: str) -> str | None:
        """What :meth:`network` will download without a file, in words; None for nothing."""
        return None


OWN = "its architecture's own weights"
"""What is ``assumed`` of weights with other classes."""


def downloaded(name: str, create: Callable[[], T], *, what: str = "the weights of") -> T:
    """What a library downloads; AgnoscoError if it cannot."""
    try:
        return create()
    except (OSError, RuntimeError, HTTPException) as error:
        hint = "without a network, pass a file of them: weights=FILE.safetensors (--weights)"
        raise AgnoscoError(f"cannot download {what} {name}: {first_line(error)}", hint) from error
