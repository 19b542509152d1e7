"""
Reads a submitted Dockerfile before the engine does, and refuses what could reach beyond the build.

Where problem and algo images share an engine this check keeps an algo from naming a problem's image in ``FROM`` or
``COPY --from`` (``trust`` 0.4), and ``ADD`` from fetching through the engine's network (0.3). Elsewhere it is a
courtesy: a clear sentence instead of a strange build error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from morpheo.errors import BadArchive

_REFUSED = {
    "VOLUME": "VOLUME would be a writable folder without a limit; write to /data and /tmp instead",
    "ONBUILD": "ONBUILD is not accepted; write the instruction itself",
}
_FLAG = re.compile(r"--([a-z-]+)(?:=([A-Za-z0-9:._/-]+))?")
_DIRECTIVE = re.compile(r"#\s*(syntax|escape|check)\s*=", re.IGNORECASE)


def check_dockerfile(text: str, *, base_images: tuple[str, ...]) -> None:
    """
    Check a Dockerfile.

    Args:
        text: Its content.
        base_images: What FROM may name; ``*`` is any text.

    Raises:
        BadArchive: it holds something that is not accepted; the sentence names the line.
    """
    stages: list[str] = []
    for number, keyword, rest in _instructions(text):
        flags, arguments = _split_flags(rest, number)
        if keyword in _REFUSED:
            raise BadArchive(f"Dockerfile line {number}: {_REFUSED[keyword]}")
        if keyword == "FROM":
            name = _base_name(arguments, number)
            if name.lower() not in stages:
                _check_base(name, number, base_images)
            stages.append(arguments[-1].lower() if [word.upper() for word in arguments[1:2]] == ["AS"] else "")
        earlier = {*stages, *map(str, range(len(stages)))} - {""}
        if "from" in flags and flags["from"].lower() not in earlier:
            raise BadArchive(f"Dockerfile line {number}: --from may only name an earlier stage of this Dockerfile")
        if keyword == "ADD" and any(re.match(r"[\[\"']*(\w+://|git@)", word) or "$" in word for word in arguments):
            raise BadArchive(f"Dockerfile line {number}: ADD of a URL is not accepted; pack the file into the archive")
        if keyword == "RUN" and flags:
            raise BadArchive(f"Dockerfile line {number}: flags of RUN are not accepted")
    if not stages:
        raise BadArchive("Dockerfile has no FROM")


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    # Only what the engine takes for white space may be white space here, or a line could read differently there.
    if any(char.isspace() and char not in " \t\n" for char in text.replace("\r\n", "\n")):
        raise BadArchive("Dockerfile has white space other than spaces, tabs and line ends")
    joined, start = "", 0
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), "#"], 1):
        stripped = line.strip(" \t")
        if _DIRECTIVE.match(stripped):
            raise BadArchive(f"Dockerfile line {number}: parser directives (# syntax, # escape) are not accepted")
        is_last = number > text.count("\n") + 1
        if not stripped or stripped.startswith("#"):  # also inside a continued instruction, as the engine does
            if not (is_last and joined):
                continue
            stripped = ""
        start = start or number
        if stripped.endswith("\\"):
            joined += stripped[:-1]
            continue
        words = (joined + stripped).split(None, 1)
        joined = ""
        if words:
            yield start, words[0].upper(), words[1] if len(words) > 1 else ""
        start = 0


def _split_flags(rest: str, number: int) -> tuple[dict[str, str], list[str]]:
    words = rest.split()
    flags: dict[str, str] = {}
    while words and words[0].startswith("--"):
        match = _FLAG.fullmatch(words[0])
        if match is None:
            raise BadArchive(f"Dockerfile line {number}: the flag {words[0][:50]!r} is not accepted")
        flags[match[1]] = match[2] or ""
        words.pop(0)
    return flags, words


def _base_name(arguments: list[str], number: int) -> str:
    if not arguments:
        raise BadArchive(f"Dockerfile line {number}: FROM names no image")
    return arguments[0]


def _check_base(name: str, number: int, base_images: tuple[str, ...]) -> None:
    full = name if ":" in name.rsplit("/", 1)[-1] or name == "scratch" else f"{name}:latest"
    if "@" in name or "$" in name or not any(fnmatchcase(full, pattern) for pattern in base_images):
        raise BadArchive(
            f"Dockerfile line {number}: FROM {name[:100]} is not accepted here; use one of {', '.join(base_images)}, "
            "or ask the operator to add it to MORPHEO_BASE_IMAGES"
        )
