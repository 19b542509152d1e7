"""Client of the compute API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from morpheo.client.events import OUTAGE_S, LogEvent, follow_log_events
from morpheo.client.http import HttpClient
from morpheo.models import (
    Attempt,
    AttemptOutcome,
    Blame,
    Cause,
    Failure,
    Job,
    JobKind,
    JobSpec,
    JobState,
    Scores,
    StepName,
    StepRecord,
)
from morpheo.specs import spec_from_dict, spec_to_dict

#: Pauses between two looks at a job, in seconds: short at first, because many jobs are.
FIRST_POLL_S = 0.05
LAST_POLL_S = 1.0

_ROUTES = {JobKind.LEARN: "/learn", JobKind.PREDICT: "/pred"}


class ComputeClient:
    """
    Orders jobs and follows them.

    Args:
        url: Address of the compute API.
        user: For HTTP Basic.
        password: For HTTP Basic.
        token: In place of user and password.
    """

    def __init__(self, url: str, *, user: str = "", password: str = "", token: str = "") -> None:
        self._http = HttpClient(url, auth=token or ((user, password) if user else None))

    def submit(self, spec: JobSpec) -> Job:
        """
        Order a job; the same order twice is one job.

        Raises:
            ApiError: the order was refused.
            ApiUnavailable: the service cannot be reached; ordering again is safe.
        """
        body = {**spec_to_dict(spec), "uuid": str(spec.id), "status": "todo"}
        del body["id"]
        self._http.request("POST", _ROUTES[spec.kind], json=body)
        return self.job(spec.id)

    def job(self, job_id: UUID) -> Job:
        """
        Return a job with its attempts.

        Raises:
            ApiError: ``status`` 404 if there is none.
        """
        return _to_job(self._http.request("GET", f"/jobs/{job_id}").json())

    def jobs(
        self,
        *,
        state: JobState | None = None,
        kind: JobKind | None = None,
        problem: UUID | None = None,
        algo: UUID | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Return jobs without their attempts, newest first; at most `limit`, if given."""
        query = {"state": state, "kind": kind, "problem": problem, "algo": algo, "tag": tag}
        params = {key: str(value) for key, value in query.items() if value is not None}
        left = limit
        while left is None or left > 0:
            page_size = 100 if left is None else min(left, 100)
            answer = self._http.request("GET", "/jobs", params={**params, "limit": str(page_size)}).json()
            yield from (_to_job(item) for item in answer["items"])
            if answer["next"] is None:
                return
            params["after"] = answer["next"]
            left = None if left is None else left - page_size

    def cancel(self, job_id: UUID) -> Job:
        """Cancel a job, and return it as it then is; harmless if it was cancelled before or has ended."""
        return _to_job(self._http.request("POST", f"/jobs/{job_id}/cancel").json())

    def retry(self, job_id: UUID) -> Job:
        """
        Order a job again that failed or was cancelled; return the new one.

        Raises:
            ApiError: ``status`` 404 if there is no such job, 409 if it has not failed or its rank has another job.
        """
        return _to_job(self._http.request("POST", f"/jobs/{job_id}/retry").json())

    def logs(self, job_id: UUID, *, attempt: int | None = None) -> str:
        """Return the logs of a job's latest attempt, or of another."""
        params = {} if attempt is None else {"attempt": str(attempt)}
        return self._http.request("GET", f"/jobs/{job_id}/logs", params=params).text

    def follow_logs(
        self, job_id: UUID, *, attempt: int | None = None, outage_s: float = OUTAGE_S
    ) -> Iterator[LogEvent | JobState]:
        """
        Return what the containers of a job write, as they write it, and at last the state that the job ended in.

        Lost connections are made again, and the log goes on where it was.

        Args:
            job_id: Which job.
            attempt: The first to show; the latest by default. Later ones follow.
            outage_s: How long the service may be out at a stretch.

        Raises:
            ApiError: ``status`` 404 if there is no such job.
            ApiUnavailable: the service is out for too long.
        """
        params = {"follow": "1"} if attempt is None else {"follow": "1", "attempt": str(attempt)}
        yield from follow_log_events(self._http, f"/jobs/{job_id}/logs", params, outage_s=outage_s)

    def wait(
        self, job_id: UUID, *, timeout_s: float | None = None, on_look: Callable[[Job], None] | None = None
    ) -> Job:
        """
        Return a job when it has ended.

        Args:
            job_id: Which job.
            timeout_s: How long to wait; None is for ever.
            on_look: Called with the job at every look.

        Raises:
            TimeoutError: it has not ended in time.
        """
        began = time.monotonic()
        pause_s = FIRST_POLL_S
        while True:
            job = self.job(job_id)
            if on_look is not None:
                on_look(job)
            if job.state.is_final:
                return job
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise TimeoutError(f"job {job_id} is {job.state} after {timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, LAST_POLL_S)


def _to_job(document: dict[str, Any]) -> Job:
    kind = JobKind(document["kind"])
    failure, scores = document["failure"], document["scores"]
    return Job(
        id=UUID(document["id"]),
        kind=kind,
        state=JobState(document["state"]),
        spec=spec_from_dict(kind, document["spec"]),
        algo=UUID(document["algo"]) if document["algo"] else None,
        attempt=document["attempt"],
        strikes=document["strikes"],
        cancel_requested=document["cancel_requested"],
        worker=document["worker"],
        created_at=datetime.fromisoformat(document["created_at"]),
        started_at=_time(document["started_at"]),
        ended_at=_time(document["ended_at"]),
        failure=None if failure is None else _to_failure(failure),
        scores=None if scores is None else Scores(**scores),
        attempts=tuple(_to_attempt(item) for item in document.get("attempts", ())),
    )


def _to_failure(document: dict[str, Any]) -> Failure:
    return Failure(
        cause=Cause(document["cause"]),
        blame=Blame(document["blame"]),
        step=StepName(document["step"]) if document["step"] else None,
        message=document["message"],
    )


def _to_attempt(document: dict[str, Any]) -> Attempt:
    return Attempt(
        number=document["number"],
        worker=document["worker"],
        outcome=AttemptOutcome(document["outcome"]),
        started_at=datetime.fromisoformat(document["started_at"]),
        ended_at=_time(document["ended_at"]),
        message=document["message"],
        steps=tuple(_to_step(item) for item in document["steps"]),
    )


def _to_step(document: dict[str, Any]) -> StepRecord:
    return StepRecord(
        name=StepName(document["name"]),
        started_at=datetime.fromisoformat(document["started_at"]),
        seconds=document["seconds"],
        exit_code=document["exit_code"],
        oom_killed=document["oom_killed"],
        peak_memory_bytes=document["peak_memory_bytes"],
    )


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
