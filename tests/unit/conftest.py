"""Fixtures of the fast tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from morpheo.storage import migrate
from morpheo.storage.database import Database


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A SQLite file with all tables: a copy is made faster than the tables are."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    database = Database(f"sqlite:///{path}")
    migrate.upgrade(database)
    database.close()
    return path.read_bytes()


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: bytes) -> str:
    """URL of a fresh SQLite database with all tables."""
    path = tmp_path / "test.db"
    path.write_bytes(sqlite_template)
    return f"sqlite:///{path}"
