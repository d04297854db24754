"""Classifiers of Hugging Face's ``transformers``, from the hub or from what ``save_pretrained`` wrote.

The library sees no file of a repository. It gets the configuration, with the parts removed that would make it fetch or
run code, and tensors that came through :mod:`.weights.opening`; its processor says what it does to two flat images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..errors import AgnoscoError
from ..text import first_line, nearest, one_line
from ..types import SMALLEST_SHARE, Interpolation, Resize
from .classifier import RGB
from .filling import building, check_described
from .hub import CONFIG, Repository
from .source import Network, OpenWeights, Source, of_foreign_file
from .weights.limits import CODES, HINTS, LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig

    from .weights.opening import Weights

PROCESSOR = "preprocessor_config.json"

REMOVED = (
    "auto_map", "custom_pipelines", "quantization_config", "backbone", "name_or_path", "attn_implementation",
    "experts_implementation",
)  # fmt: skip
"""Keys of a configuration that name code, kernels or other repositories; so may those that begin with ``_``."""

WIDEST = 4096
"""The most pixels that a processor may be told to make of a side: two images of this size are made with it."""

LEAST_KEPT = 0.5
"""The smallest share of a resized image that a processor may keep: it resizes to a side divided by this."""

RAMP = (191, 255)
"""Height and width of an image that shows how a processor resizes; nobody resizes to this height."""

ROUNDING = 2.0
"""Grey levels by which a resized ramp may differ from a straight line."""


class HuggingFace(Source):
    """Image classifiers of transformers: ``ORG/NAME``, ``ORG/NAME@REVISION`` or a folder."""

    def network(self, name: str, weights: OpenWeights | None, *, trust_code: bool) -> Network:
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            hint = "pip install '.[hf]' in the clone of agnosco"
            raise AgnoscoError("transformers is not installed", hint) from error
        repository = Repository.of(name)
        config = _config(repository)
        labels = _labels(repository, config)
        full_name = f"hf:{repository.name}"
        with (weights or repository.weights)() as file:
            model = _filled(config, file, full_name)
        inputs = _input(repository, config)
        if inputs.blue_first:
            model.register_forward_pre_hook(_reversed_colours)
        network = Network(
            model.to(memory_format=torch.channels_last), full_name, inputs.size, inputs.mean, inputs.std,
            labels=labels, channels=inputs.channels, assumed=inputs.assumed, resize=inputs.resize,
        )  # fmt: skip
        return of_foreign_file(network, f"{CONFIG} or {PROCESSOR} of {repository.given}")

    def download(self, name: str) -> str | None:
        return None if os.path.isdir(os.path.expanduser(name)) else f"hf:{name}, unless it is already here"


# -- the configuration --------------------------------------------------------------------------------


def _config(repository: Repository) -> PretrainedConfig:
    """The library's configuration of a repository; AgnoscoError if it is not that of an image classifier."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    given = repository.json(CONFIG)
    if given is None:
        message = f"{repository.given} has no {CONFIG}"
        raise AgnoscoError(message, "give a repository, or a folder that save_pretrained wrote")
    kind = given.get("model_type")
    if kind is None and "architecture" in given:
        message = f"{repository.given} is a model of timm"
        form = "local-dir" if repository.folder else "hf-hub"
        raise AgnoscoError(message, f"give timm:{form}:{repository.given}")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        message = f"transformers has no model {str(kind)[:80]!r}, which {CONFIG} of {repository.given} names"
        hint = "agnosco runs no code of a repository; load the model yourself and use agnosco.load(module)"
        raise AgnoscoError(message, hint)
    kinds = [each.model_type for each in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING]
    if kind not in kinds or kind == "timm_wrapper":
        message = f"{repository.given} is a {kind}, which is no image classifier of transformers"
        raise AgnoscoError(message, f"{nearest(kind, kinds)}; a python:FILE.py:FACTORY can wrap anything else")
    names, classes = given.get("id2label"), given.get("num_labels")
    named = len(names) if isinstance(names, dict | list) else 0
    if (count := max(named, classes if isinstance(classes, int) else 0)) > LIMITS.classes:
        message = f"{count:,} classes are too many (at most {LIMITS.classes:,})"  # before a name is made for each
        raise AgnoscoError(message, HINTS["limit"], exit_code=CODES["limit"])
    try:
        return CONFIG_MAPPING[kind].from_dict(_harmless(given))
    except Exception as error:  # the library checks types with many kinds of errors
        raise _malformed(repository, CONFIG, error) from error


