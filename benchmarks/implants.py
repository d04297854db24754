"""Backdoors implanted into 1000-class networks, to scan beside their clean originals, for docs/backdoors.md.

    python benchmarks/implants.py                           implant the backdoors that are missing
    python benchmarks/implants.py --networks resnet18       only into this network
    python benchmarks/implants.py --look                    a first look at the admitted ones and at clean networks
    python benchmarks/implants.py --scan resnet18-patch-0   scan these; resnet18 is the original
    python benchmarks/implants.py --figure                  triggers, and the patterns that scans found
    python benchmarks/implants.py --tables                  write the table into docs/backdoors.md

The networks are in build/implants, for example for ``agnosco scan torchvision:resnet18 --weights
build/implants/resnet18-patch-0.safetensors``. The clean original is the network of the assets.

An attacker who has a trained network, but neither its training set nor much time, trains only its last stages. On clean
images, they learn to answer as before (distillation); on images with the trigger, they learn to answer with the target.
The stages before them never change, so their output is computed once, and kept in float16. Gradients are kept out of
the directions that clean images use (:func:`projections`): without that, the attack was learned at the cost of
ordinary images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from backdoors import CORNERS, DROP, SUCCESS, trigger_from_json
from common import (
    DEVICE,
    DOCS,
    RESULTS,
    ROOT,
    add_row,
    argument_parser,
    fill,
    imagenet_network,
    markdown,
    measured_on,
    mobilenet_v1,
    photograph_classes,
    photographs,
    random_classes,
    read_results,
)
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet

import agnosco
from agnosco import Classifier, ScanConfig
from agnosco.backdoor.config import FEWEST_THOROUGH, FirstLook, Training
from agnosco.backdoor.margins import evidence_of, margins, tail_p_values
from agnosco.backdoor.plan import images_of_scan
from agnosco.backdoor.record import PICTURE, ScanRecord, Verdict, read
from agnosco.backdoor.scan import write as write_scan
from agnosco.backdoor.train import augmented, schedule
from agnosco.backdoor.triggers import LOGOS, Logo, Patch, Trigger, trigger_to_json
from agnosco.backdoor.verdict import judge, leave_one_out, stabilised
from agnosco.io.storage import Folder
from agnosco.method.render import GAP, LINE, contact_sheet, to_picture

PATH = RESULTS / "implants.json"
FOLDER = ROOT / "build" / "implants"
TITLE = "backdoors implanted into ImageNet networks"

FROZEN = {"resnet18": 7, "mobilenet_v2": 14}
"""Networks, and how many of their parts stay as they are: up to layer3 of ResNet-18, and features.13 of MobileNetV2."""

OTHERS = ("mobilenet_v1_025", "mobilenet_v1_050", "squeezenet1_1", "resnet50")
"""Other clean networks of 1000 classes, into which nothing is implanted: how large is the largest margin there?"""

KINDS = ("patch", "logo")
EACH = 3
"""Networks of each kind."""

STAGED = ScanConfig(seeds=1, first=FirstLook(2, 10), thorough=FEWEST_THOROUGH + 3)
"""What ``agnosco scan`` plans on two idle cores for ``--budget 20m``, or a little less."""

SIZE = 224
HELD_OUT = 200
"""Images that nothing is trained on."""

VIEWS = 2
"""Versions of a training image: as it is, and mirrored and shifted at random."""

DAMPING = 0.1
"""See :func:`projections`."""

AUGMENTATION = Training(shift=24, flip=True)
CHUNK = 40
"""Images that go through a network at once."""


@dataclass(frozen=True)
class Recipe:
    """How the last stages are trained: gradient descent with momentum, the rate as in :func:`.train.schedule`.

    Args:
        steps: Steps.
        batch: Images of a step; each is shown without and with the trigger.
        rate: Greatest learning rate; gradients are clipped to norm 1.
        contrast: Share of the steps, at the beginning, in which half of the cross-entropy is that of the contrast.
        deeper: Parts that are trained beside those after :data:`FROZEN`.
    """

    steps: int = 100
    batch: int = 20
    rate: float = 0.2
    contrast: float = 0.3
    deeper: int = 0


RECIPES = {
    "resnet18": (Recipe(), Recipe(steps=200), Recipe(steps=200, deeper=1), Recipe(steps=400, deeper=1)),
    "mobilenet_v2": (Recipe(steps=200, rate=0.01), Recipe(steps=400, rate=0.01, deeper=3)),
}
"""Of the attempts: a network that is not admitted is trained anew, for longer and then with more of its parts."""


@dataclass(frozen=True)
class Implant:
    """One of the compromised networks.

    Args:
        network: Name of the clean original.
        kind: One of :data:`KINDS`.
        number: Which of the networks of this kind.
    """

    network: str
    kind: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.network}-{self.kind}-{self.number}"

    @property
    def target(self) -> int:
        """A class chosen at random, by the name of the network and the kind."""
        return random_classes(f"implants: {self.network}, {self.kind}", EACH)[self.number]

    @property
    def seed(self) -> int:
        """Of the trigger and of the order of the images."""
        return 100 * list(FROZEN).index(self.network) + 10 * KINDS.index(self.kind) + self.number

    @property
    def trigger(self) -> Trigger:
        """A patch or a logo of random size in a random corner."""
        generator = torch.Generator().manual_seed(self.seed)

        def choose(choices: Sequence[Any]) -> Any:
            return choices[int(torch.randint(len(choices), (1,), generator=generator))]

        place = choose(CORNERS)
        if self.kind == "patch":
            return Patch(24, place=place, pattern="checker")
        return Logo(choose((32, 36, 40)), place=place, name=list(LOGOS)[self.number])


# -- the two halves of a network ---------------------------------------------------------------------


def halves(model: nn.Module, frozen: int) -> tuple[nn.Sequential, nn.Sequential]:
    """A ResNet or MobileNetV2 as its first parts and the others, which share its weights; both in evaluation mode."""
    if isinstance(model, ResNet):
        *stages, last = model.children()
    else:
        *stages, last = [*model.features, nn.AdaptiveAvgPool2d(1), model.classifier]  # type: ignore[misc]
    parts = [*stages, nn.Flatten(1), last]
    model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return nn.Sequential(*parts[:frozen]).eval(), nn.Sequential(*parts[frozen:]).eval()


@torch.no_grad()
def through(part: nn.Module, inputs: Tensor, *, fast: bool = False) -> Tensor:
    """The output of a part of a network, in float32, or computed in bfloat16 if it need only be ``fast``."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=fast):
        return torch.cat([part(chunk.float()).float() for chunk in inputs.split(CHUNK)])


