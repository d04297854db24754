"""The command line: what lands on stdout, on stderr and in the folder, and what is refused in two lines."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import MODEL, NET, PATIENCE
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import agnosco
from agnosco.cli.app import app
from agnosco.cli.console import Output, duration
from agnosco.cli.options import model_and_weights, numbers
from agnosco.data.samples import Samples
from agnosco.method.config import PRESETS
from agnosco.method.dials import L2, AutoL2, Crops, Data, Identity, Pixel, Sparse, Spectral
from agnosco.models import loading
from agnosco.models.classifier import Classifier
from agnosco.runs import jobs
from agnosco.runs.command import chosen_config, command_of
from agnosco.runs.run import Run

NAMES = ["tench", "goldfish", "great white shark"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs: a network, its labels, and photographs of a sort."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGNOSCO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(generator.integers(256, size=(20, 18, 3), dtype=np.uint8)).save(
            tmp_path / "photos" / f"{i}.png"
        )
    return tmp_path


SMALL = (*MODEL, "--labels", "names.txt", "--samples", "photos", "--steps", "3", "--batch", "4", "--device", "cpu")


def call(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def mapped(*args: str) -> Result:
    result = call("map", *SMALL, *args)
    assert result.exit_code == 0, result.stderr
    return result


def manifest(run: str = "agnosco-run") -> dict[str, Any]:
    return json.loads(Path(run, "manifest.json").read_text())


def files(run: str | Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in Path(run).rglob("*") if path.is_file()}


def assert_same_map(first: str, second: str) -> None:
    """Two files hold the same map, whatever they say of the settings and of the maps beside it."""
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# -- what it makes -----------------------------------------------------------------------------


def test_json_is_one_object_and_nothing_else(folder: Path) -> None:
    before = time.perf_counter()
    result = mapped("goldfish", "0", "--out", "run", "--seeds", "2", "--json")
    elapsed = time.perf_counter() - before
    data = json.loads(result.stdout)
    assert set(data) == {"run", "maps"}
    assert data["run"] == "run"
    assert [(entry["class"], entry["index"], entry["seed"]) for entry in data["maps"]] == [
        ("goldfish", 1, 0),
        ("goldfish", 1, 1),
        ("tench", 0, 0),
        ("tench", 0, 1),
    ]
    for entry in data["maps"]:
        assert set(entry) == {"class", "index", "seed", "probability", "seconds", "picture"}
        assert Path(entry["picture"]).is_file()
    assert 0 < sum(entry["seconds"] for entry in data["maps"]) < elapsed


def test_probability_is_that_of_the_raw_picture(folder: Path) -> None:
    (entry,) = json.loads(mapped("goldfish", "--out", "run", "--json").stdout)["maps"]
    scope: dict[str, Any] = {}
    exec(NET, scope)
    nu = load_file("run/maps/0001-goldfish-s0.safetensors")["nu"]
    with torch.no_grad():
        expected = scope["build"]()((0.5 - nu).clamp(0, 1)[None]).softmax(1)[0, 1].item()
    assert entry["probability"] == pytest.approx(expected, abs=1e-6)


def test_without_json_stdout_is_empty_and_stderr_names_the_contact_sheet() -> None:
    result = mapped("goldfish")
    assert result.stdout == ""
    *_, line, wrote, kept, following = result.stderr.splitlines()
    assert line.startswith("goldfish (1), seed 0: class probability of the picture ")
    assert wrote == "Wrote 1 map to agnosco-run. Look at agnosco-run/contact-sheet.png"
    assert kept == "Kept thumbnails of typical samples in agnosco-run/samples: agnosco report --with-samples"
    assert following == "Next: agnosco report agnosco-run, or agnosco score agnosco-run --target MODEL"


def test_short_work_is_not_announced_and_long_work_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agnosco.method.maker.Maker.seconds_per_map", lambda _, count: 0.1)
    assert "maps of about" not in mapped("goldfish", "--out", "short").stderr
    monkeypatch.setattr("agnosco.method.maker.Maker.seconds_per_map", lambda _, count: 30.0)
    assert "1 maps of about 30 s: 30 s in all." in mapped("goldfish", "--out", "long").stderr


def scored(*args: str) -> Result:
    return call("score", "agnosco-run", "--trust-code", "--labels", "names.txt", "--device", "cpu", *args)


def test_score_prints_a_line_for_each_network_and_stores_it() -> None:
    mapped("goldfish", "tench", "--seeds", "2")
    result = scored(
        "--target", "python:net.py:build", "--target", "python:net.py:build(classes=3)", "--samples", "photos"
    )
    assert result.exit_code == 0, result.stderr
    head, *lines = result.stdout.splitlines()
    assert head.startswith("network ")
    assert len(lines) == 1  # the same network twice is one
    assert "(source)  4 " in lines[0]
    (stored,) = json.loads(Path("agnosco-run/scores.json").read_text())["targets"]
    again = json.loads(scored("--target", "python:net.py:build", "--samples", "photos", "--json").stdout)
    assert again["run"] == "agnosco-run"
    assert len(stored["answers"]) == 4
    short = {"target": "", "answers": []}  # on the screen, answers are left out
    assert [stored | short] == [judgement | {"target": ""} for judgement in again["targets"]]


def test_no_command_prints_the_password_of_a_url() -> None:
    url = "memory://me:secret@host/run"
    target = ("--target", "python:net.py:build", "--trust-code", "--labels", "names.txt", "--device", "cpu")
    commands = [
        ("map", *SMALL, "goldfish", "tench", "--out", url, "--json"),
        ("facets", *SMALL, "goldfish", "--out", f"{url}-facets", "--json"),
        ("score", url, *target, "--json", "--csv", f"{url}.csv"),
        ("report", url, "--out", f"{url}.html", "--json"),
        ("report", url, "--out", f"{url}.txt"),
        ("card", url, "--json"),
        ("check", url),
    ]
    for command in commands:
        result = call(*command)
        assert isinstance(result.exception, SystemExit | None), command[0]
        assert "me:…@host/run" in result.stderr + result.stdout.replace("\\u2026", "…"), command[0]
        assert "secret" not in result.output, command[0]


def test_score_names_the_weights_of_a_network() -> None:
    mapped("goldfish", "tench")
    scope: dict[str, Any] = {}
    exec(NET, scope)
    weights = scope["build"]().state_dict()
    for factor in (2, 3):
        save_file({name: factor * tensor for name, tensor in weights.items()}, f"times{factor}.safetensors")
    targets = [f"--target=python:net.py:build={os.path.abspath(f'times{factor}.safetensors')}" for factor in (2, 3)]
    _, *lines = scored(*targets).stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"python:net.py:build, times{n}.safetensors" for n in (2, 3)]


def test_channels_of_a_layer_are_mapped_continued_judged_checked_and_reported() -> None:
    at = ("--at", "0", "--labels", "channels.txt")
    Path("channels.txt").write_text("red\ngreen\nblue\ngrey\n")
    assert mapped("red", *at).exit_code == 0
    assert "1 of 2 maps are finished already" in mapped("red", "grey", *at).stderr
    other = call("map", *SMALL, "red", "--at", "0:center", "--labels", "channels.txt")
    assert (other.exit_code, "model at 0, now 0:center" in other.stderr) == (2, True)
    result = call(
        "score", "agnosco-run", "--trust-code", "--labels", "channels.txt", "--target", "python:net.py:build", "--json",
        "--device", "cpu", "--samples", "photos",
    )  # fmt: skip
    assert json.loads(result.stdout)["targets"][0]["maps"] == 2, result.stderr
    checked = call(
        "sanity", "agnosco-run", "--trust-code", "--model", "python:net.py:build", "--samples", "photos",
        "--classes", "2", "--labels", "channels.txt",
    )  # fmt: skip
    assert "randomized: 0 alone" in checked.stdout, checked.stderr
    assert call("report", "agnosco-run", "--out", "page.html").exit_code == 0
    assert "channels at 0" in Path("page.html").read_text()


BARE = """
from torch import nn

