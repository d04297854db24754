"""The scan on networks whose backdoor is planted by hand, and on a real one."""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import pytest
import safetensors.torch
import torch
from helpers import SHAPE, TARGET, Planted, planted, samples
from torch import Tensor, nn

from agnosco.backdoor import record as scan_record
from agnosco.backdoor import scan as scanning
from agnosco.backdoor import screening
from agnosco.backdoor.closer import full_map
from agnosco.backdoor.config import FULL_SEEDS, FirstLook, Round, ScanConfig, Tournament
from agnosco.backdoor.evidence import (
    concentration,
    cut_out,
    final_layer,
    footprint,
    of_pattern,
)
from agnosco.backdoor.margins import margin_p_value, margins
from agnosco.backdoor.plan import closer_look, images_of_scan, planned
from agnosco.backdoor.record import FOUND, INCONCLUSIVE, NONE, Measured, ScannedSamples, ScanRecord, Verdict, read_bank
from agnosco.backdoor.scan import scan
from agnosco.backdoor.screening import Screening, screen
from agnosco.backdoor.triggers import Patch
from agnosco.backdoor.windows import Within, patches_in_windows, windows
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.method.maker import map_classes
from agnosco.models.classifier import Classifier

WINDOWS = Tournament(0.25, grid=4, rounds=(Round(16, 4, 4), Round(4, 8, 4), Round(2, 20, 8)))
QUICK = ScanConfig(pixels=0.036, windows=WINDOWS, steps=30, batch=4, evaluation=60)
SHARED = Path(__file__).resolve().parents[3] / "shared" / "tools"


def test_a_planted_square_is_found_and_its_pattern_is_the_square() -> None:
    found = scan(planted(TARGET), samples(), QUICK)
    assert (found.verdict.outcome, found.verdict.label) == (FOUND, TARGET)
    candidate = found.candidates[0]
    assert candidate.record.index == TARGET
    assert footprint(candidate.pattern, Patch(3), samples().images.float() / 255).energy > 10
    k90 = found.record.classes[0].k90
    assert k90 is not None
    assert k90 <= 9
    assert candidate.record.reach is not None
    assert candidate.record.reach_shifted is not None
    assert candidate.record.reach_shifted < candidate.record.reach


def test_its_clean_twin_has_no_outlier() -> None:
    assert scan(planted(None), samples(), QUICK).verdict.outcome == NONE


def test_a_scan_is_plain_json_and_a_bank_is_made_of_scans(tmp_path: Path) -> None:
    for number in range(19):
        clean = planted(None)
        with torch.no_grad():
            clean.model.get_parameter("weight").add_(0.001 * (number + 1))
        (tmp_path / f"{number}.json").write_text(json.dumps({"greatest_z": 2.0, **scan_like(clean)}))
    bank = read_bank(tmp_path)
    found = scan(planted(TARGET), samples(), QUICK, bank=bank)
    assert found.verdict.p_value == pytest.approx(0.05)
    assert found.verdict.outcome == FOUND
    again = msgspec.convert(json.loads(json.dumps(found.to_json(), allow_nan=False)), ScanRecord)
    assert again == found.record
    assert again.verdict.label == TARGET
    assert again.greatest_z == pytest.approx(found.verdict.z)
    with pytest.raises(AgnoscoError, match="or the network that is scanned"):
        scan(planted(TARGET), samples(), QUICK, bank=[again])
    with pytest.raises(AgnoscoError, match="the bank holds a network twice"):
        scan(planted(TARGET), samples(), QUICK, bank=[bank[0]] * 19)
    leaves = msgspec.structs.replace(bank[0], samples=ScannedSamples(source="leaves", count=1))
    with pytest.raises(AgnoscoError, match="another samples source"):
        scan(planted(TARGET), samples(), QUICK, bank=[leaves])
    with pytest.raises(AgnoscoError, match="another set of classes"):
        scan(planted(TARGET), samples(), QUICK, bank=[msgspec.structs.replace(bank[0], screened=list(range(5)))])
    with pytest.raises(AgnoscoError, match="another config"):
        scan(planted(TARGET), samples(), ScanConfig(pixels=0.04), bank=bank)
    staged = msgspec.structs.replace(bank[0], config=replace(QUICK, thorough=15))
    with pytest.raises(AgnoscoError, match="did not screen all classes"):
        scan(planted(TARGET), samples(), QUICK, bank=[staged])


