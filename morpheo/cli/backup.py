"""``morpheo backup`` and ``morpheo restore``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from morpheo.backup import Outcome, back_up
from morpheo.backup import restore as restore_backup
from morpheo.cli.common import EXIT_FAILED, err, out, transfer
from morpheo.config import Settings
from morpheo.resources import blob_store
from morpheo.storage.database import Database

_folder = click.argument("folder", type=click.Path(file_okay=False, path_type=Path))


@click.command()
@_folder
@click.option(
    "--keep", default=7, show_default=True, type=click.IntRange(1), help="Of how many backups the rows are kept."
)
def backup(folder: Path, keep: int) -> None:
    """Copy all rows, and the blobs that the folder does not have yet, while the services run.

    Works on any database and blob store, and needs nothing but this command. The folder then holds data and targets:
    keep it as you keep those.
    """
    settings = Settings.from_env()
    with contextlib.closing(Database(settings.database)) as database, transfer("backing up", None) as progress:
        outcome = back_up(folder.absolute(), database, blob_store(settings), keep=keep, progress=progress)
    _report(outcome)


@click.command()
@_folder
def restore(folder: Path) -> None:
    """Bring the newest backup of a folder into an empty database and its blob store.

    They need not be of the same kind as those of the backup. Start the services after it: jobs that ran when the
    backup was made are run again.
    """
    settings = Settings.from_env()
    with contextlib.closing(Database(settings.database)) as database, transfer("restoring", None) as progress:
        outcome = restore_backup(folder.absolute(), database, blob_store(settings), progress=progress)
    _report(outcome)


def _report(outcome: Outcome) -> None:
    out.print(f"{outcome.rows}: {outcome.copied} blobs copied", soft_wrap=True, highlight=False)
    for key in outcome.lost:
        err.print(f"[red]lost:[/] the store has no blob {key}, or a damaged one", soft_wrap=True, highlight=False)
    if outcome.lost:
        sys.exit(EXIT_FAILED)
