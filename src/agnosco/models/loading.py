"""Where classifiers come from: a name and, for weights of one's own, a file.

There are four kinds of names. ``torchvision:resnet18`` and ``timm:resnet18`` are architectures from
those libraries' lists, with their own weights or with a file's; ``agnosco:digits`` is one of
:mod:`agnosco.models.architectures`, with a file's. ``python:FILE.py:FACTORY`` runs a file, and so needs
``trust_code``. Weights files come in through :mod:`agnosco.models.weights`: one of unknown origin is opened without
running anything that it holds (torchvision and timm fetch and open their own weights themselves). A network is
built, and weights are read, only when the shapes in the file are those of the architecture.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from ..errors import AgnoscoError, AgnoscoWarning
from ..text import nearest
from .architectures import ARCHITECTURES
from .classifier import Classifier
from .weights import CODES, LIMITS, Weights, opened, read_text

FORMS = "torchvision:NAME, timm:NAME, agnosco:NAME or python:FILE.py:FACTORY"

_File = Callable[[], AbstractContextManager[Weights]]
"""Opens the file of weights, when it is its turn: a name is looked up first."""


@dataclass(frozen=True)
class _Found:
    """A model, and what its source says about how to feed it.

    ``assumed`` is true where the preprocessing is that of the architecture's own weights while these
    are others, with other classes: probably right (most are fine-tuned from those), but not known.
    """

    model: nn.Module
    name: str | None = None
    size: int | tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    labels: Sequence[str] | None = None
    assumed: bool = False


def load(
    spec: str | nn.Module | Classifier,
    *,
    weights: Path | str | None = None,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels: int | None = None,
    labels: Sequence[str] | Path | None = None,
    features: str | None = None,
    device: torch.device | str | None = None,
    trust_code: bool = False,
    allow_pickle: bool = False,
) -> Classifier:
    """A classifier, by name.

    Args:
        spec: ``"torchvision:NAME"``, ``"timm:NAME"``, ``"agnosco:NAME"``, ``"python:FILE.py:FACTORY"`` (a
            callable without arguments, or a call with literal ones such as ``CifarResNet(20)``), or a
            module of one's own. A :class:`Classifier` comes back as it is.
        weights: A safetensors file for a named architecture; ``None`` for its own weights, which
            torchvision or timm download.
        size, mean, std, channels, features: See :class:`Classifier`; ``None`` takes what comes with
            the name.
        labels: One name per class, or a file of them: one per line, or a JSON list.
        device: See :func:`resolve_device`; ``None`` leaves the model where it is (a named one: the CPU).
        trust_code: Allow ``python:``, which runs the file.
        allow_pickle: Allow weights that are a pickle of tensors (``.pt``, ``.pth``), opened by a limited process.

    Raises:
        AgnoscoError: No such name, weights that :func:`agnosco.models.weights.opened` refuses or that belong to another
            architecture, no network, no such device; or what :class:`Classifier` finds wrong.

    Example:
        >>> load("torchvision:resnet18", weights="resnet18.safetensors").index("goldfish")
        1
    """
    if isinstance(spec, Classifier):
        if any(option is not None for option in (weights, size, mean, std, channels, labels, features, device)):
            raise AgnoscoError("a Classifier is what it is", "pass its model to load, or use Classifier.to(device)")
        return spec
    where = None if device is None else resolve_device(device)
    names = _read_labels(Path(labels)) if isinstance(labels, str | Path) else labels
    if isinstance(spec, nn.Module):
        found = _as_it_is(spec, weights)
    else:
        file = None if weights is None else partial(opened, weights, allow_pickle=allow_pickle)
        found = _named(spec, file, trust_code)
        found.model.eval().requires_grad_(False)
    if found.assumed and None in (size, mean, std):
        warnings.warn(
            f"{found.name} is fed as its own weights are: {found.size} px, mean {tuple(found.mean or ())}, "
            f"std {tuple(found.std or ())}; give size, mean and std if these were trained otherwise",
            AgnoscoWarning,
            stacklevel=2,
        )
    return Classifier(
        found.model if where is None else found.model.to(where),
        size=found.size if size is None else size,
        mean=found.mean if mean is None else mean,
        std=found.std if std is None else std,
        channels=channels,
        labels=found.labels if names is None else names,
        features=features,
        name=found.name,
    )


def untrained(
    spec: str,
    *,
    classes: int,
    seed: int = 0,
    weights: Path | str | None = None,
    size: int | None = None,
    labels: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    allow_pickle: bool = False,
) -> Classifier:
    """An architecture to be trained: random weights of a seed, or those of a file but for a head of other classes.

    Args:
        spec: ``"torchvision:NAME"`` or ``"agnosco:NAME"``.
        classes: How many it is to tell apart.
        seed: Of the random weights.
        weights: A file to begin with.
        size: Height and width of the images; the architecture's own if None.
        labels: One name per class.
        device: See :func:`resolve_device`.
        allow_pickle: See :func:`load`.

    Raises:
        AgnoscoError: No such architecture or device, or weights that do not fit it.
    """
    door, _, name = spec.partition(":")
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    if door == "torchvision" and name in _torchvision_names():
        preset = models.get_model_weights(name)["DEFAULT"].transforms()
        size, mean, std = size or preset.crop_size[0], preset.mean, preset.std
        create = partial(models.get_model, name, weights=None, num_classes=classes)
    elif door == "agnosco" and name in ARCHITECTURES:
        size = size or ARCHITECTURES[name][1][1]
        create = partial(ARCHITECTURES[name][0], classes)
    else:
        raise AgnoscoError(
            f"{spec!r} is no architecture to train", f"give torchvision:NAME, or agnosco:{'|'.join(ARCHITECTURES)}"
        )
    with torch.random.fork_rng(devices=[]):  # the caller's own chance stays as it is
        torch.manual_seed(seed)
        model = create()
    if weights is not None:
        with opened(weights, allow_pickle=allow_pickle) as file:
            head, own = _head(model), model.state_dict()
            other = head not in file.shapes or file.shapes[head].shape != own[head].shape
            replaced = (head, f"{head.removesuffix('weight')}bias") if other else ()
            _fill(model, file, spec, instead={key: own[key] for key in replaced if key in own})
    model.to("cpu" if device is None else resolve_device(device))
    return Classifier(model, size=size, mean=mean, std=std, labels=labels, name=spec)


def to_download(spec: str) -> str | None:
    """What loading a model with its own weights will fetch, in words; None if nothing, or if there is no such model."""
    door, _, name = spec.partition(":")
    if door == "timm":
        return f"the weights of {spec}, unless they are here"
    if door != "torchvision" or name not in _torchvision_names():
        return None
    own = models.get_model_weights(name)["DEFAULT"]
    kept = Path(torch.hub.get_dir()) / "checkpoints" / own.url.rpartition("/")[2]
    return None if kept.exists() else f"the weights of {spec} ({own.meta['_file_size']:.0f} MB) to {kept.parent}"


def resolve_device(name: torch.device | str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for the fastest there is.

    Raises:
        AgnoscoError: There is no such device on this machine.
    """
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    here = [kind for kind, count in counts.items() if count]
    if str(name) == "auto":
        return torch.device(here[0])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise AgnoscoError(f"no device {name!r}", "choose auto, cpu, cuda or mps") from error
    if (device.index or 0) >= counts.get(device.type, 0):
        raise AgnoscoError(f"this machine has no {str(device)!r}", f"choose auto, or one of: {', '.join(here)}")
    return device


