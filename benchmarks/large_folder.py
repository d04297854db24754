"""What a folder of a million names takes of memory and time.

    python benchmarks/large_folder.py            measure, into benchmarks/results/large-folder.json
    python benchmarks/large_folder.py --tables   write the table into benchmarks/README.md

The names lie in a hundred folders beneath a temporary one and are links to a hundred files, so that they take inodes
and no space. `--before SRC` measures another version, whose `agnosco` lies in SRC, beside this one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablation import RESULTS, about
from pages import ROOT, made_on, markdown, put
from PIL import Image

PATH = RESULTS / "large-folder.json"
NAMES, FOLDERS = 1_000_000, 100
SIDES = (32, 224)

READ = """
import json, sys, time, warnings
from agnosco import AgnoscoError, Samples

def highest():  # not getrusage's, which begins with that of the process before exec
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

warnings.simplefilter("ignore")
own = highest()
begun = time.perf_counter()
try:
    samples = Samples.from_folder(sys.argv[1], (3, int(sys.argv[2]), int(sys.argv[2])))
    told = [len(samples), samples.images.nbytes / 2**20]
except AgnoscoError as error:
    told = [0, 0]
print(json.dumps([*told, highest() - own, time.perf_counter() - begun]))
"""


def images(folder: Path) -> None:
    """A million names of images."""
    for first in _linked(folder, "{}.png"):
        Image.new("RGB", (32, 32), (int(first.parent.name), 100, 200)).save(first)


def no_images(folder: Path) -> None:
    """A million empty files."""
    for first in _linked(folder, "{}.png"):
        first.touch()


def hidden(folder: Path) -> None:
    """A million names that are passed over."""
    for first in _linked(folder, ".{}.png"):
        first.touch()


def _linked(folder: Path, names: str) -> Iterator[Path]:
    """The first file of each of a hundred folders, for the caller to write; then links to it."""
    for part in range(FOLDERS):
        place = folder / f"{part}"
        place.mkdir()
        first = place / names.format(0)
        yield first
        for number in range(1, NAMES // FOLDERS):
            os.link(first, place / names.format(number))


def folders(folder: Path) -> None:
    """A million empty folders beside each other."""
    for number in range(NAMES):
        (folder / f"{number}").mkdir()


def read(folder: Path, side: int, source: Path) -> dict[str, float]:
    """Images, their size, and what reading them took, in a process of its own."""
    command = [sys.executable, "-c", READ, str(folder), str(side)]
    environment = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(zip(("images", "megabytes", "peak", "seconds"), json.loads(done.stdout), strict=True))


def measured(at: str | None, before: Path | None) -> list[dict[str, Any]]:
    """Every kind of folder."""
    rows = []
    for make, sides in ((images, SIDES), (no_images, SIDES[:1]), (hidden, SIDES[:1]), (folders, SIDES[:1])):
        with tempfile.TemporaryDirectory(dir=at) as name:
            make(Path(name))
            for side in sides:
                row: dict[str, Any] = {"folder": (make.__doc__ or "").rstrip("."), "side": side}
                row["now"] = read(Path(name), side, ROOT / "src")
                if before is not None and side == SIDES[0]:  # the larger ones would take 150 GB
                    row["before"] = read(Path(name), side, before)
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def tables(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = []
    for row in results["rows"]:
        now, before = row["now"], row.get("before")
        cells = [row["folder"], f"{row['side']} px", f"{now['images']:,}", f"{now['megabytes']:,.0f}"]
        for found in (now, before):
            cells += [f"{found['peak']:,.0f}", f"{found['seconds']:.0f}"] if found else ["-", "-"]
        rows.append(cells)
    head = ["folder", "read at", "images", "MB of images", "peak, MB", "s", "peak before, MB", "s before"]
    return f"{made_on(results)}.\n\n{markdown(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", metavar="DIR", help="where the folders are made; the system's place otherwise")
    parser.add_argument("--before", type=Path, metavar="SRC", help="another version, to compare with")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        put("benchmarks/README.md", "large-folder", tables(json.loads(PATH.read_text())))
    else:
        rows = measured(options.at, options.before)
        if options.before is None and PATH.exists():  # what was before does not change
            for row, old in zip(rows, json.loads(PATH.read_text())["rows"], strict=True):
                row |= {"before": old["before"]} if "before" in old else {}
        results = {"about": about("no network"), "rows": rows}
        PATH.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
