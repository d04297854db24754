"""Proposition 1, weak dependence, with real photographs.

    python benchmarks/weak_dependence.py           measure, and draw docs/pictures/weak-dependence.jpg
    python benchmarks/weak_dependence.py --tables  write the table into docs/evidence.md

In the figure, silhouettes stand for the photographs, which are not ours to publish; build/weak-dependence.jpg has them.

The paper says that an input-specific map depends on the input's silhouette more than on the classifier: a panda on a
chair and a queen on a throne get the same map. Here pairs of photographs are chosen whose silhouettes are alike and
whose predictions are not. What should tell a panda from a queen is compared within each pair: the input-specific maps
of the two photographs (gradients, integrated gradients, Grad-CAM, by Captum), and the input-agnostic maps of the two
classes. All are turned into one non-negative map of 14 x 14 values each and compared by correlation, beside other pairs
of the same photographs, of different predictions: what any two of these maps have in common; and, since a map of mere
noise would differ most from all others, beside the map of the same class with another seed.

Silhouettes come from networks other than the one that is explained: where the last convolutional stages of MobileNetV2
and SqueezeNet answer, whatever the class. No photograph is used twice, and each must be predicted with p > 0.5.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from ablation import ASSETS, RESULTS, ROOT, about, imagenet_network
from captum.attr import IntegratedGradients, LayerGradCam, Saliency
from pages import made_on, markdown, put
from torch import Tensor
from torch.nn import functional as F

import agnosco
from agnosco import Classifier, ConceptMap, Samples
from agnosco.method.render import contact_sheet, enlarged, stretched, to_picture

SIZE = 224
MAP_SIZE = 112  # of the input-agnostic maps, which cost more; all are compared on the same grid
GRID = 14  # what all maps are compared on: grain is not compared
PAIRS = 40
SHOWN = 6  # pairs in the figure; the maps of their classes are made
PATH = RESULTS / "weak-dependence.json"
PICTURE = ROOT / "docs" / "pictures" / "weak-dependence.jpg"
AGNOSTIC = "input-agnostic"


def silhouettes(images: Tensor) -> Tensor:
    """Where two networks' last convolutional stages answer, ``(N, 14, 14)``."""
    total = torch.zeros(len(images), GRID, GRID)
    for name in ("mobilenet_v2", "squeezenet1_1"):
        network = imagenet_network(name, SIZE)
        seen = torch.cat([network.activations(part).mean(1, keepdim=True) for part in images.split(32)])
        seen = F.interpolate(seen, size=(GRID, GRID), mode="bilinear", align_corners=False)[:, 0]
        total += (seen - seen.mean((1, 2), keepdim=True)) / seen.std((1, 2), keepdim=True)
    return total


