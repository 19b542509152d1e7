"""Commands for problems: the challenges of the orchestrator."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from http import HTTPStatus
from typing import Any
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
from morpheo.cli.find import find_problem
from morpheo.cli.sources import FILE_OR_ID, FOLDER_OR_ID, Source, uploads
from morpheo.disclosure import DEFAULT, MAX_DIGITS, MAX_TIME_STEP_S, Disclosure, Logs
from morpheo.errors import ApiError
from morpheo.models import ArtifactKind

_UNLIMITED = "unlimited"


class _PerDay(click.ParamType[int | None]):
    """A number of submissions, or the word for no limit."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or the word, or complain."""
        return value if value == _UNLIMITED else click.IntRange(min=1).convert(value, param, ctx)


def disclosure_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what goes out of a problem; each is None where it is not given."""
    for option in (
        click.option(
            "--time-step",
            "time_step_s",
            type=click.IntRange(1, MAX_TIME_STEP_S),
            metavar="SECONDS",
            help=f"Times that submitters see are rounded up to it.  [default: {DEFAULT.time_step_s}]",
        ),
        click.option(
            "--submissions-per-day",
            type=_PerDay(),
            help="Algos that one submitter may add in 24 hours, or `unlimited`.  "
            f"[default: {DEFAULT.submissions_per_day}]",
        ),
        click.option(
            "--score-digits",
            type=click.IntRange(0, MAX_DIGITS),
            help=f"Digits after the decimal point of published scores.  [default: {DEFAULT.score_digits}]",
        ),
        click.option(
            "--model-download/--no-model-download",
            default=None,
            help="Whether submitters may download the models of their algos.  [default: no]",
        ),
        click.option(
            "--logs",
            type=click.Choice([logs.value for logs in Logs]),
            help="What submitters see of runs: nothing, the cause of a failure with exit codes and times, or also all "
            f"that their algos write.  [default: {DEFAULT.logs}]",
        ),
    ):
        command = option(command)
    return command


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, as fields of a `Disclosure`."""
    meant = {_UNLIMITED: None, **{logs.value: logs for logs in Logs}}
    return {name: meant.get(value, value) for name, value in options.items() if value is not None}


def _seen(disclosure: Disclosure) -> str:
    """Return in a few words what goes out of a problem."""
    logs = {Logs.NONE: "no logs", Logs.CAUSE: "causes", Logs.ALL: "logs"}[disclosure.logs]
    models = ", models" if disclosure.model_download else ""
    limit = disclosure.submissions_per_day or "any number of"
    return f"{logs}{models}, {disclosure.score_digits} digits; {limit} algos a day"


@click.group("problem")
def problem() -> None:
    """Add, change and list problems: what is learned, what hides the targets, what scores are measured on."""


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
@disclosure_options
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
    **disclosed: Any,
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
            disclosure=replace(DEFAULT, **_given(disclosed)),
        )
    if as_json:
        print_json(added)
        return
    tell(f"problem {added.id} ({shown(stored.name)})")
    remark(f"give it data to train on: `morpheo data add FILE… --problem {short(added.id)}`")


@problem.command("set")
@click.argument("given", metavar="PROBLEM")
@disclosure_options
@json_option
def set_problem(given: str, as_json: bool, **disclosed: Any) -> None:
    """Change what submitters see of a problem, also of what became of it before.

    PROBLEM is its id, the beginning of its id, or its name. What is not given stays as it is.
    """
    changes = _given(disclosed)
    if not changes:
        raise click.UsageError("nothing to change; see --help")
    changed = orchestrator_client().change_problem(find_problem(given).id, **changes)
    if as_json:
        print_json(changed)
        return
    tell(f"problem {changed.id}: submitters see {_seen(changed.disclosure)}")


@problem.command("ls")
@json_option
def list_problems(as_json: bool) -> None:
    """List problems, oldest first."""
    orchestrator = orchestrator_client()
    algos = _counted(lambda: (item.problem for item in orchestrator.submissions()))
    data = _counted(lambda: (problem for item in orchestrator.datasets() for problem in item.problems))
    problems = orchestrator.problems()
    if as_json:
        counts = [
            {"algos": None if algos is None else algos[item.id], "data": None if data is None else data[item.id]}
            for item in problems
        ]
        print_json([{**vars(item), **count} for item, count in zip(problems, counts, strict=True)])
        return
    table = Table("id", "name", "batch size", "best is", "algos", "data", "test data", "submitters see")
    for item in problems:
        table.add_row(
            short(item.id),
            shown(item.name) or "-",
            str(item.batch_size),
            "highest" if item.higher_is_better else "lowest",
            "-" if algos is None else str(algos[item.id]),
            "-" if data is None else str(data[item.id]),
            str(len(item.test_data)),
            item.disclosure.logs + (", models" if item.disclosure.model_download else ""),
        )
    out.print(table)


def _counted(ask: Callable[[], Iterable[UUID]]) -> Counter[UUID] | None:
    """Return how many things that somebody sees there are of each problem, None if they are not for who asks."""
    try:
        return Counter(ask())
    except ApiError as exc:
        if exc.status != HTTPStatus.FORBIDDEN:
            raise
        return None
