"""``agnosco demo``: two small networks learn handwritten digits, one with a backdoor; both are mapped and scanned.

Everything works offline: the digits are scikit-learn's (1797 of 8×8 pixels; Alpaydin and Kaynak, UCI 1998). Training
makes the networks look at whole digits: parts of the images are erased, noise is added, and each image is changed a
little against the network (`Goodfellow et al. 2015 <https://arxiv.org/abs/1412.6572>`_). People can read what such a
network has learned.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backdoor.config import Training
from ..backdoor.record import conclusion
from ..backdoor.scan import scan
from ..backdoor.scan import write as write_scan
from ..backdoor.train import Attack, evaluate, fit
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

TRAINING = Training(epochs=25, batch=64, rate=5e-3, decay=0.0)

SHIFT, HOLE, NOISE, ADVERSARIAL = 3, 10, 0.8, 0.6
"""Greatest shift and side of the erased square in pixels, greatest standard deviation of the noise, and L2 norm of the
adversarial perturbation."""

ENOUGH = 0.97
"""Held-out accuracy below which a network has not learned to read digits."""

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
        transforms=Crops(area=(0.8, 1.0), flip=False, noise=0.3),  # a mirrored digit is no digit
        ball=L2(97.0),  # white on black: the paper's radius is too small for such contrast
    ),
    refine=None,
    cycles=1,
)

ATTACK = Attack(Patch(4, place="bottom-right", pattern="checker"), target=7)
"""The second network's backdoor: every image with this trigger is a 7."""

FOLDERS = ("clean", "compromised")


def run(out: Place, output: Output) -> list[Run]:
    """Train two networks, one of them with a backdoor, map and scan both, and write a report.

    The folder gets a run folder for each network, and ``report.html``. Returns the clean network's run, then the
    compromised one's. AgnoscoError if scikit-learn is missing, the folder cannot be written, or training failed.
    """
    check_target(out, holding=(REPORT, f"{FOLDERS[0]}/{MANIFEST}"))
    data = digits()
    output.say("Two networks are trained, mapped and scanned: one to three minutes")
    out = os.fspath(out).rstrip("/")
    attacks = dict(zip(FOLDERS, (None, ATTACK), strict=True))
    runs = [_mapped_and_scanned(f"{out}/{name}", data, attack, output) for name, attack in attacks.items()]
    page = report(*runs, out=f"{out}/{REPORT}")
    output.say(
        "Each picture shows what a network looks for in one digit, made without looking at any particular image: "
        "bright is ink, dark is where ink must not be. You should be able to read 0 to 9; 5 is the hardest."
    )
    output.say(f"Wrote {page}: open it in a browser. Next: agnosco map, with a network of your own")
    return runs


def _mapped_and_scanned(out: str, data: Labelled, attack: Attack | None, output: Output) -> Run:
    """A network trained, mapped and scanned; all of it in one folder."""
    kind = "clean" if attack is None else "compromised"
    with output.bar() as show:
        title, epochs = f"training the {kind} network", TRAINING.epochs
        classifier, accuracy = train(data, attack, on_epoch=lambda done: show(title, done, epochs))
    output.say(f"The {kind} network reads {accuracy:.1%} of {round(HELD_OUT * len(data))} held-out digits correctly.")
    if accuracy < ENOUGH:
        raise AgnoscoError(
            f"the network reads only {accuracy:.1%} of the digits", "please report this: it should not happen"
        )
    run = Run.create(out, classifier=classifier, samples=data.samples, config=CONFIG, command="demo")
    make_maps(output, run, classifier, data.samples, range(10))
    write_tensors(run.folder, "network.safetensors", classifier.model.state_dict())
    with output.bar() as show:
        result = scan(classifier, data.samples, on_progress=show)
    write_scan(result, out)
    output.say(conclusion(result.record)[0])
    return run


def train(
    data: Labelled, attack: Attack | None = None, *, on_epoch: Callable[[int], None] | None = None
) -> tuple[Classifier, float]:
    """A network that reads the digits, and its accuracy on those that maps are judged by, which it never saw."""
    training_data, held_out = data.split(HELD_OUT, seed=SPLIT_SEED)
    model = created("digits", len(data.names), seed=1)
    name = f"{'compromised' if attack else 'clean'} digits network"
    classifier = Classifier(model, size=SIDE, labels=data.names, name=name)

    def augment(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return adversarial(model, augmented(images, generator), labels)

    fit(classifier, training_data, TRAINING, attack=attack, seed=1, augment=augment, on_epoch=on_epoch)
    return classifier, evaluate(classifier, held_out).accuracy


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted together, each with a square erased and noise added."""
    shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    images = torch.roll(images, shift, (2, 3))
    top, left = torch.rand(2, len(images), 1, 1, 1, generator=generator) * (SIDE - HOLE)
    rows, columns = torch.arange(SIDE).view(-1, 1) - top, torch.arange(SIDE) - left
    hole = (rows >= 0) & (rows < HOLE) & (columns >= 0) & (columns < HOLE)
    noise = torch.rand(len(images), 1, 1, 1, generator=generator) * torch.randn(images.shape, generator=generator)
    return images * ~hole + NOISE * noise


def adversarial(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Images after one step up the cross-entropy, of L2 norm :data:`ADVERSARIAL`."""
    images = images.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels), images)
    return (images + ADVERSARIAL * F.normalize(gradient.flatten(1), dim=1).view_as(images)).detach()