def scan_like(classifier: Classifier) -> dict:
    """What a bank compares of a scan."""
    return {
        "model": {"name": "net", "fingerprint": classifier.fingerprint, "shape": list(SHAPE)},
        "samples": {"source": samples().source, "count": len(samples())},
        "config": asdict(QUICK),
        "screened": list(range(10)),
    }


def test_a_bank_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, pattern: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "rglob", refuse)  # some releases of Python raise nothing themselves
    with pytest.raises(AgnoscoError, match=r"cannot read .*: permission denied"):
        read_bank(tmp_path)


def test_a_bank_of_other_things_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgnoscoError, match="holds no scans"):
        read_bank(tmp_path)
    whole = {"greatest_z": 1.0, **scan_like(planted(None))}
    for wrong in ({"greatest_z": "high"}, {**whole, "greatest_z": float("nan")}, {**whole, "model": None}, [whole]):
        (tmp_path / "a.json").write_text(json.dumps(wrong))
        with pytest.raises(AgnoscoError, match="is not a scan"):
            read_bank(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(whole))
    assert read_bank(tmp_path) == [msgspec.convert(whole, Measured)]


def test_few_classes_are_inconclusive() -> None:
    found = scan(planted(3, classes=4), samples(), QUICK)
    assert found.verdict.outcome == INCONCLUSIVE
    assert "4 classes" in found.verdict.reasons[0]


def test_an_untrained_network_is_inconclusive() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    found = scan(Classifier(model, size=16), samples(), QUICK)
    assert found.verdict.outcome == INCONCLUSIVE
    assert "untrained" in found.verdict.reasons[0]


def test_nan_weights_are_an_error() -> None:
    model = Planted(None)
    with torch.no_grad():
        model.weight[3] = torch.nan
    with pytest.raises(AgnoscoError, match="NaN"):
        Classifier(model, size=16, channels=1)


def screening_of(names: tuple[str, ...], hits: Tensor, movable: Tensor) -> Screening:
    """A screening of ten classes by its hits; its patterns are blank."""
    everything = torch.ones(10, dtype=torch.bool)
    blank, scales = torch.zeros(len(names), 10, *SHAPE), (1.0,) * len(names)
    return Screening(names, scales, tuple(range(10)), everything, hits, movable, blank, 10.0)


def test_seeds_that_name_several_classes_are_inconclusive() -> None:
    hits = torch.zeros(1, 10, 3)
    hits[0, 4] = torch.tensor([60.0, 10.0, 10.0])
    hits[0, 2] = torch.tensor([0.0, 50.0, 0.0])
    hits[0, 3] = torch.tensor([0.0, 0.0, 50.0])
    screened = screening_of(("9 pixels",), hits, torch.full((10,), 60))
    assert screened.problems() == ["seeds disagree about the class"]
    hits[0, 4, 1] = 55
    assert screened.problems() == []


def test_seeds_are_compared_for_the_class_of_the_verdict() -> None:
    hits = torch.zeros(2, 10, 2)
    hits[0, :, :] = torch.arange(10.0)[:, None] * 2  # class 4 stands out less here, but in both seeds
    hits[0, 4] = 50.0
    hits[1, 2], hits[1, 3] = torch.tensor([60.0, 0.0]), torch.tensor([0.0, 60.0])
    screened = screening_of(("9 pixels", "L2 1.0"), hits, torch.full((10,), 60))
    assert screened.problems(4) == []
    assert screened.problems(2) == screened.problems() == ["seeds disagree about the class"]
    scanner = scanning._Scanner(planted(None), samples(), QUICK, list(range(10)), screening.Clock(None, 1))
    scanner.margin_of = {label: float(label == 4) - float(label in (2, 3)) for label in range(10)}
    assert (scanner.verdict(screened).label, scanner.verdict(screened).reasons) == (4, ())


