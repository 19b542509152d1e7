"""The stack of compose.yaml, brought up by `make up` under a name of its own, and taken down by `make down`."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docker import APIClient

from morpheo.client import ComputeClient, StorageClient
from tests.support.servers import lasting_port

ROOT = Path(__file__).parents[2]

#: Short times, so that faults are repaired soon.
SETTINGS = {
    "MORPHEO_LEASE_S": "6",
    "MORPHEO_HEARTBEAT_S": "1",
    "MORPHEO_SWEEP_S": "1",
    "MORPHEO_RETRY_DELAY_S": "1",
    "MORPHEO_LEARN_PARALLELISM": "5",
    "MORPHEO_MEMORY_BYTES": str(128 << 20),
}


@dataclass(frozen=True)
class Deployment:
    """A running deployment and how to speak to it."""

    project: str
    #: The variables that `make` and Compose take it by.
    environment: dict[str, str]
    #: What is in its .env.
    secrets: dict[str, str]
    ports: dict[str, int]
    engine: APIClient
    storage: StorageClient
    compute: ComputeClient

    def make(self, target: str) -> str:
        """Run a Make target; gives what it prints."""
        return run("make", "-s", target, environment=self.environment)

    def compose(self, *arguments: str) -> str:
        """Run Docker Compose; gives what it prints."""
        return run("scripts/compose", *arguments, environment=self.environment)

    def container(self, service: str) -> str:
        """Return the id of a service's first container."""
        return self.containers(service)[0]

    def containers(self, service: str = "") -> list[str]:
        """Return the ids of a service's containers, or of all, oldest first."""
        labels = [f"com.docker.compose.project={self.project}"]
        labels += [f"com.docker.compose.service={service}"] if service else []
        found = self.engine.containers(all=True, filters={"label": labels})
        return [item["Id"] for item in sorted(found, key=lambda item: item["Created"])]

    def cli(self, *arguments: str) -> str:
        """Run the `morpheo` command against the deployment; gives what it prints."""
        environment = {
            **os.environ,
            "MORPHEO_COMPUTE_URL": f"http://127.0.0.1:{self.ports['compute']}",
            "MORPHEO_ORCHESTRATOR_URL": f"http://127.0.0.1:{self.ports['orchestrator']}",
            "MORPHEO_STORAGE_URL": f"http://127.0.0.1:{self.ports['storage']}",
            "MORPHEO_USER": self.secrets["MORPHEO_USER"],
            "MORPHEO_PASSWORD": self.secrets["MORPHEO_PASSWORD"],
        }
        return run(".venv/bin/morpheo", *arguments, environment=environment)


def run(*command: str, environment: dict[str, str]) -> str:
    """Run a command in the project's folder; fail the test with its output if it fails."""
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def deployment(engine: APIClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two workers and everything else; afterwards nothing of it may be left."""
    folder = tmp_path_factory.mktemp("deployment")
    project = f"morpheo-test-{uuid.uuid4().hex[:8]}"
    ports = {name: lasting_port() for name in ("compute", "storage", "orchestrator", "flower")}
    (folder / "settings.env").write_text("".join(f"{name}={value}\n" for name, value in SETTINGS.items()))
    environment = {
        # Compose would prefer these to what `make env` has written.
        **{name: value for name, value in os.environ.items() if name not in ("MORPHEO_USER", "MORPHEO_PASSWORD")},
        "COMPOSE_PROJECT_NAME": project,
        "COMPOSE_ENV_FILES": str(folder / "env"),
        "SETTINGS_FILE": str(folder / "settings.env"),
        "WORKERS": "2",
        **{f"{name.upper()}_PORT": str(port) for name, port in ports.items()},
    }
    run("make", "-s", "env", environment=environment)
    lines = (folder / "env").read_text().splitlines()
    secrets = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    made = Deployment(
        project=project,
        environment=environment,
        secrets=secrets,
        ports=ports,
        engine=engine,
        storage=StorageClient(
            f"http://127.0.0.1:{ports['storage']}", user=secrets["MORPHEO_USER"], password=secrets["MORPHEO_PASSWORD"]
        ),
        compute=ComputeClient(
            f"http://127.0.0.1:{ports['compute']}", user=secrets["MORPHEO_USER"], password=secrets["MORPHEO_PASSWORD"]
        ),
    )
    try:
        made.make("up")
        yield made
    finally:
        made.make("down")
    assert belongings(engine, project) == []


def belongings(engine: APIClient, project: str) -> list[str]:
    """Return the containers, volumes and networks of a Compose project."""
    mine = {"label": f"com.docker.compose.project={project}"}
    found = [json.dumps(item["Names"]) for item in engine.containers(all=True, filters=mine)]
    found += [item["Name"] for item in engine.volumes(filters=mine)["Volumes"] or []]
    return found + [item["Name"] for item in engine.networks(filters=mine)]
