"""Text for people: one line of it, names that are nearly right, addresses without their passwords."""

import difflib
import re
from collections.abc import Sequence

LONGEST_NAME = 200
"""Characters of a class name in a line that is printed."""


def one_line(text: str, *, limit: int = LONGEST_NAME) -> str:
    """Untrusted text as one line without control characters, cut to a length."""
    clean = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def spelling(name: str) -> str:
    """A class name without what spellings differ in: capitals, underscores, commas, runs of spaces."""
    return " ".join(name.lower().replace("_", " ").replace(",", " ").split())


def nearest(text: str, names: Sequence[str]) -> str:
    """A hint that offers the names nearest to what was typed."""
    if not names:
        return "there are none"
    by_normal = {spelling(name): name for name in names}
    near = difflib.get_close_matches(spelling(text), list(by_normal), n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(by_normal[name]) for name in near) + "?"
    return f"there are {len(names)}, such as " + ", ".join(repr(name) for name in names[:3])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equally many cells as lines, their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]


def without_password(url: str) -> str:
    """A URL, or a text with some, for people."""
    return re.sub(r"(://[^/@:]*):[^/]*@", r"\1:…@", url)
