"""What an operator sees of a job: metrics of all services, and lines of the worker's log."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import uuid4

import pytest
import requests

from morpheo.models import ArtifactKind, Cause, JobKind, JobState, StepName
from tests.acceptance.conftest import Stack
from tests.support.jobs import make_order, store_algo
from tests.support.prometheus import scrape
from tests.support.services import wait_until

pytestmark = pytest.mark.docker

PATIENCE_S = 120
SERVICES = ("compute", "storage", "worker")
DONE = "morpheo_job_ends_total{cause=,kind=learn,state=succeeded}"
EXITED = "morpheo_job_ends_total{cause=EXIT_CODE,kind=learn,state=failed}"


def log_lines(stack: Stack, service: str) -> list[dict[str, Any]]:
    """Return what a service logged, all of it JSON; `morpheo dev` puts the time and its name before each line."""
    text = (stack.folder / "log").read_text()
    # The last line may be on its way.
    return [json.loads(line) for line in re.findall(rf"^[0-9:]+ {service} *\| (.*)\n", text, re.MULTILINE)]


@pytest.fixture(autouse=True)
def worker_serves(stack: Stack) -> None:
    """The worker needs longer to start than the rest of the stack."""

    def answers() -> bool:
        try:
            return bool(scrape(stack.urls["worker"]))
        except requests.ConnectionError:
            return False

    wait_until(answers, timeout_s=PATIENCE_S, what="the worker's metrics")


def test_a_job_is_in_the_metrics_of_all_services_and_on_the_lines_of_its_worker(stack: Stack) -> None:
    before = {service: scrape(stack.urls[service]) for service in SERVICES}
    data = f"{uuid4()}:1".encode()  # new, or it would be in the worker's cache
    spec = make_order(stack.storage, train_data=(stack.storage.upload(ArtifactKind.DATA, data).id,))
    stack.compute.submit(spec)
    assert stack.compute.wait(spec.id, timeout_s=PATIENCE_S).state is JobState.SUCCEEDED

    done = len(list(stack.compute.jobs(state=JobState.SUCCEEDED, kind=JobKind.LEARN)))
    after: dict[str, dict[str, float]] = {}

    def all_know() -> bool:
        """Look once: each process has an answer of the database that is good for some seconds."""
        after.update({service: scrape(stack.urls[service]) for service in SERVICES})
        return all(after[service].get(DONE) == done for service in SERVICES)

    wait_until(all_know, what="the job")
    for service in SERVICES:
        assert after[service]["morpheo_step_seconds_count{step=train}"] >= done
        assert after[service]["morpheo_step_seconds_sum{step=train}"] > 0

    def grown(service: str, name: str) -> float:
        return after[service][name] - before[service].get(name, 0)

    model = "morpheo_blob_bytes_total{direction=in,kind=model}"
    assert grown("worker", model) > 0
    assert model not in after["storage"]
    assert grown("worker", "morpheo_blob_bytes_total{direction=out,kind=data}") > 0
    assert grown("storage", "morpheo_blob_bytes_total{direction=in,kind=data}") == len(data) + 2 * len("a:1")
    assert grown("compute", "morpheo_http_request_duration_seconds_count{method=POST,route=/learn,status=202}") == 1

    def told() -> list[object]:
        lines = [line for line in log_lines(stack, "worker") if line.get("job") == str(spec.id)]
        return [line["message"] for line in lines if line.get("attempt") == 1]

    wait_until(lambda: len(told()) >= 2, what="the worker's lines")
    assert told() == ["job claimed", "job succeeded"]


def test_a_job_that_fails_is_told_with_its_cause_and_step(stack: Stack) -> None:
    spec = make_order(stack.storage, algo=store_algo(stack.storage, "raise SystemExit(7)"))
    stack.compute.submit(spec)
    assert stack.compute.wait(spec.id, timeout_s=PATIENCE_S).state is JobState.FAILED
    failed = list(stack.compute.jobs(state=JobState.FAILED, kind=JobKind.LEARN))
    count = sum(job.failure is not None and job.failure.cause is Cause.EXIT_CODE for job in failed)
    wait_until(lambda: scrape(stack.urls["worker"]).get(EXITED) == count, what="the failure")

    def told() -> list[dict[str, object]]:
        lines = log_lines(stack, "worker")
        return [line for line in lines if line["message"] == "job failed" and line["job"] == str(spec.id)]

    wait_until(lambda: bool(told()), what="the worker's line")
    (line,) = told()
    assert (line["attempt"], line["step"], line["cause"]) == (1, StepName.TRAIN, "EXIT_CODE")


def test_every_line_of_every_service_is_json(stack: Stack) -> None:
    for service in SERVICES:
        lines = log_lines(stack, service)
        assert lines
        assert all({"time", "level", "logger", "message", "process"} <= line.keys() for line in lines)
