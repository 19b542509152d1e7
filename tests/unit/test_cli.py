"""The command line, as far as it needs no service."""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from morpheo.cli import COMMANDS, main, morpheo
from morpheo.cli.common import EXIT_UNAVAILABLE, EXIT_USAGE
from morpheo.config import Settings
from tests.support.services import free_port


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command as its console script does; gives the exit status."""
    monkeypatch.setattr("sys.argv", ["morpheo", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_every_command_has_help(runner: CliRunner) -> None:
    listing = runner.invoke(morpheo, ["--help"])
    assert listing.exit_code == 0
    for name in COMMANDS:
        assert name in listing.output
        assert runner.invoke(morpheo, [name, "--help"]).output.count("\n") > 3
    assert "No such command 'nothing'" in runner.invoke(morpheo, ["nothing"]).output


def test_config_lists_every_setting_and_masks_secrets(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEO_PASSWORD", "hunter2")
    monkeypatch.setenv("MORPHEO_CPUS", "3.5")
    result = runner.invoke(morpheo, ["config", "--json"])
    rows = {row["variable"]: row for row in json.loads(result.output)}
    assert set(rows) == {f"MORPHEO_{name.upper()}" for name in Settings.model_fields}
    assert rows["MORPHEO_CPUS"]["value"] == "3.5"
    assert rows["MORPHEO_PASSWORD"]["value"] == "***"
    assert "hunter2" not in result.output
    assert all(row["meaning"] for row in rows.values())


def test_config_names_a_variable_that_is_no_setting(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEO_LEESE_S", "30")
    assert "MORPHEO_LEESE_S is set, but there is no such setting" in runner.invoke(morpheo, ["config"]).output


def test_a_bad_setting_stops_with_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MORPHEO_LEASE_S", "soon")
    assert run_main(monkeypatch, "config") == EXIT_USAGE
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "MORPHEO_LEASE_S=soon" in error


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("compute-api", ["--help"], "morpheo compute-api [OPTIONS]"),
        ("compute-worker", ["--help"], "morpheo worker [OPTIONS]"),
        ("orchestrator-api", ["--help"], "morpheo orchestrator-api [OPTIONS]"),
        ("compute-api", ["migrate", "--help"], "morpheo migrate [OPTIONS]"),
        ("compute-api", ["--version"], "morpheo, version"),
        ("morpheo", ["--help"], "morpheo [OPTIONS] COMMAND"),
    ],
)
def test_the_name_of_the_program_chooses_the_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.setattr("sys.argv", [f"/somewhere/{name}", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert expected in capsys.readouterr().out


def test_migrate_makes_the_tables(runner: CliRunner, tmp_path: Path) -> None:
    assert "(were at none)" in runner.invoke(morpheo, ["migrate"]).output
    assert (tmp_path / "data" / "morpheo.db").exists()
    assert "were at" not in runner.invoke(morpheo, ["migrate"]).output


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_dev_says_which_port_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken_port: int
) -> None:
    ports = ("--compute-port=0", "--flower-port=0", "--redis-port=0", f"--storage-port={taken_port}")
    assert run_main(monkeypatch, "dev", *ports) == EXIT_USAGE
    error = capsys.readouterr().err
    assert f"port {taken_port} is taken" in error
    assert "--storage-port" in error


def test_dev_gives_no_port_to_two_services(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert run_main(monkeypatch, "dev", f"--compute-port={port}", f"--storage-port={port}") == EXIT_USAGE
    assert f"port {port} is taken" in capsys.readouterr().err


# docker-py leaves the socket of a failed connection to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("command", ["dev", "demo"])
def test_without_an_engine_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    monkeypatch.setenv("MORPHEO_DOCKER_HOST", f"unix://{tmp_path}/nowhere.sock")
    ports = [f"--{name}-port=0" for name in ("compute", "storage", "flower", "redis")] if command == "dev" else []
    assert run_main(monkeypatch, command, *ports) == EXIT_UNAVAILABLE
    error = capsys.readouterr().err
    assert "no container engine answers" in error
    assert "MORPHEO_DOCKER_HOST" in error
    gc.collect()


@pytest.mark.parametrize("command", [("jobs", "ls"), ("ls", "algo"), ("algo", "ls")], ids=" ".join)
def test_a_service_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    for name in ("COMPUTE", "STORAGE", "ORCHESTRATOR"):
        monkeypatch.setenv(f"MORPHEO_{name}_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("morpheo.client.http.HttpClient.__init__.__kwdefaults__", {"auth": None, "retries": 0})
    assert run_main(monkeypatch, *command) == EXIT_UNAVAILABLE
    assert "no answer from http://127.0.0.1:9; is it running?" in capsys.readouterr().err


def test_an_id_that_is_none_is_a_usage_error(runner: CliRunner) -> None:
    result = runner.invoke(morpheo, ["jobs", "show", "12"])
    assert result.exit_code == EXIT_USAGE
    assert "'12' is not a UUID" in result.output


def test_the_page_of_settings_is_up_to_date(runner: CliRunner) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "settings.md").read_text()
    assert page == runner.invoke(morpheo, ["config", "--markdown"]).output, (
        "morpheo config --markdown >docs/settings.md"
    )
