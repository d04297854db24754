"""The rooms of docs/design.md: imports go one way, and a room uses what another offers."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "agnosco"

# Lowest first: a room imports from itself and from the lines before its own. A new room needs a place here.
FLOORS = (
    {"errors", "types", "text"},
    {"io"},
    {"models", "data"},
    {"method"},
    {"runs"},
    {"evaluate", "backdoor"},
    {"reports"},
    {"__init__"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Libraries: what every room may import, and what some may besides.
EVERYWHERE = sys.stdlib_module_names | {"torch", "numpy", "PIL"}
BESIDES = {
    "io": {"fsspec", "msgspec"},
    "models": {"huggingface_hub", "open_clip", "safetensors", "timm", "torchvision", "transformers"},
    "data": {"datasets", "safetensors", "sklearn"},
    "method": {"safetensors"},
    "runs": {"msgspec", "ray", "safetensors"},
    "evaluate": {"msgspec", "safetensors", "scipy", "skimage"},
    "backdoor": {"msgspec", "safetensors"},
    "reports": {"jinja2", "markupsafe"},
    "cli": {"rich", "typer"},
}


def targets(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that an import statement reaches, relative ones resolved against ``package``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = package[: len(package) - node.level + 1] if node.level else ()
    stem = ".".join([*base, *(node.module or "").split(".")] if node.module else [*base])
    yield from (f"{stem}.{alias.name}" for alias in node.names)


def imports(source: str, package: tuple[str, ...]) -> list[str]:
    """Dotted names that a source imports anywhere in it: inside functions and for types too."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom))
    return [name for node in nodes for name in targets(node, package)]


def room_of(name: str) -> str:
    """The room of a dotted name of agnosco; names that the package itself holds are in ``__init__``."""
    first = name.split(".")[1] if "." in name else "__init__"
    return first if first in FLOOR else "__init__"


def breaches(room: str, source: str, package: tuple[str, ...]) -> list[str]:
    """What a source of a room may not import: from above, in private, or a library that is not the room's."""
    found = set()
    for name in imports(source, package):
        library = name.split(".")[0]
        if library != "agnosco":
            found |= {library} - EVERYWHERE - BESIDES.get(room, set())
            continue
        other = room_of(name)
        above = other != room and FLOOR[other] >= FLOOR[room]
        private = other != room and any(part.startswith("_") and part != "__version__" for part in name.split("."))
        found |= {name} if above or private else set()
    return sorted(found)


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_at(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    room = room_at(path)
    assert room in FLOOR, f"{room} has no place in FLOORS (nor, then, in docs/design.md)"
    package = ("agnosco", *path.relative_to(PACKAGE).parent.parts)
    assert breaches(room, path.read_text(encoding="utf-8"), package) == []


def test_every_room_is_there() -> None:
    assert {room_at(path) for path in sources()} == set(FLOOR)


def test_the_top_of_the_package_fits_on_one_screen() -> None:
    files = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.*") if "__pycache__" not in path.parts)
    entries = {file.parts[0] for file in files}
    assert {"method", "errors.py", "py.typed"} <= entries
    assert len(entries) <= 15


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("method", "from .ball import L2\nimport numpy as np\nfrom torch.nn import functional", []),
        ("method", "from ..models.classifier import Classifier\nfrom .ball import _private", []),
        ("method", "from ..models.classifier import _private", ["agnosco.models.classifier._private"]),
        ("method", "from ..runs.run import Run", ["agnosco.runs.run.Run"]),
        ("method", "def late():\n    from agnosco.cli import app", ["agnosco.cli.app"]),
        ("method", "import agnosco.runs.run", ["agnosco.runs.run"]),
        ("method", "from .. import runs, errors", ["agnosco.runs"]),
        ("method", "from agnosco import Classifier", ["agnosco.Classifier"]),
        ("method", "import agnosco", ["agnosco"]),
        ("method", "import rich.progress\nfrom torchvision import models", ["rich", "torchvision"]),
        ("evaluate", "from ..backdoor.scan import scan", ["agnosco.backdoor.scan.scan"]),
        ("cli", "from .. import __version__\nfrom rich.console import Console", []),
        ("models", "import torchvision, timm", []),
        ("cli", "import click", ["click"]),
    ],
)
def test_breach_is_seen(room: str, source: str, expected: list[str]) -> None:
    assert breaches(room, source, ("agnosco", room)) == expected
