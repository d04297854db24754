"""``agnosco map``: maps of classes, in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..text import without_password
from . import options
from .console import Output
from .maps import keep_samples, make_maps, remove_samples
from .options import computing_option, model_option, samples_option

if TYPE_CHECKING:
    from ..models.heads import Layer
    from ..runs.jobs import Finished
    from ..runs.run import Run


def map_(
    context: typer.Context,
    model: options.Model,
    classes: Annotated[
        list[str] | None,
        typer.Argument(metavar="CLASS", help="Class indices or names (default: all).", show_default=False),
    ] = None,
    *,
    weights: options.WeightsOption = None,
    labels: options.LabelsOption = None,
    size: options.SizeOption = None,
    channels: options.ChannelsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    features: Annotated[
        str | None,
        model_option(help="Layer that guides the paper's refinement, Eq. 2 (default: the last convolutional stage)."),
    ] = None,
    at: options.AtOption = None,
    directions: options.DirectionsOption = None,
    prompts: options.PromptsOption = None,
    list_layers: Annotated[
        bool, model_option("--list-layers", help="List the layers that --at can name, and make no map.")
    ] = False,
    trust_code: options.TrustCodeOption = False,
    allow_pickle: options.AllowPickleOption = False,
    samples: Annotated[
        str,
        samples_option(
            help="Images: a folder, .tar or data set (hf:ORG/NAME), or synthetic (leaves: overlapping discs)."
        ),
    ] = "leaves",
    samples_count: options.SamplesCountOption = None,
    samples_seed: options.SamplesSeedOption = 0,
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
    cluster: Annotated[
        str | None, computing_option(metavar="auto|ADDRESS", help="Compute on the workers of a Ray cluster.")
    ] = None,
    worker_cpus: Annotated[int, computing_option(min=1, help="CPU cores per worker.")] = 1,
    worker_gpus: Annotated[
        float | None,
        computing_option(min=0, help="GPUs per worker; with 0.5, two workers share one (default: 1 if there are any)."),
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Run folder: a path, or a URL such as s3://bucket/run.")
    ] = "agnosco-run",
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Make a map of each class: a picture of what the model has learned to recognise as that class.

    To continue an interrupted run, give the same command again.
    """
    from ..runs.command import OVERRIDES, chosen_config
    from ..runs.run import Run, check_target

    output = Output.of(context, quiet=quiet)
    check_target(out)
    given = context.params | {"compiled": compiled or None}
    overrides: dict[str, Any] = {name: given[name] for name in OVERRIDES if given[name] is not None}
    config = chosen_config(preset, **overrides)

    from ..runs.cluster import Cluster  # imports torch: wrong options are answered before

    classifier = options.load_classifier(output, context, model, device="cpu" if cluster else device)
    if list_layers:
        found = classifier.layers()
        output.result({"layers": [asdict(layer) for layer in found]} if as_json else "\n".join(_in_words(found)))
        return
    indices = options.chosen_classes(classifier, classes)
    images = options.read_samples(output, context, classifier, classifier.resize)
    with nullcontext() if cluster is None else Cluster(cluster, cpus=worker_cpus, gpus=worker_gpus) as workers:
        create = Run.create if workers is None else workers.run
        run = create(
            out, classifier=classifier, samples=images, config=config, preset=preset, overrides=overrides,
            command="map", weights=weights,
        )  # fmt: skip
        if images.private:
            remove_samples(run)  # of a time when they were not, at once
        if samples == "leaves":
            output.say("Samples: dead leaves, which need no data. For images like the training data: --samples DIR")
        if not classes:
            output.say("No class given: all classes are mapped")
        finished = make_maps(
            output, run, classifier, images, indices, seeds=range(seed, seed + seeds),
            backend=None if workers is None else workers.make,
        )  # fmt: skip
    keep_samples(output, run, classifier, images)
    if as_json:
        output.result({"run": run.folder.name, "maps": [_summary(run, each) for each in finished]})
    output.say(f"Next: agnosco report {out}, or agnosco score {out} --target MODEL")


def _in_words(layers: Sequence[Layer]) -> list[str]:
    """One line for each layer."""
    name, kind = (max((len(getattr(x, key)) for x in layers), default=0) for key in ("name", "kind"))
    return [f"{x.name:{name}}  {x.kind:{kind}}  {x.channels:6} channels  {x.places:6} places" for x in layers]


def _summary(run: Run, finished: Finished) -> dict[str, Any]:
    entry = finished.entry
    summary = {"class": entry.name, "index": entry.index, "seed": entry.seed, "probability": entry.probability}
    picture = without_password(run.folder.absolute(entry.files["picture"]))  # can be opened from any folder
    return summary | {"seconds": round(finished.seconds, 3), "picture": picture}
