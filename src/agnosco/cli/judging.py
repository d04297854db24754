"""``agnosco score``, ``agnosco sanity`` and ``agnosco diff``: are the maps of a run right, and what has changed?"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import AgnoscoError
from . import options
from .console import Output, step_in_words
from .options import model_option, samples_option

if TYPE_CHECKING:
    from ..models.classifier import Classifier
    from ..runs.run import Run


def score(
    context: typer.Context,
    run: options.RunFolder,
    target: Annotated[list[str], model_option(metavar="MODEL[=WEIGHTS]", help="Network to test; may be repeated.")],
    labels: options.LabelsOption = None,
    directions: options.DirectionsOption = None,
    prompts: options.PromptsOption = None,
    size: Annotated[int | None, model_option(min=1, help="Input size of the networks (default: the run's).")] = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    trust_code: options.TrustCodeOption = False,
    allow_pickle: options.AllowPickleOption = False,
    samples: Annotated[
        str | None, samples_option(help="Images to perturb (default: none, and so no success rate).")
    ] = None,
    samples_count: options.SamplesCountOption = None,
    samples_seed: options.SamplesSeedOption = 0,
    csv: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.csv",
            help="Write what every network that has judged the run sees in each picture, ten classes, as a table.",
        ),
    ] = None,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Test whether other networks recognise the classes in the pictures of a run.

    A target is written like the MODEL of agnosco map, followed by =WEIGHTS if it needs a weights file.
    """
    from ..evaluate.lookalikes import to_csv
    from ..evaluate.score_record import FILE, Judgement, add_scores, table, without_answers
    from ..io.records import to_json
    from ..io.storage import write_whole
    from ..runs.run import Run

    output = Output.of(context, quiet=quiet)
    if csv is not None and not csv.lower().endswith(".csv"):
        raise AgnoscoError(f"{csv!r} is not a CSV file", "name a file that ends in .csv")
    maps = Run.open(run)

    from ..evaluate.transfer import score  # imports torch: a wrong run folder is answered before

    judgements: list[Judgement] = []
    for spec in target:
        classifier = _load_target(output, context, maps, spec)
        rule = maps.settings.model.resize  # so that images are those of the run, of which some are held out
        images = None if samples is None else options.read_samples(output, context, classifier, rule)
        if weights := options.model_and_weights(spec)[1]:
            classifier.name += f", {os.path.basename(weights)}"
        judgements = add_scores(maps, [score(maps, classifier, images=images)])  # written now: a later target may fail
        _say_what_may_differ(output, maps, classifier)
    short = without_answers(judgements)
    output.result({"run": maps.folder.name, "targets": to_json(short)} if as_json else table(judgements))
    if csv is not None:
        output.say(f"Wrote {write_whole(csv, to_csv(maps.entries, judgements).encode(errors='replace'))}")
        if earlier := [judgement.target for judgement in judgements if not judgement.answers]:
            output.say(f"Without answers, because an earlier version judged: {', '.join(earlier)}; score them again")
    written = maps.folder.at(FILE)
    output.say(f"Wrote {written}. p: probability of the class; success rate: targeted success rate of the maps")
    if any(judgement.interval for judgement in judgements):
        output.say("In brackets: 95% bootstrap intervals over seeds, which are too narrow for few seeds")
    output.say(f"Next: agnosco report {run}")


