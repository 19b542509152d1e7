"""
The domain of the orchestrator: problems as challenges, what is submitted to them, and chains of mini-batches.

Only the domain is imported here. A chain is all training jobs of one algo, in the order of their ranks; each
rank trains on one batch of data, from the best model that the chain has when its turn comes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from morpheo.access import Principal, Role
from morpheo.disclosure import DEFAULT, Disclosure

#: How the names of workers begin, in leases, that are not ours.
OUTSIDE = "outside:"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A challenge: what is learned, what hides the targets, and what scores are measured on."""

    id: UUID
    #: Storage id of the archive of the problem image.
    workflow: UUID
    #: Data that scores are computed on; never trained on.
    test_data: tuple[UUID, ...]
    #: Files in a mini-batch, the "size_train_dataset" of 2017; the last one of an upload may have fewer.
    batch_size: int
    #: Whether a higher ``perf`` is a better one.
    higher_is_better: bool = True
    #: Ranks of one algo that may run at once.
    parallel_ranks: int = 1
    #: What those see of it who are not its custodians.
    disclosure: Disclosure = DEFAULT
    created_at: datetime
    #: Name of the user whom it belongs to; empty is nobody.
    owner: str = ""
    #: That of its archive, which may be changed.
    name: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """An algo that takes part in a challenge."""

    #: Storage id of the algo.
    algo: UUID
    problem: UUID
    name: str
    #: The job that ended without a model, while its chain waits for a retry of that rank, or for new data.
    stalled_by: UUID | None = None
    created_at: datetime
    #: Name of the user whom it belongs to; empty is nobody.
    owner: str = ""

    @property
    def stalled(self) -> bool:
        """Whether its chain waits for a person, or for new data."""
        return self.stalled_by is not None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data file that was registered for challenges."""

    #: Storage id of the file.
    id: UUID
    problems: tuple[UUID, ...]
    created_at: datetime
    #: Name of the user whom it belongs to; empty is nobody.
    owner: str = ""


@dataclass(frozen=True, kw_only=True)
class AddedData:
    """Data that was added to challenges, and what follows from it."""

    datasets: tuple[Dataset, ...]
    #: How many training jobs follow.
    trainings: int
    #: By problem, the files that are never trained on there, since they have the content of a test file.
    held_out: Mapping[UUID, tuple[UUID, ...]]


def is_insider(principal: Principal, problem: Problem | None) -> bool:
    """
    Return whether somebody is on the custodian's side of a problem, and so sees all that is known of it.

    Args:
        principal: Who they are.
        problem: None is one that nobody registered, or a job that was not planned for one: admins alone are insiders.
    """
    if principal.has(Role.ADMIN):
        return True
    return problem is not None and problem.owner == principal.name != "" and principal.has(Role.CUSTODIAN)


def batches(data: Sequence[UUID], *, held_out: Collection[UUID], size: int) -> list[tuple[UUID, ...]]:
    """
    Cut data into mini-batches, in the order given.

    Args:
        data: Files in the order in which they were registered.
        held_out: Files that are never trained on.
        size: Files in a batch; the last one may have fewer.

    Returns:
        The batches; none if there is nothing to train on.
    """
    pool = [item for item in data if item not in held_out]
    return [tuple(pool[start : start + size]) for start in range(0, len(pool), size)]
