"""What holds of every run folder: any names, any damage, any two writers."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.io.atomic import PART
from agnosco.method.concept import ConceptMap
from agnosco.method.config import Config, MapperConfig
from agnosco.models.classifier import Classifier
from agnosco.runs import manifest
from agnosco.runs.run import Run
from agnosco.runs.status import status_of
from agnosco.types import Job, Step

SHAPE = (3, 2, 2)
CONFIG = Config(MapperConfig(batch=1, steps=1), refine=None, cycles=1)
SAMPLES = Samples(torch.zeros(4, *SHAPE, dtype=torch.uint8), source="black")
CLASSIFIER = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), size=2, channels=3)
NAMES = ("a", "b", "c")
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(FEW, max_examples=200)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name) / "run"


def create(path: Path) -> Run:
    return Run.create(path, classifier=CLASSIFIER, samples=SAMPLES, config=CONFIG)


def concept(index: int, name: str, seed: int, *, value: float = 0.1) -> ConceptMap:
    nu = torch.full(SHAPE, value)
    return ConceptMap(nu, index, name, seed, 0.5, {"map 1": nu}, (Step(1, 0.5, 0.5, value, 1),))


def whole(path: Path) -> Run:
    """A run of two maps."""
    run = create(path)
    for index in (0, 1):
        run.add(concept(index, NAMES[index], 0), targeted_success_rate=0.5)
    return run


with tempfile.TemporaryDirectory() as _name:
    whole(Path(_name) / "run").end()
    ENTRY = (Path(_name) / "run/maps/0000-a-s0.json").read_bytes()
    MAP = (Path(_name) / "run/maps/0000-a-s0.safetensors").read_bytes()

DAMAGE = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 10**6), st.just(0)),
    st.tuples(st.just("flip"), st.integers(0, 10**6), st.integers(0, 7)),
    st.tuples(st.just("lengthen"), st.integers(0, 10), st.integers(0, 255)),
)


def damaged(content: bytes, damage: tuple[str, int, int]) -> bytes:
    kind, place, detail = damage
    if kind == "cut":
        return content[: place % len(content)]
    if kind == "lengthen":
        return content + bytes([detail]) * (1 + place)
    spoiled = bytearray(content)
    spoiled[place % len(content)] ^= 1 << detail
    return bytes(spoiled)


# -- what comes back ---------------------------------------------------------------------------


@FEW
@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.text(max_size=50), st.integers(0, 2**40)),
        min_size=1, max_size=3, unique_by=lambda one: (one[0], one[2]),
    ),
    st.booleans(),
)  # fmt: skip
def test_any_maps_come_back(maps: list[tuple[int, str, int]], ended: bool) -> None:
    with folder() as path:
        run = create(path)
        entries = [run.add(concept(*one), targeted_success_rate=float("nan")) for one in maps]
        if ended:
            run.end()
        again = Run.open(path)
        assert again.entries == sorted(entries, key=lambda entry: (entry.index, entry.seed))
        for index, name, seed in maps:
            stored = again.map(index, seed)
            assert (stored.label, stored.name, stored.seed) == (index, name, seed)
            assert torch.equal(stored.nu, concept(index, name, seed).nu)
        files = [file for file in path.rglob("*") if file.is_file()]
        assert len(files) == 1 + 4 * len({manifest.stem_of(*one) for one in maps})
        assert all(file.resolve().is_relative_to(path.resolve()) for file in files)


@FEW
@given(st.lists(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9)), min_size=1, max_size=9), max_size=9))
def test_any_groups_come_back(groups: list[list[tuple[int, int]]]) -> None:
    content = manifest.write_manifest(create(Path("nowhere")).settings, groups, [])
    assert manifest.read_manifest(content)[1] == groups
    assert json.loads(content)["groups"] == [[list(job) for job in group] for group in groups]


# -- damage ------------------------------------------------------------------------------------


@MANY
@given(DAMAGE)
def test_any_damage_of_an_entry_is_seen(damage: tuple[str, int, int]) -> None:
    content = damaged(ENTRY, damage)
    with pytest.raises(ValueError, match="0000-a-s0"):
        manifest.read_entry(content, "0000-a-s0")


@MANY
@given(st.binary(max_size=300))
def test_anything_else_is_no_entry(content: bytes) -> None:
    with pytest.raises(ValueError, match="is damaged"):
        manifest.read_entry(content, "x")


@FEW
@given(st.sampled_from(["json", "safetensors"]), DAMAGE, st.booleans())
def test_any_damage_of_a_file_is_reported_and_nothing_else_is_raised(
    kind: str, damage: tuple[str, int, int], ended: bool
) -> None:
    with folder() as path:
        run = whole(path)
        if ended:
            run.end()
        file = path / f"maps/0000-a-s0.{kind}"
        file.write_bytes(damaged(file.read_bytes(), damage))
        status = status_of(create(path), [Job(0, 0), Job(1, 0)], names=NAMES)
        if kind == "json" and ended:  # the index knows the entry, which is written anew
            assert (status.missing, status.damaged) == ([], [])
            assert file.read_bytes() == ENTRY
        else:
            assert status.missing == [Job(0, 0)]
            assert status.damaged == [f"0000-a-s0.{kind} is damaged"]
        if kind == "safetensors":
            with pytest.raises(AgnoscoError, match="its digest is not that of its entry"):
                Run.open(path).map(0)
            run = create(path)
            run.add(concept(0, "a", 0), targeted_success_rate=0.5)
            assert file.read_bytes() == MAP


@MANY
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_anything_else_is_no_manifest(content: bytes) -> None:
    with folder() as path:
        path.mkdir()
        (path / "manifest.json").write_bytes(content)
        with pytest.raises(AgnoscoError):
            Run.open(path)


# -- two writers -------------------------------------------------------------------------------


@FEW
@given(st.lists(st.booleans(), max_size=14), st.booleans())
def test_two_writers_of_one_map_leave_one_that_can_be_read(turns: list[bool], alike: bool) -> None:
    """Two processes store a map of the same name; which of them writes its next file is drawn."""
    with folder() as path:
        create(path).end()
        writers = [create(path), create(path)]
        values = (0.1, 0.1 if alike else 0.2)
        left = [_writes(run, concept(0, "a", 0, value=v)) for run, v in zip(writers, values, strict=True)]
        for turn in turns:
            with suppress(StopIteration):
                next(left[turn])
        for writer in left:
            list(writer)
        run = Run.open(path)
        assert [entry.index for entry in run.entries] == [0]
        assert run.map(0).nu[0, 0, 0].item() in torch.tensor(values).tolist()
        assert status_of(create(path), [Job(0, 0)], names=NAMES).missing == []


def _writes(run: Run, one: ConceptMap) -> Iterator[str]:
    """What :meth:`Run.add` writes, one file for each time that it is asked; it runs in a thread of its own."""
    go, done, names = threading.Semaphore(0), threading.Semaphore(0), []
    write = run.folder.write

    def waiting(name: str, content: bytes) -> str:
        go.acquire()
        names.append(name)
        written = write(name, content)
        done.release()
        return written

    run.folder.write = waiting  # type: ignore[method-assign]

    def add() -> None:
        try:
            run.add(one, targeted_success_rate=0.5)
        finally:
            names.append("")
            done.release()

    thread = threading.Thread(target=add)
    thread.start()
    while not (names and names[-1] == ""):
        go.release()
        done.acquire()
        yield names[-1]
    thread.join()


def test_temporary_files_are_never_left(tmp_path: Path) -> None:
    whole(tmp_path / "run").end()
    assert not [file for file in (tmp_path / "run").rglob("*") if PART in file.name]
    shutil.rmtree(tmp_path / "run")
