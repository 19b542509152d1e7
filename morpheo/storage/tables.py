"""
The tables. Rows never leave `morpheo.storage`; repositories turn them into values of `morpheo.models`.

Every time is a float of seconds since the epoch, by the clock of the database: it compares and adds in the same way
on SQLite (which has no time type) and on PostgreSQL.
"""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    false,
    select,
    text,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column, relationship
from sqlalchemy.types import BigInteger, Double

from morpheo.audit import START
from morpheo.models import ArtifactKind


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: String(64), float: Double(), int: BigInteger(), dict[str, Any]: JSON()}  # noqa: RUF012


class ArtifactRow(Base):
    """One blob that is visible. An id is unique among artifacts of its kind, as it was in 2017."""

    __tablename__ = "artifacts"
    __table_args__ = (
        Index(None, "kind", "created_at", "id"),
        Index(None, "quarantined_at"),
        Index(None, "owner", "kind", "created_at"),
    )

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text())
    description: Mapped[str] = mapped_column(Text())
    algo_id: Mapped[uuid.UUID | None]
    size_bytes: Mapped[int]
    sha256: Mapped[str]
    blob_key: Mapped[str] = mapped_column(Text(), unique=True)
    created_at: Mapped[float]
    #: When its blob was found lost or damaged.
    quarantined_at: Mapped[float | None]
    quarantine_reason: Mapped[str | None] = mapped_column(Text())
    #: Name of the user whom it belongs to; empty is nobody.
    owner: Mapped[str] = mapped_column(default="", server_default="")


_LIVE_RANK = "planned AND rank IS NOT NULL AND state NOT IN ('failed', 'cancelled')"


