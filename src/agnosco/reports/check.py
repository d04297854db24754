"""``agnosco check``: what a run folder holds, with the results in it, and what is wrong; loads no torch."""

from __future__ import annotations

from collections.abc import Mapping

from ..backdoor import record as scan_record
from ..evaluate import diff_record, facet_record, sample_record, sanity_record, score_record
from ..io.storage import Folder, Place
from ..runs.check import Reader, RunCheck, check_run
from ..runs.run import Run

OTHER_FILES = frozenset(
    {
        sanity_record.SHEET,
        scan_record.PICTURE,
        facet_record.DIRECTIONS,
        "report.html",
        "card.md",
        "agnosco-pictures",
        "network.safetensors",
    }
)
"""What else agnosco writes beside the manifest: pictures, directions, pages, and the network of a demo."""


def check(path: Place | Folder) -> RunCheck:
    """What a run folder holds, and what is wrong with it; nothing is changed, and torch is not loaded.

    Args:
        path: A path or a URL.

    Raises:
        AgnoscoError: It is not a run folder, or its manifest is lost and cannot be rebuilt.

    Example:
        >>> from agnosco import check
        >>> found = check("agnosco-run")
        >>> found.finished, found.planned, found.damaged, found.is_whole
        (2, 2, [], True)
    """
    return check_run(path, readers=READERS, known=OTHER_FILES)


def _are_scores_of(run: Run) -> bool:
    return bool(score_record.read_scores(run))


def _are_samples_of(run: Run) -> bool:
    return not sample_record.of_other_maps(sample_record.read(run.folder), run.entries)


def _is_sanity_of(run: Run) -> bool:
    record = sanity_record.read(run.folder)  # which says of which classes it is, and not of which maps
    return record is not None and set(record.classes) <= {entry.name for entry in run.entries}


def _is_diff_of(run: Run) -> bool:
    record = diff_record.read(run.folder)
    digest = score_record.digest_of(run)
    return record is not None and digest in (record.first.run, record.second.run)


def _are_facets_of(run: Run) -> bool:
    record = facet_record.read(run.folder)
    return record is not None and {entry.name for entry in run.entries} <= record.by_name.keys()


def _is_scan_of(run: Run) -> bool:
    record = scan_record.read(run.folder)
    return record is not None and record.model.fingerprint == run.settings.model.fingerprint


READERS: Mapping[str, Reader] = {
    score_record.FILE: _are_scores_of,
    sample_record.FILE: _are_samples_of,
    sanity_record.FILE: _is_sanity_of,
    diff_record.FILE: _is_diff_of,
    facet_record.FILE: _are_facets_of,
    scan_record.FILE: _is_scan_of,
}
"""How the results in a run folder are read."""
