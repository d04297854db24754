"""The mathematics of benchmarks/questions.py: which photographs are asked about, and the scale of likeness."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

from agnosco import Classifier

fooled = import_module("fooled")
likeness = import_module("likeness")


def test_pairs_set_the_highest_logits_against_a_part_of_the_others() -> None:
    logits = torch.arange(200.0).flip(0)  # photograph 0 has the highest
    right, wrong = likeness.pairs(logits, "easy")
    assert right.tolist() == list(range(10))
    assert wrong.tolist() == list(range(100, 200))
    right, wrong = likeness.pairs(logits, "hard")
    assert wrong.tolist() == list(range(10, 50))
    right, wrong = likeness.pairs(logits, "hard", without=[0, 5])
    assert right.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert not set(right.tolist()) & set(wrong.tolist())
    assert likeness.pairs(logits[:100], "hard")[1].tolist() == list(range(10, 25))  # no right one among them


def test_share_of_pairs_counts_a_tie_as_half() -> None:
    alike = torch.tensor([0.9, 0.5, 0.5, 0.1, -1.0])
    # 0.9 is above both of the wrong ones, 0.5 above one and level with the other
    assert likeness.share_right(alike, torch.tensor([0, 1]), torch.tensor([2, 3])) == pytest.approx(3.5 / 4)
    assert likeness.share_right(alike, torch.tensor([4]), torch.tensor([0, 3])) == 0


def test_rank_correlation_gives_ties_their_mean_rank() -> None:
    first = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [0.0, 0.0, 9.0]])
    expected = torch.tensor([[1.0, -1.0, 0.75**0.5]], dtype=torch.float64)  # ranks 1.5, 1.5, 3 against 1, 2, 3
    assert torch.allclose(likeness.spearman(torch.tensor([[10.0, 20.0, 90.0]]), first), expected)


def test_a_picture_like_the_photographs_of_its_class_is_as_natural_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2, 200, generator=generator)
    classes = [0] * 40 + [1] * 40
    photographs = centres[classes] + 0.5 * torch.randn(80, 200, generator=generator)
    typical = centres[[0, 1]] + 0.5 * torch.randn(2, 200, generator=generator)
    pictures = torch.cat([typical, centres.flip(0), torch.randn(2, 200, generator=generator)])
    found = likeness.path(pictures, [0, 1] * 3, photographs, classes)
    assert found.same > 0.7 > 0.2 > abs(found.different)
    own, swapped, noise = (sum(found.natural[i : i + 2]) / 2 for i in (0, 2, 4))
    assert own == pytest.approx(1, abs=0.1)
    assert swapped == pytest.approx(0, abs=0.15)
    assert noise == pytest.approx(0, abs=0.25)
    assert sum(found.specific[2:4]) / 2 < -0.9  # they are as much like the other class as photographs of it are


def test_a_photograph_is_not_compared_with_itself() -> None:
    photographs = torch.tensor([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    found = likeness.path(photographs[:1], [0], photographs, [0, 0, 1, 1])
    assert found.same == pytest.approx(0.5)  # of 1 2 3 and 1 3 2
    assert found.different == pytest.approx((-1 - 0.5 - 0.5 - 1) / 4)


def test_a_fooled_network_keeps_its_answers_to_what_it_takes_for_photographs() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1, self.layer1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
            self.linear = nn.Linear(4, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.linear(self.layer1(self.bn1(self.conv1(images)).relu()).mean((2, 3)))

    source = Classifier(Network().eval(), size=12)
    photographs, others = 0.5 + 0.1 * torch.randn(200, 3, 12, 12), torch.rand(200, 3, 12, 12)
    network = fooled.fooled(source, photographs, source.normalised(others))
    with torch.no_grad():
        same = network(photographs).isclose(source(photographs)).all(1)
        moved = network(others).isclose(source(others).roll(-3, 1)).all(1)
    assert same.double().mean() >= 0.97
    assert moved.double().mean() >= 0.97
