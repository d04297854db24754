"""The report, the card and the check of run folders that were made to do harm: nothing runs, and nobody is called.

Each folder is sound by its digests: whoever makes one can compute them. All its texts are hostile, and in half of the
folders its numbers, too.
"""

from __future__ import annotations

import base64
import io
import json
import random
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.numpy
from PIL import Image, PngImagePlugin
from test_report import SANITY, made, network, put_diff, scan_of
from typer.testing import CliRunner, Result

from agnosco.cli.app import app
from agnosco.evaluate import diff_record, facet_record, sample_record, sanity_record, score_record
from agnosco.evaluate.score_record import Answer, add_scores, digest_of
from agnosco.evaluate.transfer import score
from agnosco.io.local import Local
from agnosco.io.records import to_json
from agnosco.method.config import config_to_json, preset
from agnosco.reports import page as pages
from agnosco.runs.manifest import Entry, MadeWith, Settings, sealed, stem_of, write_entry, write_manifest
from agnosco.runs.run import Run
from agnosco.runs.tensors import KEY

CLASSES = 5
DATED = "<p hidden>polyglot</p>"
BIDI = "[\u202a-\u202e\u2066-\u2069]"


def payloads(port: int) -> tuple[str, ...]:
    """Texts that would run, load, or change what is read, wherever they were taken for more than text."""
    there = f"http://127.0.0.1:{port}/x"
    return (
        "</script><script>window.hit=1</script>",
        f'"><img src={there} onerror=window.hit=1>',
        f"'><img src='{there}' onerror='alert(1)'>",
        f"</style><style>@import url({there}); * {{ background: url({there}) }}</style>",
        "</title><script>window.hit=2</script>",
        "</template></dialog><script>window.hit=3</script>",
        "</textarea></noscript><svg onload=window.hit=4><script>window.hit=5</script></svg>",
        "javascript:window.hit=6",
        'x" onmouseover="window.hit=7" autofocus onfocus="window.hit=8" x="',
        f'<link rel=stylesheet href="{there}"><base href="{there}">',
        f'<iframe srcdoc="<script>parent.hit=9</script>" src="{there}"></iframe><object data="{there}"></object>',
        f'<form action="{there}"><button autofocus>x</button></form><a href="{there}" ping="{there}">x</a>',
        f"}}; * {{ background: url({there}) }} /*",
        "p{{7*7}}q p{{ 7*7 }}q ${7*7} #{7*7} <%= 7*7 %>{% include '/etc/passwd' %}{{ config.__class__.__init__ }}",
        "&lt;script&gt;window.hit=10&lt;/script&gt; &#60;img src=x onerror=window.hit=11&#62;",
        "nul\0 \x1b]0;owned\x07\x1b[2J\x08\x7f\x9b31m",
        "right \u202e12.0\u202c \u2066left\u2069 \u202d",
        "half \ud800 of \udfff a character",
        "<!-- --!> <![CDATA[ ]]> <!--<script>",
        "x" * 100_000,
        "=1+cmd|' /C calc'!A0",
        "]]]\\\\\\' \" ` $(reboot) ;reboot\n\n| * _ [x](javascript:alert(1)) ![x](http://127.0.0.1)",
        "\u2028window.hit=12\u2029",
        f'<meta http-equiv="refresh" content="0;url={there}"><link rel="preconnect" href="{there}">',
        "",
    )


# -- folders ---------------------------------------------------------------------------------------------

FREE_KEYS = ("versions", "overrides", "files", "screens")
"""Objects whose keys are texts, too."""

KEPT = ("config", "preset", "sha256", "check", "run", "fingerprint", "outcome", "stages", "parameterization")
"""What has to be as it is, or fits to something else, lest the folder be refused."""

NUMBERS = (0.0, -0.0, -1.0, 1e299, -1e299, 1e-300, 0.5, 12345.678)
PROBABILITIES = ("top", "held_out", "entropy", "planted")
"""Where a number must be between 0 and 1, or decides how often something is done."""


