"""The report of a run of facets: what stands beside a map, and that samples are shown only when asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from agnosco import Classifier, Config, MapperConfig, Run, Samples, facets, report
from agnosco.errors import AgnoscoError
from agnosco.reports.page import opened as report_of


class Halves(nn.Module):
    """Two features, the brightness of the halves of an image; the first class needs both."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[3.0, 1.0], [0.0, 0.0]]))
            self.fc.bias.copy_(torch.tensor([1.0, 0.0]))  # every image gets the first class

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.unflatten(3, (2, 4)).mean((1, 2, 4)))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Facets of independent cues: 90 and 10 % of the logit's variance, as 3² and 1² are of 10."""
    left, right = torch.tensor([0, 0, 200, 200]).repeat(6), torch.tensor([0, 200]).repeat(12)
    halves = torch.stack([left, right], 1).to(torch.uint8).repeat_interleave(4, 1)
    samples = Samples(halves[:, None, None].repeat(1, 3, 8, 1), source="halves")
    classifier = Classifier(Halves(), size=8, labels=("<b>husky</b>", "wolf"), name="halves")
    config = Config(MapperConfig(batch=1, steps=2), refine=None, cycles=1)
    return facets(classifier, [0], samples, tmp_path / "run", config, count=2)


def test_samples_are_shown_only_when_asked_for(run: Run) -> None:
    without, with_samples = (report_of([run.folder], with_samples=shown).html() for shown in (False, True))
    for page in (without, with_samples):
        assert "Facet 1 of &lt;b&gt;husky&lt;/b&gt;, from 24 samples that the network gives the class." in page
        assert page.count("<dd>90\N{NO-BREAK SPACE}%</dd>") == 1
        assert page.count("<dd>10\N{NO-BREAK SPACE}%</dd>") == 1
    assert "Samples with most of" not in without
    assert with_samples.count('alt="Samples with most of') == 2
    assert "<li>+1.2</li>" in with_samples  # half of 3 · 200/255


def test_without_thumbnails_there_is_nothing_to_show(run: Run) -> None:
    shutil.rmtree(run.path / "samples")
    with pytest.raises(AgnoscoError, match="kept no samples"):
        report(run, with_samples=True)


def test_a_damaged_picture_of_samples_is_refused(run: Run) -> None:
    (file,) = (run.path / "samples").glob("*facet-1*")
    file.write_bytes(b"no picture")
    with pytest.raises(AgnoscoError, match="is not a picture"):
        report(run, with_samples=True)
    assert report(run)  # does not read it


def test_the_strip_of_samples_is_small_and_square(run: Run) -> None:
    for file in (run.path / "samples").iterdir():
        with Image.open(file) as strip:
            assert strip.size == (8 * 96, 96)


def test_a_facet_is_drawn_beside_its_samples_in_a_browser(run: Run, tmp_path: Path, chromium: Any) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    complaints: list[str] = []
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(Path(report(run, out=tmp_path / "facets.html", with_samples=True)).as_uri())
    page.click("#grid li:nth-child(1) a")
    strip = page.locator("dialog .samples img")
    playwright.expect(strip).to_be_visible()
    assert strip.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [768, 96]
    assert page.locator("dialog .samples li").count() == 8
    assert page.locator("dialog .facet").inner_text().startswith("Facet 1 of <b>husky</b>")
    assert page.evaluate("(d => d.scrollWidth - d.clientWidth)(document.querySelector('dialog'))") == 0
    page.close()
    assert complaints == []
