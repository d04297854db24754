"""Which commands may import torch and torchvision, each held in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agnosco.cli.app import EXAMPLES

SOURCES = str(Path(__file__).resolve().parents[2] / "src")

# Runs the command line in a process in which importing one of the modules named by its first argument is an error.
GUARDED = """
import sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name in forbidden:
            raise AssertionError(f"{name} was imported")

forbidden = sys.argv.pop(1).split(",")
sys.meta_path.insert(0, Guard())
from agnosco.cli.app import main
main()
"""


def guarded(
    forbidden: str, *args: str, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", GUARDED, forbidden, *args], capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": SOURCES} | environment, cwd=folder,
    )  # fmt: skip


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