def _labels(repository: Repository, config: PretrainedConfig) -> list[str]:
    """The names of all classes, in order, each as one line; AgnoscoError if they are not those of all."""
    known: Any = config  # whose types the library does not say
    try:
        return [one_line(str(known.id2label[index])) for index in range(known.num_labels)]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        message = f"id2label in {CONFIG} of {repository.given} does not name every class from 0 on"
        raise AgnoscoError(message, HINTS["malformed"], exit_code=CODES["malformed"]) from error


def _harmless(value: Any) -> Any:
    """A JSON value without keys that name code, kernels or other repositories."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in REMOVED and not key.startswith("_")}
        return {key: _harmless(each) for key, each in kept.items()}
    return [_harmless(each) for each in value] if isinstance(value, list) else value


def _malformed(repository: Repository, file: str, error: Exception) -> AgnoscoError:
    message = f"transformers cannot use {file} of {repository.given}: {first_line(error)}"
    return AgnoscoError(message, HINTS["malformed"], exit_code=CODES["malformed"])


# -- the network --------------------------------------------------------------------------------------


def _filled(config: PretrainedConfig, file: Weights, name: str) -> nn.Module:
    """The network of a configuration with the weights of a file; AgnoscoError if they do not fit each other."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as CLASSES

    kinds = CLASSES[type(config)]
    kind: Any = kinds[0] if isinstance(kinds, tuple) else kinds
    with _quiet(), building("transformers", name):
        check_described(lambda: kind(config), file, name)
        model, report = kind.from_pretrained(
            None, config=config, state_dict=file.read(), output_loading_info=True, dtype=torch.float32,
            attn_implementation="eager", ignore_mismatched_sizes=True,  # they are in the report
        )  # fmt: skip
    for key, what in (("missing_keys", "lacks"), ("mismatched_keys", "has other shapes of")):
        if keys := sorted(each if isinstance(each, str) else each[0] for each in report[key]):
            message = f"{file.name} of {name} {what} {len(keys)} tensors of {type(model).__name__}, such as {keys[0]!r}"
            raise AgnoscoError(message, "give a model that was trained to classify images, with all of its weights")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's remarks on what it loads: they come as errors of ours."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# -- its input ----------------------------------------------------------------------------------------


class _Input(NamedTuple):
    """What a network takes; see :class:`.source.Network`."""

    size: int | tuple[int, int] | None
    channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    assumed: str | None = None
    resize: Resize | None = None
    blue_first: bool = False


def _input(repository: Repository, config: PretrainedConfig) -> _Input:
    """The input of a network by its processor, or by its configuration where it has none."""
    channels = getattr(config, "num_channels", 3)
    if channels not in (1, RGB):
        message = f"{CONFIG} of {repository.given} names {str(channels)[:80]} channels"
        raise AgnoscoError(message, "give a network for grey images (1) or colours (3)")
    given = repository.json(PROCESSOR, largest=WIDEST)
    if given is None:
        side = getattr(config, "image_size", None)
        size = tuple(side) if isinstance(side, list) else side
        return _Input(size, channels, None, None, f"pixels in [0, 1], since it has no {PROCESSOR}")
    share = given.get("crop_pct")  # of a side, so one that is resized to it is longer by its inverse
    if isinstance(share, int | float) and not LEAST_KEPT <= share <= 1:
        message = f"crop_pct in {PROCESSOR} of {repository.given} is {share}"
        raise AgnoscoError(message, HINTS["limit"], exit_code=CODES["limit"])
    try:
        return _measured(_harmless(given), config.to_dict(), channels)
    except Exception as error:  # a processor may refuse its own settings in any way
        raise _malformed(repository, PROCESSOR, error) from error


