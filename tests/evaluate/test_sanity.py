"""Sanity checks against networks and pictures of which the answers are known."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.evaluate import checks
from agnosco.evaluate.sanity import sanity
from agnosco.evaluate.sanity_record import FILE, SHEET, table
from agnosco.io.local import Local
from agnosco.io.records import to_json
from agnosco.method import prepare
from agnosco.method.config import Config, MapperConfig, RefineConfig
from agnosco.method.dials import L2, Identity, Pixel
from agnosco.method.maker import map_classes
from agnosco.models.classifier import Classifier
from agnosco.runs.run import Run

SHAPE = (3, 12, 12)
CONFIG = Config(
    MapperConfig(
        batch=8, steps=25, step=0.2, direction="plus", parameterization=Pixel(), transforms=Identity(), ball=L2(100.0)
    ),
    refine=None,
    cycles=1,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 36, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.conv1(images).relu()).relu()).relu()
        return 30 * self.fc(nn.functional.avg_pool2d(x, 2).flatten(1))


def network(seed: int = 0) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(Net(), size=SHAPE[1:], name="net", features="conv3")


def samples() -> Samples:
    generator = torch.Generator().manual_seed(0)
    return Samples(torch.randint(256, (20, *SHAPE), generator=generator).to(torch.uint8), source="photographs")


def pictures(classifier: Classifier, classes: list[int], seed: int = 0) -> Tensor:
    maps = map_classes(classifier, classes, samples(), CONFIG, seeds=[seed])
    return torch.stack([concept.pixels for concept in maps])


# -- likeness ------------------------------------------------------------------------------------------


def test_a_picture_is_like_itself_and_unlike_its_negative() -> None:
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    itself = checks.similarity(network(), images, images)
    assert (itself.ssim, itself.rank, itself.features) == pytest.approx((1, 1, 1))
    negative = checks.similarity(network(), images, 1 - images)
    assert negative.rank == pytest.approx(-1)
    assert negative.ssim < -0.5


def test_rank_is_that_of_values_and_not_of_their_size() -> None:
    images = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    found = checks.similarity(network(), images, images**5)
    assert found.rank == pytest.approx(1)
    assert found.ssim < 0.99


def test_features_do_not_ask_where() -> None:
    image = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    image[:, :, :, 6:] = 0.5
    moved = image.roll(6, 3)
    found = checks.similarity(network(), image, moved)
    assert found.features > 0.99
    assert found.ssim < 0.5


# -- the cascade ---------------------------------------------------------------------------------------


def test_stages_come_output_first() -> None:
    assert checks.stages_of(Net()) == ("fc", "conv3", "conv2", "conv1")
    deep = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), nn.Linear(3, 2)
    )
    assert checks.stages_of(deep) == ("1", "0.3", "0.2", "0.0")
    deep.token = nn.Parameter(torch.zeros(3))  # held by the model itself
    assert checks.stages_of(deep) == ("1", "0.3", "0.2", "0.0", "token")
    with pytest.raises(AgnoscoError, match="without weights"):
        checks.stages_of(nn.Flatten())


def test_every_parameter_is_redrawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in torchvision's vision transformers, where a stage holds another and the model a parameter of its own."""

    class Odd(Net):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1))
            self.encoder = nn.Module()
            self.encoder.bias = nn.Parameter(torch.zeros(6, 1, 1))
            self.encoder.layers = nn.Sequential(nn.Conv2d(6, 6, 1))

        def forward(self, images: Tensor) -> Tensor:
            x = self.conv1(images).relu() + self.token
            x = self.encoder.layers(x + self.encoder.bias)  # type: ignore[operator]
            return 30 * self.fc(nn.functional.avg_pool2d(x, 2).flatten(1))

    drawn: list[int] = []
    redraw = checks._randomize
    monkeypatch.setattr(checks, "_randomize", lambda p, g: (drawn.append(id(p)), redraw(p, g)))
    classifier = Classifier(Odd(), size=SHAPE[1:], features="conv1")
    levels = checks.cascade(classifier, [0], samples(), CONFIG, pictures=pictures(classifier, [0]))
    assert len(drawn) == len(set(drawn)) == len(list(classifier.model.parameters()))
    assert levels[-1][0].stages[-1] == "token"


def test_cascade_redraws_downwards_and_leaves_the_network_alone() -> None:
    classifier = network()
    before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    original = pictures(classifier, [0, 1])
    levels = checks.cascade(classifier, [0, 1], samples(), CONFIG, pictures=original)
    assert [level.stages for level, _ in levels] == [
        ("fc",),
        ("fc", "conv3"),
        ("fc", "conv3", "conv2"),
        ("fc", "conv3", "conv2", "conv1"),
    ]
    for name, value in classifier.model.state_dict().items():
        assert torch.equal(value, before[name])
    itself = checks.similarity(classifier, original, pictures(classifier, [0, 1]))
    assert itself.rank == pytest.approx(1)  # the same seed, so that the redrawn weights are all that differs
    for level, results in levels:
        assert level.similarity.rank < 0.7
        assert level.probability < 0.9 * classifier.probabilities(original)[[0, 1], [0, 1]].mean()
        assert results.shape == (2, *SHAPE)


