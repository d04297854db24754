"""Typed JSON records in files that may come from anyone: what is read is of its types, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from ..errors import AgnoscoError
from .storage import Folder

NUMBER = int | float

FAR = 1e300
"""Numbers beyond it are refused: JSON knows infinity, and whole numbers that no float holds."""

T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object whose keys and types are known.

    A subclass says ``frozen=True`` too and names its fields and their types. ``rename={"name": "class"}`` gives a field
    another name in JSON; ``__post_init__`` raises ValueError where fields do not agree with each other.
    """


def read(folder: Folder, name: str, kind: type[T], *, hint: str) -> T | None:
    """The record in a file of a folder; None if there is no such file.

    Args:
        folder: The folder.
        name: The file's path inside it.
        kind: A :class:`Record`, or any type of them that msgspec knows.
        hint: What to do about a file that is damaged or of another version.

    Raises:
        AgnoscoError: The file holds no such record, or cannot be read.
    """
    try:
        return decode(folder.read(name), kind)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged(folder, name, hint) from error


def write(folder: Folder, name: str, record: Any) -> str:
    """Write a record as JSON, whole or not at all; returns the file's full name.

    Raises:
        AgnoscoError: It cannot be written.
        ValueError: It holds a number that is not finite.
    """
    return folder.write(name, encode(record))


def decode(content: bytes, kind: type[T]) -> T:
    """The record in the bytes of a JSON file: :func:`parse`, then :func:`convert`."""
    return convert(parse(content), kind)


def parse(content: bytes) -> Any:
    """What JSON says.

    Raises:
        ValueError: It is not JSON, nested too deeply, or a number in it is beyond :data:`FAR`.
    """
    try:
        data = json.loads(content.decode())
        _check_numbers(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return data


def convert(data: Any, kind: type[T]) -> T:
    """JSON values as a record. Types are strict: no text is a number, no boolean and no fraction an integer.

    Raises:
        ValueError: The values are not of this type.
    """
    return msgspec.convert(data, kind)


def encode(record: Any) -> bytes:
    """A record as a JSON file: one value a line, keys in order.

    Raises:
        ValueError: It holds a number that is not finite.
    """
    return (json.dumps(msgspec.to_builtins(record), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def to_json(record: Any) -> Any:
    """A record as plain JSON values, as they are read back: tuples as lists."""
    return json.loads(json.dumps(msgspec.to_builtins(record)))


def _check_numbers(data: Any) -> None:
    if isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            _check_numbers(value)
    elif isinstance(data, NUMBER) and not abs(data) < FAR:  # which NaN is not either
        raise ValueError(f"{str(data)[:20]} is out of bounds")


def _damaged(folder: Folder, name: str, hint: str) -> AgnoscoError:
    return AgnoscoError(f"cannot read {folder.at(name)!r}: it is damaged, or of another version", hint)


# -- what evaluate and backdoor still use ------------------------------------------------------------


def read_shape(
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
        raise _damaged(folder, name, hint) from error
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
