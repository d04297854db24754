"""Classifiers by name, such as ``torchvision:resnet18``, ``open_clip:RN50/openai`` or ``python:FILE.py:FACTORY``.

A name is built by one of the :mod:`.sources`. torchvision, timm and open_clip download and open their own weights
themselves; other weights come from a file, which :mod:`.weights.opening` opens without running anything in it.
"""

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import AgnoscoError, AgnoscoWarning
from ..io.regular import read_regular
from ..text import first_line
from ..types import Shape
from .architectures import ARCHITECTURES
from .classifier import Classifier, Files
from .filling import fill, last_layer
from .fitting import FORMS, table
from .source import NO_PROMPTS, Network
from .sources import SOURCES
from .weights.limits import LIMITS
from .weights.opening import open_weights


def load(
    model: str | nn.Module | Classifier,
    *,
    weights: Path | str | None = None,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels: int | None = None,
    labels: Sequence[str] | Path | None = None,
    features: str | None = None,
    at: str | None = None,
    directions: Path | str | Mapping[str, Tensor] | None = None,
    prompts: Path | str | Sequence[str] | None = None,
    device: torch.device | str | None = None,
    trust_code: bool = False,
    allow_pickle: bool = False,
) -> Classifier:
    """A classifier from a name or a PyTorch module.

    Args:
        model: ``"torchvision:NAME"``, ``"timm:NAME"``, ``"hf:ORG/NAME"``, ``"open_clip:NAME/PRETRAINED"``,
            ``"agnosco:NAME"``, ``"python:FILE.py:FACTORY"`` (a callable without arguments, or a call with literal ones,
            such as ``CifarResNet(20)``); or a PyTorch module. A :class:`Classifier` is returned as it is.
        weights: A safetensors file for a named architecture; None for its own weights, which its library downloads.
        size, mean, std, channels, features: See :class:`Classifier`; None takes what comes with the name.
        at, directions: See :class:`Classifier`.
        labels: One name per class, or a file of them: one per line, or a JSON list.
        prompts: The classes of ``"open_clip:NAME"``: names, or a file with one per line, which open_clip's templates
            put into sentences. A line ``NAME<TAB>TEXT<TAB>TEXT`` gives a class its own texts.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for the fastest of this machine; None leaves the
            model where it is (a named one: on the CPU).
        trust_code: Allow ``python:``, which runs the file.
        allow_pickle: Allow weights that are a pickle of tensors (``.pt``, ``.pth``), opened by a restricted process.

    Raises:
        AgnoscoError: There is no such name or device; :func:`agnosco.models.weights.opening.open_weights` refuses the
            weights, or they belong to another architecture; they cannot be downloaded; :class:`Classifier` refuses the
            model; or it is a Classifier, and there are options that would change it.

    Example:
        >>> import torch
        >>> from agnosco import load
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        >>> classifier = load(model, size=8, labels=["cat", "dog"])
        >>> classifier(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 2])
    """
    target = None if device is None else resolve_device(device)
    if isinstance(model, Classifier):
        options = {"weights": weights, "size": size, "mean": mean, "std": std, "channels": channels}
        options |= {"labels": labels, "features": features, "at": at, "directions": directions, "device": device}
        options |= {"prompts": prompts}
        if given := [name for name, value in options.items() if value is not None]:
            message = f"{model.name} is already a Classifier: {', '.join(given)} cannot be changed"
            hint = "pass its module, classifier.model, with these options; or move it with Classifier.to(device)"
            raise AgnoscoError(message, hint)
        return model
    network = _network(model, weights, prompts, trust_code, allow_pickle)
    if network.assumed and None in (size, mean, std):
        warnings.warn(
            f"{network.name} gets the input of {network.assumed}: {network.size} px, mean {tuple(network.mean or ())}, "
            f"std {tuple(network.std or ())}; give size, mean and std if yours were trained with others",
            AgnoscoWarning,
            stacklevel=2,
        )
    names = read_labels(Path(labels)) if isinstance(labels, str | Path) else labels
    classifier = Classifier(
        network.model if target is None else _moved(network, target),
        size=network.size if size is None else size,
        mean=network.mean if mean is None else mean,
        std=network.std if std is None else std,
        channels=network.channels if channels is None else channels,
        labels=network.labels if names is None and at is None else names,
        resize=network.resize,
        features=features,
        at=at,
        directions=directions,
        name=network.name,
    )
    classifier.files = Files(_base(weights), _base(labels), _base(prompts), allow_pickle and weights is not None)
    return classifier