# -- the doors -------------------------------------------------------------------------------------


def _as_it_is(model: nn.Module, weights: Path | str | None) -> _Found:
    if weights is not None:
        raise AgnoscoError(
            f"weights go with an architecture's name, not with a {type(model).__name__}",
            "load them into the model first: model.load_state_dict(weights.read_weights(path))",
        )
    return _Found(model)


def _named(spec: object, file: _File | None, trust_code: bool) -> _Found:
    if not isinstance(spec, str):
        raise AgnoscoError(f"{type(spec).__name__} is no classifier", f"pass {FORMS}, or an nn.Module")
    door, _, name = spec.partition(":")
    if door == "torchvision":
        return _from_torchvision(name, file)
    if door == "timm":
        return _from_timm(name, file)
    if door == "agnosco":
        return _from_our_own(name, file)
    if door == "python":
        return _from_python(name, file, trust_code)
    hint = f"give {FORMS}"
    if spec in _torchvision_names():
        hint = f"did you mean 'torchvision:{spec}'?"
    elif Path(spec).suffix in (".safetensors", ".pt", ".pth"):
        hint = "name the architecture, such as torchvision:resnet18, and pass this file as its weights"
    raise AgnoscoError(f"{spec!r} does not say where the classifier comes from", hint)


def _from_torchvision(name: str, file: _File | None) -> _Found:
    if name not in _torchvision_names():
        raise AgnoscoError(f"torchvision has no classifier {name!r}", nearest(name, _torchvision_names()))
    spec = f"torchvision:{name}"
    own = models.get_model_weights(name)["DEFAULT"]
    if file is None:
        model = _downloaded(spec, partial(models.get_model, name, weights=own, progress=sys.stderr.isatty()))
    else:
        with file() as weights:
            try:
                model = _torchvision_architecture(name, weights.shapes, device="meta")
            except NotImplementedError:  # RegNet computes its widths with tensors
                model = _torchvision_architecture(name, weights.shapes, device="cpu")
            _fill(model, weights, spec)
    preset, categories = own.transforms(), own.meta["categories"]
    known = _classes(model) == len(categories)
    return _Found(
        model.to(memory_format=torch.channels_last),
        name=spec,
        size=preset.crop_size[0],
        mean=preset.mean,
        std=preset.std,
        labels=categories if known else None,
        assumed=not known,
    )


