"""Classifiers of transformers and timm, saved by the libraries: loaded by their name alone, they answer as there."""

from __future__ import annotations

import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize
from typer.testing import CliRunner

from agnosco.cli.app import app
from agnosco.data.decoding import fit
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError, AgnoscoWarning
from agnosco.method.config import Config, MapperConfig
from agnosco.method.maker import map_class
from agnosco.method.prepare import prepared
from agnosco.models.classifier import Classifier
from agnosco.models.loading import load
from agnosco.runs.run import Run
from agnosco.types import Resize

transformers: Any = pytest.importorskip("transformers")
timm: Any = pytest.importorskip("timm")

NAMES = ("tench", "a goldfish", "Łoś", "dog, hound", "x" * 40, "5", "last")
TWO_STEPS = Config(mapper=MapperConfig(batch=2, steps=2), refine=None)
TOKENS = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SQUARE = {"height": 64, "width": 64}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
EDGE, CROPPED = {"size": {"shortest_edge": 64}}, {"size": {"shortest_edge": 64}, "crop_size": SQUARE}

SAVED: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "vit": ("ViT", TOKENS, "ViT", {"size": SQUARE}),
    "deit": ("DeiT", TOKENS, "DeiT", {"size": SQUARE, "crop_size": SQUARE}),
    "swin": ("Swin", {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": 64, "window_size": 4},
             "ViT", {"size": SQUARE, **IMAGENET}),
    "convnext": ("ConvNext", {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "image_size": 64},
                 "ConvNext", {**EDGE, "crop_pct": 1.0, **IMAGENET}),
    "beit": ("Beit", TOKENS, "Beit", {"size": SQUARE, "crop_size": SQUARE}),
    "resnet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
               "ConvNext", {**EDGE, "crop_pct": 1.0}),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.25, "image_size": 64}, "MobileNetV2", CROPPED),
    "dinov2": ("Dinov2", {key: value for key, value in TOKENS.items() if key != "intermediate_size"}, "Bit", CROPPED),
    "siglip": ("Siglip", {"vision_config": TOKENS, "text_config": TEXT}, "Siglip", {"size": SQUARE}),
    "clip": ("CLIP", {"vision_config": TOKENS, "text_config": TEXT}, "CLIP", CROPPED),
}  # fmt: skip
"""By a short name: the library's name of the network, its settings, its processor's, and the settings of that."""


