"""Classifier: what goes in and comes out, what it looks at, and that it leaves a model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from agnosco.errors import AgnoscoError
from agnosco.method.prepare import compiled
from agnosco.models import freezing
from agnosco.models.classifier import Classifier
from agnosco.models.features import feature_map

ANIMALS = ("tench", "great white shark", "tiger shark", "sea_lion", "lion", "T-shirt, tee shirt")


class Small(nn.Module):
    """A convolution, batch norm and dropout, and a linear head: all that training mode changes."""

    def __init__(self, channels: int = 3, classes: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, classes)
        self.unused = nn.Linear(2, 2)
        self.broken = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.relu(self.norm(self.conv(x))))
        if self.broken:
            raise RuntimeError("broken on purpose")
        return self.head(x.mean((2, 3)))


class Answering(nn.Module):
    """Answers whatever a function makes of the image."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer(x)


def channel_means(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def small(**options: object) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Small(), size=8, **options)  # pyright: ignore[reportArgumentType]


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


# -- pixels in, logits out ---------------------------------------------------------------------------


def test_normalisation_by_hand() -> None:
    classifier = Classifier(Answering(channel_means), size=4, mean=(0.5, 0.4, 0.25), std=(0.2, 0.1, 0.5))
    pixels = torch.tensor([0.6, 0.6, 0.75]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    # (0.6 - 0.5) / 0.2, (0.6 - 0.4) / 0.1, (0.75 - 0.25) / 0.5
    torch.testing.assert_close(classifier(pixels), torch.tensor([[0.5, 2.0, 1.0]] * 2))


def test_gradient_reaches_the_pixels() -> None:
    classifier = Classifier(Answering(channel_means), size=4, mean=(0.5, 0.4, 0.25), std=(0.2, 0.1, 0.5))
    pixels = torch.rand(1, 3, 4, 4).requires_grad_()
    classifier(pixels)[0, 1].backward()
    assert pixels.grad is not None
    # d mean((x - m) / s) / dx = 1 / (16 s), in its own channel only
    torch.testing.assert_close(pixels.grad[0, 1], torch.full((4, 4), 1 / 1.6))
    assert pixels.grad[0, [0, 2]].abs().max() == 0


def test_without_mean_and_std_pixels_go_in_as_they_are() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(Classifier(Answering(channel_means), size=4)(pixels), pixels.mean((2, 3)))


def test_probabilities_are_the_softmax() -> None:
    classifier = Classifier(Answering(channel_means), size=4)
    pixels = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4).clone().requires_grad_()
    probabilities = classifier.probabilities(pixels)
    e = 2.718281828
    torch.testing.assert_close(probabilities, torch.tensor([[1 / (e + 2), e / (e + 2), 1 / (e + 2)]]))
    assert not probabilities.requires_grad


def test_grey() -> None:
    classifier = Classifier(Small(channels=1), size=(6, 9), mean=[0.1], std=[0.3])
    assert classifier.shape == (1, 6, 9)
    assert classifier(torch.rand(5, 1, 6, 9)).shape == (5, 6)
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\)"):
        classifier(torch.rand(5, 3, 6, 9))


def test_half_precision_logits_come_out_as_float32() -> None:
    classifier = Classifier(Answering(lambda x: channel_means(x).half()), size=4)
    assert classifier(torch.rand(1, 3, 4, 4)).dtype == torch.float32


def test_wrapped_logits() -> None:
    classifier = Classifier(Answering(lambda x: SimpleNamespace(logits=channel_means(x))), size=4)
    pixels = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(classifier(pixels), pixels.mean((2, 3)))


def test_model_that_flattens_with_view() -> None:
    """``view`` cannot flatten a channels-last tensor, and half of all small networks end in it."""
    torch.manual_seed(0)
    conv, head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 8 * 8, 5)

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = conv, head

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head(x.view(len(x), -1))

    pixels = torch.rand(3, 3, 8, 8)
    expected = head(conv(pixels).flatten(1))
    torch.testing.assert_close(Classifier(Viewing(), size=8)(pixels), expected)


