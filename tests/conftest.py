"""What every test shares: one thread, hypothesis without a clock, and the real models where they are at hand."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# pytest-xdist already keeps every core busy, and with one thread sums are taken in one order.
torch.set_num_threads(1)

# The same hundred examples on every run and machine, or with AGNOSCO_FUZZ=long (`make fuzz`) many new ones; a busy
# machine is no failure. A test of slow examples takes a share: @settings(max_examples=settings().max_examples // 10).
BUSY = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("agnosco", **BUSY, derandomize=True, max_examples=100)
settings.register_profile("long", **BUSY, max_examples=20_000, print_blob=True)
settings.load_profile(os.environ.get("AGNOSCO_FUZZ", "agnosco"))
if "AGNOSCO_FUZZ" not in os.environ:  # else examples hold constants of the modules that earlier tests have imported
    with suppress(ImportError, AttributeError):  # of versions that draw none
        from hypothesis.internal.conjecture import providers

        _none = copy.deepcopy(providers._local_constants)  # as nothing has been drawn yet
        providers._get_local_constants = lambda: _none


@pytest.fixture(autouse=True)
def chance() -> None:
    """Weights and images that a test draws without a seed are the same whichever tests came before it."""
    torch.manual_seed(4)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images are kept with the tests' other files: those in the home may be of other code, or broken code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGNOSCO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def memory() -> None:
    """The store behind ``memory://``, which all tests of a process share, is empty."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of real models and images (``models``, ``imagenet-samples``, ...); skips the test where there is none."""
    folder = Path(os.environ.get("AGNOSCO_ASSETS") or ROOT / "build" / "assets")
    if not (folder / "models").is_dir():
        pytest.skip(f"no real models in {folder}: set AGNOSCO_ASSETS, or run `make assets`")
    return folder
