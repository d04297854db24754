"""Markdown into which text from anyone may go, and a section of a file that is replaced without touching the rest."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from ..errors import AgnoscoError
from ..text import one_line

OPENING, CLOSING = "<!-- agnosco -->", "<!-- /agnosco -->"
"""The lines before and after a section; nothing that went through :func:`escaped` can be one."""

_SPECIAL = re.compile(r"[&<>\"|\\`\[\]*_~$@]|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""What could begin a tag, a link, code, a formula or a cell. An entity is none of them in any Markdown."""


def escaped(text: str, *, limit: int = 200) -> str:
    """Untrusted text inside a line of Markdown: it is shown as it is, and means nothing.

    Example:
        >>> from agnosco.reports.markdown import escaped
        >>> escaped("goldfish | [x](javascript:1)")
        'goldfish &#124; &#91;x&#93;(javascript:1)'
    """
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", one_line(text, limit=limit))


def preformatted(text: str) -> str:
    """Untrusted text, character for character, as a block of its own."""
    lines = html.escape(text).replace("\r", "").replace("\n", "&#10;")  # a blank line may end a block of HTML
    return f"<pre><code>{lines}</code></pre>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_section(before: bytes, section: str) -> bytes:
    """A Markdown file with a section between its markers, in place of an earlier one or at the end.

    All other bytes stay, and line ends become those of the file.

    Raises:
        AgnoscoError: The file has one of the two lines without the other, or several of them.
    """
    newline = b"\r\n" if b"\r\n" in before else b"\n"
    text = f"{OPENING}\n{section}\n{CLOSING}".encode(errors="replace")  # names may hold halves of surrogate pairs
    content = text.replace(b"\n", newline)
    opening, closing = (
        list(re.finditer(rb"^" + re.escape(line.encode()) + rb"(?=\r?$)", before, re.MULTILINE))
        for line in (OPENING, CLOSING)
    )
    if not opening and not closing:
        gap = newline if not before or before.endswith(b"\n") else 2 * newline
        return before + (gap if before else b"") + content + newline
    if len(opening) != 1 or len(closing) != 1 or opening[0].start() > closing[0].start():
        message = f"it does not have one line {OPENING} and, after it, one line {CLOSING}"
        raise AgnoscoError(message, "remove these lines and what agnosco wrote between them")
    return before[: opening[0].start()] + content + before[closing[0].end() :]