def _from_timm(name: str, file: _File | None) -> _Found:
    try:
        import timm
    except ImportError as error:
        raise AgnoscoError("timm is not installed", "pip install '.[timm]' in the clone of agnosco") from error
    names = [*timm.list_models(), *timm.list_models(pretrained=True)]  # and no name of a hub or a folder
    if name not in names:
        raise AgnoscoError(f"timm has no model {name!r}", nearest(name, names))
    spec, own = f"timm:{name}", timm.get_pretrained_cfg(name)
    if own is None or not own.num_classes:
        raise AgnoscoError(f"{spec} answers features: it has no classes", "choose a model with a classification head")
    if file is None:
        model = _downloaded(spec, partial(timm.create_model, name, pretrained=True))
    else:
        with file() as weights:
            model = _with_classes_of(weights.shapes, partial(timm.create_model, name))
            _fill(model, weights, spec)
    imagenet = models.ResNet18_Weights.DEFAULT.meta["categories"]
    known = _classes(model) == own.num_classes
    return _Found(
        model.to(memory_format=torch.channels_last),
        name=spec,
        size=own.input_size[-2:],
        mean=own.mean,
        std=own.std,
        labels=imagenet if known and own.num_classes == len(imagenet) else None,
        assumed=not known,
    )


def _from_our_own(name: str, file: _File | None) -> _Found:
    if name not in ARCHITECTURES:
        raise AgnoscoError(f"agnosco has no architecture {name!r}", nearest(name, list(ARCHITECTURES)))
    if file is None:
        raise AgnoscoError(
            f"agnosco:{name} has no weights of its own", "pass a file of them: weights=FILE.safetensors (--weights)"
        )
    create, shape = ARCHITECTURES[name]
    with file() as weights:
        model = _with_classes_of(weights.shapes, _by_number(create))
        _fill(model, weights, f"agnosco:{name}")
    return _Found(model, name=f"agnosco:{name}", size=shape[1:])


def _from_python(rest: str, file: _File | None, trust_code: bool) -> _Found:
    stem, found, factory = rest.partition(".py:")
    if not found:
        raise AgnoscoError(f"'python:{rest}' names no file and factory", "give python:FILE.py:FACTORY")
    path = Path(f"{stem}.py").expanduser()
    if not trust_code:
        raise AgnoscoError(f"'python:{rest}' runs the code of {path.name}", "if you trust that file, add --trust-code")
    name, args, options = _parsed_call(factory)
    module = _imported(path)
    create = getattr(module, name, None)
    if not callable(create):
        raise AgnoscoError(f"{path.name} has no factory {name!r}", nearest(name, _callables(module)))
    model = _run(partial(create, *args, **options), f"{name} of {path.name}")
    if not isinstance(model, nn.Module):
        raise AgnoscoError(f"{name} of {path.name} gives {type(model).__name__}", "it has to return an nn.Module")
    spec = f"python:{path.name if path.is_absolute() else f'{stem}.py'}:{factory}"  # no folder of this machine
    if file is not None:
        with file() as weights:
            _fill(model, weights, spec)
    return _Found(model, name=spec)


