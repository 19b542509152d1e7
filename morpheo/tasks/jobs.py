"""The one task."""

from __future__ import annotations

import logging
from uuid import UUID

from celery import Task

from morpheo.celery import app
from morpheo.failpoints import failpoint
from morpheo.tasks.publisher import RUN_JOB, process_resources
from morpheo.tasks.stopping import at_work

logger = logging.getLogger(__name__)


@app.task(bind=True, name=RUN_JOB)
def run_job(self: Task[[str], None], job_id: str) -> None:  # noqa: ARG001 - Celery gives it
    """Make one attempt at a job, if its row is to be had."""
    failpoint("received")
    try:
        parsed = UUID(job_id)
    except ValueError:
        logger.warning("message dropped: %r is no job's id", job_id[:50])
        return
    with at_work():
        process_resources().runner.run(parsed)
    failpoint("before_ack")
