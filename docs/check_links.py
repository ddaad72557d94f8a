#!/usr/bin/env python3
"""Fails where a link leads nowhere: relative links and anchors of the built book, and those of the documents in the project's root.
Links to other hosts are not followed.

Usage: check_links.py BOOK    the folder that mdBook has built
"""
import os
import re
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
SOURCE = os.path.join(ROOT, "docs", "src")


class Page(HTMLParser):
    """The ids and the links of one page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links = set(), []
        with open(path, encoding="utf8") as file:
            self.feed(file.read())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {value for name, value in attributes.items() if name in ("id", "name") and value}
        self.links += [attributes[name] for name in ("href", "src") if attributes.get(name)]


def pages_of(book):
    for folder, _, files in os.walk(book):
        for file in files:
            # This page of mdBook's is shown at any path, so its links are no relative ones.
            if file.endswith(".html") and file not in ("404.html", "toc.html"):
                path = os.path.join(folder, file)
                yield path, Page(path)


def dead_links(book):
    pages = dict(pages_of(book))
    if len(pages) < 10:
        yield f"{book}: only {len(pages)} pages"
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = os.path.normpath(os.path.join(os.path.dirname(path), unquote(parts.path))) if parts.path else path
            if os.path.isdir(target):
                target = os.path.join(target, "index.html")
            if not os.path.exists(target) or target.endswith(".md"):
                yield f"{os.path.relpath(path, book)}: {link}"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                yield f"{os.path.relpath(path, book)}: {link}: no such heading"
    for document in DOCUMENTS:
        with open(os.path.join(ROOT, document), encoding="utf8") as file:
            text = re.sub(r"```.*?```", "", file.read(), flags=re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            target = os.path.join(ROOT, parts.path)
            built = os.path.join(book, os.path.relpath(target, SOURCE))[: -len(".md")] + ".html"
            if not os.path.exists(target):
                yield f"{document}: {link}"
            elif parts.fragment and target.startswith(SOURCE) and parts.fragment not in pages[built].ids:
                yield f"{document}: {link}: no such heading"


if __name__ == "__main__":
    dead = sorted(set(dead_links(os.path.abspath(sys.argv[1]))))
    print("\n".join(f"Dead link in {link}" for link in dead), file=sys.stderr, end="\n" if dead else "")
    sys.exit(bool(dead))
