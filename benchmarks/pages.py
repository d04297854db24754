"""Tables of results in the documents, between the markers ``<!-- NAME -->`` and ``<!-- /NAME -->``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MANIFESTS = ROOT / "benchmarks" / "results" / "manifests"


def put(page: str, name: str, text: str) -> None:
    """Replace what stands between the markers of a name in a page of ``docs``."""
    path = DOCS / page
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
    """Keep the manifest of a run folder beside the results; what lies in the repository is named from its root."""
    MANIFESTS.mkdir(exist_ok=True)
    text = (run / "manifest.json").read_text(encoding="utf-8")
    (MANIFESTS / f"{run.name}.json").write_text(text.replace(f"{ROOT}/", ""), encoding="utf-8")
