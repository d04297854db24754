"""Repositories that are fetched: from a stub of the hub on this machine, which keeps what it was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, SOURCES

transformers: Any = pytest.importorskip("transformers")
timm: Any = pytest.importorskip("timm")

COMMIT, OLD = "c0ffee" + "0" * 34, "0ddba11" + "0" * 33
REVISIONS = {"main": COMMIT, COMMIT: COMMIT, "v1": OLD, OLD: OLD}

LOADS = """
import json, sys, warnings
from agnosco.errors import AgnoscoError
from agnosco.models.loading import load
warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    try:
        classifier = load(name)
        said = {"name": classifier.name, "labels": classifier.labels}
    except AgnoscoError as error:
        said = {"message": error.message, "hint": error.hint, "code": error.exit_code}
    print(json.dumps(said))
"""
"""Loads one classifier after another: huggingface_hub reads its settings once, when it is imported."""


class Hub(ThreadingHTTPServer):
    """A hub of the repositories in a folder: ``folder/ORG/NAME/FILE``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.asked: list[str] = []

    def found(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of an address."""
        repository, separator, rest = path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository == "stub/gated":
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if not separator or not (self.folder / repository).is_dir():
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in REVISIONS:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        headers = {"X-Repo-Commit": REVISIONS[revision]}
        file = self.folder / repository / name
        if not file.is_file():
            return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
        content = file.read_bytes()
        return 200, headers | {"ETag": f'"{name}-{len(content)}"'}, content


class Answer(BaseHTTPRequestHandler):
    server: Any  # a Hub

    def do_GET(self) -> None:
        if self.path != "/api/agent-harnesses":  # a list that huggingface_hub keeps, once a day, whatever is loaded
            self.server.asked.append(f"{self.command} {self.path}")
        status, headers, content = self.server.found(self.path)
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16,
        id2label={0: "a", 1: "b", 2: "c"},
    )  # fmt: skip
    transformers.utils.logging.disable_progress_bar()
    model = transformers.ViTForImageClassification(config)
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    for name, options in {"vit": {}, "shards": {"max_shard_size": "20KB"}, "pickled": {}}.items():
        model.save_pretrained(folder / "stub" / name, **options)
        processor.save_pretrained(folder / "stub" / name)
        (folder / "stub" / name / "pytorch_model.bin").write_bytes(b"a pickle")
        (folder / "stub" / name / "modeling.py").write_text("raise SystemExit(99)")
    (folder / "stub" / "pickled" / "model.safetensors").unlink()
    small = timm.create_model("test_vit", num_classes=3)
    timm.models.save_for_hf(small, str(folder / "stub" / "timm"), safe_serialization=True)
    (folder / "stub" / "empty").mkdir()
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def loaded(hub: Hub, home: Path, *names: str, **settings: str) -> list[dict[str, Any]]:
    """What comes of loading names, in a process whose hub is the stub."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("proxy") and key[:3] != "HF_"}
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home), "PYTHONPATH": SOURCES}
    own |= {"HF_HUB_ETAG_TIMEOUT": str(PATIENCE), "HF_HUB_DOWNLOAD_TIMEOUT": str(PATIENCE)}
    command = [sys.executable, "-c", LOADS, *names]
    done = subprocess.run(
        command, capture_output=True, text=True, env=kept | own | settings, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


FAILURES = {
    "hf:stub/none": ("there is no folder and no repository 'stub/none'", "check the name", 2),
    "hf:stub/vit@v9": ("stub/vit has no revision 'v9'", "give a branch, a tag or a commit of it", 2),
    "hf:stub/gated": ("stub/gated is gated", "accept its terms on the hub and log in", 2),
    "hf:stub/empty": ("stub/empty has no config.json", "give a repository", 2),
    "hf:stub/pickled": ("stub/pickled has no model.safetensors", "ask its owner for safetensors", 10),
    "hf:stub/timm": ("stub/timm is a model of timm", "give timm:hf-hub:stub/timm", 2),
    "hf:../vit": ("there is no folder '../vit'", "ORG/NAME", 2),
    "hf:stub/vit/more": ("there is no folder 'stub/vit/more'", "ORG/NAME", 2),
    "hf:stub--vit..": ("there is no folder", "ORG/NAME", 2),
    "hf:-/-": ("there is no folder and no repository", "check the name", 2),
    "hf:": ("there is no folder ''", "ORG/NAME", 2),
}


@pytest.fixture(scope="module")
def first(hub: Hub, home: Path) -> dict[str, dict[str, Any]]:
    """Sound names and wrong ones, of an empty cache; and the addresses that were asked for, as ``asked``."""
    names = ["hf:stub/vit", "hf:stub/vit@v1", "hf:stub/shards", "timm:hf-hub:stub/timm", *FAILURES]
    said = dict(zip(names, loaded(hub, home, *names), strict=True))
    return said | {"asked": {"of": list(hub.asked)}}


def test_the_commit_is_part_of_the_name(first: dict[str, dict[str, Any]]) -> None:
    labels = ["a", "b", "c"]
    assert first["hf:stub/vit"] == {"name": f"hf:stub/vit@{COMMIT}", "labels": labels}
    assert first["hf:stub/vit@v1"] == {"name": f"hf:stub/vit@{OLD}", "labels": labels}
    assert first["hf:stub/shards"] == {"name": f"hf:stub/shards@{COMMIT}", "labels": labels}
    assert first["timm:hf-hub:stub/timm"]["name"] == f"timm:hf-hub:stub/timm@{COMMIT}"


@pytest.mark.parametrize("name", FAILURES)
def test_what_cannot_be_fetched_is_said_in_two_lines(name: str, first: dict[str, dict[str, Any]]) -> None:
    message, hint, code = FAILURES[name]
    said = first[name]
    assert message in said["message"]
    assert hint in said["hint"]
    assert said["code"] == code


def test_nothing_but_json_and_safetensors_is_asked_for(first: dict[str, dict[str, Any]]) -> None:
    asked = first["asked"]["of"]
    assert {path.rpartition(".")[2] for path in asked} == {"json", "safetensors"}
    got = {path.rpartition("/")[2] for path in asked if path.startswith("GET /stub/vit/")}
    assert got == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_after_the_first_file_all_are_of_its_commit(first: dict[str, dict[str, Any]]) -> None:
    later = [path for path in first["asked"]["of"] if "/stub/vit/" in path and not path.endswith("/config.json")]
    assert {path.split("/resolve/")[1].split("/")[0] for path in later} == {COMMIT, OLD}


def test_what_is_here_is_not_fetched_again(first: dict[str, dict[str, Any]], hub: Hub, home: Path) -> None:
    """And without a network, what is here is loaded, and what is not is said."""
    before = len(hub.asked)
    assert loaded(hub, home, "hf:stub/vit") == [first["hf:stub/vit"]]
    assert [path for path in hub.asked[before:] if not path.startswith("HEAD ")] == []
    before = len(hub.asked)
    here, absent = loaded(hub, home, "hf:stub/vit", "hf:stub/other", HF_HUB_OFFLINE="1")
    assert here == first["hf:stub/vit"]
    assert absent["message"] == "cannot download config.json of stub/other"
    assert "give its folder: hf:DIR" in absent["hint"]
    assert hub.asked[before:] == []
