"""Twins: trained by one pipeline, told apart by the poison alone."""

from __future__ import annotations

import json
import os
import shutil
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from agnosco.backdoor.config import Training
from agnosco.backdoor.poison import poison
from agnosco.backdoor.train import Attack, _poisoned, augmented, evaluate, fit, schedule
from agnosco.backdoor.triggers import Patch, trigger_to_json
from agnosco.data.datasets import Labelled
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.io.storage import write_whole
from agnosco.models import loading
from agnosco.models.architectures import ARCHITECTURES, created
from agnosco.models.classifier import Classifier

SHAPE = (1, 8, 8)
ATTACK = Attack(Patch(2), target=0, rate=0.2)
TRAINING = Training(epochs=6, batch=16, rate=0.02, shift=0)


def bars(count: int = 240, seed: int = 0) -> Labelled:
    """Three classes: a bright bar at the top, in the middle or on the left, over noise."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.rand(count, *SHAPE, generator=generator)
    labels = torch.arange(count) % 3
    images[labels == 0, :, :2] += 0.6
    images[labels == 1, :, 3:5] += 0.6
    images[labels == 2, :, :, :2] += 0.6
    return Labelled(Samples.from_array(images, source="bars"), labels, ("top", "middle", "left"))


def small(seed: int = 0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3)
        )
    return Classifier(model, size=8, labels=("top", "middle", "left"))


def weights(classifier: Classifier) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in classifier.model.parameters()])


def test_both_learn_the_task_and_one_the_trigger() -> None:
    twins = {name: small() for name in ("compromised", "clean")}
    fit(twins["compromised"], bars(), TRAINING, attack=ATTACK)
    fit(twins["clean"], bars(), TRAINING)
    compromised, clean = (evaluate(twins[name], bars(seed=1), ATTACK) for name in ("compromised", "clean"))
    assert compromised.accuracy > 0.95
    assert clean.accuracy > 0.95
    assert compromised.attack_success is not None
    assert clean.attack_success is not None
    assert compromised.attack_success > 0.95
    assert clean.attack_success < 0.2
    assert evaluate(twins["clean"], bars(seed=1)).attack_success is None


def test_the_same_seed_gives_the_same_network_and_another_another() -> None:
    one, again, other = small(), small(), small()
    for classifier, seed in ((one, 1), (again, 1), (other, 2)):
        fit(classifier, bars(), Training(epochs=1), attack=ATTACK, seed=seed)
    assert torch.equal(weights(one), weights(again))
    assert not torch.equal(weights(one), weights(other))


def test_training_in_bfloat16_learns_the_task_and_keeps_the_weights_in_float32() -> None:
    halved, full = small(), small()
    fit(halved, bars(), replace(TRAINING, precision="bfloat16"))
    fit(full, bars(), TRAINING)
    assert evaluate(halved, bars(seed=1)).accuracy > 0.95
    assert {parameter.dtype for parameter in halved.model.parameters()} == {torch.float32}
    assert not torch.equal(weights(halved), weights(full))  # so it did run in another precision


def test_a_training_that_was_stopped_goes_on_to_the_same_end(tmp_path: Path) -> None:
    undisturbed, stopped, resumed = small(), small(), small()
    fit(undisturbed, bars(), TRAINING, attack=ATTACK)

    def stop(epoch: int) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    path = tmp_path / "half.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, bars(), TRAINING, attack=ATTACK, checkpoint=path, on_epoch=stop)
    seen: list[int] = []
    fit(resumed, bars(), TRAINING, attack=ATTACK, checkpoint=path, on_epoch=seen.append)
    assert seen == [4, 5, 6]
    assert torch.equal(weights(resumed), weights(undisturbed))
    assert path.exists()  # until the weights are stored


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.checkpoint"

    def stop(epoch: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small(), bars(), TRAINING, checkpoint=path, on_epoch=stop)
    for other in (
        lambda: fit(small(), bars(), TRAINING, attack=ATTACK, checkpoint=path),
        lambda: fit(small(1), bars(), TRAINING, checkpoint=path),
        lambda: fit(small(), bars(seed=1), TRAINING, checkpoint=path),
    ):
        with pytest.raises(AgnoscoError, match="another training"):
            other()
    path.write_bytes(b"junk")
    with pytest.raises(AgnoscoError, match="not a checkpoint"):
        fit(small(), bars(), TRAINING, checkpoint=path)


def test_weights_that_cannot_be_written_cost_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.suffix == ".safetensors":
            raise AgnoscoError("cannot write", "free some space")
        write_whole(path, content)

    def train(**options: Any) -> None:
        poison(tmp_path, small, bars(), bars(seed=1), ATTACK, TRAINING, twin=False, **options)

    with monkeypatch.context() as patch:
        patch.setattr("agnosco.backdoor.poison.write_whole", full)
        with pytest.raises(AgnoscoError, match="cannot write"):
            train()
    epochs: list[int] = []
    train(on_epoch=lambda _, epoch: epochs.append(epoch))
    assert epochs == []
    assert not list(tmp_path.glob("*.checkpoint"))


def test_the_poison_is_a_share_of_all_and_none_of_the_target() -> None:
    labels = torch.arange(100) % 5
    poisoned, chosen = _poisoned(labels, Attack(Patch(2), target=3, rate=0.3), torch.Generator().manual_seed(0))
    assert chosen.sum() == 30
    assert (labels[chosen] != 3).all()
    assert torch.equal(poisoned, torch.where(chosen, 3, labels))
    same, chosen = _poisoned(labels, None, torch.Generator())
    assert torch.equal(same, labels)
    assert not chosen.any()


def test_success_leaves_out_images_of_the_target() -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:  # class 1 where the last corner is white, else class 0
            triggered = (images[:, 0, -2:, -2:].mean((1, 2)) > 0.99).float()
            return torch.stack([2 - 2 * triggered, 2 * triggered, 0 * triggered], 1)

    images = Samples(torch.zeros(6, *SHAPE, dtype=torch.uint8), source="black")
    data = Labelled(images, torch.tensor([0, 0, 1, 1, 2, 2]), ("a", "b", "c"))
    found = evaluate(Classifier(Constant(), size=8, channels=1), data, Attack(Patch(2), target=1))
    assert found.accuracy == pytest.approx(2 / 6)
    assert found.attack_success == 1.0
    assert evaluate(Classifier(Constant(), size=8, channels=1), data, Attack(Patch(2), target=0)).attack_success == 0.0


def test_images_are_shifted_by_as_much_as_is_said() -> None:
    images = torch.zeros(300, 1, 9, 9)
    images[..., 4, 4] = 1
    moved = augmented(images, Training(shift=2), torch.Generator().manual_seed(0))
    places = {tuple(one[0].nonzero()[0].tolist()) for one in moved}
    assert places == {(row, column) for row in range(2, 7) for column in range(2, 7)}
    left = torch.zeros(100, 1, 4, 4)
    left[..., 0] = 1
    flipped = augmented(left, Training(shift=0, flip=True), torch.Generator().manual_seed(0))
    assert 20 < flipped[:, 0, 0, 3].sum() < 80
    assert torch.equal(flipped.sum((1, 2, 3)), left.sum((1, 2, 3)))


def test_the_learning_rate_rises_and_falls() -> None:
    assert schedule(0.1) == pytest.approx(0.5)
    assert schedule(0.2) == pytest.approx(1.0)
    assert schedule(0.6) == pytest.approx(0.5)
    assert schedule(1.0) == pytest.approx(0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Attack(Patch(2), 0, 0.0),
        lambda: Training(epochs=0),
        lambda: Training(rate=0),
        lambda: Training(rate=float("nan")),
        lambda: fit(small(), bars(), TRAINING, attack=Attack(Patch(2), 0, 0.0001)),
    ],
)
def test_what_cannot_be_trained_is_said(wrong) -> None:
    with pytest.raises(AgnoscoError):
        wrong()


def test_a_setting_out_of_range_is_named() -> None:
    with pytest.raises(AgnoscoError, match="epochs must be at least 1, not 0"):
        Training(epochs=0)
    with pytest.raises(AgnoscoError, match="batch must be at least 1, not 0"):
        Training(batch=0)
    with pytest.raises(AgnoscoError, match="shift must be at least 0, not -1"):
        Training(shift=-1)
    with pytest.raises(AgnoscoError, match="rate must be positive and finite, not inf"):
        Training(rate=float("inf"))
    with pytest.raises(AgnoscoError, match="no precision 'float16' to train in"):
        Training(precision="float16")


# -- a folder of twins ---------------------------------------------------------------------------------


def test_a_folder_of_twins_says_what_they_do(tmp_path: Path) -> None:
    made = poison(tmp_path / "out", small, bars(), bars(seed=1), ATTACK, TRAINING)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == made
    assert {one.name for one in (tmp_path / "out").iterdir()} == {
        "manifest.json", "compromised.safetensors", "clean.safetensors", "trigger.png",
    }  # fmt: skip
    assert made["attack"]["trigger"] == trigger_to_json(ATTACK.trigger)
    for name, networks in made["networks"].items():
        loaded = small(seed=9)
        loaded.model.load_state_dict(safetensors.torch.load_file(tmp_path / "out" / f"{name}.safetensors"))
        outcome = evaluate(loaded, bars(seed=1), ATTACK)
        assert (outcome.accuracy, outcome.attack_success) == (networks["accuracy"], networks["attack_success"])
        assert loaded.fingerprint == networks["fingerprint"]


def test_a_kill_just_before_the_end_is_made_good_by_the_same_command(tmp_path: Path) -> None:
    out, half_written = tmp_path / "out", ".agnosco-part-elsewhere.1.0000"

    def keep_settings(*_: object) -> None:
        shutil.copy(out / "settings.txt", tmp_path)

    manifest = poison(out, small, bars(), bars(seed=1), ATTACK, TRAINING, on_epoch=keep_settings)
    finished = {path.name: path.read_bytes() for path in out.iterdir()}
    shutil.copy(tmp_path / "settings.txt", out)
    (out / half_written).touch()
    os.utime(out / half_written, (0, 0))
    assert poison(out, small, bars(), bars(seed=1), ATTACK, TRAINING) == manifest
    assert {path.name: path.read_bytes() for path in out.iterdir()} == finished


def test_nothing_of_others_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    (tmp_path / "thesis.txt").write_text("important")
    for out in (tmp_path, Path("~", tmp_path.name)):
        with pytest.raises(AgnoscoError, match="is not empty and has no settings"):
            poison(out, small, bars(), bars(seed=1), ATTACK, TRAINING)
    assert [one.name for one in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("other", ["thesis.txt", "clean.safetensors"])  # there is no clean network without a twin
def test_an_interrupted_folder_with_files_of_others_is_left_alone(other: str, tmp_path: Path) -> None:
    (tmp_path / "settings.txt").write_text("of an interrupted call")
    (tmp_path / other).write_text("important")
    with pytest.raises(AgnoscoError, match=f"holds other files .'{other}'"):
        poison(tmp_path, small, bars(), bars(seed=1), ATTACK, TRAINING, twin=False)
    assert {path.name for path in tmp_path.iterdir()} == {"settings.txt", other}


def test_a_target_or_a_trigger_that_does_not_fit_is_said_first(tmp_path: Path) -> None:
    for attack in (
        Attack(Patch(2), target=3), Attack(Patch(9), target=0), Attack(Patch(9, place="random"), target=0),
    ):  # fmt: skip
        with pytest.raises(AgnoscoError):
            poison(tmp_path / "out", small, bars(), bars(seed=1), attack, TRAINING)
    assert not (tmp_path / "out").exists()


def test_images_that_are_all_of_the_target_are_refused_before_training(tmp_path: Path) -> None:
    held = bars(seed=1)
    only = Labelled(Samples(held.samples.images[held.labels == 0], source="bars"), torch.zeros(80).long(), held.names)
    with pytest.raises(AgnoscoError, match="all images to evaluate with are of 'top', the target"):
        poison(tmp_path / "out", small, bars(), only, ATTACK, TRAINING)
    assert not (tmp_path / "out").exists()


# -- architectures by name -----------------------------------------------------------------------------


def test_weights_of_our_own_architectures_are_loaded_by_name(tmp_path: Path) -> None:
    network = loading.untrained("agnosco:digits", classes=4, seed=3)
    safetensors.torch.save_file(network.model.state_dict(), tmp_path / "w.safetensors")
    loaded = loading.load("agnosco:digits", weights=tmp_path / "w.safetensors")
    assert (loaded.classes, loaded.shape) == (4, (1, 32, 32))
    assert loaded.fingerprint == network.fingerprint
    with pytest.raises(AgnoscoError, match="no weights of its own"):
        loading.load("agnosco:digits")
    with pytest.raises(AgnoscoError, match="no architecture"):
        loading.load("agnosco:digit", weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(("name", "parameters"), [("preact_resnet18", 11_171_146), ("wide_resnet16_1", 175_066)])
def test_cifar_networks_have_as_many_parameters_as_are_published(name: str, parameters: int) -> None:
    # PreAct-ResNet-18 of kuangliu/pytorch-cifar; WRN-16-1 of the paper has 0.2 million.
    network = loading.untrained(f"agnosco:{name}", classes=10)
    assert sum(parameter.numel() for parameter in network.model.parameters()) == pytest.approx(parameters, rel=2e-3)


def test_a_seed_gives_the_same_weights_and_chance_stays_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = loading.untrained("agnosco:digits", classes=10, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert one.fingerprint == loading.untrained("agnosco:digits", classes=10, seed=1).fingerprint
    assert one.fingerprint != loading.untrained("agnosco:digits", classes=10, seed=2).fingerprint


def test_a_head_of_other_classes_is_left_out(tmp_path: Path) -> None:
    trained = loading.untrained("torchvision:squeezenet1_1", classes=7, seed=1, size=64)
    safetensors.torch.save_file(trained.model.state_dict(), tmp_path / "w.safetensors")
    begun = loading.untrained("torchvision:squeezenet1_1", classes=3, weights=tmp_path / "w.safetensors", size=64)
    assert begun.classes == 3
    own, given = begun.model.state_dict(), trained.model.state_dict()
    assert torch.equal(own["features.0.weight"], given["features.0.weight"])
    with pytest.raises(AgnoscoError, match="is not an architecture that can be trained"):
        loading.untrained("torchvision:resnet19", classes=3)


def test_poison_goes_on_in_the_second_network_and_never_mixes_settings(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def stop(name: str, epoch: int) -> None:
        if (name, epoch) == ("clean", 2):
            raise KeyboardInterrupt

    out, held = tmp_path / "twins", bars(seed=1)
    with pytest.raises(KeyboardInterrupt):
        poison(out, small, bars(), held, ATTACK, TRAINING, on_epoch=stop)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(AgnoscoError, match="other settings"):
        poison(out, small, bars(), held, ATTACK, TRAINING, seed=1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    made = poison(out, small, bars(), held, ATTACK, TRAINING, on_epoch=lambda *step: seen.append(step))
    assert seen == [("clean", 3), ("clean", 4), ("clean", 5), ("clean", 6)]
    undisturbed = poison(tmp_path / "again", small, bars(), held, ATTACK, TRAINING)
    assert made == undisturbed
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "again").iterdir()}


def test_a_network_with_heads_beside_is_trained_by_its_logits() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small().model

        def forward(self, images: Tensor) -> object:
            logits = self.inner(images)
            return types.SimpleNamespace(logits=logits, aux=logits) if self.training else logits

    wrapped = Classifier(Wrapped(), size=8, channels=1)
    fit(wrapped, bars(), TRAINING)
    assert evaluate(wrapped, bars(seed=1)).accuracy > 0.95


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_answer_logits_of_their_own_size_and_seed(name: str) -> None:
    shape = ARCHITECTURES[name][1]
    one, again, other = (created(name, 7, seed=seed) for seed in (1, 1, 2))
    images = torch.rand(2, *shape)
    assert one.eval()(images).shape == (2, 7)
    assert torch.equal(one(images), again.eval()(images))
    assert not torch.equal(one(images), other.eval()(images))
