"""Three ways through the code: what a sample folder, a weights file and a class name pass until a picture is saved.

Runs one small ``agnosco map`` and watches every call of a function of agnosco that is given the value, or an object
that holds it. ``--checkout DIR`` watches another version of the project; its ``tests/test_layers.py`` says what its
rooms and floors are (before there were rooms, every module was one). *Calls back up* are distinct pairs of a caller
and a callee that stands on a higher floor, such as a callback.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CLASS, INDEX = "a class to follow", 1

WATCHED = """
import json, sys, threading
from pathlib import Path
import torch

package, folder, weights, class_name, index = sys.argv[1:6]
calls = []

def holds(value, deep=1):
    kind = type(value)
    if isinstance(value, (str, Path)):
        texts = {"samples": folder, "weights": weights, "class": class_name}
        return {way for way, text in texts.items() if text in str(value)}
    name, module = kind.__name__, kind.__module__
    if name in ("Samples", "Resident") and module.startswith("agnosco"):
        return {"samples"}
    if "weights" in module and module.startswith("agnosco"):
        return {"weights"}
    if name in ("Job", "ConceptMap", "Entry", "Finished", "Progress"):
        return {"class"}
    if deep and isinstance(value, (tuple, list, dict)) and len(value) < 9:
        return set().union(*(holds(item, deep - 1) for item in (value.values() if isinstance(value, dict) else value)))
    return set()

def module_of(frame):
    path = frame.f_code.co_filename
    return path[len(package) + 1 : -3].replace("/", ".") if path.startswith(package) else None

def watch(frame, event, _):
    inner = frame.f_code.co_name in ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")
    if event != "call" or inner or (callee := module_of(frame)) is None:
        return
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    ways = set().union(*(holds(frame.f_locals[name]) for name in names if name in frame.f_locals))
    ways |= {"class" for name in names if name in ("label", "index") and frame.f_locals.get(name) == int(index)}
    if not ways:
        return
    caller = frame.f_back
    while caller is not None and module_of(caller) is None:
        caller = caller.f_back
    for way in ways:
        calls.append((way, module_of(caller) if caller else "", callee))

import runpy
threading.setprofile(watch)
sys.setprofile(watch)
try:
    sys.argv = ["agnosco", *sys.argv[6:]]
    runpy.run_module("agnosco", run_name="__main__")
except SystemExit as stop:
    sys.setprofile(None)
    threading.setprofile(None)
    print("WAYS" + json.dumps([stop.code or 0, list(dict.fromkeys(calls))]))
"""

MODEL = "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))\n"


def watched(checkout: Path) -> list[tuple[str, str, str]]:
    """Calls that were given a value: its way, the caller's module and the callee's."""
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as place:
        desk = Path(place)
        (desk / "followed-folder").mkdir()
        for number in range(12):
            Image.new("RGB", (8, 8), (20 * number, 90, 255 - 20 * number)).save(desk / f"followed-folder/{number}.png")
        (desk / "net.py").write_text(MODEL)
        (desk / "names.txt").write_text(f"other\n{CLASS}\n")
        save_file({"1.weight": torch.randn(2, 192), "1.bias": torch.zeros(2)}, desk / "followed.safetensors")
        package = str(checkout / "src" / "agnosco")
        values = [package, "followed-folder", "followed.safetensors", CLASS, str(INDEX)]
        command = [
            "map", "python:net.py:net", CLASS, "--trust-code", "--weights", "followed.safetensors", "--size", "8",
            "--labels", "names.txt", "--samples", "followed-folder", "--preset", "draft", "--steps", "2", "--quiet",
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "XDG_CACHE_HOME": place}
        done = subprocess.run(
            [sys.executable, "-c", WATCHED, *values, *command],
            cwd=desk,
            env=environment,
            capture_output=True,
            text=True,
        )
        line = next((line for line in done.stdout.splitlines() if line.startswith("WAYS")), None)
        if line is None:
            sys.exit(done.stderr)
        code, calls = json.loads(line.removeprefix("WAYS"))
        if code:
            sys.exit(done.stderr)
        return [tuple(call) for call in calls]


def floors(checkout: Path) -> dict[str, int]:
    """The floor of each room of a checkout, as its own test has them; the lowest is 0."""
    path = checkout / "tests" / "test_layers.py"
    spec = importlib.util.spec_from_file_location("layers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, "FLOOR", None) or module.LEVEL


def summary(calls: list[tuple[str, str, str]], floor: dict[str, int]) -> dict[str, dict[str, Any]]:
    """What each way passes: files, rooms, and calls back up."""

    def room(module: str) -> str:
        return next((part for part in module.split(".")[:1] if part in floor), "__init__")

    result = {}
    for way in ("samples", "weights", "class"):
        pairs = {(caller, callee) for name, caller, callee in calls if name == way}
        files = {module for pair in pairs for module in pair if module}
        up = sorted({(a, b) for a, b in pairs if a and floor[room(b)] > floor[room(a)]})
        result[way] = {
            "files": len(files), "rooms": len({room(module) for module in files}), "back_up": len(up),
            "calls_back_up": [" → ".join(pair) for pair in up],
        }  # fmt: skip
    return result


def main() -> None:
    """Print the ways of a checkout as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=ROOT, help="another version of the project")
    checkout = parser.parse_args().checkout.resolve()
    print(json.dumps(summary(watched(checkout), floors(checkout)), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
