"""Cases 1 to 15 and 62: what happens to workers, and to a job whose worker goes away."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from morpheo.failpoints import FAILPOINTS
from morpheo.models import AttemptOutcome, Blame, Cause, Job, JobSpec, JobState
from tests.faults.nodes import HEARTBEAT_S, LEASE_S, MAX_ATTEMPTS, Worker
from tests.faults.rig import Rig
from tests.support.servers import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.database, pytest.mark.redis, pytest.mark.s3]

LOST_THEN_DONE = [AttemptOutcome.LOST, AttemptOutcome.SUCCEEDED]
#: With the default times, 60 s for a lease of 30 s.
REQUEUED_WITHIN = 2.0
#: Where workers die, two at a time; every failpoint that a worker passes on its way with a job.
DEATHS = (
    ("received", "after_claim"),
    ("before_claim", "after_download"),
    ("after_build", "after_create"),
    ("after_start", "after_exit"),
    ("in_wait", "after_harvest"),
    ("in_upload", "after_upload"),
    ("in_commit", "after_commit"),
    ("before_ack", "in_commit"),
)
#: A death there costs no attempt: the job was not claimed yet, or is over.
FREE_DEATHS = ("received", "before_claim", "after_commit", "before_ack")


def outcomes(job: Job) -> list[AttemptOutcome]:
    """Return how the attempts at a job ended."""
    return [attempt.outcome for attempt in job.attempts]


def kill_at(rig: Rig, name: str, action: str = "kill", **options: object) -> tuple[JobSpec, Worker]:
    """Order a job whose worker dies at a failpoint; give that worker."""
    for worker in rig.workers.values():
        worker.arm(name, action)
    spec = rig.order(**options)
    rig.wait(lambda: any(worker.was_hit(name) for worker in rig.workers.values()), f"failpoint {name}")
    (hit,) = (worker for worker in rig.workers.values() if worker.was_hit(name))
    for worker in rig.workers.values():
        worker.disarm()
    return spec, hit


def check_requeued_soon(rig: Rig, spec: JobSpec, since: float) -> None:
    """
    Check that a job was taken from attempt 1 soon after a time of the database's clock.

    Or after all nodes were silent, as when the machine stood still: owners then have a lease to renew theirs
    (`morpheo.storage.nodes`).
    """
    rig.wait_attempt(spec, 2)
    # Queued again by a sweeper, or taken over at once by who got the message that came back.
    first = next(number for number, change in enumerate(rig.history(spec)) if change.attempt == 1)
    requeued_at = rig.history(spec)[first + 1].at
    resumed = rig.postgres.query("SELECT max(resumed_at) FROM nodes WHERE resumed_at < %s", requeued_at)[0][0]
    assert requeued_at - max(since, float(resumed or 0)) < REQUEUED_WITHIN * LEASE_S


def test_01_a_worker_killed_in_mid_train(rig: Rig) -> None:
    """Its container goes on until its node is back; another attempt wins."""
    spec = rig.order(hold="train")
    lost, other = rig.begin_container(spec, "train")
    lost.kill()
    killed_at = rig.now()
    assert rig.containers(spec) == [f"morpheo-{spec.id}-1-train"]
    check_requeued_soon(rig, spec, killed_at)
    assert rig.begin(spec, "train")[0] is other
    job = rig.wait_done(spec)
    assert outcomes(job) == LOST_THEN_DONE
    assert job.strikes == 1


def test_02_a_pool_process_killed_alone(rig: Rig) -> None:
    """Celery acknowledges its message; the lease gives the job back."""
    spec = rig.order(hold="train")
    lost, _ = rig.begin_container(spec, "train")
    os.kill(pool_process(rig.job(spec)), signal.SIGKILL)
    killed_at = rig.now()
    check_requeued_soon(rig, spec, killed_at)
    job = rig.wait_done(spec)
    assert outcomes(job) == LOST_THEN_DONE
    assert lost.learn.is_running


def pool_process(job: Job) -> int:
    """Return the id of the process that has a job's lease."""
    assert job.worker is not None
    return int(job.worker.split("-")[-2])


@pytest.mark.parametrize(("first", "second"), DEATHS)
def test_03_both_workers_killed_with_a_job(rig: Rig, first: str, second: str) -> None:
    """When a worker is there again, each job is soon given back, unless it is done; nothing is done twice."""
    deaths = {first: rig.one, second: rig.two}
    for name, worker in deaths.items():
        worker.arm(name, "kill")
    specs = [rig.order(fresh=True) for _ in deaths]
    for name, worker in deaths.items():
        worker.wait_hit(name)
        wait_until(lambda worker=worker: not worker.learn.is_running, what="its end")  # type: ignore[misc]
    for worker in deaths.values():
        worker.start()
    swept_since = rig.now()
    done = {spec.id: rig.wait_done(spec) for spec in specs}
    expected = [[AttemptOutcome.SUCCEEDED] if name in FREE_DEATHS else LOST_THEN_DONE for name in deaths]
    assert sorted(map(outcomes, done.values())) == sorted(expected)
    for spec in specs:
        job = rig.job(spec)
        assert job == done[spec.id]
        assert job.strikes == job.attempt - 1
        if job.attempt == 2:
            check_requeued_soon(rig, spec, swept_since)


