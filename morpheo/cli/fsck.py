"""``morpheo fsck``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from datetime import timedelta

import click

from morpheo.cli.common import EXIT_FAILED, json_option, remark, shown, tell, transfer
from morpheo.config import Settings
from morpheo.fsck import Fsck
from morpheo.resources import Resources


@click.command()
@click.option("--read", is_flag=True, help="Read every blob, and compare its digest with its row's.")
@click.option(
    "--repair", is_flag=True, help="Remove blobs without a row; put artifacts without a blob into quarantine."
)
@click.option("--force", is_flag=True, help="Repair even if the rows and the blobs have nothing in common.")
@click.option("--cache", is_flag=True, help="Look at what this machine has cached, too.")
@click.option(
    "--grace", default=24.0, show_default=True, type=click.FloatRange(1), help="Hours that a blob may have no row."
)
@json_option
def fsck(read: bool, repair: bool, force: bool, cache: bool, grace: float, as_json: bool) -> None:
    """Compare the rows of the database with the blobs, while the services run.

    Changes nothing unless --repair is given, and then nothing that could be of use: what is damaged is kept. The status
    is 1 if something is wrong that was not put right. With --json each finding is one line, the last line is a summary.
    """
    resources = Resources(Settings.from_env(), publisher=None)  # type: ignore[arg-type]  # nothing is published
    wrong = 0
    with contextlib.closing(resources.database) as database, transfer("reading", None) as progress:
        check = Fsck(
            database,
            resources.blobs,
            resources.artifacts,
            grace=timedelta(hours=grace),
            read=read,
            repair=repair,
            force=force,
            progress=progress,
        )
        for finding in check.run():
            wrong += not finding.right
            if as_json:
                click.echo(json.dumps(dataclasses.asdict(finding)))
            else:
                done = f" [green]({shown(finding.done)})[/]" if finding.done else ""
                tell(f"[red]{finding.damage}[/] {shown(finding.key)}: {shown(finding.said)}{done}")
        damaged = list(resources.cache.damaged(remove=repair)) if cache else []
    for name in damaged:
        wrong += not repair
        tell(json.dumps({"damage": "cache", "key": name}) if as_json else f"[red]cache[/] {name}: is not what it was")
    if as_json:
        click.echo(json.dumps({"wrong": wrong, **dataclasses.asdict(check.counts)}))
    else:
        counts = check.counts
        remark(f"{counts.artifacts} artifacts, {counts.logs} logs, {counts.blobs} blobs: {wrong or 'nothing'} wrong")
    if wrong:
        sys.exit(EXIT_FAILED)
