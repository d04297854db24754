"""Networks frozen while they are used, by several at once if need be: copies, shared layers, threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_LOCK = (
    threading.RLock()
)  # which this thread may hold: garbage collection, anywhere, may end a generator that is inside
_HELD: dict[int, _Held] = {}
"""What is frozen now, by the identifiers of modules and parameters."""


class _Held:
    """A module or parameter, what it was before anyone froze it, and who is inside."""

    def __init__(self, thing: nn.Module | nn.Parameter) -> None:
        self.thing = thing
        self.flag = "training" if isinstance(thing, nn.Module) else "requires_grad"
        self.before: bool = getattr(thing, self.flag)
        self.users: set[object] = set()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients of weights inside; as before once all who use a module or weight are outside."""
    modules, parameters = list(filter(_has_a_mode, model.modules())), list(model.parameters())
    things = [*modules, *parameters]
    user = object()
    try:
        with _LOCK:
            for thing in things:
                held = _HELD.get(id(thing)) or _Held(thing)
                held.users.add(user)
                _HELD[id(thing)] = held  # again, if a user left by garbage collection meanwhile
        if any(module.training for module in modules):
            model.eval()
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.requires_grad_(False)
        yield
    finally:
        with _LOCK:
            for thing in things:
                if held := _HELD.get(id(thing)):
                    held.users.discard(user)
                    if not held.users:
                        _HELD.pop(id(thing), None)
                        setattr(thing, held.flag, held.before)


def _has_a_mode(module: nn.Module) -> bool:
    """Whether its mode is its own: one of ``torch.compile`` passes it on to the module within."""
    return not isinstance(getattr(type(module), "training", None), property)
