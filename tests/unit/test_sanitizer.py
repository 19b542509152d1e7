"""Which predictions are written anew, what its ends mean, and what is taken back; the program runs in tests/hostile."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from morpheo.models import Blame, Cause, JobFailed
from morpheo.runtime.contract import Folder, StepResult
from morpheo.runtime.workspace import Workspace
from morpheo.sanitizer import PROGRAM, check_sanitized, find_suspects, replace_suspects
from morpheo.sanitizer.rewrite_hdf5 import NO_H5PY, REFUSED, SIGNATURE, TOO_LARGE, is_hdf5


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (SIGNATURE, True),
        (SIGNATURE + b"x" * 5000, True),
        (bytes(512) + SIGNATURE, True),
        (b"x" * 2048 + SIGNATURE, True),
        (b"", False),
        (b"0.5", False),
        (b"x" + SIGNATURE, False),
        (bytes(1536) + SIGNATURE, False),  # the library looks at 0, 512, 1024, 2048, ...
        (SIGNATURE[:7], False),
    ],
)
def test_hdf5_is_known_where_the_library_would_find_it(tmp_path: Path, content: bytes, expected: bool) -> None:
    (tmp_path / "x").write_bytes(content)
    assert is_hdf5(tmp_path / "x") is expected


@pytest.mark.parametrize(
    ("result", "cause", "blame"),
    [
        ({"exit_code": REFUSED}, Cause.BAD_OUTPUT, Blame.SUBMITTER),
        ({"exit_code": 139}, Cause.BAD_OUTPUT, Blame.SUBMITTER),
        ({"exit_code": TOO_LARGE}, Cause.OUTPUT_LIMIT, Blame.SUBMITTER),
        ({"exit_code": 137, "oom_killed": True}, Cause.OUTPUT_LIMIT, Blame.SUBMITTER),
        ({"exit_code": 137, "timed_out": True}, Cause.OUTPUT_LIMIT, Blame.SUBMITTER),
        ({"exit_code": 1, "over_quota": True}, Cause.OUTPUT_LIMIT, Blame.SUBMITTER),
        ({"exit_code": NO_H5PY}, Cause.RUNTIME_UNAVAILABLE, Blame.INFRASTRUCTURE),
        ({"exit_code": None, "start_error": "no python3"}, Cause.RUNTIME_UNAVAILABLE, Blame.INFRASTRUCTURE),
    ],
)
def test_each_end_of_the_program_has_its_cause(result: dict[str, int], cause: Cause, blame: Blame) -> None:
    with pytest.raises(JobFailed) as ended:
        check_sanitized(StepResult(seconds=1, log=b"because", **result), "image:1")  # type: ignore[arg-type]
    failure = ended.value.failure
    assert (failure.cause, failure.blame) == (cause, blame)
    assert ("because" if blame is Blame.SUBMITTER else "image:1") in failure.message


def test_a_good_end_is_none() -> None:
    check_sanitized(StepResult(seconds=1, exit_code=0), "image:1")


def test_what_was_written_anew_takes_the_place_of_the_suspects_and_of_nothing_else(tmp_path: Path) -> None:
    with Workspace(tmp_path, job_id=uuid4(), attempt=1, owner=10001) as workspace:
        assert find_suspects(workspace) == {}
        (workspace.harvest(Folder.TRAIN_PRED) / "text").write_bytes(b"1")
        assert find_suspects(workspace) == {}
        (workspace.harvest(Folder.TEST_PRED) / "bad").write_bytes(SIGNATURE + b"evil")
        suspects = find_suspects(workspace)
        assert suspects == {Folder.TRAIN_PRED: set(), Folder.TEST_PRED: {"bad"}}
        (workspace[Folder.TEST_CLEAN] / "bad").write_bytes(b"clean")
        replace_suspects(workspace, suspects, max_bytes=10)
        assert (workspace.harvest(Folder.TEST_PRED) / "bad").read_bytes() == b"clean"
        assert (workspace.harvest(Folder.TRAIN_PRED) / "text").read_bytes() == b"1"


@pytest.mark.parametrize("made", ["nothing", "link", "too much", "more"])
def test_what_a_program_that_was_taken_over_leaves_is_refused(tmp_path: Path, made: str) -> None:
    with Workspace(tmp_path, job_id=uuid4(), attempt=1, owner=10001) as workspace:
        (workspace.harvest(Folder.TEST_PRED) / "bad").write_bytes(SIGNATURE)
        clean = workspace[Folder.TEST_CLEAN] / "bad"
        if made == "link":
            clean.symlink_to("/etc/passwd")
        elif made == "too much":
            clean.write_bytes(bytes(11))
        elif made == "more":
            clean.write_bytes(b"1")
            clean.with_name("other").write_bytes(b"1")
        with pytest.raises(JobFailed) as ended:
            replace_suspects(workspace, find_suspects(workspace), max_bytes=10)
        assert ended.value.failure.blame is Blame.SUBMITTER
        assert "bad" not in {path.name for path in workspace.harvest(Folder.TEST_PRED).iterdir() if path.is_symlink()}


def test_the_program_fits_into_an_argument() -> None:
    assert len(PROGRAM.encode()) < 100 << 10  # Linux takes 128 KiB
