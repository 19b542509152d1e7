"""Commands for the workers of a stack, through its broker."""

from __future__ import annotations

import click
from rich.table import Table

from morpheo.cli.common import err, json_option, out, print_json
from morpheo.tasks.control import drain as drain_nodes
from morpheo.tasks.control import list_nodes


@click.group()
def workers() -> None:
    """List and drain workers.

    Needs the broker: set MORPHEO_BROKER_URL to the stack's.
    """


@workers.command("list")
@json_option
def list_workers(as_json: bool) -> None:
    """List the nodes of all workers, what they take, and the jobs that they run."""
    nodes = list_nodes()
    if as_json:
        print_json(nodes)
        return
    table = Table("node", "takes", "slots", "runs")
    for node in nodes:
        table.add_row(node.name, "\n".join(node.queues), str(node.slots), "\n".join(node.running) or "-")
    out.print(table)
    if not nodes:
        err.print("[yellow]no worker answers; start one with `morpheo worker`[/]")


@workers.command()
@click.argument("name")
@json_option
def drain(name: str, as_json: bool) -> None:
    """Let a worker finish its jobs, take no others, and leave.

    NAME is a node as `list` shows it (learn@host), or a worker's name (host) for all of its nodes.
    """
    nodes = drain_nodes(name)
    if as_json:
        print_json(nodes)
        return
    for node in nodes:
        when = f"when it has finished {', '.join(node.running)}" if node.running else "now"
        out.print(f"{node.name} leaves {when}", soft_wrap=True)
