"""Sources of networks: torchvision, timm, transformers, open_clip, agnosco's own architectures, and a Python file.

A source turns a name into a network, with what is known about its input, and imports its library only then.
"""

import ast
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, get_args

import torch
from torch import nn

from ..errors import AgnoscoError
from ..text import first_line, nearest, one_line
from ..types import SMALLEST_SHARE, Interpolation, Resize
from .architectures import ARCHITECTURES
from .clip import OpenClip
from .filling import WithoutMemory, count_classes, described, fill, with_classes_of
from .hub import CONFIG, REPOSITORIES, Repository
from .huggingface import HuggingFace
from .source import OWN, Network, OpenWeights, Source, downloaded, of_foreign_file


class Torchvision(Source):
    """Classifiers of torchvision, and its segmentation networks, whose scores are averaged over places."""

    def network(self, name: str, weights: OpenWeights | None, *, trust_code: bool) -> Network:
        from torchvision import models

        if name not in torchvision_names():
            raise AgnoscoError(f"torchvision has no classifier {name!r}", nearest(name, torchvision_names()))
        if weights is None:
            load = partial(models.get_model, name, weights="DEFAULT", progress=sys.stderr.isatty())
            model = downloaded(f"torchvision:{name}", load)
            return self._described(model.to(memory_format=torch.channels_last), name)
        with weights() as file:
            auxiliary = any(key.startswith(("aux", "Aux")) for key in file.entries)
            with WithoutMemory():
                model = with_classes_of(file.entries, torchvision_architecture(name, auxiliary=auxiliary))
            fill(model, file, f"torchvision:{name}")
        return self._described(model.to(memory_format=torch.channels_last), name)

    def untrained(self, name: str, classes: int) -> Network | None:
        from torchvision import models

        if name not in models.list_models(module=models):
            return None
        return self._described(models.get_model(name, weights=None, num_classes=classes), name)

    def _described(self, model: nn.Module, name: str) -> Network:
        """A network with what torchvision says about the architecture's own weights."""
        from torchvision import models

        weights = models.get_model_weights(name)["DEFAULT"]
        preset, labels = weights.transforms(), weights.meta["categories"]
        known = count_classes(model) == len(labels)
        return Network(
            model, f"torchvision:{name}", size=getattr(preset, "crop_size", preset.resize_size)[0], mean=preset.mean,
            std=preset.std, labels=labels if known else None, assumed=None if known else OWN,
        )  # fmt: skip

    def download(self, name: str) -> str | None:
        if name not in torchvision_names():
            return None
        from torchvision import models

        weights = models.get_model_weights(name)["DEFAULT"]
        path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
        if path.exists():
            return None
        return f"the weights of torchvision:{name} ({weights.meta['_file_size']:.0f} MB) to {path.parent}"


