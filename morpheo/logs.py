"""
How services log: as text or as JSON, with the job or the request that a line is about, and without secrets.

Whoever runs a job says so with `about_job` and `adding`; the words are then on every line that is logged meanwhile, by
libraries too, and in threads: one that was told nothing speaks of the one job that its process runs.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

from pydantic import SecretStr
from pythonjsonlogger.core import RESERVED_ATTRS, merge_record_extra
from pythonjsonlogger.json import JsonFormatter

from morpheo.access import TOKEN
from morpheo.config import Settings

logger = logging.getLogger(__name__)

Words = dict[str, object]
Redact = Callable[[str], str]

#: A secret that is shorter is looked for only where its place gives it away: it may be part of any word.
MIN_SECRET = 6
_HIDDEN = "***"
#: What Celery adds to its lines repeats what their messages say.
_NOT_SHOWN = frozenset({*RESERVED_ATTRS, "data"})

_words: ContextVar[Words | None] = ContextVar("words", default=None)
#: The words of the jobs that this process runs now: one at most in a process of a Celery pool.
_jobs: list[Words] = []


@contextlib.contextmanager
def about_job(job_id: UUID) -> Iterator[None]:
    """Say of every line that is logged in the block that it is about a job."""
    words: Words = {"job": str(job_id)}
    token = _words.set(words)
    _jobs.append(words)
    try:
        yield
    finally:
        _jobs.remove(words)
        _words.reset(token)


@contextlib.contextmanager
def adding(**words: object) -> Iterator[None]:
    """Say more in the block of what the lines are about; also in threads that were started before."""
    about = _words.get()
    if about is None:
        about = {}  # nobody said what the lines are about
    about.update(words)
    try:
        yield
    finally:
        for word in words:
            del about[word]


def about_request(request_id: str) -> None:
    """Say of every line from here on that it is about a request, until `about_nothing`."""
    _words.set({"request": request_id})


def about_nothing() -> None:
    """Forget what the lines were about."""
    _words.set(None)


def configure(settings: Settings) -> None:
    """Log to stderr as the settings say; warnings and exceptions that nobody caught too."""
    redact = make_redact(settings)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(redact) if settings.log == "json" else TextLines(redact))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _log_uncaught(kind: type[BaseException], error: BaseException | None, _trace: object) -> None:
    if isinstance(error, Exception):
        logger.critical("%s was not caught", kind.__name__, exc_info=error)


#: Ends of lines, escape sequences of terminals, and letters that turn the direction of writing.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


class TextLines(logging.Formatter):
    """Lines for people; what they are about is at the end of the message."""

    def __init__(self, redact: Redact) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._redact = redact

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of the standard library
        """Return the line without an exception's traceback; what somebody sent cannot look like another line."""
        line = super().formatMessage(record)
        line += "".join(f" {name}={value}" for name, value in _all_words(record).items())
        return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), line)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or the lines of an exception."""
        return self._redact(super().format(record))


class JsonLines(JsonFormatter):
    """One JSON object per line, for machines."""

    def __init__(self, redact: Redact) -> None:
        names = {"levelname": "level", "name": "logger", "exc_info": "exception", "stack_info": "stack"}
        fields = ("levelname", "name", "message", "process")
        super().__init__(fields, rename_fields=names, reserved_attrs=sorted(_NOT_SHOWN), timestamp="time")
        self._redact = redact

    def add_fields(self, log_data: Words, record: logging.LogRecord, message_dict: Words) -> None:
        """Collect what is told."""
        super().add_fields(log_data, record, message_dict)
        log_data.update(_all_words(record))

    def process_log_record(self, log_data: Words) -> Words:
        """Hide secrets before quotes are escaped, and bring the time to the front."""
        return {name: self._cleaned(value) for name, value in {"time": None, **log_data}.items()}

    def _cleaned(self, value: object) -> object:
        if value is None or isinstance(value, bool | int | float):
            return value
        return self._redact(value.isoformat() if hasattr(value, "isoformat") else str(value))


def _all_words(record: logging.LogRecord) -> Words:
    about = _words.get()
    if about is None and len(_jobs) == 1:
        about = _jobs[0]
    words: Words = merge_record_extra(record, dict(about or {}), reserved=_NOT_SHOWN)
    return {name: value for name, value in words.items() if value is not None}


_SCHEMES = "basic|bearer|digest|token|aws4-hmac-sha256"
_NAMES = (
    r"x-amz-(?:signature|credential|security-token)|awsaccesskeyid|secret[_-]?key|access[_-]?key(?:[_-]?id)?"
    r"|passw(?:or)?d|(?<![a-z])(?:signature|credential|token)"
)
# What a secret looks like, wherever it comes from: what follows `keep` is hidden.
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # scheme://user:password@host
        r"(?P<keep>\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]*:)[^\s'\"]+(?=@)",
        # Authorization: Basic ..., also in a dump of headers
        rf"(?P<keep>authorization['\"]?\s*[:=,]\s*(?:b?['\"])?(?:(?:{_SCHEMES}) +)?)[^\s'\",\\]+",
        # X-Amz-Signature=..., also as a header or in a URL within another
        rf"(?P<keep>(?:{_NAMES})['\"]?\s?(?:=|:|%3D)\s?(?:b?['\"])?)(?:(?!%26)[^\s&'\",;)}}\\])+",
    )
)
# "Basic authentication" is no secret: base64 of user:password has hardly ever only small letters.
_BASIC = re.compile(r"\b(?P<keep>Basic )(?=[A-Za-z0-9+/]*[A-Z0-9=])[A-Za-z0-9+/]{6,}={0,2}")


def make_redact(settings: Settings) -> Redact:
    """Return a function that hides in a text the secrets of the settings, and what looks like one."""
    secrets = sorted(_secrets(settings), key=len, reverse=True)
    own = re.compile("|".join(map(re.escape, secrets))) if secrets else None

    def redact(text: str) -> str:
        if own is not None:
            text = own.sub(_HIDDEN, text)
        for pattern in (_BASIC, *_PATTERNS):
            text = pattern.sub(rf"\g<keep>{_HIDDEN}", text)
        return TOKEN.sub(_HIDDEN, text)

    return redact


def _secrets(settings: Settings) -> set[str]:
    password = settings.password.get_secret_value()
    found = {base64.b64encode(f"{settings.user}:{password}".encode()).decode()}
    for name in type(settings).model_fields:
        value: Any = getattr(settings, name)
        if isinstance(value, SecretStr):
            text = value.get_secret_value()
            in_url = re.match(r"[^/]+://[^:@/]*:(.+)@", text)
            if in_url or "://" not in text:
                found.add(in_url[1] if in_url else text)
    found |= {unquote(text) for text in found} | {quote(text, safe="") for text in found}
    return {text for text in found if len(text) >= MIN_SECRET}
