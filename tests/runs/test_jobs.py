"""The local runner: finished maps stay, missing ones are made, to the same bits however often it is interrupted."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from agnosco.cli.console import Output
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError, AgnoscoWarning
from agnosco.io import local
from agnosco.io.atomic import PART
from agnosco.io.local import Local
from agnosco.io.safetensors_header import read_header
from agnosco.method import maker
from agnosco.method.checkpoint import KEY, _digest, packed, unpacked
from agnosco.method.config import Config, MapperConfig, RefineConfig
from agnosco.method.dials import L2, AutoL2, Crops, Data, Sparse, Spectral
from agnosco.method.maker import Maker, groups_of, map_classes
from agnosco.models.classifier import Classifier
from agnosco.runs import jobs, status
from agnosco.runs.jobs import Finished, map_runs
from agnosco.runs.manifest import name_of_group
from agnosco.runs.origin import remake
from agnosco.runs.run import Run
from agnosco.types import Job, Progress

SHAPE = (3, 12, 10)
LABELS = ("ant", "bee", "cat", "dog", "eel")
CONFIG = Config(MapperConfig(batch=4, steps=4, ball=L2(200.0)), RefineConfig(steps=3), cycles=2)
CPU = torch.device("cpu")


def network(labels: tuple[str, ...] = LABELS) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 10 * 8, 5))
    return Classifier(model, size=SHAPE[1:], labels=labels)


def samples() -> Samples:
    generator = torch.Generator().manual_seed(0)
    return Samples(torch.randint(256, (20, *SHAPE), generator=generator).to(torch.uint8), source="photographs")


@pytest.fixture(autouse=True)
def two_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of two maps at most."""
    monkeypatch.setattr(maker, "images_at_once", lambda _network: 8)  # of 4 images each


def create(path: Path | str, config: Config = CONFIG) -> Run:
    return Run.create(path, classifier=network(), samples=samples(), config=config)


def make(
    path: Path | str, *, config: Config = CONFIG, classes: tuple[int, ...] = (0, 1, 2, 3, 4), **options: Any
) -> Any:
    return list(map_runs(create(path, config), network(), samples(), classes, **options))


def test_a_bare_module_gives_the_maps_of_its_classifier(tmp_path: Path) -> None:
    model, config = network().model, replace(CONFIG, refine=None)
    names = tuple(str(index) for index in range(5))
    for folder, classifier in (("module", model), ("classifier", network(names))):
        run = Run.create(tmp_path / folder, classifier=classifier, samples=samples(), config=config)
        assert keys(list(map_runs(run, classifier, samples(), [1, 3]))) == [(1, 0), (3, 0)]
    content, expected = files(tmp_path / "module"), files(tmp_path / "classifier")
    assert content.keys() == expected.keys()
    assert {name for name in content if content[name] != expected[name]} <= {"manifest.json"}
    again = remake(tmp_path / "module", 3, 0, model, samples())
    assert torch.allclose(again.nu, Run.open(tmp_path / "classifier").map(3).nu, atol=1e-3)


@pytest.mark.parametrize("what", ["model", "samples"])
def test_maps_of_another_network_or_of_other_samples_are_not_made(tmp_path: Path, what: str) -> None:
    make(tmp_path / "run", classes=(0,))
    before, run = files(tmp_path / "run"), Run.open(tmp_path / "run")
    other, fewer = network(), samples()
    if what == "model":
        with torch.no_grad():
            next(other.model.parameters()).add_(1)
    else:
        fewer = fewer.part(slice(19))
    with pytest.raises(AgnoscoError, match=f"was made with other {what}"):
        list(map_runs(run, other, fewer, (0, 1)))
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("classes", "seeds", "message"),
    [
        ("12", (0,), "'12' is one class, not several"),
        ((0,), (0, 1 << 63), "there is no seed 9223372036854775808"),
        ((0,), (-(1 << 63) - 1,), "there is no seed -9223372036854775809"),
    ],
)
def test_classes_and_seeds_that_no_run_can_have_leave_no_folder(
    tmp_path: Path, classes: Any, seeds: tuple[int, ...], message: str
) -> None:
    with pytest.raises(AgnoscoError, match=message):
        make(tmp_path / "run", classes=classes, seeds=seeds)
    assert not (tmp_path / "run").exists()


