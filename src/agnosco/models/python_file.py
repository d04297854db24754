"""Builds a network with a user's Python file, ``python:FILE.py:FACTORY``, which is run."""

import ast
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import AgnoscoError
from ..text import first_line, nearest


def build(path: Path, factory: str) -> nn.Module:
    """The network that a factory in a Python file returns; the file is run.

    The factory is a callable without arguments, or a call with literal ones, such as ``CifarResNet(20)``. AgnoscoError
    if there is no such file or factory, it fails, or it does not return an ``nn.Module``.
    """
    function_name, args, options = _parse_call(factory)
    module = _import_file(path.expanduser())
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


def _import_file(path: Path) -> ModuleType:
    """The module of a file, under a private name."""
    if not path.is_file():
        raise AgnoscoError(f"there is no file {str(path)!r}", "check the path")
    spec = importlib.util.spec_from_file_location(f"_agnosco_{path.stem}", path)
    assert spec is not None  # since the file's name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    _run(partial(spec.loader.exec_module, module), path.name)
    return module


def _run(action: Callable[[], Any], what: str) -> Any:
    try:
        return action()
    except (Exception, SystemExit) as error:
        message = f"{what} raised {type(error).__name__}: {first_line(error)}"
        raise AgnoscoError(message, "correct the file, or the call") from error
