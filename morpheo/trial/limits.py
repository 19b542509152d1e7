"""Checks of what the sandbox does not give: a network, more memory, more time."""

from __future__ import annotations

import re
from collections.abc import Iterator

from morpheo.models import Cause, Job, StepName, StepRecord
from morpheo.trial.findings import ALGO_STEPS, Check, State, Trial, step_of, stopped_in

_MIB = 1 << 20
#: From this share of a limit on a sample, the real data may well be too much.
_NEAR = 0.8
#: What programs say that found no network.
_NO_NETWORK = re.compile(
    r"Name or service not known|Temporary failure in name resolution|Network is unreachable|Network unreachable"
    r"|Could not resolve host|Unable to resolve host|No address associated with hostname|getaddrinfo failed"
    r"|urlopen error|Failed to establish a new connection|Max retries exceeded with url|Connect(?:ion)?Timeout"
    r"|Connection (?:to \S+ )?timed out|Connection refused|Could not fetch URL|unable to access 'https?:",
    re.IGNORECASE,
)


def network_check(trial: Trial) -> Check:
    """Return whether a program looked for a network."""
    title = "needs no network"
    steps = (StepName.BUILD_ALGO, *ALGO_STEPS)
    if not any(step_of(job, name) for _, job in trial.jobs for name in steps):
        return Check(name=title, state=State.NOT_REACHED)
    for _, job in trial.jobs:
        for name in steps:
            line = network_use(trial.logs.get(job.id, {}).get(name, ""))
            if line is None:
                continue
            # It may have gone on without: only a job that ended there has failed of it.
            state = State.FAILED if stopped_in(job, name) else State.WARNING
            return Check(name=title, state=state, detail=f'{name} tried to use it ("{line}"): {_remedy(trial, name)}')
    return Check(name=title, state=State.PASSED)


def _remedy(trial: Trial, name: StepName) -> str:
    if trial.settings.build_proxy:
        return "there is no network when it runs; install it in the Dockerfile"
    if name is StepName.BUILD_ALGO:
        return "there is no network when an image is built; put what it installs into the folder (such as wheels)"
    return "there is no network when it runs; install it in the Dockerfile, from files that lie in the folder"


def network_use(log: str) -> str | None:
    """Return the line of a log that says that a program found no network, None if there is none."""
    for line in log.splitlines():
        if _NO_NETWORK.search(line):
            return line.strip()[:160]
    return None


def _algo_containers(trial: Trial) -> Iterator[tuple[str, Job, StepRecord, float]]:
    settings = trial.settings
    for title, job in trial.jobs:
        for name, limit_s in zip(ALGO_STEPS, (settings.learn_timeout_s, settings.predict_timeout_s), strict=True):
            if step := step_of(job, name):
                yield title, job, step, limit_s


def memory_check(trial: Trial) -> Check:
    """Return how near the algo's containers came to their limit of memory."""
    title = "memory"
    limit = f"{trial.settings.memory_bytes / _MIB:.0f} MiB"
    peaks: dict[str, int] = {}
    for what, job, step, _ in _algo_containers(trial):
        if job.failure is not None and job.failure.cause is Cause.OUT_OF_MEMORY and job.failure.step is step.name:
            detail = f"{what} needs more than the limit of {limit}; use smaller batches, or ask for a higher limit"
            return Check(name=title, state=State.FAILED, detail=detail)
        if step.peak_memory_bytes is not None:
            peaks[what] = step.peak_memory_bytes
    if not peaks:
        reached = any(_algo_containers(trial))
        detail = f"too short to be measured; the limit is {limit}" if reached else ""
        return Check(name=title, state=State.PASSED if reached else State.NOT_REACHED, detail=detail)
    what = max(peaks, key=lambda name: peaks[name])
    near = peaks[what] > _NEAR * trial.settings.memory_bytes
    detail = f"{what} took {peaks[what] / _MIB:.0f} of {limit}" + ("; real data may need more" if near else "")
    return Check(name=title, state=State.WARNING if near else State.PASSED, detail=detail)


def time_check(trial: Trial) -> Check:
    """Return how near the algo's containers came to their limit of time."""
    title = "time"
    took: list[tuple[float, str, float, float]] = []
    for what, job, step, limit_s in _algo_containers(trial):
        if job.failure is not None and job.failure.cause is Cause.TIME_LIMIT and job.failure.step is step.name:
            detail = f"{what} was stopped at its limit of {limit_s:g} s; make it faster, or ask for a longer limit"
            return Check(name=title, state=State.FAILED, detail=detail)
        if step.seconds is not None:
            took.append((step.seconds / limit_s, what, step.seconds, limit_s))
    if not took:
        return Check(name=title, state=State.NOT_REACHED)
    share, what, seconds, limit_s = max(took)
    detail = f"{what} took {seconds:.1f} of {limit_s:g} s" + ("; real data may take longer" if share > _NEAR else "")
    return Check(name=title, state=State.WARNING if share > _NEAR else State.PASSED, detail=detail)
