"""Memory and time to read a folder of a million names.

    python benchmarks/large_folder.py            measure, into benchmarks/results/large-folder.json
    python benchmarks/large_folder.py --tables   write the table into benchmarks/README.md

The names are in a hundred subfolders of a temporary folder. They are links to a hundred files, so that they take inodes
and no space. `--before SRC` also measures another version, whose `agnosco` is in SRC.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
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
from PIL import Image

PATH = RESULTS / "large-folder.json"
NAMES, FOLDERS = 1_000_000, 100
SIDES = (32, 224)

READ = """
import json, sys, time, warnings
from agnosco import AgnoscoError, Samples

def peak():  # getrusage would include the process before exec
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

warnings.simplefilter("ignore")
before = peak()
start = time.perf_counter()
try:
    samples = Samples.from_folder(sys.argv[1], (3, int(sys.argv[2]), int(sys.argv[2])))
    read = [len(samples), samples.images.nbytes / 2**20]
except AgnoscoError:
    read = [0, 0]
print(json.dumps([*read, peak() - before, time.perf_counter() - start]))
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
    """A million hidden files."""
    for first in _linked(folder, ".{}.png"):
        first.touch()


def _linked(folder: Path, names: str) -> Iterator[Path]:
    """Yield the first file of each subfolder, for the caller to write; then link the other names to it."""
    for part in range(FOLDERS):
        subfolder = folder / f"{part}"
        subfolder.mkdir()
        first = subfolder / names.format(0)
        yield first
        for number in range(1, NAMES // FOLDERS):
            os.link(first, subfolder / names.format(number))


def folders(folder: Path) -> None:
    """A million empty subfolders."""
    for number in range(NAMES):
        (folder / f"{number}").mkdir()


def read(folder: Path, side: int, source: Path) -> dict[str, float]:
    """Read a folder in a process of its own: number of images, their size, peak memory and seconds."""
    command = [sys.executable, "-c", READ, str(folder), str(side)]
    environment = os.environ | {"PYTHONPATH": str(source)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(zip(("images", "megabytes", "peak", "seconds"), json.loads(process.stdout), strict=True))


def measure(at: str | None, before: Path | None) -> list[dict[str, Any]]:
    """Measure every kind of folder."""
    rows = []
    for make, sides in ((images, SIDES), (no_images, SIDES[:1]), (hidden, SIDES[:1]), (folders, SIDES[:1])):
        with tempfile.TemporaryDirectory(dir=at) as name:
            make(Path(name))
            for side in sides:
                row: dict[str, Any] = {"folder": (make.__doc__ or "").rstrip("."), "side": side}
                row["now"] = read(Path(name), side, ROOT / "src")
                if before is not None and side == SIDES[0]:  # the larger size would take 150 GB
                    row["before"] = read(Path(name), side, before)
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = []
    for row in results["rows"]:
        now, before = row["now"], row.get("before")
        cells = [row["folder"], f"{row['side']} px", f"{now['images']:,}", f"{now['megabytes']:,.0f}"]
        for version in (now, before):
            cells += [f"{version['peak']:,.0f}", f"{version['seconds']:.0f}"] if version else ["-", "-"]
        rows.append(cells)
    head = ["folder", "read at", "images", "MB of images", "peak, MB", "s", "peak before, MB", "s before"]
    return f"{measured_on(results)}.\n\n{markdown(head, rows)}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--at", metavar="DIR", help="where to make the folders (default: the temporary folder)")
    parser.add_argument("--before", type=Path, metavar="SRC", help="another version to compare with")
    options = parser.parse_args()
    if options.tables:
        fill("benchmarks/README.md", "large-folder", tables(read_results(PATH)))
        return
    rows = measure(options.at, options.before)
    if options.before is None and PATH.exists():  # figures of the version before stay
        for row, old in zip(rows, read_results(PATH)["rows"], strict=True):
            row |= {"before": old["before"]} if "before" in old else {}
    write_results(PATH, {"about": about("no network"), "rows": rows})


if __name__ == "__main__":
    main()
