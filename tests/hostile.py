"""Hostile files, made in a folder of one's own and never kept; and what agnosco does with each of them.

    python tests/hostile.py FOLDER          every case through the commands, in this process; one JSON object on stdout
    python tests/hostile.py FOLDER GROUP    those of a group, and the sound ones

A case says what it is and what the commands are to exit with. A payload that runs writes a file and opens a socket, and
both would be seen: by the file, by the listener that waits for it, and by Python's own audit events.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import resource
import socket
import struct
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

SOUND_MODEL = "agnosco:digits"
HUB = "MODEL"
"""Instead of an option: the case is a folder of the hub, and is given as the model."""

HEAD = "13.weight"
"""The last layer of that network: 1024 numbers for each class."""


@dataclass(frozen=True)
class Place:
    """Where a case is built, and what its payload would do."""

    folder: Path
    canary: Path
    port: int

    def file(self, name: str, content: bytes = b"") -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    @property
    def code(self) -> str:
        return (
            f"open({str(self.canary)!r}, 'w').close()\n"
            f"import socket\nsocket.create_connection(('127.0.0.1', {self.port}), 1).close()"
        )

    @property
    def evil(self) -> Evil:
        return Evil(self.code)


class Evil:
    """An object whose pickle runs a piece of Python when it is opened."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, (self.code,)


@dataclass(frozen=True)
class Case:
    """A hostile file.

    Args:
        name: A short name.
        group: As in the table of docs/security.md.
        what: What it is, in a few words.
        build: Makes it.
        option: Where it goes in.
        inspect: What ``agnosco inspect`` exits with; None for what is no file of weights.
        load: What ``agnosco map`` exits with.
        allowed: The same with ``--allow-pickle``, where that differs.
    """

    name: str
    group: str
    what: str
    build: Callable[[Place], Path]
    load: int
    inspect: int | None = None
    allowed: int | None = None
    option: str = "--weights"

    def expected(self) -> dict[str, int]:
        """Exit codes by command."""
        if self.option == HUB:
            return {"map": self.load, "map --allow-pickle": self.load if self.allowed is None else self.allowed}
        if self.option != "--weights":
            return {"map": self.load} | ({"report": 0} if self.option == "--labels" and self.load == 0 else {})
        return {
            "inspect": self.load if self.inspect is None else self.inspect,
            "map": self.load,
            "map --allow-pickle": self.load if self.allowed is None else self.allowed,
        }


# -- sound ones ----------------------------------------------------------------------------------------


def state() -> dict[str, Tensor]:
    """The weights of a sound network."""
    from agnosco.models.architectures import created

    return {name: tensor.contiguous() for name, tensor in created("digits", 10, seed=0).state_dict().items()}


def sound(place: Place) -> Path:
    return place.file("sound.safetensors", save(state()))


def sound_pickle(place: Place) -> Path:
    return torch_saved(place, state(), "sound.pt")


def torch_saved(place: Place, what: Any, name: str = "weights.pt", **options: Any) -> Path:
    path = place.folder / name
    torch.save(what, path, **options)
    return path