class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(768, 3)

    def forward(self, images):
        return self.body(images.flatten(1))
"""


def test_another_network_is_asked_at_the_layer_of_the_run() -> None:
    small = ("--samples", "photos", "--steps", "3", "--batch", "4", "--device", "cpu")
    assert call("map", *MODEL, "1", "3", "--at", "0", *small).exit_code == 0
    scope: dict[str, Any] = {}
    exec(NET, scope)
    opposite = {name: -tensor for name, tensor in scope["build"]().state_dict().items()}
    save_file(opposite, "opposite.safetensors")
    judge = ("score", "agnosco-run", "--trust-code", "--device", "cpu", "--target")
    assert "is asked at 0" not in call(*judge, "python:net.py:build").stderr
    result = call(*judge, "python:net.py:build=opposite.safetensors", "--json")
    assert (
        "build, opposite.safetensors is asked at 0, too: a number is the same channel only in a copy" in result.stderr
    )
    own, other = sorted(json.loads(result.stdout)["targets"], key=lambda judgement: not judgement["source"])
    assert (own["source"], other["source"], other["classes"]) == (True, False, 2)
    pictures = torch.stack([agnosco.Run.open("agnosco-run").map(index).pixels for index in (1, 3)])
    answers = torch.nn.functional.conv2d(pictures, opposite["0.weight"], opposite["0.bias"], stride=2).mean((2, 3))
    assert other["probability"] == pytest.approx(answers.softmax(1)[[0, 1], [1, 3]].mean().item(), rel=1e-4)

    Path("bare.py").write_text(BARE)
    result = call(*judge, "python:bare.py:Bare")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (2, "Error: Bare has no layer '0'")
    assert "body" in result.stderr.splitlines()[1]


def test_layers_are_listed_and_no_map_is_made() -> None:
    result = mapped("--list-layers", "--json")
    names = [layer["name"] for layer in json.loads(result.stdout)["layers"]]
    assert names == ["0", "1", "2", "3"]
    assert len(mapped("--list-layers").stdout.splitlines()) == 4
    assert not Path("agnosco-run").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--target", "python:net.py:build="), "has an empty name or weights file"),
        (("--target", "torchvision:resnet81"), "has no classifier"),
        (("--target", "python:net.py:build=nothing.safetensors"), "nothing.safetensors"),
        ((), "Missing option '--target'"),
    ],
)
def test_score_refuses_in_two_lines(args: tuple[str, ...], message: str) -> None:
    mapped("goldfish", "tench")
    result = scored(*args)
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert error.startswith("Error: ")
    assert message in error
    assert hint.startswith("Hint: ")
    assert not Path("agnosco-run/scores.json").exists()


def test_model_and_weights() -> None:
    assert model_and_weights("torchvision:resnet18") == ("torchvision:resnet18", None)
    assert model_and_weights("torchvision:resnet18=a.safetensors") == ("torchvision:resnet18", "a.safetensors")
    assert model_and_weights("python:n.py:Net(depth=20)") == ("python:n.py:Net(depth=20)", None)
    assert model_and_weights("python:n.py:Net(depth=20)=w.safetensors") == (
        "python:n.py:Net(depth=20)",
        "w.safetensors",
    )
    assert model_and_weights("python:n.py:Net(a=(1,2), b=3)=w.safetensors") == (
        "python:n.py:Net(a=(1,2), b=3)",
        "w.safetensors",
    )
    assert model_and_weights("timm:resnet18=/data/run=3/models (1)/w.safetensors") == (
        "timm:resnet18",
        "/data/run=3/models (1)/w.safetensors",
    )
    assert model_and_weights("python:n.py:Net(a=1, b=2)=/run=3/w (1).safetensors") == (
        "python:n.py:Net(a=1, b=2)",
        "/run=3/w (1).safetensors",
    )


def test_scores_are_stored_although_a_later_target_is_refused() -> None:
    mapped("goldfish", "tench")
    result = scored("--target", "python:net.py:build", "--target", "torchvision:resnet81")
    assert result.exit_code == 2
    assert len(json.loads(Path("agnosco-run/scores.json").read_text())["targets"]) == 1


def test_score_says_when_a_target_has_no_class_names() -> None:
    mapped("goldfish", "tench")
    assert "class names" not in scored("--target", "python:net.py:build").stderr
    unnamed = call("score", "agnosco-run", "--trust-code", "--device", "cpu", "--target", "python:net.py:build")
    assert unnamed.exit_code == 0
    assert "has no class names" in unnamed.stderr


def test_score_says_when_a_target_has_another_normalization() -> None:
    mapped("goldfish", "tench")
    assert "--mean" not in scored("--target", "python:net.py:build").stderr
    other = scored("--target", "python:net.py:build", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2")
    assert "tested with mean (0.5, 0.5, 0.5)" in other.stderr


def checked(*args: str) -> Result:
    pytest.importorskip("skimage")
    return call(
        "sanity",
        "agnosco-run",
        "--trust-code",
        "--labels",
        "names.txt",
        "--device",
        "cpu",
        "--samples",
        "photos",
        *args,
    )


def test_sanity_prints_and_stores_its_results() -> None:
    mapped("goldfish", "tench")
    result = checked("--model", "python:net.py:build", "--classes", "2")
    assert result.exit_code == 0, result.stderr
    assert "another seed, the same class" in result.stdout
    assert "planted" in result.stdout
    assert Path("agnosco-run/sanity.png").is_file()
    stored = json.loads(Path("agnosco-run/sanity.json").read_text())
    assert json.loads(checked("--model", "python:net.py:build", "--classes", "2", "--json").stdout) == stored


def test_sanity_of_a_run_with_refinement() -> None:
    mapped("goldfish", "tench", "--preset", "paper", "--features", "0")
    result = checked("--model", "python:net.py:build", "--classes", "2")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--model", "python:net.py:build", "--mean", "0.5,0.5,0.5"), "other model"),
        (("--model", "torchvision:resnet81"), "has no classifier"),
        ((), "Missing option '--model'"),
    ],
)
def test_sanity_refuses_in_two_lines(args: tuple[str, ...], message: str) -> None:
    mapped("goldfish", "tench")
    result = checked(*args)
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert message in error
    assert hint.startswith("Hint: ")
    assert not Path("agnosco-run/sanity.json").exists()


def two_runs(*more: str) -> None:
    """Runs of net.py, and of the same network with another last layer, in opposite.safetensors."""
    scope: dict[str, Any] = {}
    exec(NET, scope)
    tensors = scope["build"]().state_dict()
    save_file(tensors | {"3.weight": tensors["3.weight"].flip(0).contiguous()}, "opposite.safetensors")
    mapped("goldfish", "tench", "--out", "before", *more)
    mapped("goldfish", "tench", "--out", "after", "--weights", "opposite.safetensors", *more)


BOTH = ("--model", "python:net.py:build", "--model", "python:net.py:build=opposite.safetensors")


def compared(*args: str) -> Result:
    options = ("--trust-code", "--labels", "names.txt", "--device", "cpu", "--samples", "photos")
    return call("diff", "before", "after", *options, *args)


def test_diff_ranks_classes_and_the_report_shows_it() -> None:
    two_runs("--seeds", "2")
    result = compared(*BOTH)
    assert result.exit_code == 0, result.stderr
    head, *rows, _, sides, conclusion = result.stdout.splitlines()
    assert sides == "A: python:net.py:build; B: python:net.py:build. In parentheses: between seeds"
    assert head.split()[:3] == ["class", "change", "p"]
    assert sorted(row.split("  ")[0] for row in rows) == ["goldfish (1)", "tench (0)"]
    assert "more than seeds explain" in conclusion
    assert "Next: agnosco report before after" in result.stderr
    stored = json.loads(Path("after/diff.json").read_text())
    assert [row["change"] for row in stored["classes"]] == sorted(
        (row["change"] for row in stored["classes"]), reverse=True
    )
    assert json.loads(compared(*BOTH, "--json", "--out", "elsewhere").stdout) == stored
    assert json.loads(Path("elsewhere/diff.json").read_text()) == stored
    assert call("report", "before", "after", "--out", "page.html").exit_code == 0
    assert 'id="changed"' in Path("page.html").read_text()


def test_diff_of_one_seed_says_that_it_has_no_p_value() -> None:
    two_runs()
    assert "no p-value" in compared(*BOTH).stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (BOTH[:2], "1 networks for two runs"),
        ((*BOTH[2:], *BOTH[:2]), "'before' was made with other model"),
        ((*BOTH, "--samples", "noise"), "'before' was made with other samples"),
        ((), "Missing option '--model'"),
    ],
)
def test_diff_refuses_in_two_lines(args: tuple[str, ...], message: str) -> None:
    two_runs()
    result = compared(*args)
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert message in error
    assert hint.startswith("Hint: ")
    assert not Path("after/diff.json").exists()


def test_names_that_stdout_cannot_encode_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    for errors in ("strict", "surrogateescape"):  # those that Python chooses itself, the second in the locale C
        written = BytesIO()
        monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding="ascii", errors=errors, write_through=True))
        Output().result("猫 (0)")
        assert written.getvalue() == rb"\u732b (0)" + b"\n"
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written := BytesIO(), encoding="ascii", errors="replace"))
    Output().result("猫")
    sys.stdout.flush()
    assert written.getvalue() == b"?\n"  # as it was told


def test_quiet_prints_nothing() -> None:
    assert mapped("goldfish", "--quiet").stderr == ""


def test_targeted_success_rate_is_that_on_held_out_images() -> None:
    mapped("goldfish", "--radius", "150")
    scope: dict[str, Any] = {}
    exec(NET, scope)
    model = scope["build"]()
    images = Samples.from_folder("photos", (3, 16, 16)).images
    held_out = torch.randperm(10, generator=torch.Generator().manual_seed(0))[:2]
    pixels = images[held_out].float() / 255
    nu = load_file("agnosco-run/maps/0001-goldfish-s0.safetensors")["nu"]
    with torch.no_grad():
        others = model(pixels).argmax(1) != 1
        moved = model((pixels - nu).clamp(0, 1)).argmax(1) == 1
    expected = (others & moved).sum().item() / others.sum().item() if others.any() else None
    assert manifest()["maps"][0]["targeted_success_rate"] == expected


def test_same_command_twice_gives_the_same_bytes() -> None:
    for run in ("one", "two"):
        mapped("goldfish", "tench", "--out", run)
    assert files("one") == files("two")
    mapped("goldfish", "tench", "--out", "two")
    assert files("one") == files("two")


def test_a_map_made_alone_equals_the_one_made_beside_others_except_for_rounding() -> None:
    mapped("--seeds", "2", "--out", "all")
    mapped("goldfish", "--seed", "1", "--out", "alone")
    file = "maps/0001-goldfish-s1.safetensors"
    alone, beside = (load_file(f"{out}/{file}")["nu"] for out in ("alone", "all"))
    assert torch.allclose(alone, beside, rtol=1e-3, atol=1e-3)
    assert alone.abs().max() > 0.01


def test_without_a_class_all_are_mapped_and_the_time_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agnosco.cli.console.LONG", 0.0)
    result = mapped("--seeds", "2")
    said = result.stderr.splitlines()
    assert said[0] == "No class given: all classes are mapped"
    assert said[1].startswith("6 maps of about ")
    assert [(entry["index"], entry["seed"]) for entry in manifest()["maps"]] == [
        (i, s) for i in range(3) for s in range(2)
    ]


def test_class_named_twice_is_made_once() -> None:
    assert len(json.loads(mapped("1", "goldfish", "--json").stdout)["maps"]) == 1


def test_samples_that_need_no_data_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Samples.leaves
    monkeypatch.setattr(Samples, "leaves", lambda shape, **_: few(shape, count=10))
    result = call("map", *MODEL, "1", "--steps", "2", "--batch", "2", "--device", "cpu")
    assert result.exit_code == 0
    assert result.stderr.startswith("Samples: dead leaves, which need no data.")
    assert manifest()["samples"]["source"] == "leaves-10-seed0"


def test_some_of_the_samples_by_a_seed_and_the_command_that_takes_them_again() -> None:
    some = ("--samples-count", "7", "--samples-seed", "2")
    told = "Warning: 7 of 10 files in 'photos' were chosen by their names and the seed 2"
    assert told in mapped("goldfish", "tench", *some).stderr
    record = manifest()["samples"]
    assert (record["source"], record["count"]) == ("photos (7 of 10 files, seed 2)", 7)
    run = Run.open("agnosco-run")
    line = command_of(run.settings, run.entries)
    assert line is not None
    assert "--samples photos --samples-count=7 --samples-seed=2" in line
    assert "2 of 2 maps are finished already" in mapped("goldfish", "tench", *some).stderr
    checked = ("sanity", "agnosco-run", "--trust-code", "--model", "python:net.py:build", "--samples", "photos")
    assert call(*checked, "--labels", "names.txt", "--classes", "2", *some).exit_code == 0
    assert "made with other samples: photos (7 of 10 files, seed 2)" in call(*checked).stderr


def test_synthetic_samples_take_a_number_and_a_seed_and_digits_do_not() -> None:
    small = ("map", *MODEL, "1", "--steps", "1", "--batch", "2", "--device", "cpu")
    assert call(*small, "--samples", "noise", "--samples-count", "12", "--samples-seed", "4").exit_code == 0
    assert manifest()["samples"]["fingerprint"] == Samples.noise((3, 16, 16), count=12, seed=4).fingerprint
    refusal = call(*small, "--samples", "digits", "--samples-count", "12")
    assert (refusal.exit_code, "digits are always all of them" in refusal.stderr) == (2, True)


def test_digits_are_refused_for_a_network_of_other_images_before_anything_is_written() -> None:
    error, hint = refused(call("map", *MODEL, "1", "--samples", "digits"))
    assert error == "Error: digits are (1, 32, 32), and python:net.py:build takes (3, 16, 16)"
    assert "--samples" in hint
    assert not Path("agnosco-run").exists()


def test_normalization_and_weights_are_used_and_stored() -> None:
    scope: dict[str, Any] = {}
    exec(NET, scope)
    weights = {name: 2 * tensor for name, tensor in scope["build"]().state_dict().items()}
    save_file(weights, "double.safetensors")
    mapped("1", "--mean", "0.1,0.2,0.3", "--std", "1,2,4", "--weights", "double.safetensors")
    model = manifest()["model"]
    assert (model["mean"], model["std"]) == ([0.1, 0.2, 0.3], [1.0, 2.0, 4.0])
    assert (model["name"], model["weights"], model["shape"]) == (
        "python:net.py:build",
        "double.safetensors",
        [3, 16, 16],
    )
    network = scope["build"]()
    network.load_state_dict(weights)
    expected = Classifier(network, size=16, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
    assert model["fingerprint"] == expected.fingerprint


# -- its settings ------------------------------------------------------------------------------

QUICK, PAPER = PRESETS["quick"], PRESETS["paper"]


@pytest.mark.parametrize(
    ("base", "changes", "attribute", "expected"),
    [
        ("quick", {}, "parameterization", QUICK.mapper.parameterization),
        ("quick", {"parameterization": "pixel"}, "parameterization", Pixel()),
        ("quick", {"parameterization": "spectral"}, "parameterization", Spectral()),
        ("paper", {"parameterization": "data"}, "parameterization", Data()),
        ("quick", {"transforms": "crops"}, "transforms", QUICK.mapper.transforms),
        ("quick", {"transforms": "identity"}, "transforms", Identity()),
        ("paper", {"transforms": "crops"}, "transforms", Crops()),
        ("quick", {"ball": "l2"}, "ball", QUICK.mapper.ball),
        ("paper", {"ball": "sparse"}, "ball", Sparse()),
        ("paper", {"ball": "auto"}, "ball", AutoL2()),
        ("paper", {"radius": 7.0}, "ball", L2(7.0)),
        ("paper", {"ball": "auto", "radius": 90.0}, "ball", AutoL2(limit=90.0)),
        ("paper", {"ball": "auto", "radius": 9.0}, "ball", AutoL2(start=9.0, limit=9.0)),
        ("paper", {"loss": "log-odds"}, "loss", "log-odds"),
        ("quick", {"loss": "cross-entropy"}, "loss", "cross-entropy"),
        ("quick", {"loss": "0.25"}, "loss", 0.25),
        ("paper", {"steps": 5}, "steps", 5),
        ("quick", {"batch": 6}, "batch", 6),
    ],
)
def test_an_option_replaces_one_setting(base: str, changes: dict[str, Any], attribute: str, expected: object) -> None:
    config = chosen_config(base, **changes)
    assert getattr(config.mapper, attribute) == expected
    untouched = {name for name in vars(config.mapper) if name != attribute}
    assert all(getattr(config.mapper, name) == getattr(PRESETS[base].mapper, name) for name in untouched)
    assert (config.refine, config.cycles) == (PRESETS[base].refine, PRESETS[base].cycles)


def test_the_manifest_says_which_precision_auto_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    for options, noted in (
        ((), "bfloat16"),
        (("--precision", "auto"), "bfloat16"),
        (("--precision", "float32"), "float32"),
    ):
        out = f"run{len(options)}{noted}"
        mapped("1", "--out", out, *options)
        assert manifest(out)["config"]["precision"] == noted


def test_no_such_precision_is_two_lines() -> None:
    result = call("map", *MODEL, "1", "--precision", "half")
    assert result.exit_code == 2
    assert result.stderr == "Error: no precision 'half'\nHint: choose from float32, bfloat16, auto\n"


def test_compiling_changes_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)
    mapped("1", "--out", "plain")
    assert compiled == []
    mapped("1", "--out", "compiled", "--compile")
    assert len(compiled) == 1
    assert [manifest(out)["config"]["compiled"] for out in ("plain", "compiled")] == [False, True]
    assert_same_map("plain/maps/0001-goldfish-s0.safetensors", "compiled/maps/0001-goldfish-s0.safetensors")


def test_options_reach_the_manifest() -> None:
    mapped(
        "1", "--preset", "paper", "--parameterization", "spectral", "--transforms", "crops",
        "--ball", "auto", "--radius", "50",
        "--loss", "logit",
    )  # fmt: skip
    config = manifest()["config"]
    assert config["cycles"] == PAPER.cycles
    assert config["refine"] is not None
    dials = {name: config["mapper"][name]["type"] for name in ("parameterization", "transforms", "ball")}
    assert dials == {"parameterization": "spectral", "transforms": "crops", "ball": "auto"}
    assert config["mapper"]["loss"] == "logit"
    assert (config["mapper"]["ball"]["limit"], config["mapper"]["steps"], config["mapper"]["batch"]) == (50.0, 3, 4)


def test_numbers() -> None:
    assert numbers("0.5, .25,1", "--mean") == [0.5, 0.25, 1.0]
    assert numbers(None, "--mean") is None


# -- what is refused ---------------------------------------------------------------------------


def refused(result: Result | subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The error and the hint of a command that left nothing behind."""
    code = result.exit_code if isinstance(result, Result) else result.returncode
    lines = result.stderr.splitlines()
    assert code == 2, result.stderr
    assert result.stdout == ""
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("Error: ")
    assert lines[1].startswith("Hint: ")
    assert not Path("agnosco-run").exists()
    return lines[0], lines[1]


