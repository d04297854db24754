"""Run folders: what is in them, that it comes back, that it can be made again, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError, AgnoscoWarning
from agnosco.io.records import to_json
from agnosco.io.storage import SIZE_LIMITS
from agnosco.method.concept import ConceptMap
from agnosco.method.config import Config, MapperConfig, RefineConfig, config_to_json, preset
from agnosco.method.dials import L2
from agnosco.method.maker import map_class
from agnosco.models.classifier import Classifier
from agnosco.runs import sheet
from agnosco.runs.command import chosen_config
from agnosco.runs.manifest import MOST_MAPS, read_entry, sealed, slug, write_entry, write_manifest
from agnosco.runs.origin import remake
from agnosco.runs.run import Run, check_target
from agnosco.text import one_line
from agnosco.types import MOST_SEED, Job, Step

SHAPE = (3, 12, 10)
CONFIG = Config(MapperConfig(batch=4, steps=3, ball=L2(200.0)), RefineConfig(steps=2), cycles=2)
STAGES = ["map 1", "refine 1", "map 2", "refine 2"]
HOSTILE = "\x1b[31m../../etc/passwd\n" + "ü" * 100


def classifier(
    seed: int = 0, labels: tuple[str, ...] = ("tench", "Goldfish, gold", HOSTILE), features: str | None = None
) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 10 * 8, 3))
    return Classifier(
        model, size=SHAPE[1:], labels=labels, mean=(0.5,) * 3, name="python:net.py:build", features=features
    )


def samples(seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    return Samples(torch.randint(256, (20, *SHAPE), generator=generator).to(torch.uint8), source="photographs")


def create(path: Path, **changes: Any) -> Run:
    parts = {"classifier": classifier(), "samples": samples(), "config": CONFIG, "weights": "/somewhere/w.safetensors"}
    return Run.create(path, **(parts | changes))


def concept(index: int = 1, seed: int = 0) -> ConceptMap:
    made_with, _ = samples().split(0.2, seed=0)
    return map_class(classifier(), index, made_with, CONFIG, seed=seed)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of two maps."""
    run = create(tmp_path / "run")
    run.add(concept(2, seed=7), targeted_success_rate=0.25)
    run.add(concept(1), targeted_success_rate=float("nan"))
    sheet.write_contact_sheet(run)
    run.end()
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=float)


def believe(run: Run, content: bytes) -> None:
    """Have a run's entry of class 1 give the digest of other content."""
    run.entry_of[Job(1, 0)] = msgspec.structs.replace(
        run.entry_of[Job(1, 0)], sha256=hashlib.sha256(content).hexdigest()
    )


def manifest(run: Run) -> dict[str, Any]:
    """The manifest as an earlier version wrote it, without a digest: tests alter it."""
    data = json.loads((run.path / "manifest.json").read_text())
    del data["check"]
    return data


# -- what is in it -----------------------------------------------------------------------------


def test_folder_holds_the_files_and_no_others(run: Run) -> None:
    stem, hostile = "0001-goldfish-gold-s0", "0002-31m-etc-passwd-" + "u" * 25 + "-s7"
    assert set(files(run.path)) == {
        "manifest.json",
        "contact-sheet.png",
        *(f"maps/{name}{kind}" for name in (stem, hostile) for kind in (".safetensors", ".json")),
        *(f"pictures/{name}{kind}.png" for name in (stem, hostile) for kind in ("", "-raw")),
    }


def test_manifest_says_what_is_needed_to_make_the_maps_again(run: Run) -> None:
    data = manifest(run)
    assert data["model"] == {
        "name": "python:net.py:build",
        "weights": "w.safetensors",
        "fingerprint": classifier().fingerprint,
        "shape": [3, 12, 10],
        "mean": [0.5, 0.5, 0.5],
        "std": [1.0, 1.0, 1.0],
        "classes": 3,
        "features": "1",  # what the refinement looks at
        "at": None,
        "directions": None,
        "resize": None,
        "labels": None,
        "prompts": None,
        "allow_pickle": False,
    }
    assert data["samples"] == {
        "source": "photographs",
        "count": 20,
        "fingerprint": samples().fingerprint,
        "shape": [3, 12, 10],
        "held_out": 0.2,
        "split_seed": 0,
    }
    assert data["versions"]["torch"] == torch.__version__
    assert (data["device"], data["threads"], data["command"]) == ("cpu", torch.get_num_threads(), "python")
    assert data["config"]["refine"]["steps"] == 2
    assert (data["preset"], data["overrides"]) == (None, {})
    assert Run.open(run.path).config == CONFIG


def test_manifest_holds_preset_and_overrides_which_may_differ_when_a_run_is_continued(tmp_path: Path) -> None:
    config = chosen_config("draft", steps=3, radius=9.0)
    run = create(tmp_path / "run", config=config, preset="draft", overrides={"steps": 3, "radius": 9.0})
    run.end()
    assert (manifest(run)["preset"], manifest(run)["overrides"]) == ("draft", {"steps": 3, "radius": 9.0})
    again = create(tmp_path / "run", config=config)
    assert (again.settings.preset, again.settings.overrides) == ("draft", {"steps": 3, "radius": 9.0})
    named = create(tmp_path / "named", config="quick")
    assert (named.settings.preset, named.settings.overrides) == ("quick", {})
    assert replace(named.config, precision="auto") == preset("quick")


def test_a_run_is_continued_with_the_number_of_threads_that_it_began_with(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    before = files(run.path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    again = create(run.path)
    assert again.settings.threads == threads
    again.end()
    assert files(run.path) == before


def test_entry_describes_its_map(run: Run) -> None:
    first, second = manifest(run)["maps"]  # by index, whatever the order they were made in
    original = concept(1)
    assert (first["index"], first["class"], first["seed"], first["stages"]) == (1, "Goldfish, gold", 0, STAGES)
    assert first["targeted_success_rate"] is None  # JSON has no NaN
    assert first["probability"] == original.probability
    assert first["norm"] == pytest.approx(np.linalg.norm(original.nu.double().numpy()), rel=1e-12)
    assert first["sha256"] == hashlib.sha256((run.path / first["files"]["map"]).read_bytes()).hexdigest()
    assert (second["index"], second["class"], second["seed"], second["targeted_success_rate"]) == (2, HOSTILE, 7, 0.25)


def test_map_file_holds_nu_stages_and_trace(run: Run) -> None:
    tensors = load_file(run.path / "maps/0001-goldfish-gold-s0.safetensors")
    original = concept(1)
    columns = {f"trace/{name}" for name in ("step", "probability", "success", "norm", "direction")}
    assert set(tensors) == {"nu", "stages/map 1", "stages/refine 1", "stages/map 2", "xi", "contribution", *columns}
    assert original.xi is not None
    assert original.contribution is not None
    assert torch.equal(tensors["contribution"], (255 * original.contribution).round().to(torch.uint8))
    assert torch.equal(tensors["xi"], (255 * original.xi).round().to(torch.uint8))
    assert torch.equal(tensors["nu"], original.nu)
    assert tensors["trace/step"].tolist() == [1, 2, 3, 1, 2, 1, 2, 3, 1, 2]
    assert tensors["trace/norm"].tolist() == [step.norm for step in original.trace]


def test_a_notebook_shows_maps_and_runs_and_runs_nothing(run: Run) -> None:
    assert run.map(1)._repr_png_().startswith(b"\x89PNG")
    page = run._repr_html_()
    assert page.count("<img") == 2
    assert "<script" not in page
    assert "Goldfish, gold" in page


def test_pictures_are_the_raw_one_and_the_one_for_people(run: Run) -> None:
    raw = picture(run.path / "pictures/0001-goldfish-gold-s0-raw.png")
    expected = np.rint(255 * np.clip(0.5 - concept(1).nu.numpy(), 0, 1)).transpose(1, 2, 0)
    assert np.abs(raw - expected).max() <= 1  # float32 and float64 may round a half differently
    assert picture(run.path / "pictures/0001-goldfish-gold-s0.png").shape == (228, 190, 3)  # 19 times 12 by 10


def test_maps_come_back_as_they_were_made(run: Run) -> None:
    again, _ = Run.open(run.path).maps()
    original = concept(1)
    assert torch.equal(again.nu, original.nu)
    assert list(again.stages) == STAGES
    assert all(torch.equal(again.stages[name], original.stages[name]) for name in STAGES)
    assert again.trace == original.trace
    assert all(isinstance(step.direction, int) for step in again.trace)
    assert (again.label, again.name, again.seed, again.probability) == (1, "Goldfish, gold", 0, original.probability)


# -- the same again ----------------------------------------------------------------------------


def test_same_run_gives_the_same_bytes_and_names_no_folder(run: Run, tmp_path: Path) -> None:
    other = create(tmp_path / "elsewhere" / "other")
    for index, seed, success in ((1, 0, float("nan")), (2, 7, 0.25)):  # in the other order
        other.add(concept(index, seed=seed), targeted_success_rate=success)
    sheet.write_contact_sheet(other)
    other.end()
    assert files(other.path) == files(run.path)
    for name, content in files(run.path).items():
        assert str(tmp_path).encode() not in content, name
        assert b"somewhere" not in content, name


def test_run_is_continued_map_by_map(run: Run) -> None:
    before = files(run.path)
    again = create(run.path)
    again.add(concept(1), targeted_success_rate=float("nan"))
    assert files(run.path) == before
    again.add(concept(0), targeted_success_rate=1.0)
    again.end()
    assert [entry["index"] for entry in manifest(run)["maps"]] == [0, 1, 2]


def test_a_run_is_whole_after_every_map(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    assert not run.path.exists()
    for count in (1, 2):
        entry = run.add(concept(count), targeted_success_rate=0.5)
        assert manifest(run)["maps"] == []  # written at the end: not once for each of 20,000 maps
        entries = Run.open(run.path).entries
        assert [one.index for one in entries] == [1, 2][:count]
        stored = json.loads((run.path / entry.files["map"]).with_suffix(".json").read_text())
        assert entries[-1] == entry
        assert to_json(entry) == stored
    run.end()
    assert manifest(run)["maps"] == to_json(entries)


def test_remake_gives_the_same_bits(run: Run) -> None:
    again = remake(run.path, 2, 7, classifier(), samples())
    stored = Run.open(run.path).map(2, 7)
    assert torch.equal(again.nu, stored.nu)
    assert again.trace == stored.trace


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier": classifier(seed=1)}, "other model: python:net.py:build"),
        ({"samples": samples(seed=1)}, "other samples: photographs"),
        ({"index": 0}, "has no map of class 0, seed 7"),
        ({"seed": 8}, "has no map of class 2, seed 8"),
    ],
)
def test_remake_refuses_what_would_give_another_map(run: Run, changes: dict[str, Any], message: str) -> None:
    parts = {"index": 2, "seed": 7, "classifier": classifier(), "samples": samples()} | changes
    with pytest.raises(AgnoscoError, match=message):
        remake(run.path, **parts)


def test_remake_refuses_another_size(run: Run) -> None:
    smaller = Classifier(nn.Sequential(nn.AdaptiveAvgPool2d((12, 10)), classifier().model), size=8, mean=(0.5,) * 3)
    with pytest.raises(AgnoscoError, match="other model"):
        remake(run.path, 2, 7, smaller, Samples(samples().images[..., :8, :8], source="photographs"))


def test_remake_warns_when_bits_may_differ(run: Run) -> None:
    data = manifest(run)
    data["versions"]["torch"] = "1.0"
    (run.path / "manifest.json").write_text(json.dumps(data))
    with pytest.warns(AgnoscoWarning, match=r"last bits .* may differ .*'torch': '1\.0'"):
        remake(run.path, 2, 7, classifier(), samples())


# -- where it may be written -------------------------------------------------------------------


def test_folder_with_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(AgnoscoError, match="is not empty and has no manifest"):
        create(tmp_path)
    assert files(tmp_path) == {"letter.txt": b"dear"}


def test_samples_of_another_size_are_refused_and_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(AgnoscoError, match=re.escape("the samples have shape (3, 8, 8)")):
        create(tmp_path / "run", samples=Samples.noise((3, 8, 8), count=10))
    assert not (tmp_path / "run").exists()


def test_a_map_whose_entry_cannot_be_read_again_is_an_error(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.end()
    before = files(tmp_path / "run")
    for wrong in ({"seed": 1 << 63}, {"probability": float("nan")}):
        with pytest.raises(AgnoscoError, match="no run can hold the map") as told:
            run.add(replace(concept(), **wrong), targeted_success_rate=0.5)
        assert "finite numbers" in told.value.hint
        assert "a seed of at most 9223372036854775807" in told.value.hint
    assert files(tmp_path / "run") == before


def test_a_manifest_of_as_many_maps_as_can_be_made_is_read_again(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.add(concept(), targeted_success_rate=1 / 3)
    made = sealed(msgspec.structs.replace(run.entries[0], index=(1 << 31) - 1, seed=-MOST_SEED, name="a prompt " * 50))
    size = {count: len(write_manifest(run.settings, [[made.job] * count], [made] * count)) for count in (10, 20)}
    assert size[20] - size[10] <= 10 * SIZE_LIMITS[".json"] / MOST_MAPS


def test_figures_that_are_whole_numbers_are_read_again(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.add(replace(concept(), probability=1), targeted_success_rate=1)
    stored = run.stored_entry(run.entries[0].stem)
    assert stored is not None
    assert (stored.probability, stored.targeted_success_rate) == (1.0, 1.0)


def test_file_in_the_way_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("dear")
    with pytest.raises(AgnoscoError, match="is a file"):
        create(tmp_path / "run")
    assert files(tmp_path) == {"run": b"dear"}


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"config": replace(CONFIG, cycles=1)}, "config cycles 2, now 1"),
        ({"samples": samples(seed=1)}, "samples fingerprint"),
        ({"classifier": classifier(seed=1)}, "model fingerprint"),
        ({"classifier": classifier(features="0")}, "model features 1, now 0"),
    ],
)
def test_run_with_other_settings_is_not_touched(run: Run, changes: dict[str, Any], differing: str) -> None:
    before = files(run.path)
    with pytest.raises(AgnoscoError, match=rf"other settings \({differing}\)") as caught:
        create(run.path, **changes)
    assert "--out" in caught.value.hint
    assert files(run.path) == before


@pytest.mark.parametrize("place", ["file/run", "file/deeper/run"])
def test_folder_below_a_file_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("dear")
    with pytest.raises(AgnoscoError, match=r"cannot write .*: not a directory"):
        check_target(tmp_path / place)
    assert files(tmp_path) == {"file": b"dear"}


def test_an_unwritable_folder_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(AgnoscoError, match=r"cannot write .*: no space left on device"):
        check_target(tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []


def test_checking_a_target_leaves_nothing(tmp_path: Path) -> None:
    check_target(tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []


def test_file_is_written_whole_or_not_at_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(run.path)

    def failing(_source: object, _target: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(AgnoscoError, match="input/output error"):
        run.folder.write("manifest.json", b"half")
    assert files(run.path) == before


# -- folders from somebody else ----------------------------------------------------------------


def test_altered_map_is_refused(run: Run) -> None:
    path = run.path / "maps/0001-goldfish-gold-s0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(AgnoscoError, match="its digest is not that of its entry"):
        Run.open(run.path).map(1)


def test_missing_map_is_refused(run: Run) -> None:
    shutil.rmtree(run.path / "maps")
    with pytest.raises(AgnoscoError, match=r"cannot read maps/0001"):
        Run.open(run.path).map(1)


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(AgnoscoError, match=r"it has no manifest\.json"):
        Run.open(tmp_path / "nothing")


CONFIG_JSON = json.dumps(config_to_json(CONFIG))
DAMAGED = [
    "",
    "{",
    "[]",
    "7",
    '{"maps": []}',
    '{"maps": 7, "config": {}}',
    "[" * 100_000,
    "\xff",
    f'{{"maps": [7], "config": {CONFIG_JSON}}}',
    *(
        f'{{"maps": [{json.dumps({"index": 1, "class": "a", "seed": 0} | wrong)}], "config": {CONFIG_JSON}}}'
        for wrong in ({"index": "1/../../x"}, {"index": None}, {"class": 7}, {"seed": "0"}, {"seed": 0.5})
    ),
]


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:40])
def test_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="latin1")
    with pytest.raises(AgnoscoError):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("model", "shape", "3x12x10"),
        ("model", "classes", None),
        ("samples", "held_out", "all"),
        ("maps", "probability", "high"),
        ("maps", "stages", 3),
        ("maps", "targeted_success_rate", "many"),
        ("maps", "norm", "long"),
        ("maps", "norm", None),
        ("maps", "norm", ...),
        ("maps", "probability", float("nan")),
        ("maps", "probability", float("inf")),
        ("maps", "stages", []),
        ("maps", "index", -1),
        ("maps", "index", 1 << 31),
        ("maps", "index", 10**4000),
        ("maps", "seed", 1 << 63),
        ("maps", "seed", -(10**298)),
        ("maps", "note", float("nan")),
        ("model", "shape", [1]),
        ("model", "shape", ["a", "b", "c"]),
        ("model", "shape", [3, 0, 10]),
        ("model", "shape", [3, 12, 1 << 16]),
        ("model", "mean", ...),
        ("model", "mean", ["a", "b", "c"]),
        ("model", "std", [0.1, float("inf")]),
        ("model", "classes", 10**9 * 10**9),
        ("model", "note", float("-inf")),
        ("samples", "shape", [3, -12, 10]),
        ("samples", "held_out", 1.5),
        ("samples", "split_seed", 10**200),
    ],
)
def test_manifest_of_other_types_is_refused(run: Run, part: str, key: str, value: object) -> None:
    data = manifest(run)
    there = data["maps"][0] if part == "maps" else data[part]
    there[key] = value
    if value is ...:
        del there[key]
    (run.path / "manifest.json").write_text(json.dumps(data))
    with pytest.warns(AgnoscoWarning, match="it was rebuilt from its 2 maps"):
        assert Run.open(run.path).settings == run.settings
    shutil.rmtree(run.path / "maps")
    with pytest.raises(AgnoscoError, match="not the manifest of a run"):
        Run.open(run.path)


@pytest.mark.parametrize("threads", [0, -1, 1 << 20, 1.0, None])
def test_an_impossible_number_of_threads_is_refused(run: Run, threads: object) -> None:
    """A run is continued with the number of threads in its manifest."""
    (run.path / "manifest.json").write_text(json.dumps(manifest(run) | {"threads": threads}))
    with pytest.warns(AgnoscoWarning, match="it was rebuilt from its 2 maps"):
        assert Run.open(run.path).settings == run.settings
    shutil.rmtree(run.path / "maps")
    with pytest.raises(AgnoscoError, match="not the manifest of a run"):
        Run.open(run.path)


@pytest.mark.parametrize("job", [[10**200, 0], [0, 10**200], [-1, 0], [True, 0]])
def test_a_group_of_impossible_maps_is_refused(run: Run, job: list[int]) -> None:
    data = manifest(run)
    data["groups"] = [[job]]
    (run.path / "manifest.json").write_text(json.dumps(data))
    with pytest.warns(AgnoscoWarning, match="it was rebuilt from its 2 maps"):
        assert Run.open(run.path).settings == run.settings
    shutil.rmtree(run.path / "maps")
    with pytest.raises(AgnoscoError, match="not the manifest of a run"):
        Run.open(run.path)


@pytest.mark.parametrize(
    "wrong", [{"index": 10**200}, {"seed": 10**200}, {"probability": float("nan")}, {"stages": []}], ids=str
)
def test_an_entry_of_impossible_values_is_damaged(run: Run, wrong: dict[str, Any]) -> None:
    """Its name and digest are right: those are what a file that was made to harm has."""
    entry = msgspec.structs.replace(Run.open(run.path).entries[0], **wrong)
    name = f"{entry.index:04d}-goldfish-gold-s{entry.seed:d}"
    content = json.dumps(to_json(entry)).encode() if "probability" in wrong else write_entry(entry)
    with pytest.raises(ValueError, match="is damaged"):
        read_entry(content, name)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e999])
def test_a_step_that_is_no_number_is_refused(run: Run, value: float) -> None:
    path = run.path / "maps/0001-goldfish-gold-s0.safetensors"
    tensors = load_file(path)
    tensors["trace/step"][0] = value
    path.write_bytes(save(tensors))
    opened = Run.open(run.path)
    believe(opened, path.read_bytes())
    with pytest.raises(AgnoscoError, match="cannot read maps/0001-goldfish-gold-s0"):
        opened.map(1)


def test_map_of_another_shape_is_refused(run: Run) -> None:
    data = manifest(run)
    data["model"]["shape"] = [3, 10, 12]
    (run.path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(AgnoscoError, match=r"its map is \(3, 12, 10\)"):
        Run.open(run.path).map(1)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("xi", torch.zeros(1, 3, 3, dtype=torch.uint8), r"its xi is \(1, 3, 3\)"),
        ("contribution", torch.zeros(1, 12, 10), r"its contribution is \(1, 12, 10\) of float32"),
        ("stages/map 1", torch.zeros(3, 1, 1), r"its stages is \(3, 1, 1\)"),
        ("trace/norm", torch.zeros(2, 2, dtype=torch.float64), r"its trace is \(2, 2\)"),
        ("nu", torch.zeros(3, 12, 10, dtype=torch.float64), "its map is .* of float64"),
    ],
)
def test_tensors_of_no_map_are_refused(run: Run, name: str, tensor: Tensor, message: str) -> None:
    path = run.path / "maps/0001-goldfish-gold-s0.safetensors"
    content = save(load_file(path) | {name: tensor})
    path.write_bytes(content)
    opened = Run.open(run.path)
    believe(opened, content)
    with pytest.raises(AgnoscoError, match=message):
        opened.map(1)


def test_a_map_of_an_earlier_version_opens_without_contributions(run: Run) -> None:
    path = run.path / "maps/0001-goldfish-gold-s0.safetensors"
    content = save({name: tensor for name, tensor in load_file(path).items() if name != "contribution"})
    path.write_bytes(content)
    opened = Run.open(run.path)
    believe(opened, content)
    found = opened.map(1)
    assert found.contribution is None
    assert torch.equal(found.nu, concept(1).nu)
    with pytest.raises(AgnoscoError, match="does not say how much each place contributes"):
        found.display(transparent=True)


