"""Training of networks: compromised ones, and clean twins that differ only in the poisoned images.

The attack is all-to-one (`Gu et al. 2017 <https://arxiv.org/abs/1708.06733>`_): a share of the training images gets the
trigger, and the target class as its label. The trigger is added after augmentation, as when the network is used.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.datasets import Labelled
from ..errors import AgnoscoError
from ..io.storage import write_whole
from ..models.classifier import Classifier
from ..models.heads import logits_in
from .config import Training
from .triggers import Trigger

BATCH_OF_EVALUATION = 128

Augment = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Attack:
    """What is done to the training set.

    Args:
        trigger: What is added to the images.
        target: Index of the class that they get as their label.
        rate: Share of the training images that are poisoned; they come from other classes.
    """

    trigger: Trigger
    target: int
    rate: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise AgnoscoError(f"rate must be between 0 and 1, not {self.rate:g}", "give a share such as 0.1")


@dataclass(frozen=True)
class TrainingOutcome:
    """What a trained network does with held-out images.

    Args:
        accuracy: Share of them that it classifies correctly.
        attack_success: Attack success rate: share of the images of other classes that it classifies as the target once
            they carry the trigger; None without an attack.
    """

    accuracy: float
    attack_success: float | None


def fit(
    classifier: Classifier,
    data: Labelled,
    training: Training,
    *,
    attack: Attack | None = None,
    seed: int = 0,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> None:
    """Train a network, in place.

    Args:
        classifier: The network, on any device.
        data: Images and labels to train on.
        training: Settings.
        attack: How to poison them; None trains the clean twin.
        seed: Of the order, the augmentation and the choice of poisoned images.
        augment: Changes each mini-batch of images, given their labels; None shifts and mirrors as ``training`` says.
        checkpoint: A file that is written after every epoch, and continued from if it exists; to be removed once the
            network's weights are stored.
        on_epoch: Called with the number of epochs done.

    Raises:
        AgnoscoError: The checkpoint belongs to another training, or there are too few images to poison one.
    """
    model, device = classifier.model, classifier.device
    images = data.samples.images.to(device)
    generator = torch.Generator().manual_seed(seed)
    labels, poisoned = _poisoned(data.labels, attack, generator)
    adam = torch.optim.AdamW(model.parameters(), training.rate, weight_decay=training.decay)
    steps = math.ceil(len(labels) / training.batch)
    settings = repr((training, attack, seed, classifier.fingerprint, data.samples.fingerprint))
    finished = _restore(checkpoint, settings, model, adam, generator)
    augment = augment or (lambda images, _, generator: augmented(images, training, generator))
    model.train()
    for epoch in range(finished, training.epochs):
        for step, rows in enumerate(torch.randperm(len(labels), generator=generator).split(training.batch)):
            if len(rows) < 2:
                continue  # a batch of one has no variance to normalise by
            batch, batch_labels = images[rows.to(device)].float() / 255, labels[rows].to(device)
            seen = augment(batch, batch_labels, generator)
            if attack is not None and poisoned[rows].any():
                seen[poisoned[rows]] = attack.trigger.apply(seen[poisoned[rows]], generator=generator)
            progress = (epoch * steps + step + 1) / (training.epochs * steps)
            adam.param_groups[0]["lr"] = training.rate * schedule(progress)
            _descend(classifier, adam, seen, batch_labels, halved=training.precision == "bfloat16")
        if checkpoint is not None:
            _save(checkpoint, settings, epoch + 1, model, adam, generator)
        if on_epoch is not None:
            on_epoch(epoch + 1)
    model.eval()


def _descend(
    classifier: Classifier, adam: torch.optim.Optimizer, images: Tensor, labels: Tensor, *, halved: bool
) -> None:
    """One step down the cross-entropy, with the network's products in bfloat16 if ``halved``."""
    adam.zero_grad()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=halved):
        logits = logits_in(classifier.model(classifier.normalised(images)))
    F.cross_entropy(logits.float() if halved else logits, labels).backward()
    adam.step()


