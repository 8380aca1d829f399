"""The pages of the documentation and the README, and the code blocks in them, as a Markdown parser sees them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {"README.md": ROOT / "README.md"}
PAGES |= {str(path.relative_to(DOCS)): path for path in sorted(DOCS.rglob("*.md"))}

# Of the site's own directives, none of which shows code of its own.
DIRECTIVES = {"{command-help}", "{include}", "{raw}", "{toctree}"}


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its first line of text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def blocks(page: str) -> list[Block]:
    """The blocks of a page in order, without directives."""
    tokens = MarkdownIt("commonmark").parse(PAGES[page].read_text(encoding="utf-8"))
    found = []
    for token in tokens:
        assert token.type != "code_block", f"{page}: a block by indentation, which has no language: {token.content!r}"
        if token.type == "fence" and token.info.split()[:1] != [] and token.info.split()[0] in DIRECTIVES:
            continue
        if token.type == "fence":
            assert token.map is not None
            found.append(Block(page, token.map[0] + 2, token.info, token.content))
    return found


def links(page: str) -> list[str]:
    """Where the links of a page lead."""
    tokens = MarkdownIt("commonmark").enable("table").parse(PAGES[page].read_text(encoding="utf-8"))
    children = (child for token in tokens for child in token.children or ())
    return [str(child.attrs["href"]) for child in children if child.type == "link_open"]


def shell_lines(text: str) -> list[str]:
    """The commands of a shell block: one a line, lines that end with a backslash joined, comments left out."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line for line in joined if line.strip() and not line.lstrip().startswith("#")]
