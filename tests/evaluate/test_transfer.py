"""Runs judged by networks of known answers: which class is which, what is kept, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.evaluate.score_record import FILE, add_scores, read_scores, table
from agnosco.evaluate.transfer import matched, score
from agnosco.io.local import Local
from agnosco.io.records import to_json
from agnosco.method.concept import ConceptMap
from agnosco.method.config import Config, MapperConfig
from agnosco.models.classifier import Classifier
from agnosco.runs import leases
from agnosco.runs.run import Run
from agnosco.types import Step

NAMES = ("red", "green", "blue")


class Channels(nn.Module):
    """One class per channel of the image, in an order; log-odds of ``gain`` times its mean."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2), gain: float = 40.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(gain * torch.eye(3)[list(order)].view(3, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3))


def network(order: tuple[int, ...] = (0, 1, 2), labels: tuple[str, ...] | None = NAMES, size: int = 8) -> Classifier:
    return Classifier(Channels(order), size=size, labels=labels, name=f"net{order}", features="conv")


def samples(count: int = 20) -> Samples:
    generator = torch.Generator().manual_seed(0)
    return Samples(torch.randint(256, (count, 3, 8, 8), generator=generator).to(torch.uint8), source="photographs")


def planted(label: int, seed: int, strength: float = 0.4) -> ConceptMap:
    """A map whose picture has more of one channel, and a spot that the seed moves."""
    nu = torch.zeros(3, 8, 8)
    nu[label] = -strength
    nu[label, seed, seed] += 0.1
    return ConceptMap(nu, label, NAMES[label], seed, 1.0, {"map 1": nu}, (Step(1, 1.0, 1.0, 1.0, 1),))


