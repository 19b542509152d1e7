"""Cases 28 to 36: what happens to PostgreSQL, and to those who use it."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import requests

from morpheo.models import AttemptOutcome, Job, JobSpec, JobState
from tests.faults.links import Cut
from tests.faults.nodes import LEASE_S, LOGIN, Worker
from tests.faults.rig import Rig
from tests.support.servers import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.database, pytest.mark.redis, pytest.mark.s3]

LOST_THEN_DONE = [AttemptOutcome.LOST, AttemptOutcome.SUCCEEDED]


def outcomes(job: Job) -> list[AttemptOutcome]:
    """Return how the attempts at a job ended."""
    return [attempt.outcome for attempt in job.attempts]


def assert_undisturbed(job: Job) -> None:
    """Check that a job was done by its first attempt, which cost nothing."""
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)


def begin_held(rig: Rig) -> tuple[JobSpec, Worker, Worker]:
    """Order a job that is held in its training; give the worker that has it, and the other one."""
    spec = rig.order(hold="train")
    return spec, *rig.begin_container(spec, "train")


def test_28_postgres_stopped_and_started(rig: Rig) -> None:
    """Heartbeats are missed; the same attempt ends the job."""
    spec, holder, _ = begin_held(rig)
    rig.postgres.stop(signal.SIGINT)  # "fast"
    wait_until(lambda: "lease not renewed" in holder.learn.new_log(), what="a heartbeat that is missed")
    rig.postgres.start()
    assert_undisturbed(rig.wait_done(spec))


def test_29_postgres_killed_before_the_result_is_committed(rig: Rig) -> None:
    """It is written again when PostgreSQL is back, by the same attempt."""
    spec = hold_at(rig, "in_commit")
    rig.postgres.kill()
    disarm(rig)
    rig.postgres.start()
    assert_undisturbed(rig.wait_done(spec))


def test_29_postgres_killed_after_the_result_was_committed(rig: Rig) -> None:
    """It is kept."""
    spec = hold_at(rig, "after_commit")
    rig.postgres.kill()
    disarm(rig)
    rig.postgres.start()
    assert_undisturbed(rig.job(spec))


def test_29_the_answer_of_the_commit_is_lost(rig: Rig) -> None:
    """The worker reads what it has written; nothing is written twice."""
    spec = hold_at(rig, "in_commit")
    holder = rig.worker_of(rig.job(spec))
    # Heartbeats commit too.
    holder.links["postgres"].cuts.append(Cut("down", when=b"COMMIT", times=1000))
    disarm(rig)
    done = rig.wait_state(spec, JobState.SUCCEEDED)
    holder.links["postgres"].heal()
    assert_undisturbed(done)


def hold_at(rig: Rig, name: str) -> JobSpec:
    """Order a job whose worker stands still at a failpoint."""
    for worker in rig.workers.values():
        worker.arm(name, "hold")
    spec = rig.order()
    rig.wait(lambda: any(worker.was_hit(name) for worker in rig.workers.values()), f"failpoint {name}")
    return spec


def disarm(rig: Rig) -> None:
    """Let all workers go on."""
    for worker in rig.workers.values():
        worker.disarm()


def test_30_postgres_down_for_longer_than_a_lease(rig: Rig) -> None:
    """Nobody could renew a lease, so nobody takes the job: its owner goes on."""
    spec, *_ = begin_held(rig)
    expires_at = lease_end(rig, spec)
    rig.postgres.kill()
    wait_until(lambda: time.time() > expires_at + LEASE_S / 2, what="the end of the lease")
    rig.postgres.start()
    assert_undisturbed(rig.wait_done(spec))


def lease_end(rig: Rig, spec: JobSpec) -> float:
    """Return when a lease ends that is not renewed, in seconds since the epoch."""
    return float(rig.postgres.query("SELECT lease_expires_at FROM jobs WHERE id = %s", spec.id)[0][0])


def test_31_no_contact_between_worker_and_postgres(rig: Rig) -> None:
    """The other worker takes over; the cut-off one ends its container at the first contact."""
    spec, cut_off, _ = begin_held(rig)
    with cut_off.links["postgres"].held():
        rig.wait_attempt(spec, 2)
        assert f"morpheo-{spec.id}-1-train" in rig.containers(spec)
    wait_until(lambda: f"morpheo-{spec.id}-1-train" not in rig.containers(spec), what="the end of its container")
    job = rig.wait_done(spec)
    assert (outcomes(job), job.strikes) == (LOST_THEN_DONE, 1)


def test_31_postgres_hangs(rig: Rig) -> None:
    """Its machine still answers, it does not: nobody waits for it for ever, and nobody takes the job."""
    spec, holder, _ = begin_held(rig)
    with rig.postgres.paused():
        wait_until(lambda: "lease not renewed" in holder.learn.new_log(), what="a heartbeat that is given up")
        response = requests.get(f"http://{rig.compute_api.front.address}/jobs/{spec.id}", auth=LOGIN, timeout=60)
        assert response.status_code == 503
    assert_undisturbed(rig.wait_done(spec))


def test_32_no_connection_is_left(rig: Rig) -> None:
    """The API says when to try again; the running job keeps its lease."""
    spec, *_ = begin_held(rig)
    url = f"http://{rig.compute_api.front.address}/jobs/{spec.id}"
    with no_connection_left(rig) as connection:
        response = requests.get(url, auth=LOGIN, timeout=60)
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
        since = clock(connection)
        wait_until(lambda: clock(connection) > since + LEASE_S, what="the end of a lease")
    rig.wait(lambda: requests.get(url, auth=LOGIN, timeout=60).ok, "an answer")
    assert_undisturbed(rig.wait_done(spec))


def clock(connection: psycopg.Connection[tuple[Any, ...]]) -> float:
    """Return the database's time over a connection that is there."""
    row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float").fetchone()
    assert row is not None
    return float(row[0])