def test_more_maps_than_a_manifest_can_hold_are_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "run", classes=(0, 1))
    monkeypatch.setattr(jobs, "MOST_MAPS", 3)
    make(tmp_path / "run", classes=(1, 2))
    before = files(tmp_path / "run")
    with pytest.raises(AgnoscoError, match="4 maps are too many for one run"):
        make(tmp_path / "run", classes=(0, 3))
    assert files(tmp_path / "run") == before


def test_seeds_may_be_of_numpy(tmp_path: Path) -> None:
    assert keys(make(tmp_path / "run", classes=(1,), seeds=np.arange(2))) == [(1, 0), (1, 1)]
    run = create(tmp_path / "by-hand")
    for concept in map_classes(network(), [1], samples(), CONFIG, seeds=np.arange(2)):
        run.add(concept, targeted_success_rate=0.5)
    assert [entry.job for entry in Run.open(tmp_path / "by-hand").entries] == [(1, 0), (1, 1)]


def keys(finished: list[Finished]) -> list[tuple[int, int]]:
    return [(one.entry.index, one.entry.seed) for one in finished]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maker, "images_at_once", lambda _network: 8)
        folder = tmp_path_factory.mktemp("run") / "run"
        make(folder)
    return files(folder)


def after(steps: int, error: BaseException) -> Callable[[Progress], None]:
    """Raises an error once so many steps of maps are done."""
    done: list[Progress] = []

    def on_step(step: Progress) -> None:
        done.append(step)
        if len(done) == steps:
            raise error

    return on_step


def test_a_damaged_map_that_another_makes_again_meanwhile_is_told_of(tmp_path: Path) -> None:
    make(tmp_path / "run", classes=(0, 1, 2))
    for path in (tmp_path / "run" / "maps").glob("*.safetensors"):
        path.write_bytes(b"")
    one, other = (map_runs(create(tmp_path / "run"), network(), samples(), (0, 1, 2)) for _ in range(2))
    first = next(one)
    assert keys(list(other)) == [(1, 0), (2, 0)]
    assert sorted(keys([first, *one])) == [(0, 0), (1, 0), (2, 0)]


def test_a_command_that_ends_leaves_alone_what_another_makes_again(tmp_path: Path) -> None:
    make(tmp_path / "run", classes=(0, 1, 2))
    (tmp_path / "run" / "maps" / "0000-ant-s0.safetensors").write_bytes(b"")
    damaged, whole = (name_of_group(group) for group in Run.open(tmp_path / "run").groups)
    left = [f"checkpoints/{damaged}.safetensors", f"leases/{damaged}.1.json"]
    for name in (*left, f"checkpoints/{whole}.safetensors", f"leases/{whole}.1.json"):
        Local(tmp_path / "run").write(name, b"of another process")
    make(tmp_path / "run", classes=(2,))
    assert sorted(name for name in files(tmp_path / "run") if name.startswith(("checkpoints", "leases"))) == left


# -- groups ------------------------------------------------------------------------------------


def test_groups_are_equal_and_as_few_as_can_be() -> None:
    groups = groups_of([Job(label, 0) for label in range(7)], 3)
    assert [len(group) for group in groups] == [3, 3, 1]
    assert [len(group) for group in groups_of([Job(label, 0) for label in range(8)], 5)] == [4, 4]
    assert groups_of([], 3) == []


def test_groups_are_written_before_the_work_begins(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "run", on_step=after(1, KeyboardInterrupt()))
    data = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert data["groups"] == [[[0, 0], [1, 0]], [[2, 0], [3, 0]], [[4, 0]]]
    assert data["maps"] == []


