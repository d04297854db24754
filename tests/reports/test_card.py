"""The card: what it says of a run, what it leaves alone, and that no name breaks out of it."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path
from statistics import fmean
from typing import Any

import fsspec
import msgspec
import pytest
import torch
from helpers import guarded
from torch import Tensor, nn
from typer.testing import CliRunner

from agnosco.cli.app import app
from agnosco.data.samples import Samples
from agnosco.errors import AgnoscoError
from agnosco.evaluate.sanity_record import Labels, Level, SanityRecord, Seeds, Similarity
from agnosco.evaluate.score_record import Intervals, Judgement, add_scores, digest_of
from agnosco.io import records
from agnosco.method.concept import ConceptMap
from agnosco.method.config import Config, MapperConfig
from agnosco.models.classifier import Classifier
from agnosco.reports.card import PICTURES, card, opened
from agnosco.reports.markdown import CLOSING, OPENING, escaped, preformatted, with_section
from agnosco.runs.run import Run
from agnosco.types import Step

NAMES = ("tench", "castle", "crane")
HOSTILE = (
    "a | b", "`code`", "<script>alert(1)</script>", "line\n\n# heading", "](javascript:alert(1))", "![x](http://x.y)",
    "<!-- /agnosco -->", "**bold** __bold__ ~~gone~~", "www.example.com", "mail@example.com", "\\| \\` \\[",
    "&lt;b&gt;", "$$x$$", "---", "[x]: http://x.y", "\u202eevil", "-->", "# heading",
)  # fmt: skip
README = b"---\nlicense: mit\ntags:\n- image-classification\n---\n\n# My model\n\ntext  \nmore\n"


def network(names: tuple[str, ...]) -> Classifier:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((1, 2, 3))[:, None] * torch.arange(float(len(names)))

    return Classifier(Mean(), size=8, labels=names, name="planted")


def made(path: Path, names: tuple[str, ...] = NAMES, *, seeds: int = 2, mapped: int | None = None) -> Run:
    """A run with p = 0.1, 0.2 … and success rates 0.9, 0.8 … from class to class, seed by seed."""
    samples = Samples(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), source="nothing")
    config = Config(MapperConfig(batch=1, steps=1), refine=None, cycles=1)
    run = Run.create(path, classifier=network(names), samples=samples, config=config)
    for label, name in list(enumerate(names))[:mapped]:
        for seed in range(seeds):
            nu = torch.full((3, 8, 8), 0.1 * (1 + label))
            nu[:, :4] = -0.05 * (1 + seed)
            made = ConceptMap(nu, label, name, seed, 0.1 + 0.1 * label, {"map 1": nu}, (Step(1, 0.1, 0.0, 1.0, 1),))
            run.add(made, targeted_success_rate=0.9 - 0.1 * label - 0.05 * seed)
    run.end()
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return made(tmp_path / "run")


def text_of(run: Run) -> str:
    return Path(card(run)).read_text(encoding="utf-8")


def cells(text: str, first: str) -> list[str]:
    """The cells of the row of a table that begins with a cell."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def judgement(run: Run, target: str, *, source: bool = False, interval: Intervals | None = None) -> Judgement:
    return Judgement(
        target=target, fingerprint=target, shape=(3, 8, 8), run=digest_of(run), source=source, maps=6, classes=3,
        seeds=2, m_score=0.875, top1_of_concepts=0.75, top1=0.625, probability=0.4375, interval=interval,
        diversity=0.25, targeted_success_rate=None,
    )  # fmt: skip


def sanity_of(names: list[str]) -> SanityRecord:
    alike = Similarity(ssim=0.5, rank=0.25, features=0.75)
    return SanityRecord(
        classes=names, labels=Labels(right=1.0, own=0.9, other=0.1),
        seeds=Seeds(same_class=alike, other_class=alike), planted=[[0.9, 0.1], [0.2, 0.8]],
        cascade=[Level(stages=("fc",), similarity=Similarity(ssim=0.1, rank=0.0, features=0.3), probability=0.05)],
    )  # fmt: skip


def scan_of(run: Run, name: str = "castle") -> dict[str, object]:
    screen = {"reach": 1.0, "interval": [0.9, 1.0], "z": 12.0, "seeds": [1.0]}
    row = {"margin": 9.0, "screens": {"9 pixels": screen}, "at_random": False, "k90": None, "eps50": None}
    return {
        "model": {"name": "planted", "fingerprint": run.settings.model.fingerprint, "shape": [3, 8, 8]},
        "samples": {"source": "nothing", "count": 20}, "config": {}, "greatest_z": 12.0, "screened": [1],
        "effective_classes": 2.0, "other_signs": {"mm_bd": {"index": 1, "p_value": 0.01}, "final_layer": None},
        "verdict": {
            "outcome": "inconclusive", "label": 1, "z": 12.0, "p_value": 0.002, "calibrated": False,
            "reasons": ["too few images"],
        },
        "classes": [{"index": 1, "class": name, **row}], "candidates": [],
    }  # fmt: skip


