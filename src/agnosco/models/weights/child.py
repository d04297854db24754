"""What opens a pickle of tensors: a script of its own, run by :mod:`.limited`.

It is given the pickle as its standard input, starts in an empty folder, and leaves ``weights.safetensors`` there and
one line of JSON on its standard output. Before it reads a byte it gives up what it does not need: the network, other
processes, memory, time, and writing elsewhere. ``weights_only=True`` is what keeps the pickle from running; the rest is
for the day when that has a hole. It is damage control, not a boundary: code that gets this far in C is not held by a
hook of Python's.

It imports torch and safetensors from the folders that it is told, and nothing of agnosco.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000
NO_NEW_PRIVILEGES, DIE_WITH_PARENT = 38, 1
SPARE = 768 << 20
"""Bytes beyond what torch takes by itself; a file may take three times its size besides."""

NESTED = ("state_dict", "model", "model_state_dict")
PREFIX = "module."
FORBIDDEN = (
    "socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.system",
    "os.kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown",
    "os.chdir", "os.setxattr", "os.removexattr", "os.chflags", "os.truncate", "os.utime", "os.putenv", "shutil.",
    "ctypes.", "pty.", "signal.", "mmap.",
    "pickle.find_class", "code.__new__",
)  # fmt: skip
"""Audit events (PEP 578) that nothing has a use for once torch is there: Python's own unpickler is among them."""

_OS = ("fork", "forkpty", "posix_spawn", "posix_spawnp", "mkfifo", "mknod")
REMOVED = {"os": _OS, "posix": _OS, "_posixsubprocess": ("fork_exec",), "subprocess": ("_fork_exec",)}
"""What has no such event, or is of no use either, by its module."""

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READING, WRITING = 0b1100, 0b100_0001_0010_0010
"""Landlock's calls, and its rights: files and folders are read; files are written, made, cut and renamed."""


class Refused(Exception):
    """Why there are no weights: a kind of finding, and a few words."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def isolate() -> None:
    """No network, no new rights, and no life beyond the parent's, where the system allows that."""
    if not sys.platform.startswith("linux"):
        return
    system = ctypes.CDLL(None, use_errno=True)
    system.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if system.unshare(CLONE_NEWNET):
        system.unshare(CLONE_NEWUSER | CLONE_NEWNET)
    system.prctl(DIE_WITH_PARENT, 9, 0, 0, 0)  # which new rights would take back


def confine(folder: str, libraries: list[str]) -> None:
    """Where Linux has Landlock, it lets this thread read libraries, write in a folder, and open nothing else."""
    if not sys.platform.startswith("linux"):
        return
    call = ctypes.CDLL(None).syscall
    version = call(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1  # all rights that this one knows
    asked = struct.pack("QQQ", handled, 0b11, 0b11)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = call(CREATE_RULESET, asked, ctypes.c_size_t(len(asked)), 0)  # files; TCP; signals and sockets
    for place, rights in [*((one, READING) for one in libraries if os.path.isdir(one)), (folder, READING | WRITING)]:
        handle = os.open(place, os.O_PATH)
        call(ADD_RULE, rules, 1, struct.pack("=Qi", rights & handled, handle), 0)
        os.close(handle)
    call(RESTRICT_SELF, rules, 0)
    os.close(rules)


def limit(size: int, seconds: int) -> None:
    """Memory, time and what may be written, for a file of a size; called when torch is there."""
    try:
        import resource
    except ImportError:  # on Windows
        return
    pages = Path("/proc/self/statm")
    now = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 16 << 30
    wanted = {
        "RLIMIT_AS": now + SPARE + 3 * size, "RLIMIT_CPU": seconds, "RLIMIT_FSIZE": 2 * size + (1 << 20),
        "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0,
    }  # fmt: skip
    for name, value in wanted.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))


