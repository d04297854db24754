"""Proposition 1, weak dependence, with real photographs.

    python benchmarks/weak_dependence.py           measure; also draws docs/pictures/weak-dependence.png
    python benchmarks/weak_dependence.py --tables  write the table into docs/evidence.md

The paper says that an input-specific map depends on the input's silhouette more than on the classifier: a panda on a
chair and a queen on a throne get the same map. Here pairs of photographs are chosen whose silhouettes are alike and
whose predictions are not. What should tell a panda from a queen is compared within each pair: the input-specific maps
of the two photographs (gradients, integrated gradients, Grad-CAM, by Captum), and the input-agnostic maps of the two
classes. All are turned into one non-negative map each and compared alike.

Silhouettes come from another network than the one that is explained: where MobileNetV2's last convolutional stage
answers, whatever the class.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from statistics import fmean

import torch
from ablation import ASSETS, RESULTS, ROOT, about, imagenet_network
from captum.attr import IntegratedGradients, LayerGradCam, Saliency
from pages import markdown, put
from torch import Tensor
from torch.nn import functional as F

import agnosco
from agnosco import Classifier, Samples
from agnosco.render import contact_sheet, enlarged, stretched, to_picture

PAIRS = 6
RANDOM_PAIRS = 200
PATH = RESULTS / "weak-dependence.json"
PICTURE = ROOT / "docs" / "pictures" / "weak-dependence.png"


def silhouettes(network: Classifier, images: Tensor) -> Tensor:
    """Where a network's last convolutional stage answers, ``(N, h, w)``."""
    return torch.cat([network.activations(part).mean(1) for part in images.split(64)])


