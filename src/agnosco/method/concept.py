"""The result: a :class:`ConceptMap`, what a network has learned to recognise as one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import AgnoscoError
from ..types import Step
from .render import SIDE, enlarged, png, stretched, to_picture, transparent_picture

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ConceptMap:
    """The map of one class of one classifier.

    Args:
        nu: ν, ``(C, H, W)`` float32 on the CPU; −ν is the targeted universal adversarial perturbation.
        label: Index of the class; 0 for an objective.
        name: Name of the class or the objective.
        seed: Seed of the map's generator, together with the label.
        probability: Softmax probability that the source classifier gives the class for :attr:`pixels`; for an
            objective, see :func:`~agnosco.method.maker.map_objective`.
        stages: ν after every stage of the cycle, by name, in order; the last one is ``nu``.
        trace: What every step saw and did, stage after stage.
        xi: Ξ of :attr:`pixels`, ``(1, H, W)`` in [0, 1]: where the network's last convolutional stage is active; None
            for a network without such a stage.
        contribution: How much each place contributes, ``(1, H, W)`` in [0, 1], by
            :func:`agnosco.method.where.contributions`; None for a map that an earlier version made.

    Example:
        >>> import torch
        >>> from agnosco import Samples, map_class
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        >>> concept = map_class(model, 1, Samples.noise((3, 8, 8), count=16), "draft", size=8)
        >>> concept.name, concept.pattern.shape, concept.display().size
        ('1', torch.Size([3, 8, 8]), (8, 8))
    """

    nu: Tensor
    label: int
    name: str
    seed: int
    probability: float
    stages: dict[str, Tensor]
    trace: tuple[Step, ...]
    xi: Tensor | None = None
    contribution: Tensor | None = None

    @property
    def pattern(self) -> Tensor:
        """−ν, ``(C, H, W)``: what is added to an image to change its class to this one."""
        return -self.nu

    @property
    def pixels(self) -> Tensor:
        """Clip(½ − ν), ``(C, H, W)`` in [0, 1]: the raw picture, which metrics use."""
        return (0.5 - self.nu).clip(0, 1)

    def image(self) -> Image.Image:
        """The raw picture: the pattern on mid-grey."""
        return to_picture(self.pixels)

    def display(self, *, transparent: bool = False) -> Image.Image:
        """The pattern stretched to full contrast, for people; no metric uses it.

        Args:
            transparent: Whether to add an alpha channel: of the less contributing places, less is seen; see
                :func:`~agnosco.method.render.opacity`.

        Raises:
            AgnoscoError: It is to be transparent, and an earlier version made the map.
        """
        if not transparent:
            return to_picture(stretched(self.pattern))
        if self.contribution is None:
            message = f"the map of {self.name!r} does not say how much each place contributes"
            raise AgnoscoError(message, "an earlier version made it; make it again")
        return transparent_picture(stretched(self.pattern), self.contribution)

    def _repr_png_(self) -> bytes:
        """The picture that a notebook shows."""
        return png(enlarged(self.display(), SIDE))