# -- architectures and their weights -----------------------------------------------------------------


def _torchvision_names() -> list[str]:
    return models.list_models(module=models)


def _downloaded(spec: str, create: Callable[[], nn.Module]) -> nn.Module:
    try:
        return create()
    except (OSError, RuntimeError, HTTPException) as error:
        raise AgnoscoError(
            f"cannot download the weights of {spec}: {_first_line(error)}",
            "without a network, pass a file of them: weights=FILE.safetensors (--weights)",
        ) from error


def _torchvision_architecture(name: str, tensors: Mapping[str, Tensor], *, device: str) -> nn.Module:
    """An architecture that ``tensors`` should fit; on the meta device it costs neither memory nor time."""
    options: dict[str, bool] = {}
    if name in ("googlenet", "inception_v3"):  # what torchvision sets when it loads its own weights
        auxiliary = any(key.startswith(("aux", "Aux")) for key in tensors)
        options = {"transform_input": True, "init_weights": False, "aux_logits": auxiliary}
    with torch.device(device):
        return _with_classes_of(tensors, partial(models.get_model, name, weights=None, **options))


def _with_classes_of(tensors: Mapping[str, Tensor], create: Callable[..., nn.Module]) -> nn.Module:
    """A model with as many classes as the same last layer has in ``tensors``."""
    model = create()
    key = _head(model)
    own, given = model.get_parameter(key), tensors.get(key)
    if given is None or given.shape[1:] != own.shape[1:] or len(given) == len(own):
        return model
    if len(given) > LIMITS.classes:
        raise AgnoscoError(
            f"{len(given):,} classes are more than are mapped (at most {LIMITS.classes:,})",
            "no sound weights come near it; docs/security.md has the limits",
            exit_code=CODES["limit"],
        )
    return create(num_classes=len(given))


def _by_number(create: Callable[[int], nn.Module]) -> Callable[..., nn.Module]:
    """One of our own architectures, made as torchvision's and timm's are."""
    return lambda num_classes=10: create(num_classes)


def _head(model: nn.Module) -> str:
    """Name of the last layer's weight."""
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def _classes(model: nn.Module) -> int:
    return len(model.get_parameter(_head(model)))


def _fill(model: nn.Module, weights: Weights, spec: str, *, instead: Mapping[str, Tensor] | None = None) -> None:
    """Give a model its weights, all of them and no others, read only if they fit; ``instead`` replaces some."""
    instead = instead or {}
    difference = _difference(model, {**weights.shapes, **instead})
    if difference:
        message = f"{weights.name} does not hold the weights of {spec}: {difference}"
        raise AgnoscoError(message, _architecture_hint(weights.shapes))
    state = model.state_dict()  # with the versions of its layers, which a file has not and MNASNet asks for
    counters = {key: torch.tensor(0) for key in state if key.endswith("num_batches_tracked")}  # of training only
    state.update({**counters, **weights.read(), **instead})
    model.load_state_dict(state, assign=True)


