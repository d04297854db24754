"""Zero-shot classifiers of ``open_clip``: the classes are texts, and a logit says how well an image agrees with one.

logits = exp(logit scale) · cosine(image, text) + logit bias, where only SigLIP has the last (`Radford et al. 2021
<https://arxiv.org/abs/2103.00020>`_, `Zhai et al. 2023 <https://arxiv.org/abs/2303.15343>`_).

The library sees no file of a repository: it gets the configuration, without what would make it fetch or open other
files, and tensors that came through :mod:`.weights.opening`. Weights that it names itself it downloads and opens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import AgnoscoError
from ..io.regular import read_regular
from ..text import first_line, nearest
from .filling import described, fill
from .heads import tensor_in
from .hub import REPOSITORIES, Repository
from .source import Network, OpenWeights, Source, downloaded, of_foreign_file
from .weights.limits import CODES, HINTS, LIMITS

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

TOKENIZER = ("clean", "reduction_mask", "additional_special_tokens")
"""Settings of a tokenizer that a repository may give; another one names a file."""

HINT = "give a file of class names, one a line: prompts='classes.txt' (--prompts classes.txt)"

Tokenize = Callable[[list[str]], Tensor]


class Prompt(NamedTuple):
    """A class: its name, and the texts that describe it; without any, open_clip's templates do."""

    name: str
    texts: tuple[str, ...] = ()


