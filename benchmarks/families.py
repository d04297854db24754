"""Every family of torchvision and timm: can it be mapped, is it folded, has it places, are its gradients sound?

    python benchmarks/families.py                  all families; those with a row of the installed version stay
    python benchmarks/families.py --only timm.beit only families whose name contains this
    python benchmarks/families.py --tables         write the table into docs/models.md

A family is a module of a library. Its smallest member is built with random weights and ten classes; batch norms get
random statistics and weights, as training leaves them, and a last layer of zeros gets random weights, since else there
is no gradient. Images are as small as the member takes, from 96 px on. It is mapped with the preset ``paper`` in few
steps, refined if it has places.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from typing import Any

import timm
import torch
from common import RESULTS, add_row, argument_parser, fill, markdown, measured_on, read_results, resident_megabytes
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models

from agnosco import AgnoscoError, Classifier, Config, MapperConfig, RefineConfig, Samples
from agnosco.method.dials import scaled_radius
from agnosco.method.maker import Maker
from agnosco.method.prepare import prepared
from agnosco.models.filling import WithoutMemory
from agnosco.models.sources import torchvision_architecture, torchvision_names
from agnosco.types import Job

PATH = RESULTS / "families.json"
CLASSES, BATCH, STEPS = 10, 2, 2
SIZES, LARGE, SMALLEST_OF_LARGE = (96, 128, 160, 192, 224, 256, 288, 320, 384), 256, 160
FEWER_BLOCKS = {"timm.deepseek_vit": {"depth": 2}}
"""Arguments for families whose smallest member takes gigabytes."""


# -- families and their members ---------------------------------------------------------------------


def families() -> dict[str, list[str]]:
    """The members of every family of the installed libraries, such as ``torchvision.resnet`` and ``timm.resnet``."""
    found: dict[str, list[str]] = {}
    for name in torchvision_names():
        module = models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
        found.setdefault(f"torchvision.{module}", []).append(name)
    for module in timm.list_modules():
        found[f"timm.{module}"] = timm.list_models(module=module)
    return {family: members for family, members in found.items() if members}


def smallest(family: str, members: list[str]) -> str:
    """The member of fewest parameters, of those that have classes by themselves if there are any."""
    if family.startswith("timm."):
        configs = {name: timm.get_pretrained_cfg(name) for name in members}
        members = [name for name, config in configs.items() if config and config.num_classes] or members

    def parameters(name: str) -> int:
        for without_memory in (WithoutMemory(), torch.device("meta")):
            with suppress(RuntimeError), without_memory:  # some networks run as they are built
                return sum(parameter.numel() for parameter in builder(family, name)().parameters())
        raise RuntimeError(f"{name} cannot be built without memory")

    return min(members, key=parameters)


def builder(family: str, name: str) -> Callable[[], nn.Module]:
    """Builds a member with random weights."""
    options = FEWER_BLOCKS.get(family, {})
    create = torchvision_architecture(name) if family.startswith("torchvision.") else partial(timm.create_model, name)
    return partial(create, num_classes=CLASSES, **options)


def native_size(family: str, name: str) -> int:
    """Height and width in pixels that a member is made for."""
    if family.startswith("torchvision."):
        preset: Any = models.get_model_weights(name)["DEFAULT"].transforms()
        return getattr(preset, "crop_size", preset.resize_size)[0]
    return timm.get_pretrained_cfg(name).input_size[-1]  # type: ignore[union-attr]


def network(family: str, name: str) -> tuple[nn.Module, bool]:
    """A member as if it had been trained, with random weights; and whether its last layer is zero at first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = builder(family, name)()
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
                nn.init.uniform_(module.running_var, 0.8, 1.2)  # type: ignore[arg-type]
                if module.affine:
                    nn.init.uniform_(module.weight, 0.8, 1.2)
                    nn.init.uniform_(module.bias, -0.1, 0.1)
        zero = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and not m.weight.any()]
        heads = [module for module in zero if len(module.weight) == CLASSES]
        for module in heads:
            nn.init.trunc_normal_(module.weight, std=0.02)
    return model.requires_grad_(False), bool(heads)


def classifier_of(model: nn.Module, native: int) -> Classifier:
    """A network at the least of the sizes that it takes; AgnoscoError of its own size if it takes none."""
    least = SIZES[0] if native <= LARGE else SMALLEST_OF_LARGE
    for size in SIZES:
        if least <= size < native:
            try:
                return Classifier(model, size=size)
            except AgnoscoError:
                continue
    return Classifier(model, size=native)


# -- what is measured -------------------------------------------------------------------------------


def measure(family: str, member: str) -> dict[str, Any]:
    """A row of the table."""
    model, zero_head = network(family, member)
    native = native_size(family, member)
    row = {
        "member": member, "version": version(family.partition(".")[0]), "native_size": native,
        "parameters_m": round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2),
        "zero_head": zero_head, "options": FEWER_BLOCKS.get(family, {}),
    }  # fmt: skip
    try:
        classifier = classifier_of(model, native)
    except AgnoscoError as error:
        return row | {"refused": [error.message, error.hint]}
    return row | {"size": classifier.shape[1]} | places(classifier) | sound(classifier) | mapped(classifier)


