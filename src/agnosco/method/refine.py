"""Eq. 2 as it runs: maps refined with the network's own activations, side by side.

The loss of perturbed images is minimized together with λ · mean |ν ⊙ (1 − Ξ)|. Ξ (``xi``) is the activation of the last
convolutional stage at each place of the map's own picture: what the network does not look at is cleared away.
Symbols are those of :mod:`agnosco.method.reference`, which does the same for one map at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.classifier import Classifier
from .ball import BallState
from .config import RefineConfig
from .mapper import LoopState, Mapper, noted


@dataclass(eq=False)
class Refiner:
    """The refinement of several maps, step by step together.

    Args:
        mapper: Their Algorithm 1, whose mini-batches, loss and projection are used.
        classifier: The network whose activations Ξ is made of.
    """

    mapper: Mapper
    config: RefineConfig
    classifier: Classifier

    def begin(self, nu: Tensor, ball: BallState) -> LoopState:
        """The state before the first step, of maps ν ``(M, C, H, W)``."""
        xi = torch.stack([attention(self.classifier, each_map) for each_map in nu])
        return replace(self.mapper.begin(nu, ball), xi=xi)

    def steps(self, state: LoopState) -> Iterator[LoopState]:
        """Adam: the state after every step, until all are done; after the last, ν is clipped and projected."""
        basis, project = self.mapper.basis, self.mapper.project
        while len(state.trace) < self.config.steps:
            state = self._step(state)
            if len(state.trace) == self.config.steps:
                w = basis.coordinates(basis.pixels(state.w).clamp(-1, 1))  # a difference of two pixels is in [−1, 1]
                w, ball = project(w, state.ball, progress=1.0, success=state.success)
                state = replace(state, w=w, ball=ball)
            yield state

    def _step(self, state: LoopState) -> LoopState:
        """One step of Adam, which changes its tensors in place: hence the copies."""
        basis, k = self.mapper.basis, len(state.trace) + 1
        w, mu, sigma = state.w.clone(), state.mu.clone(), state.sigma.clone()
        adam = torch.optim.Adam([w], lr=self.config.rate)
        adam.state[w] = {"step": torch.tensor(k - 1.0), "exp_avg": mu, "exp_avg_sq": sigma}
        nu = basis.pixels(w)
        gradient, probability, success = self.mapper.gradient(self.mapper.mini_batches(), nu)
        shrink = self.config.weight * nu.sign() * (1 - state.xi) / nu[0].numel()  # of λ · mean |ν ⊙ (1 − Ξ)|
        w.grad = basis.pullback(shrink - gradient)  # images are perturbed by −ν, hence the minus
        adam.step()
        w.grad = None
        step = noted(k, probability, success, basis.norm(w), torch.zeros_like(success))
        return replace(state, w=w, mu=mu, sigma=sigma, success=success, trace=[*state.trace, step])


def attention(classifier: Classifier, nu: Tensor) -> Tensor:
    """Ξ, ``(1, H, W)`` in [0, 1]: where the last convolutional stage is active for the map's picture.

    The mean over channels of its activations for Clip(½ − ν), interpolated to the image (bilinear) and
    min–max normalised; all ones where the activations are flat, so that nothing is cleared.
    """
    grid = classifier.activations((0.5 - nu).clamp(0, 1)[None]).mean(1, keepdim=True)
    xi = F.interpolate(grid, size=nu.shape[1:], mode="bilinear", align_corners=False)[0]
    low, high = xi.min(), xi.max()
    return (xi - low) / (high - low) if high > low else torch.ones_like(xi)
