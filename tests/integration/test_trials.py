"""A trial on a fake engine: three jobs, one line for each thing that can fail, and nothing left."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from morpheo.config import Settings
from morpheo.errors import BadArchive, InvalidInput, RuntimeUnavailable
from morpheo.models import Cause
from morpheo.packing import pack_folder
from morpheo.runtime.contract import BuildSpec, Interrupt, Owner
from morpheo.testing import FakeContainer, FakeRuntime
from morpheo.trial.findings import Check, Report, State
from morpheo.trial.home import PROBLEMS_KEPT, Home, owner_name
from morpheo.trial.run import Inputs, run_trial
from tests.support.images import context
from tests.support.trials import algo_folder, problem_folder, write_folder
from tests.support.workbench import Program, algo, flag, problem

MIB = 1 << 20


def dockerfile(program: str) -> str:
    """Return the Dockerfile of a fake image."""
    return f'FROM morpheo/base:1\nENTRYPOINT ["{program}"]\n'


class Desk:
    """A person's machine: an engine that has the base image, a problem with a sample, and an algo."""

    def __init__(self, folder: Path) -> None:
        self.programs: dict[str, Program] = {"problem": problem, "algo": algo}
        self.engine = FakeRuntime(self.programs)
        owner = Owner(job_id=uuid4(), attempt=1)
        self.engine.build(
            context({"Dockerfile": "FROM scratch\n"}),
            BuildSpec(owner=owner, tag="morpheo/base:1", timeout_s=1),
            interrupt=Interrupt(),
        )
        self.engine.history.clear()
        self.home = folder / "try"
        self.settings = Settings(data_dir=folder / "real", retry_delay_s=0)
        self.inputs = Inputs(
            algo=algo_folder(folder / "algo", dockerfile=dockerfile("algo")),
            problem=problem_folder(folder / "problem", dockerfile=dockerfile("problem")),
        )
        self.said: list[str] = []

    def try_it(self, *, keep_algo: bool = False, **inputs: Any) -> Report:
        """Run a trial; afterwards there is nothing of it but the list of images."""
        try:
            return run_trial(
                replace(self.inputs, **inputs),
                self.settings,
                home=Home(self.home),
                on_step=self.said.append,
                keep_algo=keep_algo,
                engine=self.engine,
            )
        finally:
            assert {path.name for path in self.home.iterdir()} <= {"lock", "images"}
            assert not self.settings.data_dir.exists()

    @property
    def images(self) -> list[str]:
        """What kinds of images of trials the engine has."""
        tags = [tag for tag in set(self.engine.history) if "/unchecked:" in tag]
        assert all(self.engine.find_image(tag) is None for tag in tags)
        kept = (self.home / "images").read_text().split()
        assert all(self.engine.find_image(tag) for tag in kept)
        return [tag.removeprefix(f"{owner_name()}/").partition(":")[0] for tag in kept]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def check(report: Report, name: str) -> Check:
    return next(found for found in report.checks if name in found.name)


def states(report: Report) -> dict[str, State]:
    return {found.name: found.state for found in report.checks}


def test_a_good_algo_passes_every_check(desk: Desk) -> None:
    report = desk.try_it()
    assert report.passed
    assert {name: state for name, state in states(report).items() if state is not State.PASSED} == {}
    assert len(report.checks) == 13
    assert report.failures == ()
    assert report.score == 0.5  # it has seen one of the two test items
    assert "0.5, on the sample only" in check(report, "scores").detail
    assert check(report, "every train item").detail == "2 of 2"
    assert "1 file" in check(report, "leaves a model").detail
    steps = [name.rpartition("-")[2] for name in desk.engine.history if "unchecked" not in name]
    assert steps == ["detarget", "train", "perf", "train", "perf", "predict"]
    assert desk.said[:4] == [
        "building the problem's image", "building the algo's image", "hiding the targets of the test items", "training",
    ]  # fmt: skip


def test_the_problems_image_stays_and_is_not_built_again(desk: Desk) -> None:
    assert check(desk.try_it(), "problem image").detail == ""
    assert desk.images == ["problem"]
    report = desk.try_it()
    assert check(report, "problem image").detail == "built before"
    assert check(report, "algo image").detail == ""
    assert desk.images == ["problem"]


