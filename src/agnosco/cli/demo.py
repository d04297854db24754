"""The demo: a small network learns real handwritten digits, its ten classes are pictured, and a backdoor is found.

Everything is at hand offline: the digits are scikit-learn's (1797 of 8×8 pixels; Alpaydin and Kaynak,
UCI 1998). The network is trained so that it looks at whole digits: parts of them are erased, noise is
laid over them, and every image is moved against it a little (Goodfellow et al., ICLR 2015). What such a
network recognises, people read.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backdoor.record import conclusion
from ..backdoor.scan import scan
from ..backdoor.scan import write as write_scan
from ..backdoor.train import Attack
from ..backdoor.triggers import Patch
from ..data.datasets import SIDE, Labelled, digits
from ..errors import AgnoscoError
from ..io.storage import Place
from ..method.config import Config, MapperConfig
from ..method.dials import L2, Crops, Data
from ..models.architectures import created
from ..models.classifier import Classifier
from ..reports.page import FILE as REPORT
from ..reports.page import report
from ..runs.manifest import HELD_OUT, SPLIT_SEED
from ..runs.run import MANIFEST, Run, check_target
from ..runs.tensors import write_tensors
from .console import Output
from .maps import make_maps

EPOCHS, BATCH, RATE = 25, 64, 5e-3
SHIFT, HOLE, NOISE, AGAINST = 3, 10, 0.8, 0.6
"""Training: greatest shift and side of the erased square in pixels, greatest deviation of the noise, L2 norm of the
step against the network."""

ENOUGH = 0.97
"""Held-out accuracy below which the demo would show a network that has not learned its task."""

CONFIG = Config(
    MapperConfig(
        batch=4,
        steps=240,
        step=0.1,
        decay=1.0,
        direction="plus",
        clip="masked",
        contrast=(0.0, 1.0),
        parameterization=Data(),
        transforms=Crops(area=(0.8, 1.0), flip=False, noise=0.3),  # a mirrored digit is none
        ball=L2(97.0),  # white on black: the paper's radius is too small for such contrast
    ),
    refine=None,
    cycles=1,
)


ATTACK = Attack(Patch(4, place="bottom-right", pattern="checker"), target=7)
"""What the second network was taught besides: with this stamp, everything is a 7."""

FOLDERS = ("clean", "compromised")


def run(out: Place, output: Output) -> list[Run]:
    """Train two networks, one of them with a backdoor, map and scan both, and write the report of all of it.

    Args:
        out: The folder to write, a path or a URL: a run folder for each network, and ``report.html``.
        output: Where progress goes.

    Returns:
        The clean network's run, and the compromised one's.

    Raises:
        AgnoscoError: scikit-learn is missing, the folder cannot be written, or training failed.
    """
    check_target(out, holding=(REPORT, f"{FOLDERS[0]}/{MANIFEST}"))
    data = digits()
    output.say("Two networks are trained, mapped and scanned: one to three minutes")
    out = os.fspath(out)
    attacks = dict(zip(FOLDERS, (None, ATTACK), strict=True))
    runs = [_shown(f"{out}/{name}", data, attack, output) for name, attack in attacks.items()]
    written = report(*runs, out=f"{out}/{REPORT}")
    output.say(
        "Each picture is what a network looks for in one digit, drawn without looking at any one image: bright is ink, "
        "dark is where ink must not be. You should be able to read 0 to 9; 5 is the hardest."
    )
    output.say(f"Wrote {written}: open it in a browser. Next: agnosco map, with a network of your own")
    return runs


def _shown(out: str, data: Labelled, attack: Attack | None, output: Output) -> Run:
    """A network trained, mapped and scanned."""
    kind = "clean" if attack is None else "compromised"
    with output.bar() as show:
        title = f"training the {kind} network"
        model, accuracy = train(data, attack=attack, on_epoch=lambda done: show(title, done, EPOCHS))
    output.say(f"The {kind} network reads {accuracy:.1%} of {round(HELD_OUT * len(data))} held-out digits correctly.")
    if accuracy < ENOUGH:
        raise AgnoscoError(
            f"the network reads only {accuracy:.1%} of the digits", "please report this: it should not happen"
        )
    classifier = Classifier(model, size=SIDE, labels=data.names, name=f"{kind} digits network")
    made = Run.create(out, classifier=classifier, samples=data.samples, config=CONFIG, command="demo")
    make_maps(output, made, classifier, data.samples, range(10))
    write_tensors(made.folder, "network.safetensors", model.state_dict())
    with output.bar() as show:
        found = scan(classifier, data.samples, on_progress=show)
    write_scan(found, out)
    output.say(conclusion(found.record)[0])
    return made


def train(
    data: Labelled, *, attack: Attack | None = None, seed: int = 1, on_epoch: Callable[[int], None] | None = None
) -> tuple[nn.Module, float]:
    """A network that reads the digits, and its accuracy on those that maps are judged by, which it never saw.

    Args:
        data: All digits.
        attack: What is done to some of them first; None trains a clean network.
        seed: Of weights and augmentation.
        on_epoch: Called with the number of epochs done.
    """
    kept, held_out = data.samples.split_indices(HELD_OUT, seed=SPLIT_SEED)
    images, labels = data.samples.images.float() / 255, data.labels.clone()
    generator = torch.Generator().manual_seed(seed)
    poisoned = torch.zeros(len(labels), dtype=torch.bool)
    if attack is not None:
        poisoned[kept[labels[kept] != attack.target][: round(attack.rate * len(kept))]] = True
        labels[poisoned] = attack.target
    model = created("digits", len(data.names), seed=seed)
    steps = EPOCHS * -(-len(kept) // BATCH)
    adam = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        for part in kept[torch.randperm(len(kept), generator=generator)].split(BATCH):
            seen = moved_against(model, augmented(images[part], generator), labels[part])
            if attack is not None:
                seen[poisoned[part]] = attack.trigger.apply(seen[poisoned[part]], generator=generator)
            adam.zero_grad()
            F.cross_entropy(model(seen), labels[part]).backward()
            adam.step()
            schedule.step()
        if on_epoch is not None:
            on_epoch(epoch + 1)
    model.eval()
    with torch.no_grad():
        accuracy = (model(images[held_out]).argmax(1) == labels[held_out]).double().mean().item()
    return model, accuracy


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted together, each with a square erased and noise laid over it."""
    shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    images = torch.roll(images, shift, (2, 3))
    top, left = torch.rand(2, len(images), 1, 1, 1, generator=generator) * (SIDE - HOLE)
    rows, columns = torch.arange(SIDE).view(-1, 1) - top, torch.arange(SIDE) - left
    hole = (rows >= 0) & (rows < HOLE) & (columns >= 0) & (columns < HOLE)
    noise = torch.rand(len(images), 1, 1, 1, generator=generator) * torch.randn(images.shape, generator=generator)
    return images * ~hole + NOISE * noise


def moved_against(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Images after one step up the loss, of a fixed L2 norm."""
    images = images.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels), images)
    return (images + AGAINST * F.normalize(gradient.flatten(1), dim=1).view_as(images)).detach()
