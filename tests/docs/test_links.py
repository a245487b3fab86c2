"""Every link of the documents leads somewhere: the file is there, and the heading in it."""

import re
from functools import cache
from pathlib import Path

import pytest
from pages import DOCS, PAGES, without_code
from tiny import ROOT

_LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors of a page, as both the site and repository hosts make them."""
    found = set()
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", words))
    return frozenset(found)


def broken_links(path: Path, text: str) -> list[str]:
    broken = []
    for link in _LINK.findall(without_code(text)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        is_there = target.exists() and target.is_relative_to(ROOT)
        if is_there and anchor and target.suffix == ".md":
            is_there = anchor in anchors(target)
        if not is_there:
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_every_link_leads_somewhere(path: Path) -> None:
    assert broken_links(path, path.read_text("utf-8")) == []


@pytest.mark.parametrize("link", ["MISSING.md", "MEMORY.md#no-such-heading", "../../elsewhere.md"])
def test_a_broken_link_is_found(link: str) -> None:
    assert broken_links(DOCS / "index.md", f"see [it]({link})") == [link]


def test_every_document_is_reached_from_the_site() -> None:
    nav = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M))
    assert nav == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
