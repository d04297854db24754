"""The report: what it says of a run, and how it behaves in a browser that may load nothing."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import re
import shlex
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import guarded, without
from PIL import EpsImagePlugin, Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from agnosco.cli.app import app
from agnosco.cli.console import Output
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.evaluate import diff_record
from agnosco.evaluate.diff_record import ClassDiff, DiffRecord, Side
from agnosco.evaluate.score_record import Answer, add_scores, digest_of
from agnosco.evaluate.transfer import score
from agnosco.io import records
from agnosco.io.local import Local
from agnosco.io.records import to_json
from agnosco.method.concept import ConceptMap
from agnosco.method.config import Config, MapperConfig, config_to_json, preset
from agnosco.models.architectures import created
from agnosco.models.classifier import Classifier
from agnosco.reports.classes import aligned
from agnosco.reports.page import Report, report
from agnosco.reports.page import opened as report_of
from agnosco.reports.pictures import BUDGET, FITS, curves, fit_for, pictures, stage_in_words
from agnosco.reports.runs import LARGEST, facts_of, names_of, view_of
from agnosco.runs import command
from agnosco.runs.manifest import Settings, slug
from agnosco.runs.run import Run
from agnosco.types import Step

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"
NAMES = ("tench", "Castle", HOSTILE, "crane", "crane")
FOCUSED = "((one) => one.className || one.id || one.type || one.tagName)(document.activeElement)"
AXE = Path(__file__).resolve().parents[2] / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"


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
            where = torch.linspace(0, 1, size).expand(1, size, size)  # more to the right
            run.add(
                ConceptMap(nu, label, of, seed, 0.1 * label, stages, trace, xi, where),
                targeted_success_rate=0.9 - 0.1 * label,
            )
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
        "model": {"name": "planted", "fingerprint": run.settings.model.fingerprint, "shape": [3, 8, 8]},
        "samples": {"source": "nothing", "count": 20}, "config": {}, "greatest_z": 12.0,
        "effective_classes": 2.0, "other_signs": {"mm_bd": {"index": 1, "p_value": 0.01}, "final_layer": None},
        "screened": [0, 1],
        "verdict": {
            "outcome": "outlier class found", "label": 1, "z": 12.0, "p_value": 0.002, "calibrated": False,
            "reasons": [],
        },
        "classes": [
            {
                "index": 1, "class": "Castle", "margin": 90.5, "screens": {"9 pixels": screens[1]}, "at_random": False,
                "k90": 7, "eps50": None,
            },
            {
                "index": 0, "class": "tench", "margin": 8.0, "screens": {"9 pixels": screens[0]}, "at_random": False,
                "k90": None, "eps50": None,
            },
        ],
        "candidates": [{"index": 1, "class": "Castle", "screen": "9 pixels", **evidence}],
    }  # fmt: skip


def page_of(*runs: Run) -> str:
    return report_of([run.folder for run in runs]).html()


def replaced(settings: Settings, **changes: Any) -> Settings:
    """Settings with some of their fields replaced; a dict replaces fields of a part."""
    parts = {
        name: msgspec.structs.replace(getattr(settings, name), **change) if name in ("model", "samples") else change
        for name, change in changes.items()
    }
    return msgspec.structs.replace(settings, **parts)


def put_scan(run: Run) -> None:
    (run.path / "scan.json").write_text(json.dumps(scan_of(run)))


def put_diff(first: Run, second: Run) -> None:
    """What ``agnosco diff`` writes: Castle has changed most, then the second crane."""
    changes = {1: (12.5, 0.0005), 4: (2.0, 0.31), 0: (1.5, 0.62), 2: (0.5, 1.0), 3: (-1.0, 1.0)}
    pairs = {
        "own": (5.25, 4.75), "other": (5.0, 1.5), "probability": (0.9, 0.8), "likeness": (0.25, None),
        "seeds_likeness": (0.75, None), "targeted_success_rate": (0.5, None),
    }  # fmt: skip
    rows = [
        msgspec.convert({"index": index, "class": NAMES[index], "change": change, "p_value": p} | pairs, ClassDiff)
        for index, (change, p) in changes.items()
    ]
    sides = [
        Side(network="n", fingerprint=run.settings.model.fingerprint, run=digest_of(run)) for run in (first, second)
    ]
    record = DiffRecord(first=sides[0], second=sides[1], seeds=2, threshold=2.75, classes=rows)
    second.folder.write(diff_record.FILE, records.encode(record))


# -- what it says ----------------------------------------------------------------------------------------


def test_the_manifest_is_inside_whole(run: Run) -> None:
    page = page_of(run)
    (content,) = re.findall(r'download="manifest.json" href="data:application/json;base64,([^"]+)"', page)
    assert base64.b64decode(content) == (run.path / "manifest.json").read_bytes()


def test_the_pictures_are_those_of_the_maps(run: Run) -> None:
    page = page_of(run)
    (anchor,) = re.findall(r'<template data-class="0-tench".*?</template>', page, re.S)
    first, last = re.findall(
        r'class="stage-picture" data-stage="[^"]+"[^>]*? src="data:image/png;base64,([^"]+)"', anchor
    )[:2]
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("L"), dtype=int) for one in (first, last)]
    assert (shown[1][:, -1] < shown[1][:, 0]).all()  # perturbed images are x − ν: more of ν is darker
    assert (shown[0] == shown[1][:, ::-1]).all()


def test_every_class_has_one_stable_anchor_and_names_that_repeat_have_two(run: Run) -> None:
    anchors = re.findall(r'<template data-class="([^"]+)"', page_of(run))
    assert anchors == ["0-tench", "1-castle", "2-script-img-src-x-onerror-document-title", "3-crane", "4-crane"]


def test_runs_are_aligned_by_name_where_their_numbers_differ(tmp_path: Path, run: Run) -> None:
    other = made(tmp_path / "other", ("castle", "tench", "whale"), name="other", seeds=1)
    places = {key: [place for place, _ in parts] for key, parts in aligned([run, other]).items()}
    assert places[0, "tench"] == [0, 0, 1]
    assert places[1, "Castle"] == [0, 0, 1]
    assert places[3, "crane"] == [0, 0]
    assert places[2, "whale"] == [1]


def test_two_classes_of_one_run_have_two_rows(tmp_path: Path) -> None:
    """The cranes of one are birds and machines; which is the only crane of the other, the index says."""
    one = made(tmp_path / "one", ("tench", "crane"), seeds=1)
    two = made(tmp_path / "two", ("crane", "crane", "tench"), seeds=1)
    rows = {key: [(place, e.index) for place, e in parts] for key, parts in aligned([one, two]).items()}
    assert rows == {(0, "tench"): [(0, 0), (1, 2)], (1, "crane"): [(0, 1), (1, 1)], (0, "crane"): [(1, 0)]}


def test_scores_sanity_and_scan_are_shown_where_they_lie_in_the_run(run: Run) -> None:
    page = page_of(run)
    assert not {"seen", "sanity", "backdoors"} & set(re.findall(r'<section id="(\w+)"', page))
    put_scan(run)
    judged = score(run, network((*NAMES[:3], "crane", "crane"), name="judge"))
    figures = {"m_score": 0.87, "top1_of_concepts": 0.5, "top1": 0.25, "probability": 0.1}
    add_scores(run, [msgspec.structs.replace(judged, **figures)])
    page = page_of(run)
    assert {"seen", "backdoors"} <= set(re.findall(r'<section id="(\w+)"', page))
    assert "0.870" in page
    assert "No outcome says that a network is clean" in page
    assert '<strong class="outcome">outlier class found</strong>' in page


def test_classes_that_had_only_the_first_look_are_listed_as_such(run: Run) -> None:
    scan = scan_of(run)
    scan["classes"][1] |= {"at_random": True}
    scan["classes"] += [scan["classes"][1] | {"index": 2, "class": "crane", "screens": {}, "at_random": False}]
    (run.path / "scan.json").write_text(json.dumps(scan))
    page = page_of(run)
    rows = {
        name: re.findall(r"<td>(.*?)</td>", row)
        for name, row in re.findall(r'row">(\w+) \(\d\)</th>(.*?)</tr>', page, re.S)
    }
    assert rows == {"Castle": ["screened"], "tench": ["screened, chosen at random"], "crane": ["first look only"]}
    assert "Screened: 2 of 3 classes, 1 with the largest margins and 1 at random." in page


def test_the_map_of_a_candidate_stands_beside_its_evidence(run: Run) -> None:
    put_scan(run)
    page = page_of(run)
    (image,) = re.findall(r'src="(data:[^"]+)"[^>]*alt="What \w+ looks for in Castle">', page)
    tile = re.findall(r'<li data-index="1".*?</li>', page, re.S)[0]
    assert image in tile


def test_the_map_of_a_candidate_is_the_runs_own_where_another_numbers_its_classes_otherwise(tmp_path: Path) -> None:
    other, run = (
        made(tmp_path / name, names, name=name, seeds=1) for name, names in (("x", NAMES[1::-1]), ("y", NAMES[:2]))
    )
    put_scan(run)
    castle, mirrored = run.map(1), run.map(1).nu.flip(2)  # unlike the other map
    run.add(replace(castle, nu=mirrored, stages={"map 1": mirrored}), targeted_success_rate=0.5)
    alone, beside = (
        re.findall(r'src="(data:[^"]+)"[^>]*alt="What y looks for', page[page.index("Evidence on y") :])
        for page in (page_of(run), page_of(other, run))
    )
    assert beside == alone
    assert len(alone) == 1


def test_a_scan_of_another_network_is_refused(run: Run) -> None:
    scan = scan_of(run)
    scan["model"]["fingerprint"] = "another"
    (run.path / "scan.json").write_text(json.dumps(scan))
    for args, hint in (([], "remove it"), (["--scan", str(run.path)], "in their order")):
        result = CliRunner().invoke(app, ["report", str(run.path), *args])
        two_lines(result, "scan.json' is a scan of another network", hint)


def test_a_tile_keeps_the_place_of_a_run_that_lacks_its_class(tmp_path: Path, run: Run) -> None:
    other = made(tmp_path / "other", ("whale", "tench"), name="other", seeds=1)
    page = page_of(run, other)
    tiles = re.findall(r"<li data-index.*?</li>", page, re.S)
    places = {re.findall(r'class="name">(.*?)<', tile)[0]: re.findall(r"<img|class=.none", tile) for tile in tiles}
    assert places["tench"] == ["<img", "<img"]
    assert places["Castle"] == ["<img", 'class="none']
    assert places["whale"] == ['class="none', "<img"]


def test_an_outlier_is_flagged_in_the_grid_by_the_run_whose_scan_found_it(tmp_path: Path, run: Run) -> None:
    other = made(tmp_path / "other", ("tench", "Castle"), name="other", seeds=1)
    put_scan(other)
    tiles = re.findall(r"<li data-index.*?</li>", page_of(run, other), re.S)
    flags = {re.findall(r'class="name">(.*?)<', one)[0]: re.findall(r'class="flag">(.*?)<', one) for one in tiles}
    assert [flags["Castle"], flags["tench"]] == [["outlier in other: z 12.0"], []]
    z = {re.findall(r'class="name">(.*?)<', one)[0]: re.findall(r'data-z="(.*?)"', one)[0] for one in tiles}
    assert (z["Castle"], z["tench"], z["crane"]) == ("12.0", "0.5", "-99")


def test_differences_are_shown_where_both_runs_are_and_their_maps_are_those_compared(tmp_path: Path, run: Run) -> None:
    other = made(tmp_path / "other", name="other")
    put_diff(run, other)
    page = page_of(run, other)
    (section,) = re.findall(r'<section id="changed".*?</section>', page, re.S)
    assert "planted and other" in section
    assert "1 of 5 classes changed by more than seeds explain (change above 2.8)" in section
    castle = re.findall(r"<td[^>]*>(.*?)</td>", re.findall(r"Castle \(1\).*?</tr>", section, re.S)[0])
    figures = ["12.5", "0.0005", "5.2, 5.0", "4.8, 1.5", "0.25 <small>(0.75)</small>", "– <small>(–)</small>"]
    assert castle == [*figures, "50\u00a0%, –"]
    assert "· change 12.5" in re.findall(r'<li data-index="1".*?</li>', page, re.S)[0]
    for shown in (page_of(other), page_of(other, made(tmp_path / "third", seeds=1))):
        assert 'id="changed"' not in shown
    add = made(tmp_path / "elsewhere", seeds=1).map(0)
    run.add(replace(add, seed=5), targeted_success_rate=0.5)
    assert 'id="changed"' not in page_of(run, other)


def test_the_matrix_has_a_row_for_every_run_and_a_column_for_every_judge(tmp_path: Path, run: Run) -> None:
    other = made(tmp_path / "other", NAMES, name="other", seeds=1)
    for of, judges in ((run, {"first": 0.25}), (other, {"first": 0.5, "second": 0.75})):
        judged = score(of, network())
        replace_in = msgspec.structs.replace
        add_scores(of, [replace_in(judged, target=who, fingerprint=who, m_score=m) for who, m in judges.items()])
    (table,) = re.findall(r'<table class="matrix">.*?</table>', page_of(run, other), re.S)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    assert rows == [
        ["maps of", "first", "second"],
        ["planted", "0.250 (source)", "–"],
        ["other", "0.500 (source)", "0.750 (source)"],
    ]


def test_networks_of_one_name_have_a_column_each_and_one_of_two_names_has_one(tmp_path: Path, run: Run) -> None:
    other = made(tmp_path / "other", NAMES, name="other", seeds=1)
    replace_in = msgspec.structs.replace
    for of, judges in ((run, {"one": "net", "two": "net"}), (other, {"one": "another name"})):
        judged = replace_in(score(of, network()), source=False)
        add_scores(of, [replace_in(judged, target=name, fingerprint=who) for who, name in judges.items()])
    (table,) = re.findall(r'<table class="matrix">.*?</table>', page := page_of(run, other), re.S)
    head, first, second = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    assert len(head) == 3
    assert "–" not in first
    assert [cell == "–" for cell in second] == [False, False, True]
    assert {"net (8 px, one)", "net (8 px, two)"} <= set(re.findall(r"<td>(.*?)</td>", page))


def test_runs_are_told_apart_by_no_more_than_it_takes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    runs = [made(path, NAMES[:2], name=name, seeds=1) for path, name in zip(folders, "nnm", strict=True)]
    assert names_of(runs) == ["n, a", "n, b", "m"]
    runs[0].settings = replaced(runs[0].settings, model={"weights": "mine.safetensors"})
    assert names_of(runs) == ["n, mine.safetensors", "n, own weights", "m"]


@pytest.mark.parametrize("name", ["quick", "paper", "best", "draft"])
@pytest.mark.parametrize(
    "dials",
    [{}, {"steps": 7, "batch": 3}, {"radius": 12.0}, {"parameterization": "pixel"}, {"ball": "auto", "radius": 9.0}],
)
def test_the_command_makes_the_settings_of_the_run(name: str, dials: dict[str, Any], run: Run) -> None:
    config = config_to_json(command.chosen_config(name, **dials))
    settings = replaced(run.settings, preset=name, overrides=dials, config=config)
    assert command.options_of(settings) == {"preset": name} | dials
    changed: dict[str, Any] = dials | {"steps": 11}
    other = replaced(settings, config=config_to_json(command.chosen_config(name, **changed)))
    assert command.options_of(other) is None  # a manifest that contradicts itself


@pytest.mark.parametrize(
    "overrides", [{"out": "/etc"}, {"steps": "9"}, {"loss": "$(reboot)"}, {"radius": "x"}, {"ball": 7}, {"steps": -1}]
)
def test_overrides_that_are_none_are_not_shown(run: Run, overrides: dict[str, Any]) -> None:
    config = config_to_json(command.chosen_config("paper"))
    assert command.options_of(replaced(run.settings, preset="paper", overrides=overrides, config=config)) is None


def test_settings_that_no_command_gives_have_none(run: Run) -> None:
    settings = replaced(run.settings, config=config_to_json(Config(MapperConfig(beta1=0.5))))
    assert settings.preset is None
    assert command.options_of(settings) is None
    assert command.options_of(replaced(settings, preset="paper")) is None
    assert command.options_of(replaced(settings, preset="no such preset")) is None


NOT_SAID: dict[str, tuple[dict[str, Any], dict[str, Any], list[tuple[int, int]]]] = {
    "of Python's making": ({"command": "python"}, {}, [(0, 0)]),
    "seeds that are not in a row": ({}, {}, [(0, 3), (0, 9)]),
    "a height of its own": ({}, {"shape": [3, 8, 9]}, [(0, 0)]),
}


@pytest.mark.parametrize("case", NOT_SAID)
def test_a_run_that_no_command_makes_has_none(case: str, run: Run) -> None:
    settings, model, jobs = NOT_SAID[case]
    config = config_to_json(preset("paper"))
    base = replaced(run.settings, command="map", preset="paper", config=config)
    entries = [msgspec.structs.replace(run.entries[0], index=index, seed=seed) for index, seed in jobs]
    assert command.command_of(base, run.entries[:1]) is not None
    assert command.command_of(replaced(base, **settings, model=model), entries) is None


def test_no_command_takes_the_samples_of_an_array(run: Run) -> None:
    array, config = np.zeros((1, 8, 8)), config_to_json(preset("paper"))
    settings = replaced(
        run.settings, command="python", preset="paper", config=config, model={"name": "python:net.py:build"}
    )
    for images, is_said in ((Samples.from_array(array), False), (Samples.from_array(array, source="photos"), True)):
        line = command.command_of(replaced(settings, samples={"source": images.source}), run.entries[:1])
        assert (line is not None) is is_said


NET = """
import torch
from torch import nn

