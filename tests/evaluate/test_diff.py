"""Two networks of known answers compared: what has changed, what is chance, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.evaluate.diff import IMAGES, changes, diff, likeness
from agnosco.evaluate.diff_record import FILE, read, table
from agnosco.io.records import to_json
from agnosco.io.storage import Folder
from agnosco.method.concept import ConceptMap
from agnosco.method.config import Config, MapperConfig
from agnosco.method.score import log_odds, logits_for
from agnosco.models.classifier import Classifier
from agnosco.runs.run import Run
from agnosco.types import Step

NAMES = ("red", "green", "blue", "grey")
CONFIG = Config(MapperConfig(batch=1, steps=1), refine=None, cycles=1)


class Halves(nn.Module):
    """A class for each channel, and a last one; it looks for a channel in one half of the image."""

    def __init__(self, lower: tuple[int, ...] = (), gain: float = 40.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.lower: Tensor
        self.register_buffer("lower", torch.tensor([channel in lower for channel in range(3)]))
        with torch.no_grad():
            self.conv.weight.copy_(gain * torch.eye(3).view(3, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        upper, lower = (part.mean((2, 3)) for part in features.chunk(2, 2))
        seen = torch.where(self.lower, lower, upper)
        return torch.cat([seen, seen.mean(1, keepdim=True)], 1)


def network(*lower: int, name: str = "net") -> Classifier:
    """A network that looks for these channels in the lower half of images, for the others in the upper half."""
    return Classifier(Halves(lower), size=8, labels=NAMES, name=name, features="conv")


def samples(seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    return Samples(torch.randint(256, (20, 3, 8, 8), generator=generator).to(torch.uint8), source="photographs")


def planted(label: int, seed: int, *lower: int, name: str | None = None) -> ConceptMap:
    """A map with more of one channel where such a network looks for it; how much more, the seed decides."""
    nu = torch.zeros(3, 8, 8)
    strength = -0.2 - 0.01 * (seed % 5) - 0.002 * label
    rows = slice(4, 8) if label in lower else slice(0, 4)
    nu[slice(0, 3) if label == 3 else label, rows] = strength
    return ConceptMap(nu, label, name or NAMES[label], seed, 1.0, {"map 1": nu}, (Step(1, 1.0, 1.0, 1.0, 1),))


def run_of(
    path: Path, *lower: int, seeds: tuple[int, ...] = (0, 1, 2), labels: tuple[int, ...] = (0, 1, 2, 3), **changed: Any
) -> Run:
    """The run of such a network; its targeted success rates grow with the class."""
    options = {"samples": samples(), "config": CONFIG, "name": None} | changed
    run = Run.create(path, classifier=network(*lower), samples=options["samples"], config=options["config"])
    for label in labels:
        for seed in seeds:
            run.add(planted(label, seed, *lower, name=options["name"]), targeted_success_rate=0.1 * label)
    return run


@pytest.fixture
def first(tmp_path: Path) -> Run:
    return run_of(tmp_path / "first")


@pytest.fixture
def second(tmp_path: Path) -> Run:
    """That of a network that looks for blue elsewhere."""
    return run_of(tmp_path / "second", 2)


# -- what has changed -----------------------------------------------------------------------------------


def test_the_class_that_a_network_looks_for_elsewhere_is_ranked_first(first: Run, second: Run) -> None:
    record = diff(first, second, [network(), network(2, name="other")], samples())
    blue, *others = record.classes
    assert (blue.index, blue.name, blue.beyond) == (2, "blue", True)
    assert blue.p_value is not None
    assert blue.p_value < 0.01
    assert blue.change > 10
    assert [row.beyond for row in others] == [False] * 3
    assert "1 of 4 classes changed" in record.conclusion
    assert (record.seeds, record.first.network, record.second.network) == (3, "net", "other")
    assert read(second.folder) == record
    assert record.is_of(first, second)
    assert not record.is_of(second, first)


def test_what_each_network_answers_is_shown(first: Run, second: Run) -> None:
    one, other = network(), network(2)
    blue = diff(first, second, [one, other], samples()).classes[0]
    _, held_out = samples().split(0.2, seed=0)
    images = held_out.images.float() / 255

    def answered(classifier: Classifier, lower: tuple[int, ...]) -> float:
        rows = []
        for seed in (0, 1, 2):
            with torch.no_grad():
                logits = classifier.model((images - planted(2, seed, *lower).nu).clamp(0, 1)).double()
            rows.append((logits[:, 2] - logits[:, [0, 1, 3]].exp().sum(1).log()).mean().item())
        return sum(rows) / 3

    assert blue.own == pytest.approx((answered(one, ()), answered(other, (2,))), abs=1e-5)
    assert blue.other == pytest.approx((answered(one, (2,)), answered(other, ())), abs=1e-5)
    with torch.no_grad():
        theirs = torch.stack([one.model(planted(2, seed, 2).pixels[None]).softmax(1)[0, 2] for seed in (0, 1, 2)])
    assert blue.probability[0] == pytest.approx(theirs.mean().item(), abs=1e-6)
    assert blue.targeted_success_rate == pytest.approx((0.2, 0.2))


def test_a_network_and_itself_have_no_change_whatever_the_seeds(tmp_path: Path, first: Run) -> None:
    record = diff(first, run_of(tmp_path / "again", seeds=(7, 8, 9)), [network(), network()], samples())
    assert [row.change for row in record.classes] == pytest.approx([0] * 4, abs=1e-9)
    assert not any(row.beyond for row in record.classes)
    assert record.conclusion.startswith("No class changed by more than seeds explain")
    for row in record.classes:
        assert row.own[0] - row.other[0] == pytest.approx(row.other[1] - row.own[1])


def test_many_classes_that_changed_do_not_hide_one_that_changed_most() -> None:
    """As in a network that was trained on: all ten have changed, and one of them twice as much."""
    generator = torch.Generator().manual_seed(0)
    answers = torch.randn(2, 2, 10, 3, generator=generator, dtype=torch.float64)
    for place in (0, 1):
        answers[place, place] += 3
        answers[place, place, 4] += 3
    change, p_values, threshold = changes(answers, shuffles=500)
    assert p_values is not None
    assert change.argmax() == 4
    assert (p_values <= 0.05).sum() >= 8
    assert threshold is not None
    assert threshold < change.sort().values[-8]


# -- what is chance -------------------------------------------------------------------------------------


def test_a_change_is_in_standard_errors_of_the_seeds() -> None:
    # Network 0 gives its own maps 5 ± 1 and the other's 2 ± 1; network 1 its own 7 ± 2 and the other's 3 ± 2.
    answers = torch.tensor([[[[4.0, 5, 6]], [[1.0, 2, 3]]], [[[1.0, 3, 5]], [[5.0, 7, 9]]]], dtype=torch.float64)
    change, _, _ = changes(answers, shuffles=10)
    assert change.item() == pytest.approx((3 / (2 / 3) ** 0.5 + 4 / (2 * (2 / 3) ** 0.5)) / 2**0.5)


def test_with_one_seed_a_change_is_the_mean_advantage_and_has_no_p_value() -> None:
    answers = torch.tensor([[[[5.0]], [[2.0]]], [[[3.0]], [[7.0]]]], dtype=torch.float64)
    change, p_values, threshold = changes(answers)
    assert change.item() == pytest.approx((3 + 4) / 2)
    assert (p_values, threshold) == (None, None)


def test_the_p_value_is_that_of_all_ways_to_shuffle() -> None:
    """Two classes with two seeds have eight differences from means, in 8! orders, for each of two networks."""
    answers = torch.tensor(
        [[[[0.0, 1], [0, 3]], [[0, 2], [1, 2]]], [[[2.0, 0], [0, 1]], [[1, 4], [5, 0]]]], dtype=torch.float64
    )

    def t(of_network: Tensor, own: int) -> Tensor:  # (..., run, class, seed)
        spread = of_network.var(-1).mean((-2, -1), keepdim=True).clamp_min(1e-12).sqrt()[..., 0]
        means = of_network.mean(-1)
        return (means[..., own, :] - means[..., 1 - own, :]) / spread  # of two seeds' means, with a spread of 1

    centred = (answers - answers.mean(3, keepdim=True)).flatten(1)
    orders = torch.tensor(list(permutations(range(8))))
    every = [t(centred[n][orders].view(-1, 2, 2, 2), n) for n in (0, 1)]
    first, second = torch.randint(len(orders), (2, 200_000), generator=torch.Generator().manual_seed(1))
    greatest = ((every[0][first] + every[1][second]) / 2**0.5).amax(1)
    change, p_values, threshold = changes(answers, shuffles=4000)
    assert change == pytest.approx((t(answers[0], 0) + t(answers[1], 1)) / 2**0.5)
    assert p_values is not None
    assert p_values.tolist() == pytest.approx([(greatest >= c).double().mean().item() for c in change], abs=0.03)
    assert threshold == pytest.approx(greatest.quantile(0.95).item(), rel=0.1)


def test_of_runs_that_chance_alone_tells_apart_one_in_twenty_has_a_changed_class() -> None:
    generator = torch.Generator().manual_seed(2)
    found = 0
    for _ in range(150):
        _, p_values, _ = changes(torch.randn(2, 2, 10, 3, generator=generator, dtype=torch.float64), shuffles=99)
        assert p_values is not None
        found += bool((p_values <= 0.05).any())
    assert 1 <= found <= 17  # 7.5 are expected; of all draws, about 0.1 % lie outside


def test_pairs_of_the_same_seed_are_no_likeness() -> None:
    # Two classes with opposite features: cosines from the mean are 1 within a class, but for the odd picture.
    features = torch.tensor([[[[1.0, 0], [0, 1]], [[-1, 0], [0, -1]]]] * 2).double()
    seeds = torch.tensor([[[0, 1], [0, 1]]] * 2)
    across, within = likeness(features, seeds)
    assert across.tolist() == pytest.approx([0, 0])  # the same pictures, of which each pair has one seed
    assert within.tolist() == pytest.approx([0, 0])
    across, _ = likeness(features, seeds + torch.tensor([0, 5]).view(2, 1, 1))
    assert across.tolist() == pytest.approx([0.5, 0.5])
    across, within = likeness(features[:, :, :1], seeds[:, :, :1])
    assert across.isnan().all()
    assert within.isnan().all()


def test_log_odds_are_those_of_perturbed_images() -> None:
    classifier, images, nu = network(), samples(), planted(1, 0).nu
    with torch.no_grad():
        p = classifier((images.images.float() / 255 - nu).clamp(0, 1)).double().softmax(1)[:, 1]
    expected = (p / (1 - p)).log().tolist()
    assert log_odds(logits_for(classifier, images, nu=nu), 1).tolist() == pytest.approx(expected, abs=1e-4)


def test_log_odds_stay_in_order_where_the_probability_is_1() -> None:
    logits = torch.tensor([[0.0, 150.0, 1.0], [0.0, 300.0, 1.0]])  # in single precision, no other class is left
    expected = [margin - math.log(1 + math.e) for margin in (150.0, 300.0)]
    assert log_odds(logits, 1).tolist() == pytest.approx(expected)


# -- what is refused, and what is written ---------------------------------------------------------------


def test_runs_that_differ_in_more_than_the_network_are_refused(tmp_path: Path, first: Run) -> None:
    others: dict[str, dict[str, Any]] = {
        "different samples": {"samples": samples(1)},
        "different settings": {"config": replace(CONFIG, cycles=2)},
        "different classes: 'grey' (3)": {"labels": (0, 1, 2)},
        "different numbers of seeds: a class has 2 to 3 maps": {"seeds": (0, 1)},
    }
    for number, (message, changed) in enumerate(others.items()):
        other = run_of(tmp_path / str(number), **changed)
        with pytest.raises(AgnoscoError) as caught:
            diff(first, other, [network(), network()], samples())
        assert message in caught.value.message
        assert "map " in caught.value.hint
        assert not other.folder.exists(FILE)


def test_networks_and_samples_must_be_those_of_the_runs(first: Run, second: Run) -> None:
    with pytest.raises(AgnoscoError, match="first' was made with other model"):
        diff(first, second, [network(2), network()], samples())
    with pytest.raises(AgnoscoError, match="first' was made with other samples"):
        diff(first, second, [network(), network(2)], samples(1))
    assert read(second.folder) is None


def test_one_seed_ranks_and_says_that_it_knows_no_chance(tmp_path: Path) -> None:
    runs = run_of(tmp_path / "a", seeds=(0,)), run_of(tmp_path / "b", 2, seeds=(0,))
    record = diff(runs[0], runs[1], [network(), network(2)], samples())
    assert record.classes[0].name == "blue"
    assert record.threshold is None
    assert not record.classes[0].beyond
    assert record.classes[0].likeness == (None, None)
    assert "no p-value" in record.conclusion


def test_results_go_to_another_folder(tmp_path: Path, first: Run, second: Run) -> None:
    counts: list[tuple[int, int]] = []
    record = diff(
        first, second, [network(), network(2)], samples(), out=tmp_path / "there",
        on_map=lambda done, total: counts.append((done, total)),
    )  # fmt: skip
    assert counts == [(place, 48) for place in range(1, 49)]  # two networks, two runs of twelve maps
    assert json.loads((tmp_path / "there" / FILE).read_text()) == to_json(record)
    assert read(Folder.of(tmp_path / "there")) == record
    assert not second.folder.exists(FILE)


def test_samples_are_spread_over_those_held_out(monkeypatch: pytest.MonkeyPatch, first: Run, second: Run) -> None:
    seen: list[int] = []

    def note(_network: Classifier, images: Samples, *, nu: Tensor) -> Tensor:
        seen.append(len(images))
        return torch.zeros(len(images), 4)

    monkeypatch.setattr("agnosco.evaluate.diff.logits_for", note)
    monkeypatch.setattr("agnosco.evaluate.diff.IMAGES", 2)
    diff(first, second, [network(), network(2)], samples())
    assert set(seen) == {2}  # of four that are held out
    assert IMAGES >= 64


def test_the_table_has_a_line_for_each_class_and_a_conclusion(first: Run, second: Run) -> None:
    record = diff(first, second, [network(), network(2)], samples())
    head, blue, *_, conclusion = table(record).splitlines()
    assert head.split("  ")[0] == "class"
    assert blue.startswith("blue (2) ")
    assert "0.20, 0.20" in blue
    assert conclusion == record.conclusion
