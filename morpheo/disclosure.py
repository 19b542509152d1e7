"""
What goes out: what a custodian lets those see who are not on their side of a problem.

Only the standard library is imported here. An algo is somebody else's program that reads private data. Whatever of its
run can be seen from outside may carry some of that data: what it prints, its exit code, how long it takes, how large
its model is, and its scores, whose digits it can choose. So a submitter is told of a run what its custodian allows, in
words and numbers of our own, as coarse as the custodian wants them. What is known is kept in full for the custodian.

The image of a problem works on the hidden targets. What it writes is for the custodian alone, whatever else is allowed.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from morpheo.models import Attempt, Blame, Cause, Failure, Job, Scores, StepName, StepRecord

#: Digits after the decimal point that a score may have at most: a double has no more.
MAX_DIGITS = 15
#: The coarsest step of time that can be asked for, in seconds: a day.
MAX_TIME_STEP_S = 24 * 3600
#: Memory is told in steps of this many bytes.
MEMORY_STEP_BYTES = 64 << 20
#: Longest line of a log that a submitter sees, in characters.
MAX_LINE = 4096
#: Steps of an algo's own image; the others are of the problem's.
ALGO_STEPS = frozenset({StepName.BUILD_ALGO, StepName.TRAIN, StepName.PREDICT})

#: How `morpheo.failures` begins what it says of an exit code; what a container wrote comes only after it.
_EXIT_CODE = re.compile(r"[a-z_]+ ended with exit code (\d{1,3})\b", re.ASCII)
_LONG_LINE = re.compile(f"[^\n]{{{MAX_LINE + 1},}}")
_UNUSUAL = re.compile(r"[^\x20-\x7e\n\t]")
#: What stands before the log of each step, where several are in one text.
HEADING = "==> "
_HEADING = re.compile(f"^{HEADING}", re.MULTILINE)


class Logs(enum.StrEnum):
    """What a submitter sees of the runs of their algos."""

    #: That they ended well or badly.
    NONE = "none"
    #: Why, from a closed list; exit codes, and times and memory of steps.
    CAUSE = "cause"
    #: Also what their own containers wrote.
    ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """What the custodian of a problem lets out of it."""

    logs: Logs = Logs.CAUSE
    #: Whether submitters may download the models of their algos, which may hold the data that they were trained on.
    model_download: bool = False
    #: Digits after the decimal point of every score that is published.
    score_digits: int = 6
    #: Algos that one submitter may add to the problem in 24 hours; None is without limit.
    submissions_per_day: int | None = 10
    #: Times and durations are rounded up to a multiple of it, in seconds.
    time_step_s: int = 60


#: Of problems that nobody registered, and of jobs that were not planned for one.
DEFAULT = Disclosure()


@dataclass(frozen=True, kw_only=True)
class View:
    """
    What somebody sees of a problem and of what became of it.

    Attributes:
        disclosure: What goes out.
        insider: Whether they are on the custodian's side, who sees all as it is.
    """

    disclosure: Disclosure
    insider: bool

    @property
    def steps(self) -> frozenset[StepName]:
        """The steps whose logs they see."""
        if self.insider:
            return frozenset(StepName)
        return ALGO_STEPS if self.disclosure.logs is Logs.ALL else frozenset()

    def score(self, value: float) -> float:
        """Return a score as they see it."""
        return value if self.insider else rounded(value, self.disclosure.score_digits)

    def scores(self, scores: Scores) -> Scores:
        """Return the scores of a job as they see them."""
        if self.insider:
            return scores
        train_perf, test_perf = self._each(scores.train_perf), self._each(scores.test_perf)
        return Scores(perf=self.score(scores.perf), train_perf=train_perf, test_perf=test_perf)

    def _each(self, scores: Mapping[str, float]) -> dict[str, float]:
        return {name: self.score(value) for name, value in scores.items()}

    def time(self, moment: datetime) -> datetime:
        """Return a moment as they see it."""
        return moment if self.insider else datetime.fromtimestamp(self._up(moment.timestamp()), UTC)

    def seconds(self, seconds: float) -> float:
        """Return a duration as they see it, in seconds."""
        return seconds if self.insider else self._up(seconds)

    def _up(self, seconds: float) -> float:
        step_s = self.disclosure.time_step_s
        return float(math.ceil(seconds / step_s) * step_s)

    def memory(self, count: int) -> int:
        """Return a number of bytes of memory as they see it."""
        return count if self.insider else -(-count // MEMORY_STEP_BYTES) * MEMORY_STEP_BYTES

    def text(self, text: str) -> str:
        """Return what a container wrote as they see it; the insider's is as it was written."""
        return text if self.insider else escaped(text)

    def failure(self, failure: Failure) -> Failure | None:
        """Return why a job failed as they see it; None if that is not for them."""
        if self.insider:
            return failure
        if self.disclosure.logs is Logs.NONE:
            return None
        if self.disclosure.logs is Logs.ALL and failure.blame is Blame.SUBMITTER:
            return replace(failure, message=escaped(failure.message))
        return replace(failure, message=advice(failure))

    def job(self, job: Job) -> Job:
        """Return a job as they see it."""
        if self.insider:
            return job
        return replace(
            job,
            created_at=self.time(job.created_at),
            started_at=job.started_at and self.time(job.started_at),
            ended_at=job.ended_at and self.time(job.ended_at),
            failure=job.failure and self.failure(job.failure),
            scores=job.scores and self.scores(job.scores),
            worker=None,
            held_by=None,
            attempts=tuple(self._attempt(attempt) for attempt in job.attempts),
        )

    def _attempt(self, attempt: Attempt) -> Attempt:
        seen = self.disclosure.logs is not Logs.NONE
        return replace(
            attempt,
            worker="",  # the name of a machine
            started_at=self.time(attempt.started_at),
            ended_at=attempt.ended_at and self.time(attempt.ended_at),
            message="",  # it may quote an engine, which quotes an image
            steps=tuple(self._step(step) for step in attempt.steps) if seen else (),
        )

    def _step(self, step: StepRecord) -> StepRecord:
        return replace(
            step,
            started_at=self.time(step.started_at),
            seconds=None if step.seconds is None else self.seconds(step.seconds),
            peak_memory_bytes=None if step.peak_memory_bytes is None else self.memory(step.peak_memory_bytes),
        )