def test_windows_are_no_seeds_and_one_seed_disagrees_with_none() -> None:
    hits = torch.zeros(1, 10, 2)
    hits[0, 7], hits[0, 2] = torch.tensor([60.0, 5.0]), torch.tensor([0.0, 31.0])
    assert screening_of(("L2 1.0",), hits, torch.full((10,), 60)).problems() == ["seeds disagree about the class"]
    assert screening_of(("windows",), hits, torch.full((10,), 60)).problems() == []
    assert screening_of(("L2 1.0",), hits[..., :1], torch.full((10,), 60)).problems() == []


def test_an_image_that_has_the_class_already_is_not_moved() -> None:
    screened = screen(planted(None), samples(), QUICK, classes=[0, 5])
    before = planted(None).probabilities(screening.halves(samples(), QUICK)[1].images.float() / 255).argmax(1)
    assert screened.movable.tolist() == [int((before != 0).sum()), int((before != 5).sum())]
    assert (screened.hits <= screened.movable[:, None]).all()


def test_too_few_samples_are_said() -> None:
    with pytest.raises(AgnoscoError, match="too few"):
        screen(planted(None), samples(30), QUICK)


def test_one_name_instead_of_several_classes_is_refused() -> None:
    for function in (scan, screen):
        with pytest.raises(AgnoscoError, match="'01' is one class, not several"):
            function(planted(None), samples(), classes="01")


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 8)])
def test_samples_of_another_shape_are_refused_before_the_first_look(shape: tuple[int, int, int]) -> None:
    never = lambda *_: pytest.fail("an image was looked at")  # noqa: E731
    others = Samples.noise(shape, count=60)
    with pytest.raises(AgnoscoError, match="the samples have shape"):
        scan(planted(None), others, QUICK, on_progress=never)
    with pytest.raises(AgnoscoError, match="the samples have shape"):
        screen(planted(None), others, QUICK)


# -- windows -------------------------------------------------------------------------------------------


def test_windows_cover_the_image_and_are_alike() -> None:
    masks = windows((3, 32, 40), Tournament(0.19, grid=8))
    assert masks.shape == (64, 1, 32, 40)
    assert (masks.flatten(1).sum(1) == 36).all()
    assert masks.amax(0).min() == 1
    assert len({tuple(one.flatten().tolist()) for one in masks}) == 64


def test_a_map_within_a_window_is_bounded_and_stays_there() -> None:
    masks = windows((2, 8, 8), Tournament(0.5, grid=2))
    project = Within(masks, 2)
    projected, _ = project(torch.full((4, 2, 8, 8), -3.0), project.begin(), progress=1.0, success=0.0)
    assert torch.equal(projected, -masks.expand(-1, 2, -1, -1))


def test_the_best_window_is_that_of_the_planted_square() -> None:
    best = patches_in_windows(planted(TARGET), [TARGET], samples(), WINDOWS)
    assert best.shape == (1, 2, *SHAPE)
    assert (best[0, 0, :, -3:, -3:] < 0).all()  # white is added
    assert best[0, 0, :, :12].abs().max() == 0
    again = patches_in_windows(planted(TARGET), [TARGET], samples(), WINDOWS)
    assert torch.equal(best, again)


def test_classes_side_by_side_have_the_windows_that_each_has_alone() -> None:
    both = patches_in_windows(planted(TARGET), [2, TARGET], samples(), WINDOWS)
    alone = patches_in_windows(planted(TARGET), [TARGET], samples(), WINDOWS)
    torch.testing.assert_close(both[1], alone[0], atol=1e-4, rtol=0)


def test_every_image_of_the_rounds_is_counted() -> None:
    counted: list[int] = []
    patches_in_windows(planted(None), [1, 2], samples(), WINDOWS, on_images=counted.append)
    assert WINDOWS.images == 16 * 4 * 4 + 4 * 8 * 4 + 2 * 20 * 8
    assert sum(counted) == 2 * WINDOWS.images
    few = Tournament(grid=1, rounds=(Round(64, 2, 2), Round(24, 3, 4)))  # of one window there are not more
    assert few.images == 2 * 2 + 3 * 4


# -- evidence ------------------------------------------------------------------------------------------


def test_concentration_is_the_area_of_half_the_energy() -> None:
    nu = torch.zeros(1, 10, 10)
    nu[0, 0, :8] = 1.0
    assert concentration(nu) == pytest.approx(0.04)  # 4 of 8 equal pixels of 100
    assert concentration(torch.ones(3, 10, 10)) == pytest.approx(0.5)
    assert concentration(torch.zeros(1, 10, 10)) == 1.0


