"""Pictures held against values worked out by hand, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image

from agnosco.errors import AgnoscoError
from agnosco.method.render import contact_sheet, enlarged, stretched, to_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def plain(colour: tuple[int, int, int], *, width: int = 8, height: int = 8) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def is_blank(sheet: Image.Image, box: tuple[int, int, int, int]) -> bool:
    """Whether nothing is drawn in a box ``(left, top, right, bottom)``."""
    return sheet.crop(box).getcolors() == [((box[2] - box[0]) * (box[3] - box[1]), WHITE)]


# -- to_picture ---------------------------------------------------------------------------------------


def test_grey_pixels_become_a_grey_picture() -> None:
    pixels = torch.tensor([[0.0, 0.2, 0.5], [1.0, -3.0, 1.7]])  # ½ is 127.5, which rounds to the even 128
    for given in (pixels, pixels[None]):
        picture = to_picture(given)
        assert picture.mode == "L"
        assert np.asarray(picture).tolist() == [[0, 51, 128], [255, 0, 255]]


def test_colour_pixels_become_a_colour_picture() -> None:
    pixels = torch.zeros(3, 2, 3)
    pixels[0, 0, 0], pixels[1, 0, 2], pixels[2, 1, 1] = 1.0, 0.4, 0.8
    picture = to_picture(pixels.requires_grad_())
    assert (picture.mode, picture.size) == ("RGB", (3, 2))
    assert np.asarray(picture).tolist() == [
        [[255, 0, 0], [0, 0, 0], [0, 102, 0]],
        [[0, 0, 0], [0, 0, 204], [0, 0, 0]],
    ]


@pytest.mark.parametrize("shape", [(5,), (2, 4, 4), (4, 4, 4), (1, 3, 4, 4)], ids=str)
def test_other_shapes_are_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not \\(" + ", ".join(map(str, shape))):
        to_picture(torch.zeros(shape))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 3e38])
def test_any_number_can_be_drawn(number: float) -> None:  # warnings are errors here
    pattern = np.full((3, 4, 4), 1e-38, dtype=np.float32)
    pattern[0, 0] = number
    for pixels in (pattern, stretched(pattern), stretched(pattern, tail=0.9)):
        assert to_picture(pixels).size == (4, 4)


# -- stretched ----------------------------------------------------------------------------------------


def test_stretched_lets_one_in_a_hundred_go() -> None:
    # 101 magnitudes 0, 10, 11 … 109 and a zero, of changing sign: of those 100 that are not 0, the 99 % quantile is
    # a hundredth of the way from 108 to 109, and only 109 lies beyond it.
    magnitudes = torch.cat([torch.zeros(1), torch.arange(10, 110).float()])
    pattern = torch.where(magnitudes % 2 == 0, magnitudes, -magnitudes)
    shown = torch.from_numpy(stretched(pattern.view(1, 1, 101)))
    torch.testing.assert_close(shown, (0.5 + pattern / (2 * 108.01)).clamp(0, 1).view(1, 1, 101))
    assert shown[0, 0, 0] == 0.5
    assert 0.999 < shown[0, 0, 99] < 1
    assert shown[0, 0, 100] == 0


def test_a_small_trigger_keeps_its_colours() -> None:
    pattern = torch.zeros(3, 224, 224)
    pattern[:, :5, :5] = torch.tensor([0.8, 0.4, -0.2]).view(3, 1, 1)  # 25 of 50,176 pixels
    shown = stretched(pattern)
    torch.testing.assert_close(torch.from_numpy(shown)[:, 2, 2], torch.tensor([1.0, 0.75, 0.375]), rtol=0, atol=1e-3)
    assert (shown[:, 10:] == 0.5).all()


def test_stretched_has_one_scale_for_all_channels() -> None:
    pattern = torch.stack([torch.full((4, 4), 0.2), torch.full((4, 4), -0.1), torch.zeros(4, 4)])
    shown = stretched(pattern, tail=0.0)
    assert shown[:, 0, 0].tolist() == pytest.approx([1.0, 0.25, 0.5])
    np.testing.assert_allclose(stretched(1e-4 * pattern), stretched(pattern), rtol=1.3e-6, atol=1e-5)


def test_an_empty_pattern_is_mid_grey() -> None:
    assert np.array_equal(stretched(torch.zeros(3, 4, 4)), np.full((3, 4, 4), 0.5))


LAST_BIT = 0.0 if Version(torch.__version__) >= Version("2.15") else 2e-7
"""Earlier releases of torch round the quantile otherwise."""


@pytest.mark.parametrize("tail", [0.01, 0.3, 0.0])
@pytest.mark.parametrize("count", [7, 100, 12_345])
def test_stretched_gives_what_torch_gives_and_the_same_picture(count: int, tail: float) -> None:
    pattern = torch.randn(3, 1, count, generator=torch.Generator().manual_seed(count))
    expected = (0.5 + 0.5 * pattern / torch.quantile(pattern.abs(), 1 - tail)).clamp(0, 1)
    for given in (pattern, pattern.numpy()):
        found = stretched(given, tail=tail)
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=LAST_BIT)
        levels = (expected * 255).round().to(torch.uint8)
        assert np.array_equal(np.asarray(to_picture(found)), levels.permute(1, 2, 0).numpy())


# -- enlarged -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((8, 8), 160, (160, 160)),
        ((7, 5), 160, (161, 115)),
        ((300, 200), 160, (300, 200)),
        ((112, 112), 160, (112, 112)),
    ],
)
def test_enlarged_by_a_whole_number(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert enlarged(Image.new("L", size), side).size == expected


def test_enlarged_pixels_of_small_pictures_stay_square() -> None:
    picture = to_picture(torch.tensor([[0.0, 1.0], [0.4, 0.2]]))
    expected = np.kron([[0, 255], [102, 51]], np.ones((3, 3)))
    assert np.array_equal(np.asarray(enlarged(picture, 6)), expected)


def test_enlarged_large_pictures_are_smoothed() -> None:
    # An edge between black and white, blown up twice, passes through greys; square pixels would not.
    edge = to_picture(torch.arange(100).view(1, 100).expand(100, 100).ge(50).float())
    assert set(np.unique(np.asarray(enlarged(edge, 200)))) > {0, 255}


# -- contact_sheet ------------------------------------------------------------------------------------


def test_sheet_lays_tiles_out_in_rows() -> None:
    # Tiles of 32, captions of 20, gaps of 8: a step of 40 across and 60 down, after a margin of 8.
    sheet = contact_sheet([plain(RED), plain(GREEN), plain(BLUE)], ["", "", ""], columns=2, tile=32)
    assert sheet.size == (8 + 2 * 40, 8 + 2 * 60)
    for (x, y), colour in {(8, 8): RED, (48, 8): GREEN, (8, 68): BLUE}.items():
        assert sheet.crop((x, y, x + 32, y + 32)).getcolors() == [(32 * 32, colour)]
    drawn = 3 * 32 * 32
    assert sheet.getcolors() is not None
    assert dict((colour, count) for count, colour in sheet.getcolors() or [])[WHITE] == 88 * 128 - drawn


def test_sheet_is_no_wider_than_its_pictures() -> None:
    assert contact_sheet([plain(RED)] * 2, ["a", "b"], columns=5, tile=32).size == (8 + 2 * 40, 68)


def test_sheet_makes_room_for_the_largest() -> None:
    sheet = contact_sheet([plain(RED, width=40, height=20), plain(GREEN, width=20, height=40)], ["", ""], tile=40)
    assert sheet.size == (8 + 2 * 48, 8 + 68)
    assert sheet.crop((8, 8, 48, 28)).getcolors() == [(800, RED)]
    assert sheet.crop((56, 8, 76, 48)).getcolors() == [(800, GREEN)]


def test_grey_and_coloured_pictures_share_a_sheet() -> None:
    sheet = contact_sheet([Image.new("L", (8, 8), 77), plain(RED)], ["", ""], tile=8)
    assert sheet.getpixel((8, 8)) == (77, 77, 77)
    assert sheet.getpixel((24, 8)) == RED


def test_captions_stay_below_their_tiles() -> None:
    sheet = contact_sheet([plain(RED)] * 2, ["a caption much wider than its tile", ""], tile=80)
    assert not is_blank(sheet, (8, 88, 88, 108))
    assert is_blank(sheet, (88, 88, sheet.width, sheet.height))  # neither in the gap nor below the next one
    assert is_blank(sheet, (0, 108, sheet.width, sheet.height))


def test_captions_that_fit_are_not_cut() -> None:
    def caption(text: str) -> bytes:
        return contact_sheet([plain(RED)], [text], tile=80).crop((0, 88, 96, 108)).tobytes()

    assert caption("short") != caption("short...")
    assert caption("a very long caption of a tile") == caption("a very long caption of another")  # cut to the same


def test_captions_are_one_line_whatever_they_hold() -> None:
    def sheet(text: str) -> bytes:
        return contact_sheet([plain(RED)], [text], tile=80, footer=text).tobytes()

    assert sheet("a dog\n\x1b[2J") == sheet("a dog [2J")
    assert sheet("x" * 100_000) == sheet("x" * 2000)  # in no time


def test_footer_wraps_below_everything() -> None:
    pictures, captions = [plain(RED)] * 2, ["", ""]
    bare = contact_sheet(pictures, captions, tile=80)
    one = contact_sheet(pictures, captions, tile=80, footer="one line")
    three = contact_sheet(pictures, captions, tile=80, footer="so many words that they need " + "three lines " * 3)
    assert (one.width, one.height) == (bare.width, bare.height + 20)
    assert three.height == bare.height + 60
    assert one.crop((0, 0, *bare.size)).tobytes() == bare.tobytes()
    for line in range(3):
        top = bare.height + 20 * line
        assert not is_blank(three, (8, top, three.width - 8, top + 20))
    assert is_blank(three, (three.width - 8, bare.height, three.width, three.height))


@pytest.mark.parametrize(("pictures", "captions"), [(2, 1), (1, 2), (0, 0)])
def test_sheet_needs_a_caption_for_each_picture(pictures: int, captions: int) -> None:
    with pytest.raises(AgnoscoError, match=f"{pictures} pictures and {captions} captions"):
        contact_sheet([plain(RED)] * pictures, ["a"] * captions)
