"""What is asked instead of one class: any number that can be computed from the logits of an image."""

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from ..errors import AgnoscoError
from .classifier import Classifier

Objective = Callable[[Tensor], Tensor]
"""Takes logits ``(N, classes)``, answers ``(N,)``: the greater, the better."""


def with_objective(classifier: Classifier, objective: Objective, name: str) -> Classifier:
    """A copy that shares the classifier's model, and whose two classes are an objective f and its opposite.

    Its logits are (f, −f), so that it gives an image the first class where f is positive, with the probability
    1 / (1 + exp(−2 f)).

    Raises:
        AgnoscoError: The objective does not answer a differentiable number for each image.
    """
    for count in (2, 1, 3):  # an objective may squeeze too much, or take a number of images for granted
        logits = torch.randn(count, classifier.classes, device=classifier.device, requires_grad=True)
        with torch.enable_grad():
            values = _of_each(objective, logits)
        if not values.requires_grad:
            message = "the objective does not depend on the logits in a way that can be differentiated"
            raise AgnoscoError(message, "leave out argmax, rounding and detach; use the logits, softmax or log_softmax")
    copied = copy.copy(classifier)
    with suppress(AgnoscoError):  # a network without a feature map
        copied._features = classifier.features  # which is found by the number of its own classes
    copied.objective = partial(_of_each, objective)
    copied.classes, copied.labels = 2, (name, f"minus {name}")
    return copied


def _of_each(objective: Objective, logits: Tensor) -> Tensor:
    """The objective's answer, one number for each image."""
    values = objective(logits)
    if not isinstance(values, Tensor) or values.shape != (len(logits),):
        answer = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        message = f"the objective answers {answer} to logits {tuple(logits.shape)}, not ({len(logits)},)"
        raise AgnoscoError(message, "answer one number for each image, such as logits[:, 3] - logits[:, 5]")
    return values
