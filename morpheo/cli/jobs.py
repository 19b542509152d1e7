"""Commands for orders and jobs."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

import click
from rich.status import Status
from rich.table import Table

from morpheo.cli.common import (
    EXIT_JOB_FAILED,
    UUID_TYPE,
    compute_client,
    err,
    json_option,
    out,
    print_json,
    remark,
    shown_bytes,
    shown_state,
    storage_client,
)
from morpheo.cli.waiting import leaving
from morpheo.disclosure import without_controls
from morpheo.models import ArtifactKind, Job, JobKind, JobSpec, JobState, LearnSpec, PredictSpec, cancel_answer
from morpheo.queues import queue_of

tag_option = click.option(
    "--tag",
    "tags",
    multiple=True,
    help="What the worker must have, such as gpu; repeat. The job waits for such a worker.",
)
time_limit_option = click.option(
    "--time-limit",
    "time_limit_s",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="How long each container may run, where the worker allows no less.",
)
wait_option = click.option("--wait/--no-wait", default=True, show_default=True, help="Follow the job to its end.")


def follow(job_id: UUID, *, label: str = "") -> Job:
    """Wait for a job, showing what it does on stderr."""
    with Status(label or f"job {job_id}", console=err) as status:

        def show(job: Job) -> None:
            status.update(f"{label or f'job {job.id}'}: {describe(job)}")

        return compute_client().wait(job_id, on_look=show)


def describe(job: Job) -> str:
    """Return in a few words what a job does now."""
    if job.state is not JobState.RUNNING or not job.attempts or not job.attempts[-1].steps:
        return str(job.state)
    step = job.attempts[-1].steps[-1]
    return f"{step.name}" + ("" if step.seconds is None else " done")


@click.command()
@click.option("--id", "job_id", type=UUID_TYPE, help="The job's id; the same order with the same id is one job.")
@click.option("--problem", type=UUID_TYPE, help="The orchestrator's id of the problem; the workflow's by default.")
@click.option("--workflow", type=UUID_TYPE, required=True, help="Storage id of the problem's archive.")
@click.option("--algo", type=UUID_TYPE, required=True)
@click.option("--train", "train_data", type=UUID_TYPE, required=True, multiple=True, help="Data to train on; repeat.")
@click.option("--test", "test_data", type=UUID_TYPE, required=True, multiple=True, help="Hidden test data; repeat.")
@click.option("--rank", default=0, show_default=True, help="Place in a chain of mini-batches.")
@click.option("--model-start", type=UUID_TYPE, help="Model to start from, when the rank is not 0.")
@click.option("--model-end", type=UUID_TYPE, help="Id that the trained model gets; one is made up by default.")
@tag_option
@time_limit_option
@wait_option
@json_option
def learn(
    *,
    job_id: UUID | None,
    problem: UUID | None,
    workflow: UUID,
    algo: UUID,
    train_data: tuple[UUID, ...],
    test_data: tuple[UUID, ...],
    rank: int,
    model_start: UUID | None,
    model_end: UUID | None,
    tags: tuple[str, ...],
    time_limit_s: int | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Train an algo and score it on hidden data."""
    spec = LearnSpec(
        id=job_id or uuid.uuid4(),
        problem=problem or workflow,
        workflow=workflow,
        algo=algo,
        train_data=train_data,
        test_data=test_data,
        rank=rank,
        model_start=model_start,
        model_end=model_end or uuid.uuid4(),
        tags=tags,
        time_limit_s=time_limit_s,
    )
    _order(spec, wait=wait, as_json=as_json)


