"""Several maps side by side: what :mod:`agnosco.method.reference` and :mod:`agnosco.method.refine` say, fast.

One step of all maps is one batch through the network, and both directions of the sign test are one batch
without gradients. Samples lie on the device as bytes. Every map draws from a generator of its own, in the order
of the plain loop: it is the map that it would be alone, but for the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.samples import Samples
from ..models.classifier import Classifier
from ..types import Step
from .ball import Projector
from .config import MapperConfig, RefineConfig
from .parameterization import Basis, each
from .reference import Moments, class_loss, draw_contrasts, faded, perturbed, step_length, unit_step
from .refine import attention

OnSteps = Callable[[list[Step]], None] | None


@dataclass(frozen=True)
class LoopState:
    """What a loop carries from step to step, for M maps side by side; a step makes new tensors and changes none.

    Args:
        w: ν in the chosen coordinates.
        mu, sigma: First and second moments; in the refinement, Adam's.
        xi: Ξ, in the refinement; zero in Algorithm 1.
        success: Share of every map's last mini-batch that was given the class.
        trace: What each step did, for each map.
    """

    w: Tensor
    mu: Tensor
    sigma: Tensor
    xi: Tensor
    success: Tensor
    trace: list[list[Step]]

    @classmethod
    def begin(cls, w: Tensor, xi: Tensor) -> LoopState:
        """Before the first step."""
        zeros = torch.zeros_like(w)
        return cls(w, zeros, zeros, xi, torch.zeros(len(w), device=w.device), [])


OnState = Callable[[LoopState], None] | None


class Lockstep:
    """Maps of one classifier that take their steps together.

    Args:
        classifier: The network; its weights must be frozen by the caller.
        labels: The class ℓ of each of the M maps.
        samples: The sample set Ī; fastest where its bytes lie on the device.
        config: Settings of Algorithm 1.
        basis: ``config.parameterization`` fitted to the samples.
        generators: One CPU generator for each map.
        micro_batch: Images whose activations are held at once; bounds memory and changes nothing else.
    """

    def __init__(
        self,
        classifier: Classifier,
        labels: Sequence[int],
        samples: Samples,
        config: MapperConfig,
        *,
        basis: Basis,
        generators: Sequence[torch.Generator],
        micro_batch: int,
    ) -> None:
        self.classifier = classifier
        self.samples = samples
        self.config = config
        self.basis = basis
        self.generators = generators
        self.micro_batch = micro_batch
        self.targets = torch.tensor(labels, device=basis.device).repeat_interleave(config.batch)

    # -- Algorithm 1 ---------------------------------------------------------------------------

    def map(
        self,
        start: Tensor,
        project: Projector,
        on_steps: OnSteps = None,
        *,
        state: LoopState | None = None,
        on_state: OnState = None,
    ) -> tuple[Tensor, list[list[Step]]]:
        """Algorithm 1 for every map; the letters and lines are those of :func:`agnosco.method.reference.saliency_map`.

        Args:
            start: ν to begin with, ``(M, C, H, W)``.
            project: Ψ, for all of them.
            on_steps: Called after every step, with what it did for each map.
            state: Where to go on from instead, to the same end; generators and Ψ must be as they were then.
            on_state: Called after every step, with where it led.

        Returns:
            ν, ``(M, C, H, W)``, and what every step did, for each map.
        """
        if state is None:
            w = self.basis.coordinates(start)
            state = LoopState.begin(w, torch.zeros(len(w), 1, *self.basis.shape[1:], device=w.device))
        while len(state.trace) < self.config.steps:
            state = self._ascend(state, project)
            _tell(state, on_steps, on_state)
        return self.basis.pixels(state.w), _by_map(state.trace)

    def _ascend(self, state: LoopState, project: Projector) -> LoopState:
        """Lines 2-15."""
        config, basis, k = self.config, self.basis, len(state.trace) + 1
        moments = Moments(config.beta1, config.beta2)
        moments.mu, moments.sigma, moments.k = state.mu, state.sigma, k - 1
        images = self._images()
        nu = basis.pixels(state.w)
        gradient, probability, success = self._gradient(images, nu)
        x = basis.pullback(gradient)
        v = moments(x)
        sign = self._direction(images, nu, x, v)
        v = v * each(sign * step_length(v, config, basis, project.eta, k), v)
        w = project(state.w + v, progress=k / config.steps, success=success)
        trace = [*state.trace, _noted(k, probability, success, basis.norm(w), sign)]
        mu, sigma = torch.as_tensor(moments.mu), torch.as_tensor(moments.sigma)
        return LoopState(w, mu, sigma, state.xi, success, trace)

    # -- Eq. 2 ---------------------------------------------------------------------------------

    def refine(
        self,
        nu: Tensor,
        config: RefineConfig,
        project: Projector,
        original: Classifier,
        on_steps: OnSteps = None,
        *,
        state: LoopState | None = None,
        on_state: OnState = None,
    ) -> tuple[Tensor, list[list[Step]]]:
        """The refinement of every map, as :func:`agnosco.method.refine.refine` does it.

        Args:
            nu: ``(M, C, H, W)``.
            config: Its settings.
            project: Ψ, for all of them.
            original: The network whose activations Ξ is made of.
            on_steps, state, on_state: As above.
        """
        basis = self.basis
        if state is None:
            state = LoopState.begin(basis.coordinates(nu), torch.stack([attention(original, one) for one in nu]))
        while len(state.trace) < config.steps:
            state = self._descend(state, config)
            _tell(state, on_steps, on_state)
        w = basis.coordinates(basis.pixels(state.w).clamp(-1, 1))
        return basis.pixels(project(w, progress=1.0, success=state.success)), _by_map(state.trace)

    def _descend(self, state: LoopState, config: RefineConfig) -> LoopState:
        """One step of Adam, which changes its tensors in place: hence the copies."""
        basis, k = self.basis, len(state.trace) + 1
        w, mu, sigma = state.w.clone(), state.mu.clone(), state.sigma.clone()
        adam = torch.optim.Adam([w], lr=config.rate)
        adam.state[w] = {"step": torch.tensor(k - 1.0), "exp_avg": mu, "exp_avg_sq": sigma}
        nu = basis.pixels(w)
        gradient, probability, success = self._gradient(self._images(), nu)
        shrink = config.weight * nu.sign() * (1 - state.xi) / nu[0].numel()
        w.grad = basis.pullback(shrink - gradient)
        adam.step()
        w.grad = None
        noted = _noted(k, probability, success, basis.norm(w), torch.zeros_like(success))
        return replace(state, w=w, mu=mu, sigma=sigma, success=success, trace=[*state.trace, noted])

    # -- one step ------------------------------------------------------------------------------

    def _images(self) -> Tensor:
        """Mini-batches of all maps, ``(M, b, C, H, W)``, at their contrasts (line 3)."""
        batch, contrast = self.config.batch, self.config.contrast
        chosen = torch.stack([self.samples.choose(batch, generator) for generator in self.generators])
        kept = self.samples.images
        images = kept[chosen.to(kept.device)].to(self.basis.device).float() / 255
        factors = [draw_contrasts(batch, contrast, generator) for generator in self.generators]
        drawn = [factor for factor in factors if factor is not None]
        return faded(images, torch.stack(drawn).to(images.device) if drawn else None)

    def _gradient(self, images: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Line 4 for every map: the gradient ``(M, C, H, W)``, mean probability and success ``(M,)``."""
        maps, batch = images.shape[:2]
        moved = (images - nu[:, None]).flatten(0, 1)
        clipped = moved.clamp(0, 1).requires_grad_()
        seen = self._transformed(clipped, self._draw_transforms())
        slopes, logits = torch.empty_like(seen), []
        for start in range(0, len(seen), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            part = seen.detach()[rows].requires_grad_()
            answer = self.classifier(part)
            loss = class_loss(answer, self.targets[rows], self.config.loss)
            slopes[rows] = torch.autograd.grad(loss, part)[0]
            logits.append(answer.detach())
        (gradient,) = torch.autograd.grad(seen, clipped, slopes)
        if self.config.clip == "masked":
            gradient = gradient * (clipped == moved)
        answers = torch.cat(logits)
        probability = answers.softmax(1).gather(1, self.targets[:, None])
        success = (answers.argmax(1) == self.targets).float()
        means = [values.view(maps, batch).mean(1) for values in (probability, success)]
        return gradient.view_as(images).mean(1), means[0], means[1]

    def _direction(self, images: Tensor, nu: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """Lines 8–14: +1 or −1 for every map, ``(M,)``."""
        maps = len(images)
        ones = torch.ones(maps, device=images.device)
        if self.config.direction == "plus":
            return ones
        if self.config.direction == "gradient":
            return torch.where((x * v).flatten(1).sum(1) >= 0, ones, -ones)
        unit = self.basis.pixels(unit_step(v, self.basis))
        probes = torch.stack([nu + unit, nu - unit])
        twice = [
            torch.cat([part, part]) for part in self._draw_transforms()
        ]  # both are looked at through the same views
        seen = self._transformed(perturbed(images, probes[:, :, None]).flatten(0, 2), twice)
        plus, minus = self._probability(seen).view(2, maps, -1).mean(2)
        return torch.where(plus >= minus, ones, -ones)

    def _probability(self, seen: Tensor) -> Tensor:
        """Softmax probability of its map's class for images of all maps, once or several times over."""
        targets = self.targets.repeat(len(seen) // len(self.targets))
        size = 2 * self.micro_batch  # nothing is kept for a backward pass
        return torch.cat(
            [
                self.classifier.probabilities(part).gather(1, wanted[:, None])[:, 0]
                for part, wanted in zip(seen.split(size), targets.split(size), strict=True)
            ]
        )

    # -- chance --------------------------------------------------------------------------------

    def _draw_transforms(self) -> list[Tensor]:
        """What chance decides of the views of all mini-batches, on the device."""
        shape = (self.config.batch, *self.basis.shape)
        drawn = [self.config.transforms.draw(shape, generator) for generator in self.generators]
        return [torch.cat(parts).to(self.basis.device) for parts in zip(*drawn, strict=True)]

    def _transformed(self, images: Tensor, drawn: list[Tensor]) -> Tensor:
        return self.config.transforms.apply(images, *drawn)


def _noted(k: int, probability: Tensor, success: Tensor, norm: Tensor, sign: Tensor) -> list[Step]:
    """A step's numbers for each map, brought over from the device in one transfer."""
    numbers = torch.stack([probability, success, norm.to(success), sign], 1).tolist()
    return [Step(k, p, s, n, int(direction)) for p, s, n, direction in numbers]


def _tell(state: LoopState, on_steps: OnSteps, on_state: OnState) -> None:
    if on_steps is not None:
        on_steps(state.trace[-1])
    if on_state is not None:
        on_state(state)


def _by_map(trace: list[list[Step]]) -> list[list[Step]]:
    """Steps of each map, from maps of each step."""
    return [list(steps) for steps in zip(*trace, strict=True)]
