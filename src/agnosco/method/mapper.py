"""Algorithm 1 as it runs: the maps of several classes and seeds, side by side.

One step of all maps is one batch through the network, and both directions of the sign test are one batch without
gradients. Samples stay on the device as bytes. Every map draws from its own generator, in the order of the reference:
it is the map that it would be alone, but for the rounding of sums.

Symbols and lines are those of :mod:`agnosco.method.reference`, which does the same for one map at a time. Here M maps
are rows of one tensor: ν ``nu`` is ``(M, C, H, W)``, a mini-batch I ``images`` is ``(M, b, C, H, W)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from ..data.samples import Samples
from ..models.classifier import Classifier
from ..types import Step
from .algorithm1 import adam_step, at_contrasts, class_loss, draw_contrasts, perturbed, step_length, unit_step
from .ball import BallState, Projector
from .config import MapperConfig
from .parameterization import Basis, each, pulled_back


@dataclass(frozen=True)
class LoopState:
    """The state of M maps between two steps. A step creates new tensors and changes none.

    Args:
        w: ν in the chosen parameterization.
        mu, sigma: First and second moments; in the refinement, Adam's.
        xi: Ξ in the refinement, ``(M, 1, H, W)``; zero in Algorithm 1.
        ball: What the last projection left.
        success: Share of every map's last mini-batch that was given the class, ``(M,)``.
        trace: What each step did, for each map.
    """

    w: Tensor
    mu: Tensor
    sigma: Tensor
    xi: Tensor
    ball: BallState
    success: Tensor
    trace: list[list[Step]]

    @property
    def steps_by_map(self) -> list[list[Step]]:
        """The steps of each map."""
        return [list(steps) for steps in zip(*self.trace, strict=True)]


@dataclass(eq=False)
class Mapper:
    """Algorithm 1 for several maps of one classifier, step by step together.

    Args:
        classifier: The network; its weights must be frozen by the caller.
        labels: The class ℓ of each of the M maps.
        samples: The sample set Ī; fastest where its bytes lie on the device.
        basis: ``config.parameterization`` fitted to the samples.
        project: Ψ, for all of them.
        generators: One CPU generator for each map.
        micro_batch: Images whose activations are held at once; bounds memory and changes nothing else.
    """

    classifier: Classifier
    labels: Sequence[int]
    samples: Samples
    config: MapperConfig
    _: KW_ONLY
    basis: Basis
    project: Projector
    generators: Sequence[torch.Generator]
    micro_batch: int

    def __post_init__(self) -> None:
        self.targets = torch.tensor(self.labels, device=self.basis.device).repeat_interleave(self.config.batch)

    def begin(self, nu: Tensor, ball: BallState | None = None) -> LoopState:
        """The state before the first step: maps ν ``(M, C, H, W)``, and what projections left of the ball.

        Zeros are line 1's black image; the ball is a fresh one if None.
        """
        w, no_xi = self.basis.coordinates(nu), torch.zeros_like(nu[:, :1])
        zeros, no_success = torch.zeros_like(w), torch.zeros(len(nu), device=nu.device)
        return LoopState(w, zeros, zeros, no_xi, ball or self.project.begin(), no_success, [])

    def steps(self, state: LoopState) -> Iterator[LoopState]:
        """Lines 2–15: the state after every step, until all are done.

        From a state in the middle it continues to the same end, if the generators are in their states of then.
        """
        while len(state.trace) < self.config.steps:
            state = self._step(state)
            yield state

    def _step(self, state: LoopState) -> LoopState:
        config, basis, k = self.config, self.basis, len(state.trace) + 1
        images = self.mini_batches()
        nu = basis.pixels(state.w)
        gradient, probability, success = self.gradient(images, nu)
        x = basis.pullback(gradient)
        v, mu, sigma = adam_step(x, state.mu, state.sigma, k, beta1=config.beta1, beta2=config.beta2)
        sign = self._direction(images, nu, x, v)
        v = v * each(sign * step_length(v, config, basis, state.ball.eta, k), v)
        w, ball = self.project(state.w + v, state.ball, progress=k / config.steps, success=success)
        trace = [*state.trace, noted(k, probability, success, basis.norm(w), sign)]
        return replace(state, w=w, mu=mu, sigma=sigma, ball=ball, success=success, trace=trace)

    def mini_batches(self) -> Tensor:
        """I of all maps, ``(M, b, C, H, W)``, each image at a random contrast (line 3)."""
        batch, contrast = self.config.batch, self.config.contrast
        chosen = torch.stack([self.samples.choose(batch, generator) for generator in self.generators])
        stored = self.samples.images
        images = stored[chosen.to(stored.device)].to(self.basis.device).float() / 255
        drawn = [draw_contrasts(batch, contrast, generator) for generator in self.generators]
        contrasts = [each_map for each_map in drawn if each_map is not None]
        return at_contrasts(images, torch.stack(contrasts).to(images.device) if contrasts else None)

    def gradient(self, images: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Line 4 for every map: the gradient ``(M, C, H, W)``, mean probability and success ``(M,)``."""
        maps, batch = images.shape[:2]
        unclipped = (images - nu[:, None]).flatten(0, 1)
        clipped = unclipped.clamp(0, 1).requires_grad_()
        seen = self.config.transforms.apply(clipped, *self._drawn_transforms())
        gradients, logits = torch.empty_like(seen), []
        for start in range(0, len(seen), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            part = seen.detach()[rows].requires_grad_()
            logits_of_part = self.classifier(part)
            loss = class_loss(logits_of_part, self.targets[rows], self.config.loss)
            gradients[rows] = torch.autograd.grad(loss, part)[0]
            logits.append(logits_of_part.detach())
        gradient = pulled_back(seen, clipped, gradients)
        if self.config.clip == "masked":
            gradient = gradient * (clipped == unclipped)
        all_logits = torch.cat(logits)
        probability = all_logits.softmax(1).gather(1, self.targets[:, None])
        success = (all_logits.argmax(1) == self.targets).float()
        means = [values.view(maps, batch).mean(1) for values in (probability, success)]
        return gradient.view_as(images).mean(1), means[0], means[1]

    def _direction(self, images: Tensor, nu: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """Lines 8–14: +1 or −1 for every map, ``(M,)``."""
        plus_one = torch.ones(len(images), device=images.device)
        if self.config.direction == "plus":
            return plus_one
        if self.config.direction == "gradient":
            return torch.where((x * v).flatten(1).sum(1) >= 0, plus_one, -plus_one)
        unit = self.basis.pixels(unit_step(v, self.basis))
        probes = torch.stack([nu + unit, nu - unit])
        twice = [torch.cat([part, part]) for part in self._drawn_transforms()]  # the same for both probes
        seen = self.config.transforms.apply(perturbed(images, probes[:, :, None]).flatten(0, 2), *twice)
        plus, minus = self._probability(seen).view(2, len(images), -1).mean(2)
        return torch.where(plus >= minus, plus_one, -plus_one)

    def _probability(self, seen: Tensor) -> Tensor:
        """Softmax probability of its map's class for images of all maps, once or several times over."""
        targets = self.targets.repeat(len(seen) // len(self.targets))
        size = 2 * self.micro_batch  # nothing is held for a backward pass
        parts = zip(seen.split(size), targets.split(size), strict=True)
        return torch.cat([self.classifier.probabilities(part).gather(1, rows[:, None])[:, 0] for part, rows in parts])

    def _drawn_transforms(self) -> list[Tensor]:
        """The random numbers of the transforms of all mini-batches, on the device."""
        shape = (self.config.batch, *self.basis.shape)
        drawn = [self.config.transforms.draw(shape, generator) for generator in self.generators]
        return [torch.cat(parts).to(self.basis.device) for parts in zip(*drawn, strict=True)]


def noted(k: int, probability: Tensor, success: Tensor, norm: Tensor, sign: Tensor) -> list[Step]:
    """What a step did for each map, with one transfer from the device."""
    numbers = torch.stack([probability, success, norm.to(success), sign], 1).tolist()
    return [Step(k, p, s, n, int(direction)) for p, s, n, direction in numbers]
