"""Every hostile case of docs/security.md through the commands: nothing runs, nothing swells, each has its exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile
import pytest
from helpers import PATIENCE
from hostile import CASES, Case
from typer.testing import CliRunner

from agnosco.cli import app
from agnosco.models import loading
from agnosco.models.weights.limits import CODES, LIMITS
from agnosco.models.weights.opening import open_weights

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security.md"

MEGABYTES, CHILD_MEGABYTES = 64, 256
"""What a command may take beyond a sound file; and the process that opens pickles, beyond a sound one."""

TIMES = 20
"""How many times the processor time of a sound file a command may take: about twice is the most that any does."""

CHILD_SECONDS = 60
"""The most that the page may show, of the machine on which it was measured."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process found that ran all cases: the same commands, with torch imported once."""
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is measured in /proc")
    command = [sys.executable, str(Path(hostile.__file__)), str(tmp_path_factory.mktemp("hostile"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def outcomes(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in found["outcomes"]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", hostile.cases_here(), ids=lambda case: case.name)


def test_exit_codes(case: Case, outcomes: dict[str, dict[str, Any]]) -> None:
    commands = outcomes[case.name]["commands"]
    assert {name: one["exit"] for name, one in commands.items()} == case.expected()
    assert [one["bug"] for one in commands.values() if one["bug"]] == []


def test_nothing_is_run_and_no_socket_opened(case: Case, outcomes: dict[str, dict[str, Any]]) -> None:
    one = outcomes[case.name]
    assert (one["executed"], one["sockets"], one["unpickled"]) == (0, 0, 0)


def test_memory_and_time_stay_bounded(case: Case, outcomes: dict[str, dict[str, Any]]) -> None:
    """Measured by the sound files in the same process, since machines and libraries differ in what they take."""
    sound = outcomes["sound safetensors"]["commands"]
    usual = max(one["megabytes"] for one in sound.values())
    opening = outcomes["sound pickle"]["commands"]["map --allow-pickle"]["cpu_seconds"]
    assert usual < CHILD_MEGABYTES
    for name, one in outcomes[case.name]["commands"].items():
        assert one["megabytes"] < usual + MEGABYTES, name
        assert one["child_megabytes"] < CHILD_MEGABYTES, name
        assert one["cpu_seconds"] < TIMES * (opening if name.endswith("pickle") else sound["map"]["cpu_seconds"]), name


def test_a_refusal_is_two_plain_lines(case: Case, outcomes: dict[str, dict[str, Any]]) -> None:
    for name, one in outcomes[case.name]["commands"].items():
        shown = one["stderr"] + one["stdout"]
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown), name
        assert max(map(len, shown.splitlines())) < 2100, name
        if name.startswith("map") and one["exit"]:
            error, hint = one["stderr"].splitlines()
            assert error.startswith("Error: ")
            assert hint.startswith("Hint: ")


def test_inspect_names_what_it_found(outcomes: dict[str, dict[str, Any]]) -> None:
    said = {
        name: one["commands"]["inspect"]["stdout"] for name, one in outcomes.items() if "inspect" in one["commands"]
    }
    assert "found: nothing wrong" in said["sound safetensors"]
    assert "fits: agnosco:digits, 10 classes" in said["sound safetensors"]
    for name, word in {
        "reduce, zip": "code (imports): it is a pickle that runs __builtin__.exec",
        "decoys": "code (imports): it is a pickle that runs ?.?",
        "pickle + zip": "malformed (polyglot)",
        "TorchScript": "code (torchscript)",
        "torch.export": "code (torch-export)",
        "encrypted": "malformed (encrypted)",
        "flag bits": "malformed (flag-bits)",
        "bad CRC": "malformed (bad-crc)",
        "member outside": "malformed (member-path)",
        "deflate bomb": "limit (compressed): it is compressed, and would grow from",
        "overlap": "malformed (overlap)",
        "holes": "malformed (holes)",
        "trailing bytes": "malformed (trailing-bytes)",
        "deep JSON": "limit (json-depth)",
        "30,000 tensors": "limit (tensor-count)",
        "name with ANSI": "text (odd-name)",
    }.items():
        assert f"found: {word}" in said[name], name
        assert "Try:" not in outcomes[name]["commands"]["inspect"]["stderr"]


def test_the_payloads_would_have_worked(found: dict[str, Any]) -> None:
    """Where they are let: ``torch.load(weights_only=False)``, and calling TorchScript."""
    assert found["proof"]["pickle"]["executed"] == found["proof"]["TorchScript"]["executed"] == 1
    assert found["proof"]["pickle"]["sockets"] >= 1


def test_a_hostile_class_name_is_text_in_the_report(found: dict[str, Any]) -> None:
    """Its own test opens such a page in a browser; here it is the way from a file of names to the page."""
    pages = [one["page"] for one in found["outcomes"] if "page" in one]
    assert len(pages) == 3
    assert not any(hostile.SCRIPT in page or "\x1b" in page for page in pages)
    assert any("&lt;/script&gt;" in page for page in pages)
    assert max(map(len, pages)) < 2_000_000  # of which the manifest has one, as it is, to be taken out again


@pytest.mark.parametrize("allowed", [False, True])
def test_every_command_opens_pickles_only_if_that_is_allowed(
    allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = hostile.Place(tmp_path, tmp_path / "canary", 0)
    model, good, bad = hostile.SOUND_MODEL, str(hostile.sound(place)), str(hostile.sound_pickle(place))
    run, asked = str(tmp_path / "run"), []
    mapped = ["0", "--samples", "noise", "--preset", "draft", "--steps", "1", "--batch", "2", "--device", "cpu"]
    assert CliRunner().invoke(app.app, ["map", model, *mapped, "--weights", good, "--out", run]).exit_code == 0

    def recorded(path: str | Path, *, allow_pickle: bool) -> Any:
        asked.append((str(path), allow_pickle))
        return open_weights(path)

    monkeypatch.setattr(loading, "open_weights", recorded)
    for words in (
        ["map", model, *mapped, "--weights", bad, "--out", str(tmp_path / "other")],
        ["score", run, "--target", f"{model}={bad}"],
        ["sanity", run, "--model", f"{model}={bad}", "--samples", "noise"],
        ["scan", model, "--weights", bad, "--samples", "noise"],
        ["poison", model, "--weights", bad, "--out", str(tmp_path / "twins")],
    ):
        result = CliRunner().invoke(app.app, [*words, *["--allow-pickle"] * allowed])
        assert result.exit_code == 10, words[0]
        assert "--allow-pickle" in result.stderr.splitlines()[-1], words[0]
    assert asked == [(bad, allowed)] * 5


TELLS_ITS_PEAK = """
import sys
from pathlib import Path
from agnosco.cli.app import main
try:
    main()
finally:
    print(*(one for one in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in one), file=sys.stderr)
"""
"""The command, and the most memory that it had; ``ru_maxrss`` would be that of the process that started it, if more."""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured in /proc")
def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The command as it is typed: a bomb of 4 TiB takes no more memory than a sound file, and nobody is called."""
    watch = hostile.Watch(tmp_path)
    place = hostile.Place(tmp_path, watch.canary, watch.port)
    peaks = {}
    for path, code in ((hostile.sound(place), 0), (hostile.stride_0(place), 10), (hostile.renamed(place), 11)):
        command = [sys.executable, "-c", TELLS_ITS_PEAK, "inspect", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code
        peaks[code] = int(done.stderr.splitlines()[-1].split()[1]) / 1024
    assert max(peaks.values()) < peaks[0] + MEGABYTES
    assert (watch.canary.exists(), watch.seen()["sockets"]) == (False, 0)


def rows() -> list[list[str]]:
    """The table of docs/security.md, made by benchmarks/security.py."""
    table = PAGE.read_text(encoding="utf-8").split("<!-- cases -->")[1].split("<!-- /cases -->")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:] if "---" not in line]


def test_the_table_of_the_page_has_every_case_with_what_comes_of_it() -> None:
    expected = []
    for case in CASES:
        codes = case.expected()
        shown = [str(codes[name]) if name in codes else "" for name in ("inspect", "map", "map --allow-pickle")]
        expected.append([case.group, case.name, case.what, *shown, "no", "0"])
    assert [row[:-2] for row in rows()] == expected
    for row in rows():
        assert float(row[-2]) < CHILD_MEGABYTES
        assert float(row[-1]) < CHILD_SECONDS


def test_the_page_states_the_limits_and_the_codes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for kind, code in CODES.items():
        assert re.search(rf"^\| {code} \| {kind} \|", page, re.M), kind
    for value in vars(LIMITS).values():
        shown = f"{value >> 30} GiB" if value >= 1 << 30 else f"{value >> 20} MiB" if value >= 1 << 20 else f"{value:,}"
        assert re.search(rf"(?<![\d,]){re.escape(shown)}(?![\d,])", page), shown