def truncated(folder: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "complete.jpg")
    content = (folder / "complete.jpg").read_bytes()
    (folder / "complete.jpg").unlink()
    (folder / "half.jpg").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda folder: None, "'odd' is empty"),
        (
            lambda folder: [(folder / f"{i}.txt").write_text("words") for i in range(3)],
            "no readable image in 'odd': '0.txt'",
        ),
        (truncated, "'half.jpg' (truncated)"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_folder_without_images_is_refused(folder: Path, fill: Callable[[Path], object], message: str) -> None:
    (folder / "odd").mkdir()
    fill(folder / "odd")
    error, _ = refused(call("map", *SMALL, "1", "--samples", "odd"))
    assert message in error


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["goldfsh"], "no class 'goldfsh'", "did you mean 'goldfish'?"),
        (["3"], "no class 3", "give 0 to 2"),
        (["1", "--samples", "nowhere"], "no folder 'nowhere'", "leaves"),
        (["1", "--samples", "~no-such-user/x"], "no folder '~no-such-user/x'", "leaves"),
        (["1", "--samples", 300 * "x"], "file name too long", "permissions"),
        (["1", "--samples", ""], "no folder ''", "leaves"),
        (["1", "--preset", "finest"], "no preset 'finest'", "paper, quick"),
        (["1", "--parameterization", "polar"], "no parameterization 'polar'", "pixel, data, spectral"),
        (["1", "--transforms", "all"], "no transforms 'all'", "identity, crops"),
        (["1", "--loss", "hinge"], "no loss 'hinge'", "cross-entropy, log-odds, logit"),
        (["1", "--loss", "-0.5"], "no loss -0.5", "or a weight of the other classes such as 0.5"),
        (["1", "--loss", "nan"], "no loss nan", "or a weight of the other classes such as 0.5"),
        (["1", "--ball", "l1"], "no ball 'l1'", "l2, sparse, auto"),
        (["1", "--ball", "sparse", "--radius", "3"], "a sparse ball has no radius", "--ball l2"),
        (
            ["1", "--ball", "sparse", "--parameterization", "data"],
            "a sparse ball needs pixel coordinates",
            "--parameterization pixel",
        ),
        (["1", "--radius", "-1"], "radius must be positive and finite, not -1", "the paper's is 30"),
        (["1", "--mean", "a,b"], "--mean 'a,b' is not a list of numbers", "--mean 0.485,0.456,0.406"),
        (["1", "--std", "1,nan,1"], "is not finite", "--std 0.485"),
        (["1", "--mean", "0.5"], "mean has 1 values for 3 channels", "3"),
        (["1", "--device", "tpu"], "'tpu'", "cpu"),
        (["1", "--steps", "0"], "'--steps'", "agnosco map --help"),
        (["1", "--seed", "9223372036854775808"], "'--seed'", "agnosco map --help"),
        (["1", "--steps", "many"], "'--steps'", "agnosco map --help"),
        (["1", "--stepz", "3"], "--stepz", "agnosco map --help"),
    ],
)
def test_a_wrong_value_is_two_lines(args: Sequence[str], error: str, hint: str) -> None:
    lines = refused(call("map", *SMALL, *args))
    assert error in lines[0]
    assert hint in lines[1]


