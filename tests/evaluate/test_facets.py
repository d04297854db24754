"""Facets: the parts of a logit, on features that are planted; and the run that asks for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from agnosco import Classifier, Config, Identity, Pixel, Run, Samples, facets, load, map_runs, preset
from agnosco.errors import AgnoscoError
from agnosco.evaluate import facet_record
from agnosco.evaluate.facets import FEWEST, find_facets, parts_of

SIZE = 8


class Cues(nn.Module):
    """Two features: how bright the left half of an image is, and how bright the right half; three classes.

    The first class needs either, the left one three times as much; the second is dark images; the third never.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[9.0, 3.0], [-9.0, -3.0], [0.0, 0.0]]))
            self.fc.bias.copy_(torch.tensor([-6.0, 6.0, -50.0]))

    def forward(self, images: Tensor) -> Tensor:
        halves = images.unflatten(3, (2, SIZE // 2)).mean((1, 2, 4))
        return self.fc(halves)


def images_of(left: Tensor, right: Tensor) -> Samples:
    """Grey images with these brightnesses of their halves, ``(N,)`` each, in 255ths."""
    halves = torch.stack([left, right], 1).to(torch.uint8)
    return Samples(halves.repeat_interleave(SIZE // 2, 1)[:, None, None].repeat(1, 1, SIZE, 1), source="halves")


def planted(count: int = 60) -> Samples:
    """Halves that vary independently: every brightness of one with every one of the other."""
    steps = torch.arange(8) * 30 + 20
    return images_of(steps.repeat_interleave(8)[:count], steps.repeat(8)[:count])


def independent() -> Samples:
    """Images that all get the first class, with halves that are bright or less, independently."""
    return images_of(torch.tensor([255, 150]).repeat(20), torch.tensor([255, 255, 155, 155]).repeat(10))


def network() -> Classifier:
    return Classifier(Cues(), size=SIZE, channels=1, labels=("bright", "dark", "never"))


def quick(steps: int = 12) -> Config:
    pixels = {"parameterization": Pixel(), "transforms": Identity()}
    return Config(replace(preset("quick").mapper, steps=steps, loss="logit", **pixels), refine=None, cycles=1)


# -- the parts of a logit ----------------------------------------------------------------------------------


def test_independent_cues_are_facets_of_their_own() -> None:
    features = torch.cartesian_prod(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.5, 1.0]))
    weights = torch.tensor([2.0, 4.0])  # variances of ψ: 4 · 1/4 = 1 and 16 · 1/6 = 8/3
    parts = parts_of(features, weights)
    assert parts is not None
    torch.testing.assert_close(parts.directions, torch.tensor([[0.0, 4.0], [2.0, 0.0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.logit_shares, torch.tensor([8 / 11, 3 / 11], dtype=torch.float64))
    torch.testing.assert_close(parts.variance_shares, parts.logit_shares)
    second = torch.tensor([-1.0, -1, -1, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(parts.alpha[:, 1], second)


def test_parts_add_up_to_the_logit_less_its_mean() -> None:
    features, weights = torch.randn(30, 12), torch.randn(12)
    logits = features.double() @ weights.double()
    parts = parts_of(features, weights)
    assert parts is not None
    torch.testing.assert_close(parts.alpha.sum(1), logits - logits.mean(), atol=1e-4, rtol=0)
    along = features.double() @ parts.directions.double().T
    torch.testing.assert_close(along - along.mean(0), parts.alpha, atol=1e-4, rtol=0)
    assert parts.logit_shares.sum().item() == pytest.approx(1)
    torch.testing.assert_close(parts.alpha.var(0) / logits.var(), parts.logit_shares, atol=1e-4, rtol=0)
    assert parts.logit_shares.tolist() == sorted(parts.logit_shares.tolist(), reverse=True)


def test_what_raises_no_logit_is_not_in_front_however_much_it_varies() -> None:
    """Two features that vary much and cancel in the logit, and one that varies less and counts."""
    sign = torch.tensor([1.0, -1.0]).repeat(10)
    other = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(5)
    parts = parts_of(torch.stack([9 * sign, 9 * sign, other], 1), torch.tensor([1.0, -1.0, 1.0]))
    assert parts is not None
    torch.testing.assert_close(parts.directions[0], torch.tensor([0.0, 0.0, 1.0]), atol=1e-5, rtol=0)
    assert parts.variance_shares[0].item() == pytest.approx(1 / 163)


@pytest.mark.parametrize("features", [torch.ones(9, 3), torch.ones(1, 3), torch.ones(0, 3)])
def test_features_that_do_not_vary_have_no_parts(features: Tensor) -> None:
    assert parts_of(features, torch.ones(3)) is None


# -- the facets of a network -------------------------------------------------------------------------------


def test_the_facets_of_planted_cues_are_the_cues() -> None:
    found = find_facets(network(), [0], independent())
    assert list(found.directions) == ["bright, facet 1", "bright, facet 2"]
    torch.testing.assert_close(found.directions["bright, facet 1"], torch.tensor([9.0, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.directions["bright, facet 2"], torch.tensor([0.0, 3.0]), atol=1e-4, rtol=0)
    (of_class,) = found.record.classes
    assert (of_class.samples, of_class.nudged, found.record.layer) == (40, False, "fc")
    left, right = 9 * 105 / 255 / 2, 3 * 100 / 255 / 2  # half of what the logit loses without the cue
    first, second = of_class.facets
    assert first.logit_share == pytest.approx(left**2 / (left**2 + right**2))
    assert {each.sample % 2 for each in first.strongest} == {0}
    assert [each.alpha for each in second.strongest] == pytest.approx([right] * 8, abs=1e-5)
    assert found.pictures["bright, facet 1"].mean(1).tolist()[0][0][0] == 1.0


def test_only_samples_that_the_network_gives_the_class_count() -> None:
    samples = planted()
    logits = network()(samples.images.float() / 255)
    found = find_facets(network(), [0, 1], samples)
    given = [(logits.argmax(1) == label).nonzero()[:, 0].tolist() for label in (0, 1)]
    assert [of_class.samples for of_class in found.record.classes] == [len(rows) for rows in given]
    for of_class, rows in zip(found.record.classes, given, strict=True):
        assert {each.sample for facet in of_class.facets for each in facet.strongest} <= set(rows)


def test_a_class_of_few_samples_is_told_by_nudged_images() -> None:
    dark = images_of(110 + torch.arange(40) % 13, 110 + torch.arange(40) % 11)
    assert network()(dark.images.float() / 255).argmax(1).eq(0).sum() < FEWEST
    (of_class,) = find_facets(network(), [0], dark).record.classes
    assert (of_class.given, of_class.samples, of_class.nudged) == (0, 40, True)
    assert of_class.origin.startswith(
        "40 samples with the map of the class added, because the network gives it to only 0"
    )


def test_a_class_whose_logit_is_constant_has_no_facets() -> None:
    with pytest.raises(
        AgnoscoError, match="'never' has no facets: its logit is the same for all of 60 samples"
    ) as caught:
        find_facets(network(), [2], planted())
    assert "that differ" in caught.value.hint


class Squared(nn.Module):
    """Ends in a linear layer, whose answer it squares."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.fc = nn.Flatten(), nn.Linear(SIZE * SIZE, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images)).square()


def test_one_name_instead_of_several_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgnoscoError, match="'01' is one class, not several"):
        facets(network(), "01", planted(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_that_does_not_end_in_a_linear_layer_is_refused() -> None:
    with pytest.raises(AgnoscoError, match="does not end in a linear layer") as caught:
        find_facets(Classifier(Squared(), size=SIZE, channels=1), [0], planted())
    assert "--at LAYER" in caught.value.hint


def test_a_convolution_of_one_pixel_before_the_pooling_is_a_linear_layer() -> None:
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = Classifier(model, size=SIZE, channels=1)
    samples = Samples.noise(classifier.shape, count=60)
    label = int(classifier(samples.images.float() / 255).argmax(1).mode().values)
    assert find_facets(classifier, [label], samples).record.layer == "2"


def test_classes_of_one_name_are_told_apart() -> None:
    twice = Classifier(Cues(), size=SIZE, channels=1, labels=("crane", "crane", "never"))
    names = find_facets(twice, [0, 1], planted(), count=1).directions
    assert list(names) == ["crane (0), facet 1", "crane (1), facet 1"]


# -- the run -----------------------------------------------------------------------------------------------


def test_a_run_of_facets_is_an_ordinary_run(tmp_path: Path) -> None:
    samples = independent()
    run = facets(network(), ["bright"], samples, tmp_path / "run", quick(), count=2)
    assert [entry.name for entry in run.entries] == ["bright, facet 1", "bright, facet 2"]
    assert (run.settings.model.at, run.settings.model.directions) == ("fc:input", "facets.safetensors")
    left, right = (run.map(index).pattern[0].mean(0) for index in (0, 1))
    assert left[: SIZE // 2].mean() > 5 * left[SIZE // 2 :].mean().abs()
    assert right[SIZE // 2 :].mean() > 5 * right[: SIZE // 2].mean().abs()
    directions = tmp_path / "run" / facet_record.DIRECTIONS
    again = load(Cues(), size=SIZE, channels=1, at="fc:input", directions=directions)
    assert again.fingerprint == run.settings.model.fingerprint
    (made,) = map_runs(Run.open(tmp_path / "run"), again, samples, ["bright, facet 1"], seeds=[1])
    assert made.entry.seed == 1


def test_the_record_is_read_again(tmp_path: Path) -> None:
    run = facets(network(), [0, 1], planted(), tmp_path / "run", quick(2), count=2)
    record = facet_record.read(run.folder)
    assert record is not None
    assert record == find_facets(network(), [0, 1], planted(), count=2).record
    assert set(record.by_name) == {entry.name for entry in run.entries}
    assert "bright (0), from" in facet_record.table(record)
    (tmp_path / "run" / "facets.json").write_text("{}")
    with pytest.raises(AgnoscoError, match="damaged"):
        facet_record.read(run.folder)


def test_a_single_facet_is_mapped_without_its_opposite(tmp_path: Path) -> None:
    run = facets(network(), [0], planted(), tmp_path / "run", quick(2), count=1)
    assert [entry.name for entry in run.entries] == ["bright, facet 1"]
    facets(network(), [0], planted(), tmp_path / "run", quick(2), count=1)  # goes on with the same run


def test_thumbnails_are_written_of_samples_that_are_not_private(tmp_path: Path) -> None:
    samples = planted()
    for private in (False, True):  # those of the first are removed by the second
        samples.private = private
        run = facets(network(), [0], samples, tmp_path / "run", quick(2))
        assert bool(run.folder.names("samples")) != private
