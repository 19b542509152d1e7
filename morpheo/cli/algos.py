"""Commands for algos that take part in challenges, and for their trainings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from uuid import UUID

import click
from rich.table import Table

from morpheo.challenges import Problem, Submission
from morpheo.cli.chains import Chain, make_chain, words_of
from morpheo.cli.common import (
    UUID_TYPE,
    compute_client,
    json_option,
    orchestrator_client,
    out,
    print_json,
    remark,
    short,
    shown,
    tell,
)
from morpheo.cli.find import find_problem, find_submission, problem_option
from morpheo.cli.sources import FOLDER_OR_ID, Source, uploads
from morpheo.cli.trainings import follow_to_score, timeout_option
from morpheo.client import Learnuplet, OrchestratorClient
from morpheo.errors import ApiError
from morpheo.models import ArtifactKind


@click.group("algo")
def algo() -> None:
    """Add algos to problems, list them, and follow their trainings."""


def register(source: Source, problem: Problem, name: str | None) -> tuple[Submission, int]:
    """Upload an algo and register it; return its submission, and how many trainings follow."""
    with uploads() as made:
        stored = made.archive(ArtifactKind.ALGO, source, name=name)
        made.complete = True
        return orchestrator_client().add_algo(stored.id, name=name or stored.name, problem=problem.id)


def show_registered(submission: Submission, trainings: int, *, as_json: bool) -> None:
    """Print what was registered, what follows from it, and how to see that."""
    if as_json:
        print_json({"submission": submission, "trainings": trainings})
        return
    tell(f"algo {submission.algo} ({shown(submission.name)})")
    if trainings:
        remark(f"trainings to come: {trainings}; see how they end with `morpheo algo follow {short(submission.algo)}`")
    else:
        remark("no trainings follow now: they come with data, or this algo was registered before")


@algo.command("add")
@click.argument("archive", type=FOLDER_OR_ID)
@problem_option
@click.option("--name", help="The name of its folder or archive by default.")
@json_option
def add_algo(archive: Source, problem: str, name: str | None, as_json: bool) -> None:
    """Upload an algo and let it take part in a problem; it is trained on all of the problem's data.

    ARCHIVE is a folder with a Dockerfile (packed without what .dockerignore names), a .tar.gz, or the id of a stored
    one.
    """
    submission, trainings = register(archive, find_problem(problem), name)
    show_registered(submission, trainings, as_json=as_json)


@algo.command("follow")
@click.argument("given", metavar="ALGO")
@timeout_option
@json_option
def follow(given: str, timeout_s: float | None, as_json: bool) -> None:
    """Follow the trainings of an algo to their end, and print its score and its place.

    ALGO is its id, the beginning of its id, or its name. The exit status is 3 if the trainings stopped at a failure.
    """
    submission = find_submission(given)
    problem = orchestrator_client().problem(submission.problem)
    follow_to_score(submission, problem, timeout_s=timeout_s, as_json=as_json)


@algo.command("ls")
@click.option("--problem", "-p", "given", metavar="PROBLEM", help="Only those of this problem: its id or name.")
@json_option
def list_algos(given: str | None, as_json: bool) -> None:
    """List algos, oldest first, with their trainings and what stalls them."""
    orchestrator = orchestrator_client()
    chosen = [find_problem(given)] if given else []
    only = chosen[0].id if chosen else None
    # Before their jobs and problems: what stalled a chain, and what it is for, is then among those.
    found = orchestrator.submissions(only)
    jobs: dict[UUID, list[Learnuplet]] = defaultdict(list)
    for job in orchestrator.learnuplets(problem=only):
        jobs[job.algo].append(job)
    problems = {item.id: item for item in chosen or orchestrator.problems()}
    chains = [(item, make_chain(jobs[item.algo], stalled_by=item.stalled_by)) for item in found]
    if as_json:
        print_json([_document(item, chain, problems[item.problem]) for item, chain in chains])
        return
    out.print(_table(chains, problems))
    for item, chain in chains:
        if rank := chain.stopped_at:
            tell(f"{shown(item.name)} stopped at rank {rank.number}: {shown(words_of(rank.failure))}")
            tell(f"  to try again: morpheo retry {rank.job}")


def _table(chains: Sequence[tuple[Submission, Chain]], problems: Mapping[UUID, Problem]) -> Table:
    table = Table("id", "name", "problem")
    for heading in ("trained", "best perf", "state"):
        table.add_column(heading, no_wrap=True)
    for item, chain in chains:
        problem, state = problems[item.problem], _state(chain)
        best = chain.best(problem)
        table.add_row(
            short(item.algo),
            shown(item.name),
            shown(problem.name) or short(problem.id),
            f"{chain.done} of {len(chain.ranks)}",
            "-" if best is None else f"{best.perf:.4f} (rank {best.number})",
            f"[{_COLOURS[state]}]{state}[/]",
        )
    return table


_COLOURS = {"no data yet": "white", "done": "green", "stalled": "red", "training": "cyan"}


def _state(chain: Chain) -> str:
    if not chain.ranks:
        return "no data yet"
    if not chain.is_over:
        return "training"
    return "stalled" if chain.stopped_at else "done"


def _document(item: Submission, chain: Chain, problem: Problem) -> dict[str, object]:
    best, stopped_at = chain.best(problem), chain.stopped_at
    return {
        "algo": item.algo,
        "name": item.name,
        "problem": item.problem,
        "state": _state(chain),
        "trainings": len(chain.ranks),
        "done": chain.done,
        "best": best,
        "stopped_at": stopped_at,
        "created_at": item.created_at,
    }


@click.command()
@click.argument("job_id", metavar="JOB", type=UUID_TYPE)
@json_option
def retry(job_id: UUID, as_json: bool) -> None:
    """Order a training or prediction again that failed or was cancelled.

    A chain goes on if this rank stalls it; any other rank waits until the chain goes on.
    """
    orchestrator = orchestrator_client()
    try:
        again = orchestrator.retry(job_id)
    except ApiError as exc:
        if exc.status != HTTPStatus.NOT_FOUND:
            raise
        again = compute_client().retry(job_id).id  # one that was ordered by itself
    if as_json:
        print_json({"job": again})
        return
    tell(f"job {again}")
    remark(f"it takes the place of {job_id}; see it with `morpheo jobs show {again}`")
    if stalled_by := _what_stalls(orchestrator, again):
        remark(f"it waits: another rank stalls its chain; try that one again, too: morpheo retry {stalled_by}")


def _what_stalls(orchestrator: OrchestratorClient, job_id: UUID) -> UUID | None:
    """Return the job that keeps another one's chain from going on."""
    try:
        algo = orchestrator.learnuplet(job_id).algo
        return orchestrator.submission(algo).stalled_by
    except ApiError as exc:
        if exc.status != HTTPStatus.NOT_FOUND:
            raise
        return None  # a prediction, or a training that was ordered by itself
