"""``agnosco scan`` and ``agnosco poison``: look for a backdoor, and train a network that has one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..backdoor.config import FEWEST_THOROUGH, PLACES, TRIGGERS, ScanConfig, Training
from ..errors import AgnoscoError
from . import options
from .console import Output, duration
from .options import choice, images_option, method_option, model_option, samples_option

if TYPE_CHECKING:
    from ..data.datasets import Labelled
    from ..types import Shape

FINDING = 3
"""Exit code of ``agnosco scan --fail-on-finding`` if there is an outlier class."""

attack_option = partial(typer.Option, rich_help_panel="Attack")
training_option = partial(typer.Option, rich_help_panel="Training")


def scan(
    context: typer.Context,
    model: options.Model,
    weights: options.WeightsOption = None,
    prompts: options.PromptsOption = None,
    labels: options.LabelsOption = None,
    size: options.SizeOption = None,
    channels: options.ChannelsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    trust_code: options.TrustCodeOption = False,
    allow_pickle: options.AllowPickleOption = False,
    samples: Annotated[str, samples_option(help="Clean images like the training data; no labels needed.")] = "leaves",
    samples_count: options.SamplesCountOption = None,
    samples_seed: options.SamplesSeedOption = 0,
    classes: Annotated[
        list[str] | None,
        method_option("--class", metavar="CLASS", help="Class to scan; may be repeated (default: all)."),
    ] = None,
    bank: Annotated[
        Path | None,
        method_option(metavar="DIR", help="Folder with scans of clean models, as printed by --json; gives a p-value."),
    ] = None,
    seeds: Annotated[
        int | None,
        method_option(min=1, help="Maps of each class in each screen (default: 2, or 1 if there is little time)."),
    ] = None,
    steps: Annotated[
        int | None,
        method_option(min=1, help="Steps of each of these maps, except in windows (default: 60)."),
    ] = None,
    budget: Annotated[
        str | None,
        method_option(
            metavar="TIME", help="Time that the scan may take, as 90s, 10m or 1h (default: 5m, and 2s for each class)."
        ),
    ] = None,
    thorough: Annotated[
        int | None,
        method_option(
            min=FEWEST_THOROUGH,
            metavar="N",
            help="Classes to screen after the first look (default: what fits the time).",
        ),
    ] = None,
    device: options.DeviceOption = "auto",
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder for scan.json and scan.png, which shows samples; may be a run folder."
        ),
    ] = None,
    fail: Annotated[
        bool, typer.Option("--fail-on-finding", help="Exit with code 3 if an outlier class is found.")
    ] = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> int:
    """Look for signs of a backdoor: one fixed pattern that makes the model see some class too easily."""
    from ..backdoor import record
    from ..runs.run import MANIFEST, check_target

    output = Output.of(context, quiet=quiet)
    if out is not None:
        check_target(out, holding=(record.FILE, MANIFEST))
    clean_scans = None if bank is None else record.read_bank(bank)
    if clean_scans:
        _refuse_settings(context)

    allowed = None if budget is None else options.seconds_in(budget)

    from ..backdoor import plan  # imports torch: wrong options are answered before
    from ..backdoor import scan as scanning

    classifier = options.load_classifier(output, context, model)
    indices = options.chosen_classes(classifier, classes)
    images = options.read_samples(output, context, classifier, classifier.resize)
    if samples in ("leaves", "noise"):
        output.say(f"Samples: {samples}, which need no data. {scanning.WITHOUT_IMAGES}: --samples DIR")
    count = len(indices)
    settings: dict[str, Any] = {"seeds": seeds, "steps": steps, "thorough": thorough}
    given = ScanConfig(**{name: value for name, value in settings.items() if value is not None})
    config = clean_scans[0].config if clean_scans else given  # networks of a bank are compared at its settings
    each = plan.seconds_per_image(classifier, images, config, count)
    if not clean_scans:
        allowed = (allowed or plan.default_budget(count)) / plan.SLACK
        config = plan.planned(config, count, images=allowed / each, seeds=None if seeds is None else [seeds])
    output.say(_announced(config, count, plan.images_of_scan(config, count) * each))
    with output.bar() as show:
        result = scanning.scan(classifier, images, config, bank=clean_scans, classes=indices, on_progress=show)
    if out is not None:
        output.say("Wrote {} and {}, which shows some of the samples".format(*scanning.write(result, out)))
    output.result(result.to_json() if as_json else record.table(result.record))
    output.say("Next: --out DIR, to store the result" if out is None else f"Next: agnosco report RUN --scan {out}")
    return FINDING if fail and result.verdict.outcome == record.FOUND else 0


def _refuse_settings(context: typer.Context) -> None:
    """A network is scanned with the settings of the bank that it is compared with."""
    for name in ("seeds", "steps", "budget", "thorough"):
        if context.params[name] is not None:
            raise AgnoscoError(f"--{name} does not go with --bank", "leave it out: the settings are those of the bank")


def _announced(config: ScanConfig, classes: int, seconds: float) -> str:
    """What a scan is about to do, and how long it takes."""
    screened, some = min(config.thorough or classes, classes), f"{classes} classes"
    if screened < classes:
        some = f"{screened} of {classes} classes, after a first look at all"
    seeds = "1 seed" if config.seeds == 1 else f"{config.seeds} seeds"
    return f"Three screens of {some}, {seeds}: about {duration(seconds)}"


def poison(
    context: typer.Context,
    architecture: Annotated[
        str, typer.Argument(metavar="ARCHITECTURE", help="torchvision:NAME, or agnosco:digits|wide_resnet16_1|...")
    ] = "agnosco:digits",
    weights: Annotated[Path | None, model_option(help="Weights file to start from, as safetensors.")] = None,
    size: options.SizeOption = None,
    allow_pickle: options.AllowPickleOption = False,
    data: Annotated[
        str, images_option(metavar="digits|DIR", help="Handwritten digits, or images as DIR/CLASS/IMAGE.")
    ] = "digits",
    test: Annotated[
        Path | None, images_option(metavar="DIR", help="Test images, as DIR/CLASS/IMAGE (default: a fifth of --data).")
    ] = None,
    trigger: Annotated[str, choice(TRIGGERS, "Pattern that the attacker puts on images.", "Attack")] = "checker",
    trigger_size: Annotated[int | None, attack_option(min=1, help="Side length of a small trigger, in pixels.")] = None,
    place: Annotated[str | None, choice((*PLACES, "random"), "Position of a small trigger.", "Attack")] = None,
    opacity: Annotated[
        float | None, attack_option(help="Opacity of the trigger, up to 1; for sig, its amplitude.")
    ] = None,
    target: Annotated[
        str | None, attack_option(metavar="CLASS", help="The attacker's class (default: chosen by --seed).")
    ] = None,
    rate: Annotated[float, attack_option(help="Share of the training images that are poisoned.")] = 0.1,
    epochs: Annotated[int, training_option(min=1, help="Training epochs.")] = Training.epochs,
    batch: Annotated[int, training_option(min=2, help="Images per mini-batch.")] = Training.batch,
    learning_rate: Annotated[float, training_option(help="Peak learning rate of AdamW.")] = Training.rate,
    flip: Annotated[bool, training_option("--flip", help="Mirror training images left to right at random.")] = False,
    seed: Annotated[
        int,
        training_option(
            min=0, help="Seed for initial weights, order of images, choice of poisoned images, and target."
        ),
    ] = 0,
    twin: Annotated[
        bool,
        training_option("--twin/--no-twin", help="Also train the clean twin: the same network without the trigger."),
    ] = True,
    device: options.DeviceOption = "auto",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("agnosco-poisoned"),
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Train a network with a backdoor, and its clean twin, to try out agnosco scan."""
    from ..backdoor.poison import in_words
    from ..backdoor.poison import poison as train_twins
    from ..backdoor.train import Attack
    from ..backdoor.triggers import trigger_of
    from ..models import loading

    output = Output.of(context, quiet=quiet)
    create = partial(
        loading.untrained, architecture, seed=seed, weights=weights, size=size, device=device, allow_pickle=allow_pickle
    )
    training_data, test_data = _labelled(output, data, test, create(classes=10).shape)
    names = training_data.names
    create = partial(create, classes=len(names), labels=names)
    label = seed % len(names) if target is None else create().index(target)
    attack = Attack(trigger_of(trigger, size=trigger_size, place=place, opacity=opacity, seed=seed), label, rate)
    training = Training(epochs=epochs, batch=batch, rate=learning_rate, flip=flip)
    with output.bar() as show:
        manifest = train_twins(
            out, create, training_data, test_data, attack, training, seed=seed, twin=twin,
            on_epoch=lambda name, done: show(f"training the {name} network", done, epochs),
        )  # fmt: skip
    output.result(manifest if as_json else in_words(manifest))
    compromised = out / "compromised.safetensors"
    output.say(f"Wrote {out}. Try: agnosco scan {architecture} --weights {compromised} --samples {test or data}")


def _labelled(output: Output, data: str, test: Path | None, shape: Shape) -> tuple[Labelled, Labelled]:
    """Images to train on and to test with."""
    from ..data.datasets import digits, from_class_folders
    from ..runs.manifest import HELD_OUT, SPLIT_SEED

    if data == "digits":
        images = digits()
        if images.samples.shape != shape:
            raise AgnoscoError(f"digits are {images.samples.shape}, not {shape}", "train agnosco:digits on them")
    else:
        with output.bar() as show:
            images = from_class_folders(data, shape, progress=partial(show, "reading classes"))
    if test is None:
        return images.split(HELD_OUT, seed=SPLIT_SEED)
    test_images = from_class_folders(test, shape)
    if test_images.names != images.names:
        raise AgnoscoError(f"{str(test)!r} has other classes than {data!r}", "give both a folder for each class")
    return images, test_images