# -- what a model says about itself ------------------------------------------------------------------


def test_size_that_the_model_carries() -> None:
    like_timm, like_torchvision = Small(), Small()
    like_timm.pretrained_cfg = {"input_size": (3, 24, 24)}  # pyright: ignore
    like_torchvision.image_size = 20  # pyright: ignore
    assert Classifier(like_timm).shape == (3, 24, 24)
    assert Classifier(like_torchvision).shape == (3, 20, 20)
    assert Classifier(like_timm, size=9).shape == (3, 9, 9)


@pytest.mark.parametrize("size", [np.int64(9), (np.int32(9), 9), np.array([9, 9])])
def test_sizes_of_numpy_become_those_of_python(size: Any) -> None:
    shape = Classifier(Small(), size=size).shape
    assert (shape, [type(side) for side in shape]) == ((3, 9, 9), [int] * 3)


def test_unknown_size() -> None:
    with pytest.raises(AgnoscoError, match="input size of Small is unknown") as caught:
        Classifier(Small())
    assert "size=224" in caught.value.hint


def test_labels_are_numbers_unless_given() -> None:
    assert small().labels == ("0", "1", "2", "3", "4", "5")
    assert small(labels=ANIMALS).labels == ANIMALS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["one", "two"]}, "2 labels for 6 classes"),
        ({"mean": [0.5]}, "mean has 1 values for 3 channels"),
        ({"std": [0.5, 0.5]}, "std has 2 values for 3 channels"),
        ({"std": [0.5, 0.0, 0.5]}, "std must be positive"),
        ({"size": 0}, "0 x 0 pixels is empty"),
        ({"channels": 1}, r"does not run on images of shape \(1, 8, 8\)"),
        ({"features": "convv"}, "no submodule 'convv'"),
    ],
)
def test_settings_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(AgnoscoError, match=message):
        Classifier(Small(), **{"size": 8, **options})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: channel_means(x).softmax(1), "ends in a softmax"),
        (lambda x: x.mean((1, 2, 3)), r"shape \(2,\)"),
        (lambda x: channel_means(x)[:1], r"shape \(1, 3\)"),
        (lambda x: channel_means(x)[:, :1], r"shape \(2, 1\)"),
        (lambda x: channel_means(x) / 0, "not finite"),
        (lambda x: channel_means(x) * float("nan"), "not finite"),
        (lambda x: (None, "scores"), "answers a tuple"),
        (lambda x: {"scores": 3}, "answers a dict"),
        (lambda x: None, "answers a NoneType"),
    ],
)
def test_output_that_is_no_logits(answer: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(AgnoscoError, match=message):
        Classifier(Answering(answer), size=4)


@dataclass
class Record:
    """What models of transformers answer."""

    loss: Tensor | None
    logits: Tensor
    hidden: Tensor


@dataclass
class Unnamed:
    """A record without a usual name: its first tensor is taken."""

    loss: Tensor | None
    scores: Tensor


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x,  # of a segmentation network: scores at every place
        lambda x: {"aux": -x, "out": x},
        lambda x: {"hidden": -x, "logits": channel_means(x)},
        lambda x: (channel_means(x), -x),
        lambda x: SimpleNamespace(logits=channel_means(x)),
        lambda x: Record(None, channel_means(x), -x),
        lambda x: Unnamed(None, channel_means(x)),
    ],
)
def test_answers_in_other_forms(answer: Callable[[Tensor], object]) -> None:
    pixels = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(Classifier(Answering(answer), size=4)(pixels), channel_means(pixels))