def rounded(value: float, digits: int) -> float:
    """Return a score with so many digits after the decimal point; zero has no sign, which would be a digit more."""
    return round(value, digits) + 0.0


def escaped(text: str) -> str:
    """
    Return what somebody else's program wrote as harmless text.

    It is `without_controls`, lines of more than `MAX_LINE` characters are cut with a mark, and no line looks like the
    heading of another step.
    """
    cut = _LONG_LINE.sub(_cut, without_controls(text))
    return _HEADING.sub(rf"\\{HEADING}", cut)


def without_controls(text: str) -> str:
    """Return a text with characters that steer a terminal, hide text or turn its direction as visible escapes."""
    return _UNUSUAL.sub(_visible, text.replace("\r\n", "\n"))


def _visible(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _cut(match: re.Match[str]) -> str:
    return f"{match[0][:MAX_LINE]} [{len(match[0]) - MAX_LINE} characters left out]"


_TRY = "`morpheo try` runs it on your own machine in the same way and shows all that it writes"
_AGAIN = "this is not the algo's fault; order the job again, and tell the operator if it stays so"
_CUSTODIAN = "its custodian has the log; ask them"
_ADVICE = {
    Cause.BAD_ARCHIVE: f"the archive breaks a rule; {_TRY}",
    Cause.BUILD_FAILED: f"the image could not be built; {_TRY}",
    Cause.BAD_IMAGE: f"the image breaks a rule, or its ENTRYPOINT cannot be started; {_TRY}",
    Cause.EXIT_CODE: f"the program ended with an error; {_TRY}",
    Cause.OUT_OF_MEMORY: f"the program used all the memory that it may have; use less at once. {_TRY}",
    Cause.TIME_LIMIT: "the program ran longer than it may and was stopped; make it faster, or ask the custodian for "
    "more time",
    Cause.OUTPUT_LIMIT: f"the program wrote more than it may; write less. {_TRY}",
    Cause.MISSING_OUTPUT: f"the program ended without all that it must write; {_TRY}",
    Cause.BAD_OUTPUT: f"the program wrote something else than it must; {_TRY}",
    Cause.BAD_PERFORMANCE: "the scores that the problem's image computed cannot be used",
    Cause.ARTIFACT_NOT_FOUND: "something that the job needs is not in storage; tell the custodian of the problem",
    Cause.ARTIFACT_EXISTS: "the model or prediction exists already; order the job with a new id",
    Cause.CORRUPT_ARTIFACT: "something that the job needs is damaged in storage; tell the operator",
    Cause.WORKER_LOST: "the workers that had the job were lost; see whether it needs more memory than a machine has, "
    "and tell the operator",
    Cause.CANCELLED: "cancelled on request",
}


def advice(failure: Failure) -> str:
    """Return in a sentence of our own what happened and what to do: nothing in it was chosen by a container."""
    text = _ADVICE.get(failure.cause, _AGAIN)
    if failure.blame is Blame.PROBLEM:
        text = f"the problem's own image failed; {_CUSTODIAN}"
    match = _EXIT_CODE.match(failure.message) if failure.cause is Cause.EXIT_CODE else None
    code = f" (exit code {match[1]})" if match else ""
    return f"{failure.step}: {text}{code}" if failure.step else f"{text}{code}"