@pytest.mark.parametrize(
    ("args", "error"),
    [([], "Missing command"), (["map"], "Missing argument 'MODEL'"), (["mpa"], "'mpa'"), (["--loud"], "--loud")],
)
def test_wrong_usage_is_two_lines(args: Sequence[str], error: str) -> None:
    lines = refused(call(*args))
    assert error in lines[0]
    assert "--help" in lines[1]


def test_weights_of_another_architecture_are_refused() -> None:
    save_file({"0.weight": torch.zeros(4, 3, 5, 5)}, "other.safetensors")
    error, _ = refused(call("map", *SMALL, "1", "--weights", "other.safetensors"))
    assert "other.safetensors does not hold the weights" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none_is_refused() -> None:
    error, hint = refused(call("map", *SMALL, "1", "--device", "cuda"))
    assert "no 'cuda'" in error
    assert "cpu" in hint


def test_code_is_not_run_without_trust(folder: Path) -> None:
    (folder / "net.py").write_text("open('canary', 'w')")
    _, hint = refused(call("map", "python:net.py:build", "1", "--size", "16"))
    assert "--trust-code" in hint
    assert not Path("canary").exists()


def test_output_that_cannot_be_written_is_refused_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    (folder / "taken").write_text("dear")
    for out in ("taken", "taken/run"):
        before = files(folder)
        error, hint = refused(call("map", *SMALL, "1", "--out", out))
        assert f"'{out}'" in error
        assert "--out" in hint
        assert files(folder) == before