@pytest.mark.parametrize("logits", [[3.0, -1.0, -1.0], [0.6, 0.6, 0.6], [-0.1, -0.2, -0.3]])
def test_logits_that_only_look_like_probabilities_are_taken(logits: list[float]) -> None:
    """Summing to one below zero; positive with another sum; logarithms."""
    assert Classifier(Answering(lambda x: 0 * channel_means(x) + x.new_tensor(logits)), size=4).classes == 3


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
def test_a_softmax_is_noticed_in_every_precision(precision: torch.dtype) -> None:
    """Of thirty classes, rounded each by itself, the sum misses 1 by 2e-3 in bfloat16."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 30), nn.Softmax(1))
    with pytest.raises(AgnoscoError, match="ends in a softmax"):
        Classifier(model.to(precision), size=4)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: channel_means(x).squeeze(), r"answers shape \(3,\) to one image, not \(1, 3\)"),
        (lambda x: channel_means(x).expand(max(len(x), 2), 3), r"answers shape \(2, 3\) to one image"),
        (lambda x: x.mean((2, 3)).view(2, 3), r"does not run on one image of shape \(3, 4, 4\)"),
    ],
    ids=["squeezed", "filled up", "fixed"],
)
def test_a_network_that_does_not_answer_one_image_is_refused(answer: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(AgnoscoError, match=message):
        Classifier(Answering(answer), size=4)


def test_a_network_without_values_is_refused() -> None:
    with pytest.raises(AgnoscoError, match="without values"):
        Classifier(Small().to("meta"), size=8)


def test_a_first_convolution_that_does_not_know_its_channels_yet_is_refused() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(AgnoscoError, match=r"of shape \(3, 8, 8\): .* uninitialized parameter"):
        Classifier(model, size=8)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("sizes differ\nlong story"),
        AssertionError(),
        ValueError("odd"),
        AttributeError("odd"),
        KeyError("odd"),
    ],
)
def test_forward_that_raises_becomes_one_line(error: Exception) -> None:
    def answer(x: Tensor) -> Tensor:
        raise error

    with pytest.raises(AgnoscoError, match=r"does not run on images of shape \(3, 4, 4\)") as caught:
        Classifier(Answering(answer), size=4)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is error


def test_wrong_size_of_a_transformer() -> None:
    """torchvision's ViT refuses other sizes with an ``AssertionError``."""
    vit = models.VisionTransformer(32, 8, num_layers=1, num_heads=1, hidden_dim=16, mlp_dim=16)
    assert Classifier(vit).shape == (3, 32, 32)
    with pytest.raises(AgnoscoError, match=r"does not run on images of shape \(3, 40, 40\)"):
        Classifier(vit, size=40)


# -- as it was found ---------------------------------------------------------------------------------


def mixed() -> Small:
    """A model with parts in training and parts in evaluation mode, some weights frozen."""
    torch.manual_seed(0)
    model = Small().train()
    model.drop.eval()
    model.conv.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    return model


def state(model: nn.Module) -> list[object]:
    modes = [(name, module.training) for name, module in model.named_modules()]
    trainable = [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()]
    return [modes, trainable, {key: tensor.tolist() for key, tensor in model.state_dict().items()}, hooks(model)]


def test_model_is_left_as_it_was() -> None:
    model = mixed()
    before = state(model)
    classifier = Classifier(model, size=8)
    assert classifier.features == "norm"  # dropout adds nothing to it
    pixels = torch.rand(4, 3, 8, 8, requires_grad=True)
    classifier(pixels).sum().backward()
    classifier.activations(pixels)
    classifier.probabilities(pixels)
    assert classifier.fingerprint
    assert state(model) == before
    assert pixels.grad is not None


def test_model_that_raises_is_left_as_it_was() -> None:
    model = mixed()
    classifier = Classifier(model, size=8, features="norm")
    searching = Classifier(model, size=8)
    model.broken = True
    before = state(model)
    for run in (classifier, classifier.activations, classifier.probabilities):
        with pytest.raises(RuntimeError, match="on purpose"):
            run(torch.rand(1, 3, 8, 8))
    with pytest.raises(RuntimeError, match="on purpose"):
        _ = searching.features
    with pytest.raises(AgnoscoError, match="on purpose"):
        Classifier(model, size=8)
    assert state(model) == before


def test_training_mode_does_not_change_the_answer() -> None:
    model = mixed()
    pixels = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(pixels)
    torch.testing.assert_close(Classifier(model, size=8)(pixels), expected)


