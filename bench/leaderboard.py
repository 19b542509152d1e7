"""
The leaderboard of 1,000 algos with 20 trained ranks each and 100 test files, on SQLite, from the request to its JSON.

Algos whose scores are nearly the same take longest, since more pairs of them have to be compared draw by draw. Printed
are medians: of requests after something has changed, which compute all of it anew, and of requests after nothing has.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
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


def fill(database: Database, skill: float) -> UUID:
    """Write a problem with its trained chains; return its id."""
    random = np.random.default_rng(0)
    problem, workflow = uuid4(), uuid4()
    test, train = ([str(uuid4()) for _ in range(count)] for count in (TEST_FILES, TRAIN_FILES))
    hardness = random.normal(scale=0.3, size=TEST_FILES)
    made = {"created_at": 1.0, "problem_id": problem}
    with database.engine.begin() as connection:
        connection.execute(
            insert(ProblemRow)
            .values(id=problem, workflow_id=workflow, test_data=test, batch_size=25, created_at=1.0)
            .values(parallel_ranks=1)
        )
        for number in range(ALGOS):
            algo = uuid4()
            connection.execute(insert(SubmissionRow).values(algo_id=algo, name=f"algo {number}", **made))
            ability = random.normal(scale=skill) + hardness + random.normal(scale=0.1, size=TEST_FILES)
            rows = []
            for rank in range(RANKS):
                scores = ability - 0.1 / (rank + 1) + random.normal(scale=0.01)
                train_perf = dict(zip(train, random.normal(size=TRAIN_FILES).tolist(), strict=True))
                test_perf = dict(zip(test, scores.tolist(), strict=True))
                perf = float(scores.mean())
                rows.append(
                    {
                        **made,
                        "id": uuid4(),
                        "kind": JobKind.LEARN.value,
                        "state": JobState.SUCCEEDED.value,
                        "algo_id": algo,
                        "spec": {"train_data": train, "test_data": test, "rank": rank, "problem": str(problem)},
                        "spec_sha256": "0" * 64,
                        "scores": {"perf": perf, "train_perf": train_perf, "test_perf": test_perf},
                        "planned": True,
                        "rank": rank,
                        "perf": perf,
                        "train_files": TRAIN_FILES,
                        "result_id": uuid4(),
                    }
                )
            connection.execute(insert(JobRow), rows)
    return problem


def milliseconds(action: Callable[[], object]) -> float:
    """Return how long an action takes, the median of some turns."""
    taken = []
    for _ in range(TURNS):
        began = time.perf_counter()
        action()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def main() -> None:
    """Measure and print."""
    for name, skill in SKILLS.items():
        with tempfile.TemporaryDirectory() as folder:
            resources = Resources(Settings(data_dir=Path(folder)), RecordingPublisher())
            migrate.upgrade(resources.database)
            problem = fill(resources.database, skill)
            measure(name, resources, problem)
            resources.database.close()


def measure(name: str, resources: Resources, problem_id: UUID) -> None:
    """Measure the leaderboard of a problem, and print it."""
    settings = resources.settings
    client = create_orchestrator_app(resources).test_client()
    auth = (settings.user, settings.password.get_secret_value())

    def request() -> None:
        answer = client.get(f"/problem/{problem_id}/leaderboard", auth=auth)
        assert answer.status_code == 200, answer.text

    def new_request() -> None:
        vars(resources).pop("orchestrator", None)  # it remembers the leaderboard until something changes
        request()

    print(
        f"leaderboard, {ALGOS} algos, {name}: {milliseconds(new_request):.0f} ms after a change (at most 200 wanted), "
        f"{milliseconds(request):.0f} ms after none"
    )


if __name__ == "__main__":
    main()
