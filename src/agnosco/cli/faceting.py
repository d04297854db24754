"""``agnosco facets``: the parts of what a network looks for in a class."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import options
from .console import Output
from .maps import make_maps
from .options import method_option, samples_option


def facets(
    context: typer.Context,
    model: options.Model,
    classes: Annotated[list[str], typer.Argument(metavar="CLASS", help="Class indices or names.", show_default=False)],
    *,
    weights: options.WeightsOption = None,
    labels: options.LabelsOption = None,
    size: options.SizeOption = None,
    channels: options.ChannelsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    trust_code: options.TrustCodeOption = False,
    allow_pickle: options.AllowPickleOption = False,
    samples: Annotated[
        str,
        samples_option(help="Images, some of which show the classes: those that the network was trained on, or alike."),
    ] = "leaves",
    samples_count: options.SamplesCountOption = None,
    samples_seed: options.SamplesSeedOption = 0,
    count: Annotated[int, method_option("--facets", min=1, help="Number of leading facets of each class.")] = 3,
    preset: options.PresetOption = "quick",
    parameterization: options.ParameterizationOption = None,
    transforms: options.TransformsOption = None,
    ball: options.BallOption = None,
    loss: options.LossOption = None,
    steps: options.StepsOption = None,
    batch: options.BatchOption = None,
    radius: options.RadiusOption = None,
    seeds: options.SeedsOption = 1,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = None,
    compiled: options.CompileOption = False,
    out: Annotated[str, typer.Option(metavar="DIR", help="Run folder: a path or a URL.")] = "agnosco-facets",
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Map the facets of classes: the parts into which a class's logit falls over the samples that get the class.

    A facet may be a spurious cue, such as a watermark. Maps have the loss logit and no random transforms, and of images
    below 64 px the spectral parameterization, unless other settings are given.
    """
    from ..evaluate.facet_record import overrides_for, table
    from ..io.records import to_json
    from ..runs.command import OVERRIDES, chosen_config
    from ..runs.run import Run, check_target

    output = Output.of(context, quiet=quiet)
    check_target(out)
    given = context.params | {"compiled": compiled or None}
    overrides: dict[str, Any] = {name: given[name] for name in OVERRIDES if given[name] is not None}
    chosen_config(preset, **overrides)

    from ..evaluate.facets import find_facets  # imports torch: wrong options are answered before

    classifier = options.load_classifier(output, context, model)
    overrides = overrides_for(classifier.shape) | overrides
    config = chosen_config(preset, **overrides)
    indices = options.chosen_classes(classifier, classes)
    images = options.read_samples(output, context, classifier, classifier.resize)
    found = find_facets(classifier, indices, images, count=count)
    run = Run.create(
        out, classifier=found.classifier, samples=images, config=config, preset=preset, overrides=overrides,
        command="map", weights=weights,
    )  # fmt: skip
    every_seed = range(seed, seed + seeds)
    found.store(run, seeds=every_seed)
    make_maps(output, run, found.classifier, images, found.targets, seeds=every_seed)
    output.result({"run": run.folder.name} | to_json(found.record) if as_json else table(found.record))
    output.say("α, in brackets: how many logits a sample has of the facet, beyond the mean")
    if images.private:
        output.say("The samples are private: the run keeps none of them")
    output.say(f"Next: agnosco report {out}{'' if images.private else ' --with-samples'}")
