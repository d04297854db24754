"""The benchmarks: figures on known numbers, stored results, Neural Cleanse on a planted square, and a long process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TARGET, planted, samples
from torch import Tensor, nn

from agnosco import Classifier, Samples
from agnosco.backdoor.config import TRIGGERS
from agnosco.backdoor.triggers import Patch, trigger_of, trigger_to_json
from agnosco.errors import AgnoscoError
from agnosco.runs.manifest import read_manifest

ablation = pytest.importorskip("ablation")
backdoors = pytest.importorskip("backdoors")
blind_naming = pytest.importorskip("blind_naming")
cleanse = pytest.importorskip("neural_cleanse")
common = pytest.importorskip("common")
frontier = pytest.importorskip("frontier")
gallery = pytest.importorskip("gallery")
long_run = pytest.importorskip("long_run")
speed = pytest.importorskip("speed")
table1 = pytest.importorskip("table1")


def test_neural_cleanse_finds_the_planted_square_smallest() -> None:
    masks = cleanse.neural_cleanse(planted(TARGET), samples(), steps=150)
    assert int(masks.anomaly.argmax()) == TARGET
    assert masks.norms[TARGET] < 20
    clean = cleanse.neural_cleanse(planted(None), samples(), steps=150)
    assert clean.anomaly.max() < masks.anomaly.max()


def test_table_1_has_a_row_of_the_seeds_that_the_source_itself_prefers() -> None:
    labels, rates = [7, 3, 7, 3], [0.2, 0.9, 0.8, 0.5]
    said = {"m_score": 0.6, "answers": {"top1": [0.0, 1.0, 1.0, 0.0], "p": [0.1, 0.7, 0.9, 0.3]}}
    chosen = table1.own_best({"labels": labels, "targeted_success_rates": rates, "targets": {"judge": said}})
    assert dict(zip(chosen["labels"], chosen["targeted_success_rates"], strict=True)) == {7: 0.8, 3: 0.9}
    assert sorted(chosen["targets"]["judge"]["answers"]["p"]) == [0.7, 0.9]
    assert table1.cells("source", chosen)[1].startswith("- / 1.00")


def test_auroc_counts_pairs_and_lies_in_its_interval() -> None:
    area, low, high = backdoors.intervals([1.0, 2.0, 3.0], [2.5, 4.0, 5.0])
    assert area == pytest.approx(8 / 9)  # of nine pairs, 3 > 2.5 is the wrong way round
    assert low < area <= high
    assert backdoors.intervals([0.0] * 5, [1.0] * 5) == (1.0, 1.0, 1.0)


def test_the_table_of_detectors_counts_networks() -> None:
    def entry(kind: str, score: float, label: int, target: int | None) -> dict[str, Any]:
        reach = [0.1] * 10  # all others are alike, so that z grows with the reach of the one
        reach[label] = 0.1 + 0.02 * score
        result = {"score": -1.0, "label": -1, "outcome": "of another version", "seconds": 2.0, "reach": [reach]}
        return {"kind": kind, "target": target, "detectors": {"agnosco": result}}

    networks = [entry("clean", score, 0, None) for score in range(19)]
    networks.append(entry("clean", 30.0, 0, None))  # a reach of 0.7
    networks += [entry("patch", score, 3, 3) for score in (18.5, 40.0, 40.0)]  # 0.47 is too little for a finding
    networks.append(entry("patch", 1.0, 4, 3))
    about = {"title": "a pool", "hardware": "a CPU", "versions": {"torch": "2"}, "date": "today"}
    table = backdoors.table({"about": about, "networks": networks})
    (row,) = [line for line in table.splitlines() if line.startswith("| patch")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    pairs = 19 + 20 + 20 + 1.5  # of 80; the score of 1.0 ties with one clean network
    assert cells[2].startswith(f"{pairs / 80:.3f} (")
    # One clean network of twenty may lie above the bound; with twenty, p = 1/21 takes a z above all of theirs.
    assert cells[3:] == ["0.75", "0.75", "0.50", "0.50", "2.0", "4"]
    assert "false alarms: agnosco 1 by the p-value, 1 with a bank of the others" in table


def test_attacks_of_other_seeds_have_other_triggers_and_targets() -> None:
    attacks = [backdoors.attack_of("patch", seed) for seed in range(20)]
    assert len({attack.target for attack in attacks}) > 3
    assert len({attack.trigger for attack in attacks}) > 10
    assert backdoors.attack_of("patch", 3) == backdoors.attack_of("patch", 3)
    assert backdoors.attack_of("clean", 3) is None


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_trigger_comes_back_from_json(name: str) -> None:
    trigger = trigger_of(name, opacity=0.3)
    assert backdoors.trigger_from_json(trigger_to_json(trigger)) == trigger


@pytest.mark.parametrize("wrong", [{"type": "WaNet"}, {"type": "Patch", "colour": 3}, {}])
def test_an_unknown_trigger_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(AgnoscoError, match="does not know the trigger"):
        backdoors.trigger_from_json(wrong)


def test_percentile_is_the_share_that_is_exceeded() -> None:
    assert backdoors.percentile(3.0, [1, 2, 3, 4]) == 0.5
    with pytest.raises(AgnoscoError, match="no values to compare"):
        backdoors.percentile(3.0, [])


def test_the_figure_shows_trigger_image_both_and_the_maps_of_both_twins() -> None:
    trigger, images = Patch(4), torch.full((2, 1, 16, 16), 0.25)
    change = trigger.difference(images)

    def tiles(compromised: Tensor) -> list[np.ndarray]:
        sheet = np.asarray(
            backdoors.figure_row(trigger, images, {"L2": compromised}, {"L2": 0 * change}, name="3"), dtype=float
        )
        return [part[: part.shape[1]] for part in np.array_split(sheet, 5, axis=1)]  # without captions

    first, second = tiles(change), tiles(0 * change)
    assert [bool((a != b).any()) for a, b in zip(first, second, strict=True)] == [False, False, False, True, False]
    alone, image, triggered = first[:3]
    assert (triggered != image).any()
    assert (alone != image).any()


def test_maps_leave_no_hooks_files_threads_or_tensors_behind(tmp_path: Path) -> None:
    classifier = long_run.network(size=8)
    states = list(long_run.long_run(tmp_path, classifier, long_run.config(steps=2), 30))
    assert [state["maps"] for state in states] == [0, 10, 20, 30]
    assert len(list((tmp_path / "maps").glob("*.safetensors"))) == 30
    assert [state["hooks"] for state in states] == [0] * 4
    for key in ("files", "threads", "tensors"):
        assert len({state[key] for state in states[1:]}) == 1, key
    hook = classifier.model[0].register_forward_hook(lambda *_: None)  # so hooks are counted
    assert long_run.hooks(classifier.model) == 1
    hook.remove()


@pytest.mark.slow
def test_memory_is_flat_over_many_maps(tmp_path: Path) -> None:
    states = list(long_run.long_run(tmp_path, long_run.network(size=16), long_run.config(steps=4), 150))
    assert set(long_run.flat(states).values()) == {True}


def test_memory_is_flat_within_five_percent_of_that_after_the_warm_up() -> None:
    def state(maps: int, megabytes: float, files: int = 7) -> dict[str, float]:
        return {"maps": maps, "megabytes": megabytes, "tensors": 4, "hooks": 0, "files": files, "threads": 1}

    assert all(long_run.flat([state(0, 10), state(50, 100), state(300, 104.9)]).values())
    assert not long_run.flat([state(0, 105.2), state(50, 100), state(300, 105.1)])["megabytes"]
    assert not long_run.flat([state(0, 10), state(50, 100), state(300, 100, files=8)])["files"]


def test_current_code_reads_every_stored_manifest() -> None:
    paths = sorted(common.MANIFESTS.glob("*.json"))
    assert len(paths) > 10
    for path in paths:
        _settings, _groups, entries = read_manifest(path.read_bytes())
        assert len(entries) == len(json.loads(path.read_bytes())["maps"]), path.name


@pytest.mark.parametrize("setup", ["imagenet", "cifar"])
def test_stored_rows_have_the_settings_of_the_script(setup: str) -> None:
    base = (
        ablation.MapperConfig(batch=8, steps=20) if setup == "imagenet" else ablation.MapperConfig(batch=16, steps=80)
    )
    stored = common.read_results(common.RESULTS / f"ablation-{setup}.json")["rows"]
    rows = {f"{row.group}: {row.name}": row.config for row in ablation.rows(base)}
    assert {name for name, row in stored.items() if "commit" not in row} == set(rows)
    assert all(common.same_settings(stored[name]["config"], config) for name, config in rows.items())


def test_a_row_is_added_beside_those_of_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    common.add_row(path, "first", "a", {"figure": 1})
    common.add_row(path, "second", "b", {"figure": 2})
    common.add_row(path, "second", "a", {"figure": 3}, share=0.5)
    results = common.read_results(path)
    assert results["rows"] == {"a": {"figure": 3}, "b": {"figure": 2}}
    assert (results["about"]["title"], results["share"]) == ("second", 0.5)


def test_text_between_the_markers_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- name -->\nold\n<!-- /name -->\nafter\n")
    monkeypatch.setattr(common, "ROOT", tmp_path)
    common.fill("page.md", "name", common.markdown(["head"], [["cell"]]))
    assert page.read_text() == "before\n<!-- name -->\n| head |\n| --- |\n| cell |\n<!-- /name -->\nafter\n"


@pytest.mark.skipif(not common.ASSETS.exists(), reason="there are no assets")
def test_every_row_of_the_parts_of_the_fast_path_can_be_measured_again() -> None:
    case = next(case for case in speed.cases(full=False) if case.name == "resnet20, 32 px, quick")
    network = speed.classifier(case, torch.device("cpu"))
    stored = common.read_results(speed.RESULTS / "speed-cpu.json")["paths"][case.name]
    assert speed.variants(case, network, toy=False).keys() == stored.keys()


def test_a_network_is_measured_with_its_batch_norms_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network, measured = Classifier(model, size=8), []
    monkeypatch.setattr(speed, "Mapper", lambda classifier, *_, **__: measured.append(classifier) or _NoSteps())
    for fold in (True, False):
        speed.side_by_side(network, Samples.noise(network.shape, count=4), speed.Config(), fold=fold)(1)
    norms = [any(isinstance(part, nn.BatchNorm2d) for part in each.model.modules()) for each in measured]
    assert norms == [False, True]


class _NoSteps:
    def begin(self, start: object) -> None: ...

    def steps(self, state: object) -> list[object]:
        return []


def test_an_answer_is_right_if_it_is_any_name_of_the_class() -> None:
    pytest.importorskip("timm")
    assert blind_naming.is_right("a Chrysanthemum dog", 200)  # "Tibetan terrier, chrysanthemum dog"
    assert blind_naming.is_right("tibetan-terrier", 200)
    assert blind_naming.is_right("Tibetan terrier, chrysanthemum dog", 200)
    assert not blind_naming.is_right("terrier", 200)
    assert not blind_naming.is_right("Tibetan terrier, Lhasa", 200)  # two guesses
    assert not blind_naming.is_right("", 200)


def test_answers_are_lines_of_a_number_and_a_name() -> None:
    text = "# answers\n1: golf ball\n **2.** a harp\n3) \n12 ladles\n4: box turtle\n4: tick\n"
    assert blind_naming.answers_of(text) == {1: "golf ball", 2: "a harp", 4: "box turtle"}


def test_the_papers_settings_take_about_the_time_of_quick() -> None:
    config, quick = gallery.affordable_paper(), common.agnosco.preset("quick")
    assert config.refine
    cost = config.mapper.batch * config.cycles * (2 * config.mapper.steps + config.refine.steps)  # both directions
    assert cost == pytest.approx(quick.passes, rel=0.05)
    assert config.refine.steps / config.mapper.steps == pytest.approx(150 / 650, rel=0.1)


def test_the_figure_of_peers_shows_quick_and_horama() -> None:
    shown = [row for row in frontier.compared(frontier.PASSES) if row.group != "peers"]
    assert [row.peer and row.peer.kind for row in shown] == [None, "fourier", "maco"]


@pytest.mark.parametrize("path", sorted(common.RESULTS.glob("frontier-*.json")), ids=lambda path: path.stem)
def test_stored_rows_of_the_frontier_have_the_settings_of_the_script(path: Path) -> None:
    rows = {row.key: row for row in frontier.rows()}
    for key, stored in common.read_results(path)["rows"].items():
        config = rows[key].config
        assert stored["config"] is None if config is None else common.same_settings(stored["config"], config), key
