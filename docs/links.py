"""Whether the pages that Sphinx made hold together: no dead link, and nothing that is fetched from elsewhere.

python docs/links.py docs/_build/html        # exit status 1 and a line for each that is wrong
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: What a browser fetches by itself, as against what a reader may click.
FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("link", "href"),
    ("source", "src"),
    ("iframe", "src"),
    ("object", "data"),
}


class Page(HTMLParser):
    """The names of places on a page, and what it points to: tag, attribute, address."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.pointers: list[tuple[str, str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.places.add(value)
            elif name in ("href", "src", "data") and value is not None:
                self.pointers.append((tag, name, value))


def wrong(root: Path) -> Iterator[str]:
    """A line for each pointer that leads nowhere, or makes a browser fetch what is not here."""
    page_at = cache(Page)
    for path in sorted(root.rglob("*.html")):
        for tag, attribute, address in page_at(path).pointers:
            parts = urlsplit(address)
            where = f"{path.relative_to(root)}: {address}"
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                if (tag, attribute) in FETCHED:
                    yield f"{where} is fetched from elsewhere"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            place = unquote(parts.fragment)
            if not target.is_file():
                yield f"{where} is not there"
            elif place and target.suffix == ".html" and place not in page_at(target).places:
                yield f"{where} has no such place"


def main() -> int:
    root = Path(sys.argv[1])
    pages = len(list(root.rglob("*.html")))
    found = list(wrong(root))
    print(*found, f"{pages} pages, {len(found)} links wrong", sep="\n")
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
