"""What a check is, what it finds, and how checks are run: subjects at the same time, each check with a deadline."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

#: How far a clock may be off before it is worth a word, in seconds.
CLOCK_WARN_S = 2.0


class Status(enum.StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check has found."""

    check: str = ""
    status: Status
    #: What is the case.
    cause: str
    #: The command or setting that puts it right; empty if nothing is wrong.
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question to a service or to this machine."""

    #: ``<subject>.<what>``.
    name: str
    run: Callable[[], Finding]
    #: Names of checks without which this one makes no sense.
    needs: tuple[str, ...] = ()
    deadline_s: float = 20.0


def ok(cause: str) -> Finding:
    """Return that all is well."""
    return Finding(status=Status.OK, cause=cause)


def warn(cause: str, fix: str) -> Finding:
    """Return that something works but should not stay so."""
    return Finding(status=Status.WARN, cause=cause, fix=fix)


def fail(cause: str, fix: str) -> Finding:
    """Return that something is broken or dangerous."""
    return Finding(status=Status.FAIL, cause=cause, fix=fix)


def examine(subjects: Sequence[Sequence[Check]], told: Callable[[Finding], None]) -> list[Finding]:
    """
    Run checks; never hangs, whatever they do.

    Args:
        subjects: Lists of checks that may run at the same time; the checks of each list run one after the other.
        told: Called with each finding as soon as it is there, from any thread.

    Returns:
        The findings in the order of the checks.
    """
    with ThreadPoolExecutor(max_workers=max(len(subjects), 1)) as pool:
        return [finding for found in pool.map(partial(_examine_one, told=told), subjects) for finding in found]


def _examine_one(checks: Sequence[Check], *, told: Callable[[Finding], None]) -> list[Finding]:
    findings: dict[str, Finding] = {}
    for check in checks:
        missing = [name for name in check.needs if findings[name].status not in (Status.OK, Status.WARN)]
        finding = _skipped(missing) if missing else _in_time(check)
        findings[check.name] = dataclasses.replace(finding, check=check.name)
        told(findings[check.name])
    return list(findings.values())


def _skipped(missing: list[str]) -> Finding:
    return Finding(status=Status.SKIPPED, cause=f"needs {', '.join(missing)}")


def _in_time(check: Check) -> Finding:
    # A thread that hangs cannot be ended, only left behind; this one does not keep the process.
    found: list[Finding] = []
    thread = threading.Thread(target=lambda: found.append(_run(check)), name=check.name, daemon=True)
    thread.start()
    thread.join(check.deadline_s)
    if found:
        return found[0]
    return fail(
        f"no answer within {check.deadline_s:g} s", "the service hangs or is overloaded: read its log, restart it"
    )


def _run(check: Check) -> Finding:
    try:
        return check.run()
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - nothing that a check meets may end the others
        cause = " ".join(str(exc).split()) or type(exc).__name__
        return fail(f"unexpected: {cause[:300]}", "see the log of the service; this case is not known to the doctor")


def clock(name: str, difference_s: float, *, lease_s: float) -> Finding:
    """
    Judge a clock.

    Args:
        name: Whose.
        difference_s: How far it is ahead of this machine's.
        lease_s: Times are compared across machines within leases; a third of one is too much.
    """
    direction = "ahead of" if difference_s > 0 else "behind"
    off = f"the clock of {name} is {abs(difference_s):.1f} s {direction} this machine's"
    fix = "synchronise both machines with NTP: `timedatectl set-ntp true`, then `timedatectl timesync-status`"
    if abs(difference_s) > lease_s / 3:
        return fail(f"{off}, more than a third of a lease (MORPHEO_LEASE_S={lease_s:g})", fix)
    if abs(difference_s) > CLOCK_WARN_S:
        return warn(off, fix)
    return ok(f"{abs(difference_s):.1f} s apart")


def is_local(host: str | None) -> bool:
    """Whether a host is this machine's loopback, or a Unix socket."""
    return not host or host in ("localhost", "::1") or host.startswith(("127.", "/"))


def shown_url(url: str) -> str:
    """Return a URL without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