def test_cut_out_keeps_the_strongest_pixels_as_they_are() -> None:
    nu = torch.tensor([[[1.0, -3.0], [2.0, 0.5]], [[0.0, 1.0], [0.0, 0.0]]])
    kept = torch.tensor([[[0.0, -3.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    assert torch.equal(cut_out(nu, 2), kept)
    assert torch.equal(cut_out(nu, 99), nu)


def test_a_moved_square_loses_its_reach() -> None:
    nu = torch.zeros(SHAPE)
    nu[:, -3:, -3:] = -1
    evidence = of_pattern(planted(TARGET), nu, TARGET, samples())
    assert evidence["reach"] > 0.7
    assert evidence["reach_of_top_2_percent"] > 0.9  # 5 white pixels of 9: 80 · (0.76³ − 0.1) is 27 logits
    assert evidence["reach_shifted"] < 0.3
    assert evidence["reach_on_noise"] > 0.9


def test_margins_are_those_of_a_linear_network() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False))
    model[1].weight.data = weight
    found = margins(Classifier(model, size=(1, 2), channels=1), FirstLook(10, 200))
    # Over [0, 1]²: x0 − max(2 x1, −x0 − x1) is greatest at (1, 0): 1; 2 x1 − max(x0, …) at (0, 1): 2; at (0, 0): 0.
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 0.0]), atol=0.02, rtol=0)


def test_the_class_and_the_screen_of_the_verdict_are_the_ones_that_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged = scanning.judge
    monkeypatch.setattr(scanning, "judge", lambda *a, **o: scanning.replace(judged(*a, **o), label=2))
    found = scan(planted(TARGET), samples(), QUICK)
    assert [found.candidates[0].record.index, found.record.classes[0].index] == [2, 2]
    assert f"Class 2 ({found.candidates[0].record.name})" in scan_record.conclusion(found.record)[0]
    hits = torch.zeros(3, 10, 1)
    hits[0, 4], hits[1, 4], hits[1, 5:] = 30, 60, 50  # the first screen: far from the others, and few images
    screened = screening_of(("a", "b", "c"), hits, torch.full((10,), 100))
    assert screened.z[0, 4] > screened.z[1, 4]
    assert screened.showing(4) == 1
    assert screened.showing(0) == int(screened.z[:, 0].argmax())


def test_a_full_map_is_what_its_seeds_have_in_common() -> None:
    one = full_map(planted(TARGET), TARGET, samples(), QUICK)
    maps = map_classes(planted(TARGET), [TARGET], samples(), QUICK.full, seeds=range(FULL_SEEDS))
    torch.testing.assert_close(one, -torch.stack([concept.nu for concept in maps]).mean(0))


def test_what_stands_out_and_reaches_too_little_is_said() -> None:
    found = scan(planted(None), samples(), QUICK).record
    verdict = Verdict(NONE, 0, 7.8, 0.01, False, ())
    told = scan_record.conclusion(msgspec.structs.replace(found, verdict=verdict))
    assert "its reach is below 50%" in told[1]
    ordinary = scan_record.conclusion(msgspec.structs.replace(found, verdict=replace(verdict, p_value=0.3)))
    assert not any("below" in line for line in ordinary)


def test_names_of_classes_are_one_line_whatever_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    found = torch.ones(60)
    found[TARGET] = 0.5  # another class is the verdict's, and this one is reached more easily
    monkeypatch.setattr("agnosco.backdoor.scan.margins", lambda *_, **__: found)
    record = scan(planted(TARGET, classes=60), samples(), replace(MANY, thorough=None)).record
    classes = [msgspec.structs.replace(row, name=f"{row.index}\n\x1b[2J" + 1000 * "x") for row in record.classes]
    told = scan_record.table(msgspec.structs.replace(record, classes=classes))
    assert "is reached more easily" in told
    assert len(told.splitlines()) == len(scan_record.table(record).splitlines())
    assert all(character.isprintable() for line in told.splitlines() for character in line)
    assert max(map(len, told.splitlines())) < 1000


