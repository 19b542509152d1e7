"""``morpheo doctor``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

import click
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from morpheo.cli.common import EXIT_FAILED, err, json_option, out, print_json
from morpheo.config import Settings
from morpheo.doctor import ALIASES, subjects
from morpheo.doctor.findings import Check, Finding, Status, examine

_COLOURS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red", Status.SKIPPED: "dim"}


@click.command()
@click.option(
    "--only",
    metavar="NAMES",
    help="Only these subjects, comma-separated: engine, broker (redis, rabbitmq), database (sql), blobs (s3), node.",
)
@json_option
def doctor(only: str | None, as_json: bool) -> None:
    """Find out what is wrong with the engine, broker, database, blob store and this machine, and how to fix it.

    Run it with the settings of the service that has trouble, on its machine. It takes a few seconds, starts four small
    containers, stores two blobs, and removes them. The status is 1 if a check fails; warnings are no failures.
    """
    chosen = _chosen(subjects(Settings.from_env()), only)
    findings = examine(chosen, lambda _: None) if as_json else _with_progress(chosen)
    if as_json:
        print_json(findings)
    else:
        _print(findings)
    sys.exit(EXIT_FAILED if any(finding.status is Status.FAIL for finding in findings) else 0)


def _chosen(known: dict[str, list[Check]], only: str | None) -> list[list[Check]]:
    names = [ALIASES.get(name, name) for name in (only or ",".join(known)).replace(" ", "").split(",") if name]
    if unknown := set(names) - set(known):
        raise click.UsageError(f"--only: no subject {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [checks for name, checks in known.items() if name in names]


def _with_progress(chosen: Sequence[Sequence[Check]]) -> list[Finding]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("checking", total=sum(map(len, chosen)))
        return examine(chosen, lambda finding: progress.update(task, advance=1, description=finding.check))


def _print(findings: list[Finding]) -> None:
    table = Table("check", "status", "finding")
    for finding in findings:
        table.add_row(finding.check, f"[{_COLOURS[finding.status]}]{finding.status}[/]", escape(finding.cause))
    out.print(table)
    for finding in findings:
        if finding.fix:
            out.print(
                f"[{_COLOURS[finding.status]}]{finding.check}[/]: {escape(finding.fix)}",
                highlight=False,
                soft_wrap=True,
            )
    counts = Counter(finding.status for finding in findings)
    out.print(", ".join(f"{counts[status]} {status}" for status in Status if counts[status]))