def built(name: str, **changes: Any) -> tuple[nn.Module, Any]:
    """A small network of transformers with random weights, which answers unlike images differently; and a processor."""
    model, settings, processor, options = SAVED[name]
    config = getattr(transformers, f"{model}Config")(**settings, id2label=dict(enumerate(NAMES)), **changes)
    network = getattr(transformers, f"{model}ForImageClassification")(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the statistics are then those of this one batch
        network.train()(torch.rand(8, config.__dict__.get("num_channels", 3), 64, 64))
    return network.eval(), getattr(transformers, f"{processor}ImageProcessor")(**options)


def saved(folder: Path, model: nn.Module, processor: Any = None, **options: Any) -> Path:
    """A folder of what the library writes, without its progress bar."""
    transformers.utils.logging.disable_progress_bar()
    each: Any
    for each in (model, processor):
        if each is not None:
            each.save_pretrained(folder, **(options if each is model else {}))
    return folder


def flat_and_noisy(channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Three images of 64 px, so that no processor of these tests resizes them: ``(N, H, W, C)``."""
    images = np.random.default_rng(1).integers(0, 256, (3, 64, 64, channels), np.uint8)
    images[1] = images[1] // 4 + np.arange(64, dtype=np.uint8)[:, None]
    images[2, :32] = 255
    return images


def answers_as_the_library(classifier: Classifier, model: nn.Module, processor: Any) -> None:
    """Asserts that the same images mean the same, through the library's processor and through ours."""
    images = flat_and_noisy(classifier.shape[0])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    taken = processor(images=list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    torch.testing.assert_close(classifier.normalised(pixels).contiguous(), taken, rtol=0, atol=1e-6)
    with torch.no_grad():
        expected: Tensor = model(taken).logits
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    torch.testing.assert_close(classifier(pixels), expected, rtol=1e-4, atol=1e-5)


# -- transformers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_network_needs_nothing_but_its_folder(name: str, tmp_path: Path) -> None:
    model, processor = built(name)
    classifier = load(f"hf:{saved(tmp_path / name, model, processor)}")
    assert (classifier.name, classifier.shape) == (f"hf:{name}", (3, 64, 64))
    assert classifier.labels == NAMES
    answers_as_the_library(classifier, model, processor)
    concept = map_class(classifier, "Łoś", Samples.noise(classifier.shape, count=4), TWO_STEPS)
    assert torch.isfinite(concept.nu).all()
    assert concept.nu.abs().max() > 0


@pytest.mark.parametrize(
    "means", [{}, {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}]
)
def test_a_processor_that_puts_blue_first(means: dict[str, Any], tmp_path: Path) -> None:
    model, _ = built("vit")
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE, **means)
    classifier = load(f"hf:{saved(tmp_path / 'blue', model, processor)}")
    images = flat_and_noisy(3)
    taken = processor(images=list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert taken[0, 0, 5, 7].item() != pytest.approx(taken[0, 2, 5, 7].item(), abs=1e-3)  # the colours differ
    with torch.no_grad():
        expected = model(taken).logits
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(classifier(pixels), expected, rtol=1e-4, atol=1e-5)
    fast = prepared(classifier)
    torch.testing.assert_close(fast(pixels), expected, rtol=1e-4, atol=1e-5)


def test_grey_images(tmp_path: Path) -> None:
    model, _ = built("vit", num_channels=1)
    processor = transformers.ViTImageProcessor(size=SQUARE, image_mean=[0.3], image_std=[0.7])
    classifier = load(f"hf:{saved(tmp_path / 'grey', model, processor)}")
    assert (classifier.shape, classifier.mean, classifier.std) == ((1, 64, 64), (0.3,), (0.7,))
    answers_as_the_library(classifier, model, processor)


@pytest.mark.parametrize(
    ("options", "mean", "std"),
    [({"do_normalize": False}, 0.0, 1.0), ({"do_rescale": False}, 0.5 / 255, 0.5 / 255),
     ({"rescale_factor": 1 / 127.5}, 0.25, 0.25)],
)  # fmt: skip
def test_what_the_processor_leaves_out(options: dict[str, Any], mean: float, std: float, tmp_path: Path) -> None:
    model, _ = built("vit")
    processor = transformers.ViTImageProcessor(size=SQUARE, **options)
    classifier = load(f"hf:{saved(tmp_path / 'odd', model, processor)}")
    assert classifier.mean == pytest.approx((mean,) * 3, abs=1e-6)
    assert classifier.std == pytest.approx((std,) * 3, abs=1e-6)


def test_shards(tmp_path: Path) -> None:
    model, processor = built("vit")
    folder = saved(tmp_path / "vit", model, processor, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    answers_as_the_library(load(f"hf:{folder}"), model, processor)


def test_without_a_processor_the_input_is_assumed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "vit", built("vit")[0])
    with pytest.warns(AgnoscoWarning, match=r"no preprocessor_config\.json"):
        classifier = load(f"hf:{folder}")
    assert (classifier.shape, classifier.mean) == ((3, 64, 64), (0.0, 0.0, 0.0))


def test_other_weights_for_a_folder(tmp_path: Path) -> None:
    model, processor = built("vit")
    folder = saved(tmp_path / "vit", model, processor)
    other, _ = built("vit")
    weights = saved(tmp_path / "other", other) / "model.safetensors"
    answers_as_the_library(load(f"hf:{folder}", weights=weights), other, processor)


@pytest.mark.parametrize(("given", "shown"), [("vit", "vit"), ("./vit", "./vit"), ("{}/vit", "vit")])
def test_a_name_keeps_no_folder_of_this_machine(
    given: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "vit", *built("vit"))
    monkeypatch.chdir(tmp_path)
    assert load(f"hf:{given.format(tmp_path)}").name == f"hf:{shown}"


def test_the_global_random_generator_is_not_changed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "vit", *built("vit"))
    before = torch.get_rng_state()
    load(f"hf:{folder}")
    assert torch.equal(torch.get_rng_state(), before)


# -- how images are resized --------------------------------------------------------------------------

SIDE, CROP = {"height": 224, "width": 224}, {"height": 256, "width": 256}
RULES: dict[str, tuple[str, dict[str, Any], Resize | None]] = {
    "both sides": ("ViT", {"size": SIDE}, Resize(1.0, "squash", "bilinear")),
    "both sides, cropped": ("DeiT", {"size": CROP, "crop_size": SIDE}, Resize(0.875, "squash", "bicubic")),
    "shorter side": ("CLIP", {"size": {"shortest_edge": 224}, "crop_size": SIDE}, Resize(1.0, "center", "bicubic")),
    "shorter side, cropped": ("Bit", {"size": {"shortest_edge": 256}, "crop_size": SIDE, "resample": 2},
                              Resize(0.875, "center", "bilinear")),
    "a share": ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.9, "resample": 3},
                Resize(224 / 248, "center", "bicubic")),  # 224 / 0.9 is 248.9
    "a large input": ("ConvNext", {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 1},
                      Resize(1.0, "squash", "lanczos")),
    "an odd input": ("ViT", {"size": {"height": 98, "width": 98}, "resample": 3}, Resize(1.0, "squash", "bicubic")),
    "a wide input": ("ViT", {"size": {"height": 64, "width": 128}}, Resize(1.0, "squash", "bilinear")),
    "none": ("ViT", {"size": {"height": 512, "width": 512}, "do_resize": False}, None),
    "bars": ("Bit", {"size": {"shortest_edge": 192}, "crop_size": SIDE}, None),
}  # fmt: skip
"""By what they do: processors of the library, and the rule that they follow; None for what no rule says."""