class ZeroShot(nn.Module):
    """The image side of a network, and what its text side made of the classes.

    Args:
        visual: Maps normalised images ``(N, C, H, W)`` to ``(N, D)``.
        texts: Unit vectors ``(classes, D)``, one for each class.
        scale, bias: What cosines are multiplied with, and what is added; tensors of one number.
    """

    def __init__(self, visual: nn.Module, texts: Tensor, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.visual = visual
        self.texts: Tensor
        self.scale: Tensor
        self.bias: Tensor
        for name, tensor in (("texts", texts), ("scale", scale), ("bias", bias)):
            self.register_buffer(name, tensor.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, classes)``."""
        features = tensor_in(self.visual(images))  # CoCa's answers tokens besides
        assert features is not None
        return self.scale * (F.normalize(features, dim=-1) @ self.texts.T) + self.bias


@dataclass(frozen=True)
class OpenClip(Source):
    """Networks of open_clip: ``NAME/PRETRAINED``, ``NAME``, ``local-dir:DIR`` or ``hf-hub:ORG/NAME``.

    ``prompts`` are the classes; see :func:`read_prompts`.
    """

    prompts: tuple[Prompt, ...] = ()

    def with_prompts(self, prompts: Path | str | Sequence[str]) -> OpenClip:
        return OpenClip(read_prompts(prompts))

    def network(self, name: str, weights: OpenWeights | None, *, trust_code: bool) -> Network:
        try:
            import open_clip  # noqa: F401
        except ImportError as error:
            raise AgnoscoError("open_clip is not installed", "pip install '.[clip]' in the clone of agnosco") from error
        form, _, rest = name.partition(":")
        found = _of_repository(form, rest, weights) if form in REPOSITORIES and rest else _named(name, weights)
        if not self.prompts:
            raise AgnoscoError(f"{found.name} has no classes of its own", HINT)
        model, settings = found.model(), found.settings
        visual: Any = model.visual
        texts = _embedded(model, self.prompts, found.tokenizer())
        bias = torch.zeros(()) if model.logit_bias is None else model.logit_bias
        network = Network(
            ZeroShot(visual, texts, model.logit_scale.exp(), bias).to(memory_format=torch.channels_last),
            found.name, size=visual.image_size, mean=settings["mean"], std=settings["std"],
            labels=[prompt.name for prompt in self.prompts], assumed=found.assumed,
        )  # fmt: skip
        return of_foreign_file(network, f"{CONFIG} of {found.name}")

    def download(self, name: str) -> str | None:
        named = "/" in name and not name.startswith("local-dir:")
        return f"the weights of open_clip:{name}, unless they are already here" if named else None


# -- the classes --------------------------------------------------------------------------------------


def read_prompts(prompts: Path | str | Sequence[str]) -> tuple[Prompt, ...]:
    r"""The classes of a UTF-8 file, one a line, or of a sequence of such lines.

    A line is the name of a class, which open_clip's templates put into sentences, such as "a photo of a cat." A line
    ``NAME<TAB>TEXT<TAB>TEXT`` gives the class its own texts instead. Empty lines are ignored. AgnoscoError if the file
    cannot be read, or there are fewer than two classes or too many.

    Example:
        >>> read_prompts(["cat", "dog\tthe dog of my neighbour"])
        (Prompt(name='cat', texts=()), Prompt(name='dog', texts=('the dog of my neighbour',)))
    """
    lines: Sequence[str]
    if isinstance(prompts, str | Path):
        try:
            lines = read_regular(os.path.expanduser(prompts), most=LIMITS.labels).decode("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
            raise AgnoscoError(f"cannot read prompts from {str(prompts)!r}: {first_line(error)}", HINT) from error
    else:
        lines = prompts
    found = [_prompt(line) for line in lines if not isinstance(line, str) or line.strip()]
    if not 2 <= len(found) <= LIMITS.classes:
        message = f"the prompts name {len(found):,} class{'es' * (len(found) != 1)}"
        raise AgnoscoError(message, f"give 2 to {LIMITS.classes:,}, one a line: an image is compared with all of them")
    return tuple(found)


def _prompt(line: object) -> Prompt:
    name, *texts = (part.strip() for part in line.split("\t")) if isinstance(line, str) else ("",)
    if not name:
        message = f"the line {str(line)[:80]!r} of the prompts does not begin with the name of a class"
        raise AgnoscoError(message, "write NAME, or NAME, a tab and a sentence about it")
    return Prompt(name, tuple(text for text in texts if text))


def _embedded(model: Any, prompts: Sequence[Prompt], tokenizer: Tokenize) -> Tensor:
    """The unit vectors ``(classes, D)`` of classes: means over their texts, as open_clip takes them."""
    import open_clip

    model.eval().requires_grad_(False)
    vectors = []
    for name, texts in prompts:
        templates = [_says(text) for text in texts] or open_clip.OPENAI_IMAGENET_TEMPLATES
        vectors.append(open_clip.build_zero_shot_classifier(model, tokenizer, [name], templates))
    return torch.cat(vectors, dim=1).T.contiguous()


def _says(text: str) -> Callable[[str], str]:
    """A template that is a text of its own; open_clip would look for braces in a string."""
    return lambda _name: text


# -- the network --------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A network that was found by its name; ``model`` builds and fills it once the prompts are known to be good."""

    name: str
    model: Callable[[], Any]
    tokenizer: Callable[[], Tokenize]
    settings: dict[str, Any]
    assumed: str | None = None


def _named(text: str, weights: OpenWeights | None) -> _Found:
    """One of open_clip's own: ``NAME/PRETRAINED``, or ``NAME`` for weights of a file."""
    import open_clip

    name, _, tag = text.partition("/")
    full_name = f"open_clip:{text}"
    config, tags = open_clip.get_model_config(name), open_clip.list_pretrained_tags_by_model(name)
    if config is None:
        hint = f"{nearest(name, open_clip.list_models())}; write open_clip:NAME/PRETRAINED"
        raise AgnoscoError(f"open_clip has no model {name!r}", hint)
    own = ", ".join(f"{name}/{each}" for each in tags) or "there are none"
    if tag and tag not in tags:
        raise AgnoscoError(f"open_clip has no weights {tag!r} of {name}", f"those that exist: {own}")
    if weights is None and not tag:
        hint = f"name open_clip's ({own}), or pass a file: weights=FILE.safetensors (--weights)"
        raise AgnoscoError(f"{full_name} does not say which weights", hint)
    given = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if given.get("quick_gelu"):  # which the weights were trained with, whatever the name says
        config["quick_gelu"] = True
    return _Found(
        full_name, lambda: _filled(full_name, config, weights, given), lambda: _tokenizer(name, config),
        _preprocessing(given), None if tag else "most models of open_clip, since no PRETRAINED is named",
    )  # fmt: skip


def _filled(name: str, config: dict[str, Any], weights: OpenWeights | None, pretrained: dict[str, Any]) -> Any:
    """A network with the weights of a file, or with those that open_clip downloads."""
    import open_clip

    model = downloaded(name, partial(_built, config), what="the text model of")  # if that is another library's
    if weights is None:
        downloaded(name, lambda: open_clip.load_checkpoint(model, open_clip.download_pretrained(pretrained)))
        return model
    with weights() as file:
        fill(model, file, name)
    return model


def _of_repository(form: str, text: str, weights: OpenWeights | None) -> _Found:
    """One of the hub, or of a folder that has the files of such a repository."""
    repository = Repository.of(text, config=CONFIG, weights_file=WEIGHTS)
    if repository.folder is None and form == "local-dir":
        raise AgnoscoError(f"there is no folder {text!r}", f"give a folder that holds {CONFIG}")
    given = repository.json(CONFIG)
    config = given and given.get("model_cfg")
    if given is None or not isinstance(config, dict):
        message = f"{repository.given} has no {CONFIG}" if given is None else f"{CONFIG} of {text} has no model_cfg"
        raise AgnoscoError(message, "give what open_clip saved for the hub")
    _check_harmless(config, text)
    full_name = f"open_clip:{form}:{repository.name}"

    def model() -> Any:
        with (weights or repository.weights)() as file:
            return described("open_clip", partial(_built, config), file, full_name)

    preprocessing = given.get("preprocess_cfg")
    known = preprocessing if isinstance(preprocessing, dict) and {"mean", "std"} <= preprocessing.keys() else {}
    return _Found(
        full_name, model, lambda: _simple_tokenizer(config), _preprocessing(known),
        None if known else f"most models of open_clip, since {CONFIG} does not say",
    )  # fmt: skip


def _check_harmless(config: dict[str, Any], name: str) -> None:
    """AgnoscoError if a repository's network has parts of other repositories."""
    import timm

    vision, text = config.get("vision_cfg"), config.get("text_cfg")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        message = f"{CONFIG} of {name} does not describe both sides of a network"
        raise AgnoscoError(message, HINTS["malformed"], exit_code=CODES["malformed"])
    for key, what in (("hf_model_name", "text model"), ("hf_tokenizer_name", "tokenizer")):
        if text.get(key):
            message = f"the {what} of {name} is another repository's: {str(text[key])[:80]!r}"
            raise AgnoscoError(message, "give open_clip's own name of it, open_clip:NAME/PRETRAINED, if it has one")
    timm_name, names = vision.get("timm_model_name"), timm.list_models()
    if timm_name and timm_name not in names:  # else it could name a repository or a folder
        message = f"timm has no model {str(timm_name)[:80]!r}, which {CONFIG} of {name} names"
        raise AgnoscoError(message, nearest(str(timm_name), names))


def _built(config: dict[str, Any]) -> Any:
    """A network with random weights, of the class that open_clip takes for such a configuration."""
    import open_clip

    settings = {key: value for key, value in config.items() if key != "custom_text"}
    settings["vision_cfg"] = config["vision_cfg"] | {"timm_model_pretrained": False}
    settings["text_cfg"] = config["text_cfg"] | {"hf_model_pretrained": False}
    if not config.get("custom_text") and not config["text_cfg"].get("hf_model_name"):
        return open_clip.CLIP(**settings)
    return open_clip.CoCa(**settings) if "multimodal_cfg" in config else open_clip.CustomTextCLIP(**settings)


def _preprocessing(given: dict[str, Any]) -> dict[str, Any]:
    """Mean and std of the input, open_clip's own where none are given."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return {"mean": given.get("mean", OPENAI_DATASET_MEAN), "std": given.get("std", OPENAI_DATASET_STD)}


def _tokenizer(name: str, config: dict[str, Any]) -> Tokenize:
    """That of one of open_clip's own models, which for some is on the hub; AgnoscoError if it cannot be had."""
    if not config["text_cfg"].get("hf_tokenizer_name"):
        return _simple_tokenizer(config)
    import open_clip

    try:
        return open_clip.get_tokenizer(name)
    except Exception as error:  # there may be no network, or no transformers
        source = config["text_cfg"]["hf_tokenizer_name"]
        message = f"the tokenizer of open_clip:{name} is {source} of the hub, which cannot be used: {first_line(error)}"
        hint = f"with a network: pip install '.[hf]', then hf download {source}; or choose a model such as ViT-B-32"
        raise AgnoscoError(message, hint) from error


def _simple_tokenizer(config: dict[str, Any]) -> Tokenize:
    """CLIP's own, whose vocabulary comes with open_clip; AgnoscoError for settings that it does not have."""
    from open_clip import SimpleTokenizer

    text = config["text_cfg"]
    given = text.get("tokenizer_kwargs") or {}
    try:
        settings = {key: value for key, value in given.items() if key in TOKENIZER}
        return SimpleTokenizer(context_length=text.get("context_length", 77), **settings)
    except Exception as error:  # whatever its settings make of it
        message = f"open_clip cannot use the tokenizer's settings of {CONFIG}: {first_line(error)}"
        raise AgnoscoError(message, HINTS["malformed"], exit_code=CODES["malformed"]) from error
