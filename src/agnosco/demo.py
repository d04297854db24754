"""The demo: a small network learns real handwritten digits, and its ten classes are pictured.

Everything is at hand offline: the digits are scikit-learn's (1797 of 8×8 pixels; Alpaydin and Kaynak,
UCI 1998). The network is trained so that it looks at whole digits: parts of them are erased, noise is
laid over them, and every image is moved against it a little (Goodfellow et al., ICLR 2015). What such a
network recognises, people read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .ball import L2
from .classifier import Classifier
from .console import Output
from .coordinates import Data
from .cycle import Config
from .errors import AgnoscoError
from .mapper import MapperConfig
from .samples import Samples
from .store import HELD_OUT, SHEET, SPLIT_SEED, Run, check_target
from .views import Crops

SIDE, DIGIT = 32, 24
"""Pixels of an image, and of the digit in its middle."""

SHAPE = (1, SIDE, SIDE)
EPOCHS, BATCH, RATE = 25, 64, 5e-3
SHIFT, HOLE, NOISE, AGAINST = 3, 10, 0.8, 0.6
"""Training: greatest shift and side of the erased square in pixels, greatest deviation of the noise, L2 norm of the
step against the network."""

ENOUGH = 0.97
"""Held-out accuracy below which the demo would show a network that has not learned its task."""

CONFIG = Config(
    MapperConfig(
        batch=16,
        steps=60,
        step=0.1,
        decay=1.0,
        direction="plus",
        clip="masked",
        contrast=(0.0, 1.0),
        coordinates=Data(),
        views=Crops(area=(0.6, 1.0), flip=False, noise=0.3),  # a mirrored digit is none
        ball=L2(97.0),  # white on black: the paper's radius is too small for such contrast
    ),
    refine=None,
    cycles=1,
)


def run(out: str | Path, output: Output) -> Run:
    """Train, map, and say what to look at.

    Args:
        out: The run folder; the network's weights go into it too.
        output: Where words go.

    Raises:
        AgnoscoError: scikit-learn is missing, the network has not learned, or the folder cannot be written.
    """
    check_target(out)
    samples, targets = digits()
    (learned, names), (unseen, answers) = zip(split(samples), _split(targets), strict=True)
    output.say(f"Training a small network on {len(learned)} handwritten digits")
    with output.bar() as show:
        network = train(
            learned.images, names, on_epoch=lambda done: show("training", f"epoch {done}/{EPOCHS}", done, EPOCHS)
        )
    accuracy = accuracy_of(network, unseen.images, answers)
    output.say(f"It recognises {accuracy:.1%} of {len(unseen)} that it has never seen")
    if accuracy < ENOUGH:
        raise AgnoscoError(f"{accuracy:.1%} is less than the {ENOUGH:.0%} that the demo asks for", "please report this")
    classifier = Classifier(network, size=SIDE, channels=1, name="digits-cnn")
    run = Run.create(out, classifier=classifier, samples=samples, config=CONFIG, command="demo", weights=WEIGHTS)
    finished = output.make(run, classifier, samples, range(10))
    run.write(WEIGHTS, safetensors.torch.save(network.state_dict()))
    moved = statistics.mean(one.entry["nudge_success"] for one in finished)
    output.say(
        "You should read ten digits there: white is ink that the network looks for, black is where it wants none. "
        f"Laid over digits that it has never seen, such a pattern turns {moved:.0%} of them into its own class"
    )
    return run


def digits() -> tuple[Samples, Tensor]:
    """Real handwritten digits, white on black, ``(1797, 1, 32, 32)``, and which they are, ``(1797,)``.

    Raises:
        AgnoscoError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise AgnoscoError(
            "the demo's handwritten digits come with scikit-learn, which is missing", "pip install agnosco[demo]"
        ) from error
    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] / 16
    large = F.interpolate(small, size=(DIGIT, DIGIT), mode="bilinear", align_corners=False)
    images = F.pad(large, [(SIDE - DIGIT) // 2] * 4)
    return Samples.from_array(images, source="digits-sklearn"), torch.from_numpy(bunch.target)


def digit_network(width: int = 16) -> nn.Sequential:
    """Three convolutions, each halving the image, and a linear layer; untrained, always the same."""

    def halving(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.AvgPool2d(2)]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *halving(1, width, 5),
            *halving(width, 2 * width, 3),
            *halving(2 * width, 4 * width, 3),
            nn.Flatten(),
            nn.Linear(4 * width * (SIDE // 8) ** 2, 10),
        )


def train(
    images: Tensor, targets: Tensor, *, epochs: int = EPOCHS, on_epoch: Callable[[int], None] | None = None
) -> nn.Module:
    """A network that knows digits, the same on every call.

    Args:
        images: ``(N, 1, 32, 32)`` uint8.
        targets: ``(N,)``, 0 to 9.
        epochs: How often every image is seen.
        on_epoch: Called with the number of epochs done.
    """
    generator = torch.Generator().manual_seed(0)
    network = digit_network()
    adam = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, total_steps=epochs * math.ceil(len(images) / BATCH))
    for epoch in range(1, epochs + 1):
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH):
            seen = varied(images[chosen].float() / 255, generator)
            loss = F.cross_entropy(network(pushed(network, seen, targets[chosen])), targets[chosen])
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
        if on_epoch:
            on_epoch(epoch)
    return network.eval()


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted by up to ``SHIFT`` pixels, each with a square erased and some noise on it."""
    shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    corner = torch.rand(2, len(images), 1, 1, 1, generator=generator) * (SIDE - HOLE)
    down = torch.arange(SIDE).view(-1, 1) - corner[0]
    right = torch.arange(SIDE) - corner[1]
    hole = (down >= 0) & (down < HOLE) & (right >= 0) & (right < HOLE)
    noise = NOISE * torch.rand(len(images), 1, 1, 1, generator=generator)
    return images.roll(shift, (2, 3)) * ~hole + noise * torch.randn(images.shape, generator=generator)


def pushed(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Images moved by ``PUSH`` in the direction that makes the network's loss grow fastest."""
    images = images.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(images), targets), images)
    return (images + PUSH * F.normalize(gradient.flatten(1)).view_as(images)).detach()


def accuracy_of(network: nn.Module, images: Tensor, targets: Tensor) -> float:
    """Share of uint8 images that are given their own class."""
    with torch.no_grad():
        return (network(images.float() / 255).argmax(1) == targets).double().mean().item()


def _split(targets: Tensor) -> list[Tensor]:
    """Targets, split as the images are."""
    parts = split(Samples(targets.view(-1, 1, 1, 1).to(torch.uint8), source="targets"))
    return [part.images.flatten().long() for part in parts]
