"""The file that a report or a card is written to."""

import os

from ..io.local import Local
from ..io.storage import Folder


def file_at(out: str, name: str) -> str:
    """The file that is meant: ``out`` itself, or the file of this name in it if it is a folder; '' is none."""
    folder = Folder.of(out)
    if out.endswith(("/", os.sep)) or (out and isinstance(folder, Local) and os.path.isdir(folder.path)):
        return f"{out.removesuffix('/')}/{name}"
    return out
