"""Labelled images: the digits, and a folder for each class."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from agnosco import datasets
from agnosco.errors import AgnoscoError


def test_digits_are_scikit_learns_in_a_black_frame() -> None:
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    found = datasets.digits()
    samples, labels = found.samples, found.labels
    assert samples.shape == (1, 32, 32)
    assert labels.tolist() == data["target"].tolist()
    pixels = samples.images[:, 0]
    frame = pixels.clone()
    frame[:, 4:28, 4:28] = 0
    assert frame.sum() == 0
    # Averaged back to 8×8, each is its original, 16 levels of grey, but for what the interpolation smooths.
    small = pixels[:, 4:28, 4:28].float().view(-1, 8, 3, 8, 3).mean((2, 4)) / 255 * 16
    original = torch.from_numpy(np.asarray(data["images"]))
    assert torch.corrcoef(torch.stack([small.flatten(), original.flatten()]))[0, 1] > 0.97


def test_without_scikit_learn_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(AgnoscoError, match=r"pip install '.\[demo\]'"):
        datasets.digits()
