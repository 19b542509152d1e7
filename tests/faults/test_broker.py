"""Cases 16 to 27: what happens to Redis, and to messages."""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
from collections.abc import Iterator
from uuid import uuid4

import pytest

from morpheo.models import AttemptOutcome, Job, JobSpec, JobState
from tests.faults.nodes import LEASE_S, VISIBILITY_S
from tests.faults.rig import Rig
from tests.support.servers import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.database, pytest.mark.redis, pytest.mark.s3]

#: What a worker logs of a message that starts nothing.
NOT_CLAIMED = "job not claimed"


def assert_undisturbed(job: Job) -> None:
    """Check that a job was done by its first attempt, which cost nothing."""
    assert ([attempt.outcome for attempt in job.attempts], job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)


def assert_all_done(rig: Rig, specs: list[JobSpec]) -> None:
    """Let jobs go on, and check that each is done by its first attempt."""
    rig.release(*specs)
    for spec in specs:
        assert_undisturbed(rig.wait_done(spec))


def occupy(rig: Rig) -> list[JobSpec]:
    """Give each worker a job that it holds."""
    specs: list[JobSpec] = [rig.order(hold="train") for _ in rig.workers]
    for spec in specs:
        rig.begin(spec, "train")
    return specs


@contextlib.contextmanager
def out_of_reach(rig: Rig) -> Iterator[None]:
    """Keep Redis from both workers during the block."""
    with rig.one.links["redis"].down(), rig.two.links["redis"].down():
        yield


def test_16_redis_killed_that_keeps_nothing(rig: Rig) -> None:
    """Messages are lost, those of queued jobs and of running ones; all are done, each once."""
    specs = [*occupy(rig), *(rig.order() for _ in range(3))]
    rig.redis.forget()
    rig.redis.start()
    assert_all_done(rig, specs)


def test_17_redis_killed_that_keeps_all(rig: Rig) -> None:
    """Its messages are there again when it is back; the running job goes on."""
    busy = occupy(rig)
    queued = rig.order()
    rig.redis.kill()
    rig.redis.start()
    kept = lambda: rig.redis.count("LLEN", "learn") + rig.redis.count("HLEN", "unacked")  # noqa: E731
    rig.wait(lambda: kept() == len([*busy, queued]), "all messages")  # one may be on its way from here to there
    assert_all_done(rig, [*busy, queued])


def test_18_redis_stopped_for_longer_than_the_visibility_timeout(rig: Rig) -> None:
    """The running jobs end meanwhile; the next one begins when Redis goes on."""
    busy = occupy(rig)
    with rig.redis.paused():
        stopped_at = rig.now()
        assert_all_done(rig, busy)
        rig.wait(lambda: rig.now() > stopped_at + VISIBILITY_S + 1, "the visibility timeout")
    assert_undisturbed(rig.wait_done(rig.order()))


def test_19_a_hundred_connections_killed(rig: Rig) -> None:
    """While one worker is busy and the other idle: the job goes on, and the next one begins soon."""
    spec = rig.order(hold="train")
    rig.begin(spec, "train")
    killed = 0

    def enough() -> bool:
        nonlocal killed
        killed += rig.redis.count("CLIENT", "KILL", "TYPE", "normal")
        killed += rig.redis.count("CLIENT", "KILL", "TYPE", "pubsub")
        return killed >= 100

    wait_until(enough, what="a hundred of them")
    following = rig.order(hold="train")
    rig.wait_state(following, JobState.RUNNING)
    assert_all_done(rig, [spec, following])


def test_20_a_worker_killed_with_a_message_on_its_way(rig: Rig) -> None:
    """Redis has handed it out, and nobody has it: it is sent again."""
    rig.two.kill()
    spec = lose_message(rig)
    rig.one.kill()
    rig.settle()
    assert_undisturbed(rig.wait_done(spec))


def lose_message(rig: Rig) -> JobSpec:
    """Order a job whose message goes to a worker that is stopped; give it."""
    for _ in range(20):  # a worker asks for a second at a time; in between, the message stays where it is
        spec = rig.make_learn()
        with rig.one.paused():
            rig.submit(spec)
            if not rig.redis.count("LLEN", "learn"):
                assert not rig.redis.count("HLEN", "unacked")
                rig.one.kill()
                return spec
        rig.wait_done(spec)
    raise AssertionError("no message was on its way")


def test_21_a_message_ten_times_over(rig: Rig) -> None:
    """One worker claims the job; the other messages start nothing."""
    with out_of_reach(rig):
        spec = rig.order(hold="train")
        rig.publish(spec, times=9)
    _, other = rig.begin(spec, "train")
    wait_until(lambda: other.learn.new_log().count(str(spec.id)) >= 8, what="the messages")
    assert NOT_CLAIMED in other.learn.new_log()
    assert_all_done(rig, [spec])
    assert [change.state for change in rig.history(spec)].count(JobState.RUNNING) == 1


