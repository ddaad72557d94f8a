#!/usr/bin/env python3
"""A preprocessor of mdBook. It does four things:

- It replaces {{config-reference}} by a section for each key of redis-proxy.toml.
- It makes links of included files of the project's root relative to the page that includes them.
- It fails on a page that lacks an included file or is empty, which mdBook only logs.
- It makes links to a README.md, which people follow in the sources, lead to the index.html that mdBook makes of it.

https://rust-lang.github.io/mdBook/for_developers/preprocessors.html
"""
import json
import os.path
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LINK = re.compile(r"\]\((docs/src/)([^)]*)\)")
README = re.compile(r"(\]\((?:[^)#:]*/)?)README\.md([)#])")
MARKER = "{{config-reference}}"
# Characters of the shortest page.
SHORTEST = 200


def as_markdown(comment):
    """Text of a comment, with its keys and quoted values as code and nothing else as markup."""
    parts = re.split(r'(`[^`]*`|"[^"]*"|\b(?:http|resp|admin|redis|cache|warm|telemetry|daemon)\.[a-z_]+\b|\[[a-z]+\])', comment)
    escape = lambda text: re.sub(r"([*_<>\[\]])", r"\\\1", text)
    return "".join(part if part.startswith("`") else f"`{part}`" if at % 2 else escape(part) for at, part in enumerate(parts))


def config_reference():
    """One section of Markdown for each table of redis-proxy.toml, with one heading for each key."""
    out, section, comment, after_blank = [], None, [], True
    with open(os.path.join(ROOT, "redis-proxy.toml"), encoding="utf8") as file:
        for line in file.read().splitlines():
            key = re.fullmatch(r"([a-z_]+) = (.*)", line)
            if line.startswith("#"):
                comment.append(line.lstrip("# ").strip())
            elif line.startswith("["):
                section = line.strip("[]")
                out += [f"\n## [{section}]\n", as_markdown(" ".join(comment)), ""]
                comment = []
            elif key and section:
                name, default = key[1], key[2]
                text = " ".join(comment)
                live = "(live)" in text
                text = re.sub(r"\s*\(live\)", "", text)
                if f"{section}.{name}" == "resp.listen":
                    default = '""'
                out += [
                    f"\n### `{section}.{name}`\n",
                    as_markdown(text),
                    f"\n- Default: `{default}`",
                    f"- Environment: `REDIS_PROXY_{section.upper()}__{name.upper()}`",
                    f"- A change takes effect: {'at a reload (`SIGHUP`), for cached entries too' if live else 'at a restart'}",
                ]
                comment = []
            else:
                comment = []
    return "\n".join(out)


def rewrite(chapter):
    here = os.path.dirname(chapter.get("path") or "")
    content = chapter["content"]
    if "{{#include" in content or len(content) < SHORTEST:
        sys.exit(f"{chapter.get('path')}: an included file or part of it is missing")
    if MARKER in content:
        content = content.replace(MARKER, config_reference())
    relative = lambda link: f"]({os.path.relpath(link[2] or '.', here or '.')})"
    chapter["content"] = README.sub(r"\1index.html\2", LINK.sub(relative, content))
    walk(chapter["sub_items"])


def walk(items):
    for item in items:
        if isinstance(item, dict) and "Chapter" in item:
            rewrite(item["Chapter"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["supports"]:
        sys.exit(0)
    _, book = json.load(sys.stdin)
    walk(book["items"] if "items" in book else book["sections"])
    json.dump(book, sys.stdout)
