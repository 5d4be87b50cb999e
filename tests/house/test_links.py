"""No page of the repository has a link, or a picture, that leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "backends/**/*.md")
    for path in sorted(ROOT.glob(pattern))
    if "_build" not in path.parts
]


def prose(page: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(`{3,}).*?^\1", "", page, flags=re.DOTALL | re.MULTILINE))


def anchors(page: str) -> set[str]:
    """The names of places on a page: marks, and headings as GitHub and MyST name them."""
    bare = re.sub(r"^(`{3,}).*?^\1", "", page, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", bare, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", bare, re.MULTILINE))


def dead(path: Path, page: str) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, place = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists():
            found.append(link)
        elif place and target.suffix == ".md":
            there = target.read_text(encoding="utf-8") if file else page
            if place not in anchors(there):
                found.append(link)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_link_of_a_page_is_dead(path: Path) -> None:
    assert dead(path, path.read_text(encoding="utf-8")) == []


def test_a_dead_link_is_found() -> None:
    path = ROOT / "docs" / "masks.md"
    page = "# A title\n[x](nowhere.md) [y](contract.md#rule-6) [z](contract.md#rule-999) [a](#a-title) [b](#none)\n"
    assert dead(path, page) == ["nowhere.md", "contract.md#rule-999", "#none"]
    assert dead(path, "```python\nx[0](nowhere)\n```\n`[x](nowhere)`\n") == []
    assert len(PAGES) > 40
