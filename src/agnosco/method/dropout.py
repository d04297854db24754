"""Gaussian dropout on channels: what is seen by the networks near a network.

Every channel of every convolution is scaled by a random gain about 1, anew for each image (Srivastava et al. 2014,
section 10; as *ghost networks*, Li et al. 2020 use dropout to find perturbations that other networks share). A map
that has to serve all of these networks leaves out what only the exact weights answer to. Nothing comes from outside
the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Gains = dict[nn.Module, Tensor]
"""For each layer, what its channels are multiplied by: ``(N, channels)``, a row for each image."""


def draw_gains(model: nn.Module, deviation: float, count: int, classes: int, generator: torch.Generator) -> Gains:
    """Random gains of all convolutions and linear layers but the class scores of a network.

    Args:
        model: The network.
        deviation: Standard deviation of a gain; the mean is 1. 0 draws nothing.
        count: N, images.
        classes: Outputs of the network; layers of so many are the class scores, and stay as they are.
        generator: A CPU generator, so that the gains are the same on every device.
    """
    if not deviation:
        return {}
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    widths = {layer: layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features for layer in layers}
    widths = {layer: width for layer, width in widths.items() if width != classes}
    drawn = 1 + deviation * torch.randn(count, sum(widths.values()), generator=generator)
    return dict(zip(widths, drawn.split(list(widths.values()), dim=1), strict=True))


@contextmanager
def scaled_channels(gains: Gains) -> Iterator[None]:
    """Inside, every layer's output is multiplied by its gains; the network is given back as it was.

    Layers whose output is not one row for each image (the windows of a Swin transformer) stay as they are.
    """

    def scale(module: nn.Module, _: object, output: Tensor) -> Tensor:
        gain = gains[module].to(output)
        if len(output) != len(gain):
            return output
        last = isinstance(module, nn.Linear)  # channels are the last axis of a linear layer, the second of others
        shape = (len(gain), *[1] * (output.ndim - 2), -1) if last else (len(gain), -1, *[1] * (output.ndim - 2))
        return output * gain.view(shape)

    hooks = [module.register_forward_hook(scale) for module in gains]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
