"""What else is seen in the picture of a class: the answers that are kept, and the matrix that is made of them."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.evaluate import lookalikes as looks
from agnosco.evaluate.lookalikes import COLUMNS, Lookalikes, also, lookalikes, to_csv
from agnosco.evaluate.score_record import FILE, add_scores, read_scores
from agnosco.evaluate.transfer import score
from agnosco.method.concept import ConceptMap
from agnosco.method.config import Config, MapperConfig
from agnosco.models.classifier import Classifier
from agnosco.runs.run import Run
from agnosco.types import Step

NAMES = ("cat", "=dog", "ship", "lorry")


class Table(nn.Module):
    """Logits that the mean of an image chooses: image i, whose mean is i / 10, is given row i of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, images: Tensor) -> Tensor:
        return self.table[(10 * images.mean((1, 2, 3))).round().long().clamp(0, len(self.table) - 1)]


def network(probabilities: list[list[float]], name: str, labels: tuple[str, ...] = NAMES) -> Classifier:
    """A network whose probabilities for the picture of map i are known."""
    return Classifier(Table(torch.tensor(probabilities).log()), size=8, labels=labels, name=name)


SOURCE = [[0.97, 0.01, 0.01, 0.01], [0.01, 0.97, 0.01, 0.01], [0.01, 0.01, 0.97, 0.01], [0.01, 0.01, 0.01, 0.97]]
FIRST = [[0.6, 0.3, 0.06, 0.04], [0.2, 0.7, 0.05, 0.05], [0.05, 0.05, 0.5, 0.4], [0.1, 0.1, 0.2, 0.6]]
SECOND = [[0.8, 0.1, 0.06, 0.04], [0.5, 0.4, 0.05, 0.05], [0.05, 0.05, 0.7, 0.2], [0.1, 0.1, 0.4, 0.4]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Four maps; the picture of the map of class i has the mean i / 10."""
    samples = Samples(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), source="nothing")
    config = Config(MapperConfig(batch=1, steps=1), refine=None, cycles=1)
    run = Run.create(tmp_path / "run", classifier=network(SOURCE, "source"), samples=samples, config=config)
    for label, name in enumerate(NAMES):
        nu = torch.full((3, 8, 8), 0.5 - label / 10)
        run.add(
            ConceptMap(nu, label, name, 0, 1.0, {"map 1": nu}, (Step(1, 1.0, 1.0, 1.0, 1),)), targeted_success_rate=1
        )
    return run


def test_the_answer_to_each_picture_is_kept_with_its_entropy(run: Run) -> None:
    add_scores(run, [score(run, network(FIRST, "first"))])
    (judgement,) = read_scores(run)
    answer = judgement.answers[0]
    assert [(index, name) for index, name, _ in answer.top] == [(0, "cat"), (1, "=dog"), (2, "ship"), (3, "lorry")]
    assert [p for *_, p in answer.top] == pytest.approx(FIRST[0], rel=1e-5)
    assert answer.entropy == pytest.approx(-sum(p * math.log(p) for p in FIRST[0]), rel=1e-5)
    assert also(answer, least=0.05) == [("=dog", pytest.approx(0.3)), ("ship", pytest.approx(0.06))]


def test_no_more_than_ten_classes_are_kept(run: Run) -> None:
    wide = [[1 / 20] * 20 for _ in range(4)]
    judgement = score(run, network(wide, "wide", (*NAMES, *(f"other {i}" for i in range(16)))))
    assert [len(answer.top) for answer in judgement.answers] == [10] * 4


def test_the_matrix_is_the_mean_over_networks_other_than_the_source(run: Run) -> None:
    # another order of the classes, which are found by name
    swapped = [[row[1], row[0], row[2], row[3]] for row in SECOND]
    second = network(swapped, "second", ("=dog", "cat", "ship", "lorry"))
    judgements = add_scores(
        run, [score(run, judge) for judge in (network(SOURCE, "source"), network(FIRST, "first"), second)]
    )
    found = lookalikes(run.entries, judgements)
    assert found is not None
    assert found.judges == ["first", "second"]
    np.testing.assert_allclose(found.p, (np.array(FIRST) + np.array(SECOND)) / 2, rtol=1e-5)
    assert [(pair.name, pair.other) for pair in found.pairs(2)] == [("=dog", "cat"), ("ship", "lorry")]
    assert [pair.p for pair in found.pairs(2)] == pytest.approx([0.35, 0.3])


def test_classes_that_were_not_mapped_are_among_the_pairs(run: Run) -> None:
    lynx = [[0.5, 0.1, 0.1, 0.1, 0.2], [0.2, 0.5, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.1, 0.6, 0.1]]
    found = lookalikes(run.entries, [score(run, network(lynx, "wide", (*NAMES, "lynx")))])
    assert found is not None
    assert found.p.shape == (4, 4)
    first, second = found.pairs(2)
    assert {(first.name, first.other), (second.name, second.other)} == {("cat", "lynx"), ("=dog", "cat")}
    assert first.p == pytest.approx(0.2)


def test_where_only_the_source_has_answered_its_answers_count(run: Run) -> None:
    found = lookalikes(run.entries, [score(run, network(SOURCE, "source"))])
    assert found is not None
    assert found.judges == ["source"]


def test_judgements_of_earlier_versions_have_no_answers(run: Run) -> None:
    bare = msgspec.structs.replace(score(run, network(FIRST, "first")), answers=())
    assert lookalikes(run.entries, [bare]) is None
    assert to_csv(run.entries, [bare]) == ",".join(COLUMNS) + "\n"


def test_classes_that_are_taken_for_each_other_stand_together() -> None:
    """Two groups, shuffled: {0, 3, 4} and {1, 2, 5}."""
    p = np.full((6, 6), 0.001)
    for group in ((0, 3, 4), (1, 2, 5)):
        p[np.ix_(group, group)] = 0.2
    order = Lookalikes([str(i) for i in range(6)], p, ["judge"]).order
    assert {frozenset(order[:3]), frozenset(order[3:])} == {frozenset({0, 3, 4}), frozenset({1, 2, 5})}


def test_a_matrix_without_links_keeps_all_classes() -> None:
    assert sorted(Lookalikes(["a", "b", "c"], np.eye(3), ["judge"]).order) == [0, 1, 2]
    assert Lookalikes(["a", "b", "c"], np.eye(3), ["judge"]).pairs() == []


def test_classes_are_halved_no_more_often_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    halved = looks._bisected

    def counted(links: np.ndarray, chosen: list[int], levels: int) -> list[int]:
        left.append(levels)
        return halved(links, chosen, levels)

    monkeypatch.setattr(looks, "_bisected", counted)
    monkeypatch.setattr(looks, "LEVELS", 2)
    p = 0.5 ** np.abs(np.subtract.outer(np.arange(60.0), np.arange(60.0)))  # a chain, which halves five times
    assert sorted(Lookalikes([str(i) for i in range(60)], p, []).order) == list(range(60))
    assert (min(left), len(left)) == (0, 7)  # all, two halves, four quarters


@pytest.mark.parametrize("p", [-0.5, 1e299, 2])
def test_a_probability_that_is_none_is_refused(run: Run, p: float) -> None:
    add_scores(run, [score(run, network(FIRST, "first"))])
    stored = json.loads((run.path / FILE).read_text())
    stored["targets"][0]["answers"][0]["top"][0][2] = p
    (run.path / FILE).write_text(json.dumps(stored))
    with pytest.raises(AgnoscoError, match="cannot read"):
        read_scores(run)


def test_the_table_holds_every_answer_and_no_formula(run: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(run.entries, [score(run, network(FIRST, "first"))]))))
    assert len(rows) == 16
    assert rows[4] == {
        "map": "'=dog", "map_index": "1", "seed": "0", "network": "first", "fingerprint": rows[0]["fingerprint"],
        "rank": "1", "class": "'=dog", "class_index": "1", "p": "0.7",
    }  # fmt: skip
    assert sum(float(row["p"]) for row in rows[:4]) == pytest.approx(1)


def test_answers_that_are_too_few_are_refused(run: Run) -> None:
    add_scores(run, [score(run, network(FIRST, "first"))])
    stored = json.loads((run.path / FILE).read_text())
    del stored["targets"][0]["answers"][0]
    (run.path / FILE).write_text(json.dumps(stored))
    with pytest.raises(AgnoscoError, match="cannot read"):
        read_scores(run)
