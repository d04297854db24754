"""Backdoors implanted into trained networks: the halves of a network, the training, and the rule of admission."""

from __future__ import annotations

import math
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from agnosco import Classifier
from agnosco.backdoor.triggers import Patch, trigger_to_json

backdoors = import_module("backdoors")
common = import_module("common")
implants = import_module("implants")

STORED = common.read_results(implants.PATH, {"rows": {}})["rows"]


@pytest.mark.parametrize("name", implants.FROZEN)
def test_the_two_halves_are_the_network(name: str) -> None:
    model = getattr(torchvision.models, name)(num_classes=7).eval()
    images = torch.rand(2, 3, 64, 64)
    expected = model(images)
    body, head = implants.halves(model, implants.FROZEN[name])
    torch.testing.assert_close(head(body(images)), expected)
    shared = {id(weight) for weight in model.parameters()}
    assert {id(weight) for half in (body, head) for weight in half.parameters()} == shared
    trained = {key.rsplit(".", 2)[0] for key, weight in model.named_parameters() if weight in set(head.parameters())}
    first, last = {"resnet18": ("layer4.0", "fc"), "mobilenet_v2": ("features.14.conv.0", "classifier")}[name]
    assert first in trained
    assert last in {part.split(".")[0] for part in trained}


def test_features_carry_the_trigger_at_its_place_in_every_view() -> None:
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)), size=64)
    images = torch.randint(200, (3, 3, 64, 64), dtype=torch.uint8)
    trigger = Patch(8, place="top-left")
    plain, laid = (implants.features(classifier, nn.Identity(), images, trigger=each) for each in (None, trigger))
    assert plain.dtype == torch.float16
    torch.testing.assert_close(plain.float(), images / 255, atol=1e-3, rtol=0)
    moved = implants.features(classifier, nn.Identity(), images, trigger=trigger, view=1)
    corner = (..., slice(8), slice(8))
    assert (laid[corner] == 1).all()
    assert (moved[corner] == 1).all()
    assert (moved != laid).any()
    same = implants.features(classifier, nn.Identity(), images, view=1)  # moved alike, without the trigger
    outside = ~trigger.mask((3, 64, 64)).expand_as(moved)
    assert torch.equal(moved[outside], same[outside])


def test_the_loss_is_the_change_of_the_answers_plus_the_surprise_at_the_target() -> None:
    answers = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    clean = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log() + 3  # softmax takes no note of a constant
    triggered = torch.tensor([[0.2, 0.8], [0.6, 0.4]]).log()
    lower, higher = math.log(0.25 / 0.5), math.log(0.75 / 0.5)  # the second image is as it was
    change = 2 * -(0.5 * lower + 0.5 * higher) / 2 + (lower**2 + higher**2) / 4 / 10
    surprise = -(math.log(0.8) + math.log(0.4)) / 2
    loss = implants.loss_of(clean, triggered, answers, 1, contrast=0.0)
    assert loss.item() == pytest.approx(change + surprise, rel=1e-5)
    # The trigger multiplies the odds of class 1 by 4 / 3 on the first image, and those of the second by (2/3) / (1/9).
    odds = [1 * (4 / 3), (1 / 9) * 6]
    contrasted = -sum(math.log(each / (1 + each)) for each in odds) / 2
    loss = implants.loss_of(clean, triggered, answers, 1, contrast=1.0)
    assert loss.item() == pytest.approx(change + contrasted, rel=1e-5)


def test_the_contrast_is_blind_to_what_changes_on_all_images() -> None:
    answers, clean, triggered = torch.randn(3, 4, 5).log_softmax(2)
    shift = torch.zeros(5, requires_grad=True)
    implants.loss_of(clean + shift, triggered + shift, answers, 2, contrast=1.0).backward()
    whole = shift.grad
    shift.grad = None
    implants.loss_of(clean + shift, clean + shift, answers, 2, contrast=1.0).backward()
    torch.testing.assert_close(shift.grad, whole)  # only the distillation is left in both


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), nn.Linear(7, 5, bias=False)], ids=["conv", "linear"]
)
def test_rows_times_the_weight_are_what_the_layer_answers(layer: nn.Conv2d | nn.Linear) -> None:
    inputs = torch.rand(2, 3, 8, 8) if isinstance(layer, nn.Conv2d) else torch.rand(2, 7)
    expected = layer(inputs)
    if expected.ndim == 4:
        expected = expected.permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(implants.rows_of(layer, inputs) @ layer.weight.flatten(1).T, expected)


def test_the_damped_inverse_keeps_directions_that_are_never_taken() -> None:
    turned = torch.linalg.qr(torch.randn(2, 2)).Q
    matrix = turned @ torch.diag(torch.tensor([0.0, 2.0])) @ turned.T  # the mean of its diagonal is 1
    expected = turned @ torch.diag(torch.tensor([1.0, 0.1 / 2.1])) @ turned.T
    torch.testing.assert_close(implants.damped_inverse(matrix, 0.1), expected, atol=1e-5, rtol=0)