def test_no_more_than_a_few_problem_images_stay(desk: Desk, tmp_path: Path) -> None:
    for number in range(PROBLEMS_KEPT + 2):
        folder = problem_folder(tmp_path / str(number), dockerfile=f"# {number}\n{dockerfile('problem')}")
        assert desk.try_it(problem=folder).passed
    assert desk.images == ["problem"] * PROBLEMS_KEPT
    assert check(desk.try_it(problem=tmp_path / str(PROBLEMS_KEPT + 1)), "problem image").detail == "built before"
    assert check(desk.try_it(problem=tmp_path / "0"), "problem image").detail == ""


def test_an_algo_that_is_kept_is_not_built_again_until_the_next_trial(desk: Desk) -> None:
    desk.try_it(keep_algo=True)
    assert sorted(desk.images) == ["algo", "problem"]
    assert check(desk.try_it(), "algo image").detail == "built before"
    assert desk.images == ["problem"]


def test_archives_are_taken_as_they_are(desk: Desk, tmp_path: Path) -> None:
    for name in ("algo", "problem"):
        with (tmp_path / f"{name}.tar.gz").open("wb") as target:
            pack_folder(getattr(desk.inputs, name), target)
    assert desk.try_it(algo=tmp_path / "algo.tar.gz", problem=tmp_path / "problem.tar.gz").passed


def replaced(desk: Desk, change: Callable[[FakeContainer], int]) -> Report:
    """Try another program."""
    desk.programs["algo"] = change
    return desk.try_it()


def test_missing_predictions_are_listed(desk: Desk) -> None:
    def forgets_all(container: FakeContainer) -> int:
        container.write("/data/model/weights", b"1")
        container.print("done nothing")
        return 0

    report = replaced(desk, forgets_all)
    assert not report.passed
    for part, names in (("train", ("one", "two")), ("test", ("three", "four"))):
        found = check(report, f"every {part} item")
        assert found.state is State.FAILED
        assert all(f"({name})" in found.detail for name in names)
        assert f"write /data/{part}/pred/<data id> for each file" in found.detail
    assert check(report, "leaves a model").state is State.PASSED
    assert check(report, "goes on").state is State.NOT_REACHED
    assert [(failure.job, failure.cause, failure.log) for failure in report.failures] == [
        ("train", Cause.MISSING_OUTPUT, "done nothing\n")
    ]


def test_wrong_names_are_shown_beside_the_right_ones(desk: Desk) -> None:
    def misnames(container: FakeContainer) -> int:
        algo(container)
        for path in sorted(container.path("/data/test/pred").iterdir()):
            path.rename(path.with_name(f"pred_test_{path.name}"))
        return 0

    report = replaced(desk, misnames)
    assert check(report, "every train item").state is State.PASSED
    found = check(report, "every test item")
    assert found.state is State.FAILED
    assert found.detail.count("found pred_test_") == 2
    assert found.detail.count(", expected ") == 2
    assert report.failures[0].cause is Cause.BAD_OUTPUT


def test_an_empty_model_folder_is_named(desk: Desk) -> None:
    def leaves_nothing(container: FakeContainer) -> int:
        algo(container)
        container.path("/data/model/model_trained.json").unlink()
        return 0

    report = replaced(desk, leaves_nothing)
    assert check(report, "every test item").state is State.PASSED
    assert check(report, "leaves a model").state is State.FAILED
    assert "/data/model is empty after train" in check(report, "leaves a model").detail


def test_a_link_as_a_model_is_named(desk: Desk) -> None:
    def leaves_a_link(container: FakeContainer) -> int:
        algo(container)
        container.path("/data/model/link").symlink_to("/etc/passwd")
        return 0

    found = check(replaced(desk, leaves_a_link), "leaves a model")
    assert found.state is State.FAILED
    assert "'link' is a link" in found.detail


