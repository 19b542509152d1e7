"""
The leaderboard of 1,000 algos with 20 trained ranks each and 100 test files, on SQLite, from the request to its JSON.

Algos whose scores are nearly the same take longest, since more pairs of them have to be compared draw by draw. Printed
are the shortest and the median time: of requests after one more training, which read the scores of that one and compare
it with all others, of those for which nothing has changed, and of making a leaderboard when the service starts, which
reads everything.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the service does

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr
from sqlalchemy import insert

from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.config import Settings
from morpheo.models import JobKind, JobState
from morpheo.resources import Resources
from morpheo.storage import migrate
from morpheo.storage.database import Database
from morpheo.storage.tables import JobRow, ProblemRow, SubmissionRow
from morpheo.testing import RecordingPublisher

ALGOS, RANKS, TEST_FILES, TRAIN_FILES = 1000, 20, 100, 25
TURNS = 9
#: How good algos are differs by this standard deviation; the mean of an equal one's scores does by 0.01.
SKILLS = {"far apart": 0.5, "as usual": 0.1, "close": 0.02, "all equal": 0.0}


class Challenge:
    """A problem with trained chains, written to the database as workers would leave it."""

    def __init__(self, database: Database, skill: float) -> None:
        self._engine = database.engine
        self._random = np.random.default_rng(0)
        self.id = uuid4()
        self._test, self._train = ([str(uuid4()) for _ in range(count)] for count in (TEST_FILES, TRAIN_FILES))
        problem = insert(ProblemRow).values(
            id=self.id, workflow_id=uuid4(), test_data=self._test, batch_size=TRAIN_FILES
        )
        with self._engine.begin() as connection:
            connection.execute(problem.values(parallel_ranks=1, created_at=1.0))
        hardness = self._random.normal(scale=0.3, size=TEST_FILES)
        for number in range(ALGOS):
            algo = uuid4()
            submission = insert(SubmissionRow).values(algo_id=algo, problem_id=self.id, name=f"algo {number}")
            with self._engine.begin() as connection:
                connection.execute(submission.values(created_at=1.0))
            scores = self._random.normal(scale=skill) + hardness + self._random.normal(scale=0.1, size=TEST_FILES)
            self.train(algo, *(scores - 0.1 / (rank + 1) for rank in range(RANKS)))
        self._last, self._scores, self._ranks = algo, scores, RANKS

    def train(self, algo: UUID, *scores: NDArray[np.float64], first: int = 0) -> None:
        """Add trained ranks with these scores of test files."""
        rows = [self._row(algo, rank, item) for rank, item in enumerate(scores, start=first)]
        with self._engine.begin() as connection:
            connection.execute(insert(JobRow), rows)

    def change(self) -> None:
        """Train the best rank of the last algo so far."""
        self.train(self._last, self._scores + self._ranks / 1000, first=self._ranks)
        self._ranks += 1

    def _row(self, algo: UUID, rank: int, scores: NDArray[np.float64]) -> dict[str, object]:
        perf = float(scores.mean())
        train_perf = dict(zip(self._train, self._random.normal(size=TRAIN_FILES).tolist(), strict=True))
        test_perf = dict(zip(self._test, scores.tolist(), strict=True))
        return {
            "id": uuid4(),
            "kind": JobKind.LEARN.value,
            "state": JobState.SUCCEEDED.value,
            "problem_id": self.id,
            "algo_id": algo,
            "spec": {"train_data": self._train, "test_data": self._test, "rank": rank, "problem": str(self.id)},
            "spec_sha256": "0" * 64,
            "scores": {"perf": perf, "train_perf": train_perf, "test_perf": test_perf},
            "planned": True,
            "rank": rank,
            "perf": perf,
            "train_files": TRAIN_FILES,
            "result_id": uuid4(),
            "created_at": 1.0,
        }


def milliseconds(action: Callable[[], object], *, before: Callable[[], object] = lambda: None) -> str:
    """Return how long an action takes, the shortest and the median of some turns."""
    taken = []
    for _ in range(TURNS):
        before()
        began = time.perf_counter()
        action()
        taken.append((time.perf_counter() - began) * 1000)
    return f"{min(taken):.0f} ms (median {statistics.median(taken):.0f})"


def main() -> None:
    """Measure and print."""
    for name, skill in SKILLS.items():
        with tempfile.TemporaryDirectory() as folder:
            resources = Resources(Settings(data_dir=Path(folder), password=SecretStr("p")), RecordingPublisher())
            migrate.upgrade(resources.database)
            measure(name, resources, Challenge(resources.database, skill))
            resources.database.close()


def measure(name: str, resources: Resources, challenge: Challenge) -> None:
    """Measure the leaderboard of a challenge, and print it."""
    settings = resources.settings
    client = create_orchestrator_app(resources).test_client()
    auth = (settings.user, settings.password.get_secret_value())

    def request() -> None:
        answer = client.get(f"/problem/{challenge.id}/leaderboard", auth=auth)
        assert answer.status_code == 200, answer.text

    def forget() -> None:
        vars(resources).pop("orchestrator", None)  # it remembers what it has read

    first = milliseconds(request, before=forget)
    changed = milliseconds(request, before=challenge.change)
    same = milliseconds(request)
    print(
        f"leaderboard, {ALGOS} algos, {name}: {changed} after a training (at most 200 ms wanted), {same} if nothing "
        f"has changed, {first} to make it when the service starts"
    )


if __name__ == "__main__":
    main()
