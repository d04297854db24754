"""Hooks that hear what one thread sends through a network: others may send images through the same one meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def of_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of a module, to be called only in the thread that calls this function; in others it does nothing.

    It is not called in threads that the network itself begins, as ``nn.DataParallel`` does.
    """
    own = threading.local()  # unlike an identifier, it is never another thread's later, and torch.compile knows it
    own.here = True

    def heard(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if getattr(own, "here", False) else None

    return heard


def submodule_names(model: nn.Module) -> dict[nn.Module, str]:
    """The names of all submodules that can have hooks: those of TorchScript cannot."""
    scripted = torch.jit.ScriptModule
    return {module: name for name, module in model.named_modules() if name and not isinstance(module, scripted)}
