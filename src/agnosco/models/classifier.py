"""A frozen image classifier: pixels in [0, 1] go in, logits come out.

What depends on how a network was trained (normalisation, input size, labels) is in :class:`Classifier` and nowhere
else: the rest of agnosco deals with pixels and classes only.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import AgnoscoError
from ..text import first_line, nearest, spelling
from ..types import Resize, Shape
from .features import ROUNDING, feature_map, last_stage
from .freezing import frozen
from .heads import Head, Layer, layers_of, logits_in, with_head
from .hooks import of_this_thread, submodule_names

RGB = 3
"""Channels of images, unless a model's first convolution has others."""

LONGEST_INDEX = 9
"""Digits of the longest number that can be the index of a class."""

MOST_NUMBERS = 2**26
"""Numbers of one image, 4096 pixels square with four channels: a configuration may ask for any size."""

EXACT_ROUNDING = 1e-4
"""By how much probabilities may miss their sum of 1, in precisions of 32 bits and more."""


@dataclass(frozen=True)
class Files:
    """Base names of the files that a classifier was loaded from; None for those that there were not.

    ``allow_pickle`` says whether its weights were allowed to be a pickle.
    """

    weights: str | None = None
    labels: str | None = None
    prompts: str | None = None
    allow_pickle: bool = False


