"""Turns what went wrong into a `Failure`: a cause from the closed list, somebody to blame, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable

from morpheo.errors import (
    DatabaseUnavailable,
    DiskFull,
    RuntimeUnavailable,
    StorageUnavailable,
    Unavailable,
)
from morpheo.models import Attempt, Blame, Cause, Failure, JobFailed, StepName
from morpheo.runtime.contract import SIGKILLED, StepResult

#: How much of a log a failure's message quotes.
_QUOTED_LINES = 20
_QUOTED_CHARACTERS = 4000
_MIB = 1 << 20
_LESS_MEMORY = "use smaller batches, or ask the custodian for a higher limit"
#: Share of the memory limit from which the end of a program may have to do with it.
_NEARLY_ALL = 0.95
#: What the history of a job says of an attempt whose worker died or went silent.
LEASE_LOST = "its worker stopped renewing the lease"
#: How programs, and the engine for stderr of builds, colour text.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: Exit code of a program that was killed for writing a file larger than its limit: 128 + SIGXFSZ.
_EXIT_FILE_SIZE = 153

_INFRASTRUCTURE: tuple[tuple[type[Unavailable], Cause], ...] = (
    (DatabaseUnavailable, Cause.DATABASE_UNAVAILABLE),
    (StorageUnavailable, Cause.STORAGE_UNAVAILABLE),
    (RuntimeUnavailable, Cause.RUNTIME_UNAVAILABLE),
    (DiskFull, Cause.DISK_FULL),
)


def failed(cause: Cause, blame: Blame, message: str, step: StepName | None = None) -> JobFailed:
    """Return the exception that ends a job."""
    return JobFailed(Failure(cause=cause, blame=blame, step=step, message=message))


def infrastructure_failure(error: Exception, attempts: int) -> Failure:
    """Return why a job failed that infrastructure cost all its attempts."""
    cause = next((cause for kind, cause in _INFRASTRUCTURE if isinstance(error, kind)), Cause.INTERNAL_ERROR)
    reason = str(error) if cause is not Cause.INTERNAL_ERROR else "an unexpected error; see the worker's log"
    return Failure(
        cause=cause,
        blame=Blame.INFRASTRUCTURE,
        message=f"gave up after {attempts} attempts; the last one: {reason}. Order the job again when this is repaired",
    )


def worker_lost(attempts: Iterable[Attempt]) -> Failure:
    """Return why a job failed whose workers died or went silent; its attempts tell which, and what became of each."""
    history = "; ".join(
        f"attempt {attempt.number} on {attempt.worker}: {attempt.message or LEASE_LOST}" for attempt in attempts
    )
    return Failure(
        cause=Cause.WORKER_LOST,
        blame=Blame.INFRASTRUCTURE,
        message=f"gave up, as workers were lost with it ({history}); look at the logs of these workers, and whether "
        "the job needs more memory than the machine has",
    )


def check_result(result: StepResult, step: StepName, blame: Blame, *, timeout_s: float, memory_bytes: int) -> None:
    """
    Do nothing if a container ended well.

    Raises:
        JobFailed: it did not.
    """
    # What a problem's program prints may be the truth, and a failure is shown to the submitter.
    said = last_lines(result.log) if blame is Blame.SUBMITTER else ". Its log is kept for the custodian"
    if result.start_error is not None:
        message = f"the {step} container could not be started: {result.start_error}; check the image's ENTRYPOINT"
        raise failed(Cause.BAD_IMAGE, blame, message, step)
    if result.over_quota:
        message = f"{step} filled its output folders and ended or was stopped; write less, and fewer files"
        raise failed(Cause.OUTPUT_LIMIT, blame, message + said, step)
    if result.timed_out:
        raise failed(
            Cause.TIME_LIMIT,
            blame,
            f"{step} ran longer than {timeout_s:g} s and was stopped; make it faster, or ask the custodian for a "
            "longer limit" + said,
            step,
        )
    if result.exit_code == 0:
        return
    peak_bytes = memory_bytes if result.oom_killed else result.peak_memory_bytes or 0
    memory = f"peak {peak_bytes // _MIB} of {memory_bytes // _MIB} MiB in {step}: {_LESS_MEMORY}"
    if result.oom_killed:
        message = f"{step} used all of its memory and was stopped; {memory}"
        raise failed(Cause.OUT_OF_MEMORY, blame, message + said, step)
    if result.exit_code == _EXIT_FILE_SIZE:
        message = f"{step} wrote a file larger than the limit and was stopped; write less"
        raise failed(Cause.OUTPUT_LIMIT, blame, message + said, step)
    hint = "; its ENTRYPOINT cannot be run" if result.exit_code in (126, 127) else ""
    if result.exit_code == SIGKILLED:  # by the kernel, if not by itself: nobody here did, or that would be the cause
        hint = f"; it was killed, most likely for its memory: {_LESS_MEMORY}"
    if peak_bytes >= _NEARLY_ALL * memory_bytes:  # what could not get more memory often ends by itself
        hint = f"; {memory}"
    raise failed(Cause.EXIT_CODE, blame, f"{step} ended with exit code {result.exit_code}{hint}" + said, step)


def last_lines(log: bytes) -> str:
    """Return the end of a log as text to append to a sentence, without control characters."""
    text = _COLOUR.sub("", log.decode("utf-8", "replace").replace("\r\n", "\n"))
    clean = "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
    tail = "\n".join(clean.strip().splitlines()[-_QUOTED_LINES:])[-_QUOTED_CHARACTERS:]
    return f". Its last lines:\n{tail}" if tail else ". It wrote no log"
