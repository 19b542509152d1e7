"""Messages to the workers, and the resources of a process that sends or receives them."""

from __future__ import annotations

import functools
from uuid import UUID

from kombu.exceptions import OperationalError

from morpheo.celery import app
from morpheo.config import Settings
from morpheo.errors import BrokerUnavailable
from morpheo.resources import Resources

RUN_JOB = "morpheo.run_job"


class CeleryPublisher:
    """A `morpheo.jobs.Publisher` through Celery."""

    def publish(self, job_id: UUID) -> None:
        """Tell the workers that a job is there; the message carries its id and nothing else."""
        try:
            app.send_task(RUN_JOB, args=[str(job_id)], task_id=str(job_id))
        except OperationalError as exc:
            raise BrokerUnavailable("the broker does not answer") from exc

    def backlog(self) -> int:
        """Return how many messages wait."""
        try:
            with app.connection_for_write() as connection:
                try:
                    found = connection.default_channel.queue_declare(  # type: ignore[attr-defined]
                        app.conf.task_default_queue, passive=True
                    )
                except connection.channel_errors:  # Redis has no key for an empty queue
                    return 0
                return int(found.message_count)
        except (OperationalError, OSError) as exc:
            raise BrokerUnavailable("the broker does not answer") from exc


@functools.cache
def process_resources() -> Resources:
    """Return the resources of this process, from its environment."""
    return Resources(Settings.from_env(), CeleryPublisher())