def header_file(place: Place, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file of a header as it is given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return place.file("weights.safetensors", struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# -- pickles -----------------------------------------------------------------------------------------


def renamed(place: Place) -> Path:
    return torch_saved(place, {"a": place.evil}, "weights.safetensors")


def legacy(place: Place) -> Path:
    return torch_saved(place, {"a": place.evil}, _use_new_zipfile_serialization=False)


def protocol_0(place: Place) -> Path:
    return place.file("weights.pth", pickle.dumps({"a": place.evil}, protocol=0))


def decoys(place: Place) -> Path:
    """The name that is imported lies under two harmless ones, which are thrown away before."""

    def word(one: str) -> bytes:
        return b"\x8c" + bytes([len(one)]) + one.encode()

    harmless = word("collections") + word("OrderedDict") + b"00"
    code = place.code.encode()
    called = word("builtins") + word("exec") + harmless + b"\x93X" + struct.pack("<L", len(code)) + code + b"\x85R."
    return place.file("weights.pt", b"\x80\x04" + called)


def tar(place: Place) -> Path:
    path = place.folder / "weights.pt"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            content = pickle.dumps(place.evil)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def whole_module(place: Place) -> Path:
    return torch_saved(place, nn.Linear(2, 2))


def bad_crc(place: Place) -> Path:
    path = sound_pickle(place)
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        middle = largest.header_offset + 200 + largest.file_size // 2
    content = bytearray(path.read_bytes())
    content[middle] ^= 1
    return place.file("weights.pt", bytes(content))


def flagged(bits: int) -> Callable[[Place], Path]:
    """A zip whose members all carry these flags as well."""

    def build(place: Place) -> Path:
        path = sound_pickle(place)
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                content[member.header_offset + 6] |= bits
            at = archive.start_dir
            for _ in archive.infolist():
                content[at + 8] |= bits
                at += 46 + sum(struct.unpack("<HHH", content[at + 28 : at + 34]))
        return place.file("weights.pt", bytes(content))

    return build


def repacked(place: Place, other: str, content: bytes) -> Path:
    """A sound file of ``torch.save``, packed again by Python, with another member besides."""
    path = place.folder / "weights.pt"
    with zipfile.ZipFile(sound_pickle(place)) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
        target.writestr(other, content)
    return path


def outside(place: Place) -> Path:
    return repacked(place, "../../canary", b"sung")


def second_pickle(place: Place) -> Path:
    return repacked(place, "other/data.pkl", pickle.dumps(place.evil))


def pickle_before_zip(place: Place) -> Path:
    return place.file("weights.pt", pickle.dumps(place.evil) + sound_pickle(place).read_bytes())


def zip_before_pickle(place: Place) -> Path:
    return place.file("weights.pt", sound_pickle(place).read_bytes() + pickle.dumps(place.evil))


def word(length: int, begin: str = "") -> bytes:
    """A text on the stack of a pickle."""
    return b"X" + struct.pack("<L", length) + begin.ljust(length, "a").encode()


def pairs_of_names(place: Place) -> Path:
    """313,600 different imports of 6 kB each, in 4 MB."""
    words = b"".join(word(3000, f"{i:03}") + b"r" + struct.pack("<L", i) + b"0" for i in range(560))
    recalls = [b"j" + struct.pack("<L", i) for i in range(560)]
    pairs = (one + other + b"\x930" for one in recalls for other in recalls)
    return place.file("weights.pt", b"\x80\x02" + words + b"".join(islice(pairs, 200_000)) + b"N.")


def long_name(place: Place) -> Path:
    """One name of 1.5 MB, 150,000 times."""
    return place.file("weights.pt", b"\x80\x04" + word(1_500_000) + b"q\x00" + 150_000 * b"h\x00h\x00\x93" + b".")


# -- memory ------------------------------------------------------------------------------------------


def stride_0(place: Place) -> Path:
    """4 TiB of one number: a head of 2³⁰ classes."""
    return torch_saved(place, {HEAD: torch.zeros(1).expand(1 << 30, 1024)})


def aliases(place: Place) -> Path:
    one = torch.zeros(1 << 20)
    return torch_saved(place, {f"layer{i}": one for i in range(10_000)})


def claimed_storage(place: Place) -> Path:
    """A pickle of the old form whose storage is said to have 4 TiB: they are set aside before they are read."""
    content = torch_saved(place, {"a": torch.zeros(12345)}, _use_new_zipfile_serialization=False).read_bytes()
    number = b"M" + struct.pack("<H", 12345)  # BININT2, in the storage's name and in the tensor's shape
    assert content.count(number) >= 2
    before, after = content.split(number, 1)
    return place.file("weights.pt", before + b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + after)


def deflated(place: Place) -> Path:
    """256 MiB of zeros in 262 kB."""
    path = place.folder / "weights.pt"
    with zipfile.ZipFile(sound_pickle(place)) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
        with target.open("sound/data/99", "w") as file:
            for _ in range(256):
                file.write(bytes(1 << 20))
    return path


def sparse_zip(place: Place) -> Path:
    """A zip of 24 GiB that are nowhere on the disk: its checksums would be looked at for a minute and more."""
    path = place.folder / "weights.pt"
    with zipfile.ZipFile(sound_pickle(place)) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
        hole: Any = target.open("sound/data/99", "w", force_zip64=True)
        with hole:
            hole._file_size = 24 << 30
            hole._fileobj.seek(24 << 30, os.SEEK_CUR)
    return path


def head_of(classes: int, dtype: str, size: int) -> Callable[[Place], Path]:
    """A sound network but for its head, whose bytes take no room on the disk: the file has a hole."""

    def build(place: Place) -> Path:
        whole = {name: tensor for name, tensor in state().items() if name != HEAD}
        whole["13.bias"] = torch.zeros(0)
        content = save(whole)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        data = content[8 + length :]
        header[HEAD] = tensor([classes, 1024], len(data), len(data) + classes * 1024 * size, dtype)
        path = header_file(place, header, data)
        os.truncate(path, path.stat().st_size + classes * 1024 * size)
        return path

    return build


def cut(name: str, share: float) -> Callable[[Place], Path]:
    def build(place: Place) -> Path:
        content = (sound if name.endswith(".safetensors") else sound_pickle)(place).read_bytes()
        return place.file(name, content[: int(len(content) * share)])

    return build


def not_finite(value: float) -> Callable[[Place], Path]:
    def build(place: Place) -> Path:
        weights = state()
        weights[HEAD][3, 3] = value
        return place.file("weights.safetensors", save(weights))

    return build


# -- safetensors -------------------------------------------------------------------------------------


def header_case(
    header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None
) -> Callable[[Place], Path]:
    return lambda place: header_file(place, header, data, length)


def with_name(name: str) -> Callable[[Place], Path]:
    return lambda place: place.file("weights.safetensors", save({**state(), name: torch.zeros(2)}))


def half_a_character(place: Place) -> Path:
    return header_file(place, b'{"a\\ud800":' + json.dumps(tensor([1], 0, 4)).encode() + b"}", bytes(4))


def empty_tensors(count: int) -> Callable[[Place], Path]:
    entry = json.dumps(tensor([0], 0, 0), separators=(",", ":"))
    return lambda place: header_file(place, ("{" + ",".join(f'"t{i}":{entry}' for i in range(count)) + "}").encode())


# -- code --------------------------------------------------------------------------------------------


class Writes(nn.Module):
    """What TorchScript can do without any Python: make a file and write into it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file(self.path, True, 4).fill_(7.0).sum()


def torchscript(place: Place) -> Path:
    path = place.folder / "weights.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        torch.jit.script(Writes(str(place.canary))).save(str(path))
    return path


def exported(place: Place) -> Path:
    """What ``torch.export.save`` writes, as far as it matters: its sample inputs are a pickle, and ``load`` runs it."""
    inputs = io.BytesIO()
    torch.save(place.evil, inputs)
    path = place.folder / "weights.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/models/model.json", "{}")
        archive.writestr("m/data/sample_inputs/model.pt", inputs.getvalue())
    return path


# -- folders of the hub --------------------------------------------------------------------------------

INDEX = "model.safetensors.index.json"


def hub(change: Callable[[Path, Place], object]) -> Callable[[Place], Path]:
    """A small sound vision transformer as transformers keeps it, and what is done to it."""

    def build(place: Place) -> Path:
        import transformers

        folder = place.folder / "vit"
        config = transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32,
            patch_size=16, id2label={0: "a", 1: "b", 2: "c"},
        )  # fmt: skip
        transformers.utils.logging.disable_progress_bar()
        transformers.ViTForImageClassification(config).save_pretrained(folder)
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        change(folder, place)
        return folder

    return build


def without_weights(folder: Path) -> Path:
    """The file of the weights, which is taken away."""
    path = folder / "model.safetensors"
    path.rename(folder.parent / "elsewhere.safetensors")
    return path


def hub_pickle(folder: Path, place: Place) -> None:
    without_weights(folder)
    torch.save(load_file(folder.parent / "elsewhere.safetensors"), folder / "pytorch_model.bin")


def hub_harmful_pickle(folder: Path, place: Place) -> None:
    without_weights(folder)
    torch.save({"a": place.evil}, folder / "pytorch_model.bin")


def hub_renamed(folder: Path, place: Place) -> None:
    torch.save({"a": place.evil}, without_weights(folder))


def hub_index(part: str) -> Callable[[Path, Place], None]:
    def change(folder: Path, place: Place) -> None:
        without_weights(folder)
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": part.format(folder.parent)}}))

    return change


def hub_link(folder: Path, place: Place) -> None:
    """As the hub keeps its files: a link to a blob. This one leads to what is no weights."""
    path = without_weights(folder)
    path.symlink_to("/etc/passwd")


def hub_config(name: str = "config.json", **changes: Any) -> Callable[[Path, Place], None]:
    """Some keys of a JSON file are others."""

    def change(folder: Path, place: Place) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return change


def hub_text(content: str) -> Callable[[Path, Place], object]:
    return lambda folder, place: (folder / "config.json").write_text(content)


def hub_code(**changes: Any) -> Callable[[Path, Place], None]:
    """Python beside the weights, which every file of settings names."""

    def change(folder: Path, place: Place) -> None:
        (folder / "modeling_evil.py").write_text(f"{place.code}\nclass Evil: pass\n")
        names = (
            "AutoConfig",
            "AutoModelForImageClassification",
            "AutoImageProcessor",
            "AutoProcessor",
            "AutoTokenizer",
        )
        code = {"auto_map": dict.fromkeys(names, "modeling_evil.Evil")}
        (folder / "tokenizer_config.json").write_text("{}")
        for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
            hub_config(name, **code, **changes)(folder, place)

    return change


def hub_beside(folder: Path, place: Place) -> None:
    """Beside sound weights: harmful pickles, and a tokenizer that no parser would survive."""
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl"):
        torch.save({"a": place.evil}, folder / name)
    (folder / "tokenizer.json").write_text("[" * 100_000)


def hub_case(
    name: str, what: str, change: Callable[[Path, Place], object], load: int, allowed: int | None = None
) -> Case:
    """A case of a folder of the hub."""
    return Case(name, "hub", what, hub(change), load, allowed=allowed, option=HUB)


# -- images and text ---------------------------------------------------------------------------------


def folder_of(make: Callable[[Path], object]) -> Callable[[Place], Path]:
    """A folder of samples with this one thing in it."""

    def build(place: Place) -> Path:
        folder = place.folder / "samples"
        folder.mkdir()
        make(folder)
        return folder

    return build


def noise(mode: str, *, size: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png_200_megapixels(folder: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(folder / "a.png")


def truncated_jpeg(folder: Path) -> None:
    noise("RGB").save(folder / "a.jpg")
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:800])


def link_out(folder: Path) -> None:
    secret = folder.parent / "private.png"
    noise("RGB").save(secret)
    (folder / "a.png").symlink_to(secret)


def sixteen_bits(folder: Path) -> None:
    for i in range(4):
        values = np.random.default_rng(i).integers(0, 65536, (32, 32)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{i}.png")


def cmyk(folder: Path) -> None:
    for i in range(4):
        noise("CMYK", size=32 + i).save(folder / f"{i}.jpg")


def bad_beside_good(folder: Path) -> None:
    for i in range(4):
        noise("L", size=32 + i).save(folder / f"{i}.png")
    truncated_jpeg(folder)


def names(*some: str) -> Callable[[Place], Path]:
    return lambda place: place.file("labels.json", json.dumps([*some, *(f"c{i}" for i in range(9))]).encode())


def image(name: str, what: str, make: Callable[[Path], object], load: int = 2) -> Case:
    """A case of a folder of samples; 2 is what a folder without any readable image exits with."""
    return Case(name, "image", what, folder_of(make), load, option="--samples")


def text(name: str, what: str, build: Callable[[Place], Path], load: int = 2) -> Case:
    """A case of a file of class names."""
    return Case(name, "text", what, build, load, option="--labels")


def pipe(place: Place) -> Path:
    os.mkfifo(place.folder / "pipe")
    return place.folder / "pipe"


def long_labels(place: Place) -> Path:
    path = place.file("labels.txt")
    os.truncate(path, 1 << 33)
    return path


SCRIPT = "</script><script>document.title='owned'</script>"
ANSI = "\x1b]0;owned\x07\x1b[31mred\x1b[2J"
TWO = {"a": tensor([2], 0, 8), "b": tensor([2], 8, 16)}

CASES = (
    Case("sound safetensors", "sound", "a network as it should be", sound, 0),
    Case("sound pickle", "sound", "`torch.save(model.state_dict())`", sound_pickle, 10, allowed=0),
    Case("reduce, zip", "pickle", "`__reduce__` in a `torch.save`", lambda p: torch_saved(p, {"a": p.evil}), 11),
    Case("reduce, renamed", "pickle", "the same, named `.safetensors`", renamed, 11),
    Case("reduce, legacy", "pickle", "the same, as torch wrote it until 1.6", legacy, 11),
    Case("reduce, protocol 0", "pickle", "a pickle in letters", protocol_0, 11),
    Case("decoys", "pickle", "an import hidden under harmless names", decoys, 11),
    Case("pairs of names", "pickle", "200,000 imports of 6 kB each, in 4 MB", pairs_of_names, 13),
    Case("long name", "pickle", "an import of 3 MB, 150,000 times", long_name, 11),
    Case("tar", "pickle", "a tar of pickles, as torch wrote it until 0.1.9", tar, 11),
    Case("whole module", "pickle", "`torch.save(model)`", whole_module, 11),
    Case("bad CRC", "pickle", "a bit turned over in a zip", bad_crc, 12),
    Case("flag bits", "pickle", "a zip with flags that torch never sets", flagged(0x20), 12),
    Case("encrypted", "pickle", "a zip that says it is encrypted", flagged(0x01), 12),
    Case("member outside", "pickle", "a zip with a member `../../canary`", outside, 12),
    Case("second pickle", "pickle", "a zip with another `data.pkl`", second_pickle, 15),
    Case("pickle + zip", "pickle", "a harmful pickle, then a harmless zip", pickle_before_zip, 11),
    Case("zip + pickle", "pickle", "a harmless zip, then a harmful pickle", zip_before_pickle, 12),
    Case("stride 0", "memory", "4 TiB in 1.5 kB: a head of 2³⁰ classes", stride_0, 10, allowed=13),
    Case("aliases", "memory", "10,000 tensors of the same 4 MB", aliases, 10, allowed=13),
    Case("claimed storage", "memory", "an old pickle that asks for 4 TiB", claimed_storage, 10, allowed=13),
    Case("deflate bomb", "memory", "262 kB that inflate to 256 MB", deflated, 13),
    Case("sparse zip", "memory", "a zip of 24 GiB that take no room on the disk", sparse_zip, 13),
    Case("10⁹ classes", "memory", "a head of 10⁹ classes, 4 TB that take no room on the disk",
         head_of(10**9, "F32", 4), 13),
    Case("10⁶ classes", "memory", "a head of 10⁶ classes that is within the limit of bytes",
         head_of(10**6, "I8", 1), 13, inspect=0),
    Case("cut off", "memory", "half a safetensors file", cut("weights.safetensors", 0.5), 12),
    Case("cut off, zip", "memory", "half a pickle", cut("weights.pt", 0.5), 12),
    Case("NaN", "memory", "a weight that is no number", not_finite(float("nan")), 14, inspect=0),
    Case("Inf", "memory", "a weight that is infinite", not_finite(float("-inf")), 14, inspect=0),
    Case("giant header", "safetensors", "a header of 2⁶² bytes", header_case(b"{}", length=1 << 62), 13),
    Case("long header", "safetensors", "a header of 100 MB", lambda p: header_file(p, b'{"' + b"a" * 10**8), 13),
    Case("overlap", "safetensors", "two tensors of the same bytes",
         header_case({**TWO, "b": tensor([2], 4, 12)}, bytes(12)), 12),
    Case("holes", "safetensors", "bytes between two tensors",
         header_case({**TWO, "b": tensor([2], 12, 20)}, bytes(20)), 12),
    Case("trailing bytes", "safetensors", "bytes behind the last tensor", header_case(TWO, bytes(17)), 12),
    Case("size mismatch", "safetensors", "more numbers than bytes",
         header_case({"a": tensor([1 << 20], 0, 8)}, bytes(8)), 12),
    Case("deep JSON", "safetensors", "100,000 brackets", header_case(b'{"a":' + b"[" * 100_000), 13),
    Case("name twice", "safetensors", "two tensors of one name",
         header_case(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                     b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)), 12),
    Case("shape [0, 2⁶²]", "safetensors", "an empty tensor whose strides overflow",
         header_case({"a": tensor([0, 1 << 62], 0, 0)}), 13),
    Case("100 axes", "safetensors", "a tensor of 100 axes", header_case({"a": tensor([1] * 100, 0, 4)}, bytes(4)), 13),
    Case("200,000 tensors", "safetensors", "200,000 empty ones", empty_tensors(200_000), 13),
    Case("30,000 tensors", "safetensors", "30,000 empty ones, in a header that is short enough",
         empty_tensors(30_000), 13),
    Case("endless number", "safetensors", "a shape of 100,000 digits",
         header_case(b'{"a":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,4]}}', bytes(4)), 12),
    Case("name with script", "safetensors", "a tensor called `<script>…`", with_name(SCRIPT), 16),
    Case("name with ANSI", "safetensors", "a tensor whose name clears the screen", with_name(ANSI), 16),
    Case("half a character", "safetensors", "a name that no terminal can show", half_a_character, 16),
    Case("TorchScript", "code", "a forward that writes a file", torchscript, 11),
    Case("torch.export", "code", "a `.pt2` with a harmful pickle of sample inputs", exported, 11),
    Case("GGUF", "other", "weights of another library", lambda p: p.file("weights.gguf", b"GGUF" + bytes(100)), 15),
    Case("HDF5", "other", "the same", lambda p: p.file("weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(100)), 15),
    Case("ONNX", "other", "the same", lambda p: p.file("weights.onnx", b"\x08\x08\x12\x07pytorch" + bytes(100)), 15),
    Case("pipe", "other", "a FIFO, which never ends", pipe, 2),
    Case("sound hub", "sound", "a folder of transformers as it should be", hub(lambda *_: None), 0, option=HUB),
    hub_case("pickle, hub", "its weights are a pickle only", hub_pickle, 10, allowed=0),
    hub_case("reduce, hub", "its weights are a pickle that runs code", hub_harmful_pickle, 10, allowed=11),
    hub_case("reduce, hub, renamed", "the same, named `model.safetensors`", hub_renamed, 11),
    hub_case("index, outside", "an index that names `../elsewhere.safetensors`",
             hub_index("../elsewhere.safetensors"), 12),
    hub_case("index, absolute", "an index that names a file from `/` on", hub_index("{}/elsewhere.safetensors"), 12),
    hub_case("link, hub", "weights that are a link to `/etc/passwd`", hub_link, 15),
    hub_case("code, hub", "`auto_map` names Python in the folder; the type is known: it is not read", hub_code(), 0),
    hub_case("code, hub, unknown", "the same, of a type that only this Python knows", hub_code(model_type="evil"), 2),
    hub_case("beside, hub", "harmful pickles and a tokenizer of 100,000 brackets beside the weights: not read",
             hub_beside, 0, allowed=11),
    hub_case("long JSON, hub", "a configuration of 20 MB",
             hub_text('{"model_type": "vit", "a": "' + "a" * (20 << 20) + '"}'), 12),
    hub_case("deep JSON, hub", "a configuration of 10,000 brackets",
             hub_text('{"a":' * 10_000 + "1" + "}" * 10_000), 13),
    hub_case("10⁹ layers, hub", "a configuration of 10⁹ layers", hub_config(num_hidden_layers=10**9), 13),
    hub_case("10⁶ px, hub", "a processor that asks for images of 10⁶ px",
             hub_config("preprocessor_config.json", size={"height": 10**6, "width": 10**6}), 13),
    image("200 megapixels", "a PNG of 200 megapixels in 30 kB", png_200_megapixels),
    image("cut off, JPEG", "half a JPEG", truncated_jpeg),
    image("link out", "a link to a picture outside of the folder", link_out),
    image("pipe, image", "a FIFO named `.jpg`", lambda folder: os.mkfifo(folder / "a.jpg")),
    image("folder loop", "a link to the folder itself", lambda folder: (folder / "a").symlink_to(folder)),
    image("text as JPEG", "a text file named `.jpg`", lambda folder: (folder / "a.jpg").write_text("no image")),
    image("one of five", "half a JPEG beside four images: it is named, the others are read", bad_beside_good, 0),
    image("16 bits", "greys of 16 bits: read", sixteen_bits, 0),
    image("CMYK", "colours of print: read", cmyk, 0),
    text("class with script", "a class called `</script>…`: shown as text", names(SCRIPT), 0),
    text("class with ANSI", "a class whose name clears the screen: shown without", names(ANSI), 0),
    text("class of 1 MB", "a name of a megabyte: shown cut", names("x" * 10**6), 0),
    text("half a class", "a name that no terminal can show",
         lambda p: p.file("labels.json", b'["\\ud800"' + b',"a"' * 9 + b"]")),
    text("deep labels", "100,000 brackets", lambda p: p.file("labels.json", b"[" * 100_000)),
    text("long labels", "8 GB of class names", long_labels),
    text("pipe, labels", "a FIFO as class names", pipe),
)  # fmt: skip


def cases_here() -> list[Case]:
    """All cases; without folders of the hub where transformers is not installed."""
    is_there = importlib.util.find_spec("transformers") is not None
    return [case for case in CASES if is_there or case.option != HUB]


# -- what comes of them --------------------------------------------------------------------------------


class Watch:
    """Whether anything was run: a file that a payload would write, a socket it would open, a pickler it would need."""

    def __init__(self, folder: Path) -> None:
        self.canary = folder / "canary"
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.events: list[str] = []
        sys.addaudithook(self._hear)

    @property
    def port(self) -> int:
        return self.listener.getsockname()[1]

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event in ("socket.__new__", "socket.connect", "socket.bind", "pickle.find_class"):
            self.events.append(event)

    def seen(self) -> dict[str, int]:
        """What happened since it was last asked."""
        connections = 0
        while True:
            try:
                self.listener.accept()[0].close()
                connections += 1
            except BlockingIOError:
                break
        events, self.events = [event for event in self.events if event != "socket.__new__" or not connections], []
        ran = self.canary.exists()
        self.canary.unlink(missing_ok=True)
        opened = connections + sum(event.startswith("socket.") for event in events)
        return {"executed": int(ran), "sockets": opened, "unpickled": events.count("pickle.find_class")}


def megabytes(field: str) -> float:
    """A field of this process's memory: VmRSS, or VmHWM for the most that it has been."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_seconds() -> float:
    """Of this process and of the children that have ended: a busy machine makes them few more, unlike the clock's."""
    return sum(os.times()[:4])


def commands(case: Case, path: Path, place: Place, good: Path) -> dict[str, list[str]]:
    """The commands that a case goes through."""
    given = {"--weights": str(good), "--samples": "noise"} | {case.option: str(path)}
    model = SOUND_MODEL
    if case.option == HUB:
        del given["--weights"]
        model = f"hf:{given.pop(HUB)}"
    pickled = path / "pytorch_model.bin"
    options = [word for pair in given.items() for word in pair]
    mapped = ["map", model, "0", *options, "--preset", "draft", "--steps", "1", "--batch", "2", "--device", "cpu"]
    found = {"map": [*mapped, "--out", str(place.folder / "run")]}
    if case.option == "--weights":
        found = {"inspect": ["inspect", str(path)], **found}
    if case.option in ("--weights", HUB):
        weights = ["--weights", str(pickled)] if case.option == HUB and pickled.exists() else []
        found["map --allow-pickle"] = [*mapped, *weights, "--allow-pickle", "--out", str(place.folder / "allowed")]
    if case.option == "--labels" and case.load == 0:
        found["report"] = ["report", str(place.folder / "run")]
    return found


def outcome(case: Case, place: Place, good: Path, watch: Watch) -> dict[str, Any]:
    """What the commands do with a case."""
    from typer.testing import CliRunner

    from agnosco.cli import app

    path = case.build(place)
    watch.seen()
    found: dict[str, Any] = {"name": case.name, "group": case.group, "bytes": path.lstat().st_size, "commands": {}}
    for name, words in commands(case, path, place, good).items():
        before, children = megabytes("VmRSS"), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
        began, worked = time.perf_counter(), cpu_seconds()
        result = CliRunner().invoke(app.app, words)
        found["commands"][name] = {
            "exit": result.exit_code,
            "stderr": result.stderr[:20_000],
            "stdout": result.stdout[:20_000],
            "bug": repr(result.exception) if not isinstance(result.exception, SystemExit | None) else None,
            "seconds": round(time.perf_counter() - began, 2),
            "cpu_seconds": round(cpu_seconds() - worked, 2),
            "megabytes": round(max(megabytes("VmHWM") - before, 0), 1),
            "child_megabytes": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 - children, 1),
        }
    report = place.folder / "run" / "report.html"
    if report.exists():
        found["page"] = report.read_text(encoding="utf-8")
    return found | watch.seen()


def run(folder: Path, group: str | None = None) -> dict[str, Any]:
    """Every case that can be tried here, or those of a group, and a proof that the payloads work where they are let."""
    cases = [case for case in cases_here() if group in (None, case.group) or case.group == "sound"]
    os.environ["AGNOSCO_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    watch = Watch(folder)
    outcomes = []
    good = sound(Place(folder, watch.canary, watch.port))
    # First the sound files, unmeasured: what libraries load when they are first used is not the files' doing.
    sounds = [case for case in cases if case.group == "sound"]
    for number, case in enumerate([*sounds, *cases]):
        place = Place(folder / str(number), watch.canary, watch.port)
        place.folder.mkdir()
        outcomes.append(outcome(case, place, good, watch))
    outcomes = outcomes[len(sounds) :]
    place = Place(folder / "proof", watch.canary, watch.port)
    place.folder.mkdir()
    torch.load(torch_saved(place, {"a": place.evil}), weights_only=False)
    proof = {"pickle": watch.seen()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(str(torchscript(place)))(torch.zeros(1))
    return {"outcomes": outcomes, "proof": proof | {"TorchScript": watch.seen()}}


if __name__ == "__main__":
    json.dump(run(Path(sys.argv[1]), *sys.argv[2:]), sys.stdout)