def test_03_every_failpoint_of_a_worker_is_among_them() -> None:
    elsewhere = {"before_publish", "before_row", "in_recovery"}
    assert {name for pair in DEATHS for name in pair} == FAILPOINTS.keys() - elsewhere


@pytest.mark.parametrize("where", ["train", "upload"])
def test_04_a_worker_stopped_for_longer_than_its_lease(rig: Rig, where: str) -> None:
    """When it goes on it is fenced: what it writes has no effect, and it removes what it has."""
    if where == "upload":
        spec, zombie = kill_at(rig, "after_upload", "stop")
    else:
        spec = rig.order(hold="train")
        zombie, _ = rig.begin_container(spec, "train")
        zombie.pause()
    rig.wait_attempt(spec, 2)
    done = rig.wait_done(spec)
    assert outcomes(done) == LOST_THEN_DONE
    zombie.resume()
    wait_until(lambda: not zombie.workspaces(), timeout_s=60, what="a tidy zombie")
    wait_until(lambda: len(rig.blob_keys(spec)) == 1, timeout_s=60, what="one blob")
    job = rig.job(spec)
    # The lost attempt's own steps may still be filled in.
    assert replace(job, attempts=job.attempts[1:]) == replace(done, attempts=done.attempts[1:])


def test_05_a_worker_stopped_for_less_than_its_lease(rig: Rig) -> None:
    """It keeps its job."""
    spec = rig.order(hold="train")
    holder, _ = rig.begin_container(spec, "train")
    with holder.paused():
        wait_until(lambda: lease_left(rig, spec) < LEASE_S - 1.5 * HEARTBEAT_S, what="a heartbeat that is missed")
    job = rig.wait_done(spec)
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)


def lease_left(rig: Rig, spec: JobSpec) -> float:
    """Return how long a lease still lasts, in seconds."""
    query = "SELECT lease_expires_at - extract(epoch FROM clock_timestamp())::float FROM jobs WHERE id = %s"
    return float(rig.postgres.query(query, spec.id)[0][0])


def test_06_a_worker_told_to_stop_finishes_a_short_job(rig: Rig) -> None:
    """And ends well."""
    spec, worker = kill_at(rig, "in_upload", "hold")
    worker.disarm()  # it goes on
    assert worker.stop() == [0]
    job = rig.wait_done(spec)
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)


def test_07_a_worker_told_to_stop_gives_a_long_job_back(rig: Rig) -> None:
    """After the grace: at once, without a strike, its container is gone."""
    spec = rig.order(hold="train")
    worker, other = rig.begin_container(spec, "train")
    worker.learn.send(signal.SIGTERM)
    rig.wait_attempt(spec, 2)
    assert rig.begin(spec, "train")[0] is other
    first, second = (change for change in rig.history(spec)[2:4])
    assert (first.state, first.strikes, second.state) == (JobState.QUEUED, 0, JobState.RUNNING)
    assert second.at - first.at < LEASE_S
    assert not [name for name in rig.containers(spec) if f"{spec.id}-1-" in name]
    worker.stop()
    job = rig.wait_done(spec)
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.RELEASED, AttemptOutcome.SUCCEEDED], 0)


def test_08_a_worker_told_to_stop_and_killed_before_it_has(rig: Rig) -> None:
    """As if it had been killed at once."""
    spec = rig.order(hold="train")
    worker, _ = rig.begin_container(spec, "train")
    worker.learn.send(signal.SIGTERM)
    wait_until(lambda: "told to stop" in worker.learn.new_log(), what="the beginning of its end")
    worker.kill()
    assert outcomes(rig.wait_attempt(spec, 2))[0] is AttemptOutcome.LOST
    assert outcomes(rig.wait_done(spec)) == LOST_THEN_DONE


def test_09_a_power_cut_of_worker_and_engine(rig: Rig) -> None:
    """Everything of the machine dies at once; when it is back it tidies up, and the job is done."""
    spec = rig.order(hold="train")
    lost, _ = rig.begin_container(spec, "train")
    lost.kill()
    rig.dockerd.power_off()
    rig.settle()
    job = rig.wait_done(spec)
    assert job.attempts[0].outcome is AttemptOutcome.LOST
    assert job.strikes == 1