def test_a_model_that_does_not_reload_fails_where_it_is_reloaded(desk: Desk) -> None:
    def cannot_reload(container: FakeContainer) -> int:
        if any(container.path("/data/model").iterdir()):
            raise FileNotFoundError("/data/model/weights.h5")
        return algo(container)

    report = replaced(desk, cannot_reload)
    assert not report.passed
    assert check(report, "train runs").state is State.PASSED
    for name in ("goes on", "reloads"):
        assert check(report, name).state is State.FAILED
        assert "exit code 1" in check(report, name).detail
    assert [failure.job for failure in report.failures] == ["train again", "predict"]
    assert "FileNotFoundError: /data/model/weights.h5" in report.failures[1].message


def test_predict_that_writes_nothing_is_named(desk: Desk) -> None:
    def predicts_nothing(container: FakeContainer) -> int:
        return algo(container) if flag(container, "-T") == "train" else 0

    found = check(replaced(desk, predicts_nothing), "reloads")
    assert found.state is State.FAILED
    assert "(four)" in found.detail


def test_a_model_that_does_not_hold_what_predict_needs_is_a_warning(desk: Desk) -> None:
    def forgets(container: FakeContainer) -> int:
        if flag(container, "-T") == "train":
            return algo(container)
        for path in container.path("/data/test").iterdir():
            if path.is_file():
                container.write(f"/data/test/pred/{path.name}", b"0")
        return 0

    report = replaced(desk, forgets)
    assert report.passed
    assert check(report, "reloads").state is State.WARNING
    assert "another prediction of four than train had given" in check(report, "reloads").detail


def test_an_exit_code_is_quoted_with_the_end_of_the_log(desk: Desk) -> None:
    def breaks(container: FakeContainer) -> int:
        container.print("no such column: target")
        return 7

    report = replaced(desk, breaks)
    assert "train ended with exit code 7" in check(report, "train runs").detail
    assert "no such column" not in check(report, "train runs").detail
    assert "no such column: target" in report.failures[0].message
    assert {found.state for found in report.checks[4:10]} == {State.NOT_REACHED}


def test_a_job_that_needed_the_network_is_named(desk: Desk) -> None:
    def downloads(container: FakeContainer) -> int:
        container.print("socket.gaierror: [Errno -3] Temporary failure in name resolution")
        return 1

    found = check(replaced(desk, downloads), "network")
    assert found.state is State.FAILED
    assert "train tried to use it" in found.detail
    assert "there is no network when it runs; install it in the Dockerfile" in found.detail


def test_a_program_that_goes_on_without_the_network_is_warned(desk: Desk) -> None:
    def looks_for_updates(container: FakeContainer) -> int:
        container.print("no update: [Errno 101] Network is unreachable")
        return algo(container)

    report = replaced(desk, looks_for_updates)
    assert report.passed
    assert check(report, "network").state is State.WARNING


def test_time_near_the_limit_is_a_warning_and_over_it_a_failure(desk: Desk) -> None:
    def hangs(container: FakeContainer) -> int:
        container.sleep(600)
        return algo(container)

    def predicts_slowly(container: FakeContainer) -> int:
        if "predict" in container.args:
            container.sleep(8.5)
        return algo(container)

    desk.settings = desk.settings.model_copy(update={"learn_timeout_s": 3.0, "predict_timeout_s": 10.0})
    report = replaced(desk, hangs)
    assert check(report, "time").state is State.FAILED
    assert "train was stopped at its limit of 3 s" in check(report, "time").detail
    desk.settings = desk.settings.model_copy(update={"learn_timeout_s": 60.0})
    report = replaced(desk, predicts_slowly)
    assert check(report, "time").state is State.WARNING
    assert re.search(r"predict took (8\.[5-9]|9\.\d) of 10 s; real data may take longer", check(report, "time").detail)


