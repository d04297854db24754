"""Loading: every source gives the right weights, labels and preprocessing, or says why it cannot."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
import urllib.error
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models

from agnosco import Samples, map_class, preset
from agnosco.errors import AgnoscoError, AgnoscoWarning
from agnosco.models import loading
from agnosco.models.classifier import Classifier
from agnosco.models.fitting import FORMS
from agnosco.models.weights.opening import read_weights

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
AS_IT_IS: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "size": 64}
ARCHITECTURES = Path(__file__).resolve().parents[3] / "shared" / "tools" / "cifar_archs.py"

FACTORIES = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn

@dataclass
class Settings:  # looks its module up in sys.modules
    classes: int = 4

def build():
    return net(Settings().classes)

def net(classes, *, width=2):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))

def number():
    return 7

def failing():
    raise KeyError("no weights here")
"""


class Canary:
    """An object whose pickle writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.path, "sung")


def saved(model: nn.Module, path: Path, **changes: Tensor | None) -> Path:
    """A safetensors file of a model's weights; ``changes`` replace some, or with None leave them out."""
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    tensors.update({key.replace("__", "."): tensor for key, tensor in changes.items() if tensor is not None})
    for key in [key.replace("__", ".") for key, tensor in changes.items() if tensor is None]:
        del tensors[key]
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    torch.manual_seed(0)
    return models.squeezenet1_1(weights=None).eval()