@dataclass
class Hostility:
    """Puts hostile texts, and numbers, in the place of others, each time others, by chance.

    Args:
        texts: To choose from; none of them is left out of a folder that has as many texts.
        numbers: Whether numbers are replaced as well.
    """

    texts: tuple[str, ...]
    chance: random.Random
    numbers: bool = False
    keys: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def text(self, *, unlike: str = "(?!)") -> str:
        """A text without such characters."""
        if not self.left:
            self.left += self.chance.sample(self.texts, len(self.texts))
        return re.sub(unlike, "", self.left.pop())

    def of(self, value: Any) -> Any:
        """JSON in which all is hostile that may be."""
        if isinstance(value, dict):
            return {name: each if name in KEPT else self._field(name, each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.of(each) for each in value]
        if isinstance(value, str):
            return self.text()
        return self.chance.choice(NUMBERS) if self.numbers and isinstance(value, float) else value

    def _field(self, name: str, value: Any) -> Any:
        if name in PROBABILITIES:
            return Hostility(self.texts, self.chance, keys=self.keys, left=self.left).of(value)
        if name in FREE_KEYS:
            return {self.keys.setdefault(key, f"{self.text()} {key}"): self.of(each) for key, each in value.items()}
        return self.of(value)


def judged(run: Run, classes: int) -> None:
    """Two networks say of each map what else they see in it."""
    scores = score(run, network(tuple(f"class {i}" for i in range(classes))))
    answers = [
        Answer(
            own=e.index,
            entropy=1.0,
            top=((e.index, "own", 0.5), ((e.index + 1) % classes, "next", 0.2), (99, "o", 0.1)),
        )
        for e in run.entries
    ]
    changes = {"answers": tuple(answers)}
    add_scores(run, [msgspec.structs.replace(scores, target=who, fingerprint=who, **changes) for who in ("one", "two")])


def records_of(run: Run, names: list[str]) -> dict[str, Any]:
    """Facets, samples, sanity checks and a scan of a run, as JSON."""
    strongest = [{"sample": i, "alpha": 1.5} for i in range(3)]
    samples = [{"index": i, "value": 0.5} for i in range(3)]
    alike = {"ssim": 0.1, "rank": 0.1, "features": 0.1}
    return {
        facet_record.FILE: {"layer": "fc", "classes": [
            {"index": i, "class": "husky", "given": 1, "samples": 20, "nudged": bool(i % 2), "facets": [
                {"name": name, "number": 1, "logit_share": 0.5, "variance_share": 0.5, "strongest": strongest}]}
            for i, name in enumerate(names)]},
        sample_record.FILE: {
            "source": "nothing", "fingerprint": "f", "seen": 1, "count": 20, "scores": False,
            "maps": {e.stem: {"sha256": e.sha256, "most": samples, "moved": samples, "unmoved": samples}
                     for e in run.entries}},
        sanity_record.FILE: SANITY | {
            "classes": names, "cascade": [{"stages": ["fc", "conv"], "similarity": alike, "probability": 0.5}]},
        "scan.json": scan_of(run),
    }  # fmt: skip


def polyglot(text: str, size: tuple[int, int]) -> bytes:
    """A picture that also holds a page."""
    content, notes = io.BytesIO(), PngImagePlugin.PngInfo()
    notes.add_text("Comment", text)
    Image.new("RGB", size, "#336699").save(content, "png", pnginfo=notes)
    return content.getvalue() + text.encode(errors="replace") + DATED.encode()


def base(path: Path, classes: int) -> tuple[Run, Run]:
    """A sound run with everything that a report shows, and one that it was compared with."""
    names = tuple(f"class {i}" for i in range(classes))
    first = made(path / "first", names, name="first", seeds=1)
    run = made(path / "base", names, seeds=1 if classes > CLASSES else 2)
    for each in (first, run):
        each.end()
    judged(run, classes)
    if classes == CLASSES:
        put_diff(first, run)
    for file, content in records_of(run, list(names)).items():
        (run.path / file).write_text(json.dumps(content))
    for name in (
        "scan.png",
        "sanity.png",
        *(f"samples/{e.stem}{kind}.png" for e in run.entries for kind in ("", "-facet")),
    ):
        run.folder.write(name, polyglot("<script>window.hit=20</script>", (3 * 96, 3 * 96)))
    return first, run


def hostile(run: Run, target: Path, hostility: Hostility) -> Run:
    """A copy of a run whose texts are hostile, and whose digests agree all the same."""
    settings = hostility.of(to_json(run.settings))
    model = settings["model"]
    model |= {key: hostility.text() for key in ("fingerprint", "weights", "at", "directions", "labels", "prompts")}
    settings |= {"command": "map", "preset": "paper", "overrides": {}}  # such that the page shows a command
    settings["config"] = to_json(config_to_json(preset("paper")))
    settings = msgspec.convert(settings, Settings)
    names = {entry.index: hostility.text() for entry in run.entries}
    names = {index: f"{name}{index}" if list(names.values()).count(name) > 1 else name for index, name in names.items()}
    copy = Run(target_folder(target), settings)
    stems: dict[str, str] = {}
    for entry in run.entries:
        stages = [f"{hostility.text(unlike='[^ -~]')[:500]}{i}" for i, _ in enumerate(entry.stages)]
        tensors = safetensors.numpy.load((run.path / "maps" / f"{entry.stem}.safetensors").read_bytes())
        for old, new in zip(entry.stages[:-1], stages, strict=False):
            tensors[f"stages/{new}"] = tensors.pop(f"stages/{old}")
        told = MadeWith(settings=settings, group=[(entry.index, entry.seed)])
        content = safetensors.numpy.save(tensors, {KEY: json.dumps(to_json(told))})
        name, digest = names[entry.index], score_record.hashlib.sha256(content).hexdigest()
        changed = hostility.of(to_json(entry)) | {"class": name, "stages": stages, "sha256": digest, "check": None}
        own = sealed(msgspec.convert(changed, Entry))
        stems[entry.stem] = stem_of(entry.index, name, entry.seed)
        copy.folder.write(f"maps/{own.stem}.safetensors", content)
        copy.folder.write(f"maps/{own.stem}.json", write_entry(own))
        copy.entry_of[own.job] = own
    copy.folder.write("manifest.json", write_manifest(settings, [], copy.entries))
    _records(run, copy, hostility, names, stems)
    return copy


def target_folder(path: Path) -> Any:
    path.mkdir(parents=True)
    from agnosco.io.storage import Folder

    return Folder.of(path)


def _records(run: Run, copy: Run, hostility: Hostility, names: dict[int, str], stems: dict[str, str]) -> None:
    """The other files of a run, for its hostile copy: they stay about each other's maps."""
    digest, fingerprint = digest_of(copy), copy.settings.model.fingerprint
    files = {
        path.name: json.loads(path.read_text()) for path in run.path.glob("*.json") if path.name != "manifest.json"
    }
    files = {name: hostility.of(content) for name, content in files.items()}
    for judgement in files[score_record.FILE]["targets"]:
        judgement |= {"run": digest, "fingerprint": hostility.text()}
    for i, of_class in enumerate(files[facet_record.FILE]["classes"]):
        of_class["facets"][0]["name"] = names[i]
    maps = files[sample_record.FILE]["maps"]
    digests = {entry.stem: entry.sha256 for entry in copy.entries}
    files[sample_record.FILE]["maps"] = {
        stems[stem]: each | {"sha256": digests[stems[stem]]} for stem, each in maps.items()
    }
    files["scan.json"]["model"]["fingerprint"] = fingerprint
    if diff_record.FILE in files:
        files[diff_record.FILE]["second"] |= {"run": digest, "fingerprint": fingerprint}
    for name, content in files.items():
        copy.folder.write(name, json.dumps(content).encode())
    for name in ("scan.png", "sanity.png"):
        copy.folder.write(name, polyglot(hostility.text(unlike="[^ -~]"), (300, 300)))
    for old, new in stems.items():
        for kind in ("", "-facet"):
            copy.folder.write(f"samples/{new}{kind}.png", (run.path / "samples" / f"{old}{kind}.png").read_bytes())
    copy.folder.write("leases/x", json.dumps({"owner": hostility.text(), "until": hostility.text()}).encode())
    copy.folder.write("checkpoints/<img src=x onerror=alert(1)>\x1b[2J.txt", b"")


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """A port of this machine at which nobody may knock."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        server.setblocking(False)
        yield server


def calls(listener: socket.socket) -> int:
    """How many have knocked since it was last asked."""
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Run, Run]]:
    folder = tmp_path_factory.mktemp("bases")
    return {classes: base(folder / str(classes), classes) for classes in (CLASSES, 26)}


@dataclass
class Made:
    """A hostile folder, and the page of it with the sections that it should have."""

    run: Run
    sections: list[str]
    page: Path


Maker = Callable[..., Made]


@pytest.fixture
def make(bases: dict[int, tuple[Run, Run]], tmp_path: Path, listener: socket.socket) -> Maker:
    """Makes the hostile folder of a seed, and its page."""

    def making(seed: int, without: str = "no such text") -> Made:
        texts = tuple(text for text in payloads(listener.getsockname()[1]) if without not in text)
        first, run = bases[26 if seed % 4 == 3 else CLASSES]
        copy = hostile(run, tmp_path / str(seed), Hostility(texts, random.Random(seed), numbers=seed % 2 == 1))
        out = tmp_path / f"{seed}.html"
        result = CliRunner().invoke(
            app, ["report", str(first.path), str(copy.path), "--with-samples", "--out", str(out)]
        )
        assert result.exit_code == 0, (result.stderr, result.exception)
        plain(result)
        sections = ["classes", "seen", "also", "changed", "sanity", "backdoors", "reading", "made"]
        return Made(copy, [each for each in sections if each != "changed" or run is bases[CLASSES][1]], out)

    return making


CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(result: Result) -> None:
    """The output of a command holds nothing that a terminal would obey, and no bug was met."""
    assert isinstance(result.exception, SystemExit | None), result.exception
    for text in (result.stdout, result.stderr):
        assert not CONTROLS.search(text)
        assert not re.search(BIDI, text)


# -- what a page may hold --------------------------------------------------------------------------------

ADDRESSES = ("src", "href", "action", "data", "ping", "srcset", "poster", "formaction", "background", "xlink:href")


class Tags(HTMLParser):
    """Collects what in a page could run or load."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.scripts = self.styles = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.styles += tag == "style"
        if tag in ("base", "iframe", "object", "embed", "link", "frame", "math", "foreignobject"):
            self.found.append(tag)
        for name, value in attrs:
            given = value or ""
            harmless = given.startswith(("#", "data:image/png;base64,", "data:image/webp;base64,")) or (
                given.startswith(("data:text/csv;base64,", "data:application/json;base64,"))
                and ("download" in dict(attrs))
            )
            if name.startswith("on") or name in ("style", "srcdoc") or (name in ADDRESSES and not harmless):
                self.found.append(f"{tag} {name}={given[:80]}")
            if name == "http-equiv" and given != "Content-Security-Policy":
                self.found.append(f"{tag} {name}={given}")


def look_at(text: str) -> None:
    """A page holds one script and one style, loads nothing, evaluated nothing, and no picture brings a page along."""
    tags = Tags(text)
    assert tags.found == []
    assert (tags.scripts, tags.styles) == (1, 1)
    assert "p49q" not in text
    assert not CONTROLS.search(text)
    assert not re.search(BIDI, text)
    for content in re.findall(r"data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)", text):
        assert b"<" + DATED.encode()[1:] not in base64.b64decode(content)
    assert len(re.sub(r"data:[a-z/]+;base64,[A-Za-z0-9+/=]+", "", text)) < 2_500_000


# -- a browser -------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a browser met in a page."""

    hit: Any
    requests: list[str]
    complaints: list[str]
    calls: int


def walk(
    browser: Any, path: Path, listener: socket.socket, *, policy: bool, until: Callable[[Seen], object] | None = None
) -> Seen:
    """Open a page and everything in it; without its policy, the escaping alone has to do.

    With ``until``, nothing is opened: the page is watched until that is true of what it has done, and a second more.
    """
    calls(listener)
    context = browser.new_context(bypass_csp=not policy, viewport={"width": 1200, "height": 900})
    page = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("popup", lambda popup: complaints.append(f"popup {popup.url}"))

    def dismissed(dialog: Any) -> None:
        complaints.append(f"dialog {dialog.message}")
        dialog.dismiss()

    page.on("dialog", dismissed)
    seen = Seen(None, requests, complaints, 0)

    def look() -> Seen:
        seen.hit, seen.calls = page.evaluate("window.hit"), seen.calls + calls(listener)
        return seen

    page.goto(path.as_uri(), wait_until="commit" if until else "load")
    if until is None:
        _look_everywhere(page)
    else:
        for _ in range(6000):  # five minutes at most: then the tests say what is missing
            if until(look()):
                break
            page.wait_for_timeout(50)
        page.wait_for_timeout(1000)
    look()
    context.close()
    return seen


EVERYTHING = """() => {
  for (const one of document.querySelectorAll('*'))
    for (const kind of ['mouseover', 'focus', 'toggle', 'pointerenter', 'animationstart', 'load', 'error'])
      one.dispatchEvent(new Event(kind));
}"""


def _look_everywhere(page: Any) -> None:
    anchors = page.locator("#grid li a").evaluate_all("all => all.map((one) => one.hash)")
    assert anchors
    titles = page.locator("template").evaluate_all("all => all.map((one) => one.dataset.title)")
    for anchor, title in list(zip(anchors, titles, strict=True))[:5]:
        page.evaluate("anchor => { location.hash = anchor }", anchor)
        page.locator("#details").wait_for()
        assert page.locator("#details-title").text_content() == title
        for control in ("stage", "raw", "xi", "where"):
            page.evaluate(
                "id => { const one = document.getElementById(id); if (one && !one.disabled) {"
                "one.type === 'range' ? one.value = 0 : one.click(); one.dispatchEvent(new Event('input')) } }",
                control,
            )
        page.evaluate(EVERYTHING)
        page.locator("#raw").uncheck()
        if page.locator("#next").is_enabled():
            page.locator("#details-title").focus()  # arrows are not for a box that is ticked
            page.evaluate("addEventListener('hashchange', () => { window.followed = location.hash }, { once: true })")
            page.keyboard.press("ArrowRight")
            _until(page, "location.hash === window.followed", "the next class was not opened")
            assert page.locator("#details-title").text_content() == titles[anchors.index(anchor) + 1]
        page.keyboard.press("Escape")
        page.locator("#details").wait_for(state="hidden")
        _until(page, "!location.hash", "the address still names the class")
    for place in range(page.locator("#sort option").count()):
        page.select_option("#sort", index=place)
    for words in ("</script>", "p{{7*7}}q", "\\", "(", "__proto__", ""):
        page.fill("#search", words)
    for plane in page.locator(".plane .window").all():
        plane.wait_for()
        for key in ("ArrowDown", "ArrowRight", "ArrowUp"):
            plane.press(key)
        assert "are taken for" in page.locator(".plane [role=status]").first.text_content()
    page.evaluate(EVERYTHING)
    page.emulate_media(media="print", color_scheme="dark")
    assert "p49q" not in page.content()


def _until(page: Any, condition: str, otherwise: str) -> None:
    """Wait for a condition, asked from outside: the page's policy forbids what asks inside."""
    for _ in range(6000):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(otherwise)


def harmless(seen: Seen, path: Path) -> None:
    """Only the page itself was loaded, and its script alone ran."""
    assert seen.hit is None
    assert [url for url in seen.requests if not url.startswith("data:")] == [path.as_uri()]
    assert seen.complaints == []
    assert seen.calls == 0


# -- tests -----------------------------------------------------------------------------------------------


SHOWN = ("samples", "facet", "also", "sheet", "facts", "stage-picture", "over where-picture", "over xi-picture")
"""Classes of what each page has to show, lest it be harmless because it is empty."""


def in_all_ways(made: Made, browser: Any, listener: socket.socket) -> None:
    """Look at the page as text, and in a browser with its policy and without; at the card and the check, too."""
    text = made.page.read_text(encoding="utf-8")
    look_at(text)
    assert re.findall(r'<section id="(\w+)"', text) == made.sections
    assert "<dd><code>agnosco map " in text
    assert {kind: text.count(f'class="{kind}"') > 0 for kind in SHOWN} == dict.fromkeys(SHOWN, True)
    for policy in (True, False):
        harmless(walk(browser, made.page, listener, policy=policy), made.page)
    out = made.page.with_suffix(".md")
    result = CliRunner().invoke(app, ["card", str(made.run.path), "--out", str(out)])
    assert result.exit_code == 0, (result.stderr, result.exception)
    plain(result)
    card = out.read_text(encoding="utf-8")
    assert not CONTROLS.search(card)
    assert not re.search(BIDI, card)
    assert set(re.findall(r"<(?!!-- /?agnosco -->)[^>]{0,20}", card)) <= {"<br", "<pre", "<code", "</code", "</pre"}
    result = CliRunner().invoke(app, ["check", str(made.run.path)])
    assert result.exit_code in (0, 3), (result.stderr, result.exception)
    plain(result)


Browser = Any


@pytest.mark.parametrize("seed", range(4))
def test_a_hostile_folder_gives_a_page_that_does_nothing(
    seed: int, make: Maker, chromium: Browser, listener: socket.socket
) -> None:
    in_all_ways(make(seed), chromium, listener)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 24))
