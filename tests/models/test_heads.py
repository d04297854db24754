"""Heads: the layer that was asked, what is read from it, and that the rest of agnosco takes it for classes."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Planted, samples
from safetensors.torch import save_file
from torch import Tensor, nn

from agnosco import Classifier, Config, Identity, Pixel, Run, Samples, load, map_classes, preset, remake
from agnosco.errors import AgnoscoError
from agnosco.evaluate.checks import cascade, stages_of
from agnosco.models.heads import Head, Layer, layers_of
from agnosco.runs.jobs import map_runs

SIZE = 12


class Named(nn.Module):
    """Calls its layer with an argument by name, and gives it more than it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, grid: Tensor) -> Tensor:
        return self.fc(input=grid.mean((2, 3)))


class Exploding(nn.Module):
    """Comes after the layer that is asked, and must not be run."""

    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("the pass went on behind the layer")


def body(after: nn.Module | None = None) -> nn.Sequential:
    """Two convolutions; the second has six channels at 5×5 places of a 12×12 image."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 6, 1), after or nn.Identity(), nn.Flatten(), nn.Linear(150, 2)
    )


def asked(at: str, **options: Any) -> Classifier:
    return Classifier(body(), size=SIZE, at=at, **options)


def config(steps: int = 8) -> Config:
    return Config(replace(preset("quick").mapper, steps=steps), refine=None, cycles=1, precision="float32")


def expected(images: Tensor) -> Tensor:
    """The second layer's answer, ``(N, 6, 5, 5)``."""
    return body()[:2](images)


def test_channels_are_means_over_all_places_and_center_is_the_one_in_the_middle() -> None:
    images = torch.rand(3, 3, SIZE, SIZE)
    torch.testing.assert_close(asked("1")(images), expected(images).mean((2, 3)))
    torch.testing.assert_close(asked("1:center")(images), expected(images)[:, :, 2, 2])
    assert asked("1").classes == 6
    assert asked("1").labels[:2] == ("1 0", "1 1")
    assert asked("1", labels=[*"abcdef"]).index("c") == 2


def test_directions_are_products_with_what_the_layer_answers(tmp_path: Path) -> None:
    images, vectors = torch.rand(3, 3, SIZE, SIZE), {"sky": torch.randn(6), "probes": torch.randn(2, 6)}
    save_file(vectors, tmp_path / "directions.safetensors")
    features = expected(images).mean((2, 3))
    rows = torch.cat([vectors["probes"], vectors["sky"][None]])
    for directions in (tmp_path / "directions.safetensors", dict(sorted(vectors.items()))):
        classifier = asked("1", directions=directions)
        assert classifier.labels == ("probes 0", "probes 1", "sky")
        torch.testing.assert_close(classifier(images), features @ rows.T)


def test_a_single_direction_is_asked_with_its_opposite() -> None:
    classifier = asked("1", directions={"sky": torch.ones(6)})
    scores = classifier(torch.rand(3, 3, SIZE, SIZE))
    assert classifier.labels == ("sky", "minus sky")
    assert scores[:, 0].equal(-scores[:, 1])


def test_a_layer_can_be_asked_what_it_is_given(tmp_path: Path) -> None:
    images, given = torch.rand(3, 3, SIZE, SIZE), body()[:1]
    layer = asked("1:input")
    assert (layer.at, layer.classes, layer.labels[0]) == ("1:input", 4, "1:input 0")
    torch.testing.assert_close(layer(images), given(images).mean((2, 3)))
    torch.testing.assert_close(asked("1:input:center")(images), given(images)[:, :, 2, 2])
    network = nn.Sequential(*body()[:2], Named())
    save_file({"sky": torch.arange(6.0)}, tmp_path / "sky.safetensors")
    classifier = Classifier(network, size=SIZE, at="2.fc:input", directions=tmp_path / "sky.safetensors")
    torch.testing.assert_close(classifier(images)[:, 0], expected(images).mean((2, 3)) @ torch.arange(6.0))


def test_a_layer_that_is_asked_for_its_input_is_not_run() -> None:
    assert Classifier(body(after=Exploding()), size=SIZE, at="2:input").classes == 6
    with pytest.raises(AgnoscoError, match="behind the layer"):
        Classifier(body(after=Exploding()), size=SIZE, at="2")


