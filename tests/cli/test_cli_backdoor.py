"""``agnosco poison`` and ``agnosco scan``: what they print, write, refuse and exit with."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from agnosco.backdoor import scan as scanning
from agnosco.backdoor.config import FirstLook, Round, ScanConfig, Tournament
from agnosco.backdoor.record import FOUND, INCONCLUSIVE
from agnosco.cli import scanning as commands
from agnosco.cli.app import app
from agnosco.errors import AgnoscoError
from agnosco.io.local import Local
from agnosco.models import loading

SHORT = ("--seeds", "1", "--steps", "2", "--device", "cpu")


def call(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network for digits that has learned nothing, in a folder of its own; searches are short, and never too long."""
    monkeypatch.chdir(tmp_path)
    short = partial(ScanConfig, windows=Tournament(grid=1, rounds=(Round(1, 2, 2),)), first=FirstLook(1, 2))
    monkeypatch.setattr(commands, "ScanConfig", short)
    monkeypatch.setattr("agnosco.backdoor.plan.seconds_per_image", lambda *_: 1e-4)
    save_file(loading.untrained("agnosco:digits", classes=10).model.state_dict(), tmp_path / "net.safetensors")
    return "net.safetensors"


def test_an_untrained_network_has_no_outlier_class(weights: str) -> None:
    result = call("scan", "agnosco:digits", "--weights", weights, "--samples", "noise", "--fail-on-finding", *SHORT)
    assert result.exit_code == 0, result.stderr
    assert f"Outcome: {INCONCLUSIVE}" in result.stdout
    assert "untrained" in result.stdout
    assert "need no data" in result.stderr
    assert "No outcome says that a network is clean" in result.stdout


def test_json_is_one_object_and_the_folder_holds_the_same(weights: str) -> None:
    result = call("scan", "agnosco:digits", "--weights", weights, "--samples", "noise", "--json", "--out", "s", *SHORT)
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record == json.loads(Path("s/scan.json").read_text())
    assert len(record["classes"]) == 10
    assert Path("s/scan.png").read_bytes().startswith(b"\x89PNG")


def test_no_record_lies_beside_the_picture_of_another_scan(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = ("scan", "agnosco:digits", "--weights", weights, "--samples", "noise", "--out", "s", *SHORT)
    assert call(*base).exit_code == 0
    write = Local.write

    def full(self: Local, name: str, content: bytes) -> str:
        if name == "scan.json":
            raise AgnoscoError("the disk is full", "free some space")
        return write(self, name, content)

    monkeypatch.setattr(Local, "write", full)
    assert call(*base).exit_code == 2
    assert Path("s/scan.png").exists()
    assert not Path("s/scan.json").exists()


def test_fail_on_finding_exits_with_3(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = scanning.judge
    monkeypatch.setattr(scanning, "judge", lambda *a, **o: scanning.replace(judged(*a, **o), outcome=FOUND, reasons=()))
    base = ("scan", "agnosco:digits", "--weights", weights, "--samples", "noise", *SHORT)
    assert call(*base).exit_code == 0
    result = call(*base, "--fail-on-finding")
    assert result.exit_code == 3
    assert f"Outcome: {FOUND}" in result.stdout


def test_a_bank_brings_its_settings(weights: str) -> None:
    base = ("scan", "agnosco:digits", "--samples", "noise", "--device", "cpu")
    Path("bank").mkdir()
    for seed in range(2):
        network = loading.untrained("agnosco:digits", classes=10, seed=seed + 1)
        save_file(network.model.state_dict(), f"{seed}.safetensors")
        result = call(*base, "--weights", f"{seed}.safetensors", "--seeds", "1", "--steps", "3", "--json")
        Path(f"bank/{seed}.json").write_text(result.stdout)
    result = call(*base, "--weights", weights, "--bank", "bank", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["config"]["seeds"], record["config"]["steps"]) == (1, 3)
    assert record["verdict"]["calibrated"]
    assert record["verdict"]["p_value"] in (1 / 3, 2 / 3, 1.0)
    refused = call(*base, "--weights", weights, "--bank", "bank", "--budget", "5m")
    assert refused.exit_code == 2
    assert "Error: --budget does not go with --bank" in refused.stderr


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("--bank", "empty"), "holds no scans"),
        (("--class", "digit"), "has no class 'digit'"),
        (("--samples", "absent"), "absent"),
        (("--budget", "soon"), "'soon' is not a length of time"),
        (("--budget", "0s"), "'0s' is not a length of time"),
    ],
)
def test_mistakes_are_two_lines(weights: str, args: tuple[str, ...], error: str) -> None:
    Path("empty").mkdir()
    result = call("scan", "agnosco:digits", "--weights", weights, "--samples", "noise", *SHORT, *args)
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert error in lines[-2]
    assert lines[-2].startswith("Error: ")
    assert lines[-1].startswith("Hint: ")


def test_nan_weights_are_an_error(weights: str) -> None:
    tensors = load_file(weights)
    tensors["0.weight"][0] = torch.nan
    save_file(tensors, weights)
    result = call("scan", "agnosco:digits", "--weights", weights, "--samples", "noise", *SHORT)
    assert result.exit_code == 14
    assert "NaN" in result.stderr


def test_poison_makes_a_folder_that_scan_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(
        "poison", "--trigger", "checker", "--trigger-size", "4", "--target", "digit 3", "--epochs", "1", "--no-twin",
        "--out", "p", "--device", "cpu", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["attack"]["trigger"] == {
        "type": "Patch", "size": 4, "place": "bottom-right", "opacity": 1.0, "pattern": "checker",
    }  # fmt: skip
    assert summary["attack"]["target"] == 3
    assert list(summary["networks"]) == ["compromised"]
    loaded = loading.load("agnosco:digits", weights="p/compromised.safetensors")
    assert loaded.fingerprint == summary["networks"]["compromised"]["fingerprint"]
    assert "agnosco scan agnosco:digits --weights p/compromised.safetensors --samples digits" in result.stderr


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("--trigger", "wanet"), "no trigger 'wanet'"),
        (("agnosco:wide_resnet16_1",), "digits are"),
        (("torchvision:resnet19",), "is not an architecture that can be trained"),
        (("--target", "11"), "no class 11"),
        (("--data", "absent"), "folder per class"),
        (("--rate", "0"), "rate must be between 0 and 1"),
    ],
)
def test_poison_says_what_is_wrong(
    args: tuple[str, ...], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("poison", "--device", "cpu", *args)
    assert result.exit_code == 2
    assert error in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_time_is_announced_and_a_folder_with_other_files_refused_first(weights: str) -> None:
    base = ("scan", "agnosco:digits", "--weights", weights, "--samples", "noise", *SHORT)
    assert "Three screens of 10 classes, 1 seed: " in call(*base).stderr
    Path("s").mkdir()
    Path("s/letter.txt").write_text("dear")
    result = call(*base, "--out", "s")
    assert result.exit_code == 2
    assert "is not empty and has no scan.json" in result.stderr
    assert "three screens" not in result.stderr
    Path("s/manifest.json").write_text("{}")  # a run folder may hold a scan as well
    assert call(*base, "--out", "s").exit_code == 0


def test_one_class_alone_has_no_verdict(weights: str) -> None:
    base = ("scan", "agnosco:digits", "--weights", weights, "--samples", "noise", *SHORT, "--class", "1")
    result = call(*base)
    assert result.exit_code == 0, result.stderr
    assert f"Outcome: {INCONCLUSIVE}." in result.stdout
    assert "no p-value" in result.stdout
    record = json.loads(call(*base, "--json").stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [row["index"] for row in record["classes"]] == [1]
