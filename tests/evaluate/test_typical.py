"""Typical samples: which they are is known beforehand, and private or synthetic ones are not kept."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import MODEL, NET
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from agnosco.cli.app import app
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.evaluate import typical
from agnosco.evaluate.sample_record import FILE, read
from agnosco.evaluate.typical import COUNT, keep_typical
from agnosco.method.concept import ConceptMap
from agnosco.method.config import Config, MapperConfig
from agnosco.models.classifier import Classifier
from agnosco.reports.page import report
from agnosco.runs.run import Run
from agnosco.runs.thumbnails import SIDE, name_of, row_of
from agnosco.types import Step

CONFIG = Config(MapperConfig(batch=2, steps=2, loss="log-odds"), refine=None, cycles=1, precision="float32")
HEAD = "Samples that the network gives the class most"


class Bright(nn.Module):
    """Class 0 is dark and class 1 is bright: the log-odds of class 1 are 20 times the mean less one half."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(20.0))

    def forward(self, images: Tensor) -> Tensor:
        odds = self.gain * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack([torch.zeros_like(odds), odds], 1)


def classifier() -> Classifier:
    return Classifier(Bright(), size=8, labels=("dark", "bright"), name="bright")


def samples(count: int = 40, *, private: bool = False) -> Samples:
    """Images of one grey each, shuffled: image i has the grey 5 · order[i] of 255."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    images = (5 * order).to(torch.uint8)[:, None, None, None].expand(count, 3, 8, 8).contiguous()
    return Samples(images, source="greys", private=private)


def made(path: Path, images: Samples) -> Run:
    """Maps of both classes, with log-odds of the held-out samples that are known: their places, from 0."""
    run = Run.create(path, classifier=classifier(), samples=images, config=CONFIG)
    count = round(0.2 * len(images))
    for label, name in enumerate(("dark", "bright")):
        nu = torch.zeros(3, 8, 8)
        concept = ConceptMap(nu, label, name, 0, 1.0, {"map 1": nu}, (Step(1, 1.0, 1.0, 1.0, 1),))
        run.add(concept, targeted_success_rate=0.5, held_out=torch.arange(float(count)) - 4)
    run.end()
    return run


def test_most_are_the_samples_that_the_network_gives_the_class_most(tmp_path: Path) -> None:
    images = samples()
    record = keep_typical(made(tmp_path / "run", images), classifier(), images)
    assert record is not None
    greys = images.images[:, 0, 0, 0].float() / 255
    for stem, direction in (("0000-dark-s0", -1), ("0001-bright-s0", 1)):
        expected = (direction * greys).argsort(descending=True)[:COUNT].tolist()
        assert [sample.index for sample in record.maps[stem].most] == expected
        p = torch.sigmoid(direction * 20 * (greys[expected] - 0.5)).tolist()
        assert [sample.value for sample in record.maps[stem].most] == pytest.approx(p, abs=1e-5)


def test_moved_and_unmoved_are_held_out_samples_of_other_classes(tmp_path: Path) -> None:
    images = samples(60)  # greys of 0 to 295, of which those above 255 wrap to dark ones
    record = keep_typical(made(tmp_path / "run", images), classifier(), images)
    assert record is not None
    _, held_out = images.split_indices(0.2, seed=0)
    greys = images.images[held_out, 0, 0, 0].float() / 255
    dark = [place for place in range(len(held_out)) if greys[place] < 0.5]  # each is of class 0
    rise = {place: (place - 4) - 20 * (greys[place].item() - 0.5) for place in dark}  # after less before
    expected = [int(held_out[place]) for place in sorted(dark, key=rise.__getitem__)]
    of_bright = record.maps["0001-bright-s0"]
    assert [sample.index for sample in of_bright.unmoved] == expected[:COUNT]
    assert [sample.index for sample in of_bright.moved] == expected[::-1][:COUNT]
    most = max(dark, key=rise.__getitem__)
    assert of_bright.moved[0].value == pytest.approx(torch.sigmoid(torch.tensor(most - 4.0)).item())


def test_thumbnails_are_the_samples(tmp_path: Path) -> None:
    images = samples()
    run = made(tmp_path / "run", images)
    record = keep_typical(run, classifier(), images)
    assert record == read(run.folder)
    assert record is not None
    sheet = Image.open(run.path / name_of(run.entry(1).stem))
    assert sheet.size == (COUNT * SIDE, 3 * SIDE)
    for place, sample in enumerate(record.maps["0001-bright-s0"].moved):
        shown = np.asarray(row_of(sheet, 1, COUNT))[:, place * SIDE : (place + 1) * SIDE]
        assert (shown == int(images.images[sample.index, 0, 0, 0])).all()


def test_what_is_kept_of_the_same_maps_is_not_made_again(tmp_path: Path) -> None:
    images = samples()
    run = made(tmp_path / "run", images)
    keep_typical(run, classifier(), images)
    kept = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    keep_typical(Run.open(run.path), classifier(), images)
    assert kept == {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("images", [samples(private=True), Samples.noise((3, 8, 8), count=40)])
def test_private_and_synthetic_samples_are_not_kept(tmp_path: Path, images: Samples) -> None:
    run = made(tmp_path / "run", images)
    assert keep_typical(run, classifier(), images) is None
    assert not (run.path / FILE).exists()
    assert not (run.path / "samples").exists()


def test_parts_of_private_samples_are_private() -> None:
    used, held_out = samples(private=True).split()
    assert used.private
    assert held_out.private


def test_of_many_samples_those_held_out_are_seen_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typical, "MOST_SEEN", 10)
    images = samples()
    record = keep_typical(made(tmp_path / "run", images), classifier(), images)
    assert record is not None
    assert (record.seen, record.count) == (10, 40)
    _, held_out = images.split_indices(0.2, seed=0)
    assert {sample.index for sample in record.maps["0001-bright-s0"].unmoved} <= set(held_out.tolist())


# -- by the command line ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGNOSCO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "photos" / "some").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(10):
        picture = Image.fromarray(generator.integers(256, size=(20, 18, 3), dtype=np.uint8))
        picture.save(tmp_path / "photos" / "some" / f"{i}.png")
    return tmp_path


def call(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def mapped() -> str:
    result = call("map", *MODEL, "--samples", "photos", "--steps", "2", "--batch", "2")
    assert result.exit_code == 0, result.stderr
    return result.stderr


def test_the_report_shows_samples_only_where_it_is_told_to(folder: Path) -> None:
    assert "Kept thumbnails of typical samples" in mapped()
    report("agnosco-run")
    assert HEAD not in (folder / "agnosco-run" / "report.html").read_text()
    assert call("report", "agnosco-run", "--with-samples").exit_code == 0
    page = (folder / "agnosco-run" / "report.html").read_text()
    assert HEAD in page
    assert "The details of a class show images of photos, which are somebody" in page


@pytest.mark.parametrize("place", [".", "photos", "photos/some"])
def test_a_folder_that_is_marked_as_private_leaves_nothing(folder: Path, place: str) -> None:
    (folder / place / ".private").touch()
    said = mapped()
    assert "The samples are private" in said
    assert "skipped" not in said  # the mark is no image that could not be read
    assert not (folder / "agnosco-run" / "samples").exists()
    result = call("report", "agnosco-run", "--with-samples")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == "Error: 'agnosco-run' has kept no samples"


def test_a_tar_and_a_single_image_are_private_if_a_mark_lies_in_or_beside_them(folder: Path) -> None:
    with tarfile.open("plain.tar", "w") as tar:
        tar.add("photos")
    one = "photos/some/0.png"
    assert not any(Samples.from_folder(path, (3, 8, 8)).private for path in ("plain.tar", one))
    (folder / "photos" / ".private").touch()
    with tarfile.open("marked.tar", "w") as tar:
        tar.add("photos")
    assert Samples.from_folder("marked.tar", (3, 8, 8)).private
    assert Samples.from_folder(one, (3, 8, 8)).private
    (folder / ".private").touch()
    assert Samples.from_folder("plain.tar", (3, 8, 8)).private


def test_a_mark_counts_where_a_link_leads_and_where_it_lies(folder: Path) -> None:
    (folder / "marked").mkdir()
    (folder / "marked" / "open").symlink_to(folder / "photos")
    (folder / "link").symlink_to(folder / "photos" / "some")
    (folder / "one.png").symlink_to(folder / "photos" / "some" / "0.png")
    assert not any(Samples.from_folder(path, (3, 8, 8)).private for path in ("marked/open", "link", "one.png"))
    (folder / "marked" / ".private").touch()
    assert Samples.from_folder("marked/open", (3, 8, 8)).private
    assert not Samples.from_folder("photos", (3, 8, 8)).private
    (folder / "photos" / ".private").touch()
    assert Samples.from_folder("link", (3, 8, 8)).private
    assert Samples.from_folder("one.png", (3, 8, 8)).private


def test_a_mark_that_was_set_later_removes_what_was_kept(folder: Path) -> None:
    mapped()
    (folder / "photos" / ".private").touch()
    mapped()
    assert not (folder / "agnosco-run" / "samples").exists()
    assert not (folder / "agnosco-run" / FILE).exists()


def test_thumbnails_of_an_earlier_map_are_not_shown(folder: Path) -> None:
    mapped()
    kept = (folder / "agnosco-run" / FILE).read_text()
    first = Run.open("agnosco-run").entries[0].sha256
    (folder / "agnosco-run" / FILE).write_text(kept.replace(first, 64 * "0"))
    call("report", "agnosco-run", "--with-samples")
    assert (folder / "agnosco-run" / "report.html").read_text().count(HEAD) == 2 * 2  # of three maps; title and alt


def test_a_picture_that_is_a_link_is_refused(folder: Path) -> None:
    mapped()
    thumbnails = folder / "agnosco-run" / name_of(Run.open("agnosco-run").entries[0].stem)
    thumbnails.unlink()
    thumbnails.symlink_to(folder / "photos" / "some" / "0.png")
    with pytest.raises(AgnoscoError, match="is a link"):
        report("agnosco-run", with_samples=True)
