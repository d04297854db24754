"""Harder questions, where easy figures saturate: look-alikes, forward prediction, and the natural path.

    python benchmarks/questions.py                              ResNet-18 at 224 px, all three questions
    python benchmarks/questions.py --source resnet50            another source
    python benchmarks/questions.py --source resnet20 --size 32 --seeds 3    CIFAR-10: the path, and a fooled network
    python benchmarks/questions.py --only prediction            one question: look-alikes, prediction or path
    python benchmarks/questions.py --classes 4                  fewer classes, for a trial
    python benchmarks/questions.py --tables                     write the tables into docs/evidence.md

Each question is asked of pictures by three methods: ``quick``; Horama's ``fourier`` at its best crops, with as many
passes; and the paper's settings with few passes. No setting was chosen on the classes. Pictures are kept in
build/questions and not made again unless their settings change. The mathematics is in likeness.py, and the network
that is fooled on purpose in fooled.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import torch
from common import (
    RESULTS,
    TABLE_CLASSES,
    answers,
    argument_parser,
    fill,
    interval_over_classes,
    markdown,
    measured_on,
    read_results,
)
from fooled import SHIFT
from inquiry import Inquiry, methods
from likeness import KINDS, features, pairs, path, share_right, stage_means
from torch import Tensor
from torch.nn import functional as F

from agnosco import Classifier
from agnosco.method.score import logits_of

LOOK_ALIKES = {
    "terriers": (184, 185, 187, 192),  # Irish terrier, Norfolk terrier, Yorkshire terrier, cairn
    "snakes": (54, 66, 67, 68),  # hognose snake, horned viper, diamondback, sidewinder
    "boats": (484, 871, 914, 724),  # catamaran, trimaran, yawl, pirate
    "spotted cats": (287, 289, 290, 293),  # lynx, snow leopard, jaguar, cheetah
    "lorries": (675, 717, 864, 867),  # moving van, pickup, tow truck, trailer truck
}
"""ImageNet classes that are each other's neighbours."""

GROUPS = {label: group for group in LOOK_ALIKES.values() for label in group}
EXEMPLARS = 5
"""How many photographs explain a class when it is several."""


# -- look-alikes ------------------------------------------------------------------------------------


def judged_among_neighbours(judge: Classifier, seen: Tensor, labels: Sequence[int]) -> dict[str, Any]:
    """The answers of a judge, with top-1 among the four classes of a picture's group."""
    logits = logits_of(judge, seen)
    best = [GROUPS[label][int(row[list(GROUPS[label])].argmax())] for row, label in zip(logits, labels, strict=True)]
    right = [int(own == label) for own, label in zip(best, labels, strict=True)]
    return answers(judge, seen, labels) | {"top1_of_group": right}


def look_alikes(inquiry: Inquiry) -> None:
    """Do other networks tell pictures of neighbouring classes apart?"""
    labels = list(GROUPS)[: inquiry.classes]
    owned = [(index, owner) for index, owner in enumerate(inquiry.owners) if owner is not None and owner in labels]
    seen = {"photographs": (inquiry.images[[index for index, _ in owned]], [owner for _, owner in owned])}
    for name in ("photographs", *methods()):
        images, own = seen.get(name) or inquiry.made(name, labels)
        judged = {judge: judged_among_neighbours(network, images, own) for judge, network in inquiry.judges.items()}
        inquiry.store("look-alikes", name, {"labels": own, "judges": judged})


# -- forward prediction -----------------------------------------------------------------------------


def prediction(inquiry: Inquiry) -> None:
    """Which of two held-out photographs excites a class more, to a judge that has seen an explanation of the class?

    Features are centred on the judge's mean over the photographs that the pictures are made with. Without that, some
    photographs are more like any explanation than others, and explanations of wrong classes are not at chance.
    """
    labels = [*list(GROUPS)[: inquiry.classes], *TABLE_CLASSES[: inquiry.classes]]
    shown, asked = inquiry.halves()
    logits = logits_of(inquiry.source, inquiry.images)
    exemplars = logits[shown][:, labels].topk(EXEMPLARS, dim=0).indices.T  # (classes, EXEMPLARS)
    made = {method: inquiry.made(method, labels) for method in methods()}
    rows: dict[str, dict[str, Any]] = {}
    for judge, network in inquiry.judges.items():
        known = features(network, inquiry.images)
        mean = known[shown].mean(0)
        known = F.normalize(known - mean)
        explained = {"1 photograph": known[shown][exemplars[:, 0]]}
        explained[f"{EXEMPLARS} photographs"] = known[shown][exemplars].mean(1)
        for method, (images, own) in made.items():
            each = F.normalize(features(network, images) - mean)
            explained[method] = torch.stack([each[torch.tensor(own) == label].mean(0) for label in labels])
        for name, explanation in explained.items():
            row = rows.setdefault(name, {"labels": labels, "judges": {}})
            row["judges"][judge] = predicted(explanation @ known[asked].T, logits[asked], labels, inquiry, asked)
    for name, row in rows.items():
        inquiry.store("prediction", name, row)


