"""The file that a report or a card is written to."""

import os

from ..io.local import Local
from ..io.storage import Folder


def file_at(out: str, name: str) -> str:
    """The file that is meant: ``out`` itself, or the file of this name in it if it is a folder."""
    if out.endswith(("/", os.sep)) or (isinstance(Folder.of(out), Local) and os.path.isdir(out)):
        return f"{out.rstrip('/' + os.sep)}/{name}"
    return out
