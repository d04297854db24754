"""Files to tensors: planted colours and places, every kind of bad file, and the cache."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import tarfile
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from safetensors.torch import load_file

from agnosco.data import decoding, files
from agnosco.data import samples as reading
from agnosco.data.cache import default_cache
from agnosco.data.decoding import Unreadable, decode, fit, stack
from agnosco.data.files import Skipped, find_files, summary
from agnosco.data.samples import Samples, read_folder
from agnosco.errors import AgnoscoError, AgnoscoWarning
from agnosco.io.atomic import PART, host_name
from agnosco.types import Interpolation, Resize

RGB4 = (3, 4, 4)
SMALL = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def solid(path: Path, value: int = 100, size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path, "PNG")
    return path


def truncated(path: Path, share: float = 0.5, **options: bool) -> Path:
    Image.fromarray(SMALL).save(path, None, **options)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


# -- resizing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (90, 61)])
@pytest.mark.parametrize("filter", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_a_rule_is_to_resize_the_whole_and_to_crop_the_centre(size: tuple[int, int], filter: Interpolation) -> None:
    blots = np.random.default_rng(0).integers(30, 226, (9, 9, 3), dtype=np.uint8)  # filters clip noise on their way
    image = Image.fromarray(blots).resize(size)
    method = Image.Resampling[filter.upper()]
    short = min(size)
    whole = image.resize((128 * size[0] // short, 128 * size[1] // short), method)
    left, top = (whole.width - 112) // 2, (whole.height - 112) // 2
    expected = np.array(whole.crop((left, top, left + 112, top + 112)))
    found = fit(image, (3, 112, 112), Resize(0.875, "center", filter))
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2
    squashed = np.array(image.resize((128, 128), method).crop((8, 8, 120, 120)))
    found = fit(image, (3, 112, 112), Resize(0.875, "squash", filter))
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - squashed).max() <= 1


def test_an_input_that_is_not_square_is_covered() -> None:
    image = Image.fromarray(np.arange(100, dtype=np.uint8)[None].repeat(50, 0))
    found = fit(image, (1, 20, 10), Resize(1.0, "center", "bilinear"))  # 40×20, of which columns 15 to 25 are kept
    assert found[0, 3].tolist() == pytest.approx([15 * 2.5 + 0.75 + 2.5 * n for n in range(10)], abs=0.51)


def test_a_very_long_image_is_resized_only_where_it_is_kept() -> None:
    image = Image.new("RGB", (200_000, 2), "red")  # 22 million pixels across, if all of it were resized
    tracemalloc.start()
    pixels = fit(image, (3, 224, 224), Resize(0.875))
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()
    assert pixels[0].min() == 255


@pytest.mark.parametrize("share", [0.0, 0.05, 1.01, float("nan")])
def test_shares_that_no_rule_has(share: float) -> None:
    with pytest.raises(ValueError, match=r"crop_pct must be in \[0\.1, 1\]"):
        Resize(share)


def test_a_large_photograph_is_not_decoded_below_the_size_that_is_cropped(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    photograph = Image.fromarray(generator.integers(0, 256, (120, 160, 3), np.uint8)).resize((1600, 1200))
    photograph.save(tmp_path / "large.jpg", quality=95)
    rule = Resize(0.1, "center", "bilinear")  # 300 pixels are kept of 3000
    found = decode(tmp_path / "large.jpg", (3, 300, 300), rule)
    assert (found.float() - fit(Image.open(tmp_path / "large.jpg"), (3, 300, 300), rule).float()).abs().max() <= 1


def test_folders_archives_and_the_cache_follow_the_rule(tmp_path: Path) -> None:
    generator, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(generator.integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(folder, "images")
    rule = Resize(0.8, "squash", "bilinear")
    expected = torch.stack([fit(Image.open(path), (3, 24, 24), rule) for path in sorted(folder.iterdir())])
    plain = torch.stack([fit(Image.open(path), (3, 24, 24)) for path in sorted(folder.iterdir())])
    for _ in range(2):  # the second time from the cache
        assert Samples.from_folder(folder, (3, 24, 24), resize=rule, cache=tmp_path / "cache").images.equal(expected)
        assert Samples.from_folder(folder, (3, 24, 24), cache=tmp_path / "cache").images.equal(plain)
    assert Samples.from_folder(tmp_path / "images.tar", (3, 24, 24), resize=rule).images.equal(expected)


# -- modes --------------------------------------------------------------------------------------


def palette_with_a_hole() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.info["transparency"] = 1
    return image


MODES = {
    "1": (Image.new("1", (4, 4), 1), "png", (255, 255, 255)),
    "L": (Image.new("L", (4, 4), 77), "png", (77, 77, 77)),
    "LA": (Image.new("LA", (4, 4), (0, 51)), "png", (204, 204, 204)),  # 20 % black on white
    "RGB": (Image.new("RGB", (4, 4), (1, 2, 3)), "png", (1, 2, 3)),
    "RGBA": (Image.new("RGBA", (4, 4), (255, 0, 100, 51)), "png", (255, 204, 224)),  # 224 = 0.2·100 + 0.8·255
    "RGBA, clear": (Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "png", (255, 255, 255)),
    "P, clear": (palette_with_a_hole(), "png", (255, 255, 255)),
    "P": (Image.new("RGB", (4, 4), (40, 50, 60)).convert("P", palette=Image.Palette.ADAPTIVE), "png", (40, 50, 60)),
    "CMYK": (Image.new("CMYK", (4, 4), (0, 255, 0, 0)), "tiff", (255, 0, 255)),
    "I;16, black": (Image.fromarray(np.zeros((4, 4), np.uint16)), "png", (0, 0, 0)),
    "I;16, dark": (Image.fromarray(np.full((4, 4), 257, np.uint16)), "png", (1, 1, 1)),
    "I;16, mid": (Image.fromarray(np.full((4, 4), 40000, np.uint16)), "png", (156, 156, 156)),  # 40000 / 257 = 155.6
    "I;16, white": (Image.fromarray(np.full((4, 4), 65535, np.uint16)), "tiff", (255, 255, 255)),
    "I": (Image.fromarray(np.full((4, 4), 40000, np.int32)), "tiff", (156, 156, 156)),
    "F": (Image.fromarray(np.full((4, 4), 0.2, np.float32)), "tiff", (51, 51, 51)),
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("channels", [3, 1])
def test_every_mode_becomes_8_bit(tmp_path: Path, name: str, channels: int) -> None:
    image, suffix, colour = MODES[name]
    path = tmp_path / f"image.{suffix}"
    image.save(path)
    pixels = decode(path, (channels, 4, 4))
    red, green, blue = colour
    grey = round(0.299 * red + 0.587 * green + 0.114 * blue)
    assert pixels.shape == (channels, 4, 4)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    for plane, value in zip(pixels, colour if channels == 3 else [grey], strict=True):
        assert plane.unique().tolist() == [value]


def test_big_endian_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "image.pgm"
    path.write_bytes(b"P5 2 2 65535\n" + np.array([0, 257, 65535, 40000], ">u2").tobytes())
    assert decode(path, (1, 2, 2)).flatten().tolist() == [0, 1, 255, 156]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    for path in tmp_path.iterdir():
        assert decode(path, RGB4)[:, 0, 0].tolist() == [255, 0, 0]


ORIENTATIONS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),  # turned a quarter to the right for viewing
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_images_are_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((8, 8), np.uint8))  # whole JPEG blocks
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, quality=100)
    seen = decode(tmp_path / f"a.{suffix}", (1, 16, 16))[0].numpy().astype(int)
    assert np.abs(seen - ORIENTATIONS[orientation](stored)).max() <= 1


def test_damaged_exif_does_not_lose_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("bad tag")

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    assert decode(solid(tmp_path / "a.png", 9), RGB4).unique().tolist() == [9]


# -- size ---------------------------------------------------------------------------------------


def thirds(horizontal: bool) -> Image.Image:
    stripes = np.repeat(np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8), 40, 0)
    image = np.broadcast_to(stripes[:, None], (120, 40, 3))
    return Image.fromarray(np.ascontiguousarray(image.swapaxes(0, 1) if horizontal else image))


@pytest.mark.parametrize("horizontal", [True, False])
def test_the_centre_is_cropped(horizontal: bool) -> None:
    seen = fit(thirds(horizontal), (3, 10, 10))  # its edges see a little of what lies beyond them
    assert seen[:, 2:-2, 2:-2].flatten(1).unique(dim=1).T.tolist() == [[0, 255, 0]]
    assert seen[1].min() > 200


def test_the_centre_of_another_proportion() -> None:
    """120 x 40 cropped to 80 x 40: half of red, all of green, half of blue."""
    seen = fit(thirds(horizontal=True), (3, 10, 20))
    assert seen[:, :, [0, 1, 2, 3]].flatten(1).unique(dim=1).T.tolist() == [[255, 0, 0]]
    assert seen[:, :, 8:12].flatten(1).unique(dim=1).T.tolist() == [[0, 255, 0]]
    assert seen[:, :, 16:].flatten(1).unique(dim=1).T.tolist() == [[0, 0, 255]]


def test_an_image_of_the_right_size_is_untouched() -> None:
    assert torch.equal(fit(Image.fromarray(SMALL), (3, 48, 64)).permute(1, 2, 0), torch.from_numpy(SMALL))


def test_shrinking_averages() -> None:
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    assert (fit(board, (1, 8, 8))[0, 2:-2, 2:-2].int() - 127.5).abs().max() <= 1.5


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (5, 7)])
def test_extreme_sizes(size: tuple[int, int]) -> None:
    assert fit(Image.new("L", size, 42), (3, 17, 5)).unique().tolist() == [42]


@pytest.mark.parametrize("upright", [1, 6])
def test_large_jpegs_are_decoded_small_without_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upright: int
) -> None:
    y, x = np.mgrid[:1200, :1600]
    waves = 127 + 60 * np.sin(x / 19) * np.cos(y / 23) + 60 * np.sin((x + 2 * y) / 57)
    exif = Image.Exif()
    exif[0x0112] = upright
    Image.fromarray(waves.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    full = ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))
    sizes = []
    real = ImageOps.fit
    monkeypatch.setattr(ImageOps, "fit", lambda image, *rest: sizes.append(image.size) or real(image, *rest))
    seen = decode(tmp_path / "a.jpg", (1, 100, 120))
    expected = torch.from_numpy(np.array(real(full, (120, 100), Image.Resampling.BICUBIC)))
    assert sorted(sizes[0]) == [300, 400]  # a quarter: an eighth is less than twice 120
    assert (seen[0].int() - expected.int()).abs().double().mean() < 0.5


# -- what is skipped ----------------------------------------------------------------------------


def reason(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        decode(path, RGB4)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tiff", "ppm"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    assert reason(truncated(tmp_path / f"a.{suffix}", share)) == "truncated"


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_truncated_jpegs_of_other_kinds(tmp_path: Path, share: float) -> None:
    assert reason(truncated(tmp_path / "a.jpg", share, progressive=True)) == "truncated"


@pytest.mark.parametrize("suffix", ["webp", "jp2", "avif"])
def test_other_truncated_files_are_damaged(tmp_path: Path, suffix: str) -> None:
    if f".{suffix}" not in Image.registered_extensions():
        pytest.skip(f"this Pillow has no {suffix}")
    assert reason(truncated(tmp_path / f"a.{suffix}")).startswith("damaged")


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "letter.jpg").write_text("Dear Sir or Madam")
    (tmp_path / "nothing.jpg").write_bytes(b"")
    (tmp_path / "bytes.png").write_bytes(bytes(range(256)))
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (tmp_path / "head.gif").write_bytes(b"GIF89a\x01\x02")
    reasons = {path.name: reason(path) for path in tmp_path.iterdir()}
    assert reasons == {
        "letter.jpg": "not an image",
        "nothing.jpg": "empty file",
        "bytes.png": "not an image",
        "program.eps": "not an image",
        "head.gif": "damaged or truncated",
    }


@pytest.mark.parametrize("limit", [15, 7])  # Pillow warns above its limit and fails above twice that
def test_image_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    path = solid(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    assert decode(path, RGB4).unique().tolist() == [100]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert reason(path) == f"more than {limit} pixels"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_bombs_where_pillow_only_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = solid(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    assert reason(path) == "more than 15 pixels"


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_floats_without_a_known_range(tmp_path: Path, value: float) -> None:
    Image.fromarray(np.array([[0.5, value]], np.float32)).save(tmp_path / "a.tiff")
    assert reason(tmp_path / "a.tiff") == "pixels outside [0, 1]"


def test_modes_that_cannot_be_shown() -> None:
    with pytest.raises(Unreadable, match="pixels of mode La"):
        fit(Image.new("La", (4, 4)), RGB4)
    with pytest.raises(Unreadable, match="no pixels"):
        fit(Image.new("RGB", (4, 0)), RGB4)


def test_random_damage_never_stops_the_reading(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for suffix in ["jpg", "png", "gif", "tiff", "webp", "bmp", "ppm"]:
        whole = tmp_path / f"whole.{suffix}"
        Image.fromarray(SMALL).save(whole)
        content = np.frombuffer(whole.read_bytes(), np.uint8)
        for _ in range(25):
            damaged = content.copy()
            damaged[generator.integers(0, min(len(damaged), 400), 6)] = generator.integers(0, 256, 6)
            (tmp_path / "damaged").write_bytes(damaged.tobytes())
            with suppress(Unreadable):  # and nothing else
                assert decode(tmp_path / "damaged", RGB4).shape == RGB4


# -- finding ------------------------------------------------------------------------------------


def test_files_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ["b.png", "a/z.png", "a/b/c.PNG", "B.png", "noextension"]:
        solid(tmp_path / name)
    assert list(find_files(tmp_path).files) == ["B.png", "a/b/c.PNG", "a/z.png", "b.png", "noextension"]


def test_what_is_not_a_plain_file_is_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    solid(root / "real.png")
    solid(root / "sub" / ".hidden.png")
    solid(root / ".git" / "inside.png")
    outside = solid(tmp_path / "elsewhere" / "outside.png")
    (root / "out.png").symlink_to(outside)
    (root / "link.png").symlink_to(root / "real.png")
    (root / "sub" / "up.png").symlink_to("../real.png")
    (root / "loop").symlink_to(root)
    (root / "gone.png").symlink_to(tmp_path / "nowhere")
    (root / "self.png").symlink_to(root / "self.png")
    os.mkfifo(root / "pipe.jpg")
    regular, total, skipped, count, private = find_files(root)
    assert not private
    assert (total, count) == (3, 7)
    assert list(regular) == ["link.png", "real.png", "sub/up.png"]
    reasons = {one.name: one.reason for one in skipped}
    assert "too many" in reasons.pop("self.png")
    assert reasons == {
        ".git": "hidden folder",
        "gone.png": "broken link",
        "loop": "link to a folder, not followed",
        "out.png": "link out of the folder, not followed",
        "pipe.jpg": "not a regular file",
        "sub/.hidden.png": "hidden",
    }
    (tmp_path / "way").symlink_to(root)  # a link that somebody typed is followed
    assert list(find_files(tmp_path / "way").files) == list(regular)
    assert list(find_files(root / "out.png").files) == ["out.png"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(AgnoscoError, match=r"cannot read .*loop': too many levels of symbolic links"):
        Samples.from_folder(tmp_path / "loop", RGB4)


def test_folders_and_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solid(tmp_path / "good.png")
    locked = {str(solid(tmp_path / "locked.png")), str(solid(tmp_path / "vault" / "in.png").parent)}
    refuse(monkeypatch, locked)
    images, folder = read_folder(tmp_path, RGB4)
    assert len(images) == 1
    assert folder.skipped == [Skipped("locked.png", "permission denied"), Skipped("vault", "permission denied")]
    refuse(monkeypatch, {str(tmp_path)})
    with pytest.raises(AgnoscoError, match="permission denied"):
        read_folder(tmp_path, RGB4)


def refuse(monkeypatch: pytest.MonkeyPatch, locked: set[str]) -> None:
    """Makes paths unreadable: for root, whom chmod does not stop."""
    real_scandir, real_open = os.scandir, Path.open

    def guarded(real, path, *rest):
        if str(path) in locked:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest)

    monkeypatch.setattr(os, "scandir", lambda path: guarded(real_scandir, path))
    monkeypatch.setattr(Path, "open", lambda path, *rest: guarded(real_open, path, *rest))


@pytest.mark.parametrize("name", ["two\nlines.jpg", "\x1b[31mred.jpg", os.fsdecode(b"\xff\xfe.jpg")])
def test_strange_names_can_be_printed(tmp_path: Path, name: str) -> None:
    try:
        (tmp_path / name).write_text("text")
    except OSError:
        pytest.skip("this file system has no such names")
    solid(tmp_path / "good.png")
    for _ in range(2):  # the second from the cache
        skipped = read_folder(tmp_path, RGB4, cache=tmp_path / ".cache")[1].skipped
        assert skipped[-1].name == name or skipped[0].name == name
        assert summary(skipped, 1).isascii()
        assert summary(skipped, 1).isprintable()


# -- very many names ----------------------------------------------------------------------------


def by_hash(names: list[str], count: int) -> list[str]:
    """The choice as it is described: of the least SHA-256 of their names."""
    return sorted(sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:count])


def test_some_of_many_files_are_chosen_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{part}/{number}.png" for part in ("a", "b/c", "é") for number in range(40)]
    folder = tmp_path / "images"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = find_files(folder, limit=30)
    assert list(found.files) == by_hash(names, 30)
    assert all(path == folder / name for name, path in found.files.items())
    assert (found.total, found.skipped_count) == (120, 0)
    assert min(sum(name.startswith(part) for name in found.files) for part in ("a", "b", "é")) >= 5
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: Listed(reversed(list(real(path)))))
    assert find_files(folder, limit=30) == found
    monkeypatch.undo()
    folder.rename(tmp_path / "moved")
    assert list(find_files(tmp_path / "moved", limit=30).files) == list(found.files)


class Listed(AbstractContextManager):
    """What os.scandir gives, in an order of our own."""

    def __init__(self, entries: Iterable[os.DirEntry[str]]) -> None:
        self.entries = entries

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return iter(self.entries)

    def __exit__(self, *_: object) -> None:
        pass


def test_nothing_is_chosen_of_as_many_as_may_be(tmp_path: Path) -> None:
    for value in range(9):
        solid(tmp_path / f"{value}.png", value)
    for limit in (9, 10, 10_000):
        assert list(find_files(tmp_path, limit=limit).files) == [f"{value}.png" for value in range(9)]
    assert len(find_files(tmp_path, limit=8).files) == 8
    assert files.MOST_FILES == 10_000
    with pytest.raises(AgnoscoError, match="limit of 0"):
        find_files(tmp_path, limit=0)


def test_large_images_leave_room_for_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [solid(tmp_path / f"{value}.png", value).name for value in range(9)]
    monkeypatch.setattr(reading, "FOLDER_BYTES", 5 * 3 * 4 * 4 + 1)
    images, folder = read_folder(tmp_path, RGB4)
    assert images[:, 0, 0, 0].tolist() == [int(name[0]) for name in by_hash(names, 5)]
    assert (len(folder.files), folder.total) == (5, 9)
    assert len(read_folder(tmp_path, RGB4, limit=2)[1].files) == 2
    assert len(read_folder(tmp_path, (3, 40, 40))[1].files) == 1  # rather than none


def test_no_image_among_those_chosen(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("text")
    with pytest.raises(AgnoscoError, match=r"among 2 of its 5 files: '\d.txt' \(not an image\), '\d.txt'"):
        read_folder(tmp_path, RGB4, limit=2)


def test_of_what_is_passed_over_the_first_are_named(tmp_path: Path) -> None:
    solid(tmp_path / "good.png")
    names = [f".{number}" for number in range(2 * files.MOST_SKIPPED + 500)]
    for name in names:
        (tmp_path / name).touch()
    _, folder = read_folder(tmp_path, RGB4)
    assert [file.name for file in folder.skipped] == sorted(names)[: files.MOST_SKIPPED]
    assert folder.skipped_count == 2500
    assert summary(folder.skipped, folder.skipped_count).endswith("'.10' (hidden) and 2497 more")


@pytest.mark.parametrize("name", ["{}.png", ".{}.png"])
def test_memory_does_not_grow_with_names(tmp_path: Path, name: str) -> None:
    """A name takes 200 bytes as an entry of a dict; 30,000 of them, 6 MB."""
    first = solid(tmp_path / name.format("first"))
    for number in range(30_000):
        os.link(first, tmp_path / name.format(number))
    tracemalloc.start()
    try:
        found = find_files(tmp_path, limit=100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.total + found.skipped_count == 30_001
    assert peak < 2**20


# -- folders ------------------------------------------------------------------------------------


def test_a_folder_in_order_with_what_it_lacks(tmp_path: Path) -> None:
    for value in range(30):
        solid(tmp_path / f"{value:02}.png", value)
    truncated(tmp_path / "07x.jpg")
    (tmp_path / "20x.jpg").write_text("text")
    seen = []
    images, folder = read_folder(tmp_path, RGB4, progress=lambda done, total: seen.append((done, total)))
    assert images[:, 0, 0, 0].tolist() == list(range(30))
    assert folder.skipped == [Skipped("07x.jpg", "truncated"), Skipped("20x.jpg", "not an image")]
    assert seen == [(done, 32) for done in range(1, 33)]


def test_images_are_gathered_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (0, 1, 4, 5, 8, 9):
        monkeypatch.setattr(decoding, "BLOCK_BYTES", 4 * 3 * 2 * 2 + 1)
        planted = [torch.full((3, 2, 2), value, dtype=torch.uint8) for value in range(count)]
        found = stack(iter(planted), (3, 2, 2))
        assert found.shape == (count, 3, 2, 2)
        assert found[:, 0, 0, 0].tolist() == list(range(count))
        monkeypatch.setattr(decoding, "BLOCK_BYTES", 1)  # less than one image
        assert torch.equal(stack(iter(planted), (3, 2, 2)), found)


def test_one_file_is_a_folder_of_one(tmp_path: Path) -> None:
    images, folder = read_folder(solid(tmp_path / ".a.png", 5), RGB4)
    assert images.unique().tolist() == [5]
    assert folder.skipped == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "no folder"),
        (lambda path: solid(path / "a.png") / "beneath", "no folder"),
        (lambda path: path.mkdir() or path, "empty"),
        (lambda path: path.mkdir() or truncated(path / "a.jpg").parent, r"no readable image.*'a.jpg' \(truncated\)"),
        (lambda path: path.mkdir() or truncated(path / "a.jpg"), r"no readable image.*'a.jpg' \(truncated\)"),
        (lambda path: solid(path / ".a.png").parent, r"no readable image.*'.a.png' \(hidden\)"),
    ],
)
def test_nothing_to_read(tmp_path: Path, make, message: str) -> None:
    with pytest.raises(AgnoscoError, match=message):
        read_folder(make(tmp_path / "root"), RGB4, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_long_list_is_counted() -> None:
    skipped = [Skipped(f"{i}.txt", "not an image") for i in range(12)]
    assert summary(skipped, 12) == ("'0.txt' (not an image), '1.txt' (not an image), '2.txt' (not an image) and 9 more")
    assert "more" not in summary(skipped[:3], 3)


# -- the cache ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for value in (10, 20):
        solid(tmp_path / "images" / f"{value}.png", value)
    (tmp_path / "images" / "text.jpg").write_text("text")
    return tmp_path / "images"


def test_cache_saves_decoding_and_still_reports(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "deep" / "cache"
    first, _ = read_folder(folder, RGB4, cache=cache)
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]
    assert torch.equal(load_file(next(cache.iterdir()))["images"], first)
    monkeypatch.setattr(decoding, "decode", None)
    (folder / ".new").write_text("hidden since")
    seen = []
    again, files_read = read_folder(folder, RGB4, cache=str(cache), progress=lambda *of: seen.append(of))
    assert torch.equal(again, first)
    assert again[:, 0, 0, 0].tolist() == [10, 20]
    assert files_read.skipped == [Skipped(".new", "hidden"), Skipped("text.jpg", "not an image")]
    assert seen == [(3, 3)]


@pytest.mark.parametrize("kind", ["opened", "read", "held in memory"])
def test_what_could_not_be_read_for_a_moment_is_not_kept_as_skipped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    real_open, real_load, opened = Path.open, PngImageFile.load, list[Path]()

    def open_(path: Path, *rest: Any) -> Any:
        opened.append(path)
        if kind == "opened" and path.name == "20.png" and opened.count(path) == 2:  # the first is for the key
            raise OSError(errno.EIO, "Input/output error")
        return real_open(path, *rest)

    def load(image: PngImageFile) -> Any:
        if kind != "opened" and opened[-1].name == "20.png":
            raise MemoryError if kind == "held in memory" else OSError(errno.EIO, "Input/output error")
        return real_load(image)

    monkeypatch.setattr(decoding, "THREADS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_)
        patch.setattr(PngImageFile, "load", load)
        images, read = read_folder(folder, RGB4, cache=tmp_path / "cache")
    assert len(images) == 1
    assert [file.name for file in read.skipped] == ["20.png", "text.jpg"]
    assert len(read_folder(folder, RGB4, cache=tmp_path / "cache")[0]) == 2


def test_what_could_not_be_read_for_the_key_alone_is_an_image_and_nothing_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, opened = Path.open, list[str]()

    def open_(path: Path, *rest: Any) -> Any:
        opened.append(path.name)
        if path.name == "20.png" and opened.count("20.png") == 1:
            raise OSError(errno.EIO, "Input/output error")
        return real_open(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_)
        images, _ = read_folder(folder, RGB4, cache=tmp_path / "cache")
    assert len(images) == 2
    assert not (tmp_path / "cache").exists()


def test_a_file_that_leads_beyond_all_files_is_damaged_for_good(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a BigTIFF whose first directory lies at 2**63 - 1: most file systems refuse to go there."""
    head = b"II" + struct.pack("<HHHQ", 43, 8, 0, 2**63 - 1)
    (folder / "far.tif").write_bytes(head + bytes(200))
    first, read = read_folder(folder, RGB4, cache=tmp_path / "cache")
    assert [file.name for file in read.skipped] == ["far.tif", "text.jpg"]
    monkeypatch.setattr(decoding, "decode", None)
    assert torch.equal(read_folder(folder, RGB4, cache=tmp_path / "cache")[0], first)


