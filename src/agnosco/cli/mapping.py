"""``agnosco map``: maps of classes, in a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..method.config import LOSSES, PRECISIONS, PRESETS
from ..method.dials import BALLS, PARAMETERIZATIONS, TRANSFORMS
from ..text import without_password
from .console import Output
from .options import (
    IMAGE_SOURCES,
    AllowPickle,
    AsJson,
    Channels,
    Device,
    Labels,
    Mean,
    Model,
    Quiet,
    Size,
    Std,
    TrustCode,
    Weights,
    chosen_classes,
    computing_option,
    images_option,
    load_classifier,
    method_option,
    model_option,
    read_samples,
)

if TYPE_CHECKING:
    from ..runs.jobs import Finished
    from ..runs.run import Run


def map_(
    context: typer.Context,
    model: Model,
    classes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CLASS]...", help="Class indices or names (default: all).", show_default=False),
    ] = None,
    *,
    weights: Weights = None,
    labels: Labels = None,
    size: Size = None,
    channels: Channels = None,
    mean: Mean = None,
    std: Std = None,
    features: Annotated[
        str | None, model_option(help="Layer that the refinement reads (default: the last convolutional stage).")
    ] = None,
    trust_code: TrustCode = False,
    allow_pickle: AllowPickle = False,
    samples: Annotated[
        str,
        images_option(
            metavar=IMAGE_SOURCES, help="Images to average over: a folder, or generated dead leaves or noise."
        ),
    ] = "leaves",
    preset: Annotated[
        str, method_option(metavar="|".join(PRESETS), help="Settings to start from; the options below change them.")
    ] = "quick",
    parameterization: Annotated[
        str | None,
        method_option(metavar="|".join(PARAMETERIZATIONS), help="Parameterization in which the map is optimized."),
    ] = None,
    transforms: Annotated[
        str | None, method_option(metavar="|".join(TRANSFORMS), help="Random transforms of perturbed images.")
    ] = None,
    ball: Annotated[str | None, method_option(metavar="|".join(BALLS), help="Norm ball that bounds the map.")] = None,
    loss: Annotated[str | None, method_option(metavar="|".join(LOSSES), help="Loss to minimize.")] = None,
    steps: Annotated[int | None, method_option(min=1, help="Steps of Algorithm 1, in each cycle.")] = None,
    batch: Annotated[int | None, method_option(min=1, help="Images per mini-batch.")] = None,
    radius: Annotated[
        float | None, method_option(help="L2 norm of a 3 x 224 x 224 map; scaled to other sizes.")
    ] = None,
    seeds: Annotated[int, method_option(min=1, help="Number of seeds: one map of every class for each.")] = 1,
    seed: Annotated[int, method_option(min=0, help="First seed.")] = 0,
    device: Device = "auto",
    precision: Annotated[
        str | None,
        computing_option(metavar="|".join(PRECISIONS), help="Precision of the network; auto is the device's fastest."),
    ] = None,
    compiled: Annotated[
        bool,
        computing_option(
            "--compile", help="Compile the network first: takes a minute, pays off for many maps on a GPU."
        ),
    ] = False,
    cluster: Annotated[
        str | None, computing_option(metavar="auto|ADDRESS", help="Compute on a Ray cluster, not on this machine.")
    ] = None,
    worker_cpus: Annotated[int, computing_option(min=1, help="CPU cores per cluster worker.")] = 1,
    worker_gpus: Annotated[
        float | None,
        computing_option(min=0, help="GPUs per cluster worker; with 0.5, two share one (default: 1 if there are any)."),
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Run folder: a path, or a URL such as s3://bucket/run.")
    ] = "agnosco-run",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Map classes: picture what a model has learned to recognise as each of them.

    A run that was interrupted goes on when the same command is given again.
    """
    from ..runs.cluster import connected
    from ..runs.command import chosen_config
    from ..runs.run import Run, check_target

    output = Output.of(context, quiet=quiet)
    check_target(out)
    options = {
        "parameterization": parameterization, "transforms": transforms, "ball": ball, "loss": loss, "steps": steps,
        "batch": batch, "radius": radius, "precision": precision, "compiled": compiled or None,
    }  # fmt: skip
    overrides = {name: value for name, value in options.items() if value is not None}
    config = chosen_config(preset, **overrides)
    classifier = load_classifier(
        output, model, weights=weights, size=size, mean=mean, std=std, channels=channels, labels=labels,
        features=features, device=device if cluster is None else "cpu", trust_code=trust_code,
        allow_pickle=allow_pickle,
    )  # fmt: skip
    indices = chosen_classes(classifier, classes)
    images = read_samples(output, samples, classifier)
    with connected(cluster, cpus=worker_cpus, gpus=worker_gpus) as workers:
        create = Run.create if workers is None else workers.run
        run = create(
            out, classifier=classifier, samples=images, config=config, preset=preset, overrides=overrides,
            command="map", weights=weights,
        )  # fmt: skip
        if samples == "leaves":
            output.say("Samples: dead leaves, which need no data. Images of the model's own kind: --samples DIR")
        if not classes:
            output.say("No class given, so all of them.")
        finished = output.make(
            run, classifier, images, indices, seeds=range(seed, seed + seeds),
            backend=None if workers is None else workers.make,
        )  # fmt: skip
    if as_json:
        output.result({"run": out, "maps": [_summary(run, one) for one in finished]})
    output.say(f"Next: agnosco report {out}, or agnosco score {out} --target MODEL")


def _summary(run: Run, one: Finished) -> dict[str, Any]:
    entry = one.entry
    summary = {"class": entry.name, "index": entry.index, "seed": entry.seed, "probability": entry.probability}
    picture = without_password(run.folder.absolute(entry.files["picture"]))  # to be opened from any folder
    return summary | {"seconds": round(one.seconds, 3), "picture": picture}