def guard(folder: str) -> None:
    """From now on, Python itself refuses what has no place here; there is no way back."""
    inside = os.path.realpath(folder) + os.sep
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} has no place in the opening of weights")
        if event == "open" and isinstance(args[2], int) and args[2] & writing:
            path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else ""
            if not os.path.isabs(path) or not os.path.realpath(path).startswith(
                inside
            ):  # a relative one may be of another
                raise PermissionError("nothing is written outside of the folder")

    for name, gone in REMOVED.items():
        for one in gone:
            vars(sys.modules.get(name, sys)).pop(one, None)

    sys.addaudithook(refuse)


def state_of(saved: Any, torch: Any) -> tuple[dict[str, Any], list[str]]:
    """The tensors by name, and how they were found: in which part, with which prefix taken off."""
    told = []
    found = saved
    for key in NESTED:
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            found = saved[key]
            told.append(f"they were taken from its {key!r}")
            break
    if not isinstance(found, dict) or not found:
        raise Refused("unknown", "it holds no dictionary of tensors")
    for name, tensor in found.items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if not isinstance(name, str) or not plain or tensor.is_quantized or tensor.device.type != "cpu":
            what = f"{type(tensor).__name__} under {str(name)[:80]!r}"
            raise Refused("unknown", f"it holds {what}, where a tensor should be")
    if all(name.startswith(PREFIX) for name in found):
        found = {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}
        told.append(f"the prefix {PREFIX!r} was taken off their names")
    return found, told


def check_sizes(state: dict[str, Any], size: int, most: int) -> None:
    """A few bytes may be said to be terabytes, by strides of nothing: what is stored is what counts."""
    total = 0
    for name, tensor in state.items():
        logical = tensor.numel() * tensor.element_size()
        if logical > tensor.untyped_storage().nbytes():
            detail = f"{name[:80]!r} claims {logical:,} bytes and stores {tensor.untyped_storage().nbytes():,}"
            raise Refused("limit", detail)
        total += logical
    if total > 2 * size:  # weights that two layers share are stored once
        raise Refused("limit", f"its tensors claim {total:,} bytes, and the file has {size:,}")
    if total > most:
        raise Refused("limit", f"its tensors claim {total:,} bytes (at most {most:,})")


def converted(size: int, most: int, torch: Any, save_file: Any) -> list[str]:
    """Reads standard input, and writes the weights."""
    with open(0, "rb", closefd=False) as file:
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            text, refused, own = str(error).partition("WeightsUnpickler error:")
            memory = "memory" in text.lower() or isinstance(error, MemoryError)
            what = (own or text).strip().partition("\n")[0].partition(". ")[0][:300] or type(error).__name__
            kind = "code" if refused else "malformed"
            raise Refused("limit" if memory else kind, f"torch.load refuses it: {what}") from error
    state, told = state_of(saved, torch)
    check_sizes(state, size, most)
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in state.items()}, "weights.safetensors")
    return told


def main() -> None:
    """``child.py SECONDS BYTES``, of all tensors at most, with the folders of the libraries in ``AGNOSCO_PATH``."""
    isolate()
    libraries = json.loads(os.environ.pop("AGNOSCO_PATH"))
    sys.path[:] = libraries
    seconds, most = map(int, sys.argv[1:])
    size = os.fstat(0).st_size
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    warm = io.BytesIO()  # what torch imports only when it is used is imported here
    torch.save({"a": torch.ones(1)}, warm)
    warm.seek(0)
    torch.load(warm, map_location="cpu", weights_only=True)
    save_file({"a": torch.ones(1)}, "weights.safetensors")
    os.remove("weights.safetensors")
    limit(min(size, most), seconds)
    confine(os.getcwd(), [*libraries, sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64"])
    guard(os.getcwd())
    try:
        answer = {"told": converted(size, most, torch, save_file)}
    except Refused as error:
        answer = {"kind": error.kind, "detail": str(error)}
    except MemoryError:
        answer = {"kind": "limit", "detail": "it takes more memory than a file of its size should"}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
