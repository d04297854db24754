"""Algorithm 1 against its second writing (oracle.py), against planted truth, and against what its settings promise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from oracle import MIXING, Array, LinearSoftmax, algorithm1, amplitudes, natural, natural_samples
from torch import Tensor

from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.method.algorithm1 import adam_step, at_contrasts, class_loss, draw_contrasts, perturbed
from agnosco.method.ball import BallState, Projector
from agnosco.method.config import LOSSES, MapperConfig
from agnosco.method.dials import L2, AutoL2, Ball, Crops, Data, Identity, Parameterization, Pixel, Spectral
from agnosco.method.parameterization import Basis, FourierBasis
from agnosco.method.reference import loss_gradient, saliency_map
from agnosco.models.classifier import Classifier
from agnosco.types import Step

CPU = torch.device("cpu")


@dataclass
class Recording:
    """A projector that notes, for each step, what came in and what the inner one made of it, in pixels."""

    inner: Projector
    basis: Basis
    arrived: list[Array] = field(default_factory=list)
    left: list[Array] = field(default_factory=list)

    def begin(self) -> BallState:
        return self.inner.begin()

    def __call__(
        self, w: Tensor, ball: BallState, *, progress: float, success: float | Tensor
    ) -> tuple[Tensor, BallState]:
        self.arrived.append(self.basis.pixels(w).double().numpy())
        w, ball = self.inner(w, ball, progress=progress, success=success)
        self.left.append(self.basis.pixels(w).double().numpy())
        return w, ball


def mapped(
    classifier: Classifier,
    samples: Samples,
    config: MapperConfig,
    *,
    label: int = 0,
    seed: int = 0,
    start: Tensor | None = None,
) -> tuple[Tensor, list[Step], Recording]:
    basis = config.parameterization.fit(samples, CPU)
    project = Recording(config.ball.projector(basis), basis)
    generator = torch.Generator().manual_seed(seed)
    nu, trace, _ = saliency_map(
        classifier, label, samples, config, basis=basis, project=project, generator=generator, start=start
    )
    return nu, trace, project


def random_linear(shape: tuple[int, int, int], *, classes: int = 4, scale: float = 4.0, seed: int = 0) -> LinearSoftmax:
    """Smooth weights of one norm, and no class favoured at mid-grey."""
    weights = natural(classes, shape, seed=seed) - 0.5
    weights *= scale / np.linalg.norm(weights.reshape(classes, -1), axis=1).reshape(-1, 1, 1, 1)
    return LinearSoftmax(weights, -0.5 * weights.sum((1, 2, 3)))


# -- against the oracle -------------------------------------------------------------------------------


def torn() -> LinearSoftmax:
    """Class 0 between two rivals whose weights oppose each other.

    The gradient turns round with whichever rival a mini-batch is near to, and the momentum lags behind:
    now and then v points the wrong way, and lines 12 to 13 have to turn it round.
    """
    parts = natural(4, (3, 8, 8), seed=1045) - 0.5
    parts /= np.linalg.norm(parts.reshape(4, -1), axis=1).reshape(-1, 1, 1, 1)
    weights = 4 * np.stack([0.5 * parts[0], 0.3 * parts[2] + 2 * parts[1], 0.3 * parts[3] - 2 * parts[1]])
    return LinearSoftmax(weights, -0.5 * weights.sum((1, 2, 3)))


@pytest.mark.parametrize("begun", [False, True], ids=["from black", "from a seed"])
@pytest.mark.parametrize("clip", ["straight-through", "masked"])
@pytest.mark.parametrize("direction", ["lookahead", "gradient", "plus"])
@pytest.mark.parametrize("step", ["literal", "unit"])
def test_saliency_map_is_algorithm_1(step: str, direction: str, clip: str, begun: bool) -> None:
    config = MapperConfig(batch=2, steps=50, step=step, direction=direction, clip=clip)
    samples, model = natural_samples(40, (3, 8, 8), seed=45), torn()
    samples.images.clamp_(1, 254)  # off the corners of the clip, which have a test of their own
    seed = (0.5 - natural(1, (3, 8, 8), seed=7)[0]) if begun else np.zeros((3, 8, 8))
    generator = torch.Generator().manual_seed(45)
    batches = [samples.draw(config.batch, generator).double().numpy() for _ in range(config.steps)]
    eta = 30 * math.sqrt(3 * 8 * 8 / 150528)
    expected = algorithm1(model, 0, batches, eta=eta, seed=seed, step=step, direction=direction, clip=clip)
    assert set(expected.signs) == ({1} if direction == "plus" else {1, -1})
    assert min(expected.gaps) > 1e-3  # no direction hangs on float32 rounding
    assert expected.clipped > 0.01

    nu, trace, _ = mapped(
        model.classifier(), samples, config, seed=45, start=torch.from_numpy(seed).float() if begun else None
    )
    assert nu.dtype == torch.float32
    assert [t.direction for t in trace] == expected.signs
    np.testing.assert_allclose(nu.numpy(), expected.nu, rtol=0, atol=1e-5)
    np.testing.assert_allclose([t.norm for t in trace], expected.norms, rtol=1e-5)
    np.testing.assert_allclose([t.probability for t in trace], expected.probabilities, atol=1e-5)
    assert [t.success for t in trace] == expected.successes
    assert [t.step for t in trace] == list(range(1, 51))


def test_moments_are_those_of_adam() -> None:
    gradients = torch.randn(20, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameter = torch.zeros(3, 5, 5, dtype=torch.float64)
    adam = torch.optim.Adam([parameter], lr=1.0, betas=(0.8, 0.95), eps=1e-30)
    mu, sigma = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for k, gradient in enumerate(gradients, start=1):
        before = parameter.clone()
        parameter.grad = gradient
        adam.step()
        v, mu, sigma = adam_step(gradient, mu, sigma, k, beta1=0.8, beta2=0.95)
        torch.testing.assert_close(v, before - parameter, rtol=1e-9, atol=1e-9)


def test_first_step_is_the_sign_of_the_gradient() -> None:
    # With k = 1 both corrections cancel: μ = 0.1 x, σ = 0.001 x², v = x / |x|. With k = 0 it would be 0 / 0.
    x = torch.tensor([3.0, -2e-5, 700.0, -0.25])
    v, _, _ = adam_step(x, torch.zeros(4), torch.zeros(4), 1, beta1=0.9, beta2=0.999)
    torch.testing.assert_close(v, x.sign(), rtol=1e-5, atol=0)


# -- line 4 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", ["straight-through", "masked"])
def test_gradient_at_the_clip(clip: str) -> None:
    # A white image, nudged up on its left (cut back to 1 there), and down on its right.
    model = random_linear((3, 6, 8))
    nu = np.full((3, 6, 8), 0.25)
    nu[..., :4] *= -1
    shown = np.clip(1 - nu, 0, 1)[None]
    expected = model.gradient(shown, 2)[0]
    if clip == "masked":
        expected[..., :4] = 0
    gradient, probability, success = loss_gradient(
        model.classifier(),
        2,
        torch.ones(5, 3, 6, 8),
        torch.from_numpy(nu).float(),
        MapperConfig(clip=clip),
        torch.Generator(),
    )
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert probability == pytest.approx(model.probabilities(shown)[0, 2], abs=1e-6)
    assert success == float(model.probabilities(shown)[0].argmax() == 2)


def test_masked_gradient_passes_where_the_clip_changes_nothing() -> None:
    # Black and white samples under an empty map lie at the bounds, not beyond them.
    model = random_linear((3, 6, 8))
    images = torch.arange(3 * 6 * 8).view(1, 3, 6, 8).remainder(2).float()
    gradient, _, _ = loss_gradient(
        model.classifier(), 2, images, torch.zeros(3, 6, 8), MapperConfig(clip="masked"), torch.Generator()
    )
    np.testing.assert_allclose(gradient, model.gradient(images.numpy(), 2)[0], atol=1e-6)


def test_losses_are_what_their_names_say() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (6, 5))
    targets = np.array([0, 4, 2, 2, 1, 3])
    own = logits[np.arange(6), targets]
    p = np.exp(own) / np.exp(logits).sum(1)
    expected = {"cross-entropy": -np.log(p).sum(), "log-odds": -np.log(p / (1 - p)).sum(), "logit": -own.sum()}
    assert set(expected) == set(LOSSES)
    # w = 1 is the log-odds, 0 the logit; the loss is linear in w.
    expected |= {w: (1 - w) * expected["logit"] + w * expected["log-odds"] for w in (0, 0.5, 1, 2.0)}
    for loss, value in expected.items():
        found = class_loss(torch.from_numpy(logits), torch.from_numpy(targets), loss)
        assert found.item() == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("loss", "slope", "others"),
    [("cross-entropy", 0.0, 0.0), ("log-odds", -1.0, 0.5), ("logit", -1.0, 0.0), (0.5, -1.0, 0.25)],
)
def test_gradient_of_an_image_that_is_given_its_class(loss: str | float, slope: float, others: float) -> None:
    logits = torch.tensor([[60.0, 1.0, 1.0]], requires_grad=True)  # p differs from 1 by 1e-25
    (gradient,) = torch.autograd.grad(class_loss(logits, torch.tensor([0]), loss), logits)
    torch.testing.assert_close(gradient, torch.tensor([[slope, others, others]]), rtol=0, atol=1e-6)


def test_perturbed_subtracts_and_clips() -> None:
    images, nu = torch.tensor([[[[0.2, 0.9, 0.5]]]]), torch.tensor([[[0.5, -0.3, 0.25]]])
    assert perturbed(images, nu).tolist() == [[[[0.0, 1.0, 0.25]]]]


def test_steps_are_taken_in_coordinates() -> None:
    # From black, v is the sign of the gradient in coordinates: ν is a multiple of A·sign(Aᵀ·g).
    model, shape = random_linear((3, 4, 5)), (3, 4, 5)
    colour = np.array([[1.0, 0.4, -0.3], [0.2, 0.7, 0.5], [-0.6, 0.1, 0.8]])
    spectrum = np.random.default_rng(0).uniform(0.3, 2, (4, 3))
    units = np.eye(2 * 3 * 4 * 3).reshape(-1, 3, 4, 3, 2)
    waves = np.fft.irfft2((units[..., 0] + 1j * units[..., 1]) * spectrum, s=(4, 5), norm="ortho")
    matrix = np.einsum("ij,njhw->ihwn", colour, waves).reshape(60, -1)

    samples = Samples(torch.full((1, *shape), 51, dtype=torch.uint8), source="grey")
    gradient = model.gradient(np.full((1, *shape), 0.2), 0).ravel()
    basis = FourierBasis(shape, CPU, spectrum=torch.tensor(spectrum).float(), colour=torch.tensor(colour).float())
    nu, _, _ = saliency_map(
        model.classifier(), 0, samples, MapperConfig(batch=1, steps=1, step=0.5),
        basis=basis, project=L2().projector(basis), generator=torch.Generator(),
    )  # fmt: skip
    slope = matrix.T @ gradient
    expected = matrix @ np.sign(np.where(np.abs(slope) > 1e-9, slope, 0))
    assert np.corrcoef(nu.numpy().ravel(), expected)[0, 1] > 0.9999
    assert np.linalg.norm(nu) == pytest.approx(0.5 * 30 * math.sqrt(60 / 150528), rel=1e-4)


# -- lines 8-15 ---------------------------------------------------------------------------------------


def test_both_probes_are_seen_under_the_same_transforms() -> None:
    seen: list[float] = []

    @dataclass(frozen=True)
    class Noting(Identity):
        def draw(self, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
            return (torch.rand(shape[0], generator=generator),)

        def apply(self, images: Tensor, *drawn: Tensor) -> Tensor:
            seen.append(drawn[0].tolist()[0])
            return images

    config = MapperConfig(batch=4, steps=3, transforms=Noting())
    mapped(random_linear((3, 8, 8)).classifier(), natural_samples(8, (3, 8, 8), seed=0), config)
    gradient, plus, minus = seen[0::3], seen[1::3], seen[2::3]
    assert plus == minus
    assert len({*gradient, *plus}) == 6  # and each step looks anew


# A ball, and the radius that it has after each step: success 2 is never reached, so the second grows until its limit.
BALLS = {
    "l2": (L2(30.0), [30.0] * 25),
    "auto": (AutoL2(start=10.0, limit=25.0, growth=1.2, success=2.0), [min(25.0, 10 * 1.2**k) for k in range(1, 26)]),
}
PARAMETERIZATIONS = {"pixel": Pixel(), "data": Data(), "spectral": Spectral()}


@pytest.mark.parametrize("step", ["literal", 0.2])
@pytest.mark.parametrize(("ball", "radii"), BALLS.values(), ids=BALLS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS)
def test_norm_stays_within_eta(
    parameterization: Parameterization, ball: Ball, radii: list[float], step: str | float
) -> None:
    shape = (3, 12, 9)
    config = MapperConfig(batch=4, steps=25, step=step, parameterization=parameterization, ball=ball)
    nu, trace, project = mapped(random_linear(shape).classifier(), natural_samples(20, shape, seed=0), config)
    eta = np.array(radii) * math.sqrt(3 * 12 * 9 / 150528)
    norms = np.array([np.linalg.norm(left) for left in project.left])
    assert (norms <= eta * (1 + 1e-6)).all()
    assert norms[-1] == pytest.approx(eta[-1], rel=1e-5)  # it presses against the bound
    np.testing.assert_allclose([t.norm for t in trace], norms, rtol=1e-5)
    assert np.linalg.norm(nu.double()) == pytest.approx(norms[-1], rel=1e-6)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS)
@pytest.mark.parametrize(("step", "length"), [("unit", 1.0), (0.25, 0.25 * 100.0 * math.sqrt(3 * 12 * 9 / 150528))])
def test_steps_have_the_length_asked_for(parameterization: Parameterization, step: str | float, length: float) -> None:
    shape = (3, 12, 9)
    config = MapperConfig(batch=4, steps=4, step=step, parameterization=parameterization, ball=L2(100.0))
    _, _, project = mapped(random_linear(shape).classifier(), natural_samples(20, shape, seed=0), config)
    before = [np.zeros(shape), *project.left[:-1]]
    lengths = [np.linalg.norm(after - b) for after, b in zip(project.arrived, before, strict=True)]
    np.testing.assert_allclose(lengths, length, rtol=1e-5)


def test_steps_shrink_along_half_a_cosine() -> None:
    # 10 steps, the last 5 of them falling: sin² of 75°, 60°, 45°, 30° and 15°.
    shape = (1, 8, 8)
    config = MapperConfig(batch=4, steps=10, step="unit", decay=0.5, ball=L2(1e6))
    _, _, project = mapped(random_linear(shape).classifier(), natural_samples(20, shape, seed=0), config)
    lengths = np.linalg.norm(np.diff([np.zeros(shape), *project.arrived], axis=0), axis=(2, 3)).ravel()
    np.testing.assert_allclose(lengths, [1, 1, 1, 1, 1, 0.9330, 0.75, 0.5, 0.25, 0.0670], atol=1e-4)


# -- contrast -----------------------------------------------------------------------------------------


def test_faded_samples_keep_their_share_of_contrast() -> None:
    images = torch.randint(2, (2000, 1, 2, 3), generator=torch.Generator().manual_seed(1)).float()  # ½ from mid-grey
    contrasts = draw_contrasts(2000, (0.2, 0.6), torch.Generator().manual_seed(0))
    shares = ((at_contrasts(images, contrasts) - 0.5) / (images - 0.5)).flatten(1)
    torch.testing.assert_close(shares, shares[:, :1].expand_as(shares))  # one for each image
    assert shares.min() > 0.199
    assert shares.max() < 0.601
    assert shares[:, 0].mean().item() == pytest.approx(0.4, abs=0.01)  # uniform: sd 0.115 / √2000 = 0.003


def test_full_contrast_takes_no_chance() -> None:
    images, generator = torch.rand(3, 1, 2, 2), torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert torch.equal(at_contrasts(images, draw_contrasts(3, (1.0, 1.0), generator)), images)
    assert torch.equal(generator.get_state(), state)


# -- planted truth ------------------------------------------------------------------------------------

SHAPE = (3, 16, 16)


def waves() -> Array:
    """Bright and dark bands with soft edges.

    A step has length 1 in every pixel (Adam), so what it can find exactly is a template of two levels.
    """
    y, x = np.mgrid[:16, :16] / 16
    bands = np.tanh(4 * (np.sin(2 * np.pi * x + 1) + np.sin(2 * np.pi * (y + x))))
    return np.stack([bands, -bands, bands])


def clouds() -> Array:
    """A tinted field whose 1/f coefficients are all ±1 ± i.

    The same in the coordinates of natural images: one magnitude there, a smooth field to look at.
    """
    signs = np.random.default_rng(0).choice([-1, 1], (2, 16, 9))
    field = np.fft.irfft2((signs[0] + 1j * signs[1]) * amplitudes(16, 16), s=(16, 16))
    return MIXING.sum(1).reshape(3, 1, 1) * field


def planted(template: Array) -> LinearSoftmax:
    """Class 0 answers the correlation with the template; four weaker classes answer to other things."""
    weights = natural(5, SHAPE, seed=100) - 0.5
    weights[0] = template
    weights -= weights.mean((1, 2, 3), keepdims=True)
    answers = np.einsum("lchw,nchw->ln", weights, natural(200, SHAPE, seed=5))
    weights *= (np.array([2.0, 0.4, 0.4, 0.4, 0.4]) / answers.std(1)).reshape(-1, 1, 1, 1)
    return LinearSoftmax(weights, np.zeros(5))


PAPER = MapperConfig(batch=32, steps=60)
WHITE = MapperConfig(batch=16, steps=100, step=0.05, direction="plus", parameterization=Data(exponent=1.0))


@pytest.mark.parametrize(
    ("template", "config"), [(waves(), PAPER), (clouds(), WHITE)], ids=["pixel, as in the paper", "data"]
)
def test_planted_template_is_found(template: Array, config: MapperConfig) -> None:
    model = planted(template)
    samples, held_out = natural_samples(250, SHAPE, seed=1).split(0.2)
    nu, _, _ = mapped(model.classifier(), samples, config)
    assert np.corrcoef(-nu.numpy().ravel(), template.ravel())[0, 1] > 0.95

    unseen = held_out.images.double().numpy() / 255
    towards, away = np.clip(unseen - nu.numpy(), 0, 1), np.clip(unseen + nu.numpy(), 0, 1)
    assert np.mean(model.probabilities(unseen).argmax(1) == 0) < 0.6
    assert np.mean(model.probabilities(towards).argmax(1) == 0) > 0.9
    assert np.mean(model.probabilities(away).argmax(1) == 0) < 0.05


# -- chance -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        MapperConfig(batch=8, steps=6),
        MapperConfig(
            batch=8, steps=6, step=0.1, contrast=(0.3, 1.0), parameterization=Data(), transforms=Crops(noise=0.1)
        ),
    ],
    ids=["paper", "transforms"],
)
def test_generator_is_the_only_source_of_chance(config: MapperConfig) -> None:
    samples, classifier = natural_samples(40, (3, 8, 8), seed=1), random_linear((3, 8, 8)).classifier()
    torch.manual_seed(1)
    first, _, _ = mapped(classifier, samples, config, seed=3)
    torch.manual_seed(2)
    again, _, _ = mapped(classifier, samples, config, seed=3)
    other, _, _ = mapped(classifier, samples, config, seed=4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# -- settings -----------------------------------------------------------------------------------------


def test_defaults_are_the_papers() -> None:
    config = MapperConfig()
    assert (config.batch, config.steps, config.beta1, config.beta2) == (128, 650, 0.9, 0.999)
    assert config.ball == L2(30.0)
    assert config.passes == 83200


def test_a_whole_radius_is_a_step() -> None:
    assert replace(MapperConfig(), step=1) == replace(MapperConfig(), step=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch and steps must be at least 1, not 0 and 650"),
        ({"steps": 0}, "batch and steps must be at least 1, not 128 and 0"),
        ({"direction": "minus"}, "no direction 'minus'"),
        ({"loss": "hinge"}, "no loss 'hinge'"),
        ({"clip": "none"}, "no clip 'none'"),
        ({"step": "long"}, "no step 'long'"),
        ({"step": 0}, "no step 0"),
        ({"step": float("inf")}, "no step inf"),
        ({"decay": 1.5}, "decay must be between 0 and 1, not 1.5"),
        ({"decay": float("nan")}, "decay must be between 0 and 1, not nan"),
        ({"contrast": (0.5, 0.2)}, "contrast"),
        ({"beta1": 1.0}, "must lie in .0, 1., not 1.0 and 0.999"),
        ({"step": 0.0}, r"no step 0\.0"),
    ],
)
def test_settings_without_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(AgnoscoError, match=message):
        replace(MapperConfig(), **change)
