"""What the examples of the OpenAPI documents are made of: a challenge with one algo, and what became of it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

PROBLEM = "6f1e8a7c-3d52-4f0b-9c61-7a2f5e0d9b01"
WORKFLOW = "6f1e8a7c-3d52-4f0b-9c61-7a2f5e0d9b02"
ALGO = "6f1e8a7c-3d52-4f0b-9c61-7a2f5e0d9b03"
DATA = "6f1e8a7c-3d52-4f0b-9c61-7a2f5e0d9b04"
TEST_DATA = "6f1e8a7c-3d52-4f0b-9c61-7a2f5e0d9b05"
MODEL = "6f1e8a7c-3d52-4f0b-9c61-7a2f5e0d9b06"
PREDICTION = "6f1e8a7c-3d52-4f0b-9c61-7a2f5e0d9b07"
LEARN_JOB = "6f1e8a7c-3d52-4f0b-9c61-7a2f5e0d9b08"
PREDICT_JOB = "6f1e8a7c-3d52-4f0b-9c61-7a2f5e0d9b09"
REQUEST_ID = "b4d6a1c09f8e4d5ab7c2e3f405162738"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0bfe0b1c3b6f0a4d1e2c3b"
TIMESTAMP = 1_790_000_000

#: What the services say of errors, by status: one example of each.
MESSAGES: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "Invalid learn-uplet: algo field is required",
    HTTPStatus.UNAUTHORIZED: "send the user and password of the storage API with HTTP Basic authentication",
    HTTPStatus.FORBIDDEN: "a submitter may not do this",
    HTTPStatus.NOT_FOUND: f"Error retrieving algo {ALGO}: algo {ALGO} not found",
    HTTPStatus.CONFLICT: f"algo {ALGO} already exists",
    HTTPStatus.GONE: f"algo {ALGO} is in quarantine: its blob is not in the store",
    HTTPStatus.PRECONDITION_FAILED: "the blob has another ETag than If-Match names",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "the body is larger than 1048576 bytes",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body must not be compressed; send it without Content-Encoding.",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "the range lies outside the blob's 4096 bytes",
    HTTPStatus.TOO_MANY_REQUESTS: "too many requests; wait as Retry-After says",
    HTTPStatus.INTERNAL_SERVER_ERROR: f"an unexpected error; tell the operator this number: {REQUEST_ID}",
    HTTPStatus.SERVICE_UNAVAILABLE: "the database does not answer; try again",
}

TIME = "2026-09-21T13:33:20+00:00"

LEARNUPLET: dict[str, Any] = {
    "uuid": LEARN_JOB,
    "problem": PROBLEM,
    "workflow": WORKFLOW,
    "algo": ALGO,
    "train_data": [DATA],
    "test_data": [TEST_DATA],
    "model_start": None,
    "model_end": MODEL,
    "rank": 0,
    "status": "todo",
}
PREDUPLET: dict[str, Any] = {
    "uuid": PREDICT_JOB,
    "problem": PROBLEM,
    "workflow": WORKFLOW,
    "model": MODEL,
    "data": DATA,
    "status": "todo",
}
SCORES = {"perf": 0.93, "train_perf": {DATA: 0.97}, "test_perf": {TEST_DATA: 0.93}}
JOB_SUMMARY: dict[str, Any] = {
    "id": LEARN_JOB,
    "kind": "learn",
    "state": "succeeded",
    "status": "done",
    "spec": {"id": LEARN_JOB, **{name: LEARNUPLET[name] for name in LEARNUPLET if name not in ("uuid", "status")}},
    "tags": [],
    "queue": "learn",
    "algo": ALGO,
    "cancel_requested": False,
    "attempt": 1,
    "strikes": 0,
    "worker": "learn@node-1",
    "created_at": TIME,
    "started_at": TIME,
    "ended_at": TIME,
    "failure": None,
    "scores": SCORES,
}
JOB: dict[str, Any] = {
    **JOB_SUMMARY,
    "attempts": [
        {
            "number": 1,
            "worker": "learn@node-1",
            "outcome": "succeeded",
            "started_at": TIME,
            "ended_at": TIME,
            "message": "",
            "steps": [
                {
                    "name": "train",
                    "started_at": TIME,
                    "seconds": 4.2,
                    "exit_code": 0,
                    "oom_killed": False,
                    "peak_memory_bytes": 73400320,
                }
            ],
        }
    ],
}
CANCELLED = "the job had ended already, it is succeeded; nothing was changed"
RETRIED_JOB: dict[str, Any] = {
    **JOB_SUMMARY,
    "state": "queued",
    "status": "todo",
    "attempt": 0,
    "worker": None,
    "started_at": None,
    "ended_at": None,
    "scores": None,
    "attempts": [],
}
PROBLEM_DOCUMENT: dict[str, Any] = {
    "uuid": PROBLEM,
    "name": "iris",
    "workflow": WORKFLOW,
    "test_dataset": [TEST_DATA],
    "size_train_dataset": 1,
    "timestamp_upload": TIMESTAMP,
    "higher_is_better": True,
    "parallel_ranks": 1,
    "logs": "cause",
    "model_download": False,
    "score_digits": 6,
    "submissions_per_day": 10,
    "time_step_s": 60,
}
ALGO_DOCUMENT: dict[str, Any] = {
    "uuid": ALGO,
    "name": "logistic",
    "problem": PROBLEM,
    "timestamp_upload": TIMESTAMP,
    "stalled": False,
    "stalled_by": None,
}
DATA_DOCUMENT: dict[str, Any] = {"uuid": DATA, "problems": [PROBLEM], "timestamp_upload": TIMESTAMP}
LEARNUPLET_DOCUMENT: dict[str, Any] = {
    **LEARNUPLET,
    **SCORES,
    "worker": "learn@node-1",
    "status": "done",
    "state": "succeeded",
    "timestamp_creation": TIMESTAMP,
    "timestamp_done": TIMESTAMP + 60,
    "failure": None,
}
PREDUPLET_DOCUMENT: dict[str, Any] = {
    **PREDUPLET,
    "worker": None,
    "state": "queued",
    "prediction_storage_uuid": None,
    "timestamp_request": TIMESTAMP,
    "timestamp_done": None,
    "failure": None,
}
LEADERBOARD: dict[str, Any] = {
    "problem": PROBLEM,
    "higher_is_better": True,
    "test_files": 1,
    "entries": [
        {
            "place": 1,
            "range": [1, 1],
            "algo": ALGO,
            "name": "logistic",
            "perf": 0.93,
            "rank": 0,
            "trainings": 1,
            "mean": 0.93,
            "interval": None,
            "spread": {"files": 1, "sd": None, "min": 0.93, "median": 0.93, "max": 0.93},
            "curve": {"ranks": [0], "train_files": [1], "perf": [0.93]},
        }
    ],
}
LEADERBOARD_TABLE = (
    "place,first_place,last_place,algo,name,perf,rank,trainings,mean,interval_low,interval_high,files,sd,min,median,max\r\n"
    f"1,1,1,{ALGO},logistic,0.93,0,1,0.93,,,1,,0.93,0.93,0.93\r\n"
)

PROBLEM_POST = {"uuid": PROBLEM, "workflow": WORKFLOW, "test_dataset": [TEST_DATA], "size_train_dataset": 1}
PROBLEM_PATCH = {"logs": "none", "score_digits": 3}
ALGO_POST = {"uuid": ALGO, "name": "logistic", "problem": PROBLEM}
DATA_POST = {"uuid": [DATA], "problems": [PROBLEM]}
PREDICTION_POST = {"data": DATA, "problem": PROBLEM}