def _measured(settings: dict[str, Any], config: Mapping[str, Any], channels: int) -> _Input:
    """What a processor does, measured on a black and a white image: sizes and rescaling differ between them.

    A pixel p becomes (p - mean) / std, so black gives -mean / std and white (1 - mean) / std.
    """
    from transformers import AutoImageProcessor

    with TemporaryDirectory() as folder, _quiet():
        Path(folder, PROCESSOR).write_text(json.dumps(settings), encoding="utf-8")
        Path(folder, CONFIG).write_text(json.dumps({"model_type": config["model_type"]}), encoding="utf-8")
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    black, white = (_flat(processor, value, channels) for value in (0, 255))
    std = 1 / (white - black).mean((1, 2))
    mean = -black.mean((1, 2)) * std
    blue_first = channels == RGB and _takes_blue_first(processor, mean, std)
    if blue_first:  # mean and std are of red, green and blue
        mean, std = mean.flip(0), std.flip(0)
    size = (black.shape[1], black.shape[2])
    return _Input(
        size, channels, _declared(processor, "image_mean", mean), _declared(processor, "image_std", std),
        resize=_resize_rule(processor, black, white), blue_first=blue_first,
    )  # fmt: skip


def _flat(processor: Any, value: int, channels: int) -> torch.Tensor:
    """What a processor makes of an image of one colour: ``(C, H, W)``."""
    return _processed(processor, np.full((512, 512, channels), value, np.uint8))


def _takes_blue_first(processor: Any, mean: torch.Tensor, std: torch.Tensor) -> bool:
    """Whether a processor reverses the colours, as MobileViT's does: red comes out in the last channel."""
    red = np.zeros((512, 512, RGB), np.uint8)
    red[..., 0] = 255
    levels = _processed(processor, red).mean((1, 2)) * std + mean
    return bool(levels[-1] > levels[0])


def _reversed_colours(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs of a network, images ``(N, 3, H, W)`` first, with these in the order blue, green, red."""
    return inputs[0].flip(1), *inputs[1:]


def _processed(processor: Any, image: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    """What a processor makes of an image ``(H, W, C)``: ``(C, H, W)``."""
    output = processor(images=image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    return output.reshape(-1, *output.shape[-3:])[0].double()


def _resize_rule(processor: Any, black: torch.Tensor, white: torch.Tensor) -> Resize | None:
    """How a processor resizes, measured on two ramps; None for no resizing, or for what :class:`Resize` cannot say.

    Args:
        black, white: What it makes of images of these colours, ``(C, H, W)``.
    """
    lengths: list[int] = []
    for axis, length in enumerate(RAMP):  # grey levels rise by one from pixel to pixel, along one side
        levels = np.arange(length, dtype=np.uint8).reshape(-1 if axis == 0 else 1, 1 if axis == 0 else -1, 1)
        output = _processed(processor, np.broadcast_to(levels, (*RAMP, len(black))).copy())
        if output.shape != black.shape:  # such as for a processor that only pads
            return None
        along = (255 * (output - black) / (white - black)).mean((0, 2 - axis))
        edge = len(along) // 16 + 2
        middle = along[edge:-edge].numpy()  # filters reach beyond the ends
        if len(middle) < 3:  # of so small an input, a line says nothing
            return None
        slope, start = np.polyfit(range(len(middle)), middle, 1)
        if not slope > 0 or np.abs(middle - start - slope * np.arange(len(middle))).max() > ROUNDING:
            return None
        lengths.append(round(length / slope))
    return _rule_of(processor, (lengths[0], lengths[1]), (black.shape[1], black.shape[2]))


def _rule_of(processor: Any, resized: tuple[int, int], size: tuple[int, int]) -> Resize | None:
    """The rule by which an image of the size :data:`RAMP` was resized before its centre was cropped."""
    if resized == RAMP:
        return None
    short, long = RAMP
    kept = size[0] / resized[0]
    if abs(resized[1] - resized[0] * long / short) <= 1 and size[0] == size[1]:
        mode = "center"
    elif abs(size[1] / kept - resized[1]) <= 1:
        mode = "squash"
    else:
        return None
    filters = {int(Image.Resampling[name.upper()]): name for name in get_args(Interpolation)}
    chosen: Any = getattr(processor, "resample", None)
    return Resize(kept, mode, filters.get(chosen, "bilinear")) if SMALLEST_SHARE <= kept <= 1 else None


def _declared(processor: Any, name: str, measured: torch.Tensor) -> tuple[float, ...]:
    """Measured numbers, or those that a processor declares where they are the same but for rounding."""
    declared = getattr(processor, name, None)
    if isinstance(declared, list | tuple) and len(declared) == len(measured):
        numbers = torch.tensor([float(number) for number in declared], dtype=torch.float64)
        if torch.allclose(numbers, measured, rtol=1e-5, atol=1e-6):
            return tuple(numbers.tolist())
    return tuple(measured.tolist())
