"""Folders of problems and algos, as the people who write them have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.support.jobs import ALGO, PROBLEM

SAMPLE = {
    "sample/train/one": "a:1",
    "sample/train/two": "b:2",
    "sample/test/four": "b:2",
    "sample/test/three": "c:3",
}
DOCKERFILE = 'FROM morpheo/base:1\nCOPY program.py /program.py\nENTRYPOINT ["python3", "-S", "/program.py"]\n'


def write_folder(folder: Path, files: Mapping[str, str]) -> Path:
    """Write files of a folder, and return it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def problem_folder(folder: Path, *, dockerfile: str = DOCKERFILE, sample: Mapping[str, str] = SAMPLE) -> Path:
    """Write a problem with a sample of four items: ``x:target``."""
    return write_folder(folder, {"Dockerfile": dockerfile, "program.py": PROBLEM, **sample})


def algo_folder(folder: Path, *, program: str = ALGO, dockerfile: str = DOCKERFILE) -> Path:
    """Write an algo that remembers what it was trained on."""
    return write_folder(folder, {"Dockerfile": dockerfile, "program.py": program})
