"""
Reports to an outside orchestrator, which ordered jobs at the compute API and waits to hear of them.

A report is written in the transaction that gives a job to a worker or ends it, and sent after the commit, in the words
of 2017, until it is answered: at least once, and the reports of one job in their order.
"""

from __future__ import annotations

import enum
import logging
import random
import threading
from http import HTTPStatus
from typing import Any
from uuid import UUID

from morpheo.client.http import HttpClient
from morpheo.errors import ApiError, ApiUnavailable, Unavailable
from morpheo.models import Job, JobKind, JobState
from morpheo.storage.database import Database, UnitOfWork
from morpheo.storage.reports import Report

logger = logging.getLogger(__name__)

#: Pause between two looks for reports, in seconds.
POLL_S = 1.0
#: Most reports of one round.
BATCH = 500
#: Seconds to connect, and seconds without any byte of the answer.
TIMEOUT = (5, 20)
#: How long a report is kept from other workers while it is sent, in seconds.
TAKEN_S = 60.0
#: Longest wait before a report is sent again that got no answer, in seconds: all go out soon after the return.
LONGEST_SILENCE_S = 30.0
#: The same for a report that was answered with an error.
LONGEST_TROUBLE_S = 300.0
#: Errors one after the other that end a round: then it is most likely not the reports.
TROUBLE_IN_A_ROW = 10

#: Errors, besides those from 500, that say nothing about the report.
_TRY_AGAIN = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    # No answer of an orchestrator to a report, but of what stands before it, or of a wrong address.
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
)
_STARTS = {JobKind.LEARN: "/worker/learnuplet", JobKind.PREDICT: "/worker/preduplet"}
_ENDS = {JobKind.LEARN: "/learndone", JobKind.PREDICT: "/preddone"}


def write_report(work: UnitOfWork, job_id: UUID, state: JobState) -> None:
    """Write what an outside orchestrator is to hear of a job, in the transaction that changed it."""
    job = work.jobs.get(job_id)
    if job.planned:
        return  # the orchestrator that planned it reads the same database
    if state.is_final:
        work.reports.add(Report(job=job_id, number=1, path=f"{_ENDS[job.kind]}/{job_id}", body=_end(job)))
    elif job.attempt == 1:  # it does not hear of attempts: for it, the job is pending until it ends
        body = {"worker": job.worker}
        work.reports.add(Report(job=job_id, number=0, path=f"{_STARTS[job.kind]}/{job_id}", body=body))


def _end(job: Job) -> dict[str, Any]:
    if job.state is not JobState.SUCCEEDED:
        return {"status": "failed"}
    if job.scores is None:
        return {"status": "done", "prediction_storage_uuid": str(job.result)}
    scores = job.scores
    return {"status": "done", "perf": scores.perf, "train_perf": scores.train_perf, "test_perf": scores.test_perf}


class _Sent(enum.Enum):
    """What became of a report."""

    #: Answered for good, also if it was refused.
    WELL = enum.auto()
    #: Answered with an error that may end.
    TROUBLE = enum.auto()
    NO_ANSWER = enum.auto()


_LONGEST_S = {_Sent.TROUBLE: LONGEST_TROUBLE_S, _Sent.NO_ANSWER: LONGEST_SILENCE_S}


class Reporter:
    """
    Sends reports.

    Every worker has one, with a thread of its own: an orchestrator that hangs delays nothing else.

    Args:
        database: Keeps the reports.
        orchestrator: Where they are sent to; must not try again by itself.
    """

    def __init__(self, database: Database, orchestrator: HttpClient) -> None:
        self._database = database
        self._orchestrator = orchestrator

    def run(self, stop: threading.Event) -> None:
        """Send what there is again and again, until told to stop; with longer pauses while it is in vain."""
        failures = 0
        while not stop.wait(_delay_s(failures, longest_s=LONGEST_SILENCE_S) if failures else POLL_S):
            try:
                well = self.deliver()
            except Unavailable as exc:
                logger.warning("reports put off: %s", exc)
                well = False
            except Exception:
                logger.exception("reports put off")
                well = False
            failures = 0 if well else failures + 1

    def deliver(self) -> bool:
        """
        Send the reports that are due, one after the other.

        A report that is answered with an error is put off, and with it only what follows it of the same job.

        Returns:
            Whether the next round may come soon. A report that gets no answer ends the round, and so do
            `TROUBLE_IN_A_ROW` errors: a server that is down is not sent thousands.

        Raises:
            DatabaseUnavailable: the database does not answer; what was sent may be sent again.
        """
        with self._database.read() as work:
            if not work.reports.any_due():
                return True
        trouble = 0
        for _ in range(BATCH):
            with self._database.begin() as work:
                report = work.reports.take(for_s=TAKEN_S)
            if report is None:
                break
            # In no transaction: an orchestrator that hangs must not hold a lock.
            sent = self._send(report)
            with self._database.begin() as work:
                if sent is _Sent.WELL:
                    work.reports.delete(report)
                else:
                    work.reports.put_off(report, for_s=_delay_s(report.tries, longest_s=_LONGEST_S[sent]))
            trouble = trouble + 1 if sent is _Sent.TROUBLE else 0
            if sent is _Sent.NO_ANSWER or trouble == TROUBLE_IN_A_ROW:
                return False
        return True

    def _send(self, report: Report) -> _Sent:
        words = {"job": str(report.job), "path": report.path}
        try:
            answer = self._orchestrator.request(
                "POST", report.path, json=report.body, timeout=TIMEOUT, allow_redirects=False
            )
            if (
                answer.status_code >= HTTPStatus.MULTIPLE_CHOICES
            ):  # to a page that asks for a password, or to https: as a GET
                raise ApiError("it sent the report elsewhere; correct MORPHEO_ORCHESTRATOR_URL", status=502)
        except ApiUnavailable as exc:
            logger.warning("report put off: %s", exc, extra=words)
            return _Sent.NO_ANSWER
        except ApiError as exc:
            if exc.status in _TRY_AGAIN or exc.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                logger.warning("report put off: the orchestrator answered %d (%s)", exc.status, exc, extra=words)
                return _Sent.TROUBLE
            logger.warning("report refused for good: %d (%s)", exc.status, exc, extra=words)
        return _Sent.WELL


def _delay_s(tries: int, *, longest_s: float) -> float:
    # Jitter: workers that were refused together do not come back together.
    return min(2.0 ** min(tries, 16), longest_s) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