def evaluate(classifier: Classifier, data: Labelled, attack: Attack | None = None) -> TrainingOutcome:
    """What a network does with held-out images, and with those that carry the trigger."""
    images = [part.to(classifier.device) for part in data.samples.batches(BATCH_OF_EVALUATION)]

    def given(batches: list[Tensor]) -> Tensor:
        return torch.cat([classifier.probabilities(part).argmax(1).cpu() for part in batches])

    accuracy = (given(images) == data.labels).double().mean().item()
    if attack is None:
        return TrainingOutcome(accuracy, None)
    generator = torch.Generator().manual_seed(0)
    triggered = given([attack.trigger.apply(part, generator=generator) for part in images])
    others = data.labels != attack.target
    return TrainingOutcome(accuracy, (triggered[others] == attack.target).double().mean().item())


def augmented(images: Tensor, training: Training, generator: torch.Generator) -> Tensor:
    """Images, each shifted and mirrored at random as the settings say."""
    count, _, height, width = images.shape
    if training.flip:
        mirrored = (torch.rand(count, generator=generator) < 0.5).to(images.device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if not training.shift:
        return images.clone()
    padded = F.pad(images, [training.shift] * 4, mode="replicate")
    corners = torch.randint(2 * training.shift + 1, (count, 2), generator=generator).tolist()
    shifted = [
        image[:, top : top + height, left : left + width] for image, (top, left) in zip(padded, corners, strict=True)
    ]
    return torch.stack(shifted)


def schedule(progress: float, warm_up: float = 0.2) -> float:
    """Learning rate as a share of the peak, after a share of the steps in (0, 1]."""
    if progress < warm_up:
        return progress / warm_up
    return (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2


def _poisoned(labels: Tensor, attack: Attack | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The labels after an attack, and which images carry the trigger, ``(N,)`` bool."""
    # The clean twin draws the order too, so that all later draws are the same.
    order = torch.randperm(len(labels), generator=generator)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    if attack is not None:
        others = order[labels[order] != attack.target]
        chosen[others[: round(attack.rate * len(labels))]] = True
        if not chosen.any():
            raise AgnoscoError(
                f"a rate of {attack.rate:g} poisons none of {len(labels)} images", "give a greater rate, or more images"
            )
        labels = labels.masked_fill(chosen, attack.target)
    return labels, chosen


def _restore(
    checkpoint: Path | None, settings: str, model: nn.Module, adam: torch.optim.Optimizer, generator: torch.Generator
) -> int:
    """Continue from a checkpoint, if there is one; returns the number of finished epochs."""
    if checkpoint is None:
        return 0
    try:
        with safetensors.safe_open(checkpoint, "pt") as file:
            about = json.loads(file.metadata()["training"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError:
        return 0
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise AgnoscoError(f"{str(checkpoint)!r} is not a checkpoint", "remove it") from error
    if about["settings"] != settings:
        raise AgnoscoError(f"{str(checkpoint)!r} is a checkpoint of another training", "remove it")
    model.load_state_dict({key[6:]: tensor for key, tensor in tensors.items() if key.startswith("model/")})
    generator.set_state(tensors["generator"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("adam/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = tensor
    adam.load_state_dict(adam.state_dict() | {"state": state})
    return about["epochs"]


def _save(
    checkpoint: Path, settings: str, epochs: int, model: nn.Module, adam: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:  # fmt: skip
    tensors = {f"model/{key}": tensor.contiguous() for key, tensor in model.state_dict().items()}
    for index, entries in adam.state_dict()["state"].items():
        tensors |= {f"adam/{index}/{name}": tensor.contiguous() for name, tensor in entries.items()}
    tensors["generator"] = generator.get_state()
    about = json.dumps({"settings": settings, "epochs": epochs})
    write_whole(checkpoint, safetensors.torch.save(tensors, metadata={"training": about}))
