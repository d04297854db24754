"""What the sanity checks of a run found, as ``sanity.json`` in its folder holds it, and in words; loads no torch."""

from statistics import fmean

from ..io import records
from ..io.records import Record
from ..io.storage import Folder

FILE, SHEET = "sanity.json", "sanity.png"


class Similarity(Record, frozen=True):
    """How similar two pictures are; 1 means the same.

    Args:
        ssim: Structural similarity (`Wang et al. 2004 <https://doi.org/10.1109/TIP.2003.819861>`_), in [−1, 1], about 0
            for unrelated pictures.
        rank: Spearman's rank correlation of all values, in [−1, 1]; 0 if a picture is of one grey.
        features: Cosine between channel means of the network's last convolutional stage, wherever things are in the
            pictures. It is far from 0 for two classes too, because activations are positive: compare, do not count
            from 0.
    """

    ssim: float
    rank: float
    features: float


class Level(Record, frozen=True):
    """One step of the cascade.

    Args:
        stages: Names of the stages whose weights are random, output first.
        similarity: Of the maps to those of the trained network with other seeds; mean over classes.
        probability: Mean softmax probability that the trained network gives the classes for the maps' pictures.
    """

    stages: tuple[str, ...]
    similarity: Similarity
    probability: float

    @property
    def title(self) -> str:
        """Which weights are random, in words."""
        return f"randomized: {self.stages[-1]}" + (" and all above" if len(self.stages) > 1 else " alone")


class Labels(Record, frozen=True):
    """Which classes of the run the network gives the run's pictures.

    Args:
        right: Share of pictures whose own class is the most probable.
        own: Mean probability of the own class.
        other: Greatest probability of another class.
    """

    right: float
    own: float
    other: float

    def __str__(self) -> str:
        return (
            f"{self.right:.0%} of the pictures get their own class of the run (p {self.own:.3f}); the highest "
            f"probability of another class is {self.other:.3f}"
        )


class Seeds(Record, frozen=True, rename={"same_class": "one class", "other_class": "two classes"}):
    """Similarity of maps of the same class, None if no class has two maps; and of maps of two classes."""

    same_class: Similarity | None
    other_class: Similarity


class SanityRecord(Record, frozen=True):
    """Results of all four checks.

    Args:
        classes: Names of the classes that were mapped again.
        labels, seeds, cascade: See the records above.
        planted: Row i: correlation of map i with each planted template.
    """

    classes: list[str]
    labels: Labels
    seeds: Seeds
    planted: list[list[float]]
    cascade: list[Level]

    def __post_init__(self) -> None:
        if not self.planted or any(len(row) != len(self.planted) for row in self.planted):
            raise ValueError("each map must be compared with each template")
        if not all(level.stages for level in self.cascade):
            raise ValueError("a level without a stage")

    @property
    def comparisons(self) -> list[tuple[str, Similarity, float | None]]:
        """What was compared with the maps, how similar it is, and its p(class) if the weights are random."""
        seeds = [("another seed, the same class", self.seeds.same_class), ("another class", self.seeds.other_class)]
        return [
            *((name, similarity, None) for name, similarity in seeds if similarity is not None),
            *((level.title, level.similarity, level.probability) for level in self.cascade),
        ]

    @property
    def templates(self) -> str:
        """Whether each map shows the template that was planted for its class, in words."""
        count = len(self.planted)
        correct = sum(row.index(max(row)) == i for i, row in enumerate(self.planted))
        own = fmean(row[i] for i, row in enumerate(self.planted))
        return f"{correct} of {count} maps are most similar to their own template, with a mean correlation of {own:.2f}"


def read(folder: Folder) -> SanityRecord | None:
    """The results in a run's folder; None if it was not checked.

    Raises:
        AgnoscoError: The file is damaged or of another version.
    """
    return records.read(folder, FILE, SanityRecord, hint="check again with agnosco sanity")


def table(record: SanityRecord) -> str:
    """All results as lines of text."""
    lines = [
        f"labels   {record.labels}",
        "",
        f"{'similarity to the map':44s}{'SSIM':>8s}{'rank':>8s}{'features':>10s}{'p':>8s}",
    ]
    for name, alike, probability in record.comparisons:
        p = "" if probability is None else f"{probability:8.3f}"
        lines.append(f"{name:44s}{alike.ssim:8.3f}{alike.rank:8.3f}{alike.features:10.3f}{p}")
    return "\n".join([*lines, "", f"planted  {record.templates}"])
