"""``import agnosco``: the public names, and that they wait for torch no longer than they must."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import agnosco


def test_the_table_the_typed_imports_and_all_name_the_same_things() -> None:
    tree = ast.parse(Path(agnosco.__file__).read_text(encoding="utf-8"))
    typed = {
        (node.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {(module, name) for module, names in agnosco._MODULES.items() for name in names}
    assert {name for _, name in typed} == set(agnosco.__all__)
    assert set(agnosco.__all__) <= set(dir(agnosco))


@pytest.mark.parametrize("name", agnosco.__all__)
def test_a_public_name_is_what_its_module_defines(name: str) -> None:
    value = getattr(agnosco, name)
    assert value is getattr(sys.modules[agnosco._MODULE_OF[name]], name)
    assert getattr(value, "__module__", agnosco._MODULE_OF[name]) == agnosco._MODULE_OF[name]  # not an import of it


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        agnosco.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_import_agnosco_imports_neither_torch_nor_numpy() -> None:
    code = "import agnosco, sys; dir(agnosco); sys.exit(bool({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
