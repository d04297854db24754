"""Run folders in S3: a real API on this machine (moto's server), with what goes wrong there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import MODEL, NET, collect_sockets
from typer.testing import CliRunner, Result

from agnosco.cli.app import app
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.io.remote import Remote
from agnosco.io.storage import Folder
from agnosco.method import maker
from agnosco.method.config import PRESETS, RefineConfig
from agnosco.models.loading import load
from agnosco.runs import jobs, leases
from agnosco.runs.jobs import map_runs
from agnosco.runs.run import Run

boto3 = pytest.importorskip("boto3")
server = pytest.importorskip("moto.server")
S3Response: Any = pytest.importorskip("moto.s3.responses").S3Response
pytest.importorskip("s3fs")

RUN = "s3://maps/team/run"
SMALL = (*MODEL, "--samples", "noise", "--preset", "paper", "--features", "0", "--steps", "3", "--batch", "4")
# boto3's own: datetime.utcnow() and unclosed connections
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    one = threading.Lock()  # moto looks whether there is an object, and then stores, as if it had one client
    put = S3Response._key_response_put

    def alone(*args: Any, **options: Any) -> Any:
        with one:
            return put(*args, **options)

    patch = pytest.MonkeyPatch()
    patch.setattr(S3Response, "_key_response_put", alone)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()
    patch.undo()
    collect_sockets()


@pytest.fixture(autouse=True)
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, and a folder with a network."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": "nowhere", "AWS_SHARED_CREDENTIALS_FILE": "nowhere",
        "AGNOSCO_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    paper = PRESETS["paper"]
    monkeypatch.setitem(PRESETS, "paper", replace(paper, refine=RefineConfig(steps=2)))
    monkeypatch.setattr(maker, "images_at_once", lambda _network: 8)  # two maps of 4 images each
    s3fs.S3FileSystem.clear_instance_cache()
    made = boto3.resource("s3").create_bucket(Bucket="maps")
    yield made
    made.objects.all().delete()
    made.delete()
    s3fs.S3FileSystem.clear_instance_cache()


def call(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def objects(bucket: Any) -> dict[str, bytes]:
    return {one.key.removeprefix("team/run/"): one.get()["Body"].read() for one in bucket.objects.all()}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mapped(*args: str) -> Result:
    result = call("map", *SMALL, "--device", "cpu", "--seeds", "2", *args)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


def test_an_interrupted_run_continues_to_the_bytes_of_a_local_one(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped("--out", "local")
    monkeypatch.setattr(jobs, "INTERVAL", 0.0)
    success, judged = jobs.share_moved, []

    def interrupted(*args: Any, **options: Any) -> float:
        judged.append(args[1])
        if len(judged) in (4, 6):
            raise KeyboardInterrupt
        return success(*args, **options)

    monkeypatch.setattr(jobs, "share_moved", interrupted)
    for made in (3, 4):
        result = call("map", *SMALL, "--device", "cpu", "--seeds", "2", "--out", RUN)
        assert result.exit_code == 130, (result.stderr, result.exception)
        assert f"to {RUN}. Look at {RUN}/contact-sheet.png" in result.stderr
        assert sum(name.endswith(".json") and name.startswith("maps/") for name in objects(bucket)) == made
        assert sum(name.startswith("checkpoints/") for name in objects(bucket)) == 1
    result = mapped("--out", RUN, "--json")
    assert "4 of 6 maps are finished already" in result.stderr
    told = json.loads(result.stdout)
    assert told["run"] == RUN
    assert [(one["index"], one["seed"]) for one in told["maps"]] == [(i, s) for i in range(3) for s in range(2)]
    assert told["maps"][0]["picture"] == f"{RUN}/pictures/0000-0-s0.png"
    assert objects(bucket) == files(Path("local"))


def test_scores_and_reports_of_a_run_lie_beside_it(bucket: Any) -> None:
    mapped("--out", RUN)
    options = ("--trust-code", "--device", "cpu")
    result = call("score", RUN, "--target", "python:net.py:build", *options)
    assert result.exit_code == 0, result.stderr
    assert f"Wrote {RUN}/scores.json" in result.stderr
    assert json.loads(objects(bucket)["scores.json"])["targets"][0]["maps"] == 6
    result = call("report", RUN, "--json")
    assert result.exit_code == 0, result.stderr
    page = objects(bucket)["report.html"]
    assert json.loads(result.stdout) == {"report": f"{RUN}/report.html", "bytes": len(page)}
    assert page.startswith(b"<!doctype html>")
    result = call("report", RUN, "--out", "here.html")
    assert result.exit_code == 0, result.stderr
    assert Path("here.html").read_bytes() == page


def test_a_damaged_object_is_made_again(bucket: Any) -> None:
    mapped("--out", RUN)
    before = objects(bucket)
    bucket.Object("team/run/maps/0001-1-s0.safetensors").put(Body=b"half")
    bucket.Object("team/run/maps/0002-2-s1.json").delete()
    bucket.Object("team/run/pictures/0002-2-s0.png").delete()
    result = mapped("--out", RUN)
    assert "0001-1-s0.safetensors is damaged: it will be made again" in result.stderr
    assert objects(bucket) == before


def test_listings_are_not_cached(bucket: Any) -> None:
    folder = Folder.of(RUN)
    assert isinstance(folder, Remote)
    assert folder.names("maps") == []
    assert not folder.exists("maps/a")
    bucket.Object("team/run/maps/a").put(Body=b"one")  # by another process
    assert folder.names("maps") == ["a"]
    assert folder.read("maps/a") == b"one"
    bucket.Object("team/run/maps/a").delete()
    assert not folder.exists("maps/a")


def test_of_many_one_creates_an_object(bucket: Any) -> None:
    with ThreadPoolExecutor(4) as pool:  # s3fs has one event loop: what decides is the store
        results = list(pool.map(lambda number: Folder.of(RUN).create("a.json", b"%d" % number), range(8)))
    assert sum(results) == 1
    assert Folder.of(RUN).read("a.json") == b"%d" % results.index(True)
    assert not Folder.of(RUN).create("a.json", b"later")
    assert objects(bucket) == {"a.json": b"%d" % results.index(True)}


def test_a_lost_answer_of_the_store_is_no_failure(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder.of(RUN)
    assert isinstance(folder, Remote)
    put = folder.files.pipe_file

    def twice(*args: Any, **options: Any) -> None:
        put(*args, **options)
        put(*args, **options)  # as botocore does when the first answer is lost

    monkeypatch.setattr(folder.files, "pipe_file", twice)
    assert folder.create("a.json", b"mine")


@pytest.mark.parametrize("error", [OSError(22, "412"), OSError(5, "ConditionalRequestConflict"), RuntimeError("?")])
@pytest.mark.parametrize("is_there", [True, False])
def test_however_a_store_tells_that_another_was_faster(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, is_there: bool
) -> None:
    folder = Folder.of(RUN)
    assert isinstance(folder, Remote)
    put, tried = folder.files.pipe_file, []

    def beaten(path: str, content: bytes, **options: Any) -> None:
        if not tried:  # another process creates the file, and may have removed it again before we look
            tried.append(path)
            if is_there:
                put(path, b"theirs")
            raise error
        put(path, content, **options)

    monkeypatch.setattr(folder.files, "pipe_file", beaten)
    assert folder.create("a.json", b"mine") is not is_there
    assert folder.read("a.json") == (b"theirs" if is_there else b"mine")


def test_a_store_that_does_not_answer_is_an_error(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder.of(RUN)
    assert isinstance(folder, Remote)

    def silent(*_: Any, **__: Any) -> None:
        raise OSError(5, "no answer")

    monkeypatch.setattr(folder.files, "pipe_file", silent)
    with pytest.raises(AgnoscoError, match="cannot write"):
        folder.create("a.json", b"mine")


def test_two_share_a_run_in_a_store(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "WAIT", 0.05)
    monkeypatch.setattr(leases, "LAPSE", 3600)  # also if the machine stands still
    mapped("--out", "local")
    classifier = load("python:net.py:build", size=16, features="0", trust_code=True)
    local, samples = Run.open("local"), Samples.noise(classifier.shape)
    made: list[list[int]] = []

    def one(_: int) -> None:
        run = Run.create(RUN, classifier=classifier, samples=samples, config=local.config)
        finished = map_runs(run, classifier, samples, range(3), seeds=range(2))
        made.append([each.entry.index for each in finished if each.seconds > 0])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    assert sorted(made[0] + made[1]) == [0, 0, 1, 1, 2, 2]
    for ours, theirs in zip(Run.open(RUN).maps(), local.maps(), strict=True):
        assert ours.nu.equal(theirs.nu)
    assert not any(name.startswith("leases/") for name in objects(bucket))


NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.mark.parametrize(
    ("command", "url", "environment", "told"),
    [
        ("map", "s3://nowhere/run", {}, "bucket does not exist"),
        ("score", "s3://nowhere/run", {}, "is not a run folder"),
        ("map", "s3://maps/run", NO_KEYS, "unable to locate credentials"),
        ("report", "s3://maps/run", NO_KEYS, "unable to locate credentials"),
        ("score", "s3://maps/run", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "could not connect to the endpoint"),
    ],
)
def test_an_unreachable_store_is_an_error_in_two_lines(
    monkeypatch: pytest.MonkeyPatch, command: str, url: str, environment: dict[str, str], told: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    rest = {"map": ("--out", url), "score": (url, "--target", "torchvision:vgg16"), "report": (url,)}
    result = call(command, *(SMALL if command == "map" else ()), *rest[command])
    assert result.exit_code == 2, result.exception
    error, hint = result.stderr.splitlines()
    assert told in error.lower()
    assert url in error
    assert hint.startswith("Hint: ")


def test_a_folder_with_other_things_is_refused(bucket: Any) -> None:
    bucket.Object("team/run/letter").put(Body=b"dear")
    result = call("map", *SMALL, "--out", RUN)
    assert result.exit_code == 2
    assert "is not empty and has no manifest.json" in result.stderr
    assert objects(bucket) == {"letter": b"dear"}


def test_a_run_of_another_store_has_no_path(bucket: Any) -> None:
    mapped("--out", RUN)
    with pytest.raises(Exception, match="is not a folder on this machine"):
        _ = Run.open(RUN).path
