"""What the doctor says of an engine's sandbox, and what facts are read from an engine's answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from morpheo.config import Settings
from morpheo.doctor import confinement
from morpheo.doctor.findings import Status
from morpheo.runtime.docker import read_facts

INFO: dict[str, Any] = {
    "DockerRootDir": "/nowhere/docker",
    "SecurityOptions": ["name=seccomp,profile=default"],
    "Runtimes": {"runc": {}},
}


def sandbox(monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], **settings: Any) -> Any:
    monkeypatch.setattr(confinement, "_info", lambda _url: {**INFO, **info})
    return confinement._check_sandbox("tcp://engine", Settings(**settings))


def test_the_sandbox_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sandbox(monkeypatch, {}).status is Status.OK
    found = sandbox(monkeypatch, {"Runtimes": {"runc": {}, "runsc": {}}}, sandbox="runsc")
    assert (found.status, "runsc" in str(found)) == (Status.OK, True)


def test_a_sandbox_that_the_engine_does_not_know_fails_and_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sandbox(monkeypatch, {}, sandbox="runsc")
    assert found.status is Status.FAIL
    assert "apt-get install runsc" in str(found)


@pytest.mark.parametrize("options", [[], ["name=seccomp,profile=unconfined"], ["name=apparmor"]])
def test_an_engine_that_filters_no_system_calls_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    assert sandbox(monkeypatch, {"SecurityOptions": options}).status is Status.WARN


def test_user_namespaces_are_read_from_the_engines_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {
        **INFO,
        "DockerRootDir": "/var/lib/docker/300000.300001",
        "SecurityOptions": ["name=seccomp", "name=userns"],
    }
    assert read_facts("tcp://engine", info).first_id == 300000
    assert "300000" in str(sandbox(monkeypatch, info))
    assert read_facts("tcp://engine", INFO).first_id == 0


def test_an_engine_on_another_machine_is_not_seen(tmp_path: Path) -> None:
    info = {**INFO, "DockerRootDir": str(tmp_path)}
    facts = read_facts("tcp://engine:2375", info)
    assert (facts.data_root, facts.pid) == (None, None)
    assert read_facts(f"unix://{tmp_path}/nobody.sock", info).pid is None
    assert read_facts(f"unix://{tmp_path}/nobody.sock", info).data_root == tmp_path
