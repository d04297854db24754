"""Several processes share a run: who takes which group, whose lease lapses, and what is made once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers import PATIENCE
from torch import nn

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.io import atomic, records
from agnosco.io.storage import Folder
from agnosco.method import maker
from agnosco.method.config import Config, MapperConfig
from agnosco.models.classifier import Classifier
from agnosco.runs import jobs, leases
from agnosco.runs.jobs import Finished, map_runs
from agnosco.runs.leases import LEASES, Lease, LeaseRecord, Leases
from agnosco.runs.manifest import name_of_group
from agnosco.runs.run import Run
from agnosco.types import Job, Progress

SHAPE = (3, 6, 6)
LABELS = ("ant", "bee", "cat", "dog", "eel", "fox")
CONFIG = Config(MapperConfig(batch=4, steps=4), refine=None, cycles=1)
NOBODY = 2**22 + 1
"""Larger than any process id on Linux."""


def network() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, len(LABELS)))
    return Classifier(model, size=SHAPE[1:], labels=LABELS)


NETWORK, SAMPLES = network(), Samples.noise(SHAPE, count=20)


@pytest.fixture(autouse=True)
def two_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of two maps, and short waits. No lease lapses or is renewed by the clock: a machine may stand still."""
    monkeypatch.setattr(maker, "images_at_once", lambda _network: 8)
    monkeypatch.setattr(jobs, "WAIT", 0.01)
    monkeypatch.setattr(leases, "LOOK_AGAIN", 0.01)
    monkeypatch.setattr(leases, "LAPSE", 1e6)
    monkeypatch.setattr(leases, "RENEWAL", 1e6)


def create(path: Path, **options: Any) -> Run:
    return Run.create(path, classifier=NETWORK, samples=SAMPLES, config=CONFIG, **options)


def make(path: Path, classes: range = range(6), **options: Any) -> list[Finished]:
    return list(map_runs(create(path), NETWORK, SAMPLES, classes, **options))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(folder: Folder, file: str, owner: str, *, renewed: int = 0, until: str = "2000-01-01T00:00:00") -> None:
    """A lease of another process."""
    folder.write(f"{LEASES}/{file}", records.encode(LeaseRecord(owner=owner, until=until, renewed=renewed)))


def elsewhere(process: int = 7) -> str:
    return f"another_machine-{process}-0123456789ab"


def here(process: int) -> str:
    return f"{atomic.host_name()}-{process}-0123456789ab"


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder.of(tmp_path if request.param == "local" else "memory://leases/run")