@click.command()
@click.option("--id", "job_id", type=UUID_TYPE, help="The job's id; the same order with the same id is one job.")
@click.option("--problem", type=UUID_TYPE, required=True)
@click.option("--model", type=UUID_TYPE, required=True)
@click.option("--data", type=UUID_TYPE, required=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the prediction to this file.")
@tag_option
@time_limit_option
@wait_option
@json_option
def predict(
    *,
    job_id: UUID | None,
    problem: UUID,
    model: UUID,
    data: UUID,
    output: Path | None,
    tags: tuple[str, ...],
    time_limit_s: int | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Predict one data file with a stored model."""
    spec = PredictSpec(
        id=job_id or uuid.uuid4(),
        problem=problem,
        workflow=problem,
        model=model,
        data=data,
        tags=tags,
        time_limit_s=time_limit_s,
    )
    _order(spec, wait=wait or output is not None, as_json=as_json)
    if output is not None:
        storage_client().download(ArtifactKind.PREDICTION, spec.prediction, output)
        err.print(f"prediction written to {output}")


def _order(spec: JobSpec, *, wait: bool, as_json: bool) -> None:
    job = compute_client().submit(spec)
    if wait:
        job = follow(job.id)
    if as_json:
        print_json(job)
    else:
        show_job(job)
    if job.state in (JobState.FAILED, JobState.CANCELLED):
        sys.exit(EXIT_JOB_FAILED)


@click.group()
def jobs() -> None:
    """List, show and cancel jobs."""


@jobs.command("ls")
@click.option("--state", type=click.Choice([state.value for state in JobState]))
@click.option("--kind", type=click.Choice([kind.value for kind in JobKind]))
@click.option("--problem", type=UUID_TYPE)
@click.option("--algo", type=UUID_TYPE)
@click.option("--tag", help="One that the jobs ask for.")
@click.option("--limit", default=50, show_default=True, help="How many at most.")
@json_option
def list_jobs(
    state: str | None,
    kind: str | None,
    problem: UUID | None,
    algo: UUID | None,
    tag: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List jobs, newest first."""
    found = list(
        compute_client().jobs(
            state=JobState(state) if state else None,
            kind=JobKind(kind) if kind else None,
            problem=problem,
            algo=algo,
            tag=tag,
            limit=limit,
        )
    )
    if as_json:
        print_json(found)
    else:
        out.print(_table(found))


@jobs.command("show")
@click.argument("job_id", type=UUID_TYPE)
@json_option
def show(job_id: UUID, as_json: bool) -> None:
    """Show a job with its attempts, steps, failure and scores."""
    job = compute_client().job(job_id)
    if as_json:
        print_json(job)
    else:
        show_job(job)


@jobs.command("logs")
@click.argument("job_id", type=UUID_TYPE)
@click.option("--attempt", type=int, help="The latest by default; with --follow, the first to show.")
@click.option("--follow", "-f", "following", is_flag=True, help="Print what is written, until the job has ended.")
def logs(job_id: UUID, attempt: int | None, following: bool) -> None:
    """Print what the containers of a job wrote."""
    if not following:
        click.echo(_harmless(compute_client().logs(job_id, attempt=attempt)), nl=False)
        return
    with leaving("the job goes on", f"`morpheo logs {job_id} --follow` follows it again."):
        _follow_logs(job_id, attempt)


def _harmless(text: str) -> str:
    """Return what somebody else's program wrote: as it is for a file, without what steers a terminal for one."""
    return without_controls(text) if sys.stdout.isatty() else text


def _follow_logs(job_id: UUID, attempt: int | None) -> None:
    step, ends_line = None, True
    for event in compute_client().follow_logs(job_id, attempt=attempt):
        if isinstance(event, JobState):
            click.echo("" if ends_line else "\n", nl=False)
            remark(f"job {job_id} is {event}")
            if event is not JobState.SUCCEEDED:
                sys.exit(EXIT_JOB_FAILED)
            return
        if step != (event.attempt, event.step):
            click.echo(("" if ends_line else "\n") + f"==> {event.step} (attempt {event.attempt}) <==")
            step = (event.attempt, event.step)
        click.echo(_harmless(event.text), nl=False)
        ends_line = event.text.endswith("\n")


@jobs.command("cancel")
@click.argument("job_id", type=UUID_TYPE)
@json_option
def cancel(job_id: UUID, as_json: bool) -> None:
    """
    End a job: at once, or within a few seconds if a worker has it.

    Harmless if it was cancelled before or has ended, and says so.
    """
    before = compute_client().job(job_id)
    job = compute_client().cancel(job_id)
    if as_json:
        print_json(job)
    else:
        out.print(cancel_answer(before, job))


def _table(found: Iterable[Job]) -> Table:
    table = Table("id", "kind", "state", "rank", "score", "cause", "created at")
    for job in found:
        table.add_row(
            str(job.id),
            job.kind,
            shown_state(job),
            str(job.spec.rank) if isinstance(job.spec, LearnSpec) else "-",
            "-" if job.scores is None else f"{job.scores.perf:.4f}",
            "-" if job.failure is None else job.failure.cause,
            f"{job.created_at:%Y-%m-%d %H:%M:%S} UTC",
        )
    return table


def show_job(job: Job) -> None:
    """Print all that is known of a job."""
    waits = f" in queue {queue_of(job.spec)}" if job.state is JobState.QUEUED else ""
    out.print(f"{job.kind} job {job.id}: {shown_state(job)}{waits}")
    if job.scores is not None:
        out.print(f"score {job.scores.perf:.4f}")
    if isinstance(job.spec, LearnSpec) and job.state is JobState.SUCCEEDED:
        out.print(f"model {job.spec.model_end}")
    if isinstance(job.spec, PredictSpec) and job.state is JobState.SUCCEEDED:
        out.print(f"prediction {job.spec.prediction}")
    if job.failure is not None:
        out.print(f"{job.failure.cause} (to blame: {job.failure.blame}): {job.failure.message}", markup=False)
    table = Table("attempt", "step", "seconds", "exit code", "peak memory")
    for attempt in job.attempts:
        for step in attempt.steps:
            table.add_row(
                f"{attempt.number} ({attempt.outcome})",
                step.name,
                "-" if step.seconds is None else f"{step.seconds:.2f}",
                "-" if step.exit_code is None else str(step.exit_code),
                shown_bytes(step.peak_memory_bytes),
            )
    if table.row_count:
        out.print(table)
