"""Whether a map is the network's or the method's own: checks with answers that are known beforehand.

Four checks. *Cascade*: weights are redrawn from the output downwards (Adebayo et al. 2018, "Sanity checks for
saliency maps"); a map that stays the same was never the network's. *Labels*: the picture of a class must not pass for
another class of the run. *Seeds*: maps of one class must be more alike than maps of two. *Planted*: for a
network that is a set of known templates, the maps must be those templates.

Structural similarity and rank correlation compare pictures pixel by pixel, and a concept may lie anywhere in
its picture; so features are compared beside them, which do not ask where a thing is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..io.records import NUMBER
from ..io.records import read_shape as read_record
from ..io.storage import Folder
from ..method.config import Config
from ..method.maker import generator_for, map_class, map_classes
from ..method.render import SIDE, contact_sheet, enlarged, png, stretched, to_picture
from ..method.score import logits_of
from ..models.classifier import Classifier
from ..runs.origin import check_origin
from ..runs.run import Run, check_target
from ..types import OnStep

LEVELS = 6
"""Most steps of a cascade."""

FILE, SHEET = "sanity.json", "sanity.png"


@dataclass(frozen=True)
class Likeness:
    """How alike two pictures are; 1 is the same.

    Args:
        ssim: Structural similarity (Wang et al. 2004), in [−1, 1], about 0 for unrelated pictures.
        rank: Spearman's rank correlation of all values, in [−1, 1]; 0 with a picture of one grey.
        features: Cosine between channel means of the network's last convolutional stage, wherever things are in the
            pictures. Those of two classes are far from 0 where activations are positive: compare, do not count from 0.
    """

    ssim: float
    rank: float
    features: float


@dataclass(frozen=True)
class Level:
    """One step of a cascade.

    Args:
        stages: Names of what was redrawn, output first.
        pictures: ``(L, C, H, W)``: the maps' raw pictures, one of each class.
        likeness: To the pictures of the network as it is, of other seeds; class by class, averaged.
        probability: Mean softmax probability that the network as it is gives the classes for these pictures.
    """

    stages: tuple[str, ...]
    pictures: Tensor
    likeness: Likeness
    probability: float


@dataclass(frozen=True)
class Labels:
    """What the network says of its own pictures.

    Args:
        right: Share of pictures whose own class is the likeliest of the run's.
        own: Mean probability of the own class, among the run's classes alone.
        other: Greatest probability, among the same, that a picture gives to another class.
    """

    right: float
    own: float
    other: float


def check(
    run: Run, classifier: Classifier, samples: Samples, *, classes: int = 3, on_step: OnStep | None = None
) -> dict:
    """All four checks of a run; writes ``sanity.json`` and ``sanity.png`` into it.

    Args:
        run: The run; at least two classes.
        classifier: Its classifier, loaded again.
        samples: Its samples, all of them, read again.
        classes: How many of its classes are mapped again at every level of the cascade.
        on_step: Called after every step of every map.

    Returns:
        Plain values for JSON, as written.

    Raises:
        AgnoscoError: The run was made with another classifier or other samples, has one class only, or cannot be
            written; or scikit-image or SciPy is not installed.
    """
    _metrics()  # what is missing is said before hours of work, not after
    check_origin(run, classifier, samples)
    maps = list(run.maps())
    names = {concept.label: concept.name for concept in maps}
    if len(names) < 2:
        raise AgnoscoError(f"{run.folder.name!r} has maps of fewer than two classes", "map at least two classes")
    check_target(run.folder)
    kept, _ = samples.split(run.settings.samples.held_out, seed=run.settings.samples.split_seed)
    chosen = sorted(names)[:classes]
    first = [next(concept for concept in maps if concept.label == label) for label in chosen]  # least seeds first
    others = [concept for concept in maps if concept.label in chosen and all(concept is not one for one in first)]
    another = 1 + max(concept.seed for concept in maps)  # a seed that no map has
    if not others:
        others = list(map_classes(classifier, chosen, kept, run.config, seeds=[another], on_step=on_step))
    pictures = torch.stack([concept.pixels for concept in first])
    again = torch.stack([concept.pixels for concept in [*first, *others]])
    same, other = seeds_check(classifier, again, [concept.label for concept in [*first, *others]])
    found = {
        "classes": [names[label] for label in chosen],
        "labels": to_json(labels_check(classifier, torch.stack([m.pixels for m in maps]), [m.label for m in maps])),
        "seeds": {"one class": to_json(same), "two classes": to_json(other)},
        "planted": planted(kept, run.config, seed=another, on_step=on_step).tolist(),
    }
    levels = cascade(classifier, chosen, kept, run.config, pictures=pictures, seed=another, on_step=on_step)
    found["cascade"] = [to_json(level) for level in levels]
    run.folder.write(FILE, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    captions = ["as it is", *(words(level.stages) for level in levels)]
    rows = list(zip(pictures, *(level.pictures for level in levels), strict=True))
    shown = [enlarged(to_picture(stretched(picture - 0.5)), SIDE) for row in rows for picture in row]
    footer = f"{classifier.name}, weights redrawn from the output downwards; classes: {', '.join(found['classes'])}."
    sheet = contact_sheet(shown, captions * len(rows), columns=len(captions), tile=SIDE, footer=footer)
    run.folder.write(SHEET, png(sheet))
    return found


_LIKENESS = {"ssim": NUMBER, "rank": NUMBER, "features": NUMBER}

_FOUND = {
    "classes": [str],
    "labels": {"right": NUMBER, "own": NUMBER, "other": NUMBER},
    "seeds": {"one class": (None, _LIKENESS), "two classes": _LIKENESS},
    "planted": [[NUMBER]],
    "cascade": [{"stages": [str], "likeness": _LIKENESS, "probability": NUMBER}],
}
"""What is read of the checks, in the words of :func:`agnosco.io.records.check_shape`."""


def read(folder: Folder) -> dict | None:
    """What :func:`check` found of the run in a folder; None if nobody asked.

    Raises:
        AgnoscoError: The file is damaged, or another version's.
    """
    return read_record(folder, FILE, _FOUND, hint="check again with agnosco sanity", sound=_agrees)


def _agrees(found: dict) -> bool:
    """Whether each planted template was compared with all, and each level redrew something."""
    planted = found["planted"]
    square = bool(planted) and all(len(row) == len(planted) for row in planted)
    return square and all(level["stages"] for level in found["cascade"])


def maps_needed(run: Run, classifier: Classifier, *, classes: int = 3) -> int:
    """How many maps of the run's classifier :func:`check` will make."""
    labels = {entry.index for entry in run.entries}
    chosen = min(classes, len(labels))
    levels = len(_depths(len(stages_of(classifier.model))))
    return chosen * (levels + (len(run.entries) == len(labels)))  # one more, where no class has a second seed


