"""Which commands may import torch and torchvision, each held in a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from helpers import NET, guarded

from agnosco.cli.app import EXAMPLES
from agnosco.models.architectures import created


def test_the_guard_sees_an_import() -> None:
    assert "AssertionError: torch was imported" in guarded("torch", "doctor", "--devices").stderr


@pytest.mark.parametrize("command", ["", *EXAMPLES])
def test_help_imports_no_torch(command: str) -> None:
    result = guarded("torch,torchvision,numpy,PIL,jinja2,fsspec", *command.split(), "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage: " in result.stdout


def test_version_imports_neither_torch_nor_rich() -> None:
    result = guarded("torch,torchvision,numpy,rich.console", "--version")
    assert (result.returncode, result.stdout[:8]) == (0, "agnosco "), result.stderr


def test_completion_imports_neither_torch_nor_rich() -> None:
    result = guarded(
        "torch,torchvision,numpy,rich.console", _AGNOSCO_COMPLETE="complete_bash", COMP_WORDS="agnosco sc",
        COMP_CWORD="1",
    )  # fmt: skip
    assert result.stdout.split() == ["score", "scan"], result.stderr


@pytest.mark.parametrize("args", [["mpa"], ["map"], ["map", "--stepz", "3"], ["score", "run"], []])
def test_wrong_usage_imports_no_torch(args: list[str]) -> None:
    result = guarded("torch,torchvision,numpy", *args)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 2, result.stderr


WRONG_OPTIONS = {
    "map agnosco:digits --preset quik": "no preset 'quik'",
    "map agnosco:digits --ball cube": "no ball 'cube'",
    "map agnosco:digits --out full": "'full' is not empty and has no manifest.json",
    "scan agnosco:digits --out full": "'full' is not empty and has no scan.json",
    "scan agnosco:digits --bank full": "'full' holds no scans",
    "score gone --target agnosco:digits": "'gone' is not a run folder: it has no manifest.json",
    "sanity gone --model agnosco:digits": "'gone' is not a run folder: it has no manifest.json",
}


@pytest.mark.parametrize("command", WRONG_OPTIONS)
def test_a_wrong_option_is_answered_without_torch(command: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("not a run")
    result = guarded("torch,torchvision", *command.split(), folder=tmp_path)
    assert result.returncode == 2
    error, hint = result.stderr.splitlines()
    assert WRONG_OPTIONS[command] in error
    assert hint.startswith("Hint: ")


def test_inspect_of_safetensors_imports_no_torch(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
    result = guarded("torch,torchvision,PIL,jinja2,fsspec", "inspect", "w.safetensors", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "found: nothing wrong" in result.stdout


@pytest.mark.parametrize("args", [[], ["--json"]])
def test_doctor_imports_no_torch(args: list[str]) -> None:
    result = guarded("torch,torchvision,PIL,jinja2", "doctor", *args)
    assert result.returncode == 0, result.stderr
    assert "torch" in result.stdout


PYTHON_MODEL = ["python:net.py:build", "--trust-code", "--size", "16"]
AGNOSCO_MODEL = ["agnosco:digits", "--weights", "digits.safetensors"]


@pytest.mark.parametrize("model", [PYTHON_MODEL, AGNOSCO_MODEL], ids=lambda model: model[0])
def test_a_map_without_refinement_imports_no_torchvision_for_models_that_need_none(
    model: list[str], tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET)
    safetensors.torch.save_file(created("digits", 3, seed=0).state_dict(), tmp_path / "digits.safetensors")
    options = ["--samples", "noise", "--steps", "1", "--batch", "2", "--device", "cpu"]
    result = guarded("torchvision,timm,jinja2,ray,sympy", "map", *model, *options, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "agnosco-run/manifest.json").is_file()
