"""A whole stack, started as a user would, and what `make` builds, for all acceptance tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient

from morpheo.cli.demo import throwaway_stack
from morpheo.client import ComputeClient, StorageClient
from tests.support.services import free_port

#: Short times, so that faults and limits are seen soon.
SETTINGS = {
    "MORPHEO_LEASE_S": "10",
    "MORPHEO_HEARTBEAT_S": "0.5",
    "MORPHEO_SWEEP_S": "0.5",
    "MORPHEO_RETRY_DELAY_S": "0.2",
    "MORPHEO_LEARN_TIMEOUT_S": "120",
    "MORPHEO_MEMORY_BYTES": str(128 << 20),
    "MORPHEO_MODEL_BYTES": str(4 << 20),
    "MORPHEO_LOG": "json",
}


@dataclass(frozen=True)
class Stack:
    """A running stack and how to speak to it; the worker's address is that of its metrics."""

    urls: dict[str, str]
    folder: Path
    storage: StorageClient
    compute: ComputeClient

    def cli(self, *arguments: str, status: int = 0) -> str:
        """Run the `morpheo` command against the stack; gives what it prints."""
        environment = {
            **os.environ,
            "MORPHEO_COMPUTE_URL": self.urls["compute"],
            "MORPHEO_STORAGE_URL": self.urls["storage"],
        }
        done = subprocess.run(
            [sys.executable, "-m", "morpheo", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def cli_json(self, *arguments: str, status: int = 0) -> Any:
        """Run a command with ``--json``; gives the document."""
        return json.loads(self.cli(*arguments, "--json", status=status))


@pytest.fixture(scope="session")
def stack(engine: APIClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack on free ports; after the last test it must have left nothing."""
    before = leftovers(engine)
    folder = tmp_path_factory.mktemp("stack")
    port = free_port()
    with throwaway_stack(folder, {**SETTINGS, "MORPHEO_METRICS_PORT": str(port)}) as urls:
        yield Stack(
            urls={**urls, "worker": f"http://127.0.0.1:{port}"},
            folder=folder,
            storage=StorageClient(urls["storage"], user="u", password="p"),
            compute=ComputeClient(urls["compute"], user="u", password="p"),
        )
    assert leftovers(engine) == before
    assert list((folder / "data" / "work").glob("*")) == []
    assert list((folder / "data" / "incoming").iterdir()) == []


def leftovers(engine: APIClient) -> tuple[set[str], set[str]]:
    """Return all containers, and the images without a tag."""
    containers = {container["Id"] for container in engine.containers(all=True)}
    return containers, {image["Id"] for image in engine.images(filters={"dangling": True})}