def alike(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of maps in pairs, ``(N, H, W)`` each: ``(N,)``."""
    first, second = (part.flatten(1) - part.flatten(1).mean(1, keepdim=True) for part in (first, second))
    return F.cosine_similarity(first, second)


def different(logits: Tensor) -> Tensor:
    """Whether two photographs' predictions have nothing in common, ``(N, N)``."""
    prediction = F.normalize(logits - logits.mean(0))
    return prediction @ prediction.T < 0.1


def chosen_pairs(masks: Tensor, allowed: Tensor) -> Tensor:
    """The pairs of most alike silhouettes, each photograph used once, ``(2, pairs)``."""
    flat = F.normalize(masks.flatten(1) - masks.flatten(1).mean(1, keepdim=True))
    likeness = (flat @ flat.T).where(allowed, -1.0)
    pairs: list[tuple[int, int]] = []
    while len(pairs) < PAIRS and likeness.max() > -1:
        i, j = divmod(int(likeness.argmax()), len(likeness))
        pairs.append((i, j))
        likeness[[i, j]] = likeness[:, [i, j]] = -1
    return torch.tensor(pairs).T


def coarse(maps: Tensor) -> Tensor:
    """Magnitudes of maps ``(N, C, H, W)``, summed over channels and averaged to 14 x 14."""
    return F.adaptive_avg_pool2d(maps.abs().sum(1, keepdim=True), GRID)[:, 0]


def input_specific(network: Classifier) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Maps of images ``(N, C, H, W)`` for their labels, ``(N, 14, 14)``."""
    gradients, integrated = Saliency(network), IntegratedGradients(network)
    cam = LayerGradCam(network, network.model.get_submodule(network.features))

    def integrated_gradients(images: Tensor, labels: Tensor) -> Tensor:
        return coarse(integrated.attribute(images, target=labels, n_steps=24, internal_batch_size=32).detach())

    def grad_cam(images: Tensor, labels: Tensor) -> Tensor:
        grid = cam.attribute(images, target=labels, relu_attributions=True)
        assert isinstance(grid, Tensor)  # one layer, one map
        return F.interpolate(grid.detach(), size=(GRID, GRID), mode="bilinear", align_corners=False)[:, 0]

    return {
        "gradients": lambda images, labels: coarse(gradients.attribute(images, target=labels).detach()),
        "integrated gradients": integrated_gradients,
        "Grad-CAM": grad_cam,
    }


def measure(preset: str) -> None:
    """Choose the pairs, make all maps, compare them, draw the figure."""
    network = imagenet_network("resnet18", SIZE)
    photographs = Samples.from_folder(ASSETS / "imagenet-samples", network.shape)
    images = torch.cat(list(photographs.batches(64)))
    with torch.no_grad():
        logits = torch.cat([network(part) for part in images.split(32)])
    sure = logits.softmax(1).amax(1) > 0.5
    images, logits = images[sure], logits[sure]
    labels = logits.argmax(1)
    masks = silhouettes(images)
    allowed = different(logits)
    pairs = chosen_pairs(masks, allowed)
    chance = chance_pairs(pairs, allowed)

    means = {"silhouettes": compared(masks, pairs, chance)}
    shown: dict[str, Tensor] = {}
    used = pairs.flatten()
    with network.frozen():
        for name, explain in input_specific(network).items():
            shown[name] = torch.zeros(len(images), GRID, GRID)
            for part in used.split(16):
                shown[name][part] = explain(images[part].clone().requires_grad_(), labels[part])
            means[name] = compared(shown[name], pairs, chance)
            print(name, means[name], flush=True)

    few = pairs[:, :SHOWN]
    classes = labels[few].unique().tolist()
    small = imagenet_network("resnet18", MAP_SIZE)
    kept, _ = Samples.from_folder(ASSETS / "imagenet-samples", small.shape).split()
    concepts, again = (
        {c.label: c for c in agnosco.map_classes(small, classes, kept, preset, seeds=[seed])} for seed in (0, 1)
    )
    agnostic = torch.zeros(len(images), GRID, GRID)
    for index in few.flatten().tolist():
        agnostic[index] = coarse(concepts[int(labels[index])].pattern[None])[0]
    means[AGNOSTIC] = compared(agnostic, few, chance_pairs(few, allowed))
    both = [torch.stack([coarse(found[label].pattern[None])[0] for label in classes]) for found in (concepts, again)]
    seeds = alike(*both).mean().item()
    shown_pairs = {name: alike(maps[few[0]], maps[few[1]]).mean().item() for name, maps in shown.items()}
    told = [
        {
            "classes": [network.labels[int(labels[i])] for i in pair],
            "silhouettes": alike(masks[pair[:1]], masks[pair[1:]]).item(),
            **{name: alike(maps[pair[:1]], maps[pair[1:]]).item() for name, maps in shown.items()},
            AGNOSTIC: alike(agnostic[pair[:1]], agnostic[pair[1:]]).item(),
        }
        for pair in few.T
    ]
    header = about(
        f"ResNet-18, {PAIRS} pairs of photographs at {SIZE} px; maps of the classes of {SHOWN}: {MAP_SIZE} px, {preset}"
    )
    PATH.write_text(
        json.dumps({"about": header, "means": means, "shown": shown_pairs, "seeds": seeds, "pairs": told}, indent=1)
        + "\n"
    )
    named = [[concepts[int(labels[i])] for i in pair] for pair in few.T]
    draw(PICTURE, shaded(masks), few, shown, named)
    draw(ROOT / "build" / PICTURE.name, images, few, shown, named)
    print(table(), flush=True)


def chance_pairs(pairs: Tensor, allowed: Tensor) -> Tensor:
    """Every other pair of the same photographs whose predictions differ, ``(2, n)``."""
    everyone = pairs.flatten()
    first, second = everyone[torch.triu_indices(len(everyone), len(everyone), offset=1)]
    chosen = {frozenset(pair) for pair in pairs.T.tolist()}
    other = torch.tensor([frozenset(pair) not in chosen for pair in zip(first.tolist(), second.tolist(), strict=True)])
    other &= allowed[first, second]
    return torch.stack([first[other], second[other]])


def compared(maps: Tensor, pairs: Tensor, chance: Tensor) -> dict[str, float]:
    """Mean correlation within the pairs, its standard error, and that of other pairs of the same photographs."""
    within = alike(maps[pairs[0]], maps[pairs[1]])
    return {
        "pairs": within.mean().item(),
        "error": (within.std() / len(within) ** 0.5).item(),
        "other pairs": alike(maps[chance[0]], maps[chance[1]]).mean().item(),
    }


def shaded(maps: Tensor) -> Tensor:
    """Maps ``(N, h, w)`` as grey pictures ``(N, 1, h, w)``, each from black to white."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low).clamp_min(1e-12))[:, None]


def draw(path: Path, images: Tensor, pairs: Tensor, maps: dict[str, Tensor], concepts: list[list[ConceptMap]]) -> None:
    """A row for each pair: both photographs, each kind of map of one beside that of the other."""
    tiles, captions = [], []
    for pair, both in zip(pairs.T, concepts, strict=True):
        tiles += [enlarged(to_picture(images[i]), SIZE) for i in pair]
        captions += [concept.name for concept in both]
        for name, grids in maps.items():
            tiles += [enlarged(to_picture(shaded(grids[i][None])[0]), SIZE) for i in pair]
            captions += [name] * 2
        tiles += [to_picture(stretched(concept.pattern)) for concept in both]
        captions += [AGNOSTIC] * 2
    footer = "Photographs of alike silhouettes and different predictions; each kind of map of ResNet-18: first, second."
    contact_sheet(tiles, captions, columns=2 * (len(maps) + 2), tile=SIZE, footer=footer).save(
        path, quality=88, optimize=True
    )


def table() -> str:
    """The results as Markdown."""
    results = json.loads(PATH.read_text())
    means = results["means"]
    rows = [
        [name, f"{one['pairs']:.2f} ± {one['error']:.2f}", f"{one['other pairs']:.2f}"] for name, one in means.items()
    ]
    named = "; ".join(" and ".join(pair["classes"]) for pair in results["pairs"])
    return (
        f"**{results['about']['bank']}**; {made_on(results)}.\n\n"
        + markdown(["correlation within", "pairs of alike silhouettes", "other pairs of the same photographs"], rows)
        + f"\n\nWithin the {len(results['pairs'])} pairs of the figure: input-specific maps "
        f"{fmean(results['shown'].values()):.2f} on average, input-agnostic ones {means[AGNOSTIC]['pairs']:.2f}; "
        f"the same class with another seed: {results['seeds']:.2f}. The pairs: {named}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=agnosco.PRESETS, default="draft")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        put("docs/evidence.md", "weak-dependence", table())
    else:
        measure(options.preset)


if __name__ == "__main__":
    main()
