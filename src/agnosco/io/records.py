"""JSON files that may come from anyone: read, and held against the shape of what is read of them later."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..errors import AgnoscoError
from .storage import Folder

NUMBER = int | float

FAR = 1e300
"""Numbers beyond it are refused: JSON knows infinity, and whole numbers that no float holds."""


def read(
    folder: Folder, name: str, wanted: Any, *, hint: str, sound: Callable[[Any], bool] = lambda found: True
) -> Any | None:
    """What a file of a folder holds; None if there is none.

    Args:
        folder, name: Where it lies.
        wanted: See :func:`check_shape`.
        hint: What to do about a file that is damaged, or another version's.
        sound: Whether the parts of it agree, once each of them is of its type.

    Raises:
        AgnoscoError: It is not what is wanted.
    """
    try:
        content = folder.read(name)
    except FileNotFoundError:
        return None
    try:
        found = json.loads(content.decode())
        check_shape(wanted, found)
        if not sound(found):
            raise ValueError("its parts do not agree")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AgnoscoError(f"cannot read {folder.at(name)!r}: it is damaged, or of another version", hint) from error
    return found


def check_shape(wanted: Any, found: Any, name: str = "it") -> None:
    """Make sure that what is read later is there and of its type, and that no number is out of bounds.

    Args:
        wanted: A type; a dict of what is wanted of each key, or of ``str`` for every key; a list of one thing for any
            number of such, of several for as many; or a tuple of None and what else it may be.
        found: What JSON gave.
        name: What it is called.

    Raises:
        TypeError, KeyError, ValueError: It is not.
    """
    if isinstance(wanted, tuple):
        if found is not None:
            check_shape(wanted[1], found, name)
    elif isinstance(wanted, dict):
        _check(isinstance(found, dict), name, found)
        for key, kind in wanted.items():
            for own in found if key is str else (key,):
                check_shape(kind, found[own], own)
    elif isinstance(wanted, list):
        _check(isinstance(found, list) and len(wanted) in (1, len(found)), name, found)
        for kind, one in zip(wanted * len(found) if len(wanted) == 1 else wanted, found, strict=True):
            check_shape(kind, one, name)
    else:
        _check(isinstance(found, wanted) and (not isinstance(found, NUMBER) or abs(found) < FAR), name, found)


def _check(right: bool, name: str, found: Any) -> None:
    if not right:
        raise TypeError(f"{name} is {str(found)[:80]}")