# -- what it says ------------------------------------------------------------------------------------


def test_figures_are_those_of_the_entries(run: Run) -> None:
    text = text_of(run)
    rates = [0.9, 0.85, 0.8, 0.75, 0.7, 0.65]
    assert cells(text, "p of the picture, by the network itself") == ["6", "0.200", "0.100", "0.300"]
    assert cells(text, "targeted success rate on held-out images") == ["6", f"{fmean(rates):.3f}", "0.650", "0.900"]
    assert f"![castle]({PICTURES}/0001-castle-s0.png)<br>castle (1)<br>p 0.20, success 80%" in text
    assert "The run holds 6 maps of 3 classes; of each class, one seed is shown." in text


def test_fingerprints_versions_and_settings_are_those_of_the_manifest(run: Run) -> None:
    text, data = text_of(run), json.loads((run.path / "manifest.json").read_text())
    assert data["model"]["fingerprint"][:16] in cells(text, "weights")[0]
    assert data["samples"]["fingerprint"][:16] in cells(text, "samples")[0]
    assert cells(text, "versions") == [", ".join(f"{name} {version}" for name, version in data["versions"].items())]
    assert "There is no command line that makes this run again" in text


def test_the_command_is_that_of_the_manifest(run: Run) -> None:
    data = json.loads((run.path / "manifest.json").read_text())
    del data["check"]
    (run.path / "manifest.json").write_text(
        json.dumps(data | {"command": "demo", "model": data["model"] | {"name": "agnosco:digits"}})
    )
    assert "<pre><code>agnosco demo</code></pre>" in text_of(Run.open(run.path))


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    text = text_of(made(tmp_path / "run", seeds=1, mapped=2))
    for limit in (
        "Of the network's 3 classes, 1 have no map.",
        "There is one map of each class: how much chance changes it is not measured.",
        "No other network has judged these pictures.",
        "Whether the maps depend on what the network has learned was not checked.",
        "The network was not scanned for a backdoor.",
    ):
        assert f"- {limit}" in text
    assert "### Do other networks" not in text
    assert "### Is there a class" not in text


def test_what_was_measured_is_told_and_not_denied(run: Run) -> None:
    interval = Intervals(m_score=(0.8, 0.9), top1_of_concepts=(0.7, 0.8), top1=(0.6, 0.7), probability=(0.4, 0.5))
    add_scores(run, [judgement(run, "judge", interval=interval), judgement(run, "planted", source=True)])
    run.folder.write("sanity.json", records.encode(sanity_of(["tench", "crane"])))
    run.folder.write("scan.json", json.dumps(scan_of(run)).encode())
    text = text_of(run)
    assert cells(text, "judge")[:2] == ["6", "0.875 &#91;0.80, 0.90&#93;"]
    assert cells(text, "planted (source)") == ["6", "0.875", "0.750", "0.625", "0.438", "-", "0.25"]
    assert "In brackets: 95 % bootstrap intervals" in text
    assert cells(text, "randomized: fc alone") == ["0.10", "0.00", "0.30", "0.05"]
    assert "Checked with 2 classes: tench, crane." in text
    assert "100% of the pictures get their own class of the run (p 0.900)" in text
    assert "2 of 2 maps are most similar to their own template" in text
    assert "Outcome: inconclusive. Class 1 (castle) stands out most: z 12.0, p 0.002, uncalibrated." in text
    assert "Inconclusive: too few images." in text
    for denied in ("has judged these pictures", "was not checked", "was not scanned", "chance changes"):
        assert denied not in text


def test_a_judgement_of_the_source_is_none_of_another_network(run: Run) -> None:
    add_scores(run, [judgement(run, "planted", source=True)])
    assert "- No other network has judged these pictures." in text_of(run)


def test_maps_without_a_rate_are_counted(run: Run) -> None:
    run.entry_of = {job: msgspec.structs.replace(e, targeted_success_rate=None) for job, e in run.entry_of.items()}
    text = opened(run).section
    assert "6 of 6 maps have no targeted success rate." in text
    assert "targeted success rate on held-out images |" not in text


def test_a_scan_of_another_network_is_refused(run: Run) -> None:
    scan = scan_of(run)
    scan["model"] = {"name": "planted", "fingerprint": "another", "shape": [3, 8, 8]}
    run.folder.write("scan.json", json.dumps(scan).encode())
    with pytest.raises(AgnoscoError, match=r"scan\.json' is a scan of another network"):
        card(run)


