"""Other methods, to compare agnosco with: Horama, and pixels in the manner of DeepInversion.

benchmarks/frontier.py measures them beside agnosco, and benchmarks/blind_naming.py has their pictures named.

- Horama 0.3.0, ``fourier`` and ``maco``. The spectrum of ``maco`` is averaged from the same photographs that agnosco
  uses: its own has to be downloaded.
- Optimization of pixels in the manner of DeepInversion (Yin et al. 2020): Adam, jitter, flips, total variation and L2.
  It lacks DeepInversion's prior on batch-norm statistics, because the networks here have folded batch norms.

Horama 0.3.0 draws the side of a crop between the larger value of ``box_size`` and that plus their difference. So (0.2,
0.25), its default, shows 0.25 to 0.30 of the picture's side, (0.1, 0.5) 0.5 to 0.9, and (0.5, 0.9) 0.9 to 1.3, beyond
its borders.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agnosco import Classifier, Data, Samples
from agnosco.method.parameterization import FourierBasis

CROPS_PER_STEP = 6  # Horama's default
PIXELS_PER_STEP = 8
BOX = (0.5, 0.9)
"""Horama's best crops at 112 px, of those of the rows below; it was chosen there on the ten classes of most figures."""

Method = Callable[[int, int], Tensor]
"""Takes class and seed; returns a picture ``(C, H, W)`` in [0, 1]."""


@dataclass(frozen=True)
class Peer:
    """A method and its settings.

    Args:
        kind: ``fourier`` or ``maco`` of Horama, or ``pixels``.
        box: Horama's crops.
        size: Side of Horama's image in pixels; None for the network's.
        tv: Weight of the total variation of ``pixels``.
    """

    kind: str
    box: tuple[float, float] = BOX
    size: int | None = None
    tv: float = 10.0

    def method(self, network: Classifier, spectrum: Path, passes: int) -> Method:
        """How its pictures are made in a number of passes; ``spectrum`` is the folder of :func:`save_spectrum`."""
        if self.kind == "pixels":
            return partial(deep_inversion, network, self.tv, PIXELS_PER_STEP, passes // PIXELS_PER_STEP)
        folder = spectrum if self.kind == "maco" else None
        return partial(horama, network, folder, self.size or network.shape[1], self.box, passes // CROPS_PER_STEP)


def others() -> Iterator[tuple[str, Peer]]:
    """Names and settings of the methods, beside Horama's best crops."""
    for kind in ("fourier", "maco"):
        yield f"Horama {kind}, box_size (0.1, 0.5)", Peer(kind, (0.1, 0.5))
    yield "Horama fourier, 448 px", Peer("fourier", size=448)
    yield "Horama fourier, its defaults: 1280 px, box_size (0.2, 0.25)", Peer("fourier", (0.2, 0.25), 1280)
    for tv in (10.0, 100.0):
        yield f"DeepInversion-style pixels, tv {tv:g}", Peer("pixels", tv=tv)


def horama(
    network: Classifier, spectrum: Path | None, size: int, box: tuple[float, float], steps: int, label: int, seed: int
) -> Tensor:
    """A picture by Horama: ``maco`` if given a folder with a spectrum, else ``fourier``."""
    from horama import fourier, maco

    torch.manual_seed(seed * 1000 + label)
    side = network.shape[1]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.mean, network.std))

    def objective(images: Tensor) -> Tensor:  # Horama's images are normalized already
        return network.model(images)[:, label].mean()

    options = {
        "total_steps": steps, "image_size": size, "model_input_size": side, "box_size": box,
        "crops_per_iteration": CROPS_PER_STEP, "device": "cpu",
    }  # fmt: skip
    with network.frozen(), contextlib.redirect_stderr(io.StringIO()):
        if spectrum is None:
            image, _ = fourier(objective, **options)
        else:
            here = Path.cwd()
            os.chdir(spectrum)  # maco looks for its file in the working directory
            try:
                image, _ = maco(objective, **options)
            finally:
                os.chdir(here)
    picture = (image.detach() * std + mean).clamp(0, 1)
    return torch.nn.functional.interpolate(picture[None], size=(side, side), mode="bilinear", antialias=True)[0]


def deep_inversion(network: Classifier, tv: float, batch: int, steps: int, label: int, seed: int) -> Tensor:
    """A picture by DeepInversion's image priors, without its prior on batch-norm statistics.

    Args:
        network: The source.
        tv: Weight of the total variation.
        batch: Jittered copies of the picture per step.
        steps: Number of steps.
        label: The class.
        seed: Seed of the first picture and of the jitter.
    """
    torch.manual_seed(seed * 1000 + label)
    image = (0.5 + 0.1 * torch.randn(1, *network.shape)).requires_grad_()
    adam = torch.optim.Adam([image], lr=0.05, betas=(0.5, 0.9))
    target = torch.full((batch,), label)
    with network.frozen():
        for _ in range(steps):
            jittered = []
            for _ in range(batch):
                shift = torch.randint(-8, 9, (2,)).tolist()
                moved = image.roll(shift, (2, 3))
                jittered.append(moved.flip(3) if torch.rand(()) < 0.5 else moved)
            variation = image.diff(dim=2).square().mean() + image.diff(dim=3).square().mean()
            loss = torch.nn.functional.cross_entropy(network(torch.cat(jittered)), target)
            loss = loss + tv * variation + 0.01 * (image - 0.5).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                image.clamp_(0, 1)
    return image.detach()[0]


def save_spectrum(samples: Samples, folder: Path) -> None:
    """Save the spectrum that ``maco`` loads: mean magnitudes of the photographs, as ``Data`` measures them."""
    basis = Data(exponent=1.0).fit(samples, torch.device("cpu"))
    assert isinstance(basis, FourierBasis)
    np.save(folder / "spectrum_decorrelated.npy", basis.spectrum.expand(3, -1, -1).numpy())
