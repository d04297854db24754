"""What holds for any input: labels, settings, command lines, shapes and class lists.

Properties of one module stand in its own tests; those here tie several together, or are about what a user may write.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.main import get_command

from agnosco.cli.app import app
from agnosco.cli.options import model_and_weights, numbers
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.method.config import (
    CLIPS,
    DIRECTIONS,
    LOSSES,
    PRECISIONS,
    PRESETS,
    Config,
    MapperConfig,
    RefineConfig,
    config_from_json,
    config_to_json,
    describe,
)
from agnosco.method.dials import (
    BALLS,
    L2,
    PARAMETERIZATIONS,
    TRANSFORMS,
    AutoL2,
    Ball,
    Crops,
    Data,
    Identity,
    Parameterization,
    Pixel,
    Sparse,
    Spectral,
    Transforms,
)
from agnosco.method.maker import map_class
from agnosco.method.reference import transformed
from agnosco.method.render import contact_sheet, enlarged, png, stretched, to_picture
from agnosco.models.classifier import Classifier
from agnosco.reports import classes as report_classes
from agnosco.runs.command import chosen_config, command_of
from agnosco.runs.manifest import Entry, ModelRecord, SamplesRecord, Settings, slug
from agnosco.runs.run import Run
from agnosco.text import spelling

CPU = torch.device("cpu")

# -- labels ------------------------------------------------------------------------------------

names = st.text(max_size=12) | st.integers(-3, 12).map(str) | st.sampled_from(["Dog", "dog", "sea lion", "lion", " 2 "])


class Means(nn.Module):
    """Any number of classes, each of which likes another brightness."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, classes))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))[:, None] * self.weight


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or the mistake that it says; whatever else it raises is a bug."""
    try:
        return call()
    except AgnoscoError as error:
        return error


@cache
def classifier_of(classes: int) -> Classifier:
    return Classifier(Means(classes), size=4)


def named(labels: list[str]) -> Classifier:
    classifier = copy(classifier_of(len(labels)))
    classifier.labels = tuple(labels)
    return classifier


@given(st.lists(names, min_size=2, max_size=8))
def test_every_class_is_found_by_its_name_or_said_to_be_ambiguous(labels: list[str]) -> None:
    classifier = named(labels)
    for place, label in enumerate(labels):
        assert classifier.index(place) == place
        alike = [other for other in range(len(labels)) if spelling(labels[other]) == spelling(label)]
        text = label.strip()
        meant = {*alike, int(text)} if text.isdecimal() and int(text) < len(labels) else {*alike}
        found = outcome(lambda label=label: classifier.index(label))
        if len(meant) == 1:
            assert found == place
        else:
            assert isinstance(found, AgnoscoError)
            assert "several classes" in found.message or "is the index of" in found.message


@given(st.lists(names, min_size=2, max_size=8), names | st.text(alphabet="0123456789-", max_size=20))
def test_whatever_is_asked_for_is_an_index_or_a_mistake(labels: list[str], label: str) -> None:
    found = outcome(lambda: named(labels).index(label))
    assert isinstance(found, AgnoscoError) or 0 <= found < len(labels)


@given(st.text(max_size=300))
def test_a_class_name_is_part_of_a_file_name(name: str) -> None:
    part = slug(name)
    assert part.strip(".")
    assert len(part) <= 40
    assert not set(part) & set('/\\:*?"<>|\0 ')


# -- settings ----------------------------------------------------------------------------------

anything = st.floats() | st.sampled_from([0.0, 1.0, -1.0, 0.5, 30.0, math.inf, -math.inf, math.nan])
whole = st.integers(-2, 10) | st.integers()
words = st.text(max_size=8)
pairs = st.tuples(anything, anything)

SETTINGS: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    L2: {"radius": anything},
    AutoL2: dict.fromkeys(("start", "limit", "success", "growth"), anything),
    Sparse: {"pixels": whole, "start": anything, "hold": anything},
    Data: {"exponent": anything, "floor": anything},
    Spectral: {"exponent": anything},
    Crops: {"area": pairs, "flip": st.booleans(), "noise": anything},
    RefineConfig: {"steps": whole, "weight": anything, "rate": anything},
    MapperConfig: {
        "batch": whole, "steps": whole, "step": st.sampled_from(["literal", "unit"]) | words | anything,
        "loss": st.sampled_from(LOSSES) | words | anything, "direction": st.sampled_from(DIRECTIONS) | words,
        "clip": st.sampled_from(CLIPS) | words, "contrast": pairs,
        **dict.fromkeys(("decay", "beta1", "beta2"), anything),
    },
    Config: {"cycles": whole, "precision": st.sampled_from(PRECISIONS) | words, "compiled": st.booleans()},
}  # fmt: skip


def within(one: Any) -> Config:
    """A configuration with these settings in their place."""
    if isinstance(one, Config):
        return one
    if isinstance(one, RefineConfig):
        return Config(refine=one)
    if isinstance(one, MapperConfig):
        return Config(one)
    dials = {
        L2: "ball",
        AutoL2: "ball",
        Sparse: "ball",
        Data: "parameterization",
        Spectral: "parameterization",
        Crops: "transforms",
    }
    return Config(replace(MapperConfig(), **{dials[type(one)]: one}))


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_any_settings_are_a_mistake_or_survive_a_manifest(kind: type, data: st.DataObject) -> None:
    changed = data.draw(st.sets(st.sampled_from(list(SETTINGS[kind])), min_size=1, max_size=2))
    chosen = data.draw(st.fixed_dictionaries({name: SETTINGS[kind][name] for name in sorted(changed)}))
    one = outcome(lambda: kind(**chosen))
    if not isinstance(one, AgnoscoError):
        config = within(one)
        assert config_from_json(json.loads(json.dumps(config_to_json(config), allow_nan=False))) == config
        assert describe(config, (3, 8, 8)).isprintable()


# -- command lines -----------------------------------------------------------------------------


def parsed(line: str) -> dict[str, Any]:
    """What ``agnosco map`` makes of a command line, as the options of its function."""
    words = shlex.split(line)
    assert words[:2] == ["agnosco", "map"]
    group = cast(Any, get_command(app))
    return group.commands["map"].make_context("map", words[2:]).params


SOURCES = {
    "leaves-800-seed0": ("leaves", None, 0), "leaves-20-seed3": ("leaves", 20, 3), "leaves": ("./leaves", None, 0),
    "noise (8 of 9 files)": ("./noise", 8, 0), "my photographs": ("my photographs", None, 0),
    "photographs (10,000 of 1,000,000 files)": ("photographs", 10_000, 0),
    "photographs (50 of 1,000 files, seed 7)": ("photographs", 50, 7),
}  # fmt: skip
"""What manifests call samples, and the options that give them."""


def config_of(options: dict[str, Any]) -> Config:
    dials = ("parameterization", "transforms", "ball", "loss", "steps", "batch", "radius", "precision", "compiled")
    return chosen_config(options["preset"], **{name: options[name] for name in dials})


def entry_of(index: int, name: str, seed: int) -> Entry:
    figures = {"probability": 0.5, "targeted_success_rate": None, "norm": 1.0}
    return Entry(index=index, name=name, seed=seed, stages=("map 1",), files={}, sha256="0", **figures)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@given(
    base=st.sampled_from(list(PRESETS)),
    dials=st.fixed_dictionaries(
        {
            "parameterization": maybe(st.sampled_from(list(PARAMETERIZATIONS))),
            "transforms": maybe(st.sampled_from(list(TRANSFORMS))),
            "ball": maybe(st.sampled_from(list(BALLS))), "loss": maybe(st.sampled_from([*LOSSES, "0.5", 0.25])),
            "steps": maybe(st.integers(1, 9999)), "batch": maybe(st.integers(1, 512)),
            "radius": maybe(st.floats(1e-3, 1e6)), "compiled": st.booleans(),
        }
    ),
    mean=st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    std=st.lists(st.floats(1e-3, 4), min_size=3, max_size=3),
    source=st.sampled_from(list(SOURCES)),
    seeds=st.tuples(st.integers(0, 99), st.integers(1, 4)),
    classes=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
)  # fmt: skip
def test_the_command_of_a_run_gives_it_again(
    base: str, dials: dict[str, Any], mean: list[float], std: list[float], source: str, seeds: tuple[int, int],
    classes: list[int],
) -> None:  # fmt: skip
    config = outcome(lambda: chosen_config(base, **dials))
    if isinstance(config, AgnoscoError):
        assert "has no radius" in config.message
        return
    settings = Settings(
        command="map", preset=base, overrides={name: value for name, value in dials.items() if value is not None},
        device="cpu", threads=1, versions={}, config=json.loads(json.dumps(config_to_json(config))),
        model=ModelRecord(
            name="torchvision:x", weights=None, fingerprint="0", shape=(3, 8, 8), mean=tuple(mean), std=tuple(std),
            classes=5, features=None,
        ),
        samples=SamplesRecord(
            source=source, count=9, fingerprint="0", shape=(3, 8, 8), held_out=0.2, split_seed=0
        ),
    )  # fmt: skip
    first, count = seeds
    entries = [entry_of(index, "", seed) for index in sorted(classes) for seed in range(first, first + count)]
    line = command_of(settings, entries)
    assert line is not None
    options = parsed(line)
    assert replace(config_of(options), precision=config.precision) == config
    assert numbers(options["mean"], "--mean") == mean
    assert numbers(options["std"], "--std") == std
    assert tuple(options[name] for name in ("samples", "samples_count", "samples_seed")) == SOURCES[source]
    assert (options["seed"], options["seeds"], options["size"]) == (first, count, 8)
    assert list(options["classes"] or ()) == ([str(index) for index in sorted(classes)] if len(classes) < 5 else [])


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_numbers_as_they_are_written(values: list[float]) -> None:
    assert numbers(",".join(map(repr, values)), "--mean") == values


@given(st.text(max_size=30) | st.text(alphabet="0123456789.,-+einfa_ ", max_size=30))
def test_any_list_of_numbers_is_finite_or_a_mistake(text: str) -> None:
    found = outcome(lambda: numbers(text, "--std"))
    if isinstance(found, AgnoscoError):
        assert found.message.startswith("--std")
    else:
        assert all(map(math.isfinite, found))


weights_files = st.text(min_size=1, max_size=12).map(lambda name: f"{name}.safetensors")
arguments = st.lists(
    st.sampled_from(["3", "depth=20", "'a=b'", "pool=(2, 2)", "name='x)'", "scale=1e-3"]), max_size=3
).map(", ".join)
models = st.text(max_size=12).filter(lambda text: text and "=" not in text and not text.startswith("python:"))
calls = st.builds("python:{}:Net({})".format, st.sampled_from(["net.py", "/a b/net.py", "C:\\net.py"]), arguments)


@given(models | calls, weights_files)
def test_a_model_and_its_weights_are_told_apart(model: str, weights: str) -> None:
    assert model_and_weights(f"{model}={weights}") == (model, weights)
    assert model_and_weights(model) == (model, None)


@given(st.text(max_size=30) | st.text(alphabet="python:.()=a ", max_size=30))
def test_any_target_is_taken_apart_or_a_mistake(spec: str) -> None:
    found = outcome(lambda: model_and_weights(spec))
    if isinstance(found, AgnoscoError):
        assert found.message == f"{spec!r} has an empty name or weights file"
    else:
        assert "=".join(part for part in found if part is not None) == spec


# -- shapes ------------------------------------------------------------------------------------

shapes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 11), st.integers(1, 11))
seeds = st.integers(0, 2**20)
parameterization = st.sampled_from([Pixel(), Data(), Data(exponent=1.5, floor=0.01), Spectral(), Spectral(0.0)])
transforms = st.sampled_from([Identity(), Crops(), Crops((0.5, 2.0), flip=False), Crops(noise=0.1)])


def noise(shape: tuple[int, int, int], seed: int, count: int = 6) -> Samples:
    images = torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Samples(images, source="random")


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(shapes, parameterization, seeds)
def test_fitted_coordinates_invert_and_their_pullback_is_adjoint(
    shape: tuple[int, int, int], chosen: Parameterization, seed: int
) -> None:
    basis = chosen.fit(noise(shape, seed), CPU)
    nu, gradient = random(shape, seed), random(shape, seed + 1)
    w = basis.coordinates(nu)
    torch.testing.assert_close(basis.pixels(w), nu, atol=1e-3, rtol=0)
    pulled = basis.pullback(gradient)
    scale = (pulled.norm() * w.norm()).item() + nu.norm().item() * gradient.norm().item()
    assert (basis.pixels(w) * gradient).sum().item() == pytest.approx((w * pulled).sum().item(), abs=1e-5 * scale)


@given(shapes, parameterization, st.floats(0.1, 300), seeds, st.booleans(), st.integers(0, 3))
def test_projecting_twice_is_projecting_once(
    shape: tuple[int, int, int], chosen: Parameterization, radius: float, seed: int, grows: bool, maps: int
) -> None:
    basis = chosen.fit(noise(shape, seed), CPU)
    leading = (maps,) if maps else ()
    nu = 100 * random((*leading, *shape), seed)
    project = (AutoL2(radius, 2 * radius) if grows else L2(radius)).projector(basis)
    once, state = project(basis.coordinates(nu), project.begin(), progress=1.0, success=torch.zeros(leading))
    assert (basis.norm(once) <= state.eta * (1 + 1e-4)).all()
    twice, _ = project(once, state, progress=1.0, success=torch.zeros(leading))
    torch.testing.assert_close(twice, once, rtol=1e-4, atol=1e-6)


@given(shapes, transforms, seeds, st.integers(1, 4))
def test_views_keep_shape_and_range(shape: tuple[int, int, int], chosen: Transforms, seed: int, count: int) -> None:
    images = noise(shape, seed, count).images.float() / 255
    seen = transformed(chosen, images, torch.Generator().manual_seed(seed))
    assert seen.shape == images.shape
    assert seen.isfinite().all()
    if not getattr(chosen, "noise", 0):
        assert seen.min() >= images.min() - 1e-6
        assert seen.max() <= images.max() + 1e-6


@given(shapes, seeds, st.sampled_from([0.0, 1e-30, 1.0, 1e30]))
def test_any_map_is_a_picture(shape: tuple[int, int, int], seed: int, scale: float) -> None:
    pattern = scale * random(shape, seed)
    pixels = stretched(pattern)
    assert pixels.shape == shape
    assert np.isfinite(pixels).all()
    picture = to_picture(pixels)
    assert picture.size == (shape[2], shape[1])
    large = enlarged(picture, 64)
    assert large.width * shape[1] == large.height * shape[2]  # of the same proportions
    sheet = contact_sheet([picture, large], ["", "a long caption of a class"], tile=32, footer="how it was made")
    assert png(sheet).startswith(b"\x89PNG")


@given(
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(2, 9), st.integers(2, 9)),
    chosen=parameterization, seen=transforms, seed=seeds,
    ball=st.sampled_from([L2(), L2(0.5), AutoL2(), AutoL2(1.0, 2.0, growth=1.5), Sparse(2)]),
    step=st.sampled_from(["literal", "unit", 0.1]), loss=st.sampled_from([*LOSSES, 0.5]),
    direction=st.sampled_from(DIRECTIONS), clip=st.sampled_from(CLIPS),
    share=st.sampled_from([0.0, 0.5, 1.0]), refined=st.booleans(),
)  # fmt: skip
def test_any_map_is_finite_and_within_its_ball(
    shape: tuple[int, int, int], chosen: Parameterization, seen: Transforms, seed: int, ball: Ball, step: str | float,
    loss: str, direction: str, clip: str, share: float, refined: bool,
) -> None:  # fmt: skip
    chosen = Pixel() if isinstance(ball, Sparse) else chosen
    mapper = MapperConfig(
        batch=3, steps=2, step=step, loss=loss, direction=direction, clip=clip,
        parameterization=chosen, transforms=seen, ball=ball, decay=share,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    classifier = Classifier(model, size=shape[1:])
    samples = noise(shape, seed)
    config = Config(mapper, RefineConfig(steps=2) if refined else None, cycles=1)
    found = map_class(classifier, 1, samples, config, seed=seed)
    assert found.nu.shape == shape
    assert found.nu.isfinite().all()
    limits = {L2: "radius", AutoL2: "limit"}
    if isinstance(ball, Sparse):
        assert found.nu.abs().max() <= 1
        assert (found.nu != 0).any(0).sum() <= ball.pixels
    else:
        eta = getattr(ball, limits[type(ball)]) * (math.prod(shape) / (3 * 224 * 224)) ** 0.5
        assert found.nu.norm() <= eta * (1 + 1e-4)
    assert 0 <= found.probability <= 1


# -- reports -----------------------------------------------------------------------------------

class_lists = st.lists(
    st.lists(st.sampled_from(["dog", "Dog", "sea_lion", "sea lion", "cat", "", "0"]), min_size=1, max_size=6),
    min_size=1, max_size=4,
)  # fmt: skip


@given(class_lists, st.integers(1, 2))
def test_every_map_of_every_run_is_in_one_row_of_a_report(lists: list[list[str]], seeds: int) -> None:
    runs = [
        SimpleNamespace(
            entries=[entry_of(i, name, seed) for i, name in enumerate(each) for seed in range(seeds)],
        )
        for each in lists
    ]
    rows = report_classes.aligned(cast(list[Run], runs))
    shown = Counter((place, e.index, e.seed) for parts in rows.values() for place, e in parts)
    assert shown == Counter((place, e.index, e.seed) for place, run in enumerate(runs) for e in run.entries)
    for (_, name), parts in rows.items():
        assert {spelling(entry.name) for _, entry in parts} == {spelling(name)}
        classes = {(place, entry.index) for place, entry in parts}
        assert len(classes) == len({place for place, _ in classes}), "two classes of one run are not one class"
