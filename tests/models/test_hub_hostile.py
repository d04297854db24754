"""Folders of the hub that were made to do harm: nothing runs, nothing swells, and two lines say what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Evil, cpu_seconds, megabytes
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from agnosco.cli import app
from agnosco.errors import AgnoscoError, AgnoscoWarning
from agnosco.models.loading import load

transformers: Any = pytest.importorskip("transformers")

SECONDS, MEGABYTES = 60, 300
"""The most that a refusal may take, of a processor's time and of memory."""

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sound folder, and all that the libraries load when they are first used."""
    folder = tmp_path_factory.mktemp("hub") / "sound"
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16,
        id2label={0: "a", 1: "b", 2: "c"},
    )  # fmt: skip
    transformers.utils.logging.disable_progress_bar()
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    load(f"hf:{folder}")
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "vit"))


def changed(folder: Path, name: str = "config.json", **changes: Any) -> None:
    """Change a JSON file; None takes a key away."""
    value = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: each for key, each in value.items() if each is not None}))


def refused(name: str, code: int) -> tuple[str, str]:
    """The two lines of a command that refuses a name, soon and without much memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
    before, began = megabytes("VmRSS"), cpu_seconds()
    result = CliRunner().invoke(app.app, ["map", name, "--list-layers", "--device", "cpu"])
    assert cpu_seconds() - began < SECONDS
    assert megabytes("VmHWM") - before < MEGABYTES
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.stderr
    error, hint = result.stderr.splitlines()
    assert error.startswith("Error: ")
    assert hint.startswith("Hint: ")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", result.stderr)
    assert len(result.stderr) < 2000
    return error, hint


# -- weights -----------------------------------------------------------------------------------------


def pickled(folder: Path) -> Path:
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), path)
    (folder / "model.safetensors").unlink()
    return path


def test_a_pickle_is_refused_with_the_way_out(folder: Path) -> None:
    path = pickled(folder)
    error, hint = refused(f"hf:{folder}", 10)
    assert "pytorch_model.bin" in error
    assert f"--weights {path} --allow-pickle" in hint
    with pytest.warns(AgnoscoWarning, match="restricted process"):
        assert load(f"hf:{folder}", weights=path, allow_pickle=True).labels == ("a", "b", "c")


def test_a_harmful_pickle_stays_closed(folder: Path, tmp_path: Path) -> None:
    """Under its own name, renamed, and where it is allowed."""
    canary = tmp_path / "canary"
    evil = {"a": Evil(f"open({str(canary)!r}, 'w').close()")}
    torch.save(evil, folder / "model.safetensors")
    refused(f"hf:{folder}", 11)
    path = folder / "pytorch_model.bin"
    torch.save(evil, path)
    with pytest.raises(AgnoscoError) as caught:
        load(f"hf:{folder}", weights=path, allow_pickle=True)
    assert caught.value.exit_code == 11
    (folder / "model.safetensors").unlink()
    refused(f"hf:{folder}", 10)
    assert not canary.exists()
    torch.load(path, weights_only=False)  # it would have worked
    assert canary.exists()


