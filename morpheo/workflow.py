"""
Which containers a job consists of: pure, so that the contract of ``wire-spec`` 4.4 can be read and tested as data.

A learn job is detarget (problem image) → train (algo image) → perf (problem image); a predict job is predict (algo
image). Nothing untrusted is writable but the output folders; scoring reads copies that no algo could touch, and the
hidden data has a path that cannot be guessed, because a prediction file may contain links (``trust`` 0.1).
"""

from __future__ import annotations

from morpheo.models import StepName
from morpheo.runtime.contract import Folder, Image, Mount, Step


def learn_steps(hidden: str) -> tuple[Step, Step, Step]:
    """
    Return the steps of a learn job: detarget, train, perf.

    Args:
        hidden: Name of the folder, at the root of the problem's containers, where the hidden data is.
    """
    problem_args = ("-i", f"/{hidden}", "-s", "/submission_data")
    return (
        Step(
            name=StepName.DETARGET,
            image=Image.PROBLEM,
            args=("-T", "detarget", *problem_args),
            mounts=(
                Mount(folder=Folder.TEST, target=f"/{hidden}/test"),
                Mount(folder=Folder.DETARGETED, target="/submission_data/test", writable=True),
            ),
        ),
        Step(
            name=StepName.TRAIN,
            image=Image.ALGO,
            args=("-V", "/data", "-T", "train"),
            mounts=(
                Mount(folder=Folder.TRAIN, target="/data/train"),
                Mount(folder=Folder.TRAIN_PRED, target="/data/train/pred", writable=True),
                Mount(folder=Folder.VISIBLE, target="/data/test"),
                Mount(folder=Folder.TEST_PRED, target="/data/test/pred", writable=True),
                Mount(folder=Folder.MODEL, target="/data/model", writable=True),
            ),
        ),
        Step(
            name=StepName.PERF,
            image=Image.PROBLEM,
            args=("-T", "perf", *problem_args),
            mounts=(
                Mount(folder=Folder.TEST, target=f"/{hidden}/test"),
                Mount(folder=Folder.PERF, target=f"/{hidden}/perf", writable=True),
                Mount(folder=Folder.TRAIN, target="/submission_data/train"),
                Mount(folder=Folder.TRAIN_PRED, target="/submission_data/train/pred", harvested=True),
                Mount(folder=Folder.VISIBLE, target="/submission_data/test"),
                Mount(folder=Folder.TEST_PRED, target="/submission_data/test/pred", harvested=True),
            ),
        ),
    )


def predict_step() -> Step:
    """Return the only step of a predict job."""
    return Step(
        name=StepName.PREDICT,
        image=Image.ALGO,
        args=("-V", "/data", "-T", "predict"),
        mounts=(
            Mount(folder=Folder.TEST, target="/data/test"),
            Mount(folder=Folder.TEST_PRED, target="/data/test/pred", writable=True),
            Mount(folder=Folder.MODEL, target="/data/model"),
        ),
    )