def test_a_reach_over_few_images_is_no_verdict() -> None:
    movable = torch.full((10,), 100)
    screened = screening_of(("a", "b", "c"), torch.zeros(3, 10, 1), movable)
    assert screened.problems() == []
    movable[8] = 19
    assert "class 8" in screened.problems()[0]


def test_screens_that_reach_every_class_are_scaled_down_until_one_stands_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = screen(planted(TARGET), samples(), QUICK)
    monkeypatch.setattr(screening, "CROWDED", 1.0)
    whole = screen(planted(TARGET), samples(), QUICK)
    (row,) = [place for place, name in enumerate(whole.screens) if name == "windows"]
    assert whole.reach[row].quantile(0.5) > 0.15
    assert found.reach[row].quantile(0.5) <= 0.15
    scale = found.scales[row]
    assert (whole.titles[row], found.titles[row]) == ("windows", f"windows x {scale:.2f}")
    assert whole.patterns[row].abs().max().item() == pytest.approx(1.0, abs=0.01)
    assert found.patterns[row].abs().max().item() == pytest.approx(scale, abs=0.01)
    assert found.z[row].argmax() == TARGET
    assert found.z[row].max() > whole.z[row].max()


def test_the_margin_of_one_class_alone_is_unlikely() -> None:
    others = torch.tensor([9.6, 10.0, 10.25, 10.2, 9.8, 10.1, 9.9, 10.05, 9.95])
    assert margin_p_value(torch.cat([others, torch.tensor([30.0])])) < 1e-6
    assert margin_p_value(torch.cat([others, torch.tensor([10.3])])) > 0.3
    scipy_stats = pytest.importorskip("scipy.stats")
    mean, variance = others.double().mean().item(), others.double().var(unbiased=False).item()
    expected = 1 - scipy_stats.gamma.cdf(10.6, mean**2 / variance, scale=variance / mean) ** 10
    assert margin_p_value(torch.cat([others, torch.tensor([10.6])])) == pytest.approx(expected, rel=1e-3)


def test_the_final_layer_is_read_without_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
    model[1].weight.data = torch.arange(10.0)[:, None].expand(10, 4).clone()
    model[1].weight.data[3] = 100
    z = final_layer(Classifier(model, size=2, channels=1))
    assert z is not None
    assert int(z.argmax()) == 3


def test_progress_counts_every_image_of_all_stages() -> None:
    told: list[tuple[str, int, int]] = []
    scan(planted(TARGET), samples(), QUICK, on_progress=lambda *step: told.append(step))
    done = [done for _, done, _ in told]
    assert done == sorted(done)
    assert {total for _, _, total in told} == {done[-1]}
    of_classes = [number for title, number, _ in told if not title.startswith("class ")]
    assert of_classes[-1] == 10 * (QUICK.first.images + QUICK.images)
    assert done[-1] == of_classes[-1] + closer_look(QUICK, 10)
    titles = list(dict.fromkeys(title for title, _, _ in told))
    assert titles[:4] == ["first look", *QUICK.screens(SHAPE)]
    assert all(title.startswith("class ") for title in titles[4:])


# -- many classes --------------------------------------------------------------------------------------

MANY = replace(QUICK, thorough=18, seeds=1)


def test_of_many_classes_the_leading_ones_are_screened_until_one_is_found() -> None:
    found = scan(planted(TARGET, classes=60), samples(), MANY)
    assert (found.verdict.outcome, found.verdict.label) == (FOUND, TARGET)
    rows = found.record.classes
    assert len(rows) == 60
    assert sorted(row.index for row in rows) == list(range(60))
    screened = found.record.screened_classes
    assert sum(row.at_random for row in screened) == 12
    assert len(screened) == 18  # six with the largest margins: found among the first six
    margins_of_others = [row.margin for row in rows if not row.screens]
    assert margins_of_others == sorted(margins_of_others, reverse=True)
    assert min(row.margin for row in screened if not row.at_random) >= max(margins_of_others)
    assert "Screened: 18 of 60 classes, 6 with the largest margins and 12 at random" in " ".join(
        scan_record.conclusion(found.record)
    )


