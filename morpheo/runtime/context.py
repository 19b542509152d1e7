"""Which files of a folder are its build context."""

from __future__ import annotations

from pathlib import Path

from docker.utils.build import exclude_paths

IGNORE_FILE = ".dockerignore"


def context_names(folder: Path) -> list[str]:
    """
    Return the names of all that a build of a folder is given, sorted: relative paths with ``/``.

    By the rules of ``.dockerignore`` as Docker's own client for Python has them; links are not followed. The Dockerfile
    and ``.dockerignore`` itself are always given to a build, ignored or not.

    Raises:
        OSError: a folder or ``.dockerignore`` cannot be read.
        UnicodeDecodeError: ``.dockerignore`` is not UTF-8 text.
    """
    lines: list[str] = []
    if (folder / IGNORE_FILE).is_file():
        lines = [line.strip() for line in (folder / IGNORE_FILE).read_text("utf-8-sig").splitlines()]
    return sorted(exclude_paths(str(folder), [line for line in lines if line and not line.startswith("#")]))
