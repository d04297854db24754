"""Networks frozen while they are used, by several at once if need be: copies, shared layers, threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_LOCK = threading.RLock()
"""This thread may hold it already: garbage collection, anywhere, may end a generator that is inside."""

_NETWORKS: dict[int, _Network] = {}
"""Networks that somebody uses, by their identifiers."""

_HELD: dict[int, _Held] = {}
"""What is frozen now, by the identifiers of modules and parameters."""


class _User:
    """Somebody who has a network frozen, and is inside until the first moment of leaving."""

    inside = True


class _Network:
    """A network, its modules and parameters, and who uses it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules, self.parameters = list(filter(_has_a_mode, model.modules())), list(model.parameters())
        self.users: set[_User] = set()
        self.is_frozen = False

    @property
    def inside(self) -> bool:
        """Whether anybody uses it."""
        return any(user.inside for user in list(self.users))  # garbage collection may end some meanwhile

    def freeze(self) -> None:
        if any(module.training for module in self.modules):
            self.model.eval()
        for parameter in self.parameters:
            if parameter.requires_grad:
                parameter.requires_grad_(False)
        self.is_frozen = True


class _Held:
    """A module or parameter, what it was before anyone froze it, and the networks that it is part of."""

    def __init__(self, thing: nn.Module | nn.Parameter) -> None:
        self.thing = thing
        self.flag = "training" if isinstance(thing, nn.Module) else "requires_grad"
        self.before: bool = getattr(thing, self.flag)
        self.networks: set[_Network] = set()

    def restore(self) -> None:
        if getattr(self.thing, self.flag) != self.before:
            setattr(self.thing, self.flag, self.before)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients of weights inside; as before once all who use a module or weight are outside.

    Of who enters a network that others use, only the mode of the whole is looked at again, and not that of its parts.
    """
    user = _User()
    with _LOCK:
        network = _NETWORKS.get(id(model))
        if network and not network.inside:  # its last user was interrupted in leaving
            _release(network)
            network = None
        network = network or _Network(model)
    try:
        with _LOCK:
            alone = not network.inside
            network.users.add(user)
            if alone or _NETWORKS.get(id(model)) is not network:  # or garbage collection has ended its last user
                _hold(network)
        if model.training or not network.is_frozen:
            network.freeze()
        yield
    finally:
        user.inside = False  # first of all: if the rest is interrupted, the next who leaves makes it good
        with _LOCK:
            network.users.discard(user)
            if not network.inside:
                _release(network)


def _hold(network: _Network) -> None:
    """Note what its modules and parameters are before it is frozen."""
    for thing in (*network.modules, *network.parameters):
        held = _HELD.get(id(thing)) or _Held(thing)
        held.networks.add(network)
        _HELD[id(thing)] = held  # again, if garbage collection released it meanwhile
    network.is_frozen = False
    _NETWORKS[id(network.model)] = network


def _release(network: _Network) -> None:
    """Let what no other network uses be as before."""
    for thing in (*network.modules, *network.parameters):
        if held := _HELD.get(id(thing)):
            held.networks.discard(network)
            if not any(other.inside for other in list(held.networks)):
                held.restore()
                _HELD.pop(id(thing), None)
    if _NETWORKS.get(id(network.model)) is network:
        del _NETWORKS[id(network.model)]


def _has_a_mode(module: nn.Module) -> bool:
    """Whether its mode is its own: one of ``torch.compile`` passes it on to the module within."""
    return not isinstance(getattr(type(module), "training", None), property)
