"""Converts pickles of tensors to safetensors, in a process with few rights (:mod:`.restricted_child`).

This limits damage; it is not a security boundary. Open files that you do not trust at all in a container or a virtual
machine.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ...io.safetensors_header import Suspicious
from .limits import CODES, Limits

CHILD = Path(__file__).with_name("restricted_child.py")
ANSWER = 64 << 10
"""Bytes that are read of the process's answer."""

VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""Environment variables that the process inherits: those for loading libraries, and no secrets."""

GET_DUMPABLE, SET_DUMPABLE = 3, 4
_DUMPABLE_LOCK = threading.Lock()


@contextmanager
def converted(file: IO[bytes], limits: Limits) -> Iterator[tuple[Path, list[str]]]:
    """A pickle's tensors as a safetensors file, which is removed afterwards, and remarks on how they were found.

    ``file`` is the pickle, open, as it was examined. Suspicious if it is no dictionary of tensors, cannot be read, or
    takes too much memory or time.
    """
    with tempfile.TemporaryDirectory(prefix="agnosco-") as name:
        folder = Path(name)
        scratch = folder / "scratch"
        scratch.mkdir(mode=0o700)
        answer = _answer(_run(file, folder, scratch, limits), folder)
        if "kind" in answer:
            raise Suspicious(answer["kind"], "torch-load", answer["detail"])
        path = scratch / "weights.safetensors"
        if path.is_symlink() or not path.is_file():
            raise Suspicious("malformed", "torch-load", "the process that opened it left no weights")
        yield path, answer["remarks"]


def _run(file: IO[bytes], folder: Path, scratch: Path, limits: Limits) -> int:
    """The exit status of the process, negative for a signal."""
    inherited = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    libraries = json.dumps([path for path in sys.path if os.path.isabs(path)])
    environment = inherited | {
        "HOME": str(scratch), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "AGNOSCO_PATH": libraries,
    }  # fmt: skip
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    with (folder / "answer").open("wb") as answer, (folder / "complaint").open("wb") as complaint, _undumpable():
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(CHILD), str(limits.seconds), str(limits.total)],
            stdin=file, stdout=answer, stderr=complaint, cwd=scratch, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            for _ in range(limits.seconds):  # one by one: a machine that stands still costs one of them, not all
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=1)
            raise Suspicious("limit", "time", f"it was not open after {limits.seconds} s")
        finally:
            _end(process)


@contextmanager
def _undumpable() -> Iterator[None]:
    """Inside, on Linux, no other process of this user but root's can read this one's variables or memory."""
    if not sys.platform.startswith("linux"):
        yield
        return
    system = ctypes.CDLL(None)
    with _DUMPABLE_LOCK:
        before = system.prctl(GET_DUMPABLE, 0, 0, 0, 0)
        system.prctl(SET_DUMPABLE, 0, 0, 0, 0)
        try:
            yield
        finally:
            system.prctl(SET_DUMPABLE, before, 0, 0, 0)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its children."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _answer(status: int, folder: Path) -> dict:
    """The process's answer, which must have one of two forms."""
    with (folder / "answer").open("rb") as file:
        text = file.read(ANSWER)
    with suppress(ValueError, RecursionError):
        answer = json.loads(text)
        if isinstance(answer, dict) and isinstance(answer.get("detail"), str) and answer.get("kind") in CODES:
            return {"kind": answer["kind"], "detail": answer["detail"][:400]}
        if isinstance(answer, dict) and isinstance(answer.get("remarks"), list) and status == 0:
            return {"remarks": [str(remark)[:200] for remark in answer["remarks"][:4]]}
    if status < 0:
        raise Suspicious("limit", "ended", f"the process that opened it was ended by signal {-status}")
    with (folder / "complaint").open("rb") as file:
        lines = file.read(ANSWER).decode(errors="replace").strip().splitlines() or ["it said nothing"]
    raise Suspicious("malformed", "torch-load", f"the process that opened it failed: {lines[-1][:200]}")
