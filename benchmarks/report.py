"""How a report of 1000 classes opens and scrolls in a browser.

    python benchmarks/report.py            make the maps (some minutes), write the report, open it in Debian's chromium
    python benchmarks/report.py --tables   write the table into benchmarks/README.md

The maps are real but small, SqueezeNet's of all its classes at 64 px with a few steps, in the run folder build/report.
What the browser needs is measured from outside, the median of five.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablation import ASSETS, RESULTS, ROOT, about, imagenet_network
from pages import made_on, markdown, put

import agnosco
from agnosco import Config, Samples, reports
from agnosco.runs.jobs import run_maps
from agnosco.runs.run import Run

SIZE, STEPS, REPEATS = 64, 12, 5
FOLDER = ROOT / "build" / "report"
PATH = RESULTS / "report.json"

PAINTED = """() => performance.getEntriesByName('first-contentful-paint')[0].startTime"""
SCROLLED = """async () => {
  const frames = [], bottom = document.documentElement.scrollHeight;
  document.documentElement.style.scrollBehavior = 'auto';
  let last = await new Promise(requestAnimationFrame);
  for (let step = 1; step <= 120; step++) {
    scrollTo(0, bottom * step / 120);
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - last);
    last = now;
  }
  return frames.sort((a, b) => a - b);
}"""
SEARCHED = """async () => {
  const begun = performance.now(), search = document.getElementById('search');
  search.value = 'dog';
  search.dispatchEvent(new Event('input'));
  await new Promise(requestAnimationFrame);
  return performance.now() - begun;
}"""


def written() -> Path:
    """The report of all classes."""
    classifier = imagenet_network("squeezenet1_1", SIZE)
    samples, _ = Samples.from_folder(ASSETS / "imagenet-samples", classifier.shape).split(0.9)  # few: to judge is dear
    config = Config(replace(agnosco.preset("draft").mapper, steps=STEPS), refine=None, cycles=1)
    run = Run.create(FOLDER, classifier=classifier, samples=samples, config=config)
    for _ in run_maps(run, classifier, samples, range(classifier.classes)):
        pass
    written, _ = reports.write([FOLDER], out=FOLDER / reports.FILE)
    return Path(written)


def opened(path: Path) -> list[dict[str, float]]:
    """What a browser needs, time after time, each in a fresh one."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as driver:
        for _ in range(REPEATS):
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"),
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            begun = time.perf_counter()
            page.goto(path.as_uri(), wait_until="load")
            loaded = time.perf_counter() - begun
            frames = page.evaluate(SCROLLED)
            found.append(
                {
                    "loaded, s": loaded,
                    "first painted, s": page.evaluate(PAINTED) / 1000,
                    "median frame while scrolling, ms": statistics.median(frames),
                    "longest frame while scrolling, ms": frames[-1],
                    "search, ms": page.evaluate(SEARCHED),
                }
            )
            browser.close()
    return found


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [[name, f"{value:.3g}"] for name, value in results["medians"].items()]
    head = f"{made_on(results)}. {results['classes']} classes, {results['bytes'] / 1e6:.1f} MB."
    return f"{head}\n\n{markdown(['in a browser', 'median of five'], rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true")
    if parser.parse_args().tables:
        put("benchmarks/README.md", "report", table(json.loads(PATH.read_text())))
        return
    path = written()
    each = opened(path)
    results = {
        "about": about("a report of all classes of SqueezeNet in chromium"),
        "classes": len({entry.index for entry in Run.open(FOLDER).entries}),
        "bytes": path.stat().st_size,
        "medians": {name: statistics.median(one[name] for one in each) for name in each[0]},
        "each": each,
    }
    PATH.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
