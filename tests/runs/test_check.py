"""``agnosco check``: what a folder holds and what is wrong with it; nothing is changed, and anything may lie there."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from helpers import NET, guarded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner, Result

from agnosco.cli.app import app
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError, AgnoscoWarning
from agnosco.evaluate.score_record import add_scores
from agnosco.evaluate.transfer import score
from agnosco.io.atomic import PART, host_name
from agnosco.method import maker
from agnosco.method.config import Config, MapperConfig
from agnosco.models.classifier import Classifier
from agnosco.models.loading import load
from agnosco.reports.check import check
from agnosco.runs import jobs
from agnosco.runs.command import chosen_config
from agnosco.runs.jobs import map_runs
from agnosco.runs.run import Run

LABELS = ("ant", "bee", "cat", "dog", "eel")
CONFIG = Config(MapperConfig(batch=4, steps=2), refine=None, cycles=1)
SAMPLES = Samples.noise((3, 4, 4), count=20)
HOSTILE = "\x1b[31mme\u202e"


def network() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    return Classifier(model, size=4, channels=3, labels=LABELS, name=HOSTILE)


def make(path: Path, **options: Any) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maker, "images_at_once", lambda _network: 8)  # groups of two maps
        run = Run.create(path, classifier=network(), samples=SAMPLES, config=CONFIG)
        list(map_runs(run, network(), SAMPLES, [0, 1, 2], **options))
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    add_scores(make(folder), [score(Run.open(folder), network())])
    return folder


@pytest.fixture
def run(tmp_path: Path, made: Path) -> Path:
    """A finished run of three maps in two groups, and its scores."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(*args: str) -> Result:
    return CliRunner().invoke(app, ["check", *args])


# -- whole -------------------------------------------------------------------------------------


def test_a_finished_run_is_whole(run: Path) -> None:
    found = check(run)
    assert (found.manifest, found.finished, found.planned, found.finished_groups, found.groups) == (
        "intact",
        3,
        3,
        2,
        2,
    )
    assert (found.network_classes, found.classes, found.seeds) == (5, 3, [0])
    assert found.records == {"scores.json": "readable"}
    nothing = (found.unfinished, found.damaged, found.pictures, found.checkpoints, found.leases, found.temporary)
    assert nothing == ([], [], {}, {}, {}, [])
    assert (found.unknown, found.command, found.is_whole) == ([], None, True)


def test_the_command_says_it_in_words_and_as_json(run: Path) -> None:
    result = call(str(run))
    assert result.exit_code == 0, result.stderr
    said = result.stdout.splitlines()
    assert said[0].endswith("run: 3 of 3 maps finished, 2 of 2 groups")
    assert said[1:5] == [
        "model: [31mme, 5 classes",
        "maps: of 3 classes, seed 0",
        "manifest: intact",
        "scores.json: readable",
    ]
    assert said[-1] == "found: nothing wrong"
    result = call(str(run), "--json", "--quiet")
    assert json.loads(result.stdout)["is_whole"] is True
    assert result.stderr == ""


def test_what_report_and_others_write_is_known(run: Path) -> None:
    for command in ("report", "card"):
        assert CliRunner().invoke(app, [command, str(run)]).exit_code == 0
    assert check(run).unknown == []
    assert check(run).is_whole


