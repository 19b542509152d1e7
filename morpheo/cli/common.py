"""What the commands share: clients, tables, progress, and how errors look."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from morpheo.client import ComputeClient, OrchestratorClient, StorageClient
from morpheo.config import KIB, Settings
from morpheo.errors import MorpheoError, SettingsError, Unavailable
from morpheo.models import Job, JobState

F = TypeVar("F", bound=Callable[..., Any])

#: Tables and results go to stdout, progress and remarks to stderr.
out = Console()
err = Console(stderr=True)

EXIT_FAILED = 1
EXIT_USAGE = 2
#: The job ended without a result.
EXIT_JOB_FAILED = 3
#: As of timeout(1): it goes on, but was not waited for any longer.
EXIT_TIMEOUT = 124
#: As of a shell whose program was ended by Ctrl-C.
EXIT_INTERRUPTED = 130
#: EX_UNAVAILABLE of sysexits.h: a service does not answer.
EXIT_UNAVAILABLE = 69

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")

#: Letters of an id in tables.
SHORT_ID = 8

DEFAULT_ORCHESTRATOR_URL = "http://127.0.0.1:8083"

_COLOURS = {
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.RUNNING: "cyan",
}


class UuidType(click.ParamType[UUID]):
    """A UUID on the command line."""

    name = "uuid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> UUID:
        """Return the UUID, or complain."""
        try:
            return value if isinstance(value, UUID) else UUID(value)
        except ValueError:
            self.fail(f"{value!r} is not a UUID", param, ctx)


UUID_TYPE = UuidType()


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """End the process with one line, and a status, for an expected error."""
    try:
        yield
    except MorpheoError as exc:
        err.print(f"[red]Error:[/] {exc}", highlight=False, soft_wrap=True)
        status = EXIT_USAGE if isinstance(exc, SettingsError) else EXIT_FAILED
        sys.exit(EXIT_UNAVAILABLE if isinstance(exc, Unavailable) else status)


def login(settings: Settings) -> dict[str, str]:
    """Return the arguments of a client that say who calls."""
    sent = settings.login
    return {"token": sent} if isinstance(sent, str) else {"user": sent[0], "password": sent[1]}


def storage_client() -> StorageClient:
    """Return a client of the storage API of the settings."""
    settings = Settings.from_env()
    return StorageClient(settings.storage_url, **login(settings))


def compute_client() -> ComputeClient:
    """Return a client of the compute API of the settings."""
    settings = Settings.from_env()
    return ComputeClient(settings.compute_url, **login(settings))


def orchestrator_client() -> OrchestratorClient:
    """Return a client of the orchestrator API of the settings."""
    settings = Settings.from_env()
    url = settings.orchestrator_url or DEFAULT_ORCHESTRATOR_URL
    return OrchestratorClient(url, **login(settings))


def tell(text: str) -> None:
    """Print a line of the result, not broken by the width of the terminal: it may be copied or piped."""
    out.print(text, soft_wrap=True, highlight=False)


def remark(text: str) -> None:
    """Print a line that is no result, on stderr."""
    err.print(text, soft_wrap=True, highlight=False)


def print_json(value: Any) -> None:
    """Print a value of the domain as JSON."""
    click.echo(json.dumps(value, default=_plain, indent=2))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


def shown(text: str) -> str:
    """Return somebody else's words for a table or a line: no markup, and nothing that moves the cursor."""
    return escape("".join(letter if letter.isprintable() else " " for letter in text))


def short(identifier: UUID) -> str:
    """Return how an id begins; commands take it in place of the whole."""
    return str(identifier)[:SHORT_ID]


def shown_state(job: Job) -> str:
    """Return the state of a job with its colour."""
    colour = _COLOURS.get(job.state, "white")
    return f"[{colour}]{job.state}[/]"


def shown_bytes(count: int | None) -> str:
    """Return a number of bytes for people."""
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < KIB:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= KIB
    return f"{size:.1f} GiB"


@contextlib.contextmanager
def transfer(description: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """Show the progress of a transfer, on stderr; gives what is to be told of each piece."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(description, total=total_bytes)
        yield lambda count: progress.advance(task, count)
