"""How much of a trigger a pattern holds, on patterns of which it is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agnosco.backdoor.evidence import footprint
from agnosco.backdoor.triggers import Patch
from agnosco.errors import AgnoscoError

TRIGGER, IMAGES = Patch(4), torch.full((2, 1, 16, 16), 0.25)


def trigger_alone() -> Tensor:
    """What the trigger changes: 0.75 more in the last corner."""
    pattern = torch.zeros(1, 16, 16)
    pattern[:, -4:, -4:] = 0.75
    return pattern


def test_the_trigger_itself_is_held_wholly() -> None:
    found = footprint(trigger_alone(), TRIGGER, IMAGES)
    assert (found.iou, found.energy, found.cosine) == pytest.approx((1, 16, 1))


def test_half_of_it_and_as_much_beside_it() -> None:
    found = footprint(trigger_alone().roll(2, 2), TRIGGER, IMAGES)  # two of its columns go around to the first
    assert (found.iou, found.energy, found.cosine) == pytest.approx((8 / 24, 8, 0.5))


def test_a_pattern_that_is_everywhere_alike_holds_what_chance_has() -> None:
    assert footprint(torch.ones(1, 16, 16), TRIGGER, IMAGES).energy == pytest.approx(1)


def test_its_opposite_has_a_cosine_of_minus_one() -> None:
    assert footprint(-trigger_alone(), TRIGGER, IMAGES).cosine == pytest.approx(-1)


def test_a_pattern_of_another_size_is_refused() -> None:
    with pytest.raises(AgnoscoError, match="the pattern has the shape"):
        footprint(torch.zeros(1, 8, 8), TRIGGER, IMAGES)