def compared(found: dict) -> list[tuple[str, dict[str, float], float | None]]:
    """What :func:`check` compared with the maps as they are: in words, how alike, and p(class) of what was redrawn."""
    seeds = found["seeds"]
    rows: list[tuple[str, dict[str, float], float | None]] = [
        (f"another seed, {name}", seeds[key], None)
        for name, key in (("the same class", "one class"), ("another class", "two classes"))
        if seeds[key]
    ]
    return rows + [(words(level["stages"]), level["likeness"], level["probability"]) for level in found["cascade"]]


def labels_in_words(found: dict) -> str:
    """Whether the pictures are given their own class, as :func:`check` found."""
    labels = found["labels"]
    return (
        f"{labels['right']:.0%} of the pictures are given their own class of the run (p {labels['own']:.3f}); "
        f"the highest probability of any other class is {labels['other']:.3f}"
    )


def planted_in_words(found: dict) -> str:
    """Whether maps of a network with planted templates are their templates, as :func:`check` found."""
    planted = torch.tensor(found["planted"])
    right = (planted.argmax(1) == torch.arange(len(planted))).sum().item()
    return (
        f"{right} of {len(planted)} maps are most like their own template, with a correlation of "
        f"{planted.diagonal().mean().item():.2f} on average"
    )


def table(found: dict) -> str:
    """What :func:`check` found, as lines of text."""
    lines = [
        f"labels   {labels_in_words(found)}",
        "",
        f"{'likeness to the map as it is':44s}{'SSIM':>8s}{'rank':>8s}{'features':>10s}{'p':>8s}",
    ]
    for name, alike, probability in compared(found):
        p = "" if probability is None else f"{probability:8.3f}"
        lines.append(f"{name:44s}{alike['ssim']:8.3f}{alike['rank']:8.3f}{alike['features']:10.3f}{p}")
    return "\n".join([*lines, "", f"planted  {planted_in_words(found)}"])