def test_a_method_that_ignores_the_network_is_found_out() -> None:
    """A network whose upper stages do nothing: redrawing them changes no map, and the cascade says so."""

    class Idle(Net):
        def forward(self, images: Tensor) -> Tensor:
            return 100 * images.mean((2, 3)) + 0 * super().forward(images)[:, :3]

    classifier = Classifier(Idle(), size=SHAPE[1:], features="conv3")
    original = pictures(classifier, [0, 1])
    for level, _ in checks.cascade(classifier, [0, 1], samples(), CONFIG, pictures=original):
        assert level.similarity.ssim == pytest.approx(1)
        assert level.similarity.rank == pytest.approx(1)


def test_many_stages_make_six_levels_from_one_to_all() -> None:
    assert checks.depths(1) == [1]
    assert checks.depths(3) == [1, 2, 3]
    deep = checks.depths(20)
    assert (len(deep), deep[0], deep[-1]) == (6, 1, 20)


def test_redrawn_parameters_keep_their_scale() -> None:
    parameter = nn.Parameter(3 + 0.1 * torch.randn(10_000, generator=torch.Generator().manual_seed(0)))
    old = parameter.detach().clone()
    checks._randomize(parameter, torch.Generator().manual_seed(1))
    assert parameter.mean().item() == pytest.approx(3, abs=0.01)
    assert parameter.std().item() == pytest.approx(0.1, rel=0.05)
    assert abs(np.corrcoef(old.numpy(), parameter.detach().numpy())[0, 1]) < 0.05


# -- labels, seeds, planted templates ------------------------------------------------------------------