def _difference(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """What keeps tensors from being a model's weights; empty if nothing does."""
    own = {key: tensor for key, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    shared = [key for key in own if key in tensors]
    differences = {
        "missing": [key for key in own if key not in tensors and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in sorted(tensors) if key not in own],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
            for key in shared
            if tensors[key].shape != own[key].shape
        ],
        "of whole numbers": [
            key for key in shared if own[key].is_floating_point() and not tensors[key].is_floating_point()
        ],
    }
    return "; ".join(f"{len(keys)} {what} ({_few(keys)})" for what, keys in differences.items() if keys)


def _architecture_hint(tensors: Mapping[str, Tensor]) -> str:
    found = fitting(tensors)
    if found is not None:
        return f"they are those of {found[0]}"
    return f"name the architecture that they were saved from; they hold {_few(sorted(tensors))}"


FEWEST = 16
"""Tensors of AlexNet, which has the fewest of torchvision's architectures."""

HEADS = {
    "fc.weight": ("resnet", "resnext", "wide_resnet", "shufflenet", "googlenet", "inception"),
    "classifier.weight": ("densenet",),
    "classifier.1.weight": ("efficientnet", "mnasnet", "mobilenet_v2", "squeezenet"),
    "classifier.2.weight": ("convnext",), "classifier.3.weight": ("mobilenet_v3",),
    "classifier.5.weight": ("maxvit",), "classifier.6.weight": ("alexnet", "vgg"),
    "head.weight": ("swin",), "heads.head.weight": ("vit",),
}  # fmt: skip
"""Last layers of torchvision's architectures, by how the names of these begin: making one to look takes a while."""


def fitting(tensors: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Of our own and torchvision's architectures the one that tensors are the weights of, and its number of classes.

    Names and shapes tell; the tensors may be on the meta device.
    """
    for name, create in _candidates(tensors):
        with suppress(NotImplementedError, AgnoscoError):  # RegNets are not looked at; too many classes fit nothing
            model = create()
            if not _difference(model, tensors):
                return name, _classes(model)
    return None


def _candidates(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Architectures by name, on the meta device, the likest in number of parameters first."""
    for name, (create, _) in ARCHITECTURES.items():
        yield f"agnosco:{name}", partial(_on_meta, tensors, _by_number(create))
    if len(tensors) < FEWEST:
        return
    count = max(sum(tensor.numel() for tensor in tensors.values()), 1)
    families = tuple(family for head, names in HEADS.items() if head in tensors for family in names)
    unlike = {
        name: abs(math.log(models.get_model_weights(name)["DEFAULT"].meta["num_params"] / count))
        for name in _torchvision_names()
        if name.startswith(families)
    }
    for name in sorted(unlike, key=unlike.__getitem__):
        if unlike[name] > math.log(4):  # more than another number of classes can make of it
            return
        yield f"torchvision:{name}", partial(_torchvision_architecture, name, tensors, device="meta")


def _on_meta(tensors: Mapping[str, Tensor], create: Callable[..., nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return _with_classes_of(tensors, create)


# -- the code of a file ------------------------------------------------------------------------------


def _parsed_call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name, arguments and keyword arguments of ``NAME`` or ``NAME(literal, key=literal)``."""
    try:
        node = ast.parse(text, mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name):
            raise ValueError("not a name")
        args = [ast.literal_eval(argument) for argument in call.args]
        options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
        if len(options) < len(call.keywords):
            raise ValueError("** in a call")
        return call.func.id, args, options
    except (SyntaxError, ValueError, TypeError) as error:
        raise AgnoscoError(
            f"{text!r} is neither a name nor a call with plain values", "give it as build or as Net(20, classes=10)"
        ) from error


def _imported(path: Path) -> ModuleType:
    """The module of a file, under a private name."""
    if not path.is_file():
        raise AgnoscoError(f"there is no file {str(path)!r}", "check the path")
    spec = importlib.util.spec_from_file_location(f"_agnosco_{path.stem}", path)
    assert spec is not None  # since the file's name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    _run(partial(spec.loader.exec_module, module), path.name)
    return module


def _run(action: Callable[[], Any], what: str) -> Any:
    try:
        return action()
    except (Exception, SystemExit) as error:
        message = f"{what} raised {type(error).__name__}: {_first_line(error)}"
        raise AgnoscoError(message, "mend the file, or the call") from error


def _callables(module: ModuleType) -> list[str]:
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and callable(value)}
    return [name for name, value in own.items() if getattr(value, "__module__", None) == module.__name__]


# -- words -------------------------------------------------------------------------------------------


def _read_labels(path: Path) -> list[str]:
    """Names of classes from a file: a JSON list, or one per line."""
    try:
        text = read_text(path).strip()
        names = json.loads(text) if text.startswith("[") else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError, RecursionError) as error:  # no text and no JSON are ValueErrors
        raise AgnoscoError(
            f"cannot read labels from {str(path)!r}: {_first_line(error)}", "give one name per line, or a JSON list"
        ) from error
    if not names or not all(isinstance(name, str) and _is_text(name) for name in names):
        raise AgnoscoError(f"{path.name} holds no list of names", "give one name per line, or a JSON list")
    return names


def _is_text(name: str) -> bool:
    """Whether it can be written: JSON may name halves of characters."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _few(keys: Sequence[str]) -> str:
    """Up to three names, quoted, since they come from files."""
    return ", ".join(repr(key[:80]) for key in keys[:3]) + (", …" if len(keys) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