def _metrics() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """SciPy's ``rankdata`` and scikit-image's ``structural_similarity``, which are extras."""
    try:
        from scipy.stats import rankdata
        from skimage.metrics import structural_similarity
    except ModuleNotFoundError as error:
        raise AgnoscoError(
            f"{error.name} is not installed", "pip install '.[evidence]' in the clone of agnosco"
        ) from error
    return rankdata, structural_similarity


def likeness(judge: Classifier, first: Tensor, second: Tensor) -> Likeness:
    """How alike pictures are in pairs, ``(N, C, H, W)`` each; means over pairs.

    Args:
        judge: The network whose features are compared.
        first, second: The pictures.

    Raises:
        AgnoscoError: scikit-image or SciPy is not installed.
    """
    rankdata, structural_similarity = _metrics()
    pairs = list(zip(first.double().numpy(), second.double().numpy(), strict=True))
    side = min(7, *(n - (n + 1) % 2 for n in first.shape[2:]))  # its window: odd, and inside the picture
    ssim = [structural_similarity(a, b, channel_axis=0, data_range=1.0, win_size=side) for a, b in pairs]
    rank = [np.corrcoef(rankdata(a), rankdata(b))[0, 1] if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs]
    seen, other = (judge.activations(part.to(judge.device)).mean((2, 3)).cpu() for part in (first, second))
    return Likeness(float(np.mean(ssim)), float(np.mean(rank)), F.cosine_similarity(seen, other).mean().item())