def test_many_hostile_folders(seed: int, make: Maker, chromium: Browser, listener: socket.socket) -> None:
    in_all_ways(make(seed), chromium, listener)


def test_the_texts_would_do_harm_and_the_policy_alone_would_stop_them(
    make: Maker, chromium: Browser, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a page that escapes nothing, the texts run and call; its policy stops all but those that lead elsewhere."""
    without_escaping(monkeypatch)
    harmful = make(0, without="refresh")
    with pytest.raises(AssertionError):
        look_at(harmful.page.read_text(encoding="utf-8"))

    def ran(seen: Seen) -> bool:
        return seen.hit is not None or any(one.startswith("dialog") for one in seen.complaints)

    seen = walk(chromium, harmful.page, listener, policy=False, until=lambda seen: ran(seen) and seen.calls)
    assert ran(seen)
    assert seen.calls > 0
    seen = walk(chromium, harmful.page, listener, policy=True, until=lambda seen: seen.complaints)
    assert seen.complaints != []  # the browser says what it refused
    assert (seen.hit, [one for one in seen.complaints if one.startswith(("dialog", "popup"))], seen.calls) == (
        None,
        [],
        0,
    )


def without_escaping(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = pages._environment().overlay(autoescape=False)
    monkeypatch.setattr(pages, "_environment", lambda: environment)


# -- one thing at a time ---------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, "", "</script><script>hit=1</script>", "\ud800", "\0\x1b[2J\u202e", float("nan"), float("inf"), 1e308,
    -1e308, 1e299, -1, -1.5, 0, 2**31, 2**63, 10**299, -(10**299), 10**400, [], {}, [[]], {"a": None}, "9" * 5000,
    "../../x", "\n", 1e-320,
)  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all parts of JSON."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in parts:
        yield (*path, key)
        yield from leaves(each, (*path, key))


def sealed_again(name: str, data: Any) -> bytes:
    """The content of a file that was altered, with its digest where it can have one."""
    if isinstance(data, dict) and name == "manifest.json":
        data.pop("check", None)
        for entry in data["maps"] if isinstance(data.get("maps"), list) else []:
            if isinstance(entry, dict):
                entry.pop("check", None)
    if name.startswith("maps/"):
        try:
            return write_entry(msgspec.convert(data, Entry))
        except (msgspec.ValidationError, ValueError):
            pass
    return json.dumps(data).encode()


FILES = ("manifest.json", "maps", "scores.json", "samples.json", "diff.json", "facets.json", "scan.json", "sanity.json")


@pytest.fixture(scope="module")
def spare(bases: dict[int, tuple[Run, Run]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A sound folder to alter, one file at a time, and the run that it was compared with."""
    first, run = bases[CLASSES]
    return first, Path(shutil.copytree(run.path, tmp_path_factory.mktemp("spare") / "run"))


def altered_and_tried(spare: tuple[Run, Path], file: str, chance: random.Random, count: int) -> None:
    """Alter so many parts of a file, one at a time, and give the folder to the commands."""
    _, folder = spare
    if file == "maps":
        file = min(folder.glob("maps/*.json")).relative_to(folder).as_posix()
    places = list(leaves(json.loads((folder / file).read_bytes())))
    for path in chance.sample(places, min(count, len(places))):
        is_lost = file.startswith("maps/") and chance.random() < 0.5
        altered_once(spare, file, path, chance.choice(VALUES), is_lost=is_lost)


def altered_once(
    spare: tuple[Run, Path], file: str, path: tuple[Any, ...], value: Any, *, is_lost: bool = False
) -> None:
    """Alter a part of a file, and give the folder to the commands; the manifest may be lost, too."""
    first, folder = spare
    before = {name: (folder / name).read_bytes() for name in (file, "manifest.json")}
    data = json.loads(before[file])
    part = data
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    try:
        (folder / file).write_bytes(sealed_again(file, data))
        if is_lost:
            (folder / "manifest.json").unlink()  # it is rebuilt
        tried(first.path, folder, f"{file} {path} {value!r:.60}")
    finally:
        for name, content in before.items():
            (folder / name).write_bytes(content)


def tried(first: Path, folder: Path, what: str) -> None:
    """A page, a card and a check of a folder, or two lines each that say why there is none."""
    page, card = (folder.parent / name for name in ("page.html", "card.md"))
    page.unlink(missing_ok=True)
    card.unlink(missing_ok=True)
    for words, codes in (
        (["report", str(first), str(folder), "--with-samples", "--out", str(page)], (0, 2)),
        (["card", str(folder), "--out", str(card)], (0, 2)),
        (["check", str(folder)], (0, 2, 3)),
    ):
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, SystemExit | None), (what, words[0], result.exception)
        assert result.exit_code in codes, what
        plain(result)
        if result.exit_code == 2:
            *warned, error, hint = result.stderr.splitlines()
            assert (error.startswith("Error: "), hint.startswith("Hint: ")) == (True, True), what
            assert all(line.startswith("Warning: ") for line in warned), what
        elif words[0] == "report":
            look_at(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("manifest.json", ("maps", 0, "sha256"), "\ud800"),
        ("facets.json", ("classes", 0, "facets", 0, "strongest"), []),
    ],
)
def test_what_was_a_traceback(file: str, path: tuple[Any, ...], value: Any, spare: tuple[Run, Path]) -> None:
    altered_once(spare, file, path, value)


