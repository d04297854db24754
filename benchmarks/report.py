"""How fast a browser opens and scrolls a report of 1000 classes.

    python benchmarks/report.py            make the maps (minutes), write the report, open it in Debian's chromium
    python benchmarks/report.py --tables   write the table into benchmarks/README.md

The maps are real but small: all classes of SqueezeNet at 64 px, with a few steps, in the run folder build/report. The
browser is measured from outside; figures are medians of five.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from common import (
    RESULTS,
    ROOT,
    about,
    argument_parser,
    fill,
    imagenet_network,
    markdown,
    measured_on,
    photographs,
    read_results,
    write_results,
)

import agnosco
from agnosco import Config
from agnosco.reports.page import FILE, report
from agnosco.runs.jobs import map_runs
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


def write_report() -> Path:
    """Write the report of all classes."""
    classifier = imagenet_network("squeezenet1_1", SIZE)
    samples, _ = photographs(classifier).split(0.9)  # few, because every map is judged by its held-out images
    config = Config(replace(agnosco.preset("draft").mapper, steps=STEPS), refine=None, cycles=1)
    run = Run.create(FOLDER, classifier=classifier, samples=samples, config=config)
    for _ in map_runs(run, classifier, samples, range(classifier.classes)):
        pass
    path = report(FOLDER, out=FOLDER / FILE)
    return Path(path)


def open_report(path: Path) -> list[dict[str, float]]:
    """Times of a browser that opens the report, several times, each in a new browser."""
    from playwright.sync_api import sync_playwright

    times = []
    with sync_playwright() as driver:
        for _ in range(REPEATS):
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"),
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            start = time.perf_counter()
            page.goto(path.as_uri(), wait_until="load")
            loaded = time.perf_counter() - start
            frames = page.evaluate(SCROLLED)
            times.append(
                {
                    "loaded, s": loaded,
                    "first painted, s": page.evaluate(PAINTED) / 1000,
                    "median frame while scrolling, ms": median(frames),
                    "longest frame while scrolling, ms": frames[-1],
                    "search, ms": page.evaluate(SEARCHED),
                }
            )
            browser.close()
    return times


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [[name, f"{value:.3g}"] for name, value in results["medians"].items()]
    head = f"{measured_on(results)}. {results['classes']} classes, {results['bytes'] / 1e6:.1f} MB."
    return f"{head}\n\n{markdown(['in a browser', 'median of five'], rows)}"


def main() -> None:
    if argument_parser(__doc__).parse_args().tables:
        fill("benchmarks/README.md", "report", table(read_results(PATH)))
        return
    path = write_report()
    each = open_report(path)
    results = {
        "about": about("a report of all classes of SqueezeNet in chromium"),
        "classes": len({entry.index for entry in Run.open(FOLDER).entries}),
        "bytes": path.stat().st_size,
        "medians": {name: median(times[name] for times in each) for name in each[0]},
        "each": each,
    }
    write_results(PATH, results)
    print(table(results))


if __name__ == "__main__":
    main()