def test_frozen_inside_and_found_outside() -> None:
    model = mixed()
    classifier = Classifier(model, size=8)
    before = state(model)
    with classifier.frozen():
        with classifier.frozen():
            pass
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert state(model) == before
    with pytest.raises(KeyError), classifier.frozen():
        raise KeyError
    assert state(model) == before


def side_by_side(kind: str) -> tuple[Classifier, Classifier]:
    """Two classifiers with the same layers, or some."""
    model = mixed()
    classifier = Classifier(model, size=8)
    others: dict[str, Callable[[], Classifier]] = {
        "itself": lambda: classifier,
        "copy": lambda: copy.copy(classifier),
        "another": lambda: Classifier(model, size=8),
        "layer": lambda: Classifier(model, size=8, at="norm"),
        "compiled": lambda: compiled(classifier, backend="eager"),
        "shared layers": lambda: Classifier(nn.Sequential(model, nn.Dropout(), nn.Linear(6, 2)), size=8),
    }
    return classifier, others[kind]()


def held(model: nn.Module) -> set[int]:
    """What is noted of its parts, by their identifiers."""
    parts = {id(part) for part in (*model.modules(), *model.parameters())}
    return parts & (freezing._HELD.keys() | freezing._NETWORKS.keys())


def is_frozen(model: nn.Module) -> bool:
    parts = [*model.modules(), *model.parameters()]
    return not any(part.training if isinstance(part, nn.Module) else part.requires_grad for part in parts)


@pytest.mark.parametrize("kind", ["itself", "copy", "another", "layer", "compiled", "shared layers"])
@pytest.mark.parametrize("turned", [False, True])
def test_the_first_of_two_who_leaves_does_not_unfreeze_the_network_of_the_other(kind: str, turned: bool) -> None:
    first, last = side_by_side(kind)
    if turned:
        first, last = last, first
    before = state(first.model), state(last.model)
    inside = first.frozen()
    with inside, last.frozen():
        pass
    assert (state(first.model), state(last.model)) == before
    inside = first.frozen()
    inside.__enter__()
    with last.frozen():
        inside.__exit__(None, None, None)
        assert is_frozen(last.model)
    assert (state(first.model), state(last.model)) == before


def test_threads_that_use_one_network_get_the_answers_of_each_alone() -> None:
    body: Any = nn.Sequential(Meanwhile(), nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten(), nn.Linear(144, 5)).train()
    classifier = Classifier(body, size=8)
    images = torch.rand(2, 3, 8, 8)
    expected, answers = classifier(images), []
    body[0].then = lambda: answers.append(copy.copy(classifier)(images))  # comes and goes in the middle
    assert torch.equal(classifier(images), expected)
    assert torch.equal(answers[0], expected)
    assert body[2].training


def test_a_network_is_frozen_again_where_someone_trains_it_meanwhile() -> None:
    model = mixed()
    classifier = Classifier(model, size=8)
    before, expected = state(model), classifier(torch.full((2, 3, 8, 8), 0.5))
    with classifier.frozen():
        model.train().requires_grad_(True)
        assert torch.equal(classifier(torch.full((2, 3, 8, 8), 0.5)), expected)
        assert is_frozen(model)
    assert state(model) == before


