"""The bench of backdoors: its figures on numbers that are known, and Neural Cleanse on a planted square."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from test_scan import TARGET, planted, samples

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
backdoors = pytest.importorskip("backdoors")
cleanse = pytest.importorskip("neural_cleanse")


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
