"""A run can be continued by whatever gives the same bits: the command line, Python, files of other names."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from helpers import NET
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from agnosco.cli.app import app
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError, AgnoscoWarning
from agnosco.models.classifier import Classifier
from agnosco.models.loading import load
from agnosco.runs import manifest
from agnosco.runs.command import chosen_config, command_of
from agnosco.runs.continuing import check_same, differences, loadable
from agnosco.runs.jobs import map_runs
from agnosco.runs.origin import remake
from agnosco.runs.run import Run

NAMES = ["tench", "goldfish", "great white shark"]
COMMAND = (
    "map", "python:net.py:build", "--weights", "double.safetensors", "--labels", "names.txt", "--trust-code", "--size",
    "16", "--samples", "noise", "--samples-count", "10", "--preset", "draft", "--steps", "2", "--batch", "2",
    "--device", "cpu", "--out", "run",
)  # fmt: skip
SMALL = {"steps": 2, "batch": 2}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs: a network, its weights and its labels."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    scope: dict[str, Any] = {}
    exec(NET, scope)
    save_file({name: 2 * tensor for name, tensor in scope["build"]().state_dict().items()}, "double.safetensors")
    return tmp_path


def call(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def classifier(**options: Any) -> Classifier:
    given = {"weights": "double.safetensors", "labels": "names.txt", "size": 16, "trust_code": True, "device": "cpu"}
    return load("python:net.py:build", **(given | options))


def samples() -> Samples:
    return Samples.noise((3, 16, 16), count=10)


def create(network: Classifier | None = None, **options: Any) -> Run:
    parts = {"classifier": network or classifier(), "samples": samples(), "config": chosen_config("draft", **SMALL)}
    return Run.create("run", **(parts | options))


def files() -> dict[str, bytes]:
    return {path.relative_to("run").as_posix(): path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}


# -- Python and the command line ---------------------------------------------------------------


def test_the_command_line_continues_what_python_began() -> None:
    list(map_runs(create(preset="draft", overrides=SMALL), classifier(), samples(), [1]))
    before = files()
    result = call(*COMMAND, "1", "2")
    assert result.exit_code == 0, result.stderr
    assert "1 of 2 maps are finished already" in result.stderr
    assert files().items() >= {key: value for key, value in before.items() if key != "manifest.json"}.items()
    assert json.loads(Path("run/manifest.json").read_text())["command"] == "python"


def test_python_continues_what_the_command_line_began() -> None:
    assert call(*COMMAND, "1").exit_code == 0
    run = create()  # whatever made the configuration
    assert run.settings.command == "map"
    assert [one.entry.index for one in map_runs(run, classifier(), samples(), [1, 2])] == [2]


@pytest.mark.parametrize("names", [None, ["a", "b", "c"]], ids=["no labels", "other labels"])
def test_a_bare_module_with_other_labels_and_no_file_continues_it(names: list[str] | None) -> None:
    assert call(*COMMAND, "goldfish").exit_code == 0
    bare = Classifier(classifier().model, size=16, channels=3, labels=names)
    with nullcontext() if names is None else pytest.warns(AgnoscoWarning, match="'goldfish' for class 1, 'b'"):
        finished = list(map_runs(create(bare), bare, samples(), [1, 2]))
    assert [one.entry.index for one in finished] == [2]
    assert call(*COMMAND, "goldfish").exit_code == 0


def test_another_name_of_the_weights_and_of_the_samples_continues_it() -> None:
    assert call(*COMMAND, "1").exit_code == 0
    Path("double.safetensors").rename("renamed.safetensors")
    same = samples()
    renamed = Samples(same.images, source="noise that was saved")
    run = create(classifier(weights="renamed.safetensors"), samples=renamed)
    assert run.settings.model.weights == "double.safetensors"  # as it began


def test_other_code_of_the_same_weights_does_not_continue_it() -> None:
    assert call(*COMMAND, "1").exit_code == 0
    Path("net.py").write_text(NET.replace("def build", "def other").replace("ReLU", "GELU"))
    other = load("python:net.py:other", weights="double.safetensors", size=16, trust_code=True)
    with pytest.raises(AgnoscoError, match=r"model name python:net.py:build, now python:net.py:other"):
        create(other)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision:resnet18", "torchvision:resnet18"),
        ("python:net.py:build", "python:net.py:build"),
        ("python:deep/er/net.py:Net(20, 'a/b')", "python:net.py:Net(20, 'a/b')"),
        ("python:C:\\nets\\net.py:Net", "python:net.py:Net"),
        ("ResNet", None),
        ("clean digits network", None),
        ("ftp:resnet18", None),
    ],
)
def test_names_that_the_command_line_can_load(name: str, expected: str | None) -> None:
    assert loadable(name) == expected


# -- what is noted, and what is refused --------------------------------------------------------


def settings() -> manifest.Settings:
    return create().settings


def changed(**changes: Any) -> manifest.Settings:
    return msgspec.structs.replace(settings(), **changes)


@pytest.mark.parametrize(
    "changes", [{"command": "demo"}, {"preset": "best"}, {"overrides": {"steps": 3}}, {"threads": 3}, {"cpu": "AVX2"}]
)
def test_what_decides_no_bits_is_not_compared(changes: dict[str, Any]) -> None:
    assert differences(settings(), changed(**changes)) == []


def test_the_device_is_compared_by_its_kind() -> None:
    assert differences(changed(device="cuda:1"), changed(device="cuda")) == []
    with pytest.raises(AgnoscoError, match="device cuda, now cpu") as caught:
        check_same(changed(device="cuda:1"), settings(), "run")
    assert caught.value.hint == "continue it with --device cuda, on a machine that has one"


def test_other_versions_are_refused_with_what_to_install() -> None:
    versions = manifest.versions()
    old = changed(versions=versions | {"torch": "2.10.1+cpu", "torchvision": "0.25.1"})
    with pytest.raises(AgnoscoError, match=r"versions torch 2.10.1.cpu, now ") as caught:
        check_same(old, settings(), "run")
    assert caught.value.hint == "install torch 2.10.1+cpu and torchvision 0.25.1, which it was begun with"


def test_what_nothing_can_be_installed_for_needs_another_folder() -> None:
    versions = manifest.versions()
    old = changed(versions=versions | {"torch": "2.10.1"}, config=settings().config | {"cycles": 3})
    with pytest.raises(AgnoscoError, match="config cycles 3, now 1") as caught:
        check_same(old, settings(), "run")
    assert "--out" in caught.value.hint


def test_a_run_says_its_kind_of_cpu_and_another_one_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    list(map_runs(create(), classifier(), samples(), [1]))
    kind = json.loads(Path("run/manifest.json").read_text())["cpu"]
    assert kind.split()[0] == torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(manifest, "cpu_kind", lambda _device: "AVX2")
    monkeypatch.setattr("agnosco.runs.origin.cpu_kind", lambda _device: "AVX2")
    with pytest.warns(AgnoscoWarning, match=f"begun on a CPU with {kind}, and this one has AVX2: the last bits"):
        run = create()
    assert [one.entry.index for one in map_runs(run, classifier(), samples(), [1, 2])] == [2]
    assert json.loads(Path("run/manifest.json").read_text())["cpu"] == kind
    with pytest.warns(AgnoscoWarning, match=f"last bits of the map may differ .cpu {kind}, now AVX2"):
        remake("run", 1, 0, classifier(), samples())


def test_a_gpu_has_no_kind_of_cpu() -> None:
    assert manifest.cpu_kind("cuda:0") is None
    assert manifest.cpu_kind("mps") is None


def test_a_manifest_of_an_earlier_version_is_read_and_continued() -> None:
    list(map_runs(create(), classifier(), samples(), [1]))
    data = json.loads(Path("run/manifest.json").read_text())
    for key in ("cpu", "check"):
        del data[key]
    for key in ("labels", "prompts", "allow_pickle"):
        del data["model"][key]
    Path("run/manifest.json").write_text(json.dumps(data))
    run = create()
    assert (run.settings.cpu, run.settings.model.labels, run.settings.model.allow_pickle) == (None, None, False)
    assert [one.entry.index for one in map_runs(run, classifier(), samples(), [1, 2])] == [2]
    assert [entry.index for entry in Run.open("run").entries] == [1, 2]
    remake("run", 1, 0, classifier(), samples())  # without a word on a CPU that was not noted


# -- the command -------------------------------------------------------------------------------


def test_the_command_of_a_run_that_python_began_makes_it_again() -> None:
    run = create(config=chosen_config("draft", **SMALL), preset="draft", overrides=SMALL)
    list(map_runs(run, classifier(), samples(), [1]))
    line = command_of(run.settings, run.entries)
    assert line is not None
    assert "--weights double.safetensors --labels names.txt --samples noise" in line
    result = call(*line.split()[1:], "--out", "run")
    assert result.exit_code == 0, result.stderr
    assert "1 of 1 maps are finished already" in result.stderr


def test_a_network_that_no_name_loads_has_no_command() -> None:
    bare = Classifier(classifier().model, size=16, channels=3)
    run = create(bare, preset="draft", overrides=SMALL)
    list(map_runs(run, bare, samples(), [1]))
    assert command_of(run.settings, run.entries) is None


def test_prompts_and_pickles_are_in_the_command() -> None:
    assert call(*COMMAND, "1").exit_code == 0
    run = Run.open("run")
    model = msgspec.structs.replace(
        run.settings.model, name="open_clip:RN50/openai", prompts="my prompts.txt", allow_pickle=True, labels=None
    )
    line = command_of(msgspec.structs.replace(run.settings, model=model), run.entries)
    assert line is not None
    assert "--weights double.safetensors --allow-pickle --prompts 'my prompts.txt' --samples" in line
    unnamed = msgspec.structs.replace(model, prompts=None)
    assert "--prompts PROMPTS" in (command_of(msgspec.structs.replace(run.settings, model=unnamed), run.entries) or "")


def test_files_that_a_network_was_loaded_from_are_noted_without_their_folders(tmp_path: Path) -> None:
    files_of = classifier(weights=tmp_path / "double.safetensors", labels=tmp_path / "names.txt").files
    assert (files_of.weights, files_of.labels, files_of.prompts) == ("double.safetensors", "names.txt", None)
    torch.save(classifier().model.state_dict(), "double.pt")
    with pytest.warns(AgnoscoWarning, match="it is a pickle"):
        pickled = classifier(weights="double.pt", labels=NAMES, allow_pickle=True)
    assert (pickled.files.weights, pickled.files.labels, pickled.files.allow_pickle) == ("double.pt", None, True)
    assert create(pickled).settings.model.allow_pickle