@pytest.fixture(scope="module")
def squeezenet_file(squeezenet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(squeezenet, tmp_path_factory.mktemp("weights") / "squeezenet.safetensors")


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    path = tmp_path / "my_factories.py"
    path.write_text(FACTORIES)
    return path


def fails(message: str, hint: str, *args: Any, **options: Any) -> AgnoscoError:
    """The error of a ``load`` that must fail with these parts of a message and a hint."""
    with pytest.raises(AgnoscoError) as caught:
        loading.load(*args, **options)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def awake(model: nn.Module, size: int) -> nn.Module:
    """The model with batch statistics of random images; without, deep random networks answer the same to all images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics are then those of this one batch
    with torch.no_grad():
        model.train()(torch.rand(8, 3, size, size))
    return model.eval()


def agree(classifier: Classifier, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Asserts that a classifier answers as a model does to images normalised here, and not always the same."""
    pixels = torch.rand(2, *classifier.shape, generator=torch.Generator().manual_seed(1))
    pixels[1] *= torch.tensor([0.9, 0.3, 0.1]).view(-1, 1, 1)
    centre, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    with torch.no_grad():
        expected = model((pixels - centre) / scale)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    torch.testing.assert_close(classifier(pixels), expected, rtol=1e-3, atol=1e-3)


def pixels_of(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255


# -- torchvision -------------------------------------------------------------------------------------


def test_torchvision_weights_from_a_file(squeezenet: nn.Module, squeezenet_file: Path) -> None:
    classifier = loading.load("torchvision:squeezenet1_1", weights=squeezenet_file)
    assert classifier.name == "torchvision:squeezenet1_1"
    assert (classifier.shape, classifier.classes) == ((3, 224, 224), 1000)
    assert (classifier.mean, classifier.std) == tuple(IMAGENET.values())
    assert [classifier.labels[i] for i in (0, 1, 483, 999)] == ["tench", "goldfish", "castle", "toilet tissue"]
    agree(classifier, squeezenet, **IMAGENET)


def test_loaded_model_is_ours(squeezenet_file: Path) -> None:
    model = loading.load("torchvision:squeezenet1_1", weights=squeezenet_file).model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    kernels = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_weights_do_not_change_with_their_file(squeezenet: nn.Module, tmp_path: Path) -> None:
    path = saved(squeezenet, tmp_path / "w.safetensors")
    tensors = read_weights(path)
    with path.open("r+b") as file:
        file.seek(-4096, 2)
        file.write(bytes(4096))
    for key, tensor in squeezenet.state_dict().items():
        assert torch.equal(tensors[key], tensor)


@pytest.mark.parametrize("name", ["mnasnet0_5", "regnet_y_400mf", "shufflenet_v2_x0_5", "swin_t"])
def test_fine_tuned_head_of_other_classes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = awake(models.get_model(name, weights=None, num_classes=7), 64)
    classifier = loading.load(f"torchvision:{name}", weights=saved(model, tmp_path / "w.safetensors"), **AS_IT_IS)
    assert classifier.labels == tuple("0123456")
    agree(classifier, model, AS_IT_IS["mean"], AS_IT_IS["std"])


def test_preprocessing_of_a_fine_tuned_network_is_assumed_with_a_warning(tmp_path: Path) -> None:
    path = saved(models.squeezenet1_1(num_classes=7), tmp_path / "w.safetensors")
    with pytest.warns(AgnoscoWarning, match=r"224 px, mean \(0\.485.*give size, mean and std"):
        classifier = loading.load("torchvision:squeezenet1_1", weights=path, labels=[*"abcdefg"])
    assert classifier.shape == (3, 224, 224)
    assert (classifier.mean, classifier.std) == tuple(IMAGENET.values())
    assert classifier.labels == tuple("abcdefg")


def test_googlenet_is_built_as_torchvision_builds_it_for_its_own_weights(tmp_path: Path) -> None:
    """Its own weights come without auxiliary heads, and expect inputs normalised to 0.5 by the model."""
    torch.manual_seed(0)
    model = models.googlenet(weights=None, init_weights=False, aux_logits=False, num_classes=7, transform_input=True)
    path = saved(awake(model, 64), tmp_path / "w.safetensors")
    agree(loading.load("torchvision:googlenet", weights=path, **AS_IT_IS), model, AS_IT_IS["mean"], AS_IT_IS["std"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = models.squeezenet1_1(weights=None).to(dtype)
    path = saved(stored, tmp_path / "w.safetensors")
    model = loading.load("torchvision:squeezenet1_1", weights=path, **AS_IT_IS).model
    for own, given in zip(model.parameters(), stored.parameters(), strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, given.float(), rtol=0, atol=0)


def test_own_weights_come_from_torchvision(
    squeezenet: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file where torchvision keeps its downloads, and no network."""
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(squeezenet.state_dict(), checkpoints / Path(models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    classifier = loading.load("torchvision:squeezenet1_1")
    assert classifier.labels[1] == "goldfish"
    assert classifier.shape == (3, 224, 224)
    own = Classifier(squeezenet, size=224, mean=IMAGENET["mean"], std=IMAGENET["std"])
    assert classifier.fingerprint == own.fingerprint


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def urlopen(*_args: object, **_options: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    fails("cannot download the weights of torchvision:resnet18", "weights=FILE.safetensors", "torchvision:resnet18")


def test_mean_std_size_and_labels_can_be_given(squeezenet_file: Path) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    names = [f"class {i}" for i in range(1000)]
    classifier = loading.load(
        "torchvision:squeezenet1_1", weights=squeezenet_file, size=(64, 80), mean=mean, std=std, labels=names
    )
    assert (classifier.shape, classifier.mean, classifier.std) == ((3, 64, 80), mean, std)
    assert classifier.labels == tuple(names)


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("torchvision:resnt18", "no classifier 'resnt18'", "'resnet18'"),
        ("torchvision:raft_small", "no classifier 'raft_small'", "convnext_small"),  # optical flow
        ("torchvision:", "no classifier ''", "there are"),
        ("resnet18", "'resnet18' does not say", "'torchvision:resnet18'"),
        ("weights.pt", "'weights.pt' does not say", "name the architecture"),
        ("keras:resnet18", "'keras:resnet18' does not say", FORMS),
        ("", "'' does not say", FORMS),
        (18, "int is not a classifier", FORMS),
        (models.ResNet, "type is not a classifier", "nn.Module"),
    ],
)
def test_no_such_name(spec: object, message: str, hint: str) -> None:
    fails(message, hint, spec)


# -- weights files -----------------------------------------------------------------------------------


def test_weights_of_another_architecture(squeezenet_file: Path) -> None:
    error = fails(
        "squeezenet.safetensors does not hold the weights of torchvision:mobilenet_v2",
        "torchvision:squeezenet1_1",
        "torchvision:mobilenet_v2",
        weights=squeezenet_file,
    )
    assert "'features.0.0.weight'" in error.message  # MobileNetV2's first convolution is missing,
    assert "'classifier.1.weight (1000, 512, 1, 1) instead of (1000, 1280)'" in error.message
    assert "52 unexpected" not in error.message  # and what the two have in common is not counted
    assert str(squeezenet_file.parent) not in str(error)


def test_weights_of_no_known_architecture(tmp_path: Path) -> None:
    save_file({"stem": torch.ones(9), "head": torch.ones(2)}, tmp_path / "w.safetensors")
    fails("2 unexpected", "'stem'", "torchvision:squeezenet1_1", weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier__1__bias": None}, "1 missing ('classifier.1.bias')"),
        ({"extra": torch.ones(1)}, "1 unexpected ('extra')"),
        ({"features__0__bias": torch.ones(63)}, "'features.0.bias (63,) instead of (64,)'"),
        ({"classifier__1__weight": torch.ones(5, 512, 1, 1)}, "'classifier.1.bias (1000,) instead of (5,)'"),
        ({"features__0__bias": torch.ones(64, dtype=torch.int32)}, "1 with integers ('features.0.bias')"),
        ({"classifier__1__weight": torch.ones(10**9, 0)}, "classifier.1.weight (1000000000, 0) instead of"),
        ({"features__0__bias": torch.full((64,), float("nan"))}, "'features.0.bias' is not finite"),
        ({"features__0__bias": torch.full((64,), float("-inf")).half()}, "'features.0.bias' is not finite"),
        ({"features__0__bias": torch.full((64,), 1e300, dtype=torch.float64)}, "'features.0.bias' is not finite"),
    ],
)
def test_weights_that_do_not_fit(
    changes: dict[str, Tensor | None],
    message: str,
    squeezenet: nn.Module,
    tmp_path: Path,
) -> None:
    path = saved(squeezenet, tmp_path / "w.safetensors", **changes)
    fails(message, "", "torchvision:squeezenet1_1", weights=path)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.safetensors"])
def test_pickles_are_never_opened(name: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / name
    torch.save({"features.0.bias": Canary(canary)}, path)
    fails("is a pickle that runs __builtin__.getattr", "save_file", "torchvision:squeezenet1_1", weights=path)
    path.write_bytes(pickle.dumps(Canary(canary)))
    message = f"is a pickle that runs {Path.__module__}.Path.write_text"  # Python 3.13 keeps Path in pathlib._local
    fails(message, "save_file", "torchvision:squeezenet1_1", weights=str(path))
    assert not canary.exists()
    pickle.loads(path.read_bytes())
    assert canary.exists(), "the canary could not have sung"


@pytest.mark.parametrize(
    ("keep", "message"),
    [(0, "it is 0 bytes long"), (4, "it is 4 bytes"), (1000, "its header of"), (-1, "it is cut off: its header asks")],
)
def test_cut_off_file(keep: int, message: str, squeezenet_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(squeezenet_file.read_bytes()[:keep])
    fails(f"w.safetensors: {message}", "get the file again", "torchvision:squeezenet1_1", weights=path)


def test_no_weights_file(tmp_path: Path) -> None:
    fails("there is no weights file", "path", "torchvision:squeezenet1_1", weights=tmp_path / "w.safetensors")
    fails("there is no weights file", "path", "torchvision:squeezenet1_1", weights=tmp_path)


# -- timm --------------------------------------------------------------------------------------------


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    fails("timm is not installed", "pip install '.[timm]' in the clone of agnosco", "timm:resnet18")


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("test_efficientnet", *IMAGENET.values()), ("test_vit", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))],
)
def test_timm_weights_from_a_file(name: str, mean: tuple[float, ...], std: tuple[float, ...], tmp_path: Path) -> None:
    """timm's own small models, trained on ImageNet at 160 px."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = awake(timm.create_model(name), 160)
    classifier = loading.load(f"timm:{name}", weights=saved(model, tmp_path / "w.safetensors"))
    assert (classifier.name, classifier.shape) == (f"timm:{name}", (3, 160, 160))
    assert (classifier.mean, classifier.std) == (mean, std)
    assert (classifier.classes, classifier.labels[1]) == (1000, "goldfish")
    assert classifier.activations(torch.rand(1, 3, 160, 160)).shape[2:] in [(5, 5), (10, 10)]
    agree(classifier, model, mean, std)


def test_timm_fine_tuned_head(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = awake(timm.create_model("test_resnet", num_classes=5), 64)
    path = saved(model, tmp_path / "w.safetensors")
    with pytest.warns(AgnoscoWarning, match="160"):
        assert loading.load("timm:test_resnet", weights=path).labels == tuple("01234")
    agree(loading.load("timm:test_resnet", weights=path, **AS_IT_IS), model, AS_IT_IS["mean"], AS_IT_IS["std"])


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnt18", "'resnet18'"), ("resnet18.a1_in2k", "'resnet18.a1_in1k'"), ("", "there are")],
)
def test_no_such_timm_name(name: str, hint: str) -> None:
    pytest.importorskip("timm")
    fails(f"timm has no model {name!r}", hint, f"timm:{name}")


def test_timm_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")

    def create_model(name: str, *, pretrained: bool) -> nn.Module:
        assert pretrained
        raise FileNotFoundError("An error happened while trying to locate the file on the Hub\nand so on")

    monkeypatch.setattr(timm, "create_model", create_model)
    fails("cannot download the weights of timm:resnet18", "weights=FILE.safetensors", "timm:resnet18")


def test_timm_model_without_classes() -> None:
    pytest.importorskip("timm")
    fails("it has no classes", "classification head", "timm:vit_small_patch14_dinov2")


# -- python ------------------------------------------------------------------------------------------


def test_code_runs_only_when_it_is_trusted(tmp_path: Path) -> None:
    path, canary = tmp_path / "mine.py", tmp_path / "canary"
    path.write_text(f"{FACTORIES}\nopen({str(canary)!r}, 'w').close()\n")
    fails("runs the code of mine.py", "--trust-code", f"python:{path}:build", size=8)
    assert not canary.exists()
    assert loading.load(f"python:{path}:build", size=8, trust_code=True).classes == 4
    assert canary.exists()


@pytest.mark.parametrize(
    ("factory", "classes", "width"), [("build", 4, 2), ("net(6)", 6, 2), ("net( 5, width = 3 )", 5, 3)]
)
def test_factory(factory: str, classes: int, width: int, factories: Path) -> None:
    classifier = loading.load(f"python:{factories}:{factory}", size=8, trust_code=True)
    assert (classifier.classes, classifier.shape) == (classes, (3, 8, 8))
    assert classifier.activations(torch.rand(1, 3, 8, 8)).shape == (1, width, 6, 6)
    assert classifier.name == f"python:my_factories.py:{factory}"  # and no folder of this machine
    assert not any(parameter.requires_grad for parameter in classifier.model.parameters())
    assert "my_factories" not in sys.modules


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # that it is deprecated
def test_factory_of_torchscript(factories: Path) -> None:
    factories.write_text(f"{FACTORIES}\nimport torch\n\ndef scripted():\n    return torch.jit.script(net(5))\n")
    classifier = loading.load(f"python:{factories}:scripted", size=8, trust_code=True)
    assert classifier.classes == 5
    assert not any(parameter.requires_grad for parameter in classifier.model.parameters())


def test_relative_file_keeps_its_path(factories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(factories.parent)
    (factories.parent / "sub").mkdir()
    spec = "python:sub/../my_factories.py:build"
    assert loading.load(spec, size=8, trust_code=True).name == spec


def test_factory_with_weights(factories: Path, tmp_path: Path) -> None:
    def head(path: Path) -> Tensor:
        spec = f"python:{factories}:net(3)"
        return loading.load(spec, weights=path, size=8, trust_code=True).model.get_parameter("3.weight")

    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Identity(), nn.Identity(), nn.Linear(2, 3))
    nn.init.constant_(model.get_parameter("3.weight"), 0.75)
    assert head(saved(model, tmp_path / "good.safetensors")).tolist() == [[0.75, 0.75]] * 3
    with pytest.raises(AgnoscoError, match=r"bad\.safetensors .* 1 missing \('3\.bias'\)"):
        head(saved(model, tmp_path / "bad.safetensors", **{"3__bias": None}))


@pytest.mark.parametrize(
    ("factory", "message", "hint"),
    [
        ("biuld", "my_factories.py has no factory 'biuld'", "'build'"),
        ("nn", "no factory 'nn'", "'net'"),  # a module, imported
        ("number", "number of my_factories.py returns int", "nn.Module"),
        ("failing", "failing of my_factories.py raised KeyError: 'no weights here'", "correct"),
        ("net", "net of my_factories.py raised TypeError", "the call"),
        ("net(classes)", "'net(classes)' is neither", "Net(20, classes=10)"),
        ("net(open('x', 'w'))", "is neither a name nor a call with plain values", ""),
        ("net(*[3])", "is neither", ""),
        ("net(**{'classes': 3})", "is neither", ""),
        ("nn.Linear(2, 3)", "is neither", ""),
        ("net(", "is neither", ""),
        ("", "is neither", ""),
    ],
)
def test_factory_that_gives_no_model(factory: str, message: str, hint: str, factories: Path) -> None:
    fails(message, hint, f"python:{factories}:{factory}", size=8, trust_code=True)


def test_factory_without_weights(factories: Path) -> None:
    factories.write_text(f"{FACTORIES}\ndef hollow():\n    return build().to('meta')\n")
    fails(
        "hollow cannot be moved to 'cpu'", "load", f"python:{factories}:hollow", size=8, device="cpu", trust_code=True
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def build(:", "mine.py raised SyntaxError"),
        ("import no_such_library", "mine.py raised ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise SystemExit(0)", "mine.py raised SystemExit"),
        ("x = 1 / 0", "mine.py raised ZeroDivisionError: division by zero"),
    ],
)
def test_file_that_does_not_run(source: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    fails(message, "correct the file", f"python:{path}:build", size=8, trust_code=True)


def test_file_without_factories(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from torch import nn")
    fails("no factory 'build'", "there are none", f"python:{path}:build", size=8, trust_code=True)


def test_the_text_of_a_python_file_is_run_and_no_bytecode_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a change within a second that leaves the length: Python would take the bytecode for that of the text."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "net.py"
    text = "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.{}(), nn.Flatten(), nn.Linear(12, 3))\n"
    for name in ("ReLU", "GELU"):
        file.write_text(text.format(name))
        os.utime(file, (1, 1))
        classifier = loading.load(f"python:{file}:build", size=2, trust_code=True)
        assert type(classifier.model[0]).__name__ == name  # pyright: ignore[reportIndexIssue]
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]


def test_a_python_file_that_changes_the_working_directory_changes_it_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    moving = "import os\nfrom torch import nn\n{}os.chdir('elsewhere')\ndef build():\n    {}return nn.Linear(2, 2)\n"
    (tmp_path / "elsewhere" / "text").touch()
    cases = {"whole": ("", ""), "factory": ("# ", "os.chdir('elsewhere'); "), "both": ("", "os.stat('text'); ")}
    for name, places in cases.items():
        (tmp_path / f"{name}.py").write_text(moving.format(*places))
        loading.load(f"python:{name}.py:build", size=2, trust_code=True)
        assert Path.cwd() == tmp_path


def test_a_python_file_needs_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(2, 2)\n")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert isinstance(loading.load(f"python:{tmp_path}/net.py:build", size=2, trust_code=True).model, nn.Linear)


def test_python_without_a_file(tmp_path: Path) -> None:
    fails("there is no file", "path", f"python:{tmp_path / 'mine.py'}:build", trust_code=True)
    for name in ("~no-such-user/mine", 300 * "x"):
        fails("there is no file", "path", f"python:{name}.py:build", trust_code=True)
    for name in ("~no-such-user/mine", f"./{300 * 'x'}"):
        fails("there is no folder", "ORG/NAME", f"hf:{name}")
    for rest in ("mine.py", "mine:build", ""):
        fails("does not name a file and a factory", "python:FILE.py:FACTORY", f"python:{rest}", trust_code=True)


# -- models, labels and devices ----------------------------------------------------------------------


def test_module_passed_directly() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    classifier = loading.load(model, size=8, mean=(0.5, 0.5, 0.5), labels=["cat", "dog"])
    assert classifier.model is model
    assert model.training
    assert model[0].weight.requires_grad
    assert (classifier.name, classifier.labels, classifier.mean) == ("Sequential", ("cat", "dog"), (0.5, 0.5, 0.5))
    assert loading.load(classifier) is classifier
    fails("weights are for an architecture's name", "load_state_dict", model, weights="w.safetensors", size=8)


@pytest.mark.parametrize(
    "content",
    ["cat\ndog\n", "  cat \r\ndog\r\n\r\n", "\ufeffcat\ndog", json.dumps(["cat", "dog"]), ' [\n"cat", "dog"]\n'],
)
def test_labels_from_a_file(content: str, factories: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content.encode())
    for given in (path, str(path)):
        assert loading.load(f"python:{factories}:net(2)", size=8, labels=given, trust_code=True).labels == (
            "cat",
            "dog",
        )


def test_names_in_brackets_are_no_json(factories: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("[background]\n[none]\n")
    classifier = loading.load(f"python:{factories}:net(2)", size=8, labels=path, trust_code=True)
    assert classifier.labels == ("[background]", "[none]")


def test_files_may_lie_in_the_home_of_a_user(factories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    name = f"python:{factories}:net(2)"
    model = loading.load(name, size=8, trust_code=True).model
    saved(model, tmp_path / "w.safetensors")
    (tmp_path / "labels.txt").write_text("cat\ndog")
    classifier = loading.load(name, size=8, weights="~/w.safetensors", labels=Path("~/labels.txt"), trust_code=True)
    assert classifier.labels == ("cat", "dog")
    assert (classifier.files.weights, classifier.files.labels) == ("w.safetensors", "labels.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\ndog\ncow\n", "3 labels for 2 classes"),
        (b"", "labels.txt does not hold a list of names"),
        (b"[]", "labels.txt does not hold a list of names"),
        (b"[1, 2]", "labels.txt does not hold a list of names"),
        (b'["cat", ', "cannot read labels from"),
        (b"['cat', 'dog']", "cannot read labels from"),
        (b"[\n'cat'\n]", "cannot read labels from"),
        (b"\xff\xfe\x00", "cannot read labels from"),
    ],
)
def test_labels_file_that_does_not_fit(content: bytes, message: str, factories: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    fails(message, "", f"python:{factories}:net(2)", size=8, labels=path, trust_code=True)


def test_no_labels_file(factories: Path, tmp_path: Path) -> None:
    path = tmp_path / "none.txt"
    fails("cannot read labels from", "one name per line", f"python:{factories}:build", labels=path, trust_code=True)


@pytest.mark.parametrize(
    ("cuda", "mps", "fastest"), [(0, False, "cpu"), (0, True, "mps"), (2, False, "cuda"), (1, True, "cuda")]
)
def test_auto_device(cuda: int, mps: bool, fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert loading.resolve_device("auto") == torch.device(fastest)
    assert loading.resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "name", "message", "hint"),
    [
        (0, "cuda", "this machine has no 'cuda'", "one of: cpu"),
        (0, "mps", "this machine has no 'mps'", "one of: cpu"),
        (2, "cuda:2", "this machine has no 'cuda:2'", "one of: cuda, cpu"),
        (0, "meta", "this machine has no 'meta'", "auto"),
        (0, "gpu", "no device 'gpu'", "auto, cpu, cuda or mps"),
        (0, "", "no device ''", "auto, cpu, cuda or mps"),
    ],
)
def test_no_such_device(cuda: int, name: str, message: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    fails(message, hint, nn.Flatten(), size=1, device=name)


# -- real networks -----------------------------------------------------------------------------------


def test_imagenet_network_names_what_it_sees(assets: Path) -> None:
    """61 % of 1000 such images, measured elsewhere (assets README); the labels come from the files' names."""
    classifier = loading.load(
        "torchvision:squeezenet1_1", weights=assets / "models" / "squeezenet1_1-imagenet.safetensors"
    )
    assert classifier.features == "features"
    paths = sorted((assets / "imagenet-samples").glob("*.jpg"))[::8]
    pixels = torch.stack([pixels_of(path) for path in paths])
    predicted = torch.cat([classifier.probabilities(part).argmax(1) for part in pixels.split(20)]).tolist()
    named = [path.stem.split("_", 1)[1].replace("_", " ").lower() for path in paths]
    right = [classifier.labels[index].lower() == name for index, name in zip(predicted, named, strict=True)]
    assert sum(right) / len(right) >= 0.5


def cifar(assets: Path) -> tuple[Tensor, Tensor]:
    """Twenty test images of each of CIFAR-10's classes, which are numbered alphabetically."""
    folders = sorted(folder for folder in (assets / "cifar10-test").iterdir() if folder.is_dir())
    paths = [path for folder in folders for path in sorted(folder.glob("*.jpg"))[:20]]
    assert len(paths) == 200
    return torch.stack([pixels_of(path) for path in paths]), torch.arange(10).repeat_interleave(20)


@pytest.mark.parametrize(
    ("weights", "factory", "preprocessing", "least"),
    [  # measured elsewhere on all 2000: 81.0 %, 83.2 %, 75.8 %
        ("resnet20-cifar10", "CifarResNet(20)", IMAGENET, 0.75),
        ("resnet56-cifar10", "CifarResNet(56)", IMAGENET, 0.75),
        ("wrn16_1-nad-grid-target5-cifar10", "WideResNet(16,1)", {}, 0.69),
    ],
)
def test_cifar_networks(weights: str, factory: str, preprocessing: dict[str, Any], least: float, assets: Path) -> None:
    if not ARCHITECTURES.is_file():
        pytest.skip(f"the architectures are not beside this repository ({ARCHITECTURES.name})")
    path = assets / "models" / f"{weights}.safetensors"
    classifier = loading.load(
        f"python:{ARCHITECTURES}:{factory}", weights=path, size=32, trust_code=True, **preprocessing
    )
    images, classes = cifar(assets)
    assert (classifier.probabilities(images).argmax(1) == classes).float().mean() >= least


@pytest.mark.parametrize(
    ("factory", "std", "least"),  # measured elsewhere on all 2000: 80 %, 67 %
    [("cct", (0.2470, 0.2435, 0.2616), 0.74), ("vit", (0.2023, 0.1994, 0.2010), 0.60)],
)
def test_real_transformers_by_name_give_the_maps_of_their_modules(
    factory: str, std: tuple[float, ...], least: float, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is an architecture of transformers: the ViT normalises after each sum, the CCT pools by attention."""
    file = ARCHITECTURES.with_name("more_archs.py")
    if not file.is_file():
        pytest.skip(f"the architectures are not beside this repository ({file.name})")
    mean, weights = (0.4914, 0.4822, 0.4465), assets / "models" / f"{factory}-cifar10.safetensors"
    named = loading.load(f"python:{file}:{factory}", weights=weights, size=32, mean=mean, std=std, trust_code=True)
    images, classes = cifar(assets)
    assert (named.probabilities(images).argmax(1) == classes).float().mean() >= least

    monkeypatch.syspath_prepend(file.parent)
    module = getattr(importlib.import_module("more_archs"), factory)()
    module.load_state_dict(load_file(weights))
    given = Classifier(module, size=32, mean=mean, std=std)
    assert named.fingerprint == given.fingerprint
    samples = Samples.from_array(images)
    for config in ("quick", "paper"):
        few = replace(preset(config), mapper=replace(preset(config).mapper, batch=4, steps=3), cycles=1)
        few = replace(few, refine=few.refine and replace(few.refine, steps=2), precision="float32")
        expected = map_class(given, 3, samples, few)
        found = map_class(named, 3, samples, few)
        assert found.nu.equal(expected.nu)
        assert (found.probability, found.trace) == (expected.probability, expected.trace)
        assert found.nu.abs().max() > 0


def test_a_classifier_takes_no_options() -> None:
    classifier = Classifier(models.squeezenet1_1(weights=None), size=64)
    assert loading.load(classifier) is classifier
    with pytest.raises(AgnoscoError, match="already a Classifier: size cannot be changed"):
        loading.load(classifier, size=32)


def test_what_will_be_downloaded_is_told_with_its_size_unless_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert loading.to_download("torchvision:resnet18") == (
        f"the weights of torchvision:resnet18 (45 MB) to {tmp_path / 'checkpoints'}"
    )
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").touch()
    assert loading.to_download("torchvision:resnet18") is None
    assert loading.to_download("torchvision:nonesuch") is loading.to_download("python:net.py:Net") is None