def test_a_network_whose_modes_cannot_be_changed_is_as_before() -> None:
    class Stubborn(nn.Dropout):
        def train(self, mode: bool = True) -> Any:
            if not mode and self.p == 0.25:
                raise RuntimeError("on purpose")
            return super().train(mode)

    model = nn.Sequential(nn.Dropout(), nn.Flatten(), Stubborn(0.5), nn.Linear(192, 5))
    classifier = Classifier(model, size=8)
    before: Any = [module.training for module in model.modules()]
    stubborn: Any = model[2]
    stubborn.p = 0.25
    with pytest.raises(RuntimeError, match="on purpose"), classifier.frozen():
        pass
    assert [module.training for module in model.modules()] == before == [True] * 5
    stubborn.p = 0.5
    classifier(torch.rand(2, 3, 8, 8))
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    ("where", "place"),
    [*(("_NETWORKS", place) for place in range(1, 3)), *(("_HELD", place) for place in range(1, 20))],
)
def test_garbage_collection_may_end_a_user_while_another_enters_or_leaves(
    where: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mixed()
    classifier = Classifier(model, size=8)
    other = classifier if where == "_NETWORKS" else Classifier(model, size=8, at="norm")
    before = state(model)

    def user() -> Iterator[None]:
        with other.frozen():
            yield

    forgotten, asked = [user()], -1000

    class Collecting(dict[int, Any]):
        def get(self, *args: Any) -> Any:
            nonlocal asked
            found, asked = super().get(*args), asked + 1
            if asked == place:
                forgotten.clear()  # ends it here, in this thread
            return found

    monkeypatch.setattr(freezing, where, Collecting())
    next(forgotten[0])
    asked = 0
    with classifier.frozen():
        assert is_frozen(model)
    assert asked >= place
    assert not forgotten
    assert not held(model)
    assert state(model) == before


def test_who_is_interrupted_before_leaving_keeps_nothing_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixed()
    classifier, before = Classifier(model, size=8), state(model)

    class Interrupted:
        def __enter__(self) -> None:
            raise KeyboardInterrupt

        def __exit__(self, *_: object) -> None: ...

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), classifier.frozen():
        patch.setattr(freezing, "_LOCK", Interrupted())
    assert is_frozen(model)
    classifier(torch.rand(2, 3, 8, 8))
    assert state(model) == before
    assert not held(model)


def test_a_network_that_is_used_for_long_does_not_keep_those_that_share_its_layers() -> None:
    first, last = side_by_side("layer")
    with first.frozen():
        for _ in range(5):
            last(torch.rand(2, 3, 8, 8))
        assert {len(freezing._HELD[key].networks) for key in held(first.model) & freezing._HELD.keys()} == {1}


@pytest.mark.parametrize("place", range(1, 15))
def test_what_is_interrupted_in_leaving_is_made_good_by_the_next_who_leaves(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mixed()
    classifier, before, restored = Classifier(model, size=8), state(model), 0
    restore = freezing._Held.restore

    def interrupted(held: Any) -> None:
        nonlocal restored
        restored += 1
        if restored == place:
            raise KeyboardInterrupt
        restore(held)

    monkeypatch.setattr(freezing._Held, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        classifier(torch.rand(2, 3, 8, 8))
    assert state(model) != before or place > 10
    model.added = nn.Linear(2, 2)  # as in a notebook
    with classifier.frozen():
        assert is_frozen(model)
    del model.added
    assert state(model) == before
    assert not held(model)


# -- what it looks at --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "stage", "shape"),
    [  # their papers' last stages: D channels, a 32nd of the side (SqueezeNet: three poolings without padding)
        ("resnet18", 96, "layer4", (512, 3, 3)),
        ("squeezenet1_1", 96, "features", (512, 5, 5)),
        ("mobilenet_v2", 96, "features", (1280, 3, 3)),
        ("densenet121", 96, "features", (1024, 3, 3)),
        ("efficientnet_b0", 96, "features", (1280, 3, 3)),
        ("convnext_tiny", 96, "features", (768, 3, 3)),
        ("shufflenet_v2_x0_5", 96, "conv5", (1024, 3, 3)),
        ("swin_t", 96, "permute", (768, 3, 3)),
        ("vgg11", 96, "features", (512, 3, 3)),
        ("vit_b_16", 224, "encoder", (768, 14, 14)),
    ],
)
def test_last_stage_of_real_architectures(name: str, size: int, stage: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    classifier = Classifier(models.get_model(name, weights=None), size=size)
    assert classifier.features == stage
    assert classifier.activations(torch.rand(2, 3, size, size)).shape == (2, *shape)
    assert hooks(classifier.model) == 0


class Meanwhile(nn.Module):
    """When images come through it, something is done in another thread first, once."""

    then: Callable[[], object] | None = None

    def forward(self, images: Tensor) -> Tensor:
        then, self.then = self.then, None
        if then is not None:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(then).result()
        return images


@pytest.mark.parametrize("place", [0, 2])
def test_what_another_thread_sends_through_the_network_meanwhile_is_not_heard(place: int) -> None:
    stage = nn.Conv2d(3, 4, 3)
    body = nn.Sequential(Meanwhile(), stage, Meanwhile(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    classifier = Classifier(body, size=16, features="1")
    images, others = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 24, 24)

    def of(ask: Callable[[], Any]) -> Any:
        meanwhile: Any = body[place]
        meanwhile.then = lambda: classifier(others)
        return ask()

    assert torch.equal(of(lambda: classifier.activations(images)), classifier.activations(images))
    for at in ("1", "1:input"):
        asked = Classifier(body, size=16, at=at)
        assert torch.equal(of(lambda asked=asked: asked(images)), asked(images))
    assert of(classifier.layers) == classifier.layers()


def test_an_earlier_stage_that_another_thread_asks_for_last_is_not_the_last() -> None:
    end: Any = Meanwhile()
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), end, nn.Linear(4, 5)
    )
    classifier = Classifier(body, size=16)
    end.then = lambda: body[0](torch.rand(2, 3, 16, 16))
    assert classifier.features == "1"
    assert end.then is None


def test_activations_are_those_of_the_stage() -> None:
    torch.manual_seed(0)
    model = models.resnet18(weights=None).eval()
    classifier = Classifier(model, size=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(4 * pixels - 2))))
        expected = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    activations = classifier.activations(pixels)
    torch.testing.assert_close(activations, expected, rtol=1e-4, atol=1e-4)
    assert not activations.requires_grad


