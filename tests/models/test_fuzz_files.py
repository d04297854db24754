"""Whatever bytes come: the doors for files end in a value or in an error of ours, and never run what they are given.

A hundred examples each, the same on every run; `make fuzz` tries twenty thousand new ones.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
from dataclasses import asdict
from pathlib import Path

import hostile
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from agnosco.cli.inspection import in_words, what_next
from agnosco.data.decoding import Unreadable, decode
from agnosco.errors import AgnoscoError
from agnosco.models.inspection import inspect
from agnosco.models.loading import read_labels
from agnosco.models.weights.limits import CODES
from agnosco.models.weights.opening import open_weights
from agnosco.models.weights.pickle_scan import program_of

SHAPE = (3, 8, 8)
STATE = {"conv.weight": torch.arange(24.0).view(2, 3, 2, 2), "fc.bias": torch.tensor([1.0, -2.0]), "n": torch.tensor(3)}


def saved(**options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file, **options)
    return file.getvalue()


def image(form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(file, form)
    return file.getvalue()


SOUND = {
    "safetensors": safetensors.torch.save(STATE, {"made": "by a test"}),
    "zip": saved(),
    "legacy": saved(_use_new_zipfile_serialization=False),
}
IMAGES = {form: image(form) for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")}


@st.composite
def mutated(draw: st.DrawFn, sound: dict[str, bytes]) -> bytes:
    """A sound file with a few bytes changed, put in, taken out, doubled, or cut off."""
    content = bytearray(draw(st.sampled_from(sorted(sound.items())))[1])
    for _ in range(draw(st.integers(1, 4))):
        if not content:
            break
        place = draw(st.integers(0, min(len(content) - 1, 400)) | st.integers(0, len(content) - 1))
        some = draw(st.binary(min_size=1, max_size=9))
        kind = draw(st.sampled_from(["change", "put", "take", "cut", "double"]))
        if kind == "change":
            content[place : place + len(some)] = some
        elif kind == "put":
            content[place:place] = some
        elif kind == "take":
            del content[place : place + len(some)]
        elif kind == "cut":
            del content[place:]
        else:
            content += content[place:]
    return bytes(content)


sizes = st.integers(-1, 40) | st.sampled_from([1 << 31, 1 << 62, 1 << 63, 1 << 64, 1 << 100]) | st.integers()
values = st.recursive(
    st.none() | st.booleans() | sizes | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", ""]) | values,
        "shape": st.lists(sizes, max_size=10) | values,
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | values,
    }
)
headers = st.dictionaries(st.text(max_size=8) | st.just("__metadata__"), entries | values, max_size=4)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "weights.bin"


def through_the_door(path: Path, content: bytes) -> dict[str, Tensor] | int:
    """What it gives, or the exit code of its refusal; what ``inspect`` says has to agree, and be fit to be shown."""
    path.write_bytes(content)
    inspection = inspect(path, finite=True)
    shown = in_words(inspection) + what_next(inspection, str(path))
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert inspection.exit_code in (0, *CODES.values())
    json.dumps(asdict(inspection))
    tensors = read(path)
    assert inspection.exit_code == (0 if isinstance(tensors, dict) else tensors)
    return tensors


def read(path: Path) -> dict[str, Tensor] | int:
    try:
        with open_weights(path) as weights:
            return weights.read()
    except AgnoscoError as error:
        return error.exit_code


@given(st.binary(max_size=600))
@example(b"")
@example(b"PK\3\4")
@example(b"\x80\x02" + bytes(20))
def test_any_bytes(file: Path, content: bytes) -> None:
    through_the_door(file, content)


@given(mutated(SOUND))
def test_sound_files_with_changes(file: Path, content: bytes) -> None:
    """And where tensors come out of changed safetensors, the library reads the same."""
    found = through_the_door(file, content)
    if isinstance(found, dict):
        expected = safetensors.torch.load(content)
        assert all(torch.equal(found[name], tensor.to(found[name].dtype)) for name, tensor in expected.items())


@given(headers, st.integers(-3, 3), st.binary(max_size=60))
def test_any_header(file: Path, header: dict[str, object], off: int, data: bytes) -> None:
    text = json.dumps(header).encode()
    found = through_the_door(file, struct.pack("<Q", max(len(text) + off, 0)) + text + data)
    if isinstance(found, dict):  # what this door lets in, the library does too
        safetensors.torch.load(file.read_bytes())


@given(st.dictionaries(st.text(max_size=10), st.lists(st.integers(0, 4), max_size=3), max_size=5))
def test_any_sound_file_is_read(file: Path, shapes: dict[str, list[int]]) -> None:
    state = {name: torch.rand(shape) for name, shape in shapes.items() if name.isprintable() and "<" not in name}
    found = through_the_door(file, safetensors.torch.save(state))
    assert isinstance(found, dict)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@given(st.binary(max_size=200).map(lambda tail: b"\x80\x04" + tail) | st.binary(max_size=200))
def test_any_pickle_is_taken_apart_without_running(program: bytes) -> None:
    try:
        found = program_of(program)
    except ValueError:
        return
    assert found.length <= len(program)


things = st.recursive(
    st.none() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(things, st.integers(0, 5))
def test_a_pickle_of_plain_things_imports_nothing_and_a_harmful_one_is_seen(thing: object, protocol: int) -> None:
    plain = program_of(pickle.dumps(thing, protocol)).imports
    assert plain <= {"_codecs.encode", "__builtin__.bytes", "builtins.bytes"}  # bytes, in the protocols before 3
    harmful = program_of(pickle.dumps([thing, hostile.Evil("never run"), thing], protocol)).imports
    assert harmful - plain in ({"builtins.exec"}, {"__builtin__.exec"})


@given(mutated(IMAGES) | st.binary(max_size=100))
def test_any_image(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd files
            found = decode(file, SHAPE)
    except Unreadable:
        return
    assert (tuple(found.shape), found.dtype) == (SHAPE, torch.uint8)


@given(
    st.binary(max_size=200) | st.text().map(str.encode) | values.map(lambda value: json.dumps([value, value]).encode())
)
def test_any_class_names(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        names = read_labels(file)
    except AgnoscoError:
        return
    assert names
    assert all(isinstance(name, str) and name.encode() is not None for name in names)
