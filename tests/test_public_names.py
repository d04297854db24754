"""``import agnosco``: the public names, their examples, and that importing them does not import torch."""

from __future__ import annotations

import ast
import doctest
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import NET, PATIENCE

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


def docstring_of_constant(module: str, name: str) -> str:
    """The text below an assignment, which Python does not keep."""
    path = Path(agnosco.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for statement, following in pairwise(body):
        if ast.unparse(statement).startswith((f"{name} =", f"{name}:")) and isinstance(following, ast.Expr):
            return ast.literal_eval(following.value)
    return ""


def examples_of(name: str) -> list[doctest.DocTest]:
    """The examples of a public name and, for a class, those of its methods."""
    value, module = getattr(agnosco, name), agnosco._MODULE_OF[name]
    if inspect.isclass(value) or inspect.isfunction(value):
        return doctest.DocTestFinder().find(value, name, module=sys.modules[module], globs={})
    return [doctest.DocTestParser().get_doctest(docstring_of_constant(module, name), {}, name, None, None)]


@pytest.fixture(scope="module")
def network_and_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples need: a network in ``net.py``, and a run of two of its classes."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "net.py").write_text(NET)
    classifier = agnosco.load(f"python:{folder}/net.py:build", size=16, trust_code=True)
    samples = agnosco.Samples.noise(classifier.shape, count=10)
    config = agnosco.Config(agnosco.MapperConfig(batch=2, steps=3), refine=None, cycles=1)
    run = agnosco.Run.create(folder / "agnosco-run", classifier=classifier, samples=samples, config=config)
    assert len(list(agnosco.map_runs(run, classifier, samples, [0, 1], together=1))) == 2
    return folder


@pytest.mark.parametrize("name", agnosco.__all__)
def test_a_public_name_has_an_example_and_its_examples_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network_and_run: Path
) -> None:
    shutil.copytree(network_and_run, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    tests = [test for test in examples_of(name) if test.examples]
    assert name in [test.name for test in tests], f"{name} has no example in its docstring"
    for test in tests:
        output: list[str] = []
        assert doctest.DocTestRunner().run(test, out=output.append).failed == 0, "".join(output)


def shown_in_the_docs() -> list[str]:
    page = (Path(__file__).parents[1] / "docs/api.md").read_text(encoding="utf-8")
    return re.findall(r"^\.\. auto(?:module|class|function|data|exception):: ([\w.]+)$", page, re.M)


@pytest.mark.parametrize("name", agnosco.__all__)
def test_a_public_name_is_shown_in_the_docs(name: str) -> None:
    assert {name, f"{agnosco._MODULE_OF[name]}.{name}"} & set(shown_in_the_docs())


@pytest.mark.parametrize("name", [name for name in shown_in_the_docs() if "." in name])
def test_what_the_docs_show_is_there(name: str) -> None:
    pkgutil.resolve_name(name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        agnosco.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_import_agnosco_imports_neither_torch_nor_numpy() -> None:
    code = "import agnosco, sys; dir(agnosco); sys.exit(bool({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
