"""Zero-shot classifiers: logits against open_clip's own two sides, a planted pair, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from agnosco import load, map_classes
from agnosco.cli.app import app
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError, AgnoscoWarning
from agnosco.method.config import preset
from agnosco.models.clip import Prompt, read_prompts

open_clip = pytest.importorskip("open_clip")

VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
TINY: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
DECODER = {**TEXT, "mlp_ratio": 4, "dim_head": 8, "n_queries": 4, "attn_pooler_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "vit": TINY,
    "resnet": TINY | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}},
    "siglip": TINY | {"custom_text": True, "init_logit_bias": -10, "nonscalar_logit_scale": True},
    "timm": TINY | {"vision_cfg": {"image_size": 32, "timm_model_name": "test_vit", "timm_proj": "linear"}},
    "coca": TINY
    | {"vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}}
    | {"custom_text": True, "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True}, "multimodal_cfg": DECODER},
}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
NAMES = ["cat", "great white shark", "crane"]


def created(config: dict[str, Any], folder: Path) -> Any:
    """A network with random weights, which open_clip builds from a folder, which it is also saved in."""
    from open_clip.push_to_hf_hub import save_for_hf

    torch.manual_seed(1)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    model: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # CoCa leaves some as they are in memory
            parameter.copy_(torch.randn(parameter.shape) / 4)
        model.logit_scale.fill_(2.5)
    open_clip.set_model_preprocess_cfg(model, {"mean": MEAN, "std": STD, "size": model.visual.image_size})
    nothing: Any = SimpleNamespace(save_pretrained=lambda _folder: None)  # its own tokenizer has no files
    save_for_hf(model, nothing, model_config=config, safe_serialization=True, save_directory=str(folder))
    return model


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def by_hand(model: Any, pixels: Tensor, texts: list[list[str]]) -> Tensor:
    """Logits by the formula, from open_clip's two sides, with several texts of each class."""
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    with torch.no_grad():
        image = model.encode_image(normalised(pixels))
        columns = []
        for each in texts:
            units = torch.stack([F.normalize(model.encode_text(tokenizer([text]))[0], dim=0) for text in each])
            columns.append(F.cosine_similarity(image, units.mean(0)[None]))
        bias = 0 if model.logit_bias is None else model.logit_bias
        return torch.stack(columns, 1) * model.logit_scale.exp() + bias


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network, as open_clip saves it for the hub."""
    path = tmp_path_factory.mktemp("tiny")
    created(TINY, path)
    return path


@pytest.fixture
def registered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as one of open_clip's own models, with a tag of its weights; the path of its weights."""
    weights = folder / "open_clip_model.safetensors"
    tag = {"file": str(weights), "mean": MEAN, "std": STD, "quick_gelu": True}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"planted": tag})
    return weights


def refused(call: Callable[[], object], *, code: int = 2) -> str:
    """The two lines of an error."""
    with pytest.raises(AgnoscoError) as caught:
        call()
    error = caught.value
    assert error.exit_code == code
    assert "\n" not in error.message + error.hint
    return f"{error.message}\n{error.hint}"


# -- logits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_scale_times_cosine_of_the_two_sides(kind: str, tmp_path: Path) -> None:
    model = created(KINDS[kind], tmp_path)
    classifier = load(f"open_clip:local-dir:{tmp_path}", prompts=NAMES)
    pixels = F.interpolate(torch.rand(4, 3, 2, 2), classifier.shape[1:])
    texts = [[template(name) for template in open_clip.OPENAI_IMAGENET_TEMPLATES] for name in NAMES]
    expected = by_hand(model, pixels, texts)
    assert torch.allclose(classifier(pixels), expected, atol=2e-5)
    assert expected.std(0).min() > 2e-4, expected  # the images differ by more than that
    assert classifier.labels == tuple(NAMES)
    assert (classifier.mean, classifier.std) == (MEAN, STD)
    assert classifier.shape == (3, *[KINDS[kind]["vision_cfg"]["image_size"]] * 2)
    assert not any(name.startswith(("text", "transformer", "token")) for name, _ in classifier.model.named_parameters())


