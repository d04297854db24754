"""`make torture`, short: a command killed a few times ends with every map, and the very same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_five_kills_lose_nothing() -> None:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "torture.py"), "--kills", "5", "--seed", "7"],
        capture_output=True, text=True, check=False, timeout=500,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout[result.stdout.index("{") :])
    assert (told["kills"], told["missing"], told["differing"], told["left_over"]) == (5, 0, 0, 0)
    assert told["starts"] == 5 + told["runs"]
    assert told["maps"] == 60 * told["runs"] > 0
