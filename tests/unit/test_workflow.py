"""The steps of a job: their arguments and mounts are a contract with images of 2017, and with the data's owner."""

from __future__ import annotations

import pytest

from morpheo.models import StepName
from morpheo.runtime.contract import Folder, Image, Mount, Step
from morpheo.workflow import learn_steps, predict_step, sanitize_step

HIDDEN = "hidden-0123"
DETARGET, TRAIN, PERF = learn_steps(HIDDEN)
PREDICT = predict_step()
SANITIZE = sanitize_step("program", 7)
STEPS = [DETARGET, TRAIN, SANITIZE, PERF, PREDICT]
every_step = pytest.mark.parametrize("step", STEPS, ids=[str(step.name) for step in STEPS])


def targets(step: Step) -> dict[str, Mount]:
    return {mount.target: mount for mount in step.mounts}


def test_a_learn_job_is_detarget_train_perf() -> None:
    assert [(step.name, step.image) for step in (DETARGET, TRAIN, PERF)] == [
        (StepName.DETARGET, Image.PROBLEM),
        (StepName.TRAIN, Image.ALGO),
        (StepName.PERF, Image.PROBLEM),
    ]


def test_a_predict_job_is_one_container_of_the_algo() -> None:
    assert (PREDICT.name, PREDICT.image) == (StepName.PREDICT, Image.ALGO)


@pytest.mark.parametrize(
    ("step", "args"),
    [
        (DETARGET, f"-T detarget -i /{HIDDEN} -s /submission_data"),
        (TRAIN, "-V /data -T train"),
        (PERF, f"-T perf -i /{HIDDEN} -s /submission_data"),
        (PREDICT, "-V /data -T predict"),
    ],
    ids=["detarget", "train", "perf", "predict"],
)
def test_the_arguments_are_those_that_images_know(step: Step, args: str) -> None:
    assert " ".join(step.args) == args


@pytest.mark.parametrize(
    ("step", "mounts"),
    [
        (DETARGET, {f"/{HIDDEN}/test": "test", "/submission_data/test": "detargeted, writable"}),
        (
            TRAIN,
            {
                "/data/train": "train",
                "/data/train/pred": "train_pred, writable",
                "/data/test": "visible",
                "/data/test/pred": "test_pred, writable",
                "/data/model": "model, writable",
            },
        ),
        (
            PERF,
            {
                f"/{HIDDEN}/test": "test",
                f"/{HIDDEN}/perf": "perf, writable",
                "/submission_data/train": "train",
                "/submission_data/train/pred": "train_pred, harvested",
                "/submission_data/test": "visible",
                "/submission_data/test/pred": "test_pred, harvested",
            },
        ),
        (PREDICT, {"/data/test": "test", "/data/test/pred": "test_pred, writable", "/data/model": "model"}),
    ],
    ids=["detarget", "train", "perf", "predict"],
)
def test_the_mounts_are_those_that_images_know(step: Step, mounts: dict[str, str]) -> None:
    def words(mount: Mount) -> str:
        return mount.folder + ", writable" * mount.writable + ", harvested" * mount.harvested

    assert {target: words(mount) for target, mount in targets(step).items()} == mounts


def test_the_truth_is_never_mounted_where_the_algo_trains() -> None:
    assert Folder.TEST not in {mount.folder for mount in TRAIN.mounts}
    assert Folder.DETARGETED not in {mount.folder for mount in TRAIN.mounts}
    assert not [mount for mount in TRAIN.mounts if HIDDEN in mount.target]
    assert HIDDEN not in " ".join(TRAIN.args)


def test_predictions_are_written_anew_where_there_is_nothing_else() -> None:
    assert {mount.folder for mount in SANITIZE.mounts if not mount.writable} == {Folder.TRAIN_PRED, Folder.TEST_PRED}
    assert all(mount.harvested for mount in SANITIZE.mounts if not mount.writable)
    assert {mount.folder for mount in SANITIZE.mounts if mount.writable} == {Folder.TRAIN_CLEAN, Folder.TEST_CLEAN}
    assert (SANITIZE.image, SANITIZE.entrypoint) == (Image.PLATFORM, ("python3", "-I", "-B", "-c", "program"))
    assert SANITIZE.args == ("/predictions", "/clean", "7")


def test_the_algo_sees_nothing_of_the_scores() -> None:
    for step in (TRAIN, PREDICT):
        assert Folder.PERF not in {mount.folder for mount in step.mounts}


@every_step
def test_only_output_folders_are_writable(step: Step) -> None:
    for mount in step.mounts:
        assert not mount.writable or mount.folder.is_output, mount


@every_step
def test_no_writable_folder_holds_another_mount(step: Step) -> None:
    # Otherwise the program could move or replace the mount point.
    for outer in step.mounts:
        if outer.writable:
            assert not [mount for mount in step.mounts if mount.target.startswith(outer.target + "/")]


@every_step
def test_a_step_mounts_each_target_and_each_folder_once(step: Step) -> None:
    assert len({mount.target for mount in step.mounts}) == len(step.mounts)
    assert len({mount.folder for mount in step.mounts}) == len(step.mounts)


@every_step
def test_a_harvested_copy_is_never_writable(step: Step) -> None:
    assert not [mount for mount in step.mounts if mount.harvested and mount.writable]


def test_scoring_reads_copies_of_everything_that_an_algo_could_write() -> None:
    written = {mount.folder for mount in TRAIN.mounts if mount.writable}
    for mount in PERF.mounts:
        assert mount.folder not in written or mount.harvested, mount


def test_training_reads_nothing_that_detarget_could_write() -> None:
    written = {mount.folder for mount in DETARGET.mounts if mount.writable}
    assert not written & {mount.folder for mount in TRAIN.mounts}


def test_predicting_cannot_change_the_model() -> None:
    assert not targets(PREDICT)["/data/model"].writable


@pytest.mark.parametrize("step", [DETARGET, PERF], ids=["detarget", "perf"])
def test_the_hidden_data_is_at_a_path_of_its_own_in_each_job(step: Step) -> None:
    detarget, _, perf = learn_steps("hidden-other")
    other = detarget if step is DETARGET else perf
    hidden = {target for target, mount in targets(step).items() if mount.folder in (Folder.TEST, Folder.PERF)}
    assert hidden
    assert all(target.startswith(f"/{HIDDEN}/") for target in hidden)
    assert not hidden & set(targets(other))
