"""M_score against its limits and a second writing of Eq. 3-5, and nudges against a network of known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.method.score import (
    diversity,
    intervals,
    logits_of,
    m_score,
    predictions,
    score_of_logits,
    targeted_success_rate,
)
from agnosco.models.classifier import Classifier


class Brightness(nn.Module):
    """Class 1 where the mean pixel is above ½, class 0 elsewhere, class 2 never; log-odds of 10 per unit."""

    def forward(self, images: Tensor) -> Tensor:
        above = 10 * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack([-above, above, torch.full_like(above, -30)], 1)


@pytest.fixture
def brightness() -> Classifier:
    return Classifier(Brightness(), size=4, channels=1)


def grey(*levels: float) -> Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()


def test_m_score_limits() -> None:
    perfect = torch.eye(10, dtype=torch.float64)
    assert m_score(perfect) == pytest.approx(1)
    assert m_score(torch.full((10, 10), 0.1, dtype=torch.float64)) == pytest.approx(0.1)
    assert m_score(perfect.roll(3, 1)) == pytest.approx(1)  # it does not ask which class is seen


def test_m_score_is_the_formula() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=7)
    marginal = p.sum(0) / 7
    divergences = [sum(a * np.log(a / q) for a, q in zip(row, marginal, strict=True)) for row in p]
    assert m_score(torch.from_numpy(p)) == pytest.approx(np.exp(np.mean(divergences)) / 4)


def test_score_tells_concepts_from_all_classes(brightness: Classifier) -> None:
    # Dark, bright, and bright though it should be class 0: two of three right; class 2 is not among the concepts.
    found = score_of_logits(logits_of(brightness, grey(0.2, 0.9, 0.6)), [0, 1, 0])
    assert found.top1 == pytest.approx(2 / 3)
    assert found.top1_of_concepts == pytest.approx(2 / 3)
    # Log-odds between classes 0 and 1 are 20 per unit: 6 for the first, 8 for the second, -2 for the third.
    logistic = [1 / (1 + np.exp(-odds)) for odds in (6.0, 8.0, -2.0)]
    assert found.probability == pytest.approx(np.mean(logistic), abs=1e-5)


def test_concepts_leave_other_classes_out(brightness: Classifier) -> None:
    # Among classes 1 and 2 alone a dark picture is still class 1, whose logit is greater; among all it is class 0.
    found = score_of_logits(logits_of(brightness, grey(0.2, 0.2)), [1, 2])
    assert (found.top1_of_concepts, found.top1) == (0.5, 0.0)


def test_score_needs_two_classes(brightness: Classifier) -> None:
    with pytest.raises(AgnoscoError, match="at least two classes"):
        score_of_logits(logits_of(brightness, grey(0.2, 0.3)), [1, 1])


def test_intervals_are_those_of_other_seeds() -> None:
    # Class 0: one of four maps is misread, so a resample of four misreads Binomial(4, 1/4); class 1 is always read.
    logits = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0, 1], [0, 1]]) * 9
    found = intervals(logits, [0, 0, 0, 0, 1, 1, 1, 1], share=0.5, resamples=2000)
    assert found is not None
    # Quartiles of Binomial(4, 1/4), whose distribution function is .316, .738, .949: 0 and 2 misread of 8.
    assert found["top1"] == (6 / 8, 1.0)


def test_a_single_map_of_a_class_has_no_interval() -> None:
    assert intervals(torch.eye(3)[[0, 0, 1]], [0, 0, 1]) is None


def test_pictures_of_another_size_are_resized(brightness: Classifier) -> None:
    small, large = grey(0.2, 0.9), grey(0.2, 0.9).repeat(1, 1, 2, 2)
    torch.testing.assert_close(logits_of(brightness, large), logits_of(brightness, small))
    with pytest.raises(AgnoscoError, match="pictures have 3 channels"):
        logits_of(brightness, small.expand(-1, 3, -1, -1))


def test_diversity_is_one_minus_the_cosine_of_features() -> None:
    conv = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(conv.weight)
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(3 * 16, 2))
    classifier = Classifier(model, size=4, channels=3, features="0")
    red, green = torch.zeros(2, 3, 4, 4)
    red[0] = green[1] = 1
    both = red + green  # at 45 degrees to each
    pictures = torch.stack([red, both, red, green, red, red, red])
    assert diversity(classifier, pictures, [0, 0, 1, 1, 2, 2, 3]) == pytest.approx((1 - 0.5**0.5 + 1 + 0) / 3)
    assert diversity(classifier, pictures[:2], [0, 1]) is None


def test_targeted_success_counts_those_that_change(brightness: Classifier) -> None:
    # −ν adds 0.2. Of the dark images 0.1, 0.2, 0.35 and 0.45, the last two pass ½; the bright one does not count.
    images = Samples((grey(0.1, 0.2, 0.35, 0.45, 0.8) * 255).round().to(torch.uint8), source="greys")
    assert predictions(brightness, images).tolist() == [0, 0, 0, 0, 1]
    nu = torch.full((1, 4, 4), -0.2)
    assert targeted_success_rate(brightness, nu, 1, images) == 0.5
    assert targeted_success_rate(brightness, nu, 1, images, before=torch.tensor([0, 0, 0, 0, 1])) == 0.5
    assert np.isnan(targeted_success_rate(brightness, nu, 1, Samples(images.images[4:], source="bright")))
