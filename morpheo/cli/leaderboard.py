"""``morpheo leaderboard``: who is how good at a problem, and how sure that is."""

from __future__ import annotations

from uuid import UUID

import click
from rich.table import Table

from morpheo.cli.common import json_option, orchestrator_client, out, print_json, short, shown
from morpheo.cli.find import find_problem
from morpheo.client import Entry, Leaderboard


@click.command()
@click.argument("problem", metavar="PROBLEM")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for spreadsheets.")
@json_option
def leaderboard(problem: str, as_csv: bool, as_json: bool) -> None:
    """Show the algos of a problem, best first.

    PROBLEM is its id, the beginning of its id, or its name. Algos that share a range of places, such as 1-3, cannot
    be told apart by their scores on the test data.
    """
    if as_csv and as_json:
        raise click.UsageError("choose one of --csv and --json")
    chosen = find_problem(problem)
    client = orchestrator_client()
    if as_csv:
        click.echo(client.leaderboard_csv(chosen.id), nl=False)
        return
    board = client.leaderboard(chosen.id)
    if as_json:
        print_json(board)
    else:
        name = chosen.name or short(chosen.id)
        out.print(leaderboard_table(board, title=f"{name}, {board.test_files} test files"))


def leaderboard_table(board: Leaderboard, *, title: str) -> Table:
    """Return a leaderboard as a table."""
    best = "highest" if board.higher_is_better else "lowest"
    caption = f"the {best} perf is best; interval of the mean and spread (sd) are of the scores of test files"
    table = Table(title=shown(title), caption=caption)
    table.add_column("place", justify="right", no_wrap=True)
    table.add_column("algo")
    for heading in ("perf", "95 % interval", "rank", "trainings", "spread"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in board.entries:
        table.add_row(
            entry.places or "-",
            shown(entry.name) or short(entry.algo),
            _score(entry.perf),
            "-" if entry.interval is None else " to ".join(map(_score, entry.interval)),
            "-" if entry.rank is None else str(entry.rank),
            str(entry.trainings),
            "-" if entry.spread is None else _score(entry.spread.sd),
        )
    return table


def place_in_words(board: Leaderboard, algo: UUID) -> str:
    """Return the place of an algo, and of which others it cannot be told apart."""
    entry = entry_of(board, algo)
    if entry is None or entry.place is None or entry.range is None:
        return "no place on the leaderboard yet"
    ranked = sum(other.place is not None for other in board.entries)
    first, last = entry.range
    doubt = "" if first == last else f", cannot be told apart from {entry.places}"
    return f"place {entry.place} of {ranked}{doubt}"


def entry_of(board: Leaderboard, algo: UUID) -> Entry | None:
    """Return the line of an algo, None if it has none."""
    return next((entry for entry in board.entries if entry.algo == algo), None)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
