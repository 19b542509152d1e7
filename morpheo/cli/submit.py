"""``morpheo submit``: from a folder to a score and its place."""

from __future__ import annotations

import click

from morpheo.cli.algos import register, show_registered
from morpheo.cli.common import json_option, shown, tell
from morpheo.cli.find import find_problem, problem_option
from morpheo.cli.sources import FOLDER_OR_ID, Source
from morpheo.cli.trainings import follow_to_score, timeout_option


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER_OR_ID)
@problem_option
@click.option("--name", help="The folder's name by default.")
@click.option("--wait", is_flag=True, help="Follow the trainings to their end, and print the score and its place.")
@timeout_option
@json_option
def submit(folder: Source, problem: str, name: str | None, wait: bool, timeout_s: float | None, as_json: bool) -> None:
    """Submit the algo in a folder to a problem.

    DIR has a Dockerfile; what .dockerignore names is left out. An archive, or the id of a stored one, will do as well.
    With --wait, the exit status is 3 if the trainings stopped at a failure, and 124 if they were not over in time.
    Ctrl-C only stops the waiting.
    """
    if timeout_s is not None and not wait:
        raise click.UsageError("--timeout is of the waiting; give --wait, too")
    chosen = find_problem(problem)
    submission, trainings = register(folder, chosen, name)
    if not wait:
        show_registered(submission, trainings, as_json=as_json)
        return
    if not as_json:
        tell(f"algo {submission.algo} ({shown(submission.name)})")
    follow_to_score(submission, chosen, timeout_s=timeout_s, as_json=as_json)