def test_a_group_is_made_again_whole_and_its_finished_maps_are_not_written_again(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    folder = tmp_path / "run"
    make(folder)
    for kind in ("json", "safetensors"):
        (folder / f"maps/0003-dog-s0.{kind}").unlink()
    stamp = (folder / "maps/0002-cat-s0.safetensors").stat().st_mtime_ns
    made_for: list[tuple[int, int]] = []
    finished = make(folder, on_step=lambda step: made_for.append((step.label, step.seed)))
    assert keys(finished) == [(3, 0)]
    assert set(made_for) == {(2, 0), (3, 0)}  # beside the one that it was made with
    assert (folder / "maps/0002-cat-s0.safetensors").stat().st_mtime_ns == stamp
    assert files(folder).items() >= {k: v for k, v in undisturbed.items()}.items()


def test_finished_maps_stay_and_new_classes_get_groups_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert keys(make(folder, classes=(0, 1, 2))) == [(0, 0), (1, 0), (2, 0)]
    before = files(folder)
    assert keys(make(folder, classes=(1, 2, 3, 4))) == [(3, 0), (4, 0)]
    assert files(folder).items() >= {k: v for k, v in before.items() if k != "manifest.json"}.items()
    assert json.loads((folder / "manifest.json").read_text())["groups"] == [
        [[0, 0], [1, 0]], [[2, 0]], [[3, 0], [4, 0]],
    ]  # fmt: skip
    assert make(folder) == []


def test_a_command_for_one_class_finishes_the_group_that_it_was_begun_in(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "run", on_step=after(1, KeyboardInterrupt()))
    assert keys(make(tmp_path / "run", classes=(3,))) == [(2, 0), (3, 0)]


# -- one command -------------------------------------------------------------------------------


def test_the_network_is_prepared_once_and_used_for_the_estimate_and_all_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[str] = []
    ordinary = maker.prepared

    def counted(classifier: Classifier, *, precision: str) -> Classifier:
        prepared.append(classifier.name)
        return ordinary(classifier, precision=precision)

    monkeypatch.setattr(maker, "prepared", counted)
    calls: list[object] = []
    finished = make(
        tmp_path / "run", on_status=lambda status: calls.append(len(status.missing)),
        on_estimate=lambda seconds, count: calls.append((seconds > 0, count)), on_step=calls.append,
    )  # fmt: skip
    assert len(finished) == 5  # in three groups
    assert len(prepared) == 1
    assert calls[:2] == [5, (True, 5)]
    assert isinstance(calls[2], Progress)  # the steps of the estimate are not reported


def test_maps_can_be_made_alone(tmp_path: Path) -> None:
    make(tmp_path / "run", classes=(0, 1, 2), together=1)
    data = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert data["groups"] == [[[0, 0]], [[1, 0]], [[2, 0]]]


@pytest.mark.parametrize("interrupted", [False, True])
def test_maps_are_made_with_the_number_of_threads_that_the_run_began_with(tmp_path: Path, interrupted: bool) -> None:
    here = torch.get_num_threads()
    seen: list[int] = []

    def on_step(_: Progress) -> None:
        seen.append(torch.get_num_threads())
        if interrupted:
            raise KeyboardInterrupt

    run = Run.create(tmp_path / "run", classifier=network(), samples=samples(), config=CONFIG, threads=here + 1)
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        list(map_runs(run, network(), samples(), [0], on_step=on_step))
    assert set(seen) == {here + 1}
    assert torch.get_num_threads() == here


def test_between_two_maps_the_caller_has_its_own_number_of_threads(tmp_path: Path) -> None:
    here = torch.get_num_threads()
    run = Run.create(tmp_path / "run", classifier=network(), samples=samples(), config=CONFIG, threads=here + 1)
    maps = map_runs(run, network(), samples(), [0, 1, 2])
    for _ in range(2):  # the third is never asked for
        next(maps)
        assert torch.get_num_threads() == here
    del maps
    assert torch.get_num_threads() == here


# -- what is damaged ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("maps/0001-bee-s0.safetensors", "flip", "0001-bee-s0.safetensors is damaged"),
        ("maps/0001-bee-s0.safetensors", "cut", "0001-bee-s0.safetensors is damaged"),
        ("maps/0001-bee-s0.safetensors", "remove", "0001-bee-s0.safetensors is missing"),
    ],
)
def test_a_damaged_map_is_made_again(
    tmp_path: Path, undisturbed: dict[str, bytes], name: str, damage: str, message: str
) -> None:
    folder = tmp_path / "run"
    make(folder)
    spoil(folder / name, damage)
    damaged: list[list[str]] = []
    finished = make(folder, on_status=lambda status: damaged.append(status.damaged))
    assert damaged == [[message]]
    assert keys(finished) == [(1, 0)]
    assert files(folder) == undisturbed


