"""Hooks that hear what one thread sends through a network: others may send images through the same one meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any


def of_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of a module that is called for what the thread does that made it, and passed over for all others."""
    own = threading.get_ident()

    @wraps(hook)
    def heard(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if threading.get_ident() == own else None

    return heard
