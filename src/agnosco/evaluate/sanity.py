"""Do a run's maps depend on what its network has learned? All checks of a run, written into its folder."""

import torch
from torch import Tensor, nn

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..io import records
from ..method.concept import ConceptMap
from ..method.maker import Maker, groups_of
from ..method.render import SIDE, contact_sheet, enlarged, png, stretched, to_picture
from ..models.classifier import Classifier
from ..runs.jobs import OnEstimate
from ..runs.origin import check_origin, classifier_of
from ..runs.run import Run, check_target
from ..types import Job, OnStep
from .checks import cascade, depths, labels_check, metrics, planted, seeds_check, stages_of
from .sanity_record import FILE, SHEET, Level, SanityRecord


def sanity(
    run: Run,
    model: Classifier | nn.Module | str,
    samples: Samples,
    *,
    classes: int = 3,
    on_step: OnStep | None = None,
    on_estimate: OnEstimate | None = None,
) -> SanityRecord:
    """Run all four checks of :mod:`agnosco.evaluate.checks`; writes ``sanity.json`` and ``sanity.png`` into the run.

    Args:
        run: The run, of at least two classes.
        model: Its classifier, loaded again. A PyTorch module gets the size and normalization of the run.
        samples: Its samples, all of them, read again.
        classes: How many of its classes are mapped again at every level of the cascade.
        on_step: Called after every step of every map.
        on_estimate: Called before the first step, as by :func:`~agnosco.runs.jobs.map_runs`.

    Returns:
        The results, as written.

    Raises:
        AgnoscoError: The run was made with another classifier or other samples, has one class only, or cannot be
            written; the network has no feature map; or scikit-image or SciPy is not installed.

    Example:
        >>> from agnosco import Run, Samples, load, sanity
        >>> classifier = load("python:net.py:build", size=16, trust_code=True)
        >>> results = sanity(Run.open("agnosco-run"), classifier, Samples.noise(classifier.shape, count=10))
        >>> [level.title for level in results.cascade]
        ['randomized: 3 alone', 'randomized: 0 and all above']
    """
    metrics()  # what is missing is reported before hours of work
    classifier = classifier_of(run, model)
    check_origin(run, classifier, samples)
    maps = list(run.maps())
    lowest = {concept.label: concept for concept in reversed(maps)}  # of each class the map of the lowest seed
    if len(lowest) < 2:
        raise AgnoscoError(f"{run.folder.name!r} has maps of fewer than two classes", "map at least two classes")
    classifier.activations(maps[0].pixels[None].to(classifier.device))  # compared later: refused now if there are none
    check_target(run.folder)
    mapping, _ = samples.split(run.settings.samples.held_out, seed=run.settings.samples.split_seed)
    chosen = sorted(lowest)[:classes]
    first = [lowest[label] for label in chosen]
    others = [concept for concept in maps if concept.label in chosen and concept not in first]
    new_seed = 1 + max(concept.seed for concept in maps)
    maker = Maker(classifier, mapping, run.config)
    if on_estimate is not None:
        count = len(chosen) * (len(depths(len(stages_of(classifier.model)))) + (not others))
        on_estimate(maker.seconds_per_map(len(chosen)), count)
    if not others:
        groups = groups_of([Job(label, new_seed) for label in chosen], maker.together)
        others = [concept for group in groups for concept in maker.make(group, on_step=on_step)]
    del maker  # its copy of the network may fill the device
    pictures, _ = _pictures(first)
    seeds = seeds_check(classifier, *_pictures([*first, *others]))
    templates = planted(mapping, run.config, seed=new_seed, on_step=on_step).tolist()  # before the long part
    levels = cascade(classifier, chosen, mapping, run.config, pictures=pictures, seed=new_seed, on_step=on_step)
    record = SanityRecord(
        classes=[concept.name for concept in first],
        labels=labels_check(classifier, *_pictures(maps)),
        seeds=seeds,
        planted=templates,
        cascade=[level for level, _ in levels],
    )
    sheet = _sheet(classifier.name, record, pictures, levels)
    run.folder.remove(FILE)  # whenever this process is killed, no record lies beside a picture of another
    run.folder.write(SHEET, sheet)
    run.folder.write(FILE, records.encode(record))
    return record


def _pictures(maps: list[ConceptMap]) -> tuple[Tensor, list[int]]:
    """Raw pictures of maps, and their labels."""
    return torch.stack([concept.pixels for concept in maps]), [concept.label for concept in maps]


def _sheet(name: str, record: SanityRecord, pictures: Tensor, levels: list[tuple[Level, Tensor]]) -> bytes:
    """A row for each class: the map as it is, and that of each level."""
    captions = ["as it is", *(level.title for level in record.cascade)]
    rows = zip(pictures, *(of_level for _, of_level in levels), strict=True)
    tiles = [enlarged(to_picture(stretched(picture - 0.5)), SIDE) for row in rows for picture in row]
    footer = f"{name}, weights randomized from the output downwards; classes: {', '.join(record.classes)}."
    columns = len(captions)
    return png(contact_sheet(tiles, captions * len(record.classes), columns=columns, tile=SIDE, footer=footer))
