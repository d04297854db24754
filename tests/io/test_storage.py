"""Folders of this machine and of stores: written whole or not at all, and swept of what the dead leave."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from agnosco.errors import AgnoscoError
from agnosco.io import atomic, local, storage
from agnosco.io.atomic import PART
from agnosco.io.local import Local
from agnosco.io.remote import Remote
from agnosco.io.storage import PENDING, Folder, in_order, write_whole
from agnosco.text import without_password


@pytest.fixture(params=["a path", "file://", "memory://"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A new folder of each kind."""
    place = {"a path": str(tmp_path / "run"), "file://": f"file://{tmp_path}/run", "memory://": "memory://bucket/run"}
    folder = Folder.of(place[request.param])
    folder.make()
    return folder


def test_a_written_file_exists_and_is_read_back(folder: Folder) -> None:
    assert not folder.exists("maps/a")
    assert folder.names("maps") == []
    with pytest.raises(FileNotFoundError):
        folder.read("maps/a")
    assert folder.write("maps/a", b"one") == folder.at("maps/a")
    began = time.time()
    folder.write("maps/a", b"two")
    folder.write("maps/c", b"")
    folder.write("maps/b", b"three")
    folder.write("top", b"four")
    assert folder.read("maps/a") == b"two"
    assert folder.read("maps/c") == b""
    assert folder.names("maps") == ["a", "b", "c"]
    assert folder.names("") == ["top"]
    assert folder.exists("maps/a")
    assert not folder.exists("maps")  # a folder is no file
    assert began - 60 < folder.modified("maps/a") < time.time() + 60


