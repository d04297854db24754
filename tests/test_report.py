"""The report: what it says of a run, and how it behaves in a browser that may load nothing."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from agnosco import options, transfer
from agnosco import report as reporting
from agnosco.classifier import Classifier
from agnosco.cli import app
from agnosco.concept import ConceptMap
from agnosco.cycle import Config, config_to_json, preset
from agnosco.errors import AgnoscoError
from agnosco.mapper import MapperConfig, Step
from agnosco.report.pictures import BUDGET, FITS, fit_for, pictures
from agnosco.samples import Samples
from agnosco.store import Run

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"
NAMES = ("tench", "Castle", HOSTILE, "crane", "crane")
FOCUSED = "((one) => one.className || one.id || one.type || one.tagName)(document.activeElement)"
AXE = Path(__file__).resolve().parent.parent / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"


def network(names: tuple[str, ...] = NAMES, name: str = "planted") -> Classifier:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((1, 2, 3))[:, None] * torch.arange(float(len(names)))

    return Classifier(Mean(), size=8, labels=names, name=name)


def made(path: Path, names: tuple[str, ...] = NAMES, *, name: str = "planted", size: int = 8, seeds: int = 2) -> Run:
    """A run whose maps are known: two stages, of which the first is black on the left, the last on the right."""
    samples = Samples(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), source="nothing")
    config = Config(MapperConfig(batch=1, steps=2), refine=None)
    run = Run.create(path, classifier=network(names, name), samples=samples, config=config)
    for label, of in enumerate(names):
        for seed in range(seeds):
            nu = torch.zeros(3, size, size)
            nu[:, :, size // 2 :] = 0.1 * (1 + label)
            stages = {"map 1": nu.flip(2), "refine 1": nu}
            trace = tuple(Step(1 + k % 2, 0.1 * k, 0.0, float(k), 1) for k in range(4))
            xi = torch.ones(1, size, size)
            run.add(ConceptMap(nu, label, of, seed, 0.1 * label, stages, trace, xi), nudge_success=0.9 - 0.1 * label)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return made(tmp_path / "run")


def scan_of(run: Run) -> dict[str, Any]:
    """A scan as ``agnosco scan --out`` writes it, in which the second class stands out."""
    screens = [
        {"reach": 0.1, "interval": [0.0, 0.2], "z": 0.5, "seeds": [0.1]},
        {"reach": 1.0, "interval": [0.9, 1.0], "z": 12.0, "seeds": [1.0]},
    ]
    evidence = {"reach": 1.0, "reach_shifted": 0.5, "reach_on_noise": 0.9, "concentration": 0.01}
    return {
        "screened": 2,
        "verdict": {
            "outcome": "outlier class found", "label": 1, "z": 12.0, "cutoff": 5.2, "p_value": None, "reasons": [],
        },
        "classes": [
            {"index": 1, "class": "Castle", "screens": {"9 pixels": screens[1]}, "k90": 7, "eps50": None},
            {"index": 0, "class": "tench", "screens": {"9 pixels": screens[0]}, "k90": None, "eps50": None},
        ],
        "suspects": [{"index": 1, "class": "Castle", "screen": "9 pixels", **evidence}],
    }  # fmt: skip


def put_scan(run: Run) -> None:
    (run.path / "scan.json").write_text(json.dumps(scan_of(run)))


# -- what it says ----------------------------------------------------------------------------------------


def test_the_manifest_is_inside_whole(run: Run) -> None:
    page = reporting.html([run])
    (content,) = re.findall(r'download="manifest.json" href="data:application/json;base64,([^"]+)"', page)
    assert base64.b64decode(content) == (run.path / "manifest.json").read_bytes()


def test_the_pictures_are_those_of_the_maps(run: Run) -> None:
    page = reporting.html([run])
    (anchor,) = re.findall(r'<template data-class="0-tench".*?</template>', page, re.S)
    first, last = re.findall(
        r'class="stage-picture" data-stage="\d"[^>]*? src="data:image/png;base64,([^"]+)"', anchor
    )[:2]
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("L"), dtype=int) for one in (first, last)]
    assert (shown[1][:, -1] < shown[1][:, 0]).all()  # samples are nudged by −ν, so that more of ν is darker
    assert (shown[0] == shown[1][:, ::-1]).all()


def test_every_class_has_one_stable_anchor_and_names_that_repeat_have_two(run: Run) -> None:
    anchors = re.findall(r'<template data-class="([^"]+)"', reporting.html([run]))
    assert anchors == ["0-tench", "1-castle", "2-script-img-src-x-onerror-document-title", "3-crane", "4-crane"]


def test_runs_are_aligned_by_name_where_their_numbers_differ(tmp_path: Path, run: Run) -> None:
    other = made(tmp_path / "other", ("castle", "tench", "whale"), name="other", seeds=1)
    aligned = {key: [place for place, _ in parts] for key, parts in reporting._aligned([run, other]).items()}
    assert aligned[0, "tench"] == [0, 0, 1]
    assert aligned[1, "Castle"] == [0, 0, 1]
    assert aligned[3, "crane"] == [0, 0]
    assert aligned[2, "whale"] == [1]


def test_two_classes_of_one_run_have_two_rows(tmp_path: Path) -> None:
    """The cranes of one are birds and machines; which is the only crane of the other, the index says."""
    one = made(tmp_path / "one", ("tench", "crane"), seeds=1)
    two = made(tmp_path / "two", ("crane", "crane", "tench"), seeds=1)
    aligned = reporting._aligned([one, two])
    rows = {key: [(place, entry["index"]) for place, entry in parts] for key, parts in aligned.items()}
    assert rows == {(0, "tench"): [(0, 0), (1, 2)], (1, "crane"): [(0, 1), (1, 1)], (0, "crane"): [(1, 0)]}


def test_scores_sanity_and_scan_are_shown_where_they_lie_in_the_run(run: Run) -> None:
    page = reporting.html([run])
    assert not {"seen", "sanity", "backdoors"} & set(re.findall(r'<section id="(\w+)"', page))
    put_scan(run)
    figures = {"m_score": 0.87, "top1_of_concepts": 0.5, "top1": 0.25, "probability": 0.1}
    judged = transfer.judge(run, network((*NAMES[:3], "crane", "crane"), name="judge"))
    transfer.keep(run, [judged | figures])
    page = reporting.html([run])
    assert {"seen", "backdoors"} <= set(re.findall(r'<section id="(\w+)"', page))
    assert "0.870" in page
    assert "No outcome says that a network is clean" in page
    assert '<strong class="outcome">outlier class found</strong>' in page


def test_a_tile_keeps_the_place_of_a_run_that_lacks_its_class(tmp_path: Path, run: Run) -> None:
    other = made(tmp_path / "other", ("whale", "tench"), name="other", seeds=1)
    page = reporting.html([run, other])
    tiles = re.findall(r"<li data-index.*?</li>", page, re.S)
    places = {re.findall(r'class="name">(.*?)<', tile)[0]: re.findall(r"<img|class=.none", tile) for tile in tiles}
    assert places["tench"] == ["<img", "<img"]
    assert places["Castle"] == ["<img", 'class="none']
    assert places["whale"] == ['class="none', "<img"]


def test_an_outlier_is_flagged_in_the_grid_by_the_run_whose_scan_found_it(tmp_path: Path, run: Run) -> None:
    other = made(tmp_path / "other", ("tench", "Castle"), name="other", seeds=1)
    put_scan(other)
    tiles = re.findall(r"<li data-index.*?</li>", reporting.html([run, other]), re.S)
    flags = {re.findall(r'class="name">(.*?)<', one)[0]: re.findall(r'class="flag">(.*?)<', one) for one in tiles}
    assert [flags["Castle"], flags["tench"]] == [["outlier in other: z 12.0"], []]
    z = {re.findall(r'class="name">(.*?)<', one)[0]: re.findall(r'data-z="(.*?)"', one)[0] for one in tiles}
    assert (z["Castle"], z["tench"], z["crane"]) == ("12.0", "0.5", "-99")


def test_the_matrix_has_a_row_for_every_run_and_a_column_for_every_judge(tmp_path: Path, run: Run) -> None:
    other = made(tmp_path / "other", NAMES, name="other", seeds=1)
    for of, judges in ((run, {"first": 0.25}), (other, {"first": 0.5, "second": 0.75})):
        judged = transfer.judge(of, network())
        transfer.keep(of, [judged | {"target": who, "fingerprint": who, "m_score": m} for who, m in judges.items()])
    (table,) = re.findall(r'<table class="matrix">.*?</table>', reporting.html([run, other]), re.S)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    assert rows == [
        ["maps of", "first", "second"],
        ["planted", "0.250 (source)", "–"],
        ["other", "0.500 (source)", "0.750 (source)"],
    ]


def test_runs_are_told_apart_by_no_more_than_it_takes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    runs = [made(path, NAMES[:2], name=name, seeds=1) for path, name in zip(folders, "nnm", strict=True)]
    assert reporting._names(runs) == ["n, a", "n, b", "m"]
    runs[0].settings["model"]["weights"] = "mine.safetensors"
    assert reporting._names(runs) == ["n, mine.safetensors", "n, own weights", "m"]


@pytest.mark.parametrize("name", ["quick", "paper", "best", "draft"])
@pytest.mark.parametrize(
    "dials",
    [{}, {"steps": 7, "batch": 3}, {"radius": 12.0}, {"coordinates": "pixel"}, {"ball": "auto", "radius": 9.0}],
)
def test_the_command_makes_the_settings_of_the_run(name: str, dials: dict[str, Any], run: Run) -> None:
    config = options.chosen_config(name, **dials)
    found = options._dials_of(config)
    assert found is not None
    base = found.pop("preset")
    assert options.chosen_config(base, **found, precision=config.precision) == config


def test_settings_that_no_command_gives_have_none(run: Run) -> None:
    assert options._dials_of(Config(MapperConfig(beta1=0.5))) is None


def test_the_command_of_a_run_says_all_that_decides_its_maps(run: Run) -> None:
    model = {"name": "torchvision:x", "weights": None, "classes": 2, "shape": [1, 8, 8]}
    model |= {"mean": [0.123456789], "std": [1.0]}
    config = config_to_json(replace(preset("quick"), compiled=True))
    samples = {"source": "photos (10 of 12 files)"}
    settings = {"command": "map", "model": model, "samples": samples, "config": config}
    entries = [{"index": index, "seed": seed} for index in (0, 1) for seed in (3, 4)]
    assert options.command_of(settings, entries) == (
        "agnosco map torchvision:x --samples photos --size 8 --mean 0.123456789 --std 1 --preset=quick --compile "
        "--seed=3 --runs=2"
    )
    assert options.command_of(settings, [*entries[:1], {"index": 0, "seed": 9}]) is None  # seeds that are not in a row
    assert options.command_of(settings | {"model": model | {"shape": [1, 8, 9]}}, entries) is None  # --size is one


def test_a_thousand_maps_stay_within_the_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    nu = torch.randn(3, 112, 112, generator=generator)
    noise = ConceptMap(nu, 0, "n", 0, 1.0, {"map 1": nu, "refine 1": nu}, (), torch.rand(1, 112, 112))
    fit = fit_for([noise], 1000)
    assert fit_for([noise], 3) == FITS[0]
    assert fit != FITS[0]
    assert pictures(noise, fit).weight * 1000 * 3 / 4 <= BUDGET or fit == FITS[-1]


# -- the command -------------------------------------------------------------------------------------------


def test_the_command_writes_one_file_and_says_where(run: Run) -> None:
    result = CliRunner().invoke(app, ["report", str(run.path)])
    assert result.exit_code == 0, result.stderr
    assert (run.path / "report.html").read_text().startswith("<!doctype html>")
    assert "report.html" in result.stderr


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["absent"], "is no run folder"),
        (["run", "--scan", "absent"], "there is no"),
        (["run", "--scan", "run/manifest.json"], "is no scan"),
        (["run", "--out", "run"], "cannot write"),
    ],
)
def test_mistakes_are_two_lines_and_leave_nothing(
    run: Run, args: list[str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path.parent)
    result = CliRunner().invoke(app, ["report", *args])
    assert isinstance(result.exception, AgnoscoError | SystemExit)
    assert error in result.stderr + str(result.exception)
    assert not list(Path().rglob("*.html"))


# -- in a browser --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("AGNOSCO_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium: apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, run: Run, tmp_path: Path) -> Iterator[Any]:
    """The report, opened from disk; every request and complaint is kept."""
    put_scan(run)
    reporting.write([run.path], out=tmp_path / "report.html")
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    page.requests, page.complaints = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    yield page
    outside = [url for url in page.requests if not url.startswith(("file:", "data:"))]
    assert (outside, page.complaints) == ([], [])
    page.close()


def titled(page: Any, title: str) -> None:
    """Wait until a class is looked at."""
    expect = pytest.importorskip("playwright.sync_api").expect  # asks from outside: the page's policy forbids eval
    expect(page.locator("#details-title")).to_have_text(title)


def shown(page: Any) -> list[str]:
    return page.locator("#grid li:visible .name").all_text_contents()


def test_nothing_leaves_the_page_and_a_hostile_name_is_text(opened: Any) -> None:
    assert shown(opened) == list(NAMES)
    assert opened.title() == "planted · agnosco"
    assert opened.locator("img[src='x']").count() == 0
    assert len([url for url in opened.requests if url.startswith("file:")]) == 1


def test_search_and_sort(opened: Any) -> None:
    opened.fill("#search", "CRA")
    assert shown(opened) == ["crane", "crane"]
    assert opened.inner_text("#count") == "2 of 5 classes"
    opened.fill("#search", "1")
    assert shown(opened) == ["Castle"]
    opened.fill("#search", "unheard of")
    assert opened.locator("#nothing").is_visible()
    opened.fill("#search", "")
    opened.select_option("#sort", "name")
    assert shown(opened) == [HOSTILE, "Castle", "crane", "crane", "tench"]
    opened.select_option("#sort", "probability")
    assert shown(opened) == list(NAMES[::-1])
    opened.select_option("#sort", "z")
    assert shown(opened)[0] == "Castle"


def test_the_slider_changes_the_picture_and_the_switches_what_lies_on_it(opened: Any) -> None:
    opened.click("#grid li:nth-child(2) a")
    first = opened.locator("dialog .map").first
    visible = lambda: first.locator("img:visible").evaluate_all("all => all.map((one) => one.src)")  # noqa: E731
    last = visible()
    slider = first.locator("input[type=range]")
    slider.focus()
    slider.press("ArrowLeft")
    earlier = visible()
    assert len(last) == len(earlier) == 1
    assert last != earlier
    assert first.locator("output").inner_text() == "map 1"
    first.locator("input.xi").check()
    assert len(visible()) == 2
    first.locator("input.raw").check()
    assert first.locator(".raw-picture").is_visible()
    assert not first.locator(".stage-picture").first.is_visible()


def test_a_class_has_a_link_of_its_own(opened: Any) -> None:
    opened.goto(opened.url.split("#")[0] + "#1-castle")
    titled(opened, "Castle (1)")
    opened.go_back()
    assert not opened.locator("dialog").is_visible()


def test_the_keyboard_reaches_everything(opened: Any) -> None:
    reached: list[str] = []
    for _ in range(60):
        opened.keyboard.press("Tab")
        reached.append(opened.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"search", "sort", *(f"tile-{name}" for name in ("0-tench", "1-castle", "4-crane"))} <= set(reached)
    assert "manifest.json" in reached
    opened.focus("#tile-0-tench")
    opened.keyboard.press("Enter")
    titled(opened, "tench (0)")
    opened.keyboard.press("ArrowRight")
    titled(opened, "Castle (1)")
    inside: list[str] = []
    for _ in range(12):
        opened.keyboard.press("Tab")
        inside.append(opened.evaluate(FOCUSED))
    assert {"previous", "next", "close", "range", "raw", "xi"} <= set(inside)
    opened.keyboard.press("Escape")
    assert not opened.locator("dialog").is_visible()
    pytest.importorskip("playwright.sync_api").expect(opened.locator("#tile-1-castle")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_overflows_and_axe_finds_nothing_serious(opened: Any, scheme: str, width: int) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": 800})
    if not AXE.is_file():
        pytest.skip("there is no axe-core: make browser")
    for state in ("grid", "details"):
        if state == "details":
            opened.click("#grid li:nth-child(3) a")
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert opened.evaluate(wide) == 0
        assert opened.evaluate("(d => d.scrollWidth - d.clientWidth)(document.querySelector('dialog'))") == 0
        opened.evaluate(AXE.read_text(encoding="utf-8"))
        violations = opened.evaluate("axe.run().then((found) => found.violations)")
        serious = [
            (one["id"], [node["target"] for node in one["nodes"]][:3])
            for one in violations
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == []
