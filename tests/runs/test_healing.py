"""Runs that are damaged heal: the manifest from what the maps say, pictures from the maps; to the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError, AgnoscoWarning
from agnosco.io.safetensors_header import read_header
from agnosco.method import maker
from agnosco.method.config import Config, MapperConfig
from agnosco.models.classifier import Classifier
from agnosco.runs import sheet, status
from agnosco.runs.jobs import map_runs
from agnosco.runs.manifest import read_entry, write_entry
from agnosco.runs.rebuilding import rebuilt
from agnosco.runs.run import Run, check_target
from agnosco.runs.status import RunStatus
from agnosco.runs.tensors import KEY, made_with_of

SHAPE = (3, 4, 4)
LABELS = ("ant", "bee", "cat", "dog", "eel")
CONFIG = Config(MapperConfig(batch=4, steps=2), refine=None, cycles=1)
GROUPS = [[[3, 0], [0, 0]], [[4, 0]], [[2, 1], [1, 1]]]
"""Those of the run below; none of the usual orders is theirs."""


def network(labels: tuple[str, ...] = LABELS) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    return Classifier(model, size=4, channels=3, labels=labels)


CLASSIFIER = network()
SAMPLES = Samples.noise(SHAPE, count=20)


@pytest.fixture(autouse=True)
def two_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of two maps at most."""
    monkeypatch.setattr(maker, "images_at_once", lambda _network: 8)  # of 4 images each


def create(path: Path, config: Config = CONFIG) -> Run:
    return Run.create(path, classifier=CLASSIFIER, samples=SAMPLES, config=config)


def make(path: Path, **options: Any) -> list[RunStatus]:
    """Give the commands that made the run again; returns what was said of its maps."""
    found: list[RunStatus] = []
    for classes, seed in (((3, 0, 4), 0), ((2, 1), 1)):
        list(map_runs(create(path, **options), CLASSIFIER, SAMPLES, classes, seeds=[seed], on_status=found.append))
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lay(path: Path, content: dict[str, bytes]) -> Path:
    for name, each in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(each)
    return path


@pytest.fixture(scope="module")
def whole() -> Iterator[dict[str, bytes]]:
    """The files of a finished run."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr(maker, "images_at_once", lambda _network: 8)
        make(Path(name) / "run")
        yield files(Path(name) / "run")


@pytest.fixture
def run(tmp_path: Path, whole: dict[str, bytes]) -> Path:
    return lay(tmp_path / "run", whole)


# -- what a map says ---------------------------------------------------------------------------


def test_a_map_says_what_it_was_made_with_in_one_key_and_no_place_of_this_machine(
    run: Path, whole: dict[str, bytes]
) -> None:
    assert json.loads(whole["manifest.json"])["groups"] == GROUPS
    for name, content in whole.items():
        if name.endswith(".safetensors"):
            (metadata,) = read_header(BytesIO(content)).metadata.items()
            assert metadata[0] == KEY
            said = json.loads(metadata[1])
            assert list(said) == sorted(said)
            manifest = json.loads(whole["manifest.json"])
            assert said["settings"] == {key: manifest[key] for key in said["settings"]}
            stem = name.removeprefix("maps/").partition("-")[0]
            assert int(stem) in [index for index, _ in said["group"]]
            assert GROUPS[said["place"]] == said["group"]
            assert str(run.parent) not in metadata[1]


def test_a_map_that_was_added_by_itself_names_no_group(tmp_path: Path, run: Path) -> None:
    alone = create(tmp_path / "alone")
    alone.add(Run.open(run).map(4), targeted_success_rate=0.5)
    made = made_with_of((tmp_path / "alone/maps/0004-eel-s0.safetensors").read_bytes())
    assert made is not None
    assert (made.group, made.place, made.settings) == ([], None, alone.settings)


def test_runs_whose_maps_say_nothing_open_and_are_continued(run: Path) -> None:
    for path in (run / "maps").glob("*.safetensors"):
        content = safetensors.numpy.save(safetensors.numpy.load(path.read_bytes()))
        path.write_bytes(content)
        believe(path.with_suffix(".json"), content)
    before = files(run)
    assert len(list(Run.open(run).maps())) == 5
    assert [one.missing for one in make(run)] == [[], []]
    assert {name for name, content in files(run).items() if before[name] != content} <= {"manifest.json"}
    (run / "manifest.json").unlink()
    with pytest.raises(AgnoscoError, match=r"it has no manifest\.json") as caught:
        Run.open(run)
    assert caught.value.hint.startswith("no intact map says what it was made with")
    with pytest.raises(AgnoscoError, match=r"it has no manifest\.json"):
        create(run)  # which does not begin another run between these maps


def believe(path: Path, content: bytes) -> None:
    """Have the entry in a file give the digest of other content of its map."""
    entry = read_entry(path.read_bytes(), path.stem)
    path.write_bytes(write_entry(msgspec.structs.replace(entry, sha256=hashlib.sha256(content).hexdigest())))


# -- the manifest ------------------------------------------------------------------------------

DAMAGE = st.one_of(
    st.just(("remove", 0, 0)),
    st.tuples(st.just("cut"), st.integers(0, 10**6), st.just(0)),
    st.tuples(st.just("flip"), st.integers(0, 10**6), st.integers(0, 7)),
    st.tuples(st.just("zero"), st.integers(0, 10**6), st.integers(1, 600)),
)


def damage(path: Path, kind: str, place: int, detail: int) -> None:
    content = bytearray(path.read_bytes())
    if kind == "remove":
        path.unlink()
        return
    place %= len(content)
    if kind == "cut":
        content = content[:place]
    elif kind == "flip":
        content[place] ^= 1 << detail
    else:
        content[place : place + detail] = bytes(len(content[place : place + detail]))
    path.write_bytes(content)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(DAMAGE)
@example(("remove", 0, 0))
@example(("cut", 0, 0))
def test_a_damaged_manifest_is_rebuilt_to_the_same_bytes(
    whole: dict[str, bytes], spoiled: tuple[str, int, int]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = lay(Path(name) / "run", whole)
        damage(folder / "manifest.json", *spoiled)
        before = files(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            opened = Run.open(folder)
            assert [list(map(list, group)) for group in opened.groups] == GROUPS
            assert len(list(opened.maps())) == 5
            assert files(folder) == before  # what only reads writes nothing
            assert all(one.missing == [] for one in make(folder))
        assert files(folder) == whole


def test_every_byte_of_settings_and_groups_is_known(whole: dict[str, bytes], tmp_path: Path) -> None:
    """Any other digit in them is noticed, although it is a manifest all the same."""
    text = whole["manifest.json"].decode()
    end = text.index('"maps": [')
    places = [place for place in range(end) if text[place].isdigit()]
    assert len(places) > 75
    for place in places[::7]:
        content = text[:place] + ("3" if text[place] != "3" else "4") + text[place + 1 :]
        folder = lay(tmp_path / str(place), whole | {"manifest.json": content.encode()})
        with pytest.warns(AgnoscoWarning, match="is damaged; it was rebuilt from its 5 maps"):
            assert Run.open(folder).settings == create(tmp_path / "new").settings


@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_it_is_said_that_a_manifest_was_rebuilt_and_create_writes_it(
    run: Path, whole: dict[str, bytes], state: str
) -> None:
    damage(run / "manifest.json", "remove" if state == "missing" else "cut", 100, 0)
    with pytest.warns(AgnoscoWarning, match=rf"^manifest\.json of '.*run' is {state}; it was rebuilt from its 5 maps$"):
        Run.open(run)
    check_target(run)
    with pytest.warns(AgnoscoWarning, match="it was rebuilt"):
        create(run)
    assert files(run) == whole
    create(run)


def test_maps_of_an_opened_run_can_be_made_whose_manifest_is_lost(run: Path, whole: dict[str, bytes]) -> None:
    (run / "manifest.json").unlink()
    (run / "maps/0000-ant-s0.safetensors").unlink()
    with pytest.warns(AgnoscoWarning, match="rebuilt from its 4 maps"):
        opened = Run.open(run)
    assert [one.entry.index for one in map_runs(opened, CLASSIFIER, SAMPLES, [0])] == [0]
    assert files(run) == whole


def test_a_run_whose_manifest_and_maps_are_damaged_is_made_again(run: Path, whole: dict[str, bytes]) -> None:
    damage(run / "manifest.json", "flip", 300, 3)
    damage(run / "maps/0003-dog-s0.safetensors", "flip", 300, 3)
    (run / "maps/0001-bee-s1.json").unlink()
    with pytest.warns(AgnoscoWarning, match="rebuilt from its 3 maps"):
        make(run)
    assert files(run) == whole


def test_a_group_without_an_intact_map_is_planned_again(run: Path, whole: dict[str, bytes]) -> None:
    (run / "manifest.json").unlink()
    (run / "maps/0004-eel-s0.safetensors").unlink()
    with pytest.warns(AgnoscoWarning, match="rebuilt from its 4 maps"):
        make(run)
    assert json.loads((run / "manifest.json").read_text())["groups"] == [GROUPS[0], GROUPS[2], GROUPS[1]]
    after = files(run)
    assert after.keys() == whole.keys()
    (run / "manifest.json").unlink()
    with pytest.warns(AgnoscoWarning, match="rebuilt from its 5 maps"):
        make(run)
    assert files(run).keys() == whole.keys()


def test_maps_of_different_settings_do_not_rebuild_one(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    list(map_runs(create(other, replace(CONFIG, cycles=2)), CLASSIFIER, SAMPLES, [4], seeds=[7]))
    for path in (other / "maps").iterdir():
        shutil.copy(path, run / "maps")
    (run / "manifest.json").unlink()
    for each in (Run.open, create):
        with pytest.raises(AgnoscoError, match=r"made with different settings \(config cycles 1, now 2\)") as caught:
            each(run)
        assert "cannot be rebuilt" in caught.value.hint
    assert not (run / "manifest.json").exists()


def test_a_rebuilt_run_is_refused_with_other_settings_and_not_touched(run: Path) -> None:
    (run / "manifest.json").unlink()
    before = files(run)
    with pytest.warns(AgnoscoWarning, match="rebuilt"), pytest.raises(AgnoscoError, match="holds a run with other"):
        create(run, replace(CONFIG, cycles=2))
    assert files(run) == before


def test_maps_whose_digests_are_others_say_nothing(run: Path) -> None:
    (run / "manifest.json").unlink()
    for path in (run / "maps").glob("*.safetensors"):
        damage(path, "flip", -3, 1)
    with pytest.raises(AgnoscoError, match=r"it has no manifest\.json"):
        Run.open(run)


@pytest.mark.parametrize("lost", ["folder", "maps"])
def test_a_rebuilt_run_that_vanishes_is_not_begun_anew(run: Path, lost: str) -> None:
    (run / "manifest.json").unlink()
    with pytest.warns(AgnoscoWarning, match="rebuilt"):
        opened = Run.open(run)
    concept = opened.map(4)
    shutil.rmtree(run if lost == "folder" else run / "maps")
    for act in (opened.end, lambda: opened.add(concept, targeted_success_rate=0.5)):
        with pytest.raises(AgnoscoError, match=r"has no manifest\.json any more"):
            act()
    assert not (run / "manifest.json").exists()


def test_other_things_called_maps_are_no_run(tmp_path: Path) -> None:
    lay(tmp_path / "atlas", {"maps/europe.json": b"{}", "letter.txt": b"dear"})
    for each in (Run.open, create):
        with pytest.raises(AgnoscoError, match=r"it has no manifest\.json"):
            each(tmp_path / "atlas")
    assert set(files(tmp_path / "atlas")) == {"maps/europe.json", "letter.txt"}


# -- what somebody else wrote ------------------------------------------------------------------


def with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    return safetensors.numpy.save(safetensors.numpy.load(content), metadata)


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "nothing": lambda _: "",
    "not JSON": lambda _: "{",
    "deep": lambda _: "[" * 100_000,
    "a number": lambda _: 7,
    "infinite": lambda _: '{"settings": Infinity}',
    "halves": lambda _: '"\\ud800"',
    "no settings": lambda said: {"group": said["group"]},
    "more": lambda said: said | {"command": "rm -rf /"},
    "wrong shape": lambda said: said | {"settings": said["settings"] | {"model": {"shape": [1]}}},
    "wrong group": lambda said: said | {"group": [[10**200, 0]]},
    "group of text": lambda said: said | {"group": "all"},
    "wrong place": lambda said: said | {"place": -1},
    "endless threads": lambda said: said | {"settings": said["settings"] | {"threads": 10**9}},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_metadata_say_nothing(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run / "maps/0004-eel-s0.safetensors"
    said = json.loads(read_header(BytesIO(path.read_bytes())).metadata[KEY])
    text = change(said)
    content = with_metadata(path.read_bytes(), {KEY: text if isinstance(text, str) else json.dumps(text)})
    assert made_with_of(content) is None
    path.write_bytes(content)
    believe(path.with_suffix(".json"), content)
    (run / "manifest.json").unlink()
    with pytest.warns(AgnoscoWarning, match="rebuilt from its 4 maps"):
        opened = Run.open(run)
    assert opened.map(4).label == 4  # which its file gives all the same
    assert [list(map(list, group)) for group in opened.groups] == [GROUPS[0], GROUPS[2]]


@given(
    st.one_of(st.binary(max_size=400), st.binary(max_size=400).map(lambda rest: len(rest).to_bytes(8, "little") + rest))
)
def test_anything_else_says_nothing(content: bytes) -> None:
    assert made_with_of(content) is None


def test_a_map_that_names_a_group_without_itself_plans_nothing(run: Path) -> None:
    path = run / "maps/0004-eel-s0.safetensors"
    said = json.loads(read_header(BytesIO(path.read_bytes())).metadata[KEY]) | {"group": [[0, 9], [1, 9]]}
    content = with_metadata(path.read_bytes(), {KEY: json.dumps(said)})
    path.write_bytes(content)
    believe(path.with_suffix(".json"), content)
    found = rebuilt(Run.open(run).folder)
    assert found is not None
    assert [list(map(list, group)) for group in found.groups] == [GROUPS[0], GROUPS[2]]


def test_links_in_a_folder_without_a_manifest_are_not_followed(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.safetensors"
    path = run / "maps/0004-eel-s0.safetensors"
    path.rename(moved)
    path.symlink_to(moved)
    (run / "manifest.json").unlink()
    with pytest.warns(AgnoscoWarning, match="rebuilt from its 4 maps"):
        Run.open(run)


# -- pictures ----------------------------------------------------------------------------------

PICTURES = ["pictures/0003-dog-s0.png", "pictures/0003-dog-s0-raw.png"]


@pytest.mark.parametrize("kind", ["flip", "cut", "remove"])
@pytest.mark.parametrize("spoiled", [PICTURES[:1], PICTURES[1:], PICTURES])
@pytest.mark.parametrize("listed", [0, 50])
def test_altered_and_missing_pictures_are_drawn_again(
    run: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, kind: str, spoiled: list[str], listed: int
) -> None:
    monkeypatch.setattr(status, "LISTED", listed)
    for name in spoiled:
        damage(run / name, kind, 60, 2)
    first, second = make(run)
    assert (first.redrawn, first.missing, second.redrawn) == (sorted(spoiled), [], [])
    assert files(run) == whole


def test_pictures_that_another_pillow_draws_otherwise_get_new_digests(
    run: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = sheet.png
    monkeypatch.setattr(sheet, "png", lambda image: ordinary(image) + b"another Pillow")
    (run / PICTURES[0]).unlink()
    assert make(run)[0].redrawn == PICTURES[:1]
    entry = read_entry((run / "maps/0003-dog-s0.json").read_bytes(), "0003-dog-s0")
    before = read_entry(whole["maps/0003-dog-s0.json"], "0003-dog-s0")
    assert entry.drawn is not None
    assert before.drawn is not None
    assert entry.drawn.picture != before.drawn.picture
    assert entry.drawn.raw == before.drawn.raw  # which was not drawn
    assert msgspec.structs.replace(entry, drawn=before.drawn, check=before.check) == before
    assert make(run)[0].redrawn == []  # not for ever
    assert Run.open(run).entry(3).drawn == entry.drawn


def test_a_picture_that_is_a_link_is_replaced(run: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    canary = tmp_path / "canary"
    canary.write_text("dear")
    (run / PICTURES[0]).unlink()
    (run / PICTURES[0]).symlink_to(canary)
    assert make(run)[0].redrawn == PICTURES[:1]
    assert canary.read_text() == "dear"
    assert files(run) == whole


def test_entries_of_earlier_versions_keep_their_bytes_and_only_missing_pictures_are_drawn(run: Path) -> None:
    path = run / "maps/0003-dog-s0.json"
    old = msgspec.structs.replace(read_entry(path.read_bytes(), path.stem), drawn=None)
    path.write_bytes(write_entry(old))
    assert b"drawn" not in path.read_bytes()
    before = files(run)
    damage(run / PICTURES[0], "flip", 60, 2)
    (run / PICTURES[1]).unlink()
    assert make(run)[0].redrawn == PICTURES[1:]
    after = files(run)
    assert after["maps/0003-dog-s0.json"] == before["maps/0003-dog-s0.json"]
    assert after[PICTURES[1]] == before[PICTURES[1]]
    with Image.open(BytesIO(after[PICTURES[1]])) as picture:
        assert picture.size == (4, 4)
