#!/usr/bin/env python3
"""Writes the licences of libraries as one text, in which each text of a licence appears once.

Usage: notices.py LICENSES LIBRARIES
    LICENSES   the output of cargo-bundle-licenses, as JSON
    LIBRARIES  the libraries in the program, one a line as cargo tree prints them: name v1.2.3
"""
import collections
import json
import sys

HEAD = """\
The libraries in redis-proxy, with their licences and the texts that they come with. Where a library
may be used under one of several licences, all are listed. `make notices` writes this file.
"""
MISSING = "NOT FOUND"


def normal(text):
    return " ".join(text.split())


def main(licenses, libraries):
    with open(libraries, encoding="utf8") as file:
        wanted = {tuple(line.split()[:2]) for line in file if line.strip()}
    with open(licenses, encoding="utf8") as file:
        bundle = json.load(file)["third_party_libraries"]
    bundle = [each for each in bundle if (each["package_name"], "v" + each["package_version"]) in wanted]
    # The text as it is written, and the libraries that have it, by the text without its line ends.
    texts, users = {}, collections.defaultdict(list)
    print(HEAD)
    for each in bundle:
        name = f"{each['package_name']} {each['package_version']}"
        found = [license for license in each["licenses"] if license["text"] != MISSING]
        for license in found:
            key = (license["license"], normal(license["text"]))
            texts.setdefault(key, license["text"])
            users[key].append(name)
        none = "" if found else "; it comes without a text"
        print(f"{name}: {each['license']}{none}; {each['repository']}")
    for key in sorted(texts, key=lambda key: (key[0], -len(users[key]), users[key])):
        print(f"\n{'=' * 80}\n{key[0]}: {', '.join(users[key])}\n{'=' * 80}\n")
        print("\n".join(line.rstrip() for line in texts[key].strip("\n").splitlines()))


if __name__ == "__main__":
    main(*sys.argv[1:])