def test_a_class_with_texts_of_its_own_needs_no_template(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffcat\ta {cat} on a mat\tthe cat\r\n\ncrane\n", encoding="utf-8")
    classifier = load(f"open_clip:local-dir:{folder}", prompts=file)
    templates = [template("crane") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    pixels = torch.rand(3, *classifier.shape)
    again = tmp_path / "again"
    again.mkdir()
    expected = by_hand(created(TINY, again), pixels, [["a {cat} on a mat", "the cat"], templates])
    assert torch.allclose(classifier(pixels), expected, atol=1e-4)
    assert classifier.labels == ("cat", "crane")


def test_the_fingerprint_is_of_the_texts_too(folder: Path) -> None:
    prints = {load(f"open_clip:local-dir:{folder}", prompts=names).fingerprint for names in (NAMES, NAMES[::-1], NAMES)}
    assert len(prints) == 2


# -- a planted pair -----------------------------------------------------------------------------------


def planted(folder: Path) -> tuple[Path, Tensor, Tensor]:
    """Weights for which each of three texts has the direction in which the features of one of three patterns are apart.

    Raw texts H (3, width) get these directions T (3, D) by the projection pinv(H) T, since H has independent rows.

    Returns:
        The file, the patterns, and the cosine of each pattern with each text.
    """
    model = created(TINY, folder)
    patterns = torch.zeros(3, 3, 32, 32)
    patterns[0, 1, :, ::2] = 1  # green stripes
    patterns[1, 2, 8:24, 8:24] = 1  # a blue square
    patterns[2, 0, ::2] = 1  # red lines
    with torch.no_grad():
        features = model.encode_image(normalised(patterns), normalize=True)
        directions = F.normalize(features - features.mean(0))
        model.text_projection.copy_(torch.eye(16))
        raw = model.encode_text(open_clip.SimpleTokenizer(context_length=16)(NAMES))
        model.text_projection.copy_(torch.linalg.pinv(raw) @ directions)
    path = folder / "planted.safetensors"
    save_file(model.state_dict(), path)
    return path, patterns, features @ directions.T


def test_a_planted_pair_is_found_and_mapped(tmp_path: Path) -> None:
    weights, patterns, cosines = planted(tmp_path)
    prompts = [f"{name}\t{name}" for name in NAMES]
    classifier = load(f"open_clip:local-dir:{tmp_path}", weights=weights, prompts=prompts)
    answers = classifier(patterns)
    assert torch.allclose(answers, torch.tensor(2.5).exp() * cosines, atol=1e-3)
    assert answers.argmax(1).tolist() == [0, 1, 2]

    config = preset("draft")
    config = replace(config, mapper=replace(config.mapper, steps=2, batch=4))
    samples = Samples.leaves(classifier.shape, count=12)
    short = next(iter(map_classes(classifier, ["crane"], samples, config)))
    assert short.label == 2
    config = replace(config, mapper=replace(config.mapper, steps=40))
    maps = list(map_classes(classifier, range(3), samples, config))
    answers = classifier(torch.stack([each.pixels for each in maps]))
    assert answers.argmax(1).tolist() == [0, 1, 2]
    assert answers[2, 2] > classifier(samples.images.float() / 255)[:, 2].max()  # nearer to it than any sample


# -- names and weights --------------------------------------------------------------------------------


def test_weights_that_open_clip_names_come_with_their_activation_and_normalisation(registered: Path) -> None:
    model = open_clip.CLIP(**TINY, quick_gelu=True).eval()
    model.load_state_dict(load_file(registered))
    classifier = load("open_clip:tiny/planted", prompts=[f"{name}\t{name}" for name in NAMES])
    pixels = torch.rand(3, *classifier.shape)
    assert torch.allclose(classifier(pixels), by_hand(model, pixels, [[name] for name in NAMES]), atol=1e-4)
    assert classifier.name == "open_clip:tiny/planted"
    assert (classifier.mean, classifier.std) == (MEAN, STD)


def test_weights_of_a_file_say_whose_normalisation_they_get(registered: Path) -> None:
    with pytest.warns(AgnoscoWarning, match=r"open_clip:tiny gets the input of most models of open_clip.*\(0.4814"):
        classifier = load("open_clip:tiny", weights=registered, prompts=NAMES)
    assert classifier.mean == open_clip.OPENAI_DATASET_MEAN
    named = load("open_clip:tiny/planted", weights=registered, prompts=NAMES)  # which says it
    assert named.mean == MEAN


def test_what_is_not_there_is_refused_in_two_lines(registered: Path, tmp_path: Path) -> None:
    assert "did you mean 'tiny'" in refused(lambda: load("open_clip:tinny/planted", prompts=NAMES))
    assert "no weights 'x' of tiny\nthose that exist: tiny/planted" in refused(lambda: load("open_clip:tiny/x"))
    assert "does not say which weights" in refused(lambda: load("open_clip:tiny", prompts=NAMES))
    assert "no classes of its own\ngive a file of class names, one a line" in refused(
        lambda: load("open_clip:tiny/planted")
    )
    save_file({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    other = tmp_path / "other.safetensors"
    assert "does not hold the weights of open_clip:tiny/planted" in refused(
        lambda: load("open_clip:tiny/planted", weights=other, prompts=NAMES)
    )
    assert "there is no folder" in refused(lambda: load(f"open_clip:local-dir:{tmp_path / 'no'}", prompts=NAMES))
    assert "has no open_clip_config.json" in refused(lambda: load(f"open_clip:local-dir:{tmp_path}", prompts=NAMES))


def test_prompts_are_for_zero_shot_classifiers_only(folder: Path) -> None:
    module = torch.nn.Linear(2, 2)
    ready = load(f"open_clip:local-dir:{folder}", prompts=NAMES)
    assert "prompts are the classes of open_clip" in refused(lambda: load("agnosco:digits", prompts=NAMES))
    assert "prompts are the classes of open_clip" in refused(lambda: load(module, prompts=NAMES))
    assert "prompts cannot be changed" in refused(lambda: load(ready, prompts=NAMES))


def test_a_tokenizer_of_the_hub_is_named_where_there_is_no_network(
    registered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(TINY, "text_cfg", TEXT | {"hf_tokenizer_name": "nobody/nothing"})
    said = refused(lambda: load("open_clip:tiny/planted", prompts=NAMES))
    assert said.startswith("the tokenizer of open_clip:tiny is nobody/nothing of the hub, which cannot be used")


def test_without_open_clip_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert "pip install '.[clip]'" in refused(lambda: load("open_clip:RN50/openai", prompts=NAMES))


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (["cat"], "the prompts name 1 class\n"),
        ([], "the prompts name 0 classes\n"),
        (["cat", "\ta cat"], "does not begin with the name of a class"),
        (["cat", 3], "does not begin with the name of a class"),
        ("missing.txt", "cannot read prompts from 'missing.txt': "),
    ],
)
def test_prompts_that_are_none_are_refused(prompts: Any, said: str) -> None:
    assert said in refused(lambda: read_prompts(prompts))


def test_prompts_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"cat\n\xff\xfe")
    assert "cannot read prompts" in refused(lambda: read_prompts(tmp_path / "prompts.txt"))
    assert read_prompts([" cat ", "dog\t\ta dog "]) == (Prompt("cat"), Prompt("dog", ("a dog",)))


# -- foreign folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"text_cfg": TEXT | {"hf_model_name": "mallory/text"}}, 2, "is another repository's: 'mallory/text'"),
        ({"text_cfg": TEXT | {"hf_tokenizer_name": "mallory/t"}}, 2, "is another repository's: 'mallory/t'"),
        ({"vision_cfg": VISION | {"timm_model_name": "hf-hub:mallory/x"}}, 2, "timm has no model 'hf-hub:mallory/x'"),
        ({"vision_cfg": VISION | {"width": 100_000}}, 12, "describes"),
        ({"vision_cfg": VISION | {"layers": 10**9}}, 13, "larger than any network's"),
        ({"vision_cfg": VISION | {"layers": 10**6}}, 13, "describes more than"),
        ({"vision_cfg": 3}, 12, "does not describe both sides"),
        ({"no_such_setting": 3}, 12, "open_clip cannot build"),
        ({"text_cfg": TEXT | {"tokenizer_kwargs": {"clean": "no"}}}, 12, "cannot use the tokenizer's settings"),
    ],
)
def test_a_hostile_folder_is_refused(
    changes: dict[str, Any], code: int, said: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "open_clip_model.safetensors").symlink_to(folder / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY | changes}))
    assert said in refused(lambda: load(f"open_clip:local-dir:{tmp_path}", prompts=NAMES, mean=MEAN), code=code)