def test_pictures_are_those_of_the_run_of_the_first_classes(run: Run, tmp_path: Path) -> None:
    path = Path(card(run, out=tmp_path / "card" / "mine.md", classes=2))
    pictures = sorted((tmp_path / "card" / PICTURES).iterdir())
    assert [picture.name for picture in pictures] == ["0000-tench-s0.png", "0001-castle-s0.png"]
    for picture in pictures:
        assert picture.read_bytes() == (run.path / "pictures" / picture.name).read_bytes()
    text = path.read_text()
    assert re.findall(r"\]\((agnosco[^)]*)\)", text) == [f"{PICTURES}/{picture.name}" for picture in pictures]
    assert "And 1 more class of this run." in text


def test_a_picture_is_drawn_from_its_map_not_from_a_file_that_may_be_another(run: Run) -> None:
    before = (run.path / "pictures/0000-tench-s0.png").read_bytes()
    (run.path / "pictures/0000-tench-s0.png").write_bytes(b"another")
    card(run)
    assert (run.path / PICTURES / "0000-tench-s0.png").read_bytes() == before
    content = (run.path / "maps/0000-tench-s0.safetensors").read_bytes()
    (run.path / "maps/0000-tench-s0.safetensors").write_bytes(content[:-1] + b"!")
    with pytest.raises(AgnoscoError, match="its digest is not that of its entry"):
        card(run)


# -- where it is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
def test_all_but_the_section_stays_byte_for_byte(run: Run, tmp_path: Path, newline: bytes, ending: bytes) -> None:
    readme = tmp_path / "repository" / "README.md"
    readme.parent.mkdir()
    before = README.rstrip(b"\n").replace(b"\n", newline) + ending.replace(b"\n", newline)
    readme.write_bytes(before)
    assert card(run, into=readme) == str(readme)
    first = readme.read_bytes()
    assert first.startswith(before)
    assert first.count(OPENING.encode()) == first.count(CLOSING.encode()) == 1
    assert (b"\r\n" in first) == (newline == b"\r\n")
    assert first.count(b"\n") == first.count(newline)
    after = b"## Below" + newline
    readme.write_bytes(first + after)
    card(run, into=readme, classes=1)
    changed = readme.read_bytes()
    assert changed != first + after
    card(run, into=readme)
    assert readme.read_bytes() == first + after  # the same run gives the same bytes again


def test_a_file_with_a_card_keeps_its_mode_and_a_link_to_it_stays(run: Run, tmp_path: Path) -> None:
    readme, link = tmp_path / "docs" / "model.md", tmp_path / "README.md"
    readme.parent.mkdir()
    readme.write_bytes(README)
    readme.chmod(0o604)
    link.symlink_to("docs/model.md")
    assert card(run, into=link) == str(link)
    assert link.is_symlink()
    assert OPENING in readme.read_text()
    assert readme.stat().st_mode & 0o777 == 0o604
    assert (tmp_path / PICTURES).is_dir()  # beside the file that was named


@pytest.mark.parametrize(
    "text",
    [
        f"{OPENING}\nnever closed\n", f"{CLOSING}\n", f"{CLOSING}\n{OPENING}\n",
        f"{OPENING}\n{CLOSING}\n{OPENING}\n{CLOSING}\n",
    ],
)  # fmt: skip
def test_damaged_markers_are_refused(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(AgnoscoError, match="does not have one line <!-- agnosco -->") as caught:
        card(run, into=tmp_path / "README.md")
    assert caught.value.hint == "remove these lines and what agnosco wrote between them"
    assert (tmp_path / "README.md").read_text() == text
    assert not (tmp_path / PICTURES).exists()


def test_markers_inside_a_line_are_text() -> None:
    before = f"see `{OPENING}`\n".encode()
    assert with_section(before, "new").startswith(before)


def test_a_file_of_another_kind_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(README)
    (tmp_path / "binary.md").write_bytes(b"\xff\xfe\x00")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"out": tmp_path / "README.md"}, "is not a card of agnosco"),
        ({"out": tmp_path / "model.safetensors"}, "is not a Markdown file"),
        ({"out": ""}, "is not a Markdown file"),
        ({"into": tmp_path / "model.bin"}, "is not a Markdown file"),
        ({"into": tmp_path / "missing.md"}, "there is no "),
        ({"into": "memory://README.md"}, "'memory://README.md' names no folder"),
        ({"out": "memory://card.md"}, "'memory://card.md' names no folder"),
        ({"into": tmp_path / "binary.md"}, "is not a text in UTF-8"),
        ({"into": tmp_path / "README.md", "out": tmp_path / "x.md"}, "both to a file of its own and into another"),
    ]
    for options, message in refused:
        with pytest.raises(AgnoscoError, match=message):
            card(run, **options)
    assert (tmp_path / "README.md").read_bytes() == README
    assert not (tmp_path / PICTURES).exists()


