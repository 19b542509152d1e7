"""Messages to the workers, and the resources of a process that sends or receives them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from kombu import Connection
from kombu.exceptions import OperationalError

from morpheo.celery import app
from morpheo.config import Settings
from morpheo.errors import BrokerUnavailable
from morpheo.models import JobSpec
from morpheo.queues import queue_of
from morpheo.resources import Resources

RUN_JOB = "morpheo.run_job"
#: How long RabbitMQ may take to confirm a message, in seconds.
CONFIRM_S = 15


class CeleryPublisher:
    """A `morpheo.jobs.Publisher` through Celery."""

    def publish(self, spec: JobSpec) -> None:
        """Tell the workers that a job is there; the message carries its id, and for Flower what it is."""
        shown = f"kind={spec.kind} problem={spec.problem}" + (f" tags={','.join(spec.tags)}" if spec.tags else "")
        with _mapped_errors():
            app.send_task(
                RUN_JOB,
                args=[str(spec.id)],
                task_id=str(spec.id),
                queue=queue_of(spec),
                argsrepr=shown,
                confirm_timeout=CONFIRM_S,
            )

    def backlog(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        with connected() as connection:
            try:
                found = connection.default_channel.queue_declare(queue, passive=True)  # type: ignore[attr-defined]
            except connection.channel_errors:  # nothing was published to it, or Redis has no key for an empty queue
                return 0
            return int(found.message_count)


@contextmanager
def connected() -> Iterator[Connection]:
    """
    Give a connection to the broker.

    Raises:
        BrokerUnavailable: it does not answer, also later in the block.
    """
    with _mapped_errors(), app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
        yield connection


@contextmanager
def _mapped_errors() -> Iterator[None]:
    broker = app.connection_for_write()  # not a connection yet: it knows its kinds of errors, and its address
    try:
        yield
    except (OperationalError, OSError) as exc:
        message = f"no broker answers at {broker.as_uri()}; start it, or set MORPHEO_BROKER_URL"
        raise BrokerUnavailable(message) from exc
    except (*broker.connection_errors, *broker.channel_errors) as exc:
        message = f"the broker at {broker.as_uri()} refuses: {exc}; set MORPHEO_BROKER_URL"
        raise BrokerUnavailable(message) from exc


@functools.cache
def process_resources() -> Resources:
    """Return the resources of this process, from its environment."""
    return Resources(Settings.from_env(), CeleryPublisher())