def test_22_a_job_that_takes_longer_than_the_visibility_timeout(rig: Rig) -> None:
    """Its message comes to the other worker, and starts nothing."""
    spec = rig.order(hold="train")
    _, other = rig.begin(spec, "train")

    def told() -> bool:
        return any(NOT_CLAIMED in line and str(spec.id) in line for line in other.learn.new_log().splitlines())

    wait_until(told, what="the message at the other worker")
    assert_all_done(rig, [spec])


def test_23_redis_emptied(rig: Rig) -> None:
    """With jobs running and queued: all are done, each once."""
    specs = [*occupy(rig), *(rig.order() for _ in range(3))]
    assert rig.redis.ask("FLUSHALL").startswith(b"+OK")
    assert_all_done(rig, specs)


@pytest.mark.parametrize("refusal", ["OOM", "READONLY", "LOADING"])
def test_24_redis_refuses_messages(rig: Rig, refusal: str) -> None:
    """Orders are accepted all the same; they are published when Redis takes messages again."""
    with refusing(rig, refusal):
        spec = rig.order()
    assert_undisturbed(rig.wait_done(spec))


@contextlib.contextmanager
def refusing(rig: Rig, refusal: str) -> Iterator[None]:
    """Let Redis refuse all that is written, during the block."""
    words = {
        "OOM": (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
        "READONLY": (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
        "LOADING": (["PING"], ["PING"]),
    }[refusal]
    links = [rig.compute_api.links["redis"], *(worker.links["redis"] for worker in rig.workers.values())]
    assert rig.redis.ask(*words[0]).startswith(b"+")
    if refusal == "LOADING":
        for link in links:
            link.answer = b"-LOADING Redis is loading the dataset in memory\r\n"
    else:
        assert rig.redis.ask("SET", "test", "1").startswith(f"-{refusal}".encode())
    try:
        yield
        assert not rig.redis.count("LLEN", "learn")
    finally:
        assert rig.redis.ask(*words[1]).startswith(b"+")
        for link in links:
            link.heal()


def test_25_no_contact_between_worker_and_redis(rig: Rig) -> None:
    """For longer than a lease: the job goes on and is done; that its message comes again changes nothing."""
    spec = rig.order(hold="train")
    holder, _ = rig.begin(spec, "train")
    with holder.links["redis"].held():
        held_at = rig.now()
        rig.wait(lambda: rig.now() > held_at + LEASE_S + 1, "the end of a lease")
        assert_all_done(rig, [spec])


def test_26_garbage_in_the_queue(rig: Rig) -> None:
    """It is dropped, whatever it is: the workers live on, and the next job is done."""
    pids = {worker.name: worker.learn.pid for worker in rig.workers.values()}
    with out_of_reach(rig):
        spec = rig.order()
        template = json.loads(rig.redis.ask("LPOP", "learn").partition(b"\r\n")[2])
        for garbage in (*no_messages(), *strange_messages(template), json.dumps(template)):
            rig.redis.ask("RPUSH", "learn", garbage)
    wait_until(lambda: not rig.redis.count("LLEN", "learn"), what="an empty queue")
    assert_undisturbed(rig.wait_done(spec))
    assert pids == {worker.name: worker.learn.pid for worker in rig.workers.values() if worker.learn.is_running}
    rig.both_take_jobs()


def no_messages() -> list[str]:
    """Return what is no message at all."""
    return ["", "{", "null", "[]", "{}", "1e999", '"\\ud800"', "[" * 10_000, '{"body": 1, "properties": []}']


def strange_messages(template: dict[str, object]) -> list[str]:
    """Return messages that no worker can do anything with."""
    headers, properties = template["headers"], template["properties"]
    assert isinstance(headers, dict)
    assert isinstance(properties, dict)

    def with_args(*args: object) -> dict[str, object]:
        body = base64.b64encode(json.dumps([args, {}, {}]).encode()).decode()
        return {"body": body, "headers": {**headers, "id": str(uuid4())}}

    changes: list[dict[str, object]] = [
        {"body": "!"},
        {"body": base64.b64encode(b"{").decode()},
        {"body": base64.b64encode(pickle.dumps([])).decode(), "content-type": "application/x-python-serialize"},
        {"headers": {**headers, "task": "of.another.program"}},
        {"headers": {}},
        with_args("no uuid"),
        with_args(),
        with_args(None),
        with_args(str(uuid4())),  # of no job
    ]
    return [
        json.dumps({**template, "properties": {**properties, "delivery_tag": str(uuid4())}, **change})
        for change in changes
    ]


def test_27_no_redis_when_all_start(rig: Rig) -> None:
    """The API starts and accepts orders; a worker waits, as long as it takes."""
    for worker in rig.workers.values():
        worker.kill()
    rig.compute_api.kill()
    rig.redis.kill()
    rig.compute_api.start()
    spec = rig.order()
    for worker in rig.workers.values():
        worker.start(wait=False)
    for worker in rig.workers.values():
        wait_until(lambda: "annot connect to" in worker.learn.new_log(), what="its first try")  # noqa: B023
        assert worker.learn.is_running
    rig.redis.start()
    assert_undisturbed(rig.wait_done(spec))