def test_output_folder_that_refuses_files_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", denied)
        error, _ = refused(call("map", *SMALL, "1", "--out", "new/run"))
    assert "cannot write 'new/run': permission denied" in error
    assert not Path("new").exists()


def test_folder_of_another_run_is_refused(folder: Path) -> None:
    mapped("1", "--out", "run")
    before = files("run")
    error, _ = refused(call("map", *SMALL, "1", "--out", "run", "--steps", "4"))
    assert "other settings (config mapper steps 3, now 4)" in error
    assert files("run") == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to ..."
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_an_error_in_two_lines(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("agnosco.runs.jobs.map_runs", fail)
    result = call("map", *SMALL, "--out", "run")
    assert result.exit_code == 2, result.exception
    assert result.stderr.splitlines()[-2] == "Error: there is not enough memory"
    assert result.stderr.splitlines()[-1].startswith("Hint: ")


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), RuntimeError("sizes do not match")])
def test_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, bug: Exception) -> None:
    def broken(*_: object, **__: object) -> None:
        raise bug

    monkeypatch.setattr(loading, "load", broken)
    result = call("map", *SMALL, "1")
    assert result.exception is bug


# -- warnings, interruption, names from outside ------------------------------------------------


def test_skipped_file_is_one_warning(folder: Path) -> None:
    (folder / "photos" / "notes.txt").write_text("words")
    warned = [line for line in mapped("1").stderr.splitlines() if line.startswith("Warning: ")]
    assert len(warned) == 1
    assert "'notes.txt' (not an image)" in warned[0]


