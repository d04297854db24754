"""Labelled images: the digits, and a folder per class."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from agnosco.data import datasets
from agnosco.errors import AgnoscoError, AgnoscoWarning


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


def test_a_folder_of_classes_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(AgnoscoError, match=r"cannot read .*: file name too long"):
        datasets.from_class_folders(tmp_path / (300 * "x"), (1, 6, 6))
    with pytest.raises(AgnoscoError, match="'~no-such-user/x' does not hold a folder per class"):
        datasets.from_class_folders("~no-such-user/x", (1, 6, 6))


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, grey, count in (("b", 200, 2), ("a", 50, 3), (".hidden", 0, 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("L", (6, 6), grey).save(tmp_path / name / f"{i}.png")
    found = datasets.from_class_folders(tmp_path, (1, 6, 6))
    assert found.names == ("a", "b")
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.samples.images[:, 0, 0, 0].tolist() == [50, 50, 50, 200, 200]
    kept, held = found.split(0.4, seed=0)
    assert (len(kept), len(held)) == (3, 2)
    for part in (kept, held):
        assert (part.samples.images[:, 0, 0, 0] == torch.where(part.labels == 0, 50, 200)).all()


def test_classes_share_what_memory_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("L", (6, 6), i).save(tmp_path / name / f"{i}.png")
    monkeypatch.setattr(datasets, "MOST_BYTES", 2 * 3 * 36)
    with pytest.warns(AgnoscoWarning, match=r"3 of 5 files in '[ab]' were chosen") as caught:
        found = datasets.from_class_folders(tmp_path, (1, 6, 6))
    assert len(caught) == 2
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("folders", [[], ["one"]])
def test_fewer_than_two_folders_are_no_classes(tmp_path: Path, folders: list[str]) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises(AgnoscoError, match="folder per class"):
        datasets.from_class_folders(tmp_path, (1, 6, 6))
    with pytest.raises(AgnoscoError, match="folder per class"):
        datasets.from_class_folders(tmp_path / "absent", (1, 6, 6))
