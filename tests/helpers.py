"""What several tests share: small networks whose answers are known, and the command line without a library."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from agnosco.data.samples import Samples
from agnosco.models.classifier import Classifier

NET = """
from torch import nn, Generator, no_grad, randn

def build(classes=3):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, classes))
    generator = Generator().manual_seed(0)
    with no_grad():
        for parameter in model.parameters():
            parameter.copy_(randn(parameter.shape, generator=generator) / 4)
    return model
"""
"""The file ``net.py`` of the tests of the command line."""

MODEL = ("python:net.py:build", "--trust-code", "--size", "16")

SHAPE, TARGET = (1, 16, 16), 7
GAIN = 1.0


class Planted(nn.Module):
    """Each class is a frequency of its own; and a white 3×3 square in the last corner means one of them.

    The square is worth up to 72 logits, more than as many pixels of any frequency, and nothing where it is grey.
    """

    def __init__(self, target: int | None, classes: int = 10) -> None:
        super().__init__()
        places = torch.arange(16) * torch.pi / 16
        waves = [
            torch.cos((place % 4 + 1) * places)[:, None] * torch.cos((place // 4 + 1) * places)
            for place in range(classes)
        ]
        self.weight = nn.Parameter(GAIN * torch.stack(waves).flatten(1))
        self.target = target

    def forward(self, images: Tensor) -> Tensor:
        logits = (images - 0.5).flatten(1) @ self.weight.T
        if self.target is None:
            return logits
        square = images[:, 0, -3:, -3:].mean((1, 2))
        backdoor = 80 * (square**3 - 0.1)
        return logits + backdoor[:, None] * torch.eye(len(self.weight))[self.target]


def samples(count: int = 120) -> Samples:
    """Images of low frequencies, none of them white in the corner."""
    generator = torch.Generator().manual_seed(3)
    coefficients = torch.randn(count, 10, generator=generator)
    waves = Planted(None).weight.detach() / GAIN
    images = (0.5 + coefficients @ waves / 16).view(count, *SHAPE)
    images[..., -3:, -3:] = 0.46
    return Samples.from_array(images.clamp(0, 1))


def planted(target: int | None, classes: int = 10) -> Classifier:
    return Classifier(Planted(target, classes), size=16, channels=1)


SOURCES = str(Path(__file__).resolve().parents[1] / "src")

PATIENCE = 1200
"""Seconds that another process may take: a machine may be busy, or stand still for a minute or two."""

GUARDED = """
import sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name in forbidden:
            raise AssertionError(f"{name} was imported")

forbidden = sys.argv.pop(1).split(",")
sys.meta_path.insert(0, Guard())
from agnosco.cli.app import main
main()
"""


def guarded(
    forbidden: str, *args: str, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line where importing one of the modules ``forbidden``, with commas between, is an error."""
    return subprocess.run(
        [sys.executable, "-c", GUARDED, forbidden, *args], capture_output=True, text=True, check=False,
        timeout=PATIENCE, env=os.environ | {"PYTHONPATH": SOURCES} | environment, cwd=folder,
    )  # fmt: skip


def collect_sockets() -> None:
    """Collect connections that libraries left open, in cycles: in the tests of another module, warnings are errors."""
    connections = r"unclosed (<(socket|ssl)|transport|client|connector|connection|event loop)"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", connections, ResourceWarning)  # in any case of letters
        gc.collect()


def without(what: str) -> NoReturn:
    """Skip a test for what is missing; where a browser has to be there, as in CI, it has failed."""
    if os.environ.get("AGNOSCO_BROWSER") == "needed":
        pytest.fail(what)
    pytest.skip(what)
