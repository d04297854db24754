"""Samples from a tar: planted colours, what is skipped and why, and nothing that leaves the archive."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from agnosco.data import archives
from agnosco.data.files import Skipped, find_files
from agnosco.data.samples import Samples, read_folder
from agnosco.errors import AgnoscoError, AgnoscoWarning

SHAPE = (1, 2, 2)


def picture(level: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (3, 3), level).save(content, "png")
    return content.getvalue()


def packed(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    """A tar of contents by name, or of other members."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def announced(kind: bytes, size: int) -> bytes:
    """The header of something of a kind and a size, in bytes, which follows."""
    info = tarfile.TarInfo("announced")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def levels(samples: Samples) -> list[int]:
    return samples.images[:, 0, 0, 0].tolist()


def test_images_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    path = packed(tmp_path / "shard.tar", {"b/2.png": picture(20), "a.PNG": picture(10), "b/1.png": picture(15)})
    samples = Samples.from_folder(path, SHAPE)
    assert levels(samples) == [10, 15, 20]
    assert (samples.source, samples.skipped) == ("shard.tar", ())


def test_what_is_skipped_is_said_and_nothing_leaves_the_archive(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(99))
    folder = tmp_path / "in"
    folder.mkdir()
    members: dict[str, bytes | tarfile.TarInfo] = {
        "../up.png": picture(7),  # a name, and not a place
        "000.cls": b"3",
        "bad.png": b"no image",
        ".hidden.png": picture(1),
        "link.png": special(tarfile.SYMTYPE, str(secret)),
        "hard.png": special(tarfile.LNKTYPE, str(secret)),
        "pipe.png": special(tarfile.FIFOTYPE),
        "disk.png": special(tarfile.BLKTYPE),
        "folder": special(tarfile.DIRTYPE),
    }
    path = packed(folder / "x.tar", members)
    before = sorted(tmp_path.rglob("*"))
    with pytest.warns(AgnoscoWarning, match="skipped in 'x.tar', which gave 1 images: .* and 4 more"):
        samples = Samples.from_folder(path, SHAPE)
    assert levels(samples) == [7]
    assert samples.skipped == tuple(
        Skipped(name, reason)
        for name, reason in [
            (".hidden.png", "hidden"),
            ("000.cls", "not an image's name"),
            ("bad.png", "not an image"),
            ("disk.png", "not a regular file"),
            ("hard.png", "link, not followed"),
            ("link.png", "link, not followed"),
            ("pipe.png", "not a regular file"),
        ]
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_subset_is_the_one_of_a_folder_with_the_same_names(tmp_path: Path) -> None:
    pictures = {f"{i:02}.png": picture(i) for i in range(30)}
    (tmp_path / "folder").mkdir()
    for name, content in pictures.items():
        (tmp_path / "folder" / name).write_bytes(content)
    path = packed(tmp_path / "x.tar", dict(reversed(pictures.items())))
    with pytest.warns(AgnoscoWarning, match="5 of 30 files in 'x.tar' were chosen by their names"):
        samples = Samples.from_folder(path, SHAPE, limit=5)
    assert levels(samples) == [int(name[:2]) for name in find_files(tmp_path / "folder", limit=5).files]
    assert samples.source == "x.tar (5 of 30 files)"


def test_a_second_member_of_a_name_is_skipped(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for level in (5, 6):
            info = tarfile.TarInfo("a.png")
            info.size = len(picture(level))
            tar.addfile(info, io.BytesIO(picture(level)))
    images, folder = read_folder(tmp_path / "x.tar", SHAPE)
    assert images[:, 0, 0, 0].tolist() == [5]
    assert (folder.total, folder.skipped, folder.skipped_count) == (
        1, [Skipped("a.png", "a second one of this name")], 1
    )  # fmt: skip


def test_large_members_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", len(picture(1)))
    path = packed(tmp_path / "x.tar", {"a.png": picture(1), "b.png": picture(2) + b" "})
    assert read_folder(path, SHAPE)[1].skipped == [Skipped("b.png", f"more than {len(picture(1))} bytes")]


def test_what_is_no_whole_tar_is_refused_in_two_lines(tmp_path: Path) -> None:
    whole = packed(tmp_path / "x.tar", {f"{i}.png": picture(i) + bytes(2000) for i in range(3)}).read_bytes()
    second = whole.index(b"1.png")
    damaged = {"flipped.tar": whole[:second] + b"7" + whole[second + 1 :], "header.tar": whole[: second + 100]}
    damaged |= {"cut.tar": whole[:4000], "none.tar": b"no tar" * 200, "void.tar": b""}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AgnoscoError, match=f"cannot read {name}: ") as caught:
            Samples.from_folder(tmp_path / name, SHAPE)
        assert "\n" not in caught.value.message
    with pytest.raises(AgnoscoError, match=r"no readable image in .*'a.txt' \(not an image's name\)"):
        Samples.from_folder(packed(tmp_path / "t.tar", {"a.txt": b"x"}), SHAPE)
    with pytest.raises(AgnoscoError, match="a limit of 0 leaves no samples"):
        Samples.from_folder(tmp_path / "x.tar", SHAPE, limit=0)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("first", [True, False], ids=["first", "behind an image"])
def test_a_giant_header_is_refused_unread(kind: bytes, first: bool, tmp_path: Path) -> None:
    path = packed(tmp_path / "giant.tar", {} if first else {"a.png": picture(10)})
    size = 4 * 2**30
    with path.open("r+b") as file:
        file.seek(0 if first else 1024)  # behind a header and a block
        file.write(announced(kind, size))
        file.truncate(size + 4096)  # which takes no space on the disk
    tracemalloc.start()
    with pytest.raises(
        AgnoscoError, match=r"cannot read giant\.tar: a header is larger than 1,048,576 bytes"
    ) as caught:
        Samples.from_folder(path, SHAPE)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "a header is damaged"), (b"9999999\n" + b"0\n" * 2**20, "a header is larger")],
    ids=["nothing", "too much"],
)
def test_a_map_of_holes_that_says_nothing_or_too_much_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    path = tmp_path / "holes.tar"
    path.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + content)
    with path.open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(AgnoscoError, match=message):
        Samples.from_folder(path, SHAPE)


def test_headers_that_only_announce_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "chain.tar"
    path.write_bytes(announced(tarfile.XHDTYPE, 0) * 1500)
    with pytest.raises(AgnoscoError, match=r"cannot read chain\.tar: a header is damaged"):
        Samples.from_folder(path, SHAPE)


def test_long_names_are_read(tmp_path: Path) -> None:
    name = "/".join(["folder" * 20] * 20) + "/a.png"
    path = packed(tmp_path / "long.tar", {name: picture(30), "b.png": picture(20)})
    assert levels(Samples.from_folder(path, SHAPE)) == [20, 30]
