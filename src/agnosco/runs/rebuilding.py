"""A manifest rebuilt from the maps of a run: each of them says what it was made with.

A folder may come from anyone. Only files in ``maps`` are read; a map counts only if its digest is that of its entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from ..errors import AgnoscoError
from ..io.storage import Folder, in_order
from ..method.config import config_from_json
from .continuing import differences
from .manifest import Entry, Group, MadeWith, Settings, read_entry
from .tensors import made_with_of

THREADS = 4
"""Maps that are read at a time: each is in memory as a whole."""


@dataclass(frozen=True)
class Rebuilt:
    """What a manifest said: settings and groups, as far as ``maps`` maps say it, and the intact entries."""

    settings: Settings
    groups: Sequence[Group]
    entries: list[Entry]
    maps: int


def rebuilt(folder: Folder) -> Rebuilt | None:
    """What the manifest of a run folder said; None if no intact map says what it was made with.

    Groups come in the order that they had, as far as each of them has an intact map.

    Raises:
        AgnoscoError: The maps say different things, or their configuration is another version's.
    """
    settings, maps = None, 0
    entries: list[Entry] = []
    places: dict[tuple[tuple[int, int], ...], float] = {}
    for entry, made in _read(folder):
        entries.append(entry)
        if made is None:
            continue
        maps += 1
        settings = settings or made.settings
        if settings != made.settings and (differing := differences(settings, made.settings)):
            raise AgnoscoError(
                f"the maps of {folder.name!r} were made with different settings ({', '.join(differing[:4])})",
                "its manifest.json cannot be rebuilt: put it back, or remove the maps that do not belong to the run",
            )
        if entry.job in made.group:
            place = float("inf") if made.place is None else made.place
            group = tuple(made.group)
            places[group] = min(place, places.get(group, place))
    if settings is None:
        return None
    config_from_json(settings.config)
    groups = sorted(places, key=lambda group: (places[group], group))
    return Rebuilt(settings, groups, entries, maps)


def entry_names(folder: Folder) -> list[str]:
    """The stems of the entries in a run folder, sorted; none if it has no folder of maps."""
    return [name.removesuffix(".json") for name in folder.names("maps") if name.endswith(".json")]


def _read(folder: Folder) -> Iterator[tuple[Entry, MadeWith | None]]:
    """The intact entries, and what the maps of those say whose maps are intact, too."""

    def read(name: str) -> tuple[Entry, MadeWith | None] | None:
        try:
            entry = read_entry(folder.read(f"maps/{name}.json"), name)
        except (ValueError, FileNotFoundError, AgnoscoError):
            return None
        try:
            content = folder.read(f"maps/{name}.safetensors")
        except (FileNotFoundError, AgnoscoError):
            return entry, None
        return entry, made_with_of(content) if sha256(content).hexdigest() == entry.sha256 else None

    return (found for found in in_order(read, entry_names(folder), threads=THREADS) if found is not None)