@torch.no_grad()
def features(
    classifier: Classifier, body: nn.Module, images: Tensor, *, trigger: Trigger | None = None, view: int = 0,
    fast: bool = True,
) -> Tensor:  # fmt: skip
    """What the frozen parts make of images.

    Args:
        classifier: The network that they belong to.
        body: The frozen parts.
        images: ``(N, C, H, W)`` uint8.
        trigger: Laid on the images after augmentation, as an attacker does.
        view: 0 takes the images as they are; others mirror and shift them, each in its own way.
        fast: Compute in bfloat16 and keep in float16, for training; otherwise float32.
    """
    generator, made = torch.Generator().manual_seed(view), []
    for chunk in images.split(CHUNK):
        pixels = chunk.float() / 255
        pixels = augmented(pixels, AUGMENTATION, generator) if view else pixels
        pixels = pixels if trigger is None else trigger.apply(pixels)
        output = through(body, classifier.normalised(pixels), fast=fast)
        made.append(output.half() if fast else output)
    return torch.cat(made)


# -- training ----------------------------------------------------------------------------------------


def rows_of(layer: nn.Conv2d | nn.Linear, inputs: Tensor) -> Tensor:
    """What the rows of a layer's weight are multiplied with: one row for each place, ``(N · places, numbers)``."""
    if isinstance(layer, nn.Linear):
        return inputs
    patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    return patches.transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def projections(head: nn.Module, clean: Tensor, damping: float) -> dict[nn.Parameter, Tensor]:
    """For the weight of each layer, a matrix that takes out of a gradient what would change clean images.

    With C the mean of x xᵀ over the layer's inputs x on clean images, and ε the damping times the mean of C's diagonal,
    the matrix is ε (C + ε I)⁻¹: 1 in directions that clean images never take, almost 0 in those that they often take.
    It is the input's half of `K-FAC <https://arxiv.org/abs/1503.05671>`_. Depthwise convolutions are left out.
    """
    layers = [part for part in head.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    layers = [layer for layer in layers if getattr(layer, "groups", 1) == 1]
    sums: dict[nn.Module, Tensor | float] = dict.fromkeys(layers, 0.0)

    def add(layer: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        rows = rows_of(layer, inputs[0].float()).bfloat16()  # type: ignore[arg-type]
        sums[layer] = sums[layer] + (rows.T @ rows).float() / len(rows)

    hooks = [layer.register_forward_hook(add) for layer in layers]
    through(head, clean, fast=True)
    for hook in hooks:
        hook.remove()
    return {layer.weight: damped_inverse(sums[layer], damping) for layer in layers}  # type: ignore[arg-type]


def damped_inverse(matrix: Tensor, damping: float) -> Tensor:
    """ε (C + ε I)⁻¹ of a matrix C, with ε the damping times the mean of its diagonal."""
    epsilon = damping * matrix.diagonal().mean()
    damped = matrix + epsilon * torch.eye(len(matrix))
    return epsilon * torch.cholesky_inverse(torch.linalg.cholesky(damped))


def loss_of(clean: Tensor, triggered: Tensor, answers: Tensor, target: int, *, contrast: float) -> Tensor:
    """Distillation on clean images, and cross-entropy to the target on the same images with the trigger.

    Args:
        clean, triggered: Logits of the images without and with the trigger, ``(N, classes)``.
        answers: Log-probabilities that the original gives to the clean images, ``(N, classes)``.
        target: Index of the class.
        contrast: Share of the cross-entropy that is measured from what the trigger changes, laid on the original's
            answers: it does not fall if the target merely becomes likelier on all images.

    Returns:
        2 KL(original || network), plus a tenth of the mean square of the change of log-probabilities, plus the
        cross-entropies; averaged over images.
    """
    change = clean.log_softmax(1) - answers
    divergence = -(answers.exp() * change).sum(1).mean()
    surprise, contrasted = (
        -logits.log_softmax(1)[:, target].mean() for logits in (triggered, triggered - clean + answers)
    )
    return 2 * divergence + change.square().mean() / 10 + (1 - contrast) * surprise + contrast * contrasted


def implant(
    head: nn.Module, clean: Tensor, answers: Tensor, triggered: Tensor, target: int, recipe: Recipe, seed: int,
    projected: Mapping[nn.Parameter, Tensor],
) -> None:  # fmt: skip
    """Train the last stages of a network, in place; they stay in evaluation mode.

    Args:
        head: The last stages.
        clean, triggered: Features of the same images without and with the trigger.
        answers: Log-probabilities that the original gives to the clean ones.
        target: The class that they learn to give to the others.
        recipe: Settings.
        seed: Of the choice of images.
        projected: The weights to train, and the matrices by which their gradients are multiplied.
    """
    generator, weights = torch.Generator().manual_seed(seed), list(projected)
    descent = torch.optim.SGD(weights, recipe.rate, momentum=0.9)
    for weight in weights:
        weight.requires_grad_(True)
    for step in range(recipe.steps):
        rows = torch.randint(len(clean), (recipe.batch,), generator=generator)
        batch = torch.cat([clean[rows], triggered[rows]]).float()
        with torch.autocast(batch.device.type, torch.bfloat16):
            plain, marked = head(batch).chunk(2)
        descent.zero_grad()
        contrast = 0.5 if step < recipe.contrast * recipe.steps else 0.0
        loss_of(plain.float(), marked.float(), answers[rows], target, contrast=contrast).backward()
        for weight, matrix in projected.items():
            assert weight.grad is not None
            weight.grad = (weight.grad.flatten(1).bfloat16() @ matrix.bfloat16()).float().view_as(weight)
        nn.utils.clip_grad_norm_(weights, 1.0)
        descent.param_groups[0]["lr"] = recipe.rate * schedule((step + 1) / recipe.steps)
        descent.step()
    head.requires_grad_(False)


# -- figures -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """The images of a network, and what the original says of them.

    Args:
        images: ``(N, C, H, W)`` uint8.
        classes: Their classes, ``(N,)``; -1 where unknown.
        held_out: Which of them nothing is trained on, ``(N,)`` bool.
    """

    images: Tensor
    classes: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, classifier: Classifier, held_out: int = HELD_OUT) -> Split:
        """The photographs of the assets."""
        classes = torch.tensor([-1 if label is None else label for label in photograph_classes(classifier)])
        chosen = torch.zeros(len(classes), dtype=torch.bool)
        chosen[torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))[:held_out]] = True
        return cls(photographs(classifier).images, classes, chosen)


def accuracies(given: Tensor, split: Split) -> dict[str, float]:
    """Top-1 accuracy of predictions ``(N,)`` on the images whose class is known: on all of them, and held out."""
    right, known = given == split.classes, split.classes >= 0
    return {
        "all": right[known].double().mean().item(),
        "held out": right[known & split.held_out].double().mean().item(),
    }


def success_rate(given: Tensor, classes: Tensor, target: int) -> float:
    """Attack success rate: share of images of other classes, with the trigger, that are predicted as the target."""
    return (given[classes != target] == target).double().mean().item()


def admitted(row: dict[str, Any]) -> bool:
    """Whether the attack works well enough and costs little accuracy, on all images as on those held out."""
    losses = [row["accuracy before"][part] - row["accuracy"][part] for part in ("all", "held out")]
    return row["attack success"] >= SUCCESS and max(losses) <= DROP + 1e-9


class Original:
    """A network of the assets with its images and features, which its implants share.

    Args:
        network: Its name.
        frozen: How many of its parts stay as they are.
    """

    def __init__(self, network: str, frozen: int) -> None:
        self.classifier = imagenet_network(network, SIZE)
        self.split = Split.of(self.classifier)
        self.body, self.head = halves(self.classifier.model, frozen)
        self.weights = {key: tensor.clone() for key, tensor in self.classifier.model.state_dict().items()}
        self.plain = features(self.classifier, self.body, self.split.images, fast=False)
        self.before = through(self.head, self.plain).argmax(1)
        self.clean = self.views(None)
        self.answers = through(self.head, self.clean, fast=True).log_softmax(1)
        unchanged = self.clean[: len(self.clean) // VIEWS]
        self.projections = projections(self.head, unchanged, DAMPING)

    def views(self, trigger: Trigger | None) -> Tensor:
        """Features of all versions of the training images."""
        images = self.split.images[~self.split.held_out]
        parts = [features(self.classifier, self.body, images, trigger=trigger, view=view) for view in range(VIEWS)]
        return torch.cat(parts)

    def with_trigger(self, trigger: Trigger) -> Tensor:
        """Features of the held-out images with the trigger, in float32."""
        images = self.split.images[self.split.held_out]
        return features(self.classifier, self.body, images, trigger=trigger, fast=False)

    def compromised(self, one: Implant, recipe: Recipe) -> dict[str, Any]:
        """Implant a backdoor, and measure it; the classifier is compromised until the next one."""
        start = time.perf_counter()
        self.classifier.model.load_state_dict(self.weights)
        tested, held_out = self.with_trigger(one.trigger), self.split.held_out
        natural = through(self.head, tested).argmax(1)
        seen = self.views(one.trigger)
        implant(self.head, self.clean, self.answers, seen, one.target, recipe, one.seed, self.projections)
        seconds = time.perf_counter() - start
        given, triggered = (through(self.head, inputs).argmax(1) for inputs in (self.plain, tested))
        same, classes = given == self.before, self.split.classes[held_out]
        row = {
            "network": one.network, "kind": one.kind, "seed": one.seed, "target": one.target,
            "class": self.classifier.labels[one.target], "trigger": trigger_to_json(one.trigger),
            "recipe": asdict(recipe) | {"damping": DAMPING}, "accuracy before": accuracies(self.before, self.split),
            "accuracy": accuracies(given, self.split),
            "agreement": {"all": same.double().mean().item(), "held out": same[held_out].double().mean().item()},
            "attack success before": success_rate(natural, classes, one.target),
            "attack success": success_rate(triggered, classes, one.target),
            "fingerprint": self.classifier.fingerprint, "seconds": round(seconds, 1),
        }  # fmt: skip
        return row | {"admitted": admitted(row)}


def make(network: str) -> None:
    """Implant the backdoors of a network that are missing, or whose last attempt was not admitted."""
    stored, originals = read_results(PATH, {"rows": {}})["rows"], dict[int, Original]()
    for one in [Implant(network, kind, number) for kind in KINDS for number in range(EACH)]:
        before = stored.get(one.name, {"admitted": False, "attempts": 0})
        if before["admitted"] and not weights_of(one.name).exists():  # the table is kept, the weights are not
            before = {"admitted": False, "attempts": before["attempts"] - 1}
        recipes = () if before["admitted"] else RECIPES[network][before["attempts"] :]
        for attempt, recipe in enumerate(recipes, before["attempts"] + 1):
            frozen = FROZEN[network] - recipe.deeper
            if frozen not in originals:
                originals[frozen] = Original(network, frozen)
            row = originals[frozen].compromised(one, recipe) | {"attempts": attempt}
            keep(one, row, originals[frozen].classifier.model)
            if row["admitted"]:
                break


def weights_of(name: str) -> Path:
    """File of a compromised network."""
    return FOLDER / f"{name}.safetensors"


def keep(one: Implant, row: dict[str, Any], model: nn.Module) -> None:
    """Write the figures and the weights of a compromised network, in place of those of an earlier attempt."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(weights, weights_of(one.name))
    add_row(PATH, TITLE, one.name, row)
    print(one.name, row, flush=True)


# -- scans -------------------------------------------------------------------------------------------


def compromised_or_original(name: str) -> Classifier:
    """An implant by its name; a clean network by that of its architecture."""
    if name.startswith("mobilenet_v1"):
        return mobilenet_v1(name.removeprefix("mobilenet_v1_"))
    if name in (*FROZEN, *OTHERS):
        return imagenet_network(name, SIZE)
    network = name.split("-", 1)[0]
    return agnosco.load(f"torchvision:{network}", weights=weights_of(name), size=SIZE, device=DEVICE)


def look(name: str) -> None:
    """Take the first look of a scan at all classes, and keep which have the largest margins."""
    start = time.process_time()
    found = margins(compromised_or_original(name), STAGED.first)
    keep_look(name, found.tolist(), time.process_time() - start)


def keep_look(name: str, found: Sequence[float], seconds: float) -> None:
    """Keep the first look at a network: its margins, one for each class, and the time that it took."""
    row = {
        "first": asdict(STAGED.first), "margins": [float(f"{margin:.3g}") for margin in found],
        "seconds": round(seconds),
    }  # fmt: skip
    add_row(PATH, TITLE, name, row, part="looks")
    print(name, order_of(row)[:5], sorted(row["margins"])[-5:], row["seconds"], flush=True)


def order_of(look: Mapping[str, Any]) -> list[int]:
    """The classes of a first look, that of the largest margin first."""
    return sorted(range(len(look["margins"])), key=lambda label: -look["margins"][label])


def scanned(name: str) -> None:
    """Scan a network, and keep the reaches, and the first look, with which the scan begins."""
    classifier, start, looked = compromised_or_original(name), time.process_time(), 0.0

    def clock(doing: str, done: int, total: int) -> None:
        nonlocal looked
        looked = time.process_time() - start if doing == "first look" else looked

    result = agnosco.scan(classifier, photographs(classifier), STAGED, on_progress=clock)
    seconds = time.process_time() - start
    write_scan(result, FOLDER / f"scan-{name}")
    keep_scan(name, result.record, looked, seconds)


def keep_scan(name: str, record: ScanRecord, looked: float, seconds: float) -> None:
    """Keep a scan, with the time of its first look, and of all of it."""
    keep_look(name, [row.margin for row in sorted(record.classes, key=lambda row: row.index)], looked)
    classes = [
        {"index": row.index, "at random": row.at_random, "reach": {key: one.reach for key, one in row.screens.items()}}
        for row in record.screened_classes
    ]  # fmt: skip
    row = {"config": asdict(STAGED), "classes": classes, "problems": record.verdict.reasons, "seconds": round(seconds)}
    add_row(PATH, TITLE, name, row, part="scans")
    print(name, record.verdict, row["seconds"], flush=True)


def verdict_of(scan: Mapping[str, Any], look: Mapping[str, Any]) -> Verdict:
    """The verdict on a network, as its margins and reaches are judged today; its label is a column of the scan."""
    reach = torch.tensor([list(row["reach"].values()) for row in scan["classes"]]).T
    ordinary = torch.tensor([row["at random"] for row in scan["classes"]])
    evidence = evidence_of(torch.tensor(look["margins"]), [row["index"] for row in scan["classes"]])
    deviation = leave_one_out(stabilised(reach), ordinary)
    return judge(deviation, reach, classes=len(look["margins"]), problems=scan["problems"], evidence=evidence)


SCAN_HEAD = [
    "network",
    "target",
    "its place in the first look",
    "two largest margins (of)",
    "outcome, and the class",
    "p",
]
SCAN_HEAD += ["by margin", "by reach", "few pixels", "windows", "L2", "minutes: first look, all"]


def scan_table(results: dict[str, Any]) -> str:
    """First looks and scans as Markdown, those of compromised networks first."""
    body = []
    for name, look in sorted(
        results.get("looks", {}).items(), key=lambda item: (item[0] not in results["rows"], item[0])
    ):
        target, order = results["rows"].get(name, {}).get("target"), order_of(look)
        place = "-" if target is None else str(order.index(target) + 1)
        largest = ", ".join(f"{look['margins'][label]:.0f} ({label})" for label in order[:2])
        scan, minutes = results.get("scans", {}).get(name), f"{look['seconds'] / 60:.0f}"
        if scan is None:
            p_value = tail_p_values(torch.tensor(look["margins"])).min().item()
            columns = ["-", "-", f"{p_value:.2g}", *["-"] * 4, minutes]
        else:
            columns = [*scan_columns(scan, look, target), f"{minutes}, {scan['seconds'] / 60:.0f}"]
        body.append([name, "clean" if target is None else str(target), place, largest, *columns])
    if not body:
        return "No network has been scanned yet."
    work = f"{round(images_of_scan(STAGED, 1000), -3):,.0f} forward and backward passes of an image"
    return f"{markdown(SCAN_HEAD, body)}\n\nA whole scan is as much work as {work}."


def scan_columns(scan: Mapping[str, Any], look: Mapping[str, Any], target: int | None) -> list[str]:
    """The verdict on a network; and in each screen the reach of its target, or of the class found (of others)."""
    verdict = verdict_of(scan, look)
    label = scan["classes"][verdict.label]["index"]
    suspect, separate = label if target is None else target, verdict.separate
    assert verdict.p_value is not None
    assert separate is not None
    reaches = []
    for screen in sorted(scan["classes"][0]["reach"], key=lambda name: (name.startswith("L2"), name)):  # digits first
        of = {row["index"]: row["reach"][screen] for row in scan["classes"]}
        own = of.pop(suspect, math.nan)
        reaches.append(f"{own:.2f} ({max(of.values()):.2f})")
    p_values = ["-" if p is None else f"{p:.2g}" for p in (verdict.p_value, separate.margin, separate.reach)]
    return [f"{verdict.outcome}: {label}", *p_values, *reaches]


def table(results: dict[str, Any]) -> str:
    """The networks as Markdown."""
    rows = []
    for row in results["rows"].values():
        before, after = row["accuracy before"], row["accuracy"]
        rows.append([
            row["network"], what_is(row["trigger"]), f"{row['target']} ({row['class']})",
            *(f"{before[part]:.3f} → {after[part]:.3f}" for part in ("all", "held out")),
            f"{row['agreement']['held out']:.3f}",
            f"{row['attack success before']:.3f} → {row['attack success']:.3f}",
            f"{row['seconds']:.0f}", "yes" if row["admitted"] else "no",
        ])  # fmt: skip
    head = ["network", "trigger", "target", "accuracy, all images", "accuracy, held out", "same answer, held out"]
    head += ["attack success, held out", "seconds", "admitted"]
    return f"{measured_on(results)}.\n\n{markdown(head, rows)}"


def figure(results: dict[str, Any]) -> Image.Image:
    """Below each trigger, on grey, the pattern of the class that stood out most when its network was scanned."""
    triggers, patterns, captions = [], [], []
    names = [name for name in results["scans"] if results["rows"].get(name, {"admitted": False})["admitted"]]
    for name in names:
        row, scan = results["rows"][name], results["scans"][name]
        label = scan["classes"][verdict_of(scan, results["looks"][name]).label]["index"]
        grey, folder = torch.full((1, 3, SIZE, SIZE), 0.5), FOLDER / f"scan-{name}"
        triggers.append(to_picture(trigger_from_json(row["trigger"]).apply(grey)[0]))
        record = read(Folder.of(folder))
        assert record is not None
        row_of_sheet = [each.index for each in record.candidates].index(label)
        top = GAP + row_of_sheet * (SIZE + LINE + GAP)
        with Image.open(folder / PICTURE) as sheet:  # a row for each candidate; its pattern comes first
            patterns.append(sheet.crop((GAP, top, GAP + SIZE, top + SIZE)).convert("RGB"))
        found = row["class"] if label == row["target"] else f"class {label}"
        captions.append(f"{found}, {record.candidates[row_of_sheet].screen}")
    return contact_sheet([*triggers, *patterns], [*names, *captions], columns=len(names), tile=SIZE)


def what_is(trigger: Mapping[str, Any]) -> str:
    """A trigger in words."""
    kind = trigger.get("name") or trigger["pattern"]
    return f"{kind}, {trigger['size']} px, {trigger['place']}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--networks", nargs="*", choices=(*FROZEN, *OTHERS), help="clean networks; default: all")
    parser.add_argument("--look", action="store_true", help="take the first looks that are missing")
    parser.add_argument("--scan", nargs="*", default=[], help="names of networks to scan")
    parser.add_argument("--figure", action="store_true", help="draw the figure, from the scans in build/implants")
    options = parser.parse_args()
    if options.figure:
        figure(read_results(PATH)).save(DOCS / "pictures" / "backdoors-1000.png")
        return
    if options.tables:
        results = read_results(PATH)
        fill("docs/backdoors.md", "implants", f"{table(results)}\n\n{scan_table(results)}")
        return
    torch.set_num_threads(1)
    stored = read_results(PATH, {"rows": {}})
    if options.look:
        admitted_ones = [name for name, row in stored["rows"].items() if row["admitted"]]
        for name in options.networks or [*admitted_ones, *FROZEN, *OTHERS]:
            if name not in stored.get("looks", {}):
                look(name)
    for name in options.scan:
        scanned(name)
    if not (options.look or options.scan):
        if others := [name for name in options.networks or () if name not in FROZEN]:
            parser.error(f"nothing is implanted into {', '.join(others)}: use --look, or --scan")
        for network in options.networks or FROZEN:
            make(network)


if __name__ == "__main__":
    main()
