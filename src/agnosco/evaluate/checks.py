"""Sanity checks with answers that are known beforehand: does a map depend on what the network has learned?

*Cascade*: weights are randomized from the output downwards (`Adebayo et al. 2018, "Sanity checks for saliency maps"
<https://arxiv.org/abs/1810.03292>`_); a map that stays the same was never the network's. *Labels*: the picture of a
class must not pass for another class of the run. *Seeds*: maps of one class must be more similar than maps of two.
*Planted*: a network built from known templates must give maps that show them.

Structural similarity and rank correlation compare pictures pixel by pixel, but a concept may lie anywhere in its
picture; features, which do not depend on the place, are therefore compared too.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..method.config import Config
from ..method.maker import generator_for, map_class, map_classes
from ..method.score import logits_of
from ..models.classifier import Classifier
from ..models.heads import Head
from ..types import OnStep
from .sanity_record import Labels, Level, Seeds, Similarity

LEVELS = 6
"""Most steps of a cascade."""


def metrics() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """SciPy's ``rankdata`` and scikit-image's ``structural_similarity``, from an extra.

    Raises:
        AgnoscoError: scikit-image or SciPy is not installed.
    """
    try:
        from scipy.stats import rankdata
        from skimage.metrics import structural_similarity
    except ModuleNotFoundError as error:
        raise AgnoscoError(
            f"{error.name} is not installed", "pip install '.[evidence]' in the clone of agnosco"
        ) from error
    return rankdata, structural_similarity


def similarity(judge: Classifier, first: Tensor, second: Tensor) -> Similarity:
    """How similar pictures are in pairs, ``(N, C, H, W)`` each; means over pairs. Features are those of ``judge``."""
    rankdata, structural_similarity = metrics()
    pairs = list(zip(first.double().numpy(), second.double().numpy(), strict=True))
    side = min(7, *(n - (n + 1) % 2 for n in first.shape[2:]))  # of its window: odd, and inside the picture
    ssim = [structural_similarity(a, b, channel_axis=0, data_range=1.0, win_size=side) for a, b in pairs]
    rank = [np.corrcoef(rankdata(a), rankdata(b))[0, 1] if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs]
    ours, theirs = (judge.activations(part.to(judge.device)).mean((2, 3)).cpu() for part in (first, second))
    return Similarity(
        ssim=float(np.mean(ssim)), rank=float(np.mean(rank)), features=F.cosine_similarity(ours, theirs).mean().item()
    )


def cascade(
    classifier: Classifier,
    classes: Sequence[int],
    samples: Samples,
    config: Config,
    *,
    pictures: Tensor,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> list[tuple[Level, Tensor]]:
    """The same maps, of networks whose weights are randomized from the output downwards.

    A random parameter is drawn from a normal distribution with its own mean and standard deviation, so that
    activations keep about the same scale. Buffers stay; the network given is not changed.

    Args:
        classifier, classes, samples, config: Those that the maps were made with.
        pictures: ``(classes, C, H, W)``, the raw pictures of the trained network. Their seeds should not be ``seed``,
            so that the random choices are no more alike than those of two seeds of the trained network.
        seed: Of the maps, and of the random weights.
        on_step: Called after every step of every map.

    Returns:
        Each level, and its raw pictures ``(classes, C, H, W)``.
    """
    stages = stages_of(classifier.model)
    randomized = copy.copy(classifier)
    randomized.model = copy.deepcopy(classifier.model)
    randomized.name = f"{classifier.name}, randomized"
    generator = torch.Generator().manual_seed(seed)
    trained = dict(randomized.body.named_parameters())
    levels: list[tuple[Level, Tensor]] = []
    for depth in depths(len(stages)):
        for stage in stages[:depth]:
            for name in [name for name in trained if name == stage or name.startswith(f"{stage}.")]:
                _randomize(trained.pop(name), generator)
        maps = map_classes(randomized, classes, samples, config, seeds=[seed], on_step=on_step)
        results = torch.stack([concept.pixels for concept in maps])
        own = logits_of(classifier, results).softmax(1)[torch.arange(len(classes)), torch.tensor(classes)]
        alike = similarity(classifier, results, pictures)
        levels.append((Level(stages=stages[:depth], similarity=alike, probability=own.mean().item()), results))
    return levels


def stages_of(model: nn.Module) -> tuple[str, ...]:
    """Names of a network's stages that have weights, output first, in the reverse order of registration.

    Stages are the children of the model and the parameters that it holds itself; if these are fewer than four, the
    children's children. What is registered after a layer that is asked is left out: it has no effect.

    Raises:
        AgnoscoError: The network has no weights.
    """
    names = [name for name, _ in model.named_parameters()]
    if isinstance(model, Head):
        modules = [name for name, _ in model.body.named_modules()]
        inside = [index for index, name in enumerate(modules) if f"{name}.".startswith(f"{model.layer}.")]
        before = set(modules[: inside[0] if model.at_input else inside[-1] + 1])
        names = [name for name, _ in model.body.named_parameters() if name.rpartition(".")[0] in before]
    if not names:
        raise AgnoscoError("a network without weights has none to randomize", "check another network")
    for depth in (1, 2, 99):
        stages = list(dict.fromkeys(_stage(name, depth) for name in names))
        if len(stages) >= 4:
            break
    return tuple(reversed(stages))


def depths(stages: int) -> list[int]:
    """How many stages each level randomizes: the first one, evenly more, and all in the end."""
    levels = min(stages, LEVELS)
    return sorted({round(1 + (stages - 1) * i / max(levels - 1, 1)) for i in range(levels)})


def _stage(parameter: str, depth: int) -> str:
    """The module that a parameter belongs to, at most this deep; the parameter itself if the model holds it."""
    *modules, own = parameter.split(".")
    return ".".join(modules[:depth]) or own


def _randomize(parameter: nn.Parameter, generator: torch.Generator) -> None:
    with torch.no_grad():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        spread = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
        parameter.copy_(parameter.mean() + spread * noise)


def labels_check(classifier: Classifier, pictures: Tensor, labels: Sequence[int]) -> Labels:
    """Which of some classes a network gives pictures ``(N, C, H, W)``, of which these N labels are the own classes."""
    concepts = sorted(set(labels))
    if len(concepts) < 2:
        raise AgnoscoError("pictures of one class cannot be taken for another", "map at least two classes")
    probabilities = logits_of(classifier, pictures)[:, concepts].double().softmax(1)
    own = torch.tensor([concepts.index(label) for label in labels])
    others = probabilities.scatter(1, own[:, None], 0.0)
    return Labels(
        right=(probabilities.argmax(1) == own).double().mean().item(),
        own=probabilities.gather(1, own[:, None]).mean().item(),
        other=others.max().item(),
    )


def seeds_check(judge: Classifier, pictures: Tensor, labels: Sequence[int]) -> Seeds:
    """How similar maps of one class are, over all pairs of seeds, and how similar those of two classes.

    Pictures are ``(N, C, H, W)``, of at least two classes; labels are the class of each.
    """
    pairs = list(combinations(range(len(labels)), 2))

    def of(chosen: list[tuple[int, int]]) -> Similarity:
        first, second = torch.tensor(chosen).T
        return similarity(judge, pictures[first], pictures[second])

    same = [(i, j) for i, j in pairs if labels[i] == labels[j]]
    other = [(i, j) for i, j in pairs if labels[i] != labels[j]]
    return Seeds(same_class=of(same) if same else None, other_class=of(other))


class Templates(nn.Module):
    """A linear network: the logit of each class is the image's product with the class's template."""

    def __init__(self, templates: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(templates)

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("nchw,lchw->nl", images - 0.5, self.weight)


def planted(
    samples: Samples, config: Config, *, classes: int = 4, seed: int = 0, on_step: OnStep | None = None
) -> Tensor:
    """Correlations of maps with the templates that a network was built from: smooth random colours of unit norm.

    The maps are made without the refinement, because a template has no stages to compare.

    Returns:
        ``(classes, classes)``: entry (i, j) is the correlation of the map of class i with template j, less the mean of
        all templates, to which the softmax is blind. With the parameterization Pixel, expect 0.8 on the diagonal:
        Adam's normalised steps draw a template's signs.
    """
    generator = generator_for(0, seed)
    channels, height, width = samples.shape
    coarse = torch.randn(classes, channels, 5, 5, generator=generator)
    templates = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    templates -= templates.mean(0, keepdim=True)
    templates /= torch.linalg.vector_norm(templates, dim=(1, 2, 3), keepdim=True)
    network = Classifier(Templates(templates), size=(height, width), channels=channels)
    config = replace(config, refine=None)
    maps = [map_class(network, label, samples, config, seed=seed, on_step=on_step) for label in range(classes)]
    patterns = torch.stack([concept.pattern for concept in maps]).flatten(1)
    return torch.corrcoef(torch.cat([patterns, templates.flatten(1)]))[:classes, classes:]