def test_memory_near_the_limit_is_a_warning_and_over_it_a_failure(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    really_run = FakeRuntime.run

    def run(self: FakeRuntime, spec: Any, **kwargs: Any) -> Any:
        result = really_run(self, spec, **kwargs)
        return replace(result, peak_memory_bytes=(90 if spec.step == "predict" else 20) * MIB)

    monkeypatch.setattr(FakeRuntime, "run", run)
    desk.settings = desk.settings.model_copy(update={"memory_bytes": 100 * MIB})
    assert check(desk.try_it(), "memory") == Check(
        name="memory", state=State.WARNING, detail="predict took 90 of 100 MiB; real data may need more"
    )
    desk.settings = desk.settings.model_copy(update={"memory_bytes": 200 * MIB})
    assert check(desk.try_it(), "memory") == Check(
        name="memory", state=State.PASSED, detail="predict took 90 of 200 MiB"
    )
    monkeypatch.setattr(
        FakeRuntime,
        "run",
        lambda self, spec, **kwargs: (
            replace(really_run(self, spec, **kwargs), exit_code=137, oom_killed=True)
            if spec.step == "train"
            else really_run(self, spec, **kwargs)
        ),
    )
    found = check(desk.try_it(), "memory")
    assert found.state is State.FAILED
    assert "train needs more than the limit of 200 MiB" in found.detail


def test_a_build_that_fails_is_the_algos(desk: Desk, tmp_path: Path) -> None:
    report = desk.try_it(algo=algo_folder(tmp_path / "bad", dockerfile=f"{dockerfile('algo')}RUN false\n"))
    assert check(report, "problem image").state is State.PASSED
    assert check(report, "algo image").state is State.FAILED
    assert report.failures[0].cause is Cause.BUILD_FAILED
    assert {found.state for found in report.checks[2:10]} == {State.NOT_REACHED}


def test_a_problem_that_cannot_be_built_is_its_own_fault(desk: Desk, tmp_path: Path) -> None:
    folder = problem_folder(tmp_path / "bad", dockerfile=f"{dockerfile('problem')}RUN false\n")
    report = desk.try_it(problem=folder)
    assert check(report, "problem image").state is State.FAILED
    assert check(report, "algo image").state is State.NOT_REACHED
    assert report.failures[0].blame == "problem"


def test_scoring_that_fails_is_said_to_be_about_the_predictions(desk: Desk) -> None:
    def scores_badly(container: FakeContainer) -> int:
        if flag(container, "-T") == "perf":
            container.print("16 finite predictions expected")
            return 1
        return problem(container)

    desk.programs["problem"] = scores_badly
    found = check(desk.try_it(), "scores")
    assert found.state is State.FAILED
    assert "look whether the predictions hold what the problem asks for" in found.detail


def test_a_base_that_is_not_allowed_is_a_failure_of_the_job(desk: Desk, tmp_path: Path) -> None:
    report = desk.try_it(algo=algo_folder(tmp_path / "other", dockerfile="FROM debian:12\n"))
    assert report.failures[0].cause is Cause.BAD_ARCHIVE
    assert "FROM debian:12 is not accepted here" in report.failures[0].message


def test_a_base_image_that_is_missing_is_said_with_how_to_get_it(desk: Desk, tmp_path: Path) -> None:
    other = algo_folder(tmp_path / "other", dockerfile="FROM morpheo/base:9 AS one\nFROM one\n")
    with pytest.raises(RuntimeUnavailable, match=r"no image morpheo/base:9, .*scripts/base-image"):
        desk.try_it(algo=other)


def test_an_engine_that_fails_is_not_the_algos_fault(desk: Desk) -> None:
    def pulls_the_plug(container: FakeContainer) -> int:
        raise_later = desk.engine.run

        def fail(*_args: Any, **_kwargs: Any) -> Any:
            desk.engine.run = raise_later  # type: ignore[method-assign]
            raise RuntimeUnavailable("no container engine answers") from OSError("connection reset")

        desk.engine.run = fail  # type: ignore[method-assign]
        return problem(container)

    desk.programs["problem"] = pulls_the_plug
    with pytest.raises(RuntimeUnavailable, match=r"no container engine answers.*: connection reset; `morpheo doctor`"):
        desk.try_it()


def test_without_an_engine_nothing_is_begun(desk: Desk) -> None:
    desk.engine.down = True
    with pytest.raises(RuntimeUnavailable, match="no container engine answers"):
        desk.try_it()


def test_a_problem_without_a_sample_is_said_with_what_helps(desk: Desk, tmp_path: Path) -> None:
    bare = problem_folder(tmp_path / "bare", dockerfile=dockerfile("problem"), sample={"sample/train/one": "a:1"})
    with pytest.raises(
        InvalidInput, match=r"no file in sample/test\. .*\(--test FILE\), or ask the problem's custodian"
    ):
        desk.try_it(problem=bare)
    own = write_folder(tmp_path, {"mine.txt": "a:1"}) / "mine.txt"
    report = desk.try_it(problem=bare, test=[own])
    assert report.passed
    assert report.score == 1.0


def test_own_items_take_the_place_of_the_sample(desk: Desk, tmp_path: Path) -> None:
    write_folder(tmp_path, {"x/item": "k:9", "y/item": "k:9", "z/item": "k:9"})
    report = desk.try_it(train=[tmp_path / "x/item", tmp_path / "y/item"], test=[tmp_path / "z/item"])
    assert report.score == 1.0
    assert check(report, "every test item").detail == "1 of 1"


@pytest.mark.parametrize(
    ("sample", "complaint"),
    [
        ({"sample/train/deep/one": "a:1", "sample/test/two": "b:2"}, "sample/train must hold files only"),
        ({"sample/train/one": "", "sample/test/two": "b:2"}, "the train item one is empty"),
        ({".dockerignore": "sample\n", "sample/train/one": "a:1", "sample/test/two": "b:2"}, "ships no sample"),
    ],
    ids=["folder", "empty", "ignored"],
)
def test_a_sample_that_cannot_be_used_is_refused(
    desk: Desk, tmp_path: Path, sample: dict[str, str], complaint: str
) -> None:
    odd = problem_folder(tmp_path / "odd", dockerfile=dockerfile("problem"), sample=sample)
    with pytest.raises(InvalidInput, match=complaint):
        desk.try_it(problem=odd)


def test_what_is_no_archive_is_refused(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no archive")
    with pytest.raises(BadArchive, match="the problem's archive: not a gzip file"):
        desk.try_it(problem=tmp_path / "note.txt")
    assert desk.try_it(algo=tmp_path / "note.txt").failures[0].cause is Cause.BAD_ARCHIVE
    with pytest.raises(InvalidInput, match="there is no Dockerfile"):
        desk.try_it(algo=tmp_path)
    with pytest.raises(InvalidInput, match="neither a folder nor a"):
        desk.try_it(algo=tmp_path / "absent")


def test_nothing_of_the_persons_own_stack_is_used(desk: Desk) -> None:
    desk.settings = desk.settings.model_copy(
        update={
            "s3_endpoint": "127.0.0.1:1",
            "orchestrator_url": "http://127.0.0.1:1",
            "algo_docker_host": "tcp://127.0.0.1:1",
            "max_attempts": 5,
        }
    )
    assert desk.try_it().passed


def test_trials_of_one_person_wait_for_each_other(desk: Desk) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def waits(container: FakeContainer) -> int:
        begun.set()
        assert go_on.wait(30)
        return algo(container)

    desk.programs["algo"] = waits
    reports: list[Report] = []
    waited: list[str] = []

    def note(step: str) -> None:
        waited.append(step)
        if "waiting" in step:
            go_on.set()

    def one() -> None:
        reports.append(run_trial(desk.inputs, desk.settings, home=Home(desk.home), on_step=note, engine=desk.engine))

    first = threading.Thread(target=one)
    first.start()
    assert begun.wait(30)
    one()
    first.join()
    assert waited.count("waiting for another trial to end") == 1
    assert [report.passed for report in reports] == [True, True]


def test_what_a_killed_trial_left_is_removed_by_the_next(desk: Desk) -> None:
    desk.try_it(keep_algo=True)
    (left,) = [tag for tag in (desk.home / "images").read_text().split() if "/algo:" in tag]
    (desk.home / "data" / "work").mkdir(parents=True)
    (desk.home / "data" / "work" / "rubbish").write_text("x")
    other = algo_folder(desk.home.parent / "other", dockerfile=f"# other\n{dockerfile('algo')}")
    assert desk.try_it(algo=other).passed
    assert desk.images == ["problem"]
    assert desk.engine.find_image(left) is None
