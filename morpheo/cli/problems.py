"""Commands for problems: the challenges of the orchestrator."""

from __future__ import annotations

import uuid
from collections import Counter
from uuid import UUID

import click
from rich.table import Table

from morpheo.cli.common import (
    UUID_TYPE,
    json_option,
    orchestrator_client,
    out,
    print_json,
    remark,
    short,
    shown,
    tell,
)
from morpheo.cli.find import problem_names
from morpheo.cli.sources import FILE_OR_ID, FOLDER_OR_ID, Source, uploads
from morpheo.models import ArtifactKind


@click.group("problem")
def problem() -> None:
    """Add and list problems: what is learned, what hides the targets, what scores are measured on."""


@problem.command("add")
@click.argument("archive", type=FOLDER_OR_ID)
@click.option("--test", "test_data", type=FILE_OR_ID, multiple=True, required=True, help="Hidden test data; repeat.")
@click.option("--batch-size", type=click.IntRange(min=1), required=True, help="Files in a mini-batch.")
@click.option("--name", help="The name of its folder or archive by default.")
@click.option("--description", help="The name by default.")
@click.option("--lower-is-better", is_flag=True, help="The best score is the lowest one, as of an error.")
@click.option(
    "--parallel-ranks", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks of one algo run at once."
)
@click.option("--id", "problem_id", type=UUID_TYPE, help="The id it gets; one is made up by default.")
@json_option
def add_problem(
    archive: Source,
    test_data: tuple[Source, ...],
    batch_size: int,
    name: str | None,
    description: str | None,
    lower_is_better: bool,
    parallel_ranks: int,
    problem_id: UUID | None,
    as_json: bool,
) -> None:
    """Upload a problem with its test data, and register it.

    ARCHIVE is a folder with a Dockerfile (packed without what .dockerignore names), a .tar.gz, or the id of a stored
    one. Test data are files, or ids of stored ones.
    """
    with uploads() as made:
        stored = made.archive(ArtifactKind.PROBLEM, archive, name=name, description=description)
        tests = made.data(test_data)
        made.complete = True
        added = orchestrator_client().add_problem(
            problem_id or uuid.uuid4(),
            workflow=stored.id,
            test_data=tests,
            batch_size=batch_size,
            higher_is_better=not lower_is_better,
            parallel_ranks=parallel_ranks,
        )
    if as_json:
        print_json(added)
        return
    tell(f"problem {added.id} ({shown(stored.name)})")
    remark(f"give it data to train on: `morpheo data add FILE… --problem {short(added.id)}`")


@problem.command("ls")
@json_option
def list_problems(as_json: bool) -> None:
    """List problems, oldest first."""
    orchestrator = orchestrator_client()
    names = problem_names()
    algos = Counter(item.problem for item in orchestrator.submissions())
    data = Counter(identifier for item in orchestrator.datasets() for identifier in item.problems)
    problems = orchestrator.problems()
    if as_json:
        print_json(
            [
                {**vars(item), "name": names.get(item.workflow, ""), "algos": algos[item.id], "data": data[item.id]}
                for item in problems
            ]
        )
        return
    table = Table("id", "name", "batch size", "best is", "algos", "data", "test data")
    for item in problems:
        table.add_row(
            short(item.id),
            shown(names.get(item.workflow, "")) or "-",
            str(item.batch_size),
            "highest" if item.higher_is_better else "lowest",
            str(algos[item.id]),
            str(data[item.id]),
            str(len(item.test_data)),
        )
    out.print(table)