def cascade(
    classifier: Classifier,
    classes: Sequence[int],
    samples: Samples,
    config: Config,
    *,
    pictures: Tensor,
    seed: int = 0,
    on_level: Callable[[Level], None] | None = None,
    on_step: OnStep | None = None,
) -> list[Level]:
    """The same maps, of networks whose weights are redrawn from the output downwards.

    A redrawn parameter comes from a normal distribution of its own mean and standard deviation, so that the scale of
    what passes through the network stays about the same. Buffers stay.

    Args:
        classifier: The network; it is not changed.
        classes: Indices.
        samples: Those that the maps were made with.
        config: Settings of the maps.
        pictures: ``(L, C, H, W)``, the raw pictures of the network as it is. Their seeds should not be ``seed``, so
            that chance is no more shared than between two seeds of the network as it is.
        seed: Of the maps, and of the redrawn weights.
        on_level: Called after every level.
        on_step: Called after every step of every map.
    """
    stages = stages_of(classifier.model)
    model = copy.deepcopy(classifier.model)
    redrawn = Classifier(
        model, size=classifier.shape[1:], mean=classifier.mean, std=classifier.std, channels=classifier.shape[0],
        labels=classifier.labels, features=classifier.features, name=f"{classifier.name}, redrawn",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    levels: list[Level] = []
    left = dict(model.named_parameters())
    done = 0
    for depth in _depths(len(stages)):
        for stage in stages[done:depth]:
            for name in [name for name in left if name == stage or name.startswith(f"{stage}.")]:
                _redraw(left.pop(name), generator)
        done = depth
        maps = map_classes(redrawn, classes, samples, config, seeds=[seed], on_step=on_step)
        made = torch.stack([concept.pixels for concept in maps])
        told = logits_of(classifier, made).softmax(1)[torch.arange(len(classes)), torch.tensor(classes)]
        level = Level(stages[:depth], made, likeness(classifier, made, pictures), told.mean().item())
        levels.append(level)
        if on_level is not None:
            on_level(level)
    return levels


def stages_of(model: nn.Module) -> tuple[str, ...]:
    """Names of a network's stages that have weights, output first; in the order in which they were registered.

    The children of the model, and the parameters that it holds itself; where these are fewer than four, the
    children of those.

    Raises:
        AgnoscoError: The network has no weights.
    """
    names = [name for name, _ in model.named_parameters()]
    if not names:
        raise AgnoscoError("a network without weights has none to redraw", "check another")
    for depth in (1, 2, 99):
        stages = list(dict.fromkeys(_stage(name, depth) for name in names))
        if len(stages) >= 4:
            break
    return tuple(reversed(stages))


def _stage(parameter: str, depth: int) -> str:
    """The module, at most so deep, that a parameter belongs to; itself, if that is the model."""
    *modules, own = parameter.split(".")
    return ".".join(modules[:depth]) or own


def words(stages: Sequence[str]) -> str:
    """What a level of the cascade has redrawn."""
    return f"redrawn: {stages[-1]}" + (" and all above" if len(stages) > 1 else " alone")


def labels_check(classifier: Classifier, pictures: Tensor, labels: Sequence[int]) -> Labels:
    """Whether pictures pass for other classes of the run, ``(N, C, H, W)`` in [0, 1], N labels."""
    concepts = sorted(set(labels))
    if len(concepts) < 2:
        raise AgnoscoError("pictures of one class cannot be taken for another", "map at least two classes")
    chances = logits_of(classifier, pictures)[:, concepts].double().softmax(1)
    own = torch.tensor([concepts.index(label) for label in labels])
    hits = chances.gather(1, own[:, None])
    others = chances.scatter(1, own[:, None], 0.0)
    return Labels((chances.argmax(1) == own).double().mean().item(), hits.mean().item(), others.max().item())


def seeds_check(judge: Classifier, pictures: Tensor, labels: Sequence[int]) -> tuple[Likeness | None, Likeness]:
    """How alike maps of one class are, over all pairs of seeds, and how alike those of two classes.

    Args:
        judge: The network whose features are compared.
        pictures: ``(N, C, H, W)``.
        labels: The class of each.

    Returns:
        Both; the first is None where no class has two maps.
    """
    pairs = list(combinations(range(len(labels)), 2))
    same = [(i, j) for i, j in pairs if labels[i] == labels[j]]
    other = [(i, j) for i, j in pairs if labels[i] != labels[j]]

    def of(chosen: list[tuple[int, int]]) -> Likeness:
        first, second = torch.tensor(chosen).T
        return likeness(judge, pictures[first], pictures[second])

    if not other:
        raise AgnoscoError("maps of one class cannot be compared with others", "map at least two classes")
    return (of(same) if same else None), of(other)


class Templates(nn.Module):
    """A network that is nothing but templates: logit ℓ is the image's product with template ℓ."""

    def __init__(self, templates: Tensor, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(gain * templates)

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("nchw,lchw->nl", images - 0.5, self.weight)


def planted(
    samples: Samples, config: Config, *, classes: int = 4, seed: int = 0, on_step: OnStep | None = None
) -> Tensor:
    """Correlations of maps with templates that a network was built from.

    The templates are smooth random colour fields of unit norm.

    Args:
        samples: Those that the maps are made with.
        config: Settings of the maps; the refinement is left out, for a template has no stages to look at.
        classes: Number of templates.
        seed: Of templates and maps.
        on_step: Called after every step of every map.

    Returns:
        ``(classes, classes)``: entry (i, j) is the correlation of the map of class i with template j, of which the
        mean of all is taken off, as the softmax does. In pixels as they are, expect 0.8 on the diagonal: Adam's
        normalised steps draw a template's signs.
    """
    generator = generator_for(0, seed)
    channels, height, width = samples.shape
    coarse = torch.randn(classes, channels, 5, 5, generator=generator)
    templates = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    templates -= templates.mean(0, keepdim=True)
    templates /= torch.linalg.vector_norm(templates, dim=(1, 2, 3), keepdim=True)
    network = Classifier(Templates(templates, gain=1.0), size=(height, width), channels=channels)
    config = replace(config, refine=None)
    maps = [map_class(network, label, samples, config, seed=seed, on_step=on_step) for label in range(classes)]
    patterns = torch.stack([concept.pattern for concept in maps]).flatten(1)
    return torch.corrcoef(torch.cat([patterns, templates.flatten(1)]))[:classes, classes:]


def to_json(part: Any) -> Any:
    """A result of a check as plain values, without its pictures."""
    return {key: value for key, value in asdict(part).items() if not isinstance(value, Tensor)}


def _depths(stages: int) -> list[int]:
    """How many stages each level redraws: the first alone, all at last, evenly between."""
    levels = min(stages, LEVELS)
    return sorted({round(1 + (stages - 1) * i / max(levels - 1, 1)) for i in range(levels)})


def _redraw(parameter: nn.Parameter, generator: torch.Generator) -> None:
    with torch.no_grad():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        spread = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
        parameter.copy_(parameter.mean() + spread * noise)
