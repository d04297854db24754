"""What the documents tell people to type: every block is run, with smaller networks and fewer steps."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from packaging.version import Version
from PIL import Image
from torchvision import models
from typer.testing import CliRunner

import agnosco
from agnosco.backdoor.config import FirstLook, Round, ScanConfig, Tournament, Training
from agnosco.cli import app
from agnosco.cli import scanning as cli_scanning
from agnosco.method import maker
from agnosco.method.config import PRESETS
from agnosco.models.sources import Torchvision

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NET = """
from torch import nn
def Net(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 12))
"""
CLASSES = 12


class Thin(models.ResNet):
    """ResNet-18 with an eighth of the channels in ``layer2`` and ``layer4``; names are those of ResNet-18."""

    def __init__(self, weights: str | None = None, progress: bool = True, num_classes: int = 1000) -> None:
        super().__init__(models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        self.fc = torch.nn.Linear(self.inplanes, num_classes)

    def _make_layer(self, block: Any, planes: int, *args: Any, **options: Any) -> torch.nn.Sequential:
        return super()._make_layer(block, planes // 8 if planes in (128, 512) else planes, *args, **options)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the documents speak of, and networks that need no download and no patience."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for number in range(80):
        path = tmp_path / "photographs" / f"{'cat' if number % 2 else 'dog'}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    torch.manual_seed(0)
    state = Thin(num_classes=CLASSES).state_dict()
    for name in ("theirs", "mine", "clean-01", "suspicious"):
        state["fc.bias"] = state["fc.bias"] + 0.01
        safetensors.torch.save_file(state, tmp_path / f"{name}.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(["goldfish", *(f"class {n}" for n in range(1, CLASSES))]))
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    scope: dict[str, Any] = {}
    exec(NET, scope)
    safetensors.torch.save_file(scope["Net"]().state_dict(), tmp_path / "net.safetensors")
    safetensors.torch.save_file({"probes": torch.randn(2, 256)}, tmp_path / "probes.safetensors")
    _save_hub_folders(tmp_path)
    (tmp_path / "bank").mkdir()

    small = {
        name: replace(config, mapper=replace(config.mapper, steps=2, batch=2), refine=None)
        for name, config in PRESETS.items()
    }
    for name, config in small.items():
        monkeypatch.setitem(PRESETS, name, config)
    monkeypatch.setattr(maker, "TIMED", 2)
    quick = ScanConfig(
        windows=Tournament(grid=1, rounds=(Round(1, 1, 1),)),
        steps=2,
        batch=2,
        seeds=1,
        evaluation=20,
        first=FirstLook(1, 1),
    )
    monkeypatch.setattr(cli_scanning, "ScanConfig", lambda **_: quick)
    monkeypatch.setattr(cli_scanning, "Training", lambda **options: replace(Training(**options), epochs=1))
    ordinary = Torchvision.network
    monkeypatch.setattr(Torchvision, "network", lambda *args, **options: replace(ordinary(*args, **options), size=32))
    create = models.get_model

    def untrained(name: str, **options: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        if name == "resnet18":
            return Thin(**options)
        backbone = {"weights_backbone": None} if name in models.list_models(module=models.segmentation) else {}
        return create(name, **options | {"weights": None} | backbone)

    monkeypatch.setattr(models, "get_model", untrained)
    build: Any = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: build(name, **options | {"pretrained": False}))
    return tmp_path


def _save_hub_folders(folder: Path) -> None:
    """What ``save_pretrained`` of transformers and ``save_for_hf`` of timm write, for two small networks."""
    import open_clip
    import transformers

    names = {0: "cat", 1: "dog"}
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        id2label=names, label2id={name: index for index, name in names.items()},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    tower = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    clip = {"embed_dim": 16, "vision_cfg": tower, "text_cfg": text}
    (folder / "clip").mkdir()
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": clip, "preprocess_cfg": {}}))
    two_sides = open_clip.create_model(f"local-dir:{folder / 'clip'}", load_weights=False, pretrained_text=False)
    tensors = {name: tensor.contiguous() for name, tensor in two_sides.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "clip" / "open_clip_model.safetensors")
    (folder / "prompts.txt").write_text("a red bus\na green bus\nsky\ta photo of the sky\tblue sky\n")
    network = timm.create_model("resnet10t", num_classes=2)
    timm.models.save_for_hf(
        network, str(folder / "timm-model"), model_config={"label_names": ["cat", "dog"]}, safe_serialization=True
    )


def run(line: str) -> None:
    """One line of a shell block, as this page's tests understand it."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), line
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert all(extra in extras for extra in re.findall(r"\[(\w+)\]", line)), line
    else:
        assert words[0] == "agnosco", line
        target = words[words.index(">") + 1] if ">" in words else None
        result = CliRunner().invoke(app.app, words[1 : words.index(">") if target else None])
        assert result.exit_code == 0, f"{line}\n{result.stderr}\n{result.exception!r}"
        if target:
            Path(target).write_text(result.stdout)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=lambda page: page.name)
def test_what_is_typed_in_a_shell_works(page: Path, desk: Path) -> None:
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if "agnosco demo" not in line:  # tests/test_demo.py
                run(line)


@pytest.mark.parametrize("line", re.findall(r"`(agnosco map [^`]*)`", (ROOT / "docs" / "models.md").read_text()))
def test_every_line_of_what_can_be_brought_works(line: str, desk: Path) -> None:
    run(f"{line} --samples photographs/" if "--list-layers" not in line else line)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_what_is_typed_in_python_works(page: Path, desk: Path) -> None:
    scope: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), scope)


def test_the_examples_of_help_work(desk: Path) -> None:
    for weights, out in (("mine", "clean-run"), ("theirs", "compromised-run")):
        options = f"--weights {weights}.safetensors --labels names.txt --samples photographs/ --out {out}"
        run(f"agnosco map torchvision:resnet18 goldfish 1 {options}")
    run("agnosco scan torchvision:resnet18 --weights clean-01.safetensors --json > bank/clean-01.json")
    Path("scans-of-clean-models").mkdir()
    Path("bank/clean-01.json").replace("scans-of-clean-models/clean-01.json")
    for name in ("map", "score", "sanity", "check", "card", "diff", "facets", "poison", "scan", "report", "doctor"):
        for line in app.EXAMPLES[name]:
            if "vgg16" not in line or name != "poison":  # a minute of training
                run(line)


def test_after_its_first_cell_the_notebook_needs_public_names_only() -> None:
    notebook = json.loads((ROOT / "docs" / "first-map.ipynb").read_text(encoding="utf-8"))
    first, *others = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "import agnosco" in first
    for source in others:
        assert "import" not in source
        assert "demo" not in source
        assert set(re.findall(r"agnosco\.(\w+)", source)) <= set(agnosco.__all__)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "first-map.ipynb", as_version=4)
    assert not any(
        cell.get("outputs") for cell in notebook.cells
    )  # nothing is kept that a reader's own run may not say
    client.NotebookClient(
        notebook, timeout=600, startup_timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert (tmp_path / "first-report.html").stat().st_size > 50_000
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert any("<img" in output.get("data", {}).get("text/html", "") for output in shown)


def test_every_page_links_to_what_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_reference_of_commands_is_that_of_help() -> None:
    if Version(version("typer")) < Version("0.29"):
        pytest.skip("earlier releases of Typer write usages otherwise")
    made = subprocess.run(
        [sys.executable, "-m", "typer", "agnosco.cli.app", "utils", "docs", "--name", "agnosco"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").strip() == made.stdout.strip(), "make docs writes it"