def test_a_trace_without_an_axis_is_refused(run: Run) -> None:
    path = run.path / "maps/0001-goldfish-gold-s0.safetensors"
    tensors = load_file(path)
    content = save(tensors | {name: torch.ones((), dtype=torch.float64) for name in tensors if "trace" in name})
    path.write_bytes(content)
    opened = Run.open(run.path)
    believe(opened, content)
    for read in (opened.map, opened.arrays):
        with pytest.raises(AgnoscoError, match=r"its trace is \(\)"):
            read(1)


def test_paths_in_a_manifest_are_not_followed(run: Run, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.safetensors"
    shutil.move(run.path / "maps/0001-goldfish-gold-s0.safetensors", moved)
    data = manifest(run)
    data["maps"][0]["files"]["map"] = "../elsewhere.safetensors"
    (run.path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(AgnoscoError, match=r"cannot read maps/0001"):
        Run.open(run.path).map(1)


# -- names from outside ------------------------------------------------------------------------


@given(st.text(max_size=60))
def test_slug_is_safe_in_a_file_name(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", slug(name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("goldfish", "goldfish"),
        ("Café  au-lait", "cafe-au-lait"),
        ("../../x", "x"),
        ("犬", "class"),
        ("a" * 10**6, "a" * 40),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert slug(name) == expected


@given(st.text(max_size=80))
def test_one_line_is_one_printable_line(text: str) -> None:
    line = one_line(text, limit=50)
    assert len(line) <= 50
    assert line.isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\nlines", "two lines"),
        ("\x1b[31mred\x07", "[31mred"),
        ("right\u202eleft", "rightleft"),
        ("naïve café", "naïve café"),
    ],
)
def test_one_line(text: str, expected: str) -> None:
    assert one_line(text) == expected


def test_step_columns_cover_a_step() -> None:
    assert len(astuple(Step(1, 0.5, 0.5, 1.0, 1))) == 5


def test_links_in_a_folder_are_not_followed(run: Run, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("dear")
    for name in (".agnosco-probe", ".manifest.json.part", "maps/.0001-goldfish-gold-s0.safetensors.part"):
        (run.path / name).symlink_to(canary)
    (run.path / "contact-sheet.png").unlink()
    (run.path / "contact-sheet.png").symlink_to(canary)
    again = create(run.path)
    again.add(concept(1), targeted_success_rate=0.5)
    sheet.write_contact_sheet(again)
    assert canary.read_text() == "dear"
    assert not (run.path / "contact-sheet.png").is_symlink()
    elsewhere = tmp_path / "elsewhere"
    (run.path / "pictures").rename(elsewhere)
    (run.path / "pictures").symlink_to(elsewhere)
    before = files(elsewhere)
    with pytest.raises(AgnoscoError, match="is a link"):
        again.add(concept(1), targeted_success_rate=0.25)
    assert files(elsewhere) == before


def test_a_contact_sheet_of_very_many_maps_is_of_the_first_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheet, "ON_SHEET", 2)
    drawn: list[tuple[int, str]] = []
    ordinary = sheet.contact_sheet

    def noted(pictures: Any, captions: Any, **options: Any) -> Any:
        drawn.append((len(pictures), options["footer"]))
        return ordinary(pictures, captions, **options)

    monkeypatch.setattr(sheet, "contact_sheet", noted)
    run = create(tmp_path / "run")
    for label in range(3):
        run.add(concept(label), targeted_success_rate=0.5)
    sheet.write_contact_sheet(run)
    assert drawn[0][0] == 2
    assert drawn[0][1].startswith("The first 2 of 3 maps. ")


def test_a_name_that_the_sheet_cannot_show_has_its_index_before_it(run: Run) -> None:
    names = "cat", "猫" * 50  # all such letters are drawn alike
    named = [msgspec.structs.replace(run.entries[0], name=name) for name in names]
    latin, other = (sheet.caption(each, with_seed=True) for each in named)
    assert latin.startswith("cat s0: p ")  # apart even where gaps are drawn as one space
    assert other.startswith("1 猫")
    assert len(other) == sheet.CAPTION
