"""Every hostile file of tests/hostile.py through the commands, for the table of docs/security.md.

    python benchmarks/security.py            measure, into benchmarks/results/security.json, and write the table
    python benchmarks/security.py --tables   write the table into docs/security.md

`make security` runs this; tests make sure that the page names every case.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from typing import Any

from common import (
    RESULTS,
    ROOT,
    about,
    argument_parser,
    fill,
    markdown,
    measured_on,
    read_results,
    write_results,
)

sys.path.insert(0, str(ROOT / "tests"))
CASES = importlib.import_module("hostile").CASES

PATH = RESULTS / "security.json"
COMMANDS = ("inspect", "map", "map --allow-pickle")
HEAD = ("", "case", "what it is", *COMMANDS, "executed", "sockets", "MB", "s")


def measure() -> dict[str, Any]:
    """Run all cases, in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "tests" / "hostile.py"), folder]
        results = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for outcome in results["outcomes"]:
        outcome.pop("page", None)
        for command in outcome["commands"].values():
            command.pop("stdout")
            command["stderr"] = command["stderr"].replace(folder, "FOLDER")[:400]
    return {"about": about("hostile files"), **results}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    descriptions = {case.name: case.what for case in CASES}
    rows = [cells(outcome, descriptions[outcome["name"]]) for outcome in results["outcomes"]]
    return f"Measured on {measured_on(results)}.\n\n{markdown(HEAD, rows)}"


def cells(outcome: dict[str, Any], description: str) -> list[str]:
    """A case: exit codes, whether its code was executed, and the greatest memory and time of its commands."""
    commands = outcome["commands"]
    codes = [str(commands[name]["exit"]) if name in commands else "" for name in COMMANDS]
    memory = max(max(command["megabytes"] for command in commands.values()), _of_child(outcome))
    seconds = max(command["seconds"] for command in commands.values())
    executed = "yes" if outcome["executed"] or outcome["unpickled"] else "no"
    figures = [str(outcome["sockets"]), f"{memory:.0f}", f"{seconds:.1f}"]
    return [outcome["group"], outcome["name"], description, *codes, executed, *figures]


def _of_child(outcome: dict[str, Any]) -> float:
    """Memory of the process that opens pickles, beyond what a sound pickle takes, which is the first case."""
    if outcome["group"] == "sound":
        return 0
    return max(command["child_megabytes"] for command in outcome["commands"].values())


def main() -> None:
    options = argument_parser(__doc__).parse_args()
    if not options.tables:
        write_results(PATH, measure())
    fill("docs/security.md", "cases", table(read_results(PATH)))


if __name__ == "__main__":
    main()
