"""What every test shares: one thread, hypothesis without a clock, and the real models where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# pytest-xdist already keeps every core busy, and with one thread sums are taken in one order.
torch.set_num_threads(1)

# The same examples on every run and machine, or with AGNOSCO_FUZZ=long (`make fuzz`) many new ones; a busy machine is no
# failure. Tests whose examples are slow ask for fewer with `@few`, of both.
BUDGETS = {"agnosco": 100, "long": 20_000}
BUDGET = os.environ.get("AGNOSCO_FUZZ", "agnosco")
settings.register_profile("agnosco", deadline=None, derandomize=True, max_examples=BUDGETS["agnosco"])
settings.register_profile("long", deadline=None, max_examples=BUDGETS["long"], print_blob=True)
settings.load_profile(BUDGET)


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of real models and images (``models``, ``imagenet-samples``, ...); skips the test where there is none."""
    folder = Path(os.environ.get("AGNOSCO_ASSETS") or ROOT / "build" / "assets")
    if not (folder / "models").is_dir():
        pytest.skip(f"no real models in {folder}: set AGNOSCO_ASSETS, or run `make assets`")
    return folder