def sharded(folder: Path, names: dict[str, str]) -> None:
    """Two files, of which each holds the whole, and an index that says where a tensor is."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    save_file(tensors, folder / "two.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    "part",
    ["../vit/one.safetensors", "{}/one.safetensors", "..", "", "./one.safetensors", "none.safetensors", "a\x1b[2J"],
)
def test_an_index_names_files_of_its_folder_only(part: str, folder: Path) -> None:
    sharded(folder, {"a": part.format(folder)})
    error, _ = refused(f"hf:{folder}", 12)
    assert "which model.safetensors.index.json names" in error or "names no files" in error


def test_a_tensor_in_two_files(folder: Path) -> None:
    sharded(folder, {"a": "one.safetensors", "b": "two.safetensors"})
    error, _ = refused(f"hf:{folder}", 12)
    assert "in two of its files" in error


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {"a": 7}}, {"weight_map": {}}])
def test_an_index_of_nothing(index: Any, folder: Path) -> None:
    sharded(folder, {})
    (folder / INDEX).write_text(json.dumps(index))
    refused(f"hf:{folder}", 12)


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(f"hf:{folder}", 12 if name == "config.json" else 2)


def test_folders_instead_of_files(folder: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        (folder / name).mkdir()
        refused(f"hf:{folder}", 12 if name == "config.json" else 2)


def test_a_link_is_followed_as_the_hub_itself_keeps_files(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert load(f"hf:{folder}").classes == 3
    (tmp_path / "blob").unlink()
    error, _ = refused(f"hf:{folder}", 2)
    assert "model.safetensors" in error


# -- code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_folder_never_runs(known: bool, folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    names = ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor", "AutoProcessor")
    code = {"auto_map": dict.fromkeys(names, "modeling_evil.Evil")}
    changed(folder, **code, **({} if known else {"model_type": "evil"}))
    changed(folder, "preprocessor_config.json", **code, **({} if known else {"image_processor_type": "Evil"}))
    if known:
        assert load(f"hf:{folder}").classes == 3
    else:
        refused(f"hf:{folder}", 2)
        changed(folder, model_type="vit")
        refused(f"hf:{folder}", 12)
    assert not canary.exists()
    exec((folder / "modeling_evil.py").read_text())  # it would have worked
    assert canary.exists()


@pytest.mark.parametrize(
    "key",
    [
        "quantization_config", "custom_pipelines", "_name_or_path", "_attn_implementation", "attn_implementation",
        "experts_implementation",
    ],
)  # fmt: skip
def test_keys_that_name_kernels_and_repositories_are_not_seen(key: str, folder: Path) -> None:
    value: Any = (
        {"quant_method": "bitsandbytes", "load_in_8bit": True} if key.startswith("quant") else "evil/repository"
    )
    changed(folder, "config.json", **{key: value})
    assert load(f"hf:{folder}").classes == 3


# -- configurations ----------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[str | bytes, int]] = {
    "not JSON": ("model_type: vit", 12),
    "not UTF-8": (b'{"model_type": "\xff"}', 12),
    "empty": ("", 12),
    "a list": ("[1, 2]", 12),
    "a number of 100,000 digits": ('{"model_type": "vit", "a": ' + "9" * 100_000 + "}", 12),
    "20 MB": ('{"model_type": "vit", "a": "' + "a" * (20 << 20) + '"}', 12),
    "10,000 deep": ('{"a":' * 10_000 + "1" + "}" * 10_000, 13),
    "900 deep": ('{"a":' * 900 + "1" + "}" * 900, 13),
    "no type": ("{}", 2),
    "type is a list": ('{"model_type": ["vit"]}', 2),
    "type with ANSI": ('{"model_type": "\\u001b[2J"}', 2),
    "unknown type": ('{"model_type": "vit_evil"}', 2),
    "text": ('{"model_type": "bert"}', 2),
    "wrapper": ('{"model_type": "timm_wrapper", "architecture": "resnet18"}', 2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_no_configuration_of_a_classifier(name: str, folder: Path) -> None:
    content, code = CONFIGS[name]
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    error, _ = refused(f"hf:{folder}", code)
    assert "vit" in error


CHANGES: dict[str, tuple[dict[str, Any], int]] = {
    "10⁹ layers": ({"num_hidden_layers": 10**9}, 13),
    "100,000 layers": ({"num_hidden_layers": 100_000}, 13),
    "100 layers": ({"num_hidden_layers": 100}, 12),
    "10⁶ wide": ({"hidden_size": 10**6}, 12),
    "10⁵ channels": ({"num_channels": 100_000, "hidden_size": 2, "patch_size": 1}, 12),
    "10⁶ px": ({"image_size": 10**6}, 12),
    "more pixels than weights": ({"image_size": 640}, 12),
    "no pixels": ({"image_size": 0}, 2),
    "negative": ({"hidden_size": -32}, 12),
    "text for a number": ({"hidden_size": "wide"}, 12),
    "a list for a number": ({"num_hidden_layers": [1, 2]}, 12),
    "unknown activation": ({"hidden_act": "evil"}, 12),
    "10⁶ classes": ({"id2label": None, "label2id": None, "num_labels": 10**6}, 13),
    "names of two classes": ({"id2label": {"0": "a", "1": "b"}, "label2id": None}, 2),
    "names with a gap": ({"id2label": {"0": "a", "2": "b", "7": "c"}, "label2id": None}, 12),
    "names that are a list": ({"id2label": ["a", "b", "c"], "label2id": None}, 12),
    "numbers that are none": ({"id2label": {"x": "a", "y": "b", "z": "c"}, "label2id": None}, 12),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_configuration_that_does_not_fit(name: str, folder: Path) -> None:
    changes, code = CHANGES[name]
    changed(folder, **changes)
    refused(f"hf:{folder}", code)


def test_names_are_one_line_of_text(folder: Path) -> None:
    changed(folder, id2label={"0": "<b>a</b>\x1b[2J\nb", "1": "x" * 10**6, "2": 3})
    labels = load(f"hf:{folder}").labels
    assert labels[0] == "<b>a</b>[2J b"
    assert len(labels[1]) <= 200
    assert labels[2] == "3"


def test_other_classes_than_those_of_the_weights(folder: Path) -> None:
    changed(folder, id2label={"0": "a", "1": "b"}, label2id=None)
    error, hint = refused(f"hf:{folder}", 2)
    assert "has other shapes of 2 tensors of ViTForImageClassification, such as 'classifier.bias'" in error
    assert "give a model that was trained to classify images" in hint


def test_a_network_without_a_head(folder: Path) -> None:
    tensors = {key: each for key, each in load_file(folder / "model.safetensors").items() if "classifier" not in key}
    save_file(tensors, folder / "model.safetensors")
    error, _ = refused(f"hf:{folder}", 2)
    assert "lacks 2 tensors" in error
    assert "classifier" in error


PROCESSORS: dict[str, dict[str, Any]] = {
    "mean of two": {"image_mean": [0.5, 0.5]},
    "mean of text": {"image_mean": "half"},
    "no deviation": {"image_std": [0.0, 0.5, 0.5]},
    "no type": {"image_processor_type": "EvilProcessor"},
    "no size": {"size": {"height": 0, "width": 0}},
    "giant": {"size": {"height": 10**6, "width": 10**6}},
    "large": {"size": {"height": 100_000, "width": 100_000}},
    "giant crop": {"do_center_crop": True, "crop_size": {"height": 10**6, "width": 10**6}},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_that_does_not_fit(name: str, folder: Path) -> None:
    changed(folder, "preprocessor_config.json", **PROCESSORS[name])
    refused(f"hf:{folder}", 13 if name in ("giant", "large", "giant crop") else 12)


@pytest.fixture(scope="module")
def convolutional(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that takes images of any size and has a weight for each of 4,096 channels."""
    folder = tmp_path_factory.mktemp("hub") / "convnext"
    options: dict[str, Any] = {"hidden_sizes": [4] * 4, "depths": [1] * 4, "patch_size": 1, "image_size": 32}
    transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(**options, num_channels=4096)
    ).save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 383}).save_pretrained(folder)
    return folder


