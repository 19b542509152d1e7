"""Commands for the data that problems train on."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import click
from rich.table import Table

from morpheo.challenges import Problem
from morpheo.cli.common import json_option, orchestrator_client, out, print_json, remark, shown, tell
from morpheo.cli.find import find_problem, problem_names
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
    with uploads() as made:
        ids = made.data(files)
        made.complete = True
        added, trainings = orchestrator_client().add_data(ids, problems=[item.id for item in chosen])
    if as_json:
        print_json({"data": added, "trainings": trainings})
        return
    for source, identifier in zip(files, ids, strict=True):
        tell(f"data {identifier} ({shown(str(source))})")
    remark(f"trainings to come: {trainings}" + ("" if trainings else _why_none(ids, chosen)))


def _why_none(ids: list[UUID], problems: list[Problem]) -> str:
    if all(set(ids) <= set(problem.test_data) for problem in problems):
        return "; all of it is test data, which is never trained on"
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
    stored = problem_names()
    names = {item.id: shown(stored.get(item.workflow, "")) for item in orchestrator.problems()}
    table = Table("id", "problems", "registered (UTC)")
    table.columns[0].no_wrap = True
    for item in found:
        known = ", ".join(names.get(identifier) or str(identifier) for identifier in item.problems)
        table.add_row(str(item.id), known, f"{item.created_at:%Y-%m-%d %H:%M}")
    out.print(table)
