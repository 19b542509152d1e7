"""Commands for the data that problems train on."""

from __future__ import annotations

from collections import Counter

import click
from rich.table import Table

from morpheo.challenges import AddedData, Problem
from morpheo.cli.common import json_option, orchestrator_client, out, print_json, remark, shown, tell
from morpheo.cli.find import find_problem
from morpheo.cli.sources import FILE_OR_ID, Source, uploads


@click.group("data")
def data() -> None:
    """Add and list data that problems train on."""


@data.command("add")
@click.argument("files", type=FILE_OR_ID, nargs=-1, required=True)
@click.option(
    "--problem", "-p", "problems", required=True, multiple=True, metavar="PROBLEM", help="Id or name; repeat."
)
@json_option
def add_data(files: tuple[Source, ...], problems: tuple[str, ...], as_json: bool) -> None:
    """Upload data and register them all at once, in the order given.

    FILES are files, or ids of stored ones. The chain of every algo of the problems grows by the batches that are new.
    """
    twice = [source for source, count in Counter(files).items() if count > 1]
    if twice:
        raise click.UsageError(f"{twice[0]} is given twice")
    chosen = [find_problem(given) for given in problems]
    if len({item.id for item in chosen}) < len(chosen):
        raise click.UsageError("a problem is named twice")
    with uploads() as made:
        ids = made.data(files)
        made.complete = True
        added = orchestrator_client().add_data(ids, problems=[item.id for item in chosen])
    if as_json:
        held_out = {str(problem): data for problem, data in added.held_out.items()}
        print_json({"data": added.datasets, "trainings": added.trainings, "held_out": held_out})
        return
    sources = dict(zip(ids, files, strict=True))
    for identifier, source in sources.items():
        tell(f"data {identifier} ({shown(str(source))})")
    for given, problem in zip(problems, chosen, strict=True):
        for identifier in added.held_out.get(problem.id, ()):
            named = shown(str(sources[identifier]))
            remark(f"{named} is test data of {shown(given)}, by its content, and is never trained on there")
    remark(f"trainings to come: {added.trainings}" + ("" if added.trainings else _why_none(added, chosen)))


def _why_none(added: AddedData, problems: list[Problem]) -> str:
    if all(len(added.held_out.get(problem.id, ())) == len(added.datasets) for problem in problems):
        return "; all of it is test data"
    return "; there is no algo yet, or none of the data is new"


@data.command("ls")
@click.option("--problem", "-p", "given", metavar="PROBLEM", help="Only what is registered for it: its id or name.")
@json_option
def list_data(given: str | None, as_json: bool) -> None:
    """List registered data, oldest first."""
    orchestrator = orchestrator_client()
    chosen = None if given is None else find_problem(given).id
    found = [item for item in orchestrator.datasets() if chosen is None or chosen in item.problems]
    if as_json:
        print_json(found)
        return
    names = {item.id: shown(item.name) for item in orchestrator.problems()}
    table = Table("id", "problems", "registered (UTC)")
    table.columns[0].no_wrap = True
    for item in found:
        known = ", ".join(names.get(identifier) or str(identifier) for identifier in item.problems)
        table.add_row(str(item.id), known, f"{item.created_at:%Y-%m-%d %H:%M}")
    out.print(table)