def test_images_that_would_fill_the_memory_are_not_made(convolutional: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(convolutional, tmp_path / "convnext"))
    assert "4096 channels" in refused(f"hf:{folder}", 2)[0]
    tensors = load_file(folder / "model.safetensors")
    key = next(name for name, tensor in tensors.items() if tensor.shape[1:2] == (4096,))
    save_file(tensors | {key: tensors[key][:, :3].contiguous()}, folder / "model.safetensors")
    changed(folder, num_channels=3)
    changed(folder, "preprocessor_config.json", crop_pct=0.001)
    assert "crop_pct" in refused(f"hf:{folder}", 13)[0]
    (folder / "preprocessor_config.json").unlink()
    changed(folder, image_size=20_000)
    with pytest.warns(AgnoscoWarning, match="20000 px"), pytest.raises(AgnoscoError, match="is too large"):
        load(f"hf:{folder}")


def test_indices_that_would_fill_the_memory_are_not_made(tmp_path: Path) -> None:
    """The indices of a Swin's window are as many as the fourth power of its side, its weights the square."""
    options: dict[str, Any] = {"embed_dim": 4, "depths": [1], "num_heads": [1], "patch_size": 1, "image_size": 48}
    transformers.SwinForImageClassification(transformers.SwinConfig(**options, window_size=48)).save_pretrained(
        tmp_path / "swin"
    )
    if (tmp_path / "swin" / "model.safetensors").stat().st_size > 1_000_000:
        pytest.skip("this release of transformers stores the indices with the weights")
    with pytest.raises(AgnoscoError, match="describes") as caught:
        load(f"hf:{tmp_path / 'swin'}")
    assert caught.value.exit_code == 12
