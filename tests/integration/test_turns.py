"""Users who wait in one queue take turns, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from morpheo.models import JobState
from morpheo.storage.database import Database
from morpheo.testing import make_learn_spec, make_predict_spec
from tests.support.workbench import Workbench, make_workbench

NODE = "n"


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Iterator[Workbench]:
    made = make_workbench(database.url, tmp_path / "node")
    yield made
    made.database.close()


def order(database: Database, owner: str, **changes: Any) -> UUID:
    spec = make_learn_spec(**changes)
    with database.begin() as work:
        work.jobs.add(spec, algo=None, owner=owner)
    return spec.id


def before(database: Database, job_id: UUID) -> UUID | None:
    with database.read() as work:
        return work.turns.before(job_id, node=NODE)


def begin(database: Database, job_id: UUID) -> None:
    with database.begin() as work:
        assert work.jobs.claim(job_id, worker="w", lease_s=30, max_attempts=3, node=NODE) is not None


def end(database: Database, job_id: UUID) -> None:
    with database.begin() as work:
        assert work.jobs.succeed(job_id, 1, None)


def test_a_user_alone_has_every_turn(database: Database) -> None:
    first, second = order(database, "anna"), order(database, "anna")
    assert [before(database, job) for job in (first, second)] == [None, None]


def test_who_has_nothing_running_goes_before_who_has(database: Database) -> None:
    begin(database, order(database, "anna"))
    annas, bobs, bobs_second = (order(database, owner) for owner in ("anna", "bob", "bob"))
    assert before(database, annas) == bobs
    assert before(database, bobs) is before(database, bobs_second) is None


def test_of_two_who_run_nothing_the_one_goes_whose_last_job_began_longer_ago(database: Database) -> None:
    for owner in ("bob", "anna"):
        job = order(database, owner)
        begin(database, job)
        end(database, job)
    annas, bobs = order(database, "anna"), order(database, "bob")
    assert before(database, annas) == bobs
    assert before(database, bobs) is None


def test_who_never_had_a_turn_goes_by_the_age_of_the_order(database: Database) -> None:
    annas, bobs = order(database, "anna"), order(database, "bob")
    assert (before(database, annas), before(database, bobs)) == (None, annas)


def test_only_what_waits_in_the_same_queue_counts(database: Database) -> None:
    begin(database, order(database, "anna"))
    annas = order(database, "anna")
    order(database, "bob", tags=("gpu",))
    with database.begin() as work:
        work.jobs.add(make_predict_spec(), algo=None, owner="bob")
        work.jobs.add(make_learn_spec(), algo=None, owner="bob", state=JobState.WAITING)
    later, cancelled = order(database, "bob"), order(database, "bob")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET not_before = 1e12 WHERE id = :id"), {"id": _bound(database, later)})
        connection.execute(
            text("UPDATE jobs SET cancel_requested = true WHERE id = :id"), {"id": _bound(database, cancelled)}
        )
    assert before(database, annas) is None
    waiting = order(database, "bob")
    assert before(database, annas) == waiting


def _bound(database: Database, job_id: UUID) -> str | UUID:
    return job_id.hex if database.url.startswith("sqlite") else job_id


def test_a_job_that_does_not_wait_has_nobody_before_it(database: Database) -> None:
    running = order(database, "anna")
    begin(database, running)
    order(database, "bob")
    assert before(database, running) is before(database, uuid4()) is None


def test_a_message_runs_the_job_whose_turn_it_is_and_the_other_one_is_told_of_again(bench: Workbench) -> None:
    def ordered(owner: str) -> UUID:
        spec = bench.learn_spec()
        with bench.database.begin() as work:
            work.jobs.add(spec, algo=None, owner=owner)
        return spec.id

    annas = [ordered("anna") for _ in range(3)]
    bobs = [ordered("bob") for _ in range(2)]
    messages = bench.publisher.published
    assert messages == annas + bobs
    order_of_ends = []
    while messages:
        job = bench.resources.runner.run(messages.pop(0))
        if job is not None:
            order_of_ends.append(job.id)
    assert [job in annas for job in order_of_ends] == [True, False, True, False, True]
    assert sorted(order_of_ends) == sorted(annas + bobs)


def test_an_order_of_the_other_that_cannot_be_read_does_not_cost_the_turn(bench: Workbench) -> None:
    begin(bench.database, order(bench.database, "anna"))
    good = bench.learn_spec()
    with bench.database.begin() as work:
        work.jobs.add(good, algo=None, owner="anna")
    bad = order(bench.database, "bob")
    with bench.database.engine.begin() as connection:
        connection.execute(
            text("UPDATE jobs SET spec = :spec WHERE id = :id"),
            {"spec": '{"nothing": 1}', "id": _bound(bench.database, bad)},
        )
    job = bench.resources.runner.run(good.id)
    assert job is not None
    assert (job.id, job.state) == (good.id, JobState.SUCCEEDED)
    with bench.database.read() as work:
        assert work.jobs.get(good.id).state is JobState.SUCCEEDED