def places(classifier: Classifier) -> dict[str, Any]:
    """The last stage and its grid, or what is said where there is none."""
    try:
        grid = classifier.activations(images(classifier))
    except AgnoscoError as error:
        return {"no_places": [error.message, error.hint]}
    return {"stage": classifier.features, "grid": list(grid.shape[1:])}


def sound(classifier: Classifier) -> dict[str, Any]:
    """How far prepared networks are from the network, as a share of its greatest logit; and their gradients."""
    pixels = images(classifier)
    networks = {"float32": prepared(classifier), "bfloat16": prepared(classifier, precision="bfloat16")}
    expected = classifier(pixels)
    row: dict[str, Any] = {"norms": norms(classifier), "norms_left": norms(networks["float32"])}
    for precision, faster in networks.items():
        pixels = images(classifier).requires_grad_()
        logits = faster(pixels)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), pixels)
        difference = (logits - expected).abs().max() / expected.abs().max()
        row |= {f"difference_{precision}": float(f"{difference.item():.2g}")}
        row |= {f"gradient_{precision}": float(f"{gradient.norm().item():.3g}")}
    return row


def mapped(classifier: Classifier) -> dict[str, Any]:
    """A map of the first class, refined if the network has places: its norm as a share of the ball's radius."""
    try:
        refine = RefineConfig(steps=STEPS) if classifier.features else None
    except AgnoscoError:
        refine = None
    config = Config(MapperConfig(batch=BATCH, steps=STEPS), refine, cycles=1)
    concept = next(Maker(classifier, Samples.noise(classifier.shape, count=4), config).make([Job(0, 0)]))
    radius = scaled_radius(config.mapper.ball.radius, classifier.shape)  # type: ignore[union-attr]
    return {"refined": refine is not None, "norm_of_radius": round(concept.nu.norm().item() / radius, 4)}


def images(classifier: Classifier) -> torch.Tensor:
    """Two random images."""
    return torch.rand(2, *classifier.shape, generator=torch.Generator().manual_seed(1))


def norms(classifier: Classifier) -> int:
    """The number of a network's batch normalisations."""
    return sum(isinstance(module, _BatchNorm) for module in classifier.model.modules())


# -- results ----------------------------------------------------------------------------------------


def measure_all(only: str) -> None:
    """Measure the families whose name contains a text and that have no row of the installed version."""
    for family, members in families().items():
        row = read_results(PATH, {"rows": {}})["rows"].get(family, {})  # another process may have measured it
        if only not in family or row.get("version") == version(family.partition(".")[0]):
            continue
        started = time.process_time()
        row = measure(family, smallest(family, members))
        row["seconds"] = round(time.process_time() - started, 1)
        add_row(PATH, "The smallest member of every family, with random weights", family, row)
        gc.collect()
        print(family, row, f"{resident_megabytes():.0f} MB", flush=True)


def tables() -> str:
    """The results as Markdown: a row for each way in which families differ, with their names."""
    results = read_results(PATH)
    rows: dict[str, dict[str, Any]] = results["rows"]
    mapped_ones = {family: row for family, row in rows.items() if "refused" not in row}
    normed = {family: row for family, row in mapped_ones.items() if row["norms"]}
    kinds = {
        "mapped, and refined with Ξ of the stage that was found": {
            f: r for f, r in mapped_ones.items() if r["refined"]
        },
        "mapped; without places there is no refinement": {f: r for f, r in mapped_ones.items() if not r["refined"]},
        "refused in two lines": {f: r for f, r in rows.items() if "refused" in r},
        "only at the size that it is made for": {f: r for f, r in mapped_ones.items() if r["size"] == r["native_size"]},
        "all batch norms folded": {f: r for f, r in normed.items() if not r["norms_left"]},
        "batch norms folded but those that follow no layer directly": {
            f: r for f, r in normed.items() if 0 < r["norms_left"] < r["norms"]
        },
        "no batch norm folded": {f: r for f, r in normed.items() if r["norms_left"] == r["norms"]},
        "last layer zero at first; here it is random": {f: r for f, r in rows.items() if r["zero_head"]},
    }
    cells = [[kind, str(len(found)), names(found)] for kind, found in kinds.items() if found]
    said = "; ".join(sorted({", ".join(row["refused"]) for row in rows.values() if "refused" in row}))
    libraries = ", ".join(f"{library} {version}" for library, version in versions(rows).items())
    return f"{libraries}; {measured_on(results)}.\n\n{markdown(['', 'families', ''], cells)}\n\nRefused with: {said}."


def versions(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The libraries that were measured."""
    return {family.partition(".")[0]: row["version"] for family, row in rows.items()}


def names(rows: dict[str, dict[str, Any]]) -> str:
    """Names of families, by library."""
    parts = []
    for library in ("torchvision", "timm"):
        own = sorted(family.removeprefix(f"{library}.") for family in rows if family.startswith(f"{library}."))
        if own:
            parts.append(f"*{library}*: {', '.join(own)}")
    return "; ".join(parts)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", default="", help="only families whose name contains this")
    options = parser.parse_args()
    if options.tables:
        fill("docs/models.md", "families", tables())
    else:
        torch.set_num_threads(1)
        measure_all(options.only)


if __name__ == "__main__":
    main()
