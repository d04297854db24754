"""Records: JSON of known types, or a two-line error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agnosco.errors import AgnoscoError
from agnosco.io import records
from agnosco.io.records import Record
from agnosco.io.storage import Folder


class Point(Record, frozen=True):
    x: float
    y: float


class Figure(Record, frozen=True, rename={"name": "class"}):
    name: str
    count: int
    corners: tuple[Point, ...]
    height: float | None = None

    def __post_init__(self) -> None:
        if self.count != len(self.corners):
            raise ValueError("count is not the number of corners")


LINE = Figure(name="line \udcff", count=2, corners=(Point(x=0.0, y=1e-3), Point(x=-2.5, y=1e299)))
TEXT = b"""{
 "class": "line \\udcff",
 "corners": [
  {
   "x": 0.0,
   "y": 0.001
  },
  {
   "x": -2.5,
   "y": 1e+299
  }
 ],
 "count": 2,
 "height": null
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.of(tmp_path)


def test_a_record_is_readable_json_and_comes_back(folder: Folder) -> None:
    assert folder.write("line.json", records.encode(LINE)) == folder.at("line.json")
    assert folder.read("line.json") == TEXT
    assert records.read(folder, "line.json", Figure, hint="draw it again") == LINE
    assert records.read(folder, "none.json", Figure, hint="draw it again") is None


def changed(**changes: object) -> bytes:
    return json.dumps(json.loads(TEXT) | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"class": "line"}',
        changed(count=2.0),
        changed(count=True),
        changed(count="2"),
        changed(count=3),
        changed(height="1"),
        changed(height=float("nan")),
        changed(height=float("-inf")),
        changed(height=10**400),
        changed(height=10**301),
        changed(count=10**301, corners=[]),
        changed(corners=[{"x": 0.0}]),
        changed(unknown=float("nan")),
        TEXT.replace(b"null", b"1e400"),
        TEXT.replace(b"null", b"1" * 5000),
        TEXT.replace(b"null", b"[" * 100_000),
        TEXT.replace(b"null", b"[" * 900 + b"]" * 900),
        b'{"unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda content: repr(content[:40]),
)
def test_damage_and_other_versions_are_two_lines(folder: Folder, content: bytes) -> None:
    folder.write("line.json", content)
    with pytest.raises(AgnoscoError) as caught:
        records.read(folder, "line.json", Figure, hint="draw it again")
    assert caught.value.message == f"cannot read {folder.at('line.json')!r}: it is damaged, or of another version"
    assert caught.value.hint == "draw it again"


def test_unknown_keys_are_ignored(folder: Folder) -> None:
    folder.write("line.json", changed(colour="red"))
    assert records.read(folder, "line.json", Figure, hint="") == LINE


def test_nothing_that_is_not_finite_is_encoded() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        records.encode(Point(x=float("nan"), y=0.0))
