"""``agnosco.inspect`` and ``agnosco inspect``: what a weights file contains, in values, in JSON and in words."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import agnosco
from agnosco.cli.app import app
from agnosco.models.architectures import created


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inspected(*args: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *args])


def save_small() -> None:
    tensors = {"small": torch.zeros(2), "large": torch.zeros(5, 4), "steps": torch.ones(3, dtype=torch.int64)}
    save_file(tensors, "small.safetensors", metadata={"by": "a test"})


def test_counts_are_those_of_the_tensors() -> None:
    save_small()
    inspection = agnosco.inspect("small.safetensors")
    assert (inspection.file, inspection.format) == ("small.safetensors", "safetensors")
    assert inspection.bytes == Path("small.safetensors").stat().st_size
    assert (inspection.tensors, inspection.numbers, inspection.tensor_bytes) == (3, 2 + 20 + 3, 4 * 22 + 8 * 3)
    assert inspection.types == {"F32": 2, "I64": 1}
    assert [(tensor.name, tensor.shape) for tensor in inspection.largest] == [
        ("large", (5, 4)),
        ("steps", (3,)),
        ("small", (2,)),
    ]
    assert inspection.metadata == {"by": "a test"}
    assert (inspection.fits, inspection.classes, inspection.findings, inspection.exit_code) == (None, None, [], 0)


def test_the_architecture_is_named() -> None:
    save_file(created("digits", 7, seed=0).state_dict(), "digits.safetensors")
    inspection = agnosco.inspect("digits.safetensors")
    assert (inspection.fits, inspection.classes) == ("agnosco:digits", 7)


def test_numbers_are_read_on_request_only() -> None:
    save_file({"weight": torch.tensor([1.0, float("nan")])}, "nan.safetensors")
    unread, read = agnosco.inspect("nan.safetensors"), agnosco.inspect("nan.safetensors", finite=True)
    assert (unread.numbers_read, unread.findings, unread.exit_code) == (False, [], 0)
    assert (read.numbers_read, [finding.kind for finding in read.findings], read.exit_code) == (
        True,
        ["not-finite"],
        14,
    )


def test_json_has_the_values_of_the_function() -> None:
    save_small()
    values = json.loads(inspected("small.safetensors", "--json").stdout)
    assert values["largest"][0] == {"name": "large", "shape": [5, 4], "type": "F32"}
    inspection = agnosco.inspect("small.safetensors")
    assert list(values) == list(vars(inspection))
    assert values == json.loads(json.dumps(asdict(inspection)))


def test_words_say_what_the_file_contains_and_what_to_do() -> None:
    save_small()
    result = inspected("small.safetensors")
    assert result.exit_code == 0
    _, *lines = result.stdout.splitlines()
    assert lines == [
        "tensors: 3, 25 numbers (2 F32, 1 I64), 112 bytes",
        "largest: large [5, 4] F32",
        "largest: steps [3] I64",
        "largest: small [2] F32",
        "metadata: by = a test",
        "found: nothing wrong; the numbers were not read (--finite)",
    ]
    assert result.stderr == "Try: agnosco map MODEL --weights small.safetensors\n"


def test_a_pickle_is_named_and_not_opened() -> None:
    torch.save({"weight": torch.zeros(2)}, "theirs.pt")
    result = inspected("theirs.pt")
    assert result.exit_code == agnosco.inspect("theirs.pt").exit_code == 10
    assert "imports: " in result.stdout
    assert "found: pickle" in result.stdout
    assert "--allow-pickle, in a container" in result.stderr


def test_no_such_file_is_two_lines() -> None:
    result = inspected("nothing.safetensors")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == "Error: there is no weights file 'nothing.safetensors'"
