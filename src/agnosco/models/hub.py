"""Repositories of the Hugging Face hub, and folders that have their form: their files, one by one.

Nothing but JSON and safetensors is ever fetched, and no code: a repository may have been made to do harm, as a weights
file may.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import AgnoscoError
from ..io.regular import read_regular
from ..text import first_line
from .weights.limits import CODES, HINTS, LIMITS
from .weights.opening import Weights, open_weights

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin")

REPOSITORIES = ("hf-hub", "local-dir")
"""What timm and open_clip call repositories of the hub, and folders of the same form."""

DEEPEST, LARGEST = 32, 1 << 20
"""Levels of nesting and integers of a configuration: sound ones stay far below."""

_REPOSITORY = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^\s@]+))?", re.ASCII)


@dataclass(frozen=True)
class Repository:
    """The files of a repository, or of a local folder.

    Args:
        given: What it was called: ``ORG/NAME``, or a folder's path.
        folder: Where its files are, if it is local.
        revision: Branch, tag or commit; None for the newest.
        config, weights_file: The files that every such repository has; the first says which commit is read.
    """

    given: str
    folder: Path | None = None
    revision: str | None = None
    config: str = CONFIG
    weights_file: str = WEIGHTS

    @classmethod
    def of(cls, text: str, *, config: str = CONFIG, weights_file: str = WEIGHTS) -> Repository:
        """That of ``ORG/NAME``, ``ORG/NAME@REVISION`` or the path of a folder; AgnoscoError if it is neither.

        The names of its files are those of transformers, unless others are given.
        """
        folder = Path(os.path.expanduser(text))
        if text and os.path.isdir(folder):
            return cls(text, folder, config=config, weights_file=weights_file)
        match = _REPOSITORY.fullmatch(text)
        if match is None or text.startswith((".", "/", "~")) or ".." in text:
            raise AgnoscoError(f"there is no folder {text!r}", "give a folder, or ORG/NAME[@REVISION] of the hub")
        return cls(match["name"], revision=match["revision"], config=config, weights_file=weights_file)

    @cached_property
    def name(self) -> str:
        """What manifests keep: the folder, without those of this machine; or the repository and its commit."""
        if self.folder is None:
            return f"{self.given}@{self._commit}"
        return self.folder.resolve().name if self.folder.is_absolute() else self.given

    @cached_property
    def _commit(self) -> str:
        config = self.file(self.config)
        if config is None:
            raise AgnoscoError(f"{self.given} has no {self.config}", "give a repository of an image classifier")
        return config.parent.name

    def file(self, name: str) -> Path | None:
        """A file, fetched unless it is here; None if there is none of this name.

        AgnoscoError if there is no such repository or revision, it may not be read, or the hub does not answer.
        """
        if self.folder is not None:
            path = self.folder / name
            return path if os.path.exists(path) else None
        from huggingface_hub import errors, hf_hub_download

        # what comes later is of the same commit as what came first
        revision = self.revision if name == self.config else self._commit
        try:
            return Path(hf_hub_download(self.given, name, revision=revision))
        except errors.LocalEntryNotFoundError as error:
            hint = "without a network, download it elsewhere (hf download) and give its folder: hf:DIR"
            raise AgnoscoError(f"cannot download {name} of {self.given}", hint) from error
        except errors.GatedRepoError as error:
            hint = "accept its terms on the hub and log in (hf auth login)"
            raise AgnoscoError(f"{self.given} is gated", hint) from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            hint = "check the name; log in for private ones (hf auth login); a folder's path may start with ./"
            raise AgnoscoError(f"there is no folder and no repository {self.given!r}", hint) from error
        except errors.RevisionNotFoundError as error:
            message = f"{self.given} has no revision {self.revision!r}"
            raise AgnoscoError(message, "give a branch, a tag or a commit of it") from error
        except errors.EntryNotFoundError:
            return None
        except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]
            message = f"cannot download {name} of {self.given}: {first_line(error)}"
            raise AgnoscoError(message, "try again; what has arrived is kept") from error

    def json(self, name: str, *, largest: int = LARGEST) -> dict[str, Any] | None:
        """A JSON object of a file, within limits, or None if there is no such file; AgnoscoError if it is none."""
        path = self.file(name)
        if path is None:
            return None
        try:
            value = json.loads(read_regular(path, most=LIMITS.labels).decode("utf-8"))
        except RecursionError as error:  # how deep that is depends on the version of Python
            raise _too_deep(f"{name} of {self.given}") from error
        except (OSError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            message = f"cannot read {name} of {self.given}: {first_line(error)}"
            raise AgnoscoError(message, HINTS["malformed"], exit_code=CODES["malformed"]) from error
        if not isinstance(value, dict):
            message = f"{name} of {self.given} is not a JSON object"
            raise AgnoscoError(message, HINTS["malformed"], exit_code=CODES["malformed"])
        _check_size(value, f"{name} of {self.given}", largest)
        return value

    @contextmanager
    def weights(self) -> Iterator[Weights]:
        """Its safetensors, one file or several, opened as all weights are; AgnoscoError if it has none."""
        with ExitStack() as files:
            if path := self.file(self.weights_file):
                yield files.enter_context(open_weights(path))
            elif self.weights_file == WEIGHTS and (index := self.json(INDEX)) is not None:
                parts = [files.enter_context(open_weights(self._part(part))) for part in _parts(index)]
                yield Weights.together(INDEX, parts)
            else:
                raise self._without_safetensors()

    def _part(self, name: str) -> Path:
        here = Path(name).name == name and name.endswith(".safetensors")  # never a file of another folder
        path = self.file(name) if here else None
        if path is None:
            message = f"{self.given} has no file {name[:80]!r}, which {INDEX} names"
            raise AgnoscoError(message, HINTS["malformed"], exit_code=CODES["malformed"])
        return path

    def _without_safetensors(self) -> AgnoscoError:
        if self.folder is not None:
            pickle = next((name for name in PICKLES if self.file(name)), None)
            if pickle is None:
                return AgnoscoError(f"{self.given} has no {self.weights_file}", "give what save_pretrained wrote")
            lacks = f"{self.given} has no {self.weights_file}"
            message = f"{lacks}, but {pickle}, a pickle, which can run code when it is opened"
            hint = f"save it again as safetensors, or add --weights {self.folder / pickle} --allow-pickle"
            return AgnoscoError(message, hint, exit_code=CODES["pickle"])
        lacks = f"{self.given} has no {self.weights_file}"
        message = f"{lacks}; pickles (.bin), which can run code when they are opened, stay there"
        hint = f"the hub converts many: try hf:{self.given}@refs/pr/1, or ask its owner for safetensors"
        return AgnoscoError(message, hint, exit_code=CODES["pickle"])


def _parts(index: dict[str, Any]) -> list[str]:
    """The files that an index names."""
    named = index.get("weight_map")
    values = list(named.values()) if isinstance(named, dict) else []
    if not values or not all(isinstance(value, str) for value in values) or len(set(values)) > LIMITS.tensors:
        raise AgnoscoError(f"{INDEX} names no files", HINTS["malformed"], exit_code=CODES["malformed"])
    return sorted(set(values))


def _check_size(value: object, name: str, largest: int) -> None:
    """AgnoscoError for numbers that no network has, before anything is built with them."""
    level: list[object] = [value]
    for _ in range(DEEPEST):
        numbers = [n for n in level if isinstance(n, int | float) and not isinstance(n, bool)]
        if any(abs(number) > largest for number in numbers if isinstance(number, int)):
            message = f"{name} holds the number {max(map(abs, numbers))}, larger than any network's"
            raise AgnoscoError(message, HINTS["limit"], exit_code=CODES["limit"])
        level = [inner for each in level for inner in _within(each)]
        if not level:
            return
    raise _too_deep(name)


def _too_deep(name: str) -> AgnoscoError:
    return AgnoscoError(f"{name} is nested more than {DEEPEST} deep", HINTS["limit"], exit_code=CODES["limit"])


def _within(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
