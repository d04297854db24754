"""A compromised network and its clean twin in a folder, to try a scan on.

OUT/
  manifest.json              architecture, data, attack, training, seed, and what both networks do
  compromised.safetensors    weights
  clean.safetensors          those of the twin, trained on the same images without the trigger; in the same order, too,
                             unless the trigger has a random place, which chance then decides between the batches
  trigger.png                the trigger, an image, and the image with it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..data.datasets import Labelled
from ..errors import AgnoscoError
from ..io.storage import write_whole
from ..method.render import contact_sheet, enlarged, png, to_picture
from ..models.classifier import Classifier
from .config import Training
from .train import Attack, Outcome, evaluate, fit
from .triggers import trigger_to_json

MANIFEST, SETTINGS, PICTURE, TILE = "manifest.json", "settings.txt", "trigger.png", 224

OnEpoch = Callable[[str, int], None] | None


def poison(
    out: Path,
    create: Callable[[], Classifier],
    kept: Labelled,
    held: Labelled,
    attack: Attack,
    training: Training,
    *,
    seed: int = 0,
    twin: bool = True,
    on_epoch: OnEpoch = None,
) -> dict[str, Any]:
    """Train a compromised network and its clean twin, and write both.

    Called again with the same settings after an interruption, it goes on from the last epoch of the network that was
    interrupted, and does not train a finished one again.

    Args:
        out: A new or empty folder, or that of an interrupted call.
        create: Makes the network, with the same weights every time.
        kept, held: Images to train on, and to judge by.
        attack: What the compromised one is taught.
        training: How both are trained.
        seed: Of order, augmentation and poison.
        twin: Whether to train the clean one.
        on_epoch: Called with the name of the network and the number of epochs done.

    Returns:
        The manifest.

    Raises:
        AgnoscoError: The folder holds other things or those of other settings, or cannot be written; or the target is
            no class.
    """
    if not 0 <= attack.target < len(kept.names):
        raise AgnoscoError(f"no class {attack.target} to attack", f"give 0 to {len(kept.names) - 1}")
    attack.trigger.mask(kept.samples.shape)  # says whether it fits, before there is anything to lose
    names = ("compromised", "clean") if twin else ("compromised",)
    _check_folder(out, names)
    classifier = create()
    _check_settings(out / SETTINGS, repr((classifier.fingerprint, kept.samples.fingerprint, attack, training, seed)))
    networks: dict[str, Any] = {}
    for name in names:
        classifier, path = create(), out / f"{name}.safetensors"
        if path.exists():
            classifier.model.load_state_dict(safetensors.torch.load_file(path))
        else:
            fit(
                classifier, kept, training, attack=attack if name == "compromised" else None, seed=seed,
                checkpoint=out / f"{name}.checkpoint", on_epoch=None if on_epoch is None else _named(on_epoch, name),
            )  # fmt: skip
            weights = {key: value.cpu().contiguous() for key, value in classifier.model.state_dict().items()}
            write_whole(path, safetensors.torch.save(weights))
        networks[name] = _entry(classifier, evaluate(classifier, held, attack), path.read_bytes())
    manifest = {
        "architecture": classifier.name, "shape": list(classifier.shape), "mean": list(classifier.mean),
        "std": list(classifier.std), "labels": list(kept.names), "seed": seed, "training": asdict(training),
        "data": {
            "source": kept.samples.source, "trained_on": len(kept), "judged_by": len(held),
            "fingerprint": kept.samples.fingerprint,
        },
        "attack": {
            "trigger": trigger_to_json(attack.trigger), "target": attack.target, "class": kept.names[attack.target],
            "rate": attack.rate,
        },
        "networks": networks, "torch": torch.__version__,
    }  # fmt: skip
    write_whole(out / PICTURE, _picture(held, attack))
    write_whole(out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    (out / SETTINGS).unlink()
    return manifest


def in_words(manifest: dict[str, Any]) -> str:
    """What :func:`poison` made, as lines of text."""
    attack = manifest["attack"]
    lines = [f"Trigger {attack['trigger']} on {attack['rate']:.0%} of the images, labelled {attack['class']!r}:"]
    for name, one in manifest["networks"].items():
        lines.append(f"{name:12s} accuracy {one['accuracy']:.1%}, attack success {one['attack_success']:.1%}")
    return "\n".join(lines)


def _named(on_epoch: Callable[[str, int], None], name: str) -> Callable[[int], None]:
    return lambda done: on_epoch(name, done)


def _entry(classifier: Classifier, outcome: Outcome, content: bytes) -> dict[str, Any]:
    return {
        "accuracy": outcome.accuracy, "attack_success": outcome.success,
        "fingerprint": classifier.fingerprint, "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip


def _picture(data: Labelled, attack: Attack) -> bytes:
    """The trigger, an image, and the image with it."""
    images = data.samples.images[data.labels != attack.target][:1].float() / 255
    alone = torch.full_like(images, 0.5)
    generator = torch.Generator().manual_seed(0)
    shown = [
        attack.trigger.apply(alone, generator=generator),
        images,
        attack.trigger.apply(images, generator=generator),
    ]
    captions = ["trigger", "image", f"given {data.names[attack.target]}"]
    tiles = [enlarged(to_picture(one[0]), TILE) for one in shown]
    return png(contact_sheet(tiles, captions, columns=3, tile=TILE, footer=f"Trigger: {attack.trigger}"))


def _check_folder(out: Path, names: tuple[str, ...]) -> None:
    """Make the folder, or make sure that it holds nothing but an interrupted call's files."""
    ours = {f"{name}.{end}" for name in names for end in ("safetensors", "checkpoint", "part")} | {PICTURE, SETTINGS}
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = [one.name for one in out.iterdir() if one.name not in ours]
    except OSError as error:
        raise AgnoscoError(
            f"cannot write {str(out)!r}: {error.strerror or error}", "choose another folder with --out"
        ) from error
    if others:
        raise AgnoscoError(f"{str(out)!r} holds other things ({others[0]!r})", "choose another folder with --out")


def _check_settings(path: Path, settings: str) -> None:
    """Note the settings of a folder, or make sure that they are those of an interrupted call."""
    if not path.exists():
        write_whole(path, settings.encode())
    elif path.read_text(encoding="utf-8") != settings:
        raise AgnoscoError(
            f"{str(path.parent)!r} holds networks of other settings, half made", "choose another folder with --out"
        )
