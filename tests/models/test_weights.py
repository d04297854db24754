"""Weights files: they read as the safetensors library reads them, and no pickle is run."""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import pickletools
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import PATIENCE
from torch import Tensor

from agnosco.errors import AgnoscoError, AgnoscoWarning
from agnosco.io.safetensors_header import Finding, Suspicious
from agnosco.models.weights import restricted, restricted_child
from agnosco.models.weights.contents import read_contents
from agnosco.models.weights.limits import CODES, SEVERITY, Limits, worst
from agnosco.models.weights.opening import open_weights, read_weights
from agnosco.models.weights.pickle_scan import PLAIN, program_of
from agnosco.models.weights.restricted import CHILD

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.5, -2.0])}


def refused(path: Path, **options: Any) -> AgnoscoError:
    with pytest.raises(AgnoscoError) as caught, open_weights(path, **options):
        pass
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


# -- safetensors -------------------------------------------------------------------------------------


def test_it_reads_what_the_library_reads(tmp_path: Path) -> None:
    chance = torch.Generator().manual_seed(0)
    numbers = torch.randn(3, 5, generator=chance)
    given = {
        **{str(dtype): numbers.to(dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)},
        **{str(dtype): numbers.to(dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)},
        **{str(dtype): (9 * numbers).to(dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.int8)},
        "uint8": torch.arange(7, dtype=torch.uint8), "uint16": torch.arange(7).to(torch.uint16), "bool": numbers > 0,
        "nothing": torch.empty(0, 4), "scalar": torch.tensor(2.5),
    }  # fmt: skip
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(given, path, metadata={"made by": "a test"})
    found, expected = read_weights(path), safetensors.torch.load_file(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        wanted = tensor.float() if tensor.is_floating_point() else tensor
        assert found[name].dtype == wanted.dtype
        assert torch.equal(found[name], wanted)
    assert read_contents(path).metadata == {"made by": "a test"}


def test_shapes_are_known_before_numbers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2, 3).half(), "b": torch.ones(4).int()}, path)
    with open_weights(path) as weights:
        assert {
            name: (entry.shape, entry.is_floating_point, entry.loaded_bytes) for name, entry in weights.entries.items()
        } == {"a": ((2, 3), True, 24), "b": ((4,), False, 16)}


def test_a_file_that_is_cut_off_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1 << 16)}, path)
    with open_weights(path) as weights:
        os.truncate(path, 1000)
        with pytest.raises(AgnoscoError, match="cut off while it was read") as caught:
            weights.read()
    assert caught.value.exit_code == CODES["malformed"]


def test_a_tensor_for_which_there_is_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_options: object) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    safetensors.torch.save_file(STATE, tmp_path / "w.safetensors")
    with open_weights(tmp_path / "w.safetensors") as weights:
        monkeypatch.setattr(torch, "empty", full)
        with pytest.raises(AgnoscoError, match="more memory than there is") as caught:
            weights.read()
    assert caught.value.exit_code == CODES["limit"]


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Limits(total=31), "total-size"),
        (Limits(tensors=1), "tensor-count"),
        (Limits(rank=1), "rank"),
        (Limits(name=7), "name-length"),
        (Limits(header=100), "header-length"),
        (Limits(depth=2), "json-depth"),
        (Limits(total=5), "shape"),
    ],
)
def test_each_limit_is_kept(limits: Limits, name: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(STATE, path)  # 2 tensors, 8 numbers, 32 bytes
    assert read_contents(path).findings == ()
    assert [(one.kind, one.name) for one in read_contents(path, limits=limits).findings] == [("limit", name)]
    assert refused(path, limits=limits).exit_code == 13


def test_the_numbers_are_looked_at_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.ones(3), "b": torch.tensor([1.0, float("inf")])}, path)
    assert read_contents(path).findings == ()
    assert [one.name for one in read_contents(path, values=True).findings] == ["not-finite"]


def test_the_worst_finding_decides() -> None:
    assert sorted(SEVERITY) == sorted(CODES)
    findings = [Finding(kind, "", "") for kind in ("pickle", "malformed", "code", "limit")]
    assert worst(findings).kind == "code"
    assert worst(findings[:2]).kind == "malformed"


def test_a_link_is_followed_and_a_folder_or_a_device_is_not_opened(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "w.safetensors")
    (tmp_path / "link").symlink_to("w.safetensors")
    assert read_weights(tmp_path / "link").keys() == STATE.keys()
    for path, words in ((tmp_path, "no weights file"), (Path("/dev/zero"), "not a regular file")):
        error = refused(path)
        assert words in error.message
        assert error.exit_code == 2