def test_vanishing_gradients_are_one_warning() -> None:
    Path("flat.py").write_text(
        "from torch import nn\n"
        "class Flat(nn.Module):\n"
        "    def forward(self, pixels):\n"
        "        return pixels.flatten(1)[:, :3] * 0\n"
    )
    result = call("map", "python:flat.py:Flat", "--trust-code", "--size", "16", "--channels", "3", *SMALL[6:], "1")
    assert result.exit_code == 0, result.stderr
    warned = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(warned) == 1
    assert "vanish" in warned[0]


def test_interruption_keeps_finished_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def judged(_probabilities: Tensor, label: int, _before: Tensor) -> float:
        calls.append(label)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 0.5

    monkeypatch.setattr(jobs, "share_moved", judged)
    monkeypatch.setattr(jobs, "INTERVAL", float("inf"))  # no checkpoint, whatever the clock says
    result = call("map", *SMALL, "--json")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr.splitlines()[-2:] == [
        "Wrote 1 of 3 maps to agnosco-run. Look at agnosco-run/contact-sheet.png",
        "Interrupted. To continue, give the same command again",
    ]
    assert [entry["index"] for entry in manifest()["maps"]] == [0]
    assert set(files("agnosco-run")) == {
        "manifest.json",
        "contact-sheet.png",
        "maps/0000-tench-s0.json",
        "maps/0000-tench-s0.safetensors",
        "pictures/0000-tench-s0.png",
        "pictures/0000-tench-s0-raw.png",
    }