def test_what_comes_after_the_layer_is_not_run() -> None:
    network = body(after=Exploding())
    assert Classifier(network, size=SIZE, at="1").classes == 6
    with pytest.raises(AgnoscoError, match="behind the layer"):
        Classifier(network, size=SIZE)


Pair = namedtuple("Pair", ["none", "tensor"])


@dataclass
class Answer:
    """What models of transformers answer."""

    loss: None
    hidden: Tensor


@pytest.mark.parametrize(
    "wrap",
    [lambda x: (None, x), lambda x: {"a": [x], "b": 0}, lambda x: Pair(None, x), lambda x: Answer(None, x)],
)
def test_a_layer_may_answer_with_a_tuple_a_dict_or_a_record(wrap: Callable[[Tensor], object]) -> None:
    class Wrapping(nn.Module):
        def forward(self, images: Tensor) -> object:
            return wrap(images)

    assert Classifier(body(after=Wrapping()), size=SIZE, at="2").classes == 6


def test_tokens_are_places_and_the_class_token_is_none() -> None:
    class Tokens(nn.Module):
        def forward(self, grid: Tensor) -> Tensor:
            tokens = grid.flatten(2).transpose(1, 2)
            return torch.cat([1000 * torch.ones_like(tokens[:, :1]), tokens], 1)

    images = torch.rand(3, 3, SIZE, SIZE)
    for at, reference in (("2", expected(images).mean((2, 3))), ("2:center", expected(images)[:, :, 2, 2])):
        torch.testing.assert_close(Classifier(body(after=Tokens()), size=SIZE, at=at)(images), reference)


@pytest.mark.parametrize(
    ("at", "directions", "message", "hint"),
    [
        ("11", None, "has no layer '11'", "did you mean '1'"),
        ("1", {"sky": torch.ones(5)}, "directions have 5 values, but 1 6", "name the layer"),
        ("1", {"a": torch.ones(6), "b": torch.ones(5)}, "different numbers of values", "of one layer"),
        ("1", {"a": torch.ones(6, dtype=torch.long)}, "direction 'a'", "floating-point"),
        ("1", {}, "there are no directions", "at least one"),
        ("1", {"a": torch.ones(2, 6), "a 0": torch.ones(6)}, "two directions are called 'a 0'", "rename"),
        ("3:center", None, "has no place in the middle", "without :center"),
        ("1:centre", None, "has no layer '1:centre'", "did you mean '1:center'"),
        ("1:imput", None, "has no layer '1:imput'", "did you mean '1:input'"),
        ("3:input", {"sky": torch.ones(5)}, "directions have 5 values, but 3:input 6", "name the layer"),
        ("4:input:center", None, r"'4' is given \(2, 150\), which has no place in the middle", "without :center"),
        (None, {"a": torch.ones(6)}, "directions need a layer", "--at layer4"),
    ],
)
def test_errors_say_what_to_do(at: str | None, directions: Any, message: str, hint: str) -> None:
    with pytest.raises(AgnoscoError, match=message) as caught:
        Classifier(body(), size=SIZE, at=at, directions=directions)
    assert hint in caught.value.hint


def test_what_is_asked_is_part_of_the_fingerprint() -> None:
    ways = [asked("1"), asked("0"), asked("1:center"), asked("1:input"), asked("1", directions={"a": torch.ones(6)})]
    ways += [asked("1", directions={"a": torch.arange(6.0)}), Classifier(body(), size=SIZE)]
    assert len({way.fingerprint for way in ways}) == len(ways)


class Permuted(nn.Module):
    """Channels to the end."""

    def forward(self, grid: Tensor) -> Tensor:
        return grid.permute(0, 2, 3, 1)


def test_layers_are_listed_in_the_order_of_the_pass() -> None:
    network = body()
    assert layers_of(network, torch.rand(2, 3, SIZE, SIZE))[:2] == [
        Layer("0", "Conv2d", 4, 25),
        Layer("1", "Conv2d", 6, 25),
    ]
    found = Classifier(network, size=SIZE).layers()
    assert [(layer.name, layer.channels, layer.places) for layer in found[-2:]] == [("3", 150, 1), ("4", 2, 1)]
    for layer in found:
        if layer.channels > 1:
            assert Classifier(network, size=SIZE, at=layer.name).classes == layer.channels


def test_pooled_channels_that_come_last_are_channels() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), Permuted(), nn.Linear(3, 4), nn.Flatten())
    found = Classifier(network, size=SIZE).layers()
    assert [(layer.channels, layer.places) for layer in found] == [(3, 1), (3, 1), (4, 1), (4, 1)]


