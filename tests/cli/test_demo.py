"""The demo's digits, its network and its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from agnosco.backdoor.config import Training
from agnosco.backdoor.record import FOUND, NONE
from agnosco.cli import demo
from agnosco.cli.console import Output
from agnosco.data import datasets
from agnosco.errors import AgnoscoError
from agnosco.models.architectures import digits
from agnosco.models.classifier import Classifier
from agnosco.runs.run import Run

SHAPE = (1, 32, 32)


def test_augmented_images_lose_a_square_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NOISE", 0.0)
    seen = demo.augmented(torch.ones(50, *SHAPE), torch.Generator().manual_seed(0))
    erased = (seen == 0).flatten(1).sum(1)
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert ((erased >= (demo.HOLE - 1) ** 2) & (erased <= (demo.HOLE + 1) ** 2)).all()


def test_an_adversarial_image_has_a_higher_loss() -> None:
    torch.manual_seed(0)
    model, images, labels = digits().eval(), torch.rand(8, *SHAPE), torch.arange(8)
    changed = demo.adversarial(model, images.clone(), labels)
    loss = torch.nn.functional.cross_entropy
    assert loss(model(changed), labels) > loss(model(images), labels)
    distance = torch.linalg.vector_norm((changed - images).flatten(1), dim=1)
    torch.testing.assert_close(distance, torch.full((8,), demo.ADVERSARIAL), rtol=1e-4, atol=0)


def test_a_slash_at_the_end_of_the_folder_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(demo, "_mapped_and_scanned", lambda out, *_: written.append(out))
    monkeypatch.setattr(demo, "report", lambda *_, out: written.append(out))
    demo.run(f"{tmp_path}/demo/", Output(quiet=True))
    assert written == [f"{tmp_path}/demo/{name}" for name in ("clean", "compromised", "report.html")]


def test_a_network_that_has_not_learned_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "TRAINING", Training(epochs=1, rate=1e-9))
    with pytest.raises(AgnoscoError, match="reads only"):
        demo.run(tmp_path / "demo", Output())
    assert not (tmp_path / "demo").exists()


def test_a_url_with_a_slash_at_its_end_names_no_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []
    monkeypatch.setattr(demo, "_mapped_and_scanned", lambda out, *_: places.append(out))
    monkeypatch.setattr(demo, "report", lambda *_, out: out)
    demo.run("memory://demo-of-a-slash/", Output(quiet=True))
    assert places == ["memory://demo-of-a-slash/clean", "memory://demo-of-a-slash/compromised"]


@pytest.mark.slow
def test_demo_draws_digits_that_its_network_reads_and_finds_the_compromised_one(tmp_path: Path) -> None:
    run, compromised = demo.run(tmp_path / "demo", Output(quiet=True))
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "clean digits network" in page
    found = {name: json.loads((tmp_path / "demo" / name / "scan.json").read_text()) for name in demo.FOLDERS}
    assert found["clean"]["verdict"]["outcome"] == NONE
    assert found["compromised"]["verdict"]["outcome"] == FOUND
    assert found["compromised"]["verdict"]["label"] == demo.ATTACK.target
    assert found["compromised"]["candidates"][0]["reach"] > 0.9
    assert len(compromised.entries) == 10
    assert (tmp_path / "demo" / "clean" / "contact-sheet.png").is_file()
    entries = Run.open(tmp_path / "demo" / "clean").entries
    assert [entry.index for entry in entries] == list(range(10))
    assert min(entry.probability for entry in entries) > 0.9
    assert min(entry.targeted_success_rate or 0.0 for entry in entries) > 0.7  # trials with such networks: 0.71 to 0.99

    # The saved weights are those of a network that reads digits, and the pictures resemble what is written:
    # each map's pattern correlates best with the mean image of its own digit, for nearly all digits.
    model = digits()
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "demo" / "clean" / "network.safetensors"))
    data = datasets.digits()
    samples, labels = data.samples, data.labels
    _, held_out = samples.split_indices()
    given = Classifier(model, size=32).probabilities(samples.images[held_out].float() / 255).argmax(1)
    assert (given == labels[held_out]).double().mean() >= demo.ENOUGH

    images = samples.images.double().flatten(1)
    means = torch.stack([images[labels == digit].mean(0) for digit in range(10)])
    means -= means.mean(0)
    patterns = torch.stack([concept.pattern.double().flatten() for concept in run.maps()])
    patterns -= patterns.mean(0)
    nearest = torch.corrcoef(torch.cat([patterns, means]))[:10, 10:].argmax(1)
    assert (nearest == torch.arange(10)).sum() >= 8
