"""The first look at all classes: how far a network can be pushed towards each (Wang et al. 2024, "MM-BD").

It needs no samples and takes seconds, and a backdoor usually lets one class's margin grow. So it says which classes to
look at first, and that a class of small margin is no target. It does not decide alone: networks whose backdoor was
removed keep the large margin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..method.prepare import images_at_once, prepared, resolve_precision
from ..models.classifier import Classifier
from .config import MANY_CLASSES, FirstLook
from .verdict import MarginEvidence

RATE = 0.05
"""Learning rate of the ascent, in [0, 1] pixel units."""

TAIL, LEAST_TAIL, MOST_TARGETS = 0.05, 20, 5
"""Share of the classes whose margins show how large ones fall off, and how many these are at least; and how many of
them may be those of targets."""

MOST_EXPONENT = 20.0
"""If margins fall off faster, it is taken to be this: among margins that are almost equal, a tiny difference must not
make an outlier."""


def margins(
    classifier: Classifier,
    first: FirstLook | None = None,
    *,
    classes: list[int] | None = None,
    seed: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> Tensor:
    """The greatest logit margin of each class over all images, ``(classes,)`` on the CPU.

    Found by ascent from random images, the best of several starts (`Wang et al. 2024
    <https://arxiv.org/abs/2205.06900>`_). The paper takes 30 starts of up to 300 steps; its authors' code ascends by
    SGD until the margin changes by less than 1e-5, where this takes a number of steps of Adam, and clamps the image
    inside the network's input, where this projects it after every step. Classes run side by side, and all have the
    same starts.

    Args:
        classifier: The network.
        first: Starts and steps.
        classes: Indices; None takes all.
        seed: Of the starts.
        on_images: Called after every step with the number of images that it took.
    """
    first = first or FirstLook()
    labels = torch.tensor(range(classifier.classes) if classes is None else classes).repeat_interleave(first.starts)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(first.starts, *classifier.shape, generator=generator)
    faster = prepared(classifier, precision=resolve_precision("auto", classifier.device))
    greatest: list[Tensor] = []
    with faster.frozen(), classifier.frozen():
        for rows in torch.arange(len(labels)).split(images_at_once(faster)):
            targets = labels[rows].to(classifier.device)
            images = _ascended(faster, starts[rows % first.starts].to(classifier.device), targets, first, on_images)
            with torch.no_grad():
                greatest.append(margin(classifier(images), targets).cpu())
    return torch.cat(greatest).view(-1, first.starts).amax(1)


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """How far the logit of each image's class lies above all others, ``(N,)``."""
    own = logits.gather(1, targets[:, None])
    return (own - logits.scatter(1, targets[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]


def margin_p_value(margins: Tensor) -> float:
    """How likely the greatest margin is by chance (MM-BD, Eq. 4): Gamma fitted to all others.

    By their moments, with location 0; the authors' code fits scale, shape and location by maximum likelihood.
    """
    if len(margins) < 3:  # no distribution can be fitted to fewer than two others
        return 1.0
    others = margins.sort().values[:-1].double().clamp_min(1e-6)
    scale = others.var(unbiased=False) / others.mean()
    if scale <= 0:
        return 1.0 if margins.max() <= others.max() else 0.0
    below = torch.special.gammainc(others.mean() / scale, margins.max().double().clamp_min(0) / scale)
    return 1 - below.item() ** len(margins)


def tail_p_values(margins: Tensor) -> Tensor:
    """How likely it is, for each class, that any class has so large a margin, if large margins follow Pareto's law.

    Of hundreds of classes, some have margins far above most in any network. So the largest are compared with each
    other: the law's exponent is found from the largest 5 % (`Hill 1975 <https://doi.org/10.1214/aos/1176343247>`_), and
    the law continued to larger margins (`Weissman 1978 <https://doi.org/10.1080/01621459.1978.10480104>`_). Of the five
    largest, which may be targets, the exponent takes only that they are larger than the others (censored). As it is
    found from few margins, it is not taken to be certain: the expected number of larger margins is its mean over all
    exponents, by how well they fit (with the density 1 / exponent before).

    Args:
        margins: Of all classes, ``(classes,)``.

    Returns:
        ``(classes,)``, each in [0, 1]. All are almost 1 if the margins cannot tell (:func:`cannot_tell`): if nearly all
        are equal, or no more than 20 or 5 % are positive, or there are fewer than three.
    """
    values = margins.double()
    ordered = values.sort(descending=True).values
    count = min(max(LEAST_TAIL, round(TAIL * len(values))), len(values) - 1)
    if count < 2 or ordered[count] <= 0:
        return torch.ones_like(values)
    free = count - min(MOST_TARGETS, count // 4)
    logs = (ordered[:count] / ordered[count]).log()
    total = logs[-free:].sum() + (count - free) * logs[-free]  # the estimate of the exponent is free / total
    above = (values / ordered[count]).clamp_min(1).log()
    expected = count * (1 + above / total.clamp_min(free / MOST_EXPONENT)) ** -free
    return -torch.expm1(-expected)


def cannot_tell(p_values: Tensor) -> bool:
    """Whether margins with such :func:`tail_p_values` do not tell classes apart."""
    return p_values.min().item() > 1 - 1e-6


def evidence_of(margins: Tensor, columns: Sequence[int]) -> MarginEvidence:
    """What the margins of all classes ``(classes,)`` say of some of them."""
    large, chosen = margins >= margins.median(), list(columns)  # of an even number the lower one in the middle
    return MarginEvidence(large[chosen], tail_p_values(margins)[chosen] if len(margins) >= MANY_CLASSES else None)


def _ascended(
    network: Classifier, images: Tensor, targets: Tensor, first: FirstLook, on_images: Callable[[int], None] | None
) -> Tensor:
    """Images after the ascent of their margins."""
    images = images.clone().requires_grad_()
    adam = torch.optim.Adam([images], RATE)
    for _ in range(first.steps):
        (images.grad,) = torch.autograd.grad(-margin(network(images), targets).sum(), images)
        adam.step()
        images.data.clamp_(0, 1)
        if on_images is not None:
            on_images(len(images))
    return images.detach()
