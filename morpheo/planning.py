"""
Planning: which training jobs follow from what is registered, and when each may run.

Whoever plans for a problem holds its row locked, so that chains are planned one after the other. A chain goes on in
the transaction in which a rank of it ends (`advance_chain`, a rule of the database): the next rank is released with
the best model that the chain then has. A rank that ends without a model stalls its chain until somebody retries that
rank or new data comes; the chain then goes on from its best model.

Locks are taken in one order, or two transactions could wait for each other: the row of a job that ends, then that of
its problem, then those of ranks that wait. So a transaction ends jobs of one problem only, who plans for several
problems locks them in the order of their ids, and who cancels a job does not lock its problem before.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from uuid import UUID

from morpheo.challenges import Problem, Submission, batches
from morpheo.errors import Conflict
from morpheo.models import ArtifactKind, JobState, LearnSpec
from morpheo.storage.database import UnitOfWork


def advance_chain(work: UnitOfWork, job_id: UUID, state: JobState) -> None:
    """Let a chain go on, or stall it, in the transaction that ended one of its ranks."""
    if not state.is_final:
        return
    member = work.chains.member(job_id)
    if member is None:
        return
    problem_id, algo = member
    work.challenges.lock(problem_id)
    if state is not JobState.SUCCEEDED:
        work.challenges.set_stalled(algo, job_id)
    _release(work, work.challenges.problem(problem_id), [work.challenges.submission(algo)])


def _release(work: UnitOfWork, problem: Problem, submissions: Iterable[Submission]) -> None:
    """Queue as many waiting ranks of each chain as may run at once; the problem is locked."""
    active = work.chains.active(problem.id)
    for submission in submissions:
        free = 0 if submission.stalled else problem.parallel_ranks - active.get(submission.algo, 0)
        while free > 0 and (specs := work.chains.next_waiting(submission.algo, limit=free)):
            best = work.chains.best_model(problem, algo=submission.algo)
            for spec in specs:
                # Rank 0 starts from nothing; clients of 2017 expect the algo's id there.
                start = spec.algo if spec.rank == 0 else best
                free -= work.jobs.release(replace(spec, model_start=start))  # not if it was cancelled just now
    for job_id in work.chains.damaged:
        work.recovery.bury(job_id)  # which stalls its chain; what ended just now is not lost for it


def extend(work: UnitOfWork, problem: Problem, submissions: Sequence[Submission], data: Sequence[UUID]) -> int:
    """
    Add the ranks that train on some data to chains, and let these go on; the problem is locked.

    Returns:
        How many there are.
    """
    cut = batches(data, held_out=held_out(work, problem, data), size=problem.batch_size)
    last = work.chains.last_ranks(problem.id) if cut else {}
    ranks = (
        LearnSpec(
            id=uuid.uuid4(),
            problem=problem.id,
            workflow=problem.workflow,
            algo=algo,
            train_data=batch,
            test_data=problem.test_data,
            model_start=algo if rank == 0 else None,
            model_end=uuid.uuid4(),
            rank=rank,
        )
        for algo in (submission.algo for submission in submissions)
        for rank, batch in enumerate(cut, start=last.get(algo, -1) + 1)
    )
    work.jobs.add_ranks(ranks, owners={submission.algo: submission.owner for submission in submissions})
    if cut:
        _release(work, problem, submissions)
    return len(cut) * len(submissions)


def held_out(work: UnitOfWork, problem: Problem, data: Iterable[UUID]) -> set[UUID]:
    """Return the test data of a problem among some data, by content: a file that is uploaded again has another id."""
    return work.artifacts.same_content(ArtifactKind.DATA, data, as_=problem.test_data)


def retry_rank(work: UnitOfWork, spec: LearnSpec) -> None:
    """
    Add another job of a rank, and let its chain go on if that rank stalled it; the problem is locked.

    Args:
        work: The transaction.
        spec: Of the job that ended without a model, under a new id.

    Raises:
        Conflict: the rank has another job that is not over or has a model.
    """
    if other := work.chains.live(spec.algo, spec.rank):
        raise Conflict(f"rank {spec.rank} of algo {spec.algo} has job {other} already")
    waiting = replace(spec, model_start=None, model_end=uuid.uuid4())
    submission = work.challenges.submission(spec.algo)
    work.jobs.add(waiting, algo=spec.algo, state=JobState.WAITING, planned=True, owner=submission.owner)
    stalled_by = submission.stalled_by
    if stalled_by is not None and work.chains.rank(stalled_by) == spec.rank:
        work.challenges.set_stalled(spec.algo, None)
    _release(work, work.challenges.problem(spec.problem), [work.challenges.submission(spec.algo)])