class Tokens(nn.Module):
    """Patches of 2 x 2 pixels as tokens, after ``extra`` tokens of zeros, as a vision transformer has them."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra
        self.encoder = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.encoder.weight)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.avg_pool2d(x, 2).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.new_zeros(len(x), self.extra, 3), tokens], 1)
        return self.encoder(tokens).mean(1)[:, [0, 1, 2, 0]]


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_tokens_are_laid_out_on_their_grid(extra: int) -> None:
    classifier = Classifier(Tokens(extra), size=8)
    pixels = torch.rand(2, 3, 8, 8)
    assert classifier.features == "encoder"
    torch.testing.assert_close(classifier.activations(pixels), F.avg_pool2d(pixels, 2))


@pytest.mark.parametrize("size", [(8, 16), (13, 22), (5, 8)])
def test_tokens_are_laid_out_in_the_proportions_of_the_image(size: tuple[int, int]) -> None:
    pixels = torch.rand(2, 3, *size)
    for extra in (0, 2):
        torch.testing.assert_close(Classifier(Tokens(extra), size=size).activations(pixels), F.avg_pool2d(pixels, 2))


def test_tokens_of_patches_that_are_filled_up_are_laid_out() -> None:
    """2 x 4 patches of 32 pixels, as MViT has them, and a class token."""
    tokens = torch.arange(9.0).view(1, 9, 1)
    grid = feature_map(tokens, (3, 40, 100))
    assert grid is not None
    assert grid[0, 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


class Attention(nn.Module):
    """Four tokens a side; afterwards, the heads of their queries and how much they attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stage, self.heads, self.shares = nn.Conv2d(3, 32, 2, stride=2), nn.Unflatten(2, (2, 16)), nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.heads(self.stage(x).flatten(2).transpose(1, 2)).transpose(1, 2)
        return self.shares(heads @ heads.transpose(2, 3)).mean(1)[:, 0, :5]


def test_neither_heads_nor_their_attention_are_a_stage() -> None:
    classifier = Classifier(Attention(), size=8)
    assert classifier.features == "stage"
    assert [layer.name for layer in classifier.layers()] == ["stage", "heads"]


