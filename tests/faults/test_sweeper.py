"""Cases 42 to 44: sweepers that stand still, meet each other, or find rows that cannot be read."""

from __future__ import annotations

import os
import signal

import pytest

from morpheo.models import AttemptOutcome, Blame, Cause, Job, JobSpec, JobState
from tests.faults.rig import Rig

pytestmark = [pytest.mark.docker, pytest.mark.database, pytest.mark.redis, pytest.mark.s3]

#: What the column of a job's order holds, and no order is.
DAMAGES = ["null", "{}", '{"algo": 5, "train_data": "none"}']


def check_lost_once(job: Job) -> None:
    """Check that a job was lost once, struck once, and then done."""
    assert [attempt.outcome for attempt in job.attempts] == [AttemptOutcome.LOST, AttemptOutcome.SUCCEEDED]
    assert job.strikes == 1


def test_42_no_sweeper_for_a_while(rig: Rig) -> None:
    """New jobs still run; what was lost is recovered when one sweeps again."""
    spec = rig.order(hold="train")
    lost, other = rig.begin_container(spec, "train")
    other.arm("in_recovery", "hold")
    lost.kill()
    rig.redis.ask("FLUSHALL")  # a message that comes back would be a sweeper, too
    other.wait_hit("in_recovery")
    assert rig.wait_done(rig.order()).attempt == 1
    assert rig.job(spec).attempt == 1
    other.disarm()
    check_lost_once(rig.wait_done(spec))


@pytest.mark.parametrize("cut_off", [False, True], ids=["goes on", "loses its connection"])
def test_43_a_sweeper_stopped_in_its_transaction(rig: Rig, cut_off: bool) -> None:
    """The other one sweeps meanwhile; no strike is counted twice."""
    spec = rig.order(hold="train")
    rig.begin_container(spec, "train")
    for worker in rig.workers.values():
        worker.arm("in_recovery", "stop")
    kill_holder(rig, spec)
    rig.wait(lambda: any(worker.was_hit("in_recovery") for worker in rig.workers.values()), "a stopped sweeper")
    stopped_at = rig.now()
    (stopped,) = (worker for worker in rig.workers.values() if worker.was_hit("in_recovery"))
    for worker in rig.workers.values():
        worker.disarm()
    if cut_off:
        rig.postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
        rig.wait(lambda: rig.job(spec).strikes == 1, "a job that the other sweeper recovers")
    else:
        rig.wait_done(rig.order())
        job = rig.job(spec)
        # PostgreSQL ends a transaction that stands still for too long, and the job is rightly recovered by the other.
        stands_still = "state = 'idle in transaction' AND xact_start < to_timestamp(%s)"
        if rig.postgres.query(f"SELECT 1 FROM pg_stat_activity WHERE {stands_still}", stopped_at):
            assert (job.attempt, job.strikes) == (1, 0)
    stopped.resume()
    check_lost_once(rig.wait_done(spec))


@pytest.mark.parametrize("damage", DAMAGES)
def test_44_an_order_that_cannot_be_read(rig: Rig, damage: str) -> None:
    """The job fails in words; the sweep goes on to the next one."""
    with rig.one.links["redis"].down(), rig.two.links["redis"].down():
        spec, next_one = rig.order(), rig.order()
        damage_order(rig, spec, damage)
        rig.redis.ask("DEL", "learn")  # a sweeper has to find them
    check_buried(rig, spec)
    assert rig.wait_done(next_one).attempt == 1


def test_44_an_order_that_cannot_be_read_of_a_lost_job(rig: Rig) -> None:
    """The job fails in words; the sweep goes on to the next one."""
    specs = [rig.order(hold="train") for _ in rig.workers]
    for spec in specs:
        rig.begin_container(spec, "train")
    damage_order(rig, specs[0], "null")
    for spec in specs:
        kill_holder(rig, spec)
    check_buried(rig, specs[0])
    check_lost_once(rig.wait_done(specs[1]))


def kill_holder(rig: Rig, spec: JobSpec) -> None:
    """Kill the process that has a job's lease, whatever the rest of its row says."""
    (worker,) = rig.postgres.query("SELECT worker FROM jobs WHERE id = %s", spec.id)[0]
    os.kill(int(worker.split("-")[-2]), signal.SIGKILL)


def damage_order(rig: Rig, spec: JobSpec, damage: str) -> None:
    """Overwrite a job's order in the database."""
    rig.postgres.query("UPDATE jobs SET spec = %s WHERE id = %s RETURNING id", damage, spec.id)


def check_buried(rig: Rig, spec: JobSpec) -> None:
    """Wait until a job has failed because its order cannot be read."""
    query = "SELECT state FROM jobs WHERE id = %s"  # until then, the row cannot be read otherwise
    rig.wait(lambda: rig.postgres.query(query, spec.id) == [(JobState.FAILED.value,)], "the end of the job")
    job = rig.job(spec)
    assert job.failure is not None
    assert (job.failure.cause, job.failure.blame) == (Cause.INTERNAL_ERROR, Blame.INFRASTRUCTURE)
    assert "damaged" in job.failure.message
