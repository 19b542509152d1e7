"""Which jobs to list."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.sql.elements import ColumnElement

from morpheo.models import JobKind, JobState
from morpheo.storage.tables import JobRow


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs to list; None is any."""

    state: JobState | None = None
    kind: JobKind | None = None
    problem: UUID | None = None
    algo: UUID | None = None
    #: A tag that the job asks for.
    tag: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return what must be so of a job."""
        wanted = (
            (JobRow.state, self.state and self.state.value),
            (JobRow.kind, self.kind and self.kind.value),
            (JobRow.problem_id, self.problem),
            (JobRow.algo_id, self.algo),
        )
        conditions: list[ColumnElement[bool]] = [column == value for column, value in wanted if value is not None]
        if self.tag is not None:
            conditions.append(("+" + JobRow.tags + "+").contains(f"+{self.tag}+", autoescape=True))
        return conditions
