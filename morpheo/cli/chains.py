"""The chain of an algo's trainings, as a person follows it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from morpheo.challenges import Problem
from morpheo.cli.common import compute_client, err, orchestrator_client, remark
from morpheo.cli.jobs import describe
from morpheo.cli.waiting import wait_until
from morpheo.client import Learnuplet
from morpheo.errors import MorpheoError
from morpheo.models import Failure, Job, JobKind, JobState

#: Lines of a terminal that are not for ranks: head, frame, and the line of the cursor.
_FRAME = 6
_COLOURS = {"done": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One rank of a chain: the latest of its jobs."""

    number: int
    job: UUID
    #: ``waiting``, ``queued``, ``running``, ``done``, ``failed`` or ``cancelled``.
    state: str
    perf: float | None
    model: UUID
    failure: Failure | None
    #: What the job does now, and how long it took; only the compute API knows.
    doing: str = ""
    seconds: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether this job changes no more."""
        return self.state in ("done", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All ranks of one algo."""

    ranks: tuple[Rank, ...]
    #: The job that ended without a model, while it waits for a retry of that rank, or for new data.
    stalled_by: UUID | None

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it by itself."""
        if self.stopped_at:
            return not any(rank.state in ("queued", "running") for rank in self.ranks)
        return all(rank.is_over for rank in self.ranks)

    @property
    def done(self) -> int:
        """How many ranks ended with a model."""
        return sum(rank.state == "done" for rank in self.ranks)

    @property
    def stopped_at(self) -> Rank | None:
        """The rank that a stalled chain waits for somebody to retry."""
        return next((rank for rank in self.ranks if rank.job == self.stalled_by), None)

    def best(self, problem: Problem) -> Rank | None:
        """Return the rank with the best score; of equals, the first one."""
        scored = [(rank.perf, rank) for rank in self.ranks if rank.perf is not None]
        sign = 1 if problem.higher_is_better else -1
        return max(scored, key=lambda item: (sign * item[0], -item[1].number))[1] if scored else None


def make_chain(learnuplets: Iterable[Learnuplet], *, stalled_by: UUID | None) -> Chain:
    """
    Return the chain of one algo.

    Args:
        learnuplets: Its training jobs, oldest first; a rank that was retried has several.
        stalled_by: As its submission says.
    """
    latest = {item.rank: _to_rank(item) for item in learnuplets}
    return Chain(ranks=tuple(latest[number] for number in sorted(latest)), stalled_by=stalled_by)


def _to_rank(item: Learnuplet) -> Rank:
    state = "done" if item.state == JobState.SUCCEEDED else item.state
    return Rank(
        number=item.rank,
        job=item.uuid,
        state=state,
        perf=item.perf,
        model=item.model_end,
        failure=item.failure,
    )


def words_of(failure: Failure | None) -> str:
    """Return a failure in words."""
    if failure is None:
        return "no cause is known"
    return f"{failure.cause} (to blame: {failure.blame}): {failure.message}"


def follow_chain(algo: UUID, *, timeout_s: float | None) -> Chain:
    """
    Show a chain on stderr until it is over: live on a terminal, else each event as a line.

    Raises:
        TimeoutError: it is not over in time.
    """
    orchestrator, details = orchestrator_client(), _Details(algo)

    def look() -> Chain:
        # In this order: what stalled the chain is then among its jobs.
        stalled_by = orchestrator.submission(algo).stalled_by
        return details.added_to(make_chain(orchestrator.learnuplets(algo=algo), stalled_by=stalled_by))

    with _live() if err.is_terminal else _lines() as show:
        return wait_until(look, lambda chain: chain.is_over, show=show, timeout_s=timeout_s)


class _Details:
    """What only the compute API knows of the jobs of an algo; nothing, if it does not answer."""

    def __init__(self, algo: UUID) -> None:
        self._client = compute_client()
        self._algo = algo
        self._jobs: dict[UUID, Job] = {}
        self._asked = False
        self._answers = True

    def added_to(self, chain: Chain) -> Chain:
        """Return the chain with what its jobs do and how long they took."""
        if self._answers:
            try:
                self._update(chain)
            except MorpheoError:
                self._answers = False
        ranks = tuple(self._detailed(rank) for rank in chain.ranks)
        return Chain(ranks=ranks, stalled_by=chain.stalled_by)

    def _update(self, chain: Chain) -> None:
        if not self._asked:
            found = self._client.jobs(kind=JobKind.LEARN, algo=self._algo)
            self._jobs, self._asked = {job.id: job for job in found}, True
        for rank in chain.ranks:
            known = self._jobs.get(rank.job)
            if rank.state == "running" or (rank.is_over and not (known and known.state.is_final)):
                self._jobs[rank.job] = self._client.job(rank.job)

    def _detailed(self, rank: Rank) -> Rank:
        job = self._jobs.get(rank.job)
        if job is None:
            return rank
        doing = describe(job) if rank.state == "running" and job.state is JobState.RUNNING else ""
        seconds = None
        if rank.is_over and job.started_at and job.ended_at:
            seconds = (job.ended_at - job.started_at).total_seconds()
        return Rank(**{**vars(rank), "doing": "" if doing == "running" else doing, "seconds": seconds})


Show = Callable[[Chain], None]


@contextlib.contextmanager
def _live() -> Iterator[Show]:
    with Live(console=err, auto_refresh=False) as live:
        yield lambda chain: live.update(chain_table(chain, max_rows=err.height - _FRAME), refresh=True)


@contextlib.contextmanager
def _lines() -> Iterator[Show]:
    told: set[tuple[UUID, str]] = set()

    def show(chain: Chain) -> None:
        for rank in chain.ranks:
            if rank.state != "waiting" and (rank.job, rank.state) not in told:
                told.add((rank.job, rank.state))
                remark(_line(rank))

    yield show


def _line(rank: Rank) -> str:
    parts = [f"rank {rank.number}: {rank.state}"]
    if rank.perf is not None:
        parts.append(f"perf {rank.perf:.4f}")
    if rank.seconds is not None:
        parts.append(f"{rank.seconds:.1f} s")
    return ", ".join(parts)


def chain_table(chain: Chain, *, max_rows: int) -> Table:
    """Return a table of the ranks; if they are too many, of those around the first that is not over."""
    first = 0
    if len(chain.ranks) > max_rows:
        current = next((at for at, rank in enumerate(chain.ranks) if not rank.is_over), len(chain.ranks))
        first = min(max(0, current - max_rows // 2), len(chain.ranks) - max_rows)
    table = Table("rank", "state", "perf", "seconds", caption=f"{chain.done} of {len(chain.ranks)} done")
    for rank in chain.ranks[first : first + max_rows]:
        colour = _COLOURS.get(rank.state, "white")
        table.add_row(
            str(rank.number),
            f"[{colour}]{escape(rank.doing or rank.state)}[/]",
            "-" if rank.perf is None else f"{rank.perf:.4f}",
            "-" if rank.seconds is None else f"{rank.seconds:.1f}",
        )
    return table
