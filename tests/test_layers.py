"""The arrows of docs/design.md: every module imports only what lies below it, and the core nothing of weight."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "agnosco"

# Lowest first: a module imports from the lines before its own, never from its own line or a later one.
# A new module needs a place here, and a line in docs/design.md.
LAYERS = (
    {"errors", "regular"},
    {"classifier", "dropout", "procedural", "render", "storage", "weights"},
    {"architectures", "records"},
    {"decoding", "zoo"},
    {"samples"},
    {"datasets"},
    {"coordinates", "views"},
    {"ball"},
    {"mapper"},
    {"concept", "prepare", "refine"},
    {"lockstep"},
    {"checkpoint"},
    {"cycle"},
    {"manifest", "options", "score"},
    {"store"},
    {"jobs", "sanity", "transfer"},
    {"backdoor"},
    {"cluster", "report"},
    {"__init__"},
    {"console"},
    {"demo", "doctor", "inspection"},
    {"cli"},
    {"__main__"},
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}

# Libraries: what every module may import, and what some may besides.
EVERYWHERE = sys.stdlib_module_names | {"torch", "numpy", "PIL"}
BESIDES = {
    "cli": {"rich", "typer"},
    "cluster": {"ray"},
    "console": {"rich"},
    "decoding": {"safetensors"},
    "backdoor": {"safetensors"},
    "datasets": {"sklearn"},
    "report": {"jinja2", "markupsafe"},
    "samples": {"safetensors"},
    "sanity": {"scipy", "skimage"},
    "checkpoint": {"safetensors"},
    "storage": {"fsspec"},
    "store": {"safetensors"},
    "weights": {"safetensors"},
    "zoo": {"timm", "torchvision"},
}


def targets(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that an import statement reaches, relative ones resolved against ``package``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = package[: len(package) - node.level + 1] if node.level else ()
    stem = [*base, *(node.module or "").split(".")] if node.module else [*base]
    if stem == ["agnosco"]:  # `from agnosco import x`: a module, or a name that __init__ holds
        yield from (f"agnosco.{alias.name if alias.name in LEVEL else '__init__'}" for alias in node.names)
    else:
        yield ".".join(stem)


def imports(source: str, package: tuple[str, ...] = ("agnosco",)) -> tuple[set[str], set[str]]:
    """Modules of agnosco, and libraries, that a source imports anywhere in it: inside functions and for types too."""
    found = {
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in targets(node, package)
    }
    ours = {name.split(".")[1] if "." in name else "__init__" for name in found if name.split(".")[0] == "agnosco"}
    return ours, {name.split(".")[0] for name in found} - {"agnosco"}


def breaches(module: str, source: str, package: tuple[str, ...] = ("agnosco",)) -> list[str]:
    """What ``source``, standing in for ``module``, may not import; a subpackage counts as one module."""
    ours, libraries = imports(source, package)
    upward = {name for name in ours - {module} if LEVEL.get(name, len(LAYERS)) >= LEVEL[module]}
    heavy = libraries - EVERYWHERE - BESIDES.get(module, set())
    return sorted(upward) + sorted(heavy)


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def owner(path: Path) -> str:
    """Module (or subpackage) of agnosco that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_imports_only_from_below(path: Path) -> None:
    module = owner(path)
    assert module in LEVEL, f"{module} has no place in LAYERS (nor, then, in docs/design.md)"
    package = ("agnosco", *path.relative_to(PACKAGE).parent.parts)
    assert breaches(module, path.read_text(encoding="utf-8"), package) == []


def test_there_are_modules_to_judge() -> None:
    assert {"errors", "classifier", "mapper"} <= {owner(path) for path in sources()}


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("mapper", "from .ball import L2\nimport numpy as np\nfrom torch.nn import functional", []),
        ("mapper", "from .cycle import preset", ["cycle"]),
        ("mapper", "def late():\n    from agnosco.cli import main", ["cli"]),
        ("mapper", "import agnosco.store", ["store"]),
        ("mapper", "from . import zoo, refine", ["refine"]),
        ("mapper", "from agnosco import Classifier", ["__init__"]),
        ("mapper", "import agnosco", ["__init__"]),
        ("mapper", "import rich.progress\nfrom torchvision import models", ["rich", "torchvision"]),
        ("mapper", "from .unheard_of import thing", ["unheard_of"]),
        ("refine", "from .concept import ConceptMap", ["concept"]),
        ("errors", "from .samples import Samples", ["samples"]),
        ("console", "from . import __version__\nfrom rich.console import Console", []),
        ("zoo", "import torchvision, timm", []),
        ("cli", "import click", ["click"]),
    ],
)
def test_breach_is_seen(module: str, source: str, expected: list[str]) -> None:
    assert breaches(module, source) == expected


def test_subpackage_is_one_module() -> None:
    source = "from .triggers import stamp\nfrom ..mapper import Step\nfrom ..report import page\nfrom .. import cli"
    assert breaches("backdoor", source, ("agnosco", "backdoor")) == ["cli", "report"]