class Timm(Source):
    """Classifiers of timm."""

    def network(self, name: str, weights: OpenWeights | None, *, trust_code: bool) -> Network:
        try:
            import timm
        except ImportError as error:
            raise AgnoscoError("timm is not installed", "pip install '.[timm]' in the clone of agnosco") from error
        form, _, rest = name.partition(":")
        if form in REPOSITORIES and rest:
            return self._of_repository(form, Repository.of(rest), weights)
        names = [*timm.list_models(), *timm.list_models(pretrained=True)]  # no name of a hub or a folder
        if name not in names:
            raise AgnoscoError(f"timm has no model {name!r}", nearest(name, names))
        full_name, config = f"timm:{name}", timm.get_pretrained_cfg(name)
        if config is None or not config.num_classes:
            message = f"{full_name} outputs features: it has no classes"
            raise AgnoscoError(message, "choose a model with a classification head")
        if weights is None:
            model = downloaded(full_name, partial(timm.create_model, name, pretrained=True))
        else:
            with weights() as file:
                model = with_classes_of(file.entries, partial(timm.create_model, name))
                fill(model, file, full_name)
        known = count_classes(model) == config.num_classes
        labels = None
        if known and config.num_classes == 1000:
            from torchvision import models

            labels = models.ResNet18_Weights.DEFAULT.meta["categories"]
        return Network(
            model.to(memory_format=torch.channels_last), full_name, size=config.input_size[-2:], mean=config.mean,
            std=config.std, labels=labels, assumed=None if known else OWN,
        )  # fmt: skip

    def _of_repository(self, form: str, repository: Repository, weights: OpenWeights | None) -> Network:
        """A network of the hub, or of a folder that timm's ``save_for_hf`` wrote."""
        import timm

        config = repository.json(CONFIG) or {}
        name, settings, arguments = (config.get(key, {}) for key in ("architecture", "pretrained_cfg", "model_args"))
        names = timm.list_models()
        if not isinstance(name, str) or not isinstance(settings, dict) or not isinstance(arguments, dict):
            hint = f"give hf:{repository.given}" if "model_type" in config else "give what timm saved for the hub"
            raise AgnoscoError(f"{repository.given} is no model of timm: its {CONFIG} names no architecture", hint)
        if name not in names:
            raise AgnoscoError(f"timm has no model {name[:80]!r}, which {repository.given} is", nearest(name, names))
        own = inspect.signature(timm.create_model).parameters  # such as paths of files, which no repository may give
        top = {key: config[key] for key in ("num_classes", "global_pool") if key in config}
        arguments = {key: value for key, value in (arguments | top).items() if key not in own}
        create = partial(timm.create_model, name, **arguments)
        full_name = f"timm:{form}:{repository.name}"
        with (weights or repository.weights)() as file:
            model = described("timm", create, file, full_name)
        usual: Any = model.pretrained_cfg
        settings = usual | settings
        size: Any = settings["input_size"]
        size = tuple(size[-2:]) if isinstance(size, list | tuple) else ()
        labels = config.get("label_names", settings.get("label_names"))
        if isinstance(labels, dict):  # names by index
            labels = [labels.get(str(index), index) for index in range(len(labels))]
        names = [one_line(str(label)) for label in labels] if isinstance(labels, list) else None
        network = Network(
            model.to(memory_format=torch.channels_last), full_name, size=size, mean=settings["mean"],
            std=settings["std"], labels=names or None, resize=_resize_of(settings, size),
        )  # fmt: skip
        return of_foreign_file(network, f"{CONFIG} of {repository.given}")

    def download(self, name: str) -> str | None:
        return None if name.startswith("local-dir:") else f"the weights of timm:{name}, unless they are already here"


def _resize_of(settings: dict[str, Any], size: tuple[int, ...]) -> Resize | None:
    """How timm resizes images for a network; None for what :class:`Resize` cannot say, such as borders."""
    share: Any
    mode: Any
    name: Any
    share, mode, name = (settings.get(key) for key in ("crop_pct", "crop_mode", "interpolation"))
    numbers = isinstance(share, int | float) and share > 0 and all(isinstance(side, int) for side in size)
    if not numbers or mode not in ("center", "squash") or name not in get_args(Interpolation) or not size:
        return None
    kept = size[0] / max(math.floor(size[0] / share), 1)  # whole pixels are resized to
    return Resize(kept, mode, name) if SMALLEST_SHARE <= kept <= 1 else None


class Own(Source):
    """Agnosco's own architectures, which have no weights of their own."""

    def network(self, name: str, weights: OpenWeights | None, *, trust_code: bool) -> Network:
        if name not in ARCHITECTURES:
            raise AgnoscoError(f"agnosco has no architecture {name!r}", nearest(name, list(ARCHITECTURES)))
        if weights is None:
            message = f"agnosco:{name} has no weights of its own"
            raise AgnoscoError(message, "pass a file of them: weights=FILE.safetensors (--weights)")
        create, shape = ARCHITECTURES[name]
        with weights() as file:
            model = with_classes_of(file.entries, lambda num_classes=10: create(num_classes))
            fill(model, file, f"agnosco:{name}")
        return Network(model, f"agnosco:{name}", size=shape[1:])

    def untrained(self, name: str, classes: int) -> Network | None:
        if name not in ARCHITECTURES:
            return None
        create, shape = ARCHITECTURES[name]
        return Network(create(classes), f"agnosco:{name}", size=shape[1:])


