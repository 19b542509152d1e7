"""The executables and the images, made once as a user makes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from docker import APIClient

import morpheo
from tests.support.checkout import ROOT, SERVICES


@pytest.fixture(scope="session")
def executables() -> dict[str, Path]:
    """The files that `make all-bin` makes."""
    subprocess.run(["make", "-s", "all-bin"], cwd=ROOT, check=True)
    return {name: ROOT / name / "target" / name for name in SERVICES}


@pytest.fixture(scope="session")
def images(engine: APIClient) -> dict[str, str]:
    """The images that `make all-docker` builds."""
    subprocess.run(["make", "-s", "all-docker"], cwd=ROOT, check=True)
    return {name: f"morpheo/{name}:{morpheo.__version__}" for name in SERVICES}
