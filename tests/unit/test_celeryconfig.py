"""Celery takes any name for a setting, also a misspelt one: so they are looked up here."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
from celery.app.defaults import NAMESPACES, flatten

import celeryconfig as imported
from morpheo.celery import app

#: Read by the Redis transport, not in Celery's own table.
EXTRA = {"visibility_timeout"}


@pytest.fixture
def celeryconfig() -> ModuleType:
    return importlib.reload(imported)


def test_every_setting_is_one_that_celery_knows(celeryconfig: ModuleType) -> None:
    known = {item[0] for item in flatten(NAMESPACES)}
    imports = ModuleType | type
    names = {name for name, value in vars(celeryconfig).items() if name[0] != "_" and not isinstance(value, imports)}
    assert names - known == EXTRA


def test_the_settings_are_the_application_s() -> None:
    assert app.conf.task_acks_late is True
    assert app.conf.task_default_queue == "learn"
    assert app.conf.result_backend is None


def test_no_message_comes_back_while_its_job_may_run(celeryconfig: ModuleType) -> None:
    assert celeryconfig.task_soft_time_limit < celeryconfig.task_time_limit < celeryconfig.visibility_timeout
    assert celeryconfig.broker_transport_options["visibility_timeout"] == celeryconfig.visibility_timeout


def test_pool_processes_inherit_no_lock_of_the_sweeper(celeryconfig: ModuleType) -> None:
    assert celeryconfig.worker_pool_start_method == "spawn"


def test_limits_follow_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEO_LEARN_TIMEOUT_S", "100000")
    assert importlib.reload(imported).task_time_limit > 300000
    monkeypatch.undo()
    importlib.reload(imported)


def test_a_bad_setting_stops_the_worker_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEO_LEASE_S", "soon")
    with pytest.raises(SystemExit, match="Error: MORPHEO_LEASE_S=soon: ") as stopped:
        importlib.reload(imported)
    assert "\n" not in str(stopped.value)
    monkeypatch.undo()
    importlib.reload(imported)