def test_a_map_of_a_run_with_other_settings_is_made_again(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    make(tmp_path / "run")
    make(tmp_path / "other", config=replace(CONFIG, cycles=1))
    for path in (tmp_path / "other").glob("*/0002-cat-s0*"):
        shutil.copy(path, tmp_path / "run" / path.parent.name)
    said: list[str] = []
    assert keys(make(tmp_path / "run", on_status=lambda status: said.extend(status.damaged))) == [(2, 0)]
    assert said == ["0002-cat-s0.safetensors is of a run with other settings"]
    assert files(tmp_path / "run") == undisturbed


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("maps/0001-bee-s0.json", "flip"),
        ("maps/0001-bee-s0.json", "cut"),
        ("maps/0001-bee-s0.json", "remove"),
        ("pictures/0001-bee-s0.png", "remove"),
        ("pictures/0001-bee-s0-raw.png", "remove"),
    ],
)
@pytest.mark.parametrize("asked_for", [0, 50], ids=["listed", "asked for"])
def test_lost_entries_and_pictures_are_written_again_without_making_the_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes], name: str, damage: str,
    asked_for: int,
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    make(folder)
    monkeypatch.setattr(status, "LISTED", asked_for)
    spoil(folder / name, damage)
    assert make(folder) == []
    assert files(folder) == undisturbed


