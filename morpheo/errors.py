"""
The exceptions of Morpheo.

::

    MorpheoError
    ├── SettingsError             a setting is missing or wrong; the process must not start
    ├── InvalidInput              what a person sent cannot be accepted; names the field
    │   ├── TooLarge              it is over a limit
    │   ├── BadArchive            an archive breaks a limit or a rule of `morpheo.runtime.archive`
    │   └── BadOutput             a container's output breaks a rule of `morpheo.runtime.outputs`
    ├── NotFound                  no such artifact, blob or job
    ├── CorruptBlob               a blob is not what its row says
    │   └── Quarantined           that has been found out before; it is not tried again
    ├── CorruptRow                a row of the database cannot be read
    ├── Throttled                 too much of it; says when to try again
    ├── Conflict                  the thing exists already, or is past the point of change
    ├── Forbidden                 it is not for who asks
    ├── TooMany                   it is asked for too often; tells when it may be asked for again
    ├── Unavailable               infrastructure failed; the same call may succeed later
    │   ├── DatabaseUnavailable
    │   │   └── RowLocked         another transaction has kept a row for too long
    │   ├── StorageUnavailable    the blob store
    │   ├── BrokerUnavailable
    │   ├── RuntimeUnavailable    the container engine
    │   ├── DiskFull              no room on this machine
    │   │   └── EngineFull        a build met that, or filled the disk itself
    │   └── ApiUnavailable        one of Morpheo's own services, seen from a client
    ├── ApiError                  a service answered with an error; seen from a client
    └── Interrupted               the attempt must stop: cancelled, or its lease is lost

Two families matter to the application layer. `Unavailable` is retried; everything else that a job can meet is
turned into a `morpheo.models.Failure` and ends the job, because trying again would give the same answer.
"""

from __future__ import annotations


class MorpheoError(Exception):
    """Something in Morpheo failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])


class SettingsError(MorpheoError):
    """A setting is missing or has a value that cannot be used."""


class InvalidInput(MorpheoError):
    """
    What was sent cannot be accepted.

    Attributes:
        field: Name of the field that is wrong, if there is one.
    """

    def __init__(self, message: str | None = None, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class TooLarge(InvalidInput):
    """What was sent is larger than the limit."""


class BadArchive(InvalidInput):
    """The archive cannot be used."""


class BadOutput(InvalidInput):
    """The container's output cannot be used."""


class NotFound(MorpheoError):
    """There is no such thing."""


class CorruptBlob(MorpheoError):
    """The blob's content is not what was stored."""


class CorruptRow(MorpheoError):
    """A row of the database cannot be read."""


class Quarantined(CorruptBlob):
    """The blob was found lost or damaged, and is not used until it is uploaded again."""


class Throttled(MorpheoError):
    """
    Somebody did something too often.

    Attributes:
        retry_after_s: When to try again, in seconds.
    """

    def __init__(self, message: str | None = None, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Conflict(MorpheoError):
    """The thing exists already, or its state forbids the change."""


class Forbidden(MorpheoError):
    """This is not for you."""


class TooMany(MorpheoError):
    """
    It was asked for too often.

    Attributes:
        retry_after_s: When it may be asked for again, in whole seconds from now.
    """

    def __init__(self, message: str | None = None, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(MorpheoError):
    """A service that Morpheo needs does not answer; the same call may succeed later."""


class DatabaseUnavailable(Unavailable):
    """The database does not answer."""


class RowLocked(DatabaseUnavailable):
    """Another transaction has kept a row for too long."""


class StorageUnavailable(Unavailable):
    """The blob store does not answer."""


class BrokerUnavailable(Unavailable):
    """The message broker does not answer."""


class RuntimeUnavailable(Unavailable):
    """The container engine does not answer."""


class DiskFull(Unavailable):
    """There is no room left on this machine."""


class EngineFull(DiskFull):
    """A build found the disk of the container engine full, or filled it."""


class ApiUnavailable(Unavailable):
    """The service cannot be reached."""


class ApiError(MorpheoError):
    """
    A service refused a request.

    Attributes:
        status: HTTP status code of the answer.
    """

    def __init__(self, message: str | None = None, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class Interrupted(MorpheoError):
    """The attempt was told to stop."""
