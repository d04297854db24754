"""Every family of torchvision and timm, and images and models of every form: what the docs' table says, afresh."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from torchvision import models

from agnosco import Classifier, Config, MapperConfig, RefineConfig, Samples, map_class
from agnosco.errors import AgnoscoError
from agnosco.method.refine import attention

timm = pytest.importorskip("timm")
families = import_module("families")
common = import_module("common")

ROWS: dict[str, dict[str, Any]] = common.read_results(families.PATH)["rows"]

HARD = (
    "timm.csatv2",  # its first convolution takes frequencies
    "timm.efficientvit_msra",  # linear layers with batch norms
    "timm.mlp_mixer",  # its last layer is zero at first
    "timm.levit",  # takes its own size only
    "torchvision.squeezenet",  # its classes are places' scores
)
QUICK = 3.0  # seconds of processor time that a family may take to be one of those chosen at random
CHOSEN = random.Random("families").sample(
    sorted(name for name, row in ROWS.items() if row["seconds"] < QUICK and name not in HARD), 7
)

FEW_STEPS = Config(MapperConfig(batch=2, steps=2), RefineConfig(steps=2), cycles=1)


# -- the table --------------------------------------------------------------------------------------


def test_every_family_of_the_installed_libraries_has_a_row() -> None:
    missing = set(families.families()) - set(ROWS)
    assert not missing, "python benchmarks/families.py measures them"


def test_the_table_of_the_docs_is_that_of_the_results() -> None:
    page = (common.DOCS / "models.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- families -->\n(.*)\n<!-- /families -->", page, re.DOTALL)
    assert found is not None
    assert found[1] == families.tables()


def check(row: dict[str, Any]) -> None:
    """What is claimed of every network that is mapped."""
    assert row["difference_float32"] < 1e-4
    assert row["difference_bfloat16"] < (1 if row["member"] == "visformer_tiny" else 0.1)  # its random logits: 1000
    assert row["gradient_float32"] > 0  # nor is it NaN
    assert row["gradient_bfloat16"] > 0
    assert 0 < row["norm_of_radius"] <= 1.0001
    assert row["refined"] == ("grid" in row) != ("no_places" in row)


@pytest.mark.parametrize("family", sorted(ROWS))
def test_what_the_table_claims_is_what_was_measured(family: str) -> None:
    row = ROWS[family]
    if "refused" in row:
        message, hint = row["refused"]
        assert message
        assert hint
    else:
        check(row)


@pytest.mark.parametrize("family", sorted({*HARD, *CHOSEN}))
def test_a_family_measured_afresh_is_as_its_row_says(family: str) -> None:
    row = ROWS[family]
    if Version(version(family.partition(".")[0]).partition("+")[0]) < Version(row["version"].partition("+")[0]):
        pytest.skip("the row is of a newer release, which may build the network otherwise")
    again = families.measure(family, row["member"])
    check(again)
    for key in ("size", "stage", "grid", "norms", "norms_left", "refined", "zero_head"):
        assert again.get(key) == row.get(key), key


# -- images of every form ---------------------------------------------------------------------------


def built(name: str, **options: Any) -> nn.Module:
    """A small network with random weights."""
    source, _, short_name = name.partition(":")
    if source == "timm":
        return timm.create_model(short_name, num_classes=4, **options)
    return models.get_model(short_name, weights=None, num_classes=4, **options)


def mapped(classifier: Classifier, config: Config = FEW_STEPS) -> Tensor:
    """ν of the first class."""
    return map_class(classifier, 0, Samples.noise(classifier.shape, count=4), config).nu


@pytest.mark.parametrize("size", [(48, 80), (37, 37), (67, 41)])
@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:test_vit", "timm:mvitv2_tiny"])
def test_images_of_other_proportions_and_odd_sizes_are_mapped_and_refined(name: str, size: tuple[int, int]) -> None:
    options = {"dynamic_img_size": True, "dynamic_img_pad": True} if name == "timm:test_vit" else {}
    classifier = Classifier(built(name, **options), size=size)
    nu = mapped(classifier)
    assert nu.shape == (3, *size)
    assert nu.isfinite().all()
    rows, columns = classifier.activations(torch.rand(1, 3, *size)).shape[2:]
    assert rows >= 2
    assert abs(rows / columns - size[0] / size[1]) < 0.25
    assert attention(classifier, nu).shape == (1, *size)


def test_an_image_too_small_for_the_network_is_an_error_of_two_lines() -> None:
    with pytest.raises(AgnoscoError, match=r"does not run on images of shape \(3, 7, 7\)") as caught:
        Classifier(built("torchvision:squeezenet1_1"), size=7)
    assert caught.value.hint == "pass the size and channels that it was trained with"


@pytest.mark.parametrize(
    ("name", "own"), [("torchvision:vit_b_32", 64), ("timm:vit_tiny_patch16_224", 64), ("timm:mixer_s32_224", 224)]
)
def test_another_size_than_the_only_one_is_an_error_that_names_it(name: str, own: int) -> None:
    options: dict[str, Any] = {"torchvision": {"image_size": own}, "timm": {"img_size": own}}[name.partition(":")[0]]
    model = built(name, **options)
    assert Classifier(model).shape == (3, own, own)
    with pytest.raises(AgnoscoError, match=r"does not run on images of shape \(3, 96, 128\)") as caught:
        Classifier(model, size=(96, 128))
    assert caught.value.hint == f"pass the size that it was made for: {own} x {own} pixels"


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit", "timm:test_efficientnet"])
def test_grey_images_are_mapped(name: str) -> None:
    classifier = Classifier(built(name, in_chans=1), size=64)
    assert classifier.shape == (1, 64, 64)
    assert mapped(classifier).shape == (1, 64, 64)


# -- models of every form ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torchvision:mobilenet_v3_small", {"dropout": 0.9}),
        ("timm:test_resnet", {"drop_rate": 0.9, "drop_path_rate": 0.5}),
        ("timm:test_vit", {"drop_rate": 0.9, "drop_path_rate": 0.5, "attn_drop_rate": 0.5}),
    ],
)
def test_a_model_in_training_mode_gives_the_maps_of_evaluation_and_stays_in_it(
    name: str, options: dict[str, float]
) -> None:
    torch.manual_seed(0)
    model = built(name, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
    expected = mapped(Classifier(model.eval(), size=64))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert mapped(Classifier(model.train(), size=64)).equal(expected)
    assert all(module.training for module in model.modules())
    assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("transform", [True, False])
def test_answers_that_are_records_in_training_are_logits(transform: bool) -> None:
    """GoogLeNet answers a named tuple while it is trained, with the logits of its auxiliary heads."""
    model = models.googlenet(num_classes=4, aux_logits=True, transform_input=transform, init_weights=False).train()
    assert isinstance(model(torch.rand(2, 3, 64, 64)), tuple)
    nu = mapped(Classifier(model, size=64), replace(FEW_STEPS, refine=None))
    assert nu.norm() > 0
    assert model.training
