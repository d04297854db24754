"""``agnosco doctor``: its list is that of the package's own metadata."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from typer.testing import CliRunner

import agnosco
from agnosco.cli import doctor
from agnosco.cli.app import app

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
INSTALLED = metadata.version


def called(*args: str) -> str:
    result = CliRunner().invoke(app, ["doctor", *args])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def with_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> dict[str, Any]:
    """What doctor says where these packages have other versions, or, with None, are not installed."""

    def version(name: str) -> str:
        if name not in versions:
            return INSTALLED(name)
        installed = versions[name]
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(metadata, "version", version)
    return json.loads(called("--json"))


def test_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGNOSCO_CACHE", "/somewhere/else")
    facts = json.loads(called("--json"))
    assert facts["agnosco"] == agnosco.__version__
    assert facts["python"] == sys.version.split()[0]
    assert facts["packages"]["torch"] == INSTALLED("torch")
    assert facts["cores"] == os.cpu_count()
    assert facts["cache"] == "/somewhere/else"
    assert facts["devices"] is None


def test_devices_are_listed_on_request() -> None:
    facts = json.loads(called("--devices", "--json"))
    assert facts["devices"][-1] == "cpu"
    assert facts["threads"] == torch.get_num_threads()
    assert "devices: " in called("--devices")


def test_every_package_of_the_metadata_is_listed() -> None:
    names = {Requirement(text).name for text in metadata.requires("agnosco") or ()}
    assert {"torch", "ray", "s3fs", "scikit-image", "scipy", "jinja2", "fsspec"} <= names
    assert set(json.loads(called("--json"))["packages"]) == names


def test_every_package_of_the_project_file_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata of the installed package may be older than the project file; here both say the same."""
    extras = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(f'{text}; extra == "{extra}"' for extra in extras for text in extras[extra])]
    monkeypatch.setattr(metadata, "requires", lambda _: texts)
    monkeypatch.setattr(metadata, "version", lambda _: "0.0.1")
    too_old = {
        each["package"]: (each["minimum"], each["needed_for"]) for each in json.loads(called("--json"))["too_old"]
    }
    assert too_old == {
        name: (minimum, doctor.EXTRAS[extra] if extra else "agnosco itself")
        for extra, texts in [("", PROJECT["dependencies"]), *extras.items()]
        for name, minimum in (text.split(">=") for text in texts)
    }


def test_every_extra_has_a_purpose() -> None:
    assert set(doctor.EXTRAS) == set(PROJECT["optional-dependencies"])


def test_missing_packages_are_listed_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = with_versions(monkeypatch, timm=None, scipy=None, jinja2=None)
    commands = {each["package"]: each["command"] for each in facts["missing"]}
    assert commands["timm"] == "pip install '.[timm]'"
    assert commands["scipy"] == "pip install '.[evidence]'"
    assert commands["jinja2"] == "pip install ."
    text = called()
    assert "missing: timm, for models named timm:NAME: pip install '.[timm]'" in text
    assert "nothing is missing" not in text


def test_old_packages_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = with_versions(monkeypatch, torch="2.9.1+cpu", numpy="2.0.0rc1", pillow="100.1")
    assert facts["too_old"] == [
        {
            "package": "torch",
            "needed_for": "agnosco itself",
            "command": "pip install .",
            "version": "2.9.1+cpu",
            "minimum": "2.10",
        }
    ]
    assert "too old: torch 2.9.1+cpu, at least 2.10 is needed" in called()


@pytest.mark.parametrize(
    ("installed", "minimum", "too_old"),
    [("0.25", "0.25.0", []), ("0.25.0", "0.25", []), ("0.20", "0.2", []), ("0.2", "0.20", ["timm"])],
)
def test_a_version_is_the_same_with_zeros_at_its_end(
    installed: str, minimum: str, too_old: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: [f"timm>={minimum}"])
    facts = with_versions(monkeypatch, timm=installed)
    assert [each["package"] for each in facts["too_old"]] == too_old


def test_nothing_is_missing_if_everything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "9999")
    assert called().splitlines()[-1] == "nothing is missing"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torch>=2.10", ("torch", "2.10", None)),
        ('timm>=1.0.12; extra == "timm"', ("timm", "1.0.12", "timm")),
        ("scikit-image>=0.25 ; extra == 'evidence'", ("scikit-image", "0.25", "evidence")),
        ("jinja2 <4, >=3.1", ("jinja2", "3.1", None)),
        ('ray; python_version >= "3.11" and extra == "ray"', ("ray", "0", "ray")),
    ],
)
def test_requirements_are_parsed(text: str, expected: tuple[str, str, str | None]) -> None:
    assert doctor.Requirement.parsed(text) == expected
