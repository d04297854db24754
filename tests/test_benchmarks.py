"""The benchmarks: figures on known numbers, stored results, detectors on a planted square, and a long process."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SOURCES, TARGET, planted, samples
from torch import Tensor, nn

from agnosco import Classifier, Samples
from agnosco.backdoor.config import TRIGGERS
from agnosco.backdoor.triggers import Patch, trigger_of, trigger_to_json
from agnosco.data.datasets import Labelled
from agnosco.errors import AgnoscoError
from agnosco.method.concept import ConceptMap
from agnosco.runs.manifest import read_manifest

ablation = importlib.import_module("ablation")
backdoors = importlib.import_module("backdoors")
blind_naming = importlib.import_module("blind_naming")
cleanse = importlib.import_module("neural_cleanse")
differences = importlib.import_module("differences")
common = importlib.import_module("common")
frontier = importlib.import_module("frontier")
gallery = importlib.import_module("gallery")
long_run = importlib.import_module("long_run")
pixel_backdoor = importlib.import_module("pixel_backdoor")
planted_cues = importlib.import_module("planted_cues")
published = importlib.import_module("published")
speed = importlib.import_module("speed")
table1 = importlib.import_module("table1")
where = importlib.import_module("where")


ROOT = Path(__file__).resolve().parents[1]
TABLES = [
    path.stem for path in sorted((ROOT / "benchmarks").glob("*.py")) if "    fill(" in path.read_text(encoding="utf-8")
]
"""Scripts that write tables into the pages."""
assert len(TABLES) > 30


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the scripts import
@pytest.mark.parametrize("script", TABLES)
def test_the_tables_of_the_pages_are_those_that_the_scripts_write(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, written = importlib.import_module(script), dict[tuple[str, str], str]()
    monkeypatch.setattr(module, "fill", lambda page, name, text: written.update({(page, name): text}))
    monkeypatch.setattr("sys.argv", [script, "--tables"])
    module.main()
    assert written
    for (page, name), text in written.items():
        rest = (ROOT / page).read_text(encoding="utf-8").split(f"<!-- {name} -->\n", 1)[1]
        assert rest.split(f"\n<!-- /{name} -->", 1)[0] == text


def test_no_target_that_was_measured_has_a_smaller_margin_than_most() -> None:
    larger: list[int] = []
    for path in (ROOT / "benchmarks" / "results").glob("backdoors-*-test.json"):
        for network in json.loads(path.read_text(encoding="utf-8"))["networks"]:
            if network["target"] is not None:
                margins = network["detectors"]["MM-BD"]["margins"]
                larger.append(sum(margin > margins[network["target"]] for margin in margins))
    assert (len(larger), max(larger)) == (82, 3)  # as docs/backdoors.md says


def test_neural_cleanse_finds_the_planted_square_smallest() -> None:
    masks = cleanse.neural_cleanse(planted(TARGET), samples(), steps=150)
    assert int(masks.anomaly.argmax()) == TARGET
    assert masks.norms[TARGET] < 20
    clean = cleanse.neural_cleanse(planted(None), samples(), steps=150)
    assert clean.anomaly.max() < masks.anomaly.max()


def test_the_cost_of_size_rises_while_a_class_is_reached_and_falls_while_it_is_not() -> None:
    costs = cleanse.Costs(torch.tensor([0.0, 1.0, 1.0]), rise=4.0, patience=2, least=0.5)
    for reached in ([True, True, False], [True, False, False], [True, True, False], [True, True, True]):
        costs.decide(torch.tensor(reached))
    # Twice in a row: reached 2 times from nothing, then once more by 4; once; not reached, by 4 ** 1.5.
    assert costs.now.tolist() == [2.0, 4.0, 1 / 8]
    assert (costs.rose.tolist(), costs.fell.tolist()) == ([True, True, False], [False, False, True])


def test_batches_between_decisions_are_averaged() -> None:
    one = cleanse.neural_cleanse(planted(TARGET), samples(), steps=40)
    several = cleanse.neural_cleanse(planted(TARGET), samples(), steps=40, batches=3)
    assert several.norms[TARGET] < one.norms[TARGET]  # three times as many steps of the optimizer
    assert int(several.anomaly.argmax()) == TARGET


def test_pixel_backdoor_finds_the_planted_square_of_fewest_pixels() -> None:
    found, images = pixel_backdoor.pixel_backdoor(planted(TARGET), samples(), steps=300), samples()
    assert int(found.anomaly.argmax()) == TARGET
    assert found.sizes[TARGET] <= 9  # the square has so many
    pattern = found.patterns[TARGET]
    assert int((pattern != 0).any(0).sum()) == found.sizes[TARGET]
    assert (pattern != 0)[..., -3:, -3:].sum() == (pattern != 0).sum()  # nothing outside of it
    shown = (images.images.float() / 255 + pattern).clamp(0, 1)
    assert (planted(TARGET)(shown).argmax(1) == TARGET).float().mean() > 0.85
    clean = pixel_backdoor.pixel_backdoor(planted(None), samples(), steps=300)
    assert clean.anomaly.max() < found.anomaly.max() / 2


def test_pixels_are_counted_where_the_parts_differ() -> None:
    parts = torch.zeros(2, 1, 3, 2, 2)
    parts[0, 0, 1, 0, 0] = 0.5
    parts[:, 0, :, 1, 1] = 0.25  # added and taken: nothing changes
    parts[1, 0, 2, 0, 1] = 0.1
    assert pixel_backdoor.changed_pixels(parts).tolist() == [2.0]


def _published_row(network: str, detector: str, score: float, order: list[int], **more: Any) -> dict[str, Any]:
    return {"network": network, "detector": detector, "score": score, "order": order, "seconds": 10.0, **more}


def _published_results() -> dict[str, Any]:
    def network(kind: str, classes: int = 10, target: int | None = None) -> dict[str, Any]:
        success = None if target is None else 0.98
        return {"kind": kind, "classes": classes, "target": target, "accuracy": 0.75, "attack_success_rate": success}

    networks = {
        "square": network("backdoored", target=2), "signs": network("backdoored", 43, target=1),
        "resnet": network("control"), "bank 1": network("bank"), "bank 2": network("bank"),
    }  # fmt: skip
    found, none, unclear = "outlier class found", "no outlier found", "inconclusive"
    rows = [
        _published_row("square", "agnosco", 8.0, [2, 0, 1], outcome=found),
        _published_row("signs", "agnosco", 2.0, [0, 2, 1], outcome=unclear) | {"seconds": 90.0},
        _published_row("resnet", "agnosco", 3.0, [0, 1, 2], outcome=none),
        _published_row("bank 1", "agnosco", 1.0, [0, 1, 2], outcome=none) | {"seconds": 31.0},
        _published_row("bank 2", "agnosco", 5.0, [0, 1, 2], outcome=found) | {"seconds": 20.0},
        _published_row("square", "final layer", 1.5, [0, 2, 1]),
    ]
    about = {"hardware": "a CPU", "versions": {"torch": "2"}, "date": "today"}
    return {
        "about": about,
        "networks": networks,
        "rows": {f"{row['network']}: {row['detector']}": row for row in rows},
    }


def _cells(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_published_networks_says_what_each_detector_says() -> None:
    table = published.table(_published_results())
    assert _cells(table, "square")[1:] == [
        "2", "0.98", "0.75", "found, rank 1, 8.0, 10 s", "rank 2, 1.5, 10 s",
    ]  # fmt: skip
    assert _cells(table, "signs")[4:] == ["inconclusive, rank 3, 2.0, 90 s", ""]
    assert _cells(table, "resnet")[1:] == ["clean", "", "0.75", "no, 3.0, 10 s", ""]
    assert "| bank 1" not in table
    assert "Networks in the bank: 2, of accuracy 0.75–0.75" in table


def test_published_networks_need_no_bank() -> None:
    results = _published_results()
    for name in ("bank 1", "bank 2"):
        del results["networks"][name]
    table = published.table(results)
    assert "in the bank" not in table
    assert _cells(table, "agnosco")[1:2] == ["2 + 1"]
    assert _cells(table, "agnosco")[5:7] == ["0 of 1", ""]


def test_the_summary_of_published_networks_counts_pairs_and_false_alarms() -> None:
    table = published.table(_published_results())
    summary = _cells(table, "agnosco")
    # Of six pairs, 8 exceeds 3, 1 and 5, and 2 exceeds 1.
    assert summary[1] == "2 + 3"
    assert summary[2].startswith(f"{4 / 6:.3f} (")
    # Median of 10, 10, 31 and 20 seconds.
    assert summary[3:] == ["1 of 2", "1 of 2", "0 of 1", "1 of 2", "15", "90"]
    assert "\n| final layer |" not in table  # it has no line, because no clean network was measured


def test_the_smallest_trigger_is_the_most_suspicious() -> None:
    masks = cleanse.Masks(torch.tensor([30.0, 33.0, 3.0, 31.0, 28.0]), torch.ones(5, dtype=torch.bool))
    row = published.by_anomaly(masks)
    assert row["order"] == [2, 4, 0, 3, 1]
    assert row["score"] == pytest.approx((30 - 3) / (1.4826 * 2))  # deviations 0, 3, 27, 1, 2
    assert row["outcome"] == "outlier class found"
    assert published.rank(row["order"], 0) == 3


def test_the_attack_success_rate_leaves_out_images_of_the_target() -> None:
    images = torch.full((40, *samples().shape), 0.46)
    images[:10, ..., -3:, -3:] = 1  # of the target, and seen as it
    labels = torch.tensor([TARGET] * 10 + [0] * 30)
    data = Labelled(Samples.from_array(images, source="grey"), labels, tuple("0123456789"))

    def square(part: Tensor) -> Tensor:
        return part.index_fill(2, torch.tensor([13, 14, 15]), 1.0)  # three white rows hold the square

    classifier = planted(TARGET)
    assert published.attack_success_rate(classifier, data, lambda part: part, TARGET) == 0.0
    assert published.attack_success_rate(classifier, data, square, TARGET) == 1.0


@pytest.mark.parametrize("invert", [cleanse.neural_cleanse, pixel_backdoor.pixel_backdoor])
def test_an_inversion_takes_as_many_steps_as_fit_into_its_time(invert, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def counted(*args: Any, steps: int, batch: int) -> Any:
        taken.append(steps)
        return invert(*args, steps=1, batch=batch)

    times = iter([100.0, 106.0])  # two steps take six seconds
    monkeypatch.setattr(published, "clock", lambda: next(times))
    row = published.inverted(counted, planted(TARGET), samples(), 30.0)
    assert taken == [1, 2, 10]
    assert row["steps"] == 10
    assert len(row["sizes"]) == 10


def test_every_published_network_is_measured_as_its_row_says() -> None:
    stored = common.read_results(published.FILE)["networks"]
    for name, network in published.PUBLISHED.items():
        assert (stored[name]["kind"], stored[name]["target"]) == (network.kind, network.target), name
        if network.kind == "backdoored":
            assert stored[name]["attack_success_rate"] >= 0.95, name


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


def test_the_table_of_differences_counts_targets_and_classes_beyond_chance() -> None:
    def row(kind: str, target: int | None, change: dict[int, float], beyond: int) -> dict[str, Any]:
        p_values = [0.001] * beyond + [0.9] * (len(change) - beyond)
        return {
            "kind": kind,
            "target": target,
            "order": list(change),
            "change": [*change.values()],
            "p_value": p_values,
        }

    patch, again = "digits, patch", "the same network, other seeds"
    rows = [
        row(patch, 3, {3: 9.0, 1: 4.0, 0: 0.5}, 2),
        row(patch, 1, {0: 6.0, 1: 5.0, 3: -1.0}, 3),
        row("digits, logo", 0, {0: 8.0, 1: 1.0, 3: 0.0}, 1),
        row(again, None, {2: 0.0, 1: 0.0, 0: 0.0}, 0),
    ]
    about = {"hardware": "a CPU", "versions": {"torch": "2"}, "date": "today"}
    table = differences.table({"about": about, "rows": {str(place): row for place, row in enumerate(rows)}})
    # Of the first two, the target's change is 9 and 5, and the greatest of the others 4 and 6.
    assert _cells(table, patch)[1:] == ["2", "1 of 2", "7.0 (5.0)", "5.0 (6.0)", "2 to 3 of 3"]
    assert _cells(table, "all digits")[1:] == ["3", "2 of 3", "8.0 (5.0)", "4.0 (6.0)", "1 to 3 of 3"]
    assert _cells(table, again)[1:] == ["1", "–", "–", "0.0 (0.0)", "0 of 3"]


def test_a_copy_in_bfloat16_has_rounded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    monkeypatch.setattr(differences, "cifar_networks", lambda: {"net": Classifier(model, size=8)})
    weight = next(model[1].parameters()).detach().clone()
    copied = next(differences.network_named("net" + differences.COPY).model[1].parameters())
    assert not torch.equal(copied, weight)
    assert torch.equal(copied, weight.bfloat16().float())


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
    """In a process of its own: what other tests leave may go meanwhile."""
    code = (
        "import json, sys, long_run as run\nfrom pathlib import Path\n"
        "states = run.long_run(Path(sys.argv[1]), run.network(size=8), run.config(steps=2), 30)\n"
        "print(json.dumps(list(states)))"
    )
    place = os.pathsep.join([SOURCES, str(ROOT / "benchmarks")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | {"PYTHONPATH": place},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    states = json.loads(done.stdout)
    classifier = long_run.network(size=8)
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
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.10's own, as it compiles
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


def test_a_mask_keeps_exactly_its_share_of_the_area() -> None:
    values = torch.tensor([[[0.1, 0.9, 0.9], [0.2, 0.9, 0.0], [0.9, 0.9, 0.9]]])
    assert where.kept(values, 1 / 3).tolist() == [[[0, 1, 1], [0, 1, 0], [0, 0, 0]]]  # the first of equal ones
    assert where.kept(torch.rand(1, 224, 224)).sum() == round(0.3 * 224 * 224)


def test_what_is_left_of_p_is_a_share_of_that_of_the_whole_pictures() -> None:
    row = {
        "way": "random pixels", "passes": "-", "labels": [3, 3, 5, 5], "own": [0.2, 0.4, 0.0, 0.2],
        "other": [0.1, 0.1, 0.1, 0.1], "whole": {"own": [0.9, 0.7], "other": [0.5, 0.3]},
    }  # fmt: skip
    assert where.cells(row) == ["random pixels", "2 x 2", "-", "0.25", "0.25"]  # 0.2 / 0.8, and 0.1 / 0.4


def test_the_figure_of_peers_shows_quick_and_horama() -> None:
    shown = [row for row in frontier.compared(frontier.PASSES) if row.group != "peers"]
    assert [row.peer and row.peer.kind for row in shown] == [None, "fourier", "maco"]


@pytest.mark.parametrize("path", sorted(common.RESULTS.glob("frontier-*.json")), ids=lambda path: path.stem)
def test_stored_rows_of_the_frontier_have_the_settings_of_the_script(path: Path) -> None:
    rows = {row.key: row for row in frontier.rows()}
    for key, stored in common.read_results(path)["rows"].items():
        config = rows[key].config
        assert stored["config"] is None if config is None else common.same_settings(stored["config"], config), key


# -- planted cues --------------------------------------------------------------------------------------


def _planted_row(facets: list[float], twin: list[float], unmarked: list[float], maps: list[float]) -> dict[str, Any]:
    def both(values: list[float]) -> dict[str, list[float]]:
        return {"whole": values, "where": [2 * value for value in values]}

    def seen(values: list[float]) -> dict[str, Any]:
        return {"facets": both(values), "class map": both(maps[:1]), "class map, no crops": both(maps[1:])}

    return {
        "cue": {"kind": "border", "place": "left"}, "area": 1 / 16, "accuracy": 0.7, "p_of_others": [0.01, 0.9],
        "network": seen(facets), "twin": seen(twin), "network, samples without the cue": {"facets": both(unmarked)},
    }  # fmt: skip


def test_the_table_of_planted_cues_counts_networks_and_twins() -> None:
    rows = {
        "1": _planted_row([9.0, 1.0, 1.0], [1.0, 1.0, 1.0], [4.9, 1.0, 1.0], [1.0, 6.0]),
        "2": _planted_row([4.9, 2.0, 5.0], [1.0, 5.5, 1.0], [1.0, 1.0, 1.0], [2.0, 3.0]),
    }
    table = planted_cues.table({"about": common.about("cues"), "rows": rows})
    assert "| border, left | 0.062 | 0.70 | 0.01 → 0.90 | **9.0** / **18.0** | 1.0 / 2.0 | 4.9 / **9.8** |" in table
    found = next(line for line in table.splitlines() if line.startswith("| found |"))
    facets = ["2 / 2 of 2 (median 7.0 / 14.0)", "1 / 1 of 2 (median 3.2 / 6.5)", "0 / 1 of 2 (median 3.0 / 5.9)"]
    class_maps = ["0 / 0 of 2 (median 1.5 / 3.0)"] * 2 + ["1 / 2 of 2 (median 4.5 / 9.0)"] * 2
    assert found.split(" | ")[4:] == [*facets, *class_maps[:-1], f"{class_maps[-1]} |"]


@pytest.mark.parametrize("seed", [30_004, 30_005])
def test_a_planted_cue_changes_the_pixels_of_its_mask_and_no_others(seed: int) -> None:
    cue, images = planted_cues.Cue.of(seed), torch.rand(5, 3, 32, 32)
    changed = (cue.apply(images) != images).any(1)
    assert not changed[:, ~cue.mask()].any()
    assert changed[:, cue.mask()].double().mean() > 0.9
    assert 1 / cue.mask().double().mean() > 2 * planted_cues.FOUND  # a map could show it


def test_energy_is_measured_against_the_area_of_the_cue() -> None:
    cue = planted_cues.Cue.of(30_005)
    mask = cue.mask().float().expand(3, -1, -1)
    contribution = torch.linspace(1, 0, 32).view(1, 32, 1).expand(1, 32, 32)  # from the cue at the top downwards
    maps = [
        ConceptMap(nu, label, "a", seed, 0.5, {"map": nu}, (), contribution=contribution)
        for label, seeds in enumerate(([torch.ones(3, 32, 32)], [mask], [mask, 1 - mask, 1 - mask]))
        for seed, nu in enumerate(seeds)
    ]
    times = planted_cues.times_the_area(maps, cue)
    assert times["whole"] == [1.0, 16.0, 0.0]  # of the last, the median of its seeds
    assert times["where"][0] > 2  # of what is everywhere, a transparent picture shows the places that contribute
    assert times["where"][1:] == [16.0, 0.0]
