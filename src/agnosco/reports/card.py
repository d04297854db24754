"""A section for the model card of a network: pictures, figures, limits and fingerprints of a run, as Markdown.

Every sentence comes from the run's records, and the pictures from its maps; what the run does not hold is said to be
unmeasured. No model is loaded. Text from outside (class names, file names) is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from stat import S_IMODE
from statistics import fmean

from ..backdoor import record as scanning
from ..errors import AgnoscoError
from ..evaluate import sanity_record
from ..evaluate.score_record import Judgement, read_scores, rows_of
from ..io.local import Local
from ..io.storage import Folder, Place, folder_and_name
from ..method.render import SIDE, enlarged, png, stretched, to_picture
from ..runs.command import command_of
from ..runs.manifest import Entry
from ..runs.run import Run
from ..text import without_password
from .markdown import OPENING, escaped, preformatted, table, with_section
from .runs import CONTROLS, own_scan, recorded_facts
from .target import file_at

FILE, PICTURES = "card.md", "agnosco-pictures"
"""The file that is written if none is named, and the folder of pictures beside it."""

CLASSES = 12
"""Classes of which a picture is shown, if no other number is asked for."""

COLUMNS = 4

SUFFIXES = (".md", ".markdown")

PAPER = "https://arxiv.org/abs/2303.17836"


@dataclass(frozen=True)
class Card:
    """A card about to be written: everything has been read and checked but the maps.

    Args:
        run: The run.
        shown: The maps whose pictures it shows, one for each class.
        section: Its Markdown, without the markers.
        folder, file: Where it is written.
        before: What the file holds now, which stays around the section.
    """

    run: Run
    shown: list[Entry]
    section: str
    folder: Folder
    file: str
    before: bytes

    def write(self) -> tuple[str, list[str]]:
        """Write the pictures, then the file; returns the full names of the file and of the pictures.

        Raises:
            AgnoscoError: A map is missing or damaged, or something cannot be written.
        """
        content = with_section(self.before, self.section)
        drawn = {_picture_of(entry): _drawn(self.run, entry) for entry in self.shown}
        self.folder.make()
        pictures = [self.folder.write(name, picture) for name, picture in drawn.items()]
        followed = _followed(self.folder, self.file)
        mode = _mode_of(self.folder, followed)
        name = self.folder.write(followed, content)
        if mode is not None:
            with suppress(OSError):  # of disks that keep none
                os.chmod(name, mode)
        return self.folder.at(self.file), pictures


def card(
    run: Run | Place | Folder, *, out: Place | None = None, into: Place | None = None, classes: int = CLASSES
) -> str:
    """Write what a run found out about its network as a section for a model card, and return the file's path.

    Pictures are written into the folder ``agnosco-pictures`` beside the file, which refers to them by relative paths.

    Args:
        run: The run, its folder or its URL; its scores, sanity checks and scan are told too.
        out: The Markdown file to write, or a folder; ``card.md`` in the run's folder if None.
        into: A Markdown file that exists, such as the README.md of a model's repository. The section between the lines
            ``<!-- agnosco -->`` and ``<!-- /agnosco -->`` is replaced, or added at the end; all else stays as it is. A
            link stays one: the section is in the file that it leads to, the pictures are beside the link.
        classes: Pictures to show, one for each class.

    Raises:
        AgnoscoError: The run has no map, or a file of it is missing or damaged; the file to write is not Markdown, or
            exists without ``into``.

    Example:
        >>> from agnosco import card
        >>> card("agnosco-run")
        'agnosco-run/card.md'
    """
    return opened(run, out=out, into=into, classes=classes).write()[0]


def opened(
    run: Run | Place | Folder, *, out: Place | None = None, into: Place | None = None, classes: int = CLASSES
) -> Card:
    """A card of a run, not yet written: whatever is wrong with its arguments is reported first; see :func:`card`."""
    run = run if isinstance(run, Run) else Run.open(run)
    run.check_maps()
    if out is not None and into is not None:
        raise AgnoscoError("the card cannot be written both to a file of its own and into another", "give one of them")
    folder, file, before = _target(run, out, into)
    shown = list({entry.index: entry for entry in reversed(run.entries)}.values())[::-1][:classes]
    card = Card(run, shown, _section(run, shown), folder, file, before)
    try:
        with_section(before, "")
    except AgnoscoError as error:
        raise AgnoscoError(f"cannot replace the section in {folder.at(file)!r}: {error.message}", error.hint) from error
    return card


def _target(run: Run, out: Place | None, into: Place | None) -> tuple[Folder, str, bytes]:
    """The folder and the name of the file to write, and what it holds now."""
    if out is None and into is None:
        folder, file = run.folder, FILE
    else:
        place = os.fspath(into) if into is not None else file_at(os.fspath(out or ""), FILE)
        folder, file = folder_and_name(place)
    if not file.lower().endswith(SUFFIXES):
        named = without_password(folder.at(file))
        raise AgnoscoError(f"{named!r} is not a Markdown file", "name a file that ends in .md, or a folder for --out")
    try:
        before = folder.read(file)
    except FileNotFoundError as error:
        if into is None:
            return folder, file, b""
        message = f"there is no {without_password(folder.at(file))!r}"
        raise AgnoscoError(message, "write a new file with --out") from error
    if into is None and not before.startswith(OPENING.encode()):
        message = f"{without_password(folder.at(file))!r} is not a card of agnosco"
        raise AgnoscoError(message, "choose another name with --out, or add the card to this file with --into")
    _check_text(folder.at(file), before)
    return folder, file, before


def _followed(folder: Folder, file: str) -> str:
    """The name, in the same folder, of the file that a link leads to, so that it stays a link."""
    if isinstance(folder, Local):
        return os.path.relpath(os.path.realpath(folder.path / file), os.path.realpath(folder.path))
    return file


def _mode_of(folder: Folder, file: str) -> int | None:
    """The permissions of a file of this machine; None if there is none, or it is elsewhere."""
    if isinstance(folder, Local) and folder.exists(file):
        return S_IMODE(os.stat(folder.path / file).st_mode)
    return None


def _check_text(name: str, content: bytes) -> None:
    """Refuse a file that is called Markdown and is none."""
    try:
        is_text = "\0" not in content.decode()
    except UnicodeDecodeError:
        is_text = False
    if not is_text:
        raise AgnoscoError(f"{without_password(name)!r} is not a text in UTF-8", "name a Markdown file")


def _picture_of(entry: Entry) -> str:
    """Where the picture of a map lies, from the card."""
    return str(PurePosixPath(PICTURES, f"{entry.stem}.png"))


def _drawn(run: Run, entry: Entry) -> bytes:
    """The picture of a map for people, as in its run folder, drawn from the map itself, whose digest is checked."""
    return png(enlarged(to_picture(stretched(-run.arrays(*entry.job)["nu"])), SIDE))


# -- the section ------------------------------------------------------------------------------------


def _section(run: Run, shown: Sequence[Entry]) -> str:
    """The section as Markdown."""
    scores, sanity, scan = read_scores(run), sanity_record.read(run.folder), own_scan(run)
    parts = [
        "## What this network looks for in each class",
        _introduction(run),
        _grid(shown),
        *_more(run, shown),
        "### Figures",
        _figures(run.entries),
        *_of_scores(scores),
        *_of_sanity(sanity),
        *_of_scan(scan),
        "### Limits",
        "\n".join(f"- {limit}" for limit in _limits(run, scores, sanity, scan)),
        "### How the pictures were made",
        table(["", ""], [(name, escaped(value, limit=1000)) for name, value in recorded_facts(run)]),
        _command(run),
    ]
    return "\n\n".join(parts)


def _introduction(run: Run) -> str:
    """What is shown, and what the figures below the pictures are."""
    model, version = escaped(run.settings.model.name), escaped(run.settings.versions.get("agnosco") or "unknown")
    return (
        f"Each picture is the pattern that agnosco {version} found for a class of {model}: an [input-agnostic saliency "
        f"map]({PAPER}), which makes the network see the class when it is added to other images. It is drawn on grey "
        "at full contrast.\n\n"
        "*p*: probability that the network itself gives the class for the raw picture (without the contrast). "
        "*Success*: the targeted success rate, which is the share of held-out images of other classes that the network "
        "gives the class once the pattern is added."
    )


def _grid(shown: Sequence[Entry]) -> str:
    """The pictures in rows, each with its class and figures."""
    cells = [f"![{escaped(entry.name)}]({_picture_of(entry)})<br>{_caption(entry)}" for entry in shown]
    columns = min(COLUMNS, len(cells))
    cells += [""] * (-len(cells) % columns)
    return table([" "] * columns, [cells[start : start + columns] for start in range(0, len(cells), columns)])


def _caption(entry: Entry) -> str:
    rate = entry.targeted_success_rate
    success = "" if rate is None else f", success {rate:.0%}"
    return f"{escaped(entry.name)} ({entry.index})<br>p {entry.probability:.2f}{success}"


def _more(run: Run, shown: Sequence[Entry]) -> list[str]:
    """How many classes and maps the run holds besides those shown."""
    classes = len({entry.index for entry in run.entries})
    more = classes - len(shown)
    lines = [f"And {more} more {'class' if more == 1 else 'classes'} of this run."] if more else []
    if len(run.entries) > classes:
        lines.append(f"The run holds {len(run.entries)} maps of {classes} classes; of each class, one seed is shown.")
    return lines


def _figures(entries: Sequence[Entry]) -> str:
    """The source's own figures over all maps of a run."""
    rates = [entry.targeted_success_rate for entry in entries if entry.targeted_success_rate is not None]
    rows = [_spread("p of the picture, by the network itself", [entry.probability for entry in entries])]
    rows += [_spread("targeted success rate on held-out images", rates)] if rates else []
    return table(["over all maps", "maps", "mean", "least", "greatest"], rows)