def test_an_entry_that_no_index_knows_is_damaged_and_made_again(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):  # after the first group: the index is written when it is interrupted
        make(folder, on_step=after(29, KeyboardInterrupt()))
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(data | {"maps": []}))  # as a kill leaves it: its digest is right
    spoil(folder / "maps/0000-ant-s0.json", "flip")
    with pytest.warns(UserWarning, match="has damaged entries .0000-ant-s0: 1 in all"):
        assert [entry.index for entry in Run.open(folder).entries] == [1]
    damaged: list[list[str]] = []
    assert keys(make(folder, on_status=lambda status: damaged.append(status.damaged)))[0] == (0, 0)
    assert damaged == [["0000-ant-s0.json is damaged"]]
    assert files(folder) == undisturbed


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_runs_without_entry_files_and_groups_are_continued(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    folder = tmp_path / "run"
    make(folder)
    for path in (folder / "maps").glob("*.json"):
        path.unlink()
    data = json.loads((folder / "manifest.json").read_text())
    del data["groups"], data["check"]
    data["maps"] = [{key: value for key, value in entry.items() if key != "check"} for entry in data["maps"]]
    (folder / "manifest.json").write_text(json.dumps(data))
    assert len(list(Run.open(folder).maps())) == 5
    assert make(folder) == []
    assert {name for name in files(folder)} == set(undisturbed)  # entries are written, maps are not made


# -- checkpoints -------------------------------------------------------------------------------

BROKEN_OFF = {
    "the paper's two cycles": CONFIG,
    "data coordinates, crops": Config(
        MapperConfig(batch=4, steps=6, step=0.1, direction="plus", clip="masked", contrast=(0.5, 1.0),
                     parameterization=Data(), transforms=Crops((0.3, 1.0)), ball=L2(200.0)),
        refine=None, cycles=1,
    ),
    "growing ball, spectral": Config(
        MapperConfig(
            batch=4, steps=4, step=0.1, parameterization=Spectral(), ball=AutoL2(30.0, growth=1.5, success=0.9)
        ),
        RefineConfig(steps=3, rate=0.05), cycles=2,
    ),
    "sparse": Config(
        MapperConfig(batch=4, steps=6, step=0.1, ball=Sparse(pixels=9)), refine=None, cycles=2
    ),
}  # fmt: skip


@pytest.mark.parametrize("config", BROKEN_OFF.values(), ids=BROKEN_OFF)
def test_a_group_continues_to_the_same_bits_from_every_step(config: Config) -> None:
    made_with, _ = samples().split(0.2, seed=0)
    maker, group, about = Maker(network(), made_with, config), [Job(1, 0), Job(3, 2)], {"of": "this"}
    states: list[bytes] = []
    whole = list(maker.make(group, on_state=lambda state: states.append(packed(state, about))))
    assert len(states) == config.steps + len(config.stages)
    assert len(set(states)) == len(states)
    for content in states:
        state = unpacked(content, about, CPU)
        assert state is not None
        steps: list[Progress] = []
        done = len(state.traces[0]) + len(state.loop.trace if state.loop else [])
        for one, again in zip(whole, maker.make(group, state=state, on_step=steps.append), strict=True):
            assert len(steps) == 2 * (config.steps - done)  # it does not begin anew
            assert torch.equal(one.nu, again.nu)
            assert one.trace == again.trace
            assert list(one.stages) == list(again.stages)
            assert all(torch.equal(one.stages[name], again.stages[name]) for name in one.stages)
            assert one.probability == again.probability


def test_a_checkpoint_that_is_damaged_or_of_something_else_is_not_used() -> None:
    made_with, _ = samples().split(0.2, seed=0)
    states: list[bytes] = []
    about = {"of": "this"}
    list(
        Maker(network(), made_with, CONFIG).make(
            [Job(1, 0)], on_state=lambda state: states.append(packed(state, about))
        )
    )
    content = states[5]
    assert unpacked(content, about, CPU) is not None
    assert unpacked(content, {"of": "that"}, CPU) is None
    assert unpacked(b"", about, CPU) is None
    for place in range(0, len(content), 997):
        spoiled = bytearray(content)
        spoiled[place] ^= 4
        assert unpacked(bytes(spoiled), about, CPU) is None, place
        assert unpacked(content[:place], about, CPU) is None


def swapped(**tensors: Tensor | None) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    """Other tensors in a checkpoint; none for None. Two underscores stand for a slash."""

    def change(there: dict[str, Tensor], _: dict[str, Any]) -> None:
        for key, tensor in tensors.items():
            name = key.replace("__", "/")
            assert name in there
            if tensor is None:
                del there[name]
            else:
                there[name] = tensor

    return change


def all_stages_of_nothing(tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """A group that is finished, by what it says: black maps, made in no steps."""
    header |= {"finished": len(CONFIG.stages), "loop": False}
    tensors |= {f"finished/{place}": torch.zeros(2, 3, 12, 10) for place in range(len(CONFIG.stages))}
    tensors["traces"] = torch.zeros(2, 0, 5, dtype=torch.float64)


def too_many_stages(tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    header["finished"] = len(CONFIG.stages) + 1
    tensors |= {f"finished/{place}": torch.zeros(2, 3, 12, 10) for place in range(header["finished"])}


def another_stage(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["finished/1"] = tensors.pop("finished/0")


def endless_map(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["finished/0"][1, 0, 0, 0] = float("inf")


def another_attribute(_: dict[str, Tensor], header: dict[str, Any]) -> None:
    header["ball"]["basis"] = 1.0


TRACE = torch.ones(2, 3, 5, dtype=torch.float64)
CRAFTED = {
    "infinite step": swapped(traces=torch.full((2, 4, 5), float("inf"), dtype=torch.float64)),
    "infinite step of the loop": swapped(loop__trace=torch.full((2, 2, 5), float("inf"), dtype=torch.float64)),
    "shape of w": swapped(loop__w=torch.zeros(2, 3, 12, 9)),
    "numbers of w": swapped(loop__w=torch.zeros(2, 3, 12, 10, dtype=torch.float64)),
    "shape of Xi": swapped(loop__xi=torch.zeros(2, 3, 12, 10)),
    "shape of success": swapped(loop__success=torch.zeros(3)),
    "no moments": swapped(loop__mu=None),
    "fewer generators": lambda tensors, _: tensors.update(generators=tensors["generators"][:1]),
    "short traces": swapped(traces=TRACE),
    "fewer traces": swapped(traces=torch.ones(1, 4, 5, dtype=torch.float64)),
    "columns of traces": swapped(traces=torch.ones(2, 4, 4, dtype=torch.float64)),
    "long loop": swapped(loop__trace=torch.ones(60, 2, 5, dtype=torch.float64)),
    "loop of three maps": swapped(loop__trace=torch.ones(2, 3, 5, dtype=torch.float64)),
    "shape of a stage": swapped(finished__0=torch.zeros(2, 3, 12, 9)),
    "maps of a stage": swapped(finished__0=torch.zeros(3, 3, 12, 10)),
    "endless map": endless_map,
    "stages of nothing": all_stages_of_nothing,
    "too many stages": too_many_stages,
    "another stage": another_stage,
    "another attribute": another_attribute,
    "greater ball": lambda _, header: header["ball"].update(eta=1e9),
    "ball that is not a number": lambda _, header: header["ball"].update(eta=float("nan")),
    "ball of text": lambda _, header: header["ball"].update(eta="1"),
}  # fmt: skip


@pytest.mark.parametrize("change", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_checkpoint_is_not_used(
    change: Callable[[dict[str, Tensor], dict[str, Any]], None],
) -> None:
    """Its digest is right; a group begins anew, to the bits that it would have without."""
    made_with, _ = samples().split(0.2, seed=0)
    maker, group, about = Maker(network(), made_with, CONFIG), [Job(1, 0), Job(3, 2)], {"of": "this"}
    states: list[bytes] = []
    whole = list(maker.make(group, on_state=lambda state: states.append(packed(state, about))))
    content = states[CONFIG.mapper.steps + 2]  # in the middle of the refinement
    header = json.loads(read_header(BytesIO(content)).metadata[KEY])
    tensors = load(content)
    change(tensors, header)
    del header["digest"]
    header["digest"] = _digest(tensors, header)
    state = unpacked(save(tensors, {KEY: json.dumps(header)}), about, CPU)
    for one, again in zip(whole, maker.make(group, state=state), strict=True):
        assert one.trace == again.trace
        assert list(one.stages) == list(again.stages)
        assert all(torch.equal(one.stages[name], again.stages[name]) for name in one.stages)


@pytest.mark.parametrize(
    "steps", [1, 10, 14 * 2 + 1, 14 * 2 + 9]
)  # in the first group and in the second, which two maps share
def test_a_run_continues_from_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes], steps: int
) -> None:
    monkeypatch.setattr(jobs, "INTERVAL", 0.0)
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        make(folder, on_step=after(steps, ZeroDivisionError()))
    done = (steps - 1) % 28 // 2  # steps of two maps that were finished before
    assert len(list((folder / "checkpoints").glob("*"))) == (done > 0)
    seen: list[int] = []
    make(folder, on_step=lambda step: seen.append(step.done))
    assert seen[0] == done + 1
    assert files(folder) == undisturbed
    assert not (folder / "checkpoints").exists()


def test_short_work_writes_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "INTERVAL", float("inf"))  # whatever the clock says
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "run", on_step=after(25, KeyboardInterrupt()))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_interruption_writes_a_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(seconds) for seconds in range(10, 10_000, 10))
    monkeypatch.setattr(jobs.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(jobs, "INTERVAL", 59.0)  # six readings of the clock
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        make(folder, on_step=after(2 * 8 + 1, KeyboardInterrupt()))
    seen: list[int] = []
    make(folder, on_step=lambda step: seen.append(step.done))
    assert seen[0] == 9


def test_a_foreign_checkpoint_is_ignored_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "INTERVAL", 0.0)
        with pytest.raises(ZeroDivisionError):
            make(folder, on_step=after(9, ZeroDivisionError()))
    (name,) = (folder / "checkpoints").iterdir()
    spoil(name, "flip")
    old = shutil.copy(name, name.with_name("old.safetensors"))
    os.utime(old, (0, 0))
    fresh = Path(shutil.copy(name, name.with_name("fresh.safetensors")))  # may be another process's
    seen: list[int] = []
    make(folder, on_step=lambda step: seen.append(step.done))
    assert seen[0] == 1
    assert [path.name for path in fresh.parent.iterdir()] == ["fresh.safetensors"]
    fresh.unlink()
    assert files(folder) == undisturbed


def test_the_checkpoint_of_another_process_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "INTERVAL", 0.0)
    mine = map_runs(create(tmp_path / "run"), network(), samples(), [0, 1])
    next(mine)  # begun, before the other is
    with pytest.raises(ZeroDivisionError):
        list(map_runs(create(tmp_path / "run"), network(), samples(), [2, 3], on_step=after(9, ZeroDivisionError())))
    list(mine)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_what_is_computed_and_not_stored_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    monkeypatch.setattr(jobs, "INTERVAL", 0.0)
    folder = tmp_path / "run"
    add = Run.add

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Run, "add", broken)
    with pytest.raises(ZeroDivisionError):
        make(folder, classes=(0, 1))
    monkeypatch.setattr(Run, "add", add)
    seen: list[int] = []
    assert len(make(folder, classes=(0, 1), on_step=lambda step: seen.append(step.done))) == 2
    assert seen == []
    stem = "maps/0001-bee-s0.safetensors"
    assert files(folder)[stem] == undisturbed[stem]