def test_a_folder_cannot_name_the_vocabulary_s_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_model.safetensors").symlink_to(folder / "open_clip_model.safetensors")
    given = json.loads((folder / "open_clip_config.json").read_text())
    given["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": "/dev/zero"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(given))
    classifier = load(f"open_clip:local-dir:{tmp_path}", prompts=NAMES)
    pixels = torch.rand(1, *classifier.shape)
    assert classifier(pixels).equal(load(f"open_clip:local-dir:{folder}", prompts=NAMES)(pixels))


def test_a_folder_with_a_pickle_only_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    torch.save(load_file(folder / "open_clip_model.safetensors"), tmp_path / "open_clip_pytorch_model.bin")
    said = refused(lambda: load(f"open_clip:local-dir:{tmp_path}", prompts=NAMES), code=10)
    assert "has no open_clip_model.safetensors, but open_clip_pytorch_model.bin, a pickle" in said


# -- the command line ---------------------------------------------------------------------------------


def test_a_run_of_prompts_is_mapped_and_continued(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(NAMES))
    (tmp_path / "others.txt").write_text("\n".join(["dog", *NAMES[1:]]))
    command = ["map", f"open_clip:local-dir:{folder}", "shark", "--samples=noise", "--steps=2", "--batch=2"]

    def call(*args: str) -> Any:
        return CliRunner().invoke(app, [*command, "--preset=draft", "--device=cpu", *args])

    first = call("--prompts=prompts.txt", "--json")
    assert first.exit_code == 0, first.stderr
    assert json.loads(first.stdout)["maps"][0]["class"] == "great white shark"
    assert call("--prompts=prompts.txt").exit_code == 0
    assert call("--prompts=others.txt").exit_code == 2  # another classifier
    assert "--prompts" in call().stderr