class Clock:
    """A monotonic clock that tests set forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(leases.time, "monotonic", lambda: self.now)


# -- files that one process alone creates --------------------------------------------------------------


def test_a_file_is_created_once(folder: Folder) -> None:
    assert folder.create("a/b.json", b"first")
    assert not folder.create("a/b.json", b"second")
    assert folder.read("a/b.json") == b"first"
    folder.remove("a/b.json")
    assert folder.create("a/b.json", b"third")
    assert folder.names("a") == ["b.json"]


def test_of_many_one_creates_a_file(tmp_path: Path) -> None:
    folder, start = Folder.of(tmp_path), threading.Barrier(8, timeout=PATIENCE)

    def attempt(number: int) -> list[bool]:
        results = []
        for name in range(20):
            start.wait()
            results.append(folder.create(f"x/{name}.json", b"%d" % number))
        return results

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attempt, range(8)))
    assert [sum(column) for column in zip(*results, strict=True)] == [1] * 20
    for name in range(20):
        winner = next(number for number in range(8) if results[number][name])
        assert folder.read(f"x/{name}.json") == b"%d" % winner
    assert len(list(tmp_path.rglob("*"))) == 21  # no temporary file


def test_a_disk_without_hard_links_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(atomic.errno.EPERM, "not permitted")

    monkeypatch.setattr(atomic.os, "link", refused)
    test_a_file_is_created_once(Folder.of(tmp_path))


def test_an_answer_that_a_network_disk_loses_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = atomic.os.link

    def twice(*paths: Any) -> None:
        link(*paths)
        link(*paths)

    monkeypatch.setattr(atomic.os, "link", twice)
    assert Folder.of(tmp_path).create("a.json", b"mine")


# -- leases --------------------------------------------------------------------------------------------


def test_a_lease_is_held_by_one_until_it_is_released(folder: Folder) -> None:
    ours, theirs = Leases(folder), Leases(folder)
    with ThreadPoolExecutor(1) as pool:  # another thread, which lives on
        lease = pool.submit(ours.take, "group").result()
        assert lease is not None
        assert theirs.take("group") is None
        assert ours.take("group") is None
        other = theirs.take("another")
        assert other is not None
        lease.release()
        again = theirs.take("group")
        assert again is not None
        again.release()
        other.release()
        assert folder.names(LEASES) == []


def test_what_was_left_in_the_middle_holds_nothing_up(folder: Folder) -> None:
    mine = Leases(folder).take("group")  # of an iterator that a notebook keeps in its last traceback, say
    again = Leases(folder).take("group")
    assert mine is not None
    assert again is not None
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(Leases(folder).take, "another").result()
    after = Leases(folder).take("another")
    assert ended is not None
    assert after is not None
    for lease in (mine, again, ended, after):
        lease.release()
    assert folder.names(LEASES) == []


@pytest.mark.parametrize("step", ["create", "is_there", "keep"])
def test_an_interruption_while_a_lease_is_taken_leaves_none(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    done = getattr(Lease, step)

    def interrupted(lease: Lease) -> None:
        done(lease)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Lease, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        Leases(folder).take("group")
    assert Leases(folder).names() == set()


def test_a_lease_whose_file_another_took_for_a_lapsed_one_is_not_held(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Lease.create

    def removed(self: Lease) -> bool:
        created = create(self)
        folder.remove(self.file)  # by one that had seen the lapsed lease of that number
        return created

    with monkeypatch.context() as patch:
        patch.setattr(Lease, "create", removed)
        assert Leases(folder).take("group") is None
    lease = Leases(folder).take("group")
    assert lease is not None
    lease.release()


def test_a_lease_says_who_and_until_when(tmp_path: Path) -> None:
    before = time.time()
    lease = Leases(Folder.of(tmp_path)).take("group")
    after = time.time()
    assert lease is not None
    record = records.decode((tmp_path / LEASES / "group.1.json").read_bytes(), LeaseRecord)
    lease.release()
    assert record.owner.startswith(f"{atomic.host_name()}-{atomic.os.getpid()}-")
    taken = leases.datetime.fromisoformat(record.until).timestamp() - leases.LAPSE
    assert before - 1 < taken <= after  # it is told in whole seconds


def test_the_lease_of_a_dead_process_of_this_machine_lapses_at_once(folder: Folder) -> None:
    written(folder, "group.3.json", here(NOBODY))
    lease = Leases(folder).take("group")
    assert lease is not None
    assert folder.names(LEASES) == ["group.4.json"]
    lease.release()


def test_the_lease_of_a_process_that_lives_does_not(folder: Folder) -> None:
    written(folder, "group.3.json", here(1))
    assert Leases(folder).take("group") is None


def test_a_lease_of_an_earlier_process_with_the_id_of_this_one_lapses_at_once(folder: Folder) -> None:
    written(folder, "group.3.json", here(atomic.os.getpid()))
    lease = Leases(folder).take("group")
    assert lease is not None
    lease.release()


@pytest.mark.parametrize("until", ["1990-01-01T00:00:00", "2990-01-01T00:00:00", "tomorrow"])
def test_that_of_another_machine_lapses_by_our_own_clock(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, until: str
) -> None:
    clock, watcher = Clock(monkeypatch), Leases(folder)
    written(folder, "group.1.json", elsewhere(), until=until)
    assert watcher.take("group") is None
    clock.now += leases.LAPSE - 1
    assert watcher.take("group") is None
    written(folder, "group.1.json", elsewhere(), renewed=1, until=until)
    clock.now += 2
    assert watcher.take("group") is None  # it was renewed
    clock.now += leases.LAPSE - 1
    assert watcher.take("group") is None
    clock.now += 2
    lease = watcher.take("group")
    assert lease is not None
    assert folder.names(LEASES) == ["group.2.json"]
    lease.release()


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"owner": 3}', b"\xff" * 100, b'{"owner": "--", "until": "", "renewed": 0}']
)
def test_what_is_no_lease_lapses_like_one(folder: Folder, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    clock, watcher = Clock(monkeypatch), Leases(folder)
    folder.write(f"{LEASES}/group.1.json", content)
    for other in ("group.json", "group.x.json", "group.1.txt", "group-1.1.json", ".1.json"):
        folder.write(f"{LEASES}/{other}", content)
    assert watcher.take("group") is None
    clock.now += leases.LAPSE + 1
    lease = watcher.take("group")
    assert lease is not None
    lease.release()


def test_a_lease_is_renewed_and_lost_once_another_has_taken_it(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL", 0.01)
    lease = Leases(folder).take("group")
    assert lease is not None
    _until(lambda: records.decode(folder.read(f"{LEASES}/group.1.json"), LeaseRecord).renewed >= 2)
    assert not lease.lost
    written(folder, "group.2.json", elsewhere())
    _until(lambda: lease.lost)
    lease.release()
    assert folder.names(LEASES) == ["group.2.json"]


def test_a_store_that_does_not_answer_for_a_while_costs_no_lease(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL", 0.01)
    lease, write, failed = Leases(folder).take("group"), folder.write, []
    assert lease is not None

    def failing(name: str, content: bytes) -> str:
        if len(failed) < 3:
            failed.append(name)
            raise AgnoscoError("no answer", "wait")
        return write(name, content)

    monkeypatch.setattr(folder, "write", failing)
    _until(lambda: records.decode(folder.read(f"{LEASES}/group.1.json"), LeaseRecord).renewed > 3)
    lease.release()
    assert len(failed) == 3
    assert not lease.lost


def test_a_lease_that_another_has_taken_over_is_not_touched(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process was stopped; meanwhile the next owner took number 2 and released it, and the numbers began again."""
    monkeypatch.setattr(Lease, "keep", lambda self: None)  # nothing is renewed meanwhile
    lease = Leases(folder).take("group")
    assert lease is not None
    written(folder, "group.1.json", elsewhere())
    lease._looked -= leases.LAPSE + 1
    assert not lease.working()
    lease.release()
    assert records.decode(folder.read(f"{LEASES}/group.1.json"), LeaseRecord).owner == elsewhere()