def lanczos_is_known() -> bool:
    """Whether torchvision resizes tensors so."""
    try:
        resize(torch.zeros(3, 8, 8), [4, 4], interpolation=InterpolationMode.LANCZOS)
    except NotImplementedError:
        return False
    return True


@pytest.mark.parametrize("name", RULES)
def test_the_rule_is_that_of_the_processor(name: str, tmp_path: Path) -> None:
    kind, options, expected = RULES[name]
    if expected is not None and expected.interpolation == "lanczos" and not lanczos_is_known():
        pytest.skip("this release of torchvision, with which the processor resizes, has no such filter")
    processor = getattr(transformers, f"{kind}ImageProcessor")(**options)
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**SAVED["resnet"][1]))
    assert load(f"hf:{saved(tmp_path / 'any', model, processor)}").resize == expected


def test_of_a_tiny_input_no_rule_is_measured(tmp_path: Path) -> None:
    side = {"height": 4, "width": 4}
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(**TOKENS | {"image_size": 4, "patch_size": 2})
    )
    classifier = load(f"hf:{saved(tmp_path / 'tiny', model, transformers.ViTImageProcessor(size=side))}")
    assert (classifier.shape, classifier.resize) == ((3, 4, 4), None)


@pytest.mark.parametrize("name", [name for name in RULES if RULES[name][2]])
def test_photographs_are_resized_as_by_the_processor(name: str, assets: Path) -> None:
    kind, options, rule = RULES[name]
    processor = getattr(transformers, f"{kind}ImageProcessor")(**options, do_rescale=False, do_normalize=False)
    boxes = [(0, 0, 224, 224), (0, 0, 224, 150), (10, 0, 160, 224), (0, 30, 224, 131), (50, 0, 101, 224)]
    paths = sorted((assets / "imagenet-samples").iterdir())[:: 800 // len(boxes)]
    for path, box in zip(paths, boxes, strict=True):
        photograph = Image.open(path).convert("RGB").crop(box)
        theirs = processor(images=photograph, return_tensors="pt")["pixel_values"][0].float()
        ours = fit(photograph, (3, theirs.shape[1], theirs.shape[2]), rule).float()
        assert (ours - theirs).abs().max() <= 3  # grey levels: the filters round differently
        assert (ours - theirs).abs().mean() < 0.3


def test_samples_of_a_folder_follow_the_rule_of_the_command_lines_model(tmp_path: Path) -> None:
    model, _ = built("vit")
    folder = saved(tmp_path / "vit", model, transformers.ViTImageProcessor(size=SQUARE))
    (tmp_path / "images").mkdir()
    for number in range(10):
        ramp = np.linspace(0, 255, 128, dtype=np.uint8)[None].repeat(64, 0)
        Image.fromarray(np.roll(ramp, number, 0)).save(tmp_path / "images" / f"{number}.png")
    words = ["map", f"hf:{folder}", "1", "--samples", str(tmp_path / "images"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*words, "--steps", "1", "--batch", "2"])
    assert result.exit_code == 0, result.output
    record = Run.open(tmp_path / "run").settings
    assert record.model.resize == Resize(1.0, "squash", "bilinear")
    samples = Samples.from_folder(tmp_path / "images", (3, 64, 64), resize=record.model.resize)
    assert record.samples.fingerprint == samples.fingerprint
    assert samples.images[0, 0, 0, 0] < 8  # both ends of the ramp are in it
    assert samples.images[0, 0, 0, -1] > 247


# -- timm --------------------------------------------------------------------------------------------

TIMM: dict[str, Callable[[], nn.Module]] = {
    "resnet10t": lambda: timm.create_model("resnet10t", num_classes=5),
    "vit": lambda: timm.create_model("test_vit", num_classes=5, img_size=96),
    "grey": lambda: timm.create_model("test_efficientnet", num_classes=5, in_chans=1),
    "avgmax": lambda: timm.create_model("test_convnext", num_classes=5, global_pool="avgmax"),
}


def saved_by_timm(folder: Path, model: nn.Module, **options: Any) -> Path:
    if options.keys() - signature(timm.models.save_for_hf).parameters:
        pytest.skip("this release of timm does not store what a network was built with")
    settings = {"label_names": list(NAMES[:5])}
    timm.models.save_for_hf(model, str(folder), model_config=settings, safe_serialization=True, **options)
    return folder


@pytest.mark.parametrize("name", TIMM)
def test_a_folder_of_timm(name: str, tmp_path: Path) -> None:
    model: Any = TIMM[name]().eval()
    data = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)} if name != "grey" else {"mean": (0.1,), "std": (0.4,)}
    size = {"input_size": (3, 96, 96)} if name == "vit" else {}
    folder = saved_by_timm(tmp_path / name, model, data_config=data | size)
    classifier = load(f"timm:local-dir:{folder}")
    assert classifier.name == f"timm:local-dir:{name}"
    assert (classifier.labels, classifier.mean, classifier.std) == (NAMES[:5], *data.values())
    assert classifier.shape[0] == (1 if name == "grey" else 3)
    if size:
        assert classifier.shape == size["input_size"]
    pixels = torch.rand(2, *classifier.shape)
    centre, scale = (torch.tensor(values).view(-1, 1, 1) for values in data.values())
    with torch.no_grad():
        expected = model((pixels - centre) / scale)
    torch.testing.assert_close(classifier(pixels), expected, rtol=1e-4, atol=1e-5)
    concept = map_class(classifier, 2, Samples.noise(classifier.shape, count=4), TWO_STEPS)
    assert torch.isfinite(concept.nu).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, Resize(96 / 101, "center", "bicubic")), ({"crop_mode": "squash"}, Resize(96 / 101, "squash", "bicubic")),
     ({"crop_mode": "border"}, None), ({"crop_pct": 1.0, "interpolation": "bilinear"}, Resize(1, "center", "bilinear")),
     ({"interpolation": "random"}, None), ({"crop_pct": "many"}, None), ({"crop_pct": 1e-9}, None),
     ({"crop_pct": float("nan")}, None), ({"interpolation": ["bicubic"]}, None)],
)  # fmt: skip
def test_the_rule_of_timm(changes: dict[str, Any], expected: Resize | None, tmp_path: Path) -> None:
    data = {"input_size": (3, 96, 96), "crop_pct": 0.95, "crop_mode": "center", "interpolation": "bicubic"}
    folder = saved_by_timm(tmp_path / "timm", TIMM["vit"](), data_config=data)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    assert load(f"timm:local-dir:{folder}").resize == expected
    if expected:
        theirs = timm.data.create_transform(**data | changes, normalize=False)
        blots = np.random.default_rng(0).integers(30, 226, (9, 9, 3), dtype=np.uint8)
        photograph = Image.fromarray(blots).resize((140, 200))
        difference = theirs(photograph).int() - fit(photograph, (3, 96, 96), expected).int()
        assert difference.abs().max() <= 2


