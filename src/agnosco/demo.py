"""The demo: a small network learns real handwritten digits, and its ten classes are pictured.

Everything is at hand offline: the digits are scikit-learn's (1797 of 8×8 pixels; Alpaydin and Kaynak,
UCI 1998). The network is trained so that it looks at whole digits: parts of them are erased, noise is
laid over them, and every image is moved against it a little (Goodfellow et al., ICLR 2015). What such a
network recognises, people read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
from .store import HELD_OUT, SPLIT_SEED, Run, check_target
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
        batch=4,
        steps=240,
        step=0.1,
        decay=1.0,
        direction="plus",
        clip="masked",
        contrast=(0.0, 1.0),
        coordinates=Data(),
        views=Crops(area=(0.8, 1.0), flip=False, noise=0.3),  # a mirrored digit is none
        ball=L2(97.0),  # white on black: the paper's radius is too small for such contrast
    ),
    refine=None,
    cycles=1,
)


def run(out: Path, output: Output) -> Run:
    """Train, map and say what to look at.

    Args:
        out: The run folder to write.
        output: Where progress goes.

    Raises:
        AgnoscoError: scikit-learn is missing, the folder cannot be written, or training failed.
    """
    check_target(out)
    samples, labels = digits()
    with output.bar() as show:
        model, accuracy = train(
            samples, labels, on_epoch=lambda done: show("training on handwritten digits", "", done, EPOCHS)
        )
    output.say(f"A small network read {accuracy:.1%} of {round(HELD_OUT * len(samples))} held-out digits correctly.")
    if accuracy < ENOUGH:
        raise AgnoscoError(
            f"the network reads only {accuracy:.1%} of the digits", "please report this: it should not happen"
        )
    classifier = Classifier(model, size=SIDE, labels=[f"digit {i}" for i in range(10)], name="demo digits network")
    made = Run.create(out, classifier=classifier, samples=samples, config=CONFIG, command="demo")
    output.make(made, classifier, samples, range(10))
    made.write_tensors("network.safetensors", model.state_dict())
    output.say(
        "Each tile is what the network looks for in one digit, drawn without looking at any one image. "
        "Bright is ink, dark is where ink must not be; you should be able to read 0 to 9; 5 is the hardest."
    )
    return made


def digits() -> tuple[Samples, Tensor]:
    """scikit-learn's handwritten digits, white on black, and the digit that each is.

    Raises:
        AgnoscoError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise AgnoscoError(
            "the demo's digits come with scikit-learn, which is missing",
            "pip install '.[demo]' in the clone of agnosco",
        ) from error
    data: Any = load_digits()
    images = torch.from_numpy(np.asarray(data["images"])).float()[:, None] / 16
    large = F.interpolate(images, size=(DIGIT, DIGIT), mode="bilinear", align_corners=False)
    framed = F.pad(large, [(SIDE - DIGIT) // 2] * 4)
    return Samples.from_array(framed, source="scikit-learn digits"), torch.from_numpy(np.asarray(data["target"]))


def network() -> nn.Module:
    """Three convolutions and a linear layer, for grey images of 32×32."""

    def stage(into: int, out: int, size: int) -> list[nn.Module]:
        convolution = nn.Conv2d(into, out, size, padding=size // 2, bias=False)
        return [convolution, nn.BatchNorm2d(out), nn.ReLU(), nn.AvgPool2d(2)]

    return nn.Sequential(*stage(1, 16, 5), *stage(16, 32, 3), *stage(32, 64, 3), nn.Flatten(), nn.Linear(1024, 10))


def train(
    samples: Samples, labels: Tensor, *, seed: int = 1, on_epoch: Callable[[int], None] | None = None
) -> tuple[nn.Module, float]:
    """A network that reads the digits, and its accuracy on those that maps are judged by, which it never saw.

    Args:
        samples: All digits.
        labels: The digit that each is, ``(N,)``.
        seed: Of weights and augmentation.
        on_epoch: Called with the number of epochs done.
    """
    kept, held_out = samples.split_indices(HELD_OUT, seed=SPLIT_SEED)
    images = samples.images.float() / 255
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # the caller's own chance stays as it is
        torch.manual_seed(seed)
        model = network()
    steps = EPOCHS * -(-len(kept) // BATCH)
    adam = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        for part in kept[torch.randperm(len(kept), generator=generator)].split(BATCH):
            seen = moved_against(model, augmented(images[part], generator), labels[part])
            adam.zero_grad()
            F.cross_entropy(model(seen), labels[part]).backward()
            adam.step()
            schedule.step()
        if on_epoch is not None:
            on_epoch(epoch + 1)
    model.eval()
    with torch.no_grad():
        accuracy = (model(images[held_out]).argmax(1) == labels[held_out]).double().mean().item()
    return model, accuracy


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted together, each with a square erased and noise laid over it."""
    shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    images = torch.roll(images, shift, (2, 3))
    top, left = torch.rand(2, len(images), 1, 1, 1, generator=generator) * (SIDE - HOLE)
    rows, columns = torch.arange(SIDE).view(-1, 1) - top, torch.arange(SIDE) - left
    hole = (rows >= 0) & (rows < HOLE) & (columns >= 0) & (columns < HOLE)
    noise = torch.rand(len(images), 1, 1, 1, generator=generator) * torch.randn(images.shape, generator=generator)
    return images * ~hole + NOISE * noise


def moved_against(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Images after one step up the loss, of a fixed L2 norm."""
    images = images.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels), images)
    return (images + AGAINST * F.normalize(gradient.flatten(1), dim=1).view_as(images)).detach()
