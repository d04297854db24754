"""Class names from a file."""

import json
from pathlib import Path

from ..errors import AgnoscoError
from ..io.regular import read_regular
from ..text import first_line
from .weights.limits import LIMITS

_HINT = "give one name per line, or a JSON list"


def read_labels(path: Path) -> list[str]:
    """Class names from a UTF-8 file: a JSON list, or one name per line.

    Raises:
        AgnoscoError: The file cannot be read, is too long, or holds no such list.
    """
    try:
        text = read_regular(path, most=LIMITS.labels).decode("utf-8-sig").strip()
        names = json.loads(text) if text.startswith("[") else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise AgnoscoError(f"cannot read labels from {str(path)!r}: {first_line(error)}", _HINT) from error
    if not names or not all(isinstance(name, str) and _is_encodable(name) for name in names):
        raise AgnoscoError(f"{path.name} does not hold a list of names", _HINT)
    return names


def _is_encodable(name: str) -> bool:
    """Whether it can be written as UTF-8: JSON can hold half of a character."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