def test_a_process_that_was_stopped_looks_before_it_goes_on(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "keep", lambda self: None)  # nothing is renewed meanwhile
    lease = Leases(folder).take("group")
    assert lease is not None
    written(folder, "group.2.json", elsewhere())
    assert lease.working()  # it was renewed a moment ago
    lease._looked -= leases.LAPSE + 1
    assert not lease.working()
    lease.release()


def test_an_owner_that_does_not_work_does_not_renew(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "keep", lambda self: None)  # its thread is this one
    lease = Leases(folder).take("group")
    assert lease is not None
    before = folder.read(f"{LEASES}/group.1.json")
    released = iter([False, False, True, False, True])
    monkeypatch.setattr(lease._released, "wait", lambda _: next(released))
    lease._worked -= leases.PATIENCE  # nobody has asked it for maps
    lease._keep()
    assert folder.read(f"{LEASES}/group.1.json") == before
    assert lease.working()
    lease._keep()
    assert folder.read(f"{LEASES}/group.1.json") != before
    lease.release()


def test_a_lease_that_is_released_and_taken_while_another_looks_is_not_taken_twice(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lists [1], which is released; a second takes 1 anew; then the first reads on."""
    ours, others = Leases(folder), Leases(folder)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(others.take, "group").result()
        assert first is not None
        read, taken = ours._content_of, []

        def late(file: str) -> bytes:
            if not taken:
                first.release()
                content = read(file)  # it is gone
                taken.append(pool.submit(others.take, "group").result())
                return content
            return read(file)

        monkeypatch.setattr(ours, "_content_of", late)
        assert ours.take("group") is None
        assert folder.names(LEASES) == ["group.1.json"]
        taken[0].release()


def test_of_two_that_create_different_numbers_at_once_at_most_one_has_the_lease(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(folder, "group.1.json", here(NOBODY))
    ours, create = Leases(folder), folder.create

    def beside(name: str, content: bytes) -> bool:
        """Meanwhile another takes over, is done, releases all, and a third takes number 1."""
        written(folder, "group.1.json", elsewhere())
        return create(name, content)

    monkeypatch.setattr(folder, "create", beside)
    assert ours.take("group") is None
    assert folder.names(LEASES) == ["group.1.json"]
    assert records.decode(folder.read(f"{LEASES}/group.1.json"), LeaseRecord).owner == elsewhere()


def test_what_is_in_the_way_is_an_error(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    (tmp_path / LEASES / "group.1.json").mkdir(parents=True)
    with pytest.raises(AgnoscoError, match="cannot write"):
        Leases(folder).take("group")
    written(folder, "other.999999.json", here(NOBODY))
    with pytest.raises(AgnoscoError, match="is no lease of agnosco's"):
        Leases(folder).take("other")


def test_a_command_that_failed_does_not_wait_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "BRIEFLY", 0.05)
    run = create(tmp_path / "run")

    def on_step(_: Progress) -> None:
        written(run.folder, "manifest.1.json", elsewhere())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(map_runs(run, NETWORK, SAMPLES, [0], on_step=on_step))
    with pytest.raises(AgnoscoError, match="holds the lease of the manifest"):
        run.end(patience=0.05)


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(60_000):  # looks, not seconds: a machine may stand still
        if condition():
            return
        time.sleep(0.005)
    pytest.fail("it has not come to pass")


# -- shared runs -----------------------------------------------------------------------------------------


def test_two_share_a_run_and_make_every_map_once(tmp_path: Path) -> None:
    make(tmp_path / "alone")
    start, steps = threading.Barrier(2, timeout=PATIENCE), []

    def one(_: int) -> list[Finished]:
        def on_step(progress: Progress) -> None:
            steps.append((progress.label, progress.done))
            if len(steps) < 3:
                start.wait()  # until both have a group

        return make(tmp_path / "run", on_step=on_step)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(one, range(2)))
    assert sorted(steps) == [(label, step) for label in range(6) for step in range(1, 5)]  # none was made twice
    for finished in results:  # each tells of all maps, and knows which it has made
        assert sorted(each.entry.index for each in finished) == list(range(6))
    made = [[each.entry.index for each in finished if not each.elsewhere] for finished in results]
    assert sorted(made[0] + made[1]) == list(range(6))
    assert all(made)
    assert files(tmp_path / "run") == files(tmp_path / "alone")  # and no lease is left


def test_a_group_of_another_process_is_waited_for_and_continued_when_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, path = Clock(monkeypatch), tmp_path / "run"
    run = create(path)
    group = jobs.store_groups(run, [Job(label, 0) for label in range(6)], 2)[0]
    written(run.folder, f"{name_of_group(group)}.1.json", elsewhere())
    made, waits = [], []

    def on_wait(groups: int) -> None:
        waits.append(groups)
        clock.now += leases.LAPSE / 2

    finished = make(path, on_step=lambda step: made.append(step.label), on_wait=on_wait)
    assert list(dict.fromkeys(made)) == [2, 3, 4, 5, 0, 1]
    assert len(waits) >= 2
    assert set(waits) == {1}
    assert not any(each.elsewhere for each in finished)
    assert [each.entry.index for each in finished] == [2, 3, 4, 5, 0, 1]
    make(tmp_path / "alone")
    assert files(path) == files(tmp_path / "alone")


def test_maps_that_another_process_stores_meanwhile_are_told_of(tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    told: list[int] = []

    def on_step(step: Progress) -> None:
        if step.label == 0 and step.done == 1:
            for each in other[2:4]:
                for kind in ("json", "safetensors"):
                    name = f"maps/{each.entry.stem}.{kind}"
                    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
                    (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
        told.append(step.label)

    finished = make(tmp_path / "run", on_step=on_step)
    assert set(told) == {0, 1, 4, 5}
    assert [each.entry.index for each in finished if each.elsewhere] == [2, 3]
    assert sorted(each.entry.index for each in finished) == list(range(6))
    assert files(tmp_path / "run") == files(tmp_path / "other")


def test_a_lost_group_is_left_to_its_new_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL", 0.01)
    folder, take = Folder.of(tmp_path / "run"), Leases.take
    seen, taken, others = [], [], []

    def noted(self: Leases, *args: Any) -> Lease | None:
        taken.append(take(self, *args))
        return taken[-1]

    monkeypatch.setattr(Leases, "take", noted)

    def on_step(step: Progress) -> None:
        seen.append(step.label)
        if len(seen) == 1:  # this process was stopped for a while
            file = next(name for name in folder.names(LEASES) if name.endswith(".1.json"))
            theirs = file.replace(".1.json", ".2.json")
            written(folder, theirs, here(1))
            _until(lambda: any(lease is not None and lease.lost for lease in taken))
            others.append(theirs)

    def on_wait(_: int) -> None:
        folder.remove(f"{LEASES}/{others.pop()}")  # the new owner is gone

    finished = make(tmp_path / "run", on_step=on_step, on_wait=on_wait)
    assert others == []
    assert seen.index(2) == 2  # the group was left after the step
    assert sorted(each.entry.index for each in finished) == list(range(6))
    assert seen.count(0) == 5
    make(tmp_path / "alone")
    assert files(tmp_path / "run") == files(tmp_path / "alone")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_process_leaves_no_lease(tmp_path: Path, error: type[BaseException]) -> None:
    def on_step(_: Progress) -> None:
        raise error

    with pytest.raises(error):
        make(tmp_path / "run", on_step=on_step)
    assert Folder.of(tmp_path / "run").names(LEASES) == []
    maps = map_runs(create(tmp_path / "run"), NETWORK, SAMPLES, range(6))
    next(maps)
    cast(Generator[Finished], maps).close()  # whoever asked for maps has enough
    assert Folder.of(tmp_path / "run").names(LEASES) == []


def test_leases_of_finished_groups_are_removed_at_the_end(tmp_path: Path) -> None:
    make(tmp_path / "run", range(2))
    before = files(tmp_path / "run")
    run = Run.open(tmp_path / "run")
    written(run.folder, f"{name_of_group(run.groups[0])}.7.json", elsewhere())  # as a folder that was away leaves it
    written(run.folder, f"{'0' * 24}.1.json", elsewhere())  # of a group that another process has just planned
    assert make(tmp_path / "run", range(2)) == []
    assert run.folder.names(LEASES) == [f"{'0' * 24}.1.json"]
    run.folder.remove(f"{LEASES}/{'0' * 24}.1.json")
    assert files(tmp_path / "run") == before


def test_two_that_begin_at_once_keep_the_groups_of_both(tmp_path: Path) -> None:
    start = threading.Barrier(6, timeout=PATIENCE)

    def one(label: int) -> None:
        run = create(tmp_path / "run")
        start.wait()
        jobs.store_groups(run, [Job(label, 0)], 2)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(6)))
    assert sorted(Run.open(tmp_path / "run").groups) == [[Job(label, 0)] for label in range(6)]


def test_the_second_of_two_that_begin_at_once_takes_the_threads_of_the_first(tmp_path: Path) -> None:
    here_now = torch.get_num_threads()
    first, second = (create(tmp_path / "run", threads=here_now + more) for more in (1, 2))
    jobs.store_groups(first, [Job(0, 0)], 2)
    seen: list[int] = []
    maps = map_runs(second, NETWORK, SAMPLES, [0], on_step=lambda _: seen.append(torch.get_num_threads()))
    assert len(list(maps)) == 1
    assert set(seen) == {here_now + 1}
    assert Run.open(tmp_path / "run").settings.threads == here_now + 1


def test_the_second_of_two_that_begin_at_once_with_other_settings_is_refused(tmp_path: Path) -> None:
    first, second = (
        Run.create(tmp_path / "run", classifier=NETWORK, samples=SAMPLES, config=config)
        for config in (CONFIG, Config(MapperConfig(batch=4, steps=5), refine=None, cycles=1))
    )
    jobs.store_groups(first, [Job(0, 0)], 2)
    before = files(tmp_path / "run")
    with pytest.raises(AgnoscoError, match="config mapper steps 4, now 5"):
        list(map_runs(second, NETWORK, SAMPLES, [0]))
    assert files(tmp_path / "run") == before
