"""
The audit trail: what its events are, how each is chained to the one before, and how a chain is verified.

The digest of an event is the SHA-256 of its other fields as one JSON array, `previous` (the digest of the event
before) among them. So no event can be changed, taken out, put in or moved without a digest that does not fit, unless
all that follow are made anew; a head that was noted elsewhere finds that, too.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

#: How many flaws a verdict names; all are counted.
MAX_FLAWS = 100


class Action(enum.StrEnum):
    """What can happen: a closed list."""

    ARTIFACT_UPLOADED = "artifact.uploaded"
    ARTIFACT_CHANGED = "artifact.changed"
    ARTIFACT_DOWNLOADED = "artifact.downloaded"
    ARTIFACT_QUARANTINED = "artifact.quarantined"
    #: Taken out of quarantine: its blob is whole, or was uploaded again.
    ARTIFACT_RELEASED = "artifact.released"
    ARTIFACT_DELETED = "artifact.deleted"
    #: Of a blob that no artifact names, or no longer.
    BLOB_DELETED = "blob.deleted"
    #: A job was accepted.
    JOB_ORDERED = "job.ordered"
    #: A rank's turn has come: waiting, then queued.
    JOB_RELEASED = "job.released"
    JOB_CLAIMED = "job.claimed"
    #: Running, then queued again.
    JOB_REQUEUED = "job.requeued"
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_CANCEL_REQUESTED = "job.cancel_requested"
    JOB_RETRIED = "job.retried"
    #: What its containers wrote was shown.
    JOB_LOGS_READ = "job.logs_read"
    PROBLEM_REGISTERED = "problem.registered"
    #: What its submitters see has changed.
    PROBLEM_CHANGED = "problem.changed"
    ALGO_REGISTERED = "algo.registered"
    DATA_REGISTERED = "data.registered"
    #: Jobs that wait for their turns were added to the chain of an algo.
    CHAIN_EXTENDED = "chain.extended"
    #: Somebody began to copy all rows and blobs.
    BACKUP_STARTED = "backup.started"
    BACKUP_RESTORED = "backup.restored"
    USER_ADDED = "user.added"
    #: Other roles, another password, locked out or let in again.
    USER_CHANGED = "user.changed"
    TOKEN_CREATED = "token.created"  # noqa: S105 - no secret
    TOKEN_REVOKED = "token.revoked"  # noqa: S105 - no secret
    #: So many logins failed that the next ones must wait.
    LOGIN_FAILED = "login.failed"


class Event(NamedTuple):
    """One row of the trail, its fields in the order in which they are hashed; `digest` is last and is not."""

    #: From 1, without gaps.
    seq: int
    #: Seconds since the epoch, by the clock of the database.
    at: float
    #: Who (`morpheo.actors`).
    actor: str
    #: One of `Action`, of this version or of another.
    action: str
    subject_kind: str
    subject_id: str
    #: A JSON object in canonical form, as text: it is hashed letter for letter.
    detail: str
    #: Digest of the event before.
    previous: str
    digest: str


class Head(NamedTuple):
    """The end of a trail: number and digest of its last event."""

    seq: int
    digest: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.digest}"


#: The head of a trail without events.
START = Head(0, "0" * 64)


def canonical(value: Any) -> str:
    """Return a value as JSON that has one form only: sorted keys, no blanks, ASCII; what JSON has not, as text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def chained(
    previous: Head, *, at: float, actor: str, action: Action, subject_kind: str, subject_id: str, detail: str
) -> Event:
    """Return the event that follows a head."""
    event = Event(previous.seq + 1, at, actor, action.value, subject_kind, subject_id, detail, previous.digest, "")
    return event._replace(digest=event_digest(event))


def event_digest(event: Event) -> str:
    """Return what the digest of an event must be, in hexadecimal."""
    return hashlib.sha256(canonical(event[:-1]).encode()).hexdigest()


def list_digest(items: Iterable[object]) -> str:
    """Return the digest of a list that is too long for an event: the SHA-256 of its items, each ended by a newline."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Flaw:
    """Events that are missing, or are not what they were."""

    #: Numbers of the first and last of them.
    first: int
    last: int
    problem: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a verification found."""

    #: How many events there are.
    events: int
    #: Where the trail ends, by its last event.
    head: Head
    #: The first `MAX_FLAWS` of them.
    flaws: tuple[Flaw, ...]
    #: How many there are in all.
    flaws_total: int

    @property
    def intact(self) -> bool:
        """Whether nothing is missing or changed."""
        return not self.flaws_total


def verify(events: Iterable[Event], head: Head | None, *, noted: Iterable[Head] = ()) -> Verdict:
    """
    Check a trail from its first event to its last; needs the memory of one.

    Args:
        events: All, by number.
        head: Of the same moment as the events, kept apart from them; None if it has gone.
        noted: Earlier heads, which the trail must still have.
    """
    check = _Check(noted)
    for event in events:
        check.follow(event)
    check.end(head)
    return Verdict(events=check.events, head=check.last, flaws=tuple(check.flaws), flaws_total=check.flaws_total)


class _Check:
    def __init__(self, noted: Iterable[Head]) -> None:
        self.events = 0
        self.last = START
        self.flaws: list[Flaw] = []
        self.flaws_total = 0
        self._noted: dict[int, set[str]] = {}
        for head in noted:
            self._noted.setdefault(head.seq, set()).add(head.digest)
        self._pass(START)

    def follow(self, event: Event) -> None:
        self.events += 1
        due = self.last.seq + 1
        if not isinstance(event.seq, int) or event.seq < due:
            self._add(due, due, f"instead there is an event with the number {event.seq!r}")
            return
        if event.seq > due:
            self._add(due, event.seq - 1, "missing")
        if event.digest != event_digest(event):
            self._add(event.seq, event.seq, "changed: its digest is not that of its contents")
        elif event.seq == due and event.previous != self.last.digest:
            self._add(event.seq, event.seq, f"does not follow {self.last.seq}: one of the two is another one's place")
        self.last = Head(event.seq, event.digest)
        self._pass(self.last)

    def end(self, head: Head | None) -> None:
        if head is None:
            self._add(self.last.seq, self.last.seq, "the head of the trail, which is kept apart, is missing")
        elif head.seq > self.last.seq:
            self._add(self.last.seq + 1, head.seq, "missing, at the end")
        elif head != self.last:
            self._add(head.seq, self.last.seq, f"the head of the trail, which is kept apart, is another: {head}")
        for seq in self._noted:
            self._add(seq, seq, "a head was noted here, and the trail does not get there any more")

    def _pass(self, head: Head) -> None:
        if self._noted.pop(head.seq, {head.digest}) != {head.digest}:
            self._add(head.seq, head.seq, "not the head that was noted: the trail was made anew, here or before")

    def _add(self, first: int, last: int, problem: str) -> None:
        self.flaws_total += 1
        if len(self.flaws) < MAX_FLAWS:
            self.flaws.append(Flaw(first=first, last=last, problem=problem))
