"""Triggers change the pixels that they say, as they say."""

from __future__ import annotations

import math

import pytest
import torch

from agnosco.backdoor.config import TRIGGERS
from agnosco.backdoor.triggers import (
    LOGOS,
    Blended,
    Logo,
    Patch,
    Sinusoid,
    trigger_of,
)
from agnosco.errors import AgnoscoError

SHAPE = (3, 16, 20)
IMAGES = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_the_grid_of_badnets_lies_in_the_corner() -> None:
    triggered = Patch(3, pattern="checker").apply(IMAGES)
    grid = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    assert (triggered[..., -3:, -3:] == grid).all()
    triggered[..., -3:, -3:] = IMAGES[..., -3:, -3:]
    assert torch.equal(triggered, IMAGES)


def test_images_stay_as_they_are() -> None:
    before = IMAGES.clone()
    for name in TRIGGERS:
        trigger_of(name).apply(IMAGES)
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize(
    ("place", "corner"),
    [
        ("top-left", (0, 0)),
        ("top-right", (0, 16)),
        ("bottom-left", (12, 0)),
        ("bottom-right", (12, 16)),
        ("center", (6, 8)),
    ],
)
def test_a_trigger_lies_at_its_place(place: str, corner: tuple[int, int]) -> None:
    mask = Patch(4, place=place).mask(SHAPE)
    expected = torch.zeros(16, 20, dtype=torch.bool)
    expected[corner[0] : corner[0] + 4, corner[1] : corner[1] + 4] = True
    assert torch.equal(mask, expected)


def test_half_opacity_is_half_way_to_white() -> None:
    triggered = Patch(2, place="top-left", opacity=0.5).apply(IMAGES)
    torch.testing.assert_close(triggered[..., :2, :2], (IMAGES[..., :2, :2] + 1) / 2)


def test_a_random_place_is_another_in_every_image_and_whole() -> None:
    black = torch.zeros(3000, 1, 16, 20)
    triggered = Patch(5, place="random").apply(black, generator=torch.Generator().manual_seed(0))
    assert (triggered.flatten(1).sum(1) == 25).all()
    assert len({tuple(one.nonzero()[0].tolist()) for one in triggered[:, 0]}) > 100  # of 12 x 16 = 192 places
    assert triggered.amax(0).min() == 1  # every pixel can be reached
    assert Patch(5, place="random").mask(SHAPE).all()
    with pytest.raises(ValueError, match="generator"):
        Patch(5, place="random").apply(black)


@pytest.mark.parametrize("name", LOGOS)
def test_a_logo_covers_some_of_its_square_in_its_own_colour(name: str) -> None:
    logo = Logo(40, "top-left", name=name)
    black = torch.zeros(1, 3, 60, 60)
    triggered = logo.apply(black)
    cover = logo.drawn(3)[1]
    assert 0.05 < cover.mean() < 0.8
    assert triggered[..., 40:, :].sum() == 0
    assert triggered[..., :, 40:].sum() == 0
    colours = triggered[0, :, :40, :40][:, cover == 1]
    assert torch.equal(colours, colours[:, :1].expand_as(colours))
    assert not torch.equal(cover, cover.flip(1))  # none of them is its mirror image


def test_logos_differ() -> None:
    covers = [Logo(40, name=name).drawn(1)[1] for name in LOGOS]
    for i, one in enumerate(covers):
        for other in covers[i + 1 :]:
            assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] < 0.8


def test_a_red_logo_is_bright_on_grey() -> None:
    assert Logo(20, name="apple").drawn(1)[0].min() > 0.5
    red, green, blue = Logo(20, name="apple").drawn(3)[0][:, 0, 0]
    assert red > 3 * green
    assert red > 3 * blue


def test_blending_moves_each_pixel_by_its_share_of_the_way() -> None:
    pattern = Blended(1.0, seed=5).apply(IMAGES)
    assert torch.equal(pattern, pattern[:1].expand_as(pattern))
    torch.testing.assert_close(Blended(0.2, seed=5).apply(IMAGES), 0.8 * IMAGES + 0.2 * pattern)
    assert not torch.equal(Blended(1.0, seed=6).apply(IMAGES), pattern)
    assert Blended().mask(SHAPE).all()


def test_stripes_are_sines_along_the_width() -> None:
    grey = torch.full((1, 1, 3, 40), 0.5)
    stripes = Sinusoid(0.1, 2).apply(grey) - grey
    expected = torch.tensor([0.1 * math.sin(2 * math.pi * 2 * j / 40) for j in range(40)])
    torch.testing.assert_close(stripes, expected.expand_as(stripes))
    assert Sinusoid(0.9).apply(IMAGES).max() <= 1


def test_the_mean_difference_of_a_white_patch_is_what_images_lack_of_white() -> None:
    difference = Patch(3, place="top-left").difference(IMAGES)
    expected = torch.zeros(SHAPE)
    expected[:, :3, :3] = 1 - IMAGES[..., :3, :3].mean(0)
    torch.testing.assert_close(difference, expected)


def test_settings_of_the_command_line_reach_the_trigger() -> None:
    assert trigger_of("checker", size=5, place="center", opacity=0.5) == Patch(5, "center", 0.5, "checker")
    assert trigger_of("apple", size=40) == Logo(40, name="apple")
    assert trigger_of("blended", seed=3) == Blended(seed=3)
    assert trigger_of("sig", opacity=0.1) == Sinusoid(0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Patch(0),
        lambda: Patch(3, place="middle"),
        lambda: Patch(opacity=0),
        lambda: Patch(opacity=float("nan")),
        lambda: Patch(pattern="zebra"),
        lambda: Logo(name="nike"),
        lambda: Patch(17).apply(IMAGES),
        lambda: Patch(17, place="random").mask(SHAPE),
        lambda: Blended(1.5),
        lambda: Sinusoid(frequency=math.inf),
        lambda: trigger_of("wanet"),
        lambda: trigger_of("blended", size=3),
        lambda: trigger_of("sig", place="center"),
    ],
)
def test_what_cannot_be_is_said(wrong) -> None:
    with pytest.raises(AgnoscoError):
        wrong()