# -- two at once -------------------------------------------------------------------------------


def test_a_group_that_another_process_has_made_is_skipped(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    folder = tmp_path / "run"
    one, other = create(folder), create(folder)
    first = map_runs(one, network(), samples(), range(5))
    assert keys([next(first)]) == [(0, 0)]
    assert len(list(map_runs(other, network(), samples(), range(5)))) == 4
    rest = list(first)
    assert keys(rest) == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert [one.seconds > 0 for one in rest] == [True, False, False, False]  # it had its own group in hand
    assert files(folder) == undisturbed


def test_two_processes_with_other_classes_keep_what_each_has_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = map_runs(create(folder), network(), samples(), [0, 1, 2])
    next(first)
    second = map_runs(create(folder), network(), samples(), [2, 3, 4])
    next(second)
    list(first)
    list(second)
    data = json.loads((folder / "manifest.json").read_text())
    assert data["groups"] == [[[0, 0], [1, 0]], [[2, 0]], [[3, 0], [4, 0]]]
    assert [entry["index"] for entry in data["maps"]] == [0, 1, 2, 3, 4]


# -- what goes wrong ---------------------------------------------------------------------------


def failing(number: int, count: int) -> Callable[[Path], AbstractContextManager[IO[bytes]]]:
    """Atomic files, of which the one of this number and all after it cannot be flushed."""
    ordinary, written = local.atomic_file, []

    @contextmanager
    def half(path: Path) -> Iterator[IO[bytes]]:
        written.append(path)
        with pytest.MonkeyPatch.context() as patch, ordinary(path) as file:
            if len(written) >= count:
                patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
            yield file

    return half


@pytest.mark.parametrize(
    ("number", "error", "hint"),
    [
        (errno.ENOSPC, "no space left on device", "free some space"),
        (errno.EROFS, "read-only file system", "make it writable"),
        (errno.EIO, "input/output error", "the same command again"),
    ],
)
def test_a_failing_disk_leaves_finished_maps_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes], number: int, error: str, hint: str
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(
        local, "atomic_file", failing(number, 8)
    )  # the manifest, four of the first map, three of the next
    with pytest.raises(AgnoscoError, match=error) as caught:
        make(folder)
    assert hint in caught.value.hint
    stem = "0000-ant-s0"
    assert set(files(folder)) >= {f"maps/{stem}.json", f"maps/{stem}.safetensors"}
    assert not [name for name in files(folder) if PART in name]
    assert [entry.index for entry in Run.open(folder).entries] == [0]
    monkeypatch.undo()