# -- pickles as data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_what_a_pickle_imports(protocol: int) -> None:
    thing = {"a": OrderedDict(), "b": os.system, "c": [Path, OrderedDict()], "d": io.BytesIO}
    elsewhere = {f"{os.system.__module__}.system", f"{Path.__module__}.Path"}  # differs by version
    expected = {"collections.OrderedDict", "_io.BytesIO", *elsewhere}
    assert program_of(pickle.dumps(thing, protocol)).imports == expected


@pytest.mark.parametrize(
    ("program", "imports"),
    [
        (b"cos\nsystem\n.", {"os.system"}),
        (b"(ios\nsystem\n.", {"os.system"}),
        (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93.", {"os.system"}),
        (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93.", {"os.system"}),  # from memory
        (b"\x80\x04\x8c\x02os\x8c\x06system\x8c\x01a\x8c\x01b00\x93.", {"?.?"}),  # under decoys
        (b"\x80\x04\x8c\x02osN\x8c\x06system\x93.", {"?.system"}),
        (b"\x80\x02\x82\x01.", {"extension 1"}),
    ],
)
def test_imports_that_hide(program: bytes, imports: set[str]) -> None:
    assert program_of(program).imports == imports


def test_two_threads_leave_the_filters_of_warnings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that begins within the other and ends after it: what it found must not be what the other had set."""
    operations, first_ended, threads = pickletools.genops, threading.Event(), list[threading.Thread]()

    def slow(stream: Any) -> Any:
        if not threads:
            threads.append(threading.Thread(target=program_of, args=(pickle.dumps([]),)))
            threads[0].start()
            threads[0].join(0.5)
        else:
            assert first_ended.wait(PATIENCE)
        yield from operations(stream)

    before = list(warnings.filters)
    monkeypatch.setattr(pickletools, "genops", slow)
    program_of(pickle.dumps([]))
    first_ended.set()
    threads[0].join()
    assert warnings.filters == before


def test_long_names_are_cut_and_stay_strange() -> None:
    """A thousand pairs of long names would fill gigabytes; and no long name becomes a harmless one."""
    long = b"X" + (1 << 20).to_bytes(4, "little") + b"torch.Size".ljust(1 << 20, b" ")
    (name,) = program_of(b"\x80\x04" + long + b"q\x00" + 1000 * b"h\x00h\x00\x93" + b".").imports
    assert len(name) < 500
    assert name.startswith("torch.Size ")
    (name,) = program_of(b"ctorch\n" + b"Size".ljust(300) + b"\n.").imports
    assert name.startswith("torch.Size ")
    assert name not in PLAIN


@pytest.mark.parametrize(("count", "limited"), [(1000, False), (1001, True)])
def test_a_thousand_imports_are_enough(count: int, limited: bool, tmp_path: Path) -> None:
    program = b"\x80\x02" + b"".join(b"cm\nn%d\n" % i for i in range(count)) + b"."
    (tmp_path / "w.pt").write_bytes(program)
    assert [one.name for one in read_contents(tmp_path / "w.pt").findings] == ["imports"]
    assert read_contents(tmp_path / "w.pt").findings[0].kind == ("limit" if limited else "code")


def test_a_pickle_is_no_longer_than_tensors_may_be(tmp_path: Path) -> None:
    limits = Limits(total=1 << 20)
    torch.save({"a": torch.ones(1 << 18)}, tmp_path / "w.pt")  # 1 MiB, and what a zip adds
    assert [one.name for one in read_contents(tmp_path / "w.pt", limits=limits).findings] == ["pickle"]
    for legacy in (False, True):
        torch.save({"a": torch.ones(6 << 18)}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
        assert refused(tmp_path / "w.pt", limits=limits, allow_pickle=True).exit_code == 13
        assert "total-size" in [one.name for one in read_contents(tmp_path / "w.pt", limits=limits).findings]


@pytest.mark.parametrize("program", [b"", b"N", b"\xff", b"(" * 2_000_000 + b"."])
def test_what_is_no_pickle(program: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        program_of(program)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_plain_state_is_told_from_everything_else(legacy: bool, protocol: int, tmp_path: Path) -> None:
    path, form = tmp_path / "w.bin", {"_use_new_zipfile_serialization": not legacy, "pickle_protocol": protocol}
    plain = OrderedDict(STATE, half=torch.ones(2).half(), whole=torch.tensor(3), p=torch.nn.Parameter(torch.ones(1)))
    torch.save({"state_dict": plain, "epoch": 3, "name": "x", "lr": 0.1}, path, **form)
    found = read_contents(path)
    assert [one.kind for one in found.findings] == ["pickle"]
    assert found.tensors == 5
    for other in (io.BytesIO(), Path("x"), torch.nn.ReLU()):
        torch.save({"state_dict": plain, "other": other}, path, **form)
        assert [one.kind for one in read_contents(path).findings] == ["code"]


def test_hint_names_the_flag(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    error = refused(tmp_path / "w.pt")
    assert "--allow-pickle" in error.hint
    assert error.exit_code == 10


def test_every_byte_of_a_zip_has_its_place(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    content = (tmp_path / "w.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        start = archive.start_dir
    for name, changed in {
        "before": b"\0" + content,
        "between": content[:start] + b"\0" + content[start:],
        "after": content + b"\0",
        "comment": content[:-2] + b"\1\0x",
    }.items():
        (tmp_path / "w.pt").write_bytes(changed)
        error = refused(tmp_path / "w.pt", allow_pickle=True)
        assert error.exit_code in (CODES["malformed"], CODES["unknown"]), name


# -- pickles, opened ---------------------------------------------------------------------------------


def test_a_pickle_gives_the_same_tensors(tmp_path: Path) -> None:
    """Nested, with a prefix, in the old form, and with weights that two layers share; in one process."""
    shared = torch.rand(4, 4)
    state = {**STATE, "tied.0": shared, "tied.1": shared, "turned": torch.rand(2, 5).T, "counter": torch.tensor(7)}
    saved = {"epoch": 3, "model": {f"module.{name}": tensor for name, tensor in state.items()}}
    torch.save(saved, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    with pytest.warns(AgnoscoWarning, match="no real barrier.*from its 'model'; the prefix 'module.' was removed"):
        found = read_weights(tmp_path / "w.pt", allow_pickle=True)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("tensor", "size", "words"),
    [
        (torch.zeros(1).expand(4), 1000, "claims 16 bytes and stores 4"),  # strides of nothing
        (torch.zeros(8)[:2], 3, "claim 8 bytes, and the file has 3"),
        (torch.zeros(251), 1004, r"claim 1,004 bytes \(at most 1,000\)"),
        (torch.zeros(8)[::2], 8, None),
        (torch.zeros(2, 3).T, 12, None),
    ],
)
def test_what_is_stored_is_what_counts(tensor: Tensor, size: int, words: str | None) -> None:
    if words is None:
        restricted_child.check_sizes({"a": tensor}, size, 1000)
    else:
        with pytest.raises(restricted_child.Refused, match=words) as caught:
            restricted_child.check_sizes({"a": tensor}, size, 1000)
        assert caught.value.kind == "limit"


def test_time_is_limited(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    error = refused(tmp_path / "w.pt", allow_pickle=True, limits=Limits(seconds=0))
    assert "not open after 0 s" in error.message
    assert error.exit_code == 13


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "code", "words"),
    [
        ([torch.ones(2)], 15, "no dictionary of tensors"),
        ({}, 15, "no dictionary of tensors"),
        ({"a": torch.ones(2), "b": 3}, 15, "holds int under 'b'"),
        ({"a": torch.ones(2), 3: torch.ones(2)}, 15, "holds Tensor under '3'"),
        ({"a": torch.tensor([1.0, float("nan")])}, 14, "not finite"),
        ({"\x1b[2J": torch.ones(2)}, 16, "control characters"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, 11, "ComplexFloatStorage"),
    ],
)
def test_a_pickle_of_other_things(saved: Any, code: int, words: str, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AgnoscoWarning)
        with pytest.raises(AgnoscoError) as caught:
            read_weights(tmp_path / "w.pt", allow_pickle=True)
    assert words in caught.value.message
    assert caught.value.exit_code == code


@pytest.mark.slow
def test_the_process_knows_nothing_of_ours_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.save(STATE, tmp_path / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AgnoscoWarning)
        with open_weights(tmp_path / "w.pt", allow_pickle=True) as weights:
            (folder,) = tmp_path.glob("agnosco-*")
            inside = {path.name for path in folder.rglob("*")}
            assert weights.read().keys() == STATE.keys()
    assert inside == {"answer", "complaint", "scratch", "weights.safetensors"}
    assert list(tmp_path.iterdir()) == [tmp_path / "w.pt"]


GUARDED = """
import os, runpy, sys
child = runpy.run_path({child!r})
os.chdir({folder!r})
import socket, subprocess, pickle, ctypes, shutil
{prepare}
try:
    {attempt}
except (PermissionError, AttributeError) as error:
    print("refused:", error)
except OSError as error:
    print("failed:", error.errno)
else:
    print("done")
"""


def attempted(attempt: str, folder: Path, prepare: str = "child['guard'](os.getcwd())") -> str:
    code = GUARDED.format(child=str(CHILD), folder=str(folder), prepare=prepare, attempt=attempt)
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.socket()",
        "subprocess.run(['true'])",
        "os.system('true')",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "open('../canary', 'w')",
        "open('link/canary', 'w')",
        "os.open('../canary', os.O_CREAT)",
        "os.open('canary', os.O_CREAT, dir_fd=os.open('..', os.O_RDONLY))",
        "os.chdir('..')",
        "os.setxattr('../kept', 'user.a', b'')",
        "os.mkfifo('../canary')",
        "os.mknod('../canary')",
        "os.posix_spawnp('true', ['true'], {})",
        "sys.modules['posix'].fork()",
        "subprocess._fork_exec()",
        "sys.modules['_posixsubprocess'].fork_exec()",
        "os.remove('../kept')",
        "os.rename('../kept', 'kept')",
        "os.symlink('/', 'root')",
        "shutil.rmtree('..')",
        "ctypes.CDLL(None).system(b'true')",
        "ctypes.string_at(id(1), 1)",
        "pickle.loads(pickle.dumps(os.getcwd))",
        "os.kill(os.getppid(), 9)",
    ],
)
def test_python_refuses_what_has_no_place_there(attempt: str, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "link").symlink_to("..")
    (tmp_path / "kept").write_text("kept")
    assert attempted(attempt, scratch).startswith("refused:")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "scratch"]
    assert list(scratch.iterdir()) == [scratch / "link"]


def test_python_lets_safetensors_find_the_bytes_of_a_tensor(tmp_path: Path) -> None:
    """By :func:`ctypes.cast`, which Python 3.14 audits; and by no other function's address."""
    audit = "import _ctypes; sys.audit('ctypes.call_function', _ctypes._cast_addr{}, ())"
    assert attempted(audit.format(""), tmp_path) == "done"
    assert attempted(audit.format(" + 1"), tmp_path).startswith("refused:")
    assert attempted("ctypes.cast(id(1), ctypes.c_void_p)", tmp_path) == "done"


def test_what_python_refuses_cannot_be_changed_any_more(tmp_path: Path) -> None:
    change = "child['guard'].__globals__.update(FORBIDDEN=('nothing',), CAST=('socket.__new__',))"
    assert attempted(f"{change}, socket.socket()", tmp_path).startswith("refused:")


def test_python_lets_it_write_where_it_should(tmp_path: Path) -> None:
    assert attempted("open(os.path.abspath('weights'), 'w').close()", tmp_path) == "done"
    assert (tmp_path / "weights").exists()


CONFINED = "child['isolate'](), child['confine'](os.getcwd(), [sys.base_prefix])"


@pytest.mark.parametrize(
    ("attempt", "let"),
    [
        ("open('weights', 'w').close()", True),
        ("open('weights', 'w').close(), os.truncate('weights', 0), open('weights').close()", True),
        ("open(os.__file__).close()", True),
        ("open('../kept').close()", False),
        ("open('../kept', 'a').close()", False),
        ("os.truncate('../kept', 0)", False),
        ("os.listdir('..')", False),
        ("os.mkdir('folder')", False),
        ("os.remove('../kept')", False),
        ("os.execv(sys.executable, [sys.executable, '-c', 'print(1)'])", False),
        ("open(f'/proc/{os.getppid()}/environ').close()", False),
        ("os.kill(os.getppid(), 0)", False),
    ],
)
def test_the_system_itself_refuses_where_it_has_landlock(attempt: str, let: bool, tmp_path: Path) -> None:
    if not sys.platform.startswith("linux") or ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) < 6:
        pytest.skip("this machine has no Landlock, or an old one")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "kept").write_text("kept")
    said = attempted(attempt, tmp_path / "scratch", CONFINED)
    assert said == "done" if let else said.startswith("refused: [Errno")
    assert (tmp_path / "kept").read_text() == "kept"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux alone")
