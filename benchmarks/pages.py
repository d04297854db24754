"""Tables of results in the documents, between the markers ``<!-- NAME -->`` and ``<!-- /NAME -->``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MANIFESTS = ROOT / "benchmarks" / "results" / "manifests"


def put(page: str, name: str, text: str) -> None:
    """Replace what stands between the markers of a name in a page, named from the root."""
    path = ROOT / page
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, rest = path.read_text(encoding="utf-8").split(opening, 1)
    after = rest.split(closing, 1)[1]
    path.write_text(f"{before}{opening}{text}\n{closing}{after}", encoding="utf-8")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def made_on(results: dict) -> str:
    """On what, with what and when the figures of a results file were measured, for the head of a table."""
    told = results["about"]
    return f"{told['hardware']}, torch {told['versions']['torch']}, {told['date']}"


def keep_manifest(run: Path) -> None:
    """Keep the manifest of a run folder beside the results; what lies in the repository is named from its root.

    A kept one of the same settings that names these maps and more stays: it is what larger figures were made from.
    """
    MANIFESTS.mkdir(exist_ok=True)
    path = MANIFESTS / f"{run.name}.json"
    text = (run / "manifest.json").read_text(encoding="utf-8").replace(f"{ROOT}/", "")
    if not path.exists() or not _holds(json.loads(path.read_text(encoding="utf-8")), json.loads(text)):
        path.write_text(text, encoding="utf-8")


def _holds(kept: dict, manifest: dict) -> bool:
    """Whether a manifest has the settings of another, all of its maps, and more."""
    had, has = ({(one["index"], one["seed"]) for one in each["maps"]} for each in (kept, manifest))
    return had > has and all(kept[part] == manifest[part] for part in ("config", "model", "samples"))