def test_a_run_continues_once_there_is_space(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "atomic_file", failing(errno.ENOSPC, 8))
        with pytest.raises(AgnoscoError):
            make(folder)
    assert keys(make(folder)) == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert files(folder) == undisturbed


@pytest.mark.parametrize("left", [False, True], ids=["gone", "emptied"])
def test_a_folder_that_vanishes_is_not_begun_again(tmp_path: Path, left: bool) -> None:
    folder = tmp_path / "run"
    maps = map_runs(create(folder), network(), samples(), range(5))
    next(maps)
    shutil.rmtree(folder)
    if left:
        folder.mkdir()
    with pytest.raises(AgnoscoError, match=r"has no manifest\.json any more"):
        list(maps)
    assert files(tmp_path) == {}


def test_a_program_may_end_before_its_maps(tmp_path: Path) -> None:
    code = f"""
import torch
from agnosco import Classifier, Config, MapperConfig, Run, Samples, map_runs
classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)), size=8)
samples, config = Samples.noise(classifier.shape, count=10), Config(MapperConfig(batch=2, steps=2), None, cycles=1)
run = Run.create({str(tmp_path / "run")!r}, classifier=classifier, samples=samples, config=config)
maps = map_runs(run, classifier, samples, range(4), together=2)
print(next(maps).entry.index, run.folder.names("leases") != [])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0 True\n", "")
    run = Run.open(tmp_path / "run")
    assert [entry.index for entry in run.entries] == [0]
    assert run.folder.names("leases") == []


def test_a_run_does_not_go_on_in_another_that_took_the_place_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    maps = map_runs(create(folder), network(), samples(), range(5))
    next(maps)
    folder.rename(tmp_path / "moved")
    make(folder, config=replace(CONFIG, cycles=1), classes=(1,))
    before = files(folder)
    with pytest.raises(AgnoscoError, match="holds a run with other settings"):
        list(maps)
    assert files(folder) == before


# -- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_a_command_and_leave_what_is_finished(tmp_path: Path, number: int, code: int) -> None:
    output = Output(quiet=True)
    steps: list[Progress] = []

    def command() -> None:
        for _ in map_runs(create(tmp_path / "run"), network(), samples(), range(5), on_step=step):
            pass

    def step(progress: Progress) -> None:
        steps.append(progress)
        if len(steps) == 29:
            signal.raise_signal(number)

    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert output.run(command) == code
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert signal.getsignal(signal.SIGTERM) is before
    assert [entry.index for entry in Run.open(tmp_path / "run").entries] == [0, 1]


def test_a_finished_map_is_kept_whatever_its_class_is_called_now(tmp_path: Path) -> None:
    make(tmp_path / "run", classes=(0, 1))
    renamed = network(tuple(name.upper() + " the animal" for name in LABELS))
    run = Run.create(tmp_path / "run", classifier=renamed, samples=samples(), config=CONFIG)
    expected = "has maps of 2 classes under other names than the network's: 'ant' for class 0, 'ANT the animal'"
    with pytest.warns(AgnoscoWarning, match=expected):
        assert list(map_runs(run, renamed, samples(), [0, 1])) == []


def test_settings_that_do_not_go_together_leave_no_folder(tmp_path: Path) -> None:
    config = replace(CONFIG, mapper=replace(CONFIG.mapper, parameterization=Data(), ball=Sparse(pixels=9)))
    with pytest.raises(AgnoscoError, match="sparse ball needs pixel coordinates"):
        make(tmp_path / "run", config=config)
    assert not (tmp_path / "run").exists()


def test_other_settings_are_another_run(tmp_path: Path) -> None:
    make(tmp_path / "run", classes=(0,))
    with pytest.raises(AgnoscoError, match="other settings"):
        make(tmp_path / "run", config=replace(CONFIG, cycles=1))


def test_a_damaged_map_of_a_class_that_is_called_otherwise_now_leaves_nothing_behind(tmp_path: Path) -> None:
    folder, renamed = tmp_path / "run", ("ant", "wasp", "cat", "dog", "eel")
    make(folder, classes=(0, 1))
    spoil(folder / "maps/0001-bee-s0.safetensors", "cut")
    run = Run.create(folder, classifier=network(renamed), samples=samples(), config=CONFIG)
    assert keys(list(map_runs(run, network(renamed), samples(), [0, 1]))) == [(1, 0)]
    assert {entry.name for entry in Run.open(folder).entries} == {"ant", "wasp"}
    assert not any("bee" in name for name in files(folder))
