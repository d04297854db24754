"""Feature maps: what the convolutional or token stages of a network answer, and which stage is the last."""

from collections.abc import Callable
from contextlib import ExitStack
from math import isqrt

from torch import Tensor, nn

from ..types import Shape
from .hooks import of_this_thread, submodule_names

RESAMPLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d, nn.Identity)
"""Layers that are no stage, although their output may be a feature map."""

ROUNDING = 0.02
"""By how much shares may miss their sum of 1, in half precision."""

MOST_STRETCHED = 2.0
"""How far the proportions of a stage may be from the image's: heads of tokens, for one, are further."""


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
        counts = range(output.shape[1], max(output.shape[1] - 6, 0), -1)
        for grid_of in (_proportional_grid, _patch_grid):
            for tokens in counts:
                if (grid := grid_of(tokens, height, width)) is not None:
                    return output[:, -tokens:].transpose(1, 2).unflatten(2, grid)
    return None


def attends(output: Tensor) -> bool:
    """Whether a module answers how much tokens attend to each other: rows ``(N, heads, T, T)`` that sum to 1."""
    if output.ndim != 4 or output.shape[3] < 2:
        return False
    rows = output.float().sum(3)
    return bool((output >= 0).all() and ((rows - 1).abs() < ROUNDING).all())


def _proportional_grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns that have exactly the proportions of an image."""
    h = isqrt(tokens * height // width)
    return (h, tokens // h) if h > 1 and tokens % h == 0 and tokens // h * height == h * width else None


def _patch_grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of square patches of an image, the last of which are cut off or filled up."""
    for side in range(1, min(height, width)):
        for h, w in ((height // side, width // side), (-(-height // side), -(-width // side))):
            if h * w == tokens and min(h, w) > 1:
                return h, w
    return None


def _stretch(ratio: float, other: float) -> float:
    """How far two proportions are apart, as a factor of at least 1."""
    return max(ratio / other, other / ratio)


def last_stage(model: nn.Module, image: Shape, classes: int | None, run: Callable[[], object]) -> str | None:
    """Name of the last module to answer with a feature map that is neither class scores nor pooled; None without one.

    ``image`` is the shape ``(C, H, W)`` of the input; ``run`` sends one through the network.
    """
    names = submodule_names(model)

    def fits(h: int, w: int) -> bool:
        return _stretch(h / w, image[1] / image[2]) <= MOST_STRETCHED

    stages: list[str] = []

    @of_this_thread
    def note(module: nn.Module, _inputs: object, output: object) -> None:
        if not isinstance(output, Tensor) or isinstance(module, RESAMPLING) or attends(output):
            return
        grid = feature_map(output, image)
        if grid is not None and grid.shape[1] != classes and fits(grid.shape[2], grid.shape[3]):
            stages.append(names[module])

    with ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(note))
        run()
    return stages[-1] if stages else None