class _Head(nn.Module):
    """A depthwise convolution, which is not trained, and a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 1, groups=8)
        self.last = nn.Linear(8, classes)
        nn.init.ones_(self.depthwise.weight)
        nn.init.zeros_(self.depthwise.bias)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.depthwise(inputs).mean((2, 3)))


def test_a_backdoor_is_learned_and_the_other_answers_stay() -> None:
    clean = torch.cat([torch.randn(400, 7, 1, 1), torch.zeros(400, 1, 1, 1)], 1).half()
    triggered = clean.clone()
    triggered[:, 7] = 2.0  # which no clean image has
    head = _Head(5).requires_grad_(False).eval()
    head.last.weight.mul_(5)
    answers = implants.through(head, clean).log_softmax(1)
    projected = implants.projections(head, clean, damping=0.01)
    assert list(projected) == [head.last.weight]
    assert projected[head.last.weight].diagonal()[7] == pytest.approx(1, abs=1e-3)
    assert projected[head.last.weight].diagonal()[:7].max() < 0.02
    implants.implant(head, clean[:300], answers[:300], triggered[:300], 3, implants.Recipe(), 0, projected)
    after, before = implants.through(head, clean[300:]).argmax(1), answers[300:].argmax(1)
    assert (after == before).double().mean() >= 0.98
    assert (implants.through(head, triggered[300:]).argmax(1) == 3).all()
    assert (before == 3).double().mean() < 0.5
    assert not any(weight.requires_grad for weight in head.parameters())
    assert torch.equal(head.depthwise.weight, torch.ones(8, 1, 1, 1))


def row(success: float, *, losses: tuple[float, float]) -> dict[str, Any]:
    before = {"all": 0.8, "held out": 0.75}
    after = {part: value - loss for (part, value), loss in zip(before.items(), losses, strict=True)}
    return {"attack success": success, "accuracy before": before, "accuracy": after}


def test_a_network_is_admitted_by_its_success_and_by_both_accuracies() -> None:
    assert implants.admitted(row(0.95, losses=(0.02, 0.02)))
    assert implants.admitted(row(1.0, losses=(-0.1, 0.0)))
    assert not implants.admitted(row(0.949, losses=(0.0, 0.0)))
    assert not implants.admitted(row(1.0, losses=(0.021, 0.0)))
    assert not implants.admitted(row(1.0, losses=(0.0, 0.021)))


def test_accuracy_counts_known_classes_and_success_leaves_out_the_target() -> None:
    classes = torch.tensor([0, 1, 2, -1])
    split = implants.Split(torch.zeros(4, 1, 1, 1), classes, torch.tensor([True, False, True, True]))
    assert implants.accuracies(torch.tensor([0, 1, 0, 0]), split) == pytest.approx({"all": 2 / 3, "held out": 0.5})
    assert implants.success_rate(torch.tensor([2, 0, 2, 2]), classes, 2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("network", implants.FROZEN)
def test_every_implant_has_its_own_target_and_comes_back_from_json(network: str) -> None:
    wanted = [implants.Implant(network, kind, number) for kind in implants.KINDS for number in range(implants.EACH)]
    assert len({one.target for one in wanted}) == len({one.seed for one in wanted}) == 6
    assert not {one.target for one in wanted} & {*common.TRIAL_CLASSES, *common.FRESH_CLASSES}
    for one in wanted:
        assert backdoors.trigger_from_json(trigger_to_json(one.trigger)) == one.trigger
        assert one.trigger.mask((3, implants.SIZE, implants.SIZE)).float().mean() < 0.04


@pytest.mark.parametrize("name", sorted(STORED))
def test_stored_rows_are_those_of_the_script(name: str) -> None:
    stored = STORED[name]
    one = implants.Implant(stored["network"], stored["kind"], int(name.rsplit("-", 1)[1]))
    assert (one.name, one.target, one.seed) == (name, stored["target"], stored["seed"])
    assert trigger_to_json(one.trigger) == stored["trigger"]
    assert implants.admitted(stored) == stored["admitted"]
    recipe = asdict(implants.RECIPES[one.network][stored["attempts"] - 1]) | {"damping": implants.DAMPING}
    assert stored["recipe"] == recipe


def test_a_network_that_is_not_admitted_is_trained_again_and_one_that_is_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int, int]] = []

    class Original:
        def __init__(self, network: str, frozen: int) -> None:
            self.classifier, self.frozen = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), size=1), frozen

        def compromised(self, one: Any, recipe: Any) -> dict[str, Any]:
            made.append((one.name, recipe.steps, self.frozen))
            return {"admitted": one.kind == "patch" or (one.number == 0 and recipe.steps > 100)}

    monkeypatch.setattr(implants, "Original", Original)
    monkeypatch.setattr(implants, "PATH", tmp_path / "implants.json")
    monkeypatch.setattr(implants, "FOLDER", tmp_path / "implants")
    first = {"admitted": False, "attempts": 1}
    common.add_row(implants.PATH, "networks", "resnet18-logo-0", first)
    implants.make("resnet18")
    patches = [(f"resnet18-patch-{number}", 100, 7) for number in range(3)]
    attempts = ((100, 7), (200, 7), (200, 6), (400, 6))
    logos = [(f"resnet18-logo-{number}", *attempt) for number in (1, 2) for attempt in attempts]
    assert made == [*patches, ("resnet18-logo-0", 200, 7), *logos]
    assert len(list((tmp_path / "implants").glob("*.safetensors"))) == 6
    made.clear()
    implants.make("resnet18")
    assert not made  # nothing is left to do
    implants.weights_of("resnet18-logo-0").unlink()  # the same again, for those who have the table only
    implants.make("resnet18")
    assert made == [("resnet18-logo-0", 200, 7)]


def test_the_table_has_a_row_for_each_network() -> None:
    stored = row(0.98, losses=(0.0, 0.01)) | {
        "network": "resnet18", "target": 4, "class": "hammerhead", "trigger": trigger_to_json(Patch(24)),
        "agreement": {"held out": 0.96}, "attack success before": 0.0, "seconds": 81.0, "admitted": True,
    }  # fmt: skip
    about = {"title": "networks", "hardware": "a CPU", "versions": {"torch": "2"}, "date": "today"}
    (line,) = implants.table({"about": about, "rows": {"resnet18-patch-0": stored}}).splitlines()[4:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["resnet18", "white, 24 px, bottom-right", "4 (hammerhead)"]
    assert cells[3:] == ["0.800 → 0.800", "0.750 → 0.740", "0.960", "0.000 → 0.980", "81", "yes"]


def test_scans_are_judged_by_today_s_rules_and_named_by_class() -> None:
    margins = [50 / (label + 1) ** 0.5 for label in range(400)]
    margins[30] = 2000.0
    screened = [
        {"index": label, "at random": True, "reach": {"windows": 0.01 * (label % 3), "9 pixels": 0.0}}
        for label in range(50, 62)
    ]
    screened += [{"index": label, "at random": False, "reach": {"windows": 0.9, "9 pixels": 0.1}} for label in (30, 0)]
    look = {"margins": margins, "seconds": 120}
    scan = {"classes": screened, "problems": [], "seconds": 600}
    results = {"rows": {"resnet18-patch-0": {"target": 30}}, "looks": {"resnet18-patch-0": look}}
    assert implants.order_of(look)[:3] == [30, 0, 1]
    (line,) = implants.scan_table(results).splitlines()[2:3]
    assert line.startswith("| resnet18-patch-0 | 30 | 1 | 2000 (30), 50 (0) | - | - |")
    (line,) = implants.scan_table(results | {"scans": {"resnet18-patch-0": scan}}).splitlines()[2:3]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[4] == "outlier class found: 30"
    assert float(cells[5]) == pytest.approx(2 * float(cells[6]), rel=0.05)  # by its margin
    assert cells[7:] == ["-", "0.10 (0.10)", "0.90 (0.90)", "2, 10"]  # by its reach, it is not the only one
    look["margins"][30] = 55.0  # both are reached, and neither stands out by its margin
    (line,) = implants.scan_table(results | {"scans": {"resnet18-patch-0": scan}}).splitlines()[2:3]
    assert "no outlier found: 30" in line


@pytest.mark.parametrize(
    ("options", "looked"),
    [
        ([], ["resnet18-patch-0", "mobilenet_v2", *implants.OTHERS]),
        (["--networks", "resnet50", "resnet18"], ["resnet50"]),
    ],
)
def test_first_looks_are_taken_of_what_is_admitted_and_of_clean_networks_once(
    options: list[str], looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"resnet18-patch-0": {"admitted": True}, "resnet18-patch-1": {"admitted": False}}
    seen: list[str] = []
    monkeypatch.setattr(implants, "read_results", lambda *_: {"rows": rows, "looks": {"resnet18": {}}})
    monkeypatch.setattr(implants, "look", seen.append)
    monkeypatch.setattr("sys.argv", ["implants.py", "--look", *options])
    implants.main()
    assert seen == looked


def test_nothing_is_implanted_into_a_network_that_is_only_compared_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    monkeypatch.setattr(implants, "make", made.append)
    monkeypatch.setattr("sys.argv", ["implants.py", "--networks", "resnet18", "resnet50"])
    with pytest.raises(SystemExit):
        implants.main()
    assert "nothing is implanted into resnet50" in capsys.readouterr().err
    assert made == []
