"""What a trial says: one check for each thing that a job can end badly for. Pure, from the jobs and what they left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from morpheo.models import Job, JobState, StepName
from morpheo.trial.findings import ALGO_STEPS, Check, JobFailure, Report, State, Trial, step_of, stopped_in
from morpheo.trial.limits import memory_check, network_check, time_check
from morpheo.trial.sample import Item
from morpheo.trial.watch import TEST_PRED, Left

_SHOWN = 5
_CONTAINERS = (StepName.DETARGET, StepName.TRAIN, StepName.PERF, StepName.PREDICT)
_TRAIN_PRED, _MODEL = "/data/train/pred", "/data/model"


def make_report(trial: Trial, *, seconds: float) -> Report:
    """Return what a trial found."""
    checks = tuple(_checks(trial))
    succeeded = [job.state is JobState.SUCCEEDED for job in (trial.train, trial.again, trial.predict) if job]
    return Report(
        passed=succeeded == [True] * 3 and all(check.state is not State.FAILED for check in checks),
        checks=checks,
        failures=tuple(_failures(trial)),
        score=None if trial.train.scores is None else trial.train.scores.perf,
        seconds=seconds,
    )


def _checks(trial: Trial) -> Iterator[Check]:
    yield _build(trial, StepName.BUILD_PROBLEM, "problem image builds")
    yield _build(trial, StepName.BUILD_ALGO, "algo image builds")
    yield _container(trial.train, StepName.DETARGET, "problem hides the targets")
    yield _container(trial.train, StepName.TRAIN, "train runs")
    for part, items in (("train", trial.sample.train), ("test", trial.sample.test)):
        yield _predictions(trial, part, items)
    yield _model(trial)
    yield _score(trial)
    yield _whole(trial.again, "train goes on from its model", StepName.TRAIN)
    yield _predict(trial)
    yield network_check(trial)
    yield memory_check(trial)
    yield time_check(trial)


def _sentence(job: Job) -> str:
    """Return why a job failed in one line, without the log that the message may quote."""
    message = job.failure.message if job.failure else str(job.state)
    return message.partition(". Its last lines:\n")[0].removesuffix(". It wrote no log").replace("\n", " ")


def _build(trial: Trial, name: StepName, title: str) -> Check:
    step = step_of(trial.train, name)
    failure = trial.train.failure
    if failure is not None and failure.step is name:
        # A job's failure quotes all of a build's log; the last instruction is what matters in one line.
        detail = _sentence(trial.train)
        return Check(name=title, state=State.FAILED, detail=detail, seconds=step.seconds if step else None)
    if step is not None:
        return Check(name=title, state=State.PASSED, seconds=step.seconds)
    if failure is not None and failure.step is StepName.BUILD_PROBLEM:
        return Check(name=title, state=State.NOT_REACHED)
    return Check(name=title, state=State.PASSED, detail="built before")


def _container(job: Job, name: StepName, title: str) -> Check:
    step = step_of(job, name)
    if step is None:
        return Check(name=title, state=State.NOT_REACHED)
    if stopped_in(job, name) and (name not in ALGO_STEPS or step.exit_code != 0):
        return Check(name=title, state=State.FAILED, detail=_sentence(job), seconds=step.seconds)
    return Check(name=title, state=State.PASSED, seconds=step.seconds)


def _ended_well(job: Job | None, name: StepName) -> bool:
    step = step_of(job, name)
    return step is not None and step.exit_code == 0


def _predictions(trial: Trial, part: str, items: Sequence[Item]) -> Check:
    title = f"a prediction for every {part} item"
    if not _ended_well(trial.train, StepName.TRAIN):
        return Check(name=title, state=State.NOT_REACHED)
    where = _TRAIN_PRED if part == "train" else TEST_PRED
    left = trial.left.get((trial.train.id, StepName.TRAIN, where), Left())
    if complaint := wrong_names(left, items, where=where):
        return Check(name=title, state=State.FAILED, detail=complaint)
    return Check(name=title, state=State.PASSED, detail=f"{len(items)} of {len(items)}")


def wrong_names(left: Left, items: Iterable[Item], *, where: str) -> str:
    """
    Return what is wrong with the names of predictions, nothing if they are right.

    Args:
        left: What lies in the folder.
        items: What there must be a prediction of.
        where: The folder, as the algo knows it.
    """
    expected = {str(item.id): item.name for item in items}
    missing = [name for name in expected if name not in left.files]
    unknown = [name for name in (*left.files, *left.others) if name not in expected]
    renamed = {name: data_id for data_id in missing for name in unknown if data_id in name}
    parts = [f"found {name}, expected {data_id}" for name, data_id in renamed.items()]
    if absent := [f"{data_id} ({expected[data_id]})" for data_id in missing if data_id not in renamed.values()]:
        parts.append(f"no file for {_list(absent)}")
    if strange := [name for name in unknown if name not in renamed]:
        parts.append(f"unexpected {_list(strange)}")
    if links := [name for name in left.others if name in expected]:
        parts.append(f"not a regular file: {_list(links)}")
    return f"{'; '.join(parts)}: write {where}/<data id> for each file and nothing else" if parts else ""


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _model(trial: Trial) -> Check:
    title = "train leaves a model"
    if not _ended_well(trial.train, StepName.TRAIN):
        return Check(name=title, state=State.NOT_REACHED)
    left = trial.left.get((trial.train.id, StepName.TRAIN, _MODEL), Left())
    if not left.files:
        return Check(
            name=title, state=State.FAILED, detail=f"{_MODEL} is empty after train; write at least one file to it"
        )
    names_are_right = all(
        check.state is State.PASSED
        for check in (
            _predictions(trial, "train", trial.sample.train),
            _predictions(trial, "test", trial.sample.test),
        )
    )
    if stopped_in(trial.train, StepName.TRAIN) and names_are_right:
        return Check(name=title, state=State.FAILED, detail=_sentence(trial.train))
    count = "1 file" if len(left.files) == 1 else f"{len(left.files)} files"
    return Check(name=title, state=State.PASSED, detail=f"{count}, {sum(left.files.values())} bytes")


def _score(trial: Trial) -> Check:
    title = "problem scores the predictions"
    step = step_of(trial.train, StepName.PERF)
    if trial.train.scores is not None:
        detail = f"{trial.train.scores.perf:.4g}, on the sample only: it says nothing of the real data"
        return Check(name=title, state=State.PASSED, detail=detail, seconds=step.seconds if step else None)
    if step is None or not stopped_in(trial.train, StepName.PERF):
        return Check(name=title, state=State.NOT_REACHED)
    detail = f"{_sentence(trial.train)}; look whether the predictions hold what the problem asks for"
    return Check(name=title, state=State.FAILED, detail=detail, seconds=step.seconds)


def _whole(job: Job | None, title: str, step_name: StepName) -> Check:
    """Return the check that a whole job ends well."""
    if job is None:
        return Check(name=title, state=State.NOT_REACHED)
    step = step_of(job, step_name)
    seconds = step.seconds if step else None
    if job.state is JobState.SUCCEEDED:
        return Check(name=title, state=State.PASSED, seconds=seconds)
    return Check(name=title, state=State.FAILED, detail=_sentence(job), seconds=seconds)


def _predict(trial: Trial) -> Check:
    check = _whole(trial.predict, "predict reloads the model and predicts", StepName.PREDICT)
    if trial.predict is None or trial.predicted is None:
        return check
    if _ended_well(trial.predict, StepName.PREDICT):
        left = trial.left.get((trial.predict.id, StepName.PREDICT, TEST_PRED), Left())
        if complaint := wrong_names(left, [trial.predicted], where=TEST_PRED):
            return Check(name=check.name, state=State.FAILED, detail=complaint, seconds=check.seconds)
    if check.state is State.PASSED and trial.same_prediction is False:
        detail = (
            f"predict gave another prediction of {trial.predicted.name} than train had given with the same model; "
            "if nothing in it is random, the model does not hold all that predict needs"
        )
        return Check(name=check.name, state=State.WARNING, detail=detail, seconds=check.seconds)
    return check


def _failures(trial: Trial) -> Iterator[JobFailure]:
    for name, job in trial.jobs:
        if job.failure is None:
            continue
        failure = job.failure
        # What a container wrote is worth reading after any failure, a build's log only where the message quotes it.
        quoted = ". Its last lines:\n" in failure.message or failure.step not in _CONTAINERS
        log = "" if quoted else trial.logs.get(job.id, {}).get(failure.step, "") if failure.step else ""
        yield JobFailure(job=name, cause=failure.cause, blame=failure.blame, message=failure.message, log=log)