def build(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, classes))
"""
COMMANDS = {
    "agnosco map python:net.py:build 1 --samples photos --size 16 --mean 0.1,0.2,0.3 --std 1,1,1 --preset=paper "
    "--steps=2 --batch=2 --features=0 --device=cpu --trust-code --seed=3 --seeds=2": (
        "python:net.py:build", "1", "--samples", "photos", "--size", "16", "--mean", "0.1,0.2,0.3", "--std", "1,1,1",
        "--preset", "paper", "--steps", "2", "--batch", "2", "--features", "0", "--trust-code", "--seed", "3",
        "--seeds", "2",
    ),
    "agnosco map agnosco:digits 7 --weights digits.safetensors --samples digits --size 32 --channels=1 --mean 0 "
    "--std 1 --preset=best --steps=2 --precision=float32 --device=cpu": (
        "agnosco:digits", "7", "--weights", "digits.safetensors", "--samples", "digits", "--preset", "best",
        "--steps", "2", "--precision", "float32",
    ),
    "agnosco map 'python:net.py:build(4)' --samples ./noise --size 16 --mean 0,0,0 --std 1,1,1 --preset=quick "
    "--parameterization=spectral --ball=auto --steps=2 --radius=9.0 --precision=bfloat16 --device=cpu --trust-code": (
        "python:net.py:build(4)", "--samples", "./noise", "--size", "16", "--steps", "2",
        "--parameterization", "spectral",
        "--ball", "auto", "--radius", "9", "--precision", "bfloat16", "--trust-code",
    ),
}  # fmt: skip
"""What is shown of a run, and what made it."""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network, weights and two folders of images, where commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGNOSCO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(NET)
    safetensors.torch.save_file(created("digits", 10, seed=0).state_dict(), tmp_path / "digits.safetensors")
    for folder in ("photos", "noise"):
        (tmp_path / folder).mkdir()
        for shade in range(5):
            Image.new("RGB", (16, 16), (50 * shade, 90, 30)).save(tmp_path / folder / f"{shade}.png")
    return tmp_path


@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_that_is_shown_makes_the_run_again(line: str, workplace: Path) -> None:
    given = CliRunner().invoke(app, ["map", *COMMANDS[line], "--device", "cpu", "--out", "first"])
    assert given.exit_code == 0, given.stderr
    run = Run.open(workplace / "first")
    assert command.command_of(run.settings, run.entries) == line
    again = CliRunner().invoke(app, [*shlex.split(line)[1:], "--out", "second"])
    assert again.exit_code == 0, again.stderr
    second = Run.open(workplace / "second")
    assert second.settings == run.settings
    assert [entry.sha256 for entry in second.entries] == [entry.sha256 for entry in run.entries]


def test_facts_and_command_call_the_settings_the_same(run: Run) -> None:
    def told(preset: str | None, config: Config, **overrides: Any) -> str:
        run.settings = replaced(run.settings, preset=preset, overrides=overrides, config=config_to_json(config))
        return dict(facts_of(run))["settings"].partition(":")[0]

    quick = command.chosen_config("quick")
    assert told("quick", quick) == "preset quick"
    assert told("quick", replace(quick, precision="bfloat16", compiled=True), compiled=True) == "preset quick"
    changed = command.chosen_config("best", steps=8, batch=2)
    assert told("best", changed, steps=8, batch=2) == "preset best with steps 8, batch 2"
    assert told(None, Config(MapperConfig(beta1=0.5))) == "no preset"


@pytest.mark.parametrize(("known", "told"), [(0, "unknown"), (1, "1970-01-02 00:00 UTC")])
def test_a_store_that_does_not_say_when_files_were_written_has_no_dates(
    run: Run, monkeypatch: pytest.MonkeyPatch, known: int, told: str
) -> None:
    times = iter([math.nan] * (len(run.entries) - known) + [86400.0] * known)
    monkeypatch.setattr(Local, "modified", lambda *_: next(times))
    assert dict(facts_of(run))["files dated"] == told


def test_facts_are_those_of_the_manifest(run: Run) -> None:
    for entry in run.entries:
        name = f"{entry.index:04d}-{slug(entry.name)}-s{entry.seed}.safetensors"
        os.utime(run.path / "maps" / name, (86400.0, 86400.0))
    run.settings = replaced(
        run.settings,
        model={"fingerprint": "0123456789abcdefghi", "weights": "mine.safetensors"},
        samples={"fingerprint": "fedcba9876543210xyz"},
        device="cuda:1",
        threads=3,
        versions={"agnosco": "1.2", "torch": "2.10", "timm": None},
    )
    assert facts_of(run) == [
        ("model", "planted, 5 classes"),
        ("weights", "mine.safetensors, fingerprint 0123456789abcdef"),
        ("input", "8 × 8 px, mean 0, 0, 0, std 1, 1, 1"),
        ("samples", "nothing, 20 images, fingerprint fedcba9876543210"),
        ("maps", "10 of 5 classes, seeds 0, 1"),
        (
            "settings",
            "no preset: Pixel, Identity, L2 (1.1 at this size), 2 x 2 steps of 1 images",
        ),
        ("device", "cuda:1, 3 threads"),
        ("files dated", "1970-01-02 00:00 UTC"),
        ("versions", "agnosco 1.2, torch 2.10"),
    ]


# -- pictures and curves -------------------------------------------------------------------------------


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_the_raw_picture_is_half_less_nu(run: Run) -> None:
    page = page_of(run)
    (anchor,) = re.findall(r'<template data-class="0-tench".*?</template>', page, re.S)
    raw = decoded(re.findall(r'class="raw-picture" hidden src="([^"]+)"', anchor)[0])
    assert raw.shape == (8, 8, 3)
    assert (raw[:, :4] == 128).all()  # Clip(1/2 − 0)
    assert (raw[:, 4:] == 102).all()  # Clip(1/2 − 0.1)


def test_xi_glows_where_it_is_great() -> None:
    arrays = {"nu": np.full((3, 2, 2), 0.1, np.float32), "xi": np.array([[[0, 255], [128, 51]]], np.uint8)}
    glow = decoded(pictures(arrays, ["map 1"], FITS[0]).xi or "")
    assert np.abs(glow[..., 3].astype(int) - [[0, 178], [89, 36]]).max() <= 1  # 0.7 · 255 · Ξ


def test_a_veil_of_grey_hides_what_contributes_little() -> None:
    shares = (np.arange(16, dtype=np.uint8) * 17).reshape(1, 4, 4)  # sixteen even steps
    arrays = {"nu": np.full((3, 4, 4), 0.1, np.float32), "contribution": shares}
    veil = decoded(pictures(arrays, ["map 1"], FITS[0]).veil or "")
    assert (veil[..., 3].flatten()[:7] == 255).all()  # 40 % of the places are hidden
    assert abs(int(veil[..., 3].flatten()[9]) - 127) <= 1
    assert (veil[..., 3].flatten()[12:] == 0).all()
    assert np.abs(veil[:2, :, :3].astype(int) - 128)[veil[:2, :, 3] == 255].max() <= 2
    del arrays["contribution"]
    assert pictures(arrays, ["map 1"], FITS[0]).veil is None


def test_a_curve_rises_where_its_values_do() -> None:
    arrays = {"trace/probability": np.array([0.0, 0.5, 1.0]), "trace/norm": np.array([0.0, 2.0, 4.0])}
    probability, norm = curves(arrays, ["map 1"], norm=3.0)
    assert (probability.points, probability.high) == ("0.0,80.0 160.0,40.0 320.0,0.0", 1.0)  # y grows downwards
    assert (norm.points, norm.high, norm.title, norm.last) == ("0.0,80.0 160.0,40.0 320.0,0.0", 4.0, "‖ν‖", "4.00")
    norm = curves(arrays, ["map 1", "refine 1"], norm=3.0)[1]
    assert norm.title == "‖ν‖; of a refinement, before the projection"
    assert norm.last == "4.00, and 3.00 after the projection"
    arrays["trace/norm"] = np.array([np.nan, 2.0, -np.inf])
    assert curves(arrays, ["map 1"], norm=3.0)[1].points == "160.0,0.0"  # "nan" and "inf" are no numbers of SVG


def test_stages_have_plain_names() -> None:
    names = ("map 1", "refine 1", "map 2", "refine 2", "map 3", "elsewhere")
    assert [stage_in_words(name) for name in names] == [
        "Algorithm 1", "refined", "Algorithm 1, again", "refined, again", "Algorithm 1, cycle 3", "elsewhere",
    ]  # fmt: skip


def test_a_name_of_a_megabyte_makes_no_page_of_many(tmp_path: Path) -> None:
    run = made(tmp_path / "run", ("x" * 1_000_000, "tench"), name="y" * 1_000_000)
    found = scan_of(run)
    found["classes"][1]["class"] = found["candidates"][0]["class"] = "z" * 1_000_000
    (run.path / "scan.json").write_text(json.dumps(found))
    page = re.sub(r'href="data:application/json[^"]+"', "", page_of(run))  # the manifest is there whole
    assert len(page) < 150_000


def test_a_thousand_maps_stay_within_the_budget() -> None:
    generator = np.random.default_rng(0)
    nu = generator.standard_normal((3, 112, 112), np.float32)
    arrays = {"nu": nu, "stages/map 1": nu, "xi": generator.integers(256, size=(1, 112, 112), dtype=np.uint8)}
    stages = ["map 1", "refine 1"]
    fit = fit_for([(arrays, stages)], 1000)
    assert fit_for([(arrays, stages)], 3) == FITS[0]
    assert fit != FITS[0]
    assert pictures(arrays, stages, fit).weight * 1000 * 3 / 4 <= BUDGET or fit == FITS[-1]


# -- the command -------------------------------------------------------------------------------------------


def test_characters_that_cannot_be_written_are_left_out(run: Run) -> None:
    changes = {"model": {"name": "a\ud800", "weights": "b\udfff.safetensors"}, "samples": {"source": "c\ud800"}}
    run.settings = replaced(run.settings, **changes)
    view = view_of(run, "d\ud800", None)
    name, size = Report([run], [view], None).write()
    content = Path(name).read_bytes()
    assert len(content) == size
    assert "What a? has learned" in content.decode()


def test_the_command_on_the_page_has_no_control_characters(run: Run) -> None:
    config = config_to_json(preset("paper"))
    changes = {"command": "map", "preset": "paper", "config": config, "model": {"weights": "w\x1b[31m  x\x00"}}
    run.settings = replaced(run.settings, **changes)
    assert "w\x1b[31m  x\x00" in (command.command_of(run.settings, run.entries) or "")
    assert "w[31m  x" in (view_of(run, "name", None).command or "")


def test_the_command_writes_one_file_and_says_where(run: Run) -> None:
    result = CliRunner().invoke(app, ["report", str(run.path)])
    assert result.exit_code == 0, result.stderr
    assert (run.path / "report.html").read_text().startswith("<!doctype html>")
    assert "report.html" in result.stderr


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["absent"], "is not a run folder", "agnosco map"),
        (["run", "--scan", "absent"], "there is no", "agnosco scan --out"),
        (["run", "--scan", "run/manifest.json"], "cannot read 'run/manifest.json'", "agnosco scan --out"),
        (["run", "--scan", "run", "--scan", "run"], "2 scans for 1 runs", "one --scan for each run"),
        (["run", "./run/"], "is given twice", "once"),
        (["run", "--out", "run/manifest.json"], "'run/manifest.json' is not an HTML file", "ends in .html"),
        (["run", "--out", "memory://report.html"], "'memory://report.html' names no folder", "s3://bucket/FILE"),
        (["run", "--out", "memory://"], "'memory://report.html' names no folder", "s3://bucket/FILE"),
        (["run", "--out", ""], "'' is not an HTML file", "with / at its end"),
        (["run", "--out", "notes.txt"], "'notes.txt' is not an HTML file", "with / at its end"),
        (["run", "--out", "mine.html"], "'mine.html' is not an HTML page", "another name"),
    ],
)
def test_mistakes_are_two_lines_and_leave_all_as_it_was(
    run: Run, args: list[str], error: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path.parent)
    Path("mine.html").write_text("my notes, <!doctype html> and all")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    monkeypatch.setattr(Output, "bar", None)  # there is none before a mistake
    two_lines(CliRunner().invoke(app, ["report", *args]), error, hint)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def two_lines(result: Result, error: str, hint: str = "") -> None:
    assert result.exit_code == 2, result.exception
    first, second = result.stderr.splitlines()
    assert first.startswith("Error: ")
    assert error in first
    assert second.startswith("Hint: ")
    assert hint in second


@pytest.mark.parametrize(
    ("out", "where"),
    [
        ("new/", "new/report.html"), ("there", "there/report.html"), ("deep/er/", "deep/er/report.html"),
        ("a.htm", "a.htm"), ("old.html", "old.html"), (Path("there"), "there/report.html"),
        ("~/there", "~/there/report.html"),
    ],
)  # fmt: skip
def test_the_page_goes_where_it_is_wanted(run: Run, out: Any, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parent)
    Path("there").mkdir()
    Path("old.html").write_text("<!DOCTYPE HTML><p>an older page")
    monkeypatch.setenv("HOME", str(run.path.parent))
    assert report(run.path, out=out) == where
    assert Path(where).expanduser().read_text().startswith("<!doctype html>")
    assert not (run.path / "report.html").exists()


def test_a_report_of_no_run_is_refused() -> None:
    with pytest.raises(AgnoscoError, match="a report needs a run"):
        report()


def test_runs_of_one_network_in_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [made(tmp_path / parent / "run", NAMES[:2], name="n", seeds=1) for parent in ("x", "y")]
    assert names_of(runs) == ["n, x/run", "n, y/run"]


DEEP = "[" * 100_000 + "]" * 100_000


def altered(content: dict[str, Any], path: tuple[Any, ...], value: Any) -> str:
    """JSON in which one thing is another."""
    part: Any = content
    for key in path[:-1]:
        part = part[key]
    if value is KeyError:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return json.dumps(content)


SCANS: list[tuple[tuple[Any, ...], Any]] = [
    (("classes",), []), (("candidates",), KeyError), (("verdict",), "outlier class found"),
    (("verdict", "label"), 99), (("verdict", "outcome"), "all is well"), (("verdict", "z"), 1e999),
    (("classes", 0, "screens"), {}), (("classes", 1, "screens"), {"another": {}}), (("classes", 0, "margin"), None),
    (("classes", 0, "screens", "9 pixels", "interval"), [0.1]), (("classes", 0, "index"), "1"),
    (("candidates", 0, "concentration"), None), (("candidates", 0, "reach"), "all"), (("classes", 0, "k90"), 10**400),
]  # fmt: skip
SANITY = {
    "classes": ["a"], "labels": {"right": 1.0, "own": 1.0, "other": 0.0}, "planted": [[1.0]],
    "seeds": {"one class": None, "two classes": {"ssim": 0.1, "rank": 0.1, "features": 0.1}}, "cascade": [],
}  # fmt: skip
SANITIES: list[tuple[tuple[Any, ...], Any]] = [
    (("labels",), KeyError), (("planted",), []), (("planted",), [[1.0, 2.0]]), (("seeds", "two classes"), None),
    (("cascade",), [{"stages": []}]), (("classes",), "abc"),
]  # fmt: skip
JUDGEMENTS: list[tuple[tuple[Any, ...], Any]] = [
    (("targets", 0, "m_score"), "high"), (("targets", 0, "m_score"), None), (("targets", 0, "top1"), float("nan")),
    (("targets", 0, "interval"), {"m_score": [0.1, 0.2]}), (("targets", 0, "interval", "m_score"), [0.1]),
    (("targets", 0, "targeted_success_rate"), "most"), (("targets",), {}),
]  # fmt: skip
TEXTS = ["3", '["screened"]', '{"screened": 2}', "{}", "[]", DEEP, "", "\x00", "nothing of the kind"]


@pytest.mark.parametrize("file", ["scan.json", "sanity.json", "scores.json", "diff.json"])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_file_beside_the_maps_that_is_something_else_is_two_lines(run: Run, file: str, text: str) -> None:
    (run.path / file).write_text(text)
    two_lines(CliRunner().invoke(app, ["report", str(run.path)]), file, "again")


@pytest.mark.parametrize(("path", "value"), SCANS)
def test_a_scan_that_was_altered_is_two_lines(run: Run, path: tuple[Any, ...], value: Any) -> None:
    (run.path / "scan.json").write_text(altered(scan_of(run), path, value))
    two_lines(CliRunner().invoke(app, ["report", str(run.path)]), "scan.json", "scan again")


@pytest.mark.parametrize(("path", "value"), SANITIES)
def test_sanity_results_that_were_altered_are_two_lines(run: Run, path: tuple[Any, ...], value: Any) -> None:
    (run.path / "sanity.json").write_text(json.dumps(SANITY))
    page_of(run)
    (run.path / "sanity.json").write_text(altered(json.loads(json.dumps(SANITY)), path, value))
    two_lines(CliRunner().invoke(app, ["report", str(run.path)]), "sanity.json", "check again")


@pytest.mark.parametrize(("path", "value"), JUDGEMENTS)
def test_judgements_that_were_altered_are_two_lines(run: Run, path: tuple[Any, ...], value: Any) -> None:
    kept = add_scores(run, [score(run, network())])
    assert kept[0].interval is not None
    (run.path / "scores.json").write_text(altered({"targets": to_json(kept)}, path, value))
    two_lines(CliRunner().invoke(app, ["report", str(run.path)]), "scores.json", "score again")


MANIFESTS: list[tuple[tuple[Any, ...], Any]] = [
    (("model", "mean"), ["0.4", "0.4", "0.4"]), (("model", "shape"), [1, 3, 8, 8]), (("versions",), {"torch": 3}),
    (("maps", 0, "norm"), "long"), (("maps", 0, "stages"), [3]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), MANIFESTS)
def test_a_manifest_that_was_altered_is_two_lines(run: Run, path: tuple[Any, ...], value: Any) -> None:
    run.end()
    content = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(altered(content, path, value))
    healed = CliRunner().invoke(app, ["report", str(run.path)])
    assert healed.exit_code == 0, healed.stderr
    assert "is damaged; it was rebuilt from its" in healed.stderr.splitlines()[0]
    shutil.rmtree(run.path / "maps")
    two_lines(CliRunner().invoke(app, ["report", str(run.path)]), "manifest.json' is not the manifest of a run")


def bomb(side: int) -> bytes:
    """The head of a PNG of so many pixels a side."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">II", zlib.crc32(head), 1) + b"IDAT"