def test_class_names_cannot_steer_a_terminal_or_leave_the_folder(folder: Path) -> None:
    (folder / "names.txt").write_text(json.dumps(["\x1b[2J../../up\nsecond line [bold]x[/bold]", "b", "c" * 10**5]))
    result = mapped("0", "2", "--out", "deep/run")
    assert "\x1b" not in result.stderr
    assert "[2J../../up second line [bold]x[/bold] (0), seed 0" in result.stderr
    assert len(result.stderr) < 10_000
    assert "maps/0000-2j-up-second-line-bold-x-bold-s0.safetensors" in files("deep/run")
    assert all(str(path).startswith("deep/run/") or "deep" not in str(path) for path in Path().rglob("*.png"))


# -- how long ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.24, "0.2 s"), (41.2, "41 s"), (119, "119 s"), (150, "2.5 min"), (7200, "2.0 h"), (5 * 86400, "5.0 days")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_version() -> None:
    assert call("--version").stdout == f"agnosco {agnosco.__version__}\n"


# -- in a process of its own -------------------------------------------------------------------


def process(*args: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(agnosco.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", "from agnosco.cli.app import main; main()", *args],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False, timeout=PATIENCE,
    )  # fmt: skip


@pytest.mark.slow
def test_process_prints_json_alone_and_exits_with_its_code() -> None:
    result = process("map", *SMALL, "goldfish", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["maps"][0]["class"] == "goldfish"
    result = process("map", *SMALL, "goldfsh", "--out", "other")
    assert (result.returncode, len(result.stderr.splitlines()), result.stdout) == (2, 2, "")


@pytest.mark.slow
def test_real_network_maps_real_classes(assets: Path) -> None:
    result = call(
        "map", "torchvision:resnet18", "--weights", str(assets / "models/resnet18-imagenet.safetensors"),
        "--samples", str(assets / "imagenet-samples"), "--size", "112", "--preset", "draft",
        "goldfish", "castle", "--device", "cpu", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    maps = json.loads(result.stdout)["maps"]
    assert [(entry["class"], entry["index"]) for entry in maps] == [("goldfish", 1), ("castle", 483)]
    assert all(entry["probability"] >= 0.9 for entry in maps)


# -- facets ------------------------------------------------------------------------------------


def faceted(*args: str) -> Result:
    return call("facets", *SMALL, *args)


def test_facets_are_a_run_that_map_makes_again(folder: Path) -> None:
    result = faceted("goldfish", "--facets", "2", "--json")
    assert result.exit_code == 0, result.stderr
    (of_class,) = json.loads(result.stdout)["classes"]
    assert (of_class["class"], of_class["index"], of_class["nudged"]) == ("goldfish", 1, True)
    assert [facet["name"] for facet in of_class["facets"]] == ["goldfish, facet 1", "goldfish, facet 2"]
    assert Path("agnosco-facets/samples/0000-goldfish-facet-1-s0-facet.png").is_file()
    again = [name for name in SMALL if name not in ("--labels", "names.txt")]
    asked = ("--at", "3:input", "--directions", "agnosco-facets/facets.safetensors")
    settings = ("--parameterization", "spectral", "--transforms", "identity", "--loss", "logit")
    made = call("map", *again, "0", "1", *asked, *settings, "--out", "again")
    assert made.exit_code == 0, made.stderr
    for name in ("0000-goldfish-facet-1-s0", "0001-goldfish-facet-2-s0"):
        file = f"maps/{name}.safetensors"
        assert_same_map(f"again/{file}", f"agnosco-facets/{file}")
    assert manifest("agnosco-facets")["model"]["labels"] is None  # they are not the names of facets


def test_facets_of_private_samples_are_shown_without_them(folder: Path) -> None:
    (folder / "photos" / ".private").touch()
    result = faceted("goldfish", "--facets", "1", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "goldfish (1), from" in result.stdout
    assert not Path("agnosco-facets", "samples").exists()
    refused = call("report", "agnosco-facets", "--with-samples")
    assert (refused.exit_code, "has kept no samples" in refused.stderr) == (2, True)