@contextlib.contextmanager
def no_connection_left(rig: Rig) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Take all connections that PostgreSQL has, and those of the compute API; give one of them."""
    with contextlib.ExitStack() as taken:
        first = taken.enter_context(rig.postgres.connect())
        rig.compute_api.links["postgres"].refusing = True
        rig.compute_api.links["postgres"].reset()
        refused = 0
        while refused < 5:  # connections that were closed just now become free later
            try:
                taken.enter_context(rig.postgres.connect())
            except psycopg.OperationalError:
                refused += 1
                time.sleep(0.2)
        rig.compute_api.links["postgres"].refusing = False
        yield first


def test_33_a_deadlock(rig: Rig) -> None:
    """The transaction that PostgreSQL ends is tried again."""
    spec = hold_at(rig, "in_commit")
    with rig.postgres.connect() as connection:
        # So that it is the worker whose transaction is ended.
        connection.execute("SET deadlock_timeout = '60s'")
        with connection.transaction(force_rollback=True):
            connection.execute("SELECT * FROM event_head FOR UPDATE")
            disarm(rig)
            connection.execute("UPDATE jobs SET strikes = strikes WHERE id = %s", [spec.id])
    assert_undisturbed(rig.wait_done(spec))


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_33_transactions_that_are_to_be_tried_again(rig: Rig, code: str) -> None:
    """They are; the job is done."""
    with refused_updates(rig, code, times=5):
        spec = rig.order()
        assert_undisturbed(rig.wait_done(spec))
        assert rig.postgres.query("SELECT last_value FROM rig.refusals")[0][0] >= 5


@contextlib.contextmanager
def refused_updates(rig: Rig, code: str, *, times: int) -> Iterator[None]:
    """Let PostgreSQL refuse the first updates of jobs."""
    with rig.postgres.connect() as connection:
        connection.execute(
            f"""
            CREATE SEQUENCE rig.refusals;
            CREATE FUNCTION rig.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('rig.refusals') <= {times} THEN
                    RAISE EXCEPTION 'refused' USING ERRCODE = '{code}';
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER refuse BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION rig.refuse();
            """
        )
        try:
            yield
        finally:
            connection.execute("DROP TRIGGER refuse ON jobs; DROP FUNCTION rig.refuse(); DROP SEQUENCE rig.refusals")


def test_35_all_connections_cut(rig: Rig) -> None:
    """The next requests are answered; the running job goes on."""
    spec, *_ = begin_held(rig)
    rig.postgres.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    following = rig.order()
    assert requests.get(f"http://{rig.compute_api.front.address}/jobs/{spec.id}", auth=LOGIN, timeout=60).ok
    for ordered in (spec, following):
        assert_undisturbed(rig.wait_done(ordered))


def test_36_a_migration_while_a_worker_claims(rig: Rig) -> None:
    """The claim waits for its lock no longer than it may, and is tried again."""
    with rig.postgres.connect() as connection, connection.transaction(force_rollback=True):
        with contextlib.ExitStack() as links:
            for worker in rig.workers.values():
                links.enter_context(worker.links["redis"].held())
            spec = rig.order()
            connection.execute("ALTER TABLE jobs ADD COLUMN of_tomorrow text")
        wait_until(lambda: any(could_not_claim(worker, spec) for worker in rig.workers.values()), what="its refusal")
    assert_undisturbed(rig.wait_done(spec))


def could_not_claim(worker: Worker, spec: JobSpec) -> bool:
    """Return whether a worker has said that it could not claim a job for want of the database."""
    lines = worker.learn.new_log().splitlines()
    return any("job not claimed yet" in line for line in lines if str(spec.id) in line)