class PythonFile(Source):
    """Networks that a user's Python file builds."""

    def network(self, name: str, weights: OpenWeights | None, *, trust_code: bool) -> Network:
        stem, separator, factory = name.partition(".py:")
        if not separator:
            raise AgnoscoError(f"'python:{name}' does not name a file and a factory", "give python:FILE.py:FACTORY")
        path = Path(f"{stem}.py")
        if not trust_code:
            message = f"'python:{name}' runs the code of {path.name}"
            raise AgnoscoError(message, "if you trust that file, add --trust-code")
        model = _built_by_file(path, factory)
        absolute = os.path.isabs(os.path.expanduser(path))
        full_name = f"python:{path.name}:{factory}" if absolute else f"python:{name}"  # no folder of this machine
        if weights is not None:
            with weights() as file:
                fill(model, file, full_name)
        return Network(model, full_name)


SOURCES: dict[str, Source] = {
    "torchvision": Torchvision(), "timm": Timm(), "hf": HuggingFace(), "open_clip": OpenClip(), "agnosco": Own(),
    "python": PythonFile(),
}  # fmt: skip
"""By the first part of a name, before the colon."""


def torchvision_names() -> list[str]:
    """Torchvision's classifiers and segmentation networks."""
    from torchvision import models

    return [*models.list_models(module=models), *models.list_models(module=models.segmentation)]


def torchvision_architecture(name: str, *, auxiliary: bool = False) -> Callable[..., nn.Module]:
    """Builds a network of torchvision for ``num_classes``; ``auxiliary``: with heads that only training uses."""
    from torchvision import models

    options: dict[str, Any] = {}
    if name in models.list_models(module=models.segmentation):
        options = {"weights_backbone": None, "aux_loss": auxiliary}
    if name in ("googlenet", "inception_v3"):  # as torchvision does when it loads its own weights
        options = {"transform_input": True, "init_weights": False, "aux_logits": auxiliary}
    return partial(models.get_model, name, weights=None, **options)


@contextmanager
def _same_directory() -> Iterator[None]:
    """The working directory, to which paths refer, is the same afterwards; there is one for all threads."""
    before = None
    with suppress(OSError):  # it may be gone
        before = os.getcwd()
    try:
        yield
    finally:
        if before is not None:
            with suppress(OSError):  # it may be one that cannot be entered
                os.chdir(before)


@_same_directory()
def _built_by_file(path: Path, factory: str) -> nn.Module:
    """The network that a factory in a Python file returns; the file is run, and may change the working directory.

    The factory is a callable without arguments, or a call with literal ones, such as ``CifarResNet(20)``. AgnoscoError
    if there is no such file or factory, it fails, or it does not return an ``nn.Module``.
    """
    function_name, args, options = _parse_call(factory)
    module = _import_file(Path(os.path.expanduser(path)))
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if not name.startswith("_") and callable(value)]
        factories = [name for name in names if getattr(vars(module)[name], "__module__", None) == module.__name__]
        raise AgnoscoError(f"{path.name} has no factory {function_name!r}", nearest(function_name, factories))
    model = _run(partial(function, *args, **options), f"{function_name} of {path.name}")
    if not isinstance(model, nn.Module):
        message = f"{function_name} of {path.name} returns {type(model).__name__}"
        raise AgnoscoError(message, "it must return an nn.Module")
    return model


def _parse_call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
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
        message = f"{text!r} is neither a name nor a call with plain values"
        raise AgnoscoError(message, "write it like build or Net(20, classes=10)") from error


class _Source(SourceFileLoader):
    """Runs the text of a file, whose digest a run notes: bytecode beside it may be of another, and none is left."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _import_file(path: Path) -> ModuleType:
    """The module of a file, under a private name."""
    if not os.path.isfile(path):
        raise AgnoscoError(f"there is no file {str(path)!r}", "check the path and its permissions")
    name = f"_agnosco_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, str(path)))
    assert spec is not None  # since it has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    _run(partial(spec.loader.exec_module, module), path.name)
    return module


def _run(action: Callable[[], Any], what: str) -> Any:
    """What foreign code returns; AgnoscoError if it raises anything, or wants to exit."""
    try:
        return action()
    except (Exception, SystemExit) as error:
        message = f"{what} raised {type(error).__name__}: {first_line(error)}"
        raise AgnoscoError(message, "correct the file, or the call") from error