def test_a_file_that_may_not_be_read_does_not_keep_the_others_out_of_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, {str(folder / "20.png")})
    first, _ = read_folder(folder, RGB4, cache=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode", None)
        again, read = read_folder(folder, RGB4, cache=tmp_path / "cache")
    assert torch.equal(again, first)
    assert read.skipped == [Skipped("20.png", "permission denied"), Skipped("text.jpg", "not an image")]


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: solid(folder / "10.png", 11),
        lambda folder: (folder / "10.png").rename(folder / "30.png"),
        lambda folder: (folder / "text.jpg").rename(folder / "text2.jpg"),  # contents, in the same order
        lambda folder: (folder / "10.png").unlink(),
        lambda folder: (folder / "text.jpg").write_text("other"),
        lambda folder: solid(folder / "new.png", 30),
    ],
)
def test_cache_knows_the_content(folder: Path, tmp_path: Path, change) -> None:
    read_folder(folder, RGB4, cache=tmp_path / "cache")
    change(folder)
    cached, cached_files = read_folder(folder, RGB4, cache=tmp_path / "cache")
    plain, plain_files = read_folder(folder, RGB4)
    assert torch.equal(cached, plain)
    assert cached_files == plain_files
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_cache_knows_shape_and_decoder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    for shape in [(3, 4, 4), (1, 4, 4), (3, 4, 5)]:
        assert read_folder(folder, shape, cache=cache)[0].shape == (2, *shape)
    monkeypatch.setattr(reading, "DECODER", "another")
    read_folder(folder, (3, 4, 4), cache=cache)
    assert len(list(cache.iterdir())) == 4


def flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [lambda content: content[:-5], flip_last_bit, lambda _: b"", lambda _: b"{}" * 99])
def test_damaged_cache_is_rewritten(folder: Path, tmp_path: Path, damage) -> None:
    first, _ = read_folder(folder, RGB4, cache=tmp_path / "cache")
    kept = next((tmp_path / "cache").iterdir())
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert torch.equal(read_folder(folder, RGB4, cache=tmp_path / "cache")[0], first)
    assert [path.read_bytes() for path in (tmp_path / "cache").iterdir()] == [whole]


def test_cache_that_cannot_be_written_is_no_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(AgnoscoWarning, match="could not be cached"):
        assert len(read_folder(folder, RGB4, cache=tmp_path / "file")[0]) == 2

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.warns(AgnoscoWarning, match="no space left"):
        read_folder(folder, RGB4, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_kill_left_in_the_cache_is_removed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    abandoned = tmp_path / "cache" / f"{PART}{host_name()}-{10**12}-0123456789ab"  # no process has this number
    abandoned.write_text("half of the images")
    read_folder(folder, RGB4, cache=tmp_path / "cache")
    assert not abandoned.exists()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["AGNOSCO_CACHE", "XDG_CACHE_HOME"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_cache() == Path("/home/ada/.cache/agnosco")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache() == Path("/home/ada/.cache/agnosco")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/caches")
    assert default_cache() == Path("/var/caches/agnosco")
    monkeypatch.setenv("AGNOSCO_CACHE", "~/mine")
    assert default_cache() == Path("/home/ada/mine")