def test_10_a_pool_process_out_of_memory(rig: Rig) -> None:
    """The kernel kills it: as if it had been killed by anybody."""
    spec = rig.order(hold="train", model_bytes=16 << 20)
    lost, _ = rig.begin_container(spec, "train")
    with too_little_memory(pool_process(rig.job(spec))):
        rig.release(spec)
        rig.wait_attempt(spec, 2)
    job = rig.wait_done(spec)
    assert (outcomes(job), job.strikes) == (LOST_THEN_DONE, 1)
    assert lost.learn.is_running


@contextlib.contextmanager
def too_little_memory(pid: int) -> Iterator[None]:
    """Give a process 1 MiB more than it has; where cgroups cannot be made, do at once what the kernel does then."""
    root, limit = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    if not root.is_dir():
        root, limit = Path("/sys/fs/cgroup"), "memory.max"
    group = root / f"morpheo-rig-{pid}"
    try:
        group.mkdir()
        (group / limit).write_text(str(1 << 20))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        os.kill(pid, signal.SIGKILL)
    try:
        yield
        assert not alive(pid)
    finally:
        if group.exists():
            wait_until(lambda: removed(group), what="the end of the cgroup")


def removed(folder: Path) -> bool:
    """Remove a folder that may be busy for a moment."""
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def alive(pid: int) -> bool:
    """Return whether a process is there, and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_13_a_pool_process_without_file_descriptors(rig: Rig) -> None:
    """What it cannot open fails its attempt, never the submission."""
    spec = rig.order(hold="train")
    ill, _ = rig.begin_container(spec, "train")
    pid = pool_process(rig.job(spec))
    with few_descriptors(pid):
        rig.release(spec)
        rig.wait(lambda: rig.job(spec).attempts[0].outcome is not AttemptOutcome.RUNNING, "the end of attempt 1")
    rig.wait(lambda: rig.job(spec).state.is_final, "the end of the job")
    job = rig.job(spec)
    assert job.attempts[0].outcome in (AttemptOutcome.LOST, AttemptOutcome.RETRIED)
    assert job.state is JobState.SUCCEEDED
    assert ill.learn.is_running


@contextlib.contextmanager
def few_descriptors(pid: int) -> Iterator[None]:
    """Let a process open no file more than it has open."""
    process = psutil.Process(pid)
    before = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() // 2, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(resource.RLIMIT_NOFILE, before)


def test_14_two_workers_of_the_same_name(rig: Rig) -> None:
    """Both work: a lease names host, process and a random number."""
    rig.two.kill()
    as_before = list(rig.two.learn.command)
    rig.two.learn.command = [word.replace("@two", "@one") for word in as_before]
    try:
        rig.two.start()
        specs = [rig.order(hold="train") for _ in rig.workers]
        rig.wait(lambda: all(rig.job(spec).state is JobState.RUNNING for spec in specs), "a job at each of them")
        assert {rig.begin(spec, "train")[0].name for spec in specs} == {"one", "two"}
        for spec in specs:
            assert rig.wait_done(spec).attempt == 1
    finally:
        rig.two.learn.command = as_before
        rig.two.kill()


Change = Callable[[list[object]], list[object]]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda body: [body[0], {"priority": 1}, body[2]], id="unknown key"),
        pytest.param(lambda body: [[], {"job": body[0]}, body[2]], id="other key"),
    ],
)
def test_15_a_message_of_another_version(rig: Rig, change: Change) -> None:
    """It is run or sent again, never dropped silently."""
    with rig.one.links["redis"].down(), rig.two.links["redis"].down():
        spec = rig.order()
        change_message(rig, change)
    job = rig.wait_done(spec)
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)


def change_message(rig: Rig, change: Change) -> None:
    """Change the arguments of the only message that waits."""
    message = json.loads(rig.redis.ask("LPOP", "learn").partition(b"\r\n")[2])
    body = json.loads(base64.b64decode(message["body"]))
    message["body"] = base64.b64encode(json.dumps(change(body)).encode()).decode()
    message["headers"]["of-tomorrow"] = True
    rig.redis.ask("RPUSH", "learn", json.dumps(message))


def test_62_a_job_that_kills_its_worker_each_time(rig: Rig) -> None:
    """It stops after three, in words, and the next job runs."""
    for worker in rig.workers.values():
        worker.arm("in_wait", "die", always=True)
    spec = rig.order()
    job = rig.wait_done(spec, state=JobState.FAILED)
    for worker in rig.workers.values():
        worker.disarm()
    assert outcomes(job) == [AttemptOutcome.LOST] * (MAX_ATTEMPTS - 1) + [AttemptOutcome.FAILED]
    assert job.failure is not None
    assert (job.failure.cause, job.failure.blame) == (Cause.WORKER_LOST, Blame.INFRASTRUCTURE)
    assert rig.wait_done(rig.order()).attempt == 1