class JobRow(Base):
    """One accepted order: the truth about it. The broker's message is only a hint to look here."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "state", "created_at", "id"),
        Index(None, "problem_id", "created_at", "id"),
        Index(None, "algo_id", "created_at", "id"),
        Index(None, "created_at", "id"),
        Index(None, "state", "kind", "failure_cause", "failure_step"),
        # Chains never fork: of each rank there is one job that is not over, or one that ended with a model.
        Index(
            "uq_jobs_live_rank",
            "algo_id",
            "rank",
            unique=True,
            sqlite_where=text(_LIVE_RANK),
            postgresql_where=text(_LIVE_RANK),
        ),
        Index("ix_jobs_chain", "algo_id", "state", "rank"),
        Index(None, "owner", "state"),
        Index(None, "owner", "started_at"),
        Index(None, "held_by"),
        Index(None, "result_id"),
        # All that a leaderboard needs of 20,000 trained ranks: their rows, with long texts, are not read.
        # It is in the order in which they are read.
        Index("ix_jobs_best", "problem_id", "planned", "kind", "state", "algo_id", "rank", "perf", "train_files", "id"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    problem_id: Mapped[uuid.UUID]
    algo_id: Mapped[uuid.UUID | None]
    #: Sorted and joined with a plus sign.
    tags: Mapped[str] = mapped_column(String(160), default="", server_default="")
    spec: Mapped[dict[str, Any]]
    spec_sha256: Mapped[str]
    attempt: Mapped[int] = mapped_column(default=0)
    strikes: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    worker: Mapped[str | None] = mapped_column(Text())
    #: Machine of the latest attempt, and the one that should leave it to others.
    node: Mapped[str | None]
    avoid_node: Mapped[str | None]
    lease_expires_at: Mapped[float | None]
    published_at: Mapped[float | None]
    not_before: Mapped[float] = mapped_column(default=0.0)
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    failure_cause: Mapped[str | None]
    failure_blame: Mapped[str | None]
    failure_step: Mapped[str | None]
    failure_message: Mapped[str | None] = mapped_column(Text())
    scores: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    #: Whether the orchestrator made it, rather than an order from outside.
    planned: Mapped[bool] = mapped_column(default=False, server_default=false())
    #: Place of a training job in its chain.
    rank: Mapped[int | None]
    #: The ``perf`` of the scores, to sort by.
    perf: Mapped[float | None]
    #: Files that a training job trains on.
    train_files: Mapped[int | None]
    #: Model or prediction that a job ended with.
    result_id: Mapped[uuid.UUID | None]
    #: Name of the user whom it belongs to; empty is nobody.
    owner: Mapped[str] = mapped_column(default="", server_default="")
    #: User of the worker that is not ours and has or had it.
    held_by: Mapped[str | None]

    attempts: Mapped[list[AttemptRow]] = relationship(order_by="AttemptRow.number", lazy="raise")


class AttemptRow(Base):
    """One try at a job."""

    __tablename__ = "attempts"

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker: Mapped[str] = mapped_column(Text())
    outcome: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    message: Mapped[str] = mapped_column(Text(), default="")

    steps: Mapped[list[StepRow]] = relationship(order_by="StepRow.position", lazy="raise")


class NodeRow(Base):
    """One Celery node of one machine, and when it last reached the database."""

    __tablename__ = "nodes"

    #: Id of the machine's data folder.
    node: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    #: What it takes, with a comma before, between and after.
    queues: Mapped[str] = mapped_column(Text())
    last_seen: Mapped[float]
    #: When it found that no node had reached the database for a while.
    resumed_at: Mapped[float | None]


class StepRow(Base):
    """One step of one attempt."""

    __tablename__ = "steps"
    __table_args__ = (
        ForeignKeyConstraint(["job_id", "attempt"], ["attempts.job_id", "attempts.number"]),
        Index(None, "name", "seconds"),
    )

    job_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    position: Mapped[int]
    started_at: Mapped[float]
    seconds: Mapped[float | None]
    exit_code: Mapped[int | None]
    oom_killed: Mapped[bool] = mapped_column(default=False)
    peak_memory_bytes: Mapped[int | None]
    log_key: Mapped[str | None] = mapped_column(Text())
    #: Bytes of the log's blob.
    log_bytes: Mapped[int | None]
    #: Byte of that blob before which some were left out, and how many.
    log_gap_at: Mapped[int | None]
    log_gap_bytes: Mapped[int] = mapped_column(default=0, server_default="0")


class LogPieceRow(Base):
    """Part of the log of a step that has not ended, or whose worker died; one blob takes the place of all pieces."""

    __tablename__ = "log_pieces"
    __table_args__ = (
        ForeignKeyConstraint(["job_id", "attempt", "step"], ["steps.job_id", "steps.attempt", "steps.name"]),
    )

    job_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[str] = mapped_column(String(16), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: Place of its first byte among all that the step wrote.
    start: Mapped[int]
    size_bytes: Mapped[int]
    blob_key: Mapped[str] = mapped_column(Text())


class ProblemRow(Base):
    """One challenge."""

    __tablename__ = "problems"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    workflow_id: Mapped[uuid.UUID] = mapped_column()
    test_data: Mapped[list[str]] = mapped_column(JSON())
    batch_size: Mapped[int]
    higher_is_better: Mapped[bool] = mapped_column(default=True, server_default=true())
    parallel_ranks: Mapped[int] = mapped_column(default=1)
    #: What goes out (`morpheo.disclosure`).
    logs: Mapped[str] = mapped_column(String(16), server_default="cause")
    model_download: Mapped[bool] = mapped_column(server_default=false())
    score_digits: Mapped[int] = mapped_column(server_default="6")
    #: None is without limit.
    submissions_per_day: Mapped[int | None] = mapped_column(server_default="10")
    time_step_s: Mapped[int] = mapped_column(server_default="60")
    created_at: Mapped[float]
    #: Name of the user whom it belongs to; empty is nobody.
    owner: Mapped[str] = mapped_column(default="", server_default="")
    #: Name of its archive.
    name: Mapped[str | None] = column_property(
        select(ArtifactRow.name)
        .where(ArtifactRow.kind == ArtifactKind.PROBLEM.value, ArtifactRow.id == workflow_id)
        .correlate_except(ArtifactRow)
        .scalar_subquery()
    )


class SubmissionRow(Base):
    """One algo that takes part in a challenge."""

    __tablename__ = "submissions"
    algo_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    problem_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("problems.id"), index=True)
    name: Mapped[str] = mapped_column(Text())
    #: The job that ended without a model, while the chain waits for somebody to retry its rank, or for new data.
    stalled_by: Mapped[uuid.UUID | None]
    created_at: Mapped[float]
    #: Name of the user whom it belongs to; empty is nobody.
    owner: Mapped[str] = mapped_column(default="", server_default="")


class DatasetRow(Base):
    """One data file that is registered."""

    __tablename__ = "datasets"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    created_at: Mapped[float]
    #: Name of the user whom it belongs to; empty is nobody.
    owner: Mapped[str] = mapped_column(default="", server_default="")


class ProblemDataRow(Base):
    """One data file of one challenge."""

    __tablename__ = "problem_data"
    __table_args__ = (UniqueConstraint("problem_id", "dataset_id"),)

    problem_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("problems.id"), primary_key=True)
    #: The order of registration, in which batches are cut.
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    dataset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("datasets.id"), index=True)


class ReportRow(Base):
    """One request that an outside orchestrator has not answered yet; those of a job go out in their order."""

    __tablename__ = "reports"
    __table_args__ = (Index(None, "not_before"),)

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    path: Mapped[str] = mapped_column(Text())
    body: Mapped[dict[str, Any]]
    #: How often it was sent in vain.
    tries: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float] = mapped_column(default=0.0)
    created_at: Mapped[float]


class EventRow(Base):
    """
    One event of the audit trail (`morpheo.audit`).

    Triggers refuse to change or delete it. They are in the migration; one that makes this table anew, as SQLite does to
    change a column, must make them again.
    """

    __tablename__ = "events"
    __table_args__ = (Index(None, "subject_id", "seq"),)

    #: From 1, without gaps.
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[float]
    actor: Mapped[str] = mapped_column(Text())
    action: Mapped[str]
    subject_kind: Mapped[str]
    subject_id: Mapped[str] = mapped_column(Text())
    #: Not JSON to the database, which might give it back in another form than the one that was hashed.
    detail: Mapped[str] = mapped_column(Text())
    previous: Mapped[str]
    digest: Mapped[str]


class EventHeadRow(Base):
    """The last event of the audit trail, in the only row of this table: the lock of who appends to it."""

    __tablename__ = "event_head"

    #: 1. (A number that changes with each event would be a burden to the index of the key.)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int]
    digest: Mapped[str]


@event.listens_for(EventHeadRow.__table__, "after_create")
def _start_trail(table: Table, connection: Connection, **_kwargs: Any) -> None:
    # For tables that are made from these classes, as some tests do; the migration does it by itself.
    connection.execute(table.insert().values(id=1, **START._asdict()))