def sanity(
    context: typer.Context,
    run: options.RunFolder,
    model: Annotated[str, model_option(metavar="MODEL[=WEIGHTS]", help="Network that the run was made with.")],
    labels: options.LabelsOption = None,
    directions: options.DirectionsOption = None,
    prompts: options.PromptsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    trust_code: options.TrustCodeOption = False,
    allow_pickle: options.AllowPickleOption = False,
    samples: Annotated[str, samples_option(help="Images that the run was made with.")] = "leaves",
    samples_count: options.SamplesCountOption = None,
    samples_seed: options.SamplesSeedOption = 0,
    classes: Annotated[int, typer.Option(min=2, help="Number of the run's classes to map again.")] = 3,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Check that the maps of a run depend on what the network has learned.

    Compares them with maps for randomised weights, for other seeds and for other classes. Also maps a network built to
    look for known patterns, and checks that its maps show them.
    """
    from ..evaluate import sanity_record
    from ..io.records import to_json
    from ..runs.run import Run

    output = Output.of(context, quiet=quiet)
    maps = Run.open(run)

    from ..evaluate.sanity import sanity as check  # imports torch, as above

    classifier = _load_target(output, context, maps, model, features=maps.settings.model.features)
    images = options.read_samples(output, context, classifier, maps.settings.model.resize)
    with output.bar() as show:
        results = check(
            maps, classifier, images, classes=classes,
            on_step=lambda step: show(f"class {step.label}", step.done, step.total, step_in_words(step)),
            on_estimate=lambda seconds, count: output.say_how_long(seconds, count, "Results are written at the end"),
        )  # fmt: skip
    output.result(to_json(results) if as_json else sanity_record.table(results))
    output.say(f"Wrote {maps.folder.at(sanity_record.FILE)}. Look at {maps.folder.at(sanity_record.SHEET)}")
    output.say(f"Next: agnosco report {run}")


def diff(
    context: typer.Context,
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="Run folder of a network, or its URL.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="Run folder of the other network.")],
    model: Annotated[
        list[str],
        model_option(metavar="MODEL[=WEIGHTS]", help="Network that a run was made with; give RUN_A's, then RUN_B's."),
    ],
    labels: options.LabelsOption = None,
    directions: options.DirectionsOption = None,
    prompts: options.PromptsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    trust_code: options.TrustCodeOption = False,
    allow_pickle: options.AllowPickleOption = False,
    samples: Annotated[str, samples_option(help="Images that the runs were made with.")] = "leaves",
    samples_count: options.SamplesCountOption = None,
    samples_seed: options.SamplesSeedOption = 0,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder to write diff.json to (default: RUN_B, where agnosco report finds it)."
        ),
    ] = None,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Compare two networks class by class: which classes do they see differently?

    Both runs must have the same settings, samples and classes, and as many seeds. Each network is shown the maps of
    the other. For versions of a network that were trained on, quantised, pruned, repaired or poisoned.
    """
    from ..evaluate import diff_record
    from ..io.records import to_json
    from ..io.storage import Folder
    from ..runs.run import Run

    output = Output.of(context, quiet=quiet)
    runs = [Run.open(run) for run in (run_a, run_b)]
    if len(model) != len(runs):
        raise AgnoscoError(f"{len(model)} networks for two runs", "give --model twice: RUN_A's network, then RUN_B's")

    from ..evaluate.diff import diff as compare  # imports torch, as above

    networks = [
        _load_target(output, context, run, spec, features=run.settings.model.features)
        for run, spec in zip(runs, model, strict=True)
    ]
    images = options.read_samples(output, context, networks[0], runs[0].settings.model.resize)
    with output.bar() as show:
        on_map = partial(show, "adding maps to images")
        results = compare(runs[0], runs[1], networks, images, out=out, on_map=on_map)
    output.result(to_json(results) if as_json else diff_record.table(results))
    folder = runs[1].folder if out is None else Folder.of(out)
    output.say(f"Wrote {folder.at(diff_record.FILE)}. Log-odds are those of images with the maps added")
    if out is None:
        output.say(f"Next: agnosco report {run_a} {run_b}")


def _load_target(output: Output, context: typer.Context, run: Run, target: str, **changes: Any) -> Classifier:
    """The network MODEL[=WEIGHTS], for images of the run's shape, asked at the run's layer if it has one."""
    model, weights = options.model_and_weights(target)
    channels, height, width = run.settings.model.shape
    size, at = context.params.get("size") or (height, width), run.settings.model.at
    prompts = context.params["prompts"] if model.startswith("open_clip:") else None  # other targets have classes
    changes |= {"weights": weights, "size": size, "channels": channels, "at": at, "prompts": prompts}
    return options.load_classifier(output, context, model, **changes)


def _say_what_may_differ(output: Output, run: Run, classifier: Classifier) -> None:
    """Say which class names and which normalization a target is tested with, if these may be wrong."""
    own = run.settings.model
    if own.at and not own.directions and classifier.fingerprint != own.fingerprint:
        output.say(
            f"{classifier.name} is asked at {own.at}, too: a number is the same channel only in a copy of the network"
        )
    if all(label.isdecimal() for label in classifier.labels):
        output.say(f"{classifier.name} has no class names: classes are taken in the run's order (--labels)")
    if (classifier.mean, classifier.std) != (run.settings.model.mean, run.settings.model.std):
        normalization = f"mean {classifier.mean}, std {classifier.std}"
        output.say(f"{classifier.name} is tested with {normalization}, unlike the run (--mean, --std)")
