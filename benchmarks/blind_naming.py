"""Blind naming: can somebody who sees only the pictures say which ImageNet classes they show?

    python benchmarks/blind_naming.py                    make the sheets: ours and Horama's at equal passes
    python benchmarks/blind_naming.py --score FILE --sheet 1 --by "who named"    count the right answers to a sheet
    python benchmarks/blind_naming.py --tables           write the table into docs/evidence.md

The pictures are of 30 random classes, on which nothing was chosen, of ResNet-18 at 224 px. Ours are those of ``quick``
in the run of benchmarks/table1.py; Horama's are made by ``fourier`` at its best crops, with as many passes. The
contrast of both is stretched in the same way. The sheets build/blind-naming/sheet-N.png show numbered pictures, each
sheet in another order, which a published seed decides, and do not say which method made them: that is in
build/blind-naming/key.json, which whoever names must not see. Give each sheet to somebody who has not seen the other.

An answer is a line ``number: name``. It is right if it is a name that ImageNet's label gives the class (``Tibetan
terrier, chrysanthemum dog``), or several of them; case, punctuation and articles do not count. No answer is a wrong
one. Answers go to benchmarks/results/blind-naming.json.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torchvision
from common import (
    RESULTS,
    ROOT,
    TABLE_CLASSES,
    add_row,
    argument_parser,
    fill,
    imagenet_network,
    markdown,
    measured_on,
    photographs,
    read_results,
)
from peers import BOX, CROPS_PER_STEP, horama
from PIL import Image
from table1 import complete_run
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.utils import save_image

import agnosco
from agnosco import Classifier
from agnosco.method.prepare import prepared, resolve_precision
from agnosco.method.render import contact_sheet, stretched, to_picture

FOLDER = ROOT / "build" / "blind-naming"
PATH = RESULTS / "blind-naming.json"
COLUMNS, TILE = 6, 224
METHODS = ("agnosco", "Horama")


# -- sheets -----------------------------------------------------------------------------------------


def our_patterns(name: str, network: Classifier, classes: Sequence[int]) -> list[Tensor]:
    """The patterns of ``quick``, seed 0, from the run of Table 1."""
    folder = f"imagenet-quick-{network.shape[1]}px-{name}"
    run = complete_run(folder, network, photographs(network), agnosco.preset("quick"), classes, seeds=1)
    return [run.map(label).pattern for label in classes]


def horama_patterns(name: str, network: Classifier, classes: Sequence[int]) -> list[Tensor]:
    """What the pictures of Horama's ``fourier`` add to grey; pictures that were saved are not made again."""
    faster = prepared(network, precision=resolve_precision("auto", network.device))
    passes = agnosco.preset("quick").passes
    side = network.shape[1]
    make = partial(horama, faster, None, side, BOX, passes // CROPS_PER_STEP)
    folder = FOLDER / f"horama-{passes}-passes-{side}px-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    patterns = []
    for label in classes:
        path = folder / f"{label}.png"
        if not path.exists():
            save_image(make(label, 0), path)
        patterns.append(decode_image(str(path), ImageReadMode.RGB) / 255 - 0.5)
    return patterns


def make_sheets(name: str, size: int, count: int) -> None:
    """Save a sheet of numbered pictures for each method, and the key."""
    network = imagenet_network(name, size)
    classes = TABLE_CLASSES[:count]
    patterns = dict(zip(METHODS, (f(name, network, classes) for f in (our_patterns, horama_patterns)), strict=True))
    sheets = {}
    for number, method in enumerate(random.Random("blind naming").sample(METHODS, len(METHODS)), 1):
        places = random.Random(f"blind naming, {method}").sample(range(count), count)
        tiles = [to_picture(stretched(patterns[method][place])) for place in places]
        sheet(tiles).save(FOLDER / f"sheet-{number}.png")
        sheets[str(number)] = {"method": method, "classes": [classes[place] for place in places]}
    passes = agnosco.preset("quick").passes
    key = {"title": f"{name} at {size} px, {passes:,} passes a picture", "sheets": sheets}
    (FOLDER / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")


def sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    """Pictures with numbers below."""
    return contact_sheet(tiles, [str(i + 1) for i in range(len(tiles))], columns=COLUMNS, tile=TILE)


# -- answers ----------------------------------------------------------------------------------------


def score(file: Path, number: int, by: str) -> None:
    """Store how many of the answers to a sheet are right."""
    key = json.loads((FOLDER / "key.json").read_text(encoding="utf-8"))
    shown = key["sheets"][str(number)]
    given = answers_of(file.read_text(encoding="utf-8"))
    answers = [
        {"class": label, "name": names_of(label)[0], "answer": given.get(i), "right": is_right(given.get(i, ""), label)}
        for i, label in enumerate(shown["classes"], 1)
    ]
    row = {"method": shown["method"], "by": by, "of": key["title"], "answers": answers}
    results = add_row(PATH, "Blind naming", f"{shown['method']}, {key['title']}, {by}", row)
    print(table(results))


def answers_of(text: str) -> dict[int, str]:
    """The answers of lines ``number: name``, by number; other lines do not count, and the first answer does."""
    found = re.findall(r"^[^\w\n]*(\d+) *[:.)][^\w\n]*(\w.*)$", text, flags=re.MULTILINE)
    return {int(number): answer.strip() for number, answer in reversed(found)}


def names_of(label: int) -> list[str]:
    """The names of an ImageNet class: torchvision's, and all those of ImageNet's label."""
    from timm.data.imagenet_info import ImageNetInfo

    name = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"][label]
    return [name, *ImageNetInfo("imagenet-1k").index_to_description(label).split(", ")]


def is_right(answer: str, label: int) -> bool:
    """Whether an answer is one of the names of a class, or several of them with commas between."""
    return {plain(name) for name in answer.split(",")} <= {plain(name) for name in names_of(label)}


def plain(text: str) -> str:
    """A name in lower case, without punctuation or an article."""
    return re.sub(r"^(a|an|the) ", "", " ".join(re.findall(r"[a-z0-9]+", text.lower())))


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = []
    for row in results["rows"].values():
        wrong = [f"{each['name']} ({each['answer'] or 'none'})" for each in row["answers"] if not each["right"]]
        right = f"{len(row['answers']) - len(wrong)} of {len(row['answers'])}"
        rows.append([row["method"], row["of"], row["by"], right, ", ".join(wrong)])
    head = ["pictures", "of", "named by", "right", "not named (answer)"]
    return f"{measured_on(results)}.\n\n{markdown(head, rows)}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--source", default="resnet18", help="an ImageNet network of the assets")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--classes", type=int, default=30, help="how many of the random classes, at most 40")
    parser.add_argument("--score", type=Path, metavar="FILE", help="answers to a sheet, a line `number: name` each")
    parser.add_argument("--sheet", type=int, choices=(1, 2), help="which sheet was named")
    parser.add_argument("--by", help="who named it")
    options = parser.parse_args()
    run(options, parser)


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Do what was asked for."""
    if options.tables:
        fill("docs/evidence.md", "blind-naming", table(read_results(PATH)))
    elif not options.score:
        make_sheets(options.source, options.size, options.classes)
    elif options.sheet and options.by:
        score(options.score, options.sheet, options.by)
    else:
        parser.error("--score needs --sheet and --by")


if __name__ == "__main__":
    main()
