"""What the maps of a run were made from, and a map made again from it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ..errors import AgnoscoError, AgnoscoWarning
from ..io.storage import Folder, Place
from .manifest import ModelRecord, SamplesRecord, Settings, cpu_kind, identity, versions
from .run import Run

if TYPE_CHECKING:
    from torch import nn

    from ..data.samples import Samples
    from ..method.concept import ConceptMap
    from ..models.classifier import Classifier


def classifier_of(run: Run, model: Classifier | nn.Module | str) -> Classifier:
    """The classifier of a run; a module or a name is taken with the run's size, normalization and feature layer."""
    from ..models.classifier import Classifier
    from ..models.loading import load

    if isinstance(model, Classifier):
        return model
    own = run.settings.model
    channels, height, width = own.shape
    if own.directions:
        message = f"{run.folder.name!r} asked for directions ({own.directions}), which are not in it"
        raise AgnoscoError(message, f"load the classifier with them: at={own.at!r}, directions=FILE")
    return load(
        model, size=(height, width), channels=channels, mean=own.mean, std=own.std, features=own.features, at=own.at
    )


def check_origin(run: Run, classifier: Classifier, samples: Samples) -> Settings:
    """Check that a run was made with this classifier and all of these samples; AgnoscoError if not.

    Returns:
        The settings that a run with them would have here and now.
    """
    import torch

    before = run.settings
    now = replace(
        before, device=str(classifier.device), threads=torch.get_num_threads(), versions=versions(),
        model=ModelRecord.of(classifier, before.model.weights, run.config), samples=SamplesRecord.of(samples),
        cpu=cpu_kind(str(classifier.device)),
    )  # fmt: skip
    for what, old, new in (("model", before.model, now.model), ("samples", before.samples, now.samples)):
        if (old.fingerprint, old.shape) != (new.fingerprint, new.shape):
            raise AgnoscoError(
                f"{run.folder.name!r} was made with other {what}: {identity(old)}, not {identity(new)}",
                "load what its manifest names, at the same size, with the same mean and std; of samples, as many with "
                "the same seed",
            )
    if before.model.features != now.model.features:  # the refinement compares them
        raise AgnoscoError(
            f"{run.folder.name!r} was refined with features {before.model.features!r}, not {now.model.features!r}",
            "load the classifier with those features",
        )
    return now


def remake(
    path: Place | Folder, index: int, seed: int, classifier: Classifier | nn.Module | str, samples: Samples
) -> ConceptMap:
    """A map of a run, made again from its manifest, alone: the same except for the rounding of sums.

    Args:
        index, seed: Class and seed of the map.
        classifier: The run's network, loaded again; see :func:`classifier_of`.
        samples: All the run's samples, read again.

    Raises:
        AgnoscoError: The run has no such map, or was made with another classifier or other samples.

    Example:
        >>> from agnosco import Run, Samples, load, remake
        >>> classifier = load("python:net.py:build", size=16, trust_code=True)
        >>> concept = remake("agnosco-run", 1, 0, classifier, Samples.noise(classifier.shape, count=10))
        >>> concept.nu.equal(Run.open("agnosco-run").map(1).nu)
        True
    """
    from ..method.maker import map_class

    run = Run.open(path)
    run.entry(index, seed)
    classifier = classifier_of(run, classifier)
    before, now = run.settings, check_origin(run, classifier, samples)
    compared = {key: (getattr(before, key), getattr(now, key)) for key in ("versions", "device", "threads", "cpu")}
    if before.cpu is None:
        del compared["cpu"]  # an earlier version did not note it
    if differing := [f"{key} {old}, now {new}" for key, (old, new) in compared.items() if old != new]:
        message = f"the last bits of the map may differ ({'; '.join(differing)})"
        warnings.warn(message, AgnoscoWarning, stacklevel=2)
    made_with, _ = samples.split(before.samples.held_out, seed=before.samples.split_seed)
    return map_class(classifier, index, made_with, run.config, seed=seed)
