"""Feature maps: what the convolutional or token stages of a network answer, and which stage is the last."""

from collections.abc import Callable
from contextlib import ExitStack
from math import isqrt

from torch import Tensor, nn

from ..types import Shape

RESAMPLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d, nn.Identity)
"""Layers that are no stage, although their output may be a feature map."""


def feature_map(output: object, image: Shape) -> Tensor | None:
    """A feature map ``(N, D, h, w)`` from a module's output, or None if the output is none.

    A feature map has the proportions of the image ``(C, H, W)``. They tell channels-last maps (Swin) from others, and
    how tokens are laid out, after up to 5 extra ones.
    """
    if not isinstance(output, Tensor):
        return None
    _, height, width = image
    if output.ndim == 4:
        _, a, b, c = output.shape
        channels_last = min(a, b) > 1 and _stretch(a / b, height / width) < _stretch(b / c, height / width)
        grid = output.permute(0, 3, 1, 2) if channels_last else output
        return grid if min(grid.shape[2:]) > 1 else None
    if output.ndim == 3:
        for tokens in range(output.shape[1], output.shape[1] - 6, -1):
            h = isqrt(tokens * height // width) if tokens > 0 else 0
            if h > 1 and tokens % h == 0 and tokens // h * height == h * width:
                return output[:, -tokens:].transpose(1, 2).unflatten(2, (h, tokens // h))
    return None


def _stretch(ratio: float, other: float) -> float:
    """How far two proportions are apart, as a factor of at least 1."""
    return max(ratio / other, other / ratio)


def last_stage(model: nn.Module, image: Shape, classes: int | None, run: Callable[[], object]) -> str | None:
    """Name of the last module to answer with a feature map that is neither class scores nor pooled; None without one.

    ``image`` is the shape ``(C, H, W)`` of the input; ``run`` sends one through the network.
    """
    names = {module: name for name, module in model.named_modules() if name}
    stages: list[str] = []

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        grid = None if isinstance(module, RESAMPLING) else feature_map(output, image)
        if grid is not None and grid.shape[1] != classes:
            stages.append(names[module])

    with ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(note))
        run()
    return stages[-1] if stages else None