def test_each_library_names_the_other(tmp_path: Path) -> None:
    ours = saved(tmp_path / "hf", *built("vit"))
    theirs = saved_by_timm(tmp_path / "timm", TIMM["vit"]())
    for name, hint in ((f"hf:{theirs}", f"timm:local-dir:{theirs}"), (f"timm:local-dir:{ours}", f"hf:{ours}")):
        with pytest.raises(AgnoscoError) as caught:
            load(name)
        assert caught.value.hint == f"give {hint}"


@pytest.mark.parametrize(
    "changes",
    [{"input_size": "abc"}, {"input_size": 5}, {"mean": "abc"}, {"std": [[1], 2, 3]}, {"mean": [float("nan")] * 3}],
)
def test_settings_of_timm_that_are_no_numbers(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = saved_by_timm(tmp_path / "timm", TIMM["resnet10t"]())
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AgnoscoError, match="does not give a size in pixels, and numbers") as caught:
        load(f"timm:local-dir:{folder}")
    assert caught.value.exit_code == 12


def test_names_of_timm_by_index(tmp_path: Path) -> None:
    folder = saved_by_timm(tmp_path / "timm", TIMM["resnet10t"]())
    config = json.loads((folder / "config.json").read_text())
    config["label_names"] = {str(index): name for index, name in reversed(list(enumerate(NAMES[:5])))}
    (folder / "config.json").write_text(json.dumps(config))
    assert load(f"timm:local-dir:{folder}").labels == NAMES[:5]


def test_an_unknown_model_of_timm(tmp_path: Path) -> None:
    folder = saved_by_timm(tmp_path / "timm", TIMM["resnet10t"]())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "resnet10"}))
    with pytest.raises(AgnoscoError, match=r"timm has no model 'resnet10'.*resnet10t"):
        load(f"timm:local-dir:{folder}")
