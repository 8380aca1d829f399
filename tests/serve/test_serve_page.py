"""The page in a browser: from a selected mention and a picture to candidates, errors, and names that are markup."""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from m3el_fast.calibration import Calibration
from serve.serving import MARKUP, Served, running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None:
    pytest.skip("no Chromium on the path", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, in a window as wide as a phone; what the browser complains of fails the test."""
    page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
    page.goto(address)
    yield page
    # of addresses that a test asks for on purpose the browser says that they failed
    assert [line for line in said if "Failed to load resource" not in line] == []
    page.close()


def until(page: Any, expression: str) -> None:
    """Wait for something in the page. Playwright's own way to wait is forbidden by the page's security policy."""
    limit = time.monotonic() + 10
    while not page.evaluate(expression):
        assert time.monotonic() < limit, expression
        page.wait_for_timeout(10)


def select(page: Any, sentence: str, mention: str) -> None:
    """Paste a sentence and select a part of it with the keyboard."""
    page.fill("#sentence", sentence)
    page.focus("#sentence")
    page.keyboard.press("Control+Home")
    for _ in range(sentence.index(mention)):
        page.keyboard.press("ArrowRight")
    for _ in mention:
        page.keyboard.press("Shift+ArrowRight")


def linked(page: Any) -> list[str]:
    """Press the button; the names shown."""
    page.click("#link")
    until(page, "!document.querySelector('#link').disabled && document.querySelector('#results li')")
    return [name.split(". ", 1)[1] for name in page.locator(".name").all_inner_texts()]


def test_select_link_and_look(page: Any, served: Served) -> None:
    assert "12 entities" in page.inner_text("#server")
    sentence = "We saw the inn number 0"
    select(page, sentence, "inn")
    assert page.input_value("#mention") == "inn"
    assert page.inner_html("#marked") == "We saw the <mark>inn</mark> number 0"
    page.fill("#k", "12")
    names = linked(page)
    expected = served.linker.link([{"mention": "inn", "sentence": sentence}], 12)[0]
    assert names == [link["name"] for link in expected]
    scores = page.locator(".score").all_inner_texts()
    assert [float(score) for score in scores] == pytest.approx([link["score"] for link in expected], abs=0.006)
    shown = page.locator("li").first.locator("dd").all_inner_texts()
    components = [f"{value:.2f}" for value in expected[0]["components"].values()]
    assert [text.strip() for text in shown if text.strip()] == components
    assert page.locator("li").first.locator("rect").count() == 4
    assert re.match(r"12 candidates for “inn”, \d+ ms\.$", page.inner_text("#status"))


def test_names_that_are_markup(page: Any) -> None:
    select(page, "<b onclick=hit()>Elm</b> & co", "<b onclick=hit()>Elm</b>")
    page.fill("#k", "12")
    names = linked(page)
    assert MARKUP in names
    card = page.locator("li").nth(names.index(MARKUP))
    card.locator(".about", has_text="<script>window.hit=1</script>").wait_for()
    assert page.evaluate("window.hit") is None
    assert page.locator("b, script:not([src])").count() == 0


def test_pictures(page: Any) -> None:
    """The mention's goes along; those of entities that have one are shown, a broken one is not."""
    select(page, "We saw the inn number 0", "inn")
    page.fill("#k", "12")
    linked(page)
    without = page.locator(".score").all_inner_texts()
    out = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(out, "PNG")
    page.set_input_files("#image", {"name": "a.png", "mimeType": "image/png", "buffer": out.getvalue()})
    until(page, "document.querySelector('#preview').naturalWidth === 30")
    linked(page)
    assert page.locator(".score").all_inner_texts() != without
    shown = """() => {
        const images = [...document.querySelectorAll("li img.picture")];
        for (const image of images) image.loading = "eager";
        return images.length === 9 && images.every((image) => image.naturalWidth === 20);
    }"""
    until(page, shown)
    page.click("#remove")
    assert page.is_hidden("#preview")
    linked(page)
    assert page.locator(".score").all_inner_texts() == without


def test_a_dropped_picture(page: Any) -> None:
    drop = """(type) => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File(["no picture"], "a", { type }));
        document.querySelector("#drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
    }"""
    page.evaluate(drop, "text/plain")
    assert page.inner_text("#error") == "Picture: expected an image, got text/plain"
    page.evaluate(drop, "image/png")
    page.fill("#sentence", "We saw Elm")
    page.fill("#mention", "Elm")
    page.click("#link")
    until(page, "document.querySelector('#error').textContent.includes('readable')")
    said = "image: expected a readable image, got not an image of a known format."
    assert page.inner_text("#error") == said
    page.click("#remove")
    assert page.is_hidden("#error")


def test_what_cannot_be_linked(page: Any) -> None:
    for fill, said in (
        ({}, "Paste a sentence first."),
        ({"#sentence": "We saw Elm"}, "Select the mention in the sentence."),
        ({"#mention": "Elm", "#k": "0"}, "Candidates: expected a number from 1 to 100."),
    ):
        for place, value in fill.items():
            page.fill(place, value)
        page.click("#link")
        assert page.inner_text("#error") == said
    page.fill("#k", "1")
    assert len(linked(page)) == 1
    assert page.is_hidden("#error")


def test_while_it_links_and_when_the_server_has_gone(browser: Any, served: Served) -> None:
    page = browser.new_page()
    with running(served.service()) as address:
        page.goto(address)
        page.route("**/link", lambda route: (states.append(page.is_disabled("#link")), route.continue_()))
        states: list[bool] = []
        page.fill("#sentence", "We saw Elm")
        page.fill("#mention", "Elm")
        linked(page)
        assert states == [True]
        page.goto("about:blank")
        page.goto(address)
        page.fill("#sentence", "We saw Elm")
        page.fill("#mention", "Elm")
    page.click("#link")
    until(page, "document.querySelector('#error').textContent")
    assert page.inner_text("#error") == "The server does not answer."
    page.close()


@pytest.mark.parametrize("path", ["", "/docs"])
def test_nothing_is_wider_than_a_phone(path: str, page: Any, address: str) -> None:
    if path:
        page.goto(address + path)
    else:
        select(page, "We saw the inn number 0", "inn")
        linked(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_a_mention_that_is_none_of_them(page: Any, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities, and that there is no entity."""
    values = {"temperature": 0.7, "nil_score": 9.0, "data": "x", "entities": 12, "mentions": 9, "nil": 3}
    monkeypatch.setattr(served.case.model, "calibration", Calibration(nil_threshold=0.99, **values))
    page.reload()
    sentence = "We saw the inn number 0"
    select(page, sentence, "inn")
    linked(page)
    best = served.linker.link([{"mention": "inn", "sentence": sentence}])[0][0]["probability"]
    said = f"The best candidate has a probability of {100 * best:.1f}%, less than the 99.0% that an answer needs."
    assert page.inner_text("#nil") == f"No entity (NIL). {said}"
    assert page.locator(".probability").first.inner_text() == f"{100 * best:.1f}%"
    assert page.locator(".best").count() == 0
    monkeypatch.setattr(served.case.model, "calibration", Calibration(nil_threshold=0, **values))
    linked(page)
    assert page.is_hidden("#nil")
    assert page.locator(".best .name").inner_text().startswith("1. ")


def test_selections(page: Any) -> None:
    """The second of two equal names, a name over two lines, characters of two units, and what is typed afterwards."""
    marked = "document.querySelector('#marked').innerHTML"
    sentence = "\U0001f600" * 90 + "Elm and\nElm \u05d0\u05dc\u05de, \U0001f600\U0001f601" + "\U0001f602" * 81

    def selected(start: int, end: int) -> str:
        """By the mouse, in the units that the browser counts; how the mention is shown."""
        page.evaluate(
            """([start, end]) => {
                const sentence = document.querySelector("#sentence");
                sentence.setSelectionRange(start, end);
                sentence.dispatchEvent(new MouseEvent("mouseup"));
            }""",
            [start, end],
        )
        return str(page.evaluate(marked))

    page.fill("#sentence", sentence)
    faces, laughs = "\U0001f600" * 80, "\U0001f602" * 80
    assert selected(188, 192).startswith("…" + "\U0001f600" * 72 + "Elm and\n<mark>Elm</mark> ")
    assert selected(180, 192).startswith(f"…{faces}<mark>Elm and\nElm</mark> ")
    assert page.input_value("#mention") == "Elm and Elm"
    assert selected(197, 201).endswith(f"<mark>\U0001f600\U0001f601</mark>{laughs}…")
    assert page.input_value("#mention") == "\U0001f600\U0001f601"
    page.fill("#mention", "Elm")
    assert page.evaluate(marked).startswith(f"…{faces}<mark>Elm</mark> and")
    page.focus("#mention")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "sentence"
    assert page.input_value("#mention") == "Elm"


def test_the_keyboard_alone(page: Any) -> None:
    """Fields and buttons in their order, and the focus stays where it was."""
    page.fill("#sentence", "We saw Elm")
    page.focus("#sentence")
    places = []
    for _ in range(5):
        page.keyboard.press("Tab")
        places.append(page.evaluate("document.activeElement.id"))
    assert places == ["mention", "image", "k", "link", ""]
    page.focus("#mention")
    page.keyboard.type("Elm")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#results li')")
    until(page, "document.activeElement.id === 'mention'")
    page.focus("#link")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#results').getAttribute('aria-busy') === null")
    assert page.evaluate("document.activeElement.id") == "link"


def test_without_a_kb(browser: Any, served: Served) -> None:
    page = browser.new_page()
    with running(served.service()) as address:
        page.goto(address)
        page.fill("#sentence", "We saw Elm")
        page.fill("#mention", "Elm")
        linked(page)
        assert page.locator(".picture").count() == 0
    page.close()