def planted_run(path: Path, *, strength: float = 0.4) -> Run:
    config = Config(MapperConfig(batch=1, steps=1), refine=None, cycles=1)
    run = Run.create(path, classifier=network(), samples=samples(), config=config)
    for label in range(3):
        for seed in (0, 1):
            run.add(planted(label, seed, strength), targeted_success_rate=1.0)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Maps of three classes with two seeds each."""
    return planted_run(tmp_path / "run")


def test_the_source_knows_itself(run: Run) -> None:
    found = score(run, network())
    assert found.source
    assert (found.maps, found.classes, found.seeds) == (6, 3, 2)
    assert found.m_score == pytest.approx(1, abs=1e-4)
    assert (found.top1, found.top1_of_concepts) == (1, 1)
    assert found.targeted_success_rate is None


def test_classes_are_found_by_name(run: Run) -> None:
    other = network((2, 0, 1), labels=("Blue", "red", "green"))
    assert matched(run, other) == [1, 1, 2, 2, 0, 0]
    found = score(run, other)
    assert not found.source
    assert found.top1 == 1


def test_classes_without_names_are_their_numbers(run: Run) -> None:
    assert matched(run, network(labels=None)) == [0, 0, 1, 1, 2, 2]
    # As many classes in another order, which numbers cannot tell: all are misread, and M_score does not see it.
    found = score(run, network((1, 2, 0), labels=None))
    assert found.top1 == 0
    assert found.m_score == pytest.approx(1, abs=1e-4)


def test_a_class_that_the_target_lacks_is_named(run: Run) -> None:
    with pytest.raises(AgnoscoError, match="no class 'blue'"):
        score(run, network(labels=("red", "green", "violet")))


def test_numbers_of_other_networks_say_nothing(tmp_path: Path) -> None:
    config = Config(MapperConfig(batch=1, steps=1), refine=None, cycles=1)
    run = Run.create(tmp_path / "run", classifier=network(labels=None), samples=samples(), config=config)
    for label in (0, 1):
        nameless = replace(planted(label, 0), name=str(label))
        run.add(nameless, targeted_success_rate=1.0)
    wider = nn.Sequential(Channels(), nn.Linear(3, 5))
    with pytest.raises(AgnoscoError, match="no class '0'"):
        matched(run, Classifier(wider, size=8, features="0.conv"))


def test_names_that_several_classes_share_are_refused(run: Run) -> None:
    """ImageNet has a Cardigan, the dog, and a cardigan."""
    wider = Classifier(
        nn.Sequential(Channels(), nn.Linear(3, 4)), size=8, labels=("Red", "red", "green", "blue"), features="0.conv"
    )
    assert matched(run, wider) == [1, 1, 2, 2, 3, 3]  # the name to the letter goes first
    wider.labels = ("Red", "RED", "green", "blue")
    with pytest.raises(AgnoscoError, match="several classes 'red'"):
        matched(run, wider)


def test_judgements_of_other_maps_are_dropped(run: Run) -> None:
    add_scores(run, [score(run, network((2, 0, 1), labels=("blue", "red", "green")))])
    run.add(planted(0, 2), targeted_success_rate=1.0)
    (kept,) = add_scores(run, [score(run, network())])
    assert kept.maps == 7


class Flat(nn.Module):
    """The means of the channels, and no feature map on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(192, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(images.flatten(1))


def test_a_network_without_feature_maps_judges_too(run: Run) -> None:
    found = score(run, Classifier(Flat(), size=8, labels=NAMES))
    assert found.diversity is None
    assert 1 / 3 <= found.m_score <= 1


def test_pictures_are_resized_to_the_target(run: Run) -> None:
    found = score(run, network(size=16))
    assert found.shape == (3, 16, 16)
    assert found.top1 == 1
    with pytest.raises(AgnoscoError, match="cannot be added"):
        score(run, network(size=16), images=samples())


def test_the_runs_own_samples_are_perturbed_only_where_held_out(tmp_path: Path) -> None:
    run = planted_run(tmp_path / "weak", strength=0.03)
    _, held_out = samples().split(0.2, seed=0)
    target = network()
    own = score(run, target, images=samples()).targeted_success_rate
    images = held_out.images.float() / 255
    shares = []
    for concept in run.maps():
        with torch.no_grad():
            before = target.model(images).argmax(1) != concept.label
            after = target.model((images - concept.nu).clamp(0, 1)).argmax(1) == concept.label
        shares.append(after[before].float().mean().item())
    assert own == pytest.approx(sum(shares) / 6)
    assert own is not None
    assert 0 < own < 1
    assert score(run, target, images=samples(21)).targeted_success_rate != pytest.approx(
        own
    )  # other images, all of them


def test_one_class_is_no_comparison(tmp_path: Path) -> None:
    config = Config(MapperConfig(batch=1, steps=1), refine=None, cycles=1)
    run = Run.create(tmp_path / "run", classifier=network(), samples=samples(), config=config)
    run.add(planted(0, 0), targeted_success_rate=1.0)
    with pytest.raises(AgnoscoError, match="maps of fewer than two classes"):
        score(run, network())


def test_judgements_gather_in_the_run(run: Run) -> None:
    other, own = network((2, 0, 1), labels=("blue", "red", "green")), network()
    add_scores(run, [score(run, other)])
    before = (run.path / FILE).read_bytes()
    kept = add_scores(run, [score(run, own)])
    assert [one.target for one in kept] == [own.name, other.name]  # the source first
    assert json.loads((run.path / FILE).read_text())["targets"] == to_json(kept)
    (run.path / FILE).unlink()
    add_scores(run, [score(run, other)])
    assert (run.path / FILE).read_bytes() == before
    add_scores(run, [score(run, other)])
    assert (run.path / FILE).read_bytes() == before  # the same judgement replaces itself


def test_judgements_of_two_at_once_are_both_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    other, own = (score(run, network(order)) for order in ((2, 0, 1), (0, 1, 2)))
    write, threads = Local.write, list[Thread]()
    monkeypatch.setattr(leases, "LAPSE", 3600)  # also if the machine stands still

    def slowly(self: Local, name: str, content: bytes) -> str:
        if name == FILE and not threads:  # the second begins when the first has read, and is about to write
            threads.append(Thread(target=add_scores, args=(Run.open(run.path), [other])))
            threads[0].start()
            threads[0].join(1)
        return write(self, name, content)

    monkeypatch.setattr(Local, "write", slowly)
    add_scores(run, [own])
    threads[0].join()
    assert {one.fingerprint for one in read_scores(run)} == {own.fingerprint, other.fingerprint}


def test_a_judgement_of_fewer_maps_does_not_drop_a_later_one_of_all(run: Run) -> None:
    early, judged = Run.open(run.path), network()
    of_fewer = score(early, judged)
    run.add(planted(0, 7), targeted_success_rate=1.0)
    (of_all,) = add_scores(run, [score(run, judged)])
    assert add_scores(early, [of_fewer]) == [of_fewer]
    assert read_scores(Run.open(run.path)) == [of_all] != [of_fewer]
    assert add_scores(run, [of_all]) == [of_all]


@pytest.mark.parametrize(
    "rest", ['{"targets": 3}', '{"targets": [{"fingerprint": "x", "shape": [3, 8, 8], "run": RUN}]}']
)
def test_a_damaged_file_is_not_overwritten(run: Run, rest: str) -> None:
    rest = rest.replace("RUN", json.dumps(score(run, network()).run))
    (run.path / FILE).write_text(rest)
    with pytest.raises(AgnoscoError, match="cannot read"):
        add_scores(run, [score(run, network())])
    assert (run.path / FILE).read_text() == rest


def test_a_judgement_without_images_keeps_the_success_rate_of_an_earlier_one(run: Run) -> None:
    moved = add_scores(run, [score(run, network(), images=samples())])[0].targeted_success_rate
    assert moved is not None
    assert [one.targeted_success_rate for one in add_scores(run, [score(run, network())])] == [moved]


def test_table_has_a_line_for_each_network(run: Run) -> None:
    head, first, second = table([score(run, network()), score(run, network((1, 2, 0), labels=None))]).splitlines()
    assert head.split("  ")[0] == "network"
    assert "top-1 of 3" in head
    assert first.startswith("net(0, 1, 2) (source)  6     1.000 [1.00, 1.00]")
    assert second.split()[-2] == "-"  # nothing was perturbed


def test_networks_of_one_name_are_told_apart_by_size_and_fingerprint(run: Run) -> None:
    networks = [network(), network(size=16), Classifier(Channels((1, 2, 0)), size=8, labels=NAMES, features="conv")]
    for each in networks:
        each.name = "net"
    _, *lines = table([score(run, each) for each in networks]).splitlines()
    names = [line.partition(")")[0] + ")" for line in lines]
    assert names == [f"net ({each.shape[2]} px, {each.fingerprint[:8]})" for each in networks]
