"""Architectures are recognized by the names and shapes of a file's tensors, from a table that matches torchvision."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from agnosco.io.safetensors_header import TensorEntry
from agnosco.models.architectures import ARCHITECTURES
from agnosco.models.filling import WithoutMemory
from agnosco.models.fitting import TABLE, find_architecture, table

architecture_table = import_module("architecture_table")

QUICK = {"torchvision:squeezenet1_1", "torchvision:googlenet", "torchvision:mnasnet0_5", "torchvision:regnet_y_400mf"}


def floats(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorEntry]:
    return {name: TensorEntry("F32", shape, 0, 0) for name, shape in shapes.items()}


def entries(model: nn.Module) -> dict[str, TensorEntry]:
    return floats({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_table_is_that_of_the_installed_torchvision(everything: bool) -> None:
    names = [one for one in architecture_table.architectures() if everything or one[0] in QUICK | {"agnosco:badnets"}]
    with WithoutMemory():
        made = [architecture_table.row(*one) for one in names]
    assert made == [row for row in table() if everything or row["name"] in {name for name, _ in names}]
    assert len(made) > 80 if everything else len(made) == 6  # GoogLeNet twice
    assert not everything or TABLE.read_text() == architecture_table.written(made)


def test_no_two_architectures_have_one_signature() -> None:
    assert len({row["sha256"] for row in table()}) == len(table())
    assert TABLE.stat().st_size < 60_000


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_of_any_number_of_classes(classes: int) -> None:
    for name, (create, _) in ARCHITECTURES.items():
        assert find_architecture(entries(create(classes))) == (f"agnosco:{name}", classes)
    assert find_architecture(entries(models.squeezenet1_1(num_classes=classes))) == (
        "torchvision:squeezenet1_1",
        classes,
    )


@pytest.mark.parametrize("auxiliary", [False, True])
def test_googlenet_with_and_without_its_auxiliary_heads(auxiliary: bool) -> None:
    model = models.googlenet(init_weights=False, aux_logits=auxiliary, num_classes=5)
    assert find_architecture(entries(model)) == ("torchvision:googlenet", 5)


def test_counters_of_batch_normalization_may_be_missing() -> None:
    counted = entries(models.mnasnet0_5())
    bare = {name: entry for name, entry in counted.items() if not name.endswith("num_batches_tracked")}
    assert len(bare) < len(counted)
    assert find_architecture(counted) == find_architecture(bare) == ("torchvision:mnasnet0_5", 1000)


def test_whatever_differs_is_not_that_architecture() -> None:
    good = entries(ARCHITECTURES["badnets"][0](10))
    bias, weight = good["9.bias"], good["9.weight"]
    for name, changes in {
        "another shape": {"0.weight": TensorEntry("F32", (16, 3, 5, 4), 0, 0)},
        "integers": {"0.weight": TensorEntry("I32", good["0.weight"].shape, 0, 0)},
        "one more": {"extra": bias},
        "two numbers of classes": {"9.bias": TensorEntry("F32", (11,), 0, 0)},
        "no classes": {"9.bias": TensorEntry("F32", (0,), 0, 0), "9.weight": TensorEntry("F32", (0, 512), 0, 0)},
        "too many": {"9.bias": TensorEntry("F32", (10**6,), 0, 0), "9.weight": TensorEntry("F32", (10**6, 512), 0, 0)},
        "a scalar": {"9.bias": TensorEntry("F32", (), 0, 0)},
        "a head of another rank": {"9.weight": TensorEntry("F32", (*weight.shape, 1), 0, 0)},
    }.items():
        assert find_architecture(good | changes) is None, name
    assert find_architecture({}) is find_architecture(floats({"stem": (9,)})) is None
    assert find_architecture({name: good[name] for name in list(good)[1:]}) is None
    assert find_architecture(good) == ("agnosco:badnets", 10)


LOADED = """
import json, sys
{code}
print(json.dumps([name for name in ("torch", "torchvision", "timm") if name in sys.modules]))
"""


def imported_by(code: str, folder: Path) -> list[str]:
    """Which heavy libraries a piece of code imports."""
    command = [sys.executable, "-c", LOADED.format(code=code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return json.loads(done.stdout)


def test_what_a_file_holds_and_fits_is_found_without_torch(tmp_path: Path) -> None:
    save_file(ARCHITECTURES["digits"][0](10).state_dict(), tmp_path / "w.safetensors")
    code = """
from agnosco.models.fitting import find_architecture
from agnosco.models.weights.contents import read_contents
assert find_architecture(read_contents("w.safetensors").entries) == ("agnosco:digits", 10)
"""
    assert imported_by(code, tmp_path) == []


def test_loading_imports_only_the_library_of_the_name(tmp_path: Path) -> None:
    save_file(ARCHITECTURES["digits"][0](10).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))\n"
    )
    code = """
from agnosco.models.loading import load, to_download, untrained
load("agnosco:digits", weights="w.safetensors")
load("python:net.py:net", size=4, trust_code=True)
untrained("agnosco:badnets", classes=4)
assert to_download("python:net.py:net") is None
"""
    assert imported_by(code, tmp_path) == ["torch"]
