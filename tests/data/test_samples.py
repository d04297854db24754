"""Samples from every source, against planted pixels; and the draws that maps are made with."""

from __future__ import annotations

import hashlib
import inspect
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from agnosco.data import procedural
from agnosco.data.files import Asked, Skipped, asked
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError, AgnoscoWarning


def counted(count: int, shape: tuple[int, int, int] = (3, 2, 2)) -> torch.Tensor:
    """Images that each hold their own number."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, *shape).contiguous()


def numbers(samples: Samples) -> list[int]:
    return samples.images[:, 0, 0, 0].tolist()


# -- using them ---------------------------------------------------------------------------------


def test_draws_are_uniform_integers_of_the_generator() -> None:
    samples = Samples(counted(50), source="numbers")
    drawn = samples.draw(20, torch.Generator().manual_seed(7))
    expected = torch.randint(50, (20,), generator=torch.Generator().manual_seed(7))
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn[:, 0, 0, 0] * 255, expected.float())
    assert samples.draw(1, torch.Generator()).shape == (1, 3, 2, 2)


def test_batches_are_all_images_in_order() -> None:
    parts = list(Samples(counted(10), source="numbers").batches(4))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert torch.equal(torch.cat(parts)[:, 0, 0, 0], torch.arange(10) / 255)


def test_split_is_disjoint_whole_and_seeded() -> None:
    skipped = [Skipped("a.txt", "not an image")]
    samples = Samples(counted(100), source="numbers", skipped=skipped)
    mapping, judging = samples.split(0.25, seed=1)
    assert (len(mapping), len(judging)) == (75, 25)
    assert sorted(numbers(mapping) + numbers(judging)) == list(range(100))
    assert numbers(judging) == sorted(numbers(judging))
    assert numbers(samples.split(0.25, seed=1)[1]) == numbers(judging)
    assert numbers(samples.split(0.25, seed=2)[1]) != numbers(judging)
    assert (mapping.skipped, judging.skipped) == (tuple(skipped), ())


@pytest.mark.parametrize("held_out", [0, 1, 1.2, -1, float("nan")])
def test_a_share_that_is_held_out_lies_between_0_and_1(held_out: float) -> None:
    with pytest.raises(AgnoscoError, match="held_out must be between 0 and 1, not"):
        Samples(counted(10), source="numbers").split(held_out)


@pytest.mark.parametrize(("held_out", "count"), [(0.01, 0), (0.99, 10)])
def test_a_split_that_leaves_a_set_empty_is_refused(held_out: float, count: int) -> None:
    with pytest.raises(AgnoscoError, match=f"10 images cannot be split: a share of {held_out} is {count} of them"):
        Samples(counted(10), source="numbers").split(held_out)


def test_fingerprint_is_of_shape_and_pixels() -> None:
    images = counted(4, (1, 2, 3))
    expected = hashlib.sha256(b"(4, 1, 2, 3)" + bytes([0] * 6 + [1] * 6 + [2] * 6 + [3] * 6)).hexdigest()
    assert Samples(images, source="a").fingerprint == expected
    assert Samples(images, source="b").fingerprint == expected
    assert Samples(images.view(4, 1, 3, 2), source="a").fingerprint != expected


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 2, 2), counted(1)[0], counted(0)])
def test_other_tensors_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(AgnoscoError, match="non-empty uint8"):
        Samples(images, source="wrong")


# -- folders ------------------------------------------------------------------------------------


def test_folder_names_what_it_leaves_out(tmp_path: Path) -> None:
    for value in (3, 1, 2):
        Image.new("RGB", (9, 9), (value,) * 3).save(tmp_path / f"{value}.png")
    for index in range(5):
        (tmp_path / f"notes{index}.txt").write_text("text")
    with pytest.warns(AgnoscoWarning, match=r"gave 3 images: 'notes0.txt' \(not an image\).* and 2 more") as caught:
        samples = Samples.from_folder(tmp_path, (3, 4, 4))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert numbers(samples) == [1, 2, 3]
    assert samples.shape == (3, 4, 4)
    assert samples.source == tmp_path.name
    assert [one.name for one in samples.skipped] == [f"notes{index}.txt" for index in range(5)]


def test_clean_folder_warns_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (9, 9), (8, 8, 8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    samples = Samples.from_folder(".", (1, 4, 4))
    assert samples.source == tmp_path.name
    assert samples.skipped == ()
    assert numbers(samples) == [8]


def test_a_choice_of_files_is_told(tmp_path: Path) -> None:
    for value in range(12):
        Image.new("RGB", (4, 4), (value,) * 3).save(tmp_path / f"{value}.png")
    (tmp_path / ".hidden").touch()
    with pytest.warns(AgnoscoWarning) as caught:
        samples = Samples.from_folder(tmp_path, (3, 4, 4), limit=10)
    assert [str(one.message) for one in caught] == [
        f"skipped in {tmp_path.name!r}, which gave 10 images: '.hidden' (hidden)",
        f"10 of 12 files in {tmp_path.name!r} were chosen by their names",
    ]
    assert len(samples) == 10
    assert samples.source == f"{tmp_path.name} (10 of 12 files)"
    assert samples.split()[0].source == samples.source
    assert asked(samples.source) == (tmp_path.name, 10, 0)


def chosen_by_hand(names: list[str], count: int, seed: int) -> list[str]:
    """The names whose SHA-256 of seed, zero byte and name come first; of the names alone for the seed 0."""
    texts = {name: f"{seed}\0{name}" if seed else name for name in names}
    return sorted(sorted(names, key=lambda name: hashlib.sha256(texts[name].encode()).digest())[:count])


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("form", ["flat", "nested", "tar", "data set"])
def test_a_seed_chooses_the_same_images_everywhere(form: str, seed: int, tmp_path: Path) -> None:
    names = [f"{n}.png" if form == "flat" else f"{'abc'[n % 3]}/{n % 5}/{n}.png" for n in range(40)]
    folder = tmp_path / "images"
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), value).save(folder / name)
    given = folder
    if form == "tar":
        given = tmp_path / "images.tar"
        with tarfile.open(given, "w") as tar:
            for name in names:
                tar.add(folder / name, name)
    if form == "data set":
        datasets = pytest.importorskip("datasets")
        given, features = tmp_path / "saved", datasets.Features({"image": datasets.Image()})
        rows = [{"bytes": (folder / name).read_bytes(), "path": None} for name in names]
        datasets.Dataset.from_dict({"image": rows}, features=features).save_to_disk(given)
        names = [f"row {n}" for n in range(40)]
    with pytest.warns(AgnoscoWarning, match=f"15 of 40 files in '{given.name}' were chosen by their names"):
        samples = Samples.from_folder(given, (1, 4, 4), limit=15, seed=seed)
    assert sorted(numbers(samples)) == sorted(names.index(name) for name in chosen_by_hand(names, 15, seed))
    assert asked(samples.source) == (given.name, 15, seed)
    with pytest.warns(AgnoscoWarning):
        assert set(numbers(Samples.from_folder(given, (1, 4, 4), limit=5, seed=seed))) < set(numbers(samples))


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("leaves-800-seed0", Asked("leaves", None, 0)),
        ("leaves-50-seed1", Asked("leaves", 50, 1)),
        ("photographs (10,000 of 1,234,567 files)", Asked("photographs", 10_000, 0)),
        ("photographs (20 of 30 files, seed 4)", Asked("photographs", 20, 4)),
        ("photographs (old)", Asked("photographs (old)", None, 0)),
        ("tulips-800-seed0", Asked("tulips-800-seed0", None, 0)),
    ],
)
def test_the_source_as_it_was_asked_for(source: str, given: Asked) -> None:
    assert asked(source) == given


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4, 4), (0, 4, 4), (3, 0, 4), (3, 4, -1)])
def test_shapes_that_images_cannot_have(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    for make in (
        lambda: Samples.from_folder(tmp_path, shape),
        lambda: Samples.from_array(counted(1), shape=shape),
        lambda: Samples.from_dataset(TensorDataset(counted(1)), shape),
        lambda: Samples.leaves(shape, 1),
        lambda: Samples.noise(shape, 1),
    ):
        with pytest.raises(AgnoscoError, match="cannot have the shape"):
            make()


def test_real_photographs(assets: Path, tmp_path: Path) -> None:
    folder = assets / "imagenet-samples"
    samples = Samples.from_folder(folder, (3, 64, 64), cache=tmp_path)
    assert len(samples) == 800
    assert samples.skipped == ()
    assert Samples.from_folder(folder, (3, 64, 64), cache=tmp_path).fingerprint == samples.fingerprint
    # Photographs shrunk by a whole factor are close to their block means.
    first = sorted(os.listdir(folder))[0]
    whole = np.asarray(Image.open(folder / first).convert("RGB"), dtype=float)
    assert whole.shape == (224, 224, 3)
    quarters = whole.reshape(4, 56, 4, 56, 3).mean((1, 3))
    seen = samples.images[0].double().numpy().reshape(3, 4, 16, 4, 16).mean((2, 4)).transpose(1, 2, 0)
    assert np.abs(seen - quarters).max() < 2


# -- arrays -------------------------------------------------------------------------------------


PLANES = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)
"""NCHW."""

LAYOUTS = {
    "NCHW": PLANES,
    "NHWC": PLANES.transpose(0, 2, 3, 1),
    "tensor": torch.from_numpy(PLANES),
    "tensor NHWC": torch.from_numpy(PLANES).permute(0, 2, 3, 1),
    "float64": PLANES / 255,
    "float32": (PLANES / 255).astype(np.float32),
    "big-endian": (PLANES / 255).astype(">f4"),
    "float16": (PLANES / 255).astype(np.float16),
    "backwards": PLANES[::-1].copy()[::-1],
    "with gradients": (torch.from_numpy(PLANES) / 255).requires_grad_(),
    "overshooting": np.clip(PLANES / 255, 0.00001, 1) * 1.00005,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_types_give_the_same_pixels(layout: str) -> None:
    samples = Samples.from_array(LAYOUTS[layout])
    assert samples.images.is_contiguous()
    assert torch.equal(samples.images, torch.from_numpy(PLANES))


def test_read_only_arrays_are_copied() -> None:
    array = PLANES.copy()
    array.setflags(write=False)
    assert torch.equal(Samples.from_array(array).images, torch.from_numpy(PLANES))
    tensor = torch.from_numpy(PLANES.copy())
    samples = Samples.from_array(tensor, source="mine")
    tensor.zero_()
    assert torch.equal(samples.images, torch.from_numpy(PLANES))
    assert samples.source == "mine"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ((4, 9, 8), (4, 1, 9, 8)),
        ((4, 9, 8, 1), (4, 1, 9, 8)),
        ((4, 1, 9, 8), (4, 1, 9, 8)),
        ((4, 3, 9, 3), (4, 3, 9, 3)),  # could be either: taken as NCHW
        ((4, 1, 9, 3), (4, 1, 9, 3)),
    ],
)
def test_axes(given: tuple[int, ...], taken: tuple[int, ...]) -> None:
    assert tuple(Samples.from_array(np.zeros(given, np.uint8)).images.shape) == taken


def test_floats_are_rounded_to_the_nearest() -> None:
    values = torch.tensor([0, 0.4 / 255, 0.6 / 255, 1 - 0.6 / 255, 1.0]).view(5, 1, 1, 1)
    assert numbers(Samples.from_array(values)) == [0, 0, 1, 254, 255]


@pytest.mark.parametrize(
    ("array", "message", "hint"),
    [
        (np.full((1, 3, 2, 2), 200.0), r"span \[200, 200\]", "divide by 255"),
        (np.linspace(-2, 2, 12).reshape(1, 3, 2, 2), r"span \[-2, 2\]", "normalisation"),
        (np.full((1, 3, 2, 2), np.inf), "inf", "normalisation"),
        (np.array([0.5, np.nan]).reshape(1, 1, 1, 2), "NaN", "remove"),
        (torch.tensor([0.5, float("nan")]).view(1, 1, 1, 2), "NaN", "remove"),
        (np.zeros((1, 3, 2, 2), int), "cannot be int64", "uint8"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.int32), "cannot be int32", "uint8"),
        (np.zeros((1, 3, 2, 2), bool), "cannot be bool", "uint8"),
        (np.zeros((1, 4, 6, 6), np.uint8), r"\(1, 4, 6, 6\)", "NHWC|N, H, W, C"),
        (np.zeros((6, 6), np.uint8), r"\(6, 6\)", "N, H, W"),
        (np.zeros((0, 3, 6, 6), np.uint8), r"\(0, 3, 6, 6\)", "N, H, W"),
        (np.zeros((1, 3, 0, 6), np.uint8), r"\(1, 3, 0, 6\)", "N, H, W"),
        (7, r"\(\)", "N, H, W"),
    ],
)
def test_wrong_arrays_are_told_so(array, message: str, hint: str) -> None:
    with pytest.raises(AgnoscoError, match=message) as caught:
        Samples.from_array(array)
    assert any(part in caught.value.hint for part in hint.split("|"))


def test_wrong_values_are_found_beyond_the_first_chunk() -> None:
    array = np.zeros((200, 1, 2, 2))
    array[199] = 1.5
    with pytest.raises(AgnoscoError, match="must lie in"):
        Samples.from_array(array)


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_arrays_are_cropped_and_scaled(kind: str) -> None:
    """A 6 x 12 picture of three stripes, 4 columns each, in a square: its middle half, 3 to 9."""
    picture = np.repeat(np.array([0, 100, 200], np.uint8), 4)[None, None, None].repeat(6, 2)
    array = picture if kind == "uint8" else picture / 255
    seen = Samples.from_array(array, shape=(1, 6, 6)).images[0, 0]
    assert seen.tolist() == [[0, 100, 100, 100, 100, 200]] * 6
    halved = Samples.from_array(array, shape=(1, 3, 6)).images[0, 0].tolist()
    assert halved[0][0] == 0
    assert halved[0][2] == pytest.approx(100, abs=15)
    assert halved[0][5] == 200


def test_shrunk_arrays_are_averaged() -> None:
    """Every eighth column is white, beside where an eighth-size picture would sample."""
    lines = np.zeros((1, 64, 64), np.uint8)
    lines[:, :, ::8] = 255
    inner = Samples.from_array(lines, shape=(1, 8, 8)).images[0, 0, 1:-1, 1:-1]
    assert (inner.int() - 255 / 8).abs().max() <= 1


def test_grey_and_colour() -> None:
    red, green = np.zeros((2, 3, 2, 2), np.uint8)
    red[0], green[1] = 255, 255
    assert numbers(Samples.from_array(np.stack([red, green]), shape=(1, 2, 2))) == [76, 150]  # 0.299, 0.587
    colour = Samples.from_array(np.full((1, 2, 2), 33, np.uint8), shape=(3, 4, 4))
    assert colour.images.unique().tolist() == [33]
    assert colour.shape == (3, 4, 4)


# -- datasets -----------------------------------------------------------------------------------


class Listed(Dataset):
    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


class Streamed(IterableDataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self):
        return iter(counted(self.count))


def test_dataset_of_anything_that_is_an_image() -> None:
    items = [
        Image.new("RGB", (9, 5), (10, 10, 10)),
        (Image.new("LA", (4, 4), (10, 255)), 3),
        [torch.full((3, 7, 7), 10, dtype=torch.uint8), 1, "label"],
        torch.full((1, 4, 4), 10 / 255),
        np.full((5, 6, 3), 10, np.uint8),
        (np.full((5, 6), 10, np.uint8), 1),
    ]
    for channels in (1, 3):
        seen = []
        samples = Samples.from_dataset(Listed(items), (channels, 4, 4), progress=lambda *of, seen=seen: seen.append(of))
        assert samples.images.shape == (6, channels, 4, 4)
        assert samples.images.unique().tolist() == [10]
        assert samples.source == "Listed"
        assert seen == [(done, 6) for done in range(1, 7)]


def test_limit_spreads_over_the_dataset() -> None:
    dataset = TensorDataset(counted(10), torch.arange(10))
    assert numbers(Samples.from_dataset(dataset, (3, 2, 2), limit=5)) == [0, 2, 4, 6, 8]
    assert numbers(Samples.from_dataset(dataset, (3, 2, 2), limit=3)) == [0, 3, 6]
    assert numbers(Samples.from_dataset(dataset, (3, 2, 2), limit=99)) == list(range(10))


def test_iterable_dataset_needs_a_limit() -> None:
    assert numbers(Samples.from_dataset(Streamed(10), (3, 2, 2), limit=4)) == [0, 1, 2, 3]
    assert numbers(Samples.from_dataset(Streamed(3), (3, 2, 2), limit=4)) == [0, 1, 2]
    with pytest.raises(AgnoscoError, match="Streamed has no known length"):
        Samples.from_dataset(Streamed(3), (3, 2, 2))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"image": 1}], "sample 0 of the dataset is dict"),
        ([()], "sample 0 of the dataset is tuple"),
        ([torch.zeros(3, 4, 4), torch.full((3, 4, 4), -2.0)], r"sample 1 of the dataset: float pixels.*-2"),
        ([torch.zeros(5, 4, 4)], r"sample 0 of the dataset: an array of shape \(1, 5, 4, 4\)"),
        ([Image.new("La", (2, 2))], "sample 0 of the dataset: pixels of mode La"),
        ([], "Listed is empty"),
    ],
)
def test_datasets_of_something_else(items: list, message: str) -> None:
    with pytest.raises(AgnoscoError, match=message):
        Samples.from_dataset(Listed(items), (3, 4, 4))


def test_limit_of_none_left() -> None:
    with pytest.raises(AgnoscoError, match="limit of 0"):
        Samples.from_dataset(Streamed(3), (3, 2, 2), limit=0)


# -- no data at all -----------------------------------------------------------------------------


def test_procedural_samples() -> None:
    leaves, noise = Samples.leaves((3, 8, 8), 3, seed=4), Samples.noise((1, 8, 8), count=2)
    assert torch.equal(leaves.images, procedural.leaves(3, (3, 8, 8), seed=4))
    assert torch.equal(noise.images, procedural.noise(2, (1, 8, 8), seed=0))
    assert leaves.source == "leaves-3-seed4"
    assert noise.source == "noise-2-seed0"
    assert len(Samples.noise((1, 4, 4))) == 800
    assert inspect.signature(Samples.leaves).parameters["count"].default == 800
