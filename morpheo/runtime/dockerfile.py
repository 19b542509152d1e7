"""
Reads a submitted Dockerfile before the engine does, and refuses what could reach beyond the build.

Where problem and algo images share an engine this check keeps an algo from naming a problem's image in ``FROM`` or
``COPY --from`` (``trust`` 0.4), and ``ADD`` from fetching through the engine's network (0.3). Elsewhere it is a
courtesy: a clear sentence instead of a strange build error.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from morpheo.errors import BadArchive

_ACCEPTED = re.compile(
    "ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|MAINTAINER|RUN|SHELL|STOPSIGNAL|USER|WORKDIR"
)
_REFUSED = {
    "VOLUME": "VOLUME would be a writable folder without a limit; write to /data and /tmp instead",
    "ONBUILD": "ONBUILD is not accepted; write the instruction itself",
}
_FLAG = re.compile(r"--([a-z-]+)(?:=([A-Za-z0-9:._/-]+))?")
_DIRECTIVE = re.compile(r"#\s*(syntax|escape|check)\s*=", re.IGNORECASE)
_SIGNAL = re.compile(r"[A-Za-z0-9+-]{1,16}")
_STAGE = re.compile(r"[a-z][a-z0-9_.-]*")
#: The engine keeps an image for each instruction, with all variables and labels.
_MAX_INSTRUCTIONS = 500
#: How long all instructions may be together with their variables filled in: ``ENV A=$A$A`` doubles it each time.
_MAX_EXPANDED = 128 << 10
#: What a variable of the base image is taken to be long.
_UNKNOWN = 256
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)")
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)=|^([A-Za-z_]\w*)")
#: Whose variables the shell of the image fills in, or nobody.
_NOT_EXPANDED = ("RUN", "CMD", "ENTRYPOINT", "HEALTHCHECK", "SHELL", "MAINTAINER")
#: Where a program finds what is not its image's; a container that starts there could get out (CVE-2024-21626).
_MASKED_FOLDERS = ("/proc", "/sys", "/dev")


def check_dockerfile(text: str, *, base_images: tuple[str, ...]) -> None:
    """
    Check a Dockerfile.

    Args:
        text: Its content.
        base_images: What FROM may name; ``*`` is any text.

    Raises:
        BadArchive: it holds something that is not accepted; the sentence names the line.
    """
    found = _Found(base_images)
    for number, keyword, rest in _instructions(text):
        if not _ACCEPTED.fullmatch(keyword):
            reason = _REFUSED.get(keyword, f"{keyword[:50]!r} is not an instruction")
            raise BadArchive(f"Dockerfile line {number}: {reason}")
        found.take(number, keyword, rest)
    if not found.stages:
        raise BadArchive("Dockerfile has no FROM")


class _Found:
    """What of a Dockerfile was read so far."""

    def __init__(self, base_images: tuple[str, ...]) -> None:
        self._base_images = base_images
        #: Names of the stages, empty for those without.
        self.stages: list[str] = []
        self._sizes: dict[str, int] = {}
        self._folder = "/"
        self._instructions = self._expanded = 0

    def take(self, number: int, keyword: str, rest: str) -> None:
        """Check one more instruction."""
        flags, arguments = _split_flags(rest, number)
        if keyword == "FROM":
            self.stages.append(_stage(arguments, number, self.stages, self._base_images))
            self._folder = "/"
        if "from" in flags:
            self._check_source(flags["from"], number)
        if keyword == "ADD":
            _check_add(rest, number)
        if keyword == "RUN" and flags:
            raise BadArchive(f"Dockerfile line {number}: flags of RUN are not accepted")
        if keyword in ("RUN", "COPY", "ADD") and "<<" in rest:  # some engines would skip the lines that follow
            raise BadArchive(f"Dockerfile line {number}: << is not accepted; COPY a script from the archive and run it")
        if keyword == "STOPSIGNAL" and not _SIGNAL.fullmatch(rest):  # the engine quotes what is none of its signals
            raise BadArchive(f"Dockerfile line {number}: STOPSIGNAL takes the name or the number of a signal")
        if keyword == "WORKDIR":
            self._folder = _checked_folder(self._folder, rest, number)
        self._count(number, keyword, rest)

    def _check_source(self, name: str, number: int) -> None:
        # Without the present stage: the engine takes its name, while it is built, for that of an image.
        earlier = self.stages[:-1]
        if name.lower() not in {*earlier, *map(str, range(len(earlier)))} - {""}:
            raise BadArchive(f"Dockerfile line {number}: --from may only name an earlier stage of this Dockerfile")

    def _count(self, number: int, keyword: str, rest: str) -> None:
        self._instructions += 1
        self._expanded += _expand(keyword, rest, self._sizes)
        if self._instructions > _MAX_INSTRUCTIONS:
            raise BadArchive(f"Dockerfile line {number}: more than {_MAX_INSTRUCTIONS} instructions; join some with &&")
        if self._expanded > _MAX_EXPANDED:
            raise BadArchive(f"Dockerfile line {number}: its variables make it too long; put long texts into a file")


def base_images(text: str) -> list[str]:
    """
    Return the images that a Dockerfile starts from, apart from ``scratch`` and its own stages.

    Raises:
        BadArchive: it cannot be read.
    """
    stages: list[str] = []
    names = []
    for number, keyword, rest in _instructions(text):
        if keyword == "FROM" and (arguments := _split_flags(rest, number)[1]):
            if arguments[0].lower() not in (*stages, "scratch"):
                names.append(arguments[0])
            stages.append(arguments[-1].lower() if len(arguments) > 1 else "")
    return names


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    # Only what the engine takes for white space may be white space here, or a line could read differently there.
    if any(char.isspace() and char not in " \t\n" for char in text.replace("\r\n", "\n")):
        raise BadArchive("Dockerfile has white space other than spaces, tabs and line ends")
    joined, start = "", 0
    lines = [*text.replace("\r\n", "\n").split("\n"), ""]
    for number, line in enumerate(lines, 1):
        stripped = line.strip(" \t")
        is_last = number == len(lines)
        if _DIRECTIVE.match(stripped):
            raise BadArchive(f"Dockerfile line {number}: parser directives (# syntax, # escape) are not accepted")
        if not is_last and (not stripped or stripped.startswith("#")):  # inside a continued instruction as well
            continue
        if stripped.endswith("\\\\"):  # engines differ in whether the line ends here
            raise BadArchive(f"Dockerfile line {number}: a line may not end with two backslashes")
        start = start or number
        joined += line.rstrip(" \t").removesuffix("\\")  # the white space before a continued line counts
        if stripped.endswith("\\"):
            continue
        words = joined.split(None, 1)
        if words:
            yield start, words[0].upper(), words[1] if len(words) > 1 else ""
        joined, start = "", 0


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


def _stage(arguments: list[str], number: int, stages: list[str], base_images: tuple[str, ...]) -> str:
    if not arguments:
        raise BadArchive(f"Dockerfile line {number}: FROM names no image")
    if arguments[0].lower() not in stages:
        _check_base(arguments[0], number, base_images)
    match [word.lower() for word in arguments[1:]]:
        case []:
            return ""
        case ["as", name] if _STAGE.fullmatch(name):
            return name
    raise BadArchive(f"Dockerfile line {number}: FROM takes an image, and AS with a name of a-z, 0-9, - _ and .")


def _check_base(name: str, number: int, base_images: tuple[str, ...]) -> None:
    if "@" in name or "$" in name or not any(_is_allowed(name, pattern) for pattern in base_images):
        raise BadArchive(
            f"Dockerfile line {number}: FROM {name[:100]} is not accepted here; use one of {', '.join(base_images)}, "
            "or ask the operator to add it to MORPHEO_BASE_IMAGES"
        )


def _is_allowed(name: str, pattern: str) -> bool:
    if name == pattern:
        return True
    # Repository and tag apart, or the port of somebody's registry would match a pattern for tags.
    allowed_repository, allowed_tag = _split_tag(pattern, "*" if pattern.endswith("*") else "latest")
    repository, tag = _split_tag(name, "latest")
    return repository != "scratch" and fnmatchcase(repository, allowed_repository) and fnmatchcase(tag, allowed_tag)


def _split_tag(name: str, default: str) -> tuple[str, str]:
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, default)


def _check_add(rest: str, number: int) -> None:
    # The engine removes quotes and backslashes and fills in variables before it looks for a URL.
    unquoted = rest.replace('"', "").replace("'", "")
    if "://" in unquoted or "git@" in unquoted or "\\" in rest or "$" in rest:
        raise BadArchive(
            f"Dockerfile line {number}: ADD of a URL, or with a variable or a backslash, is not accepted; "
            "pack the file into the archive"
        )


def is_masked(folder: str) -> bool:
    """Whether a folder of an image is, or lies in, one that the engine mounts something else at."""
    normal = posixpath.normpath("/" + folder.lstrip("/"))
    return any(normal == masked or normal.startswith(f"{masked}/") for masked in _MASKED_FOLDERS)


def _checked_folder(before: str, rest: str, number: int) -> str:
    named = rest.replace('"', "").replace("'", "").strip()
    if "$" in named or "\\" in named:
        raise BadArchive(f"Dockerfile line {number}: WORKDIR with a variable or a backslash is not accepted")
    folder = posixpath.join(before, named)
    if is_masked(folder):
        raise BadArchive(f"Dockerfile line {number}: WORKDIR in {', '.join(_MASKED_FOLDERS)} is not accepted")
    return folder


def _expand(keyword: str, rest: str, sizes: dict[str, int]) -> int:
    """Return how long an instruction is with its variables filled in, at most; remember those that it sets."""
    if keyword in _NOT_EXPANDED:
        return len(rest)
    size = len(rest) + sum(sizes.get(match[1], _UNKNOWN) for match in _VARIABLE.finditer(rest))
    if keyword in ("ENV", "ARG"):
        sizes.update(dict.fromkeys((match[1] or match[2] for match in _ASSIGNED.finditer(rest)), size))
    return size
