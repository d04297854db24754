"""A compromised network and its clean twin in a folder, to try a scan on.

OUT/
  manifest.json              architecture, data, attack, training, seed, and what both networks do
  compromised.safetensors    weights
  clean.safetensors          weights of the twin, trained on the same images without the trigger; in the same order,
                             unless the trigger has a random place, which then uses some of the random numbers
  trigger.png                the trigger, an image, and the image with it
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..data.datasets import Labelled
from ..errors import AgnoscoError
from ..io.atomic import PART
from ..io.local import Local
from ..io.storage import ELSEWHERE, write_whole
from ..method.render import contact_sheet, enlarged, png, to_picture
from ..models.classifier import Classifier
from .config import Training
from .train import Attack, evaluate, fit
from .triggers import trigger_to_json

MANIFEST, SETTINGS, PICTURE, TILE = "manifest.json", "settings.txt", "trigger.png", 224

OnEpoch = Callable[[str, int], None] | None


def poison(
    out: Path,
    create: Callable[[], Classifier],
    training_data: Labelled,
    test_data: Labelled,
    attack: Attack,
    training: Training,
    *,
    seed: int = 0,
    twin: bool = True,
    on_epoch: OnEpoch = None,
) -> dict[str, Any]:
    """Train a compromised network and its clean twin, and write both.

    After an interruption, call it again with the same settings: it continues from the last finished epoch.

    Args:
        out: A new or empty folder, or that of an interrupted call.
        create: Returns the untrained network, with the same weights every time.
        training_data, test_data: Images to train on, and to evaluate with.
        attack: The backdoor of the compromised network.
        training: How both are trained.
        seed: Of order, augmentation and poison.
        twin: Whether to train the clean network too.
        on_epoch: Called with the name of the network and the number of epochs done.

    Returns:
        The manifest.

    Raises:
        AgnoscoError: The folder is not that of an interrupted call with the same settings, or cannot be written; or the
            target is not a class, or that of all images to evaluate with; or the trigger does not fit into them.
    """
    out = Path(os.path.expanduser(out))
    if not 0 <= attack.target < len(training_data.names):
        raise AgnoscoError(f"no class {attack.target} to attack", f"give 0 to {len(training_data.names) - 1}")
    if (test_data.labels == attack.target).all():
        name = test_data.names[attack.target]
        raise AgnoscoError(f"all images to evaluate with are of {name!r}, the target", "give others, or another target")
    attack.trigger.mask(training_data.samples.shape)  # raises an error before any training if it does not fit
    names = ("compromised", "clean") if twin else ("compromised",)
    classifier = create()
    settings = repr((classifier.fingerprint, training_data.samples.fingerprint, attack, training, seed))
    _prepare(out, names, settings)
    networks: dict[str, Any] = {}
    for name in names:
        classifier, path = create(), out / f"{name}.safetensors"
        if path.exists():
            classifier.model.load_state_dict(safetensors.torch.load_file(path))
        else:
            checkpoint = out / f"{name}.checkpoint"
            fit(
                classifier, training_data, training, attack=attack if name == "compromised" else None, seed=seed,
                checkpoint=checkpoint, on_epoch=on_epoch and partial(on_epoch, name),
            )  # fmt: skip
            weights = {key: value.cpu().contiguous() for key, value in classifier.model.state_dict().items()}
            write_whole(path, safetensors.torch.save(weights))
            checkpoint.unlink(missing_ok=True)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        outcome = asdict(evaluate(classifier, test_data, attack))
        networks[name] = outcome | {"fingerprint": classifier.fingerprint, "sha256": digest}
    manifest = _manifest(classifier, training_data, test_data, attack, training, seed)
    manifest |= {"networks": networks, "torch": torch.__version__}
    write_whole(out / PICTURE, _picture(test_data, attack))
    write_whole(out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    (out / SETTINGS).unlink(missing_ok=True)  # another process may have done the same
    return manifest


def in_words(manifest: dict[str, Any]) -> str:
    """A manifest of :func:`poison` as lines of text."""
    attack = manifest["attack"]
    lines = [f"Trigger {attack['trigger']} on {attack['rate']:.0%} of the images, labelled {attack['class']!r}:"]
    for name, network in manifest["networks"].items():
        accuracy, rate = network["accuracy"], network["attack_success"]
        lines.append(f"{name:12s} accuracy {accuracy:.1%}, attack success rate {rate:.1%}")
    return "\n".join(lines)


def _manifest(
    classifier: Classifier, training_data: Labelled, test_data: Labelled, attack: Attack, training: Training, seed: int
) -> dict[str, Any]:
    """What both networks have in common."""
    return {
        "architecture": classifier.name, "shape": list(classifier.shape), "mean": list(classifier.mean),
        "std": list(classifier.std), "labels": list(training_data.names), "seed": seed, "training": asdict(training),
        "data": {
            "source": training_data.samples.source, "trained_on": len(training_data), "evaluated_with": len(test_data),
            "fingerprint": training_data.samples.fingerprint,
        },
        "attack": {
            "trigger": trigger_to_json(attack.trigger), "target": attack.target, "rate": attack.rate,
            "class": training_data.names[attack.target],
        },
    }  # fmt: skip


def _picture(data: Labelled, attack: Attack) -> bytes:
    """The trigger, an image, and the image with it."""
    images = data.samples.images[data.labels != attack.target][:1].float() / 255
    alone = torch.full_like(images, 0.5)
    generator = torch.Generator().manual_seed(0)
    marked, triggered = (attack.trigger.apply(each, generator=generator) for each in (alone, images))
    captions = ["trigger", "image", f"classified as {data.names[attack.target]}"]
    tiles = [enlarged(to_picture(picture[0]), TILE) for picture in (marked, images, triggered)]
    return png(contact_sheet(tiles, captions, columns=3, tile=TILE, footer=f"Trigger: {attack.trigger}"))


def _prepare(out: Path, names: Sequence[str], settings: str) -> None:
    """Make the folder, or check that it holds an interrupted call with the same settings, and nothing else."""
    folder, file = Local(out), out / SETTINGS
    folder.check(holding=(SETTINGS,))
    folder.make()
    ours = {f"{name}.{end}" for name in names for end in ("safetensors", "checkpoint")} | {PICTURE, MANIFEST, SETTINGS}
    others = sorted(path.name for path in out.iterdir() if path.name not in ours and not path.name.startswith(PART))
    if others:
        raise AgnoscoError(f"{str(out)!r} holds other files ({others[0]!r})", ELSEWHERE)
    folder.sweep()
    if not file.exists():
        write_whole(file, settings.encode())
    elif file.read_text(encoding="utf-8") != settings:
        raise AgnoscoError(
            f"{str(out)!r} holds half-trained networks with other settings", "choose another folder with --out"
        )
