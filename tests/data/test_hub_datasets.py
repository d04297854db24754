"""Data sets of Hugging Face: the first column of images, decoded as files are, and what is skipped or refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError, AgnoscoWarning

datasets = pytest.importorskip("datasets")

SHAPE = (3, 8, 8)
COLOURS = ["red", "lime", "blue", "white", "black"]


def encoded(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(file, "PNG")
    return file.getvalue()


def dataset(rows: list[Any]) -> Any:
    features = datasets.Features(label=datasets.Value("int64"), picture=datasets.Image())
    return datasets.Dataset.from_dict({"label": list(range(len(rows))), "picture": rows}, features=features)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    dataset([{"bytes": encoded(colour), "path": None} for colour in COLOURS]).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_the_images_come_in_the_order_of_the_rows(saved: Path) -> None:
    samples = Samples.from_folder(saved, SHAPE)
    assert samples.source == "saved"
    expected = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in COLOURS]
    assert samples.images[:, :, 4, 4].tolist() == [list(pixel) for pixel in expected if isinstance(pixel, tuple)]


def test_a_limit_chooses_the_same_rows_each_time(saved: Path) -> None:
    with pytest.warns(AgnoscoWarning, match="2 of 5 files in 'saved' were chosen"):
        first = Samples.from_folder(saved, SHAPE, limit=2)
    with pytest.warns(AgnoscoWarning):
        assert Samples.from_folder(saved, SHAPE, limit=2).images.equal(first.images)
    assert len(first) == 2


def test_a_mark_in_or_below_a_saved_data_set_makes_it_private(saved: Path) -> None:
    (saved / "notes").mkdir()
    assert not Samples.from_folder(saved, SHAPE).private
    (saved / "notes" / ".private").touch()
    assert Samples.from_folder(saved, SHAPE).private


def test_paths_into_the_disk_and_damaged_images_are_skipped_and_named(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded("red"))
    rows = [
        {"bytes": encoded("blue"), "path": None},
        {"bytes": None, "path": str(secret)},
        {"bytes": b"no image", "path": None},
        None,
    ]
    plain = datasets.Features(picture={"bytes": datasets.Value("binary"), "path": datasets.Value("string")})
    datasets.Dataset.from_dict({"picture": rows}, features=plain).save_to_disk(tmp_path / "saved")
    information = tmp_path / "saved" / "dataset_info.json"  # save_to_disk itself would put the file's bytes in
    information.write_text(json.dumps({"features": {"picture": {"_type": "Image"}}}))
    with pytest.warns(AgnoscoWarning, match=r"skipped in 'saved', which gave 1 images"):
        samples = Samples.from_folder(tmp_path / "saved", SHAPE)
    assert samples.images[0, :, 4, 4].tolist() == [0, 0, 255]
    assert [(file.name, file.reason) for file in samples.skipped] == [
        ("row 1", "no image in it"),
        ("row 2", "not an image"),
        ("row 3", "no image in it"),
    ]


def test_one_of_several_splits_must_be_named(tmp_path: Path) -> None:
    one = dataset([{"bytes": encoded("red"), "path": None}])
    datasets.DatasetDict(train=one, test=one).save_to_disk(tmp_path / "both")
    with pytest.raises(AgnoscoError, match="has the splits train, test"):
        Samples.from_folder(tmp_path / "both", SHAPE)
    assert len(Samples.from_folder(tmp_path / "both" / "test", SHAPE)) == 1


def test_a_data_set_of_the_hub_is_asked_for_by_name_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def load_dataset(name: str, *, revision: str | None) -> Any:
        asked.append((name, revision))
        rows = dataset([{"bytes": encoded("red"), "path": None}])
        return datasets.DatasetDict(train=rows, test=dataset([{"bytes": encoded("blue"), "path": None}]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    samples = Samples.from_folder("hf:org/pictures:test@v1", SHAPE)
    assert asked == [("org/pictures", "v1")]
    assert samples.source == "hf:org/pictures:test@v1"
    assert samples.images[0, :, 4, 4].tolist() == [0, 0, 255]
    with pytest.raises(AgnoscoError, match="has the splits") as caught:
        Samples.from_folder("hf:org/pictures:tset", SHAPE)
    assert "did you mean 'test'" in caught.value.hint


@pytest.mark.parametrize("name", ["hf:../x", "hf:", "hf:a b"])
def test_what_is_no_name_is_refused_without_asking(name: str) -> None:
    with pytest.raises(AgnoscoError, match="does not name a data set"):
        Samples.from_folder(name, SHAPE)


def test_a_damaged_data_set_and_one_without_images_are_refused(saved: Path, tmp_path: Path) -> None:
    (saved / "state.json").write_text("{}")
    with pytest.raises(AgnoscoError, match="cannot read the data set"):
        Samples.from_folder(saved, SHAPE)
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(AgnoscoError, match="no column of images, but text"):
        Samples.from_folder(tmp_path / "texts", SHAPE)