def test_a_card_of_its_own_is_written_again(run: Run) -> None:
    first = text_of(run)
    assert first.startswith(f"{OPENING}\n## ")
    assert first.endswith(f"\n{CLOSING}\n")
    assert text_of(run) == first


def test_a_run_without_maps_is_refused(tmp_path: Path) -> None:
    run = made(tmp_path / "run", mapped=0)
    with pytest.raises(AgnoscoError, match="has no maps"):
        card(run.path)


def test_a_card_goes_wherever_runs_go(run: Run) -> None:
    store = fsspec.filesystem("memory")
    store.put(f"{run.path}/", "/card-test/run/", recursive=True)
    assert card("memory://card-test/run") == "memory://card-test/run/card.md"
    store.pipe("/card-test/README.md", README)
    card("memory://card-test/run", into="memory://card-test/README.md")
    assert store.cat("/card-test/README.md").startswith(README)
    assert store.cat(f"/card-test/{PICTURES}/0000-tench-s0.png")[:4] == b"\x89PNG"


# -- names from anyone -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_and_means_nothing(name: str) -> None:
    text = escaped(name)
    assert not re.search(r"[<>\"|`\[\]*_~$@\\\n\u202e]|://|www\.", text)
    shown = " ".join(name.replace("\u202e", "").split())
    assert unescape(text) == shown


def test_no_name_breaks_out_of_the_section(tmp_path: Path) -> None:
    run = made(tmp_path / "run", HOSTILE, seeds=1)
    run.folder.write("sanity.json", records.encode(sanity_of(list(HOSTILE))))
    run.folder.write("scan.json", json.dumps(scan_of(run, HOSTILE[2] + HOSTILE[6] + HOSTILE[3])).encode())
    add_scores(run, [judgement(run, name) for name in HOSTILE])
    (tmp_path / "README.md").write_bytes(README)
    card(run, into=tmp_path / "README.md", classes=100)
    once = (tmp_path / "README.md").read_bytes()
    card(run, into=tmp_path / "README.md", classes=100)
    assert (tmp_path / "README.md").read_bytes() == once  # a name that closed the section would leave its rest behind
    text = once.decode()
    plain = text.replace(OPENING, "").replace(CLOSING, "").replace("<br>", "")
    assert not re.search(r"<(?!/?(?:pre|code)>)", plain)
    own = r"https://arxiv\.org/abs/2303\.17836|" + PICTURES + r"/[0-9a-z-]+\.png"
    assert all(re.fullmatch(own, link) for link in re.findall(r"\]\(([^)]*)\)", plain))
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# My model", "## What this network looks for in each class", "### Figures",
        "### Do other networks recognise the classes?", "### Do the maps depend on what the network has learned?",
        "### Is there a class that one fixed pattern reaches too easily?", "### Limits",
        "### How the pictures were made",
    ]  # fmt: skip
    grid = [line for line in text.splitlines() if line.startswith("| ![")]
    assert {line.count("|") for line in grid} == {5}


def test_preformatted_text_is_one_block() -> None:
    shown = preformatted('a </code></pre>\n\n<b> & "c" `d`')
    assert shown.count("\n") == 0
    assert shown.count("<") == 4
    assert (
        unescape(shown.removeprefix("<pre><code>").removesuffix("</code></pre>")) == 'a </code></pre>\n\n<b> & "c" `d`'
    )


# -- the command line --------------------------------------------------------------------------------


def test_the_command_writes_a_card_without_torch(run: Run) -> None:
    result = guarded("torch,torchvision,jinja2", "card", str(run.path))
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr.splitlines() == [f"Wrote {run.path}/card.md and 3 pictures beside it"]


def test_the_command_as_json_and_its_errors(run: Run, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    readme = tmp_path / "repository" / "README.md"
    readme.write_bytes(README)
    result = CliRunner().invoke(
        app, ["card", str(run.path), "--into", str(readme), "--classes", "1", "--json", "--quiet"]
    )
    assert json.loads(result.stdout) == {
        "card": str(readme), "pictures": [str(readme.parent / PICTURES / "0000-tench-s0.png")],
    }  # fmt: skip
    assert result.stderr == ""
    shutil.rmtree(run.path)
    result = CliRunner().invoke(app, ["card", str(run.path)])
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert error.endswith("is not a run folder: it has no manifest.json")
    assert hint == "Hint: make one with agnosco map"
