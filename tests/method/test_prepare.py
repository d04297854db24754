"""A prepared network answers as the one it was made from, and that one is left alone."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agnosco.errors import AgnoscoError
from agnosco.method import prepare
from agnosco.method.folding import folded
from agnosco.method.prepare import activation_bytes, compiled, images_at_once, prepared, resolve_precision
from agnosco.models.classifier import Classifier

CPU = torch.device("cpu")


class Residual(nn.Module):
    """Convolutions with batch norms of their own statistics, one of which follows a sum and cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.second_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.last_norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        generator = torch.Generator().manual_seed(0)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_var is not None
                assert module.running_mean is not None
                for tensor in (module.weight.data, module.running_var):
                    tensor.copy_(0.5 + torch.rand(8, generator=generator))
                for tensor in (module.bias.data, module.running_mean):
                    tensor.copy_(torch.randn(8, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        one = self.first_norm(self.first(images)).relu()
        two = self.second_norm(self.second(one))
        return self.head(self.last_norm(one + two).relu().mean((2, 3)))


class Branching(Residual):
    """Asks its input, which tracers of code cannot follow."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.mean() > -100 else -images)


class Fickle(Residual):
    """Answers otherwise each time, so that nobody can tell whether a copy answers alike."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images) * self.calls


class Weighing(Residual):
    """Reads a weight that folding changes, elsewhere too."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.first.weight.norm()


class Skipping(Residual):
    """Its first answer is read twice, and its second normalisation is used twice; only the third pair is alone."""

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Conv2d(8, 8, 1)

    def forward(self, images: Tensor) -> Tensor:
        raw = self.first(images)
        two = self.second_norm(self.second(self.first_norm(raw) + raw))
        return self.head(self.last_norm(self.third(self.second_norm(two))).mean((2, 3)))


class Active(nn.BatchNorm2d):
    """A normalisation with an activation, as timm has them."""

    def __init__(self) -> None:
        super().__init__(8)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


class Padding(nn.Conv2d):
    """A convolution that pads by itself, as TensorFlow's do."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (0, 1, 0, 1)))


class Standardizing(nn.Conv2d):
    """A convolution whose weights are scaled in each pass, which undoes what folding does to them."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight / self.weight.std(), self.bias)


def norms(classifier: Classifier) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in classifier.model.modules())


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_batch_norms_are_folded_where_a_convolution_precedes_them() -> None:
    classifier = Classifier(Residual(), size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    faster = prepared(classifier)
    assert (norms(classifier), norms(faster)) == (3, 1)
    torch.testing.assert_close(faster(images()), classifier(images()), rtol=1e-4, atol=1e-5)
    assert (faster.shape, faster.labels, faster.classes) == (classifier.shape, classifier.labels, 5)


def test_gradients_are_those_of_the_network() -> None:
    classifier = Classifier(Residual(), size=16)
    slopes = []
    for network in (classifier, prepared(classifier)):
        pixels = images().requires_grad_()
        slopes.append(torch.autograd.grad(network(pixels)[:, 2].sum(), pixels)[0])
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-6)


def test_the_network_is_left_as_it_was() -> None:
    model = Residual().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared(Classifier(model, size=16), precision="bfloat16")
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_another_thread_sends_through_the_network_meanwhile_does_not_hinder_folding() -> None:
    classifier = Classifier(Residual(), size=16)

    def both() -> None:
        classifier(images())
        with ThreadPoolExecutor(1) as pool:
            pool.submit(classifier, images()).result()

    with classifier.frozen(), torch.no_grad():
        assert folded(classifier.model, both) is not classifier.model


def test_a_network_with_conditions_is_folded() -> None:
    classifier = Classifier(Branching(), size=16)
    assert norms(prepared(classifier)) == 1


@pytest.mark.parametrize("kind", [Fickle, Weighing])
def test_a_network_that_would_answer_otherwise_stays_as_it_is(kind: type[nn.Module]) -> None:
    classifier = Classifier(kind(), size=16)
    assert prepared(classifier).model is classifier.model


def test_what_others_read_too_is_not_folded() -> None:
    faster = prepared(Classifier(Skipping(), size=16)).model
    kept = [name for name, module in faster.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert kept == ["first_norm", "second_norm"]


@pytest.mark.parametrize(
    ("kind", "left"), [(nn.Conv2d, [nn.Sequential]), (Padding, [nn.Sequential]), (Standardizing, [Active])]
)
def test_layers_of_other_classes_are_folded_if_that_gives_the_same(
    kind: type[nn.Conv2d], left: list[type[nn.Module]]
) -> None:
    network = Residual()
    network.first, activated = kind(3, 8, 3, padding=1), Active()
    activated.load_state_dict(network.first_norm.state_dict())
    network.first_norm = activated
    network.last_norm = nn.Identity()  # type: ignore[assignment]
    classifier = Classifier(network, size=16)
    faster = prepared(classifier)
    assert [type(faster.model.get_submodule("first_norm"))] == left
    torch.testing.assert_close(faster(images()), classifier(images()), rtol=1e-4, atol=1e-5)


def test_a_linear_layer_takes_up_its_normalisation() -> None:
    norm = nn.BatchNorm1d(5)
    assert norm.running_mean is not None
    norm.running_mean.uniform_(-1, 1)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(768, 5), norm), size=16)
    faster = prepared(classifier)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in faster.model.modules())
    torch.testing.assert_close(faster(images()), classifier(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("at", "left"), [("first", 3), ("first_norm", 2), ("second_norm", 1)])
def test_a_network_is_folded_up_to_the_layer_that_is_asked(at: str, left: int) -> None:
    classifier = Classifier(Residual(), size=16, at=at)
    faster = prepared(classifier)
    assert norms(faster) == left
    torch.testing.assert_close(faster(images()), classifier(images()), rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_and_coarser() -> None:
    classifier = Classifier(Residual(), size=16)
    exact, halved = classifier(images(64)), prepared(classifier, precision="bfloat16")(images(64))
    assert halved.dtype == torch.float32
    difference = ((halved - exact).abs().max() / exact.abs().max()).item()
    assert 1e-5 < difference < 0.03  # 8 bits of mantissa


@pytest.mark.parametrize(
    ("extra", "auto"), [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({}, "float32")]
)
def test_auto_is_bfloat16_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, extra: dict[str, bool], auto: str
) -> None:
    has = {"avx2": True, "avx512_bf16": False} | extra
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert resolve_precision("auto", CPU) == auto
    assert resolve_precision("float32", CPU) == "float32"
    assert resolve_precision("bfloat16", CPU) == "bfloat16"


def test_an_older_torch_that_cannot_say_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_precision("auto", CPU) == "float32"


def test_bfloat16_weights_are_stored_once_and_are_no_activations() -> None:
    wide = nn.Sequential(nn.Conv2d(3, 64, 8, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))  # few activations
    classifier = Classifier(wide, size=16)
    halved = prepared(classifier, precision="bfloat16")
    assert {tensor.dtype for tensor in halved.model.parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in wide.parameters()} == {torch.float32}
    assert activation_bytes(halved) < activation_bytes(classifier)
    exact = prepared(classifier)
    with torch.autocast("cpu", torch.bfloat16):
        expected = wide(classifier_input := images())
    found = halved.model(classifier_input)
    assert found.dtype == expected.dtype == torch.bfloat16
    # The same weights, multiplied by whichever kernels the CPU has for them.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * expected.abs().max().item())
    assert exact.model is wide


@pytest.mark.parametrize("precision", [torch.float64, torch.float16])
def test_a_network_that_does_not_run_in_bfloat16_runs_as_it_is(precision: torch.dtype) -> None:
    classifier = Classifier(Residual().to(precision), size=16)
    halved, exact = prepared(classifier, precision="bfloat16"), prepared(classifier)
    assert torch.equal(halved(images()), exact(images()))


class Uncopyable(Residual):
    """Holds what cannot be copied."""

    def __deepcopy__(self, memo: object) -> Residual:
        raise TypeError("a handle")


def test_a_network_that_cannot_be_copied_runs_in_bfloat16_all_the_same() -> None:
    classifier = Classifier(Uncopyable(), size=16)
    halved = prepared(classifier, precision="bfloat16")
    assert {tensor.dtype for tensor in classifier.model.parameters()} == {torch.float32}
    difference = (halved(images()) - classifier(images())).abs().max()
    assert 0 < difference < 0.03 * classifier(images()).abs().max()


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("order", [(None, "first", "second_norm"), ("first:input", None, "first")])
def test_compiled_networks_answer_alike_one_after_the_other(order: Sequence[str | None], threads: bool) -> None:
    torch.compiler.reset()
    network = Residual()
    for at in order:  # PyTorch keeps what it has compiled, for classes without a hook
        classifier = Classifier(network, size=16, at=at)
        faster = compiled(classifier, backend="aot_eager")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(faster, images()).result() if threads else faster(images())
        torch.testing.assert_close(answer, classifier(images()), rtol=1e-4, atol=1e-5)


def test_folding_on_a_gpu_does_without_tf32_and_changes_no_other_flag_of_the_process() -> None:
    cudnn: Any = torch.backends.cudnn
    with cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
        with prepare._exactly(torch.device("cuda")):
            assert (cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32) == (True, True, False)
        assert (cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32) == (True, True, True)


def test_no_such_precision() -> None:
    with pytest.raises(AgnoscoError, match="no precision 'half'"):
        resolve_precision("half", CPU)


def test_counting_activation_bytes_leaves_nothing_behind() -> None:
    """A ReLU keeps its own result, so that a hook which keeps it too holds the graph for ever."""
    classifier = Classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5)), size=16)

    def alive() -> set[int]:
        gc.collect()
        return {id(thing) for thing in gc.get_objects() if type(thing) is Tensor}

    activation_bytes(classifier)
    before = alive()
    for _ in range(3):
        activation_bytes(classifier)
    assert alive() - before == set()  # what other tests left may go meanwhile


def test_activation_bytes_are_those_kept_for_the_backward_pass() -> None:
    # Conv and ReLU keep their outputs once between them, the flattened tail a view of it: 8 x 16 x 16 floats;
    # the convolution keeps its input, 3 x 16 x 16.
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 256, 4))
    found = activation_bytes(Classifier(model, size=16))
    assert found == pytest.approx(4 * (8 + 3) * 256, rel=0.35)


class NotDifferentiated(torch.autograd.Function):
    """As the layers of ``quantize_dynamic``: its answer has a gradient, which is none."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images + 1

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> None:
        return None


@pytest.mark.parametrize("cut", [Tensor.detach, torch.no_grad()(Tensor.abs), NotDifferentiated.apply])
def test_a_network_that_cuts_gradients_off_is_refused(cut: Callable[[Tensor], Tensor]) -> None:
    class Cutting(Residual):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(cut(images))

    with pytest.raises(AgnoscoError, match="no gradient of Cutting reaches the pixels"):
        activation_bytes(Classifier(Cutting(), size=16))


def test_images_at_once_fill_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(Residual(), size=16)
    monkeypatch.setattr(prepare, "CPU_BYTES", 10.5 * activation_bytes(classifier))
    assert images_at_once(classifier) == 10
    monkeypatch.setattr(prepare, "CPU_BYTES", 1)
    assert images_at_once(classifier) == 1
    monkeypatch.setattr(prepare, "CPU_BYTES", 2**60)
    assert images_at_once(classifier) == prepare.MOST_IMAGES


class OfLightImages(nn.Module):
    """One convolution whose answer goes to another normalisation where the images are light."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.light, self.dark = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 4)
        for norm in (self.light, self.dark):
            norm.running_mean = torch.randn(8)
            nn.init.normal_(norm.bias)

    def forward(self, images: Tensor) -> Tensor:
        norm = self.light if images.mean() > 0.3 else self.dark
        return self.last(norm(self.conv(images)).mean((2, 3)))


def test_a_condition_on_the_images_is_not_folded_away() -> None:
    classifier = Classifier(OfLightImages().eval(), size=16)
    fast = prepared(classifier)
    for images in (torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16) / 8):
        torch.testing.assert_close(fast(images), classifier(images), rtol=1e-4, atol=1e-5)
