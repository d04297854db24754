"""The benches: figures on numbers that are known, Neural Cleanse on a planted square, and a process that goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import TARGET, planted, samples

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
backdoors = pytest.importorskip("backdoors")
cleanse = pytest.importorskip("neural_cleanse")
growing = pytest.importorskip("long_run")


def test_neural_cleanse_finds_the_planted_square_smallest() -> None:
    found = cleanse.neural_cleanse(planted(TARGET), samples(), steps=150)
    assert int(found.anomaly.argmax()) == TARGET
    assert found.norms[TARGET] < 20
    clean = cleanse.neural_cleanse(planted(None), samples(), steps=150)
    assert clean.anomaly.max() < found.anomaly.max()


def test_auroc_counts_pairs_and_its_interval_holds_it() -> None:
    area, low, high = backdoors.intervals([1.0, 2.0, 3.0], [2.5, 4.0, 5.0])
    assert area == pytest.approx(8 / 9)  # of nine pairs, 3 > 2.5 is the wrong way round
    assert low < area <= high
    assert backdoors.intervals([0.0] * 5, [1.0] * 5) == (1.0, 1.0, 1.0)


def test_the_table_counts_what_is_told() -> None:
    def entry(kind: str, score: float, label: int, outcome: str, target: int | None) -> dict[str, Any]:
        z = [[0.0] * 9 + [float(score)]]
        told = {"score": score, "label": label, "outcome": outcome, "seconds": 2.0, "z": z, "reach": [[0.8] * 10]}
        return {"kind": kind, "target": target, "detectors": {"agnosco": told}}

    networks = [entry("clean", score, 0, "no outlier found", None) for score in range(19)]
    networks.append(entry("clean", 30.0, 0, "outlier class found", None))
    networks += [entry("patch", score, 3, "outlier class found", 3) for score in (18.5, 40.0, 40.0)]
    networks.append(entry("patch", 1.0, 4, "inconclusive", 3))
    about = {"bank": "a bank", "hardware": "a CPU", "versions": {"torch": "2"}, "date": "today"}
    told = backdoors.table({"about": about, "networks": networks})
    (row,) = [line for line in told.splitlines() if line.startswith("| patch")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    pairs = 19 + 20 + 20 + 1.5  # of 80; the score of 1.0 ties with one clean network
    assert cells[2].startswith(f"{pairs / 80:.3f} (")
    # One clean network of twenty may lie above the bound; with twenty, p = 1/21 takes a z above all of theirs.
    assert cells[3:] == ["0.75", "0.75", "0.75", "0.50", "2.0", "4"]
    assert "false alarms: agnosco 1 by the cut-off, 1 by a bank of the others" in told


def test_a_bank_of_other_attacks_draws_other_triggers_and_targets() -> None:
    drawn = [backdoors.attack_of("patch", seed) for seed in range(20)]
    assert len({attack.target for attack in drawn}) > 3
    assert len({attack.trigger for attack in drawn}) > 10
    assert backdoors.attack_of("patch", 3) == backdoors.attack_of("patch", 3)
    assert backdoors.attack_of("clean", 3) is None


def test_maps_leave_no_hooks_files_threads_or_tensors_behind(tmp_path: Path) -> None:
    classifier = growing.network(size=8)
    states = list(growing.long_run(tmp_path, classifier, growing.config(steps=2), 30))
    assert [one["maps"] for one in states] == [0, 10, 20, 30]
    assert len(list((tmp_path / "maps").glob("*.safetensors"))) == 30
    assert [one["hooks"] for one in states] == [0] * 4
    for what in ("files", "threads", "tensors"):
        assert len({one[what] for one in states[1:]}) == 1, what
    hook = classifier.model[0].register_forward_hook(lambda *_: None)  # what is counted
    assert growing.hooks(classifier.model) == 1
    hook.remove()


@pytest.mark.slow
def test_memory_is_flat_over_many_maps(tmp_path: Path) -> None:
    states = list(growing.long_run(tmp_path, growing.network(size=16), growing.config(steps=4), 150))
    assert set(growing.flat(states).values()) == {True}


def test_flat_is_within_five_per_cent_of_what_it_was_after_the_warm_up() -> None:
    def state(maps: int, megabytes: float, files: int = 7) -> dict[str, float]:
        return {"maps": maps, "megabytes": megabytes, "tensors": 4, "hooks": 0, "files": files, "threads": 1}

    assert all(growing.flat([state(0, 10), state(50, 100), state(300, 104.9)]).values())
    assert not growing.flat([state(0, 105.2), state(50, 100), state(300, 105.1)])["megabytes"]
    assert not growing.flat([state(0, 10), state(50, 100), state(300, 100, files=8)])["files"]
