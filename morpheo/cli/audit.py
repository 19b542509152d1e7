"""``morpheo audit``: what happened, and whether that is all that happened."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from morpheo.audit import Event, Head, Verdict, verify
from morpheo.cli.common import EXIT_FAILED, err, json_option, out, print_json, shown, tell
from morpheo.config import Settings
from morpheo.storage.database import Database

_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


class HeadType(click.ParamType[Head]):
    """A head of the trail on the command line."""

    name = "seq:digest"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Head:
        """Return the head, or complain."""
        found = _HEAD.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is not a head, as `morpheo audit verify` prints it", param, ctx)
        return Head(int(found[1]), found[2])


@click.group()
def audit() -> None:
    """Look at the audit trail: every upload, order, change of state, download and deletion.

    Works on the database, with the environment of any service.
    """


@audit.command("verify")
@click.option("--head", "noted", type=HeadType(), multiple=True, help="A head noted earlier, SEQ:DIGEST; repeat.")
@json_option
def verify_command(noted: tuple[Head, ...], as_json: bool) -> None:
    """Find events that were changed or are missing; the status is 1 if there are any.

    Ends with the head, SEQ:DIGEST. Keep it where who administers the database cannot write, and give it with --head
    the next time: a trail that was made anew as a whole is found only so.
    """
    with contextlib.closing(Database(Settings.from_env().database)) as database, database.read(one_moment=True) as work:
        head = work.events.head()
        verdict = verify(_with_progress(work.events.all(), total=head.seq if head else None), head, noted=noted)
    if as_json:
        flaws = [{"first": flaw.first, "last": flaw.last, "problem": flaw.problem} for flaw in verdict.flaws]
        found = {"intact": verdict.intact, "events": verdict.events, "head": str(verdict.head)}
        print_json({**found, "flaws": flaws, "flaws_total": verdict.flaws_total})
    else:
        _tell(verdict)
    if not verdict.intact:
        sys.exit(EXIT_FAILED)


def _tell(verdict: Verdict) -> None:
    for flaw in verdict.flaws:
        numbers = f"event {flaw.first}" if flaw.first == flaw.last else f"events {flaw.first} to {flaw.last}"
        tell(f"[red]{numbers}:[/] {shown(flaw.problem)}")
    if more := verdict.flaws_total - len(verdict.flaws):
        tell(f"and {more} more")
    if verdict.intact:
        tell(f"[green]intact:[/] {verdict.events} events")
    else:
        tell(f"[red]not intact:[/] {verdict.flaws_total} flaws in {verdict.events} events")
    tell(f"head {verdict.head}")


def _with_progress(events: Iterable[Event], *, total: int | None) -> Iterator[Event]:
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=total)
        for number, event in enumerate(events, start=1):
            if number % 1000 == 0:
                progress.update(task, completed=number)
            yield event


@audit.command("list")
@click.option("--subject", metavar="ID", help="Only events of the thing with this id: an artifact, a job, a problem.")
@click.option("--actor", metavar="WHO", help="Only events of who begins so: user:, worker:NAME, …")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]),
    help="Only events at or after this time, UTC.",
)
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="How many at most.")
@json_option
def list_command(subject: str | None, actor: str | None, since: datetime | None, limit: int, as_json: bool) -> None:
    """Show the latest events, newest first. JSON has them as they are hashed (docs/audit.md)."""
    moment = None if since is None else since.replace(tzinfo=UTC).timestamp()
    with contextlib.closing(Database(Settings.from_env().database)) as database, database.read() as work:
        events = work.events.latest(limit=limit, subject=subject, actor=actor, since=moment)
    if as_json:
        print_json([event._asdict() for event in events])
        return
    table = Table("no.", "time (UTC)", "who", "what", "subject", "detail")
    for event in events:
        what = (event.actor, event.action, f"{event.subject_kind} {event.subject_id}", event.detail)
        table.add_row(str(event.seq), _shown_time(event.at), *map(shown, what))
    out.print(table)


def _shown_time(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):  # somebody has changed it
        return shown(str(at))
