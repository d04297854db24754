"""Maps made on a cluster: two worker nodes on this machine, one of whose workers is killed in the middle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import collect_sockets
from torch import Tensor, nn

from agnosco import Classifier, Config, Samples, load, preset
from agnosco.errors import AgnoscoError
from agnosco.io.records import encode
from agnosco.method.score import predictions
from agnosco.models.classifier import Classifier as Loaded
from agnosco.runs import cluster as cluster_module
from agnosco.runs import connection, jobs, leases
from agnosco.runs.cluster import Cluster, versions
from agnosco.runs.connection import reach
from agnosco.runs.jobs import map_runs, store_groups
from agnosco.runs.leases import LeaseRecord
from agnosco.runs.manifest import cpu_kind, name_of_group, write_manifest
from agnosco.runs.run import MANIFEST, Run
from agnosco.types import Job

ray = pytest.importorskip("ray")

benchmark = import_module("cluster")

NOBODY = "127.0.0.1:1"
"""An address where nothing answers."""

SHARED: list[Cluster] = []
"""The connection of :func:`cluster`."""

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of its sockets and of what it deprecates


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with benchmark.nodes(2, busy=True) as cluster:
        yield str(cluster.address)
        ray.shutdown()
    collect_sockets()


@pytest.fixture
def cluster(address: str) -> Cluster:
    """The connection that tests share: for a new one, Ray starts new workers, which takes seconds."""
    if not ray.is_initialized():
        SHARED[:] = [Cluster(address)]
    return SHARED[0]


@pytest.fixture
def own_address(address: str) -> str:
    """The address for a test that connects by itself."""
    ray.shutdown()
    return address


def network() -> Loaded:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 12),
    )  # fmt: skip
    return Classifier(model, size=16, name="small")


def settings(steps: int) -> Config:
    return Config(replace(preset("quick").mapper, steps=steps), refine=None, cycles=1)


def files(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.path.glob("*/*"))}


def test_a_killed_worker_is_replaced_and_the_maps_are_those_of_one_process(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, samples, config = network(), Samples.noise((3, 16, 16), count=40), settings(600)
    ended, looks, killed = cluster._ended, list[int](), list[int]()
    assert cluster.workers == 2
    run = cluster.run(str(tmp_path / "cluster"), classifier=classifier, samples=samples, config=config)

    def look(refs: list[Any]) -> list[Any]:
        looks.append(len(run.folder.names("leases")))
        if len(looks) > 1 and all(looks[-2:]) and not killed:  # somebody works, and has for a while
            killed.extend(benchmark.kill_a_worker())
        return ended(refs)

    monkeypatch.setattr(cluster, "_ended", look)
    maps = map_runs(run, classifier, samples, range(12), backend=cluster.make, on_step=lambda _: None)
    finished = [(one.entry.index, one.entry.seed) for one in maps]
    assert killed
    assert sorted(finished) == [(label, 0) for label in range(12)]

    run.folder.sweep()  # what was half written, as the next command would
    # In one process, the same groups: of the same settings, none made yet.
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / MANIFEST).write_bytes(write_manifest(run.settings, Run.open(run.path).groups, []))
    list(map_runs(Run.open(alone), classifier, samples, range(12)))
    assert files(Run.open(alone)) == files(Run.open(run.path))
    assert len(files(run)) == 4 * 12


def test_errors_of_the_user_are_the_same_as_on_one_machine(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Steep(nn.Module):
        """The root of zero, whose slope is not finite."""

        def forward(self, images: Tensor) -> Tensor:
            return (images * 0).sqrt()

    classifier = Classifier(nn.Sequential(Steep(), nn.Flatten(), nn.Linear(768, 12)), size=16)
    samples, cancelled = Samples.noise((3, 16, 16), count=40), list[Any]()
    monkeypatch.setattr(ray, "cancel", cancelled.append)
    run = cluster.run(str(tmp_path / "run"), classifier=classifier, samples=samples, config=settings(2))
    with pytest.raises(AgnoscoError, match="not finite"):
        list(map_runs(run, classifier, samples, [0], backend=cluster.make))
    assert cancelled == []  # the task has ended: to cancel it could abort this process


@pytest.mark.parametrize("kind", ["labels", "features", "code", "weights", "samples", "pixels", "settings"])
def test_what_was_sent_is_not_taken_for_another_network(cluster: Cluster, kind: str) -> None:
    classifier, samples, config = network(), Samples.noise((3, 16, 16), count=40), settings(2)
    cluster.send(classifier, samples, config)
    assert cluster._sent is not None
    sent, config = cluster._sent[0], cluster._sent[0].config
    other = {
        "labels": lambda: Classifier(classifier.model, size=16, name="small", labels=list("abcdefghijkl")),
        "features": lambda: Classifier(classifier.model, size=16, name="small", features="0"),
        "code": lambda: Classifier(nn.Sequential(*classifier.model.children(), nn.Tanh()), size=16, name="small"),
    }.get(kind, lambda: classifier)()
    assert sent.is_still(classifier, samples, config)
    others = Samples.noise((3, 16, 16), count=40, seed=1) if kind == "samples" else samples
    if kind == "weights":
        with torch.no_grad():
            next(classifier.model.parameters()).add_(1)
    elif kind == "pixels":
        samples.images.add_(1)
    elif kind == "settings":
        config = replace(config, cycles=2)
    assert not sent.is_still(other, others, config)


def test_tasks_are_cancelled_each_but_not_one_that_has_ended(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled, over = list[Any](), tmp_path / "over"

    def cancel(ref: Any) -> None:
        cancelled.append(ref)
        raise ray.exceptions.RaySystemError("out of order")

    def sleep_until(path: Path | None) -> None:
        while path is not None and not path.exists():
            time.sleep(0.05)

    wait = cluster._task(sleep_until)
    ended, *running = wait.remote(None), wait.remote(over), wait.remote(over)
    try:
        ray.wait([ended])
        with monkeypatch.context() as patch:
            patch.setattr(ray, "cancel", cancel)
            patch.setattr(cluster_module, "STOP_TIMEOUT", 0)
            cluster._cancel([ended, *running])
    finally:
        over.touch()  # Ray forgets a wish to cancel a task that is just beginning: they would hold the workers for ever
        ray.wait(running, num_returns=len(running))
    assert cancelled == running


def test_at_the_end_of_a_program_no_task_is_cancelled_as_that_would_start_ray_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for name in ("wait", "cancel"):
        monkeypatch.setattr(ray, name, lambda *args, **_: asked.append(args))
    cluster._cancel([object()])
    assert asked == []


@pytest.mark.parametrize(("cpus", "gpus"), [(3, 0), (1, 1)])
def test_a_worker_that_fits_on_no_machine_is_an_error(own_address: str, cpus: int, gpus: float) -> None:
    with pytest.raises(AgnoscoError, match="no machine of the cluster has"):
        Cluster(own_address, cpus=cpus, gpus=gpus)


def test_workers_of_other_versions_are_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agnosco.runs.cluster.versions", lambda: versions() | {"torch": "0.1"})
    samples = Samples.noise((3, 16, 16), count=40)
    with pytest.raises(AgnoscoError, match="other versions"):
        cluster.send(network(), samples, settings(2))


def test_the_kind_of_cpu_is_that_of_the_workers(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = cpu_kind("cpu")
    monkeypatch.setattr("agnosco.runs.manifest.cpu_kind", lambda device: "that of this process")
    samples = Samples.noise((3, 16, 16), count=40)
    run = cluster.run(str(tmp_path / "run"), classifier=network(), samples=samples, config=settings(2))
    assert run.settings.cpu == kind


def test_a_missing_cluster_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AgnoscoError, match="no Ray cluster at"):
        Cluster("127.0.0.1:1")


def test_progress_comes_from_all_workers(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, samples, config = network(), Samples.noise((3, 16, 16), count=40), settings(40)
    seen: dict[Any, int] = {}
    ordinary, queues = Cluster._queue, []

    def begun(self: Cluster) -> Any:
        queues.append(ordinary(self))
        ray.get(queues[0].actor.qsize.remote())  # its process may take longer to begin than the maps
        return queues[0]

    answer = Cluster._answer

    def reported(self: Cluster, ref: Any) -> Any:
        found = answer(self, ref)  # or its error
        for _ in range(600):  # a worker's word may come after its maps
            if seen or not queues or ray.get(queues[0].actor.qsize.remote()):
                break
            time.sleep(0.1)
        return found

    monkeypatch.setattr(Cluster, "_queue", begun)
    monkeypatch.setattr(Cluster, "_answer", reported)
    run = cluster.run(str(tmp_path / "run"), classifier=classifier, samples=samples, config=config)

    def on_step(step: Any) -> None:
        seen[Job(step.label, step.seed)] = step.done

    list(map_runs(run, classifier, samples, range(4), backend=cluster.make, on_step=on_step))
    assert seen
    for _ in range(600):  # that of the other worker
        if len(seen) < 4:
            time.sleep(0.1)
            cluster_module._forward(queues[0], on_step)
    assert set(seen) == {Job(label, 0) for label in range(4)}
    assert all(0 < done <= 40 for done in seen.values())


def test_without_a_queue_the_work_continues_without_progress(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, samples = network(), Samples.noise((3, 16, 16), count=40)
    ordinary = Cluster._queue

    def lost(self: Cluster) -> Any:
        queue = ordinary(self)
        ray.kill(queue.actor)
        return queue

    monkeypatch.setattr(Cluster, "_queue", lost)
    run = cluster.run(str(tmp_path / "run"), classifier=classifier, samples=samples, config=settings(2))
    assert len(list(map_runs(run, classifier, samples, [0, 1], backend=cluster.make, on_step=print))) == 2


def test_the_code_of_a_python_file_and_of_what_it_imports_from_beside_it_is_sent(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = (
        "from torch import nn\nclass Squeeze(nn.Module):\n    def forward(self, x):\n        return x.mean((2, 3))\n"
    )
    (tmp_path / "beside_the_net.py").write_text(beside)
    (tmp_path / "net.py").write_text(
        "from beside_the_net import Squeeze\nfrom torch import nn\n"
        "class Net(nn.Sequential):\n    def __init__(self):\n        super().__init__(Squeeze(), nn.Linear(3, 4))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    classifier = load(f"python:{tmp_path / 'net.py'}:Net", trust_code=True, size=8)
    machine = cluster.send(classifier, Samples.noise((3, 8, 8), count=40), settings(2))
    assert machine.together >= 1


def test_a_worker_computes_with_the_threads_that_the_run_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, samples, group = network(), Samples.noise((3, 16, 16), count=40), [Job(0, 0)]
    run = Run.create(tmp_path / "run", classifier=classifier, samples=samples, config=settings(2), threads=3)
    store_groups(run, group, 1)
    seen: list[int] = []

    def noted(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return predictions(*arguments)

    monkeypatch.setattr(jobs, "predictions", noted)
    monkeypatch.setattr(cluster_module, "_receive", lambda refs, device: (classifier, samples))
    with jobs.threads(2):  # as --worker-cpus 2 would
        for _ in range(2):  # the second time the worker is known already
            torch.set_num_threads(2)
            cluster_module._make_group((1, 2), "cpu", str(run.path), group, set(group), None)
            assert torch.get_num_threads() == 3
    assert seen == [3]


def test_another_network_is_sent_before_its_maps_are_made(cluster: Cluster, tmp_path: Path) -> None:
    first, second, samples = network(), network(), Samples.noise((3, 16, 16), count=40)
    with torch.no_grad():
        next(iter(second.model.parameters())).mul_(-1)
    cluster.run(str(tmp_path / "first"), classifier=first, samples=samples, config=settings(2))
    run = Run.create(tmp_path / "run", classifier=second, samples=samples, config=settings(2), threads=1)
    list(map_runs(run, second, samples, [0], backend=cluster.make))
    alone = Run.create(tmp_path / "alone", classifier=second, samples=samples, config=settings(2), threads=1)
    list(map_runs(alone, second, samples, [0]))
    assert files(run) == files(alone)


def test_a_group_of_a_machine_that_is_gone_is_made_once_its_lease_has_lapsed(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LAPSE", 3.0)  # here; the workers wait for longer
    classifier, samples = network(), Samples.noise((3, 16, 16), count=40)
    run = cluster.run(str(tmp_path / "run"), classifier=classifier, samples=samples, config=settings(2))
    group = store_groups(run, [Job(0, 0), Job(1, 0)], 1)[1]
    lease = LeaseRecord(owner="another-7-00", until="noon", renewed=0)
    run.folder.write(f"leases/{name_of_group(group)}.1.json", encode(lease))
    began = time.monotonic()
    finished = list(map_runs(run, classifier, samples, [0, 1], backend=cluster.make))
    assert sorted(each.entry.index for each in finished) == [0, 1]
    assert time.monotonic() - began > 3
    assert run.folder.names("leases") == []


def test_channels_of_a_layer_are_mapped_as_on_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    classifier, samples = (
        Classifier(network().model, size=16, at="2", name="small"),
        Samples.noise((3, 16, 16), count=40),
    )
    run = cluster.run(str(tmp_path / "run"), classifier=classifier, samples=samples, config=settings(2))
    list(map_runs(run, classifier, samples, [0, 5], backend=cluster.make))
    alone = Run.create(tmp_path / "alone", classifier=classifier, samples=samples, config=settings(2), threads=1)
    list(map_runs(alone, classifier, samples, [0, 5], together=1))  # as two workers share them
    assert [entry.name for entry in run.entries] == ["2 0", "2 5"]
    assert files(run) == files(alone)


def test_the_connection_watches_the_head_and_the_node_of_this_machine(cluster: Cluster, address: str) -> None:
    assert cluster.lifeline.head == address
    cluster.lifeline.look()
    reach(cluster.lifeline.node)
    assert cluster.lifeline.node != address


@pytest.mark.parametrize("lost", ["head", "node"])
def test_if_the_connection_is_lost_the_work_ends_with_an_error_and_can_be_continued(
    own_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Steps enough that no task ends by itself while it is cancelled: Ray may abort then, see ``Cluster._cancel``."""
    classifier, samples = network(), Samples.noise((3, 16, 16), count=40)
    with Cluster(own_address) as cluster:
        run = cluster.run(str(tmp_path / "run"), classifier=classifier, samples=samples, config=settings(400))
        with monkeypatch.context() as patch:
            patch.setattr(connection, "INTERVAL", 0.0)
            patch.setattr(connection, "PATIENCE", 0.0)
            patch.setattr(cluster.lifeline, lost, NOBODY)
            with pytest.raises(AgnoscoError, match=rf"{lost}.* \({NOBODY}\) is lost: "):
                list(map_runs(run, classifier, samples, range(4), backend=cluster.make))
        assert cluster.lifeline.node_lost == (lost == "node")
        list(map_runs(run, classifier, samples, range(4), backend=cluster.make))
    assert len(run.entries) == 4


def test_what_ray_says_of_a_lost_node_is_told_as_a_lost_node(own_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster(own_address) as cluster:
        cluster.lifeline.node = NOBODY
        for name in ("wait", "get"):
            with monkeypatch.context() as patch:
                patch.setattr(ray, name, _raising(ray.exceptions.LocalRayletDiedError()))
                with pytest.raises(AgnoscoError, match="the Ray node of this machine"):
                    cluster._answer(ray.put(1))


def test_another_failure_of_ray_is_an_error_in_two_lines(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ray, "wait", _raising(ray.exceptions.RaySystemError("out of order")))
        with pytest.raises(AgnoscoError, match=r"Ray failed: .*out of order") as caught:
            cluster._answer(ray.put(1))
        assert "continues from here" in str(caught.value.hint)


def _raising(error: Exception) -> Any:
    def function(*_: Any, **__: Any) -> None:
        raise error

    return function