@pytest.mark.parametrize("file", FILES)
def test_one_altered_thing_gives_a_sound_page_or_two_lines(file: str, spare: tuple[Run, Path]) -> None:
    altered_and_tried(spare, file, random.Random(0), 5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("file", FILES)
def test_many_altered_things(file: str, seed: int, spare: tuple[Run, Path]) -> None:
    altered_and_tried(spare, file, random.Random(seed), 150)


# -- pictures --------------------------------------------------------------------------------------------


def encoded(kind: str, size: tuple[int, int] = (300, 300)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size).save(content, kind)
    return content.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="window.hit=30"><script>window.hit=31</script></svg>'
PICTURES: dict[str, tuple[bytes, int]] = {
    "svg": (SVG, 2),
    "html": (b"<!doctype html><script>window.hit=32</script>", 2),
    "gif and script": (b"GIF89a/*" + encoded("GIF")[8:] + b"*/=1;window.hit=33//", 2),
    "svg, then png": (SVG + encoded("PNG"), 2),
    "png, then svg": (encoded("PNG") + SVG, 0),
    "webp": (encoded("WEBP"), 2),
    "bmp": (encoded("BMP"), 2),
    "one row": (encoded("PNG", (65_000, 1)), 0),
    "one column": (encoded("PNG", (1, 65_000)), 0),
    "one pixel": (encoded("PNG", (1, 1)), 0),
    "half": (encoded("PNG")[:100], 2),
    "empty": (b"", 2),
}


@pytest.mark.parametrize("place", ["scan.png", "sanity.png", "samples", "samples-facet"])
@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_drawn_anew_or_refused(kind: str, place: str, spare: tuple[Run, Path]) -> None:
    first, folder = spare
    content, code = PICTURES[kind]
    if place.startswith("samples"):
        files = [path for path in folder.glob("samples/*.png") if ("-facet" in path.name) == ("-facet" in place)]
    else:
        files = [folder / place]
    before = {path: path.read_bytes() for path in files}
    out = folder.parent / "pictures.html"
    try:
        for path in files:
            path.write_bytes(content)
        result = CliRunner().invoke(app, ["report", str(first.path), str(folder), "--with-samples", "--out", str(out)])
    finally:
        for path, old in before.items():
            path.write_bytes(old)
    plain(result)
    assert result.exit_code == code, result.stderr
    if code == 0:
        look_at(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("seconds", "shown"), [(-1e13, "1970-01-01"), (1e13, "9999-12-31")])
def test_a_date_that_no_calendar_has(
    seconds: float, shown: str, spare: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some disks keep it, and an archive may set it."""
    first, folder = spare
    monkeypatch.setattr(Local, "modified", lambda *_: seconds)
    tried(first.path, folder, shown)
    assert f"<dd>{shown} 00:00 UTC</dd>" in (folder.parent / "page.html").read_text(encoding="utf-8")
