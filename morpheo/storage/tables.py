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
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import BigInteger, Double


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
    __table_args__ = (Index(None, "kind", "created_at", "id"),)

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text())
    description: Mapped[str] = mapped_column(Text())
    algo_id: Mapped[uuid.UUID | None]
    size_bytes: Mapped[int]
    sha256: Mapped[str]
    blob_key: Mapped[str] = mapped_column(Text(), unique=True)
    created_at: Mapped[float]


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
        # All that a leaderboard needs of 20,000 trained ranks: their rows, with long texts, are not read.
        Index("ix_jobs_best", "problem_id", "planned", "kind", "state", "perf", "rank", "algo_id", "train_files", "id"),
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


class ProblemRow(Base):
    """One challenge."""

    __tablename__ = "problems"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    workflow_id: Mapped[uuid.UUID]
    test_data: Mapped[list[str]] = mapped_column(JSON())
    batch_size: Mapped[int]
    higher_is_better: Mapped[bool] = mapped_column(default=True, server_default=true())
    parallel_ranks: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[float]


class SubmissionRow(Base):
    """One algo that takes part in a challenge."""

    __tablename__ = "submissions"

    algo_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    problem_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("problems.id"), index=True)
    name: Mapped[str] = mapped_column(Text())
    stalled: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[float]


class DatasetRow(Base):
    """One data file that is registered."""

    __tablename__ = "datasets"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    created_at: Mapped[float]


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