def test_our_variables_are_out_of_reach_while_the_process_lives() -> None:
    prctl = ctypes.CDLL(None).prctl
    before = prctl(restricted.GET_DUMPABLE, 0, 0, 0, 0)
    with restricted._undumpable():
        assert prctl(restricted.GET_DUMPABLE, 0, 0, 0, 0) == 0
    assert prctl(restricted.GET_DUMPABLE, 0, 0, 0, 0) == before


def listening(use: Callable[[int], str]) -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return use(server.getsockname()[1])


def test_there_is_no_network_where_the_system_lets_it(tmp_path: Path) -> None:
    def connect(prepare: str) -> str:
        call = "socket.create_connection(('127.0.0.1', {}), 1)"
        return listening(lambda port: attempted(call.format(port), tmp_path, prepare))

    assert connect("pass") == "done"
    got = connect("child['isolate']()")
    ways = (["unshare", "--net", "true"], ["unshare", "--map-root-user", "--net", "true"])
    if not shutil.which("unshare") or all(subprocess.run(way, capture_output=True).returncode for way in ways):
        pytest.skip("this machine gives no process a network of its own")
    assert got.startswith("failed:")


def test_memory_is_limited_by_the_size_of_the_file(tmp_path: Path) -> None:
    code = GUARDED.format(
        child=str(CHILD), folder=str(tmp_path), prepare="child['limit'](1000, 5)", attempt="bytes(2 << 30)"
    ).replace("except OSError", "except MemoryError:\n    print('no memory')\nexcept OSError")
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "no memory"


