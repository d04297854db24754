"""Batch normalisations folded into the layers before them: the same answers, with fewer passes over memory.

One pass of images shows which normalisation takes what a layer answers, and that nothing else reads that answer. No
code has to be followed, so networks with conditions fold like others, and so do networks up to a layer that is asked. A
condition on the images themselves may not show in one pass: whoever folds compares the answers to unlike images.
"""

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.hooks import of_this_thread

ALIKE = 1e-3
"""Greatest difference of answers that count as the same, as a share of the greatest answer."""


def folded(model: nn.Module, run: Callable[[], object]) -> nn.Module:
    """A copy of a network in which normalisations are folded; the network itself if none can be.

    Args:
        model: The network, in evaluation mode and without gradients.
        run: Sends images through it.
    """
    watch = _Watch()
    after_layer, after_norm = of_this_thread(watch.after_layer), of_this_thread(watch.after_norm)
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                hooks.enter_context(module.register_forward_hook(after_layer))
            elif isinstance(module, _BatchNorm) and module.running_mean is not None:
                hooks.enter_context(module.register_forward_hook(after_norm))
        with watch:
            run()
    stand_ins = {id(module): copy.deepcopy(stand_in) for module, stand_in in watch.stand_ins().items()}
    return copy.deepcopy(model, stand_ins) if stand_ins else model  # a copy's memo: in its place wherever it is held


def alike(answer: Tensor, expected: Tensor) -> bool:
    """Whether two answers are the same but for rounding; NaN is like nothing."""
    same_shape = answer.shape == expected.shape
    return same_shape and bool((answer - expected).abs().max() <= ALIKE * expected.abs().max())


@dataclass(eq=False)
class _Answer:
    """What a layer answers to an input. It is kept, so that no other tensor takes its place in memory."""

    layer: nn.Module
    input: Tensor
    output: Tensor
    reads: int = 0


class _Watch(TorchDispatchMode):
    """Inside, counts the operations that read what layers answer, and tries layer and normalisation as one."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[int, _Answer] = {}
        self.calls: Counter[nn.Module] = Counter()
        self.pairs: list[tuple[_Answer, nn.Module, nn.Module, nn.Module]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for place in {_place(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}:
            if place in self.answers:
                self.answers[place].reads += 1
        return func(*args, **(kwargs or {}))

    def after_layer(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.calls[layer] += 1
        if isinstance(output, Tensor) and len(inputs) == 1:
            self.answers[_place(output)] = _Answer(layer, inputs[0], output)

    def after_norm(self, norm: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.calls[norm] += 1
        answer = self.answers.get(_place(inputs[0])) if inputs else None
        if answer is not None and answer.output is inputs[0]:
            layer, rest = _with_norm(answer.layer, norm), _rest(norm)
            if alike(rest(layer.forward(answer.input)), output):
                self.pairs.append((answer, norm, layer, rest))

    def stand_ins(self) -> dict[nn.Module, nn.Module]:
        """What takes the place of layers and normalisations that belong together, and to nothing else."""
        found: dict[nn.Module, nn.Module] = {}
        for answer, norm, layer, rest in self.pairs:
            if answer.reads == self.calls[answer.layer] == self.calls[norm] == 1:
                found |= {answer.layer: layer, norm: rest}
        return found


def _place(tensor: Tensor) -> int:
    """Where the numbers of a tensor are; views of it are in the same place."""
    return tensor.untyped_storage().data_ptr()


def _with_norm(layer: Any, norm: Any) -> nn.Module:
    """A layer that answers what a normalisation makes of its answer; of whatever class it is, its weights are read."""
    layer = copy.copy(layer)
    mean, variance = norm.running_mean, norm.running_var
    weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, mean, variance, norm.eps, norm.weight, norm.bias)
    layer._parameters = layer._parameters | {"weight": weight, "bias": bias}
    return layer


def _rest(norm: nn.Module) -> nn.Module:
    """What a normalisation does besides: timm's have an activation, and drop blocks in training."""
    return nn.Sequential(*norm.children()) if type(norm).forward is not _BatchNorm.forward else nn.Identity()
