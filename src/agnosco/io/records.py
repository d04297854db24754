"""Typed JSON records, read from files that may come from anyone: content of other types is refused."""

import json
from typing import Any, TypeVar

import msgspec

from ..errors import AgnoscoError
from .storage import Folder

NUMBER_LIMIT = 1e300
"""Larger numbers are refused: JSON knows infinity, and whole numbers that no float holds."""

T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object whose keys and types are known.

    A subclass repeats ``frozen=True`` and declares its fields. ``rename={"name": "class"}`` gives a field another name
    in JSON; ``__post_init__`` raises ValueError where fields contradict each other.
    """


def read(folder: Folder, name: str, kind: type[T], *, hint: str) -> T | None:
    """The record in a file of a folder; None if there is no such file.

    AgnoscoError if the file cannot be read or holds no such record: ``hint`` says what to do about it.
    """
    try:
        return decode(folder.read(name), kind)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise AgnoscoError(f"cannot read {folder.at(name)!r}: it is damaged, or of another version", hint) from error


def decode(content: bytes, kind: type[T]) -> T:
    """The record in the content of a JSON file; ValueError if there is none. Texts are not taken for numbers."""
    return msgspec.convert(parse(content), kind)


def parse(content: bytes) -> Any:
    """The values in the content of a JSON file.

    ValueError if it is not JSON, is nested too deeply, or has a number beyond :data:`NUMBER_LIMIT`.
    """
    try:
        data = json.loads(content.decode())
        _check_numbers(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return data


def encode(record: Any) -> bytes:
    """A record as the content of a JSON file, with sorted keys; ValueError if it has a number that is not finite."""
    return (json.dumps(msgspec.to_builtins(record), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def to_json(record: Any) -> Any:
    """A record as plain JSON values: tuples become lists."""
    return json.loads(json.dumps(msgspec.to_builtins(record)))


def _check_numbers(data: Any) -> None:
    if isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            _check_numbers(value)
    elif isinstance(data, int | float) and not abs(data) < NUMBER_LIMIT:  # true for NaN as well
        raise ValueError(f"{str(data)[:20]} is out of bounds")