def picture(kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, kind)
    return content.getvalue()


@pytest.mark.parametrize("file", ["scan.png", "sanity.png"])
@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"no picture", "is not a picture"),
        (b"", "is not a picture"),
        (picture()[:1000], "is not a picture"),
        (picture("GIF"), "is not a picture"),  # agnosco writes none: one decoder is enough to trust
        (bomb(8193), f"has more than {LARGEST:,} pixels"),
        (bomb(11_000), f"has more than {LARGEST:,} pixels"),  # of which Pillow warns
        (bomb(100_000), f"has more than {LARGEST:,} pixels"),  # which Pillow refuses
        (bomb(32)[:33] + picture()[8:], "is not a picture"),  # the second size is the one that Pillow takes
    ],
    ids=range(8),
)
def test_a_picture_that_is_none_is_two_lines(run: Run, file: str, content: bytes, error: str) -> None:
    put_scan(run)
    (run.path / file).write_bytes(content)
    two_lines(CliRunner().invoke(app, ["report", str(run.path)]), f"{file}' {error}")


@pytest.mark.parametrize("file", ["scan.png", "sanity.png"])
def test_postscript_is_not_run(run: Run, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives it to Ghostscript, wherever that is installed; here one that notes that it was called."""
    called, ghostscript = tmp_path / "called", tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {called}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    put_scan(run)
    (run.path / file).write_bytes(picture("EPS"))
    two_lines(CliRunner().invoke(app, ["report", str(run.path)]), f"{file}' is not a picture")
    assert not called.exists()
    with contextlib.suppress(OSError), Image.open(run.path / file) as image:
        image.load()
    assert called.exists()


@pytest.mark.parametrize("file", ["scan.png", "sanity.png"])
def test_a_link_to_a_picture_of_somebody_is_not_followed(run: Run, tmp_path: Path, file: str) -> None:
    put_scan(run)
    (tmp_path / "private.png").write_bytes(picture())
    (run.path / file).symlink_to(tmp_path / "private.png")
    two_lines(CliRunner().invoke(app, ["report", str(run.path)]), f"{file}' is a link")


def test_a_map_that_is_missing_is_two_lines(run: Run) -> None:
    (run.path / "maps" / "0001-castle-s0.safetensors").unlink()
    two_lines(
        CliRunner().invoke(app, ["report", str(run.path)]), "is missing: 0001-castle-s0.safetensors", "makes this map"
    )


def test_a_report_with_scores_sanity_and_scan_imports_no_torch(run: Run) -> None:
    put_scan(run)
    (run.path / "sanity.json").write_text(json.dumps(SANITY))
    add_scores(run, [score(run, network())])
    other = made(run.path.parent / "other", name="other")
    put_diff(other, run)
    folders = [str(run.path), str(other.path)]
    result = guarded("torch,torchvision,timm,scipy,skimage,rich.console", "report", *folders, "--quiet")
    assert result.returncode == 0, result.stderr
    sections = re.findall(r'<section id="(\w+)"', (run.path / "report.html").read_text())
    assert sections == ["classes", "seen", "also", "changed", "sanity", "backdoors", "reading", "made"]


# -- in a browser --------------------------------------------------------------------------------------------


@pytest.fixture
def opened(chromium: Any, run: Run, tmp_path: Path) -> Iterator[Any]:
    """The report, opened from disk; every request and complaint is kept."""
    put_scan(run)
    judged_by_one(run)
    report(run, out=tmp_path / "report.html")
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    page.place, page.content_on_disk = tmp_path, (tmp_path / "report.html").read_text()
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


TITLES = ("tench (0)", "Castle (1)", f"{HOSTILE} (2)")


def choose(page: Any, title: str) -> None:
    """Open a class from its tile: the address changes at once, and what is shown a moment later."""
    page.click(f"#grid li:nth-child({TITLES.index(title) + 1}) a")
    titled(page, title)


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
    opened.select_option("#sort", "probability 0")
    assert shown(opened) == list(NAMES[::-1])
    opened.select_option("#sort", "z")
    assert shown(opened)[0] == "Castle"


def expects(locator: Any) -> Any:
    return pytest.importorskip("playwright.sync_api").expect(locator)


def seen(opened: Any) -> list[str]:
    """The pictures of the first map that are to be seen, bottom first."""
    return opened.locator("dialog .map").first.locator("img:visible").evaluate_all("all => all.map((one) => one.src)")


def test_one_slider_moves_all_maps_of_a_class_and_of_the_next(opened: Any) -> None:
    choose(opened, TITLES[1])
    last = seen(opened)
    expects(opened.locator("#stage-name")).to_have_text("refined")
    opened.focus("#stage")
    opened.keyboard.press("ArrowLeft")
    earlier = seen(opened)
    assert len(last) == len(earlier) == 1
    assert last != earlier
    assert opened.locator("dialog .shown").all_inner_texts() == ["Algorithm 1", "Algorithm 1"]  # both seeds
    assert opened.get_attribute("#stage", "aria-valuetext") == "Algorithm 1"
    opened.click("#next")
    titled(opened, f"{HOSTILE} (2)")
    expects(opened.locator("#stage-name")).to_have_text("Algorithm 1")
    assert opened.locator("dialog .stage-picture:visible").count() == 2
    assert opened.locator("dialog .stage-picture:visible").first.get_attribute("data-stage") == "Algorithm 1"


def test_raw_and_xi_are_of_the_finished_map_and_lie_on_no_other(opened: Any) -> None:
    choose(opened, TITLES[1])
    opened.check("#xi")
    assert len(seen(opened)) == 2
    opened.check("#raw")
    assert opened.locator("dialog .raw-picture:visible").count() == 2
    assert opened.locator("dialog .stage-picture:visible").count() == 0
    assert opened.locator("#stage").is_disabled()
    assert opened.locator("#xi").is_enabled()
    opened.keyboard.press("Escape")
    choose(opened, TITLES[0])
    assert opened.locator("dialog .raw-picture:visible").count() == 2  # kept from class to class
    assert opened.is_checked("#xi")
    opened.uncheck("#raw")
    opened.focus("#stage")
    opened.keyboard.press("ArrowLeft")
    assert (opened.is_checked("#xi"), opened.locator("#xi").is_disabled()) == (False, True)
    assert opened.locator("dialog .xi-picture:visible").count() == 0
    assert "finished map" in opened.locator("label:has(#xi)").get_attribute("title")


def test_where_is_a_veil_over_the_finished_map(opened: Any) -> None:
    choose(opened, TITLES[1])
    opened.check("#where")
    assert opened.locator("dialog .where-picture:visible").count() == 2  # of both seeds
    assert opened.locator("dialog .xi-picture:visible").count() == 0
    opened.check("#raw")
    opened.check("#xi")
    assert len(seen(opened)) == 3
    opened.uncheck("#raw")
    opened.focus("#stage")
    opened.keyboard.press("ArrowLeft")
    assert (opened.is_checked("#where"), opened.locator("#where").is_disabled()) == (False, True)
    assert opened.locator("dialog .where-picture:visible").count() == 0


def test_a_class_that_the_search_hides_is_beside_none(opened: Any) -> None:
    opened.fill("#search", "crane")
    opened.evaluate("location.hash = '#1-castle'")
    titled(opened, "Castle (1)")
    assert (opened.locator("#previous").is_disabled(), opened.locator("#next").is_disabled()) == (True, True)
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowLeft")
    titled(opened, "Castle (1)")
    assert opened.url.endswith("#1-castle")


@pytest.mark.parametrize("end", ["#%", "#%E0%A4%A", "#__proto__", "#classes", "#"])
def test_a_link_to_nothing_opens_the_grid(opened: Any, end: str) -> None:
    opened.goto("about:blank")
    opened.goto((opened.place / "report.html").as_uri() + end)
    assert shown(opened) == list(NAMES)
    assert opened.inner_text("#count") == "5 classes"
    opened.fill("#search", "castle")
    assert shown(opened) == ["Castle"]


def test_the_policy_refuses_every_request(opened: Any) -> None:
    assert 'http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;; ' in opened.content_on_disk
    refused = opened.evaluate(
        """async () => {
          const refused = [];
          document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
          await fetch("http://127.0.0.1:9/").catch(() => {});
          await new Promise((done) => {
            const image = new Image();
            image.onerror = image.onload = done;
            image.src = "http://127.0.0.1:9/x.png";
          });
          const frame = document.createElement("iframe");
          frame.src = "http://127.0.0.1:9/";
          document.body.append(frame);
          for (let tries = 0; refused.length < 3 && tries < 6000; tries++)
            await new Promise((done) => setTimeout(done, 50));
          return refused.sort();
        }"""
    )
    assert refused == ["connect-src", "frame-src", "img-src"]
    opened.complaints.clear()  # the browser says so, as it should
    opened.requests[:] = [url for url in opened.requests if "127.0.0.1:9" not in url]


def test_a_class_is_printed_once_and_whole_and_nothing_else(opened: Any) -> None:
    opened.emulate_media(media="print", color_scheme="dark")
    assert opened.locator("main").is_visible()
    choose(opened, TITLES[1])
    assert not opened.locator("main").is_visible()
    box, style = opened.locator("dialog").evaluate(
        "(one) => [one.getBoundingClientRect().top, ['position', 'overflowY', 'maxHeight', 'backgroundColor']"
        ".map((name) => getComputedStyle(one)[name])]"
    )
    assert box == 0
    assert style == ["absolute", "visible", "none", "rgb(255, 255, 255)"]  # what is fixed is on every page
    assert len(re.findall(rb"/Type\s*/Page\b", opened.pdf())) == 1


def test_facts_are_folded_on_a_phone_and_open_elsewhere(opened: Any) -> None:
    assert opened.locator(".facts").is_visible()
    opened.set_viewport_size({"width": 390, "height": 800})
    opened.reload()
    assert not opened.locator(".facts").is_visible()
    opened.click("summary")
    assert opened.locator(".facts").is_visible()


def test_without_javascript_there_are_no_dead_tools(chromium: Any, run: Run) -> None:
    report(run)
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto((run.path / "report.html").as_uri())
    assert page.locator("#grid li:visible").count() == 5
    assert not page.locator("form.tools").is_visible()
    assert page.locator(".facts").is_visible()
    page.context.close()


LONG_NAME = "another network of a long name"


def test_a_grid_of_several_runs_is_sorted_by_one_of_them(chromium: Any, run: Run, tmp_path: Path) -> None:
    other = made(tmp_path / "other", ("whale", "tench", "Castle"), name=LONG_NAME, seeds=1)
    report(run, other, out=tmp_path / "two.html")
    page = chromium.new_page()
    page.goto((tmp_path / "two.html").as_uri())
    labels = page.locator("#sort option").all_inner_texts()
    assert labels[2:] == [
        "p(class) by planted, greatest first", "targeted success rate by planted, greatest first",
        f"p(class) by {LONG_NAME}, greatest first", f"targeted success rate by {LONG_NAME}, greatest first",
    ]  # fmt: skip
    page.select_option("#sort", label=labels[4])
    assert shown(page)[:3] == ["Castle", "tench", "whale"]  # 0.2, 0.1 and 0; those it has not come last
    page.select_option("#sort", label=labels[2])
    assert shown(page) == ["crane", "crane", HOSTILE, "Castle", "tench", "whale"]
    assert page.locator("#grid li:has-text('whale') .none").text_content() == "no map"
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()


@pytest.mark.parametrize("width", [390, 1200])
def test_classes_are_ordered_by_how_much_they_changed(chromium: Any, run: Run, tmp_path: Path, width: int) -> None:
    other = made(tmp_path / "other", name=LONG_NAME)
    put_diff(run, other)
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto(Path(report(run, other, out=tmp_path / "two.html")).as_uri())
    page.select_option("#sort", label="most changed")
    order = page.locator("#grid li:visible").evaluate_all("all => all.map((one) => one.dataset.index)")
    assert order == ["1", "4", "0", "2", "3"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


OVERFLOW = """() => [...document.querySelectorAll('.scan')].flatMap((scan) => {
  const box = scan.getBoundingClientRect();
  return [...scan.querySelectorAll('p, .scroll, caption, th, td, img')]
    .filter((one) => one.getBoundingClientRect().right > box.right + 0.5 || one.scrollWidth > one.clientWidth + 1)
    .map((one) => one.textContent || one.tagName);
})"""
"""What of a scan reaches beyond its box, or holds more than it shows."""


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_of_two_scans_side_by_side_is_cut_off(chromium: Any, run: Run, tmp_path: Path, width: int) -> None:
    other = made(tmp_path / "other", name="other", seeds=1)
    for of in (run, other):
        scan = scan_of(of)
        for row in scan["classes"]:
            (seen,) = row["screens"].values()
            row["screens"] = {"9 pixels": seen, "windows x 0.33": seen, "L2 24.0": seen}
            row |= {"k90": 450, "eps50": 12.34}
        (of.path / "scan.json").write_text(json.dumps(scan))
        Image.new("RGB", (472, 900)).save(of.path / "scan.png")
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto(Path(report(run, other, out=tmp_path / "two.html")).as_uri())
    assert page.locator(".scan").count() == 2
    assert page.evaluate(OVERFLOW) == []
    page.close()


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
    assert {"previous", "next", "close", "stage", "raw", "xi", "where"} <= set(inside)
    opened.keyboard.press("Escape")
    assert not opened.locator("dialog").is_visible()
    pytest.importorskip("playwright.sync_api").expect(opened.locator("#tile-1-castle")).to_be_focused()


def test_a_class_that_is_asked_for_while_another_closes_is_opened_and_can_be_left_for_the_next(opened: Any) -> None:
    opened.click("#tile-0-tench")
    titled(opened, "tench (0)")
    opened.evaluate("() => { document.getElementById('details').close(); location.hash = '#1-castle' }")
    titled(opened, "Castle (1)")
    opened.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")  # it has closed
    assert opened.evaluate("location.hash") == "#1-castle"
    opened.click("#next")
    titled(opened, f"{HOSTILE} (2)")


def judged_by_one(run: Run) -> None:
    """A judgement by a network that sees each class in its own picture with p 0.5, and in the next one with p 0.25."""
    names = list({entry.index: entry.name for entry in run.entries}.values())
    judged = score(run, network(tuple(names)))
    following = [(index + 1) % len(names) for index in range(len(names))]
    answers = [
        Answer(own=i, entropy=1.0, top=((i, names[i], 0.5), (following[i], names[following[i]], 0.25)))
        for i in (entry.index for entry in run.entries)
    ]
    add_scores(run, [msgspec.structs.replace(judged, target="judge", fingerprint="judge", answers=tuple(answers))])


def test_what_else_is_seen_stands_beside_a_map_and_in_a_table(chromium: Any, tmp_path: Path) -> None:
    run = made(tmp_path / "run", ("tench", HOSTILE, "crane"), seeds=1)
    judged_by_one(run)
    report(run, out=tmp_path / "report.html")
    page = chromium.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    rows = page.locator(".likeness tbody tr").all()
    names = page.locator(".likeness thead th").all_text_contents()[1:]
    cells = {row.locator("th").text_content(): row.locator("td").all_text_contents() for row in rows}
    assert cells["tench"][names.index("tench")] == "0.50"
    assert cells["tench"][names.index(HOSTILE)] == "0.25"
    assert cells["tench"][names.index("crane")] == ""
    page.goto((tmp_path / "report.html").as_uri() + "#0-tench")
    assert page.locator("dialog .also").text_content() == f"judge also sees: {HOSTILE} 0.25"
    with page.expect_download() as download:
        page.evaluate("document.querySelector('a[download=\"lookalikes.csv\"]').click()")
    lines, quoted = download.value.path().read_text().splitlines(), HOSTILE.replace('"', '""')
    assert lines[0] == "map,map_index,seed,network,fingerprint,rank,class,class_index,p"
    assert lines[1:3] == [
        "tench,0,0,judge,judge,1,tench,0,0.5",
        f'tench,0,0,judge,judge,2,"{quoted}",1,0.25',
    ]
    page.close()


def test_a_large_matrix_is_a_picture_that_can_be_read_and_zoomed(chromium: Any, tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(30))
    run = made(tmp_path / "run", names, seeds=1)
    judged_by_one(run)
    report(run, out=tmp_path / "report.html")
    complaints: list[str] = []
    page = chromium.new_page(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")  # scrolls at once
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    plane, expect = page.locator(".plane"), pytest.importorskip("playwright.sync_api").expect
    expect(plane).to_be_visible()
    order = json.loads(plane.get_attribute("data-names"))
    assert sorted(order) == sorted(names)
    view, said = plane.locator(".window"), plane.locator("[role=status]")
    view.press("ArrowDown")
    view.press("ArrowUp")  # the first row and column
    p = re.fullmatch(f"Pictures of {order[0]} are taken for {order[0]} with p (0\\.\\d+)", said.text_content())
    assert p is not None
    assert float(p[1]) == pytest.approx(0.5, abs=0.01)
    row, column = order.index("class 7"), order.index("class 8")
    image = view.locator("img")
    for zoom in (0, 100):
        plane.locator("input").fill(str(zoom))
        cell = image.evaluate("(one) => one.clientWidth") / 30
        view.press("ArrowLeft")  # elsewhere, so that what follows is said anew
        expect(said).not_to_contain_text("class 8")
        image.hover(position={"x": (column + 0.5) * cell, "y": (row + 0.5) * cell}, force=True)
        # 0.25, whose root is kept in 255ths
        expect(said).to_have_text("Pictures of class 7 are taken for class 8 with p 0.252")
    assert complaints == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_overflows_and_axe_finds_nothing_serious(opened: Any, scheme: str, width: int) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": 800})
    if not AXE.is_file():
        without("there is no axe-core: make browser")
    for state in ("grid", "details"):
        if state == "details":
            choose(opened, TITLES[2])
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
