"""Commands of the operator: settings, tables, services."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click
from pydantic import SecretStr
from rich.table import Table

from morpheo.api.compute import create_compute_app
from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.api.serve import serve
from morpheo.api.storage import create_storage_app
from morpheo.cli.common import err, json_option, out, print_json
from morpheo.config import PREFIX, Settings
from morpheo.resources import Resources
from morpheo.storage import migrate as migrations


@click.command()
@json_option
@click.option("--markdown", is_flag=True, help="Print the page docs/settings.md, which has no values.")
def config(as_json: bool, markdown: bool) -> None:
    """List every setting: its variable, value, default and meaning. Secrets are masked."""
    if markdown:
        click.echo(settings_page(), nl=False)
        return
    settings = Settings.from_env()
    rows = []
    for name, field in Settings.model_fields.items():
        value, default = getattr(settings, name), field.default
        rows.append(
            {
                "variable": PREFIX + name.upper(),
                "value": _shown(value),
                "default": _shown(default),
                "meaning": field.description or "",
            }
        )
    if as_json:
        print_json(rows)
        return
    table = Table("variable", "value", "default", "meaning")
    for row in rows:
        marked = f"[bold]{row['value']}[/]" if row["value"] != row["default"] else row["value"]
        table.add_row(row["variable"], marked, row["default"], row["meaning"])
    out.print(table)
    known = {row["variable"] for row in rows}
    for name in sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known):
        err.print(f"[yellow]{name} is set, but there is no such setting[/]")


def settings_page() -> str:
    """Return docs/settings.md: a table of variables, defaults and meanings."""
    lines = [
        "# Settings",
        "",
        "Environment variables, read once at the start; `morpheo config` shows the values in force. A value that",
        "cannot be used stops the start with one line. Sizes are bytes, times are seconds. This page is what",
        "`morpheo config --markdown` prints.",
        "",
        "| variable | default | meaning |",
        "| --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        default = _shown(field.default).replace(str(Path.home()), "~").replace("|", "\\|")
        lines.append(f"| `{PREFIX}{name.upper()}` | {default and f'`{default}`'} | {field.description} |")
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return "***" if value.get_secret_value() else ""
    return ",".join(value) if isinstance(value, tuple) else str(value)


@click.command()
def migrate() -> None:
    """Bring the tables of the database up to date, and make the bucket of the blobs if there is none."""
    resources = Resources(Settings.from_env(), publisher=None)  # type: ignore[arg-type]  # nothing is published
    with contextlib.closing(resources.database) as database:
        before, after = migrations.upgrade(database)
    out.print(f"tables are at revision {after}" + ("" if before == after else f" (were at {before or 'none'})"))
    resources.blobs.check()
    out.print("the blob store answers")


_host = click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
_reload = click.option("--reload", is_flag=True, help="Start again when the code changes.")


@click.command()
@_host
@click.option("--port", default=8081, show_default=True, help="Port to listen at.")
@_reload
def compute_api(host: str, port: int, reload: bool) -> None:
    """Serve the compute API, which takes orders."""
    serve(create_compute_app, Settings.from_env(), host=host, port=port, reload=reload)


@click.command()
@_host
@click.option("--port", default=8082, show_default=True, help="Port to listen at.")
@_reload
def storage_api(host: str, port: int, reload: bool) -> None:
    """Serve the storage API, which keeps problems, algos, data, models and predictions."""
    serve(create_storage_app, Settings.from_env(), host=host, port=port, reload=reload)


@click.command()
@_host
@click.option("--port", default=8083, show_default=True, help="Port to listen at.")
@_reload
def orchestrator_api(host: str, port: int, reload: bool) -> None:
    """Serve the orchestrator API, which registers problems, algos and data and orders the jobs that follow."""
    serve(create_orchestrator_app, Settings.from_env(), host=host, port=port, reload=reload)