def _spread(name: str, values: Sequence[float]) -> list[str]:
    return [name, str(len(values)), *(f"{value:.3f}" for value in (fmean(values), min(values), max(values)))]


def _of_scores(scores: Sequence[Judgement]) -> list[str]:
    """What networks say of the pictures; nothing if none was asked."""
    if not scores:
        return []
    head, *rows = ([escaped(cell) for cell in row] for row in rows_of(scores))
    words = (
        "Each network classifies the raw pictures. M_score says how well it tells the classes apart, from 1/L for L "
        "classes to 1, but not whether it names the right one; top-1 does, among these classes and among all. *p* is "
        "the mean probability of the class."
    )
    if any(judgement.interval for judgement in scores):
        words += " In brackets: 95 % bootstrap intervals over seeds, which are too narrow for few seeds."
    return ["### Do other networks recognise the classes?", words, table(head, rows)]


def _of_sanity(sanity: sanity_record.SanityRecord | None) -> list[str]:
    """What the sanity checks found; nothing if there were none."""
    if sanity is None:
        return []
    rows = [
        [
            escaped(name),
            f"{alike.ssim:.2f}",
            f"{alike.rank:.2f}",
            f"{alike.features:.2f}",
            "–" if p is None else f"{p:.2f}",
        ]
        for name, alike, p in sanity.comparisons
    ]
    return [
        "### Do the maps depend on what the network has learned?",
        f"Checked with {len(sanity.classes)} classes: {escaped(', '.join(sanity.classes), limit=500)}. 1 means the "
        "same picture as the map.",
        table(["compared with the map", "structural similarity", "rank correlation", "features", "p"], rows),
        f"Labels: {sanity.labels}. Planted templates: {sanity.templates}.",
    ]


