"""Opens a pickle of tensors: a script, which :mod:`.restricted` runs.

Its standard input is the pickle. It starts in an empty folder, where it writes ``weights.safetensors``, and prints one
line of JSON. Before it reads a byte it gives up what it does not need: the network, other processes, memory, time, and
writing elsewhere. ``weights_only=True`` keeps the pickle from running; the rest limits the damage should that have a
hole. It is not a security boundary: a Python hook does not stop native code. Nothing is imported from agnosco.
"""

import _ctypes
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
"""Bytes allowed beyond what torch itself takes, besides three times the size of the file."""

NESTED = ("state_dict", "model", "model_state_dict")
PREFIX = "module."
FORBIDDEN = (
    "socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.system",
    "os.kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown",
    "os.chdir", "os.setxattr", "os.removexattr", "os.chflags", "os.truncate", "os.utime", "os.putenv", "shutil.",
    "ctypes.", "pty.", "signal.", "mmap.",
    "pickle.find_class", "code.__new__",
)  # fmt: skip
"""Audit events (PEP 578) that nothing needs once torch is imported; Python's own unpickler is among them."""

CAST = ("ctypes.call_function", getattr(_ctypes, "_cast_addr", None))
"""The one exception: safetensors finds the bytes of a tensor by ``ctypes.cast``, which Python audits from 3.14 on."""

_OS = ("fork", "forkpty", "posix_spawn", "posix_spawnp", "mkfifo", "mknod")
REMOVED = {"os": _OS, "posix": _OS, "_posixsubprocess": ("fork_exec",), "subprocess": ("_fork_exec",)}
"""Functions without such an event, or not needed either, by module."""

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READING, WRITING = 0b1100, 0b100_0001_0010_0010
"""Landlock's system calls, and its rights: read files and folders; write, make, truncate and rename files."""


class Refused(Exception):
    """Why there are no weights: the kind of a finding, and a detail."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def isolate() -> None:
    """No network, no new rights, and no life after the parent's, where the system allows that."""
    if not sys.platform.startswith("linux"):
        return
    system = ctypes.CDLL(None, use_errno=True)
    system.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if system.unshare(CLONE_NEWNET):
        system.unshare(CLONE_NEWUSER | CLONE_NEWNET)
    system.prctl(DIE_WITH_PARENT, 9, 0, 0, 0)  # last: a change of rights would undo it


def confine(folder: str, libraries: list[str]) -> None:
    """Where Linux has Landlock, let this thread read libraries, write in one folder, and open nothing else."""
    if not sys.platform.startswith("linux"):
        return
    call = ctypes.CDLL(None).syscall
    version = call(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1  # all rights that this version knows
    asked = struct.pack("QQQ", handled, 0b11, 0b11)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = call(CREATE_RULESET, asked, ctypes.c_size_t(len(asked)), 0)  # files; TCP; signals and sockets
    readable = [(path, READING) for path in libraries if os.path.isdir(path)]
    for path, rights in [*readable, (folder, READING | WRITING)]:
        handle = os.open(path, os.O_PATH)
        call(ADD_RULE, rules, 1, struct.pack("=Qi", rights & handled, handle), 0)
        os.close(handle)
    call(RESTRICT_SELF, rules, 0)
    os.close(rules)


def limit(size: int, seconds: int) -> None:
    """Limit memory, time and what may be written, for a file of a size; called once torch is imported."""
    try:
        import resource
    except ImportError:  # on Windows
        return
    pages = Path("/proc/self/statm")
    now = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 16 << 30
    limits = {
        "RLIMIT_AS": now + SPARE + 3 * size, "RLIMIT_CPU": seconds, "RLIMIT_FSIZE": 2 * size + (1 << 20),
        "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0,
    }  # fmt: skip
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))


def guard(folder: str) -> None:
    """From now on, Python itself refuses what opening weights does not need; there is no way back."""
    forbidden, cast = FORBIDDEN, CAST  # a change of the module's own would change nothing
    inside = os.path.realpath(folder) + os.sep
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(forbidden) and (event, *args[:1]) != cast:
            raise PermissionError(f"opening weights does not need {event}")
        if event == "open" and isinstance(args[2], int) and args[2] & writing:
            path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else ""
            relative = not os.path.isabs(path)  # to a folder that may not be this one
            if relative or not os.path.realpath(path).startswith(inside):
                raise PermissionError("nothing is written outside of the folder")

    for module, functions in REMOVED.items():
        for function in functions:
            vars(sys.modules.get(module, sys)).pop(function, None)

    sys.addaudithook(refuse)


def state_of(saved: Any, torch: Any) -> tuple[dict[str, Any], list[str]]:
    """The tensors by name, and remarks: from which part they were taken, and which prefix was removed."""
    remarks = []
    state = saved
    for key in NESTED:
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            state = saved[key]
            remarks.append(f"the tensors were taken from its {key!r}")
            break
    if not isinstance(state, dict) or not state:
        raise Refused("unknown", "it holds no dictionary of tensors")
    for name, tensor in state.items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if not isinstance(name, str) or not plain or tensor.is_quantized or tensor.device.type != "cpu":
            what = f"{type(tensor).__name__} under {str(name)[:80]!r}"
            raise Refused("unknown", f"it holds {what}, where a tensor should be")
    if all(name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
        remarks.append(f"the prefix {PREFIX!r} was removed from their names")
    return state, remarks


def check_sizes(state: dict[str, Any], size: int, most: int) -> None:
    """With strides of 0, a few bytes can claim to be terabytes: what is stored must cover what is claimed."""
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
    """Read standard input, write the weights, and give remarks."""
    with open(0, "rb", closefd=False) as file:
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            text, refused, reason = str(error).partition("WeightsUnpickler error:")
            memory = "memory" in text.lower() or isinstance(error, MemoryError)
            what = (reason or text).strip().partition("\n")[0].partition(". ")[0][:300] or type(error).__name__
            kind = "code" if refused else "malformed"
            raise Refused("limit" if memory else kind, f"torch.load refuses it: {what}") from error
    state, remarks = state_of(saved, torch)
    check_sizes(state, size, most)
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in state.items()}, "weights.safetensors")
    return remarks


def main() -> None:
    """``... SECONDS BYTES``: limits of time and tensors; ``AGNOSCO_PATH`` lists the folders of libraries."""
    isolate()
    libraries = json.loads(os.environ.pop("AGNOSCO_PATH"))
    sys.path[:] = libraries
    seconds, most = map(int, sys.argv[1:])
    size = os.fstat(0).st_size
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    warm = io.BytesIO()  # torch imports some modules on first use: do it here
    torch.save({"a": torch.ones(1)}, warm)
    warm.seek(0)
    torch.load(warm, map_location="cpu", weights_only=True)
    save_file({"a": torch.ones(1)}, "weights.safetensors")
    os.remove("weights.safetensors")
    limit(min(size, most), seconds)
    confine(os.getcwd(), [*libraries, sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64"])
    guard(os.getcwd())
    try:
        answer = {"remarks": converted(size, most, torch, save_file)}
    except Refused as error:
        answer = {"kind": error.kind, "detail": str(error)}
    except MemoryError:
        answer = {"kind": "limit", "detail": "it takes more memory than a file of its size should need"}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
