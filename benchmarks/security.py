"""Every hostile file of tests/hostile.py through the commands, for the table of docs/security.md.

    python benchmarks/security.py

The results are kept in benchmarks/results/security.json. `make security` runs this; tests hold the page to the cases.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile

from ablation import RESULTS, about
from pages import ROOT, made_on, markdown, put

sys.path.insert(0, str(ROOT / "tests"))
CASES = importlib.import_module("hostile").CASES

PATH = RESULTS / "security.json"
COMMANDS = ("inspect", "map", "map --allow-pickle")
HEAD = ("", "case", "what it is", *COMMANDS, "executed", "sockets", "MB", "s")


def measure() -> dict:
    """Run all cases in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "tests" / "hostile.py"), folder]
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for one in told["outcomes"]:
        one.pop("page", None)
        for command in one["commands"].values():
            command.pop("stdout")
            command["stderr"] = command["stderr"].replace(folder, "FOLDER")[:400]
    return {"about": about("hostile files"), **told}


def table(results: dict) -> str:
    """Markdown: what each case exits with, and what it took at most."""
    what = {case.name: case.what for case in CASES}
    rows = [row(one, what[one["name"]]) for one in results["outcomes"]]
    return f"Measured on {made_on(results)}.\n\n{markdown(HEAD, rows)}"


def row(one: dict, what: str) -> list[str]:
    """One case: exit codes, whether it ran, and the most memory and time of its commands."""
    commands = one["commands"]
    codes = [str(commands[name]["exit"]) if name in commands else "" for name in COMMANDS]
    memory = max(max(command["megabytes"] for command in commands.values()), _of_child(one))
    seconds = max(command["seconds"] for command in commands.values())
    ran = "yes" if one["executed"] or one["unpickled"] else "no"
    return [one["group"], one["name"], what, *codes, ran, str(one["sockets"]), f"{memory:.0f}", f"{seconds:.1f}"]


def _of_child(one: dict) -> float:
    """What the process that opens pickles took beyond a sound pickle, which comes first and sets the mark."""
    return 0 if one["group"] == "sound" else max(command["child_megabytes"] for command in one["commands"].values())


def main() -> None:
    results = measure()
    PATH.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    put("docs/security.md", "cases", table(results))


if __name__ == "__main__":
    main()