# -- what is wrong -----------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "damaged map": ("maps/0001-bee-s0.safetensors", flip, "damaged: 0001-bee-s0.safetensors is damaged"),
    "missing map": ("maps/0001-bee-s0.safetensors", os.unlink, "damaged: 0001-bee-s0.safetensors is missing"),
    "damaged entry": ("maps/0001-bee-s0.json", flip, "damaged: 0001-bee-s0.json is damaged"),
    "missing entry": ("maps/0001-bee-s0.json", os.unlink, "damaged: 0001-bee-s0.json is missing"),
    "altered picture": ("pictures/0002-cat-s0.png", flip, "pictures altered: pictures/0002-cat-s0.png"),
    "missing picture": ("pictures/0002-cat-s0-raw.png", os.unlink, "pictures missing: pictures/0002-cat-s0-raw.png"),
    "damaged manifest": ("manifest.json", flip, "manifest: damaged; the maps say what it said"),
    "missing manifest": ("manifest.json", os.unlink, "manifest: missing; the maps say what it said"),
    "damaged scores": ("scores.json", lambda path: path.write_text("{"), "scores.json: damaged"),
    "other scores": ("scores.json", lambda path: path.write_text('{"targets": []}'), "scores.json: of other maps"),
    "damaged scan": ("scan.json", lambda path: path.write_text("[]"), "scan.json: damaged"),
    "damaged samples": ("samples.json", lambda path: path.write_text("7"), "samples.json: damaged"),
    "damaged sanity": ("sanity.json", lambda path: path.write_bytes(b"\xff"), "sanity.json: damaged"),
    "damaged diff": ("diff.json", lambda path: path.write_text("{}"), "diff.json: damaged"),
    "damaged facets": ("facets.json", lambda path: path.write_text("{}"), "facets.json: damaged"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_and_nothing_is_changed(run: Path, case: str) -> None:
    name, spoil, line = WRONG[case]
    spoil(run / name)
    before = files(run)
    result = call(str(run))
    assert result.exit_code == 3, result.stderr
    assert line in result.stdout.splitlines()
    assert "found: nothing wrong" not in result.stdout
    assert files(run) == before
    assert not check(run).is_whole


def test_a_damaged_entry_of_a_map_that_has_another_name_now_is_of_no_use(run: Path) -> None:
    (run / "maps" / "0001-biene-s0.json").write_text("{}")
    (run / "maps" / "notes.json").write_text("{}")
    found = check(run)
    assert (found.finished, found.is_whole) == (3, False)
    assert [words.endswith("; remove it: the map is 0001-bee-s0") for words in found.damaged] == [True, False]


def test_a_map_whose_digest_is_another_does_not_count_as_finished(run: Path) -> None:
    flip(run / "maps/0001-bee-s0.safetensors")
    found = check(run)
    assert (found.finished, found.planned, found.unfinished, found.finished_groups) == (2, 3, [(1, 0)], 1)


def test_a_map_of_a_run_with_other_settings_does_not_count_as_finished(run: Path, tmp_path: Path) -> None:
    config = Config(MapperConfig(batch=4, steps=3), refine=None, cycles=1)
    other = Run.create(tmp_path / "other", classifier=network(), samples=SAMPLES, config=config)
    list(map_runs(other, network(), SAMPLES, [1]))
    for path in (tmp_path / "other").glob("*/0001-bee-s0*"):
        shutil.copy(path, run / path.parent.name)
    found = check(run)
    assert (found.finished, found.unfinished) == (2, [(1, 0)])
    assert found.damaged == ["0001-bee-s0.safetensors is of a run with other settings"]


def test_a_check_is_quiet_without_changing_the_filters_of_warnings(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the whole process: of two threads, the second could leave what the first had set."""
    flip(run / "manifest.json")
    flip(run / "maps/0001-bee-s0.json")
    with monkeypatch.context() as patch:
        patch.delattr(warnings, "catch_warnings")
        found = check(run)
    assert found.manifest == "damaged"


def test_an_interrupted_run_names_what_is_planned_and_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "INTERVAL", 0.0)
    steps: list[object] = []

    def interrupt(step: object) -> None:
        steps.append(step)
        if len(steps) == 6:  # the first group takes four
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "run", on_step=interrupt)
    found = check(tmp_path / "run")
    assert (found.finished, found.planned, found.finished_groups, found.groups) == (2, 3, 1, 2)
    assert (found.unfinished, list(found.checkpoints.values())) == ([(2, 0)], [[(2, 0)]])
    said = call(str(tmp_path / "run")).stdout.splitlines()
    assert "unfinished: class 2 seed 0" in said
    assert "checkpoint: class 2 seed 0" in said


def test_leases_temporary_files_and_files_of_others_are_named_and_are_not_wrong(run: Path) -> None:
    (run / "leases").mkdir()
    (run / "leases/a.1.json").write_text(json.dumps({"owner": f"host {HOSTILE}", "until": "noon", "renewed": 3}))
    (run / "leases/b.1.json").write_bytes(b"\xff" * 10)
    (run / "leases/c.1.json").write_text("[" * 100_000)
    (run / "leases/d.1.json").symlink_to("/etc/passwd")
    (run / f"maps/{PART}{host_name()}-1-00ff").write_text("half")
    for name in ("letter.txt", "maps/notes.txt", "pictures/me.jpg"):
        (run / name).write_text("dear")
    (run / "attic").mkdir()
    (run / "checkpoints").mkdir()
    (run / f"checkpoints/{'0' * 24}.safetensors").write_text("of what?")
    found = check(run)
    told = "host [31mme, until noon"
    assert found.leases == {"a.1.json": told} | {f"{name}.1.json": "cannot be read" for name in "bcd"}
    assert found.temporary == [f"maps/{PART}{host_name()}-1-00ff"]
    assert found.unknown == ["attic/", "letter.txt", "maps/notes.txt", "pictures/me.jpg"]
    assert found.checkpoints == {f"{'0' * 24}.safetensors": []}
    result = call(str(run))
    assert result.exit_code == 0
    assert all(line.isprintable() for line in result.stdout.splitlines())
    assert f"lease: a.1.json: {told}" in result.stdout.splitlines()


def test_links_out_of_the_folder_are_damage(run: Path, tmp_path: Path) -> None:
    path = run / "maps/0001-bee-s0.safetensors"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    (words,) = check(run).damaged
    assert "is a link that leads out of its folder" in words


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 7))
def test_a_flipped_bit_in_any_file_is_found(made: Path, tmp_path: Path, file: int, place: int, bit: int) -> None:
    content = files(made)
    name = sorted(name for name in content if name not in ("contact-sheet.png", "scores.json"))[
        file % (len(content) - 2)
    ]
    spoiled = bytearray(content[name])
    spoiled[place % len(spoiled)] ^= 1 << bit
    shutil.copytree(made, tmp_path / "run", dirs_exist_ok=True)
    (tmp_path / "run" / name).write_bytes(spoiled)
    found = check(tmp_path / "run")
    assert not found.is_whole


# -- what is no run ----------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "", "{}", "[" * 10_000])
def test_what_is_no_run_is_two_lines(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(AgnoscoError):
        check(tmp_path)
    result = call(str(tmp_path))
    assert (result.exit_code, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert error.startswith("Error: ")
    assert hint.startswith("Hint: ")


# -- the command that mends it -----------------------------------------------------------------


def test_the_command_that_it_names_mends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    classifier = load("python:net.py:build", size=16, trust_code=True)
    samples = Samples.noise(classifier.shape, count=10)
    small = {"steps": 2, "batch": 2}
    run = Run.create(
        "my run", classifier=classifier, samples=samples, config=chosen_config("draft", **small), preset="draft",
        overrides=small,
    )  # fmt: skip
    list(map_runs(run, classifier, samples, [0, 2], together=1))
    before = files(tmp_path / "my run")
    flip(tmp_path / "my run/maps/0002-2-s0.safetensors")
    (tmp_path / "my run/manifest.json").unlink()
    (tmp_path / "my run/pictures/0000-0-s0.png").unlink()
    found = check("my run")
    assert found.command is not None
    assert found.command.startswith("agnosco map python:net.py:build 0 2 --samples noise")
    assert found.command.endswith(" --out 'my run'")
    (tmp_path / "my run/manifest.json").write_bytes(before["manifest.json"])  # otherwise 2 would be in a later group
    result = call("my run")
    assert (result.exit_code, "To mend and to continue it: agnosco map" in result.stderr) == (3, True)
    again = CliRunner().invoke(app, shlex.split(result.stderr.strip().partition(": agnosco ")[2]))
    assert again.exit_code == 0, again.stderr
    assert "1 picture was altered or missing: drawn again" in again.stderr
    after = files(tmp_path / "my run")
    assert {name for name in before if before[name] != after[name]} == set()
    assert check("my run").is_whole


def test_check_imports_no_torch(run: Path) -> None:
    result = guarded("torch,torchvision,jinja2,ray", "check", str(run))
    assert result.returncode == 0, result.stderr
    assert "found: nothing wrong" in result.stdout


def test_a_run_at_a_url_is_checked(run: Path) -> None:
    store = fsspec.filesystem("memory")
    for name, content in files(run).items():
        store.pipe_file(f"/checked/run/{name}", content)
    found = check("memory://checked/run")
    assert (found.run, found.finished, found.is_whole) == ("memory://checked/run", 3, True)
    store.rm_file("/checked/run/manifest.json")
    store.pipe_file("/checked/run/pictures/0002-cat-s0.png", b"another")
    store.pipe_file("/checked/run/letter.txt", b"dear")
    found = check("memory://checked/run")
    assert (found.manifest, found.pictures) == ("missing", {"pictures/0002-cat-s0.png": "altered"})
    assert found.unknown == ["letter.txt"]
    assert not store.exists("/checked/run/manifest.json")
    with pytest.warns(AgnoscoWarning, match="is missing; it was rebuilt from its 3 maps"):
        Run.create("memory://checked/run", classifier=network(), samples=SAMPLES, config=CONFIG)
    assert store.cat_file("/checked/run/manifest.json") == (run / "manifest.json").read_bytes()


def test_a_run_without_any_map_is_not_whole(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", classifier=network(), samples=SAMPLES, config=CONFIG).end()
    found = check(tmp_path / "run")
    assert (found.planned, found.is_whole) == (0, False)


def test_a_linked_folder_is_named_and_not_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/diary.txt").write_text("dear")
    (run / "samples").symlink_to(tmp_path / "secret")
    assert check(run).unknown == ["samples/, a link"]