LIMITED = """
import ctypes, os, resource, runpy, signal, sys
child = runpy.run_path({child!r})
{prepare}
{tell}
"""


def told(tell: str, prepare: str = "child['limit'](1000, 5)") -> str:
    code = LIMITED.format(child=str(CHILD), prepare=prepare, tell=tell)
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("name", "value"),
    [("RLIMIT_NPROC", 0), ("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 2000 + (1 << 20)), ("RLIMIT_CPU", 5)],
)
def test_what_the_process_may_have(name: str, value: int) -> None:
    assert told(f"print(resource.getrlimit(resource.{name}))") == f"({value}, {value})"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux alone")
def test_the_process_dies_with_its_parent_and_gets_no_new_rights() -> None:
    tell = (
        "found = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(found)); "
        "print(found.value, ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))"
    )
    assert told(tell, "child['isolate']()") == f"{signal.SIGKILL.value} 1"


def run_instead(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: int = 300) -> int:
    """What comes of another script in the place of the one that opens pickles; it is run as that one is."""
    (folder / "instead.py").write_text(code)
    (folder / "scratch").mkdir()
    (folder / "w.pt").write_bytes(b"")
    monkeypatch.setattr(restricted, "CHILD", folder / "instead.py")
    with (folder / "w.pt").open("rb") as file:
        return restricted._run(file, folder, folder / "scratch", Limits(seconds=seconds))


def told_first(answer: Path) -> type[subprocess.Popen]:
    """A process whose time begins when it has said something, however long a busy machine takes until then."""

    class Process(subprocess.Popen):
        def wait(self, timeout: float | None = None) -> int:
            while timeout is not None and self.poll() is None and not answer.read_text().endswith("\n"):
                time.sleep(0.05)
            return super().wait(timeout)

    return Process


def gone(process: int) -> bool:
    """Whether a process has ended, or is about to be taken leave of; it has a minute for that."""
    for _ in range(1200):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked for in /proc")
@pytest.mark.parametrize("waits", [False, True])
def test_nobody_outlives_the_opening(waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the process, which is ended when its time is over, nor one that it has started and left alone."""
    code = (
        "import os, subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(os.getpid(), other.pid, flush=True)\n"
        f"time.sleep({600 if waits else 0})\n"
    )
    if waits:
        monkeypatch.setattr(subprocess, "Popen", told_first(tmp_path / "answer"))
        with pytest.raises(Suspicious, match="not open after 2 s"):
            run_instead(code, tmp_path, monkeypatch, seconds=2)
    else:
        assert run_instead(code, tmp_path, monkeypatch) == 0
    process, other = map(int, (tmp_path / "answer").read_text().split())
    assert gone(process)
    assert gone(other)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal is Linux's")
def test_a_process_that_writes_more_than_it_should_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import runpy, signal\n"
        f"child = runpy.run_path({str(CHILD)!r})\n"
        "child['limit'](1000, 5)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"  # as in C, which Python ignores
        "open('weights.safetensors', 'wb').write(bytes(2 << 20))\n"
    )
    assert run_instead(code, tmp_path, monkeypatch) == -signal.SIGXFSZ
    assert (tmp_path / "scratch" / "weights.safetensors").stat().st_size == 2000 + (1 << 20)
    with pytest.raises(Suspicious, match=f"ended by signal {signal.SIGXFSZ.value}"):
        restricted._answer(-signal.SIGXFSZ, tmp_path)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            "Weights only load failed. This file can still be loaded, \x1b[1monly if you trust it\x1b[0m.\n"
            "\tWeightsUnpickler error: Unsupported global: GLOBAL os.system was not allowed. Please use\n\nmore",
            "code",
            "Unsupported global: GLOBAL os.system was not allowed",
        ),
        (
            "Please file an issue: WeightsUnpickler error: \n\nUnsupported operand 149\n",
            "code",
            "Unsupported operand 149",
        ),
        (
            "not enough memory: you tried to allocate 9 bytes",
            "limit",
            "not enough memory: you tried to allocate 9 bytes",
        ),
        ("unexpected end of data", "malformed", "unexpected end of data"),
        ("", "malformed", "RuntimeError"),
    ],
)
def test_what_torch_refuses_is_told_by_its_words(said: str, kind: str, words: str) -> None:
    class Torch:
        @staticmethod
        def load(*_args: object, **_options: object) -> None:
            raise RuntimeError(said)

    with pytest.raises(restricted_child.Refused, match=r"torch\.load refuses it") as caught:
        restricted_child.converted(10, 10, Torch, None)
    assert (caught.value.kind, str(caught.value)) == (kind, f"torch.load refuses it: {words}")


def test_a_global_that_only_torch_refuses_is_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should agnosco be wrong about what a pickle imports, torch is asked too, and what it says is code."""
    monkeypatch.setattr("agnosco.models.weights.pickle_scan.PLAIN", PLAIN | {"datetime.timedelta"})
    torch.save({"a": torch.ones(2), "b": timedelta(3)}, tmp_path / "w.pt")
    assert [one.kind for one in read_contents(tmp_path / "w.pt").findings] == ["pickle"]
    error = refused(tmp_path / "w.pt", allow_pickle=True)
    assert error.exit_code == 11
    assert "datetime.timedelta" in error.message


def test_real_networks_come_through_the_same_door(assets: Path) -> None:
    path = assets / "models" / "resnet18-imagenet.safetensors"
    found = read_contents(path, values=True)
    assert (found.findings, found.tensors) == ((), len(safetensors.torch.load_file(path)))


@pytest.mark.slow
def test_a_real_network_as_a_pickle(assets: Path, tmp_path: Path) -> None:
    from agnosco.models import loading

    expected = safetensors.torch.load_file(assets / "models" / "resnet18-imagenet.safetensors")
    torch.save(expected, tmp_path / "resnet18.pth")
    with pytest.raises(AgnoscoError, match="--allow-pickle"):
        loading.load("torchvision:resnet18", weights=tmp_path / "resnet18.pth")
    with pytest.warns(AgnoscoWarning, match="no real barrier"):
        model = loading.load("torchvision:resnet18", weights=tmp_path / "resnet18.pth", allow_pickle=True).model
    state: dict[str, Tensor] = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_a_real_export_is_refused_and_would_have_run(tmp_path: Path) -> None:
    """What ``torch.export.save`` writes, with other sample inputs: ``torch.export.load`` unpickles them."""

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return exec, (f"open({str(tmp_path / 'canary')!r}, 'w').close()",)

    inputs = io.BytesIO()
    torch.save(Evil(), inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "sound.pt2")
        with zipfile.ZipFile(tmp_path / "sound.pt2") as source, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as target:
            for member in source.infolist():
                evil = "sample_inputs" in member.filename
                target.writestr(member.filename, inputs.getvalue() if evil else source.read(member))
        for name in ("sound.pt2", "evil.pt2"):
            assert refused(tmp_path / name, allow_pickle=True).exit_code == CODES["code"]
        assert not (tmp_path / "canary").exists()
        with pytest.raises(Exception):  # noqa: B017, PT011  # it has run by then
            torch.export.load(tmp_path / "evil.pt2")
    assert (tmp_path / "canary").exists()