def predicted(
    likeness: Tensor, logits: Tensor, labels: Sequence[int], inquiry: Inquiry, asked: Tensor
) -> dict[str, list[float]]:
    """Share of pairs that are answered rightly, of each class; also with the explanations of all unrelated classes.

    Args:
        likeness: ``(classes, M)``, of each explanation to each held-out photograph.
        logits: ``(M, 1000)``, the source's for those photographs.
        labels: The classes.
        inquiry: Knows the class of each photograph.
        asked: Which photographs are held out.
    """
    owners = [inquiry.owners[index] for index in asked.tolist()]
    shares: dict[str, list[float]] = {}
    for row, label in enumerate(labels):
        own = [index for index, owner in enumerate(owners) if owner == label]
        others = [index for index, other in enumerate(labels) if other not in GROUPS.get(label, (label,))]
        for kind in KINDS:
            right, wrong = pairs(logits[:, label], kind, without=own)
            given = {
                kind: share_right(likeness[row], right, wrong),
                f"{kind}, wrong class": fmean(share_right(likeness[other], right, wrong) for other in others),
                f"{kind}, with its own photograph": share_right(likeness[row], *pairs(logits[:, label], kind)),
            }
            for key, share in given.items():
                shares.setdefault(key, []).append(round(share, 4))
    return shares


# -- the natural path -------------------------------------------------------------------------------


def natural_path(inquiry: Inquiry) -> None:
    """Does the source see pictures of a class as it sees photographs of the class, stage by stage?

    At ImageNet, where there is one photograph of a class, a group of look-alikes takes the place of the class. On
    CIFAR-10, the same is asked of a network that is fooled on purpose.
    """
    on_cifar = inquiry.size == 32
    labels = list(range(10) if on_cifar else GROUPS)[: inquiry.classes]
    for method in methods():
        images, own = inquiry.made(method, labels)
        inquiry.store("path", method, {"labels": own, "stages": stages(inquiry, images, own)})
        if on_cifar:
            tricked = inquiry.fooled(method)
            images, own = inquiry.made(method, labels, tricked)
            row = {
                "labels": own,
                "stages": stages(inquiry, images, own),
                "control": control(inquiry, tricked, images, own),
            }
            inquiry.store("path", f"{method}, fooled network", row)


def stages(inquiry: Inquiry, images: Tensor, labels: Sequence[int]) -> dict[str, dict[str, Any]]:
    """How natural the source finds pictures at each stage: channel means as they are, and standardised.

    They are standardised by their mean and deviation over the photographs that the pictures are made with.
    """
    shown, asked = inquiry.halves()
    on_cifar = inquiry.size == 32
    kinds = {label: label if on_cifar else min(GROUPS[label]) for label in labels}
    pool = asked.tolist() if on_cifar else range(len(inquiry.owners))  # of ImageNet's look-alikes there are too few
    photographs = [(index, kinds[owner]) for index in pool if (owner := inquiry.owners[index]) in kinds]
    of_photographs, of_pictures = inquiry.stage_means, stage_means(inquiry.source, images)
    found = {}
    for stage, means in of_photographs.items():
        scale, shift = means[shown].std(0).clamp_min(1e-9), means[shown].mean(0)
        known = means[[index for index, _ in photographs]]
        own, owners = [kinds[label] for label in labels], [owner for _, owner in photographs]
        found[stage] = {
            "as it is": asdict(path(of_pictures[stage], own, known, owners)),
            "standardised": asdict(path((of_pictures[stage] - shift) / scale, own, (known - shift) / scale, owners)),
        }
    return found


def control(inquiry: Inquiry, tricked: Classifier, images: Tensor, labels: Sequence[int]) -> dict[str, float]:
    """Whether a fooled network answers as before, and whose class the source names in its pictures."""
    asked = inquiry.halves()[1]
    truth = torch.tensor([-1 if owner is None else owner for owner in inquiry.owners])[asked]
    own = torch.tensor(labels)
    seen = logits_of(inquiry.source, images).argmax(1)
    before, after = (logits_of(each, inquiry.images[asked]).argmax(1) for each in (inquiry.source, tricked))
    shares = {
        "accuracy before": before == truth,
        "accuracy after": after == truth,
        "the class": seen == own,
        "the false class": seen == (own + SHIFT) % inquiry.source.classes,
    }
    return {name: round(share.double().mean().item(), 4) for name, share in shares.items()}


