"""The site: it has what the package has, builds without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import m3el_fast
from docs.blocks import DOCS, ROOT
from m3el_fast import compat, index, ops
from m3el_fast.__main__ import COMMANDS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NOT_SHOWN = {"__version__", "Precision"}


@pytest.mark.parametrize("module", [m3el_fast, compat, index, ops], ids=lambda module: module.__name__)
def test_public_names_are_in_the_reference(module: object) -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.rst"))
    shown = re.findall(r"^\.\. auto(?:class|function|data|exception):: (?:[\w.]+\.)?(\w+)$", pages, re.MULTILINE)
    assert {*module.__all__} - NOT_SHOWN - {*shown} == set()


def test_all_commands_are_in_the_reference() -> None:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^```\{command-help\} (\w+)$", page, re.MULTILINE)) == sorted(COMMANDS)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CI builds it: a warning is an error."""
    for extension in ("sphinx", "furo", "myst_parser", "sphinx_copybutton", "latex2mathml", "spacy", "rerankers"):
        pytest.importorskip(extension, reason="the extra docs is not installed")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out


class Loads(HTMLParser):
    """Collects what a page asks the browser to load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev", "index", "search"):
            return
        names = ("src", "srcset", "data", "poster", "style") + (("href",) if tag in ("link", "use", "image") else ())
        self.found += [given[name] for name in names if name in given]


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    assert len(pages) > 20
    asked = {load for page in pages for load in Loads(page.read_text(encoding="utf-8")).found}
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    asked |= {*re.findall(r"""(?:url\(|@import)\s*["']?([^"')]+)""", styles)}
    assert any("site.css" in load for load in asked)
    assert [load for load in asked if re.match(r"(?:\w+:)?//", load)] == []


@pytest.mark.slow
def test_the_site_in_a_browser(site: Path) -> None:
    """At the width of a phone: nothing is wider than the window, no script fails, formulas and the figure are there."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium on the path")
    said: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith("file:") else said.append(request.url))
        count = {}
        for name in ("index", "quickstart", "concepts", "kernels", "commands", "api/scorer"):
            page.goto(f"{site.as_uri()}/{name}.html")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            count[name] = page.locator("math").count(), page.locator("svg.figure rect").count()
        browser.close()
    assert said == []
    assert count["concepts"][0] > 20 and count["kernels"][1] > 200


@pytest.mark.slow
def test_what_the_site_takes_from_the_package(site: Path) -> None:
    """Docstrings, parsers and the README, not copies of them."""
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert "usage: m3el index build" in commands and "--nil-threshold" in commands
    scorer = (site / "api/scorer.html").read_text(encoding="utf-8")
    assert 'id="m3el_fast.scorer.Scorer.topk"' in scorer and "spec section" not in scorer
    assert "109,976 entities" in (site / "benchmarks.html").read_text(encoding="utf-8")
