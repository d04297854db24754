"""Proposition 1 of the paper, weak dependence, with real photographs.

    python benchmarks/weak_dependence.py           measure, and draw docs/pictures/weak-dependence.jpg
    python benchmarks/weak_dependence.py --tables  write the table into docs/evidence.md

The proposition says that an input-specific map depends on the silhouette of the input more than on the classifier: a
panda on a chair and a queen on a throne get the same map. So this script chooses pairs of photographs with similar
silhouettes and different predictions. Within each pair it compares what should tell a panda from a queen: the
input-specific maps of the two photographs (gradients, integrated gradients, Grad-CAM, by Captum), and the
input-agnostic maps of the two classes. All become non-negative maps of 14 x 14 values, compared by correlation. Two
things to compare with: other pairs of the same photographs with different predictions, for what any two of these maps
share; and the map of the same class with another seed, because maps of pure noise would differ most.

Silhouettes come from networks other than the explained one: where the last convolutional stages of MobileNetV2 and
SqueezeNet are active, whatever the class. No photograph is used twice; each is predicted with p > 0.5. In the figure,
silhouettes stand for the photographs, which we may not publish; build/weak-dependence.jpg shows them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from captum.attr import IntegratedGradients, LayerGradCam, Saliency
from common import (
    DOCS,
    RESULTS,
    ROOT,
    about,
    argument_parser,
    fill,
    imagenet_network,
    markdown,
    measured_on,
    photographs,
    read_results,
    write_results,
)
from torch import Tensor
from torch.nn import functional as F

import agnosco
from agnosco import Classifier, ConceptMap
from agnosco.method.render import contact_sheet, enlarged, stretched, to_picture

SIZE = 224
MAP_SIZE = 112  # of the input-agnostic maps, which take longer
GRID = 14  # side of the compared maps; finer detail is not compared
PAIRS = 40
SHOWN = 6  # pairs in the figure; the maps of their classes are made
PATH = RESULTS / "weak-dependence.json"
PICTURE = DOCS / "pictures" / "weak-dependence.jpg"
AGNOSTIC = "input-agnostic"


def silhouettes(images: Tensor) -> Tensor:
    """Where the last convolutional stages of two networks are active, ``(N, 14, 14)``."""
    total = torch.zeros(len(images), GRID, GRID)
    for name in ("mobilenet_v2", "squeezenet1_1"):
        network = imagenet_network(name, SIZE)
        active = torch.cat([network.activations(part).mean(1, keepdim=True) for part in images.split(32)])
        active = F.interpolate(active, size=(GRID, GRID), mode="bilinear", align_corners=False)[:, 0]
        total += (active - active.mean((1, 2), keepdim=True)) / active.std((1, 2), keepdim=True)
    return total


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of maps in pairs, from ``(N, H, W)`` each to ``(N,)``."""
    first, second = (part.flatten(1) - part.flatten(1).mean(1, keepdim=True) for part in (first, second))
    return F.cosine_similarity(first, second)


def different(logits: Tensor) -> Tensor:
    """Whether the predictions for two photographs have little in common, ``(N, N)``."""
    prediction = F.normalize(logits - logits.mean(0))
    return prediction @ prediction.T < 0.1


def chosen_pairs(masks: Tensor, allowed: Tensor) -> Tensor:
    """The pairs with the most similar silhouettes, without using a photograph twice, ``(2, pairs)``."""
    flat = F.normalize(masks.flatten(1) - masks.flatten(1).mean(1, keepdim=True))
    similarity = (flat @ flat.T).where(allowed, -1.0)
    pairs: list[tuple[int, int]] = []
    while len(pairs) < PAIRS and similarity.max() > -1:
        i, j = divmod(int(similarity.argmax()), len(similarity))
        pairs.append((i, j))
        similarity[[i, j]] = similarity[:, [i, j]] = -1
    return torch.tensor(pairs).T


def reduced(maps: Tensor) -> Tensor:
    """Magnitudes of maps ``(N, C, H, W)``, summed over channels and averaged to 14 x 14."""
    return F.adaptive_avg_pool2d(maps.abs().sum(1, keepdim=True), GRID)[:, 0]