def untrained(
    name: str,
    *,
    classes: int,
    seed: int = 0,
    weights: Path | str | None = None,
    size: int | None = None,
    labels: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    allow_pickle: bool = False,
) -> Classifier:
    """An architecture to train: with random weights, or with those of a file and a new last layer.

    AgnoscoError if there is no such architecture or device, or the weights do not fit it.

    Args:
        name: ``"torchvision:NAME"`` or ``"agnosco:NAME"``.
        classes: Number of logits.
        seed: Seed of the random weights.
        weights: A file to start from; its last layer is used only if it has as many classes.
        size: Height and width of the images in pixels; None for the architecture's own.
        labels, device, allow_pickle: See :func:`load`.
    """
    source, _, short_name = name.partition(":")
    with torch.random.fork_rng(devices=[]):  # PyTorch's own random generator is not changed
        torch.manual_seed(seed)
        network = SOURCES[source].untrained(short_name, classes) if source in SOURCES else None
    if network is None:
        message = f"{name!r} is not an architecture that can be trained"
        raise AgnoscoError(message, f"give torchvision:NAME, or agnosco:{'|'.join(ARCHITECTURES)}")
    if weights is not None:
        with open_weights(weights, allow_pickle=allow_pickle) as file:
            head = last_layer(network.model)
            shape = tuple(network.model.get_parameter(head).shape)
            fits = head in file.entries and file.entries[head].shape == shape
            fill(network.model, file, name, keep=() if fits else (head, f"{head.removesuffix('weight')}bias"))
    network.model.to("cpu" if device is None else resolve_device(device))
    return Classifier(
        network.model, size=size or network.size, mean=network.mean, std=network.std, labels=labels, name=name
    )


def to_download(name: str) -> str | None:
    """What loading a name without a file will download, in words; None for nothing or an unknown name."""
    source, _, short_name = name.partition(":")
    return SOURCES[source].download(short_name) if source in SOURCES else None


def as_classifier(model: str | nn.Module | Classifier, shape: Shape) -> Classifier:
    """A classifier as it is; of a name or a module, one for images of a shape ``(C, H, W)``."""
    channels, height, width = shape
    return model if isinstance(model, Classifier) else load(model, size=(height, width), channels=channels)


def resolve_device(name: torch.device | str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for the fastest of this machine.

    AgnoscoError if this machine has no such device.
    """
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    available = [kind for kind, count in counts.items() if count]
    if str(name) == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise AgnoscoError(f"no device {name!r}", "choose auto, cpu, cuda or mps") from error
    if (device.index or 0) >= counts.get(device.type, 0):
        raise AgnoscoError(f"this machine has no {str(device)!r}", f"choose auto, or one of: {', '.join(available)}")
    return device


def read_labels(path: Path) -> list[str]:
    """Class names from a UTF-8 file: a JSON list, or one name per line; AgnoscoError for anything else.

    A text that begins with a bracket is a list, unless a letter follows, as in ``[background]``.
    """
    hint = "give one name per line, or a JSON list"
    try:
        text = read_regular(os.path.expanduser(path), most=LIMITS.labels).decode("utf-8-sig").strip()
        names = json.loads(text) if re.match(r"\[(?![^\W\d_])", text) else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise AgnoscoError(f"cannot read labels from {str(path)!r}: {first_line(error)}", hint) from error
    texts = bool(names) and all(isinstance(name, str) for name in names)
    if not texts or any("\ud800" <= character <= "\udfff" for character in "".join(names)):  # halves, as JSON can hold
        raise AgnoscoError(f"{path.name} does not hold a list of names", hint)
    return names


def _moved(network: Network, device: torch.device) -> nn.Module:
    """The model of a network, on a device."""
    try:
        return network.model.to(device)
    except NotImplementedError as error:  # of weights without values, on the device "meta"
        message = f"{network.name} cannot be moved to {str(device)!r}: {first_line(error)}"
        raise AgnoscoError(message, "load its weights first") from error


def _base(given: object) -> str | None:
    """The base name of what was given, if it is a file."""
    return Path(given).name if isinstance(given, str | Path) else None


def _network(
    model: str | nn.Module,
    weights: Path | str | None,
    prompts: Path | str | Sequence[str] | None,
    trust_code: bool,
    allow_pickle: bool,
) -> Network:
    """The network of a name, or a module, of which nothing else is known."""
    if isinstance(model, nn.Module):
        if weights is not None:
            message = f"weights are for an architecture's name, not for a {type(model).__name__}"
            hint = "load them first: model.load_state_dict(agnosco.models.weights.opening.read_weights(path))"
            raise AgnoscoError(message, hint)
        if prompts is not None:
            raise AgnoscoError(*NO_PROMPTS)
        return Network(model, type(model).__name__)
    if not isinstance(model, str):
        raise AgnoscoError(f"{type(model).__name__} is not a classifier", f"pass {FORMS}, or an nn.Module")
    source, _, short_name = model.partition(":")
    if source in SOURCES:
        file = None if weights is None else partial(open_weights, weights, allow_pickle=allow_pickle)
        known = SOURCES[source] if prompts is None else SOURCES[source].with_prompts(prompts)
        network = known.network(short_name, file, trust_code=trust_code)
        for parameter in network.model.eval().parameters():  # one by one, as TorchScript wants it
            parameter.requires_grad_(False)
        return network
    hint = f"give {FORMS}"
    if f"torchvision:{model}" in {row["name"] for row in table()}:
        hint = f"did you mean 'torchvision:{model}'?"
    elif Path(model).suffix in (".safetensors", ".pt", ".pth"):
        hint = "name the architecture, such as torchvision:resnet18, and pass this file as its weights"
    raise AgnoscoError(f"{model!r} does not say where the classifier comes from", hint)