def test_a_map_of_a_planted_direction_shows_it() -> None:
    """Channels of the first layer are ten waves: the map of a direction must hold its wave and no other."""
    images, planted = samples(), Planted(None).weight.detach()
    layer = nn.Sequential(nn.Flatten(), nn.Linear(256, 10, bias=False), nn.Linear(10, 3))
    with torch.no_grad():
        layer[1].weight.copy_(planted)  # type: ignore[operator]
    directions = {"second": torch.eye(10)[1], "mixture": torch.eye(10)[4] + torch.eye(10)[6], "ninth": torch.eye(10)[8]}
    classifier = Classifier(layer, size=16, channels=1, at="1", directions=directions)
    pixels = replace(config(60).mapper, parameterization=Pixel(), transforms=Identity())
    maps = list(map_classes(classifier, [0, 1, 2], images, replace(config(60), mapper=pixels)))
    for concept, direction in zip(maps, directions.values(), strict=True):
        features = (concept.pixels - 0.5).flatten() @ planted.T
        others = features[direction == 0].abs().max()
        assert features[direction > 0].min() > 2 * others
        assert torch.cosine_similarity(features, direction, 0) > 0.8


# -- the rest of agnosco --------------------------------------------------------------------------------


def test_a_run_is_resumed_and_refuses_another_layer(tmp_path: Path) -> None:
    images = Samples.noise((3, SIZE, SIZE), count=20)

    def run(at: str) -> Run:
        return Run.create(tmp_path / "run", classifier=asked(at), samples=images, config=config())

    list(map_runs(run("1"), asked("1"), images, [0]))
    list(map_runs(run("1"), asked("1"), images, [3]))
    again = Run.open(tmp_path / "run")
    assert [entry.name for entry in again.entries] == ["1 0", "1 3"]
    assert again.settings.model.at == "1"
    with pytest.raises(AgnoscoError, match="model at 1, now 0"):
        run("0")


def test_a_map_of_a_run_is_made_again_from_the_module_and_its_manifest(tmp_path: Path) -> None:
    images = Samples.noise((3, SIZE, SIZE), count=20)
    run = Run.create(tmp_path / "run", classifier=asked("1:center"), samples=images, config=config())
    list(map_runs(run, asked("1:center"), images, [2]))
    assert remake(tmp_path / "run", 2, 0, body(), images).nu.equal(run.map(2).nu)


def test_directions_are_needed_again(tmp_path: Path) -> None:
    images, directions = Samples.noise((3, SIZE, SIZE), count=20), {"a": torch.ones(6)}
    classifier = asked("1", directions=directions)
    run = Run.create(tmp_path / "run", classifier=classifier, samples=images, config=config())
    list(map_runs(run, classifier, images, [0]))
    with pytest.raises(AgnoscoError, match="asked for directions"):
        remake(tmp_path / "run", 0, 0, body(), images)
    assert remake(tmp_path / "run", 0, 0, classifier, images).nu.equal(run.map(0).nu)


def test_sanity_randomizes_no_stage_behind_the_layer() -> None:
    network = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(5)])
    assert stages_of(Head(network, "2")) == ("2", "1", "0")
    three = nn.Sequential(network[0], nn.ReLU(), network[1])
    assert stages_of(Head(three, "1")) == ("0",)
    assert stages_of(Head(network, "2", at_input=True)) == ("1", "0")
    classifier, images = Classifier(network, size=4, at="2"), Samples.noise((3, 4, 4), count=9)
    pictures = torch.stack([concept.pixels for concept in map_classes(classifier, [0, 1], images, config(2))])
    levels = cascade(classifier, [0, 1], images, config(2), pictures=pictures, seed=1)
    assert [level.stages for level, _ in levels] == [("2",), ("2", "1"), ("2", "1", "0")]
    assert classifier.model.body is network  # which is not changed


def test_load_passes_both_on_and_a_classifier_stays_as_it_is() -> None:
    classifier = load(body(), size=SIZE, at="1", directions={"a": torch.ones(6)})
    assert isinstance(classifier.model, Head)
    assert (classifier.at, classifier.directions) == ("1", "given in Python")
    with pytest.raises(AgnoscoError, match="at cannot be changed"):
        load(classifier, at="0")