def input_specific(network: Classifier) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Methods that map images ``(N, C, H, W)`` for their labels, to ``(N, 14, 14)``."""
    gradients, integrated = Saliency(network), IntegratedGradients(network)
    cam = LayerGradCam(network, network.model.get_submodule(network.features))

    def integrated_gradients(images: Tensor, labels: Tensor) -> Tensor:
        return reduced(integrated.attribute(images, target=labels, n_steps=24, internal_batch_size=32).detach())

    def grad_cam(images: Tensor, labels: Tensor) -> Tensor:
        grid = cam.attribute(images, target=labels, relu_attributions=True)
        assert isinstance(grid, Tensor)  # one layer gives one map
        return F.interpolate(grid.detach(), size=(GRID, GRID), mode="bilinear", align_corners=False)[:, 0]

    return {
        "gradients": lambda images, labels: reduced(gradients.attribute(images, target=labels).detach()),
        "integrated gradients": integrated_gradients,
        "Grad-CAM": grad_cam,
    }


def measure(preset: str) -> None:
    """Choose the pairs, make all maps, compare them and draw the figure."""
    network = imagenet_network("resnet18", SIZE)
    images = torch.cat(list(photographs(network).batches(64)))
    with torch.no_grad():
        logits = torch.cat([network(part) for part in images.split(32)])
    confident = logits.softmax(1).amax(1) > 0.5
    images, logits = images[confident], logits[confident]
    labels = logits.argmax(1)
    masks = silhouettes(images)
    allowed = different(logits)
    pairs = chosen_pairs(masks, allowed)
    others = other_pairs(pairs, allowed)

    means = {"silhouettes": compare(masks, pairs, others)}
    maps: dict[str, Tensor] = {}
    used = pairs.flatten()
    with network.frozen():
        for name, explain in input_specific(network).items():
            maps[name] = torch.zeros(len(images), GRID, GRID)
            for part in used.split(16):
                maps[name][part] = explain(images[part].clone().requires_grad_(), labels[part])
            means[name] = compare(maps[name], pairs, others)
            print(name, means[name], flush=True)

    few = pairs[:, :SHOWN]
    classes = labels[few].unique().tolist()
    small = imagenet_network("resnet18", MAP_SIZE)
    mapping, _ = photographs(small).split()
    concepts, other_seed = (
        {c.label: c for c in agnosco.map_classes(small, classes, mapping, preset, seeds=[seed])} for seed in (0, 1)
    )
    agnostic = torch.zeros(len(images), GRID, GRID)
    for index in few.flatten().tolist():
        agnostic[index] = reduced(concepts[int(labels[index])].pattern[None])[0]
    means[AGNOSTIC] = compare(agnostic, few, other_pairs(few, allowed))
    both = [torch.stack([reduced(of[label].pattern[None])[0] for label in classes]) for of in (concepts, other_seed)]
    seeds = correlation(*both).mean().item()
    pictured = {name: correlation(of[few[0]], of[few[1]]).mean().item() for name, of in maps.items()}
    rows = [
        {
            "classes": [network.labels[int(labels[i])] for i in pair],
            **{
                name: correlation(of[pair[:1]], of[pair[1:]]).item()
                for name, of in {"silhouettes": masks, **maps, AGNOSTIC: agnostic}.items()
            },
        }
        for pair in few.T
    ]
    header = about(
        f"ResNet-18, {PAIRS} pairs of photographs at {SIZE} px; maps of the classes of {SHOWN}: {MAP_SIZE} px, {preset}"
    )
    write_results(PATH, {"about": header, "means": means, "pictured": pictured, "seeds": seeds, "pairs": rows})
    named = [[concepts[int(labels[i])] for i in pair] for pair in few.T]
    draw(PICTURE, shaded(masks), few, maps, named)
    draw(ROOT / "build" / PICTURE.name, images, few, maps, named)
    print(table(), flush=True)


def other_pairs(pairs: Tensor, allowed: Tensor) -> Tensor:
    """All other pairs of the same photographs whose predictions differ, ``(2, n)``."""
    used = pairs.flatten()
    first, second = used[torch.triu_indices(len(used), len(used), offset=1)]
    chosen = {frozenset(pair) for pair in pairs.T.tolist()}
    other = torch.tensor([frozenset(pair) not in chosen for pair in zip(first.tolist(), second.tolist(), strict=True)])
    other &= allowed[first, second]
    return torch.stack([first[other], second[other]])


def compare(maps: Tensor, pairs: Tensor, others: Tensor) -> dict[str, float]:
    """Mean correlation within the pairs, its standard error, and the mean within other pairs."""
    within = correlation(maps[pairs[0]], maps[pairs[1]])
    return {
        "pairs": within.mean().item(),
        "error": (within.std() / len(within) ** 0.5).item(),
        "other pairs": correlation(maps[others[0]], maps[others[1]]).mean().item(),
    }


def shaded(maps: Tensor) -> Tensor:
    """Maps ``(N, h, w)`` as grey pictures ``(N, 1, h, w)``, each from black to white."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low).clamp_min(1e-12))[:, None]


def draw(path: Path, images: Tensor, pairs: Tensor, maps: dict[str, Tensor], concepts: list[list[ConceptMap]]) -> None:
    """Draw a row for each pair: both photographs, then each kind of map of the first and of the second."""
    tiles, captions = [], []
    for pair, both in zip(pairs.T, concepts, strict=True):
        tiles += [enlarged(to_picture(images[i]), SIZE) for i in pair]
        captions += [concept.name for concept in both]
        for name, grids in maps.items():
            tiles += [enlarged(to_picture(shaded(grids[i][None])[0]), SIZE) for i in pair]
            captions += [name] * 2
        tiles += [to_picture(stretched(concept.pattern)) for concept in both]
        captions += [AGNOSTIC] * 2
    footer = "Photographs with similar silhouettes and different predictions; maps of ResNet-18: first, second."
    contact_sheet(tiles, captions, columns=2 * (len(maps) + 2), tile=SIZE, footer=footer).save(
        path, quality=88, optimize=True
    )


def table() -> str:
    """The results as Markdown."""
    results = read_results(PATH)
    means = results["means"]
    rows = [
        [name, f"{mean['pairs']:.2f} ± {mean['error']:.2f}", f"{mean['other pairs']:.2f}"]
        for name, mean in means.items()
    ]
    named = "; ".join(" and ".join(pair["classes"]) for pair in results["pairs"])
    return (
        f"**{results['about']['title']}**; {measured_on(results)}.\n\n"
        + markdown(
            ["correlation within", "pairs with similar silhouettes", "other pairs of the same photographs"], rows
        )
        + f"\n\nWithin the {len(results['pairs'])} pairs of the figure: input-specific maps "
        f"{fmean(results['pictured'].values()):.2f} on average, input-agnostic maps {means[AGNOSTIC]['pairs']:.2f}; "
        f"the same class with another seed: {results['seeds']:.2f}. The pairs: {named}."
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--preset", choices=agnosco.PRESETS, default="quick")
    options = parser.parse_args()
    if options.tables:
        fill("docs/evidence.md", "weak-dependence", table())
    else:
        measure(options.preset)


if __name__ == "__main__":
    main()
