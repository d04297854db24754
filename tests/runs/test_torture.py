"""`make torture`, short: a command killed a few times ends with every map, and the very same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import MODEL, NET

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_five_kills_lose_nothing() -> None:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "torture.py"), "--kills", "5", "--seed", "7"],
        capture_output=True, text=True, check=False, timeout=1800,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout[result.stdout.index("{") :])
    assert (told["kills"], told["missing"], told["differing"], told["left_over"]) == (5, 0, 0, 0)
    assert told["starts"] == 5 + told["runs"]
    assert told["maps"] == 60 * told["runs"] > 0


@pytest.mark.slow
def test_two_processes_at_one_folder_make_the_run_that_one_makes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = (
        "from agnosco.method import prepare; from agnosco.cli.app import main; prepare.MOST_IMAGES = 8; main()",
        "map", *MODEL, "--samples", "noise", "--steps", "4", "--batch", "4", "--device", "cpu", "--seeds", "6",
    )  # fmt: skip
    at = [
        subprocess.Popen([sys.executable, "-c", *command, "--out", out], cwd=tmp_path, env=environment)
        for out in ("both", "both", "alone")
    ]
    assert [process.wait(1800) for process in at] == [0, 0, 0]
    both, alone = (
        {path.relative_to(tmp_path / run).as_posix(): path.read_bytes() for path in (tmp_path / run).rglob("*.*")}
        for run in ("both", "alone")
    )
    assert len([name for name in alone if name.endswith(".safetensors")]) == 18
    assert both == alone
