"""The checkout that executables and images are built from, and copies of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVICES = ("compute-api", "compute-worker", "orchestrator-api", "storage-api")


def copy_of_checkout(target: Path) -> Path:
    """Copy what is built from, with the wheels that are there, as a strict umask would have it."""
    others = ("*.egg-info", ".*_cache", ".git", ".venv", "target", "tests")
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*others))
    subprocess.run(["chmod", "-R", "go=", str(target)], check=True)
    for name in (".git", ".venv"):
        if (ROOT / name).exists():
            (target / name).symlink_to(ROOT / name)
    return target