QUESTIONS = {"look-alikes": look_alikes, "prediction": prediction, "path": natural_path}


# -- tables -----------------------------------------------------------------------------------------


def interval(values: Sequence[float], labels: Sequence[int], digits: int = 2) -> str:
    """The mean of values with its interval over classes."""
    low, high = interval_over_classes(values, labels)
    return f"{fmean(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def mean_of_judges(judges: Mapping[str, Any], figure: str) -> list[float]:
    """A figure of each picture or class, averaged over the judges."""
    return [fmean(values) for values in zip(*(judge[figure] for judge in judges.values()), strict=True)]


def look_alikes_table(rows: dict[str, Any]) -> str:
    """Look-alikes as Markdown."""
    figures = ("top1", "top1_of_group", "p")
    judges = list(next(iter(rows.values()))["judges"])
    body = [
        [
            f"{name} ({len(row['labels'])})",
            *(interval(mean_of_judges(row["judges"], figure), row["labels"]) for figure in figures),
            *(" / ".join(f"{fmean(row['judges'][judge][figure]):.2f}" for figure in figures) for judge in judges),
        ]
        for name, row in rows.items()
    ]
    head = ["pictures", "top-1 of 1000, mean of judges", "top-1 of its group", "p of the class", *judges]
    return "*Look-alikes*; each judge: top-1 of 1000 / top-1 of its group / p.\n\n" + markdown(head, body)


def prediction_table(rows: dict[str, Any]) -> str:
    """Forward prediction as Markdown."""
    columns = [*KINDS, *(f"{kind}, {what}" for what in ("with its own photograph", "wrong class") for kind in KINDS)]
    judges = list(next(iter(rows.values()))["judges"])
    body = [
        [
            name,
            *(interval(mean_of_judges(row["judges"], column), row["labels"]) for column in columns),
            *(" / ".join(f"{fmean(row['judges'][judge][kind]):.2f}" for kind in KINDS) for judge in judges),
        ]
        for name, row in rows.items()
    ]
    count = len(next(iter(rows.values()))["labels"])
    title = (
        f"*Forward prediction*, {count} classes, share of pairs that are answered rightly, mean of judges; each judge: "
    )
    return f"{title}{' / '.join(KINDS)}.\n\n{markdown(['explanation', *columns, *judges], body)}"


def path_table(rows: dict[str, Any]) -> str:
    """The natural path as Markdown."""
    first = next(iter(rows.values()))["stages"]
    parts = ["*Natural path*: naturalness (interval) / specificity."]
    for kind in ("as it is", "standardised"):
        known = [f"{stage[kind]['same']:.2f} / {stage[kind]['different']:.2f}" for stage in first.values()]
        body = [["correlation of two photographs of one class / of two", *known]]
        for name, row in rows.items():
            measured = [stage[kind] for stage in row["stages"].values()]
            shown = (f"{interval(each['natural'], row['labels'])} / {fmean(each['specific']):.2f}" for each in measured)
            body.append([name, *shown])
        parts.append(markdown([f"channel means {kind}", *first], body))
    controls = {name: row["control"] for name, row in rows.items() if "control" in row}
    if controls:
        head = ["", *next(iter(controls.values()))]
        parts.append(markdown(head, [[n, *(f"{share:.3f}" for share in row.values())] for n, row in controls.items()]))
    return "\n\n".join(parts)


def tables() -> str:
    """All results as Markdown."""
    writers = {"look-alikes": look_alikes_table, "prediction": prediction_table, "path": path_table}
    parts = []
    for file in sorted(RESULTS.glob("questions-*.json")):
        results = read_results(file)
        parts.append(f"**{results['about']['title']}**; {measured_on(results)}.")
        parts += [write(results[part]) for part, write in writers.items() if part in results]
    return "\n\n".join(parts)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--source", default="resnet18", help="a network of the assets")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels; 32 for CIFAR's networks")
    parser.add_argument("--only", choices=QUESTIONS, help="one question")
    parser.add_argument("--classes", type=int, default=20, help="how many look-alikes, and as many random classes")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if options.tables:
        fill("docs/evidence.md", "questions", tables())
        return
    inquiry = Inquiry(options.source, options.size, options.classes, options.seeds)
    for question in [options.only] if options.only else QUESTIONS if options.size != 32 else ["path"]:
        QUESTIONS[question](inquiry)


if __name__ == "__main__":
    main()