@pytest.fixture
def sixty_are_many(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Sixty classes are taken for many; their margins, to be changed, are the inverse roots of their ranks."""
    found = 50 / torch.arange(1.0, 61.0).sqrt()
    found[[0, TARGET]] = found[[TARGET, 0]]
    monkeypatch.setattr("agnosco.backdoor.margins.MANY_CLASSES", 60)
    monkeypatch.setattr("agnosco.backdoor.scan.margins", lambda *_, classes, **__: found[classes])
    return found


class Pair(Planted):
    """A white square in the first corner means another class."""

    other = 1

    def forward(self, images: Tensor) -> Tensor:
        square = images[:, 0, :3, :3].mean((1, 2))
        return super().forward(images) + 80 * (square[:, None] ** 3 - 0.2) * torch.eye(len(self.weight))[self.other]


def pair() -> Classifier:
    """Sixty classes, two of which a square reaches, as in clean networks of many classes."""
    return Classifier(Pair(TARGET, 60), size=16, channels=1)


@pytest.mark.parametrize("thorough", [18, None])
def test_of_many_classes_one_is_found_if_it_is_the_only_one_or_its_margin_stands_out_too(
    thorough: int | None, sixty_are_many: torch.Tensor
) -> None:
    config = replace(MANY, thorough=thorough)
    only = scan(planted(TARGET, classes=60), samples(), config).verdict
    assert (only.outcome, only.label) == (FOUND, TARGET)
    assert only.separate is not None
    assert only.separate.margin > 0.5  # 50 is the largest margin, by a little
    result = scan(pair(), samples(), config)
    assert result.verdict.outcome == NONE
    assert all(max(screen.reach for screen in row.screens.values()) > 0.9 for row in result.record.classes[:2])
    assert "by its reach, not the only one" in " ".join(scan_record.conclusion(result.record))
    sixty_are_many[TARGET] = 2000.0
    verdict = scan(pair(), samples(), config).verdict
    assert (verdict.outcome, verdict.label) == (FOUND, TARGET)
    sixty_are_many[[TARGET, 5]] = torch.tensor([30.0, 2000.0])  # another, which is not reached
    result = scan(pair(), samples(), config)
    assert result.verdict.outcome == NONE


def test_whether_one_is_the_only_one_is_known_when_all_are_screened(
    sixty_are_many: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agnosco.backdoor.scan.AT_A_TIME", 2)
    sixty_are_many[[1, 5]] = sixty_are_many[[5, 1]]  # the other one comes in the third pair of classes
    result = scan(pair(), samples(), replace(MANY, thorough=18))
    assert (result.verdict.outcome, len(result.screening.classes)) == (NONE, 18)
    assert result.screening.reach.amax(0)[torch.tensor(result.screening.classes) == 1] > 0.9


def test_a_class_of_small_margin_is_said_to_be_reached_more_easily(monkeypatch: pytest.MonkeyPatch) -> None:
    found = torch.ones(60)
    found[TARGET] = 0.5
    monkeypatch.setattr("agnosco.backdoor.scan.margins", lambda *_, **__: found)
    result = scan(planted(TARGET, classes=60), samples(), replace(MANY, thorough=None))
    assert result.verdict.outcome == NONE
    assert f"Class {TARGET} (" in (told := " ".join(scan_record.conclusion(result.record)))
    assert "is reached more easily" in told


def test_of_fewer_classes_margins_say_where_to_look_first_and_must_not_be_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agnosco.backdoor.scan.margins", lambda *_, **__: torch.ones(60))
    result = scan(planted(TARGET, classes=60), samples(), replace(MANY, thorough=None))
    assert (result.verdict.outcome, result.verdict.label, result.verdict.separate) == (FOUND, TARGET, None)


def test_some_of_many_classes_are_judged_like_those_of_a_network_that_has_no_more(sixty_are_many: torch.Tensor) -> None:
    config = replace(MANY, thorough=None)
    every = scan(pair(), samples(), config)
    assert (every.verdict.outcome, every.verdict.separate is None) == (NONE, False)
    some = scan(pair(), samples(), config, classes=list(range(59)))
    assert (some.verdict.outcome, some.verdict.separate) == (FOUND, None)


@pytest.mark.parametrize("margin", [-1.0, 5.0])
def test_margins_that_tell_no_classes_apart_leave_no_verdict(margin: float, sixty_are_many: torch.Tensor) -> None:
    sixty_are_many[:] = margin
    verdict = scan(planted(TARGET, classes=60), samples(), MANY).verdict
    assert verdict.outcome == INCONCLUSIVE
    assert "the first look" in verdict.reasons[0]


def test_margins_that_are_no_numbers_are_an_error(sixty_are_many: torch.Tensor) -> None:
    sixty_are_many[3] = torch.nan
    with pytest.raises(AgnoscoError, match=r"the margin of .* is not finite"):
        scan(planted(TARGET, classes=60), samples(), MANY)


def test_nothing_more_is_screened_when_it_is_decided(
    sixty_are_many: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(target: int | None) -> int:
        return len(scan(planted(target, classes=60), samples(), replace(MANY, thorough=27)).screening.classes)

    assert count(None) == 27  # any that is left might be reached
    sixty_are_many[TARGET] = 2000
    monkeypatch.setattr("agnosco.backdoor.scan.AT_A_TIME", 2)
    assert count(TARGET) == 12 + 2


def test_a_clean_network_of_many_classes_has_no_outlier() -> None:
    found = scan(planted(None, classes=60), samples(), MANY)
    assert found.verdict.outcome == NONE
    again = scan(planted(None, classes=60), samples(), MANY)
    assert again.record == found.record


def test_what_fits_the_time_is_planned() -> None:
    config = ScanConfig()
    assert planned(config, 10, images=images_of_scan(config, 10)) == config
    assert planned(config, 10, images=images_of_scan(config, 10) - 1) == replace(config, seeds=1)
    assert planned(config, 10, images=images_of_scan(config, 10) - 1, seeds=[2]).seeds == 2  # those that were asked for
    assert planned(config, 10, images=1).thorough is None  # ten are too few to choose from
    least = planned(config, 1000, images=1)
    assert (least.thorough, least.first, least.seeds) == (15, FirstLook(2, 10), 1)
    chosen = planned(replace(config, thorough=40), 1000, images=2e5)
    assert (chosen.thorough, chosen.first) == (40, FirstLook(2, 20))


def test_more_time_screens_more_classes_and_the_time_is_used() -> None:
    screened = []
    for images in (1.5e5, 3e5, 6e5, 1.2e6):
        config = planned(ScanConfig(), 1000, images=images)
        assert config.thorough is not None
        assert 0.75 * images <= images_of_scan(config, 1000) <= images
        screened.append(config.thorough)
    assert screened == sorted(screened)
    assert planned(ScanConfig(), 1000, images=1e9) == ScanConfig()


# -- the real network ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(assets: Path):
    if not SHARED.is_dir():
        pytest.skip("no architectures of the real networks")
    sys.path.insert(0, str(SHARED))
    try:
        from cifar_archs import WideResNet  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(SHARED))

    def load(name: str) -> Classifier:
        model = WideResNet(16, 1)
        model.load_state_dict(safetensors.torch.load_file(assets / "models" / f"{name}-cifar10.safetensors"))
        return Classifier(model, size=32)

    images = Samples.from_folder(assets / "cifar10-test", (3, 32, 32))
    return load, Samples(images.images[::5], source="CIFAR-10")


@pytest.mark.slow
def test_the_real_backdoor_is_found_and_its_erased_twin_is_not(real) -> None:
    load, images = real
    compromised = load("wrn16_1-nad-grid-target5")
    found = scan(compromised, images)
    assert (found.verdict.outcome, found.verdict.label) == (FOUND, 5)
    corner = [share_of_corner(full_map(compromised, label, images)) for label in range(10)]
    print([round(share, 3) for share in corner])
    assert corner.pop(5) > max(4 * 16 / 1024, *corner)
    assert scan(load("wrn16_1-nad-erased"), images).verdict.outcome == NONE


def share_of_corner(pattern: Tensor) -> float:
    energy = pattern.square().sum(0)
    return (energy[-4:, -4:].sum() / energy.sum()).item()


@pytest.mark.parametrize("kind", ["pipe", "deep", "long", "link"])
def test_a_bank_of_what_is_no_scan_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("[" * 100_000)
        os.truncate(path, 1 << 40 if kind == "long" else 100_000)
    with pytest.raises(AgnoscoError, match=r"a\.json' is not a scan"):
        read_bank(tmp_path)
