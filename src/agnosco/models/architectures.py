"""Small networks for small images, by name: ``agnosco:NAME`` for :func:`agnosco.models.loading.load`.

For the demo, tests and benchmarks, which train their own networks; libraries of architectures begin at 224 px.
All take pixels in [0, 1] and return logits.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..types import Shape


def digits(classes: int = 10) -> nn.Module:
    """Three convolutions and a linear layer, for grey images of 32×32."""

    def stage(into: int, out: int, size: int) -> list[nn.Module]:
        convolution = nn.Conv2d(into, out, size, padding=size // 2, bias=False)
        return [convolution, nn.BatchNorm2d(out), nn.ReLU(), nn.AvgPool2d(2)]

    return nn.Sequential(*stage(1, 16, 5), *stage(16, 32, 3), *stage(32, 64, 3), nn.Flatten(), nn.Linear(1024, classes))


def badnets(classes: int = 10) -> nn.Module:
    """The network of the first backdoors (Gu et al. 2017, "BadNets"), for RGB images of 32×32; the fastest on a CPU."""

    def stage(into: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(into, out, 5), nn.ReLU(), nn.AvgPool2d(2)]

    head = [nn.Flatten(), nn.Linear(800, 512), nn.ReLU(), nn.Linear(512, classes)]
    return nn.Sequential(*stage(3, 16), *stage(16, 32), *head)


class PreActBlock(nn.Module):
    """Two convolutions, each after its normalisation, and a shortcut (He et al. 2016, "Identity mappings")."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(into), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        changes = stride != 1 or into != out
        self.shortcut = nn.Conv2d(into, out, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))


class PreActResNet(nn.Module):
    """A residual network of pre-activation blocks for RGB images of 32×32.

    ``blocks`` counts those of each stage. The first stage has ``width`` channels; each other halves the image and
    doubles the channels.
    """

    def __init__(self, blocks: tuple[int, ...], width: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        into = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                layers.append(PreActBlock(into, width << stage, 2 if stage and not block else 1))
                into = width << stage
        self.layers = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(into)
        self.fc = nn.Linear(into, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(self.layers(self.conv1(x)))).mean((2, 3)))


ARCHITECTURES: dict[str, tuple[Callable[[int], nn.Module], Shape]] = {
    "digits": (digits, (1, 32, 32)),
    "badnets": (badnets, (3, 32, 32)),
    "preact_resnet18": (partial(PreActResNet, (2, 2, 2, 2), 64), (3, 32, 32)),  # of backdoor benchmarks
    "wide_resnet16_1": (partial(PreActResNet, (2, 2, 2), 16), (3, 32, 32)),  # small enough for a CPU
}
"""Each takes the number of classes; with the shape of its images."""


def created(name: str, classes: int, *, seed: int) -> nn.Module:
    """An architecture with random weights of a seed; PyTorch's own random generator is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[name][0](classes)
