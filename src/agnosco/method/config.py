"""Every setting that decides a map, the presets, and settings as JSON. Reading them loads no torch.

The presets are chosen from the figures in ``docs/paper.md``, which ``benchmarks/ablation.py`` makes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from ..errors import AgnoscoError
from ..types import Shape, Stage
from .dials import DIALS, L2, Ball, Crops, Data, Identity, Parameterization, Pixel, Transforms, name_of, scaled_radius

LOSSES = ("cross-entropy", "log-odds", "logit")
DIRECTIONS = ("lookahead", "gradient", "plus")
CLIPS = ("straight-through", "masked")
PRECISIONS = ("float32", "bfloat16", "auto")


@dataclass(frozen=True)
class MapperConfig:
    """Settings of Algorithm 1; the defaults are the paper's.

    Args:
        batch: b, samples per step.
        steps: K.
        step: Length of a step: ``"literal"`` adds v (lines 11, 13), ``"unit"`` adds v / ‖v‖₂ (the step that
            lines 8–9 probe), a number adds a step of that share of η (in pixels' L2 norm).
        decay: Share of the steps, at the end, over which the step length falls to zero (half a cosine).
        direction: Lines 8–14: ``"lookahead"`` tries both directions (the paper), ``"gradient"`` takes the
            sign of ⟨x, v⟩ instead (free), ``"plus"`` always adds.
        loss: Loss to minimize in line 4: ``"cross-entropy"`` (the paper); ``"log-odds"``, minus the log-odds of the
            class: the gradient of cross-entropy without the factor 1 − p, which ignores images that are given the class
            already; ``"logit"``, minus the logit of the class, which ignores the other classes
            (`Zhao et al. 2021 <https://arxiv.org/abs/2012.11207>`_); or a number w, for −z_ℓ + w · log Σ exp z_j over
            the other classes j: 1 is the log-odds, 0 the logit.
        clip: How the gradient of line 4 passes the clip of line 3: ``"straight-through"`` as if there were none,
            ``"masked"`` only where the perturbed image is not clipped.
        contrast: Least and greatest contrast, around mid-grey, of a sample; 1 leaves it as it is.
        parameterization: Parameterization in which the map is optimized.
        transforms: Random transforms of perturbed images.
        ball: Norm ball of line 15.
        beta1, beta2: Decay of the moments (line 1).

    Example:
        >>> from agnosco import L2, MapperConfig, Spectral
        >>> MapperConfig(batch=8, steps=100, parameterization=Spectral(), ball=L2(50)).passes
        800
    """

    batch: int = 128
    steps: int = 650
    step: str | float = "literal"
    decay: float = 0.0
    loss: str | float = "cross-entropy"
    direction: str = "lookahead"
    clip: str = "straight-through"
    contrast: tuple[float, float] = (1.0, 1.0)
    parameterization: Parameterization = field(default_factory=Pixel)
    transforms: Transforms = field(default_factory=Identity)
    ball: Ball = field(default_factory=L2)
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        if self.batch < 1 or self.steps < 1:
            raise AgnoscoError(
                f"batch and steps must be at least 1, not {self.batch} and {self.steps}", "the paper's are 128 and 650"
            )
        if not (self.loss in LOSSES or (isinstance(self.loss, int | float) and 0 <= self.loss < math.inf)):
            raise AgnoscoError(
                f"no loss {self.loss!r}",
                f"choose from {', '.join(LOSSES)} or a weight of the other classes such as 0.5",
            )
        for name, choices in (("direction", DIRECTIONS), ("clip", CLIPS)):
            if getattr(self, name) not in choices:
                raise AgnoscoError(f"no {name} {getattr(self, name)!r}", f"choose from {', '.join(choices)}")
        if not (self.step in ("literal", "unit") or (isinstance(self.step, int | float) and 0 < self.step < math.inf)):
            raise AgnoscoError(
                f"no step {self.step!r}", "choose 'literal', 'unit' or a share of the radius such as 0.05"
            )
        if not 0 <= self.decay <= 1:
            raise AgnoscoError(f"decay must be between 0 and 1, not {self.decay}", "it is a share of the steps")
        low, high = self.contrast
        if not 0 <= low <= high <= 1:
            raise AgnoscoError(
                f"contrasts cannot be {self.contrast}", "give the least and the greatest, both in [0, 1]"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise AgnoscoError(f"betas must lie in [0, 1), not {self.beta1} and {self.beta2}", "try 0.9 and 0.999")

    @property
    def passes(self) -> int:
        """Images that a map sends through the network with gradients: b · K."""
        return self.batch * self.steps


@dataclass(frozen=True)
class RefineConfig:
    """Settings of the refinement (Eq. 2); the defaults are the paper's, and our reading where it is silent.

    Args:
        steps: Steps of Adam.
        weight: λ.
        rate: Adam's learning rate (the paper gives none), in units of the parameterization: pixels in [0, 1] for
            :class:`Pixel`, white coordinates for the others.

    Example:
        >>> from agnosco import RefineConfig
        >>> RefineConfig(steps=100)
        RefineConfig(steps=100, weight=50.0, rate=0.01)
    """

    steps: int = 150
    weight: float = 50.0
    rate: float = 0.01

    def __post_init__(self) -> None:
        if not (self.steps >= 1 and 0 <= self.weight < math.inf and 0 < self.rate < math.inf):
            raise AgnoscoError(
                "a refinement needs at least 1 step, a weight of at least 0 and a positive rate, "
                f"not {self.steps}, {self.weight} and {self.rate}",
                "the defaults are 150, 50 and 0.01",
            )


@dataclass(frozen=True)
class Config:
    """Everything that decides a map but the classifier, the samples, the class and the seed.

    Args:
        mapper: Settings of Algorithm 1.
        refine: Settings of the refinement that follows it, or None for none.
        cycles: How often the two run in turn.
        precision: Arithmetic of the network while maps are made: ``"float32"``, ``"bfloat16"``, or ``"auto"`` for
            bfloat16 where the hardware has it. A network that does not run in bfloat16 keeps its own. All else is
            float32 (on a GPU, PyTorch uses TF32 for convolutions).
        compiled: Whether to run the network through ``torch.compile`` first; pays for many maps on a GPU.

    Example:
        >>> from dataclasses import replace
        >>> from agnosco import preset
        >>> replace(preset("paper"), cycles=1).steps  # 650 of Algorithm 1, 150 of the refinement
        800
    """

    mapper: MapperConfig = field(default_factory=MapperConfig)
    refine: RefineConfig | None = field(default_factory=RefineConfig)
    cycles: int = 2
    precision: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise AgnoscoError(f"no precision {self.precision!r}", f"choose from {', '.join(PRECISIONS)}")
        if self.cycles < 1:
            raise AgnoscoError(f"cycles must be at least 1, not {self.cycles}", "the paper runs 2")

    @property
    def stages(self) -> dict[Stage, int]:
        """The stages that a map goes through, in order, and how many steps each takes."""
        stages: dict[Stage, int] = {}
        for cycle in range(1, self.cycles + 1):
            stages[Stage("map", cycle)] = self.mapper.steps
            if self.refine is not None:
                stages[Stage("refine", cycle)] = self.refine.steps
        return stages

    @property
    def steps(self) -> int:
        """Steps that a map takes, refinement included."""
        return sum(self.stages.values())

    @property
    def passes(self) -> int:
        """Images that a map sends forward and back through the network."""
        return self.steps * self.mapper.batch


_QUICK = MapperConfig(
    batch=4, steps=120, step=0.1, decay=1.0, loss=0.5, direction="plus", clip="masked", contrast=(0.5, 1.0),
    parameterization=Data(), transforms=Crops(area=(0.3, 1.0)), ball=L2(90.0),
)  # fmt: skip

PRESETS: dict[str, Config] = {
    "paper": Config(),
    "quick": Config(_QUICK, refine=None, cycles=1, precision="auto"),
    "best": Config(replace(_QUICK, steps=480), refine=None, cycles=1, precision="auto"),
    "draft": Config(
        replace(_QUICK, batch=2, steps=60, step=0.4, contrast=(0.2, 0.5), ball=L2(70.0)),
        refine=None,
        cycles=1,
        precision="auto",
    ),
    "plain": Config(
        MapperConfig(8, 60, step=0.1, decay=1.0, direction="plus", clip="masked", ball=L2(24.0)),
        refine=None,
        cycles=1,
        precision="auto",
    ),
}
"""``paper`` is the method to the letter. ``quick`` gives pictures that people and other networks recognise, at 1/400 of
the cost. ``best`` takes four times as long as ``quick``: sharper pictures and a higher targeted success rate. ``draft``
takes a quarter of the time of ``quick``: fewer steps are longer, and samples of little contrast disturb them less.
``plain`` has the paper's dials and the passes of ``quick``: maps to compare networks by, as :func:`agnosco.diff` does,
not to look at. Random crops would hide what lies at one place, and samples of little contrast what is faint.

Example:
    >>> from agnosco import PRESETS
    >>> sorted(PRESETS)
    ['best', 'draft', 'paper', 'plain', 'quick']
"""


def preset(name: str) -> Config:
    """The settings of a preset.

    Example:
        >>> from agnosco import preset
        >>> preset("quick").passes, preset("paper").passes
        (480, 204800)

    Raises:
        AgnoscoError: There is no such preset.
    """
    if name not in PRESETS:
        raise AgnoscoError(f"no preset {name!r}", f"choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def config_to_json(config: Config) -> dict[str, Any]:
    """Settings as plain JSON values; each dial carries its name as ``type``."""

    def plain(name: str, value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            kind = {"type": name_of(value)} if name in DIALS else {}
            return kind | {f.name: plain(f.name, getattr(value, f.name)) for f in fields(value)}
        return list(value) if isinstance(value, tuple) else value

    return plain("", config)


def config_from_json(data: dict[str, Any]) -> Config:
    """The settings that :func:`config_to_json` wrote.

    Raises:
        AgnoscoError: They name a dial or a setting that this version does not know.
    """

    def built(name: str, value: Any) -> Any:
        if name in DIALS:
            rest = {part: built(part, setting) for part, setting in value.items() if part != "type"}
            return DIALS[name][value["type"]](**rest)
        return tuple(value) if isinstance(value, list) else value

    try:
        parts = dict(data)
        mapper = MapperConfig(**{name: built(name, value) for name, value in parts.pop("mapper").items()})
        refine = parts.pop("refine")
        return Config(mapper, RefineConfig(**refine) if refine else None, parts.pop("cycles"), **parts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AgnoscoError(
            f"this version does not know these settings: {error}", "use the version that wrote them"
        ) from error


def describe(config: Config, shape: Shape) -> str:
    """The settings in one line, for captions; radii are scaled to images of a shape ``(C, H, W)``."""
    mapper = config.mapper
    eta = f" ({scaled_radius(mapper.ball.radius, shape):.1f} at this size)" if isinstance(mapper.ball, L2) else ""
    refined = f", refined with λ {config.refine.weight:g}" if config.refine else ""
    cycles = f"{config.cycles} x " if config.cycles > 1 else ""
    others = ["network in bfloat16"] if config.precision == "bfloat16" else []
    others += _changed(mapper, ("step", "decay", "loss", "direction", "clip", "contrast"))
    return (
        f"{_words(mapper.parameterization)}, {_words(mapper.transforms)}, {_words(mapper.ball)}{eta}, "
        f"{cycles}{mapper.steps} steps of {mapper.batch} images{refined}{''.join(f', {words}' for words in others)}"
    )


def _words(dial: Any) -> str:
    """A dial in words: its kind, and the settings in which it differs from its defaults."""
    return " ".join([type(dial).__name__, *_changed(dial, [f.name for f in fields(dial)])])


def _changed(settings: Any, names: Iterable[str]) -> list[str]:
    """The settings of these names that are not at their defaults."""
    defaults = {f.name: f.default for f in fields(settings)}
    return [f"{name} {getattr(settings, name)}" for name in names if getattr(settings, name) != defaults[name]]
