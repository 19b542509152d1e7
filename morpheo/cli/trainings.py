"""From trainings that go on to a score and its place."""

from __future__ import annotations

import sys

import click

from morpheo.challenges import Problem, Submission
from morpheo.cli.chains import Rank, follow_chain, words_of
from morpheo.cli.common import EXIT_JOB_FAILED, orchestrator_client, print_json, remark, short, shown, tell
from morpheo.cli.leaderboard import entry_of, place_in_words
from morpheo.cli.waiting import leaving, print_end_of_log

timeout_option = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0), metavar="SECONDS", help="How long to wait at most."
)


def follow_to_score(submission: Submission, problem: Problem, *, timeout_s: float | None, as_json: bool) -> None:
    """
    Show the trainings of an algo until they are over, and print its score and place.

    Ends the process with `EXIT_JOB_FAILED` if they stopped without a model.
    """
    hint = f"Follow them again with `morpheo algo follow {short(submission.algo)}`"
    with leaving("the trainings go on", hint):
        chain = follow_chain(submission.algo, timeout_s=timeout_s)
    best, stopped_at = chain.best(problem), chain.stopped_at
    if best and not as_json:
        tell(f"score {best.perf:.4f} (rank {best.number}, model {best.model})")
    board = orchestrator_client().leaderboard(problem.id)
    if as_json:
        place = entry_of(board, submission.algo)
        print_json(
            {"submission": submission, "ranks": chain.ranks, "stalled": chain.stalled_by is not None, "place": place}
        )
    elif best:
        tell(place_in_words(board, submission.algo))
    if not chain.ranks:
        remark("there are no trainings yet; they come with the problem's first data")
    elif stopped_at:
        _explain(stopped_at)
    if stopped_at or (chain.ranks and not best):
        sys.exit(EXIT_JOB_FAILED)


def _explain(rank: Rank) -> None:
    """Say why a chain stopped and what to do."""
    remark(f"[red]stopped at rank {rank.number}:[/] {shown(words_of(rank.failure))}")
    print_end_of_log(rank.job)
    remark(f"correct the algo and submit it again, or repeat this rank: morpheo retry {rank.job}")