def _of_scan(scan: scanning.ScanRecord | None) -> list[str]:
    """What a scan concluded, in its own words; nothing if there was none."""
    if scan is None:
        return []
    lines = [escaped(line, limit=1000) for line in scanning.conclusion(scan)]
    return ["### Is there a class that one fixed pattern reaches too easily?", *lines]


def _limits(
    run: Run,
    scores: Sequence[Judgement],
    sanity: sanity_record.SanityRecord | None,
    scan: scanning.ScanRecord | None,
) -> list[str]:
    """What the run does not hold or did not measure."""
    entries, known = run.entries, run.settings.model.classes
    classes, seeds = {entry.index for entry in entries}, {entry.seed for entry in entries}
    unrated = sum(entry.targeted_success_rate is None for entry in entries)
    said = {
        f"Of the network's {known} classes, {known - len(classes)} have no map.": len(classes) < known,
        "There is one map of each class: how much chance changes it is not measured.": len(seeds) == 1,
        f"{unrated} of {len(entries)} maps have no targeted success rate.": unrated > 0,
        "No other network has judged these pictures.": all(judgement.source for judgement in scores),
        "Whether the maps depend on what the network has learned was not checked.": sanity is None,
        "The network was not scanned for a backdoor.": scan is None,
        "A picture shows something that makes the network see the class, not everything that does.": True,
    }
    return [limit for limit, holds in said.items() if holds]


def _command(run: Run) -> str:
    """The command that makes the run again."""
    command = command_of(run.settings, run.entries)
    if command is None:
        return "There is no command line that makes this run again; its settings are in its manifest."
    return (
        f"The command that makes the run again:\n\n{preformatted(CONTROLS.sub('', command))}\n\n"
        "It names files without their folders."
    )
