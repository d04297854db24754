"""How much of a trigger a pattern holds, on patterns of which it is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from agnosco.backdoor.footprint import figure, footprint, percentile
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


def test_percentile_is_the_share_that_is_exceeded() -> None:
    assert percentile(3.0, [1, 2, 3, 4]) == 0.5
    with pytest.raises(AgnoscoError, match="no values to compare"):
        percentile(3.0, [])


def test_the_figure_shows_trigger_image_both_and_the_maps_of_both_twins() -> None:
    def tiles(compromised: Tensor) -> list[np.ndarray]:
        sheet = np.asarray(
            figure(TRIGGER, IMAGES, {"L2": compromised}, {"L2": 0 * trigger_alone()}, name="3"), dtype=float
        )
        return [part[: part.shape[1]] for part in np.array_split(sheet, 5, axis=1)]  # without captions

    first, second = tiles(trigger_alone()), tiles(0 * trigger_alone())
    assert [bool((a != b).any()) for a, b in zip(first, second, strict=True)] == [False, False, False, True, False]
    trigger, image, triggered = first[:3]
    assert (triggered != image).any()
    assert (trigger != image).any()
