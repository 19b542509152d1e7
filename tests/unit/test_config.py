"""The settings: read from the environment, wrong ones named in one line, secrets shown nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pydantic
import pytest

from morpheo.config import PREFIX, Settings
from morpheo.errors import SettingsError


def read(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(PREFIX + name.upper(), value)
    return Settings.from_env()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lease_s", "60", 60.0),
        ("pids", "12", 12),
        ("s3_secure", "false", False),
        ("s3_secure", "1", True),
        ("strict_size", "yes", True),
        ("s3_endpoint", "s3.example:9000", "s3.example:9000"),
        ("base_images", "python:3.11, scratch,", ("python:3.11", "scratch")),
        ("base_images", "", ()),
        ("cors_origins", "https://a.example", ("https://a.example",)),
        ("data_dir", "/srv/morpheo", Path("/srv/morpheo")),
        ("log_level", "DEBUG", "DEBUG"),
        ("retry_delay_s", "0", 0.0),
        ("queues", "gpu, learn", ("gpu", "learn")),
        ("predict_parallelism", "0", 0),
        ("gpus", "all", "all"),
        ("gpus", "2", "2"),
        ("gpus", "0,", "0,"),
        ("gpus", "GPU-8c3f,MIG-1/2", "GPU-8c3f,MIG-1/2"),
    ],
)
def test_a_setting_is_read_from_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    assert getattr(read(monkeypatch, **{name: text}), name) == value


def test_settings_of_other_programs_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEASE_S", "99")
    monkeypatch.setenv("MORPHEO_ENGINE_DIR", "/x")
    assert Settings.from_env().lease_s == 30


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("lease_s", "abc", "valid number"),
        ("lease_s", "", "valid number"),
        ("lease_s", "0", "greater than 0"),
        ("lease_s", "-1", "greater than 0"),
        ("lease_s", "nan", "finite number"),
        ("retry_delay_s", "-1", "greater than or equal to 0"),
        ("pids", "1.5", "valid integer"),
        ("max_attempts", "0", "greater than 0"),
        ("container_uid", "0", "greater than 0"),
        ("memory_bytes", "1024", "greater than or equal to 16777216"),
        ("memory_bytes", "2g", "valid integer"),
        ("s3_secure", "perhaps", "valid boolean"),
        ("s3_bucket", "ab", "at least 3 characters"),
        ("user", "", "at least 1 character"),
        ("log_level", "LOUD", "DEBUG|INFO|WARNING|ERROR"),
        ("gpus", "0", "should match pattern"),
        ("gpus", "any", "should match pattern"),
        ("queues", "learn,GPU", "'GPU' is not a tag"),
        ("queues", "", "name at least one of learn, predict, or a tag"),
        ("queues", "a,b,c,d,e", "at most 4 tags"),
        ("learn_parallelism", "-1", "greater than or equal to 0"),
        ("heartbeat_s", "15.1", "at most half of MORPHEO_LEASE_S (30), or leases run out"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable_and_says_what_is_right(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, sentence: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        read(monkeypatch, **{name: text})
    message = str(caught.value)
    assert message.startswith(f"MORPHEO_{name.upper()}={text}: ")
    assert sentence in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "url", ["mysql://user:hunter2@host/x", "postgresql://user:hunter2@host/x", "hunter2", "sqlite://hunter2"]
)
def test_the_url_of_another_database_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(SettingsError, match="must begin with sqlite:/// or postgresql") as caught:
        read(monkeypatch, database_url=url)
    assert str(caught.value).startswith("MORPHEO_DATABASE_URL=***: ")
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@host", "hunter2", "", "sqs://hunter2", "redis://host:hunter2", "redis://host:70000/0"]
)
def test_the_url_of_another_broker_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(SettingsError, match=r"must begin with one of redis:// .* amqps://|its port is not") as caught:
        read(monkeypatch, broker_url=url)
    assert str(caught.value).startswith("MORPHEO_BROKER_URL=***: ")
    assert "hunter2" not in str(caught.value)


def test_the_error_does_not_carry_the_values_along(monkeypatch: pytest.MonkeyPatch) -> None:
    # A traceback with its cause would print what pydantic was given.
    with pytest.raises(SettingsError) as caught:
        read(monkeypatch, lease_s="abc")
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


SECRETS = {
    "database_url": "postgresql+psycopg://user:hunter2@host/x",
    "broker_url": "redis://:hunter2@host/0",
    "s3_secret_key": "hunter2",
    "password": "hunter2",
    "token": "hunter2",
}


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, **SECRETS)
    shown = f"{settings!r} {settings!s} {settings.model_dump()} {settings.model_dump_json()}"
    assert "hunter2" not in shown


def test_whoever_needs_a_secret_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, **SECRETS)
    assert settings.database == SECRETS["database_url"]
    assert settings.broker == SECRETS["broker_url"]
    assert settings.password.get_secret_value() == "hunter2"


def test_every_setting_that_sounds_like_a_secret_is_one() -> None:
    sounding = {name for name in Settings.model_fields if any(word in name for word in ("secret", "password", "token"))}
    assert sounding == {"s3_secret_key", "password", "token"}
    assert {name for name, field in Settings.model_fields.items() if field.annotation is pydantic.SecretStr} == set(
        SECRETS
    )


@pytest.mark.parametrize(("lease_s", "heartbeat_s", "accepted"), [("20", "10", True), ("19.9", "10", False)])
def test_two_heartbeats_fit_into_a_lease(
    monkeypatch: pytest.MonkeyPatch, lease_s: str, heartbeat_s: str, *, accepted: bool
) -> None:
    if accepted:
        assert read(monkeypatch, lease_s=lease_s, heartbeat_s=heartbeat_s).heartbeat_s == 10
    else:
        with pytest.raises(SettingsError, match=r"MORPHEO_HEARTBEAT_S=10: .* MORPHEO_LEASE_S \(19.9\)"):
            read(monkeypatch, lease_s=lease_s, heartbeat_s=heartbeat_s)


def test_a_lease_too_short_for_the_default_heartbeat_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"MORPHEO_HEARTBEAT_S.*MORPHEO_LEASE_S \(15\)"):
        read(monkeypatch, lease_s="15")


def test_settings_do_not_change() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Settings.from_env().lease_s = 1  # type: ignore[misc]


def test_the_database_is_a_file_in_the_data_folder_unless_told_otherwise(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path).database == f"sqlite:///{tmp_path}/morpheo.db"


def test_the_data_folder_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert read(monkeypatch, data_dir="data").data_dir == tmp_path / "data"
    assert read(monkeypatch, data_dir="~/data").data_dir == Path("/home/somebody/data")


def test_the_engine_is_morpheos_then_dockers_then_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert Settings.from_env().engine_url == "unix:///var/run/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", "tcp://engine:2376")
    assert Settings.from_env().engine_url == "tcp://engine:2376"
    assert read(monkeypatch, docker_host="unix:///run/dind.sock").engine_url == "unix:///run/dind.sock"


@pytest.mark.parametrize(("worker", "container"), [(0, 10001), (1234, 1234)])
def test_a_container_never_runs_as_root(monkeypatch: pytest.MonkeyPatch, worker: int, container: int) -> None:
    monkeypatch.setattr(os, "getuid", lambda: worker)
    assert Settings.from_env().container_user == container


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described_and_has_a_default(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.description
    assert not field.is_required()