class Classifier:
    """An ``nn.Module`` that maps images to logits, with what is needed to feed it pixels.

    The module is not changed: while it runs, it is in evaluation mode and its weights are frozen; afterwards it is as
    before.

    Args:
        model: Maps normalised images ``(N, C, H, W)`` to logits ``(N, classes)``.
        size: Height and width of its input in pixels; None reads them from the model (timm's ``pretrained_cfg``,
            torchvision's ``image_size``).
        mean, std: Mean and standard deviation of each channel that the model expects images to be normalised with, for
            pixels in [0, 1]; None for no normalisation.
        channels: 3 (RGB) or 1 (grey); None reads them from the first convolution.
        labels: One name per class; None numbers them.
        resize: How images are made to fit its input, if it is known; :meth:`.Samples.from_folder` can do the same.
        features: Name of the submodule whose output :meth:`activations` returns; None finds the last convolutional
            (or token) stage.
        at: Name of a layer whose channels are asked instead of classes: their mean over all places, or with
            ``:center`` after the name, only the place in the middle; with ``:input``, the channels of what the layer is
            given. See :class:`agnosco.models.heads.Head`.
        directions: Vectors by name in the space of that layer, or a safetensors file of them: they are asked instead
            of the channels.
        name: What reports call it.

    Raises:
        AgnoscoError: The model does not answer with finite logits ``(N, classes)``, to one image too, ends in a
            softmax, or does not carry its input size.

    Example:
        >>> import torch
        >>> from agnosco import Classifier
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        >>> classifier = Classifier(model, size=8, mean=[0.5] * 3, std=[0.2] * 3, labels=["cat", "dog"])
        >>> classifier.shape, classifier.index("dog"), classifier(torch.rand(5, 3, 8, 8)).shape
        ((3, 8, 8), 1, torch.Size([5, 2]))
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int | None = None,
        labels: Sequence[str] | None = None,
        resize: Resize | None = None,
        features: str | None = None,
        at: str | None = None,
        directions: Path | str | Mapping[str, Tensor] | None = None,
        name: str | None = None,
    ) -> None:
        self.model = with_head(model, at, directions)
        from_file = isinstance(directions, str | Path)
        self.directions = Path(directions).name if from_file else "given in Python" if directions else None
        self.name = name or type(model).__name__
        self.files = Files()
        height, width = _input_size(model, size)
        convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
        first = next((module.in_channels for module in convolutions), RGB) or RGB  # a lazy one does not know yet
        tensors = [*model.parameters(), *model.buffers()]
        self._dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.resize = resize
        self.objective: Callable[[Tensor], Tensor] | None = None  # see objectives.py
        shapes = [(number, height, width) for number in ((channels,) if channels else (first, RGB))]
        logits = self._first_logits(shapes, mean, std)
        rounding = ROUNDING if self._dtype.itemsize < 4 else EXACT_ROUNDING
        self.classes = _checked_classes(logits, asked=isinstance(self.model, Head), rounding=rounding)
        self._check_one_image()
        if labels is None and isinstance(self.model, Head):
            labels = self.model.labels(self.classes)
        self.labels = _checked_labels(labels, self.classes)
        self._features = features
        submodules = list(submodule_names(model).values())
        if features and features not in submodules:  # without a name, it is the model itself
            raise AgnoscoError(f"{self.name} has no submodule {features!r}", nearest(features, submodules))

    def __repr__(self) -> str:
        return f"Classifier({self.name!r}, shape={self.shape}, classes={self.classes})"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits ``(N, classes)``, float32, differentiable in the pixels.

        These are ``(N, C, H, W)`` in [0, 1], float, of any size that the model itself takes.
        """
        if pixels.ndim != 4 or pixels.shape[1] != self.shape[0]:
            raise ValueError(f"pixels must be (N, {self.shape[0]}, H, W), not {tuple(pixels.shape)}")
        with self.frozen():
            logits = logits_in(self.model(self.normalised(pixels))).float()
        if self.objective is None:
            return logits
        values = self.objective(logits)
        return torch.stack([values, -values], 1)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in [0, 1] as the model takes them: what training feeds it with."""
        mean = pixels.new_tensor(self.mean).view(-1, 1, 1)
        std = pixels.new_tensor(self.std).view(-1, 1, 1)
        return ((pixels - mean) / std).to(self._dtype).contiguous(memory_format=self._layout)

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Softmax of the logits, ``(N, classes)``, without gradients."""
        with torch.no_grad():
            return self(pixels).softmax(1)

    def frozen(self) -> AbstractContextManager[None]:
        """Evaluation mode and no gradients of weights inside; as before outside.

        Several may be inside with one network, within each other or side by side, also in threads, or with networks
        that share layers: what was frozen is as before when the last of them is outside.
        """
        return frozen(self.model)

    def to(self, device: torch.device | str) -> Classifier:
        """Move the model, in place, to a device."""
        self.model.to(device)
        self.device = torch.device(device)
        return self

    @property
    def body(self) -> nn.Module:
        """The network itself, without the head of a layer."""
        return self.model.body if isinstance(self.model, Head) else self.model

    @property
    def at(self) -> str | None:
        """The layer that is asked, or None for classes."""
        return self.model.asked if isinstance(self.model, Head) else None

    def asked_at(self, at: str, directions: Mapping[str, Tensor] | None = None) -> Classifier:
        """The same network, asked at a layer instead of for its classes; see the arguments of the class."""
        asked = Classifier(
            self.body, size=self.shape[1:], mean=self.mean, std=self.std, channels=self.shape[0], resize=self.resize,
            features=self._features, at=at, directions=directions, name=self.name,
        )  # fmt: skip
        asked.files = replace(self.files, labels=None)  # which are the names of the classes
        return asked

    def layers(self) -> list[Layer]:
        """All layers that ``at`` can name, in the order in which images go through them."""
        with self.frozen(), torch.no_grad():
            return layers_of(self.body, self.normalised(self._random_images()))

    @property
    def features(self) -> str:
        """Name of the submodule that :meth:`activations` reads: the last convolutional stage."""
        if self._features is None:
            scores = None if self.at else self.classes  # a map of scores is no stage, but a layer that is asked is one
            self._features = last_stage(
                self.body, self.shape, scores, lambda: self.probabilities(self._random_images())
            )
        if self._features is None:
            raise AgnoscoError(f"{self.name} has no stage whose output is a feature map", "name one: features='layer4'")
        return self._features

    def activations(self, pixels: Tensor) -> Tensor:
        """What the last convolutional stage answers to images: ``(N, D, h, w)``, without gradients.

        Tokens of a transformer are laid out on their grid; class and register tokens are dropped. AgnoscoError if the
        stage, or the one named as ``features``, does not answer with a feature map.
        """
        outputs: list[object] = []
        note = of_this_thread(lambda _module, _inputs, output: outputs.append(output))
        hook = self.body.get_submodule(self.features).register_forward_hook(note)
        with hook, torch.no_grad():
            self(pixels)
        output = outputs[-1] if outputs else None
        grid = feature_map(output, self.shape)
        if grid is None:
            answer = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            message = f"{self.features!r} of {self.name} answers {answer if outputs else 'nothing'}, not a feature map"
            raise AgnoscoError(message, "name a submodule whose output is (N, D, h, w) or tokens (N, T, D)")
        return grid.float()

    def index(self, label: int | str) -> int:
        """The index of a class given by index, name or unique word (or words) of a name.

        AgnoscoError if there is no such class (the nearest are offered), or several.
        """
        text = str(label).strip()
        words = spelling(text)
        exact = [i for i, name in enumerate(self.labels) if spelling(name) == words]
        if text.removeprefix("-").isdecimal() and len(text) <= LONGEST_INDEX:
            number, named = int(text), exact if isinstance(label, str) else []
            if 0 <= number < self.classes:
                if others := [i for i in named if i != number]:
                    message = f"{text!r} is the index of {self.labels[number]!r} and the name of class {others[0]}"
                    raise AgnoscoError(message, "give the index as a number in Python, or rename the labels")
                return number
            if not named:
                message = f"no class {text}: {self.name} has {self.classes}"
                raise AgnoscoError(message, f"give 0 to {self.classes - 1}, or a name")
        matches = exact or [i for i, name in enumerate(self.labels) if f" {words} " in f" {spelling(name)} "]
        if len(matches) == 1:
            return matches[0]
        if matches:
            several = ", ".join(f"{i} ({self.labels[i]})" for i in matches[:6])
            raise AgnoscoError(f"{label!r} names several classes: {several}", "give the index")
        raise AgnoscoError(f"{self.name} has no class {label!r}", nearest(text, self.labels))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, buffers, normalisation and the layer asked, as they are now; not over code."""
        settings = (self.shape[0], self.mean, self.std, *([self.at] if self.at else []))
        digest = hashlib.sha256(repr(settings).encode())
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for key, tensor in sorted(tensors.items()):
            digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _first_logits(
        self, shapes: Sequence[Shape], mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> Tensor:
        """Logits of two random images of the first shape ``(C, H, W)`` that the model takes, which is kept."""
        errors = []
        for shape in dict.fromkeys(shapes):
            try:
                self._set_shape(shape, mean, std)
                return self._probe(self._random_images())
            except AgnoscoError as error:  # a network may have convolutions that take no images
                errors.append(error)
        raise errors[0]

    def _set_shape(self, shape: Shape, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Take images of a shape, with a mean and a standard deviation for each channel."""
        if (numbers := math.prod(shape)) > MOST_NUMBERS:
            message = f"an input of {' x '.join(map(str, shape))} numbers is too large"
            raise AgnoscoError(message, f"pass a smaller size; at most {MOST_NUMBERS:,} numbers, not {numbers:,}")
        self.shape, self._layout = shape, torch.channels_last
        self.mean = _per_channel(mean, 0.0, shape[0], "mean")
        self.std = _per_channel(std, 1.0, shape[0], "std")
        if min(self.std) <= 0:
            message = f"std must be positive, not {self.std}"
            raise AgnoscoError(message, "pass the std used in training, in [0, 1] units")

    def _random_images(self) -> Tensor:
        """Two images, always the same."""
        return torch.rand(2, *self.shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    def _check_one_image(self) -> None:
        """Refuse a network that answers one image otherwise than several: maps are looked at one by one."""
        shape = tuple(self._probe(self._random_images()[:1]).shape)
        if shape != (1, self.classes):
            message = f"{self.name} answers shape {shape} to one image, not (1, {self.classes})"
            raise AgnoscoError(message, "let it keep the first dimension, which squeeze() without an argument drops")

    def _probe(self, images: Tensor) -> Tensor:
        """Logits of random images; decides in which memory layout images are passed to the model."""
        try:
            with torch.no_grad():
                return self(images)
        except (AgnoscoError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # foreign code may raise anything
            if self._layout is torch.channels_last:  # faster, but a view(N, -1) inside the model cannot read it
                self._layout = torch.contiguous_format
                return self._probe(images)
            what = "images" if len(images) > 1 else "one image"
            message = f"{self.name} does not run on {what} of shape {self.shape}: {first_line(error)}"
            own = _own_size(self.body)
            hint = "pass the size and channels that it was trained with"
            if len(images) == 1:
                hint = "let it take any number of images"
            elif own not in (None, self.shape[1:]):
                hint = f"pass the size that it was made for: {own[0]} x {own[1]} pixels"
            raise AgnoscoError(message, hint) from error


def _input_size(model: nn.Module, size: int | tuple[int, int] | None) -> tuple[int, int]:
    size = _own_size(model) if size is None else size
    if size is None:
        message = f"the input size of {type(model).__name__} is unknown"
        raise AgnoscoError(message, "pass it: size=224 (height and width in pixels)")
    sides = size if isinstance(size, Iterable) else (size, size)
    height, width = map(operator.index, sides)  # NumPy's numbers become Python's
    if min(height, width) < 1:
        raise AgnoscoError(f"an input of {height} x {width} pixels is empty", "pass a size of at least 1")
    return height, width


def _own_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width in pixels that a model of timm or torchvision says it was made for."""
    settings = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or getattr(model, "image_size", None)
    if size is None and isinstance(settings, dict):
        size = settings.get("input_size", ())[-2:]
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, tuple | list) and len(size) == 2 else None


def _per_channel(values: Sequence[float] | None, default: float, channels: int, name: str) -> tuple[float, ...]:
    values = (default,) * channels if values is None else tuple(float(value) for value in values)
    if len(values) != channels:
        raise AgnoscoError(f"{name} has {len(values)} values for {channels} channels", f"pass {channels} of them")
    return values


def _checked_classes(logits: Tensor, *, asked: bool, rounding: float) -> int:
    """Number of classes, from the logits of two images, which are checked for the usual mistakes."""
    if logits.ndim != 2 or logits.shape[0] != 2 or logits.shape[1] < 2:
        message = f"the model answers shape {tuple(logits.shape)} to two images, not (2, classes)"
        raise AgnoscoError(message, "wrap it so that it returns one row of logits per image")
    if logits.is_meta:
        raise AgnoscoError("the model's weights are on the device 'meta', without values", "load them first")
    if not logits.isfinite().all():
        raise AgnoscoError("the model's logits are not finite (NaN or Inf)", "check its weights and its mean and std")
    sums = logits.sum(1)
    if not asked and (logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=rounding):
        message = "the model ends in a softmax: it answers probabilities, not logits"
        raise AgnoscoError(message, "pass it without its last layer; the gradients of probabilities vanish")
    return logits.shape[1]


def _checked_labels(labels: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    labels = tuple(str(i) for i in range(classes)) if labels is None else tuple(str(label) for label in labels)
    if len(labels) != classes:
        raise AgnoscoError(f"{len(labels)} labels for {classes} classes", "pass one label per class, in order")
    return labels