@pytest.mark.parametrize("modified", [fsspec.AbstractFileSystem.modified, lambda *_: None], ids=["unknown", "nothing"])
def test_a_store_that_does_not_say_when_files_were_written_serves_all_the_same(
    modified: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fsspec's FTP and Databricks, which have nothing but what all of its stores inherit; others answer None."""
    monkeypatch.setattr(MemoryFileSystem, "modified", modified)
    remote = Remote("memory://timeless")
    remote.write("a", b"one")
    assert math.isnan(remote.modified("a"))
    with pytest.raises(FileNotFoundError):
        remote.modified("b")


def test_a_folder_that_is_a_file_now_has_no_files(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(FileNotFoundError):
        Local(tmp_path / "run").modified("manifest.json")


def test_whether_there_is_a_file_is_not_guessed_where_that_cannot_be_known(tmp_path: Path) -> None:
    for ask in (Local(tmp_path).exists, Local(tmp_path).modified):
        with pytest.raises(AgnoscoError, match=r"cannot read .*: file name too long"):
            ask(300 * "x")


def test_removing_a_file_twice_is_no_error(folder: Folder) -> None:
    folder.write("maps/a", b"one")
    folder.remove("maps/a")
    folder.remove("maps/a")
    assert not folder.exists("maps/a")
    assert folder.names("maps") == []


def test_checking_a_folder_changes_nothing(folder: Folder) -> None:
    folder.check(holding=("manifest.json",))
    assert folder.names("") == []
    folder.write("letter", b"dear")
    with pytest.raises(AgnoscoError, match="is not empty and has no manifest"):
        folder.check(holding=("manifest.json",))
    folder.write("manifest.json", b"{}")
    folder.check(holding=("manifest.json",))
    assert folder.names("") == ["letter", "manifest.json"]


def test_kinds_of_folders(tmp_path: Path) -> None:
    assert isinstance(Folder.of(tmp_path), Local)
    assert isinstance(Folder.of(f"file://{tmp_path}"), Local)
    assert Folder.of(f"file://{tmp_path}").at("a") == str(tmp_path / "a")
    remote = Folder.of("memory://bucket/run/")
    assert isinstance(remote, Remote)
    assert remote.is_object_store
    assert (remote.name, remote.at("a/b"), remote.absolute("")) == (
        "memory://bucket/run", "memory://bucket/run/a/b", "memory://bucket/run",
    )  # fmt: skip
    assert Folder.of(remote) is remote


def test_a_store_that_writes_in_parts_gets_a_temporary_name_first(tmp_path: Path) -> None:
    remote = Remote(f"local://{tmp_path}/run")  # stands for SFTP and the like
    assert not remote.is_object_store
    seen: list[str] = []
    pipe = remote.files.pipe_file
    remote.files.pipe_file = lambda path, content: (seen.append(os.path.basename(path)), pipe(path, content))
    remote.write("maps/a", b"one")
    assert seen[0].startswith(PART)
    assert [path.name for path in (tmp_path / "run" / "maps").iterdir()] == ["a"]

    def full(path: str, content: bytes) -> None:
        pipe(path, content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    remote.files.pipe_file = full
    with pytest.raises(AgnoscoError, match=r"cannot write 'local://.*/maps/a': no space left"):
        remote.write("maps/a", b"two")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "run" / "maps").iterdir()] == [("a", b"one")]


@pytest.mark.parametrize(
    ("url", "error", "hint"),
    [
        ("nothing://a/b", "no folder 'nothing://a/b'", "s3://bucket/run"),
        ("s3://bucket/run", "a library that 's3://bucket/run' needs is not installed", "pip install '.[s3]'"),
    ],
)
def test_unknown_stores_and_missing_libraries_are_refused(
    monkeypatch: pytest.MonkeyPatch, url: str, error: str, hint: str
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    fsspec.registry  # noqa: B018
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(AgnoscoError, match=error) as caught:
        Folder.of(url)
    assert hint in caught.value.hint


def test_a_file_is_written_at_a_path_or_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_whole("report.html", b"one") == "report.html"
    assert write_whole(tmp_path / "new" / "deep" / "report.html", b"two") == str(tmp_path / "new/deep/report.html")
    assert write_whole("memory://bucket/report.html", b"three") == "memory://bucket/report.html"
    assert (tmp_path / "report.html").read_bytes() == b"one"
    assert (tmp_path / "new/deep/report.html").read_bytes() == b"two"
    assert Folder.of("memory://bucket").read("report.html") == b"three"


def test_a_url_of_a_file_names_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("memory://report.html", "memory:///report.html"):
        with pytest.raises(AgnoscoError, match=f"'{place}' names no folder"):
            write_whole(place, b"one")
    assert list(tmp_path.iterdir()) == []
    write_whole(f"file://{tmp_path}/report.html", b"two")
    assert (tmp_path / "report.html").read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_a_path_may_begin_with_the_home_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert write_whole("~/new/report.html", b"one") == "~/new/report.html"
    assert (tmp_path / "new" / "report.html").read_bytes() == b"one"
    assert Folder.of("~/new").read("report.html") == b"one"
    assert Folder.of("~no-such-user/new").names("") == []


# -- what the dead leave -----------------------------------------------------------------------


def dead() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_temporary_files_of_dead_processes_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    host, living = atomic.host_name(), subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    names = {
        "dead": f"{PART}{host}-{dead()}-0123456789ab",
        "living": f"{PART}{host}-{living.pid}-0123456789ab",
        "own, of before": f"{PART}{host}-{os.getpid()}-0123456789ab",
        "elsewhere": f"{PART}node7-{dead()}-0123456789ab",
        "elsewhere, old": f"{PART}node7-1-0123456789ab",
        "odd, old": f"{PART}x",
        "another's": ".part-x",
    }
    for folder in (tmp_path, tmp_path / "maps"):
        for what, name in names.items():
            (folder / name).write_bytes(b"half")
            if "old" in what or "another's" in what:
                old = time.time() - 1.01 * atomic.DAY
                os.utime(folder / name, (old, old))
    assert Local(tmp_path).names("maps") == [".part-x"]
    Local(tmp_path).sweep()
    living.communicate(b"\n")
    for folder in (tmp_path, tmp_path / "maps"):
        left = {what for what, name in names.items() if (folder / name).exists()}
        assert left == {"living", "elsewhere", "another's"}


def test_a_temporary_file_in_use_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def swept(source: Path, target: Path) -> None:
        Local(tmp_path).sweep()  # another thread's run in the same folder
        replace(source, target)

    monkeypatch.setattr(os, "replace", swept)
    Local(tmp_path).write("a", b"one")
    assert (tmp_path / "a").read_bytes() == b"one"


def test_sweeping_a_store() -> None:
    remote = Remote("memory://swept")
    remote.write("maps/a", b"one")
    remote.write(f"maps/{PART}{atomic.host_name()}-{dead()}-0123456789ab", b"half")
    remote.sweep()
    assert sorted(MemoryFileSystem.store) == ["/swept/maps/a"]


def test_what_another_process_removes_while_it_is_swept_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leases").mkdir()
    scan = os.scandir

    def slow(path: Any) -> Any:
        if Path(path).name == "leases":
            Path(path).rmdir()  # as the last lease is released
        return scan(path)

    monkeypatch.setattr(os, "scandir", slow)
    Local(tmp_path).sweep()
    assert list(tmp_path.iterdir()) == []

    remote = Remote("memory://swept")
    remote.write(f"{PART}elsewhere-7-0123456789ab", b"half")
    remote.write(f"{PART}{atomic.host_name()}-{dead()}-0123456789ab", b"half")
    monkeypatch.setattr(Remote, "modified", lambda self, name: self.files.modified("nowhere").timestamp())
    remote.sweep()
    assert sorted(MemoryFileSystem.store) == [f"/swept/{PART}elsewhere-7-0123456789ab"]


def test_a_temporary_object_in_use_is_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote("memory://shared")
    remote.is_object_store = False  # as SFTP, where a file is renamed when it is whole
    move = remote.files.mv

    def swept(source: str, target: str) -> None:
        remote.sweep()  # another thread's run in the same folder
        move(source, target)

    monkeypatch.setattr(remote.files, "mv", swept)
    remote.write("maps/a", b"one")
    assert remote.read("maps/a") == b"one"


@pytest.mark.parametrize("error", [FileNotFoundError, FileExistsError])
def test_a_folder_that_others_remove_again_and_again_is_made_again(
    error: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks of :meth:`Path.mkdir`, a folder may appear and go: that is another error."""
    make, failures = Path.mkdir, iter(range(3))

    def removed(path: Path, **options: Any) -> None:
        if next(failures, None) is not None:
            raise error(2, "", str(path))
        make(path, **options)

    monkeypatch.setattr(Path, "mkdir", removed)
    assert Local(tmp_path).create("leases/a", b"one")


# -- what goes wrong ---------------------------------------------------------------------------


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Local(tmp_path).write("a", b"one")
    assert list(tmp_path.iterdir()) == []


def test_a_subfolder_that_another_process_removes_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary, calls = local.atomic_file, []

    def removed(path: Path) -> AbstractContextManager[IO[bytes]]:
        calls.append(path)
        if len(calls) == 1:
            path.parent.rmdir()
        return ordinary(path)

    monkeypatch.setattr(local, "atomic_file", removed)
    Local(tmp_path).write("checkpoints/a", b"one")
    assert (tmp_path / "checkpoints/a").read_bytes() == b"one"


def test_a_deleted_folder_is_not_created_again(tmp_path: Path) -> None:
    with pytest.raises(AgnoscoError, match="its folder does not exist any more"):
        Local(tmp_path / "run").write("maps/a", b"one")
    assert list(tmp_path.iterdir()) == []


def test_files_keep_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Local(tmp_path).write("a", b"one")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_many_writers_of_one_file_leave_one_of_theirs_whole(tmp_path: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=Local(tmp_path).write, args=("maps/a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "maps/a").read_bytes() in contents
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["a"]


def test_order_is_kept_whoever_finishes_first() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(in_order(work, range(60), threads=3)) == [item * item for item in range(60)]
    results = in_order(lambda number: (time.sleep(0.01 * (5 - number)), number)[1], range(5))
    assert list(results) == [0, 1, 2, 3, 4]


def test_little_is_pending() -> None:
    """What is handed to the threads, and not only what they have begun, stays within a window."""
    handed = []
    results = in_order(str, (handed.append(item) or item for item in range(60)), threads=3)
    ahead = [len(handed) - taken for taken, _ in enumerate(results)]
    assert max(ahead) == 3 * PENDING
    assert len(ahead) == len(handed) == 60


def test_after_an_error_nothing_more_is_begun() -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise OSError("no such bucket")
        time.sleep(0.3)

    with pytest.raises(OSError, match="no such bucket"):
        list(in_order(work, range(60), threads=1))
    assert len(begun) < PENDING  # at most what the thread took up until the error was seen


def test_a_file_is_flushed_then_renamed_then_its_folder_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order a loss of power leaves the old file, or the new one."""
    done: list[tuple[str, str]] = []
    flush, rename = os.fsync, os.replace

    def flushed(handle: int) -> None:
        done.append(("flushed", os.readlink(f"/proc/self/fd/{handle}")))
        flush(handle)

    def renamed(source: Path, target: Path) -> None:
        done.append((str(source), str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    Local(tmp_path).write("maps/a", b"one")
    subfolder, content, name, folder = done
    part = name[0]
    assert Path(part).name.startswith(PART)
    assert subfolder == ("flushed", str(tmp_path))  # which has a new folder
    assert content == ("flushed", part)
    assert name == (part, str(tmp_path / "maps" / "a"))
    assert folder == ("flushed", str(tmp_path / "maps"))


# -- files of somebody else's --------------------------------------------------------------------------


def unread(folder: Folder, name: str) -> str:
    """What is said of a file that is not read."""
    with pytest.raises(AgnoscoError) as caught:
        folder.read(name)
    assert caught.value.exit_code == 2
    return caught.value.message


@pytest.mark.parametrize("name", ["manifest.json", "maps/0000-a-s0.safetensors"])
def test_a_pipe_or_a_device_is_not_waited_for(name: str, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    os.mkfifo(tmp_path / name)
    assert "not a regular file" in unread(Local(tmp_path), name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert "leads out of its folder" in unread(Local(tmp_path), name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert "is a folder" in unread(Local(tmp_path), name)


def test_a_link_within_the_folder_is_followed_and_one_that_leads_out_is_not(tmp_path: Path) -> None:
    run, beside = tmp_path / "run", tmp_path / "run-beside"  # whose name begins as the folder's does
    for place in (run, beside):
        (place / "maps").mkdir(parents=True)
        (place / "maps" / "a").write_bytes(place.name.encode())
    (run / "within").symlink_to("maps/a")
    (run / "out").symlink_to("../run-beside/maps/a")
    (run / "other").symlink_to(beside / "maps")
    (run / "nothing").symlink_to("nowhere")
    (tmp_path / "link").symlink_to("run")
    for folder in (Local(run), Local(tmp_path / "link")):
        assert folder.read("within") == b"run"
        for name in ("out", "other/a"):
            assert "leads out of its folder" in unread(folder, name)
        with pytest.raises(FileNotFoundError):
            folder.read("nothing")


@pytest.mark.parametrize(
    ("name", "most"),
    [("manifest.json", 64 << 20), ("maps/a.json", 64 << 20), ("maps/a.safetensors", 4 << 30), ("scan.PNG", 256 << 20)],
)
def test_a_file_has_no_more_bytes_than_its_kind(name: str, most: int, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, most + 1)  # a hole, which takes no room on the disk
    assert f"has {most + 1:,} bytes, more than {most:,}" in unread(Local(tmp_path), name)


def test_a_file_of_the_largest_size_is_read(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(storage.SIZE_LIMITS, ".json", 5)
    folder.write("a.json", b"12345")
    folder.write("b.json", b"123456")
    assert folder.read("a.json") == b"12345"
    assert "has 6 bytes" in unread(folder, "b.json")


def test_a_password_is_for_the_store_and_not_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []

    def reach(url: str, **_options: object) -> tuple[MemoryFileSystem, str]:
        reached.append(url)
        return MemoryFileSystem(), "/run"

    monkeypatch.setattr("fsspec.core.url_to_fs", reach)
    url = "sftp://anna:se:cr@t@host:22/run"
    folder = Folder.of(url)
    assert reached == [url]
    assert (folder.absolute(""), folder.absolute("a")) == (url, f"{url}/a")  # where another process finds it
    assert [str(folder), folder.at("a")] == [f"sftp://anna:…@host:22/run{rest}" for rest in ("", "/a")]

    def denied(*_args: object, **_options: object) -> bytes:
        raise PermissionError(f"no access to {url}")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", denied)
    with pytest.raises(AgnoscoError) as caught:
        folder.read("a.json")
    assert "se:cr" not in str(caught.value)
    assert without_password("s3://bucket/a@b:c@d") == "s3://bucket/a@b:c@d"


def test_a_folder_with_only_temporary_files_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / f"{PART}host-1-abc").write_bytes(b"half a manif")
    Folder.of(tmp_path).check(holding=("manifest.json",))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(AgnoscoError, match="is not empty"):
        Folder.of(tmp_path).check(holding=("manifest.json",))