class Shuffling(nn.Module):
    """Takes images apart before its only convolution, as TResNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.shuffle, self.conv = nn.PixelUnshuffle(2), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.shuffle(x)).mean((2, 3))


def test_the_first_convolution_may_take_no_images() -> None:
    assert Classifier(Shuffling(), size=8, mean=[0.5] * 3).shape == (3, 8, 8)
    with pytest.raises(AgnoscoError, match=r"does not run on images of shape \(12, 7, 7\)"):
        Classifier(Shuffling(), size=7)


class ChannelsLast(nn.Module):
    """A feature map as (N, h, w, D), as Swin has it."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Linear(3, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(x.permute(0, 2, 3, 1)).mean((1, 2))[:, :5]


def test_channels_last_maps_are_turned() -> None:
    model = ChannelsLast()
    pixels = torch.rand(2, 3, 6, 6)
    expected = torch.einsum("dc,nchw->ndhw", model.stage.weight.detach(), pixels)
    torch.testing.assert_close(Classifier(model, size=6).activations(pixels), expected)


@pytest.mark.parametrize("height", [4, 5, 7])
def test_proportions_tell_the_layouts_apart(height: int) -> None:
    # Both have a map of which two sides are 7, as only square grids did once.
    last = ChannelsLast()
    first = nn.Sequential(nn.Conv2d(3, height, 1), nn.Flatten(), nn.Linear(height * height * 9, 6))
    pixels = torch.rand(2, 3, height, 9)
    expected = torch.einsum("dc,nchw->ndhw", last.stage.weight.detach(), pixels)
    torch.testing.assert_close(Classifier(last, size=(height, 9)).activations(pixels), expected)
    torch.testing.assert_close(Classifier(first, size=(height, 9)).activations(pixels), first[0](pixels))


def test_maps_of_class_scores_are_no_features() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = Classifier(model, size=8)
    assert classifier.features == "1"  # the ReLU before the scores
    assert classifier.activations(torch.rand(1, 3, 8, 8)).shape == (1, 8, 6, 6)


def test_a_number_that_is_a_name_too_is_no_guess() -> None:
    classifier = Classifier(ChannelsLast(), size=6, labels=["1", "2", "3", "4", "0"])
    with pytest.raises(AgnoscoError, match="'1' is the index of '2' and the name of class 0"):
        classifier.index("1")
    assert classifier.index(1) == 1  # a number is an index
    classifier.labels = (" 1 ", "2", "3", "4", "0")
    with pytest.raises(AgnoscoError, match="the name of class 0"):
        classifier.index(" 1 ")


def test_a_number_that_is_no_index_may_be_a_name() -> None:
    classifier = Classifier(ChannelsLast(), size=6, labels=["1999", "-5", "3", "4", "12345678901"])
    assert [classifier.index(label) for label in classifier.labels if len(label) > 1] == [0, 1, 4]
    with pytest.raises(AgnoscoError, match="no class 1999"):
        classifier.index(1999)
    with pytest.raises(AgnoscoError, match="no class '999"):
        classifier.index("9" * 5000)  # more digits than Python reads


def test_models_of_other_precisions_are_fed_theirs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    pixels = torch.rand(2, 3, 8, 8)
    single = Classifier(model, size=8)(pixels)
    double = Classifier(model.double(), size=8)(pixels)
    assert double.dtype == torch.float32
    torch.testing.assert_close(double, single, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(Classifier(model.bfloat16(), size=8)(pixels), single, rtol=0.1, atol=0.05)


def test_features_by_name() -> None:
    classifier = small(features="conv")
    pixels = torch.rand(2, 3, 8, 8)
    assert classifier.features == "conv"
    with torch.no_grad():
        torch.testing.assert_close(classifier.activations(pixels), classifier.model.conv(pixels))  # pyright: ignore


def test_wrong_features_name_offers_the_nearest() -> None:
    with pytest.raises(AgnoscoError, match="no submodule 'nrom'") as caught:
        small(features="nrom")
    assert "'norm'" in caught.value.hint


@pytest.mark.parametrize(("name", "answer"), [("head", r"\(1, 6\)"), ("unused", "nothing")])
def test_features_that_are_no_map(name: str, answer: str) -> None:
    with pytest.raises(AgnoscoError, match=f"'{name}' of Small answers {answer}"):
        small(features=name).activations(torch.rand(1, 3, 8, 8))


def test_model_without_a_stage() -> None:
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), size=4)
    with pytest.raises(AgnoscoError, match="no stage whose output is a feature map"):
        _ = classifier.features


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # that it is deprecated
def test_torchscript_has_no_stage_and_no_layers_that_can_be_asked() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)))
    classifier = Classifier(scripted, size=8)
    with pytest.raises(AgnoscoError, match="no stage whose output is a feature map"):
        _ = classifier.features
    assert classifier.layers() == []
    with pytest.raises(AgnoscoError, match="has no submodule '0'"):
        Classifier(scripted, size=8, features="0")
    with pytest.raises(AgnoscoError, match="has no layer '0'"):
        Classifier(scripted, size=8, at="0")


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_stages_beside_torchscript_are_found() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.Flatten()), nn.Linear(144, 3))
    assert Classifier(model, size=8).features == "0"