def alike(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of maps in pairs, ``(N, H, W)`` each: ``(N,)``."""
    first, second = (part.flatten(1) - part.flatten(1).mean(1, keepdim=True) for part in (first, second))
    return F.cosine_similarity(first, second)


def chosen_pairs(masks: Tensor, logits: Tensor) -> list[tuple[int, int]]:
    """The pairs of most alike silhouettes among photographs of different predictions, each photograph used once."""
    flat = F.normalize(masks.flatten(1) - masks.flatten(1).mean(1, keepdim=True))
    silhouette = flat @ flat.T
    prediction = F.normalize(logits - logits.mean(0))
    silhouette[prediction @ prediction.T > 0.1] = -1  # alike predictions, and every photograph with itself
    pairs: list[tuple[int, int]] = []
    while len(pairs) < PAIRS:
        i, j = divmod(int(silhouette.argmax()), len(silhouette))
        pairs.append((i, j))
        silhouette[[i, j]] = silhouette[:, [i, j]] = -1
    return pairs


def smoothed(maps: Tensor) -> Tensor:
    """Magnitudes of maps ``(N, C, H, W)``, summed over channels and averaged to 14 × 14: grain is not compared."""
    return F.adaptive_avg_pool2d(maps.abs().sum(1, keepdim=True), 14)[:, 0]


def input_specific(network: Classifier) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Maps of images ``(N, C, H, W)`` for their labels, ``(N, 14, 14)``."""
    stage = network.model.get_submodule(network.features)
    gradients, integrated, cam = Saliency(network), IntegratedGradients(network), LayerGradCam(network, stage)

    def grad_cam(images: Tensor, labels: Tensor) -> Tensor:
        grid = cam.attribute(images.requires_grad_(), target=labels, relu_attributions=True)
        assert isinstance(grid, Tensor)  # one layer, one map
        return smoothed(F.interpolate(grid.detach(), size=images.shape[2:], mode="bilinear"))

    return {
        "gradients": lambda images, labels: smoothed(
            gradients.attribute(images.requires_grad_(), target=labels).detach()
        ),
        "integrated gradients": lambda images, labels: torch.cat(
            [
                smoothed(integrated.attribute(image[None], target=label[None], n_steps=24).detach())
                for image, label in zip(images.detach(), labels, strict=True)
            ]
        ),
        "Grad-CAM": grad_cam,
    }


def measure() -> None:
    network, judge = imagenet_network("resnet18"), imagenet_network("mobilenet_v2")
    photographs = Samples.from_folder(ASSETS / "imagenet-samples", network.shape)
    kept, held_out = photographs.split()
    images = torch.cat(list(held_out.batches(64)))
    with torch.no_grad():
        logits = torch.cat([network(part) for part in images.split(64)])
    labels = logits.argmax(1)
    masks = silhouettes(judge, images)
    pairs = chosen_pairs(masks, logits)
    first, second = (torch.tensor(side) for side in zip(*pairs, strict=True))
    generator = torch.Generator().manual_seed(0)
    chance = torch.randint(len(images), (2, RANDOM_PAIRS), generator=generator)
    chance = chance[:, labels[chance[0]] != labels[chance[1]]]

    results: dict[str, dict[str, float]] = {
        "silhouettes": {
            "pairs": alike(masks[first], masks[second]).mean().item(),
            "random pairs": alike(masks[chance[0]], masks[chance[1]]).mean().item(),
        }
    }
    shown: dict[str, Tensor] = {}
    few = torch.cat([first, second, *chance[:, :40]]).unique()
    place = {int(i): k for k, i in enumerate(few)}

    def of(maps: Tensor, indices: Tensor) -> Tensor:
        return maps[[place[int(i)] for i in indices]]

    with network.frozen():
        for name, explain in input_specific(network).items():
            maps = explain(images[few].clone(), labels[few])
            shown[name] = maps
            results[name] = {
                "pairs": alike(of(maps, first), of(maps, second)).mean().item(),
                "random pairs": alike(of(maps, chance[0, :40]), of(maps, chance[1, :40])).mean().item(),
            }
            print(name, results[name], flush=True)
    classes = sorted({int(labels[i]) for pair in pairs for i in pair})
    concepts = {concept.label: concept for concept in agnosco.map_classes(network, classes, kept)}
    agnostic = [[concepts[int(labels[i])] for i in side] for side in (first, second)]
    patterns = [torch.stack([concept.pattern for concept in side]) for side in agnostic]
    scrambled = [a for i, a in enumerate(patterns[0]) for j in range(PAIRS) if i != j]
    others = [b for i in range(PAIRS) for j, b in enumerate(patterns[1]) if i != j]
    results["input-agnostic (quick)"] = {
        "pairs": alike(smoothed(patterns[0]), smoothed(patterns[1])).mean().item(),
        "random pairs": alike(smoothed(torch.stack(scrambled)), smoothed(torch.stack(others))).mean().item(),
    }
    told = [
        {
            "first": network.labels[int(labels[i])],
            "second": network.labels[int(labels[j])],
            "silhouettes": alike(masks[i : i + 1], masks[j : j + 1]).item(),
            **{
                name: alike(of(maps, first[k : k + 1]), of(maps, second[k : k + 1])).item()
                for name, maps in shown.items()
            },
            "input-agnostic (quick)": alike(smoothed(patterns[0][k : k + 1]), smoothed(patterns[1][k : k + 1])).item(),
        }
        for k, (i, j) in enumerate(pairs)
    ]
    PATH.write_text(json.dumps({"about": about(__doc__ or ""), "means": results, "pairs": told}, indent=1) + "\n")
    draw(images, pairs, {name: (of(maps, first), of(maps, second)) for name, maps in shown.items()}, agnostic)
    print(table(), flush=True)


def draw(images: Tensor, pairs: list[tuple[int, int]], maps: dict, agnostic: list[list]) -> None:
    """A row for each pair: both photographs, their maps, the maps of their classes."""
    tiles, captions = [], []
    for k, pair in enumerate(pairs):
        for side, index in enumerate(pair):
            tiles.append(enlarged(to_picture(images[index].detach()), 224))
            captions.append(agnostic[side][k].name)
            for name, both in maps.items():
                grid = both[side][k] / both[side][k].max()
                tiles.append(enlarged(to_picture(grid[None]), 224))
                captions.append(name)
            tiles.append(enlarged(to_picture(stretched(agnostic[side][k].pattern)), 224))
            captions.append("input-agnostic")
    sheet = contact_sheet(tiles, captions, columns=2 * (len(maps) + 2), tile=160)
    sheet.save(PICTURE)


def table() -> str:
    """The results as Markdown."""
    results = json.loads(PATH.read_text())
    means = results["means"]
    rows = [[name, f"{both['pairs']:.2f}", f"{both['random pairs']:.2f}"] for name, both in means.items()]
    named = "; ".join(f"{pair['first']} and {pair['second']}" for pair in results["pairs"])
    specific = fmean(
        both["pairs"] for name, both in means.items() if name not in ("silhouettes", "input-agnostic (quick)")
    )
    return (
        f"Pairs: {named}.\n\n"
        + markdown(["correlation of", "pairs of alike silhouettes and different predictions", "random pairs"], rows)
        + f"\n\nInput-specific maps: {specific:.2f} on average; input-agnostic ones: "
        f"{means['input-agnostic (quick)']['pairs']:.2f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true")
    if parser.parse_args().tables:
        put("evidence.md", "weak-dependence", table())
    else:
        measure()


if __name__ == "__main__":
    main()
