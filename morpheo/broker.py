"""
Redis as a broker in which anything may lie.

Kombu 5.7 parses what it pops from a list inside the worker's event loop: bytes that are no message end the worker, and
the next one, until the list is empty. What it could parse and Celery cannot read would count as a message that the
worker has, for ever: it would wait for no other one.
"""

from __future__ import annotations

import logging
from queue import Empty
from typing import Any

from kombu import transport
from kombu.transport import redis

logger = logging.getLogger(__name__)


#: What comes of reading something that is not what it should be.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class _Channel(redis.Channel):
    """Drops what is no message: it is in no list any more, and nobody waits for it."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except _UNREADABLE:
            logger.exception("something in a queue is no message; it is dropped")
            raise Empty from None

    def basic_consume(self, queue: Any, no_ack: Any, callback: Any, consumer_tag: Any, **kwargs: Any) -> Any:
        """Consume from a queue; a message that cannot be read does not count as one that is worked on."""

        def tolerant(message: Any) -> None:
            try:
                callback(message)
            except _UNREADABLE:
                logger.exception("a message cannot be read; it is dropped")
                if not message.acknowledged:
                    message.reject()

        return super().basic_consume(queue, no_ack, tolerant, consumer_tag, **kwargs)


class _SentinelChannel(_Channel, redis.SentinelChannel):
    pass


class Transport(redis.Transport):
    """Kombu's transport with such a channel."""

    Channel = _Channel


class SentinelTransport(redis.SentinelTransport):
    """The same where Sentinel knows which server to use."""

    Channel = _SentinelChannel


def install() -> None:
    """Let URLs of Redis mean these transports, in this process."""
    names = {"redis": "Transport", "rediss": "Transport", "sentinel": "SentinelTransport"}
    transport.TRANSPORT_ALIASES.update({scheme: f"{__name__}:{name}" for scheme, name in names.items()})