# -- its classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "index"),
    [
        (2, 2),
        ("2", 2),
        (" 5 ", 5),
        ("tench", 0),
        ("TENCH", 0),
        ("tiger_shark", 2),
        ("Tiger Shark", 2),
        ("sea lion", 3),
        ("lion", 4),  # the whole name of one goes before a word of another
        ("great", 1),
        ("great white", 1),
        ("t-shirt", 5),
    ],
)
def test_index(label: int | str, index: int) -> None:
    assert small(labels=ANIMALS).index(label) == index


@pytest.mark.parametrize(
    ("label", "message", "hint"),
    [
        (6, "no class 6: Small has 6", "0 to 5"),
        (-1, "no class -1", "0 to 5"),
        ("99", "no class 99", "0 to 5"),
        ("--2", "no class '--2'", ""),
        ("²", "no class '²'", ""),
        ("shark", r"'shark' names several classes: 1 \(great white shark\), 2 \(tiger shark\)", "index"),
        ("tensh", "no class 'tensh'", "'tench'"),
        ("ench", "no class 'ench'", "'tench'"),
        ("tiger shar", "no class 'tiger shar'", "'tiger shark'"),
        ("xylophone", "no class 'xylophone'", "there are 6, such as 'tench'"),
        ("", "no class ''", "there are 6"),
    ],
)
def test_no_such_class(label: int | str, message: str, hint: str) -> None:
    with pytest.raises(AgnoscoError, match=message) as caught:
        small(labels=ANIMALS).index(label)
    assert hint in caught.value.hint


# -- which one it is ---------------------------------------------------------------------------------


def test_fingerprint_is_that_of_the_function() -> None:
    model = Small()
    mean, std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    fingerprint = Classifier(model, size=8, mean=mean, std=std).fingerprint
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last).eval()  # pyright: ignore
    assert Classifier(twin, size=8, mean=mean, std=std, name="twin").fingerprint == fingerprint
    assert Classifier(model, size=8, mean=(0.5, 0.5, 0.501), std=std).fingerprint != fingerprint
    assert Classifier(model, size=8, mean=mean, std=(0.2, 0.2, 0.201)).fingerprint != fingerprint


@pytest.mark.parametrize("which", ["conv.weight", "norm.running_var", "norm.num_batches_tracked"])
def test_fingerprint_sees_one_bit(which: str) -> None:
    classifier = small()
    before = classifier.fingerprint
    tensor = classifier.model.state_dict()[which]
    bits = tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int64).flatten()
    bits[0] ^= 1
    assert classifier.fingerprint != before
    bits[0] ^= 1
    assert classifier.fingerprint == before


def test_fingerprint_sees_buffers_that_are_not_saved() -> None:
    prints = set()
    for value in (1.0, 2.0):
        model = Answering(channel_means)
        model.register_buffer("scale", torch.tensor([value]), persistent=False)
        prints.add(Classifier(model, size=4).fingerprint)
    assert len(prints) == 2