class Channels(nn.Module):
    """Classes 0 to 2 are the channels, 3 a class that no picture here has; log-odds of 10 per unit of mean."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([10 * images.mean((2, 3)), torch.full((len(images), 1), -50.0)], 1)


def test_labels_check_finds_the_picture_that_passes_for_another() -> None:
    classifier = Classifier(Channels(), size=4, channels=3)
    images = torch.zeros(3, 3, 4, 4)
    images[0, 0] = images[1, 1] = 1
    images[2, 0] = 0.5  # said to be of class 1, and of class 0
    found = checks.labels_check(classifier, images, [0, 1, 1])
    assert found.right == pytest.approx(2 / 3)
    assert found.other == pytest.approx(1 / (1 + np.exp(-5)))
    assert found.own == pytest.approx((2 / (1 + np.exp(-10)) + 1 / (1 + np.exp(5))) / 3)
    with pytest.raises(AgnoscoError, match="one class"):
        checks.labels_check(classifier, images, [0, 0, 0])


def test_seeds_of_a_class_are_compared_with_those_of_others() -> None:
    seeds = checks.seeds_check(network(), torch.rand(3, *SHAPE)[[0, 0, 1, 2]], [5, 5, 6, 7])
    assert seeds.same_class is not None
    assert seeds.same_class.ssim == pytest.approx(1)
    assert seeds.other_class.ssim < 0.5
    assert checks.seeds_check(network(), torch.rand(2, *SHAPE), [0, 1]).same_class is None


def test_planted_templates_come_back() -> None:
    found = checks.planted(samples(), CONFIG)
    assert found.shape == (4, 4)
    # Adam's normalised steps draw the signs of a template, whose correlation with Gaussian values is √(2/π) = 0.80.
    assert found.diagonal().numpy() == pytest.approx((2 / np.pi) ** 0.5, abs=0.05)
    assert (found - torch.diag(found.diagonal())).sum(1).max() < 0  # centred templates: unlike the others


def test_planted_templates_come_back_through_a_refinement_too() -> None:
    found = checks.planted(samples(), Config(CONFIG.mapper, RefineConfig(steps=5), cycles=1))
    assert found.diagonal().min() > 0.7


def test_a_picture_of_one_grey_is_like_nothing() -> None:
    flat = torch.full((1, *SHAPE), 0.5)
    found = checks.similarity(network(), flat, torch.rand(1, *SHAPE))
    assert found.rank == 0
    assert np.isfinite(found.ssim)


# -- all of them ---------------------------------------------------------------------------------------


def made(path: Path, *, seeds: tuple[int, ...]) -> Run:
    run = Run.create(path, classifier=network(), samples=samples(), config=CONFIG)
    kept, _ = samples().split(0.2, seed=0)
    for concept in map_classes(network(), [0, 2, 3], kept, CONFIG, seeds=seeds):
        run.add(concept, targeted_success_rate=0.5)
    return run


def test_check_writes_what_it_found(tmp_path: Path) -> None:
    run = made(tmp_path / "run", seeds=(3,))
    before = (run.path / "manifest.json").read_bytes()
    found = sanity(run, network(), samples(), classes=2)
    assert json.loads((run.path / FILE).read_text()) == to_json(found)
    assert found.classes == ["0", "2"]
    assert found.seeds.same_class is not None  # a second seed is made where the run has none
    assert (run.path / "manifest.json").read_bytes() == before
    with Image.open(run.path / SHEET) as sheet:
        assert sheet.width > 5 * 200  # the map as it is, and four levels
    assert table(found).count("randomized") == 4
    again = sanity(run, network(), samples(), classes=2)
    assert again == found


def test_no_record_lies_beside_the_picture_of_another_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "run", seeds=(3,))
    sanity(run, network(), samples(), classes=2)
    write = Local.write

    def full(self: Local, name: str, content: bytes) -> str:
        if name == FILE:
            raise AgnoscoError("the disk is full", "free some space")
        return write(self, name, content)

    monkeypatch.setattr(Local, "write", full)
    with pytest.raises(AgnoscoError, match="the disk is full"):
        sanity(run, network(), samples(), classes=2)
    assert (run.path / SHEET).exists()
    assert not (run.path / FILE).exists()


def test_check_takes_classes_of_uneven_seeds(tmp_path: Path) -> None:
    run = made(tmp_path / "run", seeds=(1,))
    kept, _ = samples().split(0.2, seed=0)
    for concept in map_classes(network(), [1, 2], kept, CONFIG, seeds=[0]):
        run.add(concept, targeted_success_rate=0.5)
    found = sanity(run, network(), samples(), classes=3)
    assert found.classes == ["0", "1", "2"]
    maps = [concept for concept in run.maps() if concept.label == 2]
    alike = checks.similarity(network(), maps[0].pixels[None], maps[1].pixels[None])
    assert found.seeds.same_class is not None
    assert found.seeds.same_class.rank == pytest.approx(alike.rank)  # of class 2 alone


def test_check_compares_maps_that_share_no_chance(tmp_path: Path) -> None:
    run = made(tmp_path / "run", seeds=(0, 1))
    seeds: list[int] = []
    sanity(run, network(), samples(), classes=2, on_step=lambda progress: seeds.append(progress.seed))
    assert set(seeds) == {2}  # neither of the run's


def test_check_announces_its_maps_and_prepares_the_network_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, fingerprint = made(tmp_path / "run", seeds=(0,)), network().fingerprint
    prepared: list[str] = []
    events: list[object] = []

    def counted(classifier: Classifier, **options: Any) -> Classifier:
        prepared.append(classifier.fingerprint)
        return prepare.prepared(classifier, **options)

    monkeypatch.setattr("agnosco.method.maker.prepared", counted)
    sanity(
        run, network(), samples(), classes=2, on_step=lambda step: events.append((step.seed, step.label)),
        on_estimate=lambda _, count: events.append(count),
    )  # fmt: skip
    assert events[0] == 2 * (1 + 4)  # another seed, and four levels of random weights
    assert events.count(events[0]) == 1
    assert prepared.count(fingerprint) == 1


def test_check_wants_two_classes_before_it_works(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", classifier=network(), samples=samples(), config=CONFIG)
    never = lambda _: pytest.fail("a map was made")  # noqa: E731
    for _ in (0, 1):
        with pytest.raises(AgnoscoError, match="maps of fewer than two classes"):
            sanity(run, network(), samples(), on_step=never)
        for concept in map_classes(network(), [0], samples().split(0.2, seed=0)[0], CONFIG):
            run.add(concept, targeted_success_rate=0.5)


def test_check_wants_a_feature_map_before_it_works(tmp_path: Path) -> None:
    flat = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 4)), size=12)
    run = Run.create(tmp_path / "run", classifier=flat, samples=samples(), config=CONFIG)
    for concept in map_classes(flat, [0, 1], samples().split(0.2, seed=0)[0], CONFIG):
        run.add(concept, targeted_success_rate=0.5)
    with pytest.raises(AgnoscoError, match="no stage whose output is a feature map"):
        sanity(run, flat, samples(), on_step=lambda _: pytest.fail("a map was made"))


def test_check_says_what_is_missing_before_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "run", seeds=(0, 1))
    never = lambda _: pytest.fail("a map was made")  # noqa: E731

    def denied(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", denied)
        with pytest.raises(AgnoscoError, match="cannot write"):
            sanity(run, network(), samples(), on_step=never)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(AgnoscoError, match="skimage"):
        sanity(run, network(), samples(), on_step=never)


def test_check_wants_the_runs_own_network_and_samples(tmp_path: Path) -> None:
    run = made(tmp_path / "run", seeds=(0, 1))
    with pytest.raises(AgnoscoError, match="other model"):
        sanity(run, network(seed=1), samples())
    other = Samples(samples().images.flip(0), source="others")
    with pytest.raises(AgnoscoError, match="other samples"):
        sanity(run, network(), other)
    assert not (run.path / FILE).exists()
