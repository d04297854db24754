"""``agnosco score`` and ``agnosco sanity``: what the maps of a run are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Output
from .options import (
    IMAGE_SOURCES,
    AllowPickle,
    AsJson,
    Device,
    Labels,
    Mean,
    Quiet,
    RunFolder,
    Std,
    TrustCode,
    images_option,
    load_classifier,
    model_and_weights,
    model_option,
    read_samples,
)

if TYPE_CHECKING:
    from ..models.classifier import Classifier
    from ..runs.run import Run


def score(
    context: typer.Context,
    run: RunFolder,
    target: Annotated[list[str], model_option(metavar="MODEL[=WEIGHTS]", help="Network to ask; may be repeated.")],
    labels: Labels = None,
    size: Annotated[int | None, model_option(min=1, help="Input size of the targets (default: the run's).")] = None,
    mean: Mean = None,
    std: Std = None,
    trust_code: TrustCode = False,
    allow_pickle: AllowPickle = False,
    samples: Annotated[
        str | None, images_option(metavar=IMAGE_SOURCES, help="Images to perturb (default: the run's held-out part).")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the pictures of a run to networks: do they recognise the classes?

    A target is named like a MODEL of agnosco map, with a weights file if it needs one.
    """
    from ..evaluate.score_record import FILE, Judgement, add_scores, table
    from ..evaluate.transfer import score
    from ..io.records import to_json
    from ..runs.run import Run

    output = Output.of(context, quiet=quiet)
    made = Run.open(run)
    judgements: list[Judgement] = []
    for spec in target:
        classifier = _load_for(
            output, made, spec, size=size, mean=mean, std=std, labels=labels, device=device, trust_code=trust_code,
            allow_pickle=allow_pickle,
        )  # fmt: skip
        images = None if samples is None else read_samples(output, samples, classifier)
        judgements = add_scores(made, [score(made, classifier, images=images)])  # written now: a later target may fail
        _say_what_may_differ(output, made, classifier)
    output.result({"run": run, "targets": to_json(judgements)} if as_json else table(judgements))
    where = made.folder.at(FILE)
    output.say(f"Wrote {where}. p: probability of the class; success rate: targeted success rate of the maps")
    if any(judgement.interval for judgement in judgements):
        output.say("In brackets: 95 % bootstrap intervals over seeds, too narrow for few.")
    output.say(f"Next: agnosco report {run}")


def sanity(
    context: typer.Context,
    run: RunFolder,
    model: Annotated[str, model_option(metavar="MODEL[=WEIGHTS]", help="Network that the run was made with.")],
    labels: Labels = None,
    mean: Mean = None,
    std: Std = None,
    trust_code: TrustCode = False,
    allow_pickle: AllowPickle = False,
    samples: Annotated[str, images_option(metavar=IMAGE_SOURCES, help="Images that the run was made with.")] = "leaves",
    classes: Annotated[int, typer.Option(min=2, help="Number of classes to map again in each check.")] = 3,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check that the maps of a run depend on the network.

    Maps are made again with randomized weights, other seeds and other labels, and for a network whose answers are
    known.
    """
    from ..evaluate import sanity_record
    from ..evaluate.sanity import maps_needed
    from ..evaluate.sanity import sanity as check
    from ..io.records import to_json
    from ..method.maker import Maker
    from ..runs.run import Run

    output = Output.of(context, quiet=quiet)
    made = Run.open(run)
    features = made.settings.model.features
    classifier = _load_for(
        output, made, model, mean=mean, std=std, labels=labels, features=features, device=device, trust_code=trust_code,
        allow_pickle=allow_pickle,
    )  # fmt: skip
    images = read_samples(output, samples, classifier)
    count = maps_needed(made, classifier, classes=classes)
    seconds = Maker(classifier, images, made.config).seconds_per_map(classes)
    output.say_how_long(seconds, count, "Results are written at the end")
    with output.steps() as on_step:
        results = check(made, classifier, images, classes=classes, on_step=on_step)
    output.result(to_json(results) if as_json else sanity_record.table(results))
    output.say(f"Wrote {made.folder.at(sanity_record.FILE)}. Look at {made.folder.at(sanity_record.SHEET)}")
    output.say(f"Next: agnosco report {run}")


def _load_for(output: Output, run: Run, spec: str, *, size: int | None = None, **options: Any) -> Classifier:
    """The network MODEL[=WEIGHTS], for images of the run's shape."""
    model, weights = model_and_weights(spec)
    channels, height, width = run.settings.model.shape
    return load_classifier(output, model, weights=weights, size=size or (height, width), channels=channels, **options)


def _say_what_may_differ(output: Output, run: Run, classifier: Classifier) -> None:
    """Say where a target may be asked otherwise than its user thinks: class names, normalization."""
    if all(label.isdecimal() for label in classifier.labels):
        output.say(f"{classifier.name} has no class names: classes are taken in the run's order (--labels)")
    if (classifier.mean, classifier.std) != (run.settings.model.mean, run.settings.model.std):
        normalization = f"mean {classifier.mean}, std {classifier.std}"
        output.say(f"{classifier.name} is fed with {normalization}: change it with --mean, --std")
