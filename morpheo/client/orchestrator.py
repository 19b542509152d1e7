"""Client of the orchestrator API."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from uuid import UUID

from morpheo.challenges import AddedData, Dataset, Problem, Submission
from morpheo.client.documents import Learnuplet, Preduplet, to_added_data, to_dataset, to_problem, to_submission
from morpheo.client.http import HttpClient
from morpheo.client.leaderboard import Leaderboard
from morpheo.disclosure import DEFAULT, Disclosure
from morpheo.errors import ApiError
from morpheo.models import JobKind, Scores

#: What the jobs of each kind are called in routes.
_NAMES = {JobKind.LEARN: "learnuplet", JobKind.PREDICT: "preduplet"}
_REPORTS = {JobKind.LEARN: "learndone", JobKind.PREDICT: "preddone"}


class OrchestratorClient:
    """
    Registers problems, algos and data, follows the jobs that come of them, and reports as a worker does.

    Every method raises `ApiError` if the service refuses, and `ApiUnavailable` if it cannot be reached.

    Args:
        url: Address of the orchestrator API.
        user: For HTTP Basic.
        password: For HTTP Basic.
        token: In place of user and password.
    """

    def __init__(self, url: str, *, user: str = "", password: str = "", token: str = "") -> None:
        self._http = HttpClient(url, auth=token or (user, password))

    def add_problem(
        self,
        problem_id: UUID,
        *,
        workflow: UUID,
        test_data: Sequence[UUID],
        batch_size: int,
        higher_is_better: bool = True,
        parallel_ranks: int = 1,
        disclosure: Disclosure = DEFAULT,
    ) -> Problem:
        """
        Register a challenge; the same one twice is one.

        Args:
            problem_id: The id it gets.
            workflow: Storage id of the archive of its image.
            test_data: Storage ids of the data that scores are computed on, which is never trained on.
            batch_size: Files in a mini-batch.
            higher_is_better: Whether a higher ``perf`` is a better one.
            parallel_ranks: Ranks of one algo that may run at once.
            disclosure: What submitters see of it.

        Raises:
            ApiError: ``status`` 409 if another problem has that id.
        """
        body = {
            "uuid": str(problem_id),
            "workflow": str(workflow),
            "test_dataset": _texts(test_data),
            "size_train_dataset": batch_size,
            "higher_is_better": higher_is_better,
            "parallel_ranks": parallel_ranks,
            **dataclasses.asdict(disclosure),
        }
        return to_problem(self._post("/problem", body)["new_problem"])

    def change_problem(self, problem_id: UUID, **changes: Any) -> Problem:
        """
        Change what submitters see of a problem, also of what became of it before.

        Args:
            problem_id: The problem.
            changes: Fields of its `Disclosure`; the others stay as they are.

        Raises:
            ApiError: ``status`` 404 if there is none, 403 if somebody else is its custodian.
        """
        return to_problem(self._http.request("PATCH", f"/problem/{problem_id}", json=changes).json())

    def add_algo(self, algo: UUID, *, name: str, problem: UUID) -> tuple[Submission, int]:
        """
        Let an algo that is in storage take part in a challenge; the same one twice is one.

        Returns:
            The submission, and how many training jobs follow from it.

        Raises:
            ApiError: ``status`` 409 if it takes part in another challenge, 429 if that were more algos in 24 hours than
                the custodian allows.
        """
        answer = self._post("/algo", {"uuid": str(algo), "name": name, "problem": str(problem)})
        return to_submission(answer["new_algo"]), answer["new_learnuplets"]

    def add_data(self, data: Sequence[UUID], *, problems: Sequence[UUID]) -> AddedData:
        """
        Add data that is in storage to challenges; what is there already is not added again.

        Args:
            data: Files, in the order in which batches are cut from them.
            problems: Challenges that they are for.
        """
        return to_added_data(self._post("/data", {"uuid": _texts(data), "problems": _texts(problems)}))

    def predict(self, data: UUID, *, problem: UUID, model: UUID | None = None) -> Preduplet:
        """Order the prediction of one data file, with the best model of a problem or with another one."""
        body = {"data": str(data), "problem": str(problem), **({"model": str(model)} if model else {})}
        return Preduplet.from_json(self._post("/prediction", body))

    def problems(self) -> list[Problem]:
        """Return all problems, oldest first."""
        return [to_problem(item) for item in self._list("problem")]

    def problem(self, problem_id: UUID) -> Problem:
        """
        Return a problem.

        Raises:
            ApiError: ``status`` 404 if there is none.
        """
        return to_problem(self._get("problem", problem_id))

    def submissions(self, problem: UUID | None = None) -> list[Submission]:
        """Return the submissions of a problem, or all, oldest first."""
        return [to_submission(item) for item in self._list("algo", problem=problem)]

    def submission(self, algo: UUID) -> Submission:
        """
        Return the submission of an algo.

        Raises:
            ApiError: ``status`` 404 if there is none.
        """
        return to_submission(self._get("algo", algo))

    def datasets(self) -> list[Dataset]:
        """Return all registered data, oldest first."""
        return [to_dataset(item) for item in self._list("data")]

    def learnuplets(self, *, problem: UUID | None = None, algo: UUID | None = None) -> list[Learnuplet]:
        """Return training jobs, oldest first and in the order of ranks."""
        return [Learnuplet.from_json(item) for item in self._list("learnuplet", problem=problem, algo=algo)]

    def learnuplet(self, job_id: UUID) -> Learnuplet:
        """
        Return a training job.

        Raises:
            ApiError: ``status`` 404 if there is none.
        """
        return Learnuplet.from_json(self._get("learnuplet", job_id))

    def preduplets(self, *, problem: UUID | None = None) -> list[Preduplet]:
        """Return prediction jobs, oldest first."""
        return [Preduplet.from_json(item) for item in self._list("preduplet", problem=problem)]

    def preduplet(self, job_id: UUID) -> Preduplet:
        """
        Return a prediction job.

        Raises:
            ApiError: ``status`` 404 if there is none.
        """
        return Preduplet.from_json(self._get("preduplet", job_id))

    def leaderboard(self, problem_id: UUID) -> Leaderboard:
        """
        Return who is how good in a challenge, and how sure that is.

        Raises:
            ApiError: ``status`` 404 if there is no such problem.
        """
        return Leaderboard.from_json(self._http.request("GET", f"/problem/{problem_id}/leaderboard").json())

    def leaderboard_csv(self, problem_id: UUID) -> str:
        """
        Return a leaderboard as CSV, with a line of headings.

        Raises:
            ApiError: ``status`` 404 if there is no such problem.
        """
        return self._http.request("GET", f"/problem/{problem_id}/leaderboard", params={"format": "csv"}).text

    def retry(self, job_id: UUID) -> UUID:
        """
        Order a training or prediction job again that failed or was cancelled; a chain goes on from there.

        Returns:
            The id of the new job.

        Raises:
            ApiError: ``status`` 404 if there is no such job, 409 if it has not failed or its rank has another job.
        """
        retry = functools.partial(self._http.request, "POST")
        try:
            answer = retry(f"/learnuplet/{job_id}/retry")
        except ApiError as exc:
            if exc.status != HTTPStatus.NOT_FOUND:
                raise
            answer = retry(f"/preduplet/{job_id}/retry")
        return UUID(answer.json()["uuid"])

    def start(self, kind: JobKind, job_id: UUID, worker: str) -> None:
        """
        Report that a worker has a job.

        Args:
            kind: Of the job.
            job_id: Which job.
            worker: What the worker is called.

        Raises:
            ApiError: ``status`` 400 if there is no such job, or it is not to be done (any more).
        """
        self._post(f"/worker/{_NAMES[kind]}/{job_id}", {"worker": worker})

    def report_learn(self, job_id: UUID, scores: Scores | None) -> None:
        """
        Report how a training job ended; its model must be in storage.

        Args:
            job_id: Which job.
            scores: None if it failed.

        Raises:
            ApiError: ``status`` 400 if there is no such job, or it is over.
        """
        body: dict[str, Any] = {"status": "failed"}
        if scores is not None:
            body = {
                "status": "done",
                "perf": scores.perf,
                "train_perf": scores.train_perf,
                "test_perf": scores.test_perf,
            }
        self._post(f"/{_REPORTS[JobKind.LEARN]}/{job_id}", body)

    def report_prediction(self, job_id: UUID, prediction: UUID | None) -> None:
        """
        Report how a prediction job ended; the prediction must be in storage.

        Args:
            job_id: Which job.
            prediction: Its storage id; None if the job failed.

        Raises:
            ApiError: ``status`` 400 if there is no such job, or it is over.
        """
        body = {"status": "failed"}
        if prediction is not None:
            body = {"status": "done", "prediction_storage_uuid": str(prediction)}
        self._post(f"/{_REPORTS[JobKind.PREDICT]}/{job_id}", body)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._http.request("POST", path, json=body).json()
        return answer

    def _get(self, collection: str, document_id: UUID) -> dict[str, Any]:
        answer: dict[str, Any] = self._http.request("GET", f"/{collection}/{document_id}").json()
        return answer

    def _list(self, collection: str, **filters: UUID | None) -> list[dict[str, Any]]:
        params = {name: str(value) for name, value in filters.items() if value is not None}
        answer: list[dict[str, Any]] = self._http.request("GET", f"/{collection}", params=params).json()[
            f"{collection}s"
        ]
        return answer


def _texts(ids: Sequence[UUID]) -> list[str]:
    return [str(item) for item in ids]
